"""Texts that somebody chose to make whoever looks at them slow: near-matches, openers without end, nesting, long runs.

For budgets: whatever parses, masks, filters or encodes lines should take about as long for ``size`` bytes of each shape
as for as many bytes of `ordinary`, and no longer than a small multiple of it. None has a line feed but those whose name
begins with ``trace``, which stand for a record of several lines.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from typing import Final


def shapes(size: int, *, seed: int = 1) -> dict[str, str]:
    """Give each hostile shape by its name, of about ``size`` characters."""
    return {name: make(size, random.Random(seed)) for name, make in _SHAPES.items()}  # noqa: S311 - not for secrets


def ordinary(size: int, *, seed: int = 1) -> list[str]:
    """Give lines as applications write them, together about ``size`` characters: JSON, access log, logfmt, plain."""
    rng = random.Random(seed)  # noqa: S311 - not for secrets
    lines: list[str] = []
    written = 0
    while written < size:
        user, millis = rng.randrange(10_000), rng.randrange(1_000)
        lines.append(
            rng.choice(_ORDINARY).format(
                user=user, millis=f"{millis:03d}", took=rng.randrange(900), id=rng.randrange(1 << 40)
            )
        )
        written += len(lines[-1])
    return lines


_ORDINARY: Final = (
    '{{"level":"info","message":"entry saved","timestamp":"2026-11-22T12:00:00.{millis}Z","user_id":{user},"took":{took}}}',
    '{{"level":"warn","message":"slow query","sql":"SELECT * FROM entries WHERE user_id = ?","took":{took},"id":"{id:x}"}}',
    '10.0.0.7 - - [22/Nov/2026:12:00:00 +0000] "GET /api/entries/{user} HTTP/1.1" 200 {took} "-" "Mozilla/5.0"',
    'level=info msg="request done" path=/api/entries/{user} status=200 took={took}',
    "2026-11-22T12:00:00.{millis}Z [error] Database connection lost: user {user}, attempt {took}",
    "Server listening, worker {user} is up after {took} ms",
)


def _run(piece: str, size: int, *, start: str = "", end: str = "") -> str:
    return start + piece * max(1, (size - len(start) - len(end)) // len(piece)) + end


def _json(member: str, size: int) -> str:
    return _run(member, size, start='{"level":"error","message":"m","n":"', end='"}')


def _keys(size: int, rng: random.Random) -> str:
    count = max(1, size // 14)
    return json.dumps({"level": "info", "message": "m", **{f"k{n}": rng.randrange(1000) for n in range(count)}})


def _secret_keys(size: int, _: random.Random) -> str:
    count = max(1, size // 26)
    return json.dumps({"message": "token", **{f"password{n}": "a@b.example" for n in range(count)}})


def _nested(opener: str, closer: str, size: int) -> str:
    depth = max(1, size // (len(opener) + len(closer)))
    return '{"level":"error","message":"a@b.example","n":' + opener * depth + "1" + closer * depth + "}"


def _base64(size: int, rng: random.Random) -> str:
    return base64.b64encode(rng.randbytes(size * 3 // 4)).decode()


def _numbers(size: int, rng: random.Random) -> str:
    return " ".join(str(rng.randrange(256)) for _ in range(max(1, size * 10 // 36)))


def _nines(size: int, _: random.Random) -> str:
    return '{"level":"info","message":"m","n":[' + ",".join(["9" * 4000] * max(1, size // 4001)) + "]}"


def _backslashes(size: int, _: random.Random) -> str:
    # Each opener has one backslash more than the one before, so that none ends another.
    pieces: list[str] = []
    length = number = 0
    while length < size:
        number += 1
        pieces.append("password=" + "\\" * number + '"')
        length += len(pieces[-1])
    return "".join(pieces)


_SHAPES: Final[dict[str, Callable[[int, random.Random], str]]] = {
    "logfmt, then no pair": lambda size, _: _run("a", size, start="a=b "),
    "logfmt keys without end": lambda size, _: _run("a.b-", size, start="x=1 "),
    "logfmt quote without end": lambda size, _: _run('\\"', size, start='x="'),
    "logfmt pairs": lambda size, _: _run('k="v\\"v" ', size),
    "access request without end": lambda size, _: _run(
        '\\"', size, start='1.1.1.1 - - [22/Nov/2026:12:00:00 +0000] "GET /', end='] "'
    ),
    "access brackets": lambda size, _: _run(' [22/Nov/2026:12:00:00 +0000] "', size, start="1.1.1.1 - -"),
    "errors, then no end": lambda size, _: _run("Error", size, end="x"),
    "dotted packages": lambda size, _: _run("a.", size, end="Error x"),
    "panic words": lambda size, _: _run("panic serving ", size),
    "parentheses": lambda size, _: _run("(", size, start="main.main"),
    "brackets": lambda size, _: _run("[", size, start="goroutine 1 "),
    "carets and spaces": lambda size, _: _run("^ ", size),
    "spaces": lambda size, _: _run(" ", size, end="x"),
    "tabs after a word": lambda size, _: _run("\t", size, start="INFO", end="-"),
    "colons": lambda size, _: _run(":1", size, start="/"),
    "dates": lambda size, _: _run("2024-01-02 ", size),
    "single digits": lambda size, _: _run("1 2 3 4 ", size),
    "fours": lambda size, _: _run("4 ", size),
    "pairs of digits": lambda size, _: _run("12 34 56 ", size),
    "card numbers": lambda size, _: _run("4111111111111111 ", size),
    "numbers of a byte": _numbers,
    "digits": lambda size, _: _run("4", size),
    "at signs": lambda size, _: _run("a@", size),
    "domains": lambda size, _: _run("a.b@c.d", size),
    "logins in URLs": lambda size, _: _run("://:", size),
    "bearers": lambda size, _: _run("bearer token: ", size),
    "tokens almost": lambda size, _: _run("eyJaaaaa-", size),
    "secret openers": lambda size, _: _run("password='\\\"secret=\"\\'", size),
    "secret escapes": _backslashes,
    "secrets of commas": lambda size, _: _run("pwd=,;)}", size),
    "base64": _base64,
    "quotes": lambda size, _: _run('"', size),
    "backslashes": lambda size, _: _run("\\", size),
    "colour codes without end": lambda size, _: _run("\x1b[1;", size),
    "titles without end": lambda size, _: _run("\x1b]", size),
    "zeros": lambda size, _: _run("\0", size),
    "half characters": lambda size, _: _run("\ud83d", size),
    "control characters": lambda size, _: _run("\x85\x07", size),
    "JSON of keys": _keys,
    "JSON of secret keys": _secret_keys,
    "JSON nested in lists": lambda size, _: _nested("[", "]", size),
    "JSON nested in objects": lambda size, _: _nested('{"a":', "}", size),
    "JSON that is not closed": lambda size, _: _run('[{"a":', size, start='{"message":"token","n":'),
    "JSON of empty objects": lambda size, _: '{"message":"m","n":[' + ",".join(["{}"] * max(1, size // 3)) + "]}",
    "JSON of escapes": lambda size, _: _json("\\u0040", size),
    "JSON of half pairs": lambda size, _: _json("\\ud83d", size),
    "JSON of quotes": lambda size, _: _json('\\"', size),
    "JSON of slashes": lambda size, _: _json("\\/", size),
    "JSON in JSON": lambda size, _: _json('{\\"password\\":\\"x\\",', size),
    "JSON of long numbers": _nines,
    "JSON of a long fraction": lambda size, _: _run("3", size, start='{"level":"info","message":"m","n":0.', end="}"),
    "JSON quote without end": lambda size, _: _run('\\"', size, start='{"message":"', end="}"),
    "trace of empty lines": lambda size, _: _run("\n", size, start="Error: x", end="at x"),
    "trace of frames": lambda size, _: _run("\n    at f (x.js:1:1)", size, start="Error: x"),
    "trace whose error has no end": lambda size, _: _run("Error", size, end="x\n    at x (y.js:1:1)"),
    "trace whose error is far": lambda size, _: _run("a", size, start="Error:x ", end="\n    at x"),
    "trace of Python": lambda size, _: _run(
        "a.b.c x\n", size, start="Traceback (most recent call last):\n", end='  File "x"'
    ),
    "trace of goroutines": lambda size, _: _run("\na b panic ", size, start="goroutine 1 [running]:"),
}
