"""The stand-in for Loki refuses what the real one refuses, with its statuses and texts, and loses what it loses."""

from __future__ import annotations

import gzip
import json
import re
import signal
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Iterator
from typing import Any

import cramjam
import pytest

from support.logql import compile_query
from support.loki_server import LokiLimits, LokiServer
from support.process import first_line, start_module

NOW = 1_767_323_045_000_000_000
SECOND = 10**9
HOUR = 3600 * SECOND
DAY = 24 * HOUR


class Client:
    """A server whose clock stands still, and plain HTTP to it."""

    def __init__(self, **options: Any) -> None:
        self.now = NOW
        self.server = LokiServer(clock=lambda: self.now, **options)

    def request(self, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str]:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.server.url + path, data=body, headers=names)
        # urllib would name a type of its own.
        if body is not None and "Content-Type" not in names:
            request.add_unredirected_header("Content-Type", "")
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def push(self, *streams: tuple[dict[str, str], list[list[Any]]], **headers: str) -> tuple[int, str]:
        body = {"streams": [{"stream": labels, "values": values} for labels, values in streams]}
        return self.request(
            "/loki/api/v1/push", json.dumps(body).encode(), **{"Content_Type": "application/json", **headers}
        )

    def line(self, line: str, at: int = NOW, metadata: dict[str, str] | None = None, **labels: str) -> tuple[int, str]:
        value = [str(at), line] if metadata is None else [str(at), line, metadata]
        return self.push((labels or {"a": "b"}, [value]))

    def query(self, query: str, headers: dict[str, str] | None = None, **asked: Any) -> tuple[int, Any]:
        asked = {"query": query, "start": NOW - HOUR, "end": NOW + 1, **asked}
        status, text = self.request(f"/loki/api/v1/query_range?{urllib.parse.urlencode(asked)}", **(headers or {}))
        return status, json.loads(text)["data"] if status == 200 else text


@pytest.fixture
def client() -> Iterator[Client]:
    client = Client()
    yield client
    client.server.close()


CATEGORIZE = {"X_Loki_Response_Encoding_Flags": "categorize-labels"}

# The wire


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [("", bytes), ("gzip", gzip.compress), ("deflate", lambda body: zlib.compress(body, wbits=-15))],
)
def test_json_is_taken_plain_and_packed(client: Client, encoding: str, pack: Any) -> None:
    body = pack(json.dumps({"streams": [{"stream": {"a": "b"}, "values": [[str(NOW), "x"]]}]}).encode())
    headers = {"Content_Type": "application/json; charset=utf-8"} | ({"Content_Encoding": encoding} if encoding else {})
    assert client.request("/loki/api/v1/push", body, **headers) == (204, "")
    assert client.server.messages() == ["x"]


def _protobuf(labels: str, time_ns: int, line: str) -> bytes:
    def field(number: int, body: bytes) -> bytes:
        assert len(body) < 128
        return bytes([number << 3 | 2, len(body)]) + body

    def number(value: int) -> bytes:
        out = b""
        while value >= 0x80:
            out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
        return out + bytes([value])

    stamp = b"\x08" + number(time_ns // SECOND) + b"\x10" + number(time_ns % SECOND)
    pair = field(1, b"trace.id") + field(2, b"7")
    entry = field(1, stamp) + field(2, line.encode()) + field(3, pair)
    return field(1, field(1, labels.encode()) + field(2, entry))


@pytest.mark.parametrize("encoding", ["", "snappy", "gzip"])
def test_protobuf_is_snappy_without_frames(client: Client, encoding: str) -> None:
    body = bytes(cramjam.snappy.compress_raw(_protobuf('{a="b", c="d\\"é"}', NOW + 5, "x")))
    if encoding == "gzip":
        body = gzip.compress(body)
    headers = {"Content_Type": "application/x-protobuf"} | ({"Content_Encoding": encoding} if encoding else {})
    assert client.request("/loki/api/v1/push", body, **headers)[0] == 204
    [(labels, time_ns, line, metadata)] = client.server.entries()
    assert (labels["c"], time_ns, line, metadata["trace_id"]) == ('d"é', NOW + 5, "x", "7")


@pytest.mark.parametrize(
    ("headers", "body", "text"),
    [
        ({}, b"{}", "mime: no media type"),
        ({"Content_Type": "application/json", "Content_Encoding": "br"}, b"{}", 'Content-Encoding "br" not supported'),
        ({"Content_Type": "application/json", "Content_Encoding": "zstd"}, b"{}", "not supported"),
        ({"Content_Type": "application/json", "Content_Encoding": "gzip"}, b"{}", "not gzip"),
        ({"Content_Type": "application/json"}, b"{", "loghttp.PushRequest.Streams"),
        ({"Content_Type": "application/json"}, b'{"streams":[{"stream":{"a":"b"},"values":[[1,"x"]]}]}', "streams"),
        ({"Content_Type": "application/json"}, b'{"streams":[{"stream":{"a":"b"},"values":[["1x","x"]]}]}', "ParseInt"),
        ({"Content_Type": "application/json"}, b'{"streams":[{"stream":{"a":"b"},"values":[["1",5]]}]}', "streams"),
        (
            {"Content_Type": "application/json"},
            b'{"streams":[{"stream":{"a":"b"},"values":[["1","x",{"n":5}]]}]}',
            "streams",
        ),
        (
            {"Content_Type": "application/json"},
            b'{"streams":[{"stream":{"a-b":"c"},"values":[]}]}',
            "couldn't parse labels",
        ),
        (
            {"Content_Type": "application/json"},
            b'{"streams":[{"stream":{"a":"b"},"values":[["1","\\ud800"]]}]}',
            "loghttp",
        ),
        ({"Content_Type": "application/x-protobuf"}, b"\xff\xff\xff", "snappy: corrupt input"),
        ({"Content_Type": "text/plain"}, b'{"streams":[]}', "snappy: corrupt input"),
    ],
)
def test_what_cannot_be_read_is_400_as_a_whole(client: Client, headers: dict[str, str], body: bytes, text: str) -> None:
    status, told = client.request("/loki/api/v1/push", body, **headers)
    assert status == 400
    assert text in told
    assert client.server.count == 0


@pytest.mark.parametrize("labels", ["{a=b}", "a", '{a="b" c="d"}', '{a~"b"}'])
def test_labels_of_protobuf_must_be_a_selector(client: Client, labels: str) -> None:
    body = bytes(cramjam.snappy.compress_raw(_protobuf(labels, NOW, "x")))
    status, told = client.request("/loki/api/v1/push", body, Content_Type="application/x-protobuf")
    assert (status, "couldn't parse labels" in told) == (400, True)


def test_push_of_nothing_is_422(client: Client) -> None:
    assert client.push() == (422, "error at least one valid stream is required for ingestion\n")


def test_other_paths_and_methods(client: Client) -> None:
    assert client.request("/ready") == (200, "ready\n")
    assert client.request("/elsewhere")[0] == 404
    assert client.request("/loki/api/v1/push")[0] == 405
    assert client.request("/loki/api/v1/query_range", b"")[0] == 405


# The distributor


def _sized(length: int) -> dict[str, str]:
    return {"n": "v" * (length - 1)}


@pytest.mark.parametrize(
    ("fine", "refused", "text"),
    [
        (
            {"line": "x" * 262_144},
            {"line": "x" * 262_145},
            "Max entry size '262144' bytes exceeded for stream '{a=\"b\"",
        ),
        ({"line": "é" * 131_072}, {"line": "é" * 131_072 + "x"}, "while adding an entry with length '262145' bytes"),
        (
            {"metadata": _sized(65_536)},
            {"metadata": _sized(65_537)},
            "structured metadata too large: '65537' bytes, limit",
        ),
        (
            {"metadata": {f"n{n}": "" for n in range(128)}},
            {"metadata": {f"n{n}": "" for n in range(129)}},
            "has too many structured metadata labels: '129', limit: '128'",
        ),
        (
            {"at": NOW - 7 * DAY},
            {"at": NOW - 7 * DAY - 1},
            "has timestamp too old: 2025-12-26T03:04:04Z, oldest acceptable",
        ),
        ({"at": NOW + 600 * SECOND}, {"at": NOW + 600 * SECOND + 1}, "has timestamp too new: 2026-01-02T03:14:05Z"),
        ({f"l{n}": "x" for n in range(15)}, {f"l{n}": "x" for n in range(16)}, "has 16 label names; limit 15"),
        ({"a" * 1024: "x"}, {"a" * 1025: "x"}, "label name too long: 'aaa"),
        ({"a": "x" * 2048}, {"a": "x" * 2049}, "label value too long: 'xxx"),
        ({"a": "x"}, {"a": ""}, "error at least one label pair is required per stream"),
    ],
)
def test_limit_is_held_to_the_byte(client: Client, fine: dict[str, Any], refused: dict[str, Any], text: str) -> None:
    assert client.line(**{"line": "x", **fine}) == (204, "")
    status, told = client.line(**{"line": "x", **refused})
    assert status == 400
    assert text in told
    assert client.server.count == 1


def test_duplicate_label_is_refused(client: Client) -> None:
    body = bytes(cramjam.snappy.compress_raw(_protobuf('{a="b", a="c"}', NOW, "x")))
    status, told = client.request("/loki/api/v1/push", body, Content_Type="application/x-protobuf")
    assert (status, "has duplicate label name: 'a'" in told) == (400, True)


def test_rest_of_a_push_is_stored_and_equal_refusals_are_counted(client: Client) -> None:
    old = str(NOW - 8 * DAY)
    values = [[str(NOW), "good"], [old, "1"], [old, "2"], [str(NOW), "x" * 300_000]]
    status, told = client.push(({"a": "b"}, values), ({"c": ""}, [[str(NOW), "y"]]))
    assert status == 400
    assert '2 errors like: entry for stream \'{a="b", service_name="unknown_service"}\' has timestamp too old' in told
    assert "1 errors like: Max entry size" in told
    assert "1 errors like: error at least one label pair" in told
    assert told.count("; ") == 2
    assert client.server.messages() == ["good"]


def test_structured_metadata_can_be_forbidden() -> None:
    client = Client(limits=LokiLimits(allow_structured_metadata=False))
    assert client.line("x", metadata={"id": "1"})[0] == 400
    assert client.line("x") == (204, "")
    client.server.close()


def test_service_name_and_level_are_added(client: Client) -> None:
    client.line("x", app="shop", level="warn")
    client.line("y", z="1")
    found = {entry[2]: (entry[0].get("service_name"), entry[3]) for entry in client.server.entries()}
    assert found["x"] == ("shop", {"detected_level": "warn"})
    assert found["y"] == ("unknown_service", {"detected_level": "unknown"})


def test_tenant_is_needed_and_keeps_apart() -> None:
    client = Client(auth_enabled=True, login="Bearer t")
    assert client.line("x")[0] == 401
    assert client.push(({"a": "b"}, [[str(NOW), "x"]]), Authorization="Bearer t") == (401, "no org id")
    headers = {"Authorization": "Bearer t", "X_Scope_OrgID": "one"}
    assert client.push(({"a": "b"}, [[str(NOW), "x"]]), **headers)[0] == 204
    assert len(client.query('{a="b"}', headers=headers)[1]["result"]) == 1
    assert client.query('{a="b"}', headers={**headers, "X_Scope_OrgID": "two"})[1]["result"] == []
    client.server.close()


def test_block_answers_260_and_with_200_loses_in_silence(client: Client) -> None:
    client.server.blocked = 260
    status, told = client.line("x")
    assert (status, told.startswith("ingestion blocked for user fake until '")) == (260, True)
    client.server.blocked = 200
    assert client.line("x") == (204, "")
    assert client.server.count == 0


# Rates and sizes


def test_rate_of_the_tenant_is_all_or_nothing_and_a_push_above_the_burst_never_passes() -> None:
    client = Client(limits=LokiLimits(ingestion_rate=1000, ingestion_burst=2000))
    big = {"a": "b"}, [[str(NOW + n), "x" * 100, {"n": "v" * 99}] for n in range(11)]
    for _ in range(3):
        status, told = client.push(big)
        assert status == 429
        assert told.startswith(
            "Ingestion rate limit exceeded for user fake (limit: 1000 bytes/sec) while attempting to"
        )
        assert "ingest '11' lines totaling '2200' bytes" in told
        client.now += 60 * SECOND
    assert client.server.count == 0
    half = {"a": "b"}, big[1][:10]
    assert client.push(half) == (204, "")
    assert client.line("y")[0] == 429
    client.now += SECOND // 1000
    assert client.line("y") == (204, "")
    client.server.close()


def test_rate_of_a_stream_refuses_the_whole_stream_and_no_other() -> None:
    client = Client(limits=LokiLimits(per_stream_rate=1 << 20, per_stream_burst=1 << 20), masks=False)
    big = [[str(NOW + n), "x" * 200_000] for n in range(6)]
    status, told = client.push(({"a": "b"}, big), ({"a": "c"}, [[str(NOW), "y"]]))
    assert status == 429
    assert 'Per stream rate limit exceeded (limit: 1MB/sec) while attempting to ingest for stream \'{a="b"' in told
    assert 'total ignored: 6 out of 6 for stream: {a="b"' in told
    assert client.server.messages() == ["y"]
    client.server.close()


def test_streams_are_limited() -> None:
    client = Client(limits=LokiLimits(max_global_streams_per_user=1))
    assert client.line("x", a="1")[0] == 204
    status, told = client.line("x", a="2")
    assert (status, 'Maximum active stream limit exceeded when trying to create stream {a="2"' in told) == (429, True)
    assert client.line("y", a="1")[0] == 204
    client.server.close()


def test_message_above_four_mib_is_500_and_body_above_its_limit_413() -> None:
    client = Client(limits=LokiLimits(ingestion_burst=1 << 30, per_stream_burst=1 << 30))
    lines = [[str(NOW + n), "x" * 250_000] for n in range(17)]
    status, told = client.push(({"a": "b"}, lines))
    assert status == 500
    found = re.search(r"ResourceExhausted desc = grpc: received message larger than max \((\d+) vs\. 4194304\)", told)
    assert found is not None
    assert int(found[1]) > 4_194_304
    assert client.server.count == 0
    assert client.push(({"a": "b"}, lines[:16]))[0] == 204
    client.server.limits = LokiLimits(max_recv_msg_size=100)
    assert client.line("x" * 100)[0] == 413
    client.server.close()


# The ingester


def test_an_hour_behind_the_newest_of_the_stream_is_refused_the_rest_stored(client: Client) -> None:
    client.line("head")
    values = [[str(NOW - HOUR - n * SECOND // 4), f"late {n}"] for n in range(12)] + [[str(NOW - HOUR), "within"]]
    status, told = client.push(({"a": "b"}, values))
    assert status == 400
    assert told.count("ignored, reason: 'entry too far behind, entry timestamp is: 2026-01-02T02:04:0") == 10
    assert "entry with timestamp 2026-01-02 02:04:04.75 +0000 UTC ignored" in told
    assert "oldest acceptable timestamp is: 2026-01-02T02:04:05Z'" in told
    # The edge itself is within: the first of the twelve stands there, too.
    assert 'user \'fake\', total ignored: 11 out of 13 for stream: {a="b", service_name="unknown_service"}' in told
    assert client.server.messages() == ["late 0", "within", "head"]
    assert client.line("another stream", at=NOW - 2 * HOUR, a="c") == (204, "")


def test_head_moves_within_a_push(client: Client) -> None:
    values = [[str(NOW), "head"], [str(NOW - HOUR - 1), "late"]]
    assert client.push(({"a": "b"}, values))[0] == 400
    assert client.push(({"a": "c"}, values[::-1])) == (204, "")


@pytest.mark.parametrize(("masks", "status"), [(True, 204), (False, 400)])
def test_refusal_of_any_stream_but_the_last_is_forgotten(masks: bool, status: int) -> None:
    client = Client(masks=masks)
    client.line("head")
    late = {"a": "b"}, [[str(NOW - 2 * HOUR), "late"]]
    good = {"a": "c"}, [[str(NOW), "good"]]
    assert client.push(late, good)[0] == status
    assert client.push(good, late)[0] == 400
    assert sorted(client.server.messages()) == ["good", "head"]
    client.server.close()


def test_ingesters_refusal_takes_the_place_of_the_distributors(client: Client) -> None:
    client.line("head")
    status, told = client.push(({"a": "b"}, [[str(NOW - 2 * HOUR), "late"], [str(NOW), "x" * 300_000]]))
    assert (status, "too far behind" in told, "Max entry" in told) == (400, True, False)


def test_restart_forgets_the_heads(client: Client) -> None:
    client.line("head")
    client.server.restart()
    assert client.line("late", at=NOW - 2 * HOUR) == (204, "")
    assert client.server.messages() == ["late", "head"]


@pytest.mark.parametrize(("counts", "stored"), [(True, 3), (False, 2)])
def test_equal_entries_of_a_block_are_stored_once(counts: bool, stored: int) -> None:
    client = Client(metadata_counts=counts)
    for _ in range(2):
        client.line("same", metadata={"id": "1"})
        client.line("same", metadata={"id": "2"})
        client.line("other", at=NOW + 1)
    assert client.server.count == stored
    # Only within a block of 256 KiB.
    client.line("x" * 262_144, at=NOW + 2)
    client.line("same", metadata={"id": "1"})
    assert client.server.count == stored + 2
    client.server.close()


# Reading


def _lines(data: Any) -> list[str]:
    return [line for stream in data["result"] for _, line, *_ in stream["values"]]


def test_range_is_half_open_and_limit_and_direction_hold(client: Client) -> None:
    client.push(({"a": "b"}, [[str(NOW + n), f"{n}"] for n in range(5)]))
    asked = {"start": NOW + 1, "end": NOW + 4}
    assert _lines(client.query('{a="b"}', **asked, direction="forward")[1]) == ["1", "2", "3"]
    assert _lines(client.query('{a="b"}', **asked)[1]) == ["3", "2", "1"]
    assert _lines(client.query('{a="b"}', **asked, limit=2)[1]) == ["3", "2"]
    assert _lines(client.query('{a="b"}', **asked, limit=2, direction="forward")[1]) == ["1", "2"]


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"limit": 5001}, "max entries limit per query exceeded, limit > max_entries_limit_per_query (5001 > 5000)"),
        (
            {"start": NOW - 721 * HOUR},
            "the query time range exceeds the limit (query length: 721h0m0s, limit: 30d1h)",
        ),
        ({"start": NOW + 2}, "end timestamp must not be before or equal to start time"),
        ({"limit": 0}, "limit must be a positive value"),
        ({"direction": "up"}, "invalid direction"),
    ],
)
def test_question_outside_the_limits_is_400(client: Client, asked: dict[str, Any], text: str) -> None:
    status, told = client.query('{a="b"}', **asked)
    assert status == 400
    assert text in told


def test_defaults_are_the_last_hour_and_a_hundred(client: Client) -> None:
    client.push(({"a": "b"}, [[str(NOW - n * SECOND), f"{n}"] for n in range(1, 150)]))
    client.line("older", at=NOW - 2 * HOUR, a="b", c="d")
    status, text = client.request("/loki/api/v1/query_range?query=%7Ba%3D%22b%22%7D")
    assert status == 200
    assert _lines(json.loads(text)["data"]) == [f"{n}" for n in range(1, 101)]


def test_metadata_counts_as_labels_unless_told_apart(client: Client) -> None:
    client.push(({"a": "b"}, [[str(NOW), "x", {"id": "1"}], [str(NOW), "y", {"id": "2"}]]))
    _, merged = client.query('{a="b"}')
    assert [stream["stream"]["id"] for stream in merged["result"]] == ["2", "1"]
    _, apart = client.query('{a="b"}', headers=CATEGORIZE)
    [stream] = apart["result"]
    assert stream["stream"] == {"a": "b", "service_name": "unknown_service"}
    assert [value[2]["structuredMetadata"]["id"] for value in stream["values"]] == ["2", "1"]
    assert apart["encodingFlags"] == ["categorize-labels"]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ('{level="error"}', "e1 e2"),
        ('{level!="error",job="j"}', "i1 w1"),
        ('{level=~"err.*|warn"}', "e1 e2 w1"),
        ('{level=~"rr"}', ""),
        ('{job="j",level!~"e.+"}', "i1 w1"),
        ('{job="j", missing=""}', "e1 e2 i1 w1"),
        ('{job="j"} |= "e"', "e1 e2"),
        ('{job="j"} != "1"', "e2"),
        ('{job="j"} |~ `[ew]1`', "e1 w1"),
        ('{job="j"} !~ "[ew]1" |= "i"', "i1"),
        ('{job="j"} | id="2"', "e2"),
        ('{job="j"} | id="2" or id="3"', "e2 i1"),
        ('{job="j"} | id!="", level="error" and id=~"[12]"', "e1 e2"),
        ('{job="j"} |= "1" | id=""', "w1"),
    ],
)
def test_queries(client: Client, query: str, expected: str) -> None:
    entries = [("e1", "error", "1"), ("e2", "error", "2"), ("i1", "info", "3"), ("w1", "warn", "")]
    for line, level, record_id in entries:
        client.line(line, metadata={"id": record_id} if record_id else {}, job="j", level=level)
    assert sorted(_lines(client.query(query)[1])) == expected.split()


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("", "syntax error"),
        ("a", "syntax error"),
        ("{a=b}", "syntax error"),
        ('{a=""}', "queries require at least one regexp or equality matcher"),
        ('{a=~".*"}', "queries require at least one"),
        ('{a!="b"}', "queries require at least one"),
        ("{}", "queries require at least one"),
        ('{a=~"("}', "error parsing regexp"),
        ('{a="b"} | json', "syntax error"),
        ('{a="b"} x', "syntax error"),
        ('{a="\\q"}', "invalid quoted string"),
    ],
)
def test_query_that_is_none_is_refused(query: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        compile_query(query)


def test_counting_alone_keeps_nothing() -> None:
    client = Client(keep=False)
    client.push(({"a": "b"}, [[str(NOW + n), "x"] for n in range(100)]))
    assert (client.server.count, client.server.entries()) == (100, [])
    client.server.close()


@pytest.mark.parametrize("discard", [True, False])
def test_as_a_process_it_tells_its_url_first_and_ends_when_told(discard: bool) -> None:
    with start_module("loki_server", *(["--discard"] if discard else [])) as process:
        url = first_line(process)
        request = urllib.request.Request(f"{url}/loki/api/v1/push", data=b"not a push", headers={"Content-Type": "x"})
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                status = answer.status
        except urllib.error.HTTPError as error:
            with error:
                status = error.code
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert status == (204 if discard else 400)
