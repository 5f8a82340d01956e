r"""How a record becomes a document, and a document a record again.

::

    @timestamp message attributes{} event{id original severity} log{level iostream file{path}}
    service{name} container{id name image{name}} host{name}
    shipper{source resource{} unindexed attributes resource_unindexed resource_text}

* ``@timestamp`` is RFC 3339 with nine digits, for a ``date_nanos``: 1970 to 2262. What lies outside is refused.
* Attributes of the resource that ECS has a field for stand there, all others in ``shipper.resource`` by their names.
* ``attributes`` is the record's, of whatever type; the source keeps it exactly. What a ``flattened`` field might not
  take (deep nesting, odd names, terms of more than 32,766 bytes) is JSON text in ``shipper.attributes`` instead, which
  nothing indexes, and ``shipper.unindexed`` is true. So with ``shipper.resource`` and ``shipper.resource_text``.
* ``event.severity`` is there when the level alone does not say it.
* Lone surrogates become U+FFFD, NaN and infinities null.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from shipper.errors import PermanentError
from shipper.native import compiled
from shipper.record import LEVELS, SEVERITIES, Record, Resource
from shipper.render import Kind, render, span
from sinks._http import gzip_packer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from shipper.errors import SinkError
    from shipper.record import Batch
    from shipper.render import Part

#: Where ECS (or, for the stream, OpenTelemetry) keeps attributes of a resource.
PATHS = {
    "service.name": ("service", "name"),
    "container.id": ("container", "id"),
    "container.name": ("container", "name"),
    "container.image.name": ("container", "image", "name"),
    "host.name": ("host", "name"),
    "log.file.path": ("log", "file", "path"),
    "log.iostream": ("log", "iostream"),
}
#: Nanoseconds since 1970 that a ``date_nanos`` field holds (Elasticsearch's and OpenSearch's page of the type).
LAST_NS = (1 << 63) - 1
#: Bytes of JSON below which no term of a ``flattened`` field can exceed Lucene's 32,766.
LONGEST = 32_000
#: Levels of nesting that are indexed; ``flattened`` takes 20 (its depth_limit).
DEEPEST = 18
#: Levels of nesting that JSON text keeps; beyond, a value is its own text.
_MAX_TEXT_DEPTH = 200
#: Texts of resource and level that are kept from batch to batch.
_TAILS = 4_000
#: Documents that are written at once. With fewer, the thread gives way to the reader too often.
_PIECE = 1024
#: Without any of these no name in a line of JSON is odd. Looking for them is cheaper than looking at every name, and
#: three patterns are cheaper than one of three branches or than ``in``.
_ODD = tuple(map(re.compile, (rb'"":', rb'"\.', rb"\.\.")))
_NO_OPENERS = bytes(byte for byte in range(256) if byte not in b"[{\n")
_MANY_OPENERS = re.compile(rb"[\[{]{%d}" % (DEEPEST + 1))
#: What encoding raises for values that JSON does not hold.
_UNFIT = (UnicodeError, ValueError, TypeError, OverflowError, RecursionError)
_HOUR = 3_600_000_000_000
_CANONICAL = frozenset(SEVERITIES.values())
_SURROGATE = re.compile("[\ud800-\udfff]")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_encoder = msgspec.json.Encoder(enc_hook=str)
_encode = _encoder.encode
_decode = msgspec.json.decode


class Body(NamedTuple):
    """The body of a bulk request: the rows that it has, and its bytes before compression."""

    rows: range
    size: int
    data: bytes


class Documents:
    """Makes bulk requests. ``ids`` gives each document its record's id, ``original`` adds the raw line."""

    def __init__(self, *, ids: bool, original: bool, gzip: bool) -> None:
        self._ids = ids
        self._original = original
        self._gzip = gzip
        self._tails: dict[tuple[Resource, int], str] = {}

    def body(self, batch: Batch, rows: range, most: int) -> Body:
        """Write the first of some rows, so many that they take at most ``most`` bytes; a longer one goes alone.

        The same rows give the same bytes.
        """
        packer = gzip_packer() if self._gzip else None
        written: list[bytes | memoryview] = []
        size, end = 0, rows.start
        while end < rows.stop:
            ends: list[int] = []
            text = memoryview(self._lines(batch, slice(end, min(end + _PIECE, rows.stop)), ends))
            count = bisect_right(ends, most - size) or int(end == rows.start)
            if not count:
                break
            text = text[: ends[count - 1]]
            written.append(packer.compress(text) if packer else text)
            size += len(text)
            end += count
            if count < len(ends):
                break
        if packer:
            written.append(packer.flush())
        return Body(range(rows.start, end), size, b"".join(written))

    def _lines(self, batch: Batch, rows: slice, ends: list[int]) -> bytes:
        """Write actions and documents, two lines each; ``ends`` gets where each document ends."""
        messages = (batch.messages if batch.messages is not None else batch.raws)[rows]
        attributes = batch.attributes[rows] if batch.attributes is not None else [{}] * len(messages)
        raws = batch.raws[rows] if self._original else messages
        try:
            parts = self._parts(batch, rows, messages, attributes, raws)
            return render(parts, 0, len(messages), ends=ends)
        except _UNFIT:
            mended = [msgspec.Raw(_json(value)) for value in attributes]
            parts = self._parts(batch, rows, list(map(_clean, messages)), mended, list(map(_clean, raws)))
            return render(parts, 0, len(messages), ends=ends)

    def _parts(
        self, batch: Batch, rows: slice, messages: list[str], attributes: list[Any], raws: list[str]
    ) -> list[Part]:
        severities = batch.severities[rows] if batch.severities is not None else [SEVERITIES["info"]] * len(messages)
        tails = self._tails_of(batch.resources[rows], severities)
        if misfits := _misfits(attributes):
            attributes = list(attributes)
        for row in misfits:
            tails[row] += ',"unindexed":true,"attributes":' + _encode(_json(attributes[row]).decode()).decode()
            attributes[row] = {}
        ids = (Kind.TEXT, batch.ids[rows])
        parts: list[Part] = [b'{"create":{"_id":"', ids, b'"}}\n'] if self._ids else [b'{"create":{}}\n']
        parts += [b'{"@timestamp":"', (Kind.RFC3339, batch.times[rows]), b'","message":', (Kind.STRING, messages)]
        parts += [b',"attributes":', (Kind.VALUE, attributes), b',"event":{"id":"', ids, b'"']
        if self._original:
            parts.append((Kind.TEXT, list(map(_original, raws, messages))))
        return [*parts, (Kind.TEXT, tails), b"}}\n"]

    def _tails_of(self, resources: list[Resource], severities: list[int]) -> list[str]:
        if len(self._tails) > _TAILS:
            self._tails.clear()
        if resources.count(resources[0]) == len(resources):  # told by identity: the batch is of one file, as most are
            table = {severity: self._tail(resources[0], severity) for severity in set(severities)}
            return [table[severity] for severity in severities]
        return [self._tail(resource, severity) for resource, severity in zip(resources, severities, strict=True)]

    def _tail(self, resource: Resource, severity: int) -> str:
        found = self._tails.get((resource, severity))
        if found is None:
            found = self._tails[resource, severity] = _tail(resource, severity)
        return found


def by_index(pattern: str, times: Sequence[int]) -> dict[str, Sequence[int]]:
    """Give the places of the times of each index, by the index's name. Times are in UTC."""
    first, last = ((_EPOCH + timedelta(hours=time_ns // _HOUR)) for time_ns in span(times)[:2])
    if (first.date(), first.hour) == (last.date(), last.hour) or (first.date() == last.date() and "%H" not in pattern):
        return {first.strftime(pattern): range(len(times))}
    hours = [time_ns // _HOUR for time_ns in times]
    found: dict[str, list[int]] = {}
    add = {
        hour: found.setdefault((_EPOCH + timedelta(hours=hour)).strftime(pattern), []).append
        for hour in dict.fromkeys(hours)
    }
    for place, hour in enumerate(hours):
        add[hour](place)
    return dict(found)


def out_of_range(times: Sequence[int]) -> dict[int, SinkError]:
    """Give the rows whose time, of at least one, no ``date_nanos`` can hold."""
    least, most, _ = span(times)
    if least >= 0 and most <= LAST_NS:
        return {}
    return {
        row: PermanentError(
            f"the time {time_ns} ns since 1970 is outside of the years 1970 to 2262 that a date_nanos field holds",
            code="time_range",
            certain=True,
        )
        for row, time_ns in enumerate(times)
        if not 0 <= time_ns <= LAST_NS
    }


def _tail(resource: Resource, severity: int) -> str:
    """Give the rest of ``event`` and all fields behind it, up to the members of ``shipper``."""
    fields: dict[str, Any] = {"log": {"level": LEVELS[severity]}}
    rest = {}
    for name, value in resource.attributes.items():
        path = PATHS.get(name)
        if path is None:
            rest[name] = value
            continue
        place = fields
        for part in path[:-1]:
            place = place.setdefault(part, {})
        place[path[-1]] = value
    own: dict[str, Any] = {"source": resource.source}
    text = _json(rest)
    if any(map(_is_odd, rest)) or len(text) > LONGEST:
        own |= {"resource_unindexed": True, "resource_text": text.decode()}
    elif rest:
        own["resource"] = rest
    fields["shipper"] = own
    event = "" if severity in _CANONICAL else f',"severity":{severity}'
    return event + "}," + _json(fields).decode()[1:-2]


def _original(raw: str, message: str) -> str:
    return "" if raw == message else ',"original":' + _json(raw).decode()


def _misfits(values: list[Any]) -> list[int]:
    """Give the rows whose attributes a ``flattened`` field might not take: too long, too deep, or an odd name."""
    rows = _suspects(values) if compiled is None else compiled.flattened_suspects(values, LONGEST, DEEPEST)
    return [row for row in rows if _is_misfit(_json(values[row]))]


def _suspects(values: list[Any]) -> list[int]:
    """Give at least the rows of `_misfits`: those that may be at a glance."""
    try:
        block = _encoder.encode_lines(values)
    except _UNFIT:
        block = b"".join([_json(value) + b"\n" for value in values])
    lines = block.split(b"\n")[:-1]
    # Whatever opens at most that often cannot be deeper: one pass over the bytes clears nearly every block.
    openers = block.translate(None, _NO_OPENERS)
    if max(map(len, lines)) <= LONGEST and not _MANY_OPENERS.search(openers) and not _has_odd_text(block):
        return []
    opened = openers.split(b"\n")
    return [
        row
        for row, line in enumerate(lines)
        if len(line) > LONGEST or len(opened[row]) > DEEPEST or _has_odd_text(line)
    ]


def _has_odd_text(line: bytes) -> bool:
    """Tell whether a name in JSON may be odd; a value may be all there is to it."""
    return any(odd.search(line) for odd in _ODD) or b"\\u0000" in line


def _is_misfit(text: bytes) -> bool:
    if len(text) > LONGEST:
        return True
    levels = list(_levels(_decode(text)))
    return len(levels) > DEEPEST or any(
        _is_odd(name) for level in levels for one in level if isinstance(one, dict) for name in one
    )


def _levels(value: Any) -> Iterator[list[Any]]:
    """Give the objects and lists of each level of nesting, outermost first."""
    level = [value]
    while level := [one for one in level if isinstance(one, dict | list)]:
        yield level
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]


def _is_odd(name: str) -> bool:
    """Tell whether a ``flattened`` field might not take a name: NUL; and, in servers that expand dots in it as they do
    everywhere else, no name at all or an empty part before, between or instead of parts.
    """
    return "\0" in name or not name or not all(name.rstrip(".").split("."))


def _json(value: Any) -> bytes:
    try:
        return _encode(value)
    except _UNFIT:
        return _encode(_as_json_value(value))


def _as_json_value(value: Any, depth: int = 0) -> Any:
    """Make a value that JSON holds."""
    if depth > _MAX_TEXT_DEPTH:
        return _clean(repr(value))
    if isinstance(value, str):
        return _clean(value)
    if isinstance(value, dict):
        return {_clean(str(key)): _as_json_value(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_as_json_value(item, depth + 1) for item in value]
    try:
        return msgspec.Raw(_encode(value))
    except (UnicodeError, ValueError, TypeError, OverflowError):
        return _clean(str(value))


def _clean(text: str) -> str:
    return _SURROGATE.sub("\ufffd", text)


# Back again


class Decoder:
    """Makes records of documents; equal resources share one object."""

    def __init__(self) -> None:
        self._resources: dict[str, Resource] = {}

    def record(self, name: str, source: Mapping[str, Any]) -> Record:
        """Make the record of a document and its ``_id``. Raises ValueError for a time that nobody can read."""
        event, own = _part(source, "event"), _part(source, "shipper")
        message = source.get("message")
        message = message if isinstance(message, str) else ""
        level = str(_part(source, "log").get("level") or "info")
        severity = event.get("severity")
        if not isinstance(severity, int) or not 0 <= severity < len(LEVELS):
            severity = SEVERITIES.get(level, SEVERITIES["info"])
        kept = own.get("attributes")
        attributes = _decode(kept) if isinstance(kept, str) else source.get("attributes")
        return Record(
            id=str(event.get("id") or name),
            time_ns=parse_time(str(source.get("@timestamp"))),
            severity=severity,
            message=message,
            attributes=attributes if isinstance(attributes, dict) else {},
            raw=str(event.get("original", message)),
            resource=self._resource(source, own),
            offset=0,
        )

    def _resource(self, source: Mapping[str, Any], own: Mapping[str, Any]) -> Resource:
        attributes: dict[str, str] = {}
        for name, path in PATHS.items():
            value: Any = source
            for part in path:
                value = value.get(part) if isinstance(value, dict) else None
            if isinstance(value, str):
                attributes[name] = value
        text = own.get("resource_text")
        attributes |= _decode(text) if isinstance(text, str) else _part(own, "resource")
        where = str(own.get("source", ""))
        key = repr((where, attributes))
        found = self._resources.get(key)
        if found is None:
            found = self._resources[key] = Resource(where, attributes)
        return found


def _part(source: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = source.get(name)
    return value if isinstance(value, dict) else {}


def parse_time(text: str) -> int:
    """Give nanoseconds since 1970 UTC of an RFC 3339 time with up to nine digits. Raises ValueError."""
    if len(text) > 19 and text[-1] == "Z":
        return _second(text[:19]) * 1_000_000_000 + int(text[20:-1].ljust(9, "0")[:9] or 0)
    moment = datetime.fromisoformat(text)
    since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000_000 + since.microseconds * 1000


@lru_cache(maxsize=1024)
def _second(text: str) -> int:
    since = datetime.fromisoformat(text).replace(tzinfo=UTC) - _EPOCH
    return since.days * 86_400 + since.seconds
