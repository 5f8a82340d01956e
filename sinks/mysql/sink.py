"""The sink: a transaction per batch by multi-row INSERT, or by LOAD DATA LOCAL, large batches in two at once."""

from __future__ import annotations

import logging
import re
import time
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, ClassVar

import pymysql

from shipper.errors import ParkedError, PartialError, PermanentError, RetryableError, SinkError
from shipper.render import lengths
from shipper.sink import Change, Finding, Limits, Sink, SinkConfig
from sinks import _sql
from sinks._sql_fit import FittedMapping
from sinks.mysql import encode, faults
from sinks.mysql.config import MysqlConfig
from sinks.mysql.examine import ALLOW, examine
from sinks.mysql.lanes import Lane, SecondLane
from sinks.mysql.schema import Maintenance, Server, add_last_partition, changes, no_marker, prepare, run
from sinks.mysql.session import InsertCount, Session, connect, quoted, where
from sinks.mysql.table import look

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from shipper.record import Batch

#: A statement holds at most this many bytes, and at most a quarter of what the server takes in one packet.
_STATEMENT = 4 << 20
#: Rows that one write singles out itself before it leaves the search to the delivery.
_SINGLED = 16
#: Rows from which LOAD DATA is less work than INSERT, whose answer comes a round trip sooner.
_FEW = 100
#: Rows from which LOAD DATA runs on two connections. A server stores with one core per connection, and one alone is
#: kept waiting between two batches: for COMMIT's write to disk and for the next rows.
_TWO = 1000
#: Seconds after which the second connection, if no batch needed it, is closed: before a server or a firewall does.
_IDLE = 60.0
#: A batch for LOAD DATA; larger, because each waits for a commit of its own.
_LOAD_LIMITS = Limits(records=10_000, bytes=4 << 20)
#: Errors that say LOAD DATA LOCAL is not allowed: MariaDB, MySQL 8, older servers. A proxy in between has codes of its own.
_NO_LOAD = frozenset({3948, 4166, 1148})
_NO_RIGHT = frozenset({1142, 1143})
_NO_LOAD_TEXT = re.compile(r"LOAD DATA|LOCAL INFILE", re.IGNORECASE)
#: Keys that one statement looks for.
_LOOKED_FOR = 200
_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
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
        self._server = Server(version="", max_packet=1 << 20)
        self._mapping = self._make_mapping()
        self._maintenance = Maintenance(config)
        self._load = config.loads
        if config.loads:
            self.limits = _LOAD_LIMITS
        self._plain = False
        self._known: set[str] = set()
        self._logged: set[str] = set()
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
        server, table, columns = self._server, self._server.table, self._config.columns
        widths, marker = table.widths(), table.marker
        fits, levels = table.fits(self._config), table.levels()
        if fits or levels is not None:
            return FittedMapping(
                columns, fits=fits, levels=levels, widths=widths, wide_integers=server.mariadb, marker=marker
            )
        return _sql.Mapping(columns, widths=widths, wide_integers=server.mariadb, marker=marker)

    def open(self) -> None:
        """Connect anew (the name may lead to another server now), create what may be created, check the table."""
        self._release()
        session = connect(self._config, load_data=self._config.loads)
        self._session = session
        try:
            self._server = prepare(self._config, session)
        except (pymysql.MySQLError, OSError, SinkError) as error:
            self._release()
            failure = faults.sorted_error(error, self._where)
            if isinstance(failure, PermanentError):  # there is no record yet that could be at fault
                failure = ParkedError(str(failure), code=failure.code)
            raise failure from error
        self._load = self._config.loads and self._server.loads
        self.limits = _LOAD_LIMITS if self._load else type(self).limits
        self._plain = False
        self._prepare_statements()
        self._log_notes()
        if self._maintenance.due(self._now()):
            self._maintenance.run(self._now())

    def _prepare_statements(self) -> None:
        config = self._config
        self._mapping = self._make_mapping()
        names = ", ".join(map(quoted, self._mapping.sent))
        table = quoted(config.table)
        self._insert_start = f"INSERT INTO {table} ({names}) VALUES ".encode()  # noqa: S608 - names are checked
        self._load_statement = (
            f"LOAD DATA LOCAL INFILE '{{file}}' IGNORE INTO TABLE {table} CHARACTER SET utf8mb4"
            f" {encode.FORMAT} ({names})"
        )

    def _log_notes(self) -> None:
        """Log once what the table and the server do not hold or allow."""
        config, table = self._config, self._server.table
        notes = [f"the table {config.table}: {note}" for note in table.notes(config)]
        if not table.marker:
            notes.append(no_marker(config, table))
        for note in notes:
            if note not in self._logged:
                _log.warning("%s: %s", self._where, note)
        if config.loads and not self._load:
            self._log_inserts()
        self._logged.update(notes)

    def _log_inserts(self) -> None:
        if "inserts" not in self._logged:
            level = logging.INFO if self._config.load_data == "auto" else logging.WARNING
            _log.log(
                level, "%s does not allow LOAD DATA LOCAL, so INSERT is used, at half the rate. %s", self._where, ALLOW
            )
        self._logged.add("inserts")

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
                try:
                    cursor.execute(f"INSERT INTO {table} VALUES (%s, %s)", (key, text))  # noqa: S608 - checked name
                except pymysql.MySQLError as error:
                    if faults.code(error) != faults.DUPLICATE:
                        raise
        session.commit()

    def _suits_load(self, batch: Batch) -> bool:
        if len(batch) < _FEW and self._config.load_data == "auto":
            return False
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
                exact = self._all_repeats(session.duplicates(), skipped, batch, order)
        except pymysql.MySQLError as error:
            if faults.code(error) in _NO_LOAD or _NO_LOAD_TEXT.search(str(error)):
                self._load = False
                self._log_inserts()
            elif not faults.condemns(error):
                raise
            exact = False
        if exact:
            session.commit()
        else:
            session.rollback()
        return exact

    def _all_repeats(self, duplicates: list[str] | None, skipped: int, batch: Batch, order: Sequence[int]) -> bool:
        """Tell whether what the server says of skipped rows proves that each is there already.

        A row that was skipped for another reason, or by another key, could hide behind the number that it lists.
        """
        if duplicates is None or len(duplicates) != skipped:
            return False
        named = {self._repeated(text) for text in duplicates}
        return len(named) == skipped and named <= set(map(batch.ids.__getitem__, order))

    def _repeated(self, text: str) -> str:
        """Give the id that a message of a duplicate names, when the key is one that tells ids apart, else nothing.

        The value of a key comes first in it, and may be anything; the key's name ends it in every language.
        """
        for name in self._server.table.id_keys:
            if text.endswith((f"'{name}'", f".{name}'")) and (found := _ID.findall(text)):
                return str(found[-1])
        return ""

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
            unsure: list[int] = []
            try:
                for start, end in _pieces(values, good, most):
                    place = start
                    stored, met = self._execute(session, b",".join([values[index] for index in good[start:end]]))
                    if stored != end - start or met:
                        unsure += good[start:end]
                for index in self._missing(session, rows, unsure):
                    if (refusal := self._insert_one(session, rows, index, values[index])) is not None:
                        failed[order[index]] = refusal
                session.commit()
                break
            except pymysql.MySQLError as error:
                row = faults.row_of(error)
                if faults.code(error) == faults.DUPLICATE and self._plain:
                    session.rollback()
                    for index in good:
                        if (refusal := self._insert_one(session, rows, index, values[index])) is not None:
                            failed[order[index]] = refusal
                    session.commit()
                    break
                if self._lacks_update(error):
                    session.rollback()
                    self._plain = True
                    continue
                if not faults.condemns(error) or row is None or place + row >= len(good):
                    raise
                if len(good) == 1 or len(failed) >= _SINGLED:
                    raise
                session.rollback()
                index = good[place + row]
                refusal = self._insert_one(session, rows, index, values[index])
                session.rollback()
                if refusal is None:  # a trigger's own statement counts rows anew: let the delivery search
                    raise
                failed[order[good.pop(place + row)]] = refusal
        if failed:
            raise PartialError(_beside_others(failed) if len(failed) < len(order) else failed)

    def _execute(self, session: Session, values: bytes) -> InsertCount:
        return session.insert(self._insert_start + values + (b"" if self._plain else self._insert_end))

    def _lacks_update(self, error: pymysql.MySQLError) -> bool:
        """The no-op needs UPDATE and SELECT. An account with INSERT alone gets the plain form, and replayed rows
        singly: exact as well, only slower when there are any.
        """
        text = str(error).upper()
        refused = faults.code(error) in _NO_RIGHT and ("UPDATE COMMAND" in text or "SELECT COMMAND" in text)
        return refused and not self._plain

    def _missing(self, session: Session, rows: _sql.Rows, indexes: list[int]) -> list[int]:
        """Give those of some rows that are not in the table: they met another row's unique key."""
        there: set[str] = set()
        for start in range(0, len(indexes), _LOOKED_FOR):
            there |= self._there(session, rows, indexes[start : start + _LOOKED_FOR])
        return [index for index in indexes if rows.ids[index] not in there]

    def _there(self, session: Session, rows: _sql.Rows, indexes: list[int]) -> set[str]:
        table = self._server.table
        dated = all("created_at" in columns for columns in table.id_keys.values())
        created = rows.created if dated else []
        # Not a row constructor: neither server can use an index for one.
        parts = [
            f"(created_at = '{created[index]}' AND id = '{rows.ids[index]}')" if dated else f"id = '{rows.ids[index]}'"
            for index in indexes
        ]
        with session.cursor() as cursor:
            cursor.execute(f"SELECT id FROM {quoted(self._config.table)} WHERE {' OR '.join(parts)}")  # noqa: S608 - ids and times of ours
            return {str(found) for (found,) in cursor.fetchall()}

    def _seen(self, session: Session, rows: _sql.Rows, index: int) -> bool:
        try:
            return bool(self._there(session, rows, [index]))
        except pymysql.MySQLError as error:
            if faults.code(error) not in _NO_RIGHT:
                raise
            return False

    def _insert_one(self, session: Session, rows: _sql.Rows, index: int, value: bytes) -> SinkError | None:
        """Store a row, by the plain form, which tells the key that it meets; give what refuses it, if it is no repeat."""
        try:
            session.insert(self._insert_start + value)
        except pymysql.MySQLError as error:
            if not faults.condemns(error):
                raise
            # A repeat may meet the other key first. Without the right to look it counts as refused.
            if faults.code(error) == faults.DUPLICATE and (
                self._repeated(str(error.args[-1])) == rows.ids[index] or self._seen(session, rows, index)
            ):
                return None
            return faults.sorted_error(error, self._where)
        return None

    def _failed(self, error: Exception) -> SinkError:
        """Sort the error, leave no transaction behind and no connection that is lost or leads to the wrong server."""
        failure = faults.sorted_error(error, self._where)
        if isinstance(error, PartialError):
            return failure
        if self._session is not None and not _undo(self._session, error):
            self._release()
        if faults.code(error) == 1526:
            try:
                add_last_partition(self._config, ours=self._server.table.ours)
            except SinkError as refused:
                return refused
        return failure

    def changes(self) -> list[Change]:
        """Give the statements that make what the table lacks. Raises SinkError."""
        session = connect(self._config)
        try:
            return changes(self._config, session, look(self._config, session))
        except pymysql.MySQLError as error:
            raise faults.sorted_error(error, self._where) from error
        finally:
            session.release()

    def prepare(self) -> None:
        """Run these statements, by the maintenance account if there is one. Raises SinkError."""
        run(self._config, [change.text for change in self.changes()])

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


def _beside_others(failed: dict[int, SinkError]) -> dict[int, SinkError]:
    """Say of refusals that the same transaction took other rows: it is not the table that is at fault, however many."""
    return {
        index: PermanentError(str(error), code=error.code, certain=True) if isinstance(error, PermanentError) else error
        for index, error in failed.items()
    }


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
