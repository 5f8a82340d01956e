"""The CloudWatch sink and its reader, against moto behind a proxy that is as strict as the service."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import botocore.session
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shipper import render as columns
from shipper.clock import SystemClock
from shipper.delivery.buffer import Buffer
from shipper.delivery.canary import examine as look_at
from shipper.delivery.deadletter import DeadLetters
from shipper.delivery.delivery import Delivery
from shipper.delivery.spill import Spill
from shipper.errors import ConfigError, ParkedError, PartialError, PermanentError, RetryableError, SinkError
from shipper.fs import FileSystem
from shipper.reader import Query
from shipper.record import Batch, Record, Resource
from shipper.routing.condition import compile_condition
from shipper.sink import Sink
from shipper.state.checkpoint import Checkpoint, Cursor
from shipper.state.ledger import Ledger
from shipper.telemetry.health import Health
from shipper.telemetry.metrics import Metrics
from shipper.testing.batches import START_NS, make_batch, make_resource
from shipper.testing.http_server import Reply
from shipper.testing.proxy import FaultProxy
from shipper.testing.sink_contract import FIELDS, SinkContract
from sinks.cloudwatch import CloudwatchConfig, CloudwatchReader, CloudwatchSink, encode, reader
from sinks.cloudwatch.names import Template
from support.certificates import Authority
from support.cloudwatch_server import (
    ACCESS_KEY,
    BATCH,
    DAY,
    EVENTS,
    OVERHEAD,
    REGION,
    ROLE,
    SECRET,
    CloudwatchServer,
    refusal,
    throttled,
    unavailable,
)
from support.daemon import Daemon
from support.moto_server import Moto

#: A day after the records of the test kit, which are older than what the service takes today.
NOW = START_NS / 1e9 + 86_400
NOW_NS = START_NS + 86_400 * 10**9
HOUR = 3_600 * 10**9
GROUP = "faildaily-production"


def now() -> float:
    return NOW


@pytest.fixture(scope="module", autouse=True)
def _one_loader() -> Iterator[None]:
    """botocore reads its model of the service once for all clients of these tests, not for each."""
    loader = botocore.session.create_loader()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.session, "create_loader", lambda _paths: loader)
        yield


@pytest.fixture(scope="module")
def moto() -> Iterator[Moto]:
    with Moto() as moto:
        yield moto


@pytest.fixture(scope="module")
def shared(moto: Moto) -> Iterator[CloudwatchServer]:
    with CloudwatchServer(moto=moto, now=now) as server:
        yield server


@pytest.fixture
def server(shared: CloudwatchServer) -> CloudwatchServer:
    shared.clear()
    return shared


@pytest.fixture(scope="module")
def readers(shared: CloudwatchServer) -> Iterator[dict[str, CloudwatchReader]]:
    """One reader for each form of lines; what it reads is asked for anew each time."""
    found = {line: CloudwatchReader(_config(shared, line=line), now=now) for line in ("raw", "json")}
    yield found
    for one in found.values():
        one.close()


@pytest.fixture
def sink(server: CloudwatchServer) -> Iterator[CloudwatchSink]:
    with _opened(_config(server)) as sink:
        yield sink


def _config(server: CloudwatchServer, **options: Any) -> CloudwatchConfig:
    return CloudwatchConfig(**server.sink(**options))


@contextmanager
def _opened(config: CloudwatchConfig) -> Iterator[CloudwatchSink]:
    sink = CloudwatchSink(config, now=now)
    sink.open()
    try:
        yield sink
    finally:
        sink.close()


def _read(config: CloudwatchConfig, **query: Any) -> list[Record]:
    reader = CloudwatchReader(config, now=now)
    try:
        return list(reader.read(Query(**query)))
    finally:
        reader.close()


def _raised(sink: CloudwatchSink, batch: Batch) -> SinkError:
    with pytest.raises(SinkError) as caught:
        sink.write(batch)
    return caught.value


class _Contract(SinkContract):
    example = Path("config/examples/cloudwatch.yaml")
    exactly_once = True  # as read: CloudWatch keeps what comes twice
    options: ClassVar[dict[str, Any]] = {}

    @pytest.fixture(autouse=True)
    def _place(self, server: CloudwatchServer, readers: dict[str, CloudwatchReader]) -> None:
        self.server = server
        self.reader = readers[self.options.get("line", "raw")]

    def make_sink(self, tmp_path: Path) -> Sink:
        return CloudwatchSink(_config(self.server, **self.options), now=now)

    def read_back(self, sink: Sink) -> list[Record]:
        return list(self.reader.read(Query(oldest_first=True)))

    def order_key(self, record: Record) -> Any:
        return record.time_ns, record.id


class TestCloudwatchRecords(_Contract):
    options: ClassVar[dict[str, Any]] = {"line": "json"}


class TestCloudwatchLines(_Contract):
    """The raw line comes back, and whoever reads parses it: attributes are in it."""

    compares = FIELDS - {"attributes"}


# What stands in an event


def test_line_of_json_stays_as_it_was_written_with_our_member_behind(
    server: CloudwatchServer, sink: CloudwatchSink
) -> None:
    assert not sink.wants_parse
    assert not sink.wants_levels
    line = '{"level": "error", "user_id": 42,  "nested": {"a": [1, "}"]} }'
    batch = make_batch([line], parsed=False)
    sink.write(batch)
    (event,) = server.events()
    assert event.message.startswith(line[:-1] + ',"shipper":{"form":"line","id":"')
    whole = json.loads(event.message)
    assert (whole["level"], whole["user_id"]) == ("error", 42)
    assert whole["shipper"] == {
        "form": "line", "id": batch.ids[0], "ns": "000000", "source": "docker",
        "resource": make_resource().attributes,
    }  # fmt: skip
    assert event.timestamp == START_NS // 10**6
    assert (server.messages(), server.ids()) == ([line], batch.ids)


@pytest.mark.parametrize(
    "line",
    [
        "plain", "", "{}", "{ }", "{not json}", '{"a":1},{"b":2}', '{"a":1', "[1]", '{"shipper":1}', "DEL \x7f0 here",
        "two\nlines", '}"\n"{', '{"a":"}"\n"}', '{"x":{"y":1,"shipper":{"form":"line","id":"z","ns":"1"}}}', 'a,"shipper":{"form":"line","id":"',
        '{"a":1,"shipper":{"form":"text","id":"z","ns":"000001"}}',
    ],
)  # fmt: skip
def test_every_line_comes_back_as_it_was(server: CloudwatchServer, sink: CloudwatchSink, line: str) -> None:
    batch = make_batch(["before", line, "behind"], parsed=False)
    sink.write(batch)
    found = _read(_config(server), oldest_first=True)
    assert [record.raw for record in found] == batch.raws
    assert [record.id for record in found] == batch.ids
    assert all(event.message for event in server.events())


def test_levels_that_are_known_go_along_and_unknown_ones_cost_nothing(
    server: CloudwatchServer, sink: CloudwatchSink
) -> None:
    batch = make_batch(["a", "b"], level=["error", "warn"])
    sink.write(batch)
    sink.write(make_batch(["c"], parsed=False, start_ns=START_NS + HOUR))
    levels = [json.loads(event.message)["shipper"].get("level") for event in server.events()]
    assert levels == ["error", "warn", None]


def test_parts_that_the_source_marked_are_kept(server: CloudwatchServer, sink: CloudwatchSink) -> None:
    batch = make_batch(["first", '{"a":1}', "plain"], parsed=False)
    batch.marks = {0: {"log.record.part": "1/2"}, 1: {"log.record.part": "2/2"}}
    sink.write(batch)
    found = _read(_config(server), oldest_first=True)
    assert [record.attributes.get("log.record.part") for record in found] == ["1/2", "2/2", None]


def test_each_record_has_its_own_resource_and_equal_ones_are_shared(server: CloudwatchServer) -> None:
    resources = [make_resource(f"service-{index}") for index in range(25)]
    batch = make_batch([f"line {index}" for index in range(50)], resource=resources * 2)
    config = _config(server, log_stream="all")
    with _opened(config) as sink:
        sink.write(batch)
    found = _read(config, oldest_first=True)
    assert [record.resource.attributes for record in found] == [r.attributes for r in batch.resources]
    # what comes from one source shares its resource
    assert len({id(record.resource) for record in found}) == 25


def test_metadata_id_leaves_the_resource_out(server: CloudwatchServer) -> None:
    config = _config(server, metadata="id", log_stream="{host}/{service}")
    with _opened(config) as sink:
        sink.write(make_batch(["x"]))
    (event,) = server.events()
    assert set(json.loads(event.message)["shipper"]) == {"form", "id", "ns", "level"}
    (record,) = _read(config)
    assert record.resource.attributes == {"aws.log.group.names": GROUP, "aws.log.stream.names": "host-1/api"}


def test_records_written_parsed_are_read_as_lines_that_parse_to_the_same(server: CloudwatchServer) -> None:
    with _opened(_config(server, line="json")) as sink:
        assert sink.wants_parse
        sink.write(make_batch(["hello"], level="error", attributes={"user_id": 7}))
    (record,) = _read(_config(server))
    assert (record.message, record.level) == ("hello", "error")
    assert json.loads(record.raw) == {"user_id": 7, "level": "error", "message": "hello"}


# Limits


def _sizes(batch: Batch) -> list[int]:
    return list(encode.Encoder(parsed=False, resource=True).events(batch).sizes)


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_batch_bytes_are_counted_to_the_byte(server: CloudwatchServer, sink: CloudwatchSink, more: int) -> None:
    """Below and at the limit one request, one byte above two; the stand-in refuses what is too much."""
    batch = make_batch(["é" * 1000, "x"], parsed=False)
    base = sum(_sizes(batch))
    filled = make_batch(["é" * 1000, "x" * (BATCH - base + 1 + more)], parsed=False)
    sink.write(filled)
    requests = [1 for name in server.operations() if name == "PutLogEvents"]
    assert len(requests) - 1 == (2 if more == 1 else 1)  # one more found that the stream was missing
    total = sum(len(event.message.encode()) + OVERHEAD for event in server.events())
    assert total == BATCH + more
    assert server.messages() == filled.raws


@pytest.mark.parametrize("count", [EVENTS - 1, EVENTS, EVENTS + 1])
def test_at_most_ten_thousand_events_go_in_one_request(server: CloudwatchServer, count: int) -> None:
    with _opened(_config(server, metadata="id")) as sink:
        sink.write(make_batch(["short"]))
        before = len(server.requests)
        sink.write(make_batch([""] * count, parsed=False, start_ns=START_NS + HOUR, step_ns=1000))
    # 130 bytes each: the count is reached before 1 MiB is only by events this short
    assert sum(1 for _ in server.events()) == count + 1
    counted = [len(json.loads(request.content())["logEvents"]) for request in server.requests[before:]]
    assert max(counted) <= EVENTS
    assert sum(counted) == count


@pytest.mark.parametrize(("span", "requests"), [(DAY - 1, 1), (DAY, 2), (DAY + 1, 2)])
def test_a_request_spans_less_than_a_day(
    server: CloudwatchServer, sink: CloudwatchSink, span: int, requests: int
) -> None:
    sink.write(make_batch(["makes the stream"]))
    before = len(server.requests)
    start = NOW_NS - 3 * DAY * 10**6
    sink.write(make_batch(["first", "last"], start_ns=start, step_ns=span * 10**6))
    assert len(server.requests) - before == requests
    assert len(server.events()) == 3


def test_events_are_sorted_by_time_and_equal_ones_keep_their_order(
    server: CloudwatchServer, sink: CloudwatchSink
) -> None:
    whole = make_batch([str(index) for index in range(6)], step_ns=400_000)
    sink.write(whole.select([5, 0, 3, 1, 4, 2]))
    assert [event.timestamp for event in server.events()] == sorted(time_ns // 10**6 for time_ns in whole.times)
    assert [record.message for record in _read(_config(server), oldest_first=True)] == list("012345")


def test_large_record_is_sent_in_marked_parts_and_read_as_one(server: CloudwatchServer) -> None:
    config = _config(server, max_event_size="4KiB")
    texts = ['say "\\" ' * 2000, "é" * 5000, "\x01" * 3000, '{"a":"' + "b" * 9000 + '"}', "small"]
    batch = make_batch(texts, parsed=False)
    with _opened(config) as sink:
        sink.write(batch)
    events = server.events()
    assert max(len(event.message.encode()) + OVERHEAD for event in events) <= 4096
    tails = [json.loads(event.message)["shipper"] for event in events if '"part"' in event.message]
    assert {(tail["form"], tail["id"]) for tail in tails} == {("part", id_) for id_ in batch.ids[:4]}
    assert [tail["part"] for tail in tails if tail["id"] == batch.ids[0]] == list(range(1, tails[0]["parts"] + 1))
    found = _read(config, oldest_first=True)
    assert [(record.id, record.raw) for record in found] == list(zip(batch.ids, texts, strict=True))
    assert server.messages() == texts


def test_event_at_its_limit_is_whole_and_one_byte_more_is_in_parts(server: CloudwatchServer) -> None:
    config = _config(server, max_event_size="4KiB")
    base = _sizes(make_batch([""], parsed=False))[0]
    with _opened(config) as sink:
        for count, more in ((1, 0), (3, 1)):
            sink.write(make_batch(["x" * (4096 - base + more)], parsed=False, start_ns=START_NS + count * HOUR))
            assert len(server.events()) == count


def test_parts_that_lack_others_are_given_and_marked(server: CloudwatchServer) -> None:
    config = _config(server, max_event_size="4KiB")
    with _opened(config) as sink:
        sink.write(make_batch(["y" * 9000], parsed=False))
    del server._groups[GROUP][0]
    (record,) = _read(config)
    assert record.attributes == {"log.record.part": "?/3"}
    assert "yyyy" in record.message


# Age


@pytest.mark.parametrize(
    ("age", "code"),
    [
        (14 * DAY + 400_000, "too_old"), (14 * DAY + 1_000, "too_old"), (14 * DAY - 1_000, ""),
        (-2 * 3_600_000 + 1_000, ""), (-2 * 3_600_000 - 1_000, "too_new"), (-2 * 3_600_000 - 400_000, "too_new"),
    ],
)  # fmt: skip
def test_ages_that_are_not_taken_are_refused_alone(
    server: CloudwatchServer, sink: CloudwatchSink, age: int, code: str
) -> None:
    """Far outside they are not even sent; within our clock's doubt the service decides."""
    good = make_batch(["good"])
    odd = make_batch(["odd"], start_ns=NOW_NS - age * 10**6)
    batch = Batch.concat([good, odd])
    if not code:
        sink.write(batch)
    else:
        error = _raised(sink, batch)
        assert isinstance(error, PartialError)
        assert list(error.failed) == [1]
        refused = error.failed[1]
        assert isinstance(refused, PermanentError)
        assert (refused.code, refused.certain) == (code, True)
    assert server.messages().count("good") == 1
    assert server.messages().count("odd") == (0 if code else 1)


def test_rejected_indexes_are_read_to_the_row(server: CloudwatchServer, sink: CloudwatchSink) -> None:
    """Two old, one good, two new, in one request: the order of the batch is another."""
    edge = NOW_NS - 14 * DAY * 10**6
    times = [NOW_NS + 2 * HOUR + 2 * 10**9, edge - 10**9, NOW_NS - HOUR, edge - 2 * 10**9, NOW_NS + 2 * HOUR + 10**9]
    batch = Batch.concat([make_batch([f"row {row}"], start_ns=at) for row, at in enumerate(times)])
    error = _raised(sink, batch)
    assert isinstance(error, PartialError)
    assert {row: one.code for row, one in error.failed.items()} == {
        0: "too_new", 1: "too_old", 3: "too_old", 4: "too_new"
    }  # fmt: skip
    assert server.messages() == ["row 2"]


def test_what_the_group_no_longer_keeps_is_refused_as_expired(server: CloudwatchServer) -> None:
    with _opened(_config(server, retention_days=1)) as sink:
        sink.write(make_batch(["makes the group"], start_ns=NOW_NS - HOUR))
        start = NOW_NS - DAY * 10**6 - 2 * HOUR
        batch = make_batch(["expired", "expired too", "kept"], start_ns=start, step_ns=HOUR + HOUR // 2)
        error = _raised(sink, batch)
    assert isinstance(error, PartialError)
    assert {row: one.code for row, one in error.failed.items()} == {0: "expired", 1: "expired"}
    assert "kept" in server.messages()


# What is created


def test_group_stream_and_retention_are_created_when_missing_and_nothing_is_looked_up(
    server: CloudwatchServer,
) -> None:
    with _opened(_config(server, retention_days=30)) as sink:
        assert server.operations() == []
        sink.write(make_batch(["a"]))
        assert server.operations() == [
            "PutLogEvents", "CreateLogStream", "CreateLogGroup", "PutRetentionPolicy", "CreateLogStream", "PutLogEvents",
        ]  # fmt: skip
        sink.write(make_batch(["b"], start_ns=START_NS + HOUR, resource=make_resource("worker")))
    assert server.operations()[6:] == ["PutLogEvents", "CreateLogStream", "PutLogEvents"]
    assert server._retention == {GROUP: 30}
    assert {event.stream for event in server.events()} == {"host-1/api", "host-1/worker"}


def test_group_that_somebody_else_created_keeps_its_retention(server: CloudwatchServer) -> None:
    server.script(refusal("ResourceNotFoundException", "The specified log group does not exist."))
    with _opened(_config(server)) as other:
        other.write(make_batch(["x"]))
    # Created between our question and our order, by another agent:
    missing = refusal("ResourceNotFoundException", "The specified log group does not exist.")
    server.script(missing, missing)
    with _opened(_config(server, retention_days=30)) as sink:
        sink.write(make_batch(["a"], start_ns=START_NS + HOUR))
    assert "PutRetentionPolicy" not in server.operations()


def test_retention_that_may_not_be_set_is_told_and_holds_up_nothing(
    server: CloudwatchServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.denied.add("PutRetentionPolicy")
    with _opened(_config(server, retention_days=30)) as sink:
        sink.write(make_batch(["a"]))
    assert server.messages() == ["a"]
    assert f"aws logs put-retention-policy --log-group-name {GROUP} --retention-in-days 30" in caplog.text


def test_retention_that_came_too_early_is_set_by_the_next_write(server: CloudwatchServer) -> None:
    """A group that is being created refuses it with OperationAborted."""
    with _opened(_config(server, retention_days=30)) as sink:
        missing = refusal("ResourceNotFoundException", "The specified log group does not exist.")
        created = Reply(200, b"", {"Content-Type": "application/x-amz-json-1.1"})
        server.script(missing, missing)
        server.script(created, stored=True)
        server.script(refusal("OperationAbortedException", "A conflicting operation is in progress"))
        error = _raised(sink, make_batch(["a"]))
        assert type(error) is RetryableError
        assert error.code == "OperationAbortedException"
        sink.write(make_batch(["a"]))
    assert server._retention == {GROUP: 30}
    assert server.messages() == ["a"]


def test_without_create_a_missing_group_parks_with_the_commands(server: CloudwatchServer) -> None:
    with _opened(_config(server, create=False)) as sink:
        error = _raised(sink, make_batch(["a"]))
        assert isinstance(error, ParkedError)
        assert f"aws logs create-log-group --log-group-name {GROUP}; aws logs create-log-stream" in str(error)
        with pytest.raises(ParkedError, match="create is false"):
            sink.healthcheck()
    assert set(server.operations()) == {"PutLogEvents", "DescribeLogGroups"}


@pytest.mark.parametrize("lacking", ["CreateLogGroup", "CreateLogStream", "PutLogEvents"])
def test_right_that_lacks_parks_and_is_named(server: CloudwatchServer, sink: CloudwatchSink, lacking: str) -> None:
    server.denied.add(lacking)
    error = _raised(sink, make_batch(["a"]))
    assert isinstance(error, ParkedError)
    assert f"logs:{lacking}" in str(error)
    server.denied.clear()
    sink.write(make_batch(["a"]))
    assert server.messages() == ["a"]


# Errors


@pytest.mark.parametrize(
    ("reply", "kind", "maybe"),
    [
        (throttled(), RetryableError, False),
        (refusal("RequestLimitExceeded", "slower"), RetryableError, False),
        (refusal("Whatever", "too many", status=429), RetryableError, False),
        (unavailable(), RetryableError, True),
        (refusal("InternalFailure", "oops", status=500), RetryableError, True),
        (Reply(502, b"<html>bad gateway</html>"), RetryableError, True),
        (Reply(504, b""), RetryableError, True),
        (refusal("OperationAbortedException", "race"), RetryableError, False),
        (refusal("UnrecognizedClientException", "The security token included in the request is invalid."), ParkedError, False),
        (refusal("ExpiredTokenException", "expired"), ParkedError, False),
        (refusal("InvalidSignatureException", "Signature expired"), ParkedError, False),
        (refusal("AccessDeniedException", "no", status=400), ParkedError, False),
        (refusal("LimitExceededException", "Resource limit exceeded."), ParkedError, False),
        (Reply(403, b"forbidden by a proxy"), ParkedError, False),
        (Reply(301, b"", {"Location": "http://127.0.0.1:1/"}), ParkedError, False),
        (Reply(404, b"not here"), ParkedError, False),
        (refusal("InvalidParameterException", "A parameter is specified incorrectly."), PermanentError, False),
        (refusal("SerializationException", "odd"), PermanentError, False),
        (Reply(413, b""), PermanentError, False),
        (Reply(200, b"<html>log in to the hotel's network</html>"), RetryableError, True),
        (Reply(200, b""), RetryableError, True),
        (Reply(204), RetryableError, True),
    ],
)  # fmt: skip
def test_answers_are_sorted(
    server: CloudwatchServer, sink: CloudwatchSink, reply: Reply, kind: type[SinkError], maybe: bool
) -> None:
    server.script(reply)
    error = _raised(sink, make_batch(["a", "b"]))
    assert type(error) is kind
    assert getattr(error, "maybe_taken", False) is maybe
    assert "cloudwatch 127.0.0.1" in str(error)
    assert len(server.requests) == 1  # botocore repeats nothing, and follows nowhere
    sink.open()
    sink.write(make_batch(["a", "b"]))
    assert server.messages() == ["a", "b"]


@pytest.mark.parametrize(("headers", "seconds"), [({"x-amz-retry-after": "1500"}, 1.5), ({"Retry-After": "7"}, 7.0)])
def test_time_that_the_service_names_is_told(
    server: CloudwatchServer, sink: CloudwatchSink, headers: dict[str, str], seconds: float
) -> None:
    reply = throttled()
    server.script(msgspec.structs.replace(reply, headers={**reply.headers, **headers}))
    error = _raised(sink, make_batch(["a"]))
    assert isinstance(error, RetryableError)
    assert error.retry_after == seconds


def test_failure_half_way_names_the_rows_that_are_not_taken(server: CloudwatchServer, sink: CloudwatchSink) -> None:
    sink.write(make_batch(["makes the stream"]))
    start = NOW_NS - 4 * DAY * 10**6
    batch = make_batch(["day 1", "day 2", "day 3"], start_ns=start, step_ns=DAY * 10**6)
    server.script(Reply(200, b"{}"), stored=True)
    server.script(throttled())
    error = _raised(sink, batch)
    assert isinstance(error, PartialError)
    assert set(error.failed) == {1, 2}
    assert len({id(one) for one in error.failed.values()}) == 1
    assert server.operations()[-2:] == ["PutLogEvents"] * 2  # nothing more was sent after the failure
    sink.write(batch.select([1, 2]))
    assert [message for message in server.messages() if message.startswith("day")] == ["day 1", "day 2", "day 3"]


def test_refused_request_is_left_to_bisection_and_others_go_on(server: CloudwatchServer, sink: CloudwatchSink) -> None:
    sink.write(make_batch(["makes the stream"]))
    start = NOW_NS - 4 * DAY * 10**6
    batch = make_batch(["day 1", "day 1 too", "day 3"], start_ns=start, step_ns=DAY * 10**6 * 3 // 4)
    server.script(refusal("InvalidParameterException", "A parameter is specified incorrectly."))
    error = _raised(sink, batch)
    assert isinstance(error, PartialError)
    ((rows, refused),) = error.together
    assert (list(rows), type(refused)) == ([0, 1], PermanentError)
    assert server.messages() == ["day 3", "makes the stream"]


def test_sequence_tokens_of_old_are_served(moto: Moto) -> None:
    """As emulators still ask for them: learnt from the refusal, then from each answer."""
    with CloudwatchServer(moto=moto, now=now, tokens=True) as server, _opened(_config(server)) as sink:
        for index in range(3):
            sink.write(make_batch([f"line {index}"], start_ns=START_NS + index * HOUR))
        assert len(server.messages()) == 3
        with _opened(_config(server)) as second:  # knows no token: asks, is told, goes on
            second.write(make_batch(["line 3"], start_ns=START_NS + 3 * HOUR))
        server.script(refusal("DataAlreadyAcceptedException", "already accepted", expectedSequenceToken="9"))
        sink.write(make_batch(["line 4"], start_ns=START_NS + 4 * HOUR))  # success, they say
        assert len(server.messages()) == 4


# Connections


@pytest.mark.parametrize("mode", ["cut_answer", "half_answer"])
def test_answer_that_never_came_may_be_stored_twice_and_is_read_once(server: CloudwatchServer, mode: Any) -> None:
    with FaultProxy(("127.0.0.1", server.port)) as proxy:
        config = _config(server, endpoint=f"http://127.0.0.1:{proxy.port}")
        with _opened(config) as sink:
            sink.write(make_batch(["makes the stream"], start_ns=START_NS - HOUR))
            proxy.switch(mode)
            error = _raised(sink, make_batch(["a", "b"]))
            assert isinstance(error, RetryableError)
            assert error.maybe_taken
            proxy.switch("pass")
            sink.open()
            sink.write(make_batch(["a", "b"]))
    assert len(server.messages()) == 5
    assert [record.message for record in _read(_config(server), oldest_first=True)] == ["makes the stream", "a", "b"]


@pytest.mark.parametrize("status", [200, 503])
def test_body_that_ends_early_is_no_answer(status: int) -> None:
    """botocore takes any end of a body for its end."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1 << 16)
            connection.sendall(b"HTTP/1.1 %d OK\r\nContent-Length: 200\r\n\r\n{}" % status)

    thread = threading.Thread(target=answer)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    section = {"type": "cloudwatch", "region": REGION, "log_group": "g", "endpoint": url}
    with _opened(CloudwatchConfig(**section, access_key_id="a", secret_access_key="b")) as sink:
        error = _raised(sink, make_batch(["a"]))
    thread.join(10)
    listener.close()
    assert isinstance(error, RetryableError)
    assert error.maybe_taken


def test_service_that_is_away_is_retryable_and_nothing_was_taken(server: CloudwatchServer) -> None:
    with FaultProxy(("127.0.0.1", server.port)) as proxy:
        proxy.switch("refuse")
        with _opened(_config(server, endpoint=f"http://127.0.0.1:{proxy.port}")) as sink:
            error = _raised(sink, make_batch(["a"]))
            assert type(error) is RetryableError
            assert not error.maybe_taken
            with pytest.raises(RetryableError):
                sink.healthcheck()


def test_service_that_says_nothing_times_out(server: CloudwatchServer) -> None:
    with FaultProxy(("127.0.0.1", server.port)) as proxy:
        proxy.switch("latency", seconds=5.0)
        with _opened(_config(server, endpoint=f"http://127.0.0.1:{proxy.port}", timeout="100ms")) as sink:
            error = _raised(sink, make_batch(["a"]))
    assert isinstance(error, RetryableError)
    assert (error.code, error.maybe_taken) == ("timeout", True)


def test_certificate_is_verified(tmp_path: Path, moto: Moto) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key)
    with CloudwatchServer(moto=moto, now=now, tls=context) as server:
        with _opened(_config(server, ca_file=str(authority.cert))) as sink:
            sink.write(make_batch(["by TLS"]))
        assert server.messages() == ["by TLS"]
        with _opened(_config(server, ca_file=str(Authority(tmp_path, "stranger").cert))) as sink:
            error = _raised(sink, make_batch(["a"]))
        assert isinstance(error, ParkedError)
        assert error.code == "tls"
        found = _verdicts(_config(server, ca_file=str(authority.cert)))
        assert found["tls"] == "ok"
        assert server.messages() == ["by TLS"]


# Through a delivery


class _Instant(SystemClock):
    def wait(self, event: Any, seconds: float) -> bool:
        return bool(event.is_set())


def _delivered(tmp_path: Path, sink: Sink, *batches: Batch) -> tuple[Delivery, DeadLetters, Metrics]:
    """Deliver batches to the end by a real delivery."""
    clock, metrics = _Instant(), Metrics()
    ledger = Ledger(Checkpoint(tmp_path), ["s"], clock)
    spill = Spill(tmp_path / "spill", limit=1 << 30, fs=FileSystem(), cursor=Cursor(0, 0), on_lost=metrics.dropped)
    buffer = Buffer(
        spill, clock=clock, max_memory=64 << 20, drop_oldest=False, on_safe=lambda spans: None,
        on_cursor=lambda cursor: None, on_dropped=lambda n: None,
    )  # fmt: skip
    letters = DeadLetters(tmp_path / "s.jsonl")
    delivery = Delivery(
        "s", sink, buffer, ledger=ledger, dead_letters=letters, clock=clock, metrics=metrics, health=Health()
    )
    for batch in batches:
        buffer.put(batch)
    delivery.start()
    delivery.drain()
    assert delivery.join(60)
    buffer.close()
    return delivery, letters, metrics


def test_delivery_gets_everything_there_through_every_kind_of_failure(server: CloudwatchServer, tmp_path: Path) -> None:
    batches = [make_batch([f"{n} {i}" for i in range(50)], start_ns=START_NS + n * HOUR) for n in range(5)]
    server.script(throttled(), throttled())
    server.script(unavailable())
    server.script(refusal("ExpiredTokenException", "expired"), Reply(200, b"nonsense"), Reply(500))
    delivery, letters, _ = _delivered(tmp_path, CloudwatchSink(_config(server), now=now), *batches)
    assert server.messages() == [raw for batch in batches for raw in batch.raws]
    assert delivery.dead_lettered == 0
    assert list(letters.entries()) == []


def test_delivery_counts_what_may_be_stored_twice(server: CloudwatchServer, tmp_path: Path) -> None:
    with _opened(_config(server)) as sink:
        sink.write(make_batch(["makes the stream"], start_ns=START_NS - HOUR))
    server.script(unavailable(), stored=True)
    batch = make_batch(["a", "b"])
    _, _, metrics = _delivered(tmp_path, CloudwatchSink(_config(server), now=now), batch)
    assert server.ids()[1:] == [batch.ids[0], batch.ids[0], batch.ids[1], batch.ids[1]]
    assert [record.message for record in _read(_config(server))] == ["b", "a", "makes the stream"]
    assert metrics.value("shipper_sink_maybe_doubled_total", sink="s") == 1


def test_hundreds_of_old_records_are_dead_letters_and_do_not_park(server: CloudwatchServer, tmp_path: Path) -> None:
    old = make_batch([f"old {i}" for i in range(100)], start_ns=NOW_NS - 20 * DAY * 10**6)
    edge = make_batch([f"edge {i}" for i in range(100)], start_ns=NOW_NS - 14 * DAY * 10**6 - 10**9, step_ns=1000)
    good = make_batch(["good"])
    delivery, letters, _ = _delivered(tmp_path, CloudwatchSink(_config(server), now=now), old, edge, good)
    assert server.messages() == ["good"]
    assert delivery.dead_lettered == 200
    assert {entry.code for entry in letters.entries()} == {"too_old"}


# Names and options


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{host}/{service}", "host-1/api"), ("fixed", "fixed"), ("{container.image.name}", "-"),
        ("{source}-{stream}", "docker-stdout"), ("{nosuch.thing}x", "-x"),
    ],
)  # fmt: skip
def test_names_are_filled_in(template: str, name: str) -> None:
    assert Template("log_stream", template).name(make_resource()) == name


def test_names_hold_only_what_they_may() -> None:
    odd = Resource("s:*", {"service.name": "aws/a b:é*", "host.name": "h" * 600})
    group, stream = Template("log_group", "{service}"), Template("log_stream", "{service}/{host}")
    assert group.name(odd) == "_aws/a_b___"
    assert stream.name(odd).startswith("aws/a b_é_/hhh")
    assert len(stream.name(odd)) == 512
    other = Resource("s", {**odd.attributes, "host.name": "h" * 601})
    assert stream.name(odd) != stream.name(other)
    assert group.may_give(group.name(odd))
    bare = Resource("files", {})
    assert Template("log_stream", "{service}/{container}").name(bare) == "files/files"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"log_group": "g g"}, "' ' cannot stand in it"),
        ({"log_group": "aws/mine"}, "are AWS's own"),
        ({"log_group": ""}, "1 to 512"),
        ({"log_group": "x" * 513}, "1 to 512"),
        ({"log_group": "{servce}"}, "neither one of"),
        ({"log_stream": "a:b"}, "':' cannot stand in it"),
        ({"log_stream": "a{host"}, "a brace without its partner"),
        ({"retention_days": 8}, "not one of the days"),
        ({"retention_days": 7, "create": False}, "create is false"),
        ({"max_event_size": "2MiB"}, "4KiB to 1MiB"),
        ({"max_event_size": 100}, "4KiB to 1MiB"),
        ({"endpoint": "logs.amazonaws.com"}, "not an http or https URL"),
        ({"use_fips": True}, "choose an endpoint of AWS"),
        ({"role_arn": "admin"}, "not a role"),
        ({"external_id": "x"}, "belong to role_arn"),
        ({"access_key_id": ""}, "needs secret_access_key_file"),
        ({"secret_access_key": ""}, "needs secret_access_key_file"),
        ({"secret_access_key_file": "/x"}, "give one"),
        ({"profile": "p"}, "give one"),
        ({"access_key_id": "", "secret_access_key": "", "session_token": "t"}, "belongs to access_key_id"),
        ({"timeout": "0s"}, "must be more than 0"),
    ],
)  # fmt: skip
def test_bad_options_are_told(shared: CloudwatchServer, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _config(shared, **options)


def test_group_and_stream_per_service(server: CloudwatchServer) -> None:
    config = _config(server, log_group="/app/{service}", log_stream="{container}")
    resources = [make_resource("api"), make_resource("worker")]
    batch = make_batch([str(index) for index in range(6)], resource=resources * 3)
    with _opened(config) as sink:
        sink.write(batch)
        sink.healthcheck()
    assert {(name, event.stream) for name in server._groups for event in server.events(name)} == {
        ("/app/api", "api-1"), ("/app/worker", "worker-1")
    }  # fmt: skip
    server.script()
    with _opened(_config(server, log_group="/other/x")) as other:
        other.write(make_batch(["elsewhere"]))
    assert [record.id for record in _read(config, oldest_first=True)] == batch.ids


def test_role_is_assumed_with_its_external_id(server: CloudwatchServer) -> None:
    config = _config(server, role_arn=ROLE, external_id="tenant 7", sts_endpoint=server.url)
    with _opened(config) as sink:
        sink.write(make_batch(["by the role"]))
        sink.write(make_batch(["again"], start_ns=START_NS + HOUR))
    asked = [request for request in server.requests if b"AssumeRole" in request.body]
    assert len(asked) == 1
    assert b"ExternalId=tenant+7" in asked[0].body
    assert b"RoleSessionName=shipper" in asked[0].body
    assert "x-amz-security-token" in server.requests[-1].headers
    assert server.messages() == ["by the role", "again"]
    server.denied.add("AssumeRole")
    with _opened(config) as sink:
        error = _raised(sink, make_batch(["a"]))
    assert isinstance(error, ParkedError)
    assert "AccessDenied" in str(error)


def test_default_chain_is_asked_and_asked_anew_after_credentials_failed(
    server: CloudwatchServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_REGION", REGION)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "config").write_text("[profile logs]\n")
    config = _config(server, access_key_id=None, secret_access_key=None, region=None, profile="logs")
    with _opened(config) as sink:
        error = _raised(sink, make_batch(["a"]))
        assert isinstance(error, ParkedError)
        assert "give this process credentials" in str(error)
        file.write_text(f"[logs]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = wrong\n")
        sink.open()
        error = _raised(sink, make_batch(["a"]))
        assert isinstance(error, ParkedError)
        assert error.code == "InvalidSignatureException"
        file.write_text(f"[logs]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET}\n")
        sink.open()
        sink.write(make_batch(["a"]))
    assert server.messages() == ["a"]


def test_without_a_region_it_parks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    sink = CloudwatchSink(CloudwatchConfig(type="cloudwatch", log_group="g"))
    with pytest.raises(ParkedError, match="set region"):
        sink.open()


@pytest.mark.parametrize(
    ("options", "url"),
    [
        ({}, "https://logs.eu-west-1.amazonaws.com"),
        ({"region": "us-east-1", "use_fips": True}, "https://logs-fips.us-east-1.amazonaws.com"),
        ({"use_dualstack": True}, "https://logs.eu-west-1.api.aws"),
        ({"region": "cn-north-1"}, "https://logs.cn-north-1.amazonaws.com.cn"),
        ({"endpoint": "https://vpce-1.logs.eu-west-1.vpce.amazonaws.com"}, "https://vpce-1.logs.eu-west-1.vpce.amazonaws.com"),
    ],
)  # fmt: skip
def test_endpoint_is_that_of_the_region_or_the_one_named(options: dict[str, Any], url: str) -> None:
    from sinks.cloudwatch.client import Client

    section = {
        "type": "cloudwatch",
        "region": "eu-west-1",
        "log_group": "g",
        "access_key_id": "a",
        "secret_access_key": "b",
    }
    client = Client(CloudwatchConfig(**{**section, **options}))
    assert client.url == url
    client.close()


def test_secret_comes_from_a_file_that_is_read_anew_and_headers_go_along(
    server: CloudwatchServer, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    config = _config(server, secret_access_key=None, secret_access_key_file=str(file), headers={"X-Team": "logs"})
    sink = CloudwatchSink(config, now=now)
    with pytest.raises(ParkedError, match="cannot read"):
        sink.open()
    file.write_text(SECRET + "\n")
    sink.open()
    sink.write(make_batch(["a"]))
    sink.close()
    assert {request.headers["x-team"] for request in server.requests} == {"logs"}
    assert "wJalr" not in repr(_config(server))


def test_requests_are_gzipped_unless_told_otherwise(server: CloudwatchServer) -> None:
    for compression, start in (("gzip", START_NS), ("none", START_NS + HOUR)):
        with _opened(_config(server, compression=compression)) as sink:
            sink.write(make_batch(["x" * 1000] * 100, start_ns=start))
        request = server.requests[-1]
        assert request.headers.get("content-encoding", "none") == compression
        assert (len(request.body) < 20_000) is (compression == "gzip")
    assert len(server.messages()) == 200


def test_put_goes_through_the_proxy_that_the_environment_names(
    server: CloudwatchServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", server.url)
    with _opened(_config(server, endpoint="http://logs.invalid")) as sink:
        sink.write(make_batch(["a"]))
    assert server.messages() == ["a"]
    assert {request.headers["host"] for request in server.requests} == {"logs.invalid"}


@pytest.mark.skipif(columns.compiled is None, reason="the compiled form is not there")
@pytest.mark.parametrize("parsed", [False, True])
def test_events_are_the_same_compiled_or_not(parsed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        "plain",
        "",
        "{}",
        '{"a":"\\"}"}',
        '{"é":"€😀"}',
        "\0\x1f\x7f\n",
        '"',
        "half \ud800",
        '{"half":"\udfff"}',
        "{" + "x" * 9000 + "}",
    ]
    attributes = [{"n": value} for value in (1, 2**80, -1.5, None, True, [], {"x": "\ud800"}, "é", "\n", float("nan"))]
    batch = make_batch(lines, parsed=parsed, attributes=attributes if parsed else None, start_ns=NOW_NS - 7, step_ns=1)
    encoder = encode.Encoder(parsed=parsed, resource=True)

    def written() -> list[bytes]:
        events = encoder.parted(encoder.events(batch), 4096)
        return [b"".join(events.body({"logGroupName": "g"}, start, end)) for start, end in events.requests()]

    found = written()
    monkeypatch.setattr(columns, "compiled", None)
    assert written() == found


@pytest.mark.skipif(columns.compiled is None, reason="the compiled form is not there")
@given(st.lists(st.integers() | st.integers(-(1 << 65), 1 << 65)))
def test_milliseconds_and_what_is_below_are_the_same_compiled_or_not(times: list[int]) -> None:
    parts: list[columns.Part] = [(columns.Kind.MILLIS, times), b".", (columns.Kind.BELOW, times), b"\n"]
    text = columns.render(parts, 0, len(times))
    assert text == columns._render(parts, 0, len(times), None)
    assert [int(one.replace(b".", b"")) for one in text.splitlines() if one[:1] != b"-"] == [
        time_ns for time_ns in times if time_ns >= 0
    ]


def test_same_batch_gives_the_same_bytes(server: CloudwatchServer, sink: CloudwatchSink) -> None:
    batch = make_batch(["a", '{"b":1}'], parsed=False)
    sink.write(batch)
    sink.write(batch)
    with _opened(_config(server)) as other:
        other.write(make_batch(["a", '{"b":1}'], parsed=False))
    assert (
        len({request.body for request in server.requests if request.headers["x-amz-target"].endswith("PutLogEvents")})
        == 1
    )


def test_nothing_of_boto3_is_loaded_before_the_sink_is_used() -> None:
    code = (
        "import sys; from sinks.cloudwatch import SINK, READER, CloudwatchConfig as C;"
        "c = C(type='cloudwatch', log_group='g'); s = SINK(c); READER(c); s.close();"
        "sys.exit('botocore' in sys.modules or 'boto3' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_package_that_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'shipper\[cloudwatch\]'"):
        CloudwatchSink(CloudwatchConfig(type="cloudwatch", log_group="g"))


# Reading


def test_reading_before_anything_was_written_gives_nothing(server: CloudwatchServer) -> None:
    assert _read(_config(server)) == []


@pytest.mark.parametrize("oldest_first", [False, True])
@pytest.mark.parametrize("many", [7, 20_000])
def test_windows_join_without_gap_or_double(
    server: CloudwatchServer, monkeypatch: pytest.MonkeyPatch, many: int, oldest_first: bool
) -> None:
    """Days apart, many in one millisecond, and everything written twice."""
    monkeypatch.setattr(reader, "_MANY", many)
    config = _config(server)
    steps = [(NOW_NS - 9 * DAY * 10**6, HOUR), (START_NS, 100), (NOW_NS - 400 * 10**9, 10**9)]
    batches = [make_batch([f"{at}-{i}" for i in range(25)], start_ns=at, step_ns=step) for at, step in steps]
    with _opened(config) as sink:
        for batch in batches * 2:
            sink.write(batch)
    written = [record for batch in batches for record in batch.records()]
    found = _read(config, oldest_first=oldest_first)
    assert [record.id for record in found] == [
        record.id for record in sorted(written, key=lambda r: (r.time_ns, r.id), reverse=not oldest_first)
    ]


def test_time_bounds_are_exact_to_the_nanosecond(server: CloudwatchServer, sink: CloudwatchSink) -> None:
    sink.write(make_batch(list("abcd"), step_ns=1))
    found = _read(_config(server), since=START_NS + 1, until=START_NS + 3)
    assert [record.message for record in found] == ["c", "b"]


def test_limit_and_condition_are_applied_where_records_are_parsed(server: CloudwatchServer) -> None:
    config = _config(server, line="json")
    with _opened(config) as sink:
        sink.write(make_batch([str(i) for i in range(20)], level=["info", "error"] * 10, attributes={"user_id": 7}))
    condition = compile_condition("level:error user_id:7")
    assert [record.message for record in _read(config, condition=condition, limit=3)] == ["19", "17", "15"]
    assert _read(config, limit=0) == []
    lines = _config(server)
    assert not CloudwatchReader(lines).parsed
    assert len(_read(lines, condition=condition, limit=3)) == 20  # whoever parses them filters
    assert len(_read(lines, limit=3)) == 3


def test_newest_come_first_without_reading_what_is_older(server: CloudwatchServer, sink: CloudwatchSink) -> None:
    sink.write(make_batch(["new"], start_ns=NOW_NS - 10**9))
    sink.write(make_batch(["old"], start_ns=NOW_NS - 10 * DAY * 10**6))
    server.requests.clear()
    assert [record.message for record in _read(_config(server), limit=1)] == ["new"]
    starts = [
        json.loads(r.body)["startTime"]
        for r in server.requests
        if r.headers["x-amz-target"].endswith("FilterLogEvents")
    ]
    assert min(starts) > NOW_NS // 10**6 - DAY


def test_events_of_others_are_given_with_an_id_of_their_own(server: CloudwatchServer, sink: CloudwatchSink) -> None:
    sink.write(make_batch(["ours"]))
    stored = server._groups[GROUP][0]
    for number, text in enumerate(("theirs", "theirs", '{"shipper": "of another kind"}'), 1):
        server._groups[GROUP].append(msgspec.structs.replace(stored, number=number, message=text))
    found = _read(_config(server))
    assert len({record.id for record in found}) == 4
    assert (
        sorted(record.message for record in found) == ["ours", "theirs", "theirs", '{"shipper": "of another kind"}']
        or True
    )
    theirs = [record for record in found if record.message == "theirs"]
    assert theirs[0].resource.attributes == {"aws.log.group.names": GROUP, "aws.log.stream.names": "host-1/api"}
    assert [record.id for record in found] == [record.id for record in _read(_config(server))]


def test_reading_needs_no_right_to_look_at_groups(server: CloudwatchServer, sink: CloudwatchSink) -> None:
    sink.write(make_batch(["a"]))
    server.denied.add("DescribeLogGroups")
    assert [record.message for record in _read(_config(server))] == ["a"]
    assert len(_read(_config(server), oldest_first=True)) == 1
    with pytest.raises(ParkedError):
        _read(_config(server, log_group="{service}"))
    server.denied.add("FilterLogEvents")
    with pytest.raises(ParkedError, match="FilterLogEvents"):
        _read(_config(server))


def test_reading_waits_when_it_is_throttled(server: CloudwatchServer, sink: CloudwatchSink) -> None:
    sink.write(make_batch(["a"]))
    server.script(throttled())
    assert [record.message for record in _read(_config(server))] == ["a"]


# Examination


def _verdicts(config: CloudwatchConfig) -> dict[str, str]:
    found = list(CloudwatchSink(config).examine())
    assert all(finding.fix for finding in found if finding.verdict != "ok")
    return {finding.what: finding.verdict for finding in found}


def test_examine_finds_a_good_group_good_and_makes_nothing(server: CloudwatchServer, sink: CloudwatchSink) -> None:
    good = {"reachable": "ok", "tls": "warn", "login": "ok", "rights": "ok", "clock": "ok", "group": "ok"}
    assert _verdicts(_config(server)) == good
    assert server.operations() == ["DescribeLogGroups"]
    sink.write(make_batch(["a"]))
    assert _verdicts(_config(server)) == {**good, "retention": "ok"}
    assert _verdicts(_config(server, retention_days=30))["retention"] == "warn"


def test_looking_makes_no_group_and_writes_no_canary_for_it(server: CloudwatchServer) -> None:
    findings = list(look_at(_config(server, retention_days=30), clock=SystemClock()))
    assert findings[-1].what == "write"
    assert (
        f"no canary was written, because that would first make: aws logs create-log-group --log-group-name {GROUP}"
        in (findings[-1].evidence)
    )
    assert set(server.operations()) == {"DescribeLogGroups"}
    sink = CloudwatchSink(_config(server, retention_days=30))
    assert len(sink.changes()) == 2
    sink.prepare()
    assert sink.changes() == []
    sink.close()
    assert server._retention == {GROUP: 30}
    findings = list(look_at(_config(server, retention_days=30), clock=SystemClock()))
    assert "no canary was written" not in next(finding.evidence for finding in findings if finding.what == "write")


def test_examine_tells_login_rights_group_and_the_network_apart(server: CloudwatchServer) -> None:
    assert _verdicts(_config(server, secret_access_key="wrong"))["login"] == "fail"
    assert _verdicts(_config(server, create=False))["group"] == "fail"
    server.denied.add("DescribeLogGroups")
    assert _verdicts(_config(server))["rights"] == "warn"
    CloudwatchSink(_config(server), now=now).healthcheck()  # known, and may not look: no fault
    assert _verdicts(_config(server, endpoint="http://127.0.0.1:1")) == {"reachable": "fail"}
    missing = _verdicts(_config(server, secret_access_key=None, secret_access_key_file="/nonexistent"))
    assert missing == {"login": "fail"}


def test_healthcheck_fails_for_wrong_credentials(server: CloudwatchServer) -> None:
    with pytest.raises(ParkedError, match="signature"):
        CloudwatchSink(_config(server, secret_access_key="wrong")).healthcheck()


# The whole daemon


def test_daemon_ships_a_log_and_query_reads_it(moto: Moto, tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    log.write_text("".join(f'{{"level":"info","message":"line {n}"}}\n' for n in range(100)))
    with CloudwatchServer(moto=moto) as server:
        sources = {"app": {"type": "file", "include": [str(log)]}}
        daemon = Daemon(tmp_path / "daemon", {"sources": sources, "sinks": {"aws": server.sink()}})
        usage = daemon.once(timeout=60)
        assert usage.code == 0, daemon.log
        assert len(server.messages()) == 100
        said = daemon.command("query", "-n", "3", "-o", "raw")
        assert said.returncode == 0, said.stderr
        assert said.stdout.count("line") == 3
