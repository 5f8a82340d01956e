"""One open file of a log (`TailedFile`): what it is, how far it was read and what left of it.

Invariants:

* ``emitted <= position``. Bytes below ``emitted`` left in batches; those between wait in the joiner.
* A descriptor is held until its file is read to the end and, for files that are no longer live, until every sink has
  it safe. While it is held the inode cannot be reused, so (device, inode) is the identity of an open file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shipper.record import Span
from shipper.tailing.archive import ArchiveBytes
from shipper.tailing.fingerprint import MARKER_BYTES, digest

if TYPE_CHECKING:
    from shipper.source import FileState
    from shipper.tailing.bytes import Bytes
    from shipper.tailing.encoding import Encoding


class TailedFile:
    """One generation of a log, open. ``state`` is None until its first line is there to be identified by.

    ``live`` means that a program writes to it under the log's own name, ``linked`` that it has a name at all.
    ``skips`` are ranges of lines that belong to a record which began in the file before; see `note_skip`.
    ``part`` counts the pieces of a line too long for one record, while reading is inside one.
    """

    def __init__(self, data: Bytes, path: str, *, state: FileState | None = None, generation: int = 0) -> None:
        self.data = data
        self.path = path
        self.state = state
        self.generation = state.generation if state is not None else generation
        self.position = self.emitted = state.offset if state is not None else 0
        self.marker = state.marker if state is not None else 0
        self.last_bytes = b""  # the up to 256 bytes before `position`, to notice that they changed under us
        self.size = 0  # bytes that are known to belong to this generation
        self.modified = 0  # the modification time at which the file was read to its end, 0 while it is not
        self.suspected_since: float | None = None  # when a later time was seen without a byte more
        self.overwritten = False  # by as many bytes, which may even be equal
        self.live = True
        self.linked = True
        self.decoder_ready = False
        self.skips: list[tuple[int, int]] = []
        self.cuts: frozenset[int] = frozenset()  # where records were cut before the restart; see `Positions.anchor`
        self.run_time = 0  # the last line's source time before repeats were told apart, and
        self.run: dict[bytes, int] = {}  # how often each line occurred in the run of lines with that time
        self.encoding: Encoding | None = None  # once the bytes that tell it are there
        self.line_format = ""  # what the decoder found the file to be
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

    def note_skip(self, start: int, end: int) -> None:
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
        if not self.last_bytes:
            state = self.state
            return state is None or digest(self.data.read(0, state.head_size)) == state.head
        return self.data.read(self.position - len(self.last_bytes), len(self.last_bytes)) == self.last_bytes

    def was(self, data: Bytes) -> bool:
        """Tell whether other bytes are those that were read of this file, whatever became of it since."""
        state = self.state
        if state is None or not state.head_size:
            return False
        head = data.read(0, state.head_size)
        before = data.read(self.position - len(self.last_bytes), len(self.last_bytes))
        return before == self.last_bytes and len(head) == state.head_size and digest(head) == state.head

    def remember(self) -> None:
        """Read the bytes before the position, to notice later that they changed."""
        start = max(0, self.position - MARKER_BYTES)
        self.last_bytes = self.data.read(start, self.position - start)

    def next_cut(self) -> int | None:
        """Give the next offset at which a record was cut before the restart."""
        return min((cut for cut in self.cuts if cut > self.position), default=None)

    def advance(self, block: bytes) -> None:
        """Move the position past a block that was read at it."""
        self.position += len(block)
        self.last_bytes = (
            block[-MARKER_BYTES:] if len(block) >= MARKER_BYTES else (self.last_bytes + block)[-MARKER_BYTES:]
        )

    def span(self, end: int) -> Span:
        """Make the next span up to ``end`` and note it as emitted."""
        assert self.state is not None
        if end == self.position:
            self.marker = digest(self.last_bytes)
        else:
            start = max(0, end - MARKER_BYTES)
            self.marker = digest(self.data.read(start, end - start))
        span = Span(self.state.key, self.emitted, end, self.marker)
        self.emitted = end
        return span

    def inflating(self) -> bool:
        """Whether this is an archive whose size is not known yet."""
        return isinstance(self.data, ArchiveBytes) and not self.data.ended
