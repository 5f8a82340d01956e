"""The mysql sink through faults, against a real MariaDB server: each record exactly once, whatever happens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from shipper.testing.fault_contract import FaultContract
from shipper.testing.rig import Rig
from support.logs_database import LogsDatabase
from support.mariadb import MariaDB

pytestmark = pytest.mark.mariadb


class _Mysql(FaultContract):
    hasty = {"read_timeout": "200ms"}  # noqa: RUF012 - never changed
    load = False

    @pytest.fixture(autouse=True)
    def _place(self, mariadb: MariaDB) -> Iterator[None]:
        self.database = LogsDatabase(mariadb)
        yield
        self.database.drop()

    def upstream(self) -> tuple[str, int]:
        return self.database.address

    def sections(self, port: int) -> dict[str, Any]:
        # TLS loads the system's certificates at each attempt, which an hour of them would feel.
        return self.database.sink(host="127.0.0.1", port=port, load_data=self.load, ssl_mode="disabled")

    def ids(self) -> list[str]:
        return [row[0] for row in self.database.rows("id")]

    def is_write(self, sent: bytes) -> bool:
        return b"COMMIT" in sent or b"INSERT" in sent or b"LOAD DATA" in sent

    def lock_out(self, rig: Rig) -> None:
        refused = ExitStack()
        refused.enter_context(self.database.refusing("wrong_password"))
        rig.clock.at(100.0, refused.close)

    def hang_up(self) -> None:
        name = self.database.name
        for (thread,) in self.database.execute(f"SELECT id FROM information_schema.PROCESSLIST WHERE user = '{name}'"):
            self.database.execute(f"KILL {thread}")


class TestMysqlInsert(_Mysql):
    pass


class TestMysqlLoadData(_Mysql):
    load = True
