"""OTLP as protobuf, written by hand: column by column, with what repeats encoded once.

Field numbers are those of opentelemetry-proto 1.x, ``logs/v1`` and ``common/v1``:

    ExportLogsServiceRequest  resource_logs=1
    ResourceLogs              resource=1 scope_logs=2            Resource     attributes=1
    ScopeLogs                 scope=1 log_records=2              Scope        name=1
    LogRecord                 time_unix_nano=1 (fixed64) severity_number=2 severity_text=3 body=5 attributes=6
                              observed_time_unix_nano=11 (fixed64)
    KeyValue                  key=1 value=2
    AnyValue                  string=1 bool=2 int=3 double=4 array=5 kvlist=6 bytes=7
"""

from __future__ import annotations

import struct
from itertools import chain, islice, repeat
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from sinks.otlp import values

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from shipper.record import Batch, Resource

_MAX_KEYS = 1_024  # keys whose heads are kept; beyond it they are dropped, which bounds memory
_MAX_TEXTS = 8_192  # values whose fields are kept, of all keys together
_MAX_SHORT = 256  # fields of fewer bytes are kept
_packed = msgspec.msgpack.Encoder().encode
_double = struct.Struct("<d").pack
_SAMPLE = 64  # values of a column that say whether it is worth looking for equal ones
#: Tags in an AnyValue: ``_ANY`` for a value that brings its own.
_ANY, _TEXT, _INT, _LIST, _OBJECT = b"", b"\x0a", b"\x18", b"\x2a", b"\x32"
_WIRE = {0: "varint", 1: "fixed64", 2: "bytes", 5: "fixed32"}


def varint(number: int) -> bytes:
    """Encode a number of 0 to 2^64-1."""
    if number < 0x80:
        return bytes((number,))
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def message(tag: int, *parts: bytes) -> bytes:
    """Encode a field that holds text, bytes or a message; ``tag`` is its number shifted by 3, plus 2."""
    return b"".join((bytes((tag,)), varint(sum(map(len, parts))), *parts))


_SEVERITIES = [b"\x10" + varint(number or 9) + message(0x1A, text.encode()) for number, text in enumerate(values.TEXTS)]
_SCOPE = message(0x0A, message(0x0A, values.SCOPE.encode()))
_KNOWN = 1 << 14
_BYTES = [bytes((byte,)) for byte in range(0x100)]
_LENGTHS = _BYTES[:0x80] + [low + high for high in _BYTES[1:0x80] for low in _BYTES[0x80:]]
#: The lowest 14 bits of a number that has more.
_CONTINUED = [low + high for high in _BYTES[0x80:] for low in _BYTES[0x80:]]
#: What stands in front of an id, which has 36 characters.
_UID_HEAD = b"\x32" + varint(len(values.UID) + 42) + message(0x0A, values.UID.encode()) + b"\x12\x26\x0a\x24"
#: Both times and the id, with what stands in front of each: the part of a record whose length never changes.
_fixed = struct.Struct(f"<BQBQ{len(_UID_HEAD)}s36s").pack


class _Heads(dict[int, bytes]):
    """What stands in front of a value, by the length of the value: the tag and length of each message around it.

    ``kind`` is the value's tag in an AnyValue, ``tag`` that of the field that holds the AnyValue. With ``outer`` that
    field stands behind ``name`` in a message with this tag. Heads of values of fewer than ``most`` bytes are kept.
    """

    def __init__(self, kind: bytes, tag: bytes, *, name: bytes = b"", outer: bytes = b"", most: int = 256) -> None:
        self._kind = kind
        self._tag = tag
        self._name = name
        self._outer = outer
        self._most = most

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
    #: The most bytes that stand in front of a record: a tag, and a length of at most 5 bytes.
    between: ClassVar[int] = 6

    def __init__(self, *, original: bool) -> None:
        self._original = original
        self._resources = values.Kept(_resource)
        self._pairs = Pairs(b"\x32", names=values.named, inner=Pairs(b"\x0a", names=str))
        self._bodies = _Heads(_TEXT, b"\x2a", most=1_024)
        self._heads = _Heads(_ANY, b"\x12", most=_KNOWN)

    def records(self, batch: Batch) -> list[bytes]:
        """Encode each record as a LogRecord."""
        messages = batch.messages if batch.messages is not None else batch.raws
        severities = batch.severities if batch.severities is not None else [9] * len(batch)
        ids = "\n".join(batch.ids).encode().split(b"\n")
        times, stamps = values.times(batch.times), values.times(batch.stamps)
        bodies = _encoded(messages)
        columns = (
            map(_SEVERITIES.__getitem__, severities),
            map(self._bodies.__getitem__, map(len, bodies)),
            bodies,
            map(_fixed, repeat(0x09), times, repeat(0x59), stamps, repeat(_UID_HEAD), ids),
            self._pairs.encode(batch.attributes) if batch.attributes is not None else repeat(b"", len(batch)),
        )
        rows = list(map(b"".join, zip(*columns, strict=True)))
        if self._original:
            rows = [
                row if raw == text else row + _pair(0x32, values.ORIGINAL, raw)
                for row, raw, text in zip(rows, batch.raws, messages, strict=True)
            ]
        return rows

    def resources(self, resources: list[Resource]) -> list[bytes]:
        """Encode each resource as a field of ResourceLogs."""
        return self._resources.of(resources)

    @staticmethod
    def overhead(resource: bytes) -> int:
        """Give the most bytes that a resource adds to a request beside its records."""
        return len(resource) + len(_SCOPE) + 12  # two tags and two lengths of at most 5 bytes

    def request(self, groups: Sequence[tuple[bytes, Sequence[bytes]]]) -> bytes:
        """Encode a request of resources and their records."""
        pieces: list[bytes] = []
        for resource, records in groups:
            fields = [b""] * (2 * len(records))
            fields[::2] = map(self._heads.__getitem__, map(len, records))
            fields[1::2] = records
            inner = len(_SCOPE) + sum(map(len, fields))
            length = varint(inner)
            pieces += (b"\x0a", varint(len(resource) + 1 + len(length) + inner), resource, b"\x12", length, _SCOPE)
            pieces += fields
        return b"".join(pieces)


class Pairs:
    """Encodes the pairs of many objects at once, as KeyValue fields with ``tag``.

    Objects with the same keys in the same order are one table, whose columns mostly hold one type each. A column becomes
    one or two columns of pieces, a text's head and the text, say; only whole rows are joined.
    """

    def __init__(self, tag: bytes, *, names: Callable[[str], str], inner: Pairs | None = None) -> None:
        """Take the field's tag, how keys are named, and what encodes the objects among the values: itself by default."""
        self._tag = tag
        self._names = names
        self._inner = inner or self
        self._heads: dict[str, _Place] = {}
        self._item = _Place(b"\x0a")
        self._kept = 0

    def encode(self, objects: Sequence[dict[str, Any]], depth: int = 1) -> list[bytes]:
        """Give the fields of each object, one behind the other; ``depth`` is that of their values."""
        keys = list(map(tuple, objects))
        if keys.count(keys[0]) == len(keys):
            return self._alike(keys[0], objects, depth)
        shapes: dict[tuple[str, ...], list[int]] = {}
        for index, shape in enumerate(keys):
            shapes.setdefault(shape, []).append(index)
        rows = [b""] * len(objects)
        for shape, indexes in shapes.items():
            alike = self._alike(shape, list(map(objects.__getitem__, indexes)), depth)
            for index, row in zip(indexes, alike, strict=True):
                rows[index] = row
        return rows

    def _alike(self, shape: tuple[str, ...], objects: Sequence[dict[str, Any]], depth: int) -> list[bytes]:
        """Give the fields of objects that all have the keys of ``shape``."""
        if not shape:
            return [b""] * len(objects)
        cells = list(chain.from_iterable(map(dict.values, objects)))
        columns: list[list[bytes]] = []
        for number, key in enumerate(shape):
            columns += self._fields(self._place(key), cells[number :: len(shape)], depth)
        return list(map(b"".join, zip(*columns, strict=True)))

    def _place(self, key: str) -> _Place:
        place = self._heads.get(key)
        if place is None:
            if len(self._heads) >= _MAX_KEYS:
                self._heads.clear()
            name = message(0x0A, _utf8(self._names(key)))
            place = self._heads[key] = _Place(b"\x12", name=name, outer=self._tag)
        return place

    def _fields(self, place: _Place, column: Sequence[Any], depth: int) -> list[list[bytes]]:
        """Give the pieces of the field that holds each value; ``depth`` counts the lists and objects around, and one."""
        try:
            return [list(map(place.known.__getitem__, column))]
        except (KeyError, TypeError):  # a text not met before, or no text
            pass
        kinds = set(map(type, column))
        kind = kinds.pop() if len(kinds) == 1 else None
        if kind is int and min(column) >= 0 and (most := max(column)) <= values.INT_MAX:
            return place.pieces(_INT, _varints(column, most))
        if kind is str or (kind in {dict, list} and depth <= values.MAX_DEPTH):
            return self._repeated(place, kind, column, depth) or self._pieces(place, kind, column, depth)
        return place.pieces(_ANY, [self._value(value, depth) for value in column])

    def _pieces(self, place: _Place, kind: type, column: Sequence[Any], depth: int) -> list[list[bytes]]:
        """Do `_fields` for values that are all texts, all objects or all lists."""
        if kind is str:
            return place.pieces(_TEXT, _encoded(column))
        if kind is dict:
            return place.pieces(_OBJECT, self._inner.encode(column, depth + 1))
        return place.pieces(_LIST, self._lists(column, depth + 1))

    def _repeated(self, place: _Place, kind: type, column: Sequence[Any], depth: int) -> list[list[bytes]]:
        """Do it by encoding each distinct value once; give nothing if they are too many to be worth looking up."""
        keys, distinct = _few(column, kind)
        if not distinct:
            return []
        pieces = self._pieces(place, kind, list(distinct.values()), depth)
        fields = dict(zip(distinct, map(b"".join, zip(*pieces, strict=True)), strict=True))
        if kind is str:
            self._keep(place, fields)
        return [list(map(fields.__getitem__, keys))]

    def _keep(self, place: _Place, fields: dict[str, bytes]) -> None:
        if self._kept + len(fields) > _MAX_TEXTS:
            self._kept = 0
            for one in (*self._heads.values(), self._item):
                one.known.clear()
        place.known.update((text, field) for text, field in fields.items() if len(field) < _MAX_SHORT)
        self._kept += len(fields)

    def _lists(self, column: Sequence[list[Any]], depth: int) -> list[bytes]:
        """Give the items of each list as fields of an ArrayValue."""
        sizes = list(map(len, column))
        pieces = self._fields(self._item, list(chain.from_iterable(column)), depth) if any(sizes) else []
        items = chain.from_iterable(zip(*pieces, strict=True))
        return [b"".join(islice(items, size * len(pieces))) for size in sizes]

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
            return message(0x2A, *self._lists([list(value)], depth + 1))
        return message(0x0A, _utf8(str(value)))


class _Place:
    """Where values stand: in a list, or under a key.

    ``known`` has the whole field of texts that were met often. Only texts: nothing else is equal to one.
    """

    def __init__(self, tag: bytes, *, name: bytes = b"", outer: bytes = b"") -> None:
        """Take the tag of the field that holds a value and, if that is in a KeyValue, the key's field and its tag."""
        self.known: dict[str, bytes] = {}
        self._heads = {kind: _Heads(kind, tag, name=name, outer=outer) for kind in (_ANY, _TEXT, _INT, _LIST, _OBJECT)}

    def pieces(self, kind: bytes, data: list[bytes]) -> list[list[bytes]]:
        """Give a column of what stands in front of values of one kind, and the values."""
        return [list(map(self._heads[kind].__getitem__, map(len, data))), data]


def _varints(column: Sequence[int], most: int) -> list[bytes]:
    """Encode numbers of 0 to ``most``, two bytes at a time."""
    if most < _KNOWN:
        return list(map(_LENGTHS.__getitem__, column))
    if most < _KNOWN << 14:
        return [
            _LENGTHS[number] if number < _KNOWN else _CONTINUED[number & 0x3FFF] + _LENGTHS[number >> 14]
            for number in column
        ]
    return list(map(varint, column))


def _few(column: Sequence[Any], kind: type) -> tuple[Sequence[Any], dict[Any, Any]]:
    """Give a key for each value, and the distinct values by key if they are few enough to be worth looking up.

    Lists and objects are compared as MessagePack, which tells all types apart: 1 and True are equal to Python.
    """
    keys, sample = column, column[:_SAMPLE]
    try:
        if 2 * len(set(sample if kind is str else map(_packed, sample))) > len(sample):
            return keys, {}
        if kind is not str:
            keys = list(map(_packed, column))
    except (ValueError, TypeError, OverflowError, RecursionError):  # what MessagePack does not hold
        return keys, {}
    distinct = dict(zip(keys, column, strict=True))
    return keys, distinct if 2 * len(distinct) <= len(column) else {}


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
