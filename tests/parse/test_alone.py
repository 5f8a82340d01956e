"""What a line becomes depends on that line alone: not on its neighbours in the batch, not on the form that parses it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from shipper.native import compiled
from shipper.parse import Parser, parser
from shipper.record import Batch, Resource

SECOND = 10**9
NOON = 1_795_348_800 * SECOND  # 2026-11-22T12:00:00Z
RESOURCE = Resource("test", {})

#: One line of each family at least, common and odd.
LINES = (
    '{"level":"info","message":"paid","timestamp":"2026-11-22T12:00:00.123Z","user_id":7,"f":0.5,"d":{"t":["a",{}]}}',
    '{"level":30,"time":1795348800123,"pid":1,"msg":"up \\"now\\"\\n"}',
    '{"level":"warn","message":{"a":[1,2]},"msg":null,"n":1e400}',
    '{"msg":"half \\ud83d of a pair","severity":"ERROR","ts":1795348800.5}',
    '10.0.0.1 - bob [22/Nov/2026:12:00:00 +0000] "GET /a/b?q=1&r=é HTTP/1.1" 404 1234 "https://x.example/" "curl/8.0"',
    '127.0.0.1 - - [22/Nov/2026:12:00:05 +0000] "POST /x HTTP/2.0" 500 10 "-" "-"',
    '127.0.0.1 - - [22/Nov/2026:12:00:05 +0000] "GET / HTTP/1.1" 50 9 "-" "-"',
    '::1 - - [22/Nov/2026:12:00:05 -0130] "GET / HTTP/1.1" 200 9',
    "2026-11-22T12:00:00.123Z [error] DB connection lost: größe",
    '2026-11-22T12:00:00+02:00 [error] u [22/Nov/2026:12:00:00 +0000] "GET / HTTP/1.1" 200 1 "-" "-"',
    '2026-11-22T12:00:00.123Z [error] u [22/Nov/2026:12:00:00 +0000] "GET / HTTP/1.1" 200 1 "-" "-"',
    'level=info msg="a b" x=1 time=2026-11-22T12:00:01Z',
    "2026-11-22 12:00:00,123 - app.db - ERROR - refused",
    "TypeError: x is not a function\n    at f (/app/x.js:1:1)",
    "plain \x1b[31mred\x1b[0m text",
    "",
)
#: Lines whose words would make up for each other's, were they only counted together; and brackets that are odd.
ODD = (
    '127.0.0.1 - - [22/Nov/2026:12:00:04 +0000]] "GET /x HTTP/1.1" 500 10 "-" "curl/8.0"',
    '127.0.0.1 - - [[22/Nov/2026:12:00:04 +0000] "GET /x HTTP/1.1" 500 10 "-" "curl/8.0"',
    '127.0.0.1 - - 22/Nov/2026:12:00:04 +0000] "GET /x HTTP/1.1" 500 10 "-" "curl/8.0"',
    '127.0.0.1 - - [22/Nov/2026:12:00: 04+0000] "GET /x HTTP/1.1" 500 10 "-" "curl/8.0"',
    'a b c [22/Nov/2026:12:00:04 "GET /x HTTP/1.1" 200 1 "x] " "y"',
    '+0000] a b c [22/Nov/2026:12:00:05 +0000] "GET /y HTTP/1.1" 200 1 "-" "z"',
    'a b c [22/Nov/2026:12:00:04 +0000] "GET /x HTTP/1.1" 200 1 7 "-" "y"',
    'a b c [22/Nov/2026:12:00:04 +0000] "GET /x HTTP/1.1" 200 "-" "y"',
    'a b c [22/Nov/2026:12:00:04 +0000] "GET /\ud800 HTTP/1.1" 200 1 "-" "y"',
    'a [x] c [22/Nov/2026:12:00:04 +0000] "GET / HTTP/1.1" 200 1 "-" "y"',
    "10.0.0.1 - - [" + "\0" * 26 + '] "GET / HTTP/1.1" 200 1 "-" "-"',
    "\0" * 19 + ".123Z [error] zeros",
    '{"level":"info","message":"a","n":' + "[" * 62 + "1" + "]" * 62 + "}",
    '{"level":"error","message":"b","n":' + "[" * 64 + '"a\\u0040b.example"' + "]" * 64 + "}",
    '{"level":"error","message":"b","n":' + "[" * 970 + "]" * 970 + "}",
    '{"level":"error","message":"b","n":' + "[" * 5000 + "]" * 5000 + "}",
    '{"level":"error","message":"unbalanced","n":' + "[" * 500 + "]" * 400 + "}",
    '{"level":"error","message":"' + "9" * 5000 + '","n":' + "9" * 5000 + "}",
)  # fmt: skip
PIECES = (
    *'"\\{}[]:, \t\r\n\x00\x1b\x1c\x7f0129-+.eEZTé日\U0001f600\ud800\uff11\x85\u2028', "\\u", "\\u0041", "\\ud83d",
    "\\ude00", "\\/", "-0", "1E400", "NaN", "9" * 400, '"level":"fatal",', '"level":true,', '"l\\u0065vel":"fatal",',
    '"message":"twice",', '"msg":"m",', '"time":"2026-11-22T12:30:01Z",', '"ts":1795348800.5,', "1969", "2200", ":60",
    "02-30", "/Feb/", "+9999", "[ERROR]", "[error] ", "[", "]", '] "', " - ", '" "', '""', "HTTP/1.0", "HTTP/4", "?",
    "[22/Nov/2026:12:00:04 +0000]", "22/Nov/2026:12:00:04", "x=1 ", "    at f (x.js:1:1)", "Error: ", "\n",
)  # fmt: skip


def mutated(rng: random.Random, line: str) -> str:
    for _ in range(rng.choice((0, 0, 1, 1, 2, 4))):
        at, size = rng.randint(0, len(line)), rng.choice((1, 1, 1, 2, 4, 8, 24))
        piece = rng.choice(PIECES)
        other = rng.choice(LINES)
        middle = rng.choice(("", line[at : at + size] * 2, piece + line[at : at + size], piece, other[at : at + 40]))
        line = line[:at] + middle + line[at + size :]
    return line


Row = tuple[str, int, int]


def batches(seed: int, rounds: int) -> Iterator[list[Row]]:
    rng = random.Random(seed)
    stamps = (0, 0, NOON, NOON + 123_456_789, NOON + 3 * SECOND, NOON + 86_400 * SECOND)
    for _ in range(rounds):
        yield [
            (mutated(rng, rng.choice((*LINES, *ODD))), rng.choice(stamps), rng.randrange(2**40))
            for _ in range(rng.choice((2, 2, 3, 5)))
        ]


def batch_of(rows: list[Row]) -> Batch:
    lines, stamps, offsets = map(list, zip(*rows, strict=True))
    return Batch(stamps, stamps, list(range(len(rows))), lines, [RESOURCE] * len(rows), offsets)


def parsed(rows: list[Row]) -> list[str]:
    """Give what becomes of rows in one batch, as text, which tells 1 from True."""
    batch = batch_of(rows)
    Parser().parse(batch)
    attributes: list[Any] = [sorted(map(repr, one.items())) for one in batch.attributes or []]
    columns = zip(batch.severities or [], batch.messages or [], attributes, batch.times, batch.stamps, strict=True)
    return list(map(repr, columns))


def levels(rows: list[Row]) -> list[int]:
    batch = batch_of(rows)
    Parser().levels(batch)
    return batch.severities or []


@pytest.fixture(params=["compiled", "pure"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "pure":
        monkeypatch.setattr(parser, "compiled", None)
    elif compiled is None:
        pytest.skip("needs the compiled form")
    return str(request.param)


@pytest.mark.parametrize("seed", range(4))
def test_neighbours_change_nothing(form: str, seed: int) -> None:
    for rows in batches(seed, 600):
        assert parsed(rows) == [parsed([row])[0] for row in rows]


@pytest.mark.parametrize("seed", range(4))
def test_neighbours_change_no_level(form: str, seed: int) -> None:
    for rows in batches(seed + 100, 600):
        assert levels(rows) == [levels([row])[0] for row in rows]


@pytest.mark.skipif(compiled is None, reason="needs the compiled form")
@pytest.mark.parametrize("seed", range(4))
def test_the_form_changes_nothing(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(rows, parsed(rows), levels(rows)) for rows in batches(seed + 200, 600)]
    monkeypatch.setattr(parser, "compiled", None)
    for rows, as_parsed, as_levels in found:
        assert parsed(rows) == as_parsed
        assert levels(rows) == as_levels


@pytest.mark.parametrize("odd", ODD)
def test_each_odd_line_among_every_family(form: str, odd: str) -> None:
    row = (odd, 0, 64)
    alone = parsed([row])[0]
    for line in (*LINES, *ODD):
        assert parsed([(line, NOON, 0), row])[1] == alone
        assert parsed([row, (line, NOON, 0)])[0] == alone


@pytest.mark.parametrize("stack", [0, 300, 600])
def test_the_depth_of_the_stack_decides_nothing(form: str, stack: int) -> None:
    def below(frames: int) -> list[str]:
        return below(frames - 1) if frames else parsed([(line, NOON, 0) for line in ODD])

    assert below(stack) == parsed([(line, NOON, 0) for line in ODD])


def test_more_seconds_than_are_kept_in_one_batch(form: str) -> None:
    lines = [
        f'1.2.3.4 - - [{day:02d}/Nov/2026:{hour:02d}:{minute:02d}:00 +0000] "GET / HTTP/1.1" 200 1 "-" "\x85"'
        for day in range(1, 8)
        for hour in range(24)
        for minute in range(60)
    ]
    assert len(set(parsed([(line, 0, 0) for line in lines]))) == len(lines)
