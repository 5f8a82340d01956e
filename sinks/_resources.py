"""Resources of records that are read back: equal ones are one object, as they were when they were written."""

from __future__ import annotations

from shipper.record import Resource

#: Resources that are remembered, so that memory is bounded where containers come and go.
_MOST = 10_000


class Resources:
    """Gives the same `Resource` for the same source and attributes."""

    def __init__(self) -> None:
        self._known: dict[str, Resource] = {}

    def of(self, source: str, attributes: dict[str, str]) -> Resource:
        """Give the resource; ``attributes`` become its own, or are dropped."""
        key = repr((source, sorted(attributes.items())))  # what others wrote may hold values that cannot be hashed
        if (found := self._known.get(key)) is None:
            if len(self._known) >= _MOST:
                self._known.clear()
            found = self._known[key] = Resource(source, attributes)
        return found
