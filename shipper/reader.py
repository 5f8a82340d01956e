"""The contract of a reader, and the question it is asked: the same for every backend.

A sink that can be read back offers its `Reader` as ``READER``. A `Query` holds a `Condition`, of which a reader may push
down the `Term` objects that its backend can search for; `shipper.routing.condition` compiles conditions from text.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shipper.record import Batch, Record


class Term(msgspec.Struct, frozen=True):
    """One simple thing that must hold for a record to match, for backends that can search for it.

    ``op`` is one of ``contains`` (field message), ``=``, ``in``, ``>``, ``>=``, ``<``, ``<=`` (numbers only; a
    comparison of levels comes as ``in``), ``glob`` (``*`` stands for any text), ``regex``, ``iregex`` and
    ``exists`` (no value). ``values`` holds one text, several for ``in``. Levels are normalised names.
    """

    field: str
    op: str
    values: tuple[str, ...] = ()

    @property
    def value(self) -> str:
        """The only value."""
        return self.values[0]


class Condition(ABC):
    """A compiled condition."""

    @abstractmethod
    def matches(self, record: Record) -> bool:
        """Tell whether a record matches."""

    @abstractmethod
    def indexes(self, batch: Batch) -> list[int]:
        """Give the indexes of the rows of a parsed batch that match, in order."""

    def conjuncts(self) -> tuple[Term, ...]:
        """Give terms that every match fulfils. A backend may search for any of them; that can only widen."""
        return ()


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """A question to a `Reader`.

    ``since`` (inclusive) and ``until`` (exclusive) are nanoseconds since 1970 UTC; ``None`` leaves the end open.
    ``condition`` decides what matches. A backend may push any part of it down as long as that never loses a match;
    whoever runs the query applies the condition again to what comes back, so the answer is the same everywhere.
    ``limit`` bounds the rows after filtering, ``None`` gives all. Newest first unless ``oldest_first``.
    """

    condition: Condition | None = None
    since: int | None = None
    until: int | None = None
    limit: int | None = None
    oldest_first: bool = False


class Reader(ABC):
    """Reads back what a sink wrote. A sink module offers it as ``READER``; built from the sink's own config.

    ``parsed`` (an instance may override it) is false when the backend holds raw lines only: whoever reads then
    parses them as the pipeline would have. A backend that cannot tell doubles by id may hold a record twice; its
    reader gives it once.
    """

    parsed: bool = True

    @abstractmethod
    def read(self, query: Query) -> Iterator[Record]:
        """Give matching records, newest first unless the query says otherwise. Raises SinkError."""

    @abstractmethod
    def close(self) -> None:
        """Release the connection."""
