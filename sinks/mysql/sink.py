"""The sink: a transaction per batch by multi-row INSERT, or by LOAD DATA LOCAL, large batches in two at once."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, ClassVar

import pymysql

from shipper.errors import PartialError, PermanentError, RetryableError, SinkError
from shipper.render import lengths
from shipper.sink import Finding, Limits, Sink, SinkConfig
from sinks import _sql
from sinks.mysql import encode, faults
from sinks.mysql.config import MysqlConfig
from sinks.mysql.examine import examine
from sinks.mysql.lanes import Lane, SecondLane
from sinks.mysql.schema import Maintenance, Server, add_last_partition, add_marker_statement, prepare
from sinks.mysql.session import Session, connect, quoted, where

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from shipper.record import Batch

#: A statement holds at most this many bytes, and at most a quarter of what the server takes in one packet.
_STATEMENT = 4 << 20
#: Rows that one write singles out itself before it leaves the search to the delivery.
_SINGLED = 16
#: Rows from which LOAD DATA runs on two connections. A server stores with one core per connection, and one alone is
#: kept waiting between two batches: for COMMIT's write to disk and for the next rows.
_TWO = 1000
#: Seconds after which the second connection, if no batch needed it, is closed: before a server or a firewall does.
_IDLE = 60.0
#: Errors that say LOAD DATA LOCAL is not allowed: MariaDB, MySQL 8, older servers.
_NO_LOAD = frozenset({3948, 4166, 1148})
_log = logging.getLogger(__name__)


class MysqlSink(Sink):
    """Writes batches to the table. ``now`` gives seconds since 1970, for partitions and retention."""

    config: ClassVar[type[SinkConfig]] = MysqlConfig
    limits = Limits(records=5_000, bytes=4 << 20)

    def __init__(self, config: MysqlConfig, *, now: Callable[[], float] = time.time) -> None:
        self._config = config
        self._now = now
        self._where = where(config)
        self._session: Session | None = None
        self._second: SecondLane | None = None
        #: When the second connection was last used; and whether there is none until the sink is opened anew.
        self._second_used = 0.0
        self._one_connection_only = False
        self._server = Server(version="", max_packet=1 << 20, widths={})
        self._mapping = self._make_mapping()
        self._maintenance = Maintenance(config)
        self._load = config.load_data
        if config.load_data:
            self.limits = Limits(records=10_000, bytes=4 << 20)
        self._plain = False
        self._known: set[str] = set()
        self._told_of_marker = False
        #: The batch before. Freeing thousands of records takes longer than to send the next, and the server would wait.
        self._stored: Batch | None = None
        table = quoted(config.table)
        self._insert_start = b""
        # No VALUES(), no alias: the one form of "leave it" that MySQL and MariaDB both take without a warning.
        self._insert_end = f" ON DUPLICATE KEY UPDATE {quoted('id')} = {table}.{quoted('id')}".encode()
        self._load_statement = ""

    @property
    def uses_load_data(self) -> bool:
        """Whether batches go by LOAD DATA; false once the server has refused it."""
        return self._load

    def _make_mapping(self) -> _sql.Mapping:
        server = self._server
        return _sql.Mapping(
            self._config.columns, widths=server.widths, wide_integers=server.mariadb, marker=server.marker
        )

    def open(self) -> None:
        """Connect anew (the name may lead to another server now), create what may be created, check the table."""
        self._release()
        session = connect(self._config, load_data=self._config.load_data)
        self._session = session
        try:
            self._server = prepare(self._config, session)
        except (pymysql.MySQLError, OSError, SinkError) as error:
            self._release()
            raise faults.sorted_error(error, self._where) from error
        self._load = self._config.load_data
        self._plain = False
        self._prepare_statements()
        if self._maintenance.due(self._now()):
            self._maintenance.run(self._now())

    def _prepare_statements(self) -> None:
        config, server = self._config, self._server
        self._mapping = self._make_mapping()
        names = ", ".join(map(quoted, self._mapping.sent))
        table = quoted(config.table)
        self._insert_start = f"INSERT INTO {table} ({names}) VALUES ".encode()  # noqa: S608 - names are checked
        self._load_statement = (
            f"LOAD DATA LOCAL INFILE '{{file}}' IGNORE INTO TABLE {table} CHARACTER SET utf8mb4"
            f" {encode.FORMAT} ({names})"
        )
        if not server.marker and not self._told_of_marker:
            self._told_of_marker = True
            _log.warning(
                "%s: the table %s has no column shipper (create_table is off, or %s may not add it): nanoseconds, the types of integers in"
                " columns and what a container has beyond its columns are not kept; to keep them run %s",
                self._where, config.table, config.maintenance_user or config.user, add_marker_statement(config),
            )  # fmt: skip

    def write(self, batch: Batch) -> None:
        """Store the batch in one transaction or two; rows that are there already stay as they are."""
        if self._session is None:
            raise RetryableError(f"{self._where}: not connected")
        try:
            order = self._mapping.order(batch)
        except ValueError as error:  # a time that no column holds
            raise PermanentError(f"mysql: {error}") from error
        try:
            self._store(self._session, batch, order)
        except (pymysql.MySQLError, OSError, SinkError) as error:
            raise self._failed(error) from error
        except BaseException:
            self._release()  # and with it the rows that are stored already
            raise
        if self._maintenance.due(self._now()):
            self._maintenance.run(self._now())

    def _store(self, session: Session, batch: Batch, order: Sequence[int]) -> None:
        resource_columns = set(self._mapping.resource_columns(batch.resources))
        new = {shared.key: shared.json for shared in resource_columns if shared.key and shared.key not in self._known}
        if new:
            self._store_resources(session, new)
        # In the order of the key, so that writers of the same rows cannot deadlock.
        lane = Lane(session, self._mapping)
        second = self._second_lane(len(order))
        if second is None:
            self._store_rows(lane, batch, order)
        else:
            self._store_halves(lane, second, batch, order)
        self._known |= new.keys()

    def _second_lane(self, rows: int) -> SecondLane | None:
        """Give the second connection if so many rows are worth it and the server grants it."""
        now = self._now()
        if self._second is not None and (not self._second.lane.session.open or abs(now - self._second_used) > _IDLE):
            self._release_second()
        if rows < _TWO or self._one_connection_only or not self._load:
            return None
        if self._second is None:
            try:
                self._second = SecondLane(Lane(connect(self._config, load_data=True), self._make_mapping()))
            except SinkError as error:
                self._one_connection_only = True
                _log.info("LOAD DATA goes by one connection, because a second was refused: %s", error)
        self._second_used = now
        return self._second

    def _store_halves(self, lane: Lane, second: SecondLane, batch: Batch, order: Sequence[int]) -> None:
        """Store the halves of a batch at the same time, each in a transaction of its own.

        Each is committed as soon as it is stored, never only when both are: where some rows are there already, a half
        may wait for the other's locks, and the server sees no deadlock in a client that waits for both.
        """
        middle = len(order) // 2
        second.begin(partial(self._store_half, second.lane, batch, order[middle:]))
        first = self._store_half(lane, batch, order[:middle])
        errors = [error for error in (first, second.wait()) if error is not None]
        for error in errors:
            if not isinstance(error, PartialError):
                raise error
        failed = [error.failed for error in errors if isinstance(error, PartialError)]
        if failed:
            raise PartialError(dict(chain.from_iterable(map(dict.items, failed))))

    def _store_half(self, lane: Lane, batch: Batch, order: Sequence[int]) -> BaseException | None:
        """Store half of a batch; give what went wrong, for the thread that knows both halves."""
        try:
            self._store_rows(lane, batch, order)
        except BaseException as error:  # noqa: BLE001 - raised by who asked
            _undo(lane.session, error)  # and with it the locks for which the other half may wait
            return error
        return None

    def _store_rows(self, lane: Lane, batch: Batch, order: Sequence[int]) -> None:
        if self._load and self._suits_load(batch) and self._loaded(lane, batch, order):
            self._stored = batch
        else:
            self._stored = None
            self._insert(lane.session, lane.mapping.rows(batch, order), order)

    def _pieces(self, mapping: _sql.Mapping, batch: Batch, order: Sequence[int]) -> Iterator[bytes]:
        for piece in encode.pieces(mapping, batch, order):
            yield piece
            if self._stored is not batch:
                self._stored = None

    def _store_resources(self, session: Session, new: dict[str, str]) -> None:
        """Keep full resources, in a transaction of their own: more of them than rows that use them does no harm."""
        table = quoted(self._config.table + "_resources")
        with session.cursor() as cursor:
            for key, text in sorted(new.items()):
                with suppress(pymysql.err.IntegrityError):  # it is there already
                    cursor.execute(f"INSERT INTO {table} VALUES (%s, %s)", (key, text))  # noqa: S608 - checked name
        session.commit()

    def _suits_load(self, batch: Batch) -> bool:
        longest = max(lengths(batch.raws)[0], lengths(batch.messages or ())[0])
        return bool(batch.raws) and longest <= self._server.max_packet // 16

    def _loaded(self, lane: Lane, batch: Batch, order: Sequence[int]) -> bool:
        """Store by LOAD DATA; false when the rows must go by INSERT instead, and then nothing of them is stored.

        LOCAL turns every error but a broken statement into a warning, and the row into something else. So every
        row must be counted as stored or skipped, and every warning must be a duplicate's; else all is rolled back.
        """
        session = lane.session
        try:
            pieces = self._pieces(lane.mapping, batch, order)
            records, stored, skipped, warnings = session.load(self._load_statement, pieces)
            exact = records == len(order) and warnings == skipped and stored == len(order) - skipped
            if exact and skipped:
                with session.cursor() as cursor:
                    cursor.execute("SHOW WARNINGS")
                    codes = [row[1] for row in cursor.fetchall()]
                # A row that was skipped for another reason could hide behind the number that the server lists.
                exact = len(codes) == warnings and set(codes) == {faults.DUPLICATE}
        except pymysql.MySQLError as error:
            if faults.code(error) in _NO_LOAD:
                self._load = False
                _log.warning(
                    "%s does not allow LOAD DATA LOCAL; using INSERT. To allow it: local_infile=ON", self._where
                )
            elif faults.code(error) not in faults.RECORD:
                raise
            exact = False
        if exact:
            session.commit()
        else:
            session.rollback()
        return exact

    def _insert(self, session: Session, rows: _sql.Rows, order: Sequence[int]) -> None:
        values = encode.values(rows)
        most = min(_STATEMENT, self._server.max_packet // 4)
        largest = self._server.max_packet - len(self._insert_start) - len(self._insert_end) - 1024
        failed: dict[int, SinkError] = {}
        good: list[int] = []
        for index, value in enumerate(values):
            if len(value) <= largest:
                good.append(index)
                continue
            failed[order[index]] = PermanentError(
                f"{self._where}: the record takes {len(value)} bytes and the server takes {largest} in one statement;"
                " raise max_allowed_packet on the server",
                code="1153",
            )
        while True:
            place = 0
            try:
                for start, end in _pieces(values, good, most):
                    place = start
                    self._execute(session, b",".join([values[index] for index in good[start:end]]))
                session.commit()
                break
            except pymysql.MySQLError as error:
                row = faults.row_of(error)
                number = faults.code(error)
                if number == faults.DUPLICATE and self._plain:
                    session.rollback()
                    failed |= self._insert_singly(session, [(order[index], values[index]) for index in good])
                    break
                if self._lacks_update(error):
                    session.rollback()
                    self._plain = True
                    continue
                if number not in faults.RECORD or row is None or place + row >= len(good):
                    raise
                if len(good) == 1 or len(failed) >= _SINGLED:
                    raise
                session.rollback()
                failed[order[good.pop(place + row)]] = faults.sorted_error(error, self._where)
        if failed:
            raise PartialError(failed)

    def _execute(self, session: Session, values: bytes) -> None:
        session.query(self._insert_start + values + (b"" if self._plain else self._insert_end))

    def _lacks_update(self, error: pymysql.MySQLError) -> bool:
        """The no-op needs UPDATE and SELECT. An account with INSERT alone gets the plain form, and replayed rows
        singly: exact as well, only slower when there are any.
        """
        text = str(error).upper()
        refused = faults.code(error) in {1142, 1143} and ("UPDATE COMMAND" in text or "SELECT COMMAND" in text)
        return refused and not self._plain

    def _insert_singly(self, session: Session, values: list[tuple[int, bytes]]) -> dict[int, SinkError]:
        failed: dict[int, SinkError] = {}
        for index, value in values:
            try:
                self._execute(session, value)
            except pymysql.MySQLError as error:
                if faults.code(error) == faults.DUPLICATE:
                    continue
                if faults.code(error) not in faults.RECORD:
                    raise
                failed[index] = faults.sorted_error(error, self._where)
        session.commit()
        return failed

    def _failed(self, error: Exception) -> SinkError:
        """Sort the error, leave no transaction behind and no connection that is lost or leads to the wrong server."""
        failure = faults.sorted_error(error, self._where)
        if isinstance(error, PartialError):
            return failure
        if self._session is not None and not _undo(self._session, error):
            self._release()
        if faults.code(error) == 1526:
            try:
                add_last_partition(self._config)
            except SinkError as refused:
                return refused
        return failure

    def examine(self) -> Iterator[Finding]:
        """See `sinks.mysql.examine`. Creates nothing."""
        return examine(self._config)

    def close(self) -> None:
        """Close the connection."""
        self._release()

    def _release(self) -> None:
        session, self._session = self._session, None
        self._stored = None
        self._known.clear()
        self._one_connection_only = False
        self._release_second()
        if session is not None:
            session.release()

    def _release_second(self) -> None:
        second, self._second = self._second, None
        if second is not None:
            second.release()


def _undo(session: Session, error: BaseException) -> bool:
    """Leave no transaction behind; false if the connection is closed with it, lost or leading to the wrong server."""
    if isinstance(error, PartialError):
        return True  # all else is stored
    if session.open and (faults.keeps_connection(error) or isinstance(error, SinkError)):
        with suppress(pymysql.MySQLError, OSError):
            session.rollback()
            return True
    session.release()
    return False


def _pieces(values: list[bytes], good: list[int], most: int) -> list[tuple[int, int]]:
    """Cut into ranges of at most ``most`` bytes of values; one larger row goes alone."""
    pieces: list[tuple[int, int]] = []
    start = size = 0
    for place, index in enumerate(good):
        length = len(values[index]) + 1
        if size and size + length > most:
            pieces.append((start, place))
            start, size = place, 0
        size += length
    if start < len(good):
        pieces.append((start, len(good)))
    return pieces
