"""How a batch becomes lines: JSON, text for people, or raw. Shared by the sinks that write lines.

Every rendered record is bytes that end in a newline. JSON is one line per record whatever the record holds. Text
indents the further lines of a message by four spaces and writes out what would steer or hide (`shipper.render`), in
names as in messages, so that log text can neither forge another record or attribute nor steer a terminal. Raw is the
line as the application wrote it: a record that was joined from several lines is several lines again.

Lone surrogates, which no UTF-8 can hold, become U+FFFD in JSON and raw lines, and are written out in text.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from shipper.record import LEVELS
from shipper.render import rfc3339
from shipper.visible import json_text as shown_json
from shipper.visible import key_text, one_line, safe_json, visible

if TYPE_CHECKING:
    from shipper.record import Batch, Record, Resource

#: What every JSON line begins with; the 36 characters of the id follow.
JSON_START = b'{"id":"'

_SURROGATE = re.compile("[\ud800-\udfff]")
_NEEDS_QUOTES = re.compile(r"[\s\"'=\\]|^$")

_encode = msgspec.json.Encoder(enc_hook=str).encode
_encode_lines = msgspec.json.Encoder(enc_hook=str).encode_lines


class JsonLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """One record as it stands in a JSON line. ``time`` is RFC 3339, UTC, nine digits; ``raw`` only when asked for."""

    id: str
    time: str
    level: str
    message: str
    attributes: Any
    source: str
    resource: Any
    raw: str | None = None


def json_lines(batch: Batch, *, raw: bool = False) -> list[bytes]:
    """Render each record as one line of JSON; ``raw`` adds the line as the application wrote it."""
    return [line + b"\n" for line in map(_json, _json_rows(batch, raw=raw))]


def terminal_json_lines(batch: Batch) -> list[bytes]:
    """Render each record as `json_lines` does, safe on a terminal: what steers or hides is escaped, as JSON may."""
    lines = json_lines(batch)
    whole = b"".join(lines)
    # Nearly always nothing is to be done, and that is seen for all at once.
    if whole.isascii() and b"\x7f" not in whole:
        return lines
    if whole.decode().replace("\n", "").isprintable():
        return lines
    return [safe_json(line.decode()).encode() for line in lines]


def json_text(batch: Batch, *, raw: bool = False) -> bytes:
    """Render the whole batch as `json_lines` does, at once and faster."""
    try:
        text: bytes = _encode_lines(_json_rows(batch, raw=raw))
    except UnicodeEncodeError:  # one record holds what UTF-8 cannot: mend that one
        return b"".join(json_lines(batch, raw=raw))
    return text


def text_lines(batch: Batch) -> list[bytes]:
    """Render each record for people: time, level, who, message, key=value."""
    return [_text(record) for record in batch.records()]


def raw_lines(batch: Batch) -> list[bytes]:
    """Render each record as the application wrote it."""
    return [_bytes(raw) + b"\n" for raw in batch.raws]


def raw_text(batch: Batch) -> bytes:
    """Render the whole batch as `raw_lines` does, at once and faster."""
    return _bytes("\n".join(batch.raws)) + b"\n" if batch.raws else b""


def _json_rows(batch: Batch, *, raw: bool) -> list[JsonLine]:
    count = len(batch)
    attributes: list[Any] = batch.attributes if batch.attributes is not None else [{}] * count
    severities = batch.severities or [9] * count
    times = map(rfc3339, batch.times)
    return list(
        map(
            JsonLine,
            batch.ids,
            times,
            [LEVELS[severity] for severity in severities],
            batch.messages if batch.messages is not None else batch.raws,
            attributes,
            [resource.source for resource in batch.resources],
            [resource.attributes for resource in batch.resources],
            batch.raws if raw else [None] * count,
        )
    )


def _json(row: JsonLine) -> bytes:
    try:
        return _encode(row)
    except UnicodeEncodeError:
        return _encode(JsonLine(*map(_clean, msgspec.structs.astuple(row))))


def _clean(value: Any) -> Any:
    """Replace lone surrogates by U+FFFD, however deep they stand."""
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {_clean(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    return value


def _text(record: Record) -> bytes:
    resource = record.resource
    who = one_line(_who(resource))
    message = visible(record.message).replace("\n", "\n    ")
    pairs = "".join(f" {key_text(key)}={_word(value)}" for key, value in record.attributes.items())
    head = f"{rfc3339(record.time_ns)} {record.level.upper():<5} {who} "
    return _bytes(f"{head}{message}{pairs}\n")


def _who(resource: Resource) -> str:
    return resource.service or resource.container or resource.source


def _word(value: Any) -> str:
    if isinstance(value, str) and not _NEEDS_QUOTES.search(value) and visible(value) == value:
        return value
    return shown_json(value)


def _bytes(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        return _SURROGATE.sub("\ufffd", text).encode()
