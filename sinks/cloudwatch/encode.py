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
from operator import add
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from shipper.record import LEVELS, SEVERITIES, Record, Resource
from shipper.render import Kind, render
from sinks.cloudwatch.events import MILLI, Events, Part, frame

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from shipper.record import Batch
    from shipper.render import Part as Column
    from sinks.cloudwatch.events import Frame

#: Frames that are remembered: containers come and go.
_MAX_FRAMES = 4_096
_START = ',"shipper":{"form":"line","id":"'
_SURROGATE = re.compile("[\ud800-\udfff]")
_encode = msgspec.json.Encoder(enc_hook=str).encode


class Metadata(msgspec.Struct, frozen=True, kw_only=True):
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


class _Event(msgspec.Struct, frozen=True):
    """An event of any form but ``line``."""

    shipper: Metadata
    message: str = ""
    level: str = ""
    attributes: dict[str, Any] = {}


class _Member(msgspec.Struct, frozen=True):
    """The end of an event of the form ``line``."""

    shipper: Metadata


_decode_event = msgspec.json.Decoder(_Event).decode
_decode_member = msgspec.json.Decoder(_Member).decode


class Encoder:
    """Makes events of records. ``parsed`` says whether records or lines; ``resource`` whether that goes along."""

    def __init__(self, *, parsed: bool, resource: bool) -> None:
        self._parsed = parsed
        self._resource = resource
        self._frames: dict[tuple[str, Resource, str], Frame] = {}

    def events(self, batch: Batch) -> Events:
        """Make the event of every record. Raises TypeError for attributes that JSON cannot hold at all."""
        try:
            if self._parsed and batch.messages is not None:
                objects = _records(batch)
                frames = self._frames_of(batch, ["record"] * len(batch), level=False)
            else:
                objects, forms = _lines(batch)
                frames = self._frames_of(batch, forms, level=True)
                for row, marks in (batch.marks or {}).items():
                    level = LEVELS[batch.severities[row]] if batch.severities is not None else ""
                    rest = f'{self._members(batch.resources[row], level)},"attributes":{_text(marks)}'
                    frames[row] = frame(forms[row], rest)
            sizes = list(map(add, _sizes(objects), [one.size for one in frames]))
        except UnicodeEncodeError:  # half of a surrogate pair, which UTF-8 cannot hold
            return self.events(cleaned(batch))
        return Events(
            rows=range(len(batch)),
            times=batch.times,
            objects=objects,
            ids=batch.ids,
            frames=frames,
            sizes=sizes,
        )

    def parted(self, events: Events, most: int) -> Events:
        """Give the events with each that takes more than ``most`` bytes in parts."""
        if max(events.sizes) <= most:
            return events
        return events.replaced(
            {place: parts(events.text(place), most) for place, size in enumerate(events.sizes) if size > most}
        )

    def _frames_of(self, batch: Batch, forms: list[str], *, level: bool) -> list[Frame]:
        """Give each row's frame, made once for all of one form, resource and level."""
        if level and batch.severities is not None:
            levels = [LEVELS[severity] for severity in batch.severities]
            keys = list(zip(forms, batch.resources, levels, strict=True))
            found = {key: self._frame(*key) for key in set(keys)}
            return [found[key] for key in keys]
        if len(resources := set(batch.resources)) == 1:
            (resource,) = resources
            of_form = {form: self._frame(form, resource, "") for form in set(forms)}
            return [of_form[form] for form in forms]
        pairs = list(zip(forms, batch.resources, strict=True))
        of_both = {pair: self._frame(*pair, "") for pair in set(pairs)}
        return [of_both[pair] for pair in pairs]

    def _frame(self, form: str, resource: Resource, level: str) -> Frame:
        found = self._frames.get((form, resource, level))
        if found is None:
            if len(self._frames) > _MAX_FRAMES:
                self._frames.clear()
            found = self._frames[form, resource, level] = frame(form, self._members(resource, level))
        return found

    def _members(self, resource: Resource, level: str) -> str:
        """Give the members behind the nanoseconds."""
        rest = f',"level":"{level}"' if level else ""
        if self._resource:
            rest += f',"source":{_text(resource.source)},"resource":{_text(resource.attributes)}'
        return rest


def _lines(batch: Batch) -> tuple[list[str], list[str]]:
    """Give the object of each line, which is the line itself where that is one, and its form."""
    objects = list(batch.raws)
    forms = ["line"] * len(objects)
    # An empty object has no member that ours could stand behind.
    rows = [row for row, raw in enumerate(objects) if not "{" < raw < "|" or raw[-1] != "}" or raw == "{}"]
    for row, text in zip(rows, _messages([objects[row] for row in rows]), strict=True):
        objects[row] = text
        forms[row] = "text"
    return objects, forms


def _messages(texts: list[str]) -> list[str]:
    """Give the object of the form ``text``, and of a part, for each text."""
    return _rendered([b'{"message":', (Kind.STRING, texts), b"}\n"], len(texts))


def _records(batch: Batch) -> list[str]:
    assert batch.messages is not None
    assert batch.attributes is not None
    levels = [LEVELS[severity] for severity in batch.severities or [SEVERITIES["info"]] * len(batch)]
    columns: list[Column] = [
        b'{"level":"', (Kind.TEXT, levels), b'","message":', (Kind.STRING, batch.messages),
        b',"attributes":', (Kind.VALUE, batch.attributes), b"}\n",
    ]  # fmt: skip
    return _rendered(columns, len(batch))


def _rendered(columns: list[Column], count: int) -> list[str]:
    """Give each line that columns make: JSON has no other line feeds."""
    return render(columns, 0, count).decode().split("\n")[:-1]


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


def parts(text: str, most: int) -> list[Part]:
    """Cut the text of an event that takes more than ``most`` bytes into parts that take at most that, in order.

    The same text gives the same parts.
    """
    metadata = read_metadata(text)
    assert metadata is not None
    pieces = [text]
    while True:
        found = []
        for number, event in enumerate(_messages(pieces), 1):
            around = frame("part", f',"part":{number},"parts":{len(pieces)},"source":{_text(metadata.source)}')
            found.append(Part(event, around, len(event.encode()) + around.size))
        if max(part.size for part in found) <= most:
            return found
        # One more than there are, until the largest fits: escaping makes some pieces larger than others.
        count = max(len(pieces) + 1, len(text) // most + 1)
        step = -(-len(text) // count)
        pieces = [text[start : start + step] for start in range(0, len(text), step)]


def _sizes(texts: Sequence[str]) -> list[int]:
    """Give the bytes of each text as UTF-8, which is how CloudWatch counts. Raises UnicodeEncodeError."""
    if all(map(str.isascii, texts)):
        return list(map(len, texts))
    return [len(text) if text.isascii() else len(text.encode()) for text in texts]


def read_metadata(text: str) -> Metadata | None:
    """Give our member of an event, or ``None`` if somebody else wrote it."""
    at = text.rfind(_START)
    try:
        return _decode_event(text).shipper if at < 0 else _decode_member("{" + text[at + 1 :]).shipper
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def read(text: str, millis: int, resource: Resource | None, *, raws: bool) -> Record | None:
    """Give the record of an event, or ``None`` if somebody else wrote it or it is a part.

    ``resource`` stands in for a resource that was not written. With ``raws`` whoever asks will parse the lines: a
    record that was written parsed is given as a line that says the same.
    """
    at = text.rfind(_START)
    try:
        if at >= 0:
            metadata = _decode_member("{" + text[at + 1 :]).shipper
            message, level, attributes = text[:at] + "}", metadata.level, metadata.attributes
        else:
            event = _decode_event(text)
            metadata, message = event.shipper, event.message
            level, attributes = event.level or metadata.level, event.attributes or metadata.attributes
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    if metadata.form == "part":
        return None
    raw = message
    if raws and metadata.form == "record":
        raw = _text({**attributes, "level": level, "message": message})
    return Record(
        id=metadata.id,
        time_ns=millis * MILLI + int(metadata.ns),
        severity=SEVERITIES.get(level, SEVERITIES["info"]),
        message=message,
        attributes=attributes,
        raw=raw,
        resource=Resource(metadata.source, metadata.resource) if metadata.source or resource is None else resource,
        offset=0,
    )


def joined(found: Iterable[tuple[Metadata, str]]) -> Iterator[tuple[Metadata, str, bool]]:
    """Put parts of one millisecond together: the metadata of the first, the text, and whether all parts are there."""
    by_id: dict[str, dict[int, tuple[Metadata, str]]] = {}
    for metadata, text in found:
        by_id.setdefault(metadata.id, {})[metadata.part] = (metadata, text)
    for pieces in by_id.values():
        numbers = sorted(pieces)
        first = pieces[numbers[0]][0]
        text = "".join(_decode_event(pieces[number][1]).message for number in numbers)
        yield first, text, len(numbers) == first.parts


def _text(value: Any) -> str:
    return _encode(value).decode()
