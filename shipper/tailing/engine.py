"""The base of sources that follow files: fair turns over logs with data, timers, growth, and closing.

One turn reads at most one chunk of one file. Files are asked for their size by lseek on descriptors already open,
every 50 ms while something happens and every 0.5 s when nothing does.
"""

from __future__ import annotations

import os
import sqlite3
from abc import abstractmethod
from collections import deque
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any

from shipper.errors import SourceError, StateError
from shipper.source import FileState, Source, SourceContext
from shipper.tailing.archive import ArchiveBytes
from shipper.tailing.bytes import PlainBytes
from shipper.tailing.fingerprint import HEAD_BYTES, digest
from shipper.tailing.following import SWEEP, Following
from shipper.tailing.paths import printable
from shipper.telemetry.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shipper.record import Batch
    from shipper.tailing.fileset import FileSet
    from shipper.tailing.tailedfile import TailedFile
    from shipper.tailing.watch import Watch

#: Turns after which `poll` ends, so that discovery is not held up by a backlog.
TURNS = 32
BUSY_WAIT = 0.05
IDLE_WAIT = 0.5
#: Seconds without a byte after which a rotated plain file is finished: its writer may not have reopened yet.
ROTATE_WAIT = 60.0
#: Seconds after which a later time without other bytes is taken for an overwriting with equal ones.
OVERWRITE_WAIT = 3.0
#: Faults, by file and kind, that were said and are not said again.
FAULTS_KEPT = 1000

_log = get_logger(__name__)


class TailSource(Following, Source):
    """What the sources ``docker`` and ``file`` share. They find logs, name siblings and decode blocks."""

    #: Seconds that a rotated file without news is kept open.
    rotate_wait = ROTATE_WAIT

    def __init__(self, config: Any) -> None:
        super().__init__()
        self._config = config
        self._watch: Watch | None = None
        self._polled_files: list[tuple[FileSet, TailedFile]] = []
        self._polled_fds: list[int] = []
        self._polled_sizes: list[int] = []
        self._sweep_at = 0.0
        self._pause = BUSY_WAIT
        self._polled = False
        self._blocked = False
        self._faults: set[tuple[str, type[Exception]]] = set()

    # What the concrete source does

    @abstractmethod
    def discover(self) -> list[FileSet]:
        """Give the logs whose directory changed since the last time; new ones included."""

    @abstractmethod
    def wanted(self, fileset: FileSet) -> bool:
        """Tell whether the configuration wants this log; what is known of one it no longer wants is kept."""

    def vanished(self, fileset: FileSet) -> bool:
        """Tell whether nothing is left of a log on disk, so that nothing of it need be remembered."""
        return fileset.directory_gone

    def forget(self, fileset: FileSet) -> None:
        """Drop a log that is gone, with all that is kept for it."""
        self.filesets.pop(fileset.name, None)
        self._ready.pop(fileset, None)
        self._awaiting_timer.pop(fileset, None)

    # Source

    def open(self, context: SourceContext) -> None:
        """See `Source.open`."""
        self._context = context
        self._polled = False
        self._adopt_states(context.positions.files(context.name))
        self._watch = self.start_watch(context)
        self._sweep(context.clock.monotonic())

    @abstractmethod
    def start_watch(self, context: SourceContext) -> Watch:
        """Start watching directories."""

    def poll(self, accept: Callable[[bool], bool]) -> Iterator[Batch]:
        """See `Source.poll`."""
        now = self._context.clock.monotonic()
        assert self._watch is not None
        if self._watch.dirty() or now >= self._sweep_at:
            self._sweep(now)
        grown = self._poll_sizes()
        turns = 0
        self._blocked = False
        waiting = deque(self._ready)
        while self._batches or (waiting and turns < TURNS):
            while self._batches:
                yield self._batches.popleft()
            if not waiting:
                break
            fileset = waiting.popleft()
            file = fileset.current
            if file is None:
                self._ready.pop(fileset, None)
                continue
            if not accept(file.at_risk):
                self._blocked = True
                continue
            turns += 1
            if self._contained(fileset, self._read_chunk):
                waiting.append(fileset)
            else:
                self._ready.pop(fileset, None)
        for fileset in list(self._awaiting_timer):
            self._contained(fileset, self._check_timers)
        while self._batches:
            yield self._batches.popleft()
        busy = bool(turns or grown)
        self._pause = BUSY_WAIT if busy else min(IDLE_WAIT, self._pause * 1.25)
        self._polled = True

    def idle(self) -> float:
        """See `Source.idle`."""
        if self._watch is not None and self._watch.pending:
            return 0.0
        if self._ready and not self._blocked:
            return 0.0
        return BUSY_WAIT if self._awaiting_timer or self._blocked else self._pause

    def exhausted(self) -> bool:
        """See `Source.exhausted`."""
        return (
            self._polled
            and not self._ready
            and not self._batches
            and not any(len(fileset.queue) > 1 or fileset.joiner.holding for fileset in self.filesets.values())
        )

    def rescue(self, accept: Callable[[bool], bool]) -> Iterator[Batch]:
        """See `Source.rescue`."""
        while self._batches:
            yield self._batches.popleft()
        for fileset in self.filesets.values():
            while (file := fileset.current) is not None and not file.linked and accept(True):
                more = self._contained(fileset, self._read_chunk)
                if not more and fileset.current is file:
                    fileset.joiner.flush()
                    self._emit(fileset)
                    more = False
                while self._batches:
                    yield self._batches.popleft()
                if not more:
                    break

    def counts(self) -> tuple[int, int]:
        """See `Source.counts`."""
        # A copy, made in one step: other threads ask, while the reader finds new logs.
        return sum(len(fileset.open_files) for fileset in list(self.filesets.values())), len(self._unreadable)

    def close(self) -> None:
        """See `Source.close`."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        for fileset in self.filesets.values():
            for file in fileset.open_files:
                file.data.close()
            for _, fd in fileset.seized:
                os.close(fd)
        self.filesets.clear()
        self._ready.clear()
        self._awaiting_timer.clear()
        self._polled_files, self._polled_fds, self._polled_sizes = [], [], []

    # Discovery and growth

    def _sweep(self, now: float) -> None:
        self._sweep_at = now + (SWEEP if self._pause < IDLE_WAIT else 2 * SWEEP)
        if self._unreadable:
            self._forget_unreadable()
        changed = dict.fromkeys(self._discovered())
        changed.update(
            (fileset, None)
            for fileset in self.filesets.values()
            if fileset.missing or fileset.seized or fileset.scan_failed
        )
        for fileset in changed:
            if not self.wanted(fileset):
                if fileset.states and not fileset.unwanted_reported:
                    fileset.unwanted_reported = True
                    _log.info("log is no longer asked for; what is known of it is kept", log=fileset.path)
                continue
            if self._contained(fileset, self._reconcile):
                self._ready[fileset] = None
        for fileset in list(self.filesets.values()):
            if fileset.drained:
                self._contained(fileset, self._close_drained)
            if not fileset.open_files and not fileset.states and not fileset.seized and self.vanished(fileset):
                self.forget(fileset)
        if self.open_files_changed:
            self.open_files_changed = False
            self._polled_files = [
                (fileset, file)
                for fileset in self.filesets.values()
                for file in fileset.open_files
                if isinstance(file.data, PlainBytes)
            ]
            self._polled_fds = [file.data.fd for _, file in self._polled_files]
            self._polled_sizes = [file.size for _, file in self._polled_files]
        for fileset, file in self._polled_files:
            try:
                self._look_at_open(fileset, file, now)
            except OSError as error:
                self._failed(fileset, file.path, error)

    def _discovered(self) -> list[FileSet]:
        try:
            found = self.discover()
        except (sqlite3.Error, StateError, SourceError):
            raise
        except Exception as error:  # noqa: BLE001 - what is open already is read on
            self._report(self._context.name, error)
            return []
        self._unreadable.pop(self._context.name, None)
        return found

    def _look_at_open(self, fileset: FileSet, file: TailedFile, now: float) -> None:
        if file.modified and file.live:
            status = os.fstat(file.data.fd)
            if status.st_mtime_ns != file.modified and status.st_size == file.position:
                self._notice_overwriting(fileset, file, status, now)
        state = file.state
        if state is not None and state.size != file.size and file.size >= state.size:
            self._save_size(file, state)

    def _save_size(self, file: TailedFile, state: FileState) -> None:
        state.size = file.size
        if state.head_size < HEAD_BYTES and file.size > state.head_size and file.unchanged():
            head = file.data.read(0, HEAD_BYTES)
            if digest(head[: state.head_size]) == state.head:
                state.head, state.head_size = digest(head), len(head)
        self._context.positions.update(state)

    def _poll_sizes(self) -> bool:
        if self.open_files_changed:
            self._sweep(self._context.clock.monotonic())
        sizes = list(map(os.lseek, self._polled_fds, repeat(0), repeat(os.SEEK_END)))
        if sizes == self._polled_sizes:
            return False
        for (fileset, file), old, new in zip(self._polled_files, self._polled_sizes, sizes, strict=True):
            if old != new:
                self._contained(fileset, partial(self._note_size, file=file, size=new))
        self._polled_sizes = sizes
        return True

    def _note_size(self, fileset: FileSet, *, file: TailedFile, size: int) -> bool:
        """Take note that a file has another size; bytes count as its own while those before them are the same."""
        file.quiet_since = None
        if file in fileset.drained:
            fileset.drained.remove(file)
            fileset.queue.appendleft(file)
        self._ready[fileset] = None
        if size > file.size:
            if file.unchanged():
                file.size = size
        elif file.position <= size < file.size and file.unchanged():
            self.account_cut(fileset, file, size)
        return True

    def _notice_overwriting(self, fileset: FileSet, file: TailedFile, status: os.stat_result, now: float) -> None:
        """Find out whether a log was overwritten with as many bytes: its time moved on, its size did not.

        Other bytes say so at once. Equal ones do when the times are those of a write: ``touch`` sets the time of access
        too, and who sets a chosen time leaves another time of change. A write sets the time a moment before the size,
        so it must stay so for a while; and a file that was made long beforehand ends in NUL bytes until it is full.
        """
        written = status.st_ctime_ns == status.st_mtime_ns != status.st_atime_ns
        if not file.unchanged():
            self._ready[fileset] = None
        elif not written or file.last_bytes.endswith(b"\0"):
            file.modified = status.st_mtime_ns
        elif file.suspected_since is None:
            file.suspected_since = now
        elif now - file.suspected_since >= OVERWRITE_WAIT:
            file.overwritten = True
            self._ready[fileset] = None

    def _close_drained(self, fileset: FileSet) -> bool:
        """Close files that were read to their end and that are safe everywhere."""
        positions = self._context.positions
        now = self._context.clock.monotonic()
        for file in list(fileset.drained):
            quiet = now - (file.quiet_since if file.quiet_since is not None else now)
            if file.emitted < file.position or (quiet < self.rotate_wait and not self._context.once and file.linked):
                continue
            state = file.state
            if isinstance(file.data, ArchiveBytes):
                if file.data.grown():
                    fileset.drained.remove(file)
                    fileset.queue.appendleft(file)
                    self._ready[fileset] = None
                    continue
                if file.data.torn and state is None:
                    self._register(fileset, file)
                    state = file.state
            if state is not None:
                if positions.safe(state.key) < file.emitted:
                    continue
                self._account_damage(state, file.data, file.emitted)
                state.done, state.size = True, max(state.size, file.emitted)
                state.offset, state.marker = file.emitted, file.marker
                positions.update(state)
                fileset.missing.setdefault(state.key, 0)
            fileset.drained.remove(file)
            file.data.close()
            self.open_files_changed = True
        return False

    def _contained(self, fileset: FileSet, action: Callable[[FileSet], bool]) -> bool:
        """Do something with one log; whatever that raises is this log's alone, and the next sweep tries again."""
        try:
            return action(fileset)
        except (sqlite3.Error, StateError, SourceError):
            # The state is everybody's: without it nothing can be read, so the pipeline is to know.
            raise
        except Exception as error:  # noqa: BLE001 - one log at fault must not stop the others
            file = fileset.current
            self._failed(fileset, file.path if file is not None else fileset.path, error)
            return False

    def _failed(self, fileset: FileSet, path: str, error: Exception) -> None:
        # The next sweep tries again, though the file may not have grown by then.
        fileset.scan_failed = True
        self._report(path, error)
        if not isinstance(error, OSError):
            self._context.fault(path, type(error).__name__)

    def _line_at_fault(self, path: str, error: Exception) -> None:
        """Count a line, or a block that must be taken line by line, and say the first of each kind."""
        kind = path, type(error)
        if kind not in self._faults:
            if len(self._faults) >= FAULTS_KEPT:
                self._faults.clear()
            self._faults.add(kind)
            _log.error(
                "a line cannot be decoded; it goes on as it stands, marked shipper.fault",
                file=printable(path),
                error=f"{type(error).__name__}: {error}"[:500],
            )
        self._context.fault(path, type(error).__name__)
