"""The policy: what becomes of a batch by what the sink raises, whoever runs it."""

from __future__ import annotations

import struct
from collections.abc import Callable

import msgspec
import pytest

from shipper.delivery.attempt import DOUBTS, Attempt, Step
from shipper.errors import DroppedError, ParkedError, PartialError, PermanentError, RetryableError, SinkError
from shipper.record import Batch
from shipper.sink import Sink
from shipper.testing.batches import make_batch


class Scripted(Sink):
    """Takes what ``fault`` does not raise for."""

    def __init__(self, fault: Callable[[list[str]], None]) -> None:
        self.fault = fault
        self.taken: list[str] = []
        self.writes = 0

    def open(self) -> None: ...

    def write(self, batch: Batch) -> None:
        self.writes += 1
        try:
            self.fault(batch.raws)
        except PartialError as error:
            apart = {row for rows, _ in error.together for row in rows} | set(error.failed)
            self.taken += [raw for row, raw in enumerate(batch.raws) if row not in apart]
            raise
        self.taken += batch.raws

    def close(self) -> None: ...


def run(attempt: Attempt, sink: Sink, *, waits: int = 0) -> list[Step]:
    """Run an attempt to its end, which must come after so many waits."""
    steps: list[Step] = []
    while not attempt.done:
        steps.append(attempt.write(sink))
        assert sum(step.wait is not None for step in steps) <= waits
    return steps


def poison(raised: BaseException, *texts: str) -> Callable[[list[str]], None]:
    def fault(raws: list[str]) -> None:
        if set(raws) & set(texts):
            raise raised

    return fault


def lines(count: int) -> list[str]:
    return [f"line {number}" for number in range(count)]


@pytest.mark.parametrize(
    "raised",
    [
        ValueError("x"),
        UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"),
        TypeError("x"),
        KeyError("x"),
        IndexError("x"),
        AttributeError("x"),
        OverflowError("x"),
        ZeroDivisionError("x"),
        RecursionError("maximum recursion depth exceeded"),
        MemoryError(),
        AssertionError("x"),
        NotImplementedError("x"),
        msgspec.EncodeError("x"),
        PermanentError("x"),
    ],
    ids=lambda raised: type(raised).__name__,
)
def test_what_a_record_can_cause_costs_that_record_alone(raised: Exception) -> None:
    attempt, sink = Attempt(make_batch(lines(100))), Scripted(poison(raised, "line 61"))
    run(attempt, sink)
    assert list(attempt.refused) == [61]
    assert sink.taken == [text for text in lines(100) if text != "line 61"]
    assert attempt.taken == 99
    assert sink.writes <= 16


@pytest.mark.parametrize("raised", [OSError("x"), TimeoutError("x"), ConnectionResetError("x"), EOFError("x")])
def test_what_no_record_can_cause_waits_and_costs_none(raised: Exception) -> None:
    left = [raised] * 50
    attempt = Attempt(make_batch(lines(3)))
    sink = Scripted(lambda _raws: _raise(left.pop()) if left else None)
    steps = run(attempt, sink, waits=50)
    assert attempt.refused == {}
    assert sink.taken == lines(3)
    assert [type(step.wait) for step in steps[:50]] == [RetryableError] * 50


@pytest.mark.parametrize("raised", [RuntimeError("x"), struct.error("x"), Exception("x"), SinkError("x")])
def test_what_could_be_either_is_tried_again_a_few_times_and_then_costs_the_record(raised: Exception) -> None:
    attempt, sink = Attempt(make_batch(lines(8))), Scripted(poison(raised, "line 5"))
    run(attempt, sink, waits=DOUBTS)
    assert list(attempt.refused) == [5]
    assert len(sink.taken) == 7


def test_what_could_be_either_and_passes_costs_nothing() -> None:
    left: list[Exception] = [RuntimeError("cannot schedule new futures")] * DOUBTS
    attempt = Attempt(make_batch(lines(8)))
    run(attempt, Scripted(lambda _raws: _raise(left.pop()) if left else None), waits=DOUBTS)
    assert (attempt.taken, attempt.refused) == (8, {})


def test_five_thousand_partial_failures_in_a_row_take_no_stack() -> None:
    def fault(raws: list[str]) -> None:
        if "bad" in raws and sink.writes < 5_000:
            raise PartialError({raws.index("bad"): RetryableError("shard away", code="503")})

    sink = Scripted(fault)
    attempt = Attempt(make_batch(["one", "bad", "two"]))
    run(attempt, sink, waits=5_000)
    assert sink.taken == ["one", "two", "bad"]
    assert sink.writes == 5_000


def test_groups_that_were_refused_together_are_bisected_each() -> None:
    def fault(raws: list[str]) -> None:
        if len(raws) == 6:
            raise PartialError({}, together=[([2, 3], PermanentError("one of these"))])
        if "bad" in raws:
            raise PermanentError("one of these")

    attempt, sink = Attempt(make_batch(["a", "b", "bad", "c", "d", "e"])), Scripted(fault)
    run(attempt, sink)
    assert list(attempt.refused) == [2]
    assert sorted(sink.taken) == ["a", "b", "c", "d", "e"]


def test_rows_of_parts_are_those_of_the_whole() -> None:
    def fault(raws: list[str]) -> None:
        if "poison" in raws and len(raws) > 2:
            raise PermanentError("somewhere")
        bad = {row: PermanentError("here") for row, raw in enumerate(raws) if raw in {"poison", "worse"}}
        if bad:
            raise PartialError(bad)

    texts = [*lines(9), "poison", *lines(3), "worse"]
    attempt = Attempt(make_batch(texts))
    run(attempt, Scripted(fault))
    assert sorted(attempt.refused) == [9, 13]


def test_a_dropped_batch_is_counted_and_gone() -> None:
    attempt = Attempt(make_batch(lines(3)))
    (step,) = run(attempt, Scripted(poison(DroppedError("sampled", code="sampled"), "line 0")))
    assert step.dropped == {"sampled": 3}
    assert (attempt.taken, attempt.refused) == (0, {})


@pytest.mark.parametrize("rows", [[7], [-1], [0, 0]])
def test_rows_that_are_not_there_are_a_bug_of_the_sink(rows: list[int]) -> None:
    def fault(raws: list[str]) -> None:
        if "line 1" in raws:
            raise PartialError({}, together=[(rows, PermanentError("x"))])

    attempt, sink = Attempt(make_batch(lines(3))), Scripted(fault)
    run(attempt, sink)
    assert list(attempt.refused) == [1]
    assert attempt.taken == 2


def test_refusals_that_are_taken_back_are_written_again_with_what_is_left() -> None:
    attempt, sink = Attempt(make_batch(lines(4))), Scripted(poison(PermanentError("no"), *lines(2)))
    while len(attempt.refused) < 2:
        attempt.write(sink)
    attempt.take_back()
    assert attempt.left() == [0, 1, 2, 3]
    sink.fault = lambda _raws: None
    run(attempt, sink)
    assert sink.taken == lines(4)


def test_what_waits_is_left() -> None:
    attempt = Attempt(make_batch(lines(3)))
    step = attempt.write(Scripted(poison(PartialError({1: ParkedError("quota")}), "line 1")))
    assert isinstance(step.wait, ParkedError)
    assert attempt.left() == [1]


def _raise(error: Exception) -> None:
    raise error
