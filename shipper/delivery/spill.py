"""The spill: batches of one sink on disk, in order, until they are delivered.

Layout: ``<state_dir>/spill/<sink>/<16 digits>.seg``. A segment is a run of frames (`shipper.delivery.frames`), appended
only, and is deleted whole once it is consumed. Beside them ``end`` says how far all that was appended is safe.

Rules:

* ``append`` returns after fdatasync: the batch survives a power failure, so the ledger may count it as safe.
* Only what was never counted as safe is cut off: bytes behind ``end`` that are no whole frame, which a crash while
  appending leaves. ``end`` is written after the frame is on the disk, so a kill leaves it exact; a power failure may leave
  an older one, and whole frames behind it are kept.
* What is damaged below ``end`` is skipped up to the next whole frame and reported; its records are counted as lost,
  once, when the cursor passes them. Records are numbered through the life of a spill, so this holds for whatever was
  damaged: a payload, a header, a whole segment, or one that is gone.
* The cursor (segment, offset, records before it) is saved by the ledger. If it names a segment that is gone, or a place
  behind ``end``, reading begins at the oldest segment there is; frames delivered twice that way carry the same ids.
* All methods are called under the buffer's lock.
"""

from __future__ import annotations

import errno
import os
import struct
import zlib
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from shipper.delivery import frames
from shipper.state.checkpoint import Cursor
from shipper.telemetry.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from shipper.fs import FileSystem
    from shipper.record import Batch

log = get_logger("spill")

_SEGMENT_BYTES = 8 << 20
#: Bytes of the disk that no spill takes, so that positions and dead letters can still be saved beside it.
_KEPT_FREE = 16 << 20
_END = "end"
_END_FORM = struct.Struct("<4sQQQ")
_END_MAGIC = b"SHPE"


class _Segment(msgspec.Struct):
    """``file`` is held open by who only looks, so that a daemon may deliver and delete the segment meanwhile."""

    number: int
    path: Path
    size: int
    file: BinaryIO | None = None

    def open(self) -> AbstractContextManager[BinaryIO]:
        """Open it for reading at given places."""
        return self.path.open("rb") if self.file is None else nullcontext(self.file)


class Survey(msgspec.Struct, frozen=True):
    """What a spill directory holds: records and bytes. Those of a segment that is delivered in part count too."""

    records: int
    bytes: int


def survey(directory: Path) -> Survey:
    """Count what a spill directory holds, from the headers alone; safe beside a running daemon."""
    records = size = 0
    for segment in _segments(directory):
        try:
            with segment.open() as file:
                size += segment.size
                records += sum(frame.records for frame in frames.headers(file, 0, segment.size))
        except FileNotFoundError:  # delivered meanwhile
            continue
    return Survey(records, size)


class Damage(msgspec.Struct, frozen=True):
    """Bytes of a segment that cannot be read."""

    path: Path
    start: int
    end: int
    why: str


class Inspection(msgspec.Struct):
    """What reading a whole spill found: batches and records that are whole, records that are lost, and where."""

    batches: int = 0
    records: int = 0
    lost: int = 0
    damages: list[Damage] = []
    #: Bytes at the end of a frame that was never written to its end; nothing is lost with them.
    torn: int = 0


def inspect(directory: Path, cursor: Cursor, on_batch: Callable[[Batch], None] = lambda _batch: None) -> Inspection:
    """Read everything from a cursor on, changing nothing; safe beside a running daemon. Raises OSError."""
    spill = Spill(directory, cursor=cursor, read_only=True)
    found = spill.inspection
    at = spill.cursor
    while (loaded := spill.load(at)) is not None:
        batch, behind = loaded
        found.batches += 1
        found.records += len(batch)
        found.lost += max(0, behind.record - at.record - len(batch))
        at = behind
        on_batch(batch)
    if not spill.empty:
        found.lost += max(0, spill.end.record - at.record)
    spill.close()
    return found


def repair(directory: Path, cursor: Cursor) -> list[Path]:
    """Write what is whole behind a cursor into new segments and set the old ones aside; give the damaged ones.

    No daemon may run. A repair that is cut short leaves records twice, under the same ids. Raises OSError.
    """
    old = Spill(directory, cursor=cursor, read_only=True)
    damaged = {damage.path for damage in inspect(directory, cursor).damages}
    before = _segments(directory)
    new = Spill(directory, cursor=Cursor(before[-1].number, before[-1].size), fresh=True)
    for batch, _ in old.batches():
        new.append(batch)
    new.close()
    old.close()
    kept = []
    for segment in before:
        if segment.path in damaged:
            kept.append(segment.path.with_name(segment.path.name + ".damaged"))
            segment.path.rename(kept[-1])
        else:
            segment.path.unlink()
    if new.empty:
        (directory / _END).unlink(missing_ok=True)
    return kept


def _segments(directory: Path) -> list[_Segment]:
    """Give the segments, the oldest first. Anything else that lies there is none of ours."""
    found = []
    for path in directory.glob("*.seg"):
        try:
            if path.stem.isdigit() and path.is_file():
                found.append(_Segment(int(path.stem), path, path.stat().st_size))
        except FileNotFoundError:
            continue
    return sorted(found, key=lambda segment: segment.number)


class Spill:
    """The batches of one sink on disk. ``limit`` is in bytes; ``on_lost`` gets a reason and the number of records lost,
    ``on_fault`` the number of records of which something could not be written.

    ``read_only`` opens one to look at: nothing is cut, moved or deleted. ``fresh`` begins behind the cursor, whatever
    is there.
    """

    def __init__(
        self,
        directory: Path,
        *,
        cursor: Cursor,
        limit: int = 1 << 62,
        fs: FileSystem | None = None,
        on_lost: Callable[[str, int], None] = lambda _reason, _records: None,
        on_fault: Callable[[int], None] = lambda _records: None,
        read_only: bool = False,
        fresh: bool = False,
    ) -> None:
        from shipper.fs import FileSystem  # noqa: PLC0415 - a default only

        self._directory = directory
        self._limit = limit
        # Room for one more batch, so that the limit holds without knowing how well that batch compresses.
        self._reserve = min(512 << 10, limit // 4)
        self._kept_free = min(_KEPT_FREE, limit // 8)
        self._segment_bytes = max(64 << 10, min(_SEGMENT_BYTES, limit // 8))
        self._fs = fs or FileSystem()
        self._on_lost = on_lost
        self._on_fault = on_fault
        self._read_only = read_only
        self._fd: int | None = None
        self._end_fd: int | None = None
        self._segments: list[_Segment] = []
        self._reported: set[tuple[int, int]] = set()
        self.inspection = Inspection(damages=[])
        self.cursor = cursor
        #: Behind the last batch that was appended.
        self.end = cursor
        if directory.is_dir() and not fresh:
            self._recover()

    def _recover(self) -> None:
        # In this order, for who looks beside a daemon: what is appended in between is whole, or was not safe yet.
        known = self._read_end()
        self._segments = _segments(self._directory)
        if self._read_only:
            self._hold()
        if not self._segments:
            if known is not None:
                # It is removed before the last segment is.
                log.error("spilled lines are gone, though they were not delivered", directory=str(self._directory))
                self._lose(known.record - max(0, self.cursor.record))
                self._remove_end()
            return
        self._check_tail(known)
        if not self._segments:
            return
        last = self._segments[-1].number
        if self.cursor.segment > last and (known is None or self.cursor.place > known.place):
            log.error(
                "the cursor is behind the end of the spill, as if one of the two was put back; all of it is delivered again",
                directory=str(self._directory), segment=self.cursor.segment, offset=self.cursor.offset,
            )  # fmt: skip
            self.cursor = Cursor(0, 0)
        while self._segments and self._segments[0].number < self.cursor.segment:
            self._drop_first()
        if not self._segments:
            return
        self.cursor = self._numbered(self.cursor)
        self.end = Cursor(last, self._segments[-1].size, self._last_record(known))
        self._consume(self.cursor)

    def _hold(self) -> None:
        for segment in list(self._segments):
            try:
                segment.file = segment.path.open("rb")
            except FileNotFoundError:  # delivered meanwhile
                self._segments.remove(segment)

    def _read_end(self) -> Cursor | None:
        try:
            data = (self._directory / _END).read_bytes()
        except OSError:
            return None
        form = _END_FORM.size
        if len(data) < form + 4 or zlib.crc32(data[:form]) != int.from_bytes(data[form : form + 4], "little"):
            return None
        magic, segment, offset, record = _END_FORM.unpack_from(data)
        return Cursor(segment, offset, record) if magic == _END_MAGIC else None

    def _check_tail(self, known: Cursor | None) -> None:
        """Cut off what a crash left half written at the end. What was safe and is damaged stays, to be counted."""
        last = self._segments[-1]
        # Nothing below the known end is looked at: it was safe, so it is whole or it is damage.
        keep = 0
        if known is not None and known.segment >= last.number:
            keep = last.size if known.segment > last.number else min(known.offset, last.size)
        with last.open() as file:
            for frame in frames.headers(file, keep, last.size):
                if frames.payload_of(file, frame) is not None:
                    keep = frame.end
            if keep == last.size or (known is None and not frames.is_torn(file, keep, last.size)):
                return
        self.inspection.torn += last.size - keep
        if self._read_only:
            last.size = keep
            return
        log.warning(
            "a batch that was being spilled when we ended is cut off; it never counted as safe and is read again",
            file=str(last.path), size=last.size, kept=keep,
        )  # fmt: skip
        os.truncate(last.path, keep)
        last.size = keep
        if not keep:
            self._segments.pop()
            self._fs.unlink(last.path)

    def _numbered(self, cursor: Cursor) -> Cursor:
        """Give the cursor at a segment that is there, with the number of the first record behind it."""
        first = self._segments[0]
        there = cursor.segment == first.number
        if there and cursor.record >= 0 and not (cursor.offset and not cursor.record):
            return cursor
        offset = cursor.offset if there else 0
        with first.open() as file:
            frame = frames.frame_at(file, offset, first.size)
        # What the state last knew is the best guess where the first header is damaged.
        record = cursor.record if frame is None else frame.first
        return Cursor(first.number, offset, max(0, record))

    def _last_record(self, known: Cursor | None) -> int:
        """Give the number of records that were appended up to the end; only what is behind the known end is read."""
        at = self.cursor if known is None else max(known, self.cursor)
        record = at.record
        for segment in self._segments:
            if segment.number < at.segment:
                continue
            start = at.offset if segment.number == at.segment else 0
            with segment.open() as file:
                for frame in frames.headers(file, start, segment.size):
                    record = (frame.first if frame.first >= 0 else record) + frame.records
        return record

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(segment.size for segment in self._segments)

    @property
    def limit(self) -> int:
        """The most bytes it may take."""
        return self._limit

    @property
    def empty(self) -> bool:
        """Whether everything was delivered."""
        return not self._segments

    @property
    def full(self) -> bool:
        """Whether the limit is reached, or the disk's last bytes: no further batch may be appended."""
        return self.size + self._reserve > self._limit or self._disk_nearly_full()

    def _disk_nearly_full(self) -> bool:
        # The state directory exists before any spill: <state_dir>/spill/<sink>.
        return self._fs.free_bytes(self._directory.parent.parent) < self._kept_free

    def append(self, batch: Batch) -> Cursor:
        """Write a batch durably at the end; give the cursor behind it.

        Raises OSError (no space, say); then nothing was appended and the segment is as it was.
        """
        if self._disk_nearly_full():
            raise OSError(errno.ENOSPC, f"No space left for the spill: {self._kept_free} bytes stay free for positions")
        try:
            frame, faults = frames.make_frame(
                batch, max(0, self.end.record, 0 if self._segments else self.cursor.record)
            )
        except MemoryError as error:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from error
        if self._fd is None or self._segments[-1].size >= self._segment_bytes:
            self._begin_segment()
        segment = self._segments[-1]
        assert self._fd is not None
        try:
            self._fs.write_all(self._fd, frame)
            self._fs.fdatasync(self._fd)
        except OSError:
            self._abandon(segment)
            raise
        segment.size += len(frame)
        self.end = Cursor(segment.number, segment.size, max(0, self.end.record) + len(batch))
        self._write_end()
        if faults:
            log.warning(
                "attributes that cannot be written were left out; the lines themselves are whole",
                directory=str(self._directory), records=faults,
            )  # fmt: skip
            self._on_fault(faults)
        return self.end

    def _write_end(self) -> None:
        """Note that everything up to the end is safe. Not synced: an older note is as right, only less exact."""
        data = _END_FORM.pack(_END_MAGIC, *self.end.place, self.end.record)
        try:
            if self._end_fd is None:
                self._end_fd = os.open(self._directory / _END, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
                os.fchmod(self._end_fd, 0o600)
            os.pwrite(self._end_fd, data + zlib.crc32(data).to_bytes(4, "little"), 0)
        except OSError as error:
            log.warning("the end of the spill is not noted", directory=str(self._directory), error=str(error))

    def _begin_segment(self) -> None:
        self._close_fd()
        number = max(self._segments[-1].number if self._segments else 0, self.cursor.segment) + 1
        self._fs.make_private(self._directory)
        path = self._directory / f"{number:016d}.seg"
        fd = self._fs.open_append(path)
        try:
            self._fs.fsync_dir(self._directory)
        except OSError:
            os.close(fd)
            path.unlink(missing_ok=True)
            raise
        self._fd = fd
        self._segments.append(_Segment(number, path, 0))
        if len(self._segments) == 1:
            record = max(0, self.cursor.record, self.end.record)
            self.cursor = self.end = Cursor(number, 0, record)

    def _abandon(self, segment: _Segment) -> None:
        # A half-written frame must not stay in front of later ones.
        assert self._fd is not None
        try:
            os.ftruncate(self._fd, segment.size)
        except OSError:
            log.error("cannot cut a torn frame off; a new segment is begun", file=str(segment.path), exc_info=True)
        self._close_fd()
        if segment.size == 0:
            segment.path.unlink(missing_ok=True)
            self._segments.remove(segment)

    def batches(self) -> Iterator[tuple[Batch, Cursor]]:
        """Give the batches in order, each with the cursor behind it."""
        at = self.cursor
        while (found := self.load(at)) is not None:
            yield found
            at = found[1]

    def load(self, cursor: Cursor) -> tuple[Batch, Cursor] | None:
        """Read the first whole batch at or behind a cursor; give it with the cursor behind it, or None at the end."""
        record = cursor.record
        for segment in self._segments:
            if segment.number < cursor.segment:
                continue
            offset = cursor.offset if segment.number == cursor.segment else 0
            if offset >= segment.size:
                continue
            try:
                with segment.open() as file:
                    while offset < segment.size:
                        frame = frames.next_frame(file, offset, segment.size)
                        if frame is None or frame.offset > offset:
                            self._report(segment, offset, segment.size if frame is None else frame.offset, "no frame")
                        if frame is None:
                            break
                        offset = frame.end
                        record = (frame.first if frame.first >= 0 else record) + frame.records
                        batch = self._batch(segment, frame, frames.payload_of(file, frame))
                        if batch is not None:
                            return batch, Cursor(segment.number, offset, record)
            except FileNotFoundError:
                self._report(segment, offset, segment.size, "the file is gone")
        return None

    def _batch(self, segment: _Segment, frame: frames.Frame, payload: bytes | None) -> Batch | None:
        if payload is None:
            self._report(segment, frame.offset, frame.end, "the checksum is wrong")
            return None
        try:
            batch = frames.decode(payload)
        except Exception as error:  # noqa: BLE001 - garbage may raise anything; it costs this frame
            self._report(segment, frame.offset, frame.end, f"{type(error).__name__}: {error}")
            return None
        if len(batch) != frame.records:
            self._report(segment, frame.offset, frame.end, f"it has {len(batch)} records, not {frame.records}")
            return None
        return batch

    def _report(self, segment: _Segment, start: int, end: int, why: str) -> None:
        if (segment.number, start) in self._reported:
            return
        self._reported.add((segment.number, start))
        self.inspection.damages.append(Damage(segment.path, start, end, why))
        if not self._read_only:
            log.error(
                "spilled lines are damaged; what is whole behind them is delivered, the rest is counted as lost",
                file=str(segment.path), start=start, end=end, why=why,
            )  # fmt: skip

    def consume(self, cursor: Cursor, *, delivered: int | None = None) -> None:
        """Everything before the cursor was dealt with: move on and delete segments that are done.

        ``delivered`` is how many records behind the last cursor were delivered: those missing from that are lost.
        """
        if cursor.place <= self.cursor.place:
            return
        lost = 0 if delivered is None else cursor.record - self.cursor.record - delivered
        self._consume(cursor)
        self._lose(lost)

    def _consume(self, cursor: Cursor) -> None:
        self.cursor = cursor
        while self._segments:
            first = self._segments[0]
            if first.number > cursor.segment or (first.number == cursor.segment and cursor.offset < first.size):
                return
            self._drop_first()
        # A segment at the end that is gone.
        self._lose(self.end.record - cursor.record)
        self.cursor = Cursor(self.cursor.segment, self.cursor.offset, max(self.end.record, cursor.record))

    def _lose(self, records: int) -> None:
        if records > 0 and self._read_only:
            self.inspection.lost += records
        elif records > 0:
            self._on_lost("spill_damaged", records)

    def give_up(self) -> None:
        """Delete everything: what is left is damaged beyond reading, and lost."""
        lost = self.end.record - self.cursor.record
        self.clear()
        self._lose(lost)

    def clear(self) -> None:
        """Delete everything: it is still held in memory."""
        while self._segments:
            self._drop_first()

    def drop_oldest(self) -> int:
        """Delete the oldest segment to make room; give the number of records that were lost with it."""
        begin, record = self.cursor.record, self._record_behind_first()
        self._drop_first()
        if self._segments:
            self.cursor = Cursor(self._segments[0].number, 0, record)
        else:
            self.cursor = Cursor(self.cursor.segment, self.cursor.offset, record)
        return max(0, record - begin)

    def _record_behind_first(self) -> int:
        if len(self._segments) == 1:
            return self.end.record
        after = self._segments[1]
        with after.open() as file:
            frame = frames.frame_at(file, 0, after.size)
        if frame is not None and frame.first >= 0:
            return frame.first
        first = self._segments[0]
        start = self.cursor.offset if self.cursor.segment == first.number else 0
        with first.open() as file:
            return self.cursor.record + sum(frame.records for frame in frames.headers(file, start, first.size))

    def _drop_first(self) -> None:
        first = self._segments.pop(0)
        if self._read_only:
            if first.file is not None:
                first.file.close()
            return
        if not self._segments:
            self._close_fd()
            self._remove_end()
        if self.cursor.segment <= first.number:
            record = self.cursor.record if self._segments else max(self.cursor.record, self.end.record)
            self.cursor = Cursor(first.number, first.size, record)
        try:
            self._fs.unlink(first.path)
        except FileNotFoundError:
            log.error("a spilled segment was gone before it was delivered", file=str(first.path))

    def _remove_end(self) -> None:
        if self._end_fd is not None:
            os.close(self._end_fd)
            self._end_fd = None
        if not self._read_only:
            (self._directory / _END).unlink(missing_ok=True)

    def _close_fd(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def close(self) -> None:
        """Close all files."""
        self._close_fd()
        for segment in self._segments:
            if segment.file is not None:
                segment.file.close()
        if self._end_fd is not None:
            os.close(self._end_fd)
            self._end_fd = None
