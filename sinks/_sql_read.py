"""How rows of the table come back as records, and how a question becomes SQL: shared by the sinks sqlite and mysql."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from itertools import groupby
from typing import TYPE_CHECKING, Any

import msgspec

from shipper.record import LEVELS, SEVERITIES, Record, Resource
from sinks._sql import EPOCH, FIRST, LEVEL_ALIASES, MARKER, RESOURCE_COLUMNS, WRAPPED, created_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from collections.abc import Set as AbstractSet

    from shipper.reader import Query, Term

_SEVERITIES = frozenset(map(str, range(len(LEVELS))))
_INTEGER = re.compile(r"-?[0-9]{1,4000}")
_decode = msgspec.json.decode


#: Rows of the first page and of all further ones, and resource keys asked for in one statement.
_FIRST_PAGE, _PAGE, _KEYS = 200, 2_000, 500


class RowReader:
    """Turns rows back into records, and knows the resources it has met by key and JSON text of `ResourceColumns`."""

    def __init__(self, columns: dict[str, str]) -> None:
        self._columns = columns
        self._json: dict[str, str] = {}
        self._resources: dict[tuple[Any, ...], Resource] = {}

    def record(self, row: Sequence[Any]) -> Record:
        """Make the record of a row: the columns of `Mapping.names`, ``created_at`` as text, the marker or NULL last."""
        record_id, level, message, details = row[:4]
        mapped = row[4 : 4 + len(self._columns)]
        created, *shared, marker = row[4 + len(self._columns) :]
        attributes = _parsed(details)
        if marker == WRAPPED:
            marker = attributes.get(MARKER)
            inner = attributes.get("attributes")
            attributes = inner if isinstance(inner, dict) else attributes
        nanos, key, marks, beside = _read_marker(marker)
        if "!" in marks and isinstance(attributes.get("message"), str):
            message, inner = attributes["message"], attributes.get("attributes")
            attributes = inner if isinstance(inner, dict) else {}
        if beside is not None:
            outside = {name: attributes.pop(name) for name in beside if name in attributes}
            attributes = {"details": attributes, **outside}
        for (column, attribute), value in zip(self._columns.items(), mapped, strict=True):
            if value is not None and f"!{column}" not in marks:
                attributes[attribute] = _typed(value, integer=column in marks)
        level = (level or "info").strip().lower()
        severity = SEVERITIES.get(LEVEL_ALIASES.get(level, level), SEVERITIES["info"])
        for each in marks:
            if each.startswith("#") and each[1:] in _SEVERITIES:
                severity = int(each[1:])
        return Record(
            id=str(record_id),
            time_ns=parse_created(created) + nanos,
            severity=severity,
            message=message or "",
            attributes=attributes,
            raw=message or "",
            resource=self._resource(key, shared),
            offset=0,
        )

    def records(
        self,
        query: Query,
        *,
        contains: str,
        select: Callable[[Page, str, int], Sequence[Sequence[Any]]],
        lookup: Callable[[Sequence[str], str], Iterable[tuple[str, str]]],
        unsure: AbstractSet[str] = frozenset(),
    ) -> Iterator[Record]:
        """Give the records of a question page by page, by key, so that no page costs more than the first.

        ``select`` is asked for a page's rows: the WHERE part, ASC or DESC, how many. ``lookup`` is asked for the id and
        JSON of resources: their keys, and as many placeholders. ``unsure`` names columns that may hold less than was
        written: the table is not asked to search in them.
        """
        order = "ASC" if query.oldest_first else "DESC"
        place = len(FIRST) + len(self._columns)
        after: tuple[str, str] | None = None
        size = _FIRST_PAGE
        while True:
            rows = select(page(query, after=after, contains=contains, unsure=unsure), order, size)
            missing = sorted(self.missing(rows))
            for start in range(0, len(missing), _KEYS):
                keys = missing[start : start + _KEYS]
                self._json.update(lookup(keys, ", ".join("?" * len(keys))))
            yield from map(self.record, rows)
            if len(rows) < size:
                return
            after = (rows[-1][place], rows[-1][0])
            size = _PAGE

    def missing(self, rows: Iterable[Sequence[Any]]) -> set[str]:
        """Give the resource keys in these rows that are not known yet."""
        found = set()
        for row in rows:
            marker = row[-1]
            if marker == WRAPPED:
                marker = _parsed(row[3]).get(MARKER)
            if marker:
                found.add(_read_marker(marker)[1])
        found.discard("")
        return found - self._json.keys()

    def _resource(self, key: str, shared: Sequence[str | None]) -> Resource:
        found = self._resources.get((key, *shared))
        if found is None:
            if key and key in self._json:
                whole = _decode(self._json[key])
                found = Resource(whole["source"], whole["attributes"])
            else:
                pairs = zip(RESOURCE_COLUMNS, shared[:4], strict=True)
                found = Resource(shared[4] or "", {name: value for name, value in pairs if value is not None})
            self._resources[(key, *shared)] = found
        return found


def _typed(value: Any, *, integer: bool) -> Any:
    """Give a column's value as an attribute: text, whatever the type of the column, or the integer it was."""
    text = (
        value
        if isinstance(value, str)
        else value.decode("utf-8", "replace")
        if isinstance(value, bytes)
        else str(value)
    )
    return int(text) if integer and _INTEGER.fullmatch(text) else text


def _read_marker(marker: Any) -> tuple[int, str, list[str], list[str] | None]:
    """Give nanoseconds, resource key, marks, and the names beside the members of ``details``, of a marker.

    The application may have put anything there: what is no marker says nothing.
    """
    if not isinstance(marker, str) or "," not in marker:
        return 0, "", [], None
    start, plus, names = marker.partition(",+")
    nanos, key, *marks = start.split(",")
    beside = (names.split(",") if names else []) if plus else None
    return int(nanos) if nanos.isdecimal() else 0, key, marks, beside


def _parsed(details: str | None) -> dict[str, Any]:
    """Read a details column. Another writer may have put anything there: what is no object stays as ``details``."""
    if not details:
        return {}
    try:
        value = _decode(details)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return {"details": details}
    return value if isinstance(value, dict) else {"details": value}


def parse_created(text: str) -> int:
    """Give nanoseconds since 1970 UTC of ``YYYY-MM-DD HH:MM:SS[.ffffff]``."""
    moment = datetime.fromisoformat(text).replace(tzinfo=UTC) - EPOCH
    return (moment.days * 86_400 + moment.seconds) * 1_000_000_000 + moment.microseconds * 1000


class Page(msgspec.Struct, frozen=True):
    """The WHERE part and its values of a question, placeholders as ``?``."""

    where: str
    values: tuple[Any, ...]


def page(query: Query, *, after: tuple[str, str] | None, contains: str, unsure: AbstractSet[str] = frozenset()) -> Page:
    """Compile the next page of a question, by key: ``after`` is (created_at, id) of the last row before it.

    ``contains`` is the backend's test for a case-sensitive part of the message. Both ends of the time are bounds of
    the key, never a row constructor, which neither server can use an index for. The bounds are those of the
    microsecond; the exact nanosecond is judged in `answer`.
    """
    parts: list[str] = []
    values: list[Any] = []
    since = None if query.since is None else created_text(query.since)
    until = None if query.until is None else created_text(query.until)
    if after is not None:
        if query.oldest_first:
            parts.append("created_at >= ? AND (created_at > ? OR id > ?)")
            since = None
        else:
            parts.append("created_at <= ? AND (created_at < ? OR id < ?)")
            until = None
        values += [after[0], after[0], after[1]]
    if since is not None:
        parts.append("created_at >= ?")
        values.append(since)
    if until is not None:
        parts.append("created_at <= ?")
        values.append(until)
    for term in query.condition.conjuncts() if query.condition is not None else ():
        text, more = ("", []) if term.field in unsure else _pushed(term, contains)
        if text:
            parts.append(text)
            values += more
    return Page(" AND ".join(parts) or "1 = 1", tuple(values))


def _pushed(term: Term, contains: str) -> tuple[str, list[Any]]:
    """Translate a term that the table can search for; an empty text leaves it to the caller's own filter."""
    values = list(term.values)
    if term.field == "level" and term.op in {"=", "in"} and "info" not in values:  # unknown levels count as info
        values += [alias for alias, level in LEVEL_ALIASES.items() if level in values]
        values += [value.upper() for value in values] + [value.capitalize() for value in values]
        return f"level IN ({', '.join('?' * len(values))})", values
    if term.field in {"service", "container", "stream", "host", "source"} and term.op in {"=", "in"}:
        if not all(0 < len(value) < 255 for value in values):
            return "", []
        return f"{term.field} IN ({', '.join('?' * len(values))})", values
    if term.field == "id" and term.op in {"=", "in"}:
        return f"id IN ({', '.join('?' * len(values))})", values
    if term.field == "message" and term.op == "contains" and "\ufffd" not in values[0]:
        return contains, values
    return "", []


def answer(query: Query, records: Iterable[Record]) -> Iterator[Record]:
    """Filter rows that come in order of (created_at, id) exactly, put those of one microsecond in order, and stop.

    The rows' order within a microsecond is that of their ids, not of their nanoseconds.
    """
    left = query.limit
    for _, group in groupby(records, key=_microsecond):
        for record in sorted(group, key=_by_time, reverse=not query.oldest_first):
            if left is not None and left <= 0:
                return
            if query.since is not None and record.time_ns < query.since:
                continue
            if query.until is not None and record.time_ns >= query.until:
                continue
            if query.condition is not None and not query.condition.matches(record):
                continue
            if left is not None:
                left -= 1
            yield record


def _microsecond(record: Record) -> int:
    return record.time_ns // 1000


def _by_time(record: Record) -> tuple[int, str]:
    return record.time_ns, record.id
