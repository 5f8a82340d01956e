"""The blackhole takes everything, keeps nothing and counts."""

from __future__ import annotations

from pathlib import Path

from shipper.record import Record
from shipper.sink import Sink
from shipper.testing.batches import make_batch
from shipper.testing.sink_contract import SinkContract
from sinks.blackhole import BlackholeConfig, BlackholeSink


class TestBlackhole(SinkContract):
    example = Path("config/examples/blackhole.yaml")

    def make_sink(self, tmp_path: Path) -> Sink:
        return BlackholeSink(BlackholeConfig(type="blackhole"))

    def read_back(self, sink: Sink) -> list[Record] | None:
        return None


def test_counts_records_and_bytes_of_source_text() -> None:
    sink = BlackholeSink(BlackholeConfig(type="blackhole"))
    sink.open()
    sink.write(make_batch(["12345", "é"]))
    sink.write(make_batch(["1"]))
    sink.close()
    assert (sink.records, sink.bytes) == (3, 6 + 3 + 2)


def test_parses_by_default_and_not_if_told() -> None:
    assert BlackholeSink(BlackholeConfig(type="blackhole")).wants_parse
    assert not BlackholeSink(BlackholeConfig(type="blackhole", parse=False)).wants_parse
