"""Reads records back by query_range, page by page, as they were written.

Only what can never exclude a matching record is asked of Loki: labels, the id, and words of the message that no way of
writing a line could hide. A line in parts is found by none of its parts, so those are asked for beside it.
"""

from __future__ import annotations

import hashlib
import heapq
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urlencode

import msgspec

from shipper.clock import SystemClock
from shipper.errors import ParkedError, RetryableError
from shipper.reader import Reader
from shipper.record import SEVERITIES, Record, Resource, make_id
from sinks import _http
from sinks._resources import Resources
from sinks.loki import encode, lines
from sinks.loki.config import anchor, places

if TYPE_CHECKING:
    from shipper.clock import Clock
    from shipper.reader import Query, Term
    from sinks.loki.config import LokiConfig

#: Entries of one answer (max_entries_limit_per_query) and nanoseconds of one query (max_query_length, 30d1h), unless
#: the server says that it takes less.
PAGE = 5000
SLICE = 720 * 3600 * 1_000_000_000
#: How far back a question without beginning looks: five years, in nanoseconds.
BACK = 61 * SLICE
#: Nanoseconds by which an entry may stand off its record's time: parts of long lines, equal lines kept apart.
NEAR = 1_000_000
#: Ids that are remembered to hide doubles, which stand near one another.
REMEMBERED = 50_000
#: Records that are gathered before those that are in order are given.
_LOOK = 500
_AHEAD = 86_400 * 1_000_000_000
_LEAST_SLICE = 3600 * 1_000_000_000
#: Tells labels and structured metadata apart in the answer (pkg/util/httpreq/encoding_flags.go).
_CATEGORIZE = {"X-Loki-Response-Encoding-Flags": "categorize-labels"}
_ENTRIES_LIMIT = re.compile(r"max entries limit per query exceeded.*\(\d+ > (\d+)\)")
_RANGE_LIMIT = "the query time range exceeds the limit"
#: Words that stand in a line as they stand in the message, whatever wrote the line. What may hide one is an escape of
#: JSON, which could stand for any letter, or a colour in its middle.
_WORD = re.compile("[A-Za-z]{3,}")
_HIDES = r"\\u00|\x1b"
#: Entries of a label's value may have been cut from here on.
_SURE_BYTES = encode.LABEL_BYTES // 2
_FIELDS = frozenset(["level", "service", "container", "stream", "host", "source"])
_NOT_RESOURCE = encode.OURS - {"service_name"}


class _Entry(NamedTuple):
    time_ns: int
    line: str
    labels: dict[str, str]
    metadata: dict[str, str]


class _Value(msgspec.Struct, array_like=True):
    time: str
    line: str
    beside: dict[str, dict[str, str]] = {}


class _Stream(msgspec.Struct):
    stream: dict[str, str]
    values: list[_Value]


class _Data(msgspec.Struct):
    result: list[_Stream]


class _Answer(msgspec.Struct):
    data: _Data


class LokiReader(Reader):
    """Asks for slices of time and merges the streams of each answer by time."""

    def __init__(self, config: LokiConfig, *, clock: Clock | None = None) -> None:
        self._config = config
        self._clock = clock or SystemClock()
        self._what = f"loki {config.base}"
        self._client = _http.Client(config.base, config, what=self._what)
        self._resources = Resources()
        self._headers: dict[str, str] = {}
        self._page, self._range = PAGE, SLICE
        self._level = next((name for name, template in config.labels.items() if template == "{level}"), None)
        self.parsed = config.line != "raw"

    def read(self, query: Query) -> Iterator[Record]:
        """Give matching records, each once. Raises RetryableError when Loki is away, ParkedError for login or tenant."""
        self._headers = {**self._config.authorization(), **_CATEGORIZE}
        now = self._clock.time_ns()
        end = now + _AHEAD if query.until is None else query.until + NEAR
        start = max(0, end - BACK if query.since is None else query.since - NEAR)
        forward = query.oldest_first
        asked = [self._entries(text, start, end, forward=forward) for text in self._questions(query)]
        entries = heapq.merge(*asked, key=_by_time, reverse=not forward)
        left = query.limit
        seen: OrderedDict[str, None] = OrderedDict()
        for record in self._records(entries, forward=forward):
            if record.id in seen or not _is_inside(query, record.time_ns):
                continue
            seen[record.id] = None
            if len(seen) > REMEMBERED:
                seen.popitem(last=False)
            # The limit counts matches. Of raw lines whoever parses them knows which match, so none is counted here.
            if self.parsed and left is not None and (query.condition is None or query.condition.matches(record)):
                if left == 0:
                    return
                left -= 1
            yield record

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    # Questions

    def _questions(self, query: Query) -> list[str]:
        """Give the LogQL whose answers together hold every match."""
        always = anchor(self._config.labels)
        assert always is not None  # the configuration was checked
        name, value = always
        matchers = {name: f"={_quoted(value)}" if value else '=~".+"'}
        filters, words = "", set[str]()
        for term in query.condition.conjuncts() if query.condition is not None else ():
            if term.field == "message" and term.op == "contains":
                words.update(_WORD.findall(term.value))
            elif term.field == "id" and term.op in {"=", "in"} and self._config.structured_metadata != "none":
                # What another client wrote has no id; it is given one when it is read.
                filters = " | " + " or ".join([f"id={_quoted(one)}" for one in (*term.values, "")])
            elif (found := self._matcher(term)) is not None:
                matchers[found[0]] = found[1]
        selector = "{" + ", ".join(f"{name}{matcher}" for name, matcher in matchers.items()) + "}"
        if not words:
            return [selector + filters]
        lines_with = "".join([f" |~ {_quoted(f'{word}|{_HIDES}')}" for word in sorted(words)])
        if self._config.structured_metadata == "none":
            return [selector + filters]
        return [f'{selector}{lines_with} | part=""{filters}', f'{selector} | part!=""{filters}']

    def _matcher(self, term: Term) -> tuple[str, str] | None:
        """Give the label that a term asks for and its matcher.

        Streams without the label pass, too: what was written under other labels tells the same beside its lines.
        """
        if term.field not in _FIELDS or term.op not in {"=", "in"} or not all(term.values):
            return None
        if any(len(value.encode("utf-8", "replace")) > _SURE_BYTES for value in term.values):
            return None
        label = next((name for name, template in self._config.labels.items() if template == f"{{{term.field}}}"), None)
        always = anchor(self._config.labels)
        if label is None or (always is not None and label == always[0]):
            return None
        return label, f"=~{_quoted('|'.join([*map(_escaped, term.values), '']))}"

    # Entries

    def _entries(self, text: str, start: int, end: int, *, forward: bool) -> Iterator[_Entry]:
        """Give all entries of ``[start, end)`` in order of time."""
        while start < end:
            one, two = (start, min(start + self._range, end)) if forward else (max(end - self._range, start), end)
            try:
                yield from self._slice(text, one, two, forward=forward)
            except _TooLong:
                continue
            start, end = (two, end) if forward else (start, one)

    def _slice(self, text: str, start: int, end: int, *, forward: bool) -> Iterator[_Entry]:
        edge: set[tuple[Any, ...]] = set()
        while start < end:
            found, most = self._ask(text, start, end, forward=forward)
            new = [entry for entry in found if _key(entry) not in edge]
            yield from new
            if len(found) < most:
                return
            # No cursor: the next page begins at the last nanosecond again, and what was seen of it is left out.
            last = found[-1].time_ns
            if found[0].time_ns == last:
                raise ParkedError(
                    f"{self._what}: {most} or more entries stand at one nanosecond, {last}, which no page passes; raise"
                    " Loki's max_entries_limit_per_query or ask for less",
                    code="page",
                )
            edge = {_key(entry) for entry in found if entry.time_ns == last}
            start, end = (last, end) if forward else (start, last + 1)

    def _ask(self, text: str, start: int, end: int, *, forward: bool) -> tuple[list[_Entry], int]:
        """Give the entries of one answer in order of time, and how many there can be at most."""
        most = self._page
        asked = {
            "query": text, "start": start, "end": end, "limit": most, "direction": "forward" if forward else "backward",
        }  # fmt: skip
        path = f"/loki/api/v1/query_range?{urlencode(asked, quote_via=quote)}"
        answer = self._client.request("GET", path, headers=self._headers)
        if answer.status == 400 and (limit := _ENTRIES_LIMIT.search(answer.text)) and 1 < int(limit[1]) < most:
            self._page = int(limit[1])
            return self._ask(text, start, end, forward=forward)
        if answer.status == 400 and _RANGE_LIMIT in answer.text and self._range > _LEAST_SLICE:
            self._range //= 2
            raise _TooLong
        if answer.status != 200:
            raise _http.refusal(answer, self._what)
        try:
            response = msgspec.json.decode(answer.body, type=_Answer)
        except msgspec.DecodeError as error:
            raise RetryableError(f"{self._what}: an answer that is not Loki's: {error}", code="answer") from error
        entries = []
        for stream in response.data.result:
            for value in stream.values:
                beside = value.beside.get("structuredMetadata", {})
                entries.append(_Entry(int(value.time), value.line, stream.stream, beside))
        entries.sort(key=_by_time, reverse=not forward)
        return entries, most

    # Records

    def _records(self, entries: Iterable[_Entry], *, forward: bool) -> Iterator[Record]:
        """Give the records of entries in order of their own times, which may differ by up to `NEAR`, and ids."""
        waiting: list[Record] = []
        look = _LOOK
        for entry in self._join_parts(entries):
            waiting.append(self._record(entry))
            if len(waiting) >= look:
                waiting.sort(key=_by_time_and_id, reverse=not forward)
                done = sum(abs(record.time_ns - entry.time_ns) > NEAR for record in waiting)
                yield from waiting[:done]
                del waiting[:done]
                look = len(waiting) + _LOOK
        yield from sorted(waiting, key=_by_time_and_id, reverse=not forward)

    def _join_parts(self, entries: Iterable[_Entry]) -> Iterator[_Entry]:
        """Put lines that went in parts together again; they stand within nanoseconds of each other.

        Parts of which some are missing, or that a smaller limit was found for meanwhile, are given only if the whole
        is not: better than nothing.
        """
        waiting: dict[tuple[str, int], dict[int, _Entry]] = {}
        done: set[str] = set()
        for entry in entries:
            number, _, total = entry.metadata.get("part", "").partition("/")
            key = (entry.metadata.get("id", ""), int(total) if total.isdecimal() else 0)
            if not key[1] or not number.isdecimal():
                yield entry
                continue
            if key[0] in done:
                continue
            parts = waiting.setdefault(key, {})
            parts[int(number)] = entry
            if len(parts) == key[1]:
                del waiting[key]
                done.add(key[0])
                yield _joined(parts)
        for (record_id, _), parts in waiting.items():
            if record_id not in done:
                yield _joined(parts)

    def _record(self, entry: _Entry) -> Record:
        labels, metadata = entry.labels, entry.metadata
        extra = _decoded(metadata.get("shipper", ""))
        written = metadata.get("ns", "")
        time_ns = int(written) if written.isdecimal() else entry.time_ns
        message, attributes = lines.read(self._config.line, entry.line)
        if "marks" in metadata:
            attributes = {**_object(metadata["marks"]), **attributes}
        severity = extra.get("severity")
        if not isinstance(severity, int) or not 0 <= severity <= 24:
            severity = SEVERITIES.get(labels.get(self._level or "", ""), 0)  # 0: nothing tells it
        return Record(
            id=metadata.get("id") or make_id(time_ns, _hash(entry)),
            time_ns=time_ns,
            severity=severity,
            message=message,
            attributes=attributes,
            raw=entry.line if self._config.line == "raw" else message,
            resource=self._resource(labels, metadata, extra),
            offset=0,
        )

    def _resource(self, labels: dict[str, str], metadata: dict[str, str], extra: dict[str, Any]) -> Resource:
        source = metadata.get("source", "")
        attributes: dict[str, str] = {}
        for name, template in self._config.labels.items():
            words = places(template)
            if len(words) == 1 and template == f"{{{words[0]}}}" and labels.get(name):
                if words[0] == "source":
                    source = labels[name]
                elif words[0] != "level":
                    attributes[encode.WORDS.get(words[0], words[0])] = labels[name]
        names = extra.get("names", {})
        for name, value in metadata.items():
            if name not in _NOT_RESOURCE:
                attributes[names.get(name, encode.RESTORED.get(name, name))] = value
        attributes |= extra.get("more", {})
        attributes |= dict.fromkeys(extra.get("empty", ()), "")
        return self._resources.of(source, attributes)


class _TooLong(Exception):  # noqa: N818 - control flow, not an error
    """The server takes shorter slices of time."""


def _is_inside(query: Query, time_ns: int) -> bool:
    return (query.since is None or time_ns >= query.since) and (query.until is None or time_ns < query.until)


def _joined(parts: dict[int, _Entry]) -> _Entry:
    first = parts[min(parts)]
    time_ns = first.time_ns - (min(parts) - 1)
    return first._replace(time_ns=time_ns, line="".join(parts[place].line for place in sorted(parts)))


def _by_time(entry: _Entry) -> int:
    return entry.time_ns


def _by_time_and_id(record: Record) -> tuple[int, str]:
    return record.time_ns, record.id


def _decoded(text: str) -> dict[str, Any]:
    """Read what stands under ``shipper``. Another writer may have put anything there."""
    if not text:
        return {}
    try:
        return msgspec.to_builtins(msgspec.json.decode(text, type=_Extra))  # type: ignore[no-any-return]
    except (msgspec.DecodeError, RecursionError):
        return {}


def _object(text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        return {}


class _Extra(msgspec.Struct, omit_defaults=True):
    names: dict[str, str] = {}
    empty: list[str] = []
    more: dict[str, str] = {}
    severity: int | None = None


def _key(entry: _Entry) -> tuple[Any, ...]:
    return entry.time_ns, entry.line, tuple(sorted(entry.labels.items())), tuple(sorted(entry.metadata.items()))


def _hash(entry: _Entry) -> int:
    return int.from_bytes(hashlib.blake2b(repr(_key(entry)).encode("utf-8", "replace"), digest_size=16).digest(), "big")


def _quoted(value: str) -> str:
    return encode.go_quoted(value)


def _escaped(value: str) -> str:
    """Quote a text for Go's regular expressions."""
    return "".join(char if char.isalnum() or char in "_- /:" or ord(char) > 127 else f"\\{char}" for char in value)
