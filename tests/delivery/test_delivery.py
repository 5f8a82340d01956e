"""The delivery loop: what becomes of every kind of failure."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from shipper.clock import SystemClock
from shipper.delivery.buffer import Buffer
from shipper.delivery.deadletter import DeadLetters
from shipper.delivery.delivery import Delivery
from shipper.delivery.spill import Spill
from shipper.errors import (
    DroppedError,
    ParkedError,
    PartialError,
    PermanentError,
    RetryableError,
    SinkError,
    StateError,
)
from shipper.fs import FileSystem
from shipper.record import Batch, Resource, Span
from shipper.sink import Limits, Sink
from shipper.source import FileState
from shipper.state.checkpoint import Checkpoint, Cursor
from shipper.state.ledger import Ledger
from shipper.telemetry.health import Health
from shipper.telemetry.metrics import Metrics
from shipper.testing.batches import make_batch

RESOURCE = Resource("docker", {})


class InstantClock(SystemClock):
    """Waits take no time; they are noted."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    def wait(self, event: object, seconds: float) -> bool:
        self.waits.append(seconds)
        return event.is_set()  # type: ignore[attr-defined, no-any-return]


class ListSink(Sink):
    """Keeps what it takes; ``fault`` may raise for a batch before anything of it is kept."""

    limits = Limits(records=1000)

    def __init__(self, fault: Callable[[Batch, int], None] = lambda batch, call: None) -> None:
        self.fault = fault
        self.taken: list[str] = []
        self.calls = 0
        self.opened = 0
        self.closed = 0

    def open(self) -> None:
        self.opened += 1

    def write(self, batch: Batch) -> None:
        self.calls += 1
        try:
            self.fault(batch, self.calls)
        except PartialError as error:
            self.taken += [raw for i, raw in enumerate(batch.raws) if i not in error.failed]
            raise
        self.taken += batch.raws

    def close(self) -> None:
        self.closed += 1


class Rig:
    def __init__(self, tmp_path: Path, sink: Sink) -> None:
        self.clock = InstantClock()
        self.metrics, self.health = Metrics(), Health()
        self.ledger = Ledger(Checkpoint(tmp_path), ["s"], self.clock)
        state = FileState(key=0, source="x", path="/x", device=1, inode=1, uid="u", head=0, head_size=0)
        self.file = self.ledger.add(state).key
        spill = Spill(
            tmp_path / "spill", limit=1 << 20, fs=FileSystem(), cursor=Cursor(0, 0), on_lost=self.metrics.dropped
        )
        self.buffer = Buffer(
            spill,
            clock=self.clock,
            max_memory=1 << 20,
            drop_oldest=False,
            on_safe=lambda spans: self.ledger.done("s", spans),
            on_cursor=lambda cursor: self.ledger.spill_cursor("s", cursor.segment, cursor.offset, cursor.record),
            on_dropped=lambda n: None,
        )
        self.dead_letters = DeadLetters(tmp_path / "s.jsonl")
        self.delivery = Delivery(
            "s",
            sink,
            self.buffer,
            ledger=self.ledger,
            dead_letters=self.dead_letters,
            clock=self.clock,
            metrics=self.metrics,
            health=self.health,
            rng=random.Random(1),
        )

    def put(self, *raws: str) -> None:
        count = len(raws)
        self.buffer.put(
            Batch(
                times=[1] * count,
                stamps=[1] * count,
                hashes=list(range(count)),
                raws=list(raws),
                resources=[RESOURCE] * count,
                offsets=list(range(count)),
                severities=[9] * count,
                messages=list(raws),
                attributes=[{} for _ in raws],
                span=Span(self.file, 0, 100, 7),
                size=100,
            )
        )

    def run(self) -> None:
        """Deliver everything, then end."""
        self.delivery.start()
        self.delivery.drain()
        assert self.delivery.join(20)
        self.buffer.close()

    def dead(self) -> list[tuple[str, str, str]]:
        return [(entry.raw, entry.reason, entry.code) for entry in self.dead_letters.entries()]


def fail_times(error: SinkError, times: int) -> Callable[[Batch, int], None]:
    def fault(batch: Batch, call: int) -> None:
        if call <= times:
            raise error

    return fault


def refuse(*poison: str, error: type[Exception] = PermanentError) -> Callable[[Batch, int], None]:
    def fault(batch: Batch, call: int) -> None:
        if set(batch.raws) & set(poison):
            raise error("value too long")

    return fault


def test_a_sinks_first_position_is_durable_before_anything_is_written_behind_it(tmp_path: Path) -> None:
    """A kill before the keeper's next save must not leave a file sink without a place to go back to."""
    sink = ListSink()
    sink.position = lambda: f"1:{len(sink.taken)}"  # type: ignore[method-assign]
    saved: list[str | None] = []
    sink.fault = lambda _batch, _call: saved.append(_saved_position(tmp_path))
    rig = Rig(tmp_path, sink)
    rig.put("a")
    rig.run()
    assert saved == ["1:0"]
    rig.ledger.close()
    assert _saved_position(tmp_path) == "1:1"


def _saved_position(directory: Path) -> str | None:
    with closing(sqlite3.connect(directory / "state.db")) as database:
        row = database.execute("SELECT position FROM sinks WHERE sink = 's'").fetchone()
    return None if row is None else row[0]


def test_delivered_batch_is_acked_and_accounted_for(tmp_path: Path) -> None:
    sink = ListSink()
    rig = Rig(tmp_path, sink)
    rig.put("a", "b")
    rig.run()
    assert sink.taken == ["a", "b"]
    assert rig.ledger.safe(rig.file) == 100
    assert rig.metrics.value("shipper_sink_lines_acked_total", sink="s") == 2
    assert (sink.opened, sink.closed) == (1, 1)
    rig.ledger.close()


def test_retryable_failure_is_retried_without_limit_and_reopened_each_time(tmp_path: Path) -> None:
    sink = ListSink(fail_times(RetryableError("busy", code="1040"), 50))
    rig = Rig(tmp_path, sink)
    rig.put("a")
    rig.run()
    assert sink.taken == ["a"]
    assert sink.calls == 51
    assert sink.opened == 51
    assert rig.dead() == []
    assert rig.metrics.value("shipper_sink_retries_total", sink="s", code="1040") == 50
    assert rig.health.state("sink:s") == "ok"
    assert all(wait <= 30 for wait in rig.clock.waits)
    rig.ledger.close()


def test_retry_after_of_the_backend_wins_over_the_back_off(tmp_path: Path) -> None:
    states: list[object] = []
    rig: Rig

    def fault(batch: Batch, call: int) -> None:
        states.append(rig.health.state("sink:s"))
        if call == 1:
            raise RetryableError("slow down", retry_after=17.0)

    rig = Rig(tmp_path, ListSink(fault))
    rig.put("a")
    rig.run()
    assert rig.clock.waits == [17.0]
    assert states[1] == "throttled"
    rig.ledger.close()


def test_parked_sink_keeps_everything_and_says_so(tmp_path: Path) -> None:
    states: list[object] = []
    rig: Rig

    def fault(batch: Batch, call: int) -> None:
        states.append(rig.health.state("sink:s"))
        if call <= 3:
            raise ParkedError("access denied; correct the password", code="1045")

    sink = ListSink(fault)
    rig = Rig(tmp_path, sink)
    rig.put("a")
    rig.run()
    assert states[1:] == ["parked"] * 3
    assert sink.taken == ["a"]
    assert rig.dead() == []
    rig.ledger.close()


def test_one_poison_record_in_a_thousand_is_dead_lettered_alone_with_its_reason(tmp_path: Path) -> None:
    sink = ListSink(refuse("line 617"))
    rig = Rig(tmp_path, sink)
    rig.put(*[f"line {i}" for i in range(1000)])
    rig.run()
    assert rig.dead() == [("line 617", "value too long", "")]
    assert sorted(sink.taken) == sorted(f"line {i}" for i in range(1000) if i != 617)
    assert sink.calls <= 25, "a bisection, not a loop over the records"
    assert rig.ledger.safe(rig.file) == 100
    assert rig.metrics.value("shipper_dead_letter_total", sink="s") == 1
    rig.ledger.close()


@pytest.mark.parametrize("bug", [TypeError, KeyError, ValueError])
def test_record_that_trips_the_sinks_own_code_is_dead_lettered_too(tmp_path: Path, bug: type[Exception]) -> None:
    rig = Rig(tmp_path, ListSink(refuse("b", error=bug)))
    rig.put("a", "b", "c")
    rig.run()
    ((raw, reason, code),) = rig.dead()
    assert (raw, code) == ("b", "bug")
    assert reason.startswith(bug.__name__)
    rig.ledger.close()


def test_fault_of_a_part_is_told_without_those_of_the_wholes_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig(tmp_path, ListSink(refuse("m3", error=TypeError)))
    rig.put(*[f"m{number}" for number in range(8)])
    rig.run()
    rig.ledger.close()
    faults = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert len(faults) == 4
    assert all(fault is not None and fault.__context__ is None for fault in faults)


def test_partial_failure_retries_and_buries_by_index(tmp_path: Path) -> None:
    def fault(batch: Batch, call: int) -> None:
        if call == 1:
            raise PartialError({1: PermanentError("bad", code="400"), 2: RetryableError("busy", code="429")})

    sink = ListSink(fault)
    rig = Rig(tmp_path, sink)
    rig.put("a", "b", "c", "d")
    rig.run()
    assert sink.taken == ["a", "d", "c"]
    assert rig.dead() == [("b", "bad", "400")]
    rig.ledger.close()


def test_sink_that_refuses_everything_is_held_at_fault_and_nothing_is_buried(tmp_path: Path) -> None:
    rig: Rig

    def fault(batch: Batch, call: int) -> None:
        if len(rig.clock.waits) < 3:
            raise PermanentError("no")

    sink = ListSink(fault)
    rig = Rig(tmp_path, sink)
    lines = [f"line {i}" for i in range(64)]
    rig.put(*lines)
    rig.run()
    assert sorted(set(sink.taken)) == sorted(lines)
    assert rig.dead() == []
    assert rig.metrics.value("shipper_dead_letter_total", sink="s") == 0
    rig.ledger.close()


def test_many_refusals_beside_records_that_were_taken_park_nobody(tmp_path: Path) -> None:
    """A sink that takes some of a request is not at fault for the others, however many they are."""
    sink = ListSink(lambda batch, call: _refuse_odd(batch))
    rig = Rig(tmp_path, sink)
    rig.put(*(f"line {i}" for i in range(200)))
    rig.run()
    assert sink.taken == [f"line {i}" for i in range(0, 200, 2)]
    assert [raw for raw, _, _ in rig.dead()] == [f"line {i}" for i in range(1, 200, 2)]
    assert rig.clock.waits == []
    rig.ledger.close()


def _refuse_odd(batch: Batch) -> None:
    odd = {index: PermanentError("odd") for index, raw in enumerate(batch.raws) if int(raw.split()[1]) % 2}
    if odd:
        raise PartialError(odd)


def test_batch_waits_when_the_dead_letters_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(tmp_path, ListSink(refuse("b")))
    append = rig.dead_letters.append
    failures = [StateError("disk full"), StateError("disk full")]

    def failing(*args: object) -> None:
        if failures:
            raise failures.pop()
        append(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(rig.dead_letters, "append", failing)
    rig.put("a", "b")
    rig.run()
    assert failures == []
    assert [raw for raw, _, _ in rig.dead()] == ["b"]
    rig.ledger.close()


def test_unknown_exception_is_retried_never_dropped(tmp_path: Path) -> None:
    def fault(batch: Batch, call: int) -> None:
        if call == 1:
            raise OSError("weird")

    sink = ListSink(fault)
    rig = Rig(tmp_path, sink)
    rig.put("a")
    rig.run()
    assert sink.taken == ["a"]
    assert rig.dead() == []
    rig.ledger.close()


def test_stop_while_the_sink_is_down_leaves_the_batch_unacked_and_safe_on_disk(tmp_path: Path) -> None:
    rig: Rig

    def fault(batch: Batch, call: int) -> None:
        if call == 5:
            rig.delivery.stop()
        raise RetryableError("down")

    rig = Rig(tmp_path, ListSink(fault))
    rig.put("a")
    rig.delivery.start()
    assert rig.delivery.join(20)
    assert not rig.buffer.empty()
    assert rig.buffer.spill_bytes > 0
    assert rig.ledger.safe(rig.file) == 100
    rig.buffer.close()
    rig.ledger.close()


def test_group_refused_together_is_bisected_and_the_rest_counts_as_taken(tmp_path: Path) -> None:
    refused: list[list[str]] = []

    def fault(batch: Batch, call: int) -> None:
        if call == 1:
            raise PartialError({}, together=[([1, 2, 3, 4], PermanentError("one of these is bad", code="400"))])
        if "bad" in batch.raws:
            refused.append(list(batch.raws))
            raise PermanentError("one of these is bad", code="400")

    class Sorting(ListSink):
        def write(self, batch: Batch) -> None:
            try:
                super().write(batch)
            except PartialError:
                self.taken = ["a"]  # the request of the first row was taken, that of the others was not
                raise

    sink = Sorting(fault)
    rig = Rig(tmp_path, sink)
    rig.put("a", "b", "bad", "c", "d")
    rig.run()
    assert sink.taken == ["a", "b", "c", "d"]
    assert rig.dead() == [("bad", "one of these is bad", "400")]
    assert refused[0] == ["b", "bad"]
    assert rig.metrics.value("shipper_sink_lines_acked_total", sink="s") == 4
    rig.ledger.close()


def test_refusals_by_a_rule_the_sink_knows_put_nobody_under_suspicion(tmp_path: Path) -> None:
    def fault(batch: Batch, call: int) -> None:
        old = {
            i: PermanentError("older than 14 days", certain=True) for i, raw in enumerate(batch.raws) if raw != "new"
        }
        if old:
            raise PartialError(old)

    rig = Rig(tmp_path, ListSink(fault))
    rig.put(*["old"] * 200)
    rig.run()
    assert len(rig.dead()) == 200
    assert rig.clock.waits == []
    rig.ledger.close()


def test_request_with_an_unknown_outcome_is_counted(tmp_path: Path) -> None:
    rig = Rig(tmp_path, ListSink(fail_times(RetryableError("no answer", maybe_taken=True), 3)))
    rig.put("a")
    rig.run()
    assert rig.metrics.value("shipper_sink_maybe_doubled_total", sink="s") == 3
    rig.ledger.close()


def test_answer_to_opening_that_never_came_leaves_no_doubt(tmp_path: Path) -> None:
    """Opening stores no record, so none can be there twice."""
    sink = ListSink()
    failures = [RetryableError("no answer", maybe_taken=True)] * 2

    def open_() -> None:
        if failures:
            raise failures.pop()

    sink.open = open_  # type: ignore[method-assign]
    rig = Rig(tmp_path, sink)
    rig.put("a")
    rig.run()
    assert sink.taken == ["a"]
    assert rig.metrics.value("shipper_sink_maybe_doubled_total", sink="s") == 0
    assert len(rig.clock.waits) == 2
    rig.ledger.close()


def test_what_the_destination_put_aside_is_counted_once_and_not_sent_again(tmp_path: Path) -> None:
    class Aside(ListSink):
        def diverted(self) -> dict[str, int]:
            return {"failure_store": 2} if self.calls == 1 else {}

    sink = Aside(fail_times(PartialError({2: RetryableError("busy")}), 1))
    rig = Rig(tmp_path, sink)
    rig.put("a", "b", "c")
    rig.run()
    assert sink.taken == ["a", "b", "c"]
    assert rig.metrics.value("shipper_sink_diverted_total", sink="s", reason="failure_store") == 2
    assert rig.metrics.value("shipper_sink_lines_acked_total", sink="s") == 3
    assert rig.dead() == []
    rig.ledger.close()


def test_what_the_destination_dropped_by_its_own_rule_is_counted_and_neither_retried_nor_kept(tmp_path: Path) -> None:
    def fault(batch: Batch, call: int) -> None:
        if call == 1:
            raise PartialError({0: DroppedError("sampled", code="sampled_out"), 2: RetryableError("busy", code="503")})

    sink = ListSink(fault)
    rig = Rig(tmp_path, sink)
    rig.put("a", "b", "c")
    rig.run()
    assert sink.taken == ["b", "c"]
    assert rig.metrics.value("shipper_dropped_total", reason="sampled_out") == 1
    assert rig.metrics.value("shipper_sink_lines_acked_total", sink="s") == 2
    assert rig.dead() == []
    assert rig.ledger.sink_state("s").position is None
    rig.ledger.close()


def test_a_batch_of_which_all_was_dropped_is_done(tmp_path: Path) -> None:
    def fault(batch: Batch, call: int) -> None:
        raise PartialError(dict.fromkeys(range(len(batch)), DroppedError("sampled", code="sampled_out")))

    sink = ListSink(fault)
    rig = Rig(tmp_path, sink)
    rig.put("a", "b")
    rig.run()
    assert (sink.calls, sink.taken, rig.dead()) == (1, [], [])
    assert rig.metrics.value("shipper_dropped_total", reason="sampled_out") == 2
    assert rig.delivery.healthy
    rig.ledger.close()


@pytest.mark.parametrize("raised", [RecursionError, OverflowError, MemoryError])
def test_whatever_a_record_makes_the_sink_raise_is_dead_lettered(tmp_path: Path, raised: type[Exception]) -> None:
    """A record nested 985 levels deep once ended the delivery for good."""
    rig = Rig(tmp_path, ListSink(refuse("deep", error=raised)))
    rig.put("a", "deep", "c")
    rig.run()
    assert [(raw, code) for raw, _, code in rig.dead()] == [("deep", "bug")]
    assert rig.ledger.safe(rig.file) == 100
    assert rig.health.state("sink:s") == "ok"
    rig.ledger.close()


def test_a_record_that_fails_in_part_for_hours_ends_no_delivery(tmp_path: Path) -> None:
    """A stack frame a retry once ended it after some 490."""

    def fault(batch: Batch, call: int) -> None:
        if "bad" in batch.raws and call < 3_000:
            raise PartialError({batch.raws.index("bad"): RetryableError("shard away", code="503")})

    rig = Rig(tmp_path, ListSink(fault))
    rig.put("one", "bad", "two")
    rig.run()
    assert rig.ledger.safe(rig.file) == 100
    assert (rig.health.state("sink:s"), len(rig.clock.waits)) == ("ok", 2_999)
    rig.ledger.close()


def test_a_fault_of_our_own_costs_a_pause_not_the_delivery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = ListSink()
    rig = Rig(tmp_path, sink)
    faults: list[BaseException] = [SystemExit(), RuntimeError("dictionary changed size"), KeyError("x")]
    told: list[object] = []
    acked = rig.ledger.acked

    def faulty(*args: object, **kwargs: object) -> None:
        if faults:
            raise faults.pop()
        told.append(rig.health.components()["sink:s"])
        acked(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(rig.ledger, "acked", faulty)
    rig.put("a")
    rig.run()
    assert rig.ledger.safe(rig.file) == 100
    assert rig.metrics.value("shipper_sink_restarts_total", sink="s") == 3
    assert len(rig.clock.waits) == 3
    assert sink.closed == 1
    rig.ledger.close()


def test_a_fault_of_our_own_is_shown_while_it_lasts_and_a_restart_is_advised_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path, ListSink())
    states: list[object] = []

    def faulty(**_: object) -> list[Batch]:
        states.append(rig.health.state("sink:s"))
        if len(states) == 20:
            rig.delivery.stop()
        raise RuntimeError("broken")

    monkeypatch.setattr(rig.buffer, "peek", faulty)
    rig.run()
    assert states[1:10] == ["retrying"] * 9
    assert set(states[10:]) == {"failed"}
    assert any("broken" in fault for fault in rig.health.faults())
    rig.ledger.close()


def test_full_dead_letters_park_the_sink_and_nothing_is_written_twice(tmp_path: Path) -> None:
    sink = ListSink(refuse("bad"))
    rig = Rig(tmp_path, sink)
    rig.dead_letters.limit = 600
    older = make_batch([f"old {number}" for number in range(2)])
    rig.dead_letters.append(older, [PermanentError("x")] * 2, "s")
    states: list[object] = []

    def wait(event: object, seconds: float) -> bool:
        states.append(rig.health.components()["sink:s"])
        if len(states) == 3:
            rig.dead_letters.drop()
        return False

    rig.clock.wait = wait  # type: ignore[method-assign, assignment]
    rig.put("a", "bad", "c")
    rig.run()
    assert sink.taken == ["a", "c"], "what was taken is not written again while its neighbour waits"
    assert [raw for raw, _, _ in rig.dead()] == ["bad"]
    assert {state.state for state in states} == {"parked"}  # type: ignore[attr-defined]
    assert "shipper dead-letters drop --sink s" in states[0].detail  # type: ignore[attr-defined]
    assert rig.health.state("sink:s") == "ok"
    rig.ledger.close()


def test_lines_too_old_when_their_file_was_first_seen_are_passed_over_counted_and_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink = ListSink()
    sink.max_age = 3_600.0
    rig = Rig(tmp_path, sink)
    now = rig.ledger.seen(rig.file)
    batch = make_batch(["old", "new", "older"])
    batch.times = [now - 3_601 * 10**9, now - 3_599 * 10**9, 5]
    assert rig.delivery.admit(batch, rig.file).raws == ["new"]
    assert rig.delivery.admit(batch, rig.file).raws == ["new"]
    assert rig.metrics.value("shipper_passed_over_total", sink="s", reason="too_old") == 4
    assert rig.metrics.value("shipper_dropped_total", reason="too_old") == 0
    assert sum("passed over" in record.getMessage() for record in caplog.records) == 1
    rig.ledger.close()
    again = Ledger(Checkpoint(tmp_path), ["s"], rig.clock)
    assert again.given_up("s") == {"too_old": 4}
    again.close()


def test_lines_that_grew_too_old_while_they_waited_are_not_passed_over(tmp_path: Path) -> None:
    """An outage of a month: the sink refuses them, and the dead letters keep them."""
    sink = ListSink()
    sink.max_age = 3_600.0
    rig = Rig(tmp_path, sink)
    seen = rig.ledger.seen(rig.file)
    rig.clock.time_ns = lambda: seen + 30 * 86_400 * 10**9  # type: ignore[method-assign]
    batch = make_batch(["old"])
    batch.times = [seen]
    assert rig.delivery.admit(batch, rig.file) is batch
    rig.ledger.close()
