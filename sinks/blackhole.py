"""Take everything and keep nothing: for measuring the pipeline, and for throwing records away by a route on purpose.

Counts what it takes in ``records`` and ``bytes`` (of source text). No limits, no errors, nothing to read back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from msgspec import Meta

from shipper.sink import Sink, SinkConfig

if TYPE_CHECKING:
    from shipper.record import Batch


class BlackholeConfig(SinkConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Take everything, keep nothing, count it."""

    parse: Annotated[
        bool, Meta(description="Whether lines are parsed first, so that it costs what a sink of parsed records costs.")
    ] = True


class BlackholeSink(Sink):
    """Counts and forgets. ``records`` and ``bytes`` (of source text) are totals since construction."""

    config: ClassVar[type[SinkConfig]] = BlackholeConfig
    takes_canary: ClassVar[bool] = False

    def __init__(self, config: BlackholeConfig) -> None:
        self.wants_parse = config.parse
        self.records = 0
        self.bytes = 0

    def open(self) -> None:
        """Nothing to prepare."""

    def write(self, batch: Batch) -> None:
        """Count the batch."""
        self.records += len(batch)
        self.bytes += batch.size

    def close(self) -> None:
        """Nothing to release; the counts stay."""


SINK = BlackholeSink
