"""The part of the search API that our reader uses: points in time, sorted pages, filters, field capabilities.

A clause, option or field that is not listed here is refused with 400, so that the reader cannot rely on more.
"""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Callable
from typing import Any

import msgspec

from shipper.testing.http_server import Request
from support.elasticsearch_cluster import Cluster
from support.elasticsearch_index import Document, Fault, Index, date_nanos_of

_OPTIONS = frozenset(["size", "query", "sort", "track_total_hits", "search_after", "pit"])
_SORT = frozenset(["order", "numeric_type", "unmapped_type"])

Test = Callable[[Index, Document], bool]
Row = tuple[list[Any], Index, Document]
#: A status and the body that goes with it.
Answer = tuple[int, dict[str, Any]]


class _Point(msgspec.Struct):
    """A point in time: the documents of each index, and what was found there by query and sort."""

    indices: list[tuple[Index, list[Document]]]
    found: dict[bytes, list[Row]] = {}


class Search:
    """Answers searches of one cluster. ``page`` is ``index.max_result_window``."""

    def __init__(self, cluster: Cluster, page: int) -> None:
        self._cluster = cluster
        self._page = page
        self._pits: dict[str, _Point] = {}
        self._names = itertools.count(1)
        #: Shards that do not answer the next search.
        self.failed_shards = 0

    @property
    def open_points(self) -> int:
        """How many points in time are open."""
        return len(self._pits)

    def expire(self) -> None:
        """Forget all points in time, as after their keep_alive."""
        self._pits.clear()

    def answer(self, request: Request, parts: list[str]) -> Answer:
        """Answer a request that reads, or raise Fault."""
        elastic = self._cluster.elastic
        pit = ["_pit"] if elastic else ["_search", "point_in_time"]
        if request.method == "POST" and parts[1:] == pit:
            return self._open(request, parts[0])
        if request.method == "DELETE" and parts == pit:
            return self._close(request)
        if parts == ["_search"] and request.method == "POST":
            return self._search(msgspec.json.decode(request.content()))
        if parts[1:] == ["_field_caps"] and request.method in {"GET", "POST"}:
            return self._field_caps(request, parts[0])
        raise Fault(
            400,
            "illegal_argument_exception",
            f"request [{request.path}] contains unrecognized parameters or is not known to this stand-in",
        )

    def _open(self, request: Request, pattern: str) -> Answer:
        if "keep_alive" not in request.query:
            text = "Validation Failed: 1: [keep_alive] is not specified;"
            raise Fault(400, "action_request_validation_exception", text)
        name = f"pit-{next(self._names)}"
        # A point in time: what comes later is not in it.
        self._pits[name] = _Point(
            [(index, list(index.documents.values())) for index in self._cluster.matching(pattern)]
        )
        return 200, {"id" if self._cluster.elastic else "pit_id": name}

    def _close(self, request: Request) -> Answer:
        body = msgspec.json.decode(request.content())
        names = [body["id"]] if self._cluster.elastic else body["pit_id"]
        freed = sum(self._pits.pop(name, None) is not None for name in names)
        return 200 if freed else 404, {"succeeded": True, "num_freed": freed}

    def _field_caps(self, request: Request, pattern: str) -> Answer:
        indices = self._cluster.matching(pattern)
        fields: dict[str, dict[str, Any]] = {}
        for name in request.query["fields"].split(","):
            kinds = {index.type_of(name) or "unmapped" for index in indices}
            if kinds - {"unmapped"}:
                if request.query.get("include_unmapped") != "true":
                    kinds.discard("unmapped")
                fields[name] = {kind: {"type": kind, "searchable": True, "aggregatable": True} for kind in kinds}
        return 200, {"indices": [index.name for index in indices], "fields": fields}

    def _search(self, body: dict[str, Any]) -> Answer:
        if unknown := set(body) - _OPTIONS:
            raise Fault(400, "parsing_exception", f"Unknown key for a START_OBJECT in [{unknown.pop()}].")
        size = body["size"]
        if size > self._page:
            text = f"Result window is too large, from + size must be less than or equal to: [{self._page}]"
            raise Fault(400, "illegal_argument_exception", f"{text} but was [{size}].")
        name = body["pit"]["id"]
        if name not in self._pits:
            raise Fault(404, "search_context_missing_exception", f"No search context found for id [{name}]")
        sorts = [_sort_field(one) for one in body["sort"]]
        rows = self._rows(self._pits[name], body["query"], sorts)
        after = body.get("search_after")
        if after is not None:
            if len(after) not in {len(sorts), len(sorts) + self._cluster.elastic}:
                text = f"search_after has {len(after)} value(s) but sort has {len(sorts)}."
                raise Fault(400, "illegal_argument_exception", text)
            key = _sort_key([order for _, order in sorts], len(after))
            rows = rows[bisect.bisect_right(rows, key(after), key=lambda row: key(row[0])) :]
        hits = [
            {"_index": index.name, "_id": document.id, "_source": document.source, "sort": key}
            for key, index, document in rows[:size]
        ]
        renamed = f"pit-{next(self._names)}"  # the id may change with every answer
        self._pits[renamed] = self._pits.pop(name)
        failed, self.failed_shards = self.failed_shards, 0
        shards = {"total": len(self._pits[renamed].indices) + failed, "failed": failed}
        about = {"took": 1, "timed_out": False, "pit_id": renamed, "_shards": shards}
        return 200, {**about, "hits": {"max_score": None, "hits": hits}}

    def _rows(self, point: _Point, query: dict[str, Any], sorts: list[tuple[str, int]]) -> list[Row]:
        """Give all that matches, in order; pages of one search share the work."""
        asked = msgspec.json.encode([query, sorts])
        if asked not in point.found:
            test = _matcher(query)
            rows: list[Row] = []
            for shard, (index, documents) in enumerate(point.indices):
                for document in documents:
                    if test(index, document):
                        key = [_sort_value(index, document, field) for field, _ in sorts]
                        if self._cluster.elastic:  # it adds a tiebreak of its own to every search of a point in time
                            key.append((shard << 32) + document.order)
                        rows.append((key, index, document))
            order = _sort_key([order for _, order in sorts])
            rows.sort(key=lambda row: order(row[0]))
            point.found[asked] = rows
        return point.found[asked]


def _sort_key(orders: list[int], length: int | None = None) -> Callable[[list[Any]], Any]:
    """Give a key of sorts; ``length`` values of each count."""
    key = functools.cmp_to_key(functools.partial(_compare, orders))
    return lambda values: key(values[:length])


def _sort_field(one: dict[str, Any]) -> tuple[str, int]:
    [(name, options)] = one.items()
    if unknown := set(options) - _SORT:
        raise Fault(400, "x_content_parse_exception", f"[field_sort] unknown field [{unknown.pop()}]")
    return name, 1 if options["order"] == "asc" else -1


def _sort_value(index: Index, document: Document, field: str) -> Any:
    if index.type_of(field) == "text":
        text = (
            f"Fielddata is disabled on [{field}] in [{index.name}]. Text fields are not optimised for operations that"
        )
        raise Fault(400, "illegal_argument_exception", f"{text} require per-document field data")
    values = document.terms.get(field)
    return values[0] if values else None


def _compare(orders: list[int], one: list[Any], two: list[Any]) -> int:
    for order, a, b in zip([*orders, 1], one, two, strict=False):
        if a == b:
            continue
        if a is None or b is None:
            return 1 if a is None else -1  # what is missing comes last
        return order if a > b else -order
    return 0


def _matcher(query: dict[str, Any]) -> Test:
    try:
        [(kind, body)] = query.items()
    except ValueError as error:
        raise Fault(400, "parsing_exception", "query malformed, no start_object after query name") from error
    if kind == "bool":
        if unknown := set(body) - {"filter", "should", "minimum_should_match"}:
            raise Fault(400, "x_content_parse_exception", f"[bool] unknown field [{unknown.pop()}]")
        every = [_matcher(one) for one in body.get("filter", [])]
        some = [_matcher(one) for one in body.get("should", [])]
        least = body.get("minimum_should_match", 0 if every else 1) if some else 0
        return lambda index, document: (
            all(test(index, document) for test in every) and sum(test(index, document) for test in some) >= least
        )
    if kind == "exists":
        name = body["field"]
        return lambda _, document: name in document.terms
    if kind in {"term", "terms"}:
        [(name, wanted)] = body.items()
        values = wanted if kind == "terms" else [wanted]
        return lambda index, document: any(value in values for value in _terms(index, document, name))
    if kind == "range":
        [(name, wanted)] = body.items()
        return lambda index, document: all(_within(index, document, name, *bound) for bound in wanted.items())
    raise Fault(400, "parsing_exception", f"unknown query [{kind}]")


def _terms(index: Index, document: Document, name: str) -> list[Any]:
    """Give the terms of a field; those of a text are its words, in small letters."""
    values = document.terms.get(name, [])
    if index.type_of(name) in {"text", "match_only_text"}:
        return [word for value in values for word in str(value).lower().replace("-", " ").split()]
    return values


def _within(index: Index, document: Document, name: str, op: str, value: str) -> bool:
    bound = date_nanos_of(index.type_of(name) or "date_nanos", value)
    tests = {
        "gte": lambda a: a >= bound,
        "lte": lambda a: a <= bound,
        "gt": lambda a: a > bound,
        "lt": lambda a: a < bound,
    }
    return any(tests[op](one) for one in document.terms.get(name, []))
