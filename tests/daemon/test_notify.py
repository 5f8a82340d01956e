"""What the service manager is told, and that the watchdog lives on progress alone."""

from __future__ import annotations

import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shipper.daemon.notify import AFTER_DRAIN, Supervisor
from shipper.telemetry.health import READER, Health
from shipper.testing.clock import FakeClock
from support.daemon import Daemon


class Listener:
    """The socket of a service manager: a path, or with ``abstract`` a name of no file."""

    def __init__(self, tmp_path: Path, *, abstract: bool = False) -> None:
        self.address = f"@shipper-test-{uuid.uuid4().hex}" if abstract else str(tmp_path / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address.replace("@", "\0"))
        self._socket.settimeout(20)
        self.environ = {"NOTIFY_SOCKET": self.address}
        self._taken: list[list[str]] = []

    def take(self) -> None:
        """Take what has come: a socket holds few datagrams, and whoever sends more waits."""
        self._socket.setblocking(False)
        try:
            while True:
                self._taken.append(self._socket.recv(4096).decode().split("\n"))
        except BlockingIOError:
            self._socket.settimeout(20)

    def said(self) -> list[list[str]]:
        """Give the datagrams that have come since the last call, as lists of lines."""
        self.take()
        taken, self._taken = self._taken, []
        return taken

    def wait(self, line: str) -> list[list[str]]:
        """Wait for a datagram with the line; give all up to it."""
        found = []
        while True:
            found.append(self._socket.recv(4096).decode().split("\n"))
            if line in found[-1]:
                return found

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    listener = Listener(tmp_path)
    yield listener
    listener.close()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def health(clock: FakeClock) -> Health:
    return Health(clock)


Make = Callable[..., Supervisor]


@pytest.fixture
def make(listener: Listener, clock: FakeClock, health: Health) -> Make:
    def make(**environ: str) -> Supervisor:
        return Supervisor(health, clock, {**listener.environ, **environ}, pid=42)

    return make


def ticks(supervisor: Supervisor, clock: FakeClock, seconds: float, listener: Listener | None = None) -> None:
    """Let the main thread go round for some seconds, as often as it is asked to."""
    end = clock.monotonic() + seconds
    while clock.monotonic() < end:
        clock.advance(supervisor.pause)
        supervisor.tick()
        if listener is not None:
            listener.take()


def test_ready_is_said_once_and_not_before_the_reader_has_gone_round(
    make: Make, listener: Listener, clock: FakeClock, health: Health
) -> None:
    supervisor = make()
    ticks(supervisor, clock, 1, listener)
    assert listener.said() == []
    health.beat()
    ticks(supervisor, clock, 1, listener)
    assert listener.said() == [["READY=1"]]


def test_a_manager_that_does_not_listen_yet_is_told_later(tmp_path: Path, clock: FakeClock, health: Health) -> None:
    health.beat()
    supervisor = Supervisor(health, clock, {"NOTIFY_SOCKET": str(tmp_path / "notify")}, pid=42)
    supervisor.tick()
    late = Listener(tmp_path)
    ticks(supervisor, clock, 1)
    assert late.said() == [["READY=1"]]
    late.close()


def test_abstract_sockets_are_reached(tmp_path: Path, clock: FakeClock, health: Health) -> None:
    listener = Listener(tmp_path, abstract=True)
    health.beat()
    Supervisor(health, clock, listener.environ, pid=42).tick()
    assert listener.said() == [["READY=1"]]
    listener.close()


@pytest.mark.parametrize("address", ["", "vsock:2:1234", "notify"])
def test_without_a_socket_nothing_happens(
    tmp_path: Path, clock: FakeClock, health: Health, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    health.beat()
    supervisor = Supervisor(health, clock, {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "60000000"}, pid=42)
    supervisor.tick()
    supervisor.reloading()
    supervisor.reloaded()
    supervisor.stopping(30)
    supervisor.tick()
    assert not supervisor.watched
    assert list(tmp_path.iterdir()) == []


def test_the_watchdog_is_fed_while_the_reader_goes_round_and_starves_when_it_stands(
    make: Make, listener: Listener, clock: FakeClock, health: Health
) -> None:
    supervisor = make(WATCHDOG_USEC="60000000", WATCHDOG_PID="42")
    assert supervisor.watched
    for _ in range(120):
        health.beat()
        ticks(supervisor, clock, 1, listener)
    fed = [lines for lines in listener.said() if "WATCHDOG=1" in lines]
    assert len(fed) >= 8, "every quarter of the interval at least"
    ticks(supervisor, clock, 60, listener)
    listener.said()
    ticks(supervisor, clock, 600, listener)
    assert [lines for lines in listener.said() if "WATCHDOG=1" in lines] == [], "a timer that goes on feeds nothing"
    health.beat()
    ticks(supervisor, clock, 1, listener)
    assert ["WATCHDOG=1"] in listener.said()


def test_a_short_watchdog_is_fed_in_time(make: Make, listener: Listener, clock: FakeClock, health: Health) -> None:
    supervisor = make(WATCHDOG_USEC="800000")
    health.beat()
    supervisor.tick()
    assert supervisor.pause <= 0.2
    listener.said()
    clock.advance(supervisor.pause)
    supervisor.tick()
    assert listener.said() == [["WATCHDOG=1"]]


@pytest.mark.parametrize("state", ["retrying", "throttled", "parked", "starting"])
def test_a_sink_that_is_down_starves_no_watchdog(
    make: Make, listener: Listener, clock: FakeClock, health: Health, state: Any
) -> None:
    supervisor = make(WATCHDOG_USEC="10000000")
    health.report("sink:mysql", state, "away")
    health.beat("sink:mysql")
    health.rest("sink:mysql")
    for _ in range(100):
        health.beat()
        ticks(supervisor, clock, 1, listener)
    assert len([lines for lines in listener.said() if "WATCHDOG=1" in lines]) >= 100


@pytest.mark.parametrize(
    "trouble",
    [lambda health: health.beat("sink:mysql"), lambda health: health.report("sink:mysql", "failed", "a bug")],
    ids=["a delivery stands in our own code", "a delivery ended by a bug"],
)
def test_a_delivery_of_ours_that_stands_starves_the_watchdog(
    make: Make, listener: Listener, clock: FakeClock, health: Health, trouble: Callable[[Health], None]
) -> None:
    supervisor = make(WATCHDOG_USEC="10000000")
    trouble(health)
    for _ in range(12):
        health.beat()
        ticks(supervisor, clock, 1, listener)
    listener.said()
    for _ in range(100):
        health.beat()
        ticks(supervisor, clock, 1, listener)
    assert [lines for lines in listener.said() if "WATCHDOG=1" in lines] == []


@pytest.mark.parametrize("environ", [{"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "41"}, {"WATCHDOG_USEC": "soon"}])
def test_a_watchdog_that_is_not_ours_is_not_fed(make: Make, environ: dict[str, str]) -> None:
    assert not make(**environ).watched


def test_reload_is_one_datagram_with_the_time_then_ready(
    make: Make, listener: Listener, clock: FakeClock, health: Health
) -> None:
    supervisor = make()
    health.beat()
    supervisor.tick()
    clock.advance(12.5)
    listener.said()
    supervisor.reloading()
    supervisor.reloaded()
    assert listener.said() == [["RELOADING=1", "MONOTONIC_USEC=12500000"], ["READY=1"]]


def test_stopping_asks_for_the_time_to_flush_and_for_no_more(
    make: Make, listener: Listener, clock: FakeClock, health: Health
) -> None:
    supervisor = make()
    health.beat()
    supervisor.tick()
    listener.said()
    supervisor.stopping(120)
    assert listener.said() == [["STOPPING=1", f"EXTEND_TIMEOUT_USEC={int(120e6 + AFTER_DRAIN * 1e6)}"]]
    ticks(supervisor, clock, 30, listener)
    said = [line for lines in listener.said() for line in lines]
    assert said[-1] == f"EXTEND_TIMEOUT_USEC={int(90e6 + AFTER_DRAIN * 1e6)}"
    assert "READY=1" not in said


def test_the_status_is_one_line_said_when_it_changes(
    make: Make, listener: Listener, clock: FakeClock, health: Health
) -> None:
    supervisor = make()
    health.report("sink:mysql", "ok")
    ticks(supervisor, clock, 3, listener)
    health.report("sink:mysql", "retrying", "refused\nREADY=1" + "x" * 1000)
    ticks(supervisor, clock, 3, listener)
    first, second = listener.said()
    assert first == ["STATUS=sink:mysql ok"]
    assert second[0].startswith("STATUS=sink:mysql retrying: refused READY=1xxx")
    assert len(second) == 1
    assert len(second[0]) < 220


def config(tmp_path: Path, **more: Any) -> dict[str, Any]:
    return {
        "sources": {"app": {"type": "file", "include": [str(tmp_path / "app.log")]}},
        "sinks": {"hole": {"type": "blackhole"}},
        **more,
    }


def test_the_daemon_tells_of_its_whole_life(tmp_path: Path, listener: Listener) -> None:
    environ = {**listener.environ, "WATCHDOG_USEC": "2000000"}
    with Daemon(tmp_path / "daemon", config(tmp_path), environ=environ) as daemon:
        listener.wait("READY=1")
        listener.wait("WATCHDOG=1")
        daemon.reload(config(tmp_path, sinks={"other": {"type": "blackhole"}}))
        before = time.monotonic_ns() // 1000
        reloading = listener.wait("READY=1")
        begun = next(lines for lines in reloading if "RELOADING=1" in lines)
        assert abs(int(begun[1].removeprefix("MONOTONIC_USEC=")) - before) < 10_000_000
        daemon.reload(config(tmp_path, active="nobody"))
        refused = listener.wait("READY=1")
        assert any("RELOADING=1" in lines for lines in refused)
        assert "nobody" in "".join(listener.wait("WATCHDOG=1")[-1]) or daemon.metric("shipper_config_valid") == 0
        assert daemon.term() == 0
        stop = listener.wait("STOPPING=1")[-1]
        assert stop[1].startswith("EXTEND_TIMEOUT_USEC=")


def test_a_pipeline_beats_while_a_sink_hangs_and_rests_when_it_has_stopped(tmp_path: Path) -> None:
    """The delivery's own code beats, a write that hangs does not count, and no beat outlives its thread."""
    from shipper import registry
    from shipper.clock import SystemClock
    from shipper.config.loader import loads
    from shipper.daemon.keeper import KEEPER
    from shipper.daemon.parts import Parts
    from shipper.daemon.pipeline import Pipeline
    from shipper.telemetry.metrics import Metrics

    (tmp_path / "app.log").write_text("one\n")
    loaded = loads(
        f"sources: {{app: {{type: file, include: ['{tmp_path}/app.log']}}}}\n"
        f"sinks: {{hole: {{type: blackhole}}}}\nstate_dir: {tmp_path}/state\n",
        {},
    )
    held, entered = threading.Event(), threading.Event()

    class Hanging(registry.sink("blackhole")):  # type: ignore[misc]
        def write(self, batch: Any) -> None:
            entered.set()
            held.wait(20)
            super().write(batch)

    parts = Parts.build(loaded)
    parts.sinks["hole"] = Hanging(loaded.sinks["hole"])
    health = Health()
    pipeline = Pipeline(parts, clock=SystemClock(), metrics=Metrics(), health=health)
    pipeline.start()
    try:
        assert entered.wait(20)
        assert health.has_beaten(READER)
        assert not health.has_beaten("sink:hole"), "while the sink has the word nobody waits for us"
    finally:
        held.set()
        pipeline.stop(20)
    assert [name for name in (READER, KEEPER, "sink:hole") if health.has_beaten(name)] == []
