"""The stand-in for CloudWatch Logs refuses what the service refuses, and gives pages as the service does."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import botocore.session
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from support.cloudwatch_server import (
    ACCESS_KEY,
    BATCH,
    DAY,
    EVENT,
    REGION,
    SECRET,
    CloudwatchServer,
)
from support.moto_server import Moto
from support.process import serving

NOW = 1_767_323_045.0
AT = int(NOW * 1000)


def now() -> float:
    return NOW


@pytest.fixture(scope="module")
def shared() -> Iterator[CloudwatchServer]:
    with Moto() as moto, CloudwatchServer(moto=moto, now=now) as server:
        yield server


@pytest.fixture(scope="module")
def kept_client(shared: CloudwatchServer) -> Iterator[Any]:
    client = _client(shared)
    yield client
    client.close()


@pytest.fixture
def server(shared: CloudwatchServer) -> CloudwatchServer:
    shared.clear()
    return shared


@pytest.fixture
def client(server: CloudwatchServer, kept_client: Any) -> Any:
    """A client of boto's own, with a group and a stream."""
    kept_client.create_log_group(logGroupName="g")
    kept_client.create_log_stream(logGroupName="g", logStreamName="s")
    return kept_client


def _client(server: CloudwatchServer, key: str = ACCESS_KEY, secret: str = SECRET) -> Any:
    return botocore.session.get_session().create_client(
        "logs",
        region_name=REGION,
        endpoint_url=server.url,
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        config=Config(parameter_validation=False, retries={"total_max_attempts": 1}),
    )


def _put(client: Any, *events: tuple[int, str], group: str = "g", stream: str = "s") -> dict[str, Any]:
    told = [{"timestamp": at, "message": message} for at, message in events]
    answer: dict[str, Any] = client.put_log_events(logGroupName=group, logStreamName=stream, logEvents=told)
    return answer.get("rejectedLogEventsInfo", {})


def _filter(client: Any, **options: Any) -> tuple[list[str], list[int]]:
    """Read all pages: the messages, and how many events each page had."""
    messages: list[str] = []
    pages: list[int] = []
    while True:
        answer = client.filter_log_events(logGroupName="g", **options)
        messages += [event["message"] for event in answer["events"]]
        pages.append(len(answer["events"]))
        if "nextToken" not in answer:
            return messages, pages
        options["nextToken"] = answer["nextToken"]


@pytest.mark.parametrize(
    ("events", "text"),
    [
        ([(AT, "x" * (EVENT - 25))], "Log event too large: 1048577 bytes exceeds limit of 1048576"),
        ([(AT, "é" * 300_000), (AT, "é" * 230_000)], "Upload too large: 1060052 bytes exceeds limit of 1048576"),
        ([(AT, "x")] * 10_001, "Member must have length less than or equal to 10000"),
        ([], "Member must have length greater than or equal to 1"),
        ([(AT, "")], "Member must have length greater than or equal to 1"),
        ([(AT, "x"), (AT - 1, "x")], "must be in chronological order"),
        ([(AT - DAY - 1, "x"), (AT, "x")], "cannot span more than 24 hours"),
        ([(-1, "x")], "Member must have value greater than or equal to 0"),
    ],
)
def test_puts_that_the_service_refuses_are_refused(client: Any, events: list[tuple[int, str]], text: str) -> None:
    with pytest.raises(ClientError, match=text) as caught:
        _put(client, *events)
    assert caught.value.response["Error"]["Code"] == "InvalidParameterException"
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400


@pytest.mark.parametrize(
    "events",
    [
        [(AT, "x" * (EVENT - 26))],
        [(AT, "x" * (BATCH // 2 - 26))] * 2,
        [(AT - DAY, "x"), (AT, "x")],
    ],
)
def test_puts_at_the_limit_are_taken(client: Any, server: CloudwatchServer, events: list[tuple[int, str]]) -> None:
    assert _put(client, *events) == {}
    assert len(server.events()) == len(events)


def test_rejected_indexes_are_the_services_and_not_motos(client: Any, server: CloudwatchServer) -> None:
    old, new = AT - 14 * DAY - 10, AT + 2 * 3_600_000 + 10
    info = _put(client, (old, "a"), (old + 1, "b"), (AT, "good"), (new, "c"), (new + 1, "d"))
    assert info == {"tooOldLogEventEndIndex": 2, "tooNewLogEventStartIndex": 3}
    assert [event.message for event in server.events()] == ["good"]
    client.put_retention_policy(logGroupName="g", retentionInDays=1)
    assert _put(client, (AT - DAY - 1, "a"), (AT - DAY + 10, "b")) == {"expiredLogEventEndIndex": 1}


@pytest.mark.parametrize(
    ("operation", "options", "code"),
    [
        ("create_log_group", {"logGroupName": "g g$"}, "InvalidParameterException"),
        ("create_log_group", {"logGroupName": "aws/x"}, "InvalidParameterException"),
        ("create_log_group", {"logGroupName": "x" * 513}, "InvalidParameterException"),
        ("create_log_group", {"logGroupName": "g"}, "ResourceAlreadyExistsException"),
        ("create_log_stream", {"logGroupName": "g", "logStreamName": "a:b*c"}, "InvalidParameterException"),
        ("create_log_stream", {"logGroupName": "g", "logStreamName": "s"}, "ResourceAlreadyExistsException"),
        ("create_log_stream", {"logGroupName": "none", "logStreamName": "s"}, "ResourceNotFoundException"),
        ("put_retention_policy", {"logGroupName": "g", "retentionInDays": 8}, "InvalidParameterException"),
        ("put_retention_policy", {"logGroupName": "none", "retentionInDays": 7}, "ResourceNotFoundException"),
        ("filter_log_events", {"logGroupName": "none"}, "ResourceNotFoundException"),
        ("filter_log_events", {"logGroupName": "g", "limit": 10_001}, "InvalidParameterException"),
        ("filter_log_events", {"logGroupName": "g", "nextToken": "made up"}, "InvalidParameterException"),
        (
            "filter_log_events",
            {"logGroupName": "g", "startFromHead": False, "startTime": 1},
            "InvalidParameterException",
        ),
        (
            "filter_log_events",
            {"logGroupName": "g", "logStreamNames": ["s"], "logStreamNamePrefix": "s"},
            "InvalidParameterException",
        ),
    ],
)
def test_other_requests_are_refused_as_by_the_service(
    client: Any, operation: str, options: dict[str, Any], code: str
) -> None:
    with pytest.raises(ClientError) as caught:
        getattr(client, operation)(**options)
    assert caught.value.response["Error"]["Code"] == code


def test_missing_group_and_stream_are_told(client: Any) -> None:
    for names, text in (({"group": "none"}, "log group does not exist"), ({"stream": "none"}, "log stream does not")):
        with pytest.raises(ClientError, match=text) as caught:
            _put(client, (AT, "x"), **names)
        assert caught.value.response["Error"]["Code"] == "ResourceNotFoundException"


@pytest.mark.parametrize(
    ("key", "secret", "code"),
    [("AKIAUNKNOWN", SECRET, "UnrecognizedClientException"), (ACCESS_KEY, "wrong", "InvalidSignatureException")],
)
def test_signature_is_checked(server: CloudwatchServer, key: str, secret: str, code: str) -> None:
    client = _client(server, key, secret)
    with pytest.raises(ClientError) as caught:
        client.describe_log_groups()
    client.close()
    assert caught.value.response["Error"]["Code"] == code


def test_right_that_is_taken_away_is_told(client: Any, server: CloudwatchServer) -> None:
    server.denied.add("PutLogEvents")
    with pytest.raises(ClientError, match="not authorized to perform: logs:PutLogEvents") as caught:
        _put(client, (AT, "x"))
    assert caught.value.response["Error"]["Code"] == "AccessDeniedException"


def test_pages_are_small_or_empty_and_only_a_missing_token_is_the_end(client: Any, server: CloudwatchServer) -> None:
    """1 MB a page, an empty one before each, either end first, both bounds included."""
    for start in range(0, 60, 20):
        _put(client, *[(AT + at, f"{at} " + "x" * 50_000) for at in range(start, start + 20)])
    messages, pages = _filter(client)
    assert [int(message.split()[0]) for message in messages] == list(range(60))
    assert pages == [0, 20, 0, 20, 0, 20]
    backwards, _ = _filter(client, startFromHead=False, startTime=AT - 1)
    assert backwards == messages[::-1]
    assert _filter(client, startTime=AT + 7, endTime=AT + 9)[0] == messages[7:10]
    assert _filter(client, limit=7, logStreamNamePrefix="s", endTime=AT + 9)[1] == [0, 7, 0, 3]
    assert _filter(client, logStreamNames=["other"])[0] == []


def test_token_belongs_to_its_question(client: Any) -> None:
    _put(client, (AT, "x"))
    token = client.filter_log_events(logGroupName="g")["nextToken"]
    with pytest.raises(ClientError, match="nextToken is invalid"):
        client.filter_log_events(logGroupName="g", startTime=5, nextToken=token)


def test_what_it_gives_is_what_moto_holds(client: Any, server: CloudwatchServer) -> None:
    _put(client, *[(AT + at, f"line {at}") for at in range(5)])
    assert server._moto is not None
    direct = botocore.session.get_session().create_client(
        "logs", region_name=REGION, endpoint_url=server._moto.url, aws_access_key_id="x", aws_secret_access_key="y"
    )
    held = [event["message"] for event in direct.filter_log_events(logGroupName="g")["events"]]
    direct.close()
    assert held == _filter(client)[0] == [event.message for event in server.events()]


def test_discarding_it_only_counts_and_needs_no_moto() -> None:
    with CloudwatchServer(keep=False, now=now) as server:
        client = _client(server)
        _put(client, (AT, "x"), (AT, "y"), group="any", stream="any")
        with pytest.raises(ClientError):
            _put(client, (AT, ""))
        client.close()
        assert (server.count, server.events()) == (2, [])
        assert server._moto is None


def test_it_runs_as_a_process_that_tells_its_url() -> None:
    with serving("cloudwatch_server", "--discard") as url:
        request = urllib.request.Request(url, data=b"{}", method="POST")
        with pytest.raises(urllib.error.HTTPError, match="400") as caught:
            urllib.request.urlopen(request, timeout=10)
        caught.value.close()


def test_moto_ends_with_whoever_started_it() -> None:
    """A test run that is killed leaves nothing behind: the process ends when its standard input does."""
    moto = Moto()
    assert moto._process.stdin is not None
    moto._process.stdin.close()
    begin = time.monotonic()
    moto._process.wait(30)
    assert time.monotonic() - begin < 30
    moto.close()
