r"""How records are shown: for people, and as JSON, raw lines, logfmt or CSV.

Text of a log is data, never commands to a terminal, and never another record: what would steer, hide or end a line is
written out by the functions of `shipper.render`, in names of attributes and services as in messages. ``json`` and
``logfmt`` write it as JSON does (``\u001b``), so that programs read back what was written; ``pretty`` and ``csv`` show
``\x1b``. ``raw`` alone gives the line as it was written.

A cell of ``csv`` that a spreadsheet would take for a formula gets ``'`` in front, and so does one that begins with
``'``: whoever takes one ``'`` off the front of every cell that has it gets back what was there.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from datetime import UTC, datetime, tzinfo
from typing import Any
from zlib import crc32

import msgspec

from shipper.record import Record
from shipper.render import rfc3339
from shipper.visible import json_text, key_text, one_line, visible

FORMATS = ("pretty", "json", "raw", "logfmt", "csv")

_NEEDS_QUOTES = re.compile(r'[\s="\\]')
# What spreadsheets begin a formula with, also in full width and behind spaces, and the mark that says it is none.
_FORMULA = re.compile(r"\s*['=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]")
#: The fields of a record in logfmt; an attribute of such a name stands behind them with this in front.
_OWN = frozenset({"ts", "level", "service", "msg", "container", "host", "id"})
_ATTRIBUTE = "attributes."
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
    return json_text(line) + "\n"


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
        **{_beside(name): value_text(value) for name, value in record.attributes.items()},
        "container": resource.container,
        "host": resource.host,
        "id": record.id,
    }
    return _pairs(pairs, one_line) + "\n"


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
        json_text(record.attributes) if record.attributes else "",
        record.id,
    )
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow([_cell(text) for text in row])
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
        stamp = self._stamp(record.time_ns)
        who = one_line(resource.service or resource.container or resource.source)
        message, *more = visible(record.message).split("\n")
        texts = {name: value_text(value) for name, value in record.attributes.items()}
        if trace := texts.pop("exception.stacktrace", ""):
            # The trace begins with both.
            texts.pop("exception.type", None)
            texts.pop("exception.message", None)
            lines = visible(trace).split("\n")
            more += lines[1:] if lines[0] == message else lines
        attributes = _pairs({name: _shorten(text) for name, text in texts.items()}, visible)
        parts = [
            self._paint(stamp, "2"),
            self._paint(f"{record.level.upper():<5}", _COLORS[record.level]),
            self._paint(who, _SERVICE_COLORS[crc32(who.encode("utf-8", "replace")) % len(_SERVICE_COLORS)]),
            message,
            self._paint(attributes, "2") if attributes else "",
        ]
        shown = [" ".join(filter(None, parts)), *(f"    │ {line}" for line in more)]
        return "\n".join(shown) + "\n"

    def _stamp(self, time_ns: int) -> str:
        try:
            moment = datetime.fromtimestamp(time_ns // 1_000_000_000, UTC).astimezone(self._zone)
        except (OverflowError, ValueError, OSError):  # at the ends of the calendar the zone's own year is none
            return rfc3339(time_ns)
        day = "" if moment.date() == self._today else f"{moment:%Y-%m-%d} "
        return f"{day}{moment:%H:%M:%S}.{time_ns // 1_000_000 % 1000:03d}"

    def _paint(self, text: str, color: str) -> str:
        return f"\x1b[{color}m{text}\x1b[0m" if self._color and text else text


def _shorten(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text) - LONGEST} more)"


def value_text(value: Any) -> str:
    """Give the text of an attribute: text as it is, anything else as JSON, ``None`` as ``""``. Never raises."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json_text(value)


def _beside(name: str) -> str:
    return _ATTRIBUTE + name if name in _OWN else name


def _pairs(pairs: dict[str, str], safe: Callable[[str], str]) -> str:
    """Join pairs; a value that ``safe`` would change stands in quotes, escaped as in JSON."""
    return " ".join(
        f"{key_text(name)}={json_text(value) if _NEEDS_QUOTES.search(value) or safe(value) != value else value}"
        for name, value in pairs.items()
        if value != ""
    )


def _cell(text: str) -> str:
    return f"'{shown}" if _FORMULA.match(shown := visible(text)) else shown
