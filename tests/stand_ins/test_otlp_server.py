"""The stand-in for an OTLP receiver refuses what a real one refuses, and reads what OpenTelemetry's own classes write."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Any

import pytest
import urllib3
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList

from support.otlp_server import JSON, PROTOBUF, OtlpServer, status
from support.process import serving


@pytest.fixture
def server() -> Iterator[OtlpServer]:
    with OtlpServer(max_body=2_000) as server:
        yield server


def request(*bodies: str) -> ExportLogsServiceRequest:
    made = ExportLogsServiceRequest()
    one = made.resource_logs.add()
    one.resource.attributes.append(KeyValue(key="shipper.source", value=AnyValue(string_value="docker")))
    one.resource.attributes.append(KeyValue(key="service.name", value=AnyValue(string_value="api")))
    scope = one.scope_logs.add()
    scope.scope.name = "it"
    for index, body in enumerate(bodies):
        row = scope.log_records.add(time_unix_nano=index + 1, observed_time_unix_nano=7, severity_number=17)
        row.severity_text = "ERROR"
        row.body.string_value = body
        row.flags, row.trace_id, row.dropped_attributes_count = 1, b"\x01" * 16, 300
        for key, value in {
            "log.record.uid": AnyValue(string_value=f"id-{index}"),
            "n": AnyValue(int_value=-5),
            "f": AnyValue(double_value=0.5),
            "no": AnyValue(bool_value=False),
            "none": AnyValue(),
            "b": AnyValue(bytes_value=b"\x00\xff"),
            "l": AnyValue(array_value=ArrayValue(values=[AnyValue(int_value=1), AnyValue(string_value="é")])),
            "o": AnyValue(kvlist_value=KeyValueList(values=[KeyValue(key="a", value=AnyValue(int_value=2**62))])),
        }.items():
            row.attributes.append(KeyValue(key=key, value=value))
    return made


def post(server: OtlpServer, body: bytes, *, path: str = "/v1/logs", method: str = "POST", **headers: str) -> Any:
    given = {"Content-Type": PROTOBUF} | {name.replace("_", "-"): value for name, value in headers.items()}
    return urllib3.request(method, server.url + path, body=body, headers=given, retries=False)


EXPECTED = {"n": -5, "f": 0.5, "no": False, "none": None, "b": b"\x00\xff", "l": [1, "é"], "o": {"a": 2**62}}


@pytest.mark.parametrize("packed", [False, True])
def test_protobuf_of_others_is_read(server: OtlpServer, packed: bool) -> None:
    body = request("one", "two").SerializeToString()
    answer = post(server, gzip.compress(body), Content_Encoding="gzip") if packed else post(server, body)
    assert (answer.status, answer.data, answer.headers["content-type"]) == (200, b"", PROTOBUF)
    check(server)


def test_json_is_read(server: OtlpServer) -> None:
    told = MessageToDict(request("one", "two"), use_integers_for_enums=True)
    answer = post(server, json.dumps(told).encode(), Content_Type=JSON + "; charset=utf-8")
    assert (answer.status, answer.json()) == (200, {})
    check(server)


def check(server: OtlpServer) -> None:
    assert server.messages() == ["one", "two"]
    assert server.ids() == server.arrived() == ["id-0", "id-1"]
    first = server.received[0]
    assert (first.time_ns, first.observed_ns, first.severity, first.severity_text) == (1, 7, 17, "ERROR")
    assert first.scope == "it"
    record = server.records()[0]
    assert (record.id, record.level, record.attributes) == ("id-0", "error", EXPECTED)
    assert (record.resource.source, record.resource.attributes) == ("docker", {"service.name": "api"})


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"path": "/v1/traces"}, 404),
        ({"method": "PUT"}, 405),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": ""}, 415),
        ({"Content_Encoding": "br"}, 400),
        ({"Content_Encoding": "gzip"}, 400),
        ({"Content_Type": JSON}, 400),
    ],
)
def test_what_no_receiver_takes(server: OtlpServer, changes: dict[str, Any], code: int) -> None:
    answer = post(server, request("x").SerializeToString(), **changes)
    assert answer.status == code
    assert server.count == 0


@pytest.mark.parametrize("body", [b"\x0a", b"\x0a\x05\x12", b"\x0b", b"\x00", b"\xff" * 12, b"\x08\x01"])
def test_bytes_that_are_no_protobuf(server: OtlpServer, body: bytes) -> None:
    assert post(server, body).status == 400


@pytest.mark.parametrize(
    "row",
    [
        {"timeUnixNano": 1},
        {"severityNumber": "SEVERITY_NUMBER_ERROR"},
        {"attributes": [{"key": "n", "value": {"intValue": 1}}]},
        {"attributes": [{"key": "n", "value": {"number": 1}}]},
        {"attributes": [{"key": "n", "value": {}}, {"key": "n", "value": {}}]},
        {"body": {"stringValue": "a", "intValue": "1"}},
    ],
)
def test_json_against_the_mapping(server: OtlpServer, row: dict[str, Any]) -> None:
    body = {"resourceLogs": [{"scopeLogs": [{"logRecords": [row]}]}]}
    answer = post(server, json.dumps(body).encode(), Content_Type=JSON)
    assert answer.status == 400
    assert answer.json()["code"] == 3


def test_size_counts_before_and_after_unpacking(server: OtlpServer) -> None:
    large = request("x" * 3_000).SerializeToString()
    for answer in (post(server, large), post(server, gzip.compress(large), Content_Encoding="gzip")):
        assert answer.status == 413
        assert b"http: request body too large" in answer.data


def test_partial_success_says_how_many_and_not_which(server: OtlpServer) -> None:
    server.rejects = lambda record: record.message == "bad"
    answer = post(server, request("good", "bad").SerializeToString())
    told = ExportLogsServiceResponse.FromString(answer.data).partial_success
    assert (answer.status, told.rejected_log_records, told.error_message) == (200, 1, "records were refused")
    body = json.dumps(MessageToDict(request("bad", "bad"), use_integers_for_enums=True)).encode()
    answer = post(server, body, Content_Type=JSON)
    assert answer.json() == {"partialSuccess": {"rejectedLogRecords": "2", "errorMessage": "records were refused"}}
    assert server.messages() == ["good"]


def test_loki_answers_204_and_wants_a_record(server: OtlpServer) -> None:
    assert post(server, request("x").SerializeToString(), path="/otlp/v1/logs").status == 204
    assert post(server, b"", path="/otlp/v1/logs").status == 422
    assert post(server, b"").status == 200


def test_throttling_names_a_time(server: OtlpServer) -> None:
    server.throttle(7)
    server.throttle(9, code=503, as_date=True)
    first, second, third = (post(server, b"") for _ in range(3))
    assert (first.status, first.headers["retry-after"]) == (429, "7")
    assert second.status == 503
    assert second.headers["retry-after"].endswith("GMT")
    assert third.status == 200


def test_status_is_a_google_rpc_status() -> None:
    assert status(503, "away").body == b"\x08\x0e\x12\x04away"
    assert json.loads(status(401, "who", JSON).body) == {"code": 16, "message": "who"}


@pytest.mark.parametrize("kind", [PROTOBUF, JSON])
def test_without_keeping_it_only_counts(kind: str) -> None:
    with OtlpServer(keep=False) as server:
        made = request("a", "b")
        body = made.SerializeToString() if kind == PROTOBUF else json.dumps(MessageToDict(made)).encode()
        for _ in range(3):
            assert post(server, body, Content_Type=kind).status == 200
        assert (server.count, server.received, server.requests) == (6, [], [])


def test_runs_as_a_process_of_its_own() -> None:
    with serving("otlp_server", "--discard") as url:
        body = request("x").SerializeToString()
        assert urllib3.request("POST", url + "/v1/logs", body=body, headers={"Content-Type": PROTOBUF}).status == 200
