"""Write records to a SQLite database file: the embedded default, with the same columns as the MySQL sink.

Returning from ``write`` means durable: WAL with ``synchronous = FULL``, so each batch (up to 5,000 rows) costs one
fsync and survives a power loss. NORMAL would save that one fsync and could lose the last batches after the ledger
says they are safe; measured, the difference is within the noise. The primary key ``(created_at, id)`` is the table
itself (WITHOUT ROWID, 16 KiB pages): rows arrive in its order, a replayed row finds itself there, and a rowid
table with a unique index was a tenth slower and a fifth larger. A rowid that is the time itself was a tenth cheaper,
but dearer with the index on ``created_at`` that people's queries then need. There are no secondary indexes: each
would add half again to the cost of a write, and a table of this size is scanned from its end.

Readers may read at any time. ``retention`` and ``max_size`` delete the oldest rows in small transactions.

The library is APSW, which brings an SQLite of its own (docs/decisions/0011). Two SQLites in one process must never have
the same file open: closing it in the one drops the other's locks. So whatever opens this file beside the sink uses
APSW, too, and the daemon's own state, which the standard library keeps, is another file.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import apsw
import msgspec
from msgspec import Meta

from shipper.errors import ParkedError, PermanentError, RetryableError, SinkError
from shipper.reader import Reader
from shipper.sink import Change, Finding, Limits, Sink, SinkConfig
from shipper.units import parse_duration, parse_size
from sinks import _sql, _sql_read, _sqlite_table
from sinks._sql_fit import FittedMapping

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from shipper.reader import Query
    from shipper.record import Batch, Record

#: Rows that one step of retention deletes, which keeps each lock short, and one step of max_size, which keeps what
#: is deleted beyond need small. Steps per write of the latter: it must outrun what a write adds.
_CHUNK, _SLICE, _STEPS = 10_000, 1_000, 20
_HOUR = 3600.0
_log = logging.getLogger(__name__)
#: Bytes of free disk below which `examine` warns.
_LOW_SPACE = 256 << 20
_PARKED = {"CANTOPEN", "READONLY", "PERM", "AUTH", "CORRUPT", "NOTADB", "ERROR", "MISMATCH", "FORMAT"}
_ADVICE = {
    "CANTOPEN": "check that the directory exists and that this user may write there",
    "READONLY": "let this user write to the file and its directory",
    "PERM": "let this user write to the file and its directory",
    "CORRUPT": "move the file aside (keep it: `sqlite3 FILE .recover` may save rows); a new one is made",
    "NOTADB": "choose another path or move the file aside; a new one is made",
    "FULL": "free disk space, or set max_size or retention",
    "IOERR": "check the disk",
    "BUSY": "another program holds the file's lock; will try again",
    "LOCKED": "another program holds the file's lock; will try again",
    "ERROR": "check that the table has the columns that the config names",
}


class SqliteConfig(SinkConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Keep records in a SQLite database file."""

    path: Annotated[str, Meta(description="The database file; made with its directory when missing.", min_length=1)]
    table: Annotated[str, Meta(description="The table's name; made when missing.")] = "activity_logs"
    columns: Annotated[
        dict[str, str], Meta(description="Text columns that attributes of their own go to: column to attribute.")
    ] = msgspec.field(default_factory=_sql.COLUMNS.copy)
    retention: Annotated[str, Meta(description="Rows older than this are deleted, such as 30d; empty keeps them.")] = ""
    max_size: Annotated[
        str | int, Meta(description="Size of the file above which the oldest rows are deleted; 0 is no limit.")
    ] = 0
    busy_timeout: Annotated[str, Meta(description="How long to wait for another program's lock.")] = "5s"

    def __post_init__(self) -> None:
        """Check what types cannot. Raises ValueError."""
        _sql.check_table(self.table)
        _sql.check_columns(self.columns)
        parse_size(self.max_size)
        parse_duration(self.busy_timeout)
        if self.retention and not parse_duration(self.retention):
            raise ValueError("retention: leave it empty to keep rows forever; 0 would delete all")


class SqliteSink(Sink):
    """Inserts batches, one transaction each. ``now`` gives seconds since 1970, for retention."""

    config: ClassVar[type[SinkConfig]] = SqliteConfig
    limits = Limits(records=5_000, bytes=4 << 20)

    def __init__(self, config: SqliteConfig, *, now: Callable[[], float] = time.time) -> None:
        self._config = config
        self._now = now
        self._mapping = _sql.Mapping(config.columns)
        self._max_size = parse_size(config.max_size)
        self._retention = parse_duration(config.retention) if config.retention else 0.0
        self._db: apsw.Connection | None = None
        self._statements: dict[tuple[str | None, ...], str] = {}
        self._known: set[str] = set()
        self._swept = float("-inf")
        self._page_size = 0
        #: What the table should have; the mapping is of what it has.
        self._names = self._mapping.names
        #: The columns of the key by which a repeated row is told; any other conflict refuses the row.
        self._key = "created_at, id"
        self._logged: set[str] = set()

    def open(self) -> None:
        """Open the file and make the table when missing. Raises ParkedError when the file cannot be used."""
        self._release()
        path = self._config.path
        try:
            if path != ":memory:":
                _make_file(Path(path))
            self._db = _connect(path, parse_duration(self._config.busy_timeout))
            self._prepare(self._db)
        except (apsw.Error, OSError) as error:
            self._release()
            raise _error(error, path) from error
        except SinkError:
            self._release()
            raise

    def _prepare(self, db: apsw.Connection) -> None:
        table = self._config.table
        found = self._judged(db)
        self._refuse_lacks(found)
        if (found is None or found.ours) and not _sqlite_table.others(db, table):  # the file, and so its form, is ours
            db.execute("PRAGMA page_size = 16384")
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")
            db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA wal_autocheckpoint = 500")  # 8 MiB: a larger log is slower, its pages are no longer at hand
        db.execute("PRAGMA journal_size_limit = 16777216")
        db.execute("PRAGMA cache_size = -8000")
        for change in self._changes(found):
            if change.ours:
                db.execute(change.text)
        found = self._judged(db)
        assert found is not None
        self._mapping = self._make_mapping(found)
        self._key = ", ".join(found.key)
        self._statements.clear()
        self._log_notes(found)
        self._page_size = int(db.execute("PRAGMA page_size").get)

    @property
    def _place(self) -> str:
        return f"sqlite {self._config.path}: the table {self._config.table}"

    def _judged(self, db: apsw.Connection) -> _sqlite_table.Table | None:
        """Look at the table. Raises ParkedError when it would lose, change or double records."""
        found = _sqlite_table.look(db, self._config.table)
        if found is not None and (faults := found.faults(self._names)):
            raise ParkedError(
                f"{self._place} cannot take records as they are: {'; '.join(faults)}. Nothing was changed; set table: to a"
                " name that is free, and shipper makes a table of its own",
                code="SCHEMA",
            )
        return found

    def _refuse_lacks(self, found: _sqlite_table.Table | None) -> None:
        if found is None or found.ours:
            return
        if lacks := [name for name in found.lacks(self._names) if name != _sql.MARKER]:
            raise ParkedError(
                f"{self._place} was not made by shipper, which therefore adds nothing to it, and lacks"
                f" {', '.join(lacks)}. To have them added run shipper prepare: it shows the SQL and asks. Or set table: to"
                " a name that is free, and shipper makes a table of its own",
                code="SCHEMA",
            )

    def _changes(self, found: _sqlite_table.Table | None) -> list[Change]:
        table = self._config.table
        wanted: list[Change] = []
        if found is None:
            columns = ", ".join(
                f'"{name}" TEXT NOT NULL' if name in {"id", "created_at"} else f'"{name}" TEXT' for name in self._names
            )
            text = f'CREATE TABLE IF NOT EXISTS "{table}" ({columns}, PRIMARY KEY (created_at, id)) WITHOUT ROWID'
            wanted.append(Change(text))
        else:
            wanted += [
                Change(f'ALTER TABLE "{table}" ADD COLUMN "{name}" TEXT', ours=found.ours)
                for name in found.lacks(self._names)
            ]
        if found is None or not found.resources:
            text = f'CREATE TABLE IF NOT EXISTS "{table}_resources" (id TEXT PRIMARY KEY, attributes TEXT NOT NULL)'
            wanted.append(Change(f"{text} WITHOUT ROWID"))
        return wanted

    def _make_mapping(self, found: _sqlite_table.Table) -> _sql.Mapping:
        marker = _sql.MARKER in found.columns
        if fits := found.fits(self._names):
            return FittedMapping(self._config.columns, fits=fits, marker=marker)
        return _sql.Mapping(self._config.columns, marker=marker)

    def _log_notes(self, found: _sqlite_table.Table) -> None:
        """Log once what the table does not hold."""
        for note in self._notes(found):
            if note not in self._logged:
                _log.warning("%s: %s", self._place, note)
                self._logged.add(note)

    def _notes(self, found: _sqlite_table.Table) -> list[str]:
        notes = [
            f"{name} is {found.columns[name].declared}: a value that it does not hold stands in details"
            for name, fit in found.fits(self._names).items()
            if fit.closed or fit.bounds is not None
        ]
        notes += [
            f"a unique key ({', '.join(key)}) refuses rows: they go to the dead letters"
            for key in found.keys
            if key != found.key and set(key) <= {*self._names, "an expression"}
        ]
        if _sql.MARKER not in found.columns:
            notes.append(
                "it has no column shipper: nanoseconds, the types of integers in columns and what a container has beyond"
                " its columns are not kept; to keep them run shipper prepare, which shows the SQL and asks"
            )
        return notes

    def changes(self) -> list[Change]:
        """Give the statements that make what the file lacks. Raises SinkError.

        A file that is not there is the daemon's to make, so that it belongs to the daemon's user.
        """
        path = self._config.path
        if path == ":memory:" or not Path(path).exists():
            return []
        db = self._look_only()
        try:
            return self._changes(self._judged(db))
        except apsw.Error as error:
            raise _error(error, path) from error
        finally:
            _close(db)

    def _look_only(self) -> apsw.Connection:
        """Connect without making or changing anything. Raises SinkError."""
        try:
            db = _connect(self._config.path, parse_duration(self._config.busy_timeout), create=False)
            db.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        except apsw.Error as error:
            raise _error(error, self._config.path) from error
        return db

    def prepare(self) -> None:
        """Run these statements. Raises SinkError."""
        wanted = [change.text for change in self.changes() if not change.ours]
        if wanted:
            db = self._look_only()
            try:
                for text in wanted:
                    db.execute(text)
            except apsw.Error as error:
                raise _error(error, self._config.path) from error
            finally:
                _close(db)
        self.open()

    def write(self, batch: Batch) -> None:
        """Insert the batch in one transaction; rows that are there already stay as they are."""
        db = self._db
        if db is None:
            raise RetryableError(f"sqlite {self._config.path}: not open")
        try:
            rows = self._mapping.rows(batch, self._mapping.order(batch))
        except ValueError as error:  # a time no column holds
            raise PermanentError(f"sqlite: {error}") from error
        try:
            try:
                self._insert(db, rows)
            except UnicodeEncodeError:
                _rollback(db)
                self._insert(db, rows.clean())
            self._maintain(db)
        except (apsw.TooBigError, OverflowError) as error:
            raise PermanentError(f"sqlite: a value is larger than SQLite takes ({error})", code="TOOBIG") from error
        except apsw.Error as error:
            raise _error(error, self._config.path) from error
        finally:
            _rollback(db)  # whatever it was, a TypeError, too: an open transaction would keep the lock

    def _insert(self, db: apsw.Connection, rows: _sql.Rows) -> None:
        table = zip(*rows.texts, rows.created, rows.markers or (), strict=True)
        resource_columns = set(rows.resource_columns)
        db.execute("BEGIN IMMEDIATE")
        new = {shared.key: shared.json for shared in resource_columns if shared.key and shared.key not in self._known}
        if new:
            db.executemany(
                f'INSERT INTO "{self._config.table}_resources" VALUES (?, ?) ON CONFLICT DO NOTHING',  # noqa: S608 - checked name
                new.items(),
            )
        if len(resource_columns) == 1:
            db.executemany(self._statement(rows.resource_columns[0].columns), table)
        else:
            by_resource: dict[_sql.ResourceColumns, list[tuple[str | None, ...]]] = {
                shared: [] for shared in resource_columns
            }
            for shared, row in zip(rows.resource_columns, table, strict=True):
                by_resource[shared].append(row)
            for shared, some in by_resource.items():
                db.executemany(self._statement(shared.columns), some)
        db.execute("COMMIT")
        self._known |= new.keys()

    def _statement(self, shared: tuple[str | None, ...]) -> str:
        """The resource's columns stand in the text: five values a row need not be bound, a fifth of the cost."""
        statement = self._statements.get(shared)
        if statement is None:
            if len(self._statements) >= 1000:
                self._statements.clear()
            names = ", ".join(f'"{name}"' for name in self._mapping.sent)
            marks = ", ".join("?" * (len(self._mapping.names) - len(shared)))
            texts = ", ".join(map(_literal, shared))
            statement = f'INSERT INTO "{self._config.table}" ({names}) VALUES ({marks}, {texts}) ON CONFLICT ({self._key}) DO NOTHING'  # noqa: S608 - names are checked, texts are escaped
            self._statements[shared] = statement
        return statement

    def _maintain(self, db: apsw.Connection) -> None:
        """Delete what retention and max_size say, a bounded amount per call."""
        now = self._now()
        if self._retention and now - self._swept >= _HOUR:
            cutoff = _sql.created_text(int((now - self._retention) * 1e9))
            if self._delete(db, _CHUNK, before=cutoff) < _CHUNK:
                self._swept = now
        if self._max_size:
            for _ in range(_STEPS):
                if self._size(db) <= self._max_size or not self._delete(db, _SLICE):
                    break

    def _size(self, db: apsw.Connection) -> int:
        pages = int(db.execute("PRAGMA page_count").get)
        return (pages - int(db.execute("PRAGMA freelist_count").get)) * self._page_size

    def _delete(self, db: apsw.Connection, most: int, *, before: str | None = None) -> int:
        table = self._config.table
        where = "" if before is None else "WHERE created_at < ?"
        values = () if before is None else (before,)
        db.execute("BEGIN IMMEDIATE")
        db.execute(
            f'DELETE FROM "{table}" WHERE (created_at, id) IN '  # noqa: S608 - the table's name is checked
            f'(SELECT created_at, id FROM "{table}" {where} ORDER BY created_at, id LIMIT {most})',
            values,
        )
        gone = db.changes()
        db.execute("COMMIT")
        db.execute("PRAGMA incremental_vacuum").fetchall()
        return gone

    def healthcheck(self) -> None:
        """Take and give back the write lock. Raises SinkError."""
        if self._db is None:
            self.open()
        assert self._db is not None
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("ROLLBACK")
        except apsw.Error as error:
            raise _error(error, self._config.path) from error

    def examine(self) -> Iterator[Finding]:
        """Look at the directory, the disk, the lock and the journal mode. A database that is missing is not made."""
        path = Path(self._config.path)
        place = next(one for one in (path.parent, *path.parent.parents) if one.exists())
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            yield Finding("directory", "fail", f"{place} cannot be written to", _ADVICE["CANTOPEN"])
            return
        yield Finding("directory", "ok", f"{place} can be written to")
        free = shutil.disk_usage(place).free
        low = free < _LOW_SPACE
        yield Finding("space", "warn" if low else "ok", f"{free >> 20} MiB are free", _ADVICE["FULL"] if low else "")
        if not path.exists():
            yield Finding("lock", "ok", "there is no database yet; it is made at the first start")
            return
        try:
            db = self._look_only()
        except SinkError as error:
            yield Finding("lock", "fail", str(error), _ADVICE.get(error.code, "see the message"))
            return
        try:
            yield from self._looked(db)
        except SinkError as error:
            yield Finding("table", "fail", str(error), "do what the message says")
        except apsw.Error as error:
            failure = _error(error, str(path))
            yield Finding("lock", "fail", str(failure), _ADVICE.get(failure.code, "see the message"))
        finally:
            _close(db)

    def _looked(self, db: apsw.Connection) -> Iterator[Finding]:
        db.execute("BEGIN IMMEDIATE")
        db.execute("ROLLBACK")
        found = self._judged(db)
        changes = self._changes(found)
        lacks = [] if found is None else [name for name in found.lacks(self._names) if name != _sql.MARKER]
        yield Finding("lock", "ok", "the write lock can be taken")
        if lacks and not all(change.ours for change in changes):
            text = f"{self._place} was not made by shipper and lacks {', '.join(lacks)}"
            fix = "run shipper prepare, which shows the SQL and asks; or set table: to a name that is free"
            yield Finding("table", "fail", text, fix)
        elif found is None or lacks:
            yield Finding(
                "table", "ok", f"{len(changes)} statements are left to the first start, or to shipper prepare"
            )
        elif notes := self._notes(found):
            fix = "nothing, if you can live with it; or set table: to a name that is free, and shipper makes its own"
            yield Finding("table", "warn", "; ".join(notes), fix)
        else:
            yield Finding("table", "ok", "the table has its columns and its key")
        mode = str(db.execute("PRAGMA journal_mode").get)
        wal = mode == "wal" or found is None or _sqlite_table.others(db, self._config.table)
        fix = "" if wal else "put the file on a local disk: WAL needs shared memory"
        yield Finding("journal", "ok" if wal else "warn", f"the journal mode is {mode}", fix)

    def close(self) -> None:
        """Close the file."""
        self._release()

    def _release(self) -> None:
        if self._db is not None:
            _close(self._db)
        self._db = None
        self._known.clear()


class SqliteReader(Reader):
    """Reads a database page by page, so that a slow reader never holds the writer's log."""

    def __init__(self, config: SqliteConfig) -> None:
        self._config = config
        self._rows = _sql_read.RowReader(config.columns)
        self._db: apsw.Connection | None = None

    def read(self, query: Query) -> Iterator[Record]:
        """Give matching records. Raises ParkedError when there is no such file or table."""
        try:
            yield from _sql_read.answer(query, self._records(query))
        except (apsw.Error, UnicodeDecodeError) as error:  # another program's text may be no UTF-8
            raise _error(error, self._config.path) from error

    def _records(self, query: Query) -> Iterator[Record]:
        db = self._open()
        names = ", ".join(f'"{name}"' for name in (*_sql.FIRST, *self._config.columns, *_sql.LAST))
        present = {row[1] for row in db.execute(f'PRAGMA table_info("{self._config.table}")')}
        names += f', "{_sql.MARKER}"' if _sql.MARKER in present else ", NULL"
        table = self._config.table

        def select(part: _sql_read.Page, order: str, size: int) -> list[tuple[Any, ...]]:
            return db.execute(
                f'SELECT {names} FROM "{table}" WHERE {part.where} '  # noqa: S608 - names are checked
                f"ORDER BY created_at {order}, id {order} LIMIT {size}",
                part.values,
            ).fetchall()

        def lookup(keys: Sequence[str], marks: str) -> Iterable[tuple[str, str]]:
            return db.execute(f'SELECT id, attributes FROM "{table}_resources" WHERE id IN ({marks})', keys)  # noqa: S608

        found = _sqlite_table.look(db, table)
        unsure = frozenset() if found is None else frozenset(found.fits((*_sql.FIRST, *_sql.LAST)))
        return self._rows.records(query, contains="instr(message, ?) > 0", select=select, lookup=lookup, unsure=unsure)

    def _open(self) -> apsw.Connection:
        if self._db is None:
            path = self._config.path
            if path != ":memory:" and not Path(path).is_file():
                raise ParkedError(f"sqlite {path}: no such file; nothing was written there yet", code="CANTOPEN")
            self._db = _connect(path, parse_duration(self._config.busy_timeout), create=path == ":memory:")
            self._db.execute("PRAGMA query_only = ON")
        return self._db

    def close(self) -> None:
        """Close the file."""
        if self._db is not None:
            _close(self._db)
            self._db = None


def _make_file(path: Path) -> None:
    """Make the file and its directory for this user alone, whatever the umask; SQLite gives the log's files its mode.

    One that is there keeps its mode: who else may read it is for its owner to say.
    """
    if not path.parent.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.chmod(0o700)
    with suppress(FileExistsError):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(file, 0o600)
        finally:
            os.close(file)


def _connect(path: str, timeout: float, *, create: bool = True) -> apsw.Connection:
    # Any thread may use it, one at a time: the delivery's contract. By the connection's mutex APSW refuses a second one
    # at the same time (ThreadingViolationError); without it an insert costs a twentieth less, and the process crashes.
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_FULLMUTEX
    db = apsw.Connection(path, flags=flags | apsw.SQLITE_OPEN_CREATE if create else flags)
    db.set_busy_timeout(int(timeout * 1000))
    return db


def _rollback(db: apsw.Connection) -> None:
    with suppress(apsw.Error):
        if db.in_transaction:
            db.execute("ROLLBACK")


def _close(db: apsw.Connection) -> None:
    # Without force, a cursor with rows left would keep the file open.
    with suppress(apsw.Error):
        db.close(force=True)


def _literal(text: str | None) -> str:
    if text is None:
        return "NULL"
    if "\0" in text:  # an SQL text ends at NUL
        return f"CAST(X'{text.encode().hex()}' AS TEXT)"
    return "'" + text.replace("'", "''") + "'"


def _error(error: Exception, path: str) -> SinkError:
    """Sort an error by SQLite's own result code."""
    if isinstance(error, SinkError):
        return error
    if isinstance(error, OSError):
        return ParkedError(f"sqlite {path}: {error.strerror}; {_ADVICE['CANTOPEN']}", code="CANTOPEN")
    # Misuse, such as a wrong number of values, is APSW's own finding and has no code of SQLite's.
    code = getattr(error, "result", apsw.SQLITE_ERROR)
    name = str(apsw.mapping_result_codes.get(code, "SQLITE_ERROR")).removeprefix("SQLITE_")
    advice = _ADVICE.get(name, "will try again")
    text = f"sqlite {path}: {error}; {advice}"
    if name in {"CONSTRAINT", "TOOBIG"}:
        return PermanentError(text, code=name)
    return (ParkedError if name in _PARKED else RetryableError)(text, code=name)


SINK = SqliteSink
READER = SqliteReader
