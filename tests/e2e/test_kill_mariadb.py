"""Killing everything at random moments under rotating load: no line missing in the database, none twice."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shipper.testing.proxy import FaultProxy
from support.arrivals import difference, wait_for
from support.daemon import Daemon, eventually
from support.docker_log import DockerLog
from support.load import Load
from support.logs_database import LogsDatabase

pytestmark = pytest.mark.mariadb

MakeDaemon = Callable[..., Daemon]
MakeLog = Callable[..., DockerLog]


def commits(block: bytes) -> bool:
    """The client's COMMIT packet: length 7, sequence 0, COM_QUERY."""
    return b"\x03COMMIT" in block


def inserts(block: bytes) -> bool:
    return b"INSERT" in block or b"LOAD DATA" in block


def config(containers: Path, sink: dict[str, Any]) -> dict[str, Any]:
    return {"sources": {"docker": {"type": "docker", "path": str(containers)}}, "sinks": {"mysql": sink}}


@pytest.mark.slow
@pytest.mark.parametrize(("load_data", "rounds"), [(False, 50), (True, 15)], ids=["insert", "load-data"])
def test_kill_9_at_random_moments_under_rotating_load_loses_and_doubles_nothing(  # noqa: PLR0917 - fixtures
    make_daemon: MakeDaemon, database: LogsDatabase, tmp_path: Path, load_data: bool, rounds: int, docker_log: MakeLog
) -> None:
    rng = random.Random(20261122)
    log = docker_log(tmp_path / "containers", max_size=60_000, max_file=30)
    daemon = make_daemon(config(tmp_path / "containers", database.sink(load_data=load_data)))
    grown = before = 0
    with Load(log.write) as load:
        for number in range(rounds):
            # One round in three ends at any moment from the start of the process on, one at any moment from when it has
            # started, and one while it delivers.
            started = number % 3 > 0
            daemon.start(wait=started)
            if number % 3 == 2:
                eventually(lambda count=before: database.count() > count, every=0.02)
            time.sleep(rng.uniform(0.0, 1.0) if started else rng.uniform(0.05, 0.6))
            daemon.kill9()
            now = database.count()
            grown += now > before
            before = now
        daemon.start()
    assert grown >= rounds // 3, "the daemon was always killed before it delivered anything: the test shows nothing"
    assert wait_for(load.written, database.messages, timeout=30) == ""
    assert daemon.term() == 0
    assert difference(load.written, database.messages()) == ""
    assert log.rotations >= rounds // 3


@pytest.mark.slow
def test_the_database_killed_and_started_again_loses_and_doubles_nothing(
    make_daemon: MakeDaemon, own_database: LogsDatabase, tmp_path: Path, docker_log: MakeLog
) -> None:
    """The last rounds kill the daemon as well, while the database is down."""
    rng = random.Random(7)
    log = docker_log(tmp_path / "containers", max_size=60_000, max_file=30)
    daemon = make_daemon(config(tmp_path / "containers", own_database.sink()))
    daemon.start()
    with Load(log.write) as load:
        for number in range(5):
            time.sleep(rng.uniform(0.3, 1.0))
            own_database.server.kill()
            time.sleep(rng.uniform(0.2, 0.8))
            if number >= 3:
                daemon.kill9()
                daemon.start()
            own_database.server.start()
    assert wait_for(load.written, own_database.messages, timeout=40) == ""
    assert daemon.term() == 0
    assert difference(load.written, own_database.messages()) == ""


@pytest.mark.parametrize("answer", ["before", "after"])
@pytest.mark.parametrize("request_", [commits, inserts])
def test_the_connection_cut_around_a_request_loses_and_doubles_nothing(  # noqa: PLR0917 - fixtures
    make_daemon: MakeDaemon,
    database: LogsDatabase,
    tmp_path: Path,
    answer: str,
    request_: Callable[[bytes], bool],
    docker_log: MakeLog,
) -> None:
    """Before: the server never saw it. After: it did it and the daemon cannot know; some rounds kill -9 then."""
    log = docker_log(tmp_path / "containers", max_size=60_000, max_file=30)
    with FaultProxy(database.address) as proxy:
        daemon = make_daemon(config(tmp_path / "containers", database.sink(port=proxy.port, ssl_mode="disabled")))
        daemon.start()
        with Load(log.write) as load:
            for number in range(6):
                proxy.cut_when(request_, answer=answer)  # type: ignore[arg-type]  # one of its two words
                proxy.wait_for_cuts(proxy.cuts + 1, timeout=20)
                if number % 3 == 2:
                    daemon.kill9()
                    daemon.start()
        assert wait_for(load.written, database.messages, timeout=30) == ""
        assert daemon.term() == 0
        assert difference(load.written, database.messages()) == ""


def test_connections_reset_again_and_again_lose_and_double_nothing(
    make_daemon: MakeDaemon, database: LogsDatabase, tmp_path: Path, docker_log: MakeLog
) -> None:
    rng = random.Random(3)
    log = docker_log(tmp_path / "containers", max_size=60_000, max_file=30)
    with FaultProxy(database.address) as proxy:
        daemon = make_daemon(config(tmp_path / "containers", database.sink(port=proxy.port, ssl_mode="disabled")))
        daemon.start()
        with Load(log.write) as load:
            for _ in range(20):
                time.sleep(rng.uniform(0.05, 0.3))
                proxy.reset_all()
        assert wait_for(load.written, database.messages, timeout=30) == ""
        assert daemon.term() == 0
        assert difference(load.written, database.messages()) == ""
