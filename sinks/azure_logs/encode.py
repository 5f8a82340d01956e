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

from itertools import chain
from typing import TYPE_CHECKING, Any

import msgspec

from shipper.record import LEVELS, SEVERITIES, Batch, Resource
from sinks._azure import Times, clean, joined, moved, slices, start_of, tick_text, units

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Of a field: bytes in UTF-8, and UTF-16 units, so that neither way of counting finds more than 64 KB.
BYTES, UNITS = 64_000, 32_000
#: Characters below which a row has no field that is too long, however it is counted, and which every field may have.
SURE = 16_000
#: Resource attributes that have a column, and bytes that all others may take before the largest go to ``Rest``.
COLUMNS = {"service.name": "Service", "container.name": "Container", "log.iostream": "Stream", "host.name": "Host"}
_RESOURCE = 16_000

_encoder = msgspec.json.Encoder(enc_hook=str)
_encode = _encoder.encode
_DIGITS = bytes(48 if 48 <= byte <= 57 else 0 for byte in range(256))
_WIDE = b"0" * 19
_LEVELS = [f'","Level":"{level}","Severity":{severity},"Message":' for severity, level in enumerate(LEVELS)]


class _Tail(msgspec.Struct, frozen=True, eq=False):
    """What a resource adds to each of its rows, as the end of their JSON, and what of it does not fit there."""

    text: str
    left: dict[str, str]


class Encoded(msgspec.Struct, frozen=True):
    """Rows of some records: texts of rows with `BETWEEN` between them, each text with the records of its rows; and the
    rows of the records that have several.
    """

    texts: list[tuple[bytes, Sequence[int]]]
    several: dict[int, list[bytes]]


class _Columns(msgspec.Struct, frozen=True):
    """What differs from row to row; messages, attributes and what the resource adds are JSON."""

    times: list[int]
    ids: list[str]
    severities: list[int]
    messages: list[str]
    attributes: list[str]
    tails: list[str]

    def text(self, times: Times) -> str:
        """Join the rows."""
        digits = list(map(str, self.times))
        moments = times.texts(self.times, digits)
        return joined(
            (
                '{"TimeGenerated":"',
                moments,
                '","EventTime":"',
                moments,
                '","TimeNs":"',
                digits,
                '","RecordId":"',
                self.ids,
                list(map(_LEVELS.__getitem__, self.severities)),
                self.messages,
                ',"Attributes":',
                self.attributes,
                self.tails,
            ),
            len(digits),
        )

    def select(self, rows: list[int]) -> _Columns:
        """Give some of the rows."""
        return _Columns(*([column[row] for row in rows] for column in msgspec.structs.astuple(self)))


class Encoder:
    """Makes rows; the same batch gives the same bytes."""

    def __init__(self) -> None:
        self._times = Times()
        self._tails: dict[Resource, _Tail] = {}

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
        tails = self._all_tails(batch.resources[start:end])
        message_texts, told = _encoder.encode_lines(messages), _encoder.encode_lines(attributes)
        columns = _Columns(
            batch.times[start:end],
            batch.ids[start:end],
            batch.severities[start:end] if batch.severities is not None else [SEVERITIES["info"]] * (end - start),
            _lines(message_texts),
            _lines(told),
            [tail.text for tail in tails],
        )
        wide = _WIDE in told.translate(_DIGITS)
        longest = max(map(len, chain(columns.messages, columns.attributes)))
        if not wide and longest <= SURE and not any(tail.left for tail in set(tails)):
            return Encoded([(columns.text(self._times).encode(), range(start, end))], {})
        plain: list[int] = []
        texts: list[tuple[bytes, Sequence[int]]] = []
        several: dict[int, list[bytes]] = {}
        for place, (message, attribute, tail) in enumerate(
            zip(columns.messages, columns.attributes, tails, strict=True)
        ):
            long = max(len(message), len(attribute)) > SURE
            if not long and not tail.left and not (wide and _is_wide(attributes[place])):
                plain.append(place)
                continue
            parts = self._carefully(batch, start + place, messages[place], attributes[place], tail)
            if len(parts) > 1:
                several[start + place] = parts
            else:
                texts.append((parts[0], [start + place]))
        if plain:
            text = columns.select(plain).text(self._times).encode()
            texts.append((text, [start + place for place in plain]))
        return Encoded(texts, several)

    def _carefully(self, batch: Batch, row: int, message: str, attributes: dict[str, Any], tail: _Tail) -> list[bytes]:
        """Make the rows of one record whose fields may be too long."""
        severity = batch.severities[row] if batch.severities is not None else SEVERITIES["info"]
        rest: dict[str, Any] = {}
        if tail.left:
            rest["resource"] = tail.left
        if not fits(message):
            rest["message"], message = message, start_of(message, SURE)
        shown = {name: value for name, value in attributes.items() if not _is_wide(value)}
        left = {name: value for name, value in attributes.items() if name not in shown}
        if not fits(_text(shown)):
            left |= moved(shown, SURE, lambda members: len(_encode(members)))
        if left:
            rest["attributes"] = left
        moment = tick_text(batch.times[row])
        key = f'{{"TimeGenerated":"{moment}","EventTime":"{moment}","TimeNs":"{batch.times[row]}'
        key += f'","RecordId":"{batch.ids[row]}{_LEVELS[severity]}'
        first = f'{_text(message)},"Attributes":{_text(shown)}'
        if not rest:
            return [f"{key}{first}{tail.text}".encode()]
        pieces = list(slices(_text(rest), SURE))
        parts = []
        for number, piece in enumerate(pieces, 1):
            told = first if number == 1 else _text(f"(part {number} of {len(pieces)} of the record {batch.ids[row]})")
            more = f',"Part":{number},"Parts":{len(pieces)},"Rest":{_text(piece)}'
            parts.append(f"{key}{told}{more}{tail.text}".encode())
        return parts

    def _all_tails(self, resources: Sequence[Resource]) -> list[_Tail]:
        known = self._tails
        try:
            return [known[resource] for resource in resources]
        except KeyError:
            if len(known) > 10_000:  # bounds memory where containers come and go
                known.clear()
            for resource in set(resources) - known.keys():
                known[resource] = _make_tail(resource)
            return [known[resource] for resource in resources]


def fits(text: str) -> bool:
    """Tell whether a field holds a text whole."""
    return len(text) <= SURE or (units(text) <= UNITS and len(text.encode()) <= BYTES)


def _make_tail(resource: Resource) -> _Tail:
    shown = {clean(name): clean(value) for name, value in resource.attributes.items()}
    left = moved(shown, _RESOURCE, lambda members: len(_encode(members)), kept=frozenset(COLUMNS))
    columns = {column: shown.pop(name) for name, column in COLUMNS.items() if shown.get(name)}
    columns["Source"] = clean(resource.source)
    text = _text(columns)[1:-1]
    if shown:
        text += f',"Resource":{_text(shown)}'
    return _Tail(f",{text}}}", left)


def _is_wide(value: Any) -> bool:
    """Tell whether an integer beyond 64 bits stands anywhere in a value."""
    if isinstance(value, int):
        return not -(1 << 63) <= value < 1 << 63
    if isinstance(value, dict):
        return any(map(_is_wide, value.values()))
    return isinstance(value, list | tuple) and any(map(_is_wide, value))


def _lines(text: bytes) -> list[str]:
    lines = text.decode().split("\n")
    lines.pop()
    return lines


def _text(value: Any) -> str:
    return _encode(value).decode()
