"""Which records go to which sinks: ``routes`` first, ``active`` for what no route matches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from shipper.routing.condition import compile_condition

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shipper.reader import Condition
    from shipper.record import Batch


class RouteConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One route: records that match go to these sinks instead of ``active``."""

    match: Annotated[str, Meta(description="The condition, such as level>=error service:api.")]
    to: Annotated[str | list[str], Meta(description="One sink's name or a list of them.")]

    @property
    def sinks(self) -> tuple[str, ...]:
        """The names in ``to``."""
        return (self.to,) if isinstance(self.to, str) else tuple(self.to)


class Router:
    """Splits batches by sink. Every route that matches adds its sinks."""

    def __init__(self, active: Sequence[str], routes: Sequence[RouteConfig]) -> None:
        """Compile the routes' conditions. Raises ConfigError."""
        self.active = tuple(active)
        self._routes: list[tuple[Condition, tuple[str, ...]]] = [
            (compile_condition(route.match), route.sinks) for route in routes
        ]
        #: Every sink that a record may go to, in the order of the config.
        self.sinks = tuple(dict.fromkeys([*self.active, *(sink for _, sinks in self._routes for sink in sinks)]))

    @property
    def wants_parse(self) -> bool:
        """Whether records must be parsed before they can be routed."""
        return bool(self._routes)

    def split(self, batch: Batch) -> dict[str, Batch]:
        """Give each sink its part of the batch; a sink that gets nothing is not named."""
        if not len(batch):
            return {}
        if not self._routes:
            return dict.fromkeys(self.active, batch)
        rows: dict[str, set[int]] = {}
        unmatched = set(range(len(batch)))
        for condition, sinks in self._routes:
            matched = condition.indexes(batch)
            unmatched.difference_update(matched)
            for sink in sinks:
                rows.setdefault(sink, set()).update(matched)
        for sink in self.active:
            rows.setdefault(sink, set()).update(unmatched)
        return {
            sink: batch if len(indexes) == len(batch) else batch.select(sorted(indexes))
            for sink, indexes in rows.items()
            if indexes
        }
