"""How a batch becomes lines: JSON, text for people, or raw. Shared by the sinks that write lines.

Every rendered record is bytes that end in a newline. JSON is one line per record whatever the record holds. Text
indents the further lines of a message by four spaces and makes control characters visible, so that log text can
neither forge another record nor steer a terminal. Raw is the line as the application wrote it: a record that was
joined from several lines is several lines again.

Lone surrogates, which no UTF-8 can hold, become U+FFFD in all three.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from shipper.record import LEVELS
from shipper.render import rfc3339

if TYPE_CHECKING:
    from shipper.record import Batch, Record, Resource

#: What every JSON line begins with; the 36 characters of the id follow.
JSON_START = b'{"id":"'

_SURROGATE = re.compile("[\ud800-\udfff]")
# C0 but tab and newline, DEL, C1, and what turns the direction of text around or breaks lines in some viewers.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
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
    who = _visible(_who(resource)).replace("\n", "\\n")
    message = _visible(record.message).replace("\n", "\n    ")
    pairs = "".join(f" {_word(key)}={_word(value)}" for key, value in record.attributes.items())
    head = f"{rfc3339(record.time_ns)} {record.level.upper():<5} {who} "
    return _bytes(f"{head}{message}{pairs}\n")


def _who(resource: Resource) -> str:
    return resource.service or resource.container or resource.source


def _visible(text: str) -> str:
    return _CONTROL.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code == 0x0D:
        return "\\r"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _word(value: Any) -> str:
    text = value if isinstance(value, str) else _json_value(value)
    if isinstance(value, str) and _NEEDS_QUOTES.search(text):
        text = _json_value(text)
    return _visible(text).replace("\n", "\\n")


def _json_value(value: Any) -> str:
    try:
        return _encode(value).decode()
    except UnicodeEncodeError:
        return _encode(_clean(value)).decode()


def _bytes(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        return _SURROGATE.sub("\ufffd", text).encode()
