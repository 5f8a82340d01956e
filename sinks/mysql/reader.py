"""Reads records back from the table, page by page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pymysql

from shipper.reader import Reader
from sinks import _sql, _sql_read
from sinks.mysql import faults
from sinks.mysql.session import Session, connect, quoted, where
from sinks.mysql.table import Table, look

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from shipper.reader import Query
    from shipper.record import Record
    from sinks.mysql.config import MysqlConfig


class MysqlReader(Reader):
    """Pages through the table by its key: no page costs more than the first, and the server holds nothing open."""

    def __init__(self, config: MysqlConfig) -> None:
        self._config = config
        self._rows = _sql_read.RowReader(config.columns)
        self._session: Session | None = None

    def read(self, query: Query) -> Iterator[Record]:
        """Give matching records. Raises RetryableError when the server is away, ParkedError for login or rights."""
        try:
            yield from _sql_read.answer(query, self._records(query))
        except (pymysql.MySQLError, OSError) as error:
            self.close()
            raise faults.sorted_error(error, where(self._config)) from error

    def _records(self, query: Query) -> Iterator[Record]:
        names = (*_sql.FIRST, *self._config.columns, *_sql.LAST)
        # As text: the driver would make datetime objects, which read slower and know no zero dates.
        columns = ", ".join(f"CAST({quoted(n)} AS CHAR)" if n == "created_at" else quoted(n) for n in names)
        found = self._table()
        columns += f", {quoted(_sql.MARKER)}" if found is None or found.marker else ", NULL"
        table = quoted(self._config.table)
        resources = quoted(self._config.table + "_resources")

        def select(part: _sql_read.Page, order: str, size: int) -> tuple[tuple[Any, ...], ...]:
            return self._fetch(
                f"SELECT {columns} FROM {table} WHERE {part.where}"  # noqa: S608 - names are checked
                f" ORDER BY {table}.`created_at` {order}, {table}.`id` {order} LIMIT {size}",
                part.values,
            )

        def lookup(keys: Sequence[str], marks: str) -> Iterable[tuple[str, str]]:
            sql = f"SELECT id, attributes FROM {resources} WHERE id IN ({marks})"  # noqa: S608 - checked name
            return dict(self._fetch(sql, tuple(keys))).items()

        unsure = frozenset() if found is None else frozenset(found.fits(self._config))
        if found is not None and found.levels() is not None:
            unsure |= {"level"}
        return self._rows.records(
            query, contains="LOCATE(?, `message`) > 0", select=select, lookup=lookup, unsure=unsure
        )

    def _table(self) -> Table | None:
        if self._session is None:
            self._session = connect(self._config)
        return look(self._config, self._session)

    def _fetch(self, sql: str, values: tuple[Any, ...]) -> tuple[tuple[Any, ...], ...]:
        if self._session is None:
            self._session = connect(self._config)
        with self._session.cursor() as cursor:
            cursor.execute(sql.replace("%", "%%").replace("?", "%s"), values)
            rows = tuple(cursor.fetchall())
        self._session.commit()  # each page sees the rows of its moment
        return rows

    def close(self) -> None:
        """Close the connection."""
        session, self._session = self._session, None
        if session is not None:
            session.release()
