from __future__ import annotations

import threading

import pytest

from shipper.telemetry.health import SILENCE, Health


class HandClock:
    """A clock that goes only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return int(self.now * 1e9)

    def wait(self, event: threading.Event, seconds: float) -> bool:
        return event.wait(0)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def health(clock: HandClock) -> Health:
    return Health(clock)


@pytest.mark.parametrize("state", ["starting", "retrying", "throttled", "parked"])
def test_a_sink_that_is_not_taking_makes_us_unready_but_a_restart_would_not_help(health: Health, state: str) -> None:
    health.report("sink:mysql", "ok")
    assert health.ready()
    health.report("sink:mysql", state, "away")
    assert not health.ready()
    assert health.alive()


def test_a_failed_component_is_a_reason_to_restart(health: Health) -> None:
    health.report("pipeline", "failed", "the reader died: boom")
    assert not health.alive()
    assert not health.ready()
    assert health.as_dict()["faults"] == ["pipeline failed: the reader died: boom"]


def test_a_source_in_trouble_does_not_make_the_sinks_unready(health: Health) -> None:
    health.report("source:docker", "retrying", "no such directory")
    assert health.ready()


def test_a_reader_that_stops_going_round_is_dead_after_a_minute(health: Health, clock: HandClock) -> None:
    health.beat()
    clock.now += SILENCE
    assert health.alive()
    clock.now += 1
    assert not health.alive()
    health.beat()
    assert health.alive()


def test_a_loop_that_rests_may_be_silent_until_it_beats_again(health: Health, clock: HandClock) -> None:
    health.beat("sink:loki")
    health.rest("sink:loki")
    assert not health.has_beaten("sink:loki")
    clock.now += SILENCE * 2
    assert health.alive()
    health.beat("sink:loki")
    clock.now += 3
    assert health.alive(silence=3)
    assert not health.alive(silence=2)


def test_the_summary_is_one_line_that_begins_with_the_trouble(health: Health) -> None:
    health.report("sink:a", "ok")
    health.report("sink:b", "retrying", "refused:\n no route")
    assert health.summary() == "sink:b retrying: refused: no route; sink:a ok"


def test_a_component_that_was_removed_counts_no_more(health: Health, clock: HandClock) -> None:
    health.report("sink:loki", "parked")
    health.beat("sink:loki")
    health.remove("sink:loki")
    clock.now += SILENCE * 2
    assert health.ready()
    assert health.state("sink:loki") is None


def test_the_time_in_a_state_counts_from_its_first_report(health: Health, clock: HandClock) -> None:
    health.report("sink:mysql", "retrying", "first")
    clock.now += 30
    health.report("sink:mysql", "retrying", "second")
    assert health.as_dict()["components"]["sink:mysql"] == {"state": "retrying", "detail": "second", "seconds": 30.0}


def test_an_unknown_state_is_refused(health: Health) -> None:
    with pytest.raises(ValueError, match="states: ok starting"):
        health.report("sink:mysql", "fine")
