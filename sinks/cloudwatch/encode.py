"""The text of an event, to and from a record.

Each event is one JSON object whose last member is ours, so that Logs Insights finds its fields and the reader what was
written. ``form`` says which of four it is:

* ``line``: the application's line is a JSON object. It stands as it was written, and our member is put in before its
  last brace, without parsing it::

      {"level": "error", "user_id": 42,"shipper":{"form":"line","id":"...","ns":"123456",...}}

* ``text``: any other line: ``{"message":"...","shipper":{"form":"text",...}}``.
* ``record``: the parsed record: ``{"level":"error","message":"...","attributes":{...},"shipper":{"form":"record",...}}``.
* ``part``: a piece of an event that was too large, ``part`` of ``parts``; put together they are the event's text.

Our member holds ``id``; ``ns``, the six digits of the nanoseconds below the event's own millisecond; ``level``, where it is known and does
not stand in front; ``source`` and ``resource``; ``attributes`` that the source gave (the part of a long line).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from shipper.record import LEVELS, SEVERITIES, Record, Resource

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from shipper.record import Batch

#: Bytes that CloudWatch counts for an event besides its message (API reference of PutLogEvents).
OVERHEAD = 26

_MILLI = 1_000_000
#: Kinds of ends that are remembered: containers come and go.
_MOST_ENDS = 4_096
_START = ',"shipper":{"form":"line","id":"'
_SURROGATE = re.compile("[\ud800-\udfff]")
_encode = msgspec.json.Encoder(enc_hook=str).encode
_encode_lines = msgspec.json.Encoder(enc_hook=str).encode_lines


class Event(msgspec.Struct, gc=False):
    """One event as PutLogEvents takes it: milliseconds since 1970, and the text."""

    timestamp: int
    message: str


class Tail(msgspec.Struct, frozen=True, kw_only=True):
    """Our member of an event."""

    form: Literal["line", "text", "record", "part"]
    id: str
    ns: str
    level: str = ""
    source: str = ""
    resource: dict[str, str] = {}
    attributes: dict[str, Any] = {}
    part: int = 0
    parts: int = 0


class _Whole(msgspec.Struct, frozen=True):
    """An event of any form but ``line``."""

    shipper: Tail
    message: str = ""
    level: str = ""
    attributes: dict[str, Any] = {}


class _Ours(msgspec.Struct, frozen=True):
    """The end of an event of the form ``line``."""

    shipper: Tail


_whole = msgspec.json.Decoder(_Whole).decode
_ours = msgspec.json.Decoder(_Ours).decode


class Encoder:
    """Makes the texts of records. ``parsed`` says whether records or lines; ``resource`` whether that goes along."""

    def __init__(self, *, parsed: bool, resource: bool) -> None:
        self._parsed = parsed
        self._resource = resource
        self._ends: dict[tuple[Resource, str], str] = {}

    def texts(self, batch: Batch) -> list[str]:
        """Make the text of every record. Raises TypeError for attributes that JSON cannot hold at all."""
        try:
            records = self._parsed and batch.parsed
            make = self._records if records else self._lines
            texts = make(batch, self._tails(batch, level=not records))
            whole = "".join(texts)
            if not whole.isascii():
                whole.encode()
        except UnicodeEncodeError:  # half of a surrogate pair, which UTF-8 cannot hold
            return self.texts(cleaned(batch))
        return texts

    @staticmethod
    def _lines(batch: Batch, ends: list[str]) -> list[str]:
        raws = batch.raws
        rest = iter(_json_each([raw for raw in raws if not "{" < raw < "|" or raw[-1] != "}"]))
        return [
            f'{raw[:-1]},"shipper":{{"form":"line","id":"{id_}","ns":"{moment[-6:]}{end}'
            if "{" < raw < "|" and raw[-1] == "}" and raw != "{}"
            else f'{{"message":{next(rest) if raw != "{}" else _EMPTY},"shipper":{{"form":"text","id":"{id_}","ns":"{moment[-6:]}{end}'
            for raw, id_, moment, end in zip(raws, batch.ids, map(str, batch.times), ends, strict=True)
        ]

    @staticmethod
    def _records(batch: Batch, ends: list[str]) -> list[str]:
        assert batch.messages is not None
        assert batch.attributes is not None
        levels = [LEVELS[severity] for severity in batch.severities or [SEVERITIES["info"]] * len(batch)]
        return [
            f'{{"level":"{level}","message":{message},"attributes":{attributes},'
            f'"shipper":{{"form":"record","id":"{id_}","ns":"{moment[-6:]}{end}'
            for level, message, attributes, id_, moment, end in zip(
                levels,
                _json_each(batch.messages),
                _json_each(batch.attributes),
                batch.ids,
                map(str, batch.times),
                ends,
                strict=True,
            )
        ]

    def _tails(self, batch: Batch, *, level: bool) -> list[str]:
        """Give what follows the nanoseconds in each row."""
        if not level or batch.severities is None:
            ends = {resource: self._end(resource, "") for resource in set(batch.resources)}
            found = [ends[resource] for resource in batch.resources]
        else:
            names = [LEVELS[severity] for severity in batch.severities]
            pairs = list(zip(batch.resources, names, strict=True))
            both = {pair: self._end(*pair) for pair in set(pairs)}
            found = [both[pair] for pair in pairs]
        if level:
            for row, marks in (batch.marks or {}).items():
                found[row] = f'{found[row][:-2]},"attributes":{_text(marks)}}}}}'
        return found

    def _end(self, resource: Resource, level: str) -> str:
        found = self._ends.get((resource, level))
        if found is None:
            if len(self._ends) > _MOST_ENDS:
                self._ends.clear()
            found = f'","level":"{level}"' if level else '"'
            if self._resource:
                found += f',"source":{_text(resource.source)},"resource":{_text(resource.attributes)}'
            found = self._ends[resource, level] = found + "}}"
        return found


def cleaned(batch: Batch) -> Batch:
    """Give the batch with lone surrogates replaced by U+FFFD, however deep they stand."""
    resources = {
        resource: Resource(clean(resource.source), clean(resource.attributes)) for resource in set(batch.resources)
    }
    return msgspec.structs.replace(
        batch,
        raws=clean(batch.raws),
        resources=list(map(resources.__getitem__, batch.resources)),
        messages=clean(batch.messages),
        attributes=clean(batch.attributes),
        marks=None if batch.marks is None else {row: clean(mark) for row, mark in batch.marks.items()},
    )


def clean(value: Any) -> Any:
    """Replace lone surrogates of a value by U+FFFD."""
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {clean(key): clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    return value


def parts(text: str, most: int) -> list[str]:
    """Cut the text of an event that takes more than ``most`` bytes into texts of at most that, in order.

    The same text gives the same parts.
    """
    tail = read_tail(text)
    assert tail is not None
    pieces = [text]
    while True:
        found = [
            _text(
                {
                    "message": piece,
                    "shipper": {
                        "form": "part", "id": tail.id, "ns": tail.ns, "part": number, "parts": len(pieces),
                        "source": tail.source,
                    },
                }
            )
            for number, piece in enumerate(pieces, 1)
        ]  # fmt: skip
        if max(map(size, found)) <= most:
            return found
        # One more than there are, until the largest fits: escaping makes some pieces larger than others.
        count = max(len(pieces) + 1, len(text) // most + 1)
        step = -(-len(text) // count)
        pieces = [text[start : start + step] for start in range(0, len(text), step)]


def size(text: str) -> int:
    """Give the bytes of a text as UTF-8, which is how CloudWatch counts."""
    return len(text) if text.isascii() else len(text.encode())


def sizes(texts: Sequence[str]) -> list[int]:
    """Give the bytes of each text."""
    if "".join(texts).isascii():
        return list(map(len, texts))
    return list(map(size, texts))


def read_tail(text: str) -> Tail | None:
    """Give our member of an event, or ``None`` if somebody else wrote it."""
    at = text.rfind(_START)
    try:
        return _whole(text).shipper if at < 0 else _ours("{" + text[at + 1 :]).shipper
    except (msgspec.DecodeError, UnicodeError):
        return None


def read(text: str, millis: int, resource: Resource | None, *, raws: bool) -> Record | None:
    """Give the record of an event, or ``None`` if somebody else wrote it or it is a part.

    ``resource`` stands in for a resource that was not written. With ``raws`` whoever asks will parse the lines: a
    record that was written parsed is given as a line that says the same.
    """
    at = text.rfind(_START)
    try:
        if at >= 0:
            tail = _ours("{" + text[at + 1 :]).shipper
            message, level, attributes = text[:at] + "}", tail.level, tail.attributes
        else:
            whole = _whole(text)
            tail, message = whole.shipper, whole.message
            level, attributes = whole.level or tail.level, whole.attributes or tail.attributes
    except (msgspec.DecodeError, UnicodeError):
        return None
    if tail.form == "part":
        return None
    raw = message
    if raws and tail.form == "record":
        raw = _text({**attributes, "level": level, "message": message})
    return Record(
        id=tail.id,
        time_ns=millis * _MILLI + int(tail.ns),
        severity=SEVERITIES.get(level, SEVERITIES["info"]),
        message=message,
        attributes=attributes,
        raw=raw,
        resource=Resource(tail.source, tail.resource) if tail.source or resource is None else resource,
        offset=0,
    )


def joined(found: Iterable[tuple[Tail, str]]) -> Iterator[tuple[Tail, str, bool]]:
    """Put parts of one millisecond together: the tail of the first, the text, and whether all parts are there."""
    by_id: dict[str, dict[int, tuple[Tail, str]]] = {}
    for tail, text in found:
        by_id.setdefault(tail.id, {})[tail.part] = (tail, text)
    for pieces in by_id.values():
        numbers = sorted(pieces)
        first = pieces[numbers[0]][0]
        text = "".join(_whole(pieces[number][1]).message for number in numbers)
        yield first, text, len(numbers) == first.parts


def _json_each(values: Sequence[Any]) -> list[str]:
    """Encode each value as JSON; all at once, which JSON's escaping of line feeds makes possible."""
    text = _encode_lines(values).decode()
    return text.split("\n")[:-1]


def _text(value: Any) -> str:
    return _encode(value).decode()


#: What the line ``{}`` is as a message: it has no member that ours could stand behind.
_EMPTY = '"{}"'
