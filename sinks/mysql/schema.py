"""The table: its DDL, the checks at start, day partitions and retention."""

from __future__ import annotations

import logging
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pymysql

from shipper.errors import ParkedError
from shipper.units import parse_duration
from sinks import _sql
from sinks.mysql import faults
from sinks.mysql.session import connect, quoted, where

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
_TEXT = {"char", "varchar", "tinytext", "text", "mediumtext", "longtext"}
_log = logging.getLogger(__name__)


class Server(msgspec.Struct, frozen=True):
    """What the server and the table were found to be like. ``marker``: the table has the column ``shipper``."""

    version: str
    max_packet: int
    widths: dict[str, int]
    marker: bool = True

    @property
    def mariadb(self) -> bool:
        """Whether it is MariaDB."""
        return "mariadb" in self.version.lower()


class Column(msgspec.Struct, frozen=True):
    """A column as information_schema tells it. ``width`` is in characters, ``None`` for a type without one."""

    kind: str
    width: int | None
    precision: int | None


def create_statement(config: MysqlConfig) -> str:
    """Give the CREATE TABLE statement."""
    lines = [f"{quoted(name)} {column_type(name)}" for name in _sql.Mapping(config.columns).names]
    lines.append("PRIMARY KEY (`created_at`, `id`)")
    for name, columns in _INDEXES.items():
        if name == "level" or name in config.columns:
            lines.append(f"KEY {quoted(f'by_{name}')} ({', '.join(map(quoted, columns))})")
    text = f"CREATE TABLE IF NOT EXISTS {quoted(config.table)} (\n  " + ",\n  ".join(lines) + "\n)"
    text += " ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin"
    if config.partition == "day":
        text += "\nPARTITION BY RANGE COLUMNS(`created_at`) (PARTITION `pmax` VALUES LESS THAN (MAXVALUE))"
    return text


def create_resources_statement(config: MysqlConfig) -> str:
    """Give the CREATE TABLE statement of the resources table."""
    return (
        f"CREATE TABLE IF NOT EXISTS {quoted(config.table + '_resources')} (\n  `id` VARCHAR(16) NOT NULL,\n"
        "  `attributes` LONGTEXT NOT NULL,\n  PRIMARY KEY (`id`)\n"
        ") ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin"
    )


def column_type(name: str) -> str:
    """Give the type of a column in a table of our making."""
    return _TYPES.get(name, "VARCHAR(255) NULL")


def prepare(config: MysqlConfig, session: Session) -> Server:
    """Create what is missing and may be created, check the rest. Raises ParkedError with what to do."""
    with session.cursor() as cursor:
        cursor.execute("SELECT VERSION(), @@max_allowed_packet")
        version, packet = cursor.fetchone()
    names = _sql.Mapping(config.columns).names
    columns = _columns(config, session)
    resources = _exists(config, session, config.table + "_resources")
    lacking = [name for name in names if name not in columns]
    if config.create_table and (lacking or not resources):
        try:
            _create(config, created=bool(columns), lacking=lacking, resources=resources)
        except ParkedError:
            if lacking != [_sql.MARKER] or not resources:
                raise
        session.commit()
        columns = _columns(config, session)
        lacking = [name for name in names if name not in columns]
        resources = _exists(config, session, config.table + "_resources")
    marker = _sql.MARKER in columns and columns[_sql.MARKER].kind in _TEXT
    _check(config, columns, [name for name in lacking if name != _sql.MARKER], resources=resources)
    if columns and not _keyed(config, session):
        raise ParkedError(
            f"{where(config)}: the table {config.table} has no primary or unique key of id (alone or with created_at),"
            f" so a repeated row would show twice; run ALTER TABLE {quoted(config.table)}"
            " ADD PRIMARY KEY (created_at, id)",
            code="SCHEMA",
        )
    if config.partition == "day":
        _check_partitioned(config, session)
    session.commit()
    widths = {name: column.width for name, column in columns.items() if column.width is not None}
    return Server(version=str(version), max_packet=int(packet), widths=widths, marker=marker)


def add_marker_statement(config: MysqlConfig) -> str:
    """Give the statement that adds the column ``shipper`` to a table that lacks it."""
    return f"ALTER TABLE {quoted(config.table)} ADD COLUMN {quoted(_sql.MARKER)} {column_type(_sql.MARKER)}"


def _create(config: MysqlConfig, *, created: bool, lacking: list[str], resources: bool) -> None:
    """Create with the maintenance account if there is one. Rights for it are only needed when something lacks."""
    session = connect(config, maintenance=True)
    try:
        with session.cursor() as cursor:
            if not created:
                cursor.execute(create_statement(config))
            elif lacking:
                parts = ", ".join(f"ADD COLUMN {quoted(name)} {column_type(name)}" for name in lacking)
                cursor.execute(f"ALTER TABLE {quoted(config.table)} {parts}")
            if not resources:
                cursor.execute(create_resources_statement(config))
        session.commit()
    except pymysql.MySQLError as error:
        if faults.code(error) in {1050, 1060}:  # another daemon was faster; the checks that follow see its table
            return
        failure = faults.sorted_error(error, where(config))
        if isinstance(failure, ParkedError):
            statement = create_statement(config)
            hint = "; or create it yourself and set create_table: false:" if not created else ""
            raise ParkedError(f"{failure}{hint}{chr(10) + statement if hint else ''}", code=failure.code) from error
        raise failure from error
    finally:
        session.release()


def _check(config: MysqlConfig, columns: dict[str, Column], lacking: list[str], *, resources: bool) -> None:
    place = f"{where(config)}: the table {config.database}.{config.table}"
    if not columns:
        raise ParkedError(
            f"{place} does not exist, or {config.user} has no right on it; set create_table: true, or run\n"
            f"{create_statement(config)};\n{create_resources_statement(config)};",
            code="1146",
        )
    if lacking:
        parts = ", ".join(f"ADD COLUMN {quoted(name)} {column_type(name)}" for name in lacking)
        raise ParkedError(
            f"{place} lacks {', '.join(lacking)}; set create_table: true, or run"
            f" ALTER TABLE {quoted(config.table)} {parts}",
            code="1054",
        )
    if not resources:
        raise ParkedError(
            f"{where(config)}: the table {config.table}_resources does not exist, or {config.user} has no right on it;"
            f" set create_table: true, or run\n{create_resources_statement(config)};",
            code="1146",
        )
    wrong = [
        f"MODIFY {quoted(name)} {column_type(name)}"
        for name, fits in (
            ("id", columns["id"].kind in _TEXT and (columns["id"].width or 36) >= 36),
            ("created_at", columns["created_at"].kind == "datetime" and columns["created_at"].precision == 6),
            ("level", columns["level"].kind in _TEXT and (columns["level"].width or 5) >= 5),
            ("message", columns["message"].kind in _TEXT),
            ("details", columns["details"].kind in {"json", "mediumtext", "longtext"}),
        )
        if not fits
    ]
    if wrong:
        raise ParkedError(
            f"{place} has columns that do not hold what they must; run ALTER TABLE {quoted(config.table)}"
            f" {', '.join(wrong)}",
            code="SCHEMA",
        )


def _columns(config: MysqlConfig, session: Session) -> dict[str, Column]:
    with session.cursor() as cursor:
        cursor.execute(
            "SELECT COLUMN_NAME, DATA_TYPE, CHARACTER_MAXIMUM_LENGTH, DATETIME_PRECISION"
            " FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s",
            (config.database, config.table),
        )
        rows = cursor.fetchall()
    result = {}
    for name, kind, width, precision in rows:
        kind_text = str(kind).lower()
        # TEXT types count bytes: a quarter of that is what any text of so many characters surely fits.
        limit = None if width is None or int(width) >= 1 << 24 else int(width)
        if limit is not None and kind_text.endswith("text"):
            limit //= 4
        result[str(name)] = Column(kind_text, limit, None if precision is None else int(precision))
    return result


def _exists(config: MysqlConfig, session: Session, table: str) -> bool:
    with session.cursor() as cursor:
        cursor.execute(
            "SELECT COUNT(*) FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s",
            (config.database, table),
        )
        return bool(cursor.fetchone()[0])


def _keyed(config: MysqlConfig, session: Session) -> bool:
    with session.cursor() as cursor:
        cursor.execute(
            "SELECT INDEX_NAME, COLUMN_NAME FROM information_schema.STATISTICS"
            " WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s AND NON_UNIQUE = 0",
            (config.database, config.table),
        )
        keys: dict[str, set[str]] = {}
        for name, column in cursor.fetchall():
            keys.setdefault(name, set()).add(column)
    return any("id" in columns <= {"id", "created_at"} for columns in keys.values())


def _bounds(config: MysqlConfig, session: Session) -> list[tuple[str, str]]:
    """Give the partitions in order, name and upper bound (``MAXVALUE`` or a quoted time)."""
    with session.cursor() as cursor:
        cursor.execute(
            "SELECT PARTITION_NAME, PARTITION_DESCRIPTION FROM information_schema.PARTITIONS WHERE TABLE_SCHEMA = %s"
            " AND TABLE_NAME = %s AND PARTITION_NAME IS NOT NULL ORDER BY PARTITION_ORDINAL_POSITION",
            (config.database, config.table),
        )
        return [(str(name), str(bound)) for name, bound in cursor.fetchall()]


def _check_partitioned(config: MysqlConfig, session: Session) -> None:
    bounds = _bounds(config, session)
    if bounds and bounds[-1] == ("pmax", "MAXVALUE"):
        return
    if not bounds:
        change = "PARTITION BY RANGE COLUMNS(created_at) (PARTITION pmax VALUES LESS THAN (MAXVALUE))"
    elif bounds[-1][1] == "MAXVALUE":
        change = f"REORGANIZE PARTITION {quoted(bounds[-1][0])} INTO (PARTITION pmax VALUES LESS THAN (MAXVALUE))"
    else:
        change = _ADD_LAST
    raise ParkedError(
        f"{where(config)}: partition: day, but the table {config.table} has no partition pmax; set partition: none"
        f" or run ALTER TABLE {quoted(config.table)} {change}",
        code="SCHEMA",
    )


def add_last_partition(config: MysqlConfig) -> None:
    """Make the partition that takes every later time. Raises ParkedError with the statement where that is not ours.

    With ``partition: none`` the days are somebody else's, whose next ADD PARTITION would fail beside ours.
    """
    statement = f"ALTER TABLE {quoted(config.table)} {_ADD_LAST}"
    advice = f"{where(config)}: the table {config.table} has no partition for the time of a record; run {statement}"
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
