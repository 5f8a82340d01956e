"""Reads records back: a point in time, pages by ``search_after``.

Pages come in the order of time and id, which are explicit in the sort: a point in time that expired while somebody read
slowly is opened anew and the reading goes on behind the last hit. Documents of one millisecond are put in order here,
because an index that shipper did not map may keep no more digits, and an id that comes twice is given once.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import groupby
from typing import TYPE_CHECKING, Any

import msgspec

from shipper.errors import ParkedError, RetryableError, SinkError
from shipper.reader import Reader
from shipper.render import rfc3339
from sinks.elasticsearch import faults
from sinks.elasticsearch.encode import LAST_NS, PATHS, Decoder
from sinks.elasticsearch.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from shipper.reader import Query, Term
    from shipper.record import Record
    from sinks._http import Answer
    from sinks.elasticsearch.config import ElasticsearchConfig

#: How long the server keeps a point in time that nobody asks for.
_KEEP = "2m"
#: Hits of the first page and of all further ones; index.max_result_window is 10,000.
_FIRST_PAGE, _PAGE = 200, 1_000
#: Characters of a value that is searched for: above 1,024 a keyword is not indexed.
_LONGEST = 1_000
_MILLISECOND = 1_000_000
#: Fields of a query that are keywords of a document, by their names there.
_FIELDS = {
    "id": "event.id",
    "level": "log.level",
    "source": "shipper.source",
    "service": "service.name",
    "container": "container.name",
    "stream": "log.iostream",
    "host": "host.name",
}
#: Where the order of ids may come from, best first.
_TIEBREAKS = ("event.id", "event.id.keyword")


class _Hit(msgspec.Struct):
    id: str = msgspec.field(name="_id")
    source: dict[str, Any] = msgspec.field(name="_source")
    sort: list[Any]


class _Hits(msgspec.Struct):
    hits: list[_Hit]


class _Shards(msgspec.Struct):
    failed: int = 0


class _Page(msgspec.Struct):
    hits: _Hits
    timed_out: bool = False
    pit_id: str = ""
    shards: _Shards = msgspec.field(name="_shards", default_factory=_Shards)


class ElasticsearchReader(Reader):
    """Pages through what `ElasticsearchSink` wrote; documents of others in the same index are left out."""

    def __init__(self, config: ElasticsearchConfig) -> None:
        """Open nothing. Raises ConfigError."""
        self._config = config
        self._session = Session(config)
        self._pit = ""

    def read(self, query: Query) -> Iterator[Record]:
        """Give matching records. Raises RetryableError when the server is away, ParkedError for login or rights."""
        left = query.limit
        if left == 0:
            return
        # A millisecond is put in order when all of it is there.
        for _, group in groupby(self._records(query), key=lambda record: record.time_ns // _MILLISECOND):
            seen: set[str] = set()
            for record in sorted(group, key=_by_time, reverse=not query.oldest_first):
                if record.id in seen or not _matches(query, record):
                    continue
                seen.add(record.id)
                yield record
                if left is not None:
                    left -= 1
                    if left == 0:
                        return

    def close(self) -> None:
        """Close the point in time and the connections."""
        self._forget()
        self._session.close()

    def _records(self, query: Query) -> Iterator[Record]:
        types = self._types()
        if types is None:
            return  # nothing was written yet
        decoder = Decoder()
        order = "asc" if query.oldest_first else "desc"
        asked: dict[str, Any] = {
            "size": _FIRST_PAGE,
            "query": {"bool": {"filter": _filters(query, types)}},
            # Nanoseconds for every index, also for one that maps the time as milliseconds.
            "sort": [
                {"@timestamp": {"order": order, "numeric_type": "date_nanos", "unmapped_type": "date_nanos"}},
                {self._tiebreak(types): {"order": order, "unmapped_type": "keyword"}},
            ],
            "track_total_hits": False,
        }
        try:
            while True:
                page = self._page(asked)
                for hit in page.hits.hits:
                    if isinstance(hit.source.get("shipper"), dict):
                        yield decoder.record(hit.id, hit.source)
                if len(page.hits.hits) < asked["size"]:
                    return
                asked["search_after"] = page.hits.hits[-1].sort
                asked["size"] = _PAGE
        except ValueError as error:
            raise ParkedError(f"{self._session.what}: a document has a time that cannot be read: {error}") from error
        finally:
            self._forget()

    def _types(self) -> dict[str, set[str]] | None:
        """Give the types of the fields that matter over all indices; ``None`` when there is no index."""
        names = ["@timestamp", "attributes", "shipper.resource", *_FIELDS.values(), *_TIEBREAKS]
        names += [".".join(path) for path in PATHS.values()]
        query = {"fields": ",".join(dict.fromkeys(names)), "include_unmapped": "true", "ignore_unavailable": "true"}
        answer = self._session.request("GET", f"/{self._config.pattern}/_field_caps", query)
        if answer.status == 404 and faults.error_of(answer.body)[0] == "index_not_found_exception":
            return None
        response = _decoded(answer, self._session.what, dict[str, Any])
        if not response.get("indices"):
            return None
        return {name: set(types) for name, types in response.get("fields", {}).items()}

    def _tiebreak(self, types: dict[str, set[str]]) -> str:
        for name in _TIEBREAKS:
            if types.get(name, set()) - {"unmapped"} == {"keyword"}:
                return name
        raise ParkedError(
            f"{self._session.what}: event.id is not a keyword in every index of {self._config.pattern}, so pages cannot"
            " be told apart; map it as the sink's page says",
            code="mapping",
        )

    def _page(self, asked: dict[str, Any]) -> _Page:
        fresh = not self._pit
        if fresh:
            self._begin()
        body = msgspec.json.encode({**asked, "pit": {"id": self._pit, "keep_alive": _KEEP}})
        answer = self._session.request("POST", "/_search", body=body)
        if answer.status == 404 and not fresh and faults.error_of(answer.body)[0] == "search_context_missing_exception":
            self._pit = ""
            return self._page(asked)
        page: _Page = _decoded(answer, self._session.what, _Page)
        if page.shards.failed or page.timed_out:
            raise RetryableError(
                f"{self._session.what}: {page.shards.failed} shards gave no answer, so records would be missing; try"
                " again when the cluster is whole",
                code="shards",
            )
        self._pit = page.pit_id or self._pit
        return page

    def _begin(self) -> None:
        elastic = self._session.product().elastic
        path = f"/{self._config.pattern}" + ("/_pit" if elastic else "/_search/point_in_time")
        answer = self._session.request("POST", path, {"keep_alive": _KEEP})
        response = _decoded(answer, self._session.what, dict[str, Any])
        self._pit = str(response.get("id" if elastic else "pit_id", ""))
        if not self._pit:
            raise ParkedError(f"{self._session.what}: gave no point in time: {answer.text[:100]}", code="answer")

    def _forget(self) -> None:
        pit, self._pit = self._pit, ""
        if not pit:
            return
        elastic = self._session.product().elastic
        path = "/_pit" if elastic else "/_search/point_in_time"
        body = msgspec.json.encode({"id": pit} if elastic else {"pit_id": [pit]})
        with suppress(SinkError):  # the server forgets it by itself
            self._session.request("DELETE", path, body=body)


def _decoded(answer: Answer, what: str, kind: Any) -> Any:
    if answer.status != 200:
        raise faults.of_answer(answer, what)
    try:
        return msgspec.json.decode(answer.body, type=kind)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise RetryableError(f"{what}: the answer cannot be read: {error}", code="answer") from error


def _matches(query: Query, record: Record) -> bool:
    return (
        (query.since is None or record.time_ns >= query.since)
        and (query.until is None or record.time_ns < query.until)
        and (query.condition is None or query.condition.matches(record))
    )


def _by_time(record: Record) -> tuple[int, str]:
    return record.time_ns, record.id


def _filters(query: Query, types: dict[str, set[str]]) -> list[dict[str, Any]]:
    """Give what the server searches for: only what can never leave out a record that matches."""
    filters: list[dict[str, Any]] = []
    if "unmapped" not in types.get("shipper.source", {"unmapped"}):
        filters.append({"exists": {"field": "shipper.source"}})
    bounds = {}
    # Both ends inclusive: an index that keeps milliseconds rounds down both what it holds and what it is asked.
    if query.since is not None:
        bounds["gte"] = rfc3339(min(max(query.since, 0), LAST_NS))
    if query.until is not None:
        bounds["lte"] = rfc3339(min(max(query.until, 0), LAST_NS))
    if bounds:
        filters.append({"range": {"@timestamp": bounds}})
    for term in query.condition.conjuncts() if query.condition is not None else ():
        pushed = _pushed(term, types)
        if pushed is not None:
            filters.append(pushed)
    return filters


def _pushed(term: Term, types: dict[str, set[str]]) -> dict[str, Any] | None:
    """Translate a term, or leave it to the filter of our own."""
    values = list(term.values)
    if term.op not in {"=", "in"} or not all(0 < len(value) < _LONGEST and value.isprintable() for value in values):
        return None
    if term.field in _FIELDS:
        name = _FIELDS[term.field]
        if term.field == "level" and "info" in values:
            return None  # what says no level is told as info
        return {"terms": {name: values}} if types.get(name) == {"keyword"} else None
    if term.field == "message" or not _plain(term.field, values):
        return None
    places = []
    if types.get("attributes") != {"flattened"}:
        return None
    places.append(f"attributes.{term.field}")
    if term.field in PATHS:
        name = ".".join(PATHS[term.field])
        if types.get(name) != {"keyword"}:
            return None
        places.append(name)
    elif types.get("shipper.resource", set()) <= {"flattened"}:
        places.append(f"shipper.resource.{term.field}")
    else:
        return None
    hidden: Iterable[dict[str, Any]] = [
        {"term": {name: True}} for name in ("shipper.unindexed", "shipper.resource_unindexed")
    ]
    return {"bool": {"should": [*({"terms": {place: values}} for place in places), *hidden], "minimum_should_match": 1}}


def _plain(name: str, values: list[str]) -> bool:
    """Tell whether an attribute is indexed as conditions see it: text and numbers are, lists and objects are not."""
    return all(name.split(".")) and "*" not in name and not any(value[0] in "[{" for value in values)
