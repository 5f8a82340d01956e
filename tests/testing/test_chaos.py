"""The fault-injecting sink does what its script says and keeps true books."""

from __future__ import annotations

import random
import threading

import pytest

from shipper.errors import ParkedError, PartialError, PermanentError, RetryableError
from shipper.testing.batches import START_NS, make_batch
from shipper.testing.chaos import ChaosSink, TookItButRaised


def test_steps_may_be_added_to_the_script() -> None:
    sink, batch = ChaosSink(script=[RetryableError("away")]), make_batch(["a"])
    sink.then(ParkedError("login"))
    for error in (RetryableError, ParkedError):
        with pytest.raises(error):
            sink.write(batch)
    sink.write(batch)
    assert sink.order == batch.ids


def test_script_is_played_then_everything_is_taken() -> None:
    sink = ChaosSink(script=[RetryableError("away"), ParkedError("login"), None])
    batch = make_batch(["a", "b"])
    with pytest.raises(RetryableError, match="away"):
        sink.write(batch)
    with pytest.raises(ParkedError, match="login"):
        sink.write(batch)
    assert sink.records == {}
    sink.write(batch)
    assert sink.order == batch.ids
    assert sink.writes == 3


def test_taken_but_raised_is_an_unknown_outcome_that_shows_as_duplicates() -> None:
    sink, batch = ChaosSink(script=[TookItButRaised()]), make_batch(["a"])
    with pytest.raises(RetryableError):
        sink.write(batch)
    sink.write(batch)
    assert sink.duplicates == {batch.ids[0]: 2}


def test_a_sink_that_knows_ids_counts_no_duplicates() -> None:
    sink, batch = ChaosSink(script=[TookItButRaised()], dedupe=True), make_batch(["a"])
    with pytest.raises(RetryableError):
        sink.write(batch)
    sink.write(batch)
    assert sink.duplicates == {}


def test_poison_refuses_the_whole_batch() -> None:
    sink = ChaosSink(poison=lambda record: record.message == "bad")
    with pytest.raises(PermanentError):
        sink.write(make_batch(["good", "bad"]))
    sink.write(make_batch(["good"]))
    assert len(sink.records) == 1


def test_partial_failure_takes_the_others() -> None:
    sink = ChaosSink(partly=lambda batch: {1: PermanentError("no")})
    batch = make_batch(["a", "b", "c"])
    with pytest.raises(PartialError) as caught:
        sink.write(batch)
    assert list(caught.value.failed) == [1]
    assert sink.order == [batch.ids[0], batch.ids[2]]


def test_down_fails_open_and_write_until_lifted() -> None:
    sink = ChaosSink()
    sink.down = RetryableError("outage")
    for call in (sink.open, lambda: sink.write(make_batch(["a"]))):
        with pytest.raises(RetryableError):
            call()
    sink.down = None
    sink.write(make_batch(["a"]))
    sink.wait_for(1)


def test_gate_holds_a_write_back() -> None:
    gate = threading.Event()
    sink = ChaosSink(gate=gate)
    thread = threading.Thread(target=sink.write, args=(make_batch(["a"]),))
    thread.start()
    assert sink.entered.wait(10)
    assert sink.records == {}
    gate.set()
    sink.wait_for(1)
    thread.join(10)


def test_chance_is_repeatable_and_of_both_kinds() -> None:
    def outcomes() -> list[int]:
        sink, held = ChaosSink(unlucky=0.5, rng=random.Random(1)), []
        for number in range(50):
            try:
                sink.write(make_batch(["a"], start_ns=START_NS + number))
            except RetryableError:
                held.append(len(sink.records))
        return held

    first = outcomes()
    assert first == outcomes()
    assert 10 < len(first) < 40


def test_wraps_another_sink() -> None:
    inner = ChaosSink(wants_parse=False)
    outer = ChaosSink(inner, script=[TookItButRaised()])
    assert not outer.wants_parse
    outer.open()
    with pytest.raises(RetryableError):
        outer.write(make_batch(["a"]))
    outer.close()
    assert len(inner.records) == 1
    assert inner.closed


def test_waiting_for_records_that_do_not_come_ends() -> None:
    with pytest.raises(TimeoutError, match="0 of 1"):
        ChaosSink().wait_for(1, timeout=0.01)
