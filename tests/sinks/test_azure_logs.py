"""The azure_logs sink, its credentials and its reader, against the stand-in."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import msgspec
import pytest

from shipper.errors import ParkedError, PartialError, PermanentError, RetryableError, SinkError
from shipper.reader import Query
from shipper.record import Batch, Record, Resource
from shipper.routing.condition import compile_condition
from shipper.sink import Sink
from shipper.testing.batches import START_NS, make_batch, make_resource
from shipper.testing.http_server import Reply
from shipper.testing.proxy import FaultProxy
from shipper.testing.sink_contract import SinkContract
from sinks._azure import BETWEEN, CLOUDS, EARLY, Columns, Credential, Requests, units
from sinks.azure_logs import AzureLogsConfig, AzureLogsReader, AzureLogsSink
from sinks.azure_logs.encode import Encoder
from sinks.azure_logs.reader import dialect
from sinks.azure_logs.sink import REQUEST
from support.azure_logs_server import CALL, COLUMNS, FIELD, RULE, STREAM, AzureLogsServer
from support.azure_server import ASSERTION, CLIENT, TENANT, WORKSPACE

TOKEN = f"/{TENANT}/oauth2/v2.0/token"


class Time:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.seconds = START_NS / 1e9 + 3_600

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def now() -> Time:
    return Time()


@pytest.fixture
def server(now: Time) -> Iterator[AzureLogsServer]:
    with AzureLogsServer(now=now) as server:
        yield server


@pytest.fixture
def sink(server: AzureLogsServer, now: Time) -> Iterator[AzureLogsSink]:
    sink = _opened(server, now)
    yield sink
    sink.close()


def _config(server: AzureLogsServer, **options: Any) -> AzureLogsConfig:
    return AzureLogsConfig(**server.sink(**options))


def _opened(server: AzureLogsServer, now: Time, **options: Any) -> AzureLogsSink:
    sink = AzureLogsSink(_config(server, **options), now=now)
    sink.open()
    return sink


def _read(server: AzureLogsServer, condition: str = "", **query: Any) -> list[Record]:
    reader = AzureLogsReader(_config(server))
    try:
        return list(reader.read(Query(condition=compile_condition(condition) if condition else None, **query)))
    finally:
        reader.close()


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


def _rows(server: AzureLogsServer, request: int = -1) -> list[dict[str, Any]]:
    """The rows of a request, each field checked against the limit in every way of counting."""
    content = server.requests[request].content()
    assert len(content) <= REQUEST < CALL
    rows = msgspec.json.decode(content, type=list[dict[str, Any]])
    for row in rows:
        assert row.keys() <= COLUMNS.keys()
        for value in row.values():
            text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
            assert len(text.encode()) <= FIELD
            assert 2 * units(text) <= FIELD
    return rows


class TestAzureLogs(SinkContract):
    example = Path("config/examples/azure_logs.yaml")

    @pytest.fixture(autouse=True)
    def _place(self, server: AzureLogsServer, now: Time) -> None:
        self.server, self.now = server, now

    def make_sink(self, tmp_path: Path) -> Sink:
        return AzureLogsSink(_config(self.server), now=self.now)

    def read_back(self, sink: Sink) -> list[Record]:
        return _read(self.server, oldest_first=True)

    def order_key(self, record: Record) -> Any:
        return record.time_ns, record.id


# Configuration


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"endpoint": "shipper.ingest.monitor.azure.com"}, "endpoint: not an http or https URL"),
        ({"rule_id": "my-rule"}, "rule_id: not an immutable id"),
        ({"stream": "Shipper_CL"}, "stream: a stream of the rule is named Custom-"),
        ({"table": "Shipper CL"}, "table: not a table's name"),
        ({"client_secret": ""}, "client_secret_file: the API takes Entra tokens only"),
        ({"managed_identity": True}, "client_secret is given too"),
        ({"query_endpoint": "x"}, "query_endpoint: not an http or https URL"),
        ({"timeout": "0s"}, "timeout: must be more than 0"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    server: AzureLogsServer, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        _config(server, **options)


@pytest.mark.parametrize("cloud", ["public", "china", "us_gov"])
def test_each_cloud_has_its_own_addresses(cloud: str) -> None:
    config = AzureLogsConfig(
        type="azure_logs", endpoint="https://x", rule_id=RULE, cloud=cloud, managed_identity=True, client_id="c"
    )
    assert config.addresses == CLOUDS[cloud]
    addresses = [CLOUDS[cloud].authority, CLOUDS[cloud].monitor, CLOUDS[cloud].query]
    assert all(address.startswith("https://") for address in addresses)
    assert AzureLogsSink(config)._credential._scope == f"{CLOUDS[cloud].monitor}/.default"
    own = msgspec.structs.replace(config, authority="https://login.example.com")
    assert own.addresses.authority == "https://login.example.com"


# Rows and requests


def test_row_has_the_documented_columns(server: AzureLogsServer, sink: AzureLogsSink) -> None:
    batch = make_batch(["hello"], level="warn", attributes={"user_id": 42, "nested": {"a": [1]}})
    sink.write(batch)
    (row,) = _rows(server)
    assert row == {
        "TimeGenerated": "2026-01-02T03:04:05.0000000Z",
        "EventTime": "2026-01-02T03:04:05.0000000Z",
        "TimeNs": str(START_NS),
        "RecordId": batch.ids[0],
        "Level": "warn",
        "Severity": 13,
        "Message": "hello",
        "Attributes": {"user_id": 42, "nested": {"a": [1]}},
        "Service": "api",
        "Container": "api-1",
        "Stream": "stdout",
        "Host": "host-1",
        "Source": "docker",
        "Resource": {"container.id": batch.resources[0].attributes["container.id"]},
    }
    (request,) = server.requests
    assert request.path == f"/dataCollectionRules/{RULE}/streams/{STREAM}"
    assert request.query == {"api-version": "2023-01-01"}
    assert request.headers["content-encoding"] == "gzip"
    assert request.headers["content-type"] == "application/json"


def test_without_compression_the_body_is_plain(server: AzureLogsServer, now: Time) -> None:
    sink = _opened(server, now, compression="none")
    sink.write(make_batch(["a", "b"]))
    sink.close()
    assert "content-encoding" not in server.requests[0].headers
    assert len(json.loads(server.requests[0].body)) == 2


def test_the_same_batch_gives_the_same_bytes(server: AzureLogsServer, now: Time) -> None:
    batch = make_batch(["a", "x" * 200_000, "b"])
    for _ in range(2):
        sink = _opened(server, now)
        sink.write(batch)
        sink.close()
    half = len(server.requests) // 2
    assert [request.body for request in server.requests[:half]] == [request.body for request in server.requests[half:]]


def test_old_and_future_times_come_back_though_the_server_replaces_them(
    server: AzureLogsServer, sink: AzureLogsSink
) -> None:
    day = 86_400 * 10**9
    times = [1, START_NS - 100 * day, START_NS + 100 * day, 2**63 - 1]
    batch = Batch.concat([make_batch([str(number)], start_ns=time) for number, time in enumerate(times)])
    sink.write(batch)
    assert all(row["TimeGenerated"] != row["EventTime"] for row in server.rows)
    _same(_read(server), batch)
    assert [r.message for r in _read(server, since=START_NS + 99 * day, until=START_NS + 101 * day)] == ["2"]
    assert [r.message for r in _read(server, until=START_NS)] == ["1", "0"]


def test_time_that_no_column_holds_is_refused(server: AzureLogsServer, sink: AzureLogsSink) -> None:
    with pytest.raises(PartialError) as caught:
        sink.write(make_batch(["far", "b"], start_ns=2**63 - 1, step_ns=1))
    error = caught.value.failed[1]
    assert isinstance(error, PermanentError)
    assert error.certain
    assert server.messages() == ["far"]


@pytest.mark.parametrize("gzip", [False, True])
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 500])
@pytest.mark.parametrize("over", [-1, 0, 1])
def test_requests_are_cut_at_the_real_bytes_of_the_body(count: int, over: int, *, together: bool, gzip: bool) -> None:
    # Bodies of exactly the limit, one byte below and one above: brackets and what stands between rows counted.
    room = 100_000 + over - 2 - len(BETWEEN) * (count - 1)
    rows = [b"1" * (room // count)] * (count - 1)
    rows.append(b"2" * (room - sum(map(len, rows))))
    sent: list[tuple[bytes, list[int]]] = []
    requests = Requests(100_000, gzip=gzip, send=lambda body, records: sent.append((body, records)))
    for record, row in enumerate(rows):
        requests.add(BETWEEN + row, [record])
    if together:
        sent.clear()
        requests = Requests(100_000, gzip=gzip, send=lambda body, records: sent.append((body, records)))
        requests.add(b"".join(BETWEEN + row for row in rows), range(count))
    requests.flush()
    requests.flush()
    assert len(sent) == (2 if over > 0 and count > 1 else 1)
    assert [record for _, records in sent for record in records] == list(range(count))
    bodies = [zlib.decompress(body, 31) if gzip else body for body, _ in sent]
    assert all(len(body) <= 100_000 for body in bodies if count > 1)
    found = [(body[1:-1].split(BETWEEN), body[:1] + body[-1:]) for body in bodies]
    assert [row for each, _ in found for row in each] == rows
    assert {brackets for _, brackets in found} == {b"[]"}


def test_no_request_is_larger_than_a_megabyte(server: AzureLogsServer, sink: AzureLogsSink) -> None:
    batch = make_batch([f"{number}" + "ü" * (number % 7_000) for number in range(4_000)])
    sink.write(batch)
    for request in range(len(server.requests)):
        assert len(server.requests[request].body) <= CALL
        _rows(server, request)
    assert len(server.requests) < 60
    assert server.messages() == batch.messages


# Nothing is cut


@pytest.mark.parametrize("letter", ["m", "ü", "日", "\U0001f600", "\x01", '"'])
@pytest.mark.parametrize("size", [15_999, 16_001, 21_333, 21_334, 31_999, 32_000, 32_001, 65_537, 2_000_000])
def test_messages_around_every_limit_come_back_whole(
    server: AzureLogsServer, sink: AzureLogsSink, letter: str, size: int
) -> None:
    batch = make_batch([letter * (size // units(letter)), "after"])
    sink.write(batch)
    for request in range(len(server.requests)):
        _rows(server, request)
    _same(_read(server), batch)
    assert server.messages() == batch.messages


def test_message_of_the_largest_size_is_not_spread(server: AzureLogsServer, sink: AzureLogsSink) -> None:
    sink.write(make_batch(["m" * 32_000]))
    (row,) = _rows(server)
    assert row["Message"] == "m" * 32_000
    assert "Part" not in row
    sink.write(make_batch(["m" * 32_001]))
    rows = _rows(server)
    assert "cut here" in rows[0]["Message"]
    assert [(row["Part"], row["Parts"]) for row in rows] == [(1, 3), (2, 3), (3, 3)]
    assert json.loads("".join(row["Rest"] for row in rows)) == {"message": "m" * 32_001}


@pytest.mark.parametrize("letter", ["v", "日", "\U0001f600", "\\"])
@pytest.mark.parametrize("size", [15_000, 31_900, 32_100, 70_000])
def test_attributes_around_the_limit_come_back_whole(
    server: AzureLogsServer, sink: AzureLogsSink, letter: str, size: int
) -> None:
    attributes = {"long": letter * (size // units(letter)), "list": [letter * 1_000, 1], "short": "s"}
    batch = make_batch(["x", "y"], attributes=[attributes, {}])
    sink.write(batch)
    for request in range(len(server.requests)):
        _rows(server, request)
    stored = next(row for row in server.rows if row["RecordId"] == batch.ids[0] and row["Part"] in {None, 1})
    assert stored["Attributes"]["short"] == "s"
    _same(_read(server), batch)


def test_many_small_attributes_that_together_exceed_a_field(server: AzureLogsServer, sink: AzureLogsSink) -> None:
    batch = make_batch(["x"], attributes={f"name.{number}": number for number in range(10_000)})
    sink.write(batch)
    _rows(server)
    _same(_read(server), batch)


def test_integers_beyond_64_bits_come_back_exactly(server: AzureLogsServer, sink: AzureLogsSink) -> None:
    attributes: list[dict[str, Any]] = [
        {"n": 2**63}, {"n": -(2**63) - 1}, {"n": [{"deep": 10**40}], "m": 1}, {"n": 2**63 - 1}, {"n": "9" * 30}, {},
    ]  # fmt: skip
    batch = make_batch(["a", "b", "c", "d", "e", "f"], attributes=attributes)
    sink.write(batch)
    _same(_read(server), batch)
    assert sum(1 for row in server.rows if row["Part"]) == 3


def test_resources_of_every_kind_come_back(server: AzureLogsServer, sink: AzureLogsSink) -> None:
    resources = [
        Resource("files", {"log.file.path": "/x", "host.name": ""}),
        Resource("odd", {"custom": "c", "": "e", "k" * 200: "long"}),
        Resource("labels", {f"container.label.{n}": "v" * 300 for n in range(200)} | {"service.name": "many"}),
        Resource("large", {"service.name": "s" * 70_000}),
    ]
    batch = make_batch(["a", "b", "c", "d"], resource=resources)
    sink.write(batch)
    _rows(server)
    _same(_read(server), batch)
    _same(_read(server, "service:many"), batch.select([2]))


def test_tails_of_resources_are_forgotten_when_there_are_too_many() -> None:
    encoder = Encoder()
    for start in range(0, 10_500, 500):
        batch = make_batch(["x"] * 500, resource=[make_resource(f"s{start + n}") for n in range(500)])
        assert [list(records) for _, records in encoder.encode(Columns.of(batch, 0, 500, range(500))).texts] == [
            list(range(500))
        ]
    assert len(encoder._resource_json) <= 10_500


def test_a_record_whose_part_is_missing_shows_where_it_is_cut(server: AzureLogsServer, sink: AzureLogsSink) -> None:
    batch = make_batch(["m" * 200_000])
    sink.write(batch)
    last = server.rows.pop()
    (record,) = _read(server)
    assert "cut here" in record.message
    server.rows = [last]
    assert _read(server) == []


# Answers


@pytest.mark.parametrize(
    ("status", "kind", "unknown"),
    [
        (408, RetryableError, True), (413, PermanentError, False), (415, PermanentError, False),
        (429, RetryableError, False), (500, RetryableError, True), (502, RetryableError, True),
        (503, RetryableError, False), (504, RetryableError, True), (200, ParkedError, False), (301, ParkedError, False),
        (403, ParkedError, False), (401, ParkedError, False),
    ],
)  # fmt: skip
def test_answers(
    server: AzureLogsServer, sink: AzureLogsSink, status: int, kind: type[SinkError], unknown: bool
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


def test_missing_role_parks_and_says_that_it_takes_time(server: AzureLogsServer, sink: AzureLogsSink) -> None:
    server.granted = False
    with pytest.raises(
        ParkedError, match="Monitoring Metrics Publisher on the data collection rule; it takes up to half"
    ):
        sink.write(make_batch(["a"]))
    server.granted = True
    sink.write(make_batch(["a"]))
    assert server.messages() == ["a"]


@pytest.mark.parametrize(
    ("options", "words"),
    [({"rule_id": "dcr-other"}, "check endpoint, rule_id dcr-other"), ({"stream": "Custom-Other"}, "InvalidStream")],
)
def test_wrong_rule_or_stream_parks(server: AzureLogsServer, now: Time, options: dict[str, Any], words: str) -> None:
    sink = _opened(server, now, **options)
    with pytest.raises(ParkedError, match=words):
        sink.write(make_batch(["a", "b"]))
    sink.close()


@pytest.mark.parametrize("status", [400, 404])
def test_400_and_404_are_about_the_rows_when_a_request_without_rows_is_taken(
    server: AzureLogsServer, sink: AzureLogsSink, status: int
) -> None:
    server.script(Reply(status, b"too large, or what"))
    with pytest.raises(PermanentError, match="a request without rows is taken") as caught:
        sink.write(make_batch(["a", "b"]))
    assert (caught.value.code, caught.value.certain) == (str(status), False)
    assert server.requests[-1].content() == b"[]"


def test_404_whose_probe_finds_the_server_away_is_tried_again(server: AzureLogsServer, sink: AzureLogsSink) -> None:
    server.script(Reply(404), Reply(503))
    with pytest.raises(RetryableError, match="503"):
        sink.write(make_batch(["a", "b"]))


def test_failure_of_a_later_request_names_its_records_only(server: AzureLogsServer, sink: AzureLogsSink) -> None:
    batch = make_batch([f"{number} " + "m" * 3_000 for number in range(1_000)])
    server.script(Reply(204), Reply(413), Reply(429))
    with pytest.raises(PartialError) as caught:
        sink.write(batch)
    ((refused, error),) = caught.value.together
    assert isinstance(error, PermanentError)
    first = refused[0]
    assert first > 0
    assert list(refused) == list(range(first, refused[-1] + 1))
    assert sorted(caught.value.failed) == list(range(refused[-1] + 1, 1_000))
    assert len(server.requests) == 3  # nothing more once the server is busy


def test_refused_record_of_several_rows_is_refused_alone(server: AzureLogsServer, sink: AzureLogsSink) -> None:
    server.script(Reply(204), Reply(413))
    with pytest.raises(PartialError) as caught:
        sink.write(make_batch(["a", "m" * 100_000, "b"]))
    assert list(caught.value.failed) == [1]
    assert caught.value.together == ()


def test_lost_answer_may_double_and_the_reader_shows_one(server: AzureLogsServer, now: Time) -> None:
    with FaultProxy(("127.0.0.1", server.port)) as proxy:
        sink = _opened(server, now, endpoint=f"http://127.0.0.1:{proxy.port}")
        batch = make_batch(["a", "b" * 100_000])
        proxy.cut_when(lambda block: b"POST" in block)
        with pytest.raises(SinkError) as caught:
            sink.write(batch)
        assert isinstance(caught.value, RetryableError)
        assert caught.value.maybe_taken
        sink.open()
        sink.write(batch)
        sink.close()
    assert server.messages().count("a") == 2
    _same(_read(server), batch)


# Credentials


def test_token_is_asked_for_once_and_anew_shortly_before_it_ends(
    server: AzureLogsServer, sink: AzureLogsSink, now: Time
) -> None:
    for number in range(3):
        sink.write(make_batch([str(number)], start_ns=START_NS + number))
    assert len(server.token_requests) == 1
    now.seconds += server.life - EARLY - 1
    sink.write(make_batch(["3"], start_ns=START_NS + 3))
    assert len(server.token_requests) == 1
    now.seconds += 2
    sink.write(make_batch(["4"], start_ns=START_NS + 4))
    assert len(server.token_requests) == 2
    assert [request.headers["authorization"] for request in server.requests].count(
        server.requests[0].headers["authorization"]
    ) == 4
    dialect = dict(parse_qsl(server.token_requests[0].body.decode()))
    assert dialect["grant_type"] == "client_credentials"
    assert dialect["scope"] == "https://monitor.azure.com/.default"
    assert server.token_requests[0].path == TOKEN


def test_short_token_is_used_for_half_of_its_life(server: AzureLogsServer, now: Time) -> None:
    server.life = 100
    sink = _opened(server, now)
    now.seconds += 49
    sink.open()
    assert len(server.token_requests) == 1
    now.seconds += 2
    sink.open()
    assert len(server.token_requests) == 2
    sink.close()


def test_token_that_no_longer_holds_is_replaced_at_once(server: AzureLogsServer, sink: AzureLogsSink) -> None:
    sink.write(make_batch(["a"]))
    server.revoke()
    sink.write(make_batch(["b"], start_ns=START_NS + 1))
    assert server.messages() == ["a", "b"]
    assert len(server.token_requests) == 2


def test_new_token_that_is_refused_parks_and_is_not_kept(server: AzureLogsServer, sink: AzureLogsSink) -> None:
    server.script(Reply(401, b"first"))
    with pytest.raises(ParkedError, match="401 first"):
        sink.write(make_batch(["a"]))
    sink.write(make_batch(["a"]))
    assert len(server.token_requests) == 2
    server.script(Reply(401, b"old"), Reply(401, b"new"))
    with pytest.raises(ParkedError, match="401 new"):
        sink.write(make_batch(["b"]))


def test_secret_file_is_read_at_each_request_for_a_token(server: AzureLogsServer, now: Time, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("expired\n")
    sink = AzureLogsSink(_config(server, client_secret="", client_secret_file=str(path)), now=now)
    with pytest.raises(ParkedError, match=r"AADSTS7000215.*check tenant_id, client_id, the secret"):
        sink.open()
    path.write_text(server.sink()["client_secret"] + "\n")
    sink.open()
    path.unlink()
    sink.open()  # the token is still good
    server.revoke()
    with pytest.raises(ParkedError):
        sink.write(make_batch(["a"]))
    with pytest.raises(ParkedError, match="client_secret_file: cannot read"):
        sink.open()
    sink.close()


def test_workload_identity_reads_its_token_file_each_time(server: AzureLogsServer, now: Time, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("stale")
    sink = AzureLogsSink(_config(server, client_secret="", federated_token_file=str(path)), now=now)
    with pytest.raises(ParkedError, match="AADSTS700211"):
        sink.open()
    path.write_text(ASSERTION + "\n")
    sink.write(make_batch(["a"]))
    sink.close()
    dialect = dict(parse_qsl(server.token_requests[-1].body.decode()))
    assert dialect["client_assertion_type"] == "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
    assert "client_secret" not in dialect
    assert server.messages() == ["a"]


@pytest.mark.parametrize("client_id", ["", CLIENT])
def test_managed_identity_asks_the_metadata_service(server: AzureLogsServer, now: Time, client_id: str) -> None:
    options = {"client_secret": "", "tenant_id": "", "client_id": client_id}
    sink = _opened(server, now, managed_identity=True, identity_endpoint=server.url, **options)
    sink.write(make_batch(["a"]))
    sink.close()
    (asked,) = server.token_requests
    wanted = {"api-version": "2018-02-01", "resource": "https://monitor.azure.com"}
    assert asked.query == (wanted | {"client_id": client_id} if client_id else wanted)
    assert asked.headers["metadata"] == "true"
    assert server.messages() == ["a"]


def test_machine_without_the_identity_parks(server: AzureLogsServer, now: Time) -> None:
    options = {"client_secret": "", "client_id": "other", "managed_identity": True}
    sink = AzureLogsSink(_config(server, identity_endpoint=server.url, **options), now=now)
    with pytest.raises(ParkedError, match=r"Identity not found.*give this machine a managed identity"):
        sink.open()
    server.script_tokens(Reply(404), Reply(410), Reply(429, b"", {"Retry-After": "3"}), Reply(500))
    for _ in range(4):
        with pytest.raises(RetryableError) as caught:
            sink.open()
        assert not isinstance(caught.value, ParkedError)
    sink.close()


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (Reply(503, b"", {"Retry-After": "9"}), RetryableError, "no token: 503"),
        (Reply(429), RetryableError, "no token: 429"),
        (Reply(501), RetryableError, "no token: 501"),
        (Reply(400, b'{"error":"invalid_request"}'), ParkedError, "no token: 400"),
        (Reply(404), ParkedError, "no token: 404"),
        (Reply(302, b"", {"Location": "http://elsewhere"}), ParkedError, "no token: 302"),
        (Reply(200, b"<html>"), RetryableError, "holds no token"),
        (Reply(200, b'{"access_token":"very secret"}'), RetryableError, "holds no token"),
    ],
)
def test_answers_of_the_token_service(
    server: AzureLogsServer, now: Time, reply: Reply, kind: type[SinkError], words: str
) -> None:
    server.script_tokens(reply)
    sink = AzureLogsSink(_config(server), now=now)
    with pytest.raises(kind, match=words) as caught:
        sink.write(make_batch(["a"]))
    assert type(caught.value) is kind
    assert "secret" not in str(caught.value).replace("the secret", "")
    sink.open()
    sink.write(make_batch(["a"]))
    sink.close()


def test_no_answer_of_the_token_service_takes_nothing(server: AzureLogsServer, now: Time) -> None:
    with FaultProxy(("127.0.0.1", server.port)) as proxy:
        proxy.switch("cut_answer")
        sink = AzureLogsSink(_config(server, authority=f"http://127.0.0.1:{proxy.port}"), now=now)
        with pytest.raises(RetryableError) as caught:
            sink.write(make_batch(["a"]))
        sink.close()
    assert not caught.value.maybe_taken


def test_headers_of_the_section_are_for_its_own_server_alone(server: AzureLogsServer, now: Time) -> None:
    sink = _opened(server, now, headers={"X-Team": "blue"})
    sink.write(make_batch(["a"]))
    sink.close()
    assert server.requests[0].headers["x-team"] == "blue"
    assert "x-team" not in server.token_requests[0].headers


def test_credential_names_its_scope_in_full(server: AzureLogsServer) -> None:
    credential = Credential(_config(server), "https://monitor.azure.cn/.default", what="x")
    assert credential.header()["Authorization"].startswith("Bearer ")
    credential.close()
    assert b"monitor.azure.cn%2F.default" in server.token_requests[0].body


# Reading


def test_reader_pages_by_key_and_hides_doubles(server: AzureLogsServer, sink: AzureLogsSink) -> None:
    batch = make_batch([f"line {n}" for n in range(2_500)], step_ns=1)
    sink.write(batch)
    sink.write(batch)
    sink.write(make_batch(["m" * 1_500_000], start_ns=START_NS + 10**9))
    for oldest_first in (False, True):
        found = _read(server, oldest_first=oldest_first)
        assert len(found) == 2_501
        times = [record.time_ns for record in found]
        assert times == sorted(times, reverse=not oldest_first)
    _same([record for record in found if len(record.message) < 100], batch)


@pytest.mark.parametrize(
    "condition",
    [
        "level:error", "level>=warn", "-level:info", 'level:trace OR "line 3"', "service:(api worker)", "service:api",
        "-service:api", '"line 1"', "LINE", '"say \\"hi\\""', "user_id:3", "user_id>=5", "long:*", "needle",
        "host:host-1 level:info", "container:api-1", "stream:stdout", "container.name:worker-1", "source:docker",
    ],
)  # fmt: skip
def test_search_finds_what_the_condition_says(server: AzureLogsServer, sink: AzureLogsSink, condition: str) -> None:
    levels = ["trace", "debug", "info", "warn", "error", "fatal"] * 4
    messages = [f"line {n}" for n in range(20)] + ['say "hi"', 'with "quotes" and \\', "m" * 40_000 + "needle", "last"]
    attributes: list[dict[str, Any]] = [{"user_id": n} for n in range(24)]
    attributes[5] |= {"long": "v" * 70_000}
    resources = [make_resource("api" if n % 2 else "worker") for n in range(24)]
    batch = make_batch(messages, level=levels, attributes=attributes, resource=resources)
    sink.write(batch)
    wanted = compile_condition(condition)
    _same(_read(server, condition), batch.select(wanted.indexes(batch)))


def test_query_asks_for_time_and_terms_at_the_server(server: AzureLogsServer, sink: AzureLogsSink) -> None:
    batch = make_batch([str(n) for n in range(10)], step_ns=1)
    sink.write(batch)
    found = _read(server, f"level:info id:({batch.ids[2]} {batch.ids[3]})", since=START_NS + 3, until=START_NS + 9)
    assert [record.message for record in found] == ["3"]
    assert server.queries[-1].split("\n| ") == [
        "Shipper_CL",
        "extend Ns = tolong(TimeNs)",
        "where isnotempty(RecordId) and isnotnull(Ns)",
        "where EventTime >= datetime(2026-01-02T03:04:05.0000000Z)",
        f"where Ns >= {START_NS + 3}",
        "where EventTime <= datetime(2026-01-02T03:04:05.0000000Z)",
        f"where Ns < {START_NS + 9}",
        'where Level in ("info")',
        f'where RecordId in ("{batch.ids[2]}", "{batch.ids[3]}")',
        "order by Ns desc, RecordId desc",
        "take 200",
        f"project Ns, RecordId, {', '.join(dialect('T').columns)}",
    ]


def test_page_that_is_too_large_for_the_api_is_asked_for_in_smaller_ones(
    server: AzureLogsServer, sink: AzureLogsSink
) -> None:
    batch = make_batch([str(n) for n in range(100)])
    sink.write(batch)
    partial = Reply(200, b'{"tables":[{"columns":[],"rows":[]}],"error":{"code":"PartialError"}}')
    server.script_queries(partial)
    _same(_read(server), batch)
    assert "take 20\n" in server.queries[0]
    server.script_queries(partial, partial, partial)
    with pytest.raises(RetryableError, match="in full"):
        _read(server)


def test_rows_of_others_do_no_harm(server: AzureLogsServer, sink: AzureLogsSink) -> None:
    sink.write(make_batch(["ours"]))
    empty = dict.fromkeys(server.rows[0], None)
    strange = {
        **empty,
        "RecordId": "x",
        "TimeNs": "5",
        "Level": "odd",
        "Severity": 99,
        "Attributes": "text",
        "Rest": "",
    }
    server.rows += [{**empty, "RecordId": "", "TimeNs": ""}, strange]
    assert [(record.message, record.level) for record in _read(server)] == [("ours", "info"), ("", "info")]


def test_reading_without_a_workspace_says_what_is_missing(server: AzureLogsServer) -> None:
    reader = AzureLogsReader(_config(server, workspace_id=""))
    with pytest.raises(ParkedError, match="workspace_id is not set"):
        list(reader.read(Query()))
    reader.close()


# Looking


def test_healthcheck_tells_what_is_wrong(server: AzureLogsServer, sink: AzureLogsSink) -> None:
    sink.healthcheck()
    assert server.rows == []
    server.granted = False
    with pytest.raises(ParkedError, match="Monitoring Metrics Publisher"):
        sink.healthcheck()
    server.granted = True
    server.script(Reply(404))
    with pytest.raises(ParkedError, match="must be in the endpoint's region"):
        sink.healthcheck()


def test_examine_tells_each_thing_apart(server: AzureLogsServer, sink: AzureLogsSink, now: Time) -> None:
    def found(sink: AzureLogsSink) -> dict[str, str]:
        return {finding.what: finding.verdict for finding in sink.examine()}

    assert found(sink) == {
        "reachable": "ok", "tls": "warn", "login": "ok", "clock": "ok", "rights": "ok", "limits": "ok", "reading": "ok",
    }  # fmt: skip
    server.granted = False
    assert found(sink)["rights"] == "fail"
    server.granted = True
    other = _opened(server, now, rule_id="dcr-other", workspace_id="no-such-workspace")
    assert (found(other)["rights"], found(other)["reading"]) == ("fail", "warn")
    other.close()
    assert WORKSPACE in next(finding.evidence for finding in sink.examine() if finding.what == "reading")
    server.script_tokens(Reply(400, b"AADSTS"))
    assert found(AzureLogsSink(_config(server), now=now)) == {"login": "fail"}


def test_template_and_page_name_the_columns_that_rows_have() -> None:
    root = Path(__file__).parents[2]
    template = (root / "deploy/azure/shipper-logs.bicep").read_text()
    assert dict(re.findall(r"\{ name: '(\w+)', type: '(\w+)' \}", template)) == COLUMNS
    page = (root / "docs/sinks/azure_logs.md").read_text()
    assert [column for column in COLUMNS if f"`{column}`" not in page] == []
