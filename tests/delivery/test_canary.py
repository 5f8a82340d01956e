"""The canary: what proves a sink, what refuses it, what is only worth a warning, and how long it may take."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from shipper import registry
from shipper.clock import SystemClock
from shipper.delivery import canary
from shipper.delivery.canary import make_canary, prove, prove_all
from shipper.errors import ParkedError, PermanentError, RetryableError
from shipper.reader import Query, Reader
from shipper.record import Batch, Record
from shipper.sink import Change, Sink, SinkConfig

CLOCK = SystemClock()


class Backend:
    """One destination: what it stores and how it fails. ``shown`` is the number of looks before anything is visible."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.fault: Exception | None = None
        self.read_fault: Exception | None = None
        self.shown = 0
        self.closed = 0
        self.changes: list[Change] = []
        self.hang = threading.Event()
        self.hang.set()


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Backend:
    made = Backend()

    class Taking(Sink):
        def __init__(self, config: Any) -> None:
            pass

        def open(self) -> None:
            made.hang.wait(20)

        def write(self, batch: Batch) -> None:
            if made.fault is not None:
                raise made.fault
            made.records.extend(batch.records())

        def changes(self) -> list[Change]:
            return made.changes

        def close(self) -> None:
            made.closed += 1

    class Quiet(Taking):
        takes_canary = False

    class Reading(Reader):
        def __init__(self, config: Any) -> None:
            pass

        def read(self, query: Query) -> Iterator[Record]:
            if made.read_fault is not None:
                raise made.read_fault
            made.shown -= 1
            assert query.since is not None
            return iter([] if made.shown >= 0 else [r for r in made.records if r.time_ns >= query.since])  # type: ignore[operator]

        def close(self) -> None:
            pass

    monkeypatch.setattr(registry, "sink", lambda name: Quiet if name == "quiet" else Taking)
    monkeypatch.setattr(registry, "reader", lambda name: None if name == "blind" else Reading)
    return made


def verdicts(section: SinkConfig, **options: Any) -> list[tuple[str, str]]:
    return [(finding.what, finding.verdict) for finding in prove(section, clock=CLOCK, **options)]


def test_canary_says_what_it_is_and_is_a_fresh_one_each_time() -> None:
    one, other = (next(make_canary(CLOCK).records()) for _ in range(2))
    assert "canary" in one.message
    assert one.attributes == {"shipper.canary": True}
    assert (one.resource.source, one.resource.attributes["service.name"]) == ("shipper", "shipper")
    assert one.id != other.id


def test_written_and_read_back_though_it_is_visible_only_later(backend: Backend) -> None:
    backend.shown = 2
    assert verdicts(SinkConfig(type="x")) == [("write", "ok"), ("read", "ok")]
    assert (len(backend.records), backend.closed) == (1, 1)


def test_what_is_not_visible_in_time_is_a_warning(backend: Backend) -> None:
    backend.shown = 1_000
    assert verdicts(SinkConfig(type="x"), visible=0.3) == [("write", "ok"), ("read", "warn")]


def test_account_that_may_not_read_is_a_warning(backend: Backend) -> None:
    backend.read_fault = ParkedError("SELECT denied")
    assert verdicts(SinkConfig(type="x")) == [("write", "ok"), ("read", "warn")]


@pytest.mark.parametrize(
    "fault", [RetryableError("away"), ParkedError("login"), PermanentError("schema"), ValueError("bug")]
)
def test_refused_canary_is_a_failure_with_a_fix_and_the_sink_is_closed(backend: Backend, fault: Exception) -> None:
    backend.fault = fault
    (finding,) = prove(SinkConfig(type="x"), clock=CLOCK)
    assert finding.verdict == "fail"
    assert str(fault) in finding.evidence
    assert finding.fix
    assert backend.closed == 1


def test_sink_without_canary_or_reader(backend: Backend) -> None:
    assert verdicts(SinkConfig(type="quiet")) == [("open", "ok")]
    assert verdicts(SinkConfig(type="x"), write=False) == [("open", "ok")]
    assert backend.records == []
    assert verdicts(SinkConfig(type="blind")) == [("write", "ok")]


def test_looking_writes_no_canary_where_something_would_be_made_for_it(backend: Backend) -> None:
    backend.changes = [Change("CREATE TABLE x (a TEXT)"), Change("CREATE TABLE y")]
    *_, finding = canary.examine(SinkConfig(type="x"), clock=CLOCK)
    assert (finding.what, finding.verdict, backend.records) == ("write", "ok", [])
    assert "would first make: CREATE TABLE x and 1 more statement; " in finding.evidence


def test_what_only_the_operator_may_make_holds_back_no_canary(backend: Backend) -> None:
    backend.changes = [Change("ALTER TABLE theirs", ours=False)]
    found = [(finding.what, finding.verdict) for finding in canary.examine(SinkConfig(type="x"), clock=CLOCK)]
    assert found[-2:] == [("write", "ok"), ("read", "ok")]
    assert len(backend.records) == 1


def test_proof_of_all_is_bounded_in_time(backend: Backend) -> None:
    backend.hang.clear()
    begin = CLOCK.monotonic()
    found = prove_all({"a": SinkConfig(type="x")}, clock=CLOCK, seconds=0.3)
    assert found is not None
    assert found["a"][0].verdict == "fail"
    assert "no answer within 0.3 s" in found["a"][0].evidence
    assert CLOCK.monotonic() - begin < 5
    backend.hang.set()


def test_proof_ends_at_once_when_interrupted(backend: Backend) -> None:
    backend.hang.clear()
    begin = CLOCK.monotonic()
    assert prove_all({"a": SinkConfig(type="x")}, clock=CLOCK, interrupted=lambda: True) is None
    assert CLOCK.monotonic() - begin < canary.PROOF / 2
    backend.hang.set()
