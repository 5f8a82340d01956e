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
from itertools import repeat
from typing import TYPE_CHECKING, Any, ClassVar

from sinks.otlp import values

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shipper.record import Batch, Resource

_MAX_CACHED = 8_192  # heads and resources kept; beyond it a cache is emptied, which bounds memory
_MAX_SHORT = 1_024  # texts up to this many bytes have their heads kept
_times = struct.Struct("<BQBQ").pack
_double = struct.Struct("<d").pack
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
_LENGTHS = [varint(length) for length in range(1 << 12)]
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
        self._heads: dict[tuple[str, int], bytes] = {}
        self._resources: dict[Resource, bytes] = {}

    def records(self, batch: Batch) -> list[bytes]:
        """Encode each record as a field of ScopeLogs."""
        count = len(batch)
        raws = batch.raws
        messages = batch.messages if batch.messages is not None else raws
        severities = batch.severities if batch.severities is not None else [9] * count
        ids = "\n".join(batch.ids).encode().split(b"\n")
        times = map(_times, repeat(0x09), values.times(batch.times), repeat(0x59), values.times(batch.stamps))
        bodies = self._texts(messages)
        heads = [_BODIES[len(body)] if len(body) < _MAX_SHORT else _body_head(len(body)) for body in bodies]
        details: Iterator[bytes] = repeat(b"") if batch.attributes is None else map(self._details, batch.attributes)
        levels = map(_SEVERITIES.__getitem__, severities)
        parts = zip(times, levels, heads, bodies, repeat(_UID_HEAD), ids, details)
        rows = list(map(b"".join, parts))
        if self._original:
            rows = [
                row if raw == text else row + self._text_attribute(values.ORIGINAL, _utf8(raw))
                for row, raw, text in zip(rows, raws, messages, strict=True)
            ]
        known = len(_LENGTHS)
        return [b"\x12" + (_LENGTHS[size] if (size := len(row)) < known else varint(size)) + row for row in rows]

    def resource(self, resource: Resource) -> bytes:
        """Encode a resource as a field of ResourceLogs."""
        found = self._resources.get(resource)
        if found is None:
            if len(self._resources) >= _MAX_CACHED:
                self._resources.clear()
            pairs = [
                message(0x0A, message(0x0A, _utf8(name)), message(0x12, message(0x0A, _utf8(value))))
                for name, value in values.attributes(resource).items()
            ]
            found = self._resources[resource] = message(0x0A, *pairs)
        return found

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

    def _texts(self, texts: list[str]) -> list[bytes]:
        try:
            return [text.encode() for text in texts]
        except UnicodeEncodeError:
            return [_utf8(text) for text in texts]

    def _details(self, attributes: dict[str, Any]) -> bytes:
        if not attributes:
            return b""
        heads = self._heads
        pieces = []
        for key, value in attributes.items():
            if type(value) is str:
                try:
                    data = value.encode()
                except UnicodeEncodeError:
                    data = values.cleaned(value).encode()
                head = heads.get((key, len(data)))
                pieces.append(head if head is not None else self._head(key, len(data)))
                pieces.append(data)
            else:
                pieces.append(message(0x32, message(0x0A, _utf8(values.named(key))), message(0x12, any_value(value))))
        return b"".join(pieces)

    def _text_attribute(self, name: str, data: bytes) -> bytes:
        return message(0x32, message(0x0A, name.encode()), message(0x12, message(0x0A, data)))

    def _head(self, key: str, length: int) -> bytes:
        """Give what stands in front of the text of an attribute: it depends on the key and the length alone."""
        name = message(0x0A, _utf8(values.named(key)))
        inner = b"\x0a" + varint(length)
        value = b"\x12" + varint(len(inner) + length) + inner
        head = b"\x32" + varint(len(name) + len(value) + length) + name + value
        if length < _MAX_SHORT:
            if len(self._heads) >= _MAX_CACHED:
                self._heads.clear()
            self._heads[key, length] = head
        return head


def any_value(value: Any, depth: int = 1) -> bytes:
    """Encode the fields of an AnyValue."""
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
    if isinstance(value, dict | list | tuple) and depth > values.MAX_DEPTH:
        return message(0x0A, values.deep(value).encode())
    if isinstance(value, dict):
        return message(
            0x32,
            *(
                message(0x0A, message(0x0A, _utf8(str(key))), message(0x12, any_value(item, depth + 1)))
                for key, item in value.items()
            ),
        )
    if isinstance(value, list | tuple):
        return message(0x2A, *(message(0x0A, any_value(item, depth + 1)) for item in value))
    return message(0x0A, _utf8(str(value)))


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
