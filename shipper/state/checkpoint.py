"""The state database: where every file stands for every sink, in ``<state_dir>/state.db``.

SQLite in WAL mode, one writer. Tables:

* ``files``: one row per file generation that a source knows (see `shipper.source.FileState`).
* ``offsets``: per file and sink the contiguous offset up to which everything is safe, and its marker.
* ``sinks``: per sink its own position (`Sink.position`) and the cursor into its spill.
* ``anchors``: times given to undated lines when they were first read. An empty range (``start`` = ``end``, time 0)
  says that a record was cut there by time; see `shipper.source.Positions.anchor`.
* ``losses``: byte ranges that could never be read, with the cause.
* ``given_up``: how many records a sink will never be given, by reason, since the state was begun.

All of a save is one transaction, so a sink's position, its spill cursor and the offsets agree. A process that is killed
loses nothing of what was saved. Most saves are not synced: a power failure may lose the last of them, which means reading
and delivering those lines again, under the same ids. What ids rest on must not be lost: a *durable* save, and with it all
before it, is on the disk when it returns.

A database that is damaged, or holds what we never write, is set aside as ``state.db.damaged-<time>`` and a new one is
begun. One that is busy, read-only or on a failing disk is not damaged: that is a StateError.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from shipper.errors import StateError
from shipper.source import FileState

if TYPE_CHECKING:
    from collections.abc import Iterable

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
  key INTEGER PRIMARY KEY, source TEXT NOT NULL, path TEXT NOT NULL, device INTEGER NOT NULL, inode INTEGER NOT NULL,
  uid TEXT NOT NULL, head INTEGER NOT NULL, head_size INTEGER NOT NULL, generation INTEGER NOT NULL,
  size INTEGER NOT NULL, tag TEXT NOT NULL, done INTEGER NOT NULL, seen INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS offsets (
  file INTEGER NOT NULL, sink TEXT NOT NULL, offset INTEGER NOT NULL, marker INTEGER NOT NULL,
  PRIMARY KEY (file, sink)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sinks (
  sink TEXT PRIMARY KEY, position TEXT, segment INTEGER NOT NULL DEFAULT 0, offset INTEGER NOT NULL DEFAULT 0,
  record INTEGER NOT NULL DEFAULT -1) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS anchors (
  file INTEGER NOT NULL, start INTEGER NOT NULL, end INTEGER NOT NULL, time_ns INTEGER NOT NULL,
  PRIMARY KEY (file, start, end)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS losses (
  time_ns INTEGER NOT NULL, path TEXT NOT NULL, start INTEGER NOT NULL, end INTEGER NOT NULL, cause TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS given_up (
  sink TEXT NOT NULL, reason TEXT NOT NULL, records INTEGER NOT NULL, first_ns INTEGER NOT NULL,
  last_ns INTEGER NOT NULL, PRIMARY KEY (sink, reason)) WITHOUT ROWID;
"""
_VERSION = 2
#: Columns that version 2 added.
_ADDED = (("files", "seen", "INTEGER NOT NULL DEFAULT 0"), ("sinks", "record", "INTEGER NOT NULL DEFAULT -1"))
#: What a column may hold: SQLite itself stores any type anywhere, and what a sick disk or hand left there ends no start.
_TYPES = {
    "files": "key device inode head head_size generation size done seen: integer; source path uid tag: text",
    "offsets": "file offset marker: integer; sink: text",
    "sinks": "segment offset record: integer; sink: text",
    "anchors": "file start end time_ns: integer",
    "losses": "time_ns start end: integer; path cause: text",
    "given_up": "records first_ns last_ns: integer; sink reason: text",
}
#: SQLite's codes for what is wrong with the content of a database: ERROR (no such column), CORRUPT, MISMATCH, NOTADB.
_DAMAGED = frozenset({1, 11, 20, 26})
#: Stands for a fault that we found ourselves.
_CONTENT = 11


class Cursor(msgspec.Struct, frozen=True, order=True):
    """A place in the spill: just before the frame at ``offset`` of segment ``segment``.

    ``record`` is how many records were appended to the spill before it; -1 when that is not known.
    """

    segment: int
    offset: int
    record: int = 0

    @property
    def place(self) -> tuple[int, int]:
        """Segment and offset."""
        return self.segment, self.offset


class Offset(msgspec.Struct, frozen=True):
    """Where one file stands for one sink."""

    file: int
    sink: str
    offset: int
    marker: int


class SinkState(msgspec.Struct, frozen=True):
    """A sink's own position and its spill cursor; see `Cursor`."""

    sink: str
    position: str | None = None
    segment: int = 0
    offset: int = 0
    record: int = -1


class Anchor(msgspec.Struct, frozen=True):
    """The time that undated lines in ``[start, end)`` of a file were first read, or, if empty, a record's cut end."""

    file: int
    start: int
    end: int
    time_ns: int


class Loss(msgspec.Struct, frozen=True):
    """Bytes of a file that nobody will ever read."""

    time_ns: int
    path: str
    start: int
    end: int
    cause: str


class GivenUp(msgspec.Struct, frozen=True):
    """Records that a sink will never be given, and when that was first and last said."""

    sink: str
    reason: str
    records: int
    first_ns: int
    last_ns: int


class Changes(msgspec.Struct):
    """What one save writes. ``seen`` says when a file was first seen, by its key; ``given_up`` adds to what is there.

    A ``durable`` save survives a power failure, and so does all that was saved before it.
    """

    files: list[FileState] = []
    seen: dict[int, int] = {}
    forgotten: list[int] = []
    offsets: list[Offset] = []
    sinks: list[SinkState] = []
    anchors: list[Anchor] = []
    losses: list[Loss] = []
    given_up: list[GivenUp] = []
    durable: bool = False


class Checkpoint:
    """The open state directory: an exclusive lock and the database. Methods are called under the ledger's lock."""

    def __init__(self, state_dir: Path) -> None:
        """Open or begin the state.

        Raises StateError when another daemon holds the directory or it cannot be written.
        """
        self.damaged: Path | None = None
        #: Whether the database was gone although spilled lines or dead letters show that there was one.
        self.missing = False
        try:
            state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateError(
                f"cannot use the state directory {state_dir}: {error.strerror}. Give user id {os.geteuid()} the right to"
                " write there, or set state_dir to another directory."
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise StateError(
                f"the state directory {state_dir} is in use by another shipper. Stop it, or give each its own state_dir."
            ) from None
        self.path = state_dir / "state.db"
        try:
            self._db = self._open()
        except OSError as error:
            os.close(self._lock)
            raise StateError(f"cannot open {self.path}: {error.strerror or error}") from error
        except sqlite3.Error as error:
            os.close(self._lock)
            raise StateError(f"cannot open {self.path}: {error}") from error
        except BaseException:
            os.close(self._lock)
            raise

    def _open(self) -> sqlite3.Connection:
        if not self.path.exists():
            self.missing = _left_behind(self.path.parent)
        elif not self.path.stat().st_size:
            # We never leave an empty one: SQLite would take it for new, and delete the log beside it.
            self.damaged = self._set_aside()
        try:
            return self._connect()
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", _CONTENT) & 0xFF not in _DAMAGED:
                raise
            self.damaged = self._set_aside()
            return self._connect()

    def _connect(self) -> sqlite3.Connection:
        # SQLite gives the log beside it the mode of the database.
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with contextlib.suppress(OSError):  # somebody else's, which we may write
            os.fchmod(file, 0o600)
        os.close(file)
        db = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None, timeout=5)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            self._prepare(db)
            _check(db)
        except BaseException:
            db.close()
            raise
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > _VERSION:
            raise StateError(
                f"{self.path} was written by a newer shipper (form {version}, this one knows {_VERSION})."
                " Install that one again, or set state_dir to another directory."
            )
        if version == _VERSION:
            return
        db.executescript(_SCHEMA)
        for table, column, form in _ADDED:
            if column not in {row[1] for row in db.execute(f"PRAGMA table_info({table})")}:
                db.execute(f"ALTER TABLE {table} ADD COLUMN {column} {form}")
        db.execute(f"PRAGMA user_version = {_VERSION}")
        # The names of what was made are on the disk before anything rests on them.
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _set_aside(self) -> Path:
        target = self.path.with_name(f"state.db.damaged-{time.time_ns()}")
        self.path.rename(target)
        for suffix in ("-wal", "-shm"):
            # Beside its database: sqlite3's .recover reads them together.
            beside = self.path.with_name("state.db" + suffix)
            if beside.exists():
                beside.rename(target.with_name(target.name + suffix))
        return target

    def files(self) -> list[FileState]:
        """Give all known files, offsets not filled in."""
        rows = self._db.execute(
            "SELECT key, source, path, device, inode, uid, head, head_size, generation, size, tag, done FROM files"
        )
        return [
            FileState(
                key=key, source=source, path=path, device=device, inode=_unsigned(inode), uid=uid,
                head=_unsigned(head), head_size=head_size, generation=generation, size=size, tag=tag, done=bool(done),
            )
            for key, source, path, device, inode, uid, head, head_size, generation, size, tag, done in rows
        ]  # fmt: skip

    def offsets(self) -> list[Offset]:
        """Give all offsets, those of sinks that are no longer active included."""
        rows = self._db.execute("SELECT file, sink, offset, marker FROM offsets")
        return [Offset(file, sink, offset, _unsigned(marker)) for file, sink, offset, marker in rows]

    def sinks(self) -> dict[str, SinkState]:
        """Give what is known of each sink."""
        rows = self._db.execute("SELECT sink, position, segment, offset, record FROM sinks")
        return {row[0]: SinkState(*row) for row in rows}

    def anchors(self) -> list[Anchor]:
        """Give all anchors."""
        return [Anchor(*row) for row in self._db.execute("SELECT file, start, end, time_ns FROM anchors")]

    def seen(self) -> dict[int, int]:
        """Give when each file was first seen, by its key, in nanoseconds since 1970; 0 where that is not known."""
        return dict(self._db.execute("SELECT key, seen FROM files"))

    def given_up(self) -> list[GivenUp]:
        """Give what sinks will never be given."""
        rows = self._db.execute("SELECT sink, reason, records, first_ns, last_ns FROM given_up ORDER BY sink, reason")
        return [GivenUp(*row) for row in rows]

    def losses(self) -> list[Loss]:
        """Give every loss ever recorded, oldest first."""
        return [Loss(*row) for row in self._db.execute("SELECT time_ns, path, start, end, cause FROM losses")]

    def drop_sinks(self, keep: Iterable[str]) -> None:
        """Forget the offsets of sinks that no record goes to any more."""
        names = list(keep)
        marks = ",".join("?" * len(names))
        self._db.execute(f"DELETE FROM offsets WHERE sink NOT IN ({marks})", names)  # noqa: S608 - placeholders only

    def save(self, changes: Changes) -> None:
        """Write all changes in one transaction. Raises sqlite3.Error; then nothing was written."""
        if changes.durable:
            self._db.execute("PRAGMA synchronous = FULL")
        try:
            self._save(changes)
        finally:
            if changes.durable:
                self._db.execute("PRAGMA synchronous = NORMAL")

    def _save(self, changes: Changes) -> None:
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        try:
            db.executemany(
                "INSERT OR REPLACE INTO files (key, source, path, device, inode, uid, head, head_size, generation, size, tag,"
                " done, seen) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",
                [
                    (
                        f.key, f.source, f.path, f.device, _signed(f.inode), f.uid, _signed(f.head), f.head_size,
                        f.generation, f.size, f.tag, f.done, changes.seen.get(f.key, 0),
                    )
                    for f in changes.files
                ],
            )  # fmt: skip
            db.executemany(
                "INSERT OR REPLACE INTO offsets VALUES (?,?,?,?)",
                [(o.file, o.sink, o.offset, _signed(o.marker)) for o in changes.offsets],
            )
            db.executemany(
                "INSERT OR REPLACE INTO sinks (sink, position, segment, offset, record) VALUES (?,?,?,?,?)",
                [(s.sink, s.position, s.segment, s.offset, s.record) for s in changes.sinks],
            )
            db.executemany(
                "INSERT OR REPLACE INTO anchors VALUES (?,?,?,?)",
                [(a.file, a.start, a.end, a.time_ns) for a in changes.anchors],
            )
            db.executemany(
                "INSERT INTO losses VALUES (?,?,?,?,?)",
                [(x.time_ns, x.path, x.start, x.end, x.cause) for x in changes.losses],
            )
            db.executemany(
                "INSERT INTO given_up VALUES (?,?,?,?,?) ON CONFLICT DO UPDATE SET records = records + excluded.records,"
                " last_ns = excluded.last_ns",
                [(g.sink, g.reason, g.records, g.first_ns, g.last_ns) for g in changes.given_up],
            )
            for key in changes.forgotten:
                for table, column in (("files", "key"), ("offsets", "file"), ("anchors", "file")):
                    db.execute(f"DELETE FROM {table} WHERE {column} = ?", (key,))  # noqa: S608 - names from here
            for offset in changes.offsets:
                # An anchor below the lowest offset can never be asked for again. A cut right at it still can.
                db.execute(
                    "DELETE FROM anchors WHERE file = ?1 AND start < (SELECT min(offset) FROM offsets WHERE file = ?1)"
                    " AND end <= (SELECT min(offset) FROM offsets WHERE file = ?1)",
                    (offset.file,),
                )
            db.execute("COMMIT")
        except sqlite3.Error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Close the database and give the lock back."""
        self._db.close()
        os.close(self._lock)


def _left_behind(state_dir: Path) -> bool:
    """Tell whether a state directory holds what only a daemon with a database leaves."""
    return (
        (state_dir / "state.db-wal").exists()
        or any(state_dir.glob("spill/*/*.seg"))
        or any(state_dir.glob("dead-letter/*.jsonl"))
        or any(state_dir.glob("dead-letter/*/*.zst"))
    )


def _check(db: sqlite3.Connection) -> None:
    """Raise sqlite3.DatabaseError where pages are damaged or a column holds what we never write."""
    fault = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if fault != "ok":
        raise sqlite3.DatabaseError(f"malformed: {fault}")
    for table, columns in _TYPES.items():
        for group in columns.split("; "):
            names, _, kind = group.partition(": ")
            wrong = " OR ".join(f"typeof({name}) <> '{kind}'" for name in names.split())
            found = db.execute(f"SELECT 1 FROM {table} WHERE {wrong} LIMIT 1").fetchone()  # noqa: S608 - names from here
            if found:
                raise sqlite3.DatabaseError(f"malformed: a row of {table} has a value of a wrong type")
    if db.execute("SELECT 1 FROM offsets WHERE offset < 0 LIMIT 1").fetchone():
        raise sqlite3.DatabaseError("malformed: a negative offset")


def spill_cursor(state_dir: Path, sink: str) -> Cursor:
    """Read where a sink stands in its spill, beside a daemon that may run. Raises sqlite3.Error."""
    with contextlib.closing(sqlite3.connect(f"file:{state_dir / 'state.db'}?mode=ro", uri=True, timeout=5)) as db:
        row = db.execute("SELECT segment, offset, record FROM sinks WHERE sink = ?", (sink,)).fetchone()
    return Cursor(*row) if row else Cursor(0, 0)


def _signed(value: int) -> int:
    # SQLite integers are signed; our hashes are unsigned 64-bit.
    return value - (1 << 64) if value >= 1 << 63 else value


def _unsigned(value: int) -> int:
    return value + (1 << 64) if value < 0 else value


def holder(state_dir: Path) -> int | None:
    """Give the process that holds the state directory's lock, 0 if it is in another namespace, None if nobody does.

    The kernel's table of locks is read; trying the lock would make a daemon fail that starts at that moment.
    """
    try:
        status = (state_dir / "lock").stat()
        table = Path("/proc/locks").read_text()
    except OSError:
        return None
    wanted = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    for line in table.splitlines():
        fields = line.split()
        if "FLOCK" in fields and "->" not in fields and wanted in fields:
            return max(0, int(fields[fields.index(wanted) - 1]))
    return None
