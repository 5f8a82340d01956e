"""Pushes to Loki as they come over the wire: JSON or snappy protobuf, decoded as pkg/loghttp/push does."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from shipper.testing.http_server import Request

Pairs = tuple[tuple[str, str], ...]

_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_MATCHER = re.compile(r'\s*([^\s=!~{},"]+)\s*=\s*("(?:[^"\\]|\\.)*"|`[^`]*`)\s*(,|$)')
_UNNAMED = re.compile(r"[^a-zA-Z0-9_]")
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class Pushed(msgspec.Struct):
    """One stream of a push: its labels by name, its entries as (nanoseconds, line, structured metadata)."""

    labels: Pairs
    entries: list[tuple[int, str, Pairs]]


class _Value(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    time: str
    line: str
    metadata: dict[str, str] = {}


class _Stream(msgspec.Struct):
    stream: dict[str, str]
    values: list[_Value]


class _Push(msgspec.Struct):
    streams: list[_Stream]


_decode = msgspec.json.Decoder(_Push).decode


def decode(request: Request) -> list[Pushed]:
    """Give the streams of a push. Raises ValueError with Loki's text, for 400."""
    encoding = request.headers.get("content-encoding", "")
    if encoding not in {"", "snappy", "gzip", "deflate"}:
        raise ValueError(f'Content-Encoding "{encoding}" not supported')
    body = request.body if encoding == "snappy" else request.content()
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not kind:
        raise ValueError("mime: no media type")
    return list(_from_json(body) if kind == "application/json" else _from_protobuf(body))


def labels_text(labels: Pairs) -> str:
    """Give labels as Prometheus prints them."""
    return "{" + ", ".join(f"{name}={msgspec.json.encode(value).decode()}" for name, value in labels) + "}"


def _from_json(body: bytes) -> Iterator[Pushed]:
    try:
        push = _decode(body)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise ValueError(f"loghttp.PushRequest.Streams: {error}") from error
    for stream in push.streams:
        entries = [(_nanoseconds(value.time), value.line, _metadata(value.metadata)) for value in stream.values]
        yield Pushed(_labels(stream.stream.items()), entries)


def _nanoseconds(text: str) -> int:
    if not re.fullmatch(r"[+-]?\d{1,19}", text):
        raise ValueError(f'strconv.ParseInt: parsing "{text}": invalid syntax')
    return int(text)


def _labels(labels: Collection[tuple[str, str]]) -> Pairs:
    for name, _ in labels:
        if not _NAME.fullmatch(name):
            raise ValueError(f"couldn't parse labels: 1:2: parse error: unexpected {name!r} in label set")
    # Empty labels are dropped; they are the same as none.
    return tuple(sorted((name, value) for name, value in labels if value))


def _metadata(metadata: dict[str, str]) -> Pairs:
    return tuple([(_UNNAMED.sub("_", name), value) for name, value in metadata.items()])


# Protobuf


def _from_protobuf(body: bytes) -> Iterator[Pushed]:
    import cramjam  # noqa: PLC0415 - a package that only protobuf needs

    try:
        plain = bytes(cramjam.snappy.decompress_raw(body)) if body else b""
    except cramjam.DecompressionError as error:
        raise ValueError("snappy: corrupt input") from error
    for number, stream in _fields(plain):
        if number != 1:
            continue
        labels, entries = "", []
        for field, value in _fields(stream):
            if field == 1:
                labels = value.decode()
            elif field == 2:
                entries.append(_entry(value))
        yield Pushed(_labels(_parsed(labels)), entries)


def _parsed(text: str) -> list[tuple[str, str]]:
    inner = text.strip()
    if inner[:1] != "{" or inner[-1:] != "}":
        raise ValueError(f"couldn't parse labels: 1:1: parse error: unexpected {text!r}")
    inner, at = inner[1:-1].strip(), 0
    found: list[tuple[str, str]] = []
    while at < len(inner):
        match = _MATCHER.match(inner, at)
        if match is None:
            raise ValueError(f"couldn't parse labels: 1:{at + 2}: parse error: unexpected {inner[at:]!r}")
        found.append((match[1], unquoted(match[2])))
        at = match.end()
    return found


def unquoted(text: str) -> str:
    """Read a string of Go. Raises ValueError."""
    if text.startswith("`"):
        return text[1:-1]
    try:
        return str(msgspec.json.decode(re.sub(r"\\x([0-9a-fA-F]{2})", r"\\u00\1", text), type=str))
    except msgspec.DecodeError as error:
        raise ValueError(f"parse error: invalid quoted string {text}") from error


def _entry(body: bytes) -> tuple[int, str, Pairs]:
    time_ns, line, pairs = 0, "", []
    for field, value in _fields(body):
        if field == 1:
            stamp = {name: number for name, number in _fields(value)}  # noqa: C416 - the last one counts
            seconds = stamp.get(1, 0)
            time_ns = (seconds - (1 << 64) if seconds >> 63 else seconds) * 1_000_000_000 + stamp.get(2, 0)
        elif field == 2:
            line = value.decode()
        elif field == 3:
            pair = dict(_fields(value))
            pairs.append((_UNNAMED.sub("_", pair.get(1, b"").decode()), pair.get(2, b"").decode()))
    return time_ns, line, tuple(pairs)


def _fields(body: bytes) -> Iterator[tuple[int, Any]]:
    at = 0
    while at < len(body):
        tag, at = _varint(body, at)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, at = _varint(body, at)
            yield number, value
        elif kind == _BYTES:
            length, at = _varint(body, at)
            if at + length > len(body):
                raise ValueError("unexpected EOF")
            yield number, body[at : at + length]
            at += length
        elif kind in {_FIXED64, _FIXED32}:
            at += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"proto: illegal wireType {kind}")


def _varint(body: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(body):
            raise ValueError("unexpected EOF")
        byte = body[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def protobuf_size(streams: list[Pushed]) -> int:
    """Give about the bytes of the message that Loki sends to an ingester: exact for the lines, close for the rest."""
    size = 0
    for stream in streams:
        size += len(labels_text(stream.labels)) + 8
        for _, line, metadata in stream.entries:
            size += (len(line) if line.isascii() else len(line.encode())) + 20
            size += sum(len(name) + len(value.encode()) + 6 for name, value in metadata)
    return size
