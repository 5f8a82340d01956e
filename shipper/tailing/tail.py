"""One generation of a file being read (`Tail`), and all generations of one logical log in order (`Log`).

Invariants:

* ``given <= position``. Bytes below ``given`` were handed out in batches; those between wait in the joiner.
* A descriptor is held until its file is read to the end and, for files that are no longer live, until every sink has
  it safe. While it is held the inode cannot be reused, so (device, inode) is the identity of an open tail.
* ``Log.queue`` is oldest first and only its first tail is read, so records leave in the order they were written.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from shipper.record import Batch, Span
from shipper.tailing.bytes import MARKER_BYTES, GzipBytes, digest

if TYPE_CHECKING:
    from shipper.source import FileState
    from shipper.tailing.bytes import Bytes
    from shipper.tailing.join import Joiner, Row


class Tail:
    """One open generation. ``state`` is None until its first line is there to be identified by."""

    def __init__(self, data: Bytes, path: str, *, state: FileState | None = None, generation: int = 0) -> None:
        self.data = data
        self.path = path
        self.state = state
        self.generation = state.generation if state is not None else generation
        self.position = self.given = state.offset if state is not None else 0
        self.marker = state.marker if state is not None else 0
        self.last = b""  # the up to 256 bytes before `position`, to notice that they changed under us
        self.size = 0
        self.live = True
        self.linked = True
        self.started = False
        self.skips: list[tuple[int, int]] = []
        self.cuts: frozenset[int] = frozenset()  # where records were cut before the restart; see `Positions.anchor`
        self.run_stamp = 0  # the last line's source time before repeats were told apart, and
        self.run: dict[bytes, int] = {}  # how often each line occurred in the run of lines with that time
        self.form = ""  # what the decoder found the file to be
        self.quiet_since: float | None = None
        self.part = 0

    @property
    def at_risk(self) -> bool:
        """Whether the file may vanish before a slow sink is ready for it."""
        return not (self.live and self.linked)

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode."""
        return self.data.device, self.data.inode

    def absorb(self, start: int, end: int) -> None:
        """Note that the line ``[start, end)`` belongs to a record of the file before."""
        if self.skips and self.skips[-1][1] == start:
            self.skips[-1] = (self.skips[-1][0], end)
        else:
            self.skips.append((start, end))

    def skipped(self, offset: int) -> bool:
        """Tell whether a line belongs to a record of the file before."""
        return any(start <= offset < end for start, end in self.skips)

    def unchanged(self) -> bool:
        """Tell whether the bytes before the position still are those that were read."""
        if not self.last:
            state = self.state
            return state is None or digest(self.data.read(0, state.head_size)) == state.head
        return self.data.read(self.position - len(self.last), len(self.last)) == self.last

    def remember(self) -> None:
        """Read the bytes before the position, to notice later that they changed."""
        start = max(0, self.position - MARKER_BYTES)
        self.last = self.data.read(start, self.position - start)

    def next_cut(self) -> int | None:
        """Give the next offset at which a record was cut before the restart."""
        return min((cut for cut in self.cuts if cut > self.position), default=None)

    def advance(self, block: bytes) -> None:
        """Move the position past a block that was read at it."""
        self.position += len(block)
        self.last = block[-MARKER_BYTES:] if len(block) >= MARKER_BYTES else (self.last + block)[-MARKER_BYTES:]

    def span(self, end: int) -> Span:
        """Make the next span up to ``end`` and note it as given."""
        assert self.state is not None
        if end == self.position:
            self.marker = digest(self.last)
        else:
            start = max(0, end - MARKER_BYTES)
            self.marker = digest(self.data.read(start, end - start))
        span = Span(self.state.key, self.given, end, self.marker)
        self.given = end
        return span

    def inflating(self) -> bool:
        """Whether this is an archive whose size is not known yet."""
        return isinstance(self.data, GzipBytes) and not self.data.ended


class Log:
    """One logical log: the generations of one container's log or of one path."""

    def __init__(self, name: str, path: str, joiner: Joiner) -> None:
        self.name = name
        self.path = path
        self.joiner = joiner
        self.queue: deque[Tail] = deque()
        self.lingering: list[Tail] = []  # read to the end, not yet safe everywhere
        self.states: dict[int, FileState] = {}  # every generation the checkpoint knows of this log
        self.settled: dict[tuple[int, int, int, int], int] = {}  # siblings judged before, by stat
        self.missing: dict[int, int] = {}  # unreadable generations by the number of scans that missed them
        self.spare: list[tuple[str, int]] = []  # descriptors opened by the watcher: path, fd
        self.generation = 0  # the next new generation's number, at least
        self.signature: tuple[int, ...] = ()
        self.ended = False  # nobody will write any more
        self.gone = False  # its directory was removed
        self.first_scan = True
        self.left = False  # known to the checkpoint, but no longer asked for, and said so
        self.troubled = False  # a file of it could not be looked at: try again, and call nothing lost

    @property
    def current(self) -> Tail | None:
        """The tail that is being read."""
        return self.queue[0] if self.queue else None

    @property
    def tails(self) -> list[Tail]:
        """All open tails."""
        return [*self.lingering, *self.queue]

    def batches(self) -> list[Batch]:
        """Make batches of all rows that may leave, one per tail, spans contiguous."""
        rows = self.joiner.take()
        result = []
        for tail in self.tails:
            if tail.state is None or (tail.given == tail.position and not rows):
                continue
            held = self.joiner.first_held(tail) if self.joiner.holding else None
            end = tail.position if held is None else held
            mine = [row for row in rows if row.tail is tail]
            if end > tail.given or mine:
                result.append(_batch(tail, mine, end))
            if held is not None:
                break
        return result


def _batch(tail: Tail, rows: list[Row], end: int) -> Batch:
    marks = {index: row.mark for index, row in enumerate(rows) if row.mark is not None}
    start = tail.given
    return Batch(
        times=[row.time for row in rows],
        stamps=[row.stamp for row in rows],
        hashes=[row.digest for row in rows],
        raws=[row.raw for row in rows],
        resources=[row.resource for row in rows],
        offsets=[row.offset for row in rows],
        span=tail.span(end),
        size=end - start,
        at_risk=tail.at_risk,
        marks=marks or None,
    )
