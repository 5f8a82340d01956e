"""The dead letters of one sink: records that its backend refused for good, with the reason, to be sent again.

New ones are appended to ``<state_dir>/dead-letter/<sink>.jsonl``, mode 0600, one JSON object a line, each an `Entry`::

    {"id": "...", "time": ns, "stamp": ns, "hash": "32 hex digits", "severity": 9 or null, "message": "..." or null,
     "attributes": {...} or null, "raw": "the line", "resource": {"source": "docker", "attributes": {...}},
     "offset": 0, "sink": "mysql", "reason": "why", "code": "1366", "when": "2026-11-22T13:00:00.000000000Z",
     "attempts": 1}

Times are nanoseconds since 1970 UTC. ``severity``, ``message`` and ``attributes`` are null for a sink that takes
unparsed lines. Past 1 MiB the file is sealed: its lines move, compressed, to ``<sink>/<16 digits>.jsonl.zst``
(`shipper.delivery.letters`). All together take at most ``limit`` bytes of the disk. At the limit nothing is dropped
unless the user said so: `append` raises `FullError`, and the sink is parked until somebody retries or drops some.

Invariants:

* Whoever writes holds an exclusive ``flock`` on ``<name>.jsonl.lock``, never on a file of letters, because those are
  replaced. The lock file is empty and is never removed.
* An append that returned is on disk. One that failed left no trace; one that a crash cut short left a line without an end,
  which readers skip and the next append terminates. Its records were not acknowledged, so they come again.
* In one file the same id counts once, with its newest reason. After a crash between an append and the next save an id may
  stand in two files; then it is sent twice, under the same id.
* A line that cannot be read is skipped, counted by `DeadLetters.damaged`, and survives every rewrite.
* No method holds more than one part in memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from shipper.clock import Clock, SystemClock
from shipper.delivery import letters
from shipper.delivery.letters import NEWLINE, Entry
from shipper.errors import SinkError, StateError
from shipper.fs import FileSystem
from shipper.record import Batch, Resource
from shipper.render import rfc3339
from shipper.telemetry.logs import get_logger
from shipper.units import format_size

log = get_logger("deadletter")

_SEAL_AT = 1 << 20


class FullError(StateError):
    """The dead letters have reached their limit: the operator must send some again, or give them up."""


class DeadLetters:
    """The dead letters of one sink. Safe to use from several threads and processes at a time.

    The files and their directories are made by the first append. Every method that touches the disk raises StateError
    when it cannot (no space, no rights), with the files unchanged. ``limit`` is in bytes, none when 0; with
    ``drop_oldest`` the oldest make room for new ones, and ``on_dropped`` gets how many that were; ``on_fault`` gets how
    many records had attributes that cannot be written.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Clock | None = None,
        fs: FileSystem | None = None,
        limit: int = 0,
        drop_oldest: bool = False,
        on_dropped: Callable[[int], None] = lambda _records: None,
        on_fault: Callable[[int], None] = lambda _records: None,
    ) -> None:
        self.path = path
        self.limit = limit
        self._sealed = path.with_suffix("")
        self._clock = clock or SystemClock()
        self._fs = fs or FileSystem()
        self._seal_at = min(_SEAL_AT, limit // 8) if limit else _SEAL_AT
        self._drop_oldest = drop_oldest
        self._on_dropped = on_dropped
        self._on_fault = on_fault
        self._tidied = False
        self._sealed_size = (0, 0)  # when the directory last changed, and the bytes in it

    def append(self, batch: Batch, errors: Sequence[SinkError], sink: str) -> None:
        """Write every record of the batch with its own error. Returning means: on disk. Raises FullError at the limit."""
        when = rfc3339(self._clock.time_ns())
        entries = letters.make_entries(batch, errors, sink, when)
        data = b"".join([letters.encode(entry, self._on_fault) for entry in entries])
        if not data:
            return
        with self._locked():
            self._make_room(len(data), sink)
            self._append(data)
            if self.path.stat().st_size >= self._seal_at:
                try:
                    self._seal()
                except OSError as error:
                    # What was appended is safe as it is.
                    log.warning("dead letters cannot be compressed now", file=str(self.path), error=str(error))

    def _append(self, data: bytes) -> None:
        fresh = not self.path.exists()
        file = self._fs.open_append(self.path)
        try:
            size = os.fstat(file).st_size
            if size and os.pread(file, 1, size - 1) != NEWLINE:
                data = NEWLINE + data
            try:
                self._fs.write_all(file, data)
                os.fsync(file)
            except OSError:
                # Should this fail too, a torn line stays, which readers skip and the next append ends.
                with contextlib.suppress(OSError):
                    os.ftruncate(file, size)
                raise
        finally:
            os.close(file)
        if fresh:
            self._fs.fsync_dir(self.path.parent)

    def _make_room(self, size: int, sink: str) -> None:
        """See to it that so many bytes fit below the limit; one append always fits into nothing."""
        if not self.limit or self.size + size <= self.limit:
            return
        if self.path.exists():
            self._seal()
        while self.size and self.size + size > self.limit:
            parts = self._parts()
            if not self._drop_oldest or not parts:
                raise FullError(
                    f"the dead letters of {sink} take {format_size(self.size)} of buffer.max_dead_letters,"
                    f" {format_size(self.limit)}, so nothing more is delivered to it. See why:"
                    f" shipper dead-letters ls --sink {sink}; then mend the cause and: shipper dead-letters retry"
                    f" --sink {sink}, or give them up: shipper dead-letters drop --sink {sink}"
                )
            records = self._seal_of(parts[0]).records
            self._fs.unlink(parts[0])
            log.error("dead letters are full: the oldest dropped, as when_full says", sink=sink, records=records)
            self._on_dropped(records)

    def _seal(self) -> None:
        """Move what was appended to a compressed part of its own."""
        size = self.path.stat().st_size
        if not size:
            return
        self._fs.make_private(self._sealed)
        parts = self._parts()
        number = int(parts[-1].name.partition(".")[0]) + 1 if parts else 1
        with self.path.open("rb") as file:
            crc = letters.checksum(file)
            file.seek(0)
            wanted, _, _ = letters.newest(file)
            file.seek(0)
            self._write(self._sealed / f"{number:016d}.jsonl.zst", _kept(file, wanted), made_from=(size, crc))
        # A crash before this leaves the letters in both; `_tidy` then knows them again.
        self._fs.unlink(self.path)
        self._fs.fsync_dir(self.path.parent)

    def _tidy(self) -> None:
        """Remove a plain file that a crash left behind after it was sealed."""
        self._tidied = True
        parts = self._parts()
        if not parts or not self.path.exists():
            return
        seal = self._seal_of(parts[-1])
        if seal.size == self.path.stat().st_size:
            with self.path.open("rb") as file:
                same = letters.checksum(file) == seal.crc
            if same:
                self._fs.unlink(self.path)

    def _write(self, target: Path, lines: Iterable[tuple[bytes, bool]], *, made_from: tuple[int, int] = (-1, 0)) -> int:
        """Write lines, each with whether it can be read, to a file of letters, which they replace at once.

        Gives how many; without any there is no file.
        """
        fresh = target.with_name(target.name + ".new")
        try:
            with os.fdopen(_create(fresh), "w+b") as new:
                count = 0
                if target == self.path:
                    for line, _readable in lines:
                        new.write(line)
                        count += 1
                else:
                    done = letters.seal(lines, new, made_from=made_from)
                    count = done.records + done.damaged
                new.flush()
                os.fsync(new.fileno())
            if count:
                self._fs.rename(fresh, target)
            else:
                fresh.unlink()
                target.unlink(missing_ok=True)
            self._fs.fsync_dir(target.parent)
        except OSError:
            fresh.unlink(missing_ok=True)
            raise
        return count

    def parts(self) -> list[Path]:
        """Give the files that hold letters, the oldest first."""
        return [*self._parts(), *([self.path] if self.path.exists() else [])]

    def _parts(self) -> list[Path]:
        try:
            return sorted(path for path in self._sealed.iterdir() if path.name.endswith(".jsonl.zst"))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise self._refused(error) from error

    @property
    def size(self) -> int:
        """Bytes of the disk that they take."""
        total = 0
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            # There may be thousands of sealed parts: each is replaced by a rename, which the directory tells.
            changed = self._sealed.stat().st_mtime_ns
            if self._sealed_size[0] != changed:
                self._sealed_size = (changed, sum(map(_size, self._parts())))
            total = self._sealed_size[1]
        return total + _size(self.path)

    def entries(self, part: Path | None = None) -> Iterator[Entry]:
        """Give the entries of all parts or of one, oldest first, each id of a part once with its newest reason."""
        for path in [part] if part is not None else self.parts():
            for line in self._lines(path):
                if (entry := letters.decode(line)) is not None:
                    yield entry

    def _lines(self, path: Path) -> Iterator[bytes]:
        """Give the lines of a part that count. What is sealed has each id once already."""
        try:
            if path != self.path:
                yield from self._readable(path)
                return
            with path.open("rb") as file:
                wanted, _, end = letters.newest(file)
                file.seek(0)
                at = 0
                for line in file:
                    if at >= end:  # appended meanwhile: not known whether it is the newest
                        break
                    if at in wanted:
                        yield line
                    at += len(line)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._refused(error) from error

    def _readable(self, path: Path) -> Iterator[bytes]:
        try:
            yield from letters.sealed_lines(path)
        except ValueError as error:
            log.error("dead letters are damaged; what can be read of them is", file=str(path), error=str(error))

    def batches(self, *, records: int = 500, part: Path | None = None) -> Iterator[Batch]:
        """Give the entries as batches of at most ``records``, ready to be written again. Equal resources are one."""
        resources: dict[tuple[str, tuple[tuple[str, str], ...]], Resource] = {}
        rows: list[Entry] = []
        for entry in self.entries(part):
            if rows and (len(rows) >= records or (rows[0].message is None) != (entry.message is None)):
                yield letters.make_batch(rows, resources)
                rows = []
            rows.append(entry)
        if rows:
            yield letters.make_batch(rows, resources)

    def remove(self, ids: Collection[str]) -> int:
        """Forget the entries with these ids; give how many there were. Raises StateError."""
        return self.settle(ids)

    def settle(
        self, taken: Collection[str], failed: Mapping[str, SinkError] | None = None, *, part: Path | None = None
    ) -> int:
        """Forget what was ``taken`` and note the new reason, time and one more attempt of what ``failed`` again.

        Each file is replaced at once; what a running daemon appended meanwhile stays. Gives how many ids were forgotten.
        ``part`` is where they all are, unless the daemon has sealed it since.
        """
        taken, failed = frozenset(taken), failed or {}
        if not taken and not failed:
            return 0
        gone: set[str] = set()
        changed: set[str] = set()
        with self._locked():
            parts = self.parts()
            if part in parts:
                parts.sort(key=lambda path: path != part)
            for path in parts:
                self._settle(path, taken, failed, gone, changed)
                if part is not None and len(gone) == len(taken) and len(changed) == len(failed):
                    break
        return len(gone)

    def _settle(
        self, path: Path, taken: frozenset[str], failed: Mapping[str, SinkError], gone: set[str], changed: set[str]
    ) -> None:
        when = rfc3339(self._clock.time_ns())
        touched = False

        def kept() -> Iterator[tuple[bytes, bool]]:
            nonlocal touched
            for line in self._all_lines(path):
                entry = letters.decode(line)
                if entry is not None and entry.id in taken:
                    gone.add(entry.id)
                    touched = True
                elif entry is not None and (error := failed.get(entry.id)) is not None:
                    changed.add(entry.id)
                    touched = True
                    again = msgspec.structs.replace(
                        entry,
                        reason=str(error) or type(error).__name__,
                        code=error.code,
                        when=when,
                        attempts=entry.attempts + 1,
                    )
                    yield letters.encode(again), True
                else:
                    yield line, entry is not None

        for _ in kept():
            if touched:
                break
        if touched:
            self._write(path, kept())

    def _all_lines(self, path: Path) -> Iterator[bytes]:
        if path != self.path:
            # Damage raises here: a rewrite must not make what cannot be read now vanish for good.
            try:
                yield from letters.sealed_lines(path)
            except ValueError as error:
                raise OSError(str(error)) from error
            return
        with path.open("rb") as file:
            yield from file

    def drop(self) -> int:
        """Delete them all; give how many there were."""
        with self._locked():
            count = self.count
            for path in self.parts():
                self._fs.unlink(path)
            self._fs.fsync_dir(self.path.parent)
        return count

    @property
    def count(self) -> int:
        """How many records there are, each id of a file once. Reads the file that is appended to, and heads of others."""
        return self.counts()[0]

    @property
    def damaged(self) -> int:
        """How many lines cannot be read."""
        return self.counts()[1]

    def counts(self) -> tuple[int, int]:
        """Give how many records there are and how many lines cannot be read, in one look."""
        try:
            try:
                with self.path.open("rb") as file:
                    wanted, damaged, _ = letters.newest(file)
                records = len(wanted)
            except FileNotFoundError:
                records = damaged = 0
            for path in self._parts():
                seal = self._seal_of(path)
                records, damaged = records + seal.records, damaged + seal.damaged
        except OSError as error:
            raise self._refused(error) from error
        return records, damaged

    def _seal_of(self, path: Path) -> letters.Seal:
        """Give what a sealed part says of itself; if it cannot, count what can be read, and one line that cannot."""
        try:
            return letters.read_seal(path)
        except FileNotFoundError:
            return letters.Seal()
        except ValueError:
            return letters.Seal(sum(letters.decode(line) is not None for line in self._readable(path)), 1)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self._fs.make_private(self.path.parent)
            lock = os.open(self.path.with_name(self.path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not self._tidied:
                    self._tidy()
                yield
            finally:
                os.close(lock)
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> StateError:
        return StateError(
            f"dead letters in {self.path}: {error.strerror or error}; the file is as it was."
            " Free some disk space or mend the rights of the state directory."
        )


def _kept(file: Iterable[bytes], wanted: Collection[int]) -> Iterator[tuple[bytes, bool]]:
    """Give the lines at the wanted offsets, and those that cannot be read."""
    at = 0
    for line in file:
        if at in wanted:
            yield line, True
        elif line.strip() and letters.decode(line) is None:
            yield line, False
        at += len(line)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _create(path: Path) -> int:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    os.fchmod(file, 0o600)
    return file
