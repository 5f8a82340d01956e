"""What tests of several areas share: a real MariaDB server."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from support.mariadb import MariaDB, RunningServer


@pytest.fixture(scope="session")
def mariadb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MariaDB]:
    """A private MariaDB server that every test of the run may use and none may stop.

    Where it must not be missing (in CI, and as root, who can install it), its absence fails the test. With
    SHIPPER_TEST_MYSQL=HOST:PORT the server there, MySQL or MariaDB, whose root has no password, takes its place.
    """
    address = os.environ.get("SHIPPER_TEST_MYSQL")
    if address:
        yield RunningServer(address)
        return
    if not MariaDB.available():
        text = "mariadbd is not installed; the package mariadb-server has it"
        if os.environ.get("CI") or os.geteuid() == 0:
            pytest.fail(text)
        pytest.skip(text)
    with MariaDB(tmp_path_factory.mktemp("mariadb")) as server:
        yield server
