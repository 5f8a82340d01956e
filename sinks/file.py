"""Append records to a file: JSON lines, text for people, or the raw lines; rotated by size, by us or by others.

A batch is one append of whole lines. If it fails half-way (full disk, quota, I/O error) the file is cut back to
where it was and the batch is tried again. The file is locked (flock), so that it has one writer; a second one is
parked. If the file was renamed or removed by somebody else, the next batch opens a new one.

What ``fsync`` promises once ``write`` has returned:

* ``batch``: the records are on the disk; they survive a loss of power.
* ``interval``: they are in the kernel and survive the death of the daemon; the disk has them at the first batch a
  second or more after the last sync, and at close. A loss of power may take what was written since.
* ``never``: they are in the kernel, which writes them when it likes (Linux: about 30 seconds).

Exactly once. ``position`` is ``inode:size`` after the last write, saved with the offsets of the sources. After a
``kill -9`` the file may hold lines beyond it whose records come again; they are not cut off, because the source
may be gone by then. They are remembered (64-bit hashes, counted) and each is skipped once when it comes again.
Until all have come, the position also carries the hashes of those still awaited, so a second crash in the middle
neither loses nor doubles a line, in any format. JSON is known by its id, raw and text by each line's bytes.

Awaited lines are forgotten a minute after the last one that came, counted over writes: every source reads what
was not yet acknowledged before anything newer, and looks at each of its files every second or two, so what has
not come by then will not (its file is gone, or a rule now filters it). The residual: in raw and text, such a line
that never comes again hides one other line with the very same bytes in that minute. In JSON there is none.

Without a saved position (first start, state directory lost) the last 16 MiB of a JSON file are remembered by id.
Doubles are possible, losses are not, when an outsider moved the file out of its directory or truncated it within
the second before a crash, or when rotation by us deleted it in that second.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import logging
import os
from array import array
from collections import Counter
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, ClassVar, cast

import xxhash
from msgspec import Meta

from shipper.clock import SystemClock
from shipper.errors import ConfigError, ParkedError, RetryableError, SinkError
from shipper.fs import FileSystem
from shipper.sink import Finding, Limits, Sink, SinkConfig
from shipper.units import parse_size
from sinks import _render

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shipper.clock import Clock
    from shipper.record import Batch

_log = logging.getLogger(__name__)
#: Bytes of free disk below which `examine` warns.
_LOW_SPACE = 256 << 20

# Seconds between syncs with fsync: interval.
_SYNC_INTERVAL = 1.0
# Seconds without a match, over writes, after which awaited lines are forgotten.
_PATIENCE = 60.0
# Seconds a closed file stays plain before it may be compressed: far longer than a checkpoint takes, because a
# saved position names a file by its inode, which compression changes.
_PLAIN_FOR = 60.0
# Bytes at the end of a JSON file whose ids are remembered when no position was saved.
_TAIL = 16 << 20
_BLOCK = 1 << 20
# The operator's to mend; everything else (ENOSPC, EDQUOT, EIO, ESTALE) may pass by itself.
_OPERATOR = {
    errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EROFS, errno.ELOOP, errno.ENAMETOOLONG,
}  # fmt: skip


class FileConfig(SinkConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Append records to a file."""

    path: Annotated[str, Meta(description="The file; its directory must exist.", min_length=1)]
    format: Annotated[
        str,
        Meta(
            description="json is one object per line, text is for people, raw the line as the application wrote it.",
            pattern="^(json|text|raw)$",
        ),
    ] = "json"
    include_raw: Annotated[bool, Meta(description="Whether JSON lines carry the raw line as well.")] = False
    rotate_size: Annotated[
        str | int,
        Meta(description="The file is renamed to path.1 before it would grow past this; 0 leaves rotation to others."),
    ] = 0
    rotate_keep: Annotated[int, Meta(description="How many rotated files are kept.", ge=1, le=10_000)] = 10
    compress: Annotated[
        bool, Meta(description="Whether rotated files from path.2 on are compressed to .gz at the next rotation.")
    ] = False
    fsync: Annotated[
        str,
        Meta(
            description="batch syncs every batch to disk before it counts as delivered, interval once a second, never"
            " leaves it to the kernel.",
            pattern="^(batch|interval|never)$",
        ),
    ] = "batch"


class FileSink(Sink):
    """Appends to one file. ``skipped`` counts lines that were found already written after a crash."""

    config: ClassVar[type[SinkConfig]] = FileConfig
    takes_canary: ClassVar[bool] = False

    def __init__(self, config: FileConfig, *, clock: Clock | None = None) -> None:
        try:
            self._rotate_size = parse_size(config.rotate_size)
        except ValueError as error:
            raise ConfigError(f"rotate_size: {error}") from error
        self._path = Path(config.path)
        self._config = config
        self._clock = clock or SystemClock()
        self.wants_parse = config.format != "raw"
        # One sync serves more records when a tenth of a second is gathered; without syncs nothing is gained.
        self.limits = Limits(linger=0.1 if config.fsync == "batch" else 0.0)
        self._fd = -1
        self._inode = 0
        self._size = 0
        self._partial = False
        self._synced = 0.0
        self._unsynced = False
        self._full = False
        self._resume: str | None = None
        self._resumed = False
        self._fs = FileSystem()
        self._awaited: Counter[int] = Counter()
        self._matched: float | None = None
        self._awaited_text = ""
        self.skipped = 0

    def resume(self, position: str | None) -> None:
        """See `Sink.resume`."""
        self._resume = position

    def position(self) -> str | None:
        """``inode:size``, and ``:hashes`` while lines beyond an older position are still awaited."""
        if not self._inode:
            return self._resume
        if not self._awaited:
            return f"{self._inode}:{self._size}"
        if not self._awaited_text:
            packed = array("Q", self._awaited.elements()).tobytes()
            self._awaited_text = base64.b64encode(packed).decode()
        return f"{self._inode}:{self._size}:{self._awaited_text}"

    def open(self) -> None:
        """Open and lock the file, finish what a failure or a crash left behind.

        Raises ParkedError when the path cannot be opened or another process writes to it.
        """
        self._matched = None  # time that the file was away does not count
        try:
            if self._fd >= 0:
                if self._partial:  # the last failed batch still stands in the file in part
                    self._truncate_failed_batch()
                self._reopen_if_replaced()
                return
            self._open_file()
            if not self._resumed:
                self._remember()
                self._resumed = True
                self._truncate_torn_line()
            self._end_last_line()
        except OSError as error:
            raise self._error(error) from error

    def write(self, batch: Batch) -> None:
        """Append the batch. Raises RetryableError with the file as it was before, ParkedError if it cannot be opened."""
        if self._fd < 0 or self._partial:
            self.open()
        came: Counter[int] = Counter()
        if self._awaited:
            self._expire_awaited()
        data = self._without_awaited(batch, came) if self._awaited else self._render(batch)
        try:
            self._reopen_if_replaced()
            if data:
                if self._rotate_size and self._size and (self._full or self._size + len(data) > self._rotate_size):
                    self._rotate()
                self._append(data)
        except OSError as error:
            self._full = error.errno == errno.EFBIG
            raise self._error(error) from error
        if came:
            self.skipped += came.total()
            self._matched = self._clock.monotonic()
            self._set_awaited(self._awaited - came)

    def healthcheck(self) -> None:
        """Check that the file, or a new one in its directory, could be written. Creates nothing."""
        path = self._path if self._path.exists() else self._path.parent
        if not os.access(path, os.W_OK | (os.X_OK if path.is_dir() else 0)) or self._path.is_dir():
            raise ParkedError(f"{self._path} cannot be written: check that {path} exists and its rights", code="EACCES")

    def examine(self) -> Iterator[Finding]:
        """Say whether the file could be written, how much room its disk has, and whether somebody writes it now."""
        try:
            self.healthcheck()
        except SinkError as error:
            yield Finding("rights", "fail", str(error), "make the directory, or let this user write there")
            return
        yield Finding("rights", "ok", f"{self._path} can be written")
        free = self._fs.free_bytes(self._path.parent)
        low = free < _LOW_SPACE
        yield Finding(
            "space",
            "warn" if low else "ok",
            f"{free >> 20} MiB are free",
            "free some, or set rotate_size" if low else "",
        )
        if self._path.is_file():
            yield _locked(self._path)

    def close(self) -> None:
        """Sync unless told never to, and release the lock."""
        if self._fd < 0:
            return
        try:
            if self._partial:
                self._truncate_failed_batch()
            if self._unsynced and self._config.fsync == "interval":
                os.fdatasync(self._fd)
        except OSError as error:
            _log.warning("%s could not be finished: %s", self._path, error)
        os.close(self._fd)
        self._fd = -1

    # Writing

    def _render(self, batch: Batch) -> bytes:
        if self._config.format == "json":
            return _render.json_text(batch, raw=self._config.include_raw)
        if self._config.format == "raw":
            return _render.raw_text(batch)
        return b"".join(_render.text_lines(batch))

    def _append(self, data: bytes) -> None:
        try:
            self._fs.write_all(self._fd, data)
            self._sync()
        except OSError:
            self._partial = True
            self._truncate_failed_batch()
            raise
        self._size += len(data)

    def _sync(self) -> None:
        if self._config.fsync == "never":
            return
        now = self._clock.monotonic()
        self._unsynced = True
        if self._config.fsync == "batch" or now - self._synced >= _SYNC_INTERVAL:
            os.fdatasync(self._fd)
            self._synced = now
            self._unsynced = False

    def _truncate_failed_batch(self) -> None:
        os.ftruncate(self._fd, self._size)
        self._partial = False

    # The file and its successors

    def _reopen_if_replaced(self) -> None:
        """Open a new file if the path no longer is the one that is open."""
        try:
            status = self._path.stat()
        except FileNotFoundError:
            status = None
        if status is not None and status.st_ino == self._inode:
            # Only an outsider makes it another size: we hold the lock, and a failed write was cut back.
            self._size = status.st_size
            return
        if self._unsynced:
            os.fdatasync(self._fd)
        os.close(self._fd)
        self._fd = -1
        self._open_file()
        self._end_last_line()

    def _open_file(self) -> None:
        while True:
            fd, created = self._open_or_create()
            try:
                status = os.fstat(fd)
                self._lock(fd, regular=S_ISREG(status.st_mode))
                current = self._is_current(status.st_ino)
                if current and created and self._config.fsync != "never":
                    self._fs.fsync_dir(self._path.parent)
            except BaseException:
                os.close(fd)
                raise
            if current:
                self._fd, self._inode, self._size, self._full = fd, status.st_ino, status.st_size, False
                return
            os.close(fd)  # renamed between open and lock

    def _open_or_create(self) -> tuple[int, bool]:
        # Non-blocking only so that a pipe in its place is refused instead of waited for.
        flags = os.O_RDWR | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY
        while True:
            try:
                return os.open(self._path, flags), False
            except FileNotFoundError:
                pass
            try:
                fd = os.open(self._path, flags | os.O_CREAT | os.O_EXCL, 0o640)
            except FileExistsError:
                if self._path.is_symlink():  # dangling: neither there nor to be created
                    raise
                continue
            os.fchmod(fd, 0o640)  # whatever the umask says
            return fd, True

    def _lock(self, fd: int, *, regular: bool) -> None:
        if not regular:
            raise ParkedError(f"{self._path} is not a regular file; name another path", code="EINVAL")
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ParkedError(
                f"{self._path} is being written by another process; stop it or name another path", code="EAGAIN"
            ) from error

    def _is_current(self, inode: int) -> bool:
        try:
            return self._path.stat().st_ino == inode
        except FileNotFoundError:
            return False

    def _end_last_line(self) -> None:
        """End a last line without newline. It may be somebody else's, so it is never cut off here."""
        if self._size and os.pread(self._fd, 1, self._size - 1) != b"\n":
            os.write(self._fd, b"\n")
            self._size += 1

    def _truncate_torn_line(self) -> None:
        """Cut off a last line that a crash tore, if it is ours.

        It is ours if it begins beyond the saved position, or as our JSON does. Its record was never acknowledged,
        because a write returns only after whole lines, so it comes again.
        """
        start = self._size
        tail = b""
        while start and b"\n" not in tail:
            size = min(_BLOCK, start)
            start -= size
            tail = os.pread(self._fd, size, start) + tail
        tail = tail[tail.rfind(b"\n") + 1 :]
        start = self._size - len(tail)
        inode, size_text = (self._resume or "0:0").split(":")[:2]
        beyond = int(inode) == self._inode and start >= int(size_text)
        json = self._config.format == "json" and tail.startswith(_render.JSON_START[: len(tail)])
        if tail and (beyond or json):
            os.ftruncate(self._fd, start)
            self._size = start

    def _rotate(self) -> None:
        """Make path path.1, path.1 path.2 and so on; the last one kept makes room."""
        if self._unsynced:
            os.fdatasync(self._fd)
            self._unsynced = False
        # Up to the first gap only, so that a shift that failed half-way is taken up where it stopped.
        gap = 1
        while gap <= self._config.rotate_keep and self._rotated(gap):
            gap += 1
        if gap > self._config.rotate_keep:
            gap = self._config.rotate_keep
            for path in self._rotated(gap):
                path.unlink()
        for number in range(gap - 1, 0, -1):
            for path in self._rotated(number):
                path.rename(self._number(number + 1, ".gz" if path.suffix == ".gz" else ""))
        self._path.rename(self._number(1))
        os.close(self._fd)
        self._fd = -1
        self._open_file()
        self._fs.fsync_dir(self._path.parent)
        if self._config.compress:
            self._compress()

    def _number(self, number: int, suffix: str = "") -> Path:
        return self._path.with_name(f"{self._path.name}.{number}{suffix}")

    def _rotated(self, number: int) -> list[Path]:
        return [path for path in (self._number(number), self._number(number, ".gz")) if path.exists()]

    def _compress(self) -> None:
        from isal import igzip  # noqa: PLC0415 - only who compresses pays for it

        for number in range(2, self._config.rotate_keep + 1):
            plain, packed = self._number(number), self._number(number, ".gz")
            partial = packed.with_name(packed.name + ".partial")
            try:
                if not plain.exists() or self._clock.time_ns() / 1e9 - plain.stat().st_mtime < _PLAIN_FOR:
                    continue
                with plain.open("rb") as source, partial.open("wb") as target:
                    os.fchmod(target.fileno(), 0o640)
                    with cast("BinaryIO", cast("Any", igzip).open(target, "wb")) as archive:
                        while block := source.read(_BLOCK):
                            archive.write(block)
                    target.flush()
                    os.fsync(target.fileno())
                partial.rename(packed)
                self._fs.fsync_dir(self._path.parent)
                plain.unlink()
            except OSError as error:  # it stays plain and is tried again at the next rotation
                _log.warning("the rotated file %s could not be compressed; it stays: %s", plain, error)
                partial.unlink(missing_ok=True)
                return

    # After a crash

    def _remember(self) -> None:
        """Collect the lines beyond the saved position: their records will come again."""
        awaited: Counter[int] = Counter()
        position = self._resume
        if position is None:
            if self._config.format == "json" and self._size:
                awaited.update(self._keys(self._path, max(0, self._size - _TAIL)))
        else:
            inode, size, *rest = position.split(":")
            if rest:
                kept = array("Q")
                kept.frombytes(base64.b64decode(rest[0]))
                awaited.update(kept)
            for path, start in self._files_written_after(int(inode), int(size)):
                awaited.update(self._keys(path, start))
        self._set_awaited(awaited)
        if awaited:
            _log.info("%d lines written after the last checkpoint are awaited again", awaited.total())

    def _files_written_after(self, inode: int, size: int) -> list[tuple[Path, int]]:
        """Give the files that were written after a position, each with the offset to begin at."""
        if inode == self._inode:
            return [(self._path, size)] if size <= self._size else []
        with os.scandir(self._path.parent) as entries:
            name = next((e.name for e in entries if e.name.startswith(self._path.name) and e.inode() == inode), None)
        if name is not None:
            number = name.removeprefix(self._path.name + ".")
            newer = range(1, int(number)) if number.isdecimal() else range(0)
            later = [(self._number(n), 0) for n in newer if self._number(n).exists()]
            return [(self._path.with_name(name), size), *later, (self._path, 0)]
        return []

    def _keys(self, path: Path, start: int) -> Iterator[int]:
        with path.open("rb") as file:
            file.seek(start)
            for line in file:
                if line.endswith(b"\n") and (key := self._key(line)) is not None:
                    yield key

    def _key(self, line: bytes) -> int | None:
        """Hash what a line is known by: the id of a JSON line, else all of it."""
        if self._config.format == "json":
            start = len(_render.JSON_START)
            if not line.startswith(_render.JSON_START) or line[start + 36 : start + 37] != b'"':
                return None
            line = line[start : start + 36]
        return xxhash.xxh3_64_intdigest(line)

    def _without_awaited(self, batch: Batch, came: Counter[int]) -> bytes:
        """Render the batch without the lines that stand in the file already; count those in ``came``."""
        fresh = []
        for line in _lines(self._render(batch)):
            key = self._key(line)
            if key is not None and came[key] < self._awaited[key]:
                came[key] += 1
            else:
                fresh.append(line)
        return b"".join(fresh)

    def _expire_awaited(self) -> None:
        now = self._clock.monotonic()
        if self._matched is None:
            self._matched = now
        elif now - self._matched > _PATIENCE:
            _log.info("%d lines of before the crash did not come again; forgotten", self._awaited.total())
            self._set_awaited(Counter())

    def _set_awaited(self, awaited: Counter[int]) -> None:
        self._awaited = awaited
        self._awaited_text = ""

    def _error(self, error: OSError) -> RetryableError:
        code = errno.errorcode.get(error.errno or 0, "")
        if error.errno in _OPERATOR:
            return ParkedError(
                f"{self._path}: {error.strerror}; see that its directory exists and that this user may write there",
                code=code,
            )
        return RetryableError(
            f"{self._path}: {error.strerror}; the file is as before, the batch is tried again", code=code
        )


def _locked(path: Path) -> Finding:
    """Look whether somebody holds the file's lock: a running daemon does, and that is no fault."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return Finding("lock", "ok", "it is being written now, as it is by a running daemon; a second one would wait")
    except OSError as error:
        return Finding("lock", "warn", f"cannot be looked at: {error.strerror}", "let this user read it")
    return Finding("lock", "ok", "nobody else writes it")


def _lines(data: bytes) -> list[bytes]:
    r"""Split at ``\n`` alone; ``bytes.splitlines`` would also split at a carriage return."""
    lines = data.split(b"\n")
    return [line + b"\n" for line in lines[:-1]]


SINK = FileSink
