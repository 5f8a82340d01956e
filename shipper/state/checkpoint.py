"""The state database: where every file stands for every sink, in ``<state_dir>/state.db``.

SQLite in WAL mode, one writer. Tables:

* ``files``: one row per file generation that a source knows (see `shipper.source.FileState`).
* ``offsets``: per file and sink the contiguous offset up to which everything is safe, and its marker.
* ``sinks``: per sink its own position (`Sink.position`) and the cursor into its spill.
* ``anchors``: times given to undated lines when they were first read. An empty range (``start`` = ``end``, time 0)
  says that a record was cut there by time; see `shipper.source.Positions.anchor`.
* ``losses``: byte ranges that could never be read, with the cause.

All of a save is one transaction, so a sink's position, its spill cursor and the offsets agree. ``synchronous`` is
NORMAL: a process that is killed loses nothing, a power failure may lose the last saves, which means reading and
delivering those lines again, under the same ids.

A database that cannot be read is set aside as ``state.db.damaged-<time>`` and a new one is begun.
"""

from __future__ import annotations

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
  size INTEGER NOT NULL, tag TEXT NOT NULL, done INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS offsets (
  file INTEGER NOT NULL, sink TEXT NOT NULL, offset INTEGER NOT NULL, marker INTEGER NOT NULL,
  PRIMARY KEY (file, sink)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sinks (
  sink TEXT PRIMARY KEY, position TEXT, segment INTEGER NOT NULL DEFAULT 0, offset INTEGER NOT NULL DEFAULT 0
  ) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS anchors (
  file INTEGER NOT NULL, start INTEGER NOT NULL, end INTEGER NOT NULL, time_ns INTEGER NOT NULL,
  PRIMARY KEY (file, start, end)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS losses (
  time_ns INTEGER NOT NULL, path TEXT NOT NULL, start INTEGER NOT NULL, end INTEGER NOT NULL, cause TEXT NOT NULL);
PRAGMA user_version = 1;
"""


class Cursor(msgspec.Struct, frozen=True, order=True):
    """A place in the spill: just before the frame at ``offset`` of segment ``segment``."""

    segment: int
    offset: int


class Offset(msgspec.Struct, frozen=True):
    """Where one file stands for one sink."""

    file: int
    sink: str
    offset: int
    marker: int


class SinkState(msgspec.Struct, frozen=True):
    """A sink's own position and its spill cursor (segment number, byte offset)."""

    sink: str
    position: str | None = None
    segment: int = 0
    offset: int = 0


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


class Changes(msgspec.Struct):
    """What one save writes."""

    files: list[FileState] = []
    forgotten: list[int] = []
    offsets: list[Offset] = []
    sinks: list[SinkState] = []
    anchors: list[Anchor] = []
    losses: list[Loss] = []


class Checkpoint:
    """The open state directory: an exclusive lock and the database. Methods are called under the ledger's lock."""

    def __init__(self, state_dir: Path) -> None:
        """Open or begin the state.

        Raises StateError when another daemon holds the directory or it cannot be written.
        """
        self.damaged: Path | None = None
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
            self._db = self._connect()
        except sqlite3.DatabaseError as error:
            if "disk" in str(error) and "malformed" not in str(error):
                os.close(self._lock)
                raise StateError(f"cannot open {self.path}: {error}") from error
            self.damaged = self._set_aside()
            self._db = self._connect()

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None, timeout=5)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.executescript(_SCHEMA)
            fault = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        except sqlite3.DatabaseError:
            db.close()
            raise
        if fault != "ok":
            db.close()
            raise sqlite3.DatabaseError(f"malformed: {fault}")
        return db

    def _set_aside(self) -> Path:
        target = self.path.with_name(f"state.db.damaged-{time.time_ns()}")
        self.path.rename(target)
        for suffix in ("-wal", "-shm"):
            self.path.with_name("state.db" + suffix).unlink(missing_ok=True)
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
        rows = self._db.execute("SELECT sink, position, segment, offset FROM sinks")
        return {row[0]: SinkState(*row) for row in rows}

    def anchors(self) -> list[Anchor]:
        """Give all anchors."""
        return [Anchor(*row) for row in self._db.execute("SELECT file, start, end, time_ns FROM anchors")]

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
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        try:
            db.executemany(
                "INSERT OR REPLACE INTO files VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",
                [
                    (
                        f.key, f.source, f.path, f.device, _signed(f.inode), f.uid, _signed(f.head), f.head_size,
                        f.generation, f.size, f.tag, f.done,
                    )
                    for f in changes.files
                ],
            )  # fmt: skip
            db.executemany(
                "INSERT OR REPLACE INTO offsets VALUES (?,?,?,?)",
                [(o.file, o.sink, o.offset, _signed(o.marker)) for o in changes.offsets],
            )
            db.executemany(
                "INSERT OR REPLACE INTO sinks VALUES (?,?,?,?)",
                [(s.sink, s.position, s.segment, s.offset) for s in changes.sinks],
            )
            db.executemany(
                "INSERT OR REPLACE INTO anchors VALUES (?,?,?,?)",
                [(a.file, a.start, a.end, a.time_ns) for a in changes.anchors],
            )
            db.executemany(
                "INSERT INTO losses VALUES (?,?,?,?,?)",
                [(x.time_ns, x.path, x.start, x.end, x.cause) for x in changes.losses],
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
