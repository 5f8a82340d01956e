"""The Elasticsearch sink and its reader, against stand-ins of all four kinds of server."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shipper import render as columns
from shipper.errors import ParkedError, PartialError, PermanentError, RetryableError, SinkError
from shipper.reader import Query
from shipper.record import Batch, Record, Resource
from shipper.render import rfc3339
from shipper.sink import Limits, Sink
from shipper.testing.batches import START_NS, make_batch, make_resource
from shipper.testing.http_server import Reply
from shipper.testing.proxy import FaultProxy
from shipper.testing.sink_contract import SinkContract
from sinks.elasticsearch import ElasticsearchConfig, ElasticsearchReader, ElasticsearchSink, encode, faults
from support.elasticsearch_server import ElasticsearchServer

DAY = 86_400 * 10**9
needs_compiled = pytest.mark.skipif(encode.compiled is None, reason="the compiled form is not there")


@pytest.fixture
def server() -> Iterator[ElasticsearchServer]:
    with ElasticsearchServer() as server:
        yield server


def config(server: ElasticsearchServer, **options: Any) -> ElasticsearchConfig:
    return msgspec.convert(server.sink(**options), ElasticsearchConfig)


def opened(server: ElasticsearchServer, **options: Any) -> ElasticsearchSink:
    sink = ElasticsearchSink(config(server, **options))
    sink.open()
    return sink


def written(server: ElasticsearchServer, *batches: Batch, **options: Any) -> None:
    sink = opened(server, **options)
    for batch in batches:
        sink.write(batch)
    sink.close()


def read(server: ElasticsearchServer, *, options: dict[str, Any] | None = None, **query: Any) -> list[Record]:
    reader = ElasticsearchReader(config(server, **(options or {})))
    try:
        return list(reader.read(Query(**query)))
    finally:
        reader.close()


def failures(sink: ElasticsearchSink, batch: Batch) -> dict[int, SinkError]:
    """What each row of the batch was told."""
    try:
        sink.write(batch)
    except PartialError as error:
        return {**error.failed, **{row: refusal for rows, refusal in error.together for row in rows}}
    except SinkError as error:
        return dict.fromkeys(range(len(batch)), error)
    return {}


def asked(server: ElasticsearchServer, ending: str) -> list[Any]:
    return [request for request in server.requests if request.path.endswith(ending)]


class _Contract(SinkContract):
    exactly_once = True
    example = Path("config/examples/elasticsearch.yaml")
    flavour = "elasticsearch"
    version = ""
    options: dict[str, Any] = {}  # noqa: RUF012 - read only
    records = 500  # of a batch, so that `test_limits` is quick; one class has the real ones

    @pytest.fixture(autouse=True)
    def _serve(self) -> Iterator[None]:
        with ElasticsearchServer(flavour=self.flavour, version=self.version) as self.server:
            yield

    def make_sink(self, tmp_path: Path) -> Sink:
        sink = ElasticsearchSink(config(self.server, **self.options))
        if self.records:
            sink.limits = Limits(records=self.records)
        return sink

    def read_back(self, sink: Sink) -> list[Record] | None:
        reader = ElasticsearchReader(config(self.server, **self.options))
        try:
            return list(reader.read(Query(oldest_first=True)))
        finally:
            reader.close()

    def order_key(self, record: Record) -> Any:
        return record.id


class TestElasticsearch(_Contract):
    records = 0


class TestDataStream(_Contract):
    options = {"index": "logs-shipper-default", "original": True, "compression": "none"}  # noqa: RUF012


class TestServerless(_Contract):
    flavour = "elasticsearch_serverless"


class TestOpenSearch(_Contract):
    flavour = "opensearch"


class TestOpenSearch3(_Contract):
    flavour, version = "opensearch", "3.3.0"


class TestOpenSearchServerless(_Contract):
    """Stores a repeat twice; the reader shows it once."""

    flavour = "opensearch_serverless"
    options = {"mode": "index"}  # noqa: RUF012


# What is written


def test_document_has_the_names_of_ecs(server: ElasticsearchServer) -> None:
    resource = make_resource(container_image_name="api:1", log_file_path="/x.log")
    resource.attributes["container.label.tier"] = "web"
    batch = make_batch(["hello"], level="warn", attributes={"user_id": 7}, resource=resource)
    written(server, batch)
    [document] = server.documents()
    assert document == {
        "@timestamp": "2026-01-02T03:04:05.000000000Z",
        "message": "hello",
        "attributes": {"user_id": 7},
        "event": {"id": batch.ids[0]},
        "log": {"level": "warn", "iostream": "stdout", "file": {"path": "/x.log"}},
        "service": {"name": "api"},
        "container": {"name": "api-1", "id": resource.attributes["container.id"], "image": {"name": "api:1"}},
        "host": {"name": "host-1"},
        "shipper": {"source": "docker", "resource": {"container.label.tier": "web"}},
    }


def test_severity_that_is_no_level_of_ours_comes_back(server: ElasticsearchServer) -> None:
    batch = make_batch(["a", "b"])
    batch.severities = [10, 9]
    written(server, batch)
    assert [one.get("event", {}).get("severity") for one in server.documents()] == [10, None]
    assert [record.severity for record in read(server, oldest_first=True)] == [10, 9]


def test_original_line_is_stored_when_asked_and_not_the_message(server: ElasticsearchServer) -> None:
    batch = make_batch(["hello", "same"], raws=['{"message": "hello"}', "same"])
    written(server, batch, original=True)
    assert [one["event"].get("original") for one in server.documents()] == ['{"message": "hello"}', None]
    assert [record.raw for record in read(server, oldest_first=True)] == batch.raws


def test_each_document_goes_to_the_index_of_its_own_day_in_utc(server: ElasticsearchServer) -> None:
    midnight = START_NS // DAY * DAY
    written(server, make_batch(["before", "after"], start_ns=midnight - 1, step_ns=1))
    found = {
        name: [one.source["message"] for one in index.documents.values()] for name, index in server.indices.items()
    }
    assert found == {"logs-shipper-2026.01.01": ["before"], "logs-shipper-2026.01.02": ["after"]}


def test_hours_and_other_separators_may_name_an_index(server: ElasticsearchServer) -> None:
    written(server, make_batch(["a"]), index="app_%Y-%m-%d-%Hh")
    assert list(server.indices) == ["app_2026-01-02-03h"]
    assert [record.message for record in read(server, options={"index": "app_%Y-%m-%d-%Hh"})] == ["a"]


def test_request_is_gzipped_ndjson_that_names_the_index_in_the_url_alone(server: ElasticsearchServer) -> None:
    batch = make_batch(["a", "b"])
    written(server, batch)
    [request] = asked(server, "/_bulk")
    assert request.path == "/logs-shipper-2026.01.02/_bulk"
    assert request.headers["content-type"] == "application/x-ndjson"
    lines = gzip.decompress(request.body).split(b"\n")
    assert lines[-1] == b""
    assert [json.loads(line) for line in lines[:-1:2]] == [{"create": {"_id": one}} for one in batch.ids]
    assert request.query["filter_path"].startswith("errors,items.*.status,")


def test_same_batch_gives_the_same_bytes(server: ElasticsearchServer) -> None:
    batch = make_batch(["a", "b"], attributes={"k": [1, {"x": None}]})
    written(server, batch)
    written(server, make_batch(["a", "b"], attributes={"k": [1, {"x": None}]}))
    first, second = asked(server, "/_bulk")
    assert first.body == second.body


def test_ids_are_far_below_the_limit() -> None:
    assert {len(one) for one in make_batch(["x" * 10_000, "y"]).ids} == {36}


@pytest.mark.parametrize(
    "attributes",
    [
        {"": "empty"}, {"a..b": 1}, {".a": 1}, {".": 1}, {"n": {"": 1}}, {"n": [{"x": 1, ".y": 2}]}, {"a\0b": 1},
        {"long": "x" * 40_000}, {"é": "é" * 20_000}, {"k" * 40_000: 1}, {"l": [{"": {}}]},
    ],
    ids=lambda value: repr(value)[:12],
)  # fmt: skip
def test_attributes_that_no_index_takes_are_kept_as_text(server: ElasticsearchServer, attributes: Any) -> None:
    """Others that look odd at first sight are indexed."""
    plain_one = {"k": "...", "a.": "\0", " ": ['"":', ".x", ""], "x.y": '.{".,".'}
    written(server, make_batch(["odd", "plain"], attributes=[attributes, plain_one]))
    odd, plain = server.documents()
    assert odd["attributes"] == {}
    assert odd["shipper"]["unindexed"] is True
    assert plain["attributes"] == plain_one
    assert [record.attributes for record in read(server, oldest_first=True)] == [attributes, plain_one]


@pytest.mark.parametrize("flavour", ["elasticsearch", "opensearch"])
@pytest.mark.parametrize("depth", [16, 17, 18, 19, 25, 300])
def test_nesting_around_the_limit_of_flattened_is_taken(flavour: str, depth: int) -> None:
    value: Any = "x"
    for _ in range(depth):
        value = {"a": value}
    with ElasticsearchServer(flavour=flavour) as server:
        written(server, make_batch(["deep", "many"], attributes=[value, {"l": [{"a": 1}] * 40}]))
        deep, many = read(server, oldest_first=True)
        documents = server.documents()
    assert [bool(one["attributes"]) for one in documents] == [depth <= 18, True]
    assert many.attributes == {"l": [{"a": 1}] * 40}
    if depth < 200:
        assert deep.attributes == value


def test_numbers_that_json_does_not_know(server: ElasticsearchServer) -> None:
    written(server, make_batch(["a"], attributes={"nan": float("nan"), "wide": 2**80, "big": 2**63}))
    assert read(server)[0].attributes == {"nan": None, "wide": 2**80, "big": 2**63}


def test_resource_with_odd_names_comes_back(server: ElasticsearchServer) -> None:
    resources = [
        Resource("docker", {"service.name": "", "container.label.a..b": "x", "": "y"}),
        Resource("d", {"container.label.long": "x" * 40_000}),
        Resource("d", {"container.label.bad": "\ud800"}),
    ]
    written(server, make_batch(["a", "b", "c"], resource=resources))
    found = [record.resource.attributes for record in read(server, oldest_first=True)]
    assert found == [resources[0].attributes, resources[1].attributes, {"container.label.bad": "\ufffd"}]


def test_more_resources_than_are_remembered(server: ElasticsearchServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "_TAILS", 5)
    sink = opened(server)
    for start in range(3):
        resources = [make_resource(f"s{start}-{index}") for index in range(20)]
        sink.write(
            make_batch([f"m{index}" for index in range(20)], resource=resources, start_ns=START_NS + start * DAY)
        )
    sink.close()
    assert len({record.resource.service for record in read(server)}) == 60


@pytest.mark.parametrize("time_ns", [0, 1, 999_999_999, 1_000_000_000, 10**18 - 1, 10**18, encode.LAST_NS])
def test_first_and_last_time_that_the_field_holds(server: ElasticsearchServer, time_ns: int) -> None:
    written(server, make_batch(["edge"], start_ns=time_ns))
    assert [record.time_ns for record in read(server)] == [time_ns]
    assert server.documents()[0]["@timestamp"] == rfc3339(time_ns)


def test_time_beyond_the_field_is_refused_alone_and_by_a_known_rule(server: ElasticsearchServer) -> None:
    batch = make_batch(["old", "good", "late"], step_ns=0)
    batch.times = [-1, START_NS, encode.LAST_NS + 1]
    sink = opened(server)
    with pytest.raises(PartialError) as caught:
        sink.write(batch)
    assert set(caught.value.failed) == {0, 2}
    for error in caught.value.failed.values():
        assert isinstance(error, PermanentError)
        assert error.certain
    assert server.messages() == ["good"]
    sink.close()


# Both forms


class _Text(str):
    __slots__ = ()


class _Map(dict[str, Any]):
    pass


_NAMES = st.sampled_from(
    [
        "",
        ".",
        "a",
        "a.",
        "a..",
        "a..b",
        ".a",
        "a.b",
        "a\0b",
        "é",
        "€.",
        "..€",
        "😀" * 3,
        "k" * 40,
        "12345678.",
        "x" * 8 + "..",
    ]
)
_LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.just(2**80), st.floats(), st.text(max_size=12), st.just("\ud800"),
    st.just('say ".", ""'), st.just("\0\n\x1f"), st.just("x" * 90), st.just("é" * 170), st.just(_Text("sub")),
    st.just(Path("x")), st.just((1, {"": 2})),
)  # fmt: skip
_VALUES = st.dictionaries(
    _NAMES,
    st.recursive(_LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_NAMES, inner, max_size=4)),
    max_size=4,
)


def _nested(depth: int) -> dict[str, Any]:
    return {"a": _nested(depth - 1)} if depth else {}


@contextmanager
def _form(*, pure: bool) -> Iterator[None]:
    """Values of some hundred bytes are too long already, so that many can be tried."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "LONGEST", 300)
        if pure:
            patch.setattr(encode, "compiled", None)
            patch.setattr(columns, "compiled", None)
        yield


@needs_compiled
@given(st.lists(_VALUES | _VALUES.map(_Map) | st.integers(0, 70).map(_nested), min_size=1, max_size=8))
def test_misfits_are_the_same_compiled_or_not(values: list[Any]) -> None:
    with _form(pure=False):
        found = encode._misfits(values)
        assert found == [row for row, value in enumerate(values) if encode._is_misfit(encode._json(value))]
    with _form(pure=True):
        assert encode._misfits(values) == found


@needs_compiled
@given(
    st.lists(st.tuples(st.text(max_size=20) | st.just("half \ud800"), st.text(max_size=20), _VALUES), min_size=1),
    st.integers(1, 2_000),
)
def test_bodies_are_the_same_compiled_or_not(rows: list[tuple[str, str, Any]], most: int) -> None:
    messages, raws, attributes = map(list, zip(*rows, strict=True))
    batch = make_batch(messages, raws=raws, attributes=attributes)
    documents = encode.Documents(ids=True, original=True, gzip=False)
    found = []
    for pure in (False, True):
        with _form(pure=pure):
            found.append(documents.body(batch, range(len(rows)), most))
    assert found[0] == found[1]


# Size


def test_batch_is_cut_below_the_limit_of_a_body_and_a_longer_record_goes_alone(server: ElasticsearchServer) -> None:
    batch = make_batch(["x" * 20_000] * 10 + ["y" * 200_000] + ["z"])
    written(server, batch, max_body="64KiB")
    sizes = [len(gzip.decompress(request.body)) for request in asked(server, "/_bulk")]
    assert sorted(size > 65_536 for size in sizes) == [False] * (len(sizes) - 1) + [True]
    assert server.messages() == batch.messages


@pytest.mark.parametrize("piece", [1, 2, 256])
@pytest.mark.parametrize("room", [0, 1, -1])
def test_body_is_filled_to_the_byte(monkeypatch: pytest.MonkeyPatch, room: int, piece: int) -> None:
    """However many documents are written at once."""
    monkeypatch.setattr(encode, "_PIECE", piece)
    documents = encode.Documents(ids=True, original=False, gzip=False)
    batch = make_batch(["a" * 10, "é" * 5, "c" * 10, "d"])
    body = documents.body(batch, range(3), 1 << 20)
    assert (body.rows, body.size) == (range(3), len(body.data))
    cut = documents.body(batch, range(3), body.size + room)
    assert cut.rows == (range(3) if room >= 0 else range(2))
    assert (cut.size, cut.data) == (len(cut.data), body.data[: cut.size])
    alone = documents.body(batch, range(1, 3), 10)
    assert (alone.rows, alone.size) == (range(1, 2), len(alone.data))


def test_413_splits_and_is_remembered() -> None:
    with ElasticsearchServer(max_content=300_000) as server:
        sink = opened(server)
        first = make_batch([f"{index:05} " + "x" * 1000 for index in range(1000)])
        sink.write(first)
        assert server.messages() == first.messages
        refused = sum(len(gzip.decompress(one.body)) > 300_000 for one in asked(server, "/_bulk"))
        assert refused > 0
        before = len(server.requests)
        sink.write(make_batch([f"{index:05} " + "y" * 1000 for index in range(1000)], start_ns=START_NS + DAY))
        after = [len(gzip.decompress(request.body)) for request in server.requests[before:]]
        assert max(after) <= 300_000
        sink.close()
    assert server.count == 2000


def test_single_record_above_the_servers_limit_is_the_records_fault() -> None:
    with ElasticsearchServer(max_content=100_000) as server:
        sink = opened(server)
        with pytest.raises(PartialError) as caught:
            sink.write(make_batch(["a", "x" * 200_000, "b"]))
        assert isinstance(caught.value.failed[1], PermanentError)
        assert list(caught.value.failed) == [1]
        assert server.messages() == ["a", "b"]
        sink.close()


# Outcomes


def test_repeat_is_taken_and_stored_once(server: ElasticsearchServer) -> None:
    batch = make_batch(["a", "b"])
    sink = opened(server)
    sink.write(batch.select([0]))
    sink.write(batch)
    sink.write(batch)
    sink.close()
    assert server.messages() == ["a", "b"]


def test_repeat_after_a_rollover_is_stored_twice_and_read_once(server: ElasticsearchServer) -> None:
    """A data stream knows ids of its newest backing index alone."""
    options = {"index": "logs-shipper-default"}
    batch = make_batch(["a", "b"])
    written(server, batch, **options)
    server.rollover("logs-shipper-default")
    written(server, batch, **options)
    assert server.messages() == ["a", "a", "b", "b"]
    assert [record.message for record in read(server, options=options, oldest_first=True)] == ["a", "b"]


def test_document_that_does_not_fit_takes_no_neighbour_with_it(server: ElasticsearchServer) -> None:
    """Without our template the server guesses types, and a conflict is the one document's."""
    sink = opened(server, create_template=False)
    batch = make_batch(["a", "b", "c"], attributes=[{"x": 1}, {"x": "text"}, {"x": 2}])
    with pytest.raises(PartialError) as caught:
        sink.write(batch)
    [(row, error)] = caught.value.failed.items()
    assert row == 1
    assert isinstance(error, PermanentError)
    assert error.code == "document_parsing_exception"
    assert server.messages() == ["a", "c"]
    sink.close()


def test_with_our_template_neither_conflict_nor_explosion_is_possible(server: ElasticsearchServer) -> None:
    attributes: list[dict[str, Any]] = [{"x": 1}, {"x": "text"}, {"x": {"y": [None]}}]
    attributes += [{f"field {index} {inner}": inner for inner in range(200)} for index in range(10)]
    written(server, make_batch([str(index) for index in range(13)], attributes=attributes))
    assert [record.attributes for record in read(server, oldest_first=True)] == attributes


_ITEMS = [
    (429, "es_rejected_execution_exception", "rejected execution", RetryableError),
    (429, "circuit_breaking_exception", "Data too large", RetryableError),
    (429, "cluster_block_exception", "disk usage exceeded flood-stage watermark", RetryableError),
    (403, "cluster_block_exception", "FORBIDDEN/12/index read-only / allow delete (api)", RetryableError),
    (503, "unavailable_shards_exception", "primary shard is not active", RetryableError),
    (500, "exception", "", RetryableError),
    (502, "", "", RetryableError),
    (504, "timeout_exception", "", RetryableError),
    (409, "some_other_conflict", "", RetryableError),
    (400, "document_parsing_exception", "failed to parse", PermanentError),
    (400, "mapper_parsing_exception", "failed to parse", PermanentError),
    (400, "strict_dynamic_mapping_exception", "not allowed", PermanentError),
    (400, "illegal_argument_exception", "immense term", PermanentError),
    (400, "illegal_argument_exception", "Document ID is not supported in create/index operation request", ParkedError),
    (400, "illegal_argument_exception", "pipeline with id [x] does not exist", ParkedError),
    (400, "illegal_argument_exception", "no write index is defined for alias [x]", ParkedError),
    (400, "validation_exception", "this action would add [2] shards, but this cluster", ParkedError),
    (400, "invalid_index_name_exception", "must be lowercase", ParkedError),
    (403, "security_exception", "action is unauthorized", ParkedError),
    (404, "index_not_found_exception", "no such index", ParkedError),
]


@pytest.mark.parametrize(("status", "kind", "reason", "error"), _ITEMS)
def test_outcome_of_one_document_by_its_type(
    server: ElasticsearchServer, status: int, kind: str, reason: str, error: type[SinkError]
) -> None:
    server.fail('"b"', status, kind, reason)
    sink = opened(server)
    with pytest.raises(PartialError) as caught:
        sink.write(make_batch(["a", "b", "c"]))
    assert list(caught.value.failed) == [1]
    assert type(caught.value.failed[1]) is error
    assert caught.value.failed[1].code == (kind or str(status))
    assert server.messages() == ["a", "c"]
    if kind == "cluster_block_exception":
        assert caught.value.failed[1].retry_after == faults.BLOCKED  # type: ignore[attr-defined]
    sink.close()


def test_document_that_may_be_taken_later_stops_what_follows(server: ElasticsearchServer) -> None:
    """A cluster that is full is not asked piece by piece."""
    server.fail('"message":"0"', 429, "es_rejected_execution_exception", "full", times=1)
    sink = opened(server, max_body="64KiB")
    batch = make_batch(["0"] + ["x" * 30_000] * 8)
    with pytest.raises(PartialError) as caught:
        sink.write(batch)
    assert len(asked(server, "/_bulk")) == 1
    assert set(caught.value.failed) | {1, 2} == set(range(9))
    assert all(type(error) is RetryableError for error in caught.value.failed.values())
    sink.write(batch)
    assert sorted(server.messages()) == sorted(batch.messages or [])
    sink.close()


def _error(kind: str, reason: str = "why") -> bytes:
    return msgspec.json.encode({"error": {"root_cause": [], "type": kind, "reason": reason}, "status": 0})


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (400, _error("illegal_argument_exception", "Malformed action/metadata line"), PermanentError),
        (400, _error("media_type_header_exception"), ParkedError),
        (401, _error("security_exception"), ParkedError),
        (403, _error("security_exception"), ParkedError),
        (403, b'{"message":"The security token included in the request is invalid."}', ParkedError),
        (403, _error("cluster_block_exception"), RetryableError),
        (404, _error("index_not_found_exception"), ParkedError),
        (406, b'{"error":"Content-Type header [x] is not supported","status":406}', ParkedError),
        (410, _error("api_not_available_exception"), ParkedError),
        (429, _error("circuit_breaking_exception"), RetryableError),
        (429, b"", RetryableError),
        (500, _error("exception"), RetryableError),
        (501, b"", ParkedError),
        (502, b"<html>bad gateway</html>", RetryableError),
        (503, _error("cluster_block_exception", "no master"), RetryableError),
        (504, b"", RetryableError),
        (301, b"", ParkedError),
        (200, b"<html>welcome</html>", ParkedError),
        (200, b'{"items":[]}', ParkedError),
        (200, b'{"items":[{}, {}]}', ParkedError),
        (200, b'{"items":[{"create":{"status":201}}]}', ParkedError),
        (204, b"", ParkedError),
    ],
)
def test_answer_to_a_whole_request_by_status_and_type(
    server: ElasticsearchServer, status: int, body: bytes, error: type[SinkError]
) -> None:
    sink = opened(server)
    server.script(Reply(status, body))
    [raised] = set(failures(sink, make_batch(["a", "b"])).values())
    assert type(raised) is error
    assert server.url in str(raised)
    sink.write(make_batch(["a", "b"]))
    sink.close()


def test_retry_after_of_a_gateway_is_kept(server: ElasticsearchServer) -> None:
    sink = opened(server)
    for body in (b"", _error("es_rejected_execution_exception")):
        server.script(Reply(429, body, {"Retry-After": "7"}))
        with pytest.raises(RetryableError) as caught:
            sink.write(make_batch(["a"]))
        assert caught.value.retry_after == 7
    sink.close()


def test_document_in_a_failure_store_is_counted_and_not_sent_again() -> None:
    with ElasticsearchServer(failure_store=True) as server:
        sink = opened(server, index="logs-shipper-default", create_template=False)
        batch = make_batch(["a", "b", "c"], attributes=[{"x": 1}, {"x": "text"}, {"x": 2}])
        sink.write(batch)
        assert dict(sink.diverted()) == {"failure_store": 1}
        assert dict(sink.diverted()) == {}
        assert [one["message"] for one in server.diverted()] == ["b"]
        assert server.messages() == ["a", "c"]
        sink.close()


@pytest.mark.parametrize("told", ["failed", "not_enabled"])
def test_failure_store_that_did_not_help_changes_nothing(server: ElasticsearchServer, told: str) -> None:
    item = {
        "create": {"status": 400, "failure_store": told, "error": {"type": "document_parsing_exception", "reason": ""}}
    }
    sink = opened(server)
    server.script(Reply(200, msgspec.json.encode({"errors": True, "items": [item]})))
    with pytest.raises(PartialError) as caught:
        sink.write(make_batch(["a"]))
    assert isinstance(caught.value.failed[0], PermanentError)
    assert dict(sink.diverted()) == {}
    sink.close()


@pytest.mark.parametrize(("ids", "doubled"), [("record", False), ("auto", True)])
def test_unknown_outcome_counts_only_where_ids_do_not_tell_doubles(
    server: ElasticsearchServer, ids: str, doubled: bool
) -> None:
    with FaultProxy(("127.0.0.1", server.port)) as proxy:
        sink = opened(server, endpoint=f"http://127.0.0.1:{proxy.port}", ids=ids)
        proxy.switch("cut_answer")
        with pytest.raises(RetryableError) as caught:
            sink.write(make_batch(["a"]))
        assert caught.value.maybe_taken is doubled
        proxy.switch("pass")
        server.script(Reply(503))
        with pytest.raises(RetryableError) as caught:
            sink.write(make_batch(["a"]))
        assert caught.value.maybe_taken is doubled
        sink.write(make_batch(["a"]))
        sink.close()
    assert server.messages() == (["a", "a"] if doubled else ["a"])
    assert [record.message for record in read(server)] == ["a"]


def test_server_that_refuses_ids_parks_the_sink_until_told() -> None:
    with ElasticsearchServer(flavour="opensearch_serverless") as server:
        sink = opened(server, ids="record")
        [error] = failures(sink, make_batch(["a"])).values()
        assert isinstance(error, ParkedError)
        assert "set ids: auto" in str(error)
        sink.close()
        written(server, make_batch(["a"]))
        assert server.messages() == ["a"]


def test_pipeline_is_asked_for(server: ElasticsearchServer) -> None:
    server.pipelines.add("clean")
    written(server, make_batch(["a"]), pipeline="clean")
    assert asked(server, "/_bulk")[0].query["pipeline"] == "clean"
    sink = opened(server, pipeline="other")
    assert isinstance(failures(sink, make_batch(["b"]))[0], ParkedError)
    sink.close()
