"""The Loki sink and its reader, against the stand-in that holds Loki's limits and gives its answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shipper.query import Query
from shipper.record import Record
from shipper.sink import Sink
from shipper.testing.batches import START_NS, make_batch
from shipper.testing.clock import FakeClock
from shipper.testing.loki_server import LokiLimits, LokiServer
from shipper.testing.sink_contract import FIELDS, SinkContract
from sinks.loki import LokiConfig, LokiReader, LokiSink

HOUR = 3600 * 10**9
DAY = 24 * HOUR


class Place:
    """A server, and sinks and readers of it that share its clock, which stands a day after the first record."""

    def __init__(self, **options: Any) -> None:
        self.clock = FakeClock(START_NS + DAY)
        self.server = LokiServer(clock=self.clock.time_ns, **options)
        self._sinks: list[LokiSink] = []

    def config(self, **options: Any) -> LokiConfig:
        return LokiConfig(**self.server.sink(**options))

    def sink(self, **options: Any) -> LokiSink:
        sink = LokiSink(self.config(**options), clock=self.clock)
        sink.open()
        self._sinks.append(sink)
        return sink

    def read(self, options: dict[str, Any] | None = None, **query: Any) -> list[Record]:
        reader = LokiReader(self.config(**(options or {})), clock=self.clock)
        try:
            return list(reader.read(Query(**{"oldest_first": True, **query})))
        finally:
            reader.close()

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()
        self.server.close()


@pytest.fixture
def place() -> Iterator[Place]:
    place = Place()
    yield place
    place.close()


class _Contract(SinkContract):
    example = Path("config/examples/loki.yaml")
    exactly_once = True
    options: dict[str, Any] = {}
    server_options: dict[str, Any] = {}

    @pytest.fixture(autouse=True)
    def _place(self) -> Iterator[None]:
        # Random batches span 12 days.
        self.place = Place(limits=LokiLimits(reject_old_samples=False), **self.server_options)
        self.place.clock.advance(30 * 86_400)
        yield
        self.place.close()

    def make_sink(self, tmp_path: Path) -> Sink:
        return LokiSink(self.place.config(max_age="", **self.options), clock=self.place.clock)

    def read_back(self, sink: Sink) -> list[Record]:
        return self.place.read({"max_age": "", **self.options}, since=START_NS - DAY)

    def order_key(self, record: Record) -> Any:
        return record.time_ns, record.id


class TestLokiRawLines(_Contract):
    # A raw line holds its attributes itself; whoever reads parses it.
    compares = FIELDS - {"attributes"}


class TestLokiJsonLines(_Contract):
    options = {"line": "json"}


class TestLokiLogfmtLinesAsProtobufBefore37(_Contract):
    options = {"line": "logfmt", "encoding": "protobuf"}
    server_options = {"metadata_counts": False}
