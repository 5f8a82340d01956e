"""The base of sources that follow files: fair turns over logs with data, timers, growth, and settling.

One turn reads at most one chunk of one file. Files are asked for their size by lseek on descriptors already open,
every 50 ms while something happens and every 0.5 s when nothing does.
"""

from __future__ import annotations

import os
import sqlite3
from abc import abstractmethod
from collections import deque
from itertools import repeat
from typing import TYPE_CHECKING, Any

from shipper.source import FileState, Source, SourceContext
from shipper.tailing.bytes import HEAD_BYTES, GzipBytes, PlainBytes, digest, marker_at
from shipper.tailing.join import FRAGMENT_WAIT
from shipper.tailing.rotation import Rotation
from shipper.telemetry.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shipper.record import Batch
    from shipper.tailing.tail import Log, Tail
    from shipper.tailing.watch import Watch

#: Bytes read of one file in one turn. With fewer, reader and deliveries change places too often; with more, what is made
#: of them does not stay in the processor's cache.
CHUNK = 240 * 1024
#: Seconds between two looks at the directories; twice that when nothing happens.
SWEEP = 1.0
#: Turns after which `poll` ends, so that discovery is not held up by a backlog.
TURNS = 32
BUSY_WAIT = 0.05
IDLE_WAIT = 0.5
#: Seconds without a byte after which a rotated plain file is finished: its writer may not have reopened yet.
LINGER = 60.0
#: Seconds without a byte after which a log whose writer has ended is complete. A sweep lies between: a writer that has
#: only just begun (a container that writes before Docker marks it as running) is known as one by then.
ENDED_WAIT = SWEEP

_log = get_logger(__name__)


class TailSource(Rotation, Source):
    """What the sources ``docker`` and ``file`` share. They find logs, name siblings and decode blocks."""

    #: Whether a record may go on from the end of one generation to the start of the next.
    carries = False
    #: Seconds that a rotated file without news is kept open.
    linger = LINGER
    #: Whether NUL bytes are holes (and not half of a character).
    holes = True
    #: The longest physical line in bytes that is one record.
    max_line = 1 << 20

    def __init__(self, config: Any) -> None:
        super().__init__()
        self._config = config
        self._ready: dict[Log, None] = {}
        self._timed: dict[Log, None] = {}
        self._out: deque[Batch] = deque()
        self._watch: Watch | None = None
        self._tails: list[tuple[Log, Tail]] = []
        self._fds: list[int] = []
        self._sizes: list[int] = []
        self._sweep_at = 0.0
        self._pause = BUSY_WAIT
        self._polled = False
        self._blocked = False
        self._unsaved = False

    # What the concrete source does

    @abstractmethod
    def discover(self) -> list[Log]:
        """Give the logs whose directory changed since the last time; new ones included."""

    @abstractmethod
    def wanted(self, log: Log) -> bool:
        """Tell whether the configuration wants this log; what is known of one it no longer wants is kept."""

    @abstractmethod
    def decode(self, log: Log, tail: Tail, block: bytes) -> Batch | None:
        """Take whole lines that begin at the tail's position: give a batch, or feed the log's joiner."""

    @abstractmethod
    def piece(self, log: Log, tail: Tail, piece: bytes, *, last: bool) -> None:
        """Take part of a line: one that is too long (``last`` is False), or that ends without newline."""

    def begin(self, log: Log, tail: Tail) -> None:
        """Prepare the decoder for a tail, at the position where reading begins."""

    def may_finish(self, log: Log) -> bool:
        """Tell whether a last line without newline at the end of a quiet live file is complete: nobody writes."""
        return log.ended or self._context.once

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
        grown = self._grown()
        turns = 0
        self._blocked = False
        waiting = deque(self._ready)
        while self._out or (waiting and turns < TURNS):
            while self._out:
                yield self._out.popleft()
            if not waiting:
                break
            log = waiting.popleft()
            tail = log.current
            if tail is None:
                self._ready.pop(log, None)
                continue
            if not accept(tail.at_risk):
                self._blocked = True
                continue
            turns += 1
            if self._safely(log, self._turn):
                waiting.append(log)
            else:
                self._ready.pop(log, None)
        for log in list(self._timed):
            self._safely(log, self._time)
        while self._out:
            yield self._out.popleft()
        busy = bool(turns or grown)
        self._pause = BUSY_WAIT if busy else min(IDLE_WAIT, self._pause * 1.25)
        self._polled = True

    def idle(self) -> float:
        """See `Source.idle`."""
        if self._watch is not None and self._watch.pending:
            return 0.0
        if self._ready and not self._blocked:
            return 0.0
        return BUSY_WAIT if self._timed or self._blocked else self._pause

    def exhausted(self) -> bool:
        """See `Source.exhausted`."""
        return (
            self._polled
            and not self._ready
            and not self._out
            and not any(len(log.queue) > 1 or log.joiner.holding for log in self.logs.values())
        )

    def rescue(self, accept: Callable[[bool], bool]) -> Iterator[Batch]:
        """See `Source.rescue`."""
        while self._out:
            yield self._out.popleft()
        for log in self.logs.values():
            while (tail := log.current) is not None and not tail.linked and accept(True):
                more = self._safely(log, self._turn)
                if not more and log.current is tail:
                    log.joiner.flush()
                    self._give(log)
                    more = False
                while self._out:
                    yield self._out.popleft()
                if not more:
                    break

    def counts(self) -> tuple[int, int]:
        """See `Source.counts`."""
        # A copy, made in one step: other threads ask, while the reader finds new logs.
        return sum(len(log.tails) for log in list(self.logs.values())), len(self._unreadable)

    def close(self) -> None:
        """See `Source.close`."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        for log in self.logs.values():
            for tail in log.tails:
                tail.data.close()
            for _, fd in log.spare:
                os.close(fd)
        self.logs.clear()
        self._ready.clear()
        self._timed.clear()
        self._tails, self._fds, self._sizes = [], [], []

    # Discovery and growth

    def _sweep(self, now: float) -> None:
        self._sweep_at = now + (SWEEP if self._pause < IDLE_WAIT else 2 * SWEEP)
        changed = dict.fromkeys(self.discover())
        changed.update((log, None) for log in self.logs.values() if log.missing or log.spare or log.troubled)
        for log in changed:
            if not self.wanted(log):
                if log.states and not log.left:
                    log.left = True
                    _log.info("log is no longer asked for; what is known of it is kept", log=log.path)
                continue
            try:
                if self._reconcile(log):
                    self._ready[log] = None
            except OSError as error:
                log.troubled = True
                self._report(log.path, error)
        for log in list(self.logs.values()):
            if log.lingering:
                self._settle(log, now)
            if log.gone and not log.tails and not log.states:
                del self.logs[log.name]
        if self.rewatch:
            self.rewatch = False
            self._tails = [
                (log, tail) for log in self.logs.values() for tail in log.tails if isinstance(tail.data, PlainBytes)
            ]
            self._fds = [tail.data.fd for _, tail in self._tails]
            self._sizes = [tail.size for _, tail in self._tails]
        for _, tail in self._tails:
            state = tail.state
            if state is not None and state.size != tail.size and tail.size >= state.size:
                self._save_size(tail, state)

    def _save_size(self, tail: Tail, state: FileState) -> None:
        state.size = tail.size
        if state.head_size < HEAD_BYTES and tail.size > state.head_size and tail.unchanged():
            head = tail.data.read(0, HEAD_BYTES)
            if digest(head[: state.head_size]) == state.head:
                state.head, state.head_size = digest(head), len(head)
        self._context.positions.update(state)

    def _grown(self) -> bool:
        if self.rewatch:
            self._sweep(self._context.clock.monotonic())
        sizes = list(map(os.lseek, self._fds, repeat(0), repeat(os.SEEK_END)))
        if sizes == self._sizes:
            return False
        for (log, tail), old, new in zip(self._tails, self._sizes, sizes, strict=True):
            if old != new:
                tail.quiet_since = None
                tail.size = max(tail.size, new)
                if tail not in log.queue:
                    log.lingering.remove(tail)
                    log.queue.appendleft(tail)
                self._ready[log] = None
        self._sizes = sizes
        return True

    def _settle(self, log: Log, now: float) -> None:
        positions = self._context.positions
        for tail in list(log.lingering):
            quiet = now - (tail.quiet_since if tail.quiet_since is not None else now)
            if tail.given < tail.position or (quiet < self.linger and not self._context.once and tail.linked):
                continue
            state = tail.state
            if isinstance(tail.data, GzipBytes):
                if tail.data.grown():
                    log.lingering.remove(tail)
                    log.queue.appendleft(tail)
                    self._ready[log] = None
                    continue
                if tail.data.torn and state is None:
                    self._register(log, tail)
                    state = tail.state
            if state is not None:
                if positions.safe(state.key) < tail.given:
                    continue
                self._damaged(state, tail.data, tail.given)
                state.done, state.size = True, max(state.size, tail.given)
                state.offset, state.marker = tail.given, tail.marker
                positions.update(state)
                log.missing.setdefault(state.key, 0)
            log.lingering.remove(tail)
            tail.data.close()
            self.rewatch = True

    # Reading

    def _safely(self, log: Log, action: Callable[[Log], bool]) -> bool:
        try:
            return action(log)
        except OSError as error:
            tail = log.current
            self._report(tail.path if tail is not None else log.path, error)
            # The next sweep tries again, though the file may not have grown by then.
            log.troubled = True
            return False

    def _turn(self, log: Log) -> bool:
        """Read one chunk of the log's current tail; tell whether there may be more."""
        tail = log.queue[0]
        if not tail.started:
            tail.started = True
            self.begin(log, tail)
        if not tail.unchanged():
            self._truncated(log, tail)
            self._give(log)
            return True
        count, most = CHUNK, max(CHUNK, self.max_line + 4)
        known_cut = tail.next_cut() if tail.cuts else None
        if known_cut is not None:
            count, most = (min(size, known_cut - tail.position) for size in (count, most))
        block = tail.data.read(tail.position, count)
        if block[:1] == b"\0" and self.holes:
            return self._skip_hole(log, tail, block)
        cut = self.cut(tail, block)
        if not cut and len(block) == CHUNK:
            block = tail.data.read(tail.position, most)
            cut = self.cut(tail, block)
            if not cut and len(block) > self.max_line:
                self._register(log, tail)
                piece = self.clip(block)
                self.piece(log, tail, piece, last=False)
                tail.advance(piece)
                self._give(log)
                return True
        if not cut and tail.position + len(block) == known_cut:
            self._unended(log, tail, block)
            self._give(log)
            return True
        if not cut:
            return self._end(log, tail)
        tail.quiet_since = None
        self._register(log, tail)
        full = len(block) >= count or tail.inflating()
        if cut < len(block):
            block = block[:cut]
        batch = self.decode(log, tail, block)
        tail.advance(block)
        if batch is not None:
            start = tail.given
            batch.span = tail.span(tail.position)
            batch.size = tail.position - start
            batch.at_risk = tail.at_risk
            self._out.append(batch)
        else:
            self._save_skips(log, tail)
            self._give(log)
        return full or self._end(log, tail)

    def cut(self, tail: Tail, block: bytes) -> int:  # noqa: ARG002 - the file source needs it
        """Give where the last whole line of a block, read at the tail's position, ends."""
        return block.rfind(b"\n") + 1

    def clip(self, block: bytes) -> bytes:
        """Cut a piece of `max_line` bytes from a longer line, not inside a UTF-8 character."""
        end = self.max_line
        while end > self.max_line - 3 and block[end] & 0xC0 == 0x80:
            end -= 1
        return block[: end if self.holes else end & ~3]

    def _skip_hole(self, log: Log, tail: Tail, block: bytes) -> bool:
        text = block.lstrip(b"\0")
        skipped = len(block) - len(text)
        self._register(log, tail)
        tail.advance(block[:skipped])
        if not text and isinstance(tail.data, PlainBytes):
            target = min(tail.data.data_after(tail.position), tail.data.size())
            if target > tail.position:
                tail.position = target
                tail.remember()
        self._give(log)
        return True

    def _end(self, log: Log, tail: Tail) -> bool:
        """Take note that the end was reached; go on to the next generation if this one is finished."""
        now = self._context.clock.monotonic()
        if tail.quiet_since is None:
            tail.quiet_since = now
        tail.size = max(tail.size, tail.data.size())
        if tail.state is None and tail.position:
            self._register(log, tail)
        if tail.live:
            if log.joiner.holding or tail.size > tail.position:
                self._timed[log] = None
            return False
        if isinstance(tail.data, GzipBytes):
            if tail.data.grown():
                tail.quiet_since = None
                return True
            if tail.size > tail.position and not tail.data.torn and not self._finish_line(log, tail):
                return True
        rest = tail.size > tail.position
        if rest and not (
            (self.carries and isinstance(tail.data, PlainBytes))
            or self._context.once
            or not tail.linked
            or now - tail.quiet_since >= FRAGMENT_WAIT
        ):
            self._timed[log] = None
            return False
        if rest and not self._finish_line(log, tail):
            return True
        if not self.carries or (len(log.queue) == 1 and log.gone):
            log.joiner.flush()
        log.lingering.append(log.queue.popleft())
        self._give(log)
        if log.queue:
            return True
        if log.joiner.holding:
            self._timed[log] = None
        return False

    def _time(self, log: Log) -> bool:
        """Close what has waited long enough at the end of the file."""
        tail = log.current or (log.lingering[-1] if log.lingering else None)
        if tail is None:
            log.joiner.flush()
            self._timed.pop(log, None)
            return False
        if log in self._ready:
            return False
        if not tail.live and log.current is tail:
            if self._end(log, tail):
                self._ready[log] = None
            return False
        if tail.quiet_since is None:
            return False
        quiet = self._context.clock.monotonic() - tail.quiet_since
        settled = self._context.once or quiet >= ENDED_WAIT
        final = self._context.once or (log.ended and settled) or (log.gone and log.current is None)
        rest = tail.size > tail.position
        if rest and ((settled and self.may_finish(log)) or (not self.carries and quiet >= FRAGMENT_WAIT)):
            if not self._finish_line(log, tail):
                self._ready[log] = None
                return False
            rest = False
        if final:
            log.joiner.flush()
        else:
            log.joiner.due(quiet)
        self._give(log)
        if not log.joiner.holding and (not rest or (self.carries and not log.ended)):
            self._timed.pop(log, None)
        return False

    def _finish_line(self, log: Log, tail: Tail) -> bool:
        """Take a last line that has no end as it is; False when its end was written meanwhile."""
        rest = tail.data.read(tail.position, max(CHUNK, self.max_line + 4))
        if self.cut(tail, rest):
            tail.quiet_since = None
            return False
        if rest:
            self._unended(log, tail, rest)
            log.joiner.cuts.append((tail, tail.position))
        return True

    def _unended(self, log: Log, tail: Tail, rest: bytes) -> None:
        """Take a line without end, in pieces if it is too long for one record."""
        self._register(log, tail)
        while len(rest) > self.max_line:
            piece = self.clip(rest)
            self.piece(log, tail, piece, last=False)
            tail.advance(piece)
            rest = rest[len(piece) :]
        self.piece(log, tail, rest, last=True)
        tail.advance(rest)
        self._save_skips(log, tail)

    def _give(self, log: Log) -> None:
        """Hand out what may leave, once the places where time cut its records are safe in the checkpoint."""
        cuts = log.joiner.cuts
        try:
            while cuts:
                tail, offset = cuts[-1]
                assert tail.state is not None
                # What has no name any more is never read a second time.
                if tail.linked:
                    self._context.positions.anchor(tail.state.key, offset, offset, 0)
                cuts.pop()
        except sqlite3.Error as error:
            self._timed[log] = None
            if not self._unsaved:
                _log.error("positions cannot be saved; records cut by time wait", error=str(error))
            self._unsaved = True
            return
        self._unsaved = False
        self._out.extend(log.batches())

    # Identity of what is read

    def _register(self, log: Log, tail: Tail) -> None:
        if tail.state is not None:
            return
        head = tail.data.read(0, HEAD_BYTES)
        device, inode = tail.identity
        state = FileState(
            key=0,
            source=self._context.name,
            path=tail.path,
            device=device,
            inode=inode,
            uid=self.uid(log, tail, head),
            head=digest(head),
            head_size=len(head),
            generation=tail.generation,
            offset=tail.given,
            marker=marker_at(tail.data, tail.given),
            size=max(tail.size, tail.given),
            tag=log.name,
        )
        tail.marker = state.marker
        tail.state = self._context.positions.add(state)
        log.states[tail.state.key] = tail.state

    @abstractmethod
    def uid(self, log: Log, tail: Tail, head: bytes) -> str:
        """Give the file's identity in ids."""

    def _save_skips(self, log: Log, tail: Tail) -> None:
        state = tail.state
        if not tail.skips or state is None:
            return
        tag = "\n".join((log.name, ",".join(f"{start}-{end}" for start, end in tail.skips)))
        if state.tag != tag:
            state.tag = tag
            self._context.positions.update(state)
