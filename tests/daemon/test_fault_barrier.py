"""What our own code trips over costs the record, the batch's turn or the source's turn that caused it, nothing else."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shipper.daemon.barrier import WITHHELD
from shipper.parse import Parser
from shipper.record import FAULT, Batch
from shipper.routing.router import RouteConfig, Router
from shipper.transform import Transform
from support.pipeline_rig import MemorySink, PipelineRig, lines


class Tripping(Transform):
    """Raises for each batch that has a record with this text; upper-cases all others."""

    def __init__(self, text: str, error: type[Exception], *, masks: bool) -> None:
        self._text = text
        self._error = error
        self.masks = masks

    def apply(self, batch: Batch) -> Batch:
        assert batch.messages is not None
        if self._text in batch.messages:
            raise self._error("tripped")
        batch.messages = [message.upper() for message in batch.messages]
        return batch


class Marks(MemorySink):
    """Keeps attributes and raw lines, too."""

    def __init__(self) -> None:
        super().__init__("a")
        self.attributes: dict[int, dict[str, Any]] = {}
        self.raws: dict[int, str] = {}

    def write(self, batch: Batch) -> None:
        for record in batch.records():
            self.attributes[record.offset // 100] = record.attributes
            self.raws[record.offset // 100] = record.raw
        super().write(batch)


@pytest.mark.parametrize("error", [RecursionError, OverflowError, MemoryError, ValueError, KeyError])
def test_a_record_that_a_masking_transform_trips_over_is_withheld_and_all_others_are_masked(
    tmp_path: Path, error: type[Exception]
) -> None:
    a = Marks()
    rig = PipelineRig(tmp_path, a, transforms={"mask": Tripping("line 13", error, masks=True)})
    rig.source.lines = lines(40)
    rig.start()
    assert a.wait(40)
    rig.stop()
    assert a.messages == [f"LINE {i}" if i != 13 else WITHHELD for i in range(40)]
    assert a.raws[13] == WITHHELD, "nor does the raw line leave unmasked"
    assert a.attributes[13] == {FAULT: f"mask: {error.__name__}"}
    assert rig.metrics.value("shipper_faults_total", stage="transform mask") == 1
    assert rig.metrics.value("shipper_lines_read_total", source="x") == 40


def test_a_record_that_another_transform_trips_over_goes_on_as_it_was_written(tmp_path: Path) -> None:
    a = Marks()
    rig = PipelineRig(tmp_path, a, transforms={"f": Tripping("line 13", RecursionError, masks=False)})
    rig.source.lines = lines(40)
    rig.start()
    assert a.wait(40)
    rig.stop()
    assert a.messages == [f"LINE {i}" if i != 13 else "line 13" for i in range(40)]
    assert a.attributes[13] == {FAULT: "f: RecursionError"}


@pytest.mark.parametrize("docker", [True, False])
def test_a_line_that_the_parser_trips_over_goes_on_raw_and_its_neighbours_are_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, docker: bool
) -> None:
    def parse(self: Parser, batch: Batch, real: Callable[[Parser, Batch], None] = Parser.parse) -> None:
        real(self, batch)
        if any("poison" in raw for raw in batch.raws):
            raise RecursionError("too deep")

    monkeypatch.setattr(Parser, "parse", parse)
    a = Marks()
    rig = PipelineRig(tmp_path, a)
    rig.source.docker = docker
    rig.source.lines = [f'{{"level":"warn","message":"m{i}"}}' for i in range(30)]
    rig.source.lines[7] = '{"poison":1}'
    rig.start()
    assert a.wait(30)
    rig.stop()
    assert a.messages == [f"m{i}" if i != 7 else '{"poison":1}' for i in range(30)]
    assert a.attributes[7] == {FAULT: "parse: RecursionError"}
    assert rig.metrics.value("shipper_faults_total", stage="parse") == 1
    assert len(set(a.times.values())) == 30, "distinct, the spoiled line included"


def test_a_record_that_a_route_trips_over_goes_to_the_active_sinks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def split(self: Router, batch: Batch, real: Any = Router.split) -> dict[str, Batch]:
        if "line 5" in batch.raws:
            raise OverflowError("too wide")
        found: dict[str, Batch] = real(self, batch)
        return found

    monkeypatch.setattr(Router, "split", split)
    a, b = MemorySink("a"), MemorySink("b")
    rig = PipelineRig(tmp_path, a, b, active=("a",), routes=(RouteConfig(match="line", to="b"),))
    rig.source.lines = lines(20)
    rig.start()
    assert b.wait(19)
    assert a.wait(1)
    rig.stop()
    assert a.messages == ["line 5"]
    assert b.messages == [line for line in lines(20) if line != "line 5"]
    again = PipelineRig(tmp_path, a, b, active=("a",), routes=(RouteConfig(match="line", to="b"),))
    again.source.lines = lines(20)
    again.start()
    assert again.until(again.source.exhausted)
    again.stop()
    assert len(a.ids) + len(b.ids) == 20, "all of it is accounted for"


def test_a_source_that_trips_is_tried_again_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shipper.daemon.intake.RETRY", 0.01)
    a = MemorySink()
    rig = PipelineRig(tmp_path, a)
    rig.source.lines = lines(30)
    real, trips = rig.source.poll, iter([RecursionError("deep"), MemoryError(), AssertionError("broken")])

    def poll(accept: Callable[[bool], bool]) -> Iterator[Batch]:
        for error in trips:
            raise error
        yield from real(accept)

    monkeypatch.setattr(rig.source, "poll", poll)
    rig.start()
    assert a.wait(30)
    assert rig.metrics.value("shipper_faults_total", stage="source") == 3
    assert rig.until(lambda: rig.health.state("source:x") == "ok"), "and health says that it is over"
    assert rig.health.alive()
    rig.stop()
    assert a.messages == lines(30)


def test_a_source_that_trips_while_opening_is_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shipper.daemon.intake.RETRY", 0.01)
    a = MemorySink()
    rig = PipelineRig(tmp_path, a)
    rig.source.lines = lines(5)
    real, trips = rig.source.open, iter([TypeError("odd")])

    def open_(context: Any) -> None:
        for error in trips:
            raise error
        real(context)

    monkeypatch.setattr(rig.source, "open", open_)
    rig.start()
    assert a.wait(5)
    rig.stop()


def test_a_round_that_trips_is_followed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shipper.daemon.intake.ROUND", 0.01)
    a = MemorySink()
    rig = PipelineRig(tmp_path, a)
    pipeline = rig.start()
    trips = iter([ZeroDivisionError()])

    def last() -> bool:
        for error in trips:
            raise error
        return False

    pipeline._intake.is_last_round = last
    pipeline._intake.wake()
    assert rig.until(lambda: rig.metrics.value("shipper_faults_total", stage="reader") == 1)
    rig.source.lines = lines(5)
    assert a.wait(5)
    rig.stop()


def test_a_record_that_the_buffer_trips_over_goes_on_without_what_was_parsed_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = Marks()
    rig = PipelineRig(tmp_path, a)
    rig.source.lines = [f'{{"message":"m{i}","n":{i}}}' for i in range(10)]
    pipeline = rig.start()
    buffer = pipeline._deliveries["a"].buffer
    real = buffer.put

    def put(batch: Batch, **options: Any) -> None:
        assert batch.attributes is not None
        if any(attributes.get("n") == 4 for attributes in batch.attributes):
            raise RecursionError("too deep")
        real(batch, **options)

    monkeypatch.setattr(buffer, "put", put)
    rig.source.lines += [f'{{"message":"m{i}","n":{i % 10}}}' for i in range(10, 30)]
    assert a.wait(30)
    rig.stop()
    assert a.attributes[14] == {FAULT: "buffer: RecursionError"}
    assert a.messages[14] == '{"message":"m14","n":4}'
    assert a.messages[15] == "m15"


def test_undated_lines_wait_until_the_time_they_were_first_read_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sent without it, they would come back after a kill under other ids."""
    monkeypatch.setattr("shipper.daemon.intake.ROUND", 0.01)
    a = MemorySink()
    rig = PipelineRig(tmp_path, a)
    rig.source.docker = False
    pipeline = rig.start()
    broken = True

    def anchor(*arguments: Any, real: Callable[..., None] = pipeline._ledger.anchor) -> None:
        if broken:
            raise sqlite3.OperationalError("disk I/O error")
        real(*arguments)

    monkeypatch.setattr(pipeline._ledger, "anchor", anchor)
    rig.source.lines = lines(30)
    assert rig.until(lambda: rig.health.state("state") == "retrying")
    assert rig.source.read <= 20, "reading waits"
    assert a.messages == []
    broken = False
    assert a.wait(30)
    assert rig.until(lambda: rig.health.state("state") == "ok")
    rig.stop()
    assert a.messages == lines(30)
