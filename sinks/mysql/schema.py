"""The table: its DDL, the checks at start, day partitions and retention."""

from __future__ import annotations

import logging
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pymysql

from shipper.errors import ParkedError
from shipper.sink import Change
from shipper.units import parse_duration
from sinks import _sql
from sinks.mysql import faults
from sinks.mysql.session import connect, quoted, where
from sinks.mysql.table import OURS, Table, exists, look

if TYPE_CHECKING:
    from sinks.mysql.config import MysqlConfig
    from sinks.mysql.session import Session

#: Rows that one DELETE of retention takes; keeps each lock and each log entry short.
CHUNK = 5_000
#: Days that have a partition ahead of time, and at most into the past.
_AHEAD, _BEHIND = 3, 30
_TYPES = {
    "id": "VARCHAR(36) NOT NULL DEFAULT (UUID())",
    "level": "VARCHAR(16) NULL DEFAULT 'info'",
    "message": "LONGTEXT NULL",
    "details": "JSON NULL",
    "created_at": "DATETIME(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6)",
    "user_agent": "VARCHAR(1024) NULL",
    "ip_address": "VARCHAR(64) NULL",
    "stream": "VARCHAR(16) NULL",
    # Last and not in SELECT *: what the application reads is its own columns. Each server reads one comment only;
    # MySQL before 8.0.23 reads neither and shows the column.
    "shipper": "VARCHAR(255) NULL /*!80023 INVISIBLE */ /*M!100303 INVISIBLE */",
}
#: Each index costs inserts up to a quarter. Every part of the backend's filter finds one that is already in the
#: order it asks for, except level alone, where the newest rows are walked; see docs/sinks/mysql.md.
_INDEXES = {"user_id": ("user_id", "created_at"), "action": ("action", "created_at"), "level": ("level", "created_at")}
_ADD_LAST = "ADD PARTITION (PARTITION pmax VALUES LESS THAN (MAXVALUE))"
#: The row format is told, because that of the server may be one whose indexes are too short for ours (1709).
_OPTIONS = f" ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin COMMENT='{OURS}'"
#: What a statement may meet that has nothing to do with it.
_PASSING = faults.LOST | faults.BUSY | faults.LOCK | faults.READ_ONLY | faults.INTERRUPTED | faults.FULL
_log = logging.getLogger(__name__)


class Server(msgspec.Struct, frozen=True):
    """What the server and the table were found to be like. ``loads``: LOAD DATA LOCAL is allowed."""

    version: str
    max_packet: int
    loads: bool = False
    table: Table = Table(columns={}, keys={}, indexes=frozenset(), comment="", row_format="", resources=False)

    @property
    def mariadb(self) -> bool:
        """Whether it is MariaDB."""
        return "mariadb" in self.version.lower()


def create_statement(config: MysqlConfig) -> str:
    """Give the CREATE TABLE statement."""
    lines = [f"{quoted(name)} {column_type(name)}" for name in _sql.Mapping(config.columns).names]
    lines.append("PRIMARY KEY (`created_at`, `id`)")
    for name, columns in _INDEXES.items():
        if name == "level" or name in config.columns:
            lines.append(f"KEY {quoted(f'by_{name}')} ({', '.join(map(quoted, columns))})")
    text = f"CREATE TABLE IF NOT EXISTS {quoted(config.table)} (\n  " + ",\n  ".join(lines) + "\n)"
    text += _OPTIONS
    if config.partition == "day":
        text += "\nPARTITION BY RANGE COLUMNS(`created_at`) (PARTITION `pmax` VALUES LESS THAN (MAXVALUE))"
    return text


def create_resources_statement(config: MysqlConfig) -> str:
    """Give the CREATE TABLE statement of the resources table."""
    return (
        f"CREATE TABLE IF NOT EXISTS {quoted(config.table + '_resources')} (\n  `id` VARCHAR(16) NOT NULL,\n"
        "  `attributes` LONGTEXT NOT NULL,\n  PRIMARY KEY (`id`)\n"
        f"){_OPTIONS}"
    )


def column_type(name: str) -> str:
    """Give the type of a column in a table of our making."""
    return _TYPES.get(name, "VARCHAR(255) NULL")


def prepare(config: MysqlConfig, session: Session) -> Server:
    """Look at the table; make what is missing and is ours to make. Raises ParkedError with what to do.

    What would lose, change or double records is told before anything is made. A table that somebody else made is never
    changed.
    """
    with session.cursor() as cursor:
        cursor.execute("SELECT VERSION(), @@max_allowed_packet, @@local_infile")
        version, packet, loads = cursor.fetchone()
    table = look(config, session)
    _refuse_faults(config, table)
    _refuse_foreign(config, table)
    wanted = [change.text for change in changes(config, session, table) if change.ours]
    if wanted:
        try:
            run(config, wanted)
        except ParkedError:
            if table is None or table.lacks(config) != [_sql.MARKER] or not table.resources:
                raise
        session.commit()
        table = look(config, session)
        _refuse_faults(config, table)
    _refuse_lacks(config, session, table)
    assert table is not None
    if config.partition == "day":
        _check_partitioned(config, session)
    session.commit()
    return Server(version=str(version), max_packet=int(packet), loads=bool(int(loads)), table=table)


def changes(config: MysqlConfig, session: Session, table: Table | None) -> list[Change]:
    """Give the statements that make what is missing, and whether `prepare` runs them by itself."""
    found: list[Change] = []
    if table is None:
        found.append(Change(create_statement(config), ours=config.create_table))
    elif lacks := table.lacks(config):
        found.append(Change(add_columns_statement(config, lacks), ours=config.create_table and table.ours))
    if not (exists(config, session, config.table + "_resources") if table is None else table.resources):
        found.append(Change(create_resources_statement(config), ours=config.create_table))
    if config.partition == "day" and table is not None and not table.ours:
        comment = f"{table.comment}; {OURS}" if table.comment else OURS
        text = comment.translate({92: "\\\\", 39: "''", 10: "\\n", 13: "\\r"})
        found.append(Change(f"ALTER TABLE {quoted(config.table)} COMMENT = '{text}'", ours=False))
        if change := _partition_change(_bounds(config, session)):
            found.append(Change(f"ALTER TABLE {quoted(config.table)} {change}", ours=False))
    return found


def add_columns_statement(config: MysqlConfig, names: list[str]) -> str:
    """Give the statement that adds columns to a table that lacks them."""
    parts = ", ".join(f"ADD COLUMN {quoted(name)} {column_type(name)}" for name in names)
    return f"ALTER TABLE {quoted(config.table)} {parts}"


def no_marker(config: MysqlConfig, table: Table) -> str:
    """Say what is lost in a table without the column ``shipper``, and how to get it."""
    text = (
        f"the table {config.table} has no column shipper: nanoseconds, the types of integers in columns and what a"
        " container has beyond its columns are not kept"
    )
    if not table.ours:
        return f"{text}; to keep them run shipper prepare, which shows the SQL and asks"
    who = config.maintenance_user or config.user
    statement = add_columns_statement(config, [_sql.MARKER])
    return f"{text} (create_table is off, or {who} may not add it); to keep them run {statement}"


def run(config: MysqlConfig, statements: list[str]) -> None:
    """Run statements with the maintenance account if there is one. Raises SinkError."""
    session = connect(config, maintenance=True)
    try:
        for statement in statements:
            try:
                with session.cursor() as cursor:
                    cursor.execute(statement)
            except pymysql.MySQLError as error:
                if faults.code(error) in {
                    1050,
                    1060,
                }:  # another daemon was faster; the checks that follow see its table
                    continue
                failure = faults.sorted_error(error, where(config))
                if faults.code(error) in _PASSING:
                    raise failure from error
                hint = ""
                if statement.startswith("CREATE TABLE"):
                    hint = f"; or create it yourself and set create_table: false:\n{statement}"
                raise ParkedError(f"{failure}{hint}", code=failure.code) from error
        session.commit()
    finally:
        session.release()


def _refuse_faults(config: MysqlConfig, table: Table | None) -> None:
    if table is not None and (found := table.faults(config)):
        raise ParkedError(
            f"{_place(config)} cannot take records as they are: {'; '.join(found)}. Nothing was changed; set table: to a"
            " name that is free, and shipper makes a table of its own",
            code="SCHEMA",
        )


def _refuse_foreign(config: MysqlConfig, table: Table | None) -> None:
    if table is None or table.ours:
        return
    lacks = [name for name in table.lacks(config) if name != _sql.MARKER]
    if lacks:
        raise ParkedError(
            f"{_place(config)} was not made by shipper, which therefore adds nothing to it, and lacks"
            f" {', '.join(lacks)}. To have them added run shipper prepare: it shows the SQL and asks. Or set table: to a"
            " name that is free, and shipper makes a table of its own",
            code="1054",
        )
    if config.partition == "day":
        raise ParkedError(
            f"{_place(config)} was not made by shipper, which keeps days in tables of its own only; set partition: none,"
            " or hand the table over: shipper prepare shows the SQL and asks",
            code="SCHEMA",
        )


def _refuse_lacks(config: MysqlConfig, session: Session, table: Table | None) -> None:
    if table is None:
        statements = "\n".join(f"{change.text};" for change in changes(config, session, None))
        raise ParkedError(
            f"{_place(config)} does not exist, or {config.user} has no right on it; set create_table: true, or run\n"
            f"{statements}",
            code="1146",
        )
    lacks = [name for name in table.lacks(config) if name != _sql.MARKER]
    if lacks:
        raise ParkedError(
            f"{_place(config)} lacks {', '.join(lacks)}; set create_table: true, or run"
            f" {add_columns_statement(config, lacks)}",
            code="1054",
        )
    if not table.resources:
        raise ParkedError(
            f"{where(config)}: the table {config.table}_resources does not exist, or {config.user} has no right on it;"
            f" set create_table: true, or run\n{create_resources_statement(config)};",
            code="1146",
        )


def _place(config: MysqlConfig) -> str:
    return f"{where(config)}: the table {config.database}.{config.table}"


def _bounds(config: MysqlConfig, session: Session) -> list[tuple[str, str]]:
    """Give the partitions in order, name and upper bound (``MAXVALUE`` or a quoted time)."""
    with session.cursor() as cursor:
        cursor.execute(
            "SELECT PARTITION_NAME, PARTITION_DESCRIPTION FROM information_schema.PARTITIONS WHERE TABLE_SCHEMA = %s"
            " AND TABLE_NAME = %s AND PARTITION_NAME IS NOT NULL ORDER BY PARTITION_ORDINAL_POSITION",
            (config.database, config.table),
        )
        return [(str(name), str(bound)) for name, bound in cursor.fetchall()]


def _partition_change(bounds: list[tuple[str, str]]) -> str:
    """Give what ALTER TABLE must do so that the last partition is ``pmax``; empty when it is."""
    if bounds and bounds[-1] == ("pmax", "MAXVALUE"):
        return ""
    if not bounds:
        return "PARTITION BY RANGE COLUMNS(created_at) (PARTITION pmax VALUES LESS THAN (MAXVALUE))"
    if bounds[-1][1] == "MAXVALUE":
        return f"REORGANIZE PARTITION {quoted(bounds[-1][0])} INTO (PARTITION pmax VALUES LESS THAN (MAXVALUE))"
    return _ADD_LAST


def _check_partitioned(config: MysqlConfig, session: Session) -> None:
    if change := _partition_change(_bounds(config, session)):
        raise ParkedError(
            f"{where(config)}: partition: day, but the table {config.table} has no partition pmax; set partition: none"
            f" or run ALTER TABLE {quoted(config.table)} {change}",
            code="SCHEMA",
        )


def add_last_partition(config: MysqlConfig, *, ours: bool) -> None:
    """Make the partition that takes every later time. Raises ParkedError where that is not ours to do.

    With ``partition: none`` the days are somebody else's, whose next ADD PARTITION would fail beside ours.
    """
    statement = f"ALTER TABLE {quoted(config.table)} {_ADD_LAST}"
    advice = f"{where(config)}: the table {config.table} has no partition for the time of a record"
    advice += f"; run {statement}" if ours else "; whoever keeps its partitions must make one, the last as MAXVALUE"
    if config.partition != "day":
        raise ParkedError(advice, code="1526")
    session = connect(config, maintenance=True)
    try:
        with session.cursor() as cursor:
            cursor.execute(statement)
    except pymysql.MySQLError as error:
        if faults.code(error) not in {1481, 1493, 1517}:  # another daemon was faster
            raise ParkedError(f"{advice} ({faults.sorted_error(error, where(config))})", code="1526") from error
    finally:
        session.release()


def add_partitions(config: MysqlConfig, session: Session, today: date) -> None:
    """Split today's and the next days' partitions off ``pmax``. Repeating it changes nothing."""
    bounds = [bound.strip("'")[:10] for _, bound in _bounds(config, session) if bound != "MAXVALUE"]
    day = today if not bounds else max(date.fromisoformat(bounds[-1]), today - timedelta(days=_BEHIND))
    parts = []
    while day <= today + timedelta(days=_AHEAD):
        parts.append(f"PARTITION `p{day:%Y%m%d}` VALUES LESS THAN ('{day + timedelta(days=1)} 00:00:00')")
        day += timedelta(days=1)
    if not parts:
        return
    parts.append("PARTITION `pmax` VALUES LESS THAN (MAXVALUE)")
    _alter(config, session, f"REORGANIZE PARTITION `pmax` INTO ({', '.join(parts)})")


def drop_partitions(config: MysqlConfig, session: Session, cutoff: datetime) -> None:
    """Drop every day that lies wholly before the cutoff."""
    limit = f"{cutoff:%Y-%m-%d %H:%M:%S}"
    old = [name for name, bound in _bounds(config, session) if bound != "MAXVALUE" and bound.strip("'") <= limit]
    if old:
        _alter(config, session, f"DROP PARTITION {', '.join(map(quoted, old))}")


def _alter(config: MysqlConfig, session: Session, change: str) -> None:
    try:
        with session.cursor() as cursor:
            cursor.execute(f"ALTER TABLE {quoted(config.table)} {change}")
    except pymysql.MySQLError as error:
        if faults.code(error) not in {1493, 1507, 1508, 1517}:  # another daemon was faster
            raise


class Maintenance:
    """Partitions and retention, at most hourly, with the maintenance account when there is one.

    A failure is logged and tried again an hour later: it must not hold back records that could be stored.
    """

    EVERY = 3600.0

    def __init__(self, config: MysqlConfig) -> None:
        self._config = config
        self._retention = parse_duration(config.retention) if config.retention else 0.0
        self._next = float("-inf")

    def due(self, now: float) -> bool:
        """Tell whether there is something to do."""
        return bool(self._retention or self._config.partition == "day") and now >= self._next

    def run(self, now: float) -> None:
        """Do it; a long DELETE is done in pieces over several calls. ``now`` is in seconds since 1970."""
        self._next = now + self.EVERY
        config = self._config
        try:
            session = connect(config, maintenance=True)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told and tried again
            _log.warning("maintenance of %s failed: %s", config.table, error)
            return
        moment = datetime.fromtimestamp(now, tz=UTC)
        try:
            if config.partition == "day":
                add_partitions(config, session, moment.date())
                if self._retention:
                    drop_partitions(config, session, moment - timedelta(seconds=self._retention))
            elif self._retention and self._delete(session, moment - timedelta(seconds=self._retention)):
                self._next = now
            session.commit()
        except pymysql.MySQLError as error:
            _log.warning("maintenance of %s failed: %s", config.table, faults.sorted_error(error, where(config)))
        finally:
            session.release()

    def _delete(self, session: Session, cutoff: datetime) -> bool:
        """Delete at most four chunks; tell whether more is left."""
        for _ in range(4):
            with session.cursor() as cursor:
                gone: Any = cursor.execute(
                    f"DELETE FROM {quoted(self._config.table)} WHERE created_at < %s"  # noqa: S608 - checked name
                    f" ORDER BY created_at, id LIMIT {CHUNK}",
                    (f"{cutoff:%Y-%m-%d %H:%M:%S}",),
                )
            session.commit()
            if gone < CHUNK:
                return False
        return True
