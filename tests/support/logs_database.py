"""A database of its own on a test's MariaDB server, with the login that a user would give the daemon."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pymysql

from support.mariadb import MariaDB

#: MariaDB: no such table. The sink has not made it yet.
_NO_SUCH_TABLE = 1146
_PASSWORD = "logs"  # noqa: S105 - of a server that lives for one test


class LogsDatabase:
    """A new database and a user that may do everything in it and nothing outside.

    Works on through restarts of the server. ``address`` is for a proxy in between.
    """

    table = "activity_logs"

    def __init__(self, server: MariaDB) -> None:
        self.server = server
        self.name = f"logs_{uuid.uuid4().hex[:10]}"
        self._user = f"'{self.name}'@'%'"
        server.execute(
            f"CREATE DATABASE {self.name} CHARACTER SET utf8mb4",
            f"CREATE USER {self._user} IDENTIFIED BY '{_PASSWORD}'",
            f"GRANT ALL ON {self.name}.* TO {self._user}",
        )

    @property
    def address(self) -> tuple[str, int]:
        """Where the server listens."""
        return self.server.host, self.server.port

    def sink(self, **changes: Any) -> dict[str, Any]:
        """The section of a ``mysql`` sink that writes here, with ``changes``."""
        section = {"type": "mysql", "host": self.server.host, "port": self.server.port, "database": self.name}
        return {**section, "user": self.name, "password": _PASSWORD, **changes}

    def execute(self, *statements: str) -> tuple[tuple[Any, ...], ...]:
        """Run statements in the database as root; gives the rows of the last."""
        return self.server.execute(*statements, database=self.name)

    def rows(self, columns: str = "message") -> list[tuple[Any, ...]]:
        """The rows in the order of their times; none while there is no table."""
        return self._selected(f"SELECT {columns} FROM {self.table} ORDER BY created_at, id")  # noqa: S608

    def _selected(self, statement: str) -> list[tuple[Any, ...]]:
        try:
            return list(self.execute(statement))
        except pymysql.err.ProgrammingError as error:
            if error.args[0] == _NO_SUCH_TABLE:
                return []
            raise

    def messages(self) -> list[str]:
        """The messages in the order of their times."""
        return [row[0] for row in self.rows()]

    def count(self) -> int:
        """How many rows there are."""
        return sum(row[0] for row in self._selected(f"SELECT COUNT(*) FROM {self.table}"))  # noqa: S608

    @contextmanager
    def refusing(self, fault: str) -> Iterator[None]:
        """Refuse the daemon's user while the context lasts: ``wrong_password``, ``no_right`` or ``read_only``."""
        wrong, right = {
            "wrong_password": (
                f"ALTER USER {self._user} IDENTIFIED BY 'another'",
                f"ALTER USER {self._user} IDENTIFIED BY '{_PASSWORD}'",
            ),
            "no_right": (
                f"REVOKE ALL ON {self.name}.* FROM {self._user}",
                f"GRANT ALL ON {self.name}.* TO {self._user}",
            ),
            "read_only": ("SET GLOBAL read_only = 1", "SET GLOBAL read_only = 0"),
        }[fault]
        self.execute(wrong)
        try:
            yield
        finally:
            self.execute(right)

    def drop(self) -> None:
        """Remove the database and the user."""
        self.server.execute(f"DROP DATABASE IF EXISTS {self.name}", f"DROP USER IF EXISTS {self._user}")
