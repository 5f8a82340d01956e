"""The whole daemon under lines that somebody chose to make it slow: it answers, it goes on, and it stops in time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pytest

from shipper.testing.hostile import ordinary, shapes
from support.daemon import Daemon, eventually
from support.docker_log import DockerLog
from support.loki_server import LokiServer

MakeDaemon = Callable[..., Daemon]
MakeLog = Callable[..., DockerLog]
SIZE = 1 << 20
#: Times the CPU of as many ordinary bytes that a hostile line may take, and CPU seconds that do not count.
RATIO, SMALL = 30.0, 0.05
#: Seconds within which the daemon answers for its health.
ANSWER = 1.0


class Watch:
    """Asks for the daemon's health all the time; ``slowest`` is the longest that it took to answer."""

    def __init__(self, daemon: Daemon) -> None:
        self.slowest = 0.0
        self._daemon = daemon
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(0.05):
            began = time.monotonic()
            status, body = self._daemon.get("/healthz", timeout=30)
            assert status == 200, body
            self.slowest = max(self.slowest, time.monotonic() - began)


@contextmanager
def _daemon(make_daemon: MakeDaemon, tmp_path: Path, **changes: Any) -> Iterator[tuple[Daemon, Path]]:
    log = tmp_path / "app.log"
    log.touch()
    (tmp_path / "containers").mkdir()
    with LokiServer(keep=False) as loki:
        daemon = make_daemon(
            {
                "sources": {
                    "app": {"type": "file", "include": [str(log)]},
                    "docker": {"type": "docker", "path": str(tmp_path / "containers")},
                },
                "transforms": {
                    "mask": {
                        "type": "redact",
                        "rules": ["password", "bearer_token", "jwt", "email", "card", "aws_key"],
                    },
                    "less": {"type": "filter", "drop": "level<info path:/health*"},
                },
                "sinks": {"db": {"type": "sqlite", "path": str(tmp_path / "logs.db")}, "loki": loki.sink()},
                "routes": [{"match": 'level>=error OR "x y" OR took>5', "to": ["db", "loki"]}],
                "active": "db",
                **changes,
            }
        )
        with daemon:
            yield daemon, log


def _idle(daemon: Daemon) -> bool:
    """Whether everything written was read and delivered."""
    lag = daemon.metric("shipper_source_lag_bytes")
    return not lag and daemon.metric("shipper_lines_read_total") > 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_shape_of_line_takes_longer_than_thirty_ordinary_ones_or_keeps_health_waiting(
    make_daemon: MakeDaemon, docker_log: MakeLog, tmp_path: Path
) -> None:
    with _daemon(make_daemon, tmp_path) as (daemon, log):
        container = docker_log(tmp_path / "containers")

        def cost(texts: list[str]) -> float:
            """Give the CPU seconds of a MiB read."""
            before, read = daemon.cpu_seconds(), daemon.metric("shipper_bytes_read_total")
            with log.open("a", errors="surrogatepass") as file:
                file.writelines(f"{text}\n" for text in texts)
            for text in texts:
                container.write(text.encode(errors="replace").decode())  # Docker writes no halves of pairs
            size = log.stat().st_size + container.path.stat().st_size
            assert eventually(
                lambda: daemon.metric("shipper_bytes_read_total") >= size and _idle(daemon), timeout=120
            ), "it goes on"
            return (daemon.cpu_seconds() - before) / (daemon.metric("shipper_bytes_read_total") - read) * SIZE

        def over_budget(texts: list[str]) -> str:
            with Watch(daemon) as watch:
                taken = cost(texts)
            if taken > max(RATIO * usual, SMALL):
                return f"{taken:.2f} s of CPU a MiB, {taken / usual:.0f} times the usual"
            return f"health answered after {watch.slowest:.1f} s" if watch.slowest > ANSWER else ""

        cost(ordinary(SIZE))  # what is imported at the first line
        usual = cost(ordinary(SIZE))
        slow: list[str] = []
        for name, text in shapes(SIZE).items():
            lines = text.split("\n")
            # Once more if it was: something else may have had the processor.
            if over_budget(lines) and (found := over_budget(lines)):
                slow.append(f"{name}: {found}")
        assert not slow, "; ".join(slow)
        assert daemon.term(timeout=40) == 0


@pytest.mark.slow
def test_it_stops_in_time_with_hostile_lines_still_to_read(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    deadline = 3.0
    with _daemon(make_daemon, tmp_path, shutdown_timeout=f"{deadline}s") as (daemon, log):
        with log.open("a", errors="surrogatepass") as file:
            for _ in range(3):
                file.writelines(f"{text}\n" for text in shapes(SIZE).values())
        assert eventually(lambda: daemon.metric("shipper_lines_read_total") > 3)
        began = time.monotonic()
        assert daemon.term(timeout=60) == 0
        assert time.monotonic() - began < deadline + 5.0
