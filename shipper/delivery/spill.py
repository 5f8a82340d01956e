"""The spill: batches of one sink on disk, in order, until they are delivered.

Layout: ``<state_dir>/spill/<sink>/<16 digits>.seg``. A segment is a run of frames, appended only, and is deleted
whole once it is consumed. A frame is::

    4 bytes   magic "SHP1"
    4 bytes   length of the payload, little endian
    4 bytes   crc32 of the payload
    4 bytes   number of records
    payload   zstd of msgpack (`_Frame`): the columns of one batch, each resource once

Rules:

* ``append`` returns after fdatasync: the batch survives a power failure, so the ledger may count it as safe.
* A frame that is torn at the end of the last segment (a crash while appending) was never counted as safe: it is cut
  off. A frame that is damaged anywhere else is skipped with the rest of its segment, reported and counted as lost.
* The cursor (segment, offset) is saved by the ledger. If it names a segment that is gone, reading begins at the
  oldest segment there is; frames delivered twice that way carry the same ids.
* All methods are called under the buffer's lock, but for ``load``, which only one delivery thread calls.
"""

from __future__ import annotations

import errno
import os
import struct
import zlib
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec

from shipper.record import Batch, Resource
from shipper.state.checkpoint import Cursor
from shipper.telemetry.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from shipper.fs import FileSystem

log = get_logger("spill")

_HEADER = struct.Struct("<4sIII")
_MAGIC = b"SHP1"
_SEGMENT_BYTES = 8 << 20
#: Bytes of the disk that no spill takes, so that positions and dead letters can still be saved beside it.
_KEPT_FREE = 16 << 20


class _Frame(msgspec.Struct, array_like=True):
    times: list[int]
    stamps: list[int]
    hashes: bytes
    raws: list[str]
    resources: list[tuple[str, dict[str, str]]]
    resource: list[int]
    offsets: list[int]
    severities: list[int] | None
    messages: list[str] | None
    attributes: bytes | None  # JSON, because msgpack has no integers beyond 64 bits
    size: int
    marks: dict[int, dict[str, Any]] | None


class _Segment(msgspec.Struct):
    number: int
    path: Path
    size: int


class Survey(msgspec.Struct, frozen=True):
    """What a spill directory holds: records and bytes. Those of a segment that is delivered in part count too."""

    records: int
    bytes: int


def survey(directory: Path) -> Survey:
    """Count what a spill directory holds, from the headers alone; safe beside a running daemon."""
    records = size = 0
    for path in sorted(directory.glob("*.seg")):
        try:
            with path.open("rb") as file:
                size += os.fstat(file.fileno()).st_size
                records += _count(file)
        except FileNotFoundError:  # delivered meanwhile
            continue
    return Survey(records, size)


def _count(file: BinaryIO) -> int:
    """Count the records of the frames from here to the end of a segment."""
    found = 0
    while len(header := file.read(_HEADER.size)) == _HEADER.size:
        magic, length, _crc, count = _HEADER.unpack(header)
        if magic != _MAGIC:
            break
        found += count
        file.seek(length, os.SEEK_CUR)
    return found


class Spill:
    """The batches of one sink on disk. ``limit`` is in bytes; ``on_lost`` gets the number of records lost."""

    def __init__(
        self, directory: Path, *, limit: int, fs: FileSystem, cursor: Cursor, on_lost: Callable[[str, int], None]
    ) -> None:
        self._directory = directory
        self._limit = limit
        # Room for one more batch, so that the limit holds without knowing how well that batch compresses.
        self._reserve = min(512 << 10, limit // 4)
        self._kept_free = min(_KEPT_FREE, limit // 8)
        self._segment_bytes = max(64 << 10, min(_SEGMENT_BYTES, limit // 8))
        self._fs = fs
        self._on_lost = on_lost
        self._fd: int | None = None
        self._segments: list[_Segment] = []
        self.cursor = cursor
        if directory.is_dir():
            self._recover()

    def _recover(self) -> None:
        for path in sorted(self._directory.glob("*.seg")):
            if path.stem.isdigit():
                self._segments.append(_Segment(int(path.stem), path, path.stat().st_size))
        if self._segments:
            last = self._segments[-1]
            good = self._scan(last)
            if good < last.size:
                log.warning("torn end of spill cut off", file=str(last.path), size=last.size, kept=good)
                os.truncate(last.path, good)
                last.size = good
        while self._segments and (self._segments[0].number < self.cursor.segment or not self._segments[0].size):
            self._drop_first()
        if self._segments:
            if self.cursor.segment != self._segments[0].number:
                self.cursor = Cursor(self._segments[0].number, 0)
            self._consume(self.cursor)

    def _scan(self, segment: _Segment) -> int:
        """Give the offset up to which the frames of a segment are whole."""
        offset = 0
        with segment.path.open("rb") as file:
            while header := file.read(_HEADER.size):
                if len(header) < _HEADER.size:
                    break
                magic, length, crc, _count = _HEADER.unpack(header)
                payload = file.read(length) if magic == _MAGIC else b""
                if magic != _MAGIC or len(payload) < length or zlib.crc32(payload) != crc:
                    break
                offset += _HEADER.size + length
        return offset

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

    def append(self, batch: Batch) -> None:
        """Write a batch durably at the end.

        Raises OSError (no space, say); then nothing was appended and the segment is as it was.
        """
        if self._disk_nearly_full():
            raise OSError(errno.ENOSPC, f"No space left for the spill: {self._kept_free} bytes stay free for positions")
        payload = _encode(batch)
        frame = _HEADER.pack(_MAGIC, len(payload), zlib.crc32(payload), len(batch)) + payload
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

    def _begin_segment(self) -> None:
        self._close_fd()
        number = self._segments[-1].number + 1 if self._segments else self.cursor.segment + 1
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
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
            self.cursor = Cursor(number, 0)

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

    def load(self, cursor: Cursor) -> tuple[Batch, Cursor] | None:
        """Read the batch at a cursor; give it with the cursor behind it, or None at the end.

        A damaged frame is reported and counted, and reading goes on in the next segment.
        """
        for segment in list(self._segments):
            if segment.number < cursor.segment:
                continue
            offset = cursor.offset if segment.number == cursor.segment else 0
            if offset >= segment.size:
                continue
            batch, size = self._read(segment, offset)
            if batch is not None:
                return batch, Cursor(segment.number, offset + size)
        return None

    def _read(self, segment: _Segment, offset: int) -> tuple[Batch | None, int]:
        with segment.path.open("rb") as file:
            file.seek(offset)
            header = file.read(_HEADER.size)
            if len(header) == _HEADER.size:
                magic, length, crc, count = _HEADER.unpack(header)
                if magic == _MAGIC:
                    payload = file.read(length)
                    if len(payload) == length and zlib.crc32(payload) == crc:
                        return _decode(payload), _HEADER.size + length
                    self._on_lost("spill_damaged", count)
        log.error(
            "a spilled batch is damaged; the rest of its segment is skipped",
            file=str(segment.path), offset=offset, size=segment.size - offset,
        )  # fmt: skip
        return None, 0

    def consume(self, cursor: Cursor) -> None:
        """Everything before the cursor was delivered: move on and delete segments that are done."""
        if cursor > self.cursor:
            self._consume(cursor)

    def _consume(self, cursor: Cursor) -> None:
        self.cursor = cursor
        while self._segments:
            first = self._segments[0]
            if first.number > cursor.segment or (first.number == cursor.segment and cursor.offset < first.size):
                break
            self._drop_first()

    def clear(self) -> None:
        """Delete everything: it is damaged beyond reading, or still held in memory."""
        while self._segments:
            self._drop_first()

    def drop_oldest(self) -> int:
        """Delete the oldest segment to make room; give the number of records that were lost with it."""
        first = self._segments[0]
        start = self.cursor.offset if self.cursor.segment == first.number else 0
        with first.path.open("rb") as file:
            file.seek(start)
            lost = _count(file)
        self._drop_first()
        if self._segments:
            self.cursor = Cursor(self._segments[0].number, 0)
        return lost

    def _drop_first(self) -> None:
        first = self._segments.pop(0)
        if not self._segments:
            self._close_fd()
        if self.cursor.segment <= first.number:
            self.cursor = Cursor(first.number, first.size)
        self._fs.unlink(first.path)

    def _close_fd(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def close(self) -> None:
        """Close the segment being written."""
        self._close_fd()


def _encode(batch: Batch) -> bytes:
    table: dict[Resource, int] = {}
    index = [table.setdefault(resource, len(table)) for resource in batch.resources]
    frame = _Frame(
        times=batch.times,
        stamps=batch.stamps,
        hashes=b"".join([value.to_bytes(16, "big") for value in batch.hashes]),
        raws=batch.raws,
        resources=[(resource.source, resource.attributes) for resource in table],
        resource=index,
        offsets=batch.offsets,
        severities=batch.severities,
        messages=batch.messages,
        attributes=None if batch.attributes is None else msgspec.json.encode(batch.attributes),
        size=batch.size,
        marks=batch.marks,
    )
    import zstandard  # noqa: PLC0415 - a healthy daemon never spills and need not pay for it

    return zstandard.ZstdCompressor(level=1).compress(msgspec.msgpack.encode(frame))


def _decode(payload: bytes) -> Batch:
    import zstandard  # noqa: PLC0415 - see _encode

    frame = msgspec.msgpack.decode(zstandard.ZstdDecompressor().decompress(payload), type=_Frame)
    table = [Resource(source, attributes) for source, attributes in frame.resources]
    return Batch(
        times=frame.times,
        stamps=frame.stamps,
        hashes=[int.from_bytes(frame.hashes[i : i + 16], "big") for i in range(0, len(frame.hashes), 16)],
        raws=frame.raws,
        resources=[table[i] for i in frame.resource],
        offsets=frame.offsets,
        severities=frame.severities,
        messages=frame.messages,
        attributes=None
        if frame.attributes is None
        else msgspec.json.decode(frame.attributes, type=list[dict[str, Any]]),
        size=frame.size,
        marks=frame.marks,
    )
