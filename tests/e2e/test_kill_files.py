"""kill -9 where the backend cannot tell doubles by id, where files are rotated by logrotate, and inside a trace."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support.arrivals import difference, sqlite_messages, sqlite_rows, wait_for
from support.daemon import Daemon
from support.docker_log import DockerLog
from support.load import Load

MakeDaemon = Callable[..., Daemon]
MakeLog = Callable[..., DockerLog]


@pytest.mark.parametrize("ending", ["kill", "term"])
def test_a_file_sink_has_every_line_once_in_order_through_kills(
    make_daemon: MakeDaemon, docker_log: MakeLog, tmp_path: Path, ending: str
) -> None:
    """A file knows no ids: after a crash what was written past the saved position is taken back."""
    rng = random.Random(11)
    out = tmp_path / "lines.log"
    log = docker_log(tmp_path / "containers", max_size=60_000, max_file=30)
    daemon = make_daemon(
        {
            "sources": {"docker": {"type": "docker", "path": str(tmp_path / "containers")}},
            "sinks": {"raw": {"type": "file", "path": str(out), "format": "raw"}},
        }
    )

    def arrived() -> list[str]:
        return out.read_text().splitlines() if out.exists() else []

    with Load(log.write) as load:
        for _ in range(12):
            daemon.start(wait=ending == "term")
            time.sleep(rng.uniform(0.05, 1.5))
            if ending == "kill":
                daemon.kill9()
            else:
                assert daemon.term() == 0
    daemon.start()
    assert wait_for(load.written, arrived) == ""
    assert daemon.term() == 0
    assert arrived() == load.written


@pytest.mark.parametrize("rotation", ["rename", "copytruncate"])
def test_plain_files_through_kills_and_rotations(make_daemon: MakeDaemon, tmp_path: Path, rotation: str) -> None:
    rng = random.Random(5)
    path, database = tmp_path / "srv" / "app.log", tmp_path / "logs.db"
    path.parent.mkdir()
    daemon = make_daemon(
        {
            "sources": {"app": {"type": "file", "include": [str(path)]}},
            "sinks": {"db": {"type": "sqlite", "path": str(database)}},
        }
    )

    def write(line: str) -> None:
        with path.open("a") as file:
            file.write(f"{line}\n")

    def rotate() -> None:
        for number in range(20, 0, -1):
            older = path.with_name(f"app.log.{number}")
            if older.exists():
                older.rename(path.with_name(f"app.log.{number + 1}"))
        if rotation == "rename":
            path.rename(path.with_name("app.log.1"))
        else:
            path.with_name("app.log.1").write_bytes(path.read_bytes())
            path.write_text("")

    with Load(write) as load:
        for number in range(12):
            daemon.start(wait=False)
            time.sleep(rng.uniform(0.1, 1.0))
            if number % 2:
                with load.lock:
                    rotate()
                time.sleep(rng.uniform(0.0, 0.3))
            daemon.kill9()
    daemon.start()
    assert wait_for(load.written, lambda: sqlite_messages(database)) == ""
    assert daemon.term() == 0
    assert difference(load.written, sqlite_messages(database)) == ""


def test_stack_traces_are_whole_and_single_through_kills(
    make_daemon: MakeDaemon, docker_log: MakeLog, tmp_path: Path
) -> None:
    """A kill in the middle of a trace: the next life joins it from its first line, and the row is the same."""
    rng = random.Random(6)
    database = tmp_path / "logs.db"
    log = docker_log(tmp_path / "containers", max_size=30_000, max_file=30)
    daemon = make_daemon(
        {
            "sources": {"docker": {"type": "docker", "path": str(tmp_path / "containers")}},
            "sinks": {"db": {"type": "sqlite", "path": str(database)}},
        }
    )
    written: list[str] = []
    for _ in range(10):
        daemon.start(wait=False)
        for _ in range(rng.randrange(4, 12)):
            number = len(written)
            trace = [f"Error: number {number} failed", *(f"    at step{i} (/srv/app.js:{i}:7)" for i in range(1, 9))]
            log.clock_ns = max(log.clock_ns, time.time_ns())
            for line in trace:
                log.write(line)
                time.sleep(0.005)
            log.write(f"after {number}")
            written += ["\n".join(trace), f"after {number}"]
            time.sleep(rng.uniform(0.0, 0.05))
        daemon.kill9()
    daemon.start()
    assert wait_for(written, lambda: _raws(database)) == ""
    assert daemon.term() == 0
    assert difference(written, _raws(database)) == ""


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "compressed"])
def test_lines_over_16_kib_through_kills_and_rotations(
    make_daemon: MakeDaemon, docker_log: MakeLog, tmp_path: Path, compress: bool
) -> None:
    """Kills between two fragments, with the rest of the line in the next file, and files archived meanwhile."""
    rng = random.Random(8)
    database = tmp_path / "logs.db"
    log = docker_log(tmp_path / "containers", max_size=200_000, max_file=60, compress=compress)
    daemon = make_daemon(
        {
            "sources": {"docker": {"type": "docker", "path": str(tmp_path / "containers")}},
            "sinks": {"db": {"type": "sqlite", "path": str(database)}},
        }
    )
    written: list[str] = []
    for _ in range(10):
        daemon.start(wait=False)
        for _ in range(rng.randrange(10, 25)):
            written.append(f"long {len(written)} {'z' * rng.randrange(1, 60_000)}")
            stamp = log.tick()
            for fragment in log.fragments(written[-1] + "\n"):
                log.entry(fragment, "stdout", stamp)
                time.sleep(rng.choice([0.0, 0.0, 0.02]))
        daemon.kill9()
    daemon.start()
    assert wait_for(written, lambda: sqlite_messages(database)) == ""
    assert daemon.term() == 0
    assert difference(written, sqlite_messages(database)) == ""


def _raws(database: Path) -> list[str]:
    """Each record's whole text: the message of a trace is its first line, the rest stands in the details."""
    rows = sqlite_rows(database, "message, details")
    return [json.loads(details)["exception.stacktrace"] if details else message for message, details in rows]
