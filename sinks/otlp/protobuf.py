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
from operator import itemgetter
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from sinks.otlp import values

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from shipper.record import Batch, Resource

_MAX_KEYS = 1_024  # keys whose heads are kept; beyond it they are dropped, which bounds memory
_MAX_TEXTS = 8_192  # values whose fields are kept, of all keys together
_MAX_SHORT = 256  # texts of fewer bytes have their heads kept
_times = struct.Struct("<BQBQ").pack
_double = struct.Struct("<d").pack
_packed = msgspec.msgpack.Encoder().encode
_SAMPLE = 64  # values of a column that say whether it is worth looking for equal ones
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


def _body_head(length: int) -> bytes:
    """Give what stands in front of a body's text."""
    inner = b"\x0a" + varint(length)
    return b"\x2a" + varint(len(inner) + length) + inner


_SEVERITIES = [b"\x10" + varint(number or 9) + message(0x1A, text.encode()) for number, text in enumerate(values.TEXTS)]
_SCOPE = message(0x0A, message(0x0A, values.SCOPE.encode()))
_KNOWN = 1 << 14
_LENGTHS = [varint(length) for length in range(_KNOWN)]
_UID = len(values.UID)
_UID_HEAD = (
    b"\x32" + varint(_UID + 42) + message(0x0A, values.UID.encode()) + b"\x12\x26\x0a\x24"
)  # an id has 36 characters
_BODIES = [_body_head(length) for length in range(_MAX_SHORT)]


class Encoder:
    """Encodes records and requests. ``original`` adds the line as it was written where the message differs."""

    content_type: ClassVar[str] = "application/x-protobuf"

    def __init__(self, *, original: bool) -> None:
        self._original = original
        self._resources = values.Kept(_resource)
        self._pairs = Pairs(0x32, names=values.named, inner=Pairs(0x0A, names=str))

    def records(self, batch: Batch) -> list[bytes]:
        """Encode each record as a field of ScopeLogs."""
        count = len(batch)
        raws = batch.raws
        messages = batch.messages if batch.messages is not None else raws
        severities = batch.severities if batch.severities is not None else [9] * count
        ids = "\n".join(batch.ids).encode().split(b"\n")
        times = map(_times, repeat(0x09), values.times(batch.times), repeat(0x59), values.times(batch.stamps))
        bodies = _encoded(messages)
        heads = [_BODIES[size] if (size := len(body)) < _MAX_SHORT else _body_head(size) for body in bodies]
        details = self._pairs.encode(batch.attributes) if batch.attributes is not None else repeat(b"")
        levels = map(_SEVERITIES.__getitem__, severities)
        rows = list(map(b"".join, zip(times, levels, heads, bodies, repeat(_UID_HEAD), ids, details)))
        if self._original:
            rows = [
                row if raw == text else row + _pair(0x32, values.ORIGINAL, raw)
                for row, raw, text in zip(rows, raws, messages, strict=True)
            ]
        return [b"\x12" + (_LENGTHS[size] if (size := len(row)) < _KNOWN else varint(size)) + row for row in rows]

    def resources(self, resources: list[Resource]) -> list[bytes]:
        """Encode each resource as a field of ResourceLogs."""
        return self._resources.of(resources)

    @staticmethod
    def overhead(resource: bytes) -> int:
        """Give the most bytes that a resource adds to a request beside its records."""
        return len(resource) + len(_SCOPE) + 12  # two tags and two lengths of at most 5 bytes

    @staticmethod
    def request(groups: Sequence[tuple[bytes, Sequence[bytes]]]) -> bytes:
        """Encode a request of resources and their records."""
        pieces: list[bytes] = []
        for resource, records in groups:
            inner = len(_SCOPE) + sum(map(len, records))
            length = varint(inner)
            pieces += (b"\x0a", varint(len(resource) + 1 + len(length) + inner), resource, b"\x12", length, _SCOPE)
            pieces += records
        return b"".join(pieces)


class Pairs:
    """Encodes the pairs of many objects at once, as KeyValue fields with ``tag``.

    Objects with the same keys in the same order are one table, whose columns mostly hold one type each: a column of
    texts costs a few list comprehensions, one of few distinct values a lookup each.
    """

    def __init__(self, tag: int, *, names: Callable[[str], str], inner: Pairs | None = None) -> None:
        """Take the field's tag, how keys are named, and what encodes the objects among the values: itself by default."""
        self._tag = tag
        self._names = names
        self._inner = inner or self
        self._heads: dict[str, _Heads] = {}
        self._kept = 0

    def encode(self, objects: Sequence[dict[str, Any]], depth: int = 1) -> list[bytes]:
        """Give the fields of each object, one behind the other; ``depth`` is that of their values."""
        rows = [b""] * len(objects)
        shapes: dict[tuple[str, ...], list[int]] = {}
        for index, one in enumerate(objects):
            if one:
                shapes.setdefault(tuple(one), []).append(index)
        for shape, indexes in shapes.items():
            alike = [objects[index] for index in indexes]
            columns = [self._column(key, alike, depth) for key in shape]
            for index, row in zip(indexes, map(b"".join, zip(*columns, strict=True)), strict=True):
                rows[index] = row
        return rows

    def _column(self, key: str, alike: Sequence[dict[str, Any]], depth: int) -> list[bytes]:
        """Give the field that each of these objects has for a key of theirs."""
        heads = self._heads.get(key)
        if heads is None:
            if len(self._heads) >= _MAX_KEYS:
                self._heads.clear()
            heads = self._heads[key] = _Heads(self._tag, self._names(key))
        try:
            return list(map(heads.known.__getitem__, map(itemgetter(key), alike)))
        except (KeyError, TypeError):  # a text not met before, or no text
            column = list(map(itemgetter(key), alike))
        keys, distinct = _few(column)
        if not distinct:
            return [heads[len(value)] + value for value in self._values(column, depth)]
        encoded = self._values(list(distinct.values()), depth)
        known = {value: heads[len(data)] + data for value, data in zip(distinct, encoded, strict=True)}
        if type(column[0]) is str:
            self._keep(heads, known)
        return list(map(known.__getitem__, keys))

    def _keep(self, heads: _Heads, known: dict[str, bytes]) -> None:
        if self._kept + len(known) > _MAX_TEXTS:
            self._kept = 0
            for one in self._heads.values():
                one.known.clear()
        heads.known.update((text, field) for text, field in known.items() if len(field) < _MAX_SHORT)
        self._kept += len(known)

    def _values(self, column: Sequence[Any], depth: int) -> list[bytes]:
        """Encode the fields of one AnyValue each; ``depth`` counts the lists and objects around them, and one."""
        kinds = set(map(type, column))
        kind = kinds.pop() if len(kinds) == 1 else None
        if kind is str:
            return _all_sized(b"\x0a", _encoded(column))
        if kind is int and min(column) >= 0 and max(column) <= values.INT_MAX:
            return [b"\x18" + (_LENGTHS[value] if value < _KNOWN else varint(value)) for value in column]
        if depth <= values.MAX_DEPTH:
            if kind is dict:
                return _all_sized(b"\x32", self._inner.encode(column, depth + 1))
            if kind is list:
                items = iter(self._items(list(chain.from_iterable(column)), depth + 1))
                return _all_sized(b"\x2a", [b"".join(islice(items, size)) for size in map(len, column)])
        return [self._value(value, depth) for value in column]

    def _items(self, column: list[Any], depth: int) -> list[bytes]:
        keys, distinct = _few(column)
        if distinct:
            known = dict(zip(distinct, _all_sized(b"\x0a", self._values(list(distinct.values()), depth)), strict=True))
            return [known[value] for value in keys]
        return _all_sized(b"\x0a", self._values(column, depth))

    def _value(self, value: Any, depth: int) -> bytes:
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
            plain = {str(key): item for key, item in value.items()} if isinstance(value, dict) else list(value)
            return self._values([plain], depth)[0]
        return message(0x0A, _utf8(str(value)))


class _Heads(dict[int, bytes]):
    """What stands in front of the value of a pair, by the length of the value, for one key.

    ``known`` has the whole field of texts that were met often. Only texts: nothing else is equal to one.
    """

    def __init__(self, tag: int, key: str) -> None:
        self.known: dict[str, bytes] = {}
        self._tag = tag
        self._name = message(0x0A, _utf8(key)) + b"\x12"

    def __missing__(self, size: int) -> bytes:
        length = varint(size)
        head = bytes((self._tag,)) + varint(len(self._name) + len(length) + size) + self._name + length
        if size < _MAX_SHORT:
            self[size] = head
        return head


#: Not float: 0.0 and -0.0 are one key of a dict.
_HASHED = {str, int, bool}


def _few(column: Sequence[Any]) -> tuple[Sequence[Any], dict[Any, Any]]:
    """Give a key for each value, and the distinct values by key if they are few enough to be worth looking up.

    Only values of one type are compared, because 1 and True are one key of a dict. Lists and objects are compared as
    MessagePack, which tells all types apart.
    """
    kinds = set(map(type, column))
    kind = kinds.pop() if len(kinds) == 1 else None
    if kind in _HASHED:
        keys: Sequence[Any] = column
        if 2 * len(set(column[:_SAMPLE])) > len(column[:_SAMPLE]):
            return keys, {}
    elif kind is list or kind is dict:
        try:
            if 2 * len(set(map(_packed, column[:_SAMPLE]))) > len(column[:_SAMPLE]):
                return column, {}
            keys = list(map(_packed, column))
        except (ValueError, TypeError, OverflowError, RecursionError):  # what MessagePack does not hold
            return column, {}
    else:
        return column, {}
    distinct = dict(zip(keys, column, strict=True))
    return keys, distinct if 2 * len(distinct) <= len(column) else {}


def _all_sized(tag: bytes, parts: list[bytes]) -> list[bytes]:
    return [tag + (_LENGTHS[size] if (size := len(data)) < _KNOWN else varint(size)) + data for data in parts]


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
