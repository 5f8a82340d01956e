"""The dead letters of one sink: records that its backend refused for good, with the reason, to be sent again.

The file is ``<state_dir>/dead-letter/<sink>.jsonl``, mode 0600, one JSON object a line, each an `Entry`::

    {"id": "...", "time": ns, "stamp": ns, "hash": "32 hex digits", "severity": 9 or null, "message": "..." or null,
     "attributes": {...} or null, "raw": "the line", "resource": {"source": "docker", "attributes": {...}},
     "offset": 0, "sink": "mysql", "reason": "why", "code": "1366", "when": "2026-11-22T13:00:00.000000000Z",
     "attempts": 1}

Times are nanoseconds since 1970 UTC. ``severity``, ``message`` and ``attributes`` are null for a sink that takes
unparsed lines. The same id may stand in several lines (a replay after a crash was refused again): the last counts.

Invariants:

* Whoever writes holds an exclusive ``flock`` on ``<name>.jsonl.lock``, never on the file itself, because
  `DeadLetters.settle` replaces the file. The lock file is empty and is never removed.
* An append that returned is on disk. One that failed left no trace; one that a crash cut short left a line without an end,
  which readers skip and the next append terminates. Its records were not acknowledged, so they come again.
* A line that cannot be read is skipped, counted by `DeadLetters.damaged`, and survives every rewrite.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from shipper.clock import Clock, SystemClock
from shipper.errors import SinkError, StateError
from shipper.fs import FileSystem
from shipper.record import Batch, Resource
from shipper.render import rfc3339

_NEWLINE = b"\n"


class Origin(msgspec.Struct, frozen=True):
    """A record's resource, as it is written."""

    source: str
    attributes: dict[str, str]


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One dead letter; see the module for the fields."""

    id: str
    time: int
    stamp: int
    hash: str
    severity: int | None
    message: str | None
    attributes: dict[str, Any] | None
    raw: str
    resource: Origin
    offset: int
    sink: str
    reason: str
    code: str
    when: str
    attempts: int = 1


class DeadLetters:
    """The dead letters in one file. Safe to use from several threads and processes at a time.

    The file and its directory are made by the first append. Every method that touches the disk raises StateError
    when it cannot (no space, no rights), with the file unchanged.
    """

    def __init__(self, path: Path, *, clock: Clock | None = None) -> None:
        self.path = path
        self._clock = clock or SystemClock()
        self._fs = FileSystem()

    def append(self, batch: Batch, errors: Sequence[SinkError], sink: str) -> None:
        """Write every record of the batch with its own error. Returning means: on disk."""
        when = rfc3339(self._clock.time_ns())
        rows = (
            Entry(
                id=batch.ids[row],
                time=batch.times[row],
                stamp=batch.stamps[row],
                hash=f"{batch.hashes[row]:032x}",
                severity=None if batch.severities is None else batch.severities[row],
                message=None if batch.messages is None else batch.messages[row],
                attributes=None if batch.attributes is None else batch.attributes[row],
                raw=batch.raws[row],
                resource=Origin(batch.resources[row].source, batch.resources[row].attributes),
                offset=batch.offsets[row],
                sink=sink,
                reason=str(error) or type(error).__name__,
                code=error.code,
                when=when,
            )
            for row, error in zip(range(len(batch)), errors, strict=True)
        )
        data = b"".join(_encode(entry) for entry in rows)
        if not data:
            return
        with self._locked():
            fresh = not self.path.exists()
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                size = os.fstat(file).st_size
                if size and os.pread(file, 1, size - 1) != _NEWLINE:
                    data = _NEWLINE + data
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

    def entries(self) -> Iterator[Entry]:
        """Give the entries, oldest first, each id once with its newest reason."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._refused(error) from error
        with file:
            newest: dict[str, int] = {}
            end = 0
            for line in file:
                if (entry := _decode(line)) is not None:
                    newest[entry.id] = end
                end += len(line)
            wanted = set(newest.values())
            file.seek(0)
            at = 0
            for line in file:
                if at >= end:  # appended meanwhile: not known whether it is the newest
                    break
                if at in wanted and (entry := _decode(line)) is not None:
                    yield entry
                at += len(line)

    def batches(self, *, records: int = 500) -> Iterator[Batch]:
        """Give the entries as batches of at most ``records``, ready to be written again. Equal resources are one."""
        resources: dict[tuple[str, tuple[tuple[str, str], ...]], Resource] = {}
        rows: list[Entry] = []
        for entry in self.entries():
            if rows and (len(rows) >= records or (rows[0].message is None) != (entry.message is None)):
                yield _batch(rows, resources)
                rows = []
            rows.append(entry)
        if rows:
            yield _batch(rows, resources)

    def remove(self, ids: Collection[str]) -> int:
        """Forget the entries with these ids; give how many there were. Raises StateError."""
        return self.settle(ids)

    def settle(self, taken: Collection[str], failed: Mapping[str, SinkError] | None = None) -> int:
        """Forget what was ``taken`` and note the new reason, time and one more attempt of what ``failed`` again.

        One atomic rewrite; what a running daemon appended meanwhile stays. Gives how many ids were forgotten.
        """
        taken, failed = frozenset(taken), failed or {}
        if not taken and not failed:
            return 0
        when = rfc3339(self._clock.time_ns())
        gone: set[str] = set()
        kept = False
        with self._locked():
            fresh = self.path.with_name(self.path.name + ".new")
            try:
                with self.path.open("rb") as old, os.fdopen(_create(fresh), "wb") as new:
                    for line in old:
                        entry = _decode(line)
                        if entry is not None and entry.id in taken:
                            gone.add(entry.id)
                            continue
                        if entry is not None and (error := failed.get(entry.id)) is not None:
                            changed = msgspec.structs.replace(
                                entry,
                                reason=str(error) or type(error).__name__,
                                code=error.code,
                                when=when,
                                attempts=entry.attempts + 1,
                            )
                            line = _encode(changed)  # noqa: PLW2901 - the line that takes its place
                        new.write(line)
                        kept = True
                    new.flush()
                    os.fsync(new.fileno())
            except FileNotFoundError:
                return 0
            except OSError:
                fresh.unlink(missing_ok=True)
                raise
            if kept:
                fresh.replace(self.path)
            else:
                fresh.unlink()
                self.path.unlink()
            self._fs.fsync_dir(self.path.parent)
        return len(gone)

    @property
    def count(self) -> int:
        """How many records are in the file, each id once. Reads the whole file."""
        return len({entry.id for entry in self._lines() if entry is not None})

    @property
    def damaged(self) -> int:
        """How many lines cannot be read. Reads the whole file."""
        return sum(entry is None for entry in self._lines())

    def _lines(self) -> Iterator[Entry | None]:
        try:
            with self.path.open("rb") as file:
                yield from (_decode(line) for line in file if line.strip())
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._refused(error) from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self.path.with_name(self.path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
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


def _create(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)


def _encode(entry: Entry) -> bytes:
    try:
        return msgspec.json.encode(entry, enc_hook=str) + _NEWLINE
    except (UnicodeEncodeError, OverflowError):
        # Half surrogates and integers past 64 bits are just what a backend refuses. The slow encoder takes them.
        return json.dumps(msgspec.to_builtins(entry, enc_hook=str), default=str).encode() + _NEWLINE


def _decode(line: bytes) -> Entry | None:
    """Read a line, ``None`` if it is torn or was never ours."""
    if not line.endswith(_NEWLINE):
        return None
    try:
        return _DECODER.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        try:
            return msgspec.convert(json.loads(line), Entry)
        except (ValueError, RecursionError):
            return None


_DECODER = msgspec.json.Decoder(Entry)


def _batch(rows: Sequence[Entry], known: dict[tuple[str, tuple[tuple[str, str], ...]], Resource]) -> Batch:
    resources: list[Resource] = []
    for entry in rows:
        key = (entry.resource.source, tuple(sorted(entry.resource.attributes.items())))
        resource = known.get(key)
        if resource is None:
            resource = known[key] = Resource(entry.resource.source, entry.resource.attributes)
        resources.append(resource)
    parsed = rows[0].message is not None
    return Batch(
        times=[entry.time for entry in rows],
        stamps=[entry.stamp for entry in rows],
        hashes=[int(entry.hash, 16) for entry in rows],
        raws=[entry.raw for entry in rows],
        resources=resources,
        offsets=[entry.offset for entry in rows],
        severities=[entry.severity or 0 for entry in rows] if parsed else None,
        messages=[entry.message or "" for entry in rows] if parsed else None,
        attributes=[entry.attributes or {} for entry in rows] if parsed else None,
        size=sum(len(entry.raw) for entry in rows),
    )
