"""The contract must catch a broken sink: each bad habit fails the test that is about it, and only such tests."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated

import msgspec
import pytest

from shipper.record import Batch, Record
from shipper.sink import Sink, SinkConfig
from shipper.testing.chaos import ChaosSink
from shipper.testing.sink_contract import SinkContract


class MemorySink(ChaosSink):
    """A sink that does everything right; the destination is kept beside the sink as a server's would be."""

    config = SinkConfig

    def write(self, batch: Batch) -> None:
        for record in batch.records():
            if record.id not in self.records:
                self.records[record.id] = self.keep(record)

    def keep(self, record: Record) -> Record:
        clean = msgspec.json.decode(_json(record.attributes))
        return msgspec.structs.replace(record, message=_mend(record.message), attributes=clean)


def _mend(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _json(value: object) -> bytes:
    import json

    return _mend(json.dumps(value, ensure_ascii=False)).encode()


def contract(sink_class: type[MemorySink]) -> SinkContract:
    class Contract(SinkContract):
        exactly_once = True

        def __init__(self) -> None:
            self.server: dict[str, Record] = {}

        def make_sink(self, tmp_path: Path) -> Sink:
            sink = sink_class()
            sink.records = self.server
            return sink

        def read_back(self, sink: Sink) -> list[Record] | None:
            return list(self.server.values())

    return Contract()


def failing(sink_class: type[MemorySink], tmp_path: Path) -> set[str]:
    """The names of the contract's tests that this sink fails."""
    names = [name for name, _ in inspect.getmembers(SinkContract, inspect.isfunction) if name.startswith("test_")]
    failed = set()
    for name in names:
        try:
            getattr(contract(sink_class), name)(tmp_path)
        except pytest.skip.Exception:
            continue
        except Exception:  # noqa: BLE001 - any failure of any kind is a catch
            failed.add(name.removeprefix("test_"))
    return failed


def test_a_good_sink_passes(tmp_path: Path) -> None:
    assert failing(MemorySink, tmp_path) == set()


class Doubling(MemorySink):
    """Stores again what comes again."""

    def write(self, batch: Batch) -> None:
        for record in batch.records():
            self.records[f"{len(self.records)} {record.id}"] = self.keep(record)


class Cutting(MemorySink):
    """Has a column of 64 KiB and does not say so."""

    def keep(self, record: Record) -> Record:
        return msgspec.structs.replace(super().keep(record), message=_mend(record.message)[:65_535])


class Rounding(MemorySink):
    """Keeps microseconds."""

    def keep(self, record: Record) -> Record:
        return msgspec.structs.replace(super().keep(record), time_ns=record.time_ns // 1_000 * 1_000)


class OneResource(MemorySink):
    """Takes the first record's resource for all."""

    def write(self, batch: Batch) -> None:
        batch = batch.select(range(len(batch)))
        batch.resources = batch.resources[:1] * len(batch)
        super().write(batch)


class EmptyIsNothing(MemorySink):
    """Drops records without a message."""

    def write(self, batch: Batch) -> None:
        super().write(batch.select([i for i, record in enumerate(batch.records()) if record.message]))


class Backwards(MemorySink):
    """Turns the order around."""

    def write(self, batch: Batch) -> None:
        super().write(batch.select(range(len(batch) - 1, -1, -1)))


class CStrings(MemorySink):
    """Ends text at NUL."""

    def keep(self, record: Record) -> Record:
        return msgspec.structs.replace(super().keep(record), message=_mend(record.message).partition("\0")[0])


class Strict(MemorySink):
    """Lets one bad character spoil the batch."""

    def write(self, batch: Batch) -> None:
        for record in batch.records():
            record.message.encode()
        super().write(batch)


class TextOnly(MemorySink):
    """Turns attributes into text."""

    def keep(self, record: Record) -> Record:
        kept = super().keep(record)
        return msgspec.structs.replace(kept, attributes={key: str(value) for key, value in kept.attributes.items()})


class FewLevels(MemorySink):
    """Knows no level below info."""

    def keep(self, record: Record) -> Record:
        return msgspec.structs.replace(super().keep(record), severity=max(9, record.severity))


class Meddling(MemorySink):
    """Changes what other sinks share."""

    def write(self, batch: Batch) -> None:
        super().write(batch)
        for attributes in batch.attributes or []:
            attributes["sent"] = True


class ClosesOnce(MemorySink):
    """Raises when closed again."""

    def close(self) -> None:
        assert not self.closed
        self.closed = True


class Greedy(MemorySink):
    """Cuts a batch at its limit and drops the rest."""

    def write(self, batch: Batch) -> None:
        super().write(batch.select(range(min(len(batch), self.limits.records))))


class Starter(MemorySink):
    """Empties its destination on start."""

    def open(self) -> None:
        self.records.clear()


class Prober(MemorySink):
    """Writes a record to see whether it works."""

    def healthcheck(self) -> None:
        from shipper.testing.batches import make_batch

        self.write(make_batch(["probe"]))


class MutteringConfig(SinkConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Says little."""

    host: str = ""
    port: Annotated[int, msgspec.Meta(description="The port.")] = 1


class Muttering(MemorySink):
    """Has an option without description."""

    config = MutteringConfig


@pytest.mark.parametrize(
    ("sink_class", "caught_by"),
    [
        (Doubling, {"replay_is_not_doubled"}),
        (Cutting, {"large_message"}),
        (Rounding, {"nanoseconds"}),
        (OneResource, {"many_resources_in_one_batch"}),
        (EmptyIsNothing, {"empty_message"}),
        (Backwards, {"order_is_kept"}),
        (CStrings, {"control_characters"}),
        (Strict, {"lone_surrogates"}),
        (TextOnly, {"attributes_of_every_type"}),
        (FewLevels, {"levels"}),
        (Meddling, {"batch_is_not_changed"}),
        (ClosesOnce, {"closing_twice_is_harmless"}),
        (Greedy, {"limits"}),
        (Starter, {"opening_again_harms_nothing", "new_instance_goes_on_where_the_old_one_ended"}),
        (Prober, {"healthcheck_writes_nothing"}),
        (Muttering, {"every_option_is_described"}),
    ],
)
def test_a_bad_habit_is_caught(tmp_path: Path, sink_class: type[MemorySink], caught_by: set[str]) -> None:
    assert caught_by <= failing(sink_class, tmp_path)
