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

The common case works on columns. An item of at most `_SURE` bytes holds no value that could be too long.
"""

from __future__ import annotations

import re
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import msgspec

from shipper import __version__
from shipper.record import Resource
from shipper.render import Kind
from sinks._azure import (
    BETWEEN,
    ByResource,
    Columns,
    Encoded,
    clean,
    column_of,
    encoded,
    remove_oversized,
    slices,
    start_of,
    tick_text,
    units,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shipper.render import Part

#: Bytes of an item (64 KB, whichever thousand is meant), UTF-16 units of a message, a key, a value, an event's name.
ITEM, MESSAGE, KEY, VALUE, EVENT = 64_000, 32_768, 150, 8_192, 512
#: Bytes of an item that breaks no limit, whatever is in it: no text has more UTF-16 units than bytes.
_SURE = VALUE
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
#: Characters of a record's names, with which what they say is remembered.
_KEPT_NAMES = 4_096
_OPERATION = {"trace_id": "ai.operation.id", "traceId": "ai.operation.id"}
_PARENT = {"span_id": "ai.operation.parentId", "spanId": "ai.operation.parentId"}
_TAGS = {**_OPERATION, **_PARENT}
#: Characters of a tag: ai.operation.id 128, ai.cloud.role 256 (the schema of the data contracts).
_TAG, _ROLE = 128, 256
#: Characters of an exception's type.
_TYPE = 1_024
_STACK = "exception.stacktrace"
_NO_MESSAGE = "(empty)"

_encode = msgspec.json.Encoder(enc_hook=str).encode


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


class _ResourceJson(msgspec.Struct, frozen=True, eq=False):
    """What a resource adds to each of its items: properties, names that the marker must name, attributes that do not
    fit, tags; and the item's JSON up to its tags, from its time up to the severity, from there to the attributes that
    are JSON, and from those to the end of the marker.
    """

    source: str
    shown: dict[str, str]
    named: list[str]
    left: dict[str, str]
    tags: dict[str, str]
    start: str
    properties: str
    marker: str
    end: str


class _Shape(msgspec.Struct, frozen=True):
    """What the names of a record's attributes say: each one's property (``None``: it has no place), and the marks.
    ``end`` is the end of the marker; ``None`` if such records are made one by one.
    """

    properties: tuple[str | None, ...]
    renamed: list[str]
    own: list[str]
    end: str | None


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


class Encoder:
    """Makes items for one resource of Application Insights; the same records give the same bytes."""

    def __init__(self, key: str, events: Sequence[str]) -> None:
        self._key = key
        self._events = tuple(events)
        self._resource_json = ByResource(lambda resource: _make_resource_json(resource, key))
        self._shapes: dict[tuple[Any, ...], _Shape] = {}
        self._usual: set[str] = set()

    def encode(self, some: Columns) -> Encoded:
        """Encode records. Raises UnicodeEncodeError for lone surrogates."""
        resources = list(map(self._resource_json.__getitem__, some.resources))
        distinct = set(resources)
        names: set[str] = set().union(*some.attributes)
        unusual = self._unusual(names).union(*[names & resource_json.shown.keys() for resource_json in distinct])
        properties: list[dict[Any, Any]] = some.attributes
        end = column_of(resources, attrgetter("end"))
        unsure: set[int] = set()
        if unusual:
            properties, ends = properties.copy(), [resource_json.end for resource_json in resources]
            end = (Kind.TEXT, ends)
            for place, attributes in enumerate(properties):
                if unusual.isdisjoint(attributes):
                    continue
                shape = self._shape(tuple(attributes), resources[place])
                if shape.end is None:
                    unsure.add(place)
                    continue
                properties[place] = dict(zip(shape.properties, attributes.values(), strict=True))
                ends[place] = shape.end
        if any(resource_json.left for resource_json in distinct):
            unsure |= {place for place, resource_json in enumerate(resources) if resource_json.left}
        if not all(some.messages) or any(map(str.isspace, some.messages)):
            unsure |= {place for place, text in enumerate(some.messages) if not text or text.isspace()}
        parts: list[Part] = [
            BETWEEN + b'{"time":"',
            (Kind.TICKS, some.times),
            column_of(resources, attrgetter("start")),
            b'},"data":{"baseType":"MessageData","baseData":{"ver":2,"message":',
            (Kind.STRING, some.messages),
            (Kind.TEXT, list(map(_LEVELS.__getitem__, some.severities))),
            (Kind.TEXT, some.ids),
            b'","time_ns":"',
            (Kind.NUMBER, some.times),
            column_of(resources, attrgetter("properties")),
            (Kind.NUMBER, some.severities),
            column_of(resources, attrgetter("marker")),
            (Kind.ENCODED, properties),
            end,
            (Kind.MEMBERS, properties),
            b"}}}}",
        ]
        if not names.isdisjoint(_TAGS):
            parts.insert(3, (Kind.TEXT, [_members(_operation(attributes)) for attributes in some.attributes]))
        return encoded(
            some,
            parts,
            sure=_SURE,
            unsure=unsure,
            singly=lambda place: self._encode_singly(some, place, resources[place]),
        )

    def _unusual(self, names: set[str]) -> set[str]:
        """Give the names that are not simply those of a property and no more, whatever the resource."""
        unknown = names - self._usual
        unusual = {name for name in unknown if self._is_unusual(name)}
        if len(self._usual) > 10_000:  # bounds memory where names come and go
            self._usual.clear()
        self._usual |= unknown - unusual
        return unusual

    def _is_unusual(self, name: str) -> bool:
        special = not name or name == _STACK or name in self._events or units(name) > KEY
        return special or taken(name) or of_resource(name)

    def _shape(self, names: tuple[str, ...], resource_json: _ResourceJson) -> _Shape:
        look = (names, tuple(resource_json.shown))
        if (shape := self._shapes.get(look)) is None:
            if len(self._shapes) > 1_000:
                self._shapes.clear()
            shape = self._make_shape(names, resource_json)
            if sum(map(len, names)) <= _KEPT_NAMES:  # a record of a megabyte of names is not remembered
                self._shapes[look] = shape
        return shape

    def _make_shape(self, names: tuple[str, ...], resource_json: _ResourceJson) -> _Shape:
        found: list[str | None] = []
        known = set(names)
        renamed: list[str] = []
        own: list[str] = []
        for name in names:
            place: str | None = name
            if not name:
                place = None
            elif _TAKEN.fullmatch(name) or name in resource_json.shown:
                place = _RENAMED + name
                if place in known or place in resource_json.shown:
                    place = None
                else:
                    renamed.append(place)
            if place is not None and units(place) > KEY:
                place = None
            elif place is not None and _OF_RESOURCE.fullmatch(place):
                own.append(place)
            found.append(place)
        special = _STACK in names or any(name in names for name in self._events) or None in found
        return _Shape(
            tuple(found), renamed, own, None if special else _end_of_marker(renamed, resource_json.named, own)
        )

    # A record at a time, for whatever is large, rare or odd.

    def _encode_singly(self, some: Columns, place: int, resource_json: _ResourceJson) -> list[bytes]:
        """Make the items of one record."""
        time_ns, severity = some.times[place], some.severities[place]
        message, attributes = some.messages[place], some.attributes[place]
        shape = self._shape(tuple(attributes), resource_json)
        marker = Marker(
            severity, resource_json.source, renamed=shape.renamed, resource=resource_json.named, own=shape.own
        )
        fixed = {"id": some.ids[place], "time_ns": str(time_ns), **resource_json.shown}
        shown: dict[str, str] = {}
        left: dict[str, Any] = {}
        for (name, value), own in zip(attributes.items(), shape.properties, strict=True):
            text = value if isinstance(value, str) else _text(value)
            if own is not None:
                if not isinstance(value, str):
                    marker.json.append(own)
                shown[own] = start_of(text, VALUE)
            if own is None or units(text) > VALUE:
                left[name] = value
        rest: dict[str, Any] = {"attributes": left} if left else {}
        if resource_json.left:
            rest["resource"] = resource_json.left
        item = _Item(self._key, tick_text(time_ns), severity_level(severity), resource_json.tags, attributes)
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
            return [whole.encode()]
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
    ) -> list[bytes]:
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
            as_json = set(marker.json)
            for place in sorted(shown, key=lambda place: len(shown[place]), reverse=True):
                if size <= most:
                    break
                size -= _size(_text({place: shown.pop(place)})) - 1  # a comma in place of two braces
                rest.setdefault("attributes", {})[names[place]] = attributes[names[place]]
                most += 2 * len(place) if place in as_json else 0
            marker.json = [name for name in marker.json if name in shown]
            marker.renamed = [name for name in marker.renamed if name in shown]
            marker.own = [name for name in marker.own if name in shown]
        marker.rest = -(-len(_text(rest)) // _CHUNK)
        chunks = enumerate(slices(_text(rest), _CHUNK), 1)
        first = {**fixed, "shipper.part": "1", "shipper": _text(marker), **shown}
        parts: list[bytes] = []
        properties, size = first, _size(item.text(first))
        for number, chunk in chunks:
            more = _size(_text({f"shipper.{number}": chunk}))
            if size + more > ITEM:
                parts.append(item.text(properties).encode())
                properties = {**fixed, "shipper.part": str(len(parts) + 1)}
                properties.pop("message", None)
                item.continues(f"(part {len(parts) + 1} of the record {fixed['id']})")
                size = _size(item.text(properties))
            properties[f"shipper.{number}"] = chunk
            size += more
        return [*parts, item.text(properties).encode()]


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
        self._tags = tags | _operation(attributes)

    def look(self, events: Sequence[str]) -> None:
        """Find out what kind of telemetry the record is."""
        attributes = self._attributes
        stack = attributes.get(_STACK)
        if isinstance(stack, str) and not _blank(stack):
            self.kind = "ExceptionData"
            kind, message = attributes.get("exception.type"), attributes.get("exception.message")
            kind = "Error" if _blank(kind) else str(kind)
            # The service refuses an exception without type or message.
            message = stack.strip().partition("\n")[0] if _blank(message) else str(message)
            self._exception = {
                "typeName": start_of(kind, _TYPE),
                "message": start_of(message, MESSAGE),
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


def _operation(attributes: dict[str, Any]) -> dict[str, str]:
    """Give the tags that say which operation a record is of."""
    return {
        tag: value
        for name, tag in _TAGS.items()
        if isinstance(value := attributes.get(name), str) and value and units(value) <= _TAG
    }


def _make_resource_json(resource: Resource, key: str) -> _ResourceJson:
    attributes = {clean(name): clean(value) for name, value in resource.attributes.items()}
    left = {
        name: value
        for name, value in attributes.items()
        if not name or units(name) > KEY or units(value) > VALUE or _TAKEN.fullmatch(name)
    }
    shown = {name: value for name, value in attributes.items() if name not in left}
    left |= remove_oversized(shown, _RESOURCE, lambda members: _size(_text(members)), kept=frozenset(["service.name"]))
    tags = {
        "ai.cloud.role": (resource.service or resource.container or resource.source)[:_ROLE],
        "ai.cloud.roleInstance": (resource.host or resource.container)[:_ROLE],
        "ai.internal.sdkVersion": f"shipper:{__version__}",
    }
    tags = {name: clean(value) for name, value in tags.items() if value}
    source = clean(resource.source)
    named = [name for name in shown if not _OF_RESOURCE.fullmatch(name)]
    return _ResourceJson(
        source=source,
        shown=shown,
        named=named,
        left=left,
        tags=tags,
        start=f'","name":"Microsoft.ApplicationInsights.Message","iKey":"{key}","tags":{{{_members(tags)[1:]}',
        properties=f'"{_members(shown)},"shipper":"{{\\"severity\\":',
        marker=_inside(f',"source":{_text(source)},"json":'),
        end=_end_of_marker([], named, []),
    )


def _end_of_marker(renamed: list[str], resource: list[str], own: list[str]) -> str:
    """Give the end of a property that holds a `Marker`, from its ``json`` on."""
    text = _text(Marker(0, "", renamed=renamed, resource=resource, own=own))
    return _inside(text.removeprefix('{"severity":0,"source":""')) + '"'


def _members(texts: dict[str, str]) -> str:
    return "".join([f",{_text(name)}:{_text(value)}" for name, value in texts.items()])


def _inside(text: str) -> str:
    """Give what stands between the quotes of a JSON string."""
    return _text(text)[1:-1]


def _text(value: Any) -> str:
    return _encode(value).decode()


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
