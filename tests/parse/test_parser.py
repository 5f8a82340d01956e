"""What lines become: level, message, attributes, time; by every format and on both paths of the parser."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shipper.errors import ConfigError
from shipper.parse import FORMATS, Parser
from shipper.parse.levels import LEVEL_KEYS
from shipper.record import Batch, Record, Resource

SECOND = 10**9
DOCKER = 1_795_380_443 * SECOND + 500_000_000  # 2026-11-22T20:47:23.5Z
JAVA = (
    "java.lang.IllegalStateException: no pool\n\tat com.x.Pool.get(Pool.java:4)\n"
    "Caused by: java.io.IOException: gone\n\tat com.x.Net.read(Net.java:9)\n\t... 3 more"
)
PYTHON = 'Traceback (most recent call last):\n  File "a.py", line 1, in f\n    g()\ndb.PoolError: no pool'
GO = "panic: boom\n\ngoroutine 1 [running]:\nmain.main()\n\t/x.go:5 +0x39\nexit status 2"
UNCAUGHT = "/app/x.js:12\n    throw e;\n    ^\n\nRangeError: too far\n    at f (/app/x.js:12:1)\n\nNode.js v20.1.0"


def batch_of(*lines: str, stamp: int = DOCKER, step: int = 300) -> Batch:
    count = len(lines)
    return Batch(
        times=[stamp] * count,
        stamps=[stamp] * count,
        hashes=list(range(count)),
        raws=list(lines),
        resources=[Resource("test", {})] * count,
        offsets=[at * step for at in range(count)],
    )


def parse(*lines: str, stamp: int = DOCKER, format: str = "auto") -> list[Record]:  # noqa: A002
    batch = batch_of(*lines, stamp=stamp)
    Parser(format).parse(batch)
    return list(batch.records())


def one(line: str, *, stamp: int = DOCKER, format: str = "auto") -> Record:  # noqa: A002
    return parse(line, stamp=stamp, format=format)[0]


@pytest.mark.parametrize(
    ("line", "level", "message", "attributes"),
    [
        ('{"level":30,"msg":"up","pid":1}', "info", "up", {"pid": 1}),
        ('{"level":60,"msg":"down"}', "fatal", "down", {}),
        ('{"level":35,"msg":"custom"}', "info", "custom", {}),
        ('{"severity":"WARNING","message":"x"}', "warn", "x", {}),
        ('{"level":"\\u001b[31merror\\u001b[39m","message":"\\u001b[1mbold\\u001b[0m"}', "error", "bold", {}),
        ('{"level":"odd","message":"x"}', "info", "x", {"level": "odd"}),
        ('{"level":["a"],"message":"x"}', "info", "x", {"level": ["a"]}),
        ('{"level":true,"message":"x"}', "info", "x", {"level": True}),
        ('{"a":1}', "info", '{"a":1}', {"a": 1}),
        ('{"message":{"a":[1]}}', "info", '{"a":[1]}', {}),
        ('{"message":null,"msg":"m"}', "info", "m", {"message": None}),
        ('{"message":null}', "info", '{"message":null}', {"message": None}),
        ('{"message":"m","details":{"a":1}}', "info", "m", {"details": {"a": 1}}),
        ('{"message":"m","a":2,"details":{"a":1}}', "info", "m", {"a": 2, "details": {"a": 1}}),
        ('{"message":"m","details":{"level":"error"}}', "info", "m", {"details": {"level": "error"}}),
        ('{"message":"m","details":{}}', "info", "m", {"details": {}}),
        ('{"message":"m","details":null}', "info", "m", {"details": None}),
        ('{"message":"m","details":[1]}', "info", "m", {"details": [1]}),
        ('  {"message":"m"}  ', "info", "m", {}),
        ('{"message":"cut \\ud83d"}', "info", "cut �", {}),
        ('{"message":"ok \\ud83d\\ude00 \\\\ud83d \\udc00"}', "info", "ok 😀 \\ud83d �", {}),
        ('{"a":NaN}', "info", '{"a":NaN}', {}),
        (
            '{"a":123456789012345678901234567890}',
            "info",
            '{"a":123456789012345678901234567890}',
            {"a": 123456789012345678901234567890},
        ),
        ('{"a":1}{"b":2}', "info", '{"a":1}{"b":2}', {}),
        ('level=warn msg="a \\"b\\"" k=v empty=', "warn", 'a "b"', {"k": "v", "empty": ""}),
        ("a=1 is not logfmt", "info", "a=1 is not logfmt", {}),
        ("x=1", "info", "x=1", {}),
        ("2026-11-22T20:47:23.100Z [critical] gone", "fatal", "gone", {}),
        ("2026-11-22T20:47:23+01:00 [Warn] a\n  b\nc", "warn", "a\n  b\nc", {}),
        ("2026-11-22T20:47:23.100Z [info] ", "info", "", {}),
        ("2026-11-22T20:47:23.100Z [odd] x", "info", "2026-11-22T20:47:23.100Z [odd] x", {}),
        ("2026-11-22 20:47:23,856 ERROR x y", "error", "x y", {}),
        ("2026-11-22 20:47:23,856 - app.db - WARNING - x", "warn", "x", {"logger": "app.db"}),
        ("2026-11-22 20:47:23 [31] [ERROR] Booting", "error", "2026-11-22 20:47:23 [31] [ERROR] Booting", {}),
        ("[2026-11-22 20:47:23 +0000] [WARN] x", "warn", "x", {}),
        ("2026/11/22 20:47:23 [error] 31#31: *1 open() failed", "error", "31#31: *1 open() failed", {}),
        ("[WARN] x", "warn", "x", {}),
        ("[ warn ] x", "warn", "x", {}),
        ("ERROR: x", "error", "x", {}),
        ("ERROR:root:x", "error", "x", {"logger": "root"}),
        ("info: listening on 80", "info", "listening on 80", {}),
        ("INFO:     Started", "info", "Started", {}),
        ("Error in line 3", "info", "Error in line 3", {}),
        ("job 7: warning text", "info", "job 7: warning text", {}),
        ("HTTP GET /", "info", "HTTP GET /", {}),
        ("TypeError: x", "error", "TypeError: x", {"exception.type": "TypeError", "exception.message": "x"}),
        ("\x1b[32mok\x1b[0m line", "info", "ok line", {}),
        ("\x1b[33mWARN\x1b[39m x", "warn", "x", {}),
        ("tty\r", "info", "tty", {}),
        ("", "info", "", {}),
        ("   ", "info", "   ", {}),
        ("{", "info", "{", {}),
        ("}", "info", "}", {}),
    ],
)
def test_a_line_becomes(line: str, level: str, message: str, attributes: dict[str, Any]) -> None:
    record = one(line)
    assert (record.level, record.message, record.attributes) == (level, message, attributes)
    assert record.raw == line


@pytest.mark.parametrize(
    ("line", "level", "attributes"),
    [
        (
            '::1 - bob [22/Nov/2026:20:47:23 +0000] "GET /a?b=c HTTP/1.1" 404 - "http://r/" "q \\"x\\" y"',
            "warn",
            {
                "ip_address": "::1",
                "user.name": "bob",
                "http.request.method": "GET",
                "url.path": "/a",
                "url.query": "b=c",
                "network.protocol.name": "http",
                "network.protocol.version": "1.1",
                "http.response.status_code": 404,
                "http.request.header.referer": "http://r/",
                "user_agent": 'q "x" y',
            },
        ),
        (
            '10.0.0.1 - - [22/Nov/2026:20:47:23 +0000] "POST / HTTP/2.0" 503 12',
            "error",
            {
                "ip_address": "10.0.0.1",
                "http.request.method": "POST",
                "url.path": "/",
                "network.protocol.name": "http",
                "network.protocol.version": "2.0",
                "http.response.status_code": 503,
                "http.response.body.size": 12,
            },
        ),
        (
            '10.0.0.1 - - [22/Nov/2026:20:47:23 +0000] "\\x16\\x03" 400 0 "-" "-"',
            "warn",
            {"ip_address": "10.0.0.1", "http.response.status_code": 400, "http.response.body.size": 0},
        ),
    ],
)
def test_an_access_line_keeps_its_text_and_gives_its_fields(line: str, level: str, attributes: dict[str, Any]) -> None:
    record = one(line)
    assert (record.level, record.message, record.attributes) == (level, line, attributes)


@pytest.mark.parametrize(
    ("text", "level", "message", "kind", "reason"),
    [
        (JAVA, "error", "java.lang.IllegalStateException: no pool", "java.lang.IllegalStateException", "no pool"),
        (PYTHON, "error", "db.PoolError: no pool", "db.PoolError", "no pool"),
        (GO, "fatal", "panic: boom", "panic", "boom"),
        (UNCAUGHT, "error", "RangeError: too far", "RangeError", "too far"),
    ],
)
def test_a_joined_trace_becomes_one_error(text: str, level: str, message: str, kind: str, reason: str) -> None:
    record = one(text)
    assert (record.level, record.message) == (level, message)
    assert record.attributes == {"exception.type": kind, "exception.message": reason, "exception.stacktrace": text}


def test_a_trace_under_a_fallback_line_keeps_the_stated_level_and_the_whole_message() -> None:
    record = one("2026-11-22T20:47:23.100Z [warn] save failed\nError: no pool\n    at f (/a.js:1:2)")
    assert (record.level, record.attributes["exception.type"]) == ("warn", "Error")
    assert record.message == "save failed\nError: no pool\n    at f (/a.js:1:2)"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"message":"x","timestamp":"2026-11-22T20:47:22.000Z"}', DOCKER),
        ('{"message":"x","time":1795380443000}', DOCKER),
        ('{"message":"x","timestamp":"2026-11-22T10:00:00"}', DOCKER),
        ('{"message":"x","timestamp":"2026-11-22T10:00:00.123456789Z"}', 1_795_341_600_123_456_789),
        ('{"message":"x","ts":1795341600.25}', 1_795_341_600_250_000_000),
        ('{"message":"x","@timestamp":"2026-11-22T12:00:00.000000001+02:00"}', 1_795_341_600_000_000_001),
        ('{"message":"x","timestamp":"1969-01-01T00:00:00Z"}', DOCKER),
        ('{"message":"x","time":99999999999999999999999}', DOCKER),
        ("2026-11-22T10:00:00.000Z [info] x", 1_795_341_600_000_000_000),
        ('1.1.1.1 - - [22/Nov/2026:11:00:00 +0100] "GET / HTTP/1.1" 200 1 "-" "-"', 1_795_341_600_000_000_000),
    ],
)
def test_docker_time_stands_unless_the_line_states_another_with_its_zone(line: str, expected: int) -> None:
    assert one(line).time_ns == expected


def test_a_time_attribute_goes_only_when_it_became_the_time() -> None:
    kept = one('{"message":"x","timestamp":"2026-11-22T20:47:22.000Z"}')
    taken = one('{"message":"x","timestamp":"2026-11-22T10:00:00Z"}')
    assert kept.attributes == {"timestamp": "2026-11-22T20:47:22.000Z"}
    assert taken.attributes == {}


def test_a_plain_file_takes_the_lines_time_and_leaves_none_for_the_pipeline() -> None:
    batch = batch_of("2026-11-22 10:00:00 ERROR x", "no time", stamp=0)
    Parser().parse(batch)
    assert batch.times == [1_795_341_600 * SECOND, 0]
    assert batch.stamps == batch.times


def test_equal_lines_of_one_second_stay_apart_and_in_order_and_equal_on_replay() -> None:
    line = '1.1.1.1 - - [22/Nov/2026:10:00:00 +0000] "GET / HTTP/1.1" 200 1 "-" "-"'
    first = [record.time_ns for record in parse(*[line] * 50)]
    assert first == sorted(set(first))
    assert first == [record.time_ns for record in parse(*[line] * 50)]
    assert all(time // SECOND == first[0] // SECOND for time in first)


@pytest.mark.parametrize("name", ["auto", "fallback"])
def test_stamped_lines_of_one_millisecond_keep_their_order_and_stand_close(name: str) -> None:
    """Docker's time in the id tells the order within a microsecond, so 64 KiB of a log may share one."""
    count, size = 10_000, 273
    batch = batch_of(*["2026-11-22T10:00:00.000Z [error] lost"] * count)
    batch.times = batch.stamps = [stamp + number * 300 for number, stamp in enumerate(batch.stamps)]
    batch.offsets = [number * size for number in range(count)]
    Parser(name).parse(batch)
    start = 1_795_341_600 * SECOND
    assert batch.times == [start + number * size // 64 for number in range(count)]
    assert len({time // 1000 for time in batch.times}) == count * size // 64_000 + 1
    keys = list(zip([time // 1000 for time in batch.times], batch.ids, strict=True))
    assert keys == sorted(keys)


def test_one_bad_json_line_does_not_spoil_its_neighbours() -> None:
    records = parse('{"message":"a"}', '{"message":"b}', '{"message":"c",}', '{"message":"d"}')
    assert [record.message for record in records] == ["a", '{"message":"b}', '{"message":"c",}', "d"]


def test_a_json_line_of_a_hundred_thousand_levels_is_plain() -> None:
    line = '{"a":' * 100_000 + "1" + "}" * 100_000
    assert one(line).message == line


def test_marks_of_the_source_become_attributes() -> None:
    batch = batch_of('{"message":"a","k":1}', "b")
    batch.marks = {0: {"log.record.part": 1}}
    Parser().parse(batch)
    assert batch.attributes == [{"k": 1, "log.record.part": 1}, {}]


@pytest.mark.parametrize("name", FORMATS[1:])
def test_a_named_format_takes_what_it_does_not_know_as_plain(name: str) -> None:
    record = one("ERROR: 2026", format=name)
    assert (record.level, record.message, record.attributes) == ("info", "ERROR: 2026", {})


def test_named_formats_read_their_own() -> None:
    assert one('{"level":50,"msg":"x"}', format="json").message == "x"
    assert one("level=error msg=x", format="logfmt").level == "error"
    assert one("2026-11-22T10:00:00Z [error] x", format="fallback").message == "x"
    assert one('1.1.1.1 - - [22/Nov/2026:10:00:00 +0000] "GET / HTTP/1.1" 500 1', format="access").level == "error"
    assert one('{"level":50,"msg":"x"}', format="plain").message == '{"level":50,"msg":"x"}'


def test_an_unknown_format_is_refused_with_the_names() -> None:
    with pytest.raises(ConfigError, match=r"no parser is called 'xml'; use one of auto, json"):
        Parser("xml")


json_lines = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
odd_keys = st.sampled_from(["level", "message", "msg", "time", "timestamp", "ts", "details", "severity", "k"])
lines = (
    st.text()
    | st.dictionaries(odd_keys, json_lines).map(json.dumps)
    | st.text(alphabet='{}[]":,\\ \n=-0123456789abZTu.').map(lambda text: "{" + text + "}")
    | st.from_regex(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z \[(info|x)\] .*")
    | st.from_regex(r'\S+ - \S+ \[\d\d/Nov/\d{4}:\d\d:\d\d:\d\d \+\d{4}\] "[^\n]*" \d{3} \d+( "[^\n]*" "[^\n]*")?')
    | st.from_regex(r"[a-z]+=\S+( [a-z]+=\"[^\n]*\")*")
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(lines | st.text(alphabet=st.characters()), max_size=8),
    st.sampled_from(FORMATS),
    st.sampled_from([0, DOCKER]),
)
def test_parsing_never_fails_and_loses_nothing(texts: list[str], name: str, stamp: int) -> None:
    batch = batch_of(*texts, stamp=stamp)
    Parser(name).parse(batch)
    assert batch.raws == texts
    assert batch.severities is not None
    assert batch.messages is not None
    assert batch.attributes is not None
    assert len(batch.severities) == len(batch.messages) == len(batch.attributes) == len(texts)
    assert set(batch.severities) <= {1, 5, 9, 13, 17, 21}
    assert all(isinstance(message, str) for message in batch.messages)
    for message in batch.messages:
        message.encode()
    assert batch.times == batch.stamps or stamp


@settings(max_examples=300, deadline=None)
@given(st.lists(lines, min_size=1, max_size=6), st.sampled_from([0, DOCKER]))
def test_the_bulk_path_and_the_exact_path_agree(texts: list[str], stamp: int) -> None:
    together = batch_of(*texts, stamp=stamp)
    Parser().parse(together)
    alone = batch_of(*texts, stamp=stamp)
    parser = Parser()
    alone.severities, alone.messages, alone.attributes = [9] * len(texts), list(texts), [{} for _ in texts]
    bare = batch_of(*texts, stamp=stamp)
    Parser("plain").parse(bare)
    assert bare.messages is not None
    parser._parse_each(alone, bare.messages, range(len(texts)))
    assert together.severities == alone.severities
    assert together.messages == alone.messages
    assert repr(together.attributes and [sorted(a.items()) for a in together.attributes]) == repr(
        [sorted(a.items()) for a in alone.attributes]
    )
    assert together.times == alone.times


@settings(max_examples=300, deadline=None)
@given(st.lists(lines, max_size=8), st.sampled_from(FORMATS))
def test_levels_alone_are_those_of_a_whole_parse_and_nothing_else_changes(texts: list[str], name: str) -> None:
    parsed = batch_of(*texts)
    Parser(name).parse(parsed)
    batch = batch_of(*texts)
    Parser(name).levels(batch)
    assert batch.severities == parsed.severities
    assert (batch.messages, batch.attributes, batch.times) == (None, None, batch_of(*texts).times)


def test_the_level_alone_is_looked_for_under_every_name() -> None:
    lines = [json.dumps({"message": "m", "level": "odd", name: "error"}) for name in LEVEL_KEYS]
    batch = batch_of(*lines)
    Parser().levels(batch)
    assert batch.severities == [17] * len(LEVEL_KEYS)


@pytest.mark.parametrize(
    "line",
    [
        '{"level":"warn","message":"m"}', '{"level":"odd","severity":"error"}', '{"log.level":50}', '{"lvl":"dbg"}',
        '{"level":null,"levelname":"CRITICAL"}', '{"message":"\\ud83d","level":"fatal"}', '{"level":"error"} x',
        '1.1.1.1 - - [22/Nov/2026:10:00:00 +0000] "GET / HTTP/1.1" 503 1 "-" "-"',
        '1.1.1.1 - - [22/Nov/2026:10:00:00 +0000] "GET /" 404 1 "-" "-"', "2026-11-22T10:00:00.000Z [error] x",
        "2026-11-22T10:00:99.000Z [error] x", "2026-11-22T10:00:00.000Z [error] x\n  y", "\x1b[31mERROR\x1b[0m x", JAVA,
        "level=warn msg=x",
    ],
)  # fmt: skip
def test_the_level_alone_of_every_form_among_others(line: str) -> None:
    others = ['{"level":"debug"}', "plain", '{"level":20,"msg":"x"}', line, "2026-11-22T10:00:00.000Z [warn] x"]
    batch = batch_of(*others)
    Parser().levels(batch)
    assert batch.severities == [record.severity for record in parse(*others)]
    assert batch.severities is not None
    assert batch.severities[3] == one(line).severity


def test_ids_of_docker_lines_stay_on_dockers_time_when_the_line_has_its_own() -> None:
    """The source gives times and stamps as one list; the parser must not change the stamps with the times."""
    stamp = 1_795_305_600_000_000_000
    shared = [stamp]
    batch = Batch(
        times=shared,
        stamps=shared,
        hashes=[1],
        raws=["2020-01-01T00:00:00.000Z [info] replayed"],
        resources=[Resource("d", {})],
        offsets=[0],
    )
    Parser().parse(batch)
    assert batch.times[0] < stamp
    assert batch.stamps == [stamp]


@pytest.mark.parametrize("odd", [*"\t\n\r\x0b\x1c\x85\xa0\u2028", "u" * 300])
@pytest.mark.parametrize("place", ["10.0.0.1", "ident", "bob", "/a/b", "https"])
def test_access_line_with_odd_white_space_becomes_the_same_whatever_stands_beside_it(odd: str, place: str) -> None:
    """A replay may put other lines into the batch."""
    line = '10.0.0.1 ident bob [22/Nov/2026:20:47:23 +0000] "GET /a/b HTTP/1.1" 404 12 "https://x/" "curl/8.0"'
    line = line.replace(place, f"{place[:1]}{odd}{place[1:]}")
    other = '10.0.0.1 - - [22/Nov/2026:20:47:23 +0000] "GETS" 404 12 "-" "-"'
    alone, beside = one(line), parse(line, other)[0]
    assert (alone.severity, alone.attributes, alone.time_ns) == (beside.severity, beside.attributes, beside.time_ns)
