"""The otlp sink, against a stand-in that decodes by itself and against opentelemetry-proto."""

from __future__ import annotations

import gzip
import json
import math
import random
import ssl
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from shipper.errors import ParkedError, PartialError, PermanentError, RetryableError, SinkError
from shipper.record import Batch, Record, Resource
from shipper.sink import Limits, Sink
from shipper.testing.batches import START_NS, make_batch, make_resource, random_batch
from shipper.testing.http_server import Reply
from shipper.testing.rig import Rig
from shipper.testing.sink_contract import SinkContract
from sinks.otlp import OtlpConfig, OtlpSink, protobuf, values
from support.certificates import Authority
from support.otlp_server import JSON, PROTOBUF, OtlpServer, status, success

ENCODINGS = ["protobuf", "json"]


@pytest.fixture
def server() -> Iterator[OtlpServer]:
    with OtlpServer() as server:
        yield server


def opened(server: OtlpServer, **options: Any) -> OtlpSink:
    sink = OtlpSink(OtlpConfig(**server.sink(**options)))
    sink.open()
    return sink


class TestOtlp(SinkContract):
    encoding = "protobuf"
    example = Path("config/examples/otlp.yaml")

    @pytest.fixture(autouse=True)
    def _server(self, server: OtlpServer) -> None:
        self.server = server

    def make_sink(self, tmp_path: Path) -> Sink:
        return OtlpSink(OtlpConfig(**self.server.sink(encoding=self.encoding)))

    def read_back(self, sink: Sink) -> list[Record] | None:
        return self.server.records()

    def order_key(self, record: Record) -> str:
        return record.id  # a request holds its records by resource


class TestOtlpJson(TestOtlp):
    encoding = "json"


# The encoding, by others' decoder


def parsed(body: bytes, encoding: str) -> ExportLogsServiceRequest:
    if encoding == "protobuf":
        return ExportLogsServiceRequest.FromString(body)
    return ParseDict(json.loads(body), ExportLogsServiceRequest())


def plain(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [plain(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return pairs(value.kvlist_value.values)
    return getattr(value, kind)


def pairs(attributes: Any) -> dict[str, Any]:
    return {pair.key: plain(pair.value) for pair in attributes}


def sent(sink: OtlpSink, server: OtlpServer, batch: Batch) -> list[ExportLogsServiceRequest]:
    server.requests.clear()
    sink.write(batch)
    return [parsed(request.content(), sink._config.encoding) for request in server.requests]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_field_as_opentelemetrys_own_classes_read_it(server: OtlpServer, encoding: str) -> None:
    batch = make_batch(
        ["paid", "lost"],
        level=["info", "fatal"],
        attributes=[
            {"text": "größe", "n": -7, "big": 2**63, "f": 0.5, "yes": True, "none": None},
            {"l": [1, {"a": "b"}]},
        ],
        raws=['{"msg":"paid"}', "lost"],
        resource=make_resource("api", source="docker"),
    )
    batch.stamps = [stamp - 5 for stamp in batch.times]
    batch._ids = None
    sink = opened(server, encoding=encoding, original=True)
    [request] = sent(sink, server, batch)
    [resource_logs] = request.resource_logs
    assert pairs(resource_logs.resource.attributes) == {**make_resource("api").attributes, "shipper.source": "docker"}
    [scope_logs] = resource_logs.scope_logs
    assert (scope_logs.scope.name, scope_logs.scope.version) == ("shipper", "")
    first, second = scope_logs.log_records
    assert [row.time_unix_nano for row in (first, second)] == batch.times
    assert [row.observed_time_unix_nano for row in (first, second)] == batch.stamps
    assert (first.severity_number, first.severity_text) == (9, "INFO")
    assert (second.severity_number, second.severity_text) == (21, "FATAL")
    assert (first.body.string_value, second.body.string_value) == ("paid", "lost")
    assert pairs(first.attributes) == {
        "log.record.uid": batch.ids[0], "text": "größe", "n": -7, "big": str(2**63), "f": 0.5, "yes": True,
        "none": None, "log.record.original": '{"msg":"paid"}',
    }  # fmt: skip
    assert pairs(second.attributes) == {"log.record.uid": batch.ids[1], "l": [1, {"a": "b"}]}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_random_batches_as_opentelemetrys_own_classes_read_them(server: OtlpServer, encoding: str) -> None:
    rng = random.Random(5)
    sink = opened(server, encoding=encoding)
    for _ in range(10):
        batch = random_batch(rng)
        [request] = sent(sink, server, batch)
        rows = [row for one in request.resource_logs for scope in one.scope_logs for row in scope.log_records]
        found = {pairs(row.attributes)["log.record.uid"]: row for row in rows}
        assert len(rows) == len(batch)
        for record in batch.records():
            row = found[record.id]
            assert (row.time_unix_nano, row.severity_number) == (record.time_ns, record.severity)
            assert row.body.string_value == record.message
            assert pairs(row.attributes) == {"log.record.uid": record.id, **record.attributes}


def test_both_encodings_say_the_same(server: OtlpServer) -> None:
    attributes = {
        "inf": math.inf,
        "-inf": -math.inf,
        "nan": math.nan,
        "deep": [[[[]]]],
        "e": "",
        "": 1,
        "long": "x" * 5000,
    }
    batch = make_batch(["x" * 1023, "y" * 1024, "", "é" * 70_000], attributes=attributes)
    told = [sent(opened(server, encoding=encoding), server, batch)[0] for encoding in ENCODINGS]
    assert str(told[0]) == str(told[1])


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_values_that_are_equal_and_not_the_same_stay_apart(server: OtlpServer, encoding: str) -> None:
    """Columns of few distinct values are encoded once a value; 1, 1.0 and True are equal to Python."""
    mixed: list[Any] = [1, True, 1.0, 0.0, -0.0, False, "1", None, [1], [True], [1.0], {"a": 1}, {"a": True}]
    batch = make_batch(
        ["x"] * 65, attributes=[{"v": mixed[index % 13], "w": [mixed[index % 3]] * 4} for index in range(65)]
    )
    alike = make_batch(["x"] * 8, attributes=[{"f": 0.0 if index % 2 else -0.0} for index in range(8)])
    sink = opened(server, encoding=encoding)
    for one in (batch, alike):
        [request] = sent(sink, server, one)
        rows = request.resource_logs[0].scope_logs[0].log_records
        told = [{key: value for key, value in pairs(row.attributes).items() if key != "log.record.uid"} for row in rows]
        assert repr(told) == repr(one.attributes)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_values_around_every_length_of_their_length(server: OtlpServer, encoding: str) -> None:
    """Columns of one type have ways of their own, and lengths are written in one byte more from 2^7, 2^14 and so on."""
    edges = [0, 1, 127, 128, 16_383, 16_384, 16_511, 2_097_151, 2_097_152, 2**28 - 1, 2**28, 2**35, 2**63 - 1]
    sizes = [0, 1, 90, 110, 120, 127, 128, 255, 256, 16_300, 16_384]
    columns: list[list[Any]] = [[edge for edge in edges if edge < most] for most in (2**14, 2**28, 2**63)] + [
        ["é" * (size // 2) + "x" * (size % 2) for size in sizes],
        [[f"{size}"] * (size // 100) for size in sizes],
        [[size] * (size // 100) for size in sizes],
        [[], [], []],
        [{}, {}, {}],
        [[{}], [{"a": [[]]}], [{"a": [[1, "1"]]}], [{"a": ["x", "x"], "b": {"a": "x"}}]],
        [{f"{size}": size, "same": {"same": "same"}} for size in sizes],
        [["a", "b"], ["a", "b"], ["a"]] * 3,
        [{"a": "b"}, {"a": "b"}, {"a": "c"}] * 3,
    ]
    sink = opened(server, encoding=encoding)
    for column in columns:
        for _ in range(2):  # the second time some of it is known
            batch = make_batch(["x" * (100 * i) for i in range(len(column))], attributes=[{"v": one} for one in column])
            [request] = sent(sink, server, batch)
            rows = request.resource_logs[0].scope_logs[0].log_records
            assert [pairs(row.attributes)["v"] for row in rows] == column
            assert [row.body.string_value for row in rows] == batch.messages


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_same_batch_makes_the_same_bytes_whoever_sends_it(server: OtlpServer, encoding: str) -> None:
    for _ in range(2):
        opened(server, encoding=encoding).write(random_batch(random.Random(3), start_ns=START_NS))
    first, second = server.requests
    assert first.body == second.body
    assert dict(first.headers) == dict(second.headers)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_records_are_grouped_by_resource_even_if_it_is_another_object(server: OtlpServer, encoding: str) -> None:
    one, other, same = make_resource("a"), make_resource("b"), make_resource("a")
    batch = make_batch(["1", "2", "3", "4"], resource=[one, other, same, other])
    [request] = sent(opened(server, encoding=encoding), server, batch)
    told = [[row.body.string_value for row in one.scope_logs[0].log_records] for one in request.resource_logs]
    assert told == [["1", "3"], ["2", "4"]]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_otlp_cannot_hold(server: OtlpServer, encoding: str) -> None:
    nested: Any = "end"
    for _ in range(60):
        nested = {"k": [nested]}
    batch = make_batch(
        ["old", "new"],
        attributes=[
            {"nested": nested, "log.record.uid": "mine", "log.record.original": "o", "set": {1}, "b": b"\x00"},
            {},
        ],
    )
    batch.times = [-1, 1 << 64]
    [request] = sent(opened(server, encoding=encoding), server, batch)
    first, second = request.resource_logs[0].scope_logs[0].log_records
    assert (first.time_unix_nano, second.time_unix_nano) == (0, 0)
    told = pairs(first.attributes)
    assert told["log.record.uid"] == batch.ids[0]
    assert (told["app.log.record.uid"], told["app.log.record.original"]) == ("mine", "o")
    assert (told["set"], told["b"]) == ("{1}", b"\x00")
    inner = told["nested"]
    for _ in range(10):
        inner = inner["k"][0]
    assert inner.startswith('[too deep] {"k":[')


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_unparsed_batch_has_the_line_as_body_and_its_level_if_known(server: OtlpServer, encoding: str) -> None:
    batch = make_batch(["raw"], parsed=False)
    [request] = sent(opened(server, encoding=encoding, original=True), server, batch)
    [row] = request.resource_logs[0].scope_logs[0].log_records
    assert (row.body.string_value, row.severity_number, row.severity_text) == ("raw", 9, "INFO")
    assert list(pairs(row.attributes)) == ["log.record.uid"]
    batch.severities = [17]
    [request] = sent(opened(server, encoding=encoding), server, batch)
    assert request.resource_logs[0].scope_logs[0].log_records[0].severity_text == "ERROR"


def test_caches_are_bounded(server: OtlpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protobuf, "compiled", None)
    monkeypatch.setattr(protobuf, "_MAX_NAMES", 8)
    monkeypatch.setattr(values, "_MAX_RESOURCES", 8)
    resources = [Resource("docker", {"container.name": str(index)}) for index in range(30)]
    names = [f"k{index}" for index in range(28)] + ["l" * 256, "l" * 255]
    batch = make_batch([str(i) for i in range(30)], resource=resources, attributes=[{name: "v"} for name in names])
    for encoding in ENCODINGS:
        sink = opened(server, encoding=encoding)
        server.received.clear()
        for index in range(30):
            sink.write(batch.select([index]))
        assert server.messages() == batch.messages
        assert len(sink._encoder._resources) <= 9
        if isinstance(sink._encoder, protobuf.Encoder):
            heads = sink._encoder._pairs._prefixes
            assert len(heads) <= 8
            # Of long names nothing is kept, and of values only what stands in front of short ones.
            sink.write(
                make_batch(["x"] * 2, attributes=[{"a": "x" * 200, "l" * 300: 1}, {"a": "x" * 300, "l" * 300: 2}])
            )
            assert {name: len(head) for (name, _), head in heads.items() if name in {"a", "l" * 300}} == {
                "a": 1, "l" * 300: 0,
            }  # fmt: skip


# Compiled and not


_TEXTS = st.one_of(
    st.text(st.sampled_from("ab\x00\n\x7f\x80é\u07ff\u0800日\uffff\U0001f600\ud800\udfff"), max_size=12),
    st.sampled_from([1, 40, 90, 100, 110, 118, 120, 125, 127, 128, 250, 16_383, 16_384]).map(lambda size: "x" * size),
)


class _Text(str):
    __slots__ = ()


class _Object(dict[str, Any]):
    pass


_SCALARS = st.one_of(
    st.none(), st.booleans(), _TEXTS, st.integers(-(2**65), 2**65), st.integers(-300, 20_000), st.floats(),
    st.sampled_from([2**63 - 1, 2**63, -(2**63), -(2**63) - 1, -0.0, math.nan, math.inf, -math.inf]),
    st.binary(max_size=4), _TEXTS.map(_Text), st.just(_Object(a=1)), st.just((1, "a")), st.just({1}),
)  # fmt: skip
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(_TEXTS, inner, max_size=4)),
    max_leaves=12,
)  # fmt: skip
_NAMES = st.one_of(
    _TEXTS, st.sampled_from([values.UID, values.ORIGINAL, "log.record.part", "log.record.", "app.log.record.uid", ""])
)
_TIMES = st.one_of(st.integers(-1, 2**64), st.sampled_from([-(2**70), -1, 0, 1, 2**63, 2**64 - 1, 2**64, 2**70]))
_ROWS = st.tuples(
    _TIMES, _TIMES, st.integers(0, 24), _TEXTS, _TEXTS, st.dictionaries(_NAMES, _VALUES, max_size=5), st.booleans()
)


@pytest.mark.skipif(protobuf.compiled is None, reason="needs the compiled form")
@given(st.lists(_ROWS, min_size=1, max_size=6), st.booleans(), st.sampled_from(["parsed", "levels", "raw"]))
def test_compiled_form_gives_the_same_bytes(rows: list[Any], original: bool, kind: str) -> None:
    times, stamps, severities, messages, raws, attributes, same = map(list, zip(*rows, strict=True))
    raws = [message if alike else raw for message, raw, alike in zip(messages, raws, same, strict=True)]
    batch = make_batch(messages, attributes=attributes, raws=raws)
    ids = batch.ids
    batch.times, batch.stamps, batch.severities = times, stamps, severities
    batch._ids = ids
    if kind != "parsed":
        batch.messages = batch.attributes = None
    if kind == "raw":
        batch.severities = None
    encoder = protobuf.Encoder(original=original)
    data, ends = encoder.records(batch)
    alone = encoder._encode(batch)
    assert [data[start:end] for start, end in pairwise([0, *ends])] == alone
    scope = b"".join(protobuf.Encoder.request([(b"", [memoryview(data)])]))
    told = ExportLogsServiceRequest.FromString(scope).resource_logs[0].scope_logs[0].log_records
    assert [row.body.string_value for row in told] == list(map(values.cleaned, batch.messages or raws))


@pytest.mark.skipif(protobuf.compiled is None, reason="needs the compiled form")
def test_compiled_form_declines_no_common_value(monkeypatch: pytest.MonkeyPatch) -> None:
    nested: Any = "end"
    for _ in range(values.MAX_DEPTH):
        nested = [nested]
    common = {
        "t": "größe 日本 \U0001f600 \x00", "i": 2**63 - 1, "n": -(2**63), "f": math.nan, "y": True, "0": None, "": "",
        "o": {"a": {"b": [1, "2", {}, []]}}, "deep": nested, "long": "x" * 70_000,
    }  # fmt: skip
    batch = make_batch(["größe", "x"], attributes=common, raws=["a", "x"])
    encoder = protobuf.Encoder(original=True)
    expected = encoder._encode(batch)
    monkeypatch.setattr(encoder, "_encode", pytest.fail)
    assert encoder.records(batch).data == b"".join(expected)


# The request


def test_endpoint_gets_the_path_once_and_the_headers_it_needs(server: OtlpServer) -> None:
    for endpoint in (server.url, server.url + "/", server.url + "/v1/logs", server.url + "/otlp"):
        opened(server, endpoint=endpoint, headers={"X-Scope-OrgID": "blue"}).write(make_batch(["x"]))
    assert [request.path for request in server.requests] == ["/v1/logs"] * 3 + ["/otlp/v1/logs"]
    headers = server.requests[0].headers
    assert (headers["content-type"], headers["content-encoding"]) == (PROTOBUF, "gzip")
    assert headers["x-scope-orgid"] == "blue"
    assert gzip.decompress(server.requests[0].body)


def test_compression_none(server: OtlpServer) -> None:
    opened(server, compression="none", encoding="json").write(make_batch(["x"]))
    assert "content-encoding" not in server.requests[0].headers
    assert json.loads(server.requests[0].body)


def test_lokis_204_is_success() -> None:
    with OtlpServer() as server:
        sink = opened(server, endpoint=server.url + "/otlp")
        sink.write(make_batch(["x"]))
        sink.healthcheck()  # Loki answers 422 to a request without records
        assert server.messages() == ["x"]


def test_bearer_and_basic(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    with OtlpServer(token="right") as server:
        opened(server).write(make_batch(["x"]))
        secret.write_text("wrong\n")
        sink = opened(server, bearer_token="", bearer_token_file=str(secret))
        with pytest.raises(ParkedError, match="401 missing or wrong credentials"):
            sink.write(make_batch(["y"]))
        secret.write_text("right\n")
        sink.open()
        sink.write(make_batch(["y"]))
        secret.unlink()
        with pytest.raises(ParkedError, match="token_file: cannot read"):
            sink.open()
        assert server.messages() == ["x", "y"]
    with OtlpServer(login=("me", "pass:wörd")) as server:
        opened(server).write(make_batch(["x"]))
        assert server.count == 1


def test_tls_with_own_authority(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key)
    with OtlpServer(tls=context) as server:
        opened(server, ca_file=str(authority.cert)).write(make_batch(["x"]))
        assert server.count == 1
        with pytest.raises(ParkedError, match="certificate is not accepted"):
            opened(server).write(make_batch(["x"]))


# Limits


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("off", [-1, 0, 1])
def test_request_of_exactly_the_most_bytes_goes_out_whole(encoding: str, off: int) -> None:
    batch = make_batch(["x" * 2000])
    with OtlpServer() as server:
        opened(server, encoding=encoding).write(batch)
        size = len(server.requests[0].content())
    with OtlpServer(max_body=size + off) as server:
        sink = opened(server, encoding=encoding, max_request_bytes=size + off)
        if off >= 0:
            sink.write(batch)
            assert server.count == 1
        else:
            with pytest.raises(PartialError) as caught:
                sink.write(batch)
            error = caught.value.failed[0]
            assert isinstance(error, PermanentError)
            assert error.certain
            assert f"takes {size} bytes as a request" in str(error)
            assert server.requests == []


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_larger_batches_are_cut_and_stay_in_order(encoding: str) -> None:
    messages = [f"{index} " + "x" * (index * 37 % 900) for index in range(300)]
    batch = make_batch(messages, resource=[make_resource(f"s{index % 3}") for index in range(300)])
    with OtlpServer(max_body=8_192) as server:
        opened(server, encoding=encoding, max_request_bytes="8KiB").write(batch)
        assert server.messages() == messages
        assert 5 < len(server.requests) < 60
        numbers = [
            record.message.partition(" ")[0] for record in server.received if record.resource["service.name"] == "s1"
        ]
        assert numbers == [str(index) for index in range(1, 300, 3)]


def test_one_record_above_the_limit_is_refused_alone() -> None:
    with OtlpServer() as server:
        sink = opened(server, max_request_bytes="4KiB")
        with pytest.raises(PartialError) as caught:
            sink.write(make_batch(["a", "x" * 5000, "b"]))
        assert list(caught.value.failed) == [1]
        assert server.messages() == ["a", "b"]


def test_most_records_of_a_request(server: OtlpServer) -> None:
    opened(server, max_request_records=4).write(make_batch([str(index) for index in range(9)]))
    assert [len(request.content()) > 0 for request in server.requests] == [True] * 3
    assert server.messages() == [str(index) for index in range(9)]


def test_size_before_compression_is_what_counts(server: OtlpServer) -> None:
    opened(server).write(make_batch(["x" * (11 << 20), "y" * (11 << 20)]))
    assert len(server.requests) == 2
    assert all(len(request.body) < 1 << 20 for request in server.requests)


# Answers

RETRYABLE = [429, 502, 503, 504]
PARKED = [301, 308, 202, 260, 401, 402, 403, 404, 405, 406, 407, 415, 431, 501]
FINAL = [400, 408, 409, 413, 422, 425, 500, 505, 507, 520]


@pytest.mark.parametrize(
    ("code", "kind"),
    [(code, RetryableError) for code in RETRYABLE]
    + [(code, ParkedError) for code in PARKED]
    + [(code, PermanentError) for code in FINAL],
)
@pytest.mark.parametrize("encoding", [PROTOBUF, JSON])
def test_status_has_its_class_and_its_words_are_told(
    server: OtlpServer, code: int, kind: type[SinkError], encoding: str
) -> None:
    server.script(status(code, "because of this", encoding))
    with pytest.raises(kind, match="because of this") as caught:
        opened(server).write(make_batch(["x", "y"]))
    assert type(caught.value) is kind
    assert caught.value.code == str(code)
    assert server.count == 0


def test_retry_500(server: OtlpServer) -> None:
    server.script(status(500, "busy"))
    with pytest.raises(RetryableError, match="busy") as caught:
        opened(server, retry_500=True).write(make_batch(["x"]))
    assert caught.value.maybe_taken


@pytest.mark.parametrize(("code", "maybe"), [(429, False), (503, False), (502, True), (504, True)])
def test_gateways_may_have_passed_the_request_on(server: OtlpServer, code: int, maybe: bool) -> None:
    server.script(status(code, "later"))
    with pytest.raises(RetryableError) as caught:
        opened(server).write(make_batch(["x"]))
    assert caught.value.maybe_taken is maybe


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_in_both_forms(server: OtlpServer, as_date: bool) -> None:
    server.throttle(17, code=503, as_date=as_date)
    with pytest.raises(RetryableError) as caught:
        opened(server).write(make_batch(["x"]))
    assert caught.value.retry_after == pytest.approx(17, abs=2)


def test_plain_text_answers_are_quoted(server: OtlpServer) -> None:
    server.script(Reply(400, b"nonsense", {"Content-Type": PROTOBUF}), Reply(400, b"[]", {"Content-Type": JSON}))
    for words in ("nonsense", r"\[\]"):
        with pytest.raises(PermanentError, match=words):
            opened(server).write(make_batch(["x", "y"]))


@pytest.mark.parametrize(
    "reply",
    [
        Reply(200, b"<html>Welcome</html>", {"Content-Type": "text/html"}),
        Reply(200, b"<html>Welcome</html>", {"Content-Type": PROTOBUF}),
        Reply(200, b"Welcome", {"Content-Type": JSON}),
        Reply(200, b"[]", {"Content-Type": JSON}),
        Reply(200, b"ok"),
    ],
)
def test_answer_of_something_else_is_no_success(server: OtlpServer, reply: Reply) -> None:
    server.script(reply)
    with pytest.raises(ParkedError, match="check that the endpoint is an OTLP receiver") as caught:
        opened(server).write(make_batch(["x"]))
    assert caught.value.maybe_taken


@pytest.mark.parametrize(
    "reply",
    [
        Reply(200), Reply(200, b"\x0a\x00", {"Content-Type": PROTOBUF}), Reply(200, b"{}", {"Content-Type": JSON}),
        Reply(200, b'{"partialSuccess":{}}', {"Content-Type": JSON + "; charset=utf-8"}),
        Reply(200, b'{"partialSuccess":null}', {"Content-Type": JSON}), Reply(204),
    ],
)  # fmt: skip
def test_full_success_in_all_its_forms(server: OtlpServer, reply: Reply) -> None:
    server.script(reply)
    opened(server).write(make_batch(["x"]))


@pytest.mark.parametrize("kind", [PROTOBUF, JSON])
def test_words_without_refused_records_are_a_warning_told_once(
    server: OtlpServer, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.script(*[success(kind, words="slow disk")] * 3, stored=True)
    sink = opened(server)
    for index in range(3):
        sink.write(make_batch([str(index)]))
    assert [record.getMessage().partition(" took ")[2] for record in caplog.records] == [
        "everything and says: slow disk"
    ]
    assert server.count == 3


# Partial success


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_records_of_a_partial_success_are_all_handed_over_and_never_sent_again(encoding: str) -> None:
    with OtlpServer(rejects=lambda record: record.message == "bad") as server:
        sink = opened(server, encoding=encoding)
        with pytest.raises(PartialError) as caught:
            sink.write(make_batch(["good", "bad", "fine"]))
        assert sorted(caught.value.failed) == [0, 1, 2]
        error = caught.value.failed[0]
        assert isinstance(error, PermanentError)
        assert error.certain
        assert error.code == "partial_success"
        assert "refused 1 of the 3 records" in str(error)
        assert "records were refused" in str(error)
        assert caught.value.together == ()
        assert len(server.requests) == 1
        assert server.messages() == ["good", "fine"]


@pytest.mark.parametrize("count", [2, 3])
def test_partial_success_that_refuses_all_names_them_by_that(server: OtlpServer, count: int) -> None:
    server.script(success(PROTOBUF, rejected=count, words="too old"))
    with pytest.raises(PartialError) as caught:
        opened(server).write(make_batch(["a", "b"]))
    assert "did not say which" not in str(caught.value.failed[0])
    assert "too old" in str(caught.value.failed[1])


def test_requests_of_one_record_make_every_refusal_exact() -> None:
    with OtlpServer(rejects=lambda record: record.message == "bad") as server:
        with pytest.raises(PartialError) as caught:
            opened(server, max_request_records=1).write(make_batch(["good", "bad", "fine"]))
        assert list(caught.value.failed) == [1]
        assert server.messages() == ["good", "fine"]


def test_requests_after_a_partial_success_go_on_and_after_a_failure_do_not() -> None:
    with OtlpServer() as server:
        server.script(success(PROTOBUF, rejected=1))
        sink = opened(server, max_request_records=2)
        with pytest.raises(PartialError) as caught:
            sink.write(make_batch(["a", "b", "c"]))
        assert sorted(caught.value.failed) == [0, 1]
        assert server.messages() == ["c"]
        server.received.clear()
        server.script(success(PROTOBUF, rejected=0), status(503, "later"))
        with pytest.raises(PartialError) as caught:
            sink.write(make_batch(["a", "b", "c", "d", "e", "f"]))
        assert sorted(caught.value.failed) == [2, 3, 4, 5]
        assert all(isinstance(error, RetryableError) for error in caught.value.failed.values())
        assert len(server.requests) == 4


# Through the delivery


@pytest.fixture
def rig(tmp_path: Path, server: OtlpServer) -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def make(*messages: str, **options: Any) -> Rig:
        made.append(Rig(tmp_path / str(len(made)), OtlpSink(OtlpConfig(**server.sink(**options)))))
        made[-1].put("/a", make_batch(messages))
        return made[-1]

    yield make
    for one in made:
        one.close()


def dead(rig: Rig) -> list[tuple[str, str]]:
    return [(entry.raw, entry.code) for entry in rig.dead()]


def test_partial_success_is_not_sent_again_and_nothing_vanishes(server: OtlpServer, rig: Callable[..., Rig]) -> None:
    server.rejects = lambda record: record.message == "bad"
    it = rig("good", "bad", "fine")
    it.put("/a", make_batch(["next"], start_ns=START_NS + 10**9))
    it.delivery.sink.limits = Limits(records=3)
    it.run()
    assert len(server.requests) == 2
    assert server.messages() == ["good", "fine", "next"]
    assert dead(it) == [(raw, "partial_success") for raw in ("good", "bad", "fine")]
    assert it.metrics.value("shipper_dead_letter_total", sink="sink") == 3
    assert (it.acked, it.waits, it.safe(), it.state()) == (1, [], True, "ok")


def test_hundred_refused_in_a_partial_success_do_not_park_the_sink(server: OtlpServer, rig: Callable[..., Rig]) -> None:
    """Parking would send them again, which is forbidden."""
    server.rejects = lambda record: True
    it = rig(*map(str, range(100)))
    it.run()
    assert len(server.requests) == 1
    assert len(it.dead()) == 100
    assert it.states == []


@pytest.mark.parametrize("code", [400, 413, 500])
def test_refused_request_is_bisected_to_the_guilty_record(
    server: OtlpServer, rig: Callable[..., Rig], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = server.answer
    monkeypatch.setattr(
        server, "answer", lambda request: status(code, "no") if b"poison" in request.content() else own(request)
    )
    it = rig(*[f"line {index}" for index in range(20)], "poison", *[f"more {index}" for index in range(20)])
    it.run()
    assert server.count == 40
    assert dead(it) == [("poison", str(code))]
    assert it.waits == []


def test_receiver_that_refuses_everything_is_held_at_fault(
    server: OtlpServer, rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    it = rig(*map(str, range(64)))
    monkeypatch.setattr(server, "answer", lambda request: status(400, "no"))
    it.clock.at(10.0, monkeypatch.undo)
    it.run()
    assert set(it.states) == {"parked"}
    assert it.dead() == []
    assert server.count == 64


def test_500_is_final_by_default_and_retried_if_asked_for(server: OtlpServer, rig: Callable[..., Rig]) -> None:
    server.script(status(500, "busy"))
    it = rig("x")
    it.run()
    assert dead(it) == [("x", "500")]
    server.script(*[status(500, "busy")] * 5)
    it = rig("y", retry_500=True)
    it.run()
    assert (it.dead(), len(it.waits), server.messages()) == ([], 5, ["y"])


# Looking at it


def test_healthcheck_and_findings(server: OtlpServer) -> None:
    sink = opened(server)
    sink.healthcheck()
    verdicts = {finding.what: finding.verdict for finding in sink.examine()}
    assert verdicts == {"reachable": "ok", "tls": "warn", "login": "ok", "clock": "ok"}
    server.token = "changed"
    with pytest.raises(ParkedError, match="401"):
        sink.healthcheck()
    assert {finding.what: finding.verdict for finding in sink.examine()}["login"] == "fail"
    assert server.count == 0


def test_finding_when_nobody_listens_or_a_secret_is_missing(server: OtlpServer, tmp_path: Path) -> None:
    server.close()
    [finding] = opened(server).examine()
    assert (finding.what, finding.verdict) == ("reachable", "fail")
    [finding] = OtlpSink(OtlpConfig(type="otlp", bearer_token_file=str(tmp_path / "no"))).examine()
    assert (finding.what, finding.verdict) == ("login", "fail")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"endpoint": "collector:4318"}, "endpoint: not an http"),
        ({"max_request_bytes": "10"}, "max_request_bytes: at least"),
        ({"max_request_bytes": "much"}, "not a size"),
        ({"bearer_token": "a", "bearer_token_file": "b"}, "bearer_token: is given twice"),
        ({"username": "u", "password": "a", "password_file": "b"}, "password: is given twice"),
        ({"username": "u", "bearer_token": "t"}, "exclude each other"),
        ({"password": "p"}, "password: needs username"),
        ({"bearer_token": "t", "headers": {"authorization": "x"}}, "headers: Authorization would be replaced"),
        ({"timeout": "0s"}, "timeout: must be more than 0"),
    ],
)
def test_mistakes_in_the_section(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        OtlpConfig(type="otlp", **options)
