"""Reading one log: the next chunk of its oldest file, the end of a file, what silence completes, and what leaves.

One turn reads at most one chunk. What a decoder does not give as a batch goes through the log's joiner.
"""

from __future__ import annotations

import os
import sqlite3
from abc import abstractmethod
from collections import deque
from typing import TYPE_CHECKING

from shipper.source import FileState
from shipper.tailing.archive import ArchiveBytes
from shipper.tailing.bytes import PlainBytes
from shipper.tailing.fingerprint import HEAD_BYTES, digest, marker_at
from shipper.tailing.joiner import FRAGMENT_WAIT
from shipper.tailing.rotation import Rotation
from shipper.telemetry.logs import get_logger

if TYPE_CHECKING:
    from shipper.record import Batch
    from shipper.tailing.decoding import Decoded
    from shipper.tailing.fileset import FileSet
    from shipper.tailing.tailedfile import TailedFile

#: Bytes read of one file in one turn. With fewer, reader and deliveries change places too often; with more, what is made
#: of them does not stay in the processor's cache.
CHUNK = 240 * 1024
#: Seconds between two looks at the directories; twice that when nothing happens.
SWEEP = 1.0
#: Seconds without a byte after which a log whose writer has ended is complete. A sweep lies between: a writer that has
#: only just begun (a container that writes before Docker marks it as running) is known as one by then.
ENDED_WAIT = SWEEP

_log = get_logger(__name__)


class Following(Rotation):
    """Reads the file sets that rotation keeps; the source that decodes the lines fills in the rest."""

    #: Whether a record may go on from the end of one generation to the start of the next.
    joins_across_rotation = False
    #: The longest physical line in bytes that is one record.
    max_line = 1 << 20

    def __init__(self) -> None:
        super().__init__()
        #: Logs that may have something to read, and logs that wait for silence to complete something.
        self._ready: dict[FileSet, None] = {}
        self._awaiting_timer: dict[FileSet, None] = {}
        self._batches: deque[Batch] = deque()
        self._anchors_refused = False
        #: The file (its key), and the offset in it, up to which lines are taken one at a time.
        self._suspect: tuple[int, int] | None = None

    # What the concrete source does

    @abstractmethod
    def decode(self, fileset: FileSet, file: TailedFile, block: bytes) -> Decoded:
        """Take whole lines that begin at the file's position: give a batch, or feed the log's joiner."""

    @abstractmethod
    def decode_partial(self, fileset: FileSet, file: TailedFile, piece: bytes, *, last: bool) -> None:
        """Take part of a line: one that is too long (``last`` is False), or that ends without newline."""

    def begin(self, fileset: FileSet, file: TailedFile) -> None:
        """Prepare the decoder for a file, at the position where reading begins."""

    def width(self, file: TailedFile) -> int:  # noqa: ARG002 - the file source needs it
        """Give how many bytes a line feed has. Where it is more than one, NUL is half of a character, not a hole."""
        return 1

    def may_finish(self, fileset: FileSet) -> bool:
        """Tell whether a last line without newline at the end of a quiet live file is complete: nobody writes."""
        return fileset.writer_ended or self._context.once

    # Reading

    def _read_chunk(self, fileset: FileSet) -> bool:
        """Read one chunk of the log's current file; tell whether there may be more."""
        file = fileset.queue[0]
        if not file.decoder_ready:
            file.decoder_ready = True
            self.begin(fileset, file)
        if file.overwritten or not file.unchanged():
            self._truncated(fileset, file)
            self._emit(fileset)
            return True
        count, most = CHUNK, max(CHUNK, self.max_line + 4)
        known_cut = file.next_cut() if file.cuts else None
        if known_cut is not None:
            count, most = (min(size, known_cut - file.position) for size in (count, most))
        block = file.data.read(file.position, count)
        progress, line_by_line = self._context.progress, False
        if progress is not None and progress.left is not None:
            # The last process died with bytes in hand. Which line of them it was shows when each is taken alone.
            self._suspect = (progress.left.file, progress.left.start + CHUNK)
        if self._suspect is not None and block:
            state = self._register(fileset, file)
            if progress is not None and progress.is_stuck(state.key, file.position):
                return self._set_aside(fileset, file, file.data.read(file.position, most))
            key, end = self._suspect
            if key == state.key:
                if file.position >= end:
                    self._suspect = None
                elif self.width(file) == 1 and (first := block.find(b"\n") + 1):
                    block, line_by_line = block[:first], True
        if block[:1] == b"\0" and self.width(file) == 1:
            return self._skip_hole(fileset, file, block)
        end = self.end_of_lines(file, block)
        if not end and len(block) == CHUNK:
            block = file.data.read(file.position, most)
            end = self.end_of_lines(file, block)
            if not end and len(block) > self.max_line:
                self._take_in_hand(fileset, file)
                piece = self.clip(file, block)
                self.decode_partial(fileset, file, piece, last=False)
                file.advance(piece)
                self._emit(fileset)
                return True
        if not end and file.position + len(block) == known_cut:
            self._take_unterminated(fileset, file, block)
            self._emit(fileset)
            return True
        if not end:
            return self._reached_eof(fileset, file)
        file.quiet_since, file.modified = None, 0
        self._take_in_hand(fileset, file)
        full = len(block) >= count or file.inflating() or line_by_line
        if end < len(block):
            block = block[:end]
        batch, size = self.decode(fileset, file, block)
        if size < len(block):
            block, full = block[:size], True
        file.advance(block)
        if batch is not None:
            start = file.emitted
            batch.span = file.span(file.position)
            batch.size = file.position - start
            batch.at_risk = file.at_risk
            self._batches.append(batch)
        else:
            self._save_skips(fileset, file)
            self._emit(fileset)
        return full or self._reached_eof(fileset, file)

    def end_of_lines(self, file: TailedFile, block: bytes) -> int:  # noqa: ARG002 - the file source needs it
        """Give where the last whole line of a block, read at the file's position, ends."""
        return block.rfind(b"\n") + 1

    def clip(self, file: TailedFile, block: bytes) -> bytes:
        """Cut a piece of `max_line` bytes from a longer line, not inside a UTF-8 character."""
        end = self.max_line
        if self.width(file) > 1:
            return block[: end & ~3]
        while end > self.max_line - 3 and block[end] & 0xC0 == 0x80:
            end -= 1
        return block[:end]

    def _skip_hole(self, fileset: FileSet, file: TailedFile, block: bytes) -> bool:
        text = block.lstrip(b"\0")
        # A line of nothing else is none.
        skipped = len(block) - len(text) + text.startswith(b"\n")
        self._register(fileset, file)
        file.advance(block[:skipped])
        if not text and isinstance(file.data, PlainBytes):
            target = min(file.data.data_after(file.position), file.data.size())
            if target > file.position:
                file.position = target
                file.remember()
        self._emit(fileset)
        return True

    def _reached_eof(self, fileset: FileSet, file: TailedFile) -> bool:
        """Take note that the end was reached; go on to the next generation if this one is finished."""
        now = self._context.clock.monotonic()
        if file.quiet_since is None:
            file.quiet_since = now
        self._know_size(file)
        if file.state is None and file.position:
            self._register(fileset, file)
        if file.live:
            if fileset.joiner.holding or file.size > file.position:
                self._awaiting_timer[fileset] = None
            return False
        if isinstance(file.data, ArchiveBytes):
            if file.data.grown():
                file.quiet_since = None
                return True
            if file.size > file.position and not file.data.torn and not self._finish_last_line(fileset, file):
                return True
        unterminated = file.size > file.position
        if unterminated and not (
            (self.joins_across_rotation and isinstance(file.data, PlainBytes))
            or self._context.once
            or not file.linked
            or now - file.quiet_since >= FRAGMENT_WAIT
        ):
            self._awaiting_timer[fileset] = None
            return False
        if unterminated and not self._finish_last_line(fileset, file):
            return True
        if not self.joins_across_rotation or (len(fileset.queue) == 1 and fileset.directory_gone):
            fileset.joiner.flush()
        fileset.drained.append(fileset.queue.popleft())
        self._emit(fileset)
        if fileset.queue:
            return True
        if fileset.joiner.holding:
            self._awaiting_timer[fileset] = None
        return False

    def _know_size(self, file: TailedFile) -> None:
        """Take note of the size and of the time of a file that was read to its end."""
        if not isinstance(file.data, PlainBytes):
            file.size = max(file.size, file.data.size())
            return
        status = os.fstat(file.data.fd)
        if status.st_size > file.size and file.unchanged():
            file.size = status.st_size
        if status.st_size == file.position and not file.modified:
            file.modified, file.suspected_since = status.st_mtime_ns, None

    def _check_timers(self, fileset: FileSet) -> bool:
        """Close what has waited long enough at the end of the file."""
        file = fileset.current or (fileset.drained[-1] if fileset.drained else None)
        if file is None:
            fileset.joiner.flush()
            self._awaiting_timer.pop(fileset, None)
            return False
        if fileset in self._ready:
            return False
        if not file.live and fileset.current is file:
            if self._reached_eof(fileset, file):
                self._ready[fileset] = None
            return False
        if file.quiet_since is None:
            return False
        quiet = self._context.clock.monotonic() - file.quiet_since
        settled = self._context.once or quiet >= ENDED_WAIT
        final = (
            self._context.once
            or (fileset.writer_ended and settled)
            or (fileset.directory_gone and fileset.current is None)
        )
        unterminated = file.size > file.position
        if unterminated and (
            (settled and self.may_finish(fileset)) or (not self.joins_across_rotation and quiet >= FRAGMENT_WAIT)
        ):
            if not self._finish_last_line(fileset, file):
                self._ready[fileset] = None
                return False
            unterminated = False
        if final:
            fileset.joiner.flush()
        else:
            fileset.joiner.close_overdue(quiet)
        self._emit(fileset)
        if not fileset.joiner.holding and (
            not unterminated or (self.joins_across_rotation and not fileset.writer_ended)
        ):
            self._awaiting_timer.pop(fileset, None)
        return False

    def _finish_last_line(self, fileset: FileSet, file: TailedFile) -> bool:
        """Take a last line that has no end as it is; False when its end was written meanwhile."""
        line = file.data.read(file.position, max(CHUNK, self.max_line + 4))
        if self.end_of_lines(file, line):
            file.quiet_since = None
            return False
        if line:
            self._take_unterminated(fileset, file, line)
            fileset.joiner.cuts.append((file, file.position))
        return True

    def _take_unterminated(self, fileset: FileSet, file: TailedFile, line: bytes) -> None:
        """Take a line without end, in pieces if it is too long for one record."""
        state = self._register(fileset, file)
        if (progress := self._context.progress) is not None and progress.is_stuck(state.key, file.position):
            self._set_aside(fileset, file, line)
            return
        self._take_in_hand(fileset, file)
        while len(line) > self.max_line:
            piece = self.clip(file, line)
            self.decode_partial(fileset, file, piece, last=False)
            file.advance(piece)
            line = line[len(piece) :]
        self.decode_partial(fileset, file, line, last=True)
        file.advance(line)
        self._save_skips(fileset, file)

    def _take_in_hand(self, fileset: FileSet, file: TailedFile) -> None:
        """Note which bytes are touched now, before they are."""
        state = self._register(fileset, file)
        if self._context.progress is not None:
            self._context.progress.take(state.key, file.position)

    def _set_aside(self, fileset: FileSet, file: TailedFile, block: bytes) -> bool:
        """Pass over a line that one process after another died of: a copy is kept, and it is accounted for as lost."""
        state, progress = self._register(fileset, file), self._context.progress
        assert progress is not None
        line = block[: block.find(b"\n") + 1] or block
        kept = progress.set_aside(line)
        end = file.position + len(line)
        _log.error(
            "a line ended the daemon at every start; it is passed over and a copy is kept; please report this",
            file=file.path, offset=file.position, bytes=len(line), kept=kept,
        )  # fmt: skip
        self._context.positions.lost(state, file.position, end, "crashed")
        fileset.joiner.flush()
        file.advance(line)
        self._emit(fileset)
        return True

    def _emit(self, fileset: FileSet) -> None:
        """Hand out what may leave, once the places where time cut its records are safe in the checkpoint."""
        fileset.joiner.relieve()
        cuts = fileset.joiner.cuts
        try:
            while cuts:
                file, offset = cuts[-1]
                assert file.state is not None
                # What has no name any more is never read a second time.
                if file.linked:
                    self._context.positions.anchor(file.state.key, offset, offset, 0)
                cuts.pop()
        except sqlite3.Error as error:
            self._awaiting_timer[fileset] = None
            if not self._anchors_refused:
                _log.error("positions cannot be saved; records cut by time wait", error=str(error))
            self._anchors_refused = True
            return
        self._anchors_refused = False
        self._batches.extend(fileset.batches())

    # Identity of what is read

    def _register(self, fileset: FileSet, file: TailedFile) -> FileState:
        """Make a file known to the checkpoint, unless it is; give what the checkpoint knows of it."""
        if file.state is not None:
            return file.state
        head = file.data.read(0, HEAD_BYTES)
        device, inode = file.identity
        state = FileState(
            key=0,
            source=self._context.name,
            path=file.path,
            device=device,
            inode=inode,
            uid=self.uid(fileset, file, head),
            head=digest(head),
            head_size=len(head),
            generation=file.generation,
            offset=file.emitted,
            marker=marker_at(file.data, file.emitted),
            size=max(file.size, file.emitted),
            tag=fileset.name,
        )
        file.marker = state.marker
        file.state = self._context.positions.add(state)
        fileset.states[file.state.key] = file.state
        return file.state

    @abstractmethod
    def uid(self, fileset: FileSet, file: TailedFile, head: bytes) -> str:
        """Give the file's identity in ids."""

    def _save_skips(self, fileset: FileSet, file: TailedFile) -> None:
        state = file.state
        if not file.skips or state is None:
            return
        tag = "\n".join((fileset.name, ",".join(f"{start}-{end}" for start, end in file.skips)))
        if state.tag != tag:
            state.tag = tag
            self._context.positions.update(state)
