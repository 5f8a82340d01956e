"""Dead letters as they stand in a file: one JSON object a line (`Entry`), and a sealed, compressed run of such lines.

A sealed part ``<16 digits>.jsonl.zst`` is what ``zstdcat`` prints as the lines; in front of them stands a frame that
zstd skips, with what the daemon wants to know without reading the rest (`Seal`).
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from shipper.errors import SinkError
from shipper.record import FAULT, Batch, Resource

NEWLINE = b"\n"
#: Zstandard's first number for frames that are skipped, and the length of what follows.
_SKIPPED = struct.Struct("<II")
_SKIPPED_MAGIC = 0x184D2A50
_SEAL_BYTES = 256


class Origin(msgspec.Struct, frozen=True):
    """A record's resource, as it is written."""

    source: str
    attributes: dict[str, str]


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One dead letter; see `shipper.delivery.deadletter` for the fields."""

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


class Seal(msgspec.Struct, frozen=True):
    """What a sealed part says of itself: its records and unreadable lines, and which plain file it was made from."""

    records: int = 0
    damaged: int = 0
    size: int = -1
    crc: int = 0


def make_entries(batch: Batch, errors: Sequence[SinkError], sink: str, when: str) -> Iterator[Entry]:
    """Make the entry of every record with its own error."""
    for row, error in zip(range(len(batch)), errors, strict=True):
        yield Entry(
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


def encode(entry: Entry, on_fault: Callable[[int], None] = lambda _records: None) -> bytes:
    """Write an entry as a line. What no encoder takes is left out and named: the raw line has it all."""
    try:
        return msgspec.json.encode(entry, enc_hook=str) + NEWLINE
    except Exception as error:  # noqa: BLE001 - these are the very records that trip code; none may trip this
        fault = f"{type(error).__name__}: {error}"
    try:
        # Half surrogates and integers past 64 bits are just what a backend refuses. The slow encoder takes them.
        return json.dumps(msgspec.to_builtins(entry, enc_hook=str), default=str).encode() + NEWLINE
    except Exception:  # noqa: BLE001 - as above
        on_fault(1)
        bare = msgspec.structs.replace(entry, attributes={FAULT: f"dead letter: {fault}"})
        return json.dumps(msgspec.to_builtins(bare, enc_hook=str)).encode() + NEWLINE


def decode(line: bytes) -> Entry | None:
    """Read a line, ``None`` if it is torn or was never ours."""
    if not line.endswith(NEWLINE):
        return None
    try:
        return _DECODER.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        try:
            return msgspec.convert(json.loads(line), Entry)
        except (ValueError, RecursionError, msgspec.MsgspecError):
            return None


_DECODER = msgspec.json.Decoder(Entry)


def newest(file: Iterable[bytes]) -> tuple[set[int], int, int]:
    """Read lines; give the offsets of the newest entry of each id, how many cannot be read, and where they end."""
    found: dict[str, int] = {}
    damaged = end = 0
    for line in file:
        entry = decode(line)
        if entry is not None:
            found[entry.id] = end
        elif line.strip():
            damaged += 1
        end += len(line)
    return set(found.values()), damaged, end


def seal(lines: Iterable[tuple[bytes, bool]], file: BinaryIO, *, made_from: tuple[int, int] = (-1, 0)) -> Seal:
    """Write lines, each with whether it can be read, to a new sealed part.

    ``made_from`` is the size and checksum of the plain file that they are all of.
    """
    import zstandard  # noqa: PLC0415 - most daemons never need it

    records = damaged = 0
    file.write(_skipped(Seal()))
    with zstandard.ZstdCompressor(level=3, write_checksum=True).stream_writer(file, closefd=False) as writer:
        for line, readable in lines:
            writer.write(line)
            records, damaged = records + readable, damaged + (not readable)
    done = Seal(records, damaged, *made_from)
    file.seek(0)
    file.write(_skipped(done))
    file.seek(0, io.SEEK_END)
    return done


def _skipped(head: Seal) -> bytes:
    payload = msgspec.json.encode(head).ljust(_SEAL_BYTES)
    return _SKIPPED.pack(_SKIPPED_MAGIC, len(payload)) + payload


def read_seal(path: Path) -> Seal:
    """Read what a sealed part says of itself. Raises OSError, and ValueError when it is none."""
    with path.open("rb") as file:
        return _read_seal(file)


def _read_seal(file: BinaryIO) -> Seal:
    head = file.read(_SKIPPED.size)
    if len(head) < _SKIPPED.size or _SKIPPED.unpack(head) != (_SKIPPED_MAGIC, _SEAL_BYTES):
        raise ValueError("its head is damaged")
    try:
        return msgspec.json.decode(file.read(_SEAL_BYTES), type=Seal)
    except msgspec.MsgspecError as error:
        raise ValueError(f"its head is damaged: {error}") from error


def sealed_lines(path: Path) -> Iterator[bytes]:
    """Give the lines of a sealed part. Raises OSError, and ValueError when it is damaged: then after what could be read."""
    import zstandard  # noqa: PLC0415 - see seal

    with path.open("rb") as file:
        try:
            _read_seal(file)
        except ValueError:
            # The lines themselves may well be whole.
            file.seek(_SKIPPED.size + _SEAL_BYTES)
        reader = zstandard.ZstdDecompressor().stream_reader(file)
        rest = b""
        try:
            while block := reader.read(256 << 10):
                *lines, rest = (rest + block).split(NEWLINE)
                for line in lines:
                    yield line + NEWLINE
        except zstandard.ZstdError as error:
            raise ValueError(f"{path}: {error}") from error
        if rest:
            yield rest


def checksum(file: BinaryIO) -> int:
    """Give the CRC-32 of the rest of a file."""
    crc = 0
    while block := file.read(256 << 10):
        crc = zlib.crc32(block, crc)
    return crc


def make_batch(rows: Sequence[Entry], known: dict[tuple[str, tuple[tuple[str, str], ...]], Resource]) -> Batch:
    """Make a batch of entries that are all parsed or none; equal resources become one, kept in ``known``."""
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
