"""The fault contract must catch a broken sink: each bad habit fails the test that is about it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shipper.errors import PartialError, PermanentError, RetryableError, SinkError
from shipper.record import Batch
from shipper.sink import Sink
from shipper.testing.batches import make_batch
from shipper.testing.fault_contract import FaultContract, HttpFaultContract
from shipper.testing.rig import Rig
from sinks.otlp import OtlpConfig, OtlpSink
from support.otlp_server import OtlpServer


@pytest.fixture
def server() -> Iterator[OtlpServer]:
    with OtlpServer() as server:
        yield server


def contract(sink_class: type[OtlpSink], server: OtlpServer) -> HttpFaultContract:
    class Contract(HttpFaultContract):
        doubles_allowed = True
        later = (429, 502, 503, 504)

        def make_sink(self, section: dict[str, Any]) -> Sink:
            return sink_class(OtlpConfig(**section))

    made = Contract()
    made.server = server
    return made


def cases() -> list[tuple[str, dict[str, Any]]]:
    """Every test of the contract, with each of its parameters."""
    found: list[tuple[str, dict[str, Any]]] = []
    for name, function in inspect.getmembers(HttpFaultContract, inspect.isfunction):
        if name.startswith("test_"):
            marks = getattr(function, "pytestmark", [])
            names, values = marks[0].args if marks else ("", [None])
            found += [(name, {names: value} if names else {}) for value in values]
    return found


def test_there_is_a_test_for_each_fault() -> None:
    assert len(cases()) == 16


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("test_refused_login_parks_and_loses_nothing", "refuse the login"),
        ("test_slow_close", "make the server hang up"),
    ],
)
def test_what_a_stand_in_cannot_do_is_skipped(server: OtlpServer, tmp_path: Path, name: str, why: str) -> None:
    class Contract(FaultContract):
        def upstream(self) -> tuple[str, int]:
            return "127.0.0.1", server.port

        def sections(self, port: int) -> dict[str, Any]:
            return server.sink(endpoint=f"http://127.0.0.1:{port}")

        def ids(self) -> list[str]:
            return server.ids()

    with pytest.raises(pytest.skip.Exception, match=why):
        getattr(Contract(), name)(tmp_path)


class Swallowing(OtlpSink):
    """Takes a broken connection for success, also one that a reset broke before it was made."""

    def write(self, batch: Batch) -> None:
        try:
            super().write(batch)
        except RetryableError as error:
            if error.code not in {"connection", "connect"}:
                raise


class Sure(OtlpSink):
    """Never says that a request may have been taken."""

    def write(self, batch: Batch) -> None:
        try:
            super().write(batch)
        except RetryableError as error:
            error.maybe_taken = False
            raise


class Twice(OtlpSink):
    """Sends everything twice, to be safe."""

    def write(self, batch: Batch) -> None:
        super().write(batch)
        super().write(batch)


class Insistent(OtlpSink):
    """Has a retry of its own."""

    def write(self, batch: Batch) -> None:
        try:
            super().write(batch)
        except RetryableError:
            super().write(batch)


class Backwards(OtlpSink):
    """Turns each batch around."""

    def write(self, batch: Batch) -> None:
        super().write(batch.select(range(len(batch) - 1, -1, -1)))


class Deaf(OtlpSink):
    """Hears no Retry-After."""

    def write(self, batch: Batch) -> None:
        try:
            super().write(batch)
        except RetryableError as error:
            error.retry_after = None
            raise


class Blaming(OtlpSink):
    """Blames the record for a refused login."""

    def write(self, batch: Batch) -> None:
        try:
            super().write(batch)
        except SinkError as error:
            if error.code in {"401", "403"}:
                raise PartialError(
                    dict.fromkeys(range(len(batch)), PermanentError(str(error), certain=True))
                ) from error
            raise


class Careless(OtlpSink):
    """Takes every answer for success."""

    def write(self, batch: Batch) -> None:
        try:
            super().write(batch)
        except SinkError as error:
            if not error.code.isdigit():
                raise


class Impatient(OtlpSink):
    """Gives a batch up after ten attempts."""

    attempts = 0

    def write(self, batch: Batch) -> None:
        try:
            super().write(batch)
        except RetryableError:
            self.attempts += 1
            if self.attempts % 10:
                raise


class Broken(OtlpSink):
    """Never recovers from a lost connection."""

    lost = False

    def write(self, batch: Batch) -> None:
        if self.lost:
            raise RetryableError("not connected")
        try:
            super().write(batch)
        except RetryableError:
            self.lost = True
            raise


class Renaming(OtlpSink):
    """Makes up ids when it sends again."""

    failed = 0

    def write(self, batch: Batch) -> None:
        if self.failed:
            batch = batch.select(range(len(batch)))
            batch.hashes = [value + self.failed for value in batch.hashes]
            batch._ids = None
        try:
            super().write(batch)
        except RetryableError:
            self.failed += 1
            raise
        self.failed = 0


@pytest.mark.parametrize(
    ("sink_class", "test", "arguments"),
    [
        (Swallowing, "test_reset", {}),
        (Swallowing, "test_connection_cut_around_a_write", {"where": "before"}),
        (Swallowing, "test_network_that_fails_all_the_time", {}),
        (Sure, "test_connection_cut_around_a_write", {"where": "after"}),
        (Sure, "test_connection_cut_around_a_write", {"where": "half"}),
        (Sure, "test_gateway_that_gives_up_after_the_server_took_it", {}),
        (Twice, "test_without_faults_each_record_is_stored_once", {}),
        (Insistent, "test_connection_cut_around_a_write", {"where": "after"}),
        (Insistent, "test_retry_after_in_seconds_is_honoured", {}),
        (Backwards, "test_without_faults_each_record_is_stored_once", {}),
        (Deaf, "test_retry_after_in_seconds_is_honoured", {}),
        (Deaf, "test_retry_after_as_a_date_is_honoured", {}),
        (Blaming, "test_refused_login_parks_and_loses_nothing", {}),
        (Blaming, "test_each_status_that_means_the_operator_parks", {}),
        (Careless, "test_each_status_that_means_later_is_tried_again", {}),
        (Careless, "test_slow_close", {}),
        (Impatient, "test_hour_of_outage", {}),
        (Broken, "test_reset", {}),
        (Broken, "test_answer_that_takes_too_long", {}),
        (Renaming, "test_reset", {}),
    ],
)
def test_a_bad_habit_is_caught(
    tmp_path: Path, server: OtlpServer, sink_class: type[OtlpSink], test: str, arguments: dict[str, Any]
) -> None:
    assert (test, arguments) in cases()
    with pytest.raises((AssertionError, TimeoutError)):
        getattr(contract(sink_class, server), test)(tmp_path, **arguments)


class TestExactlyOnceIsHeldToIt:
    """A backend that doubles, under a contract that allows none, and one that counts where it need not."""

    def test_doubles(self, tmp_path: Path, server: OtlpServer) -> None:
        it = contract(OtlpSink, server)
        type(it).doubles_allowed = False
        with pytest.raises(AssertionError, match="are stored twice"):
            it.test_connection_cut_around_a_write(tmp_path, where="after")

    def test_needless_doubt(self, tmp_path: Path, server: OtlpServer) -> None:
        it = contract(OtlpSink, server)
        type(it).counts_doubles = False
        with pytest.raises(AssertionError, match="counted as doubled"):
            it.test_connection_cut_around_a_write(tmp_path, where="before")


def test_rig_says_what_it_waits_for(tmp_path: Path, server: OtlpServer) -> None:
    server.token = "changed"
    rig = Rig(tmp_path, OtlpSink(OtlpConfig(type="otlp", endpoint=server.url)))
    rig.put("/a", make_batch(["x"]))
    assert rig.why() == "never started"
    rig.clock.at(100.0, lambda: setattr(server, "token", ""))
    rig.run()
    assert set(rig.states) == {"parked"}
    assert (rig.safe(), rig.state(), rig.acked) == (True, "ok", 1)
    rig.close()
