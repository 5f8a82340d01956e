"""Frames: batches of records as they stand in a segment of the spill.

A segment is a run of frames. A frame is a header and a payload (zstd of msgpack, `_Columns`)::

    4 bytes   magic "SHP2"
    4 bytes   length of the payload, little endian
    4 bytes   crc32 of the payload
    4 bytes   number of records
    8 bytes   number of records that were appended to this spill before
    4 bytes   crc32 of the header up to here

The header has a checksum of its own, so a frame whose payload is damaged is skipped as exactly that frame. Where a header
is damaged, the next frame is found by its magic; because frames number their records, what is missing between two frames
is known to the record. Frames of version 0.1 ("SHP1": no numbers, no checksum of the header) are read, too.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec

from shipper.record import FAULT, Batch, Resource

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAGIC, _OLD_MAGIC = b"SHP2", b"SHP1"
_HEADER = struct.Struct("<4sIIIQ")
_OLD_HEADER = struct.Struct("<4sIII")
_CHECK = struct.Struct("<I")
#: Bytes of a header.
HEADER_BYTES = _HEADER.size + _CHECK.size
_BLOCK = 256 << 10
_SURROGATE = re.compile("[\ud800-\udfff]")


class Frame(msgspec.Struct, frozen=True):
    """A frame whose header is whole. ``first`` is the number of its first record, -1 for frames without."""

    offset: int
    payload: int
    end: int
    crc: int
    records: int
    first: int


class _Columns(msgspec.Struct, array_like=True):
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


def make_frame(batch: Batch, first: int) -> tuple[bytes, int]:
    """Write a batch as a frame whose first record has the number ``first``; tell of how many records some was left out."""
    payload, faults = encode(batch)
    header = _HEADER.pack(_MAGIC, len(payload), zlib.crc32(payload), len(batch), first)
    return b"".join((header, _CHECK.pack(zlib.crc32(header)), payload)), faults


def frame_at(file: BinaryIO, offset: int, size: int) -> Frame | None:
    """Give the frame at an offset of a segment of ``size`` bytes, by its header; None if none is there, or no whole one."""
    return _frame(os.pread(file.fileno(), HEADER_BYTES, offset), offset, size)


def _frame(header: bytes, offset: int, size: int) -> Frame | None:
    frame: Frame | None = None
    if header.startswith(_MAGIC) and len(header) == HEADER_BYTES:
        (check,) = _CHECK.unpack_from(header, _HEADER.size)
        _, length, crc, records, first = _HEADER.unpack_from(header)
        if check == zlib.crc32(header[: _HEADER.size]):
            begin = offset + HEADER_BYTES
            frame = Frame(offset, begin, begin + length, crc, records, first)
    elif header.startswith(_OLD_MAGIC) and len(header) >= _OLD_HEADER.size:
        _, length, crc, records = _OLD_HEADER.unpack_from(header)
        begin = offset + _OLD_HEADER.size
        frame = Frame(offset, begin, begin + length, crc, records, -1)
    return frame if frame is not None and frame.end <= size else None


def is_torn(file: BinaryIO, offset: int, size: int) -> bool:
    """Tell whether what stands at an offset may be the beginning of a frame that was never written to its end."""
    header = os.pread(file.fileno(), HEADER_BYTES, offset)
    whole = header.startswith(_MAGIC) and len(header) == HEADER_BYTES
    if whole and _CHECK.unpack_from(header, _HEADER.size)[0] == zlib.crc32(header[: _HEADER.size]):
        return offset + HEADER_BYTES + int(_HEADER.unpack_from(header)[1]) > size
    return not whole or size - offset < HEADER_BYTES


def payload_of(file: BinaryIO, frame: Frame) -> bytes | None:
    """Read the payload of a frame; None if it is damaged."""
    payload = os.pread(file.fileno(), frame.end - frame.payload, frame.payload)
    return payload if zlib.crc32(payload) == frame.crc and len(payload) == frame.end - frame.payload else None


def next_frame(file: BinaryIO, offset: int, size: int) -> Frame | None:
    """Give the first frame at or behind an offset.

    One right at the offset is believed by its header; one that had to be searched for must be whole.
    """
    here = frame_at(file, offset, size)
    if here is not None and (here.first >= 0 or payload_of(file, here) is not None or _follows(file, here, size)):
        return here
    at = offset + 1
    while at < size:
        block = os.pread(file.fileno(), _BLOCK + HEADER_BYTES, at)
        # A header that begins in the block ends in what is read behind it, unless the file does.
        last = len(block) < _BLOCK + HEADER_BYTES
        place = block.find(b"SHP")
        while place >= 0 and (last or place < _BLOCK):
            found = _frame(block[place : place + HEADER_BYTES], at + place, size)
            if found is not None and payload_of(file, found) is not None:
                return found
            place = block.find(b"SHP", place + 1)
        at += len(block) if last else _BLOCK
    return None


def _follows(file: BinaryIO, frame: Frame, size: int) -> bool:
    """Tell whether an old frame with a damaged payload ends where another begins, so that its length is right."""
    return frame.end == size or frame_at(file, frame.end, size) is not None


def headers(file: BinaryIO, offset: int, size: int) -> Iterator[Frame]:
    """Give the frames from an offset on, by their headers, over damage to the next that is whole."""
    while offset < size and (frame := next_frame(file, offset, size)) is not None:
        yield frame
        offset = frame.end


def encode(batch: Batch) -> tuple[bytes, int]:
    """Write the columns of a batch. What no encoder takes is left out and named: the raw line has it all.

    Gives the number of records of which some was left out, too.
    """
    try:
        return _encode(batch), 0
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - a record that trips an encoder must not cost the batch, nor the reader's thread
        bare = _encodable(batch)
        before, after = (sum(FAULT in one for one in each.attributes or []) for each in (batch, bare))
        return _encode(bare), after - before


def _encode(batch: Batch) -> bytes:
    table: dict[Resource, int] = {}
    index = [table.setdefault(resource, len(table)) for resource in batch.resources]
    columns = _Columns(
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

    return zstandard.ZstdCompressor(level=1).compress(msgspec.msgpack.encode(columns))


def _encodable(batch: Batch) -> Batch:
    """Give the batch with what cannot be written left out, record by record; half surrogates become U+FFFD."""
    table = {
        resource: Resource(resource.source, {_text(k): _text(v) for k, v in resource.attributes.items()})
        for resource in set(batch.resources)
    }
    return msgspec.structs.replace(
        batch,
        raws=[_text(raw) for raw in batch.raws],
        resources=[table[resource] for resource in batch.resources],
        messages=None if batch.messages is None else [_text(message) for message in batch.messages],
        attributes=None if batch.attributes is None else [_attributes(one) for one in batch.attributes],
        marks=None if batch.marks is None else {row: _attributes(mark) for row, mark in batch.marks.items()},
    )


def _text(text: str) -> str:
    return _SURROGATE.sub("\ufffd", text)


def _attributes(attributes: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    left_out: list[str] = []
    for name, value in attributes.items():
        try:
            msgspec.json.encode({name: value})
        except Exception as error:  # noqa: BLE001 - see encode
            if isinstance(value, str):
                kept[_text(name)] = _text(value)
            else:
                left_out.append(f"{_text(name)}: {type(error).__name__}")
        else:
            kept[name] = value
    if left_out:
        kept[FAULT] = f"spill: {', '.join(left_out)}"
    return kept


def decode(payload: bytes) -> Batch:
    """Read the columns of a batch. Raises whatever garbage with a right checksum may cause."""
    import zstandard  # noqa: PLC0415 - see _encode

    columns = msgspec.msgpack.decode(zstandard.ZstdDecompressor().decompress(payload), type=_Columns)
    table = [Resource(source, attributes) for source, attributes in columns.resources]
    hashes = columns.hashes
    batch = Batch(
        times=columns.times,
        stamps=columns.stamps,
        hashes=[int.from_bytes(hashes[i : i + 16], "big") for i in range(0, len(hashes), 16)],
        raws=columns.raws,
        resources=[table[i] for i in columns.resource],
        offsets=columns.offsets,
        severities=columns.severities,
        messages=columns.messages,
        attributes=None
        if columns.attributes is None
        else msgspec.json.decode(columns.attributes, type=list[dict[str, Any]]),
        size=columns.size,
        marks=columns.marks,
    )
    lengths = {
        len(column)
        for column in (
            batch.times, batch.stamps, batch.hashes, batch.raws, batch.resources, batch.offsets, batch.severities,
            batch.messages, batch.attributes,
        )
        if column is not None
    }  # fmt: skip
    if len(lengths) != 1:
        raise ValueError("its columns differ in length")
    return batch
