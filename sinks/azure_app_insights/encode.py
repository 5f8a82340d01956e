r"""Records as telemetry items, and how an item says what its record was.

A record with a stack trace is an exception, one with an attribute that the section names for it an event, all others
are messages. ``properties`` (``customDimensions`` in queries) hold texts only:

* ``id``, ``time_ns`` (decimal nanoseconds), ``message`` (of exceptions and events), ``shipper``: the `Marker`.
* The resource's attributes and the record's, each under its own name. What is no text is JSON, and the marker says so.
  A name that is taken becomes ``attribute.<name>``.
* ``shipper.part`` and ``shipper.1``, ``shipper.2``, ...: what fits nowhere else.

Limits (service limits of Application Insights): an item 64 KB, a message 32,768 characters, a key 150, a value 8,192.
A record that exceeds one stays whole: what does not fit is cut in its own place, with a mark, and all of it stands in
one JSON text, ``{"message": ..., "attributes": {...}, "resource": {...}}``, cut into the numbered properties of this
item and of as many further items as it takes. All have the id, the time and the resource; the reader joins them.

The common case works on columns: records of the same names and resource differ in a few texts only, so their
items are joined from those and constants. An item of at most `_SURE` characters holds no value that could be too long.
"""

from __future__ import annotations

import re
from collections import defaultdict
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import msgspec

from shipper import __version__
from shipper.record import SEVERITIES, Batch, Resource
from sinks._azure import BETWEEN, Times, clean, joined, moved, slices, start_of, tick_text, units

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: Bytes of an item (64 KB, whichever thousand is meant), UTF-16 units of a message, a key, a value, an event's name.
ITEM, MESSAGE, KEY, VALUE, EVENT = 64_000, 32_768, 150, 8_192, 512
#: Characters below which an item breaks no limit: even if each took two UTF-16 units, or four bytes.
_SURE = 4_096
#: Characters of a numbered property: two units each at most, so never too long a value.
_CHUNK = 4_000
#: What a message, a stack and an exception's message are cut to when the whole item would be too large, and bytes of a
#: resource's properties. Even if each character took six bytes, an item then has room for a numbered property.
_SHORT, _RESOURCE = 1_500, 8_000
#: Resource attributes as they usually are called: a property of such a name is the resource's unless the marker says no.
_OF_RESOURCE = re.compile(
    r"service\.name|container\.(?:name|id|image\.name|label\..*)|log\.iostream|log\.file\.path|host\.name", re.DOTALL
)
#: Names that we or the server (``_MS.``) fill.
_TAKEN = re.compile(r"id|time_ns|message|shipper(?:\.(?:part|\d+))?|_MS\..*", re.DOTALL)
_RENAMED = "attribute."
_OPERATION = {"trace_id": "ai.operation.id", "traceId": "ai.operation.id"}
_PARENT = {"span_id": "ai.operation.parentId", "spanId": "ai.operation.parentId"}
_TAGS = {**_OPERATION, **_PARENT}
#: Characters of a tag: ai.operation.id 128, ai.cloud.role 256 (the schema of the data contracts).
_TAG, _ROLE = 128, 256
#: Characters of an exception's type.
_TYPE = 1_024
_STACK = "exception.stacktrace"
_NO_MESSAGE = "(empty)"

#: What the values of an attribute are: texts, JSON that needs no escapes within a text, other JSON, not all the same.
_TEXT, _BARE, _JSON, _MIXED = "text", "bare", "json", "mixed"

_encoder = msgspec.json.Encoder(enc_hook=str)
_encode = _encoder.encode


class Marker(msgspec.Struct, omit_defaults=True):
    """What a record's properties do not say by themselves.

    ``json`` names properties that are JSON, ``renamed`` those under ``attribute.``, ``resource`` and ``own`` those that
    are the resource's, or the record's, against the look of their name. ``message`` is the record's when the item could
    not hold it (empty), ``rest`` the number of numbered properties.
    """

    severity: int
    source: str
    json: list[str] = []
    renamed: list[str] = []
    resource: list[str] = []
    own: list[str] = []
    message: str | None = None
    rest: int = 0


class _Tail(msgspec.Struct, frozen=True, eq=False):
    """What a resource adds to each of its items: properties, names that the marker must name, attributes that do not
    fit, tags.
    """

    source: str
    shown: dict[str, str]
    named: list[str]
    left: dict[str, str]
    tags: dict[str, str]
    text: str


class _Shape(msgspec.Struct, frozen=True):
    """What the names of a record's attributes say: each one's property (``None``: it has no place), and the marks."""

    properties: tuple[str | None, ...]
    renamed: list[str]
    own: list[str]
    plain: bool


def taken(name: str) -> bool:
    """Tell whether a property of this name is filled by us or by the server."""
    return _TAKEN.fullmatch(name) is not None


def of_resource(name: str) -> bool:
    """Tell whether a property of this name is the resource's unless the marker says no."""
    return _OF_RESOURCE.fullmatch(name) is not None


def severity_level(severity: int) -> int:
    """Give Verbose 0, Information 1, Warning 2, Error 3 or Critical 4 of an OpenTelemetry severity number."""
    return 0 if 0 < severity < 9 else (max(severity, 9) - 1) // 4 - 1


_LEVELS = [f',"severityLevel":{severity_level(number)},"properties":{{"id":"' for number in range(25)]
_NUMBERS = [str(number) for number in range(25)]


class Encoded(msgspec.Struct, frozen=True):
    """Items of some records: texts of items with `BETWEEN` between them, each text with the records of its items; and
    the items of the records that have several.
    """

    texts: list[tuple[str, list[int]]]
    several: dict[int, list[str]]


class Encoder:
    """Makes items for one resource of Application Insights; the same batch gives the same bytes."""

    def __init__(self, key: str, events: Sequence[str]) -> None:
        self._key = key
        self._events = tuple(events)
        self._times = Times()
        self._tails: dict[Resource, _Tail] = {}
        self._shapes: dict[tuple[Any, ...], _Shape] = {}
        self._plans: dict[tuple[Any, ...], _Plan | None] = {}

    def encode(self, batch: Batch, start: int, end: int) -> Encoded:
        """Encode the records from ``start`` to ``end``."""
        messages = (batch.messages if batch.messages is not None else batch.raws)[start:end]
        attributes = batch.attributes[start:end] if batch.attributes is not None else [{}] * (end - start)
        try:
            return self._encoded(batch, start, messages, attributes)
        except UnicodeEncodeError:  # lone surrogates, which no UTF-8 can carry
            return self._encoded(batch, start, [clean(text) for text in messages], [clean(each) for each in attributes])

    def _encoded(self, batch: Batch, start: int, messages: list[str], attributes: list[dict[str, Any]]) -> Encoded:
        end = start + len(messages)
        times, resources, ids = batch.times[start:end], batch.resources[start:end], batch.ids[start:end]
        digits = list(map(str, times))
        moments = self._times.texts(times, digits)
        severities = (
            batch.severities[start:end] if batch.severities is not None else [SEVERITIES["info"]] * (end - start)
        )
        groups: dict[Any, list[int]] = defaultdict(list)
        for place, look in enumerate(zip(map(tuple, attributes), resources, strict=True)):
            groups[look].append(place)
        texts: list[tuple[str, list[int]]] = []
        careful: list[int] = []
        for look, members in groups.items():
            pick = itemgetter(*members) if len(members) > 1 else _only(members[0])
            told: tuple[str, ...] = pick(messages)
            values = list(zip(*[each.values() for each in pick(attributes)], strict=True))
            encoded = list(map(_column, values))
            plan = self._plan(look, tuple([kind for kind, _ in encoded]))
            if plan is None or "" in told or any(map(str.isspace, told)):
                careful += members
                continue
            tokens: list[Sequence[str]] = [column for _, column in encoded]
            message_texts = _tokens(told)
            longest = [max(map(len, each)) for each in tokens]
            if any(longest[index] > _TAG for index in plan.tagged):
                careful += members
                continue
            columns = plan.columns(
                pick(moments), pick(digits), pick(ids), pick(severities), messages=message_texts, values=tokens
            )
            rows = [start + place for place in members]
            if plan.length + max(map(len, message_texts)) + sum(longest) <= _SURE:
                texts.append((joined(columns, len(members)), rows))
                continue
            for place, item in zip(members, joined(columns, len(members)).split(BETWEEN), strict=True):
                if len(item) <= _SURE:
                    texts.append((item, [start + place]))
                else:
                    careful.append(place)
        several: dict[int, list[str]] = {}
        for place in careful:
            parts = self._carefully(batch, start + place, message=messages[place], attributes=attributes[place])
            if len(parts) == 1:
                texts.append((parts[0], [start + place]))
            else:
                several[start + place] = parts
        return Encoded(texts, several)

    def _plan(self, look: tuple[tuple[str, ...], Resource], kinds: tuple[str, ...]) -> _Plan | None:
        """Give how records of these names, resource and kinds of values become items; ``None``: one by one."""
        key = (look, kinds)
        try:
            return self._plans[key]
        except KeyError:
            pass
        if len(self._plans) > 1_000:  # bounds memory where names and containers come and go
            self._plans.clear()
        names, resource = look
        tail = self._tail(resource)
        shape = self._shape(names, tail)
        # Values of several types are encoded one by one.
        plain = shape.plain and not tail.left and _MIXED not in kinds
        start = f'","name":"Microsoft.ApplicationInsights.Message","iKey":"{self._key}","tags":{{'
        pairs = list(zip(names, kinds, strict=True))
        self._plans[key] = _Plan(start, tail, shape, pairs) if plain else None
        return self._plans[key]

    def _tail(self, resource: Resource) -> _Tail:
        if (tail := self._tails.get(resource)) is None:
            if len(self._tails) > 10_000:  # bounds memory where containers come and go
                self._tails.clear()
            tail = self._tails[resource] = _make_tail(resource)
        return tail

    def _shape(self, names: tuple[str, ...], tail: _Tail) -> _Shape:
        look = (names, tuple(tail.shown))
        if (shape := self._shapes.get(look)) is None:
            if len(self._shapes) > 1_000:
                self._shapes.clear()
            shape = self._shapes[look] = self._make_shape(names, tail)
        return shape

    def _make_shape(self, names: tuple[str, ...], tail: _Tail) -> _Shape:
        found: list[str | None] = []
        renamed: list[str] = []
        own: list[str] = []
        for name in names:
            place: str | None = name
            if not name:
                place = None
            elif _TAKEN.fullmatch(name) or name in tail.shown:
                place = _RENAMED + name
                if place in names or place in tail.shown:
                    place = None
                else:
                    renamed.append(place)
            if place is not None and units(place) > KEY:
                place = None
            elif place is not None and _OF_RESOURCE.fullmatch(place):
                own.append(place)
            found.append(place)
        special = _STACK in names or any(name in names for name in self._events)
        return _Shape(tuple(found), renamed, own, not special and None not in found)

    # A record at a time, for whatever is large, rare or odd.

    def _carefully(self, batch: Batch, row: int, *, message: str, attributes: dict[str, Any]) -> list[str]:
        time_ns, resource = batch.times[row], batch.resources[row]
        severity = batch.severities[row] if batch.severities is not None else SEVERITIES["info"]
        tail = self._tail(resource)
        shape = self._shape(tuple(attributes), tail)
        marker = Marker(severity, tail.source, renamed=shape.renamed, resource=tail.named, own=shape.own)
        fixed = {"id": batch.ids[row], "time_ns": str(time_ns), **tail.shown}
        shown: dict[str, str] = {}
        left: dict[str, Any] = {}
        for (name, value), place in zip(attributes.items(), shape.properties, strict=True):
            text = value if isinstance(value, str) else _text(value)
            if place is not None:
                if not isinstance(value, str):
                    marker.json.append(place)
                shown[place] = start_of(text, VALUE)
            if place is None or units(text) > VALUE:
                left[name] = value
        rest: dict[str, Any] = {"attributes": left} if left else {}
        if tail.left:
            rest["resource"] = tail.left
        item = _Item(self._key, tick_text(time_ns), severity_level(severity), tail.tags, attributes)
        item.look(self._events)
        if item.kind == "MessageData":
            item.message = start_of(message, MESSAGE)
            if not message or message.isspace():
                item.message, marker.message = _NO_MESSAGE, message
            if units(message) > MESSAGE or units(marker.message or "") > _SHORT:
                rest["message"], marker.message = message, None
        else:
            fixed["message"] = start_of(message, VALUE)
            if units(message) > VALUE:
                rest["message"] = message
        whole = item.text({**fixed, "shipper": _text(marker), **shown})
        if not rest and _size(whole) <= ITEM:
            return [whole]
        names = dict(zip(shape.properties, attributes, strict=True))
        return self._spread(
            item, fixed, shown, rest, marker=marker, message=message, attributes=attributes, names=names
        )

    @staticmethod
    def _spread(
        item: _Item,
        fixed: dict[str, str],
        shown: dict[str, str],
        rest: dict[str, Any],
        *,
        marker: Marker,
        message: str,
        attributes: dict[str, Any],
        names: dict[str | None, str],
    ) -> list[str]:
        """Make the items of a record that does not fit into one."""
        # Room for our own properties, of which the marker's is the largest.
        most = ITEM - 2 * len(_text(marker)) - 200
        if _size(item.text({**fixed, **shown})) > most:
            item.shorten()
            if units(message) > _SHORT:
                rest["message"] = message
                if "message" in fixed:
                    fixed["message"] = start_of(message, _SHORT)
            size = _size(item.text({**fixed, **shown}))
            for place in sorted(shown, key=lambda place: len(shown[place]), reverse=True):
                if size <= most:
                    break
                size -= _size(_text({place: shown.pop(place)})) - 1  # a comma in place of two braces
                rest.setdefault("attributes", {})[names[place]] = attributes[names[place]]
                most += 2 * len(place) if place in marker.json else 0
            marker.json = [name for name in marker.json if name in shown]
            marker.renamed = [name for name in marker.renamed if name in shown]
            marker.own = [name for name in marker.own if name in shown]
        marker.rest = -(-len(_text(rest)) // _CHUNK)
        chunks = enumerate(slices(_text(rest), _CHUNK), 1)
        first = {**fixed, "shipper.part": "1", "shipper": _text(marker), **shown}
        parts: list[str] = []
        properties, size = first, _size(item.text(first))
        for number, chunk in chunks:
            more = _size(_text({f"shipper.{number}": chunk}))
            if size + more > ITEM:
                parts.append(item.text(properties))
                properties = {**fixed, "shipper.part": str(len(parts) + 1)}
                properties.pop("message", None)
                item.continues(f"(part {len(parts) + 1} of the record {fixed['id']})")
                size = _size(item.text(properties))
            properties[f"shipper.{number}"] = chunk
            size += more
        return [*parts, item.text(properties)]


class _Plan:
    """Items of records that differ in a few texts only: the constants between those."""

    def __init__(self, start: str, tail: _Tail, shape: _Shape, kinds: Sequence[tuple[str, str]]) -> None:
        """Take the start of an item up to its tags, and the name of each attribute and what its values are."""
        marker = Marker(0, tail.source, renamed=shape.renamed, resource=tail.named, own=shape.own)
        marker.json = [str(name) for name, (_, kind) in zip(shape.properties, kinds, strict=True) if kind != _TEXT]
        tags = {_TAGS[name]: index for index, (name, kind) in enumerate(kinds) if name in _TAGS and kind == _TEXT}
        self._tags = [(f',"{tag}":', index) for tag, index in tags.items()]
        self.tagged = list(tags.values())
        self._start = start + _text(tail.tags)[1:-1]
        self._message = '},"data":{"baseType":"MessageData","baseData":{"ver":2,"message":'
        before, severity, after = _text(_text(marker)).partition('"{\\"severity\\":0')
        assert not before
        self._properties = f'"{tail.text},"shipper":{severity[:-1]}'
        self._marker = after
        bare = [kind == _BARE for _, kind in kinds]
        self._names = [
            (f',{_text(name)}:"', '"') if quote else (f",{_text(name)}:", "")
            for name, quote in zip(shape.properties, bare, strict=True)
        ]
        constants = (self._start, self._message, self._properties, self._marker, *(name for name, _ in self._names))
        #: Characters of an item without its message and values, and some more.
        self.length = sum(map(len, constants)) + len(bare) + (2 * _TAG + 64) + 200

    def columns(
        self,
        moments: Sequence[str],
        digits: Sequence[str],
        ids: Sequence[str],
        severities: Sequence[int],
        *,
        messages: Sequence[str],
        values: list[Sequence[str]],
    ) -> list[str | Sequence[str]]:
        """Give the pieces of some items; messages and values are JSON."""
        columns: list[str | Sequence[str]] = ['{"time":"', moments, self._start]
        for before, index in self._tags:
            columns += [before, values[index]]
        levels, numbers = list(map(_LEVELS.__getitem__, severities)), list(map(_NUMBERS.__getitem__, severities))
        columns += [self._message, messages, levels, ids, '","time_ns":"', digits, self._properties, numbers]
        constant = self._marker
        for (name, end), value in zip(self._names, values, strict=True):
            columns += [constant + name, value]
            constant = end
        columns.append(constant + "}}}}")
        return columns


def _blank(value: Any) -> bool:
    return not isinstance(value, str) or not value.strip()


class _Item:
    """One envelope in the making."""

    def __init__(self, key: str, time: str, level: int, tags: dict[str, str], attributes: dict[str, Any]) -> None:
        self.kind = "MessageData"
        self.message = ""
        self._name = ""
        self._exception: dict[str, Any] = {}
        self._key, self._time, self._level = key, time, level
        self._attributes = attributes
        self._tags = dict(tags)
        for name, tag in _TAGS.items():
            value = attributes.get(name)
            if isinstance(value, str) and value and units(value) <= _TAG:
                self._tags[tag] = value

    def look(self, events: Sequence[str]) -> None:
        """Find out what kind of telemetry the record is."""
        attributes = self._attributes
        stack = attributes.get(_STACK)
        if isinstance(stack, str) and not _blank(stack):
            self.kind = "ExceptionData"
            kind, told = attributes.get("exception.type"), attributes.get("exception.message")
            kind = "Error" if _blank(kind) else str(kind)
            # The service refuses an exception without type or message.
            told = stack.strip().partition("\n")[0] if _blank(told) else str(told)
            self._exception = {
                "typeName": start_of(kind, _TYPE),
                "message": start_of(told, MESSAGE),
                "hasFullStack": units(stack) <= MESSAGE,
                "stack": start_of(stack, MESSAGE),
            }
            return
        for name in events:
            event = attributes.get(name)
            if isinstance(event, str) and event.strip() and units(event) <= EVENT:
                self.kind, self._name = "EventData", event
                return

    def continues(self, message: str) -> None:
        """Become a further item of the record."""
        self.kind, self.message = "MessageData", message

    def shorten(self) -> None:
        """Cut what is shown of long texts."""
        self.message = start_of(self.message, _SHORT)
        if self._exception:
            short = {name: start_of(self._exception[name], _SHORT) for name in ("message", "stack")}
            full = self._exception["hasFullStack"] and short["stack"] == self._exception["stack"]
            self._exception |= {**short, "hasFullStack": full}

    def text(self, properties: dict[str, str]) -> str:
        """Give the item as JSON."""
        data: dict[str, Any] = {"ver": 2}
        if self.kind == "MessageData":
            data |= {"message": self.message, "severityLevel": self._level}
        elif self.kind == "ExceptionData":
            data |= {"exceptions": [self._exception], "severityLevel": self._level}
        else:
            data |= {"name": self._name}
        return _text(
            {
                "name": f"Microsoft.ApplicationInsights.{self.kind.removesuffix('Data')}",
                "time": self._time,
                "iKey": self._key,
                "tags": self._tags,
                "data": {"baseType": self.kind, "baseData": {**data, "properties": properties}},
            }
        )


def _make_tail(resource: Resource) -> _Tail:
    attributes = {clean(name): clean(value) for name, value in resource.attributes.items()}
    left = {
        name: value
        for name, value in attributes.items()
        if not name or units(name) > KEY or units(value) > VALUE or _TAKEN.fullmatch(name)
    }
    shown = {name: value for name, value in attributes.items() if name not in left}
    left |= moved(shown, _RESOURCE, lambda members: _size(_text(members)), kept=frozenset(["service.name"]))
    tags = {
        "ai.cloud.role": (resource.service or resource.container or resource.source)[:_ROLE],
        "ai.cloud.roleInstance": (resource.host or resource.container)[:_ROLE],
        "ai.internal.sdkVersion": f"shipper:{__version__}",
    }
    return _Tail(
        source=clean(resource.source),
        shown=shown,
        named=[name for name in shown if not _OF_RESOURCE.fullmatch(name)],
        left=left,
        tags={name: clean(value) for name, value in tags.items() if value},
        text="".join(f",{_text(name)}:{_text(value)}" for name, value in shown.items()),
    )


def _tokens(column: Sequence[Any]) -> list[str]:
    """Encode values as JSON, all at once: JSON has no line breaks but those between the values."""
    tokens = _encoder.encode_lines(column).decode().split("\n")
    tokens.pop()
    return tokens


def _column(values: tuple[Any, ...]) -> tuple[str, list[str]]:
    """Encode the values of an attribute. Give what they are (`_TEXT` and so on) and their texts.

    What they are is seen in the JSON, which costs less than asking each for its type.
    """
    whole = _encoder.encode_lines(values).decode()
    texts = whole.split("\n")
    texts.pop()
    quoted = whole.count('\n"') + whole.startswith('"')
    if quoted == len(texts):
        return _TEXT, texts
    if quoted:
        return _MIXED, texts
    return (_JSON, _tokens(texts)) if '"' in whole else (_BARE, texts)


def _only(place: int) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    return lambda column: (column[place],)


def _text(value: Any) -> str:
    return _encode(value).decode()


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
