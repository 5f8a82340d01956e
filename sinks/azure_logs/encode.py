"""Records as rows of the table, and how rows say what their record was.

======================  ========  =====================================================================================
column                  type      holds
======================  ========  =====================================================================================
TimeGenerated           datetime  the record's time; the server replaces one of more than 2 days ago or 1 day ahead
EventTime               datetime  the record's time, always, in ticks of 100 ns
TimeNs                  string    the record's time in nanoseconds since 1970, decimal
RecordId                string    the id
Level, Severity         string,   trace to fatal, and OpenTelemetry's severity number
                        int
Message                 string    the message
Attributes              dynamic   the attributes
Service, Container,     string    ``service.name``, ``container.name``, ``log.iostream``, ``host.name`` of the resource,
Stream, Host                      empty when it has none
Source                  string    the source's name in the configuration
Resource                dynamic   all other attributes of the resource
Part, Parts             int       null, or the number of this row and of all rows of the record
Rest                    string    a piece of what fits nowhere else
======================  ========  =====================================================================================

The server cuts a field above 64 KB, in silence. A record with a longer one stays whole: the field is cut in its own
place, with a mark, and all of what does not fit stands in one JSON text, ``{"message": ..., "attributes": {...},
"resource": {...}}``, cut into the ``Rest`` of as many rows as it takes. All have id, times, level and resource; the
reader joins them. So do integers beyond 64 bits, which a dynamic column would round.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any

import msgspec

from shipper.record import LEVELS, Resource
from shipper.render import Kind, is_wide, wide
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
    from shipper.render import Part

#: Of a field: bytes in UTF-8, and UTF-16 units, so that neither way of counting finds more than 64 KB. No text has more
#: units than bytes, so a row of as many bytes as a field may have units has no field that is too long.
BYTES, UNITS = 64_000, 32_000
#: Characters that every field may have, however they are counted.
SURE = 16_000
#: Resource attributes that have a column, and bytes that all others may take before the largest go to ``Rest``.
COLUMNS = {"service.name": "Service", "container.name": "Container", "log.iostream": "Stream", "host.name": "Host"}
_RESOURCE = 16_000

_encoder = msgspec.json.Encoder(enc_hook=str)
_encode = _encoder.encode
_LEVELS = [f'","Level":"{level}","Severity":{severity},"Message":' for severity, level in enumerate(LEVELS)]


class _ResourceJson(msgspec.Struct, frozen=True, eq=False):
    """What a resource adds to each of its rows, as the end of their JSON, and what of it does not fit there."""

    text: str
    left: dict[str, str]


class Encoder:
    """Makes rows; the same records give the same bytes."""

    def __init__(self) -> None:
        self._resource_json = ByResource(_make_resource_json)

    def encode(self, some: Columns) -> Encoded:
        """Encode records. Raises UnicodeEncodeError for lone surrogates."""
        resources = list(map(self._resource_json.__getitem__, some.resources))
        unsure = set(wide(some.attributes))
        if any(resource_json.left for resource_json in set(resources)):
            unsure |= {place for place, resource_json in enumerate(resources) if resource_json.left}
        parts: list[Part] = [
            BETWEEN + b'{"TimeGenerated":"',
            (Kind.TICKS, some.times),
            b'","EventTime":"',
            (Kind.TICKS, some.times),
            b'","TimeNs":"',
            (Kind.NUMBER, some.times),
            b'","RecordId":"',
            (Kind.TEXT, some.ids),
            (Kind.TEXT, list(map(_LEVELS.__getitem__, some.severities))),
            (Kind.STRING, some.messages),
            b',"Attributes":',
            (Kind.VALUE, some.attributes),
            column_of(resources, attrgetter("text")),
        ]
        return encoded(
            some,
            parts,
            sure=UNITS,
            unsure=unsure,
            singly=lambda place: self._encode_in_parts(some, place, resources[place]),
        )

    @staticmethod
    def _encode_in_parts(some: Columns, place: int, resource_json: _ResourceJson) -> list[bytes]:
        """Make the rows of one record whose fields may be too long."""
        message, attributes, record_id = some.messages[place], some.attributes[place], some.ids[place]
        rest: dict[str, Any] = {}
        if resource_json.left:
            rest["resource"] = resource_json.left
        if not fits(message):
            rest["message"], message = message, start_of(message, SURE)
        shown = {name: value for name, value in attributes.items() if not is_wide(value)}
        left = {name: value for name, value in attributes.items() if name not in shown}
        if not fits(_text(shown)):
            left |= remove_oversized(shown, SURE, lambda members: len(_encode(members)))
        if left:
            rest["attributes"] = left
        moment = tick_text(some.times[place])
        key = f'{{"TimeGenerated":"{moment}","EventTime":"{moment}","TimeNs":"{some.times[place]}'
        key += f'","RecordId":"{record_id}{_LEVELS[some.severities[place]]}'
        first = f'{_text(message)},"Attributes":{_text(shown)}'
        if not rest:
            return [f"{key}{first}{resource_json.text}".encode()]
        pieces = list(slices(_text(rest), SURE))
        parts = []
        for number, piece in enumerate(pieces, 1):
            note = first if number == 1 else _text(f"(part {number} of {len(pieces)} of the record {record_id})")
            more = f',"Part":{number},"Parts":{len(pieces)},"Rest":{_text(piece)}'
            parts.append(f"{key}{note}{more}{resource_json.text}".encode())
        return parts


def fits(text: str) -> bool:
    """Tell whether a field holds a text whole."""
    return len(text) <= SURE or (units(text) <= UNITS and len(text.encode()) <= BYTES)


def _make_resource_json(resource: Resource) -> _ResourceJson:
    shown = {clean(name): clean(value) for name, value in resource.attributes.items()}
    left = remove_oversized(shown, _RESOURCE, lambda members: len(_encode(members)), kept=frozenset(COLUMNS))
    columns = {column: shown.pop(name) for name, column in COLUMNS.items() if shown.get(name)}
    columns["Source"] = clean(resource.source)
    text = _text(columns)[1:-1]
    if shown:
        text += f',"Resource":{_text(shown)}'
    return _ResourceJson(f",{text}}}", left)


def _text(value: Any) -> str:
    return _encode(value).decode()
