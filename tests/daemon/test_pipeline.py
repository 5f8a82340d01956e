"""The pipeline as a whole, with a source in memory and real sinks' contracts: promises 1 to 6."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shipper import registry
from shipper.clock import SystemClock
from shipper.config.types import Config, RouteConfig
from shipper.daemon.parts import Parts
from shipper.daemon.pipeline import Pipeline
from shipper.errors import PermanentError, RetryableError
from shipper.record import Batch, Resource, Span
from shipper.routing.router import Router
from shipper.sink import BufferConfig, Limits, Sink, SinkConfig
from shipper.source import FileState, Source, SourceContext
from shipper.telemetry.health import Health
from shipper.telemetry.metrics import Metrics
from shipper.transform import Transform


class MemoryFile(Source):
    """A growing list of lines as one file; offset is the line's index times 100."""

    def __init__(self, config: Any = None) -> None:
        self.lines: list[str] = []
        self.at_risk = False
        self.docker = True
        self.chunk = 10
        self.read = 0

    def open(self, context: SourceContext) -> None:
        self.context = context
        known = context.positions.files(context.name)
        self.state = known[0] if known else context.positions.add(
            FileState(key=0, source=context.name, path="/x", device=1, inode=1, uid="u", head=0, head_size=0)
        )  # fmt: skip
        self.read = self.state.offset // 100
        self.resource = Resource(context.name, {"service.name": "api"})

    def poll(self, accept: Callable[[bool], bool]) -> Iterator[Batch]:
        while self.read < len(self.lines) and accept(self.at_risk):
            first = self.read
            self.read = min(len(self.lines), first + self.chunk)
            rows = range(first, self.read)
            stamp = 1_700_000_000_000_000_000 if self.docker else 0
            yield Batch(
                times=[stamp + i if stamp else 0 for i in rows],
                stamps=[stamp + i if stamp else 0 for i in rows],
                hashes=list(rows),
                raws=[self.lines[i] for i in rows],
                resources=[self.resource] * len(rows),
                offsets=[i * 100 for i in rows],
                span=Span(self.state.key, first * 100, self.read * 100, 5),
                size=100 * len(rows),
                at_risk=self.at_risk,
            )

    def idle(self) -> float:
        return 0.01

    def exhausted(self) -> bool:
        return self.read == len(self.lines)

    def close(self) -> None:
        pass


class Drop(Transform):
    """Removes records with one message."""

    def __init__(self, config: Any) -> None:
        self.message = config

    def apply(self, batch: Batch) -> Batch:
        assert batch.messages is not None
        return batch.select([i for i, message in enumerate(batch.messages) if message != self.message])


class MemorySink(Sink):
    """A destination that outlives the daemon; ``down`` makes it refuse."""

    limits = Limits(records=25)

    def __init__(self, name: str = "a") -> None:
        self.name = name
        self.down = False
        self.poison = ""
        self.records: dict[str, str] = {}
        self.ids: list[str] = []
        self.times: dict[str, int] = {}
        self.arrived = threading.Condition()

    def open(self) -> None:
        if self.down:
            raise RetryableError("down")

    def write(self, batch: Batch) -> None:
        if self.down:
            raise RetryableError("down", retry_after=0)
        if self.poison and self.poison in batch.raws:
            raise PermanentError("poison")
        with self.arrived:
            for record in batch.records():
                self.ids.append(record.id)
                self.records.setdefault(record.id, record.message)
                self.times[record.message] = record.time_ns
            self.arrived.notify_all()

    def wait(self, count: int, seconds: float = 20) -> bool:
        with self.arrived:
            return self.arrived.wait_for(lambda: len(self.records) >= count, seconds)

    @property
    def messages(self) -> list[str]:
        return list(self.records.values())

    def close(self) -> None:
        pass


class Rig:
    def __init__(
        self,
        state_dir: Path,
        *sinks: MemorySink,
        routes: tuple[RouteConfig, ...] = (),
        buffer: BufferConfig | None = None,
        active: tuple[str, ...] = (),
        drop: str = "",
    ) -> None:
        self.source = MemoryFile()
        self.sinks = {sink.name: sink for sink in sinks}
        config = Config(
            sources={},
            sinks={
                sink.name: SinkConfig(type="memory", buffer=buffer or BufferConfig(max_memory=6000)) for sink in sinks
            },
            active=active or tuple(self.sinks),
            routes=routes,
            state_dir=state_dir,
        )
        router = Router(config.active, routes)
        self.metrics, self.health = Metrics(), Health()
        self.parts = Parts(
            config=config,
            router=router,
            sources={"x": self.source},
            transforms={"f": Drop(drop)} if drop else {},
            sinks={name: sink for name, sink in self.sinks.items() if name in router.sinks},
            draining={name: sink for name, sink in self.sinks.items() if name not in router.sinks},
        )
        self.pipeline: Pipeline | None = None

    def start(self, *, once: bool = False) -> Pipeline:
        self.pipeline = Pipeline(self.parts, clock=SystemClock(), metrics=self.metrics, health=self.health, once=once)
        self.pipeline.start()
        return self.pipeline

    def stop(self, seconds: float = 10) -> None:
        assert self.pipeline is not None
        self.pipeline.stop(seconds)

    def until(self, condition: Callable[[], bool], seconds: float = 20) -> bool:
        deadline = time.monotonic() + seconds
        while not condition() and time.monotonic() < deadline:
            threading.Event().wait(0.005)
        return condition()


def lines(count: int, start: int = 0) -> list[str]:
    return [f"line {i}" for i in range(start, start + count)]


def test_every_line_reaches_every_active_sink_in_order(tmp_path: Path) -> None:
    a, b = MemorySink("a"), MemorySink("b")
    rig = Rig(tmp_path, a, b)
    rig.source.lines = lines(200)
    rig.start()
    assert a.wait(200)
    assert b.wait(200)
    rig.stop()
    assert a.messages == b.messages == lines(200)


def test_restart_delivers_what_came_meanwhile_and_nothing_again(tmp_path: Path) -> None:
    a = MemorySink()
    rig = Rig(tmp_path, a)
    rig.source.lines = lines(50)
    rig.start()
    assert a.wait(50)
    rig.stop()
    again = Rig(tmp_path, a)
    again.source.lines = lines(80)
    again.start()
    assert a.wait(80)
    again.stop()
    assert a.messages == lines(80)
    assert len(a.ids) == 80, "no line was sent twice"


def test_with_one_sink_down_the_file_is_the_queue(tmp_path: Path) -> None:
    """The reader stops at the memory limit; after the first failures what was read is safe on disk; later all come."""
    a = MemorySink()
    a.down = True
    rig = Rig(tmp_path, a)
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
    rig = Rig(tmp_path, a, b)
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
    rig = Rig(tmp_path, a)
    rig.source.lines = lines(400)
    rig.source.at_risk = True
    rig.start()
    assert rig.until(lambda: rig.source.read == 400)
    rig.stop(1)
    a.down = False
    again = Rig(tmp_path, a)
    again.source.lines = []  # the file is gone
    again.start()
    assert a.wait(400)
    again.stop()
    assert a.messages == lines(400)


def test_blocked_spill_stops_the_reader_at_the_disk_limit(tmp_path: Path) -> None:
    a, b = MemorySink("a"), MemorySink("b")
    b.down = True
    rig = Rig(tmp_path, a, b, buffer=BufferConfig(max_memory=3000, max_size="64KiB", when_full="block"))
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
    rig = Rig(tmp_path, a, b, buffer=BufferConfig(max_memory=3000, max_size="256KiB", when_full="drop_oldest"))
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
    rig = Rig(tmp_path, a, b)
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
    rig = Rig(tmp_path, a, drop="line 1")
    rig.source.lines = ["line 1"] * 30 + ["line 2"]
    rig.start()
    assert a.wait(1)
    rig.stop()
    assert rig.metrics.value("shipper_filtered_total", transform="f") == 30
    again = Rig(tmp_path, a)
    again.source.lines = rig.source.lines
    again.start()
    assert again.until(again.source.exhausted)
    again.stop()
    assert len(a.ids) == 1


def test_routes_split_by_level(tmp_path: Path) -> None:
    a, b = MemorySink("a"), MemorySink("b")
    rig = Rig(tmp_path, a, b, active=("a",), routes=(RouteConfig(match="level>=error", to="b"),))
    rig.source.lines = ['{"level":"error","message":"e"}', '{"level":"info","message":"i"}']
    rig.start()
    assert a.wait(1)
    assert b.wait(1)
    rig.stop()
    assert (a.messages, b.messages) == (["i"], ["e"])


def test_undated_lines_of_a_plain_file_have_the_same_id_and_time_on_every_replay(tmp_path: Path) -> None:
    a = MemorySink()
    rig = Rig(tmp_path, a)
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
    again = Rig(tmp_path, a)
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
    rig = Rig(tmp_path, a)
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
    rig = Rig(tmp_path, a)
    rig.source.lines = lines(300)
    pipeline = rig.start(once=True)
    assert pipeline.finished.wait(20)
    assert pipeline.leftovers() > 0
    rig.stop(1)


def test_sink_no_longer_active_still_gets_its_spill(tmp_path: Path) -> None:
    a, b = MemorySink("a"), MemorySink("b")
    a.down = True
    rig = Rig(tmp_path, a)
    rig.source.lines = lines(60)
    rig.source.at_risk = True
    rig.start()
    assert rig.until(lambda: rig.source.read == 60)
    rig.stop(1)
    a.down = False
    switched = Rig(tmp_path, a, b, active=("b",))
    switched.source.lines = lines(100)
    switched.start()
    assert b.wait(40)
    assert a.wait(60)
    switched.stop()
    assert a.messages == lines(60)
    assert b.messages == lines(40, 60)


def test_switch_of_the_active_sink_gives_the_union_without_overlap(tmp_path: Path) -> None:
    a, b = MemorySink("a"), MemorySink("b")
    rig = Rig(tmp_path, a, b, active=("a",))
    rig.source.lines = lines(100)
    rig.start()
    assert a.wait(30)
    rig.stop()
    switched = Rig(tmp_path, a, b, active=("b",))
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
    rig = Rig(tmp_path, a)
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
    rig = Rig(tmp_path, hanging)
    rig.source.lines = lines(10)
    first = rig.start()
    assert hanging.writing.wait(20)
    rig.stop(0.3)
    old, new = MemorySink("a"), MemorySink("b")
    old.down = True
    again = Rig(tmp_path, old, new, active=("b",))
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
