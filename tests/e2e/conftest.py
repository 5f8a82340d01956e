"""What the end-to-end tests share: real servers, one of each per run, and daemons that end with their test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.daemon import Daemon
from support.docker_engine import DockerEngine, EngineUnavailableError
from support.docker_log import DockerLog
from support.logs_database import LogsDatabase
from support.mariadb import MariaDB

MakeDaemon = Callable[..., Daemon]
MakeLog = Callable[..., DockerLog]


@pytest.fixture(scope="session")
def engine() -> Iterator[DockerEngine]:
    """A private Docker engine; where none can run the test is skipped, but in CI it fails."""
    engine = DockerEngine()
    try:
        engine.start()
    except EngineUnavailableError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    yield engine
    engine.stop()


def _need_mariadb() -> None:
    if not MariaDB.available() and not os.environ.get("CI"):
        pytest.skip("mariadbd is not installed; the package mariadb-server has it")


@pytest.fixture
def database(mariadb: MariaDB) -> Iterator[LogsDatabase]:
    """A database of the test's own on the shared server."""
    database = LogsDatabase(mariadb)
    yield database
    database.drop()


@pytest.fixture
def own_database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LogsDatabase]:
    """A database on a server that the test may kill."""
    _need_mariadb()
    with MariaDB(tmp_path_factory.mktemp("own-mariadb")) as server:
        yield LogsDatabase(server)


@pytest.fixture
def make_daemon(tmp_path: Path) -> Iterator[MakeDaemon]:
    """Make daemons, not yet started, that are killed when the test ends; show their log when it failed."""
    made: list[Daemon] = []

    def make(config: dict[str, Any], **options: Any) -> Daemon:
        daemon = Daemon(tmp_path / f"daemon-{len(made)}", config, **options)
        made.append(daemon)
        return daemon

    yield make
    for daemon in made:
        daemon.kill9()
        print(f"--- the daemon's log ends with:\n{daemon.log[-6000:]}")  # noqa: T201 - pytest shows it on failure


@pytest.fixture
def docker_log() -> Iterator[MakeLog]:
    """Make containers' logs that are closed when the test ends."""
    made: list[DockerLog] = []

    def make(root: Path, **options: Any) -> DockerLog:
        made.append(DockerLog(root, **options))
        return made[-1]

    yield make
    for log in made:
        log.close()
