r"""How records become rows of the table ``activity_logs`` and come back: shared by the sinks sqlite and mysql.

::

    id level message details user_id action ip_address user_agent created_at  service container stream host source
                             \__ columns: {column: attribute} of the config __/

* ``created_at`` is UTC text ``YYYY-MM-DD HH:MM:SS.ffffff``, cut (never rounded) below the microsecond.
* An attribute that has a column goes there, an integer as text. A value that does not fit its column (too long,
  not text) stays whole in ``details`` under its own name, and the column is NULL.
* All other attributes are one JSON object in ``details``. If the attribute ``details`` is itself an object, its
  keys stand there directly, as an application that writes to the table itself would put them.
* ``details`` ends with the key ``_shipper`` when columns alone would not give the record back. It is text,
  ``nanoseconds,resource,mark,mark...``: what is below the microsecond, the key of the full resource in
  ``<table>_resources`` (empty when the columns say all), and marks: ``+`` all other keys came from the attribute
  ``details``, ``#n`` the severity number, a column's name if its value was an integer. Where keys alone are
  ambiguous it is an object with ``m`` (that text) and ``details`` (the keys that came from the attribute
  ``details``) or ``attributes`` (all that is left, whole).
* What JSON or the backends cannot hold: nesting beyond 20 levels becomes text that begins with ``[too deep] ``
  (MariaDB refuses 32 levels, MySQL 101), NaN and infinities become null, lone surrogates U+FFFD.
"""

from __future__ import annotations

import hashlib
import re
from base64 import urlsafe_b64encode
from datetime import UTC, datetime, timedelta
from itertools import groupby, islice
from operator import lt
from typing import TYPE_CHECKING, Any

import msgspec

from shipper.record import LEVELS, SEVERITIES, Record, Resource

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from shipper.condition import Term
    from shipper.query import Query
    from shipper.record import Batch

#: Columns before and after the ones that the config maps.
FIRST = ("id", "level", "message", "details")
LAST = ("created_at", "service", "container", "stream", "host", "source")
#: The default mapping, column to attribute.
COLUMNS = {"user_id": "user_id", "action": "action", "ip_address": "ip_address", "user_agent": "user_agent"}
#: Resource attributes that have a column, in the order of the columns.
RESOURCE_COLUMNS = ("service.name", "container.name", "log.iostream", "host.name")
#: Levels of nesting that ``details`` may have; MariaDB accepts 31 (sinks reference, tried on 10.11).
MAX_DEPTH = 20
#: What a value begins with that was too deep and became text, and what the end of a value that was cut says.
TOO_DEEP, CUT = "[too deep] ", "…"

MARK = "_shipper"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CANONICAL = frozenset(SEVERITIES.values())
_LEVEL_ALIASES = {"warning": "warn", "critical": "fatal", "err": "error", "crit": "fatal", "verbose": "debug"}
_DIGITS = bytes(48 if 48 <= byte <= 57 else 0 for byte in range(256))
_NO_OPENERS = bytes(byte for byte in range(256) if byte not in b"[{\n")
_encoder = msgspec.json.Encoder(enc_hook=str)
_decode = msgspec.json.decode


def check_columns(columns: dict[str, str]) -> None:
    """Raise ValueError unless every column's name is usable and every attribute is named once."""
    for column, attribute in columns.items():
        if not _NAME.fullmatch(column):
            raise ValueError(f"columns: {column!r} is not a column name; use letters, digits and _")
        if column.lower() in {*FIRST, *LAST}:
            raise ValueError(f"columns: {column} is filled by shipper itself; choose another column")
        if attribute in {"", "details", MARK}:
            raise ValueError(f"columns: {column}: the attribute {attribute!r} cannot have a column of its own")
    if len(set(columns.values())) < len(columns) or len({column.lower() for column in columns}) < len(columns):
        raise ValueError("columns: an attribute or a column is named twice; each may have one partner")


def check_table(table: str) -> None:
    """Raise ValueError unless the table's name is plain. 54 characters leave room for the resources table."""
    if not _NAME.fullmatch(table) or len(table) > 54:
        raise ValueError(f"table: {table!r} is not a table name; use letters, digits and _, at most 54")


class Tail(msgspec.Struct, frozen=True, eq=False):
    """What a resource adds to each of its rows: five columns, and its key and JSON when those do not say all.

    Equal resources share one object, and rows are grouped by its identity: hashing its text per row cost as much as
    encoding it.
    """

    columns: tuple[str | None, str | None, str | None, str | None, str]
    key: str
    json: str


class Rows(msgspec.Struct):
    """A batch as columns of the table, sorted by (created_at, id), each key once.

    ``details`` are JSON texts or ``None``. ``order`` gives for each row its index in the batch.
    """

    ids: list[str]
    levels: list[str]
    messages: list[str]
    details: list[str | None]
    mapped: list[list[str | None]]
    created: list[str]
    tails: list[Tail]
    order: Sequence[int]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, order: Sequence[int]) -> Rows:
        """Make rows of those at ``order``."""
        return Rows(
            ids=[self.ids[i] for i in order],
            levels=[self.levels[i] for i in order],
            messages=[self.messages[i] for i in order],
            details=[self.details[i] for i in order],
            mapped=[[values[i] for i in order] for values in self.mapped],
            created=[self.created[i] for i in order],
            tails=[self.tails[i] for i in order],
            order=[self.order[i] for i in order],
        )

    def clean(self) -> Rows:
        """Make rows without lone surrogates, which neither UTF-8 nor the backends can hold."""
        return msgspec.structs.replace(
            self,
            messages=[cleaned(text) for text in self.messages],
            mapped=[[None if text is None else cleaned(text) for text in values] for values in self.mapped],
        )


class Mapping:
    """Turns batches into rows for one table.

    ``widths`` gives the characters each column holds; a column that is not named holds any text. With
    ``wide_integers`` false, whole numbers beyond 64 bits, which MySQL's JSON would round, become text.
    """

    def __init__(
        self, columns: dict[str, str], *, widths: dict[str, int] | None = None, wide_integers: bool = True
    ) -> None:
        self.columns = columns
        self._widths = widths or {}
        self._wide_integers = wide_integers
        self._tails: dict[Resource, Tail] = {}
        self._by_content: dict[tuple[Any, ...], Tail] = {}
        self._seconds: dict[str, str] = {}
        self._beginnings: dict[str, list[str]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The table's columns in order."""
        return (*FIRST, *self.columns, *LAST)

    def rows(self, batch: Batch) -> Rows:
        """Encode a batch."""
        count = len(batch)
        times = batch.times
        tails = self._batch_tails(batch.resources)
        severities = batch.severities if batch.severities is not None else [SEVERITIES["info"]] * count
        created, marks = self._times(times, tails)
        if not set(severities) <= _CANONICAL:
            marks = [
                mark if severity in _CANONICAL else f"{mark},#{severity}"
                for mark, severity in zip(marks, severities, strict=True)
            ]
        if batch.attributes is not None:
            details, mapped = self._attributes(batch.attributes, marks)
        else:
            details = [None if mark == "0," else f'{{"{MARK}":"{mark}"}}' for mark in marks]
            mapped = [[None] * count for _ in self.columns]
        rows = Rows(
            ids=batch.ids,
            levels=[LEVELS[severity] for severity in severities],
            messages=batch.messages if batch.messages is not None else batch.raws,
            details=details,
            mapped=mapped,
            created=created,
            tails=tails,
            order=range(count),
        )
        return _sorted(rows)

    def _batch_tails(self, resources: list[Resource]) -> list[Tail]:
        known = self._tails
        try:
            return [known[resource] for resource in resources]
        except KeyError:
            if len(known) > 10_000:  # bounds memory where containers come and go
                known.clear()
                self._by_content.clear()
            for resource in resources:
                if resource not in known:
                    known[resource] = self._tail(resource)
            return [known[resource] for resource in resources]

    def _tail(self, resource: Resource) -> Tail:
        content = (resource.source, *sorted(resource.attributes.items()))
        if (tail := self._by_content.get(content)) is None:
            tail = self._by_content[content] = self._make_tail(resource)
        return tail

    def _make_tail(self, resource: Resource) -> Tail:
        attributes = {cleaned(name): cleaned(value) for name, value in resource.attributes.items()}
        source = cleaned(resource.source)
        values = [attributes.get(name) for name in RESOURCE_COLUMNS]
        fitting = [self._fitted(column, value) for column, value in zip(LAST[1:], [*values, source], strict=True)]
        told = attributes.keys() <= set(RESOURCE_COLUMNS) and fitting == [*values, source]
        text = "" if told else _encoder.encode({"attributes": attributes, "source": source}).decode()
        key = "" if told else urlsafe_b64encode(hashlib.sha256(text.encode()).digest()[:9]).decode()
        service, container, stream, host, name = fitting
        return Tail((service, container, stream, host, name or ""), key, text)

    def _fitted(self, column: str, value: str | None) -> str | None:
        width = self._widths.get(column)
        return value if value is None or width is None or len(value) <= width else value[: width - 1] + CUT

    def _times(self, times: list[int], tails: list[Tail]) -> tuple[list[str], list[str]]:
        """Give created_at texts and the beginnings ``nanoseconds,resource`` of the marks."""
        if times and (min(times) < 10**18 or max(times) >= 10**19):
            return self._any_times(times, tails)
        texts = list(map(str, times))  # nineteen digits, from 2001 to 2286: slices are cheaper than arithmetic
        known = self._seconds
        try:
            created = [known[text[:10]] + text[10:16] for text in texts]
        except KeyError:
            if len(known) > 100_000:
                known.clear()
            for second in {text[:10] for text in texts}:
                known[second] = _second(int(second))
            created = [known[text[:10]] + text[10:16] for text in texts]
        first = tails[0] if tails else None
        if first is not None and tails.count(first) == len(tails):
            beginnings = self._beginnings.get(first.key)
            if beginnings is None:
                if len(self._beginnings) > 100:
                    self._beginnings.clear()
                beginnings = self._beginnings[first.key] = [f"{nanos},{first.key}" for nanos in range(1000)]
            return created, [beginnings[time % 1000] for time in times]
        return created, [f"{time % 1000},{tail.key}" for time, tail in zip(times, tails, strict=True)]

    @staticmethod
    def _any_times(times: list[int], tails: list[Tail]) -> tuple[list[str], list[str]]:
        created = []
        for time in times:
            seconds, rest = divmod(time, 1_000_000_000)
            created.append(f"{_second(seconds)}{rest // 1000:06d}")
        return created, [f"{time % 1000},{tail.key}" for time, tail in zip(times, tails, strict=True)]

    def _attributes(
        self, attributes: list[dict[str, Any]], marks: list[str]
    ) -> tuple[list[str | None], list[list[str | None]]]:
        rests = [each.copy() for each in attributes]
        odd = [index for index, rest in enumerate(rests) if MARK in rest]
        mapped: list[list[str | None]] = []
        for column, attribute in self.columns.items():
            values = [rest.pop(attribute, None) for rest in rests]
            kinds = set(map(type, values))
            if int in kinds:
                marks = [
                    f"{mark},{column}" if type(value) is int else mark
                    for mark, value in zip(marks, values, strict=True)
                ]
                values = [str(value) if type(value) is int else value for value in values]
            width = self._widths.get(column)
            if not kinds <= {str, int, type(None)} or (
                width is not None and max(map(len, filter(None, values)), default=0) > width
            ):
                for index, value in enumerate(values):
                    if value is None or (type(value) is str and (width is None or len(value) <= width)):
                        continue
                    values[index] = None
                    rests[index][attribute] = attributes[index][attribute]
                    marks[index] = marks[index].removesuffix(f",{column}")
            mapped.append(values)
        # A null that has a column must come back as a null, so it stays; the sums show cheaply that there is none.
        kept = sum(map(len, rests)) + sum(len(values) - values.count(None) for values in mapped)
        if kept != sum(map(len, attributes)):
            for attribute in self.columns.values():
                for rest, whole in zip(rests, attributes, strict=True):
                    if whole.get(attribute, "") is None:
                        rest[attribute] = None
        for index in odd:
            rests[index] = {MARK: {"attributes": rests[index]}}
        for index, rest in enumerate(rests):
            if "details" in rest:
                inner = rest["details"]
                if type(inner) is not dict or MARK in inner:
                    continue
                if len(rest) == 1:
                    rests[index] = inner.copy()
                    marks[index] += ",+"
                else:
                    marks[index] = _lift(rests, index, inner, marks[index])
        empty = (
            [index for index, mark in enumerate(marks) if mark == "0," and not rests[index]] if "0," in marks else ()
        )
        for rest, mark in zip(rests, marks, strict=True):
            if MARK in rest:
                rest[MARK]["m"] = mark
            elif mark != "0,":
                rest[MARK] = mark
        details: list[str | None] = list(self._json(rests))
        for index in empty:
            details[index] = None
        return details, mapped

    def _json(self, values: list[dict[str, Any]]) -> list[str]:
        try:
            block = _encoder.encode_lines(values)
            lines = block.decode().split("\n")
            lines.pop()
        except (UnicodeError, ValueError, TypeError, OverflowError, RecursionError):
            return [_encoder.encode(_plain(value)).decode() for value in values]
        wide = not self._wide_integers and b"0" * 19 in block.translate(_DIGITS)
        # Whatever opens at most that often cannot be deeper: one pass over the bytes clears nearly every batch.
        openers = block.translate(None, _NO_OPENERS).split(b"\n")
        if wide or max(map(len, openers), default=0) > MAX_DEPTH:
            for index, opened in enumerate(openers[:-1]):
                if wide or len(opened) > MAX_DEPTH:
                    lines[index] = _encoder.encode(_plain(values[index], wide=not wide)).decode()
        return lines


def _lift(rests: list[dict[str, Any]], index: int, inner: dict[str, Any], mark: str) -> str:
    """Put the keys of the attribute ``details`` where they are looked for, the top of the column, beside others."""
    rest = rests[index]
    if "details" in inner or inner.keys() & rest.keys():
        return mark
    del rest["details"]
    rests[index] = {**inner, **rest, MARK: {"details": list(inner)}}
    return mark + ",="


def _sorted(rows: Rows) -> Rows:
    """Sort by key, which makes deadlocks between writers impossible, and drop a key's second row."""
    created, ids = rows.created, rows.ids
    if all(map(lt, created, islice(created, 1, None))):
        return rows
    keys = list(zip(created, ids, strict=True))
    order: Sequence[int] = sorted(range(len(keys)), key=keys.__getitem__)
    if len(set(ids)) < len(ids):
        order = [i for place, i in enumerate(order) if not place or keys[order[place - 1]] != keys[i]]
    return rows if order == list(range(len(keys))) else rows.take(order)


def _second(seconds: int) -> str:
    """Render a second since 1970 UTC with its point. Raises ValueError beyond the years 1000 to 9999."""
    try:
        text = (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%d %H:%M:%S.")
    except OverflowError:
        text = ""
    if len(text) != 20 or text < "1000":
        raise ValueError(f"the time {seconds} s since 1970 is outside of the years 1000 to 9999 that a column holds")
    return text


def cleaned(text: str) -> str:
    """Give the text with lone surrogates as U+FFFD, and pairs of them as the character they mean."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _plain(value: Any, depth: int = 1, *, wide: bool = True) -> Any:
    """Make a value that JSON and every backend hold: see the module's text."""
    if isinstance(value, str):
        return cleaned(value)
    if isinstance(value, dict | list | tuple | set | frozenset):
        if depth > MAX_DEPTH:
            return TOO_DEEP + _deep_text(value)
        if isinstance(value, dict):
            return {cleaned(str(key)): _plain(item, depth + 1, wide=wide) for key, item in value.items()}
        return [_plain(item, depth + 1, wide=wide) for item in value]
    if isinstance(value, int) and not wide and not -(1 << 63) <= value < 1 << 64:
        return str(value)
    try:
        return msgspec.Raw(_encoder.encode(value))
    except (ValueError, TypeError, OverflowError, UnicodeError):
        return cleaned(str(value))


def _deep_text(value: Any) -> str:
    try:
        return cleaned(_encoder.encode(value).decode())
    except (UnicodeError, ValueError, TypeError, OverflowError, RecursionError):
        return cleaned(repr(value))


class RowReader:
    """Turns rows back into records. ``resources`` maps resource keys to the JSON text of `Tail`."""

    def __init__(self, columns: dict[str, str], resources: dict[str, str]) -> None:
        self._columns = columns
        self._json = resources
        self._resources: dict[tuple[Any, ...], Resource] = {}

    def record(self, row: Sequence[Any]) -> Record:
        """Make the record of a row whose columns are those of `Mapping.names`, ``created_at`` as text."""
        record_id, level, message, details = row[:4]
        mapped = row[4 : 4 + len(self._columns)]
        created, *tail = row[4 + len(self._columns) :]
        attributes = _parsed(details)
        mark = attributes.pop(MARK, None)
        lifted: list[str] = []
        if isinstance(mark, dict):
            lifted = mark.get("details") or []
            attributes = {**attributes, **(mark.get("attributes") or {})}
            mark = mark.get("m")
        nanos, key, *marks = mark.split(",") if isinstance(mark, str) and "," in mark else ("0", "")
        if "+" in marks:
            attributes = {"details": attributes}
        elif "=" in marks:
            inner = {name: attributes.pop(name) for name in lifted if name in attributes}
            attributes["details"] = inner
        for (column, attribute), value in zip(self._columns.items(), mapped, strict=True):
            if value is not None:
                attributes[attribute] = int(value) if column in marks else value
        level = (level or "info").strip().lower()
        severity = SEVERITIES.get(_LEVEL_ALIASES.get(level, level), SEVERITIES["info"])
        for each in marks:
            if each.startswith("#"):
                severity = int(each[1:])
        return Record(
            id=str(record_id),
            time_ns=parse_created(created) + (int(nanos) if nanos.isdigit() else 0),
            severity=severity,
            message=message or "",
            attributes=attributes,
            raw=message or "",
            resource=self._resource(key, tail),
            offset=0,
        )

    def missing(self, details: Iterable[str | None]) -> set[str]:
        """Give the resource keys in these details texts that are not known yet."""
        found = set()
        for text in details:
            if text and MARK in text:
                mark = _parsed(text).get(MARK)
                mark = mark.get("m") if isinstance(mark, dict) else mark
                if isinstance(mark, str) and len(parts := mark.split(",")) > 1 and parts[1]:
                    found.add(parts[1])
        return found - self._json.keys()

    def _resource(self, key: str, tail: Sequence[str | None]) -> Resource:
        found = self._resources.get((key, *tail))
        if found is None:
            if key and key in self._json:
                whole = _decode(self._json[key])
                found = Resource(whole["source"], whole["attributes"])
            else:
                pairs = zip(RESOURCE_COLUMNS, tail[:4], strict=True)
                found = Resource(tail[4] or "", {name: value for name, value in pairs if value is not None})
            self._resources[(key, *tail)] = found
        return found


def _parsed(details: str | None) -> dict[str, Any]:
    """Read a details column. Another writer may have put anything there: what is no object stays as ``details``."""
    if not details:
        return {}
    try:
        value = _decode(details)
    except (msgspec.DecodeError, UnicodeError):
        return {"details": details}
    return value if isinstance(value, dict) else {"details": value}


def parse_created(text: str) -> int:
    """Give nanoseconds since 1970 UTC of ``YYYY-MM-DD HH:MM:SS[.ffffff]``."""
    moment = datetime.fromisoformat(text).replace(tzinfo=UTC) - _EPOCH
    return (moment.days * 86_400 + moment.seconds) * 1_000_000_000 + moment.microseconds * 1000


def created_text(time_ns: int) -> str:
    """Render nanoseconds since 1970 UTC as the text of ``created_at``; years beyond a column's are its bounds."""
    seconds, rest = divmod(time_ns, 1_000_000_000)
    seconds = min(max(seconds, -30_610_224_000), 253_402_300_799)
    return f"{_second(seconds)}{rest // 1000:06d}"


class Page(msgspec.Struct, frozen=True):
    """The WHERE part and its values of a question, placeholders as ``?``."""

    where: str
    values: tuple[Any, ...]


def page(query: Query, *, after: tuple[str, str] | None, contains: str) -> Page:
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
        text, more = _pushed(term, contains)
        if text:
            parts.append(text)
            values += more
    return Page(" AND ".join(parts) or "1 = 1", tuple(values))


def _pushed(term: Term, contains: str) -> tuple[str, list[Any]]:
    """Translate a term that the table can search for; an empty text leaves it to the caller's own filter."""
    values = list(term.values)
    if term.field == "level" and term.op in {"=", "in"} and "info" not in values:  # unknown levels count as info
        values += [alias for alias, level in _LEVEL_ALIASES.items() if level in values]
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
