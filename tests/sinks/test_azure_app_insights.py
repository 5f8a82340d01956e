"""The azure_app_insights sink and its reader, against the stand-in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shipper.errors import (
    ConfigError,
    DroppedError,
    ParkedError,
    PartialError,
    PermanentError,
    RetryableError,
    SinkError,
)
from shipper.reader import Query
from shipper.record import Batch, Record, Resource
from shipper.routing.condition import compile_condition
from shipper.sink import Sink
from shipper.testing.batches import START_NS, make_batch, make_resource
from shipper.testing.http_server import HttpServer, Reply, Request
from shipper.testing.proxy import FaultProxy
from shipper.testing.sink_contract import SinkContract
from sinks._azure import units
from sinks.azure_app_insights import AppInsightsConfig, AppInsightsReader, AppInsightsSink
from sinks.azure_app_insights.config import DEFAULT_ENDPOINT, parse_connection
from sinks.azure_app_insights.encode import ITEM, MESSAGE, VALUE, severity_level
from sinks.azure_app_insights.encode import KEY as KEY_LENGTH
from support.azure_app_insights_server import KEY, AppInsightsServer

HOUR = 3_600 * 10**9
DAY = 24 * HOUR
AUDIENCE = "https://monitor.azure.com/"


def now() -> float:
    """An hour after the time of the batches."""
    return START_NS / 1e9 + 3_600


@pytest.fixture
def server() -> Iterator[AppInsightsServer]:
    with AppInsightsServer(now=now) as server:
        yield server


@pytest.fixture
def sink(server: AppInsightsServer) -> Iterator[AppInsightsSink]:
    sink = _opened(server)
    yield sink
    sink.close()


def _config(server: AppInsightsServer, **options: Any) -> AppInsightsConfig:
    return AppInsightsConfig(**server.sink(**options))


def _opened(server: AppInsightsServer, **options: Any) -> AppInsightsSink:
    sink = AppInsightsSink(_config(server, **options), now=now)
    sink.open()
    return sink


def _read(server: AppInsightsServer, condition: str = "", **query: Any) -> list[Record]:
    reader = AppInsightsReader(_config(server))
    try:
        return list(reader.read(Query(condition=compile_condition(condition) if condition else None, **query)))
    finally:
        reader.close()


def _failures(sink: AppInsightsSink, batch: Batch) -> dict[int, SinkError]:
    with pytest.raises(PartialError) as caught:
        sink.write(batch)
    assert caught.value.together == ()
    return caught.value.failed


def _same(found: list[Record], batch: Batch) -> None:
    assert [_row(record) for record in sorted(found, key=lambda record: record.time_ns)] == [
        _row(record) for record in batch.records()
    ]


def _row(record: Record) -> tuple[Any, ...]:
    resource = record.resource
    return (
        record.id,
        record.time_ns,
        record.level,
        record.message,
        record.attributes,
        resource.source,
        resource.attributes,
    )


def _items(server: AppInsightsServer, request: int = -1) -> list[dict[str, Any]]:
    """The envelopes of a request, each checked against every limit of the service."""
    raws = msgspec.json.decode(server.requests[request].content(), type=list[msgspec.Raw])
    assert all(len(bytes(raw)) <= ITEM for raw in raws)
    items = [json.loads(bytes(raw)) for raw in raws]
    for item in items:
        data = item["data"]["baseData"]
        assert units(data.get("message", "")) <= MESSAGE
        assert all(len(name) <= KEY_LENGTH and units(value) <= VALUE for name, value in data["properties"].items())
    return items


class TestAppInsights(SinkContract):
    example = Path("config/examples/azure_app_insights.yaml")

    @pytest.fixture(autouse=True)
    def _place(self, server: AppInsightsServer) -> None:
        self.server = server

    def make_sink(self, tmp_path: Path) -> Sink:
        return AppInsightsSink(_config(self.server), now=now)

    def read_back(self, sink: Sink) -> list[Record]:
        return _read(self.server, oldest_first=True)

    def order_key(self, record: Record) -> Any:
        return record.time_ns, record.id


# The connection string


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        (f"InstrumentationKey={KEY}", DEFAULT_ENDPOINT),
        (KEY.upper(), DEFAULT_ENDPOINT),
        (f"InstrumentationKey={KEY};IngestionEndpoint=https://westeurope-5.in.applicationinsights.azure.com/;",
         "https://westeurope-5.in.applicationinsights.azure.com"),
        (f" instrumentationkey = {KEY.upper()} ;; INGESTIONENDPOINT=http://localhost:8080 ; ", "http://localhost:8080"),
        (f"InstrumentationKey={KEY};EndpointSuffix=applicationinsights.us", "https://dc.applicationinsights.us"),
        (f"InstrumentationKey={KEY};EndpointSuffix=ai.example.com;Location=westus2", "https://westus2.dc.ai.example.com"),
        (f"InstrumentationKey={KEY};EndpointSuffix=a.com;IngestionEndpoint=https://b.com", "https://b.com"),
        (f"Authorization=ikey;InstrumentationKey={KEY};New=a=b==;nonsense", DEFAULT_ENDPOINT),
        (f'"InstrumentationKey={KEY};LiveEndpoint=https://x/;ApplicationId=7"', DEFAULT_ENDPOINT),
    ],
)  # fmt: skip
def test_connection_strings_are_read_leniently(text: str, endpoint: str) -> None:
    found = parse_connection(text, audience=AUDIENCE)
    assert (found.key, found.endpoint, found.audience) == (KEY, endpoint, AUDIENCE)


def test_connection_string_may_name_the_audience() -> None:
    found = parse_connection(f"InstrumentationKey={KEY};AADAudience=https://monitor.azure.us/", audience=AUDIENCE)
    assert found.audience == "https://monitor.azure.us/"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("IngestionEndpoint=https://x", "no InstrumentationKey"),
        ("InstrumentationKey=secret-text", "not a UUID"),
        (f"InstrumentationKey={KEY};Authorization=aad", "Authorization must be ikey"),
        (f"InstrumentationKey={KEY};IngestionEndpoint=ftp://x", "IngestionEndpoint"),
        (f"InstrumentationKey={KEY};IngestionEndpoint=https://u:p@x", "IngestionEndpoint"),
        (f"InstrumentationKey={KEY};IngestionEndpoint=https://x:port", "IngestionEndpoint"),
    ],
)
def test_bad_connection_strings_are_told_without_being_quoted(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as caught:
        AppInsightsConfig(type="azure_app_insights", connection_string=text)
    assert "connection_string: " in str(caught.value)
    assert KEY not in str(caught.value)
    assert "secret-text" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"connection_string": ""}, "connection_string: give it or connection_string_file"),
        ({"entra": True}, "entra: needs a credential"),
        ({"client_secret": "s", "tenant_id": "t"}, "client_id: client_secret needs"),
        ({"client_secret": "s", "client_id": "c"}, "tenant_id: client_secret needs"),
        ({"managed_identity": True, "federated_token_file": "/x"}, "federated_token_file is given too"),
        ({"authority": "login.example.com"}, "authority: not an http or https URL"),
        ({"cloud": "moon"}, "cloud"),
        ({"compression": "zip"}, "compression"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], problem: str) -> None:
    section = {"type": "azure_app_insights", "connection_string": KEY, **options}
    with pytest.raises((ValueError, msgspec.ValidationError), match=problem):
        msgspec.convert(section, AppInsightsConfig)


def test_a_string_that_only_the_environment_could_have_filled_in_is_refused_when_the_sink_is_made() -> None:
    config = AppInsightsConfig(type="azure_app_insights", connection_string="${NEVER_SET}")
    with pytest.raises(ConfigError, match="connection_string: no InstrumentationKey"):
        AppInsightsSink(config)


def test_secrets_are_not_printed(server: AppInsightsServer) -> None:
    text = repr(_config(server))
    assert KEY not in text
    assert "client's secret" not in text


def test_the_file_of_the_connection_string_is_read_anew_at_each_open(server: AppInsightsServer, tmp_path: Path) -> None:
    path = tmp_path / "string"
    path.write_text("nonsense\n")
    sink = AppInsightsSink(_config(server, connection_string="", connection_string_file=str(path)), now=now)
    with pytest.raises(ParkedError, match="connection_string_file: no InstrumentationKey"):
        sink.open()
    path.write_text(server.sink()["connection_string"] + "\n")
    sink.open()
    sink.write(make_batch(["x"]))
    sink.close()
    assert server.messages() == ["x"]


# What an item holds


def test_message_has_the_documented_form(server: AppInsightsServer, sink: AppInsightsSink) -> None:
    batch = make_batch(
        ["hello"], level="warn", attributes={"user_id": 42, "action": "login", "tags": ["a"], "yes": True}
    )
    sink.write(batch)
    (item,) = _items(server)
    assert item["name"] == "Microsoft.ApplicationInsights.Message"
    assert item["time"] == "2026-01-02T03:04:05.0000000Z"
    assert item["iKey"] == KEY
    assert item["tags"]["ai.cloud.role"] == "api"
    assert item["tags"]["ai.cloud.roleInstance"] == "host-1"
    assert item["tags"]["ai.internal.sdkVersion"].startswith("shipper:")
    assert item["data"]["baseType"] == "MessageData"
    data = item["data"]["baseData"]
    assert (data["ver"], data["message"], data["severityLevel"]) == (2, "hello", 2)
    properties = data["properties"]
    assert properties["id"] == batch.ids[0]
    assert properties["time_ns"] == str(START_NS)
    assert properties["user_id"] == "42"
    assert properties["action"] == "login"
    assert properties["tags"] == '["a"]'
    assert properties["yes"] == "true"
    assert properties["container.name"] == "api-1"
    request = server.requests[0]
    assert (request.path, request.headers["content-encoding"]) == ("/v2.1/track", "gzip")
    assert "authorization" not in request.headers


def test_without_compression_the_body_is_plain(server: AppInsightsServer) -> None:
    sink = _opened(server, compression="none")
    sink.write(make_batch(["a", "b"]))
    sink.close()
    assert "content-encoding" not in server.requests[0].headers
    assert len(json.loads(server.requests[0].body)) == 2


def test_severity_mapping() -> None:
    assert [severity_level(number) for number in (0, 1, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24)] == [
        1, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4,
    ]  # fmt: skip


def test_the_same_batch_gives_the_same_bytes(server: AppInsightsServer) -> None:
    batch = make_batch(["a", "", "x" * 100_000], attributes=[{"a": 1}, {}, {"b": "y" * 9_000}])
    for _ in range(2):
        sink = _opened(server)
        sink.write(batch)
        sink.close()
    half = len(server.requests) // 2
    assert [request.body for request in server.requests[:half]] == [request.body for request in server.requests[half:]]


def test_record_with_a_stack_is_an_exception(server: AppInsightsServer, sink: AppInsightsSink) -> None:
    stack = "TypeError: x is undefined\n    at f (/app/a.js:1:2)\n    at g (/app/b.js:3:4)"
    attributes = {"exception.type": "TypeError", "exception.message": "x is undefined", "exception.stacktrace": stack}
    batch = make_batch(["request failed"], level="error", attributes={**attributes, "user_id": 7})
    sink.write(batch)
    (item,) = _items(server)
    assert item["name"] == "Microsoft.ApplicationInsights.Exception"
    assert item["data"]["baseType"] == "ExceptionData"
    data = item["data"]["baseData"]
    assert data["severityLevel"] == 3
    assert data["exceptions"] == [
        {"typeName": "TypeError", "message": "x is undefined", "hasFullStack": True, "stack": stack}
    ]
    assert data["properties"]["message"] == "request failed"
    assert data["properties"]["user_id"] == "7"
    _same(_read(server), batch)


def test_stack_of_unknown_type_is_an_exception_too(server: AppInsightsServer, sink: AppInsightsSink) -> None:
    batch = make_batch(["boom"], attributes={"exception.stacktrace": "it broke\n  at x"})
    sink.write(batch)
    (exception,) = _items(server)[0]["data"]["baseData"]["exceptions"]
    assert (exception["typeName"], exception["message"]) == ("Error", "it broke")
    _same(_read(server), batch)


@pytest.mark.parametrize("stack", ["\n\nat x", " ", "\tat y\n", "E"])
def test_odd_stacks_are_taken(server: AppInsightsServer, sink: AppInsightsSink, stack: str) -> None:
    attributes = {"exception.type": " ", "exception.message": "", "exception.stacktrace": stack}
    batch = make_batch(["", "boom"], attributes=attributes)
    sink.write(batch)
    _same(_read(server), batch)


@pytest.mark.parametrize("size", [32_768, 32_769, 200_000])
def test_long_stack_is_marked_as_cut_and_read_back_whole(
    server: AppInsightsServer, sink: AppInsightsSink, size: int
) -> None:
    batch = make_batch(["boom"], attributes={"exception.type": "E", "exception.stacktrace": "s" * size})
    sink.write(batch)
    exception = _items(server, 0)[0]["data"]["baseData"]["exceptions"][0]
    assert exception["hasFullStack"] == (exception["stack"] == "s" * size)
    _same(_read(server), batch)


def test_records_that_an_option_names_are_events(server: AppInsightsServer) -> None:
    sink = _opened(server, event_attributes=["shop.event"])
    attributes: list[dict[str, Any]] = [{"shop.event": "Order placed", "n": 1}, {"shop.event": 7}, {"event.name": "x"}]
    batch = make_batch(["one", "two", "three"], attributes=[*attributes], level="error")
    sink.write(batch)
    kinds = {item["data"]["baseData"]["properties"]["id"]: item["data"] for item in _items(server)}
    event = kinds[batch.ids[0]]
    assert (event["baseType"], event["baseData"]["name"]) == ("EventData", "Order placed")
    assert event["baseData"]["properties"]["message"] == "one"
    assert [kinds[record]["baseType"] for record in batch.ids[1:]] == ["MessageData", "MessageData"]
    _same(_read(server), batch)
    sink.close()


@pytest.mark.parametrize(("size", "kind"), [(512, "EventData"), (513, "MessageData")])
def test_name_of_an_event_has_a_limit(server: AppInsightsServer, sink: AppInsightsSink, size: int, kind: str) -> None:
    batch = make_batch(["x"], attributes={"event.name": "n" * size})
    sink.write(batch)
    assert _items(server)[0]["data"]["baseType"] == kind
    _same(_read(server), batch)


def test_trace_and_span_are_the_operation(server: AppInsightsServer, sink: AppInsightsSink) -> None:
    attributes = [{"trace_id": "a" * 32, "span_id": "b" * 16}, {"trace_id": "c" * 129}]
    batch = make_batch(["one", "two"], attributes=attributes)
    sink.write(batch)
    tags = {item["data"]["baseData"]["message"]: item["tags"] for item in _items(server)}
    assert tags["one"]["ai.operation.id"] == "a" * 32
    assert tags["one"]["ai.operation.parentId"] == "b" * 16
    assert "ai.operation.id" not in tags["two"]
    _same(_read(server), batch)


def test_records_of_all_kinds_side_by_side_come_back(server: AppInsightsServer, sink: AppInsightsSink) -> None:
    kinds: list[dict[str, Any]] = [
        {}, {"user_id": 42, "tags": ["a"], "no": None, "b": 'say "hi"'}, {"id": 7, "message": "m", "shipper.1": {}},
        {"service.name": "own"}, {"host.name": "taken", "x": 1.5}, {"trace_id": "t" * 32, "spanId": 7}, {"": "no name"},
        {"traceId": "t" * 129, "trace_id": "short"}, {"exception.stacktrace": "E\n at x"}, {"n" * 151: 1},
        {"event.name": "e"}, {"long": "ü" * 8_193}, {"id": 1, "attribute.id": 2}, {"_MS.x": True}, {"half": "\ud83d\ude00"},
    ]  # fmt: skip
    attributes = [kinds[number * 7 % len(kinds)] for number in range(200)]
    messages = ["" if number % 31 == 0 else f"m{number}" for number in range(200)]
    resources = [make_resource("api" if number // 50 % 2 else f"worker-{number % 3}") for number in range(200)]
    batch = make_batch(messages, attributes=attributes, resource=resources)
    sink.write(batch)
    found = _read(server, oldest_first=True)
    assert [record.id for record in found] == batch.ids
    whole = [{name: "\U0001f600" if name == "half" else value for name, value in each.items()} for each in attributes]
    assert [record.attributes for record in found] == whole
    assert [record.message for record in found] == messages
    tags = {item["data"]["baseData"]["properties"]["id"]: item["tags"] for item in _items(server, 0)}
    operations = {"ai.operation.id": ["t" * 32], "ai.operation.parentId": []}
    for number, record_id in enumerate(batch.ids):
        if "spanId" in attributes[number] and record_id in tags:
            assert {
                name: [tags[record_id][name]] if name in tags[record_id] else [] for name in operations
            } == operations
        if "traceId" in attributes[number] and record_id in tags:
            assert tags[record_id]["ai.operation.id"] == "short"


# Nothing is cut


@pytest.mark.parametrize("letter", ["m", "ü", "\U0001f600", "\x01", '"'])
@pytest.mark.parametrize("size", [32_767, 32_768, 32_769, 65_000, 150_000])
def test_messages_around_every_limit_come_back_whole(
    server: AppInsightsServer, sink: AppInsightsSink, letter: str, size: int
) -> None:
    batch = make_batch([letter * (size // units(letter)), "after"])
    sink.write(batch)
    for request in range(len(server.requests)):
        _items(server, request)
    _same(_read(server), batch)
    assert server.messages() == batch.messages


def test_message_of_the_largest_size_is_not_spread(server: AppInsightsServer, sink: AppInsightsSink) -> None:
    sink.write(make_batch(["m" * 32_768]))
    (item,) = _items(server)
    assert item["data"]["baseData"]["message"] == "m" * 32_768
    assert "shipper.part" not in item["data"]["baseData"]["properties"]
    sink.write(make_batch(["m" * 32_769]))
    item, _ = _items(server)
    assert "cut here" in item["data"]["baseData"]["message"]
    assert item["data"]["baseData"]["properties"]["shipper.part"] == "1"


@pytest.mark.parametrize("letter", ["v", "ü", "\U0001f600", "\\"])
@pytest.mark.parametrize("size", [8_191, 8_192, 8_193, 30_000, 100_000])
def test_values_around_every_limit_come_back_whole(
    server: AppInsightsServer, sink: AppInsightsSink, letter: str, size: int
) -> None:
    value = letter * (size // units(letter))
    batch = make_batch(["x"], attributes={"long": value, "list": [value, 1], "short": "s"})
    sink.write(batch)
    _items(server, 0)
    _same(_read(server), batch)


def test_value_of_the_largest_size_stands_in_its_place(server: AppInsightsServer, sink: AppInsightsSink) -> None:
    sink.write(make_batch(["x"], attributes={"long": "v" * 8_192}))
    assert _items(server)[0]["data"]["baseData"]["properties"]["long"] == "v" * 8_192
    sink.write(make_batch(["x"], attributes={"long": "v" * 8_193}))
    properties = _items(server)[0]["data"]["baseData"]["properties"]
    assert "cut here" in properties["long"]
    assert json.loads(properties["shipper.1"] + properties["shipper.2"] + properties["shipper.3"]) == {
        "attributes": {"long": "v" * 8_193}
    }


@pytest.mark.parametrize("size", [149, 150, 151, 5_000])
def test_keys_around_the_limit_come_back(server: AppInsightsServer, sink: AppInsightsSink, size: int) -> None:
    batch = make_batch(["x"], attributes={"k" * size: "v", "other": 1})
    sink.write(batch)
    assert ("k" * size in _items(server)[0]["data"]["baseData"]["properties"]) == (size <= 150)
    _same(_read(server), batch)


def test_many_attributes_that_together_exceed_an_item(server: AppInsightsServer, sink: AppInsightsSink) -> None:
    many = {f"name.{number}": "v" * 50 for number in range(3_000)}
    large = {f"name.{number}": ["w" * 8_000] for number in range(12)}
    batch = make_batch(["many", "large", "m" * 40_000], attributes=[many, large, {**large, "trace_id": "t"}])
    sink.write(batch)
    for request in range(len(server.requests)):
        _items(server, request)
    _same(_read(server), batch)


def test_names_that_we_use_ourselves_get_another(server: AppInsightsServer, sink: AppInsightsSink) -> None:
    attributes = {
        "id": "theirs", "time_ns": 5, "message": "m", "shipper": {"a": 1}, "shipper.1": "x", "service.name": "own",
        "log.file.path": "/own", "attribute.id": "both", "_MS.x": 1, "shipper.part": None, "attribute.x": "y", "": "no name",
    }  # fmt: skip
    batch = make_batch(["x", "y"], attributes=[attributes, {"id": 1}])
    sink.write(batch)
    by_message = {
        item["data"]["baseData"]["message"]: item["data"]["baseData"]["properties"] for item in _items(server)
    }
    assert by_message["y"]["attribute.id"] == "1"
    assert by_message["y"]["id"] == batch.ids[1]
    _same(_read(server), batch)


def test_resources_of_every_kind_come_back(server: AppInsightsServer, sink: AppInsightsSink) -> None:
    resources = [
        Resource("files", {"log.file.path": "/x", "host.name": ""}),
        Resource("odd", {"custom": "c", "id": "7", "": "e", "k" * 200: "long", "service.name": "s"}),
        Resource("labels", {f"container.label.{n}": "v" * 300 for n in range(100)} | {"service.name": "many"}),
        Resource("large", {"service.name": "s" * 9_000}),
    ]
    batch = make_batch(["a", "b", "c", "d"], resource=resources, attributes={"custom": 1})
    sink.write(batch)
    _same(_read(server), batch)
    _same(_read(server, "service:many"), batch.select([2]))


def test_what_the_server_adds_is_not_taken_for_an_attribute(server: AppInsightsServer, sink: AppInsightsSink) -> None:
    batch = make_batch(["x"])
    sink.write(batch)
    server.rows[0]["Properties"]["_MS.ProcessedByMetricExtractors"] = "(Name:'Traces', Ver:'1.1')"
    _same(_read(server), batch)


def test_a_record_whose_part_is_missing_shows_where_it_is_cut(server: AppInsightsServer, sink: AppInsightsSink) -> None:
    batch = make_batch(["m" * 200_000])
    sink.write(batch)
    last = server.rows.pop()
    (record,) = _read(server)
    assert record.id == batch.ids[0]
    assert "cut here" in record.message
    server.rows = [last]
    assert _read(server) == []  # its beginning is missing: there is nothing to show


def test_requests_are_two_megabytes_at_most(server: AppInsightsServer, sink: AppInsightsSink) -> None:
    sink.write(make_batch(["m" * 2_500] * 2_000))
    sizes = [len(request.content()) for request in server.requests]
    assert max(sizes) <= 2_000_000
    assert len(sizes) == 4
    assert len(server.messages()) == 2_000


# Ages


def test_records_older_than_48_hours_are_refused_at_once(server: AppInsightsServer, sink: AppInsightsSink) -> None:
    edge = int(now() * 1e9) - 2 * DAY
    ages = [edge - 1, edge, edge + 1, int(now() * 1e9) + DAY]
    batch = Batch.concat([make_batch([str(number)], start_ns=time) for number, time in enumerate(ages)])
    ((index, error),) = _failures(sink, batch).items()
    assert index == 0
    assert isinstance(error, PermanentError)
    assert (error.certain, error.code) == (True, "103")
    assert "2 days, 0:00:00 old" in str(error)
    assert server.messages() == ["1", "2", "3"]


def test_when_all_are_too_old_nothing_is_sent(server: AppInsightsServer, sink: AppInsightsSink) -> None:
    failed = _failures(sink, make_batch(["a", "b"], start_ns=START_NS - 3 * DAY))
    assert [error.code for error in failed.values()] == ["103", "103"]
    assert server.requests == []


def test_time_that_no_column_holds_is_refused(server: AppInsightsServer, sink: AppInsightsSink) -> None:
    failed = _failures(sink, make_batch(["far", "b"], start_ns=2**63 - 1, step_ns=1))
    assert "2262" in str(failed[1])
    assert server.messages() == ["far"]


# Answers


def test_failures_are_told_by_index(server: AppInsightsServer, sink: AppInsightsSink) -> None:
    statuses = [0, 400, 401, 402, 403, 408, 429, 439, 500, 502, 503, 504, 413, 0]
    verdicts = {str(number): (status, f"because {number}") for number, status in enumerate(statuses) if status}
    server.verdict = lambda item: verdicts.get(item["data"]["baseData"]["message"])
    failed = _failures(sink, make_batch([str(number) for number in range(len(statuses))]))
    kinds = {1: PermanentError, 2: ParkedError, 3: ParkedError, 4: ParkedError, 5: RetryableError, 6: RetryableError,
             7: ParkedError, 8: RetryableError, 9: RetryableError, 10: RetryableError, 11: RetryableError,
             12: PermanentError}  # fmt: skip
    assert {index: type(error) for index, error in failed.items()} == kinds
    assert all(f"because {index}" in str(error) for index, error in failed.items())
    assert sorted(server.messages()) == ["0", "13"]


def test_indexes_hold_when_records_go_out_in_another_order(server: AppInsightsServer, sink: AppInsightsSink) -> None:
    """Records of a kind go together, records of several items by themselves: an index is the item's, not the record's."""
    bad = {"3", "7", "11"}
    server.verdict = lambda item: (400, "bad") if item["data"]["baseData"]["properties"].get("n") in bad else None
    attributes = [{"n": str(n)} if n % 2 else {"n": str(n), "other": n} for n in range(13)]
    messages = ["m" * (100_000 if n in {4, 7} else 10) for n in range(13)]
    failed = _failures(sink, make_batch(messages, attributes=attributes, level=["info", "error"] * 6 + ["info"]))
    assert sorted(failed) == [3, 7, 11]


def test_400_tells_indexes_too(server: AppInsightsServer, sink: AppInsightsSink) -> None:
    server.verdict = lambda _: (400, "bad")
    failed = _failures(sink, make_batch(["a", "b"]))
    assert [type(error) for error in failed.values()] == [PermanentError] * 2


def test_records_that_the_server_finds_too_old_are_refused_for_certain(
    server: AppInsightsServer, sink: AppInsightsSink
) -> None:
    server.now = lambda: now() + 47.5 * 3_600
    error = _failures(sink, make_batch(["a", "b"], step_ns=HOUR))[0]
    assert isinstance(error, PermanentError)
    assert (error.certain, error.code) == (True, "103")
    assert server.messages() == ["b"]


def test_what_sampling_leaves_out_is_dropped_not_retried(server: AppInsightsServer, sink: AppInsightsSink) -> None:
    server.sampled = lambda item: item["data"]["baseData"]["message"] == "b"
    failed = _failures(sink, make_batch(["a", "b", "c"]))
    assert [(index, type(error), error.code) for index, error in failed.items()] == [(1, DroppedError, "sampled_out")]
    assert server.messages() == ["a", "c"]
    server.sampled = lambda _: True
    assert {type(error) for error in _failures(sink, make_batch(["a", "b"])).values()} == {DroppedError}


def test_wrong_key_parks(server: AppInsightsServer) -> None:
    string = server.sink()["connection_string"].replace(KEY, "0" * 8 + KEY[8:])
    sink = _opened(server, connection_string=string)
    failed = _failures(sink, make_batch(["a", "b"]))
    assert {type(error) for error in failed.values()} == {ParkedError}
    assert "copy the connection string anew" in str(failed[0])
    sink.close()


@pytest.mark.parametrize("status", [402, 439])
def test_used_up_quota_parks_until_it_resets(server: AppInsightsServer, sink: AppInsightsSink, status: int) -> None:
    server.quota = status
    with pytest.raises(ParkedError, match="daily quota is used up") as caught:
        sink.write(make_batch(["a"]))
    midnight = 86_400 - now() % 86_400
    assert (caught.value.code, caught.value.retry_after) == (str(status), pytest.approx(midnight, abs=1))
    assert not caught.value.maybe_taken
    server.quota = 0
    sink.open()
    sink.write(make_batch(["a"]))
    assert server.messages() == ["a"]


@pytest.mark.parametrize(
    ("status", "kind", "unknown"),
    [
        (401, ParkedError, False), (403, ParkedError, False), (404, ParkedError, False), (408, RetryableError, True),
        (429, RetryableError, False), (500, RetryableError, True), (502, RetryableError, True),
        (503, RetryableError, False), (504, RetryableError, True), (418, RetryableError, False),
        (413, PermanentError, False), (204, ParkedError, False),
    ],
)  # fmt: skip
def test_answers_for_the_whole_request(
    server: AppInsightsServer, sink: AppInsightsSink, status: int, kind: type[SinkError], unknown: bool
) -> None:
    server.script(Reply(status, b"why", {"Retry-After": "7"}))
    with pytest.raises(kind) as caught:
        sink.write(make_batch(["a", "b"]))
    assert type(caught.value) is kind
    assert caught.value.code == str(status)
    if isinstance(caught.value, RetryableError):
        assert caught.value.maybe_taken == unknown
    if status in {429, 503}:
        assert caught.value.retry_after == 7  # type: ignore[attr-defined]


def test_nothing_more_is_sent_once_the_server_is_busy(server: AppInsightsServer, sink: AppInsightsSink) -> None:
    batch = make_batch([f"{n:04} " + "x" * 2_000 for n in range(3_000)])
    server.verdict = lambda item: (429, "busy") if item["data"]["baseData"]["message"] >= "0900" else None
    failed = _failures(sink, batch)
    assert sorted(failed) == list(range(900, 3_000))
    assert len(server.requests) == 2  # of four


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (b"<html>login</html>", ParkedError, "does not mean that anything was stored"),
        (b'{"itemsReceived":2,"itemsAccepted":1,"errors":[]}', RetryableError, "accounts for 1 of 2 items"),
        (b'{"itemsReceived":2,"itemsAccepted":1,"errors":[{"index":2,"statusCode":400}]}', RetryableError, "not sent"),
    ],
)
def test_answer_that_makes_no_sense_leaves_the_outcome_open(
    server: AppInsightsServer, sink: AppInsightsSink, body: bytes, kind: type[SinkError], words: str
) -> None:
    server.script(Reply(200, body))
    with pytest.raises(kind, match=words):
        sink.write(make_batch(["a", "b"]))


def test_200_with_errors_is_partial_too(server: AppInsightsServer, sink: AppInsightsSink) -> None:
    body = b'{"itemsReceived":2,"itemsAccepted":1,"errors":[{"index":1,"statusCode":500,"message":"x"}]}'
    server.script(Reply(200, body))
    assert list(_failures(sink, make_batch(["a", "b"]))) == [1]


def test_lost_answer_may_double_and_the_reader_shows_one(server: AppInsightsServer) -> None:
    with FaultProxy(("127.0.0.1", server.port)) as proxy:
        string = f"InstrumentationKey={KEY};IngestionEndpoint=http://127.0.0.1:{proxy.port}"
        sink = _opened(server, connection_string=string)
        proxy.cut_when(lambda block: b"POST" in block)
        batch = make_batch(["a", "b" * 100_000])
        with pytest.raises(SinkError) as caught:
            sink.write(batch)
        assert isinstance(caught.value, RetryableError)
        assert caught.value.maybe_taken
        sink.open()
        sink.write(batch)
        sink.close()
    assert server.messages().count("a") == 2
    _same(_read(server), batch)


# Redirects


def test_redirect_to_the_same_host_is_followed_and_remembered(server: AppInsightsServer, sink: AppInsightsSink) -> None:
    with AppInsightsServer(now=now) as other, FaultProxy(("127.0.0.1", other.port)) as proxy:
        server.moved_to = f"http://127.0.0.1:{proxy.port}/v2.1/track"
        sink.write(make_batch(["a"]))
        sink.open()
        sink.write(make_batch(["b"], start_ns=START_NS + 1))
        assert other.messages() == ["a", "b"]
        assert len(server.requests) == 1
        server.moved_to = ""
        proxy.switch("reset")
        with pytest.raises(RetryableError):  # gone: back to the one that is configured
            sink.write(make_batch(["c"]))
        sink.write(make_batch(["c"]))
    assert server.messages() == ["c"]


class _Anybody(HttpServer):
    def answer(self, request: Request) -> Reply:
        return Reply(200)


@pytest.mark.parametrize("status", [307, 308])
def test_redirect_to_another_host_gets_nothing(server: AppInsightsServer, status: int) -> None:
    sink = _opened(server, entra=True)
    with _Anybody() as thief:
        server.script(Reply(status, headers={"Location": f"http://localhost:{thief.port}/v2.1/track"}))
        with pytest.raises(ParkedError, match="another host"):
            sink.write(make_batch(["a"]))
        assert thief.requests == []
    sink.close()


@pytest.mark.parametrize(
    ("base", "target", "safe"),
    [
        ("https://a.in.applicationinsights.azure.com", "https://b.in.applicationinsights.azure.com/v2.1/track", True),
        ("https://dc.services.visualstudio.com", "https://x.services.visualstudio.com/v2.1/track", True),
        ("https://dc.services.visualstudio.com", "https://x.in.applicationinsights.azure.com/v2.1/track", False),
        ("https://a.in.applicationinsights.azure.com", "https://applicationinsights.azure.com.evil.com/", False),
        ("https://a.in.applicationinsights.azure.com", "https://evilapplicationinsights.azure.com/", False),
        ("https://a.in.applicationinsights.azure.com", "http://b.in.applicationinsights.azure.com/", False),
        ("https://a.in.applicationinsights.azure.com", "https://b.in.applicationinsights.azure.com:8443/", False),
        ("https://a.in.applicationinsights.azure.com", "https://u:p@b.in.applicationinsights.azure.com/", False),
        ("https://own.example.com", "http://own.example.com/v2.1/track", False),
        ("https://own.example.com", "https://own.example.com/elsewhere", True),
        ("http://own.example.com", "https://own.example.com/v2.1/track", True),
        ("https://own.example.com", "https://own.example.com:bad/", False),
        ("https://own.example.com", "https:///nowhere", False),
    ],
)
def test_which_redirects_are_safe(base: str, target: str, safe: bool) -> None:
    from sinks.azure_app_insights.sink import _safe

    assert _safe(base, target) == safe


def test_redirect_in_a_circle_ends(server: AppInsightsServer, sink: AppInsightsSink) -> None:
    server.moved_to = f"{server.url}/v2.1/track"
    with pytest.raises(ParkedError, match="redirected more than"):
        sink.write(make_batch(["a"]))
    assert len(server.requests) < 10


# Entra


def test_entra_token_goes_with_the_telemetry(server: AppInsightsServer) -> None:
    server.entra = True
    sink = _opened(server, entra=True)
    sink.write(make_batch(["a"]))
    sink.write(make_batch(["b"], start_ns=START_NS + 1))
    sink.close()
    assert server.messages() == ["a", "b"]
    (asked,) = server.token_requests
    assert b"scope=https%3A%2F%2Fmonitor.azure.com%2F%2F.default" in asked.body


def test_without_a_token_a_resource_that_wants_one_parks(server: AppInsightsServer, sink: AppInsightsSink) -> None:
    server.entra = True
    with pytest.raises(ParkedError, match="401"):
        sink.write(make_batch(["a"]))


# Reading


def test_reader_pages_by_key_and_hides_doubles(server: AppInsightsServer, sink: AppInsightsSink) -> None:
    batch = make_batch([f"line {n}" for n in range(2_500)], step_ns=1)
    sink.write(batch)
    sink.write(batch)
    sink.write(make_batch(["m" * 1_500_000], start_ns=START_NS + 10**9))
    for oldest_first in (False, True):
        found = _read(server, oldest_first=oldest_first)
        assert len(found) == 2_501
        times = [record.time_ns for record in found]
        assert times == sorted(times, reverse=not oldest_first)
    assert len(server.queries) > 6
    _same([record for record in found if len(record.message) < 100], batch)


def test_one_record_sent_more_often_than_a_page_holds(server: AppInsightsServer, sink: AppInsightsSink) -> None:
    batch = make_batch(["again"])
    for _ in range(3):
        sink.write(batch)
    server.rows *= 200
    assert [record.message for record in _read(server)] == ["again"]


@pytest.mark.parametrize(
    "condition",
    [
        "level:error", "level>=warn", "level<=debug", "-level:info", 'level:trace OR "line 3"', "service:(api worker)",
        "service:api", "-service:api", '"line 1"', "LINE", 'say \\"hi\\"', "user_id:3", "user_id>=5", "long:*", "needle",
        "event.name:*", "host:host-1 level:info", '"with \\"quotes\\" and \\\\"', "exception.type:E",
    ],
)  # fmt: skip
def test_search_finds_what_the_condition_says(server: AppInsightsServer, sink: AppInsightsSink, condition: str) -> None:
    condition = condition if condition != 'say \\"hi\\"' else '"say \\"hi\\""'
    levels = ["trace", "debug", "info", "warn", "error", "fatal"] * 4
    messages = [f"line {n}" for n in range(20)] + ['say "hi"', 'with "quotes" and \\', "m" * 40_000 + "needle", "last"]
    attributes: list[dict[str, Any]] = [{"user_id": n} for n in range(24)]
    attributes[3] |= {"event.name": "e"}
    attributes[4] |= {"exception.type": "E", "exception.stacktrace": "E: x\n  at y"}
    attributes[5] |= {"long": "v" * 20_000}
    resources = [make_resource("api" if n % 2 else "worker") for n in range(24)]
    batch = make_batch(messages, level=levels, attributes=attributes, resource=resources)
    sink.write(batch)
    wanted = compile_condition(condition)
    _same(_read(server, condition), batch.select(wanted.indexes(batch)))


def test_search_by_id_and_time_and_limit(server: AppInsightsServer, sink: AppInsightsSink) -> None:
    batch = make_batch([str(n) for n in range(10)], step_ns=1)
    sink.write(batch)
    assert [record.message for record in _read(server, f"id:{batch.ids[4]}")] == ["4"]
    assert f'RecordId in ("{batch.ids[4]}")' in server.queries[-1]
    assert [r.message for r in _read(server, since=START_NS + 2, until=START_NS + 4)] == ["3", "2"]
    assert [r.message for r in _read(server, limit=2)] == ["9", "8"]
    assert [r.message for r in _read(server, limit=2, oldest_first=True)] == ["0", "1"]
    assert _read(server, limit=0) == []


def test_telemetry_of_others_is_passed_by(server: AppInsightsServer, sink: AppInsightsSink) -> None:
    sink.write(make_batch(["ours"]))
    server.rows += [
        {"Type": "AppTraces", "Message": "theirs", "Properties": {}},
        {"Type": "AppTraces", "Message": "theirs", "Properties": {"id": "7", "time_ns": "1767323045000000000"}},
    ]
    assert [record.message for record in _read(server)] == ["ours"]


def test_reading_without_a_workspace_says_what_is_missing(server: AppInsightsServer) -> None:
    reader = AppInsightsReader(_config(server, workspace_id=""))
    with pytest.raises(ParkedError, match="workspace_id is not set"):
        list(reader.read(Query()))
    reader.close()


def test_reading_needs_a_credential(server: AppInsightsServer) -> None:
    reader = AppInsightsReader(_config(server, client_secret=""))
    with pytest.raises(ParkedError, match="no credential"):
        list(reader.read(Query()))
    reader.close()


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (Reply(429, b"", {"Retry-After": "9"}), RetryableError, "429"),
        (Reply(504), RetryableError, "504"),
        (Reply(403, b"InsufficientAccessError"), ParkedError, "Log Analytics Data Reader"),
        (Reply(400, b"SemanticError"), ParkedError, "lack a column"),
        (Reply(200, b"<html>"), RetryableError, "not an answer of the query API"),
        (
            Reply(200, b'{"tables":[{"columns":[],"rows":[]}],"error":{"code":"PartialError"}}'),
            RetryableError,
            "in full",
        ),
        (Reply(200, b'{"tables":[]}'), RetryableError, "in full"),
    ],
)
def test_errors_of_the_query_api(server: AppInsightsServer, reply: Reply, kind: type[SinkError], words: str) -> None:
    server.script_queries(reply, reply, reply)
    with pytest.raises(kind, match=words):
        _read(server)


# Looking


def test_healthcheck_tells_what_is_wrong(server: AppInsightsServer, sink: AppInsightsSink) -> None:
    sink.healthcheck()
    assert server.count == 0
    server.quota = 402
    with pytest.raises(ParkedError, match="quota"):
        sink.healthcheck()
    server.quota = 0
    server.script(Reply(404, b"no"))
    with pytest.raises(ParkedError, match="not the resource's own"):
        sink.healthcheck()


def test_examine_tells_each_thing_apart(server: AppInsightsServer, sink: AppInsightsSink) -> None:
    found = {finding.what: finding.verdict for finding in sink.examine()}
    assert found == {
        "reachable": "ok", "tls": "warn", "login": "ok", "clock": "ok", "limits": "ok", "reading": "ok",
    }  # fmt: skip
    server.quota = 439
    assert {finding.what: finding.verdict for finding in sink.examine()}["limits"] == "fail"
    server.quota, server.entra = 0, True
    assert {finding.what: finding.verdict for finding in sink.examine()}["login"] == "fail"
    server.script_queries(Reply(403))
    assert {finding.what: finding.verdict for finding in sink.examine()}["reading"] == "warn"
    assert server.count == 0


def test_examine_with_an_unreadable_connection_string(server: AppInsightsServer, tmp_path: Path) -> None:
    config = _config(server, connection_string="", connection_string_file=str(tmp_path / "missing"))
    (finding,) = AppInsightsSink(config).examine()
    assert (finding.what, finding.verdict) == ("login", "fail")


def test_examine_of_nobody(server: AppInsightsServer) -> None:
    sink = _opened(
        server, workspace_id="", connection_string=f"InstrumentationKey={KEY};IngestionEndpoint=http://127.0.0.1:1"
    )
    (finding,) = sink.examine()
    assert (finding.what, finding.verdict) == ("reachable", "fail")
    sink.close()
