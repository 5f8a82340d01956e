"""The pipeline as a whole, with a source in memory and real sinks' contracts: promises 1 to 6."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shipper import registry
from shipper.config.types import Config, RouteConfig
from shipper.daemon.parts import Parts
from shipper.record import Batch
from shipper.sink import BufferConfig, SinkConfig
from support.pipeline_rig import MemorySink, PipelineRig, lines


def test_every_line_reaches_every_active_sink_in_order(tmp_path: Path) -> None:
    a, b = MemorySink("a"), MemorySink("b")
    rig = PipelineRig(tmp_path, a, b)
    rig.source.lines = lines(200)
    rig.start()
    assert a.wait(200)
    assert b.wait(200)
    rig.stop()
    assert a.messages == b.messages == lines(200)


def test_restart_delivers_what_came_meanwhile_and_nothing_again(tmp_path: Path) -> None:
    a = MemorySink()
    rig = PipelineRig(tmp_path, a)
    rig.source.lines = lines(50)
    rig.start()
    assert a.wait(50)
    rig.stop()
    again = PipelineRig(tmp_path, a)
    again.source.lines = lines(80)
    again.start()
    assert a.wait(80)
    again.stop()
    assert a.messages == lines(80)
    assert len(a.ids) == 80, "no line was sent twice"


def test_a_fresh_start_on_old_logs_passes_them_over_for_a_sink_that_takes_no_age_and_for_no_other(
    tmp_path: Path,
) -> None:
    """600,000 lines older than Loki takes once made 471 MB of dead letters."""
    a, b = MemorySink("a"), MemorySink("b")
    a.max_age = 7 * 86_400.0
    rig = PipelineRig(tmp_path, a, b)
    rig.source.lines = lines(2_000)
    rig.start()
    assert b.wait(2_000)
    rig.stop()
    assert (a.ids, list(tmp_path.glob("dead-letter/*"))) == ([], [])
    assert rig.metrics.value("shipper_passed_over_total", sink="a", reason="too_old") == 2_000
    again = PipelineRig(tmp_path, a, b)
    again.source.lines = lines(2_000)
    again.start()
    assert again.until(again.source.exhausted)
    sinks = again.pipeline.sinks()  # type: ignore[union-attr]
    again.stop()
    assert again.metrics.value("shipper_passed_over_total", sink="a", reason="too_old") == 0, "they are done"
    assert (sinks["a"].given_up, sinks["b"].given_up) == ({"too_old": 2_000}, {})


def test_a_state_that_is_gone_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    a = MemorySink()
    a.poison = "line 3"
    rig = PipelineRig(tmp_path, a)
    rig.source.lines = ["line 3", "line 4"]
    rig.start()
    assert a.wait(1)
    rig.stop()
    (tmp_path / "state.db").unlink()
    again = PipelineRig(tmp_path, a)
    again.start()
    again.stop()
    assert any("the state is gone" in record.getMessage() for record in caplog.records)


def test_with_one_sink_down_the_file_is_the_queue(tmp_path: Path) -> None:
    """The reader stops at the memory limit; after the first failures what was read is safe on disk; later all come."""
    a = MemorySink()
    a.down = True
    rig = PipelineRig(tmp_path, a)
    rig.source.lines = lines(500)
    rig.start()
    assert rig.until(lambda: rig.source.read >= 30)
    read = rig.source.read
    assert read <= 50, "no more than the limit and one chunk"
    a.down = False
    assert a.wait(500)
    rig.stop()
    assert a.messages == lines(500)


def test_sink_that_is_down_never_holds_back_its_sibling(tmp_path: Path) -> None:
    a, b = MemorySink("a"), MemorySink("b")
    b.down = True
    rig = PipelineRig(tmp_path, a, b)
    rig.source.lines = lines(1000)
    rig.start()
    assert a.wait(1000), "a got everything while b was down"
    assert b.messages == []
    rig.pipeline.save()  # type: ignore[union-attr]
    assert rig.metrics.value("shipper_spool_bytes", sink="b") > 0
    b.down = False
    assert b.wait(1000)
    rig.stop()
    assert b.messages == lines(1000), "the spill drained in order"


def test_file_at_risk_is_spilled_when_its_sink_is_down_and_survives_its_loss(tmp_path: Path) -> None:
    a = MemorySink()
    a.down = True
    rig = PipelineRig(tmp_path, a)
    rig.source.lines = lines(400)
    rig.source.at_risk = True
    rig.start()
    assert rig.until(lambda: rig.source.read == 400)
    rig.stop(1)
    a.down = False
    again = PipelineRig(tmp_path, a)
    again.source.lines = []  # the file is gone
    again.start()
    assert a.wait(400)
    again.stop()
    assert a.messages == lines(400)


def test_blocked_spill_stops_the_reader_at_the_disk_limit(tmp_path: Path) -> None:
    a, b = MemorySink("a"), MemorySink("b")
    b.down = True
    rig = PipelineRig(tmp_path, a, b, buffer=BufferConfig(max_memory=3000, max_size="64KiB", when_full="block"))
    rig.source.lines = lines(20_000)
    rig.source.chunk = 50
    rig.start()
    assert rig.until(lambda: not rig.parts.sinks["b"].down or rig.pipeline._deliveries["b"].buffer.spill_bytes > 40_000)  # type: ignore[union-attr]
    rig.pipeline.save()  # type: ignore[union-attr]
    assert rig.metrics.value("shipper_spool_bytes", sink="b") <= 64 << 10
    assert len(a.records) < 20_000, "block holds the files back rather than lose a line of b"
    b.down = False
    assert a.wait(20_000, 60)
    assert b.wait(20_000, 60)
    rig.stop()
    assert b.messages == lines(20_000)


def test_drop_oldest_lets_the_sibling_go_on_and_counts_what_it_drops(tmp_path: Path) -> None:
    a, b = MemorySink("a"), MemorySink("b")
    b.down = True
    rig = PipelineRig(tmp_path, a, b, buffer=BufferConfig(max_memory=3000, max_size="256KiB", when_full="drop_oldest"))
    rig.source.lines = lines(30_000)
    rig.source.chunk = 50
    rig.start()
    assert a.wait(30_000, 60)
    dropped = rig.metrics.value("shipper_dropped_total", reason="spill_full")
    assert dropped > 0
    b.down = False
    assert rig.until(lambda: len(b.records) + dropped >= 30_000)
    rig.stop()
    assert len(b.records) + dropped == 30_000
    assert b.messages[-1] == "line 29999"


def test_poison_record_is_dead_lettered_and_the_rest_delivered(tmp_path: Path) -> None:
    a, b = MemorySink("a"), MemorySink("b")
    a.poison = "line 77"
    rig = PipelineRig(tmp_path, a, b)
    rig.source.lines = lines(200)
    rig.start()
    assert a.wait(199)
    assert b.wait(200)
    rig.stop()
    assert set(a.messages) == set(lines(200)) - {"line 77"}
    assert b.messages == lines(200)
    assert "line 77" in (tmp_path / "dead-letter" / "a.jsonl").read_text()


def test_filtered_records_are_counted_and_move_the_offset(tmp_path: Path) -> None:
    a = MemorySink()
    rig = PipelineRig(tmp_path, a, drop="line 1")
    rig.source.lines = ["line 1"] * 30 + ["line 2"]
    rig.start()
    assert a.wait(1)
    rig.stop()
    assert rig.metrics.value("shipper_filtered_total", transform="f") == 30
    again = PipelineRig(tmp_path, a)
    again.source.lines = rig.source.lines
    again.start()
    assert again.until(again.source.exhausted)
    again.stop()
    assert len(a.ids) == 1


def test_routes_split_by_level(tmp_path: Path) -> None:
    a, b = MemorySink("a"), MemorySink("b")
    rig = PipelineRig(tmp_path, a, b, active=("a",), routes=(RouteConfig(match="level>=error", to="b"),))
    rig.source.lines = ['{"level":"error","message":"e"}', '{"level":"info","message":"i"}']
    rig.start()
    assert a.wait(1)
    assert b.wait(1)
    rig.stop()
    assert (a.messages, b.messages) == (["i"], ["e"])


def test_undated_lines_of_a_plain_file_have_the_same_id_and_time_on_every_replay(tmp_path: Path) -> None:
    a = MemorySink()
    rig = PipelineRig(tmp_path, a)
    rig.source.docker = False
    rig.source.lines = lines(40)
    pipeline = rig.start()
    assert a.wait(40)
    first = dict(a.times)
    # A kill: nothing since the start is saved but what an anchor saved itself.
    pipeline._ledger.save = lambda: False  # type: ignore[method-assign]
    pipeline._ledger._dirty_tracks.clear()
    rig.stop()
    assert len(set(first.values())) == 40, "distinct"
    assert list(first.values()) == sorted(first.values()), "in order"
    again = PipelineRig(tmp_path, a)
    again.source.docker = False
    again.source.chunk = 7
    again.source.lines = lines(40)
    again.start()
    assert again.until(again.source.exhausted)
    again.stop()
    assert len(a.records) == 40
    assert a.times == first


def test_once_ends_when_all_is_delivered(tmp_path: Path) -> None:
    a = MemorySink()
    rig = PipelineRig(tmp_path, a)
    rig.source.lines = lines(300)
    pipeline = rig.start(once=True)
    assert pipeline.finished.wait(20)
    assert pipeline.leftovers() == 0
    rig.stop()
    assert a.messages == lines(300)


def test_once_gives_up_on_a_dead_sink_and_says_that_something_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shipper.daemon.pipeline.ONCE_PATIENCE", 0.2)
    a = MemorySink()
    a.down = True
    rig = PipelineRig(tmp_path, a)
    rig.source.lines = lines(300)
    pipeline = rig.start(once=True)
    assert pipeline.finished.wait(20)
    assert pipeline.leftovers() > 0
    rig.stop(1)


def test_sink_no_longer_active_still_gets_its_spill(tmp_path: Path) -> None:
    a, b = MemorySink("a"), MemorySink("b")
    a.down = True
    rig = PipelineRig(tmp_path, a)
    rig.source.lines = lines(60)
    rig.source.at_risk = True
    rig.start()
    assert rig.until(lambda: rig.source.read == 60)
    rig.stop(1)
    a.down = False
    switched = PipelineRig(tmp_path, a, b, active=("b",))
    switched.source.lines = lines(100)
    switched.start()
    assert b.wait(40)
    assert a.wait(60)
    switched.stop()
    assert a.messages == lines(60)
    assert b.messages == lines(40, 60)


def test_switch_of_the_active_sink_gives_the_union_without_overlap(tmp_path: Path) -> None:
    a, b = MemorySink("a"), MemorySink("b")
    rig = PipelineRig(tmp_path, a, b, active=("a",))
    rig.source.lines = lines(100)
    rig.start()
    assert a.wait(30)
    rig.stop()
    switched = PipelineRig(tmp_path, a, b, active=("b",))
    switched.source.lines = lines(150)
    switched.start()
    assert b.wait(150 - len(a.records))
    switched.stop()
    assert a.messages + b.messages == lines(150)


def test_state_that_cannot_be_written_is_reported_and_delivery_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sqlite3

    a = MemorySink()
    rig = PipelineRig(tmp_path, a)
    pipeline = rig.start()
    broken = True

    def save(changes: object, real: Callable[[Any], None] = pipeline._ledger._checkpoint.save) -> None:
        if broken:
            raise sqlite3.OperationalError("database or disk is full")
        real(changes)

    monkeypatch.setattr(pipeline._ledger._checkpoint, "save", save)
    rig.source.lines = lines(30)
    assert a.wait(30)
    pipeline.save()
    assert rig.health.state("state") == "retrying"
    broken = False
    pipeline.save()
    assert rig.health.state("state") == "ok"
    rig.stop()


class HangingSink(MemorySink):
    """Hangs in its first write until released, then takes it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.writing, self.released = threading.Event(), threading.Event()

    def write(self, batch: Batch) -> None:
        self.writing.set()
        self.released.wait(20)
        super().write(batch)


def test_switch_while_a_write_hangs_leaves_every_line_with_one_sink(tmp_path: Path) -> None:
    """The hanging write is abandoned at the deadline; when it ends at last it must not touch what drains meanwhile."""
    hanging = HangingSink("a")
    rig = PipelineRig(tmp_path, hanging)
    rig.source.lines = lines(10)
    first = rig.start()
    assert hanging.writing.wait(20)
    rig.stop(0.3)
    old, new = MemorySink("a"), MemorySink("b")
    old.down = True
    again = PipelineRig(tmp_path, old, new, active=("b",))
    again.source.lines = lines(100)
    pipeline = again.start()
    assert pipeline.draining()["a"] > 0
    assert new.wait(100 - rig.source.read)
    hanging.released.set()
    assert rig.until(lambda: bool(hanging.records))
    assert first._deliveries["a"].join(20)
    old.down = False
    assert old.wait(rig.source.read)
    again.stop()
    assert set(old.messages) | set(new.messages) == set(lines(100))
    assert set(old.messages) & set(new.messages) == set()


def test_what_a_stopping_pipeline_spills_is_drained_by_the_next(tmp_path: Path) -> None:
    hole = registry.sink("blackhole").config(type="blackhole")
    config = Config(
        sources={},
        sinks={"old": hole, "new": hole},
        active=("new",),
        routes=(),
        state_dir=tmp_path,
    )
    parts = Parts.build(config, {"gone": hole, "broken": SinkConfig(type="no_such_type")})
    assert parts.draining == {}
    for name in ("old", "gone", "broken", "unknown"):
        (tmp_path / "spill" / name).mkdir(parents=True)
        (tmp_path / "spill" / name / f"{1:016d}.seg").write_bytes(b"x")
    assert list(parts.with_draining().draining) == ["gone", "old"], "a sink that cannot be built stops nobody"
