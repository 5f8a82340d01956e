"""The stand-in for Elasticsearch and OpenSearch refuses what the real servers refuse."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import urllib3

from shipper.testing.http_server import Request
from support.aws_signature import Key, SignatureError, check
from support.elasticsearch_server import FLAVOURS, MAX_ID, ElasticsearchServer
from support.process import serving

NDJSON = {"Content-Type": "application/x-ndjson"}
TIME = "2026-01-02T03:04:05.123456789Z"


@pytest.fixture
def server() -> Iterator[ElasticsearchServer]:
    with ElasticsearchServer() as server:
        yield server


def ask(server: ElasticsearchServer, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    pool = urllib3.PoolManager()
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    kind = NDJSON if path.partition("?")[0].endswith("_bulk") else {"Content-Type": "application/json"}
    answer = pool.request(method, server.url + path, body=data, headers=kind | headers)
    pool.clear()
    return answer.status, json.loads(answer.data) if answer.data[:1] == b"{" else answer.data


def lines(*values: Any) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


def create(server: ElasticsearchServer, index: str, *documents: dict[str, Any], op: str = "create") -> list[Any]:
    """Index documents, each with its ``_id`` taken out, and give what each was told."""
    body = b""
    for document in documents:
        inner = {name: value for name, value in document.items() if name != "_id"}
        body += lines({op: {"_id": document["_id"]} if "_id" in document else {}}, inner)
    status, told = ask(server, "POST", f"/{index}/_bulk", body)
    assert status == 200
    return [item[op] for item in told["items"]]


def told(items: list[Any]) -> list[Any]:
    return [(item["status"], item.get("error", {}).get("type", "")) for item in items]


# Whole requests


@pytest.mark.parametrize(
    ("body", "kind", "part"),
    [
        (b"", "parse_exception", "request body is required"),
        (b'{"create":{}}\n{"a":1}', "illegal_argument_exception", "must be terminated by a newline"),
        (b'{"create":{}}\n', "action_request_validation_exception", "no requests added"),
        (b"\n", "action_request_validation_exception", "no requests added"),
        (b'nonsense\n{"a":1}\n', "illegal_argument_exception", "Malformed action/metadata line [1]"),
        (b'[]\n{"a":1}\n', "illegal_argument_exception", "Malformed action/metadata line [1]"),
        (b'{"a":1}\n{"create":{}}\n', "illegal_argument_exception", "but found [a]"),
        (b'{"create":{"x":1}}\n{"a":1}\n', "illegal_argument_exception", "unknown parameter [x]"),
    ],
)
def test_malformed_request_is_refused_as_a_whole(
    server: ElasticsearchServer, body: bytes, kind: str, part: str
) -> None:
    status, answer = ask(server, "POST", "/app/_bulk", body)
    assert (status, answer["error"]["type"]) == (400, kind)
    assert part in answer["error"]["reason"]
    assert answer["error"]["root_cause"][0]["type"] == kind
    assert server.count == 0


def test_index_must_be_named(server: ElasticsearchServer) -> None:
    status, answer = ask(server, "POST", "/_bulk", lines({"create": {}}, {"a": 1}))
    assert (status, answer["error"]["reason"]) == (400, "Validation Failed: 1: index is missing;")


@pytest.mark.parametrize("size", [MAX_ID - 1, MAX_ID, MAX_ID + 1])
def test_id_that_is_too_long_costs_the_whole_request(server: ElasticsearchServer, size: int) -> None:
    body = lines({"create": {"_id": "ok"}}, {"a": 1}, {"create": {"_id": "é" + "x" * (size - 2)}}, {"a": 2})
    status, answer = ask(server, "POST", "/app/_bulk", body)
    assert status == (200 if size <= MAX_ID else 400)
    assert server.count == (2 if size <= MAX_ID else 0)
    if size > MAX_ID:
        assert "must be no longer than 512 bytes but was: 513" in answer["error"]["reason"]


@pytest.mark.parametrize("room", [-1, 0, 1])
@pytest.mark.parametrize("packed", [False, True])
def test_body_above_the_limit_is_413_measured_unpacked(room: int, packed: bool) -> None:
    body = lines({"create": {}}, {"a": "x" * 1000})
    with ElasticsearchServer(max_content=len(body) + room) as server:
        sent = gzip.compress(body) if packed else body
        headers = {"Content-Encoding": "gzip"} if packed else {}
        status, _ = ask(server, "POST", "/app/_bulk", sent, **headers)
        assert status == (413 if room < 0 else 200)


def test_body_that_is_not_gzip_or_of_another_type_is_refused(server: ElasticsearchServer) -> None:
    body = lines({"create": {}}, {"a": 1})
    assert ask(server, "POST", "/app/_bulk", body, **{"Content-Encoding": "gzip"})[0] == 400
    status, answer = ask(server, "POST", "/app/_bulk", body, **{"Content-Type": "text/plain"})
    assert (status, answer["error"]["type"]) == (406, "media_type_header_exception")


def test_login_is_demanded() -> None:
    with ElasticsearchServer(basic=("u", "p")) as server:
        assert ask(server, "GET", "/")[0] == 401
        status, answer = ask(server, "GET", "/", Authorization="Basic bm9ib2R5Om5vdGhpbmc=")
        assert (status, answer["error"]["type"]) == (401, "security_exception")
        assert ask(server, "GET", "/", Authorization="Basic dTpw")[0] == 200


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_each_kind_tells_what_it_is(flavour: str) -> None:
    with ElasticsearchServer(flavour=flavour) as server:
        pool = urllib3.PoolManager()
        answer = pool.request("GET", server.url + "/")
        assert ("x-elastic-product" in answer.headers) == flavour.startswith("elasticsearch")
        if flavour == "opensearch_serverless":
            assert answer.status == 404
        else:
            version = json.loads(answer.data)["version"]
            assert version.get("distribution") == (None if server.elastic else "opensearch")
        pool.clear()


# Items


def test_same_id_conflicts_and_its_neighbours_are_stored(server: ElasticsearchServer) -> None:
    one, two = {"_id": "1", "a": 1}, {"_id": "2", "a": 2}
    assert told(create(server, "app", one)) == [(201, "")]
    status, answer = ask(
        server, "POST", "/app/_bulk", lines({"create": {"_id": "1"}}, {}, {"create": {"_id": "2"}}, {})
    )
    assert (status, answer["errors"]) == (200, True)
    assert told([item["create"] for item in answer["items"]]) == [(409, "version_conflict_engine_exception"), (201, "")]
    assert told(create(server, "app", two, op="index")) == [(201, "")]
    assert len(server.documents()) == 2


def test_id_is_known_to_one_backing_index_alone(server: ElasticsearchServer) -> None:
    document = {"_id": "1", "@timestamp": TIME}
    assert told(create(server, "logs-app-default", document, document))[1][0] == 409
    server.rollover("logs-app-default")
    assert told(create(server, "logs-app-default", document)) == [(201, "")]
    assert server.streams["logs-app-default"].backing == [f".ds-logs-app-default-00000{n}" for n in (1, 2)]


def test_data_stream_takes_only_create_and_only_documents_with_a_time(server: ElasticsearchServer) -> None:
    [item] = create(server, "logs-app-default", {"@timestamp": TIME}, op="index")
    assert item["error"]["reason"] == "only write ops with an op_type of create are allowed in data streams"
    [item] = create(server, "logs-app-default", {"a": 1})
    assert (item["status"], item["error"]["reason"]) == (400, "data stream timestamp field [@timestamp] is missing")
    assert told(create(server, "app", {"a": 1}, op="index")) == [(201, "")]


@pytest.mark.parametrize(
    ("first", "second", "fits"),
    [
        ({"x": 1}, {"x": "text"}, False),
        ({"x": 1}, {"x": "7"}, True),
        ({"x": "text"}, {"x": 1}, True),
        ({"x": {"y": 1}}, {"x": 1}, False),
        ({"x": 1}, {"x": {"y": 1}}, False),
        ({"x": True}, {"x": "maybe"}, False),
        ({"x": 1.5}, {"x": [2, None]}, True),
        ({"x": "2026-01-02"}, {"x": "no date"}, False),
        ({}, {"": 1}, False),
        ({}, {"a..b": 1}, False),
        ({}, {"x": [{"y": 1}, {"y": "z"}]}, False),
    ],
)
def test_types_are_guessed_once_and_then_kept(
    server: ElasticsearchServer, first: dict[str, Any], second: dict[str, Any], fits: bool
) -> None:
    statuses = told(create(server, "app", first, second, {"z": 1}))
    assert statuses == [(201, ""), (201, "") if fits else (400, "document_parsing_exception"), (201, "")]


def test_index_has_a_limit_of_fields(server: ElasticsearchServer) -> None:
    many = {f"field{number}": number for number in range(999)}
    assert told(create(server, "app", many, {"one": 1}, {"two": 2})) == [
        (201, ""),
        (201, ""),
        (400, "document_parsing_exception"),
    ]


def mapped(server: ElasticsearchServer, **properties: Any) -> None:
    template = {"index_patterns": ["app*"], "template": {"mappings": {"dynamic": False, "properties": properties}}}
    assert ask(server, "PUT", "/_index_template/mine", template)[0] == 200


@pytest.mark.parametrize(
    ("value", "fits"),
    [
        (TIME, True),
        ("1970-01-01T00:00:00.000000000Z", True),
        ("1969-12-31T23:59:59.999999999Z", False),
        ("2262-04-11T23:47:16.854775807Z", True),
        ("2262-04-11T23:47:16.854775808Z", False),
        ("yesterday", False),
    ],
)
def test_date_nanos_has_its_range(server: ElasticsearchServer, value: str, fits: bool) -> None:
    mapped(server, t={"type": "date_nanos"})
    assert create(server, "app", {"t": value})[0]["status"] == (201 if fits else 400)


def nested(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("value", "fits"),
    [
        ({"a": 1, "b": {"c": [None, {"d": True}]}}, True),
        (None, True),
        (nested(20), True),
        (nested(21), False),
        ({"a": "x" * (32_766 - len("f.a") - 1)}, True),
        ({"a": "x" * (32_766 - len("f.a"))}, False),
        ({"a\0b": 1}, False),
        ({"": 1}, False),
        ("text", False),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_flattened_has_its_limits(server: ElasticsearchServer, value: Any, fits: bool) -> None:
    mapped(server, f={"type": "flattened"})
    assert create(server, "app", {"f": value})[0]["status"] == (201 if fits else 400)


def test_term_that_is_immense_is_refused_unless_ignored_or_not_indexed(server: ElasticsearchServer) -> None:
    mapped(
        server,
        plain={"type": "keyword"},
        above={"type": "keyword", "ignore_above": 10},
        kept={"type": "keyword", "index": False, "doc_values": False},
    )
    big = "x" * 32_767
    assert told(create(server, "app", {"plain": big[:-1]}, {"plain": big}, {"above": big}, {"kept": big})) == [
        (201, ""),
        (400, "illegal_argument_exception"),
        (201, ""),
        (201, ""),
    ]


def test_families_do_not_know_each_others_types_and_settings() -> None:
    for flavour, other in (("elasticsearch", "flat_object"), ("opensearch", "flattened")):
        with ElasticsearchServer(flavour=flavour) as server:
            template = {"index_patterns": ["a"], "template": {"mappings": {"properties": {"x": {"type": other}}}}}
            status, answer = ask(server, "PUT", "/_index_template/t", template)
            assert (status, answer["error"]["type"]) == (400, "mapper_parsing_exception")
    with ElasticsearchServer(flavour="opensearch") as server:
        for inner in ({"lifecycle": {}}, {"settings": {"index": {"mode": "standard"}}}):
            assert ask(server, "PUT", "/_index_template/t", {"index_patterns": ["a"], "template": inner})[0] == 400
        assert ask(server, "PUT", "/_ilm/policy/x", {})[0] == 404


def test_templates_of_equal_priority_must_not_overlap(server: ElasticsearchServer) -> None:
    assert ask(server, "PUT", "/_index_template/a", {"index_patterns": ["logs-*"], "priority": 200})[0] == 200
    status, answer = ask(server, "PUT", "/_index_template/b", {"index_patterns": ["logs-b"], "priority": 200})
    assert status == 400
    assert "same priority [200]" in answer["error"]["reason"]
    assert ask(server, "PUT", "/_index_template/b", {"index_patterns": ["logs-b"], "priority": 201})[0] == 200


def test_faults_of_items_come_under_200(server: ElasticsearchServer) -> None:
    server.fail("two", 429, "es_rejected_execution_exception", "queue full", times=1)
    documents = [{"m": "one"}, {"m": "two"}]
    assert told(create(server, "app", *documents)) == [(201, ""), (429, "es_rejected_execution_exception")]
    assert told(create(server, "app", *documents)) == [(201, ""), (201, "")]
    server.block = (403, "FORBIDDEN/12/index read-only / allow delete (api)")
    assert told(create(server, "app", *documents)) == [(403, "cluster_block_exception")] * 2


def test_failure_store_takes_what_does_not_fit_but_no_conflict() -> None:
    with ElasticsearchServer(failure_store=True) as server:
        good = {"_id": "1", "@timestamp": TIME, "x": 1}
        items = create(server, "logs-app-default", good, {**good, "_id": "2", "x": "no"}, {"y": 1}, good)
        assert [item.get("failure_store") for item in items] == [None, "used", "used", None]
        assert [item["status"] for item in items] == [201, 201, 201, 409]
        assert len(server.diverted()) == 2
        assert told(create(server, "app", {"x": 1}, {"x": "no"}))[1][0] == 400


def test_index_that_may_not_be_made_and_bad_names(server: ElasticsearchServer) -> None:
    assert told(create(server, "APP", {"a": 1})) == [(400, "invalid_index_name_exception")]
    server.auto_create = False
    assert told(create(server, "app", {"a": 1})) == [(404, "index_not_found_exception")]


def test_pipeline_must_be_there(server: ElasticsearchServer) -> None:
    body = lines({"create": {}}, {"a": 1})
    _, answer = ask(server, "POST", "/app/_bulk?pipeline=p", body)
    assert answer["items"][0]["create"]["error"]["reason"] == "pipeline with id [p] does not exist"
    server.pipelines.add("p")
    assert not ask(server, "POST", "/app/_bulk?pipeline=p", body)[1]["errors"]


def test_serverless_opensearch_refuses_ids(server: ElasticsearchServer) -> None:
    with ElasticsearchServer(flavour="opensearch_serverless") as serverless:
        [item] = create(serverless, "app", {"_id": "1", "a": 1})
        assert item["error"] == {
            "type": "illegal_argument_exception",
            "reason": "Document ID is not supported in create/index operation request",
        }
        assert told(create(serverless, "app", {"a": 1}, {"a": 1})) == [(201, ""), (201, "")]
    assert told(create(server, "app", {"_id": "1", "a": 1})) == [(201, "")]


def test_filter_path_leaves_what_was_asked_for_and_loses_places_if_too_narrow(server: ElasticsearchServer) -> None:
    server.fail("two", 400, "document_parsing_exception", "no", times=2)
    body = lines({"create": {"_id": "1"}}, {"m": "one"}, {"create": {"_id": "2"}}, {"m": "two"})
    _, answer = ask(server, "POST", "/app/_bulk?filter_path=errors,items.*.status,items.*.error.type", body)
    failed = {"create": {"status": 400, "error": {"type": "document_parsing_exception"}}}
    assert answer == {"errors": True, "items": [{"create": {"status": 201}}, failed]}
    _, answer = ask(server, "POST", "/app/_bulk?filter_path=items.*.error.type", body)
    assert len(answer["items"]) == 2  # the first is a conflict by now
    _, answer = ask(server, "POST", "/b/_bulk?filter_path=items.*.error.type", lines({"create": {}}, {"m": 1}))
    assert answer == {}


# Reading


def search(server: ElasticsearchServer, pit: str, **body: Any) -> tuple[int, Any]:
    whole = {"size": 10, "query": {"bool": {"filter": []}}, "sort": [{"n": {"order": "asc"}}], "pit": {"id": pit}}
    return ask(server, "POST", "/_search", whole | body)


@pytest.mark.parametrize("flavour", ["elasticsearch", "opensearch"])
def test_point_in_time_is_a_snapshot_is_renamed_expires_and_is_closed(flavour: str) -> None:
    with ElasticsearchServer(flavour=flavour) as server:
        elastic = server.elastic
        path, key = ("_pit", "id") if elastic else ("_search/point_in_time", "pit_id")
        create(server, "app", {"n": 1}, {"n": 2})
        assert ask(server, "POST", f"/app/{path}")[0] == 400
        other = "_search/point_in_time" if elastic else "_pit"
        assert ask(server, "POST", f"/app/{other}?keep_alive=1m")[0] == 400
        pit = ask(server, "POST", f"/app/{path}?keep_alive=1m")[1][key]
        create(server, "app", {"n": 3})
        status, answer = search(server, pit, size=1)
        assert (status, [hit["_source"]["n"] for hit in answer["hits"]["hits"]]) == (200, [1])
        assert len(answer["hits"]["hits"][0]["sort"]) == (2 if elastic else 1)
        after = answer["hits"]["hits"][0]["sort"]
        assert search(server, pit)[0] == 404
        _, answer = search(server, answer["pit_id"], search_after=after)
        assert [hit["_source"]["n"] for hit in answer["hits"]["hits"]] == [2]
        server.search.expire()
        status, told = search(server, answer["pit_id"])
        assert (status, told["error"]["type"]) == (404, "search_phase_execution_exception")
        assert told["error"]["root_cause"][0]["type"] == "search_context_missing_exception"
        pit = ask(server, "POST", f"/app/{path}?keep_alive=1m")[1][key]
        status, _ = ask(server, "DELETE", f"/{path}", {key: pit if elastic else [pit]})
        assert (status, server.search.open_points) == (200, 0)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"query": {"match": {"m": "x"}}}, "parsing_exception"),
        ({"query": {"bool": {"must": []}}}, "x_content_parse_exception"),
        ({"query": {}}, "parsing_exception"),
        ({"sort": [{"n": {"order": "asc", "mode": "min"}}]}, "x_content_parse_exception"),
        ({"sort": [{"m": {"order": "asc"}}]}, "illegal_argument_exception"),
        ({"from": 5}, "parsing_exception"),
        ({"size": 10_001}, "illegal_argument_exception"),
        ({"search_after": [1, 2, 3, 4]}, "illegal_argument_exception"),
    ],
)
def test_search_knows_only_what_is_used(server: ElasticsearchServer, body: dict[str, Any], kind: str) -> None:
    create(server, "app", {"n": 1, "m": "text"})
    pit = ask(server, "POST", "/app/_pit?keep_alive=1m")[1]["id"]
    status, answer = search(server, pit, **body)
    assert (status, answer["error"]["type"]) == (400, kind)


def test_filters_sorts_and_missing_values(server: ElasticsearchServer) -> None:
    mapped(server, t={"type": "date_nanos"}, k={"type": "keyword"}, n={"type": "long"}, f={"type": "flattened"})
    documents = [
        {"n": 1, "k": "a", "t": "2026-01-01T00:00:00.000000001Z", "f": {"x": 1}},
        {"n": 2, "k": "b", "t": "2026-01-01T00:00:00.000000002Z"},
        {"k": "b"},
    ]
    create(server, "app", *documents)

    def found(query: dict[str, Any], order: str = "asc") -> list[Any]:
        pit = ask(server, "POST", "/app/_pit?keep_alive=1m")[1]["id"]
        _, answer = search(server, pit, query=query, sort=[{"n": {"order": order}}])
        return [hit["_source"].get("n") for hit in answer["hits"]["hits"]]

    every: dict[str, Any] = {"bool": {"filter": []}}
    assert found(every) == [1, 2, None]
    assert found(every, "desc") == [2, 1, None]
    assert found({"terms": {"k": ["b"]}}) == [2, None]
    assert found({"term": {"f.x": "1"}}) == [1]
    assert found({"exists": {"field": "n"}}) == [1, 2]
    assert found({"range": {"t": {"gt": documents[0]["t"]}}}) == [2]
    assert found({"range": {"t": {"gte": documents[0]["t"], "lte": documents[0]["t"]}}}) == [1]
    assert found({"bool": {"should": [{"term": {"n": 1}}, {"term": {"n": 2}}]}}) == [1, 2]


def test_field_caps_tell_types_over_all_indices(server: ElasticsearchServer) -> None:
    create(server, "app-1", {"x": 1, "m": "text"})
    create(server, "app-2", {"x": "text"})
    _, answer = ask(server, "GET", "/app-*/_field_caps?fields=x,m,none&include_unmapped=true")
    assert answer["indices"] == ["app-1", "app-2"]
    assert {name: set(types) for name, types in answer["fields"].items()} == {
        "x": {"long", "text"},
        "m": {"text", "unmapped"},
    }
    assert ask(server, "GET", "/none/_field_caps?fields=x")[0] == 404


# The rest


def test_discarding_stand_in_counts_and_runs_as_a_process() -> None:
    """As the benchmarks use it."""
    with serving("elasticsearch_server", "--discard") as url:
        answer = urllib3.request("POST", url + "/a/_bulk", body=lines({"create": {}}, {}), headers=NDJSON)
        assert json.loads(answer.data) == {"errors": False, "items": [{"create": {"status": 201}}]}
    with ElasticsearchServer(keep=False) as server:
        ask(server, "POST", "/a/_bulk", lines({"create": {}}, {}, {"create": {}}, {}))
        assert (server.count, server.documents()) == (2, [])


def test_signature_that_botocore_makes_is_taken_and_any_change_is_not() -> None:
    import botocore.auth
    import botocore.awsrequest
    import botocore.credentials

    keys = ("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "us-east-1", "es")
    request = botocore.awsrequest.AWSRequest("POST", "http://h:9200/a%25b/_bulk?x=%2A%2C&a=1", data=b"body")
    request.headers["X-Amz-Content-SHA256"] = "230d8358dc8e8890b4c58deeb62912ee2f20357ae92a5cc861b98e68fe31acb5"
    botocore.auth.SigV4Auth(botocore.credentials.Credentials(*keys[:2]), "es", "us-east-1").add_auth(request)
    headers = {name.lower(): value for name, value in request.headers.items()} | {"host": "h:9200"}
    came = Request("POST", "/a%b/_bulk", {"x": "*,", "a": "1"}, headers, b"body")

    def told(request: Request, *given: str) -> str:
        access, secret, region, service = given
        try:
            check(request, keys={access: Key(secret)}, service=service, region=region, now=time.time())
        except SignatureError as error:
            return str(error)
        return ""

    assert told(came, *keys) == ""
    assert "body" in told(Request("POST", "/a%b/_bulk", came.query, headers, b"other"), *keys)
    assert "does not match" in told(Request("GET", "/a%b/_bulk", came.query, headers, b"body"), *keys)
    assert "does not match" in told(came, keys[0], "other secret", *keys[2:])
    assert "scoped" in told(came, *keys[:3], "aoss")
    assert "token" in told(came, "other", *keys[1:])
    assert told(Request("GET", "/", {}, {}, b""), *keys) == "Missing Authentication Token"
