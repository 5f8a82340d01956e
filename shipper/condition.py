"""The condition language of routes, filters and queries."""

from __future__ import annotations

from abc import ABC, abstractmethod

from shipper.record import Batch, Record


class Condition(ABC):
    """A compiled condition."""

    @abstractmethod
    def matches(self, record: Record) -> bool:
        """Tell whether a record matches."""

    @abstractmethod
    def indexes(self, batch: Batch) -> list[int]:
        """Give the indexes of the rows of a parsed batch that match, in order."""
