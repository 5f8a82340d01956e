"""Records, the resources they come from, and the batches they travel in.

The words are those of the OpenTelemetry log data model. A batch is columnar: one list per field, one entry per
record, because a list is built at C speed where an object per line is not. ``Batch.records()`` gives rows to
code that wants them.

Invariants:

* All columns of a batch have the same length. ``messages`` and ``attributes`` are either both present (the batch is
  *parsed*, and has ``severities``) or both ``None``; then ``severities`` may be there, if a sink asked for levels only.
* A column is never changed in place once the batch has left the reader: sinks in other threads share it.
  ``select`` and ``concat`` make new lists. The dicts in ``attributes`` are shared too: copy before changing.
* ``times`` and ids are functions of the bytes in the file and their place alone, so a replay gives the same.
"""

from __future__ import annotations

import sys
from array import array
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from shipper.native import compiled

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: OpenTelemetry severity numbers of our six levels.
SEVERITIES = {"trace": 1, "debug": 5, "info": 9, "warn": 13, "error": 17, "fatal": 21}
#: The level name of every severity number from 0 (unspecified, told as info) to 24.
LEVELS = ("info", *("trace",) * 4, *("debug",) * 4, *("info",) * 4, *("warn",) * 4, *("error",) * 4, *("fatal",) * 4)

#: The attribute of a record that our own code tripped over: what was left out of it, and why.
FAULT = "shipper.fault"

T = TypeVar("T")

_VERSION_8 = 0x8 << 76
_VARIANT = 0b10 << 62
_LOW_62 = (1 << 62) - 1
_MILLI = 1_000_000
_AS_VARIANT = bytes(0x80 | (byte & 0x3F) for byte in range(256))


class Resource(msgspec.Struct, frozen=True, eq=False, dict=True):
    """Who wrote a record. Shared by all records of one container and stream, compared by identity.

    ``attributes`` uses OpenTelemetry names: ``service.name``, ``container.name``, ``container.id``,
    ``container.image.name``, ``log.iostream``, ``log.file.path``, ``host.name``; Docker labels that were asked
    for stand under ``container.label.<name>``. ``source`` is the name of the source in the configuration.
    Because a resource is shared by identity, a sink may keep what it derived from one in a dict keyed by it.
    """

    source: str
    attributes: dict[str, str]

    @property
    def service(self) -> str:
        """The service's name, or ``""``."""
        return self.attributes.get("service.name", "")

    @property
    def container(self) -> str:
        """The container's name without its slash, or ``""`` for plain files."""
        return self.attributes.get("container.name", "")

    @property
    def stream(self) -> str:
        """``stdout``, ``stderr`` or ``""`` for plain files."""
        return self.attributes.get("log.iostream", "")

    @property
    def host(self) -> str:
        """The machine's name."""
        return self.attributes.get("host.name", "")


class Record(msgspec.Struct, frozen=True):
    """One log record as a row. ``time_ns`` is nanoseconds since 1970 UTC, ``raw`` the line as it was written."""

    id: str
    time_ns: int
    severity: int
    message: str
    attributes: dict[str, Any]
    raw: str
    resource: Resource
    offset: int

    @property
    def level(self) -> str:
        """The severity as one of trace, debug, info, warn, error, fatal."""
        return LEVELS[self.severity]


class Span(msgspec.Struct, frozen=True):
    """A contiguous range of bytes ``[start, end)`` of one file, as read by a source.

    ``file`` is the file's key in the checkpoint. ``marker`` is a hash of the bytes just before ``end``; after a
    restart it proves that the file at hand still is the one the offset was taken in.
    """

    file: int
    start: int
    end: int
    marker: int


class Batch(msgspec.Struct):
    """Records as columns; see the module's invariants.

    ``hashes`` are 128-bit integers that tell records apart; ``stamps`` the source's own times in nanoseconds
    (Docker's; for plain files the record's). Both make the ids. ``times`` is the record's time, which a parser
    may take from the line. ``span`` is what reading it consumed, ``None`` once batches were merged for a sink.
    ``size`` is in bytes of source text. ``at_risk`` says that the file may vanish: rotated, unlinked, removed.
    ``marks`` gives attributes that the source itself has for a few rows, by row index (``log.record.part`` of a
    line that was too long for one record); the parser merges them into ``attributes``.
    """

    times: list[int]
    stamps: list[int]
    hashes: list[int]
    raws: list[str]
    resources: list[Resource]
    offsets: list[int]
    severities: list[int] | None = None
    messages: list[str] | None = None
    attributes: list[dict[str, Any]] | None = None
    span: Span | None = None
    size: int = 0
    at_risk: bool = False
    marks: dict[int, dict[str, Any]] | None = None
    _ids: list[str] | None = None

    def __len__(self) -> int:
        return len(self.times)

    @property
    def parsed(self) -> bool:
        """Whether levels, messages and attributes were taken from the lines."""
        return self.messages is not None

    @property
    def ids(self) -> list[str]:
        """The records' ids: UUID version 8 text of 36 characters, 60 bits of the source's time, then the hash."""
        if self._ids is None:
            ids: list[str] | None = None if compiled is None else compiled.make_ids(self.stamps, self.hashes)
            self._ids = make_ids(self.stamps, self.hashes) if ids is None else ids
        return self._ids

    def records(self) -> Iterator[Record]:
        """Give the batch as rows. An unparsed batch has level info, the raw line as message, no attributes."""
        count = len(self)
        return map(
            Record,
            self.ids,
            self.times,
            self.severities or [SEVERITIES["info"]] * count,
            self.messages if self.messages is not None else self.raws,
            self.attributes if self.attributes is not None else [{} for _ in range(count)],
            self.raws,
            self.resources,
            self.offsets,
        )

    def select(self, indexes: Sequence[int] | range) -> Batch:
        """Make a batch of the rows at ``indexes``. Span and risk stay; the size shrinks in proportion."""
        return Batch(
            times=pick(self.times, indexes),
            stamps=pick(self.stamps, indexes),
            hashes=pick(self.hashes, indexes),
            raws=pick(self.raws, indexes),
            resources=pick(self.resources, indexes),
            offsets=pick(self.offsets, indexes),
            severities=None if self.severities is None else pick(self.severities, indexes),
            messages=None if self.messages is None else pick(self.messages, indexes),
            attributes=None if self.attributes is None else pick(self.attributes, indexes),
            span=self.span,
            size=self.size * len(indexes) // max(1, len(self)),
            at_risk=self.at_risk,
            marks=None if self.marks is None else _selected(self.marks, indexes),
            _ids=None if self._ids is None else pick(self._ids, indexes),
        )

    def parsed_at(self, indexes: Sequence[int] | range) -> Batch:
        """Make a batch of the rows at ``indexes`` for a sink that ships what was parsed.

        As `select`, without the raw lines where there are messages, and without offsets: to touch each once more and
        let go of it costs as much as encoding a column.
        """
        return Batch(
            times=pick(self.times, indexes),
            stamps=pick(self.stamps, indexes),
            hashes=pick(self.hashes, indexes),
            raws=pick(self.raws, indexes) if self.messages is None else [],
            resources=pick(self.resources, indexes),
            offsets=[],
            severities=None if self.severities is None else pick(self.severities, indexes),
            messages=None if self.messages is None else pick(self.messages, indexes),
            attributes=None if self.attributes is None else pick(self.attributes, indexes),
        )

    @staticmethod
    def concat(batches: Sequence[Batch]) -> Batch:
        """Merge batches for one request, in order. The result has no span. All must be parsed, or none."""
        if len(batches) == 1:
            return batches[0]
        parsed = all(batch.parsed for batch in batches)
        severities = [batch.severities for batch in batches if batch.severities is not None]
        return Batch(
            times=_flat([b.times for b in batches]),
            stamps=_flat([b.stamps for b in batches]),
            hashes=_flat([b.hashes for b in batches]),
            raws=_flat([b.raws for b in batches]),
            resources=_flat([b.resources for b in batches]),
            offsets=_flat([b.offsets for b in batches]),
            severities=_flat(severities) if len(severities) == len(batches) else None,
            messages=_flat([b.messages or [] for b in batches]) if parsed else None,
            attributes=_flat([b.attributes or [] for b in batches]) if parsed else None,
            size=sum(b.size for b in batches),
            at_risk=any(b.at_risk for b in batches),
            marks=_shifted(batches),
        )


def make_id(stamp_ns: int, value: int) -> str:
    """Make the 36 character id of a record from its source time in nanoseconds and its 128-bit hash.

    RFC 9562 version 8: 48 bits of milliseconds and 12 of what is below one, so ids sort by time to a quarter of a
    microsecond, and 62 bits of the hash.
    """
    millis, below = divmod(stamp_ns, _MILLI)
    number = (
        ((millis & 0xFFFFFFFFFFFF) << 80) | _VERSION_8 | ((below << 12) // _MILLI << 64) | _VARIANT | (value & _LOW_62)
    )
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def make_ids(stamps: Sequence[int], values: Sequence[int]) -> list[str]:
    """Make the ids of many records, the same as `make_id` would, at a fifth of its cost.

    All bytes of one position are moved at once by strided slices, so the work per record is done in C.
    """
    count = len(stamps)
    hashed = b"".join([value.to_bytes(16, "big") for value in values])
    if len(hashed) != 16 * count:
        raise ValueError(f"{count} stamps for {len(hashed) // 16} hashes")
    # Of the signed 64 bits the lower 48 are used, which are those that `make_id` masks.
    try:
        millis = array("q", [stamp // _MILLI for stamp in stamps])
    except OverflowError:  # a time that nobody means: it has an id all the same
        return list(map(make_id, stamps, values))
    below = array("H", [0x8000 | (stamp % _MILLI << 12) // _MILLI for stamp in stamps])
    if sys.byteorder == "little":
        millis.byteswap()
        below.byteswap()
    head, middle = millis.tobytes(), below.tobytes()
    number = bytearray(hashed)
    for place in range(6):
        number[place::16] = head[place + 2 :: 8]
    for place in range(2):
        number[6 + place :: 16] = middle[place::2]
    number[8::16] = hashed[8::16].translate(_AS_VARIANT)
    # A hyphen behind every fourth digit, of which the last of an id becomes a line feed and three are too many.
    text = bytearray(number.hex("-", 2).encode() + b"-")
    text[39::40] = b"\n" * count
    del text[34::40], text[29::39], text[4::38]
    return text.decode("ascii").split("\n")[:-1]


def pick(column: list[T], rows: Sequence[int]) -> list[T]:
    """Give the items of a column at some rows."""
    if isinstance(rows, range) and rows.step == 1 and 0 <= rows.start <= rows.stop <= len(column):
        return column[rows.start : rows.stop]
    picked: list[T] | None = None
    if compiled is not None and isinstance(rows, list):
        picked = compiled.pick(column, rows)
    return [column[row] for row in rows] if picked is None else picked


def _flat(lists: list[list[T]]) -> list[T]:
    flat: list[T] = []
    for one in lists:
        flat.extend(one)  # a copy of pointers, where chain would go one by one
    return flat


def _selected(marks: dict[int, dict[str, Any]], indexes: Sequence[int] | range) -> dict[int, dict[str, Any]] | None:
    return {new: marks[old] for new, old in enumerate(indexes) if old in marks} or None


def _shifted(batches: Sequence[Batch]) -> dict[int, dict[str, Any]] | None:
    result: dict[int, dict[str, Any]] = {}
    start = 0
    for batch in batches:
        for index, mark in (batch.marks or {}).items():
            result[start + index] = mark
        start += len(batch)
    return result or None
