"""The base of sources that follow files: fair turns over logs with data, timers, growth, and closing.

One turn reads at most one chunk of one file. Files are asked for their size by lseek on descriptors already open,
every 50 ms while something happens and every 0.5 s when nothing does.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections import deque
from itertools import repeat
from typing import TYPE_CHECKING, Any

from shipper.source import FileState, Source, SourceContext
from shipper.tailing.archive import GzipBytes
from shipper.tailing.bytes import PlainBytes
from shipper.tailing.fingerprint import HEAD_BYTES, digest
from shipper.tailing.following import SWEEP, Following
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

    # What the concrete source does

    @abstractmethod
    def discover(self) -> list[FileSet]:
        """Give the logs whose directory changed since the last time; new ones included."""

    @abstractmethod
    def wanted(self, fileset: FileSet) -> bool:
        """Tell whether the configuration wants this log; what is known of one it no longer wants is kept."""

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
        changed = dict.fromkeys(self.discover())
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
            try:
                if self._reconcile(fileset):
                    self._ready[fileset] = None
            except OSError as error:
                fileset.scan_failed = True
                self._report(fileset.path, error)
        for fileset in list(self.filesets.values()):
            if fileset.drained:
                self._close_drained(fileset, now)
            if fileset.directory_gone and not fileset.open_files and not fileset.states:
                del self.filesets[fileset.name]
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
        for _, file in self._polled_files:
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
                file.quiet_since = None
                file.size = max(file.size, new)
                if file not in fileset.queue:
                    fileset.drained.remove(file)
                    fileset.queue.appendleft(file)
                self._ready[fileset] = None
        self._polled_sizes = sizes
        return True

    def _close_drained(self, fileset: FileSet, now: float) -> None:
        positions = self._context.positions
        for file in list(fileset.drained):
            quiet = now - (file.quiet_since if file.quiet_since is not None else now)
            if file.emitted < file.position or (quiet < self.rotate_wait and not self._context.once and file.linked):
                continue
            state = file.state
            if isinstance(file.data, GzipBytes):
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

    def _contained(self, fileset: FileSet, action: Callable[[FileSet], bool]) -> bool:
        try:
            return action(fileset)
        except OSError as error:
            file = fileset.current
            self._report(file.path if file is not None else fileset.path, error)
            # The next sweep tries again, though the file may not have grown by then.
            fileset.scan_failed = True
            return False
