"""OTLP as protobuf, written by hand.

Field numbers are those of opentelemetry-proto 1.x, ``logs/v1`` and ``common/v1``:

    ExportLogsServiceRequest  resource_logs=1
    ResourceLogs              resource=1 scope_logs=2            Resource     attributes=1
    ScopeLogs                 scope=1 log_records=2              Scope        name=1
    LogRecord                 time_unix_nano=1 (fixed64) severity_number=2 severity_text=3 body=5 attributes=6
                              observed_time_unix_nano=11 (fixed64)
    KeyValue                  key=1 value=2
    AnyValue                  string=1 bool=2 int=3 double=4 array=5 kvlist=6 bytes=7

Records of common values are written by `shipper.native`, where that is compiled. What decides is the code below, column
by column: a column becomes pieces, and only whole rows are joined.
"""

from __future__ import annotations

import struct
from itertools import chain, islice, pairwise, repeat
from typing import TYPE_CHECKING, Any, ClassVar

from shipper.native import compiled
from sinks.otlp import values
from sinks.otlp.values import Rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from shipper.record import Batch, Resource

#: What is kept, which bounds memory: names, and the most bytes of a name and of a value.
_MAX_NAMES, _MAX_SIZE = 1_024, 256
_double = struct.Struct("<d").pack
#: Tags in an AnyValue: ``_ANY`` for a value that brings its own.
_ANY, _TEXT, _INT, _LIST, _OBJECT = b"", b"\x0a", b"\x18", b"\x2a", b"\x32"
_WIRE = {0: "varint", 1: "fixed64", 2: "bytes", 5: "fixed32"}
_BYTES = [bytes((byte,)) for byte in range(0x100)]
#: Numbers below 2^14, and the lowest 14 bits of a number that has more.
_SMALL = _BYTES[:0x80] + [low + high for high in _BYTES[1:0x80] for low in _BYTES[0x80:]]
_CONTINUED = [low + high for high in _BYTES[0x80:] for low in _BYTES[0x80:]]


def varint(number: int) -> bytes:
    """Encode a number of 0 to 2^64-1."""
    return _SMALL[number] if number < 1 << 14 else _CONTINUED[number & 0x3FFF] + varint(number >> 14)


def message(tag: int, *parts: bytes) -> bytes:
    """Encode a field that holds text, bytes or a message; ``tag`` is its number shifted by 3, plus 2."""
    return b"".join((bytes((tag,)), varint(sum(map(len, parts))), *parts))


_SEVERITIES = [b"\x10" + varint(number or 9) + message(0x1A, text.encode()) for number, text in enumerate(values.TEXTS)]
_SCOPE = message(0x0A, message(0x0A, values.SCOPE.encode()))
#: What stands in front of an id, which has 36 characters.
_UID_HEAD = b"\x32" + varint(len(values.UID) + 42) + message(0x0A, values.UID.encode()) + b"\x12\x26\x0a\x24"
#: Both times and the id, with what stands in front of each: the part of a record whose length never changes.
_fixed = struct.Struct(f"<BQBQ{len(_UID_HEAD)}s36s").pack


class _Prefixes(dict[int, bytes]):
    """What stands in front of a value, by the length of the value: the tag and length of each message around it.

    ``kind`` is the value's tag in an AnyValue, ``tag`` that of the field that holds the AnyValue. With ``outer`` that
    field stands behind ``name`` in a message with this tag.
    """

    def __init__(self, kind: bytes, tag: bytes, *, name: bytes = b"", outer: bytes = b"") -> None:
        self._kind = kind
        self._tag = tag
        self._name = name
        self._outer = outer
        self._most = _MAX_SIZE if len(name) < _MAX_SIZE else 0

    def __missing__(self, size: int) -> bytes:
        inner = self._kind if self._kind in {_ANY, _INT} else self._kind + varint(size)
        head = self._name + self._tag + varint(len(inner) + size) + inner
        if self._outer:
            head = self._outer + varint(len(head) + size) + head
        if size < self._most:
            self[size] = head
        return head


class Encoder:
    """Encodes records and requests. ``original`` adds the line as it was written where the message differs."""

    content_type: ClassVar[str] = "application/x-protobuf"

    def __init__(self, *, original: bool) -> None:
        self._original = original
        self._resources = values.ResourceCache(_resource)
        self._pairs = Pairs(b"\x32", names=values.named, inner=Pairs(b"\x0a", names=str))
        self._bodies = _Prefixes(_TEXT, b"\x2a")
        self._records = _Prefixes(_ANY, b"\x12")

    def records(self, batch: Batch) -> Rows:
        """Encode each record as a field of ScopeLogs."""
        if compiled is None:
            return Rows.of(self._encode(batch))
        data, ends, odd = compiled.otlp_records(
            batch.times,
            batch.stamps,
            _severities(batch),
            _messages(batch),
            batch.ids,
            batch.attributes,
            batch.raws if self._original else None,
            _SEVERITIES,
            _UID_HEAD,
            values.ORIGINAL,
        )
        if not odd:
            return Rows(data, ends)
        rows = [data[start:end] for start, end in pairwise([0, *ends])]
        for row, record in zip(odd, self._encode(batch.select(odd)), strict=True):
            rows[row] = record
        return Rows.of(rows)

    def _encode(self, batch: Batch) -> list[bytes]:
        """Do `records` for values of all kinds."""
        messages = _messages(batch)
        bodies = _encoded(messages)
        columns = [
            map(_SEVERITIES.__getitem__, _severities(batch)),
            map(self._bodies.__getitem__, map(len, bodies)),
            bodies,
            map(
                _fixed,
                repeat(0x09),
                map(values.time, batch.times),
                repeat(0x59),
                map(values.time, batch.stamps),
                repeat(_UID_HEAD),
                map(str.encode, batch.ids),
            ),
            self._pairs.encode(batch.attributes) if batch.attributes is not None else repeat(b"", len(batch)),
        ]
        if self._original:
            columns.append(map(_original, batch.raws, messages))
        rows = list(map(b"".join, zip(*columns, strict=True)))
        return list(map(bytes.__add__, map(self._records.__getitem__, map(len, rows)), rows))

    def resources(self, resources: list[Resource]) -> list[bytes]:
        """Encode each resource as a field of ResourceLogs."""
        return self._resources.of(resources)

    @staticmethod
    def overhead(resource: bytes) -> int:
        """Give the most bytes that a resource adds to a request beside its records."""
        return len(resource) + len(_SCOPE) + 12  # two tags and two lengths of at most 5 bytes

    @staticmethod
    def request(groups: Sequence[tuple[bytes, Sequence[memoryview]]]) -> list[bytes | memoryview]:
        """Encode a request of resources and runs of their records, in pieces."""
        pieces: list[bytes | memoryview] = []
        for resource, runs in groups:
            inner = len(_SCOPE) + sum(map(len, runs))
            head = resource + b"\x12" + varint(inner)
            pieces += (b"\x0a" + varint(len(head) + inner) + head + _SCOPE, *runs)
        return pieces


class Pairs:
    """Encodes the pairs of many objects at once, as KeyValue fields with ``tag``.

    Objects with the same keys in the same order are one table, whose columns mostly hold one type each.
    """

    def __init__(self, tag: bytes, *, names: Callable[[str], str], inner: Pairs | None = None) -> None:
        """Take the field's tag, how keys are named, and what encodes the objects among the values: itself by default."""
        self._tag = tag
        self._names = names
        self._inner = inner or self
        self._prefixes: dict[tuple[str | None, bytes], _Prefixes] = {}

    def encode(self, objects: Sequence[dict[str, Any]], depth: int = 1) -> list[bytes]:
        """Give the fields of each object, one behind the other; ``depth`` is that of their values."""
        shapes: dict[tuple[str, ...], list[int]] = {}
        for index, shape in enumerate(map(tuple, objects)):
            shapes.setdefault(shape, []).append(index)
        rows = [b""] * len(objects)
        for shape, indexes in shapes.items():
            if shape:
                encoded = self._encode_same_shape(shape, list(map(objects.__getitem__, indexes)), depth)
                for index, row in zip(indexes, encoded, strict=True):
                    rows[index] = row
        return rows

    def _encode_same_shape(
        self, shape: tuple[str, ...], objects: Sequence[dict[str, Any]], depth: int
    ) -> Iterator[bytes]:
        """Give the fields of objects that all have the keys of ``shape``."""
        cells = list(chain.from_iterable(map(dict.values, objects)))
        columns: list[list[bytes]] = []
        for number, key in enumerate(shape):
            columns += self._fields(self._names(key), cells[number :: len(shape)], depth)
        return map(b"".join, zip(*columns, strict=True))

    def _fields(self, name: str | None, column: Sequence[Any], depth: int) -> tuple[list[bytes], list[bytes]]:
        """Give what stands in front of each value under ``name`` (``None``: in a list), and the values.

        ``depth`` counts the lists and objects around, and one.
        """
        kinds = set(map(type, column))
        kind = kinds.pop() if len(kinds) == 1 else None
        if kind is str:
            tag, data = _TEXT, _encoded(column)
        elif kind is int and min(column) >= 0 and max(column) <= values.INT_MAX:
            tag, data = _INT, list(map(varint, column))
        elif kind is dict and depth <= values.MAX_DEPTH:
            tag, data = _OBJECT, self._inner.encode(column, depth + 1)
        elif kind is list and depth <= values.MAX_DEPTH:
            tag, data = _LIST, self._lists(column, depth + 1)
        else:
            tag, data = _ANY, [self._value(value, depth) for value in column]
        return list(map(self._front(name, tag).__getitem__, map(len, data))), data

    def _front(self, name: str | None, tag: bytes) -> _Prefixes:
        heads = self._prefixes.get((name, tag))
        if heads is None:
            if len(self._prefixes) >= _MAX_NAMES:
                self._prefixes.clear()
            if name is None:
                heads = _Prefixes(tag, b"\x0a")
            else:
                heads = _Prefixes(tag, b"\x12", name=message(0x0A, _utf8(name)), outer=self._tag)
            self._prefixes[name, tag] = heads
        return heads

    def _lists(self, column: Sequence[Sequence[Any]], depth: int) -> list[bytes]:
        """Give the items of each list as fields of an ArrayValue."""
        fronts, data = self._fields(None, list(chain.from_iterable(column)), depth)
        fields = map(bytes.__add__, fronts, data)
        return [b"".join(islice(fields, size)) for size in map(len, column)]

    def _value(self, value: Any, depth: int) -> bytes:
        """Encode one AnyValue."""
        if isinstance(value, str):
            return message(0x0A, _utf8(value))
        if value is None:
            return b""
        if isinstance(value, bool):
            return b"\x10\x01" if value else b"\x10\x00"
        if isinstance(value, int) and values.INT_MIN <= value <= values.INT_MAX:
            return b"\x18" + varint(value & 0xFFFF_FFFF_FFFF_FFFF)
        if isinstance(value, float):
            return b"\x21" + _double(value)
        if isinstance(value, bytes):
            return message(0x3A, value)
        if isinstance(value, dict | list | tuple):
            if depth > values.MAX_DEPTH:
                return message(0x0A, values.deep(value).encode())
            if isinstance(value, dict):
                plain = {str(key): item for key, item in value.items()}
                return message(0x32, *self._inner.encode([plain], depth + 1))
            return message(0x2A, *self._lists([value], depth + 1))
        return message(0x0A, _utf8(str(value)))


def _messages(batch: Batch) -> list[str]:
    return batch.messages if batch.messages is not None else batch.raws


def _severities(batch: Batch) -> list[int]:
    return batch.severities if batch.severities is not None else [9] * len(batch)


def _original(raw: str, message: str) -> bytes:
    return b"" if raw == message else _pair(0x32, values.ORIGINAL, raw)


def _resource(resource: Resource) -> bytes:
    return message(0x0A, *(_pair(0x0A, *pair) for pair in values.attributes(resource).items()))


def _pair(tag: int, name: str, text: str) -> bytes:
    return message(tag, message(0x0A, _utf8(name)), message(0x12, message(0x0A, _utf8(text))))


def _encoded(texts: Sequence[str]) -> list[bytes]:
    try:
        return [text.encode() for text in texts]
    except UnicodeEncodeError:
        return [_utf8(text) for text in texts]


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Decode a message into field numbers and values. Raises ValueError when it is none."""
    at, end = 0, len(data)
    while at < end:
        tag, at = _number(data, at)
        kind = _WIRE.get(tag & 7)
        if kind == "varint":
            value, at = _number(data, at)
            yield tag >> 3, value
            continue
        if kind is None or tag >> 3 == 0:
            raise ValueError("not protobuf")
        size = {"fixed64": 8, "fixed32": 4}.get(kind, 0)
        if not size:
            size, at = _number(data, at)
        if at + size > end:
            raise ValueError("protobuf is cut short")
        yield tag >> 3, data[at : at + size]
        at += size


def _number(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("protobuf is cut short")
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return number, at
        shift += 7


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        return values.cleaned(text).encode()
