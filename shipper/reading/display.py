r"""How records are shown: for people, and as JSON, raw lines, logfmt or CSV.

Text of a log is data, never commands to a terminal: in ``pretty``, ``logfmt`` and ``csv`` control characters are
made visible (``\x1b``); ``json`` escapes them by its own rules; ``raw`` alone gives the line as it was written.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, tzinfo
from typing import Any
from zlib import crc32

import msgspec

from shipper.record import Record
from shipper.render import rfc3339
from shipper.routing.condition import attribute_text

FORMATS = ("pretty", "json", "raw", "logfmt", "csv")

# All control characters but tab and newline, and what turns the direction of text around.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_NEEDS_QUOTES = re.compile(r'[\s="\\]')
_COLORS = {"trace": "2", "debug": "2", "info": "32", "warn": "33", "error": "31", "fatal": "1;31"}
#: Colours for services: neither red nor yellow, which mean something.
_SERVICE_COLORS = ("34", "35", "36", "94", "95", "96")
_CSV_COLUMNS = ("ts", "level", "service", "container", "host", "source", "stream", "message", "attributes", "id")

#: Characters of one attribute that ``pretty`` shows; all other forms show it whole.
LONGEST = 200

RecordFormat = Callable[[Record], str]


class JsonRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """A record as one line of JSON. ``ts`` is RFC 3339 in UTC with nine digits."""

    ts: str
    level: str
    message: str
    id: str
    service: str = ""
    host: str = ""
    container: str = ""
    stream: str = ""
    source: str = ""
    attributes: dict[str, Any] = {}
    resource: dict[str, str] = {}


def visible(text: str) -> str:
    """Make control characters visible; tabs and newlines stay."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def json_line(record: Record) -> str:
    """Show a record as one line of JSON."""
    resource = record.resource
    line = JsonRecord(
        ts=rfc3339(record.time_ns),
        level=record.level,
        message=record.message,
        id=record.id,
        service=resource.service,
        host=resource.host,
        container=resource.container,
        stream=resource.stream,
        source=resource.source,
        attributes=record.attributes,
        resource=resource.attributes,
    )
    try:
        return msgspec.json.encode(line, enc_hook=str).decode() + "\n"
    except (UnicodeEncodeError, OverflowError):
        return json.dumps(msgspec.to_builtins(line, enc_hook=str), default=str) + "\n"


def raw_line(record: Record) -> str:
    """Show the line as the application wrote it, with whatever is in it."""
    return record.raw + "\n"


def logfmt_line(record: Record) -> str:
    """Show a record as ``key=value`` pairs."""
    resource = record.resource
    pairs = {
        "ts": rfc3339(record.time_ns),
        "level": record.level,
        "service": resource.service,
        "msg": record.message,
        **{name: attribute_text(value) for name, value in record.attributes.items()},
        "container": resource.container,
        "host": resource.host,
        "id": record.id,
    }
    return _pairs(pairs) + "\n"


def csv_header() -> str:
    """Give the first line of CSV output."""
    return ",".join(_CSV_COLUMNS) + "\n"


def csv_line(record: Record) -> str:
    """Show a record as a row of CSV; the columns are those of `csv_header`."""
    resource = record.resource
    row = (
        rfc3339(record.time_ns),
        record.level,
        resource.service,
        resource.container,
        resource.host,
        resource.source,
        resource.stream,
        record.message,
        msgspec.json.encode(record.attributes, enc_hook=str).decode() if record.attributes else "",
        record.id,
    )
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow([visible(cell) for cell in row])
    return out.getvalue()


class Pretty:
    """Shows records for people: local time, level, service, container, message, attributes.

    ``now_ns`` says which day needs no date. Further lines of a message are marked with ``│``, and so are those of a
    stack trace. A value of more than `LONGEST` characters is cut, and says so.
    """

    def __init__(self, *, zone: tzinfo, now_ns: int, color: bool) -> None:
        self._zone = zone
        self._today = datetime.fromtimestamp(now_ns // 1_000_000_000, zone).date()
        self._color = color

    def __call__(self, record: Record) -> str:
        """Show one record."""
        resource = record.resource
        moment = datetime.fromtimestamp(record.time_ns // 1_000_000_000, UTC).astimezone(self._zone)
        day = "" if moment.date() == self._today else f"{moment:%Y-%m-%d} "
        stamp = f"{day}{moment:%H:%M:%S}.{record.time_ns // 1_000_000 % 1000:03d}"
        who = visible(resource.service or resource.container or resource.source)
        message, *more = visible(record.message).split("\n")
        texts = {name: attribute_text(value) for name, value in record.attributes.items()}
        if trace := texts.pop("exception.stacktrace", ""):
            # The trace begins with both.
            texts.pop("exception.type", None)
            texts.pop("exception.message", None)
            lines = visible(trace).split("\n")
            more += lines[1:] if lines[0] == message else lines
        attributes = _pairs({name: _shorten(text) for name, text in texts.items()})
        parts = [
            self._paint(stamp, "2"),
            self._paint(f"{record.level.upper():<5}", _COLORS[record.level]),
            self._paint(who, _SERVICE_COLORS[crc32(who.encode("utf-8", "replace")) % len(_SERVICE_COLORS)]),
            message,
            self._paint(attributes, "2") if attributes else "",
        ]
        shown = [" ".join(filter(None, parts)), *(f"    │ {line}" for line in more)]
        return "\n".join(shown) + "\n"

    def _paint(self, text: str, color: str) -> str:
        return f"\x1b[{color}m{text}\x1b[0m" if self._color and text else text


def _shorten(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text) - LONGEST} more)"


def _pairs(pairs: dict[str, str]) -> str:
    return " ".join(f"{visible(name)}={_quoted(value)}" for name, value in pairs.items() if value != "")


def _quoted(value: str) -> str:
    if not _NEEDS_QUOTES.search(value):
        return visible(value)
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{visible(escaped)}"'
