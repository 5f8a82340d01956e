"""The daemon's memory is bounded by records as well as by bytes, whatever is in a file: at most 100 MiB."""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.arrivals import sqlite_database
from support.daemon import Daemon, eventually

MakeDaemon = Callable[..., Daemon]
MIB = 1 << 20
#: What the daemon may hold at its peak, in bytes.
MOST = 100 * MIB


def _values(item: bytes, count: int) -> bytes:
    return b'{"level":"info","message":"x","n":[' + b",".join([item] * count) + b"]}\n"


def _plain(content: bytes, times: int) -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        with (directory / "app.log").open("wb") as file:
            for _ in range(times):
                file.write(content)

    return write


def _packed(content: bytes, times: int) -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        (directory / "app.log").write_bytes(b"live\n")
        with gzip.open(directory / "app.log.2.gz", "wb", compresslevel=1) as file:
            for _ in range(times):
                file.write(content)

    return write


SHAPES = {
    "empty lines": _plain(b"\n" * MIB, 32),
    "two letters": _plain(b"ok\n" * (MIB // 2), 24),
    "packed empty lines": _packed(b"\n" * (16 * MIB), 8),
    "packed NUL": _packed(b"\0" * (16 * MIB), 32),
    "packed without an end": _packed(b"a" * (16 * MIB), 8),
    "50 MB without an end": _plain(b"x" * 50_000_000 + b"\nend\n", 1),
    "a million keys": _plain(b'{"message":"m",' + b",".join(b'"k%d":%d' % (i, i) for i in range(MIB)) + b"}\n", 1),
    "many small objects": _plain(_values(b'{"":0}', 140_000), 20),
    "many empty lists": _plain(_values(b"[]", 330_000), 20),
    "many numbers": _plain(_values(b"7", 500_000), 20),
    "NUL": _plain(b"\0" * MIB + b"\nend\n", 16),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_the_peak_of_memory_is_bounded_whatever_the_lines_are(
    make_daemon: MakeDaemon, tmp_path: Path, name: str
) -> None:
    """Watched for as long as it takes to fill every buffer, with a sink that parses and one that is away."""
    logs, database = tmp_path / "logs", tmp_path / "logs.db"
    logs.mkdir()
    SHAPES[name](logs)
    daemon = make_daemon(
        {
            "sources": {"app": {"type": "file", "include": [str(logs / "*.log")]}},
            "sinks": {
                "db": {"type": "sqlite", "path": str(database)},
                "away": {"type": "loki", "endpoint": "http://127.0.0.1:9", "line": "json"},
            },
            "active": ["db", "away"],
        }
    )
    with daemon:
        for peak in _peaks(daemon, seconds=8):
            assert peak <= MOST, f"{peak / MIB:.0f} MiB"
        assert daemon.running
        assert daemon.get("/healthz")[0] == 200
        assert eventually(lambda: _stored(database) > 0, timeout=60), "and lines arrive"


def _peaks(daemon: Daemon, *, seconds: float) -> Iterator[int]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.25)
        yield daemon.peak_rss()


def _stored(database: Path) -> int:
    if not database.exists():
        return 0
    with sqlite_database(database, read_only=True) as connection:
        (count,) = next(iter(connection.execute("SELECT count(*) FROM activity_logs")))
        return int(count)
