"""The compiled forms against the Python that decides: whatever one of them gives, its twin gives, too.

To decline is always allowed, but not for lines as they are written every day; else nothing would be shown here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shipper import render as columns
from shipper.native import CHOSEN, WHY_PURE, compiled
from shipper.parse import Parser, parser
from shipper.parse.levels import KNOWN
from shipper.record import Batch, Resource, make_ids
from shipper.render import Kind
from shipper.tailing.container import Container
from shipper.tailing.dockerjson import DockerLines

if compiled is None:
    if os.environ.get("CI") and WHY_PURE != CHOSEN:
        pytest.fail(f"there is no compiled form: {WHY_PURE}")
    pytest.skip("needs the compiled form", allow_module_level=True)

SECOND = 10**9
NOON = 1_795_348_800 * SECOND  # 2026-11-22T12:00:00Z
EXAMPLES = settings(max_examples=400, deadline=None)

#: Lines of the common forms.
WINSTON = (
    '{"level":"info","message":"paid","timestamp":"2026-11-22T12:00:00.123Z","user_id":7,"ok":true,"none":null,'
    '"f":0.5,"details":{"tags":["a","b"],"größe":[]}}'
)
PINO = '{"level":30,"time":1795348800123,"pid":1,"hostname":"h","msg":"up \\"now\\"\\n"}'
ACCESS = (
    '10.0.0.1 - bob [22/Nov/2026:12:00:00 +0000] "GET /a/b?q=1&r=é HTTP/1.1" 404 1234 "https://x.example/" "curl/8.0"'
)
FALLBACK = "2026-11-22T12:00:00.123Z [error] DB connection lost: größe"
LINES = (
    WINSTON, PINO, ACCESS, FALLBACK, '{"level":"WARN","message":""}', '{ "level" : "debug" , "msg" : "m" }',
    '{"level":"error","a":{}}', '::1 - - [01/Mar/2024:23:59:59 -0130] "POST / HTTP/2" 200 0 "-" "-"',
    "2024-02-29T23:59:59.999Z [info] ",
)  # fmt: skip
#: What odd writers put in place of what stands there.
PIECES = (
    *'"\\{}[]:, \t\r\n\x00\x1b\x1f\x7f0123456789-+.eEZTaéß日\U0001f600', "\\u", "\\u0041", "\\u001b", "\\u0000",
    "\\ud83d", "\\ude00", "\\ud83d\\ude00", "\\u00e9", "\\u65e5", "\\x", "\\/", "\\b", "-0", "01", "1e5", "1E400",
    "-0.0", "1.", ".5", "12345678901234567890", "9223372036854775807", "-9223372036854775808", "18446744073709551616",
    "0.1e-7", "1e-400", "NaN", "true", "null", '"level":"warn",', '"level":30,', '"message":"twice",',
    '"msg":"m",', '"time":1795348800,', '"time":"2026-11-22T12:00:01Z",', '"ts":1795348800.5,', '"timestamp":0,',
    '"@timestamp":"2026-11-22 12:00:00",', '"severity":"fatal",', '"level":true,', '"level":"Odd",', '"a":1,"a":2,',
    "1969", "1970", "2199", "2200", ":60", "02-29", "02-30", "/Feb/", "31", "24:", "+0200", "-0530", "+9999", "+02:00",
    ",123", ".1234567890", ".", "[ERROR]", "[odd]", "[", "] ", "HTTP/1.0", "HTTP/0.9", "HTTP/3", "HTTP/4", " - ", "?",
    "\x85", "\u2028", "\x1c", "\xa0", "\uff11",
)  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn, line: str) -> str:
    """Give the line with a few characters dropped, doubled, or other pieces in or in place of them."""
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(line)))
        size = draw(st.sampled_from([1, 1, 1, 2, 4, 8, 24]))
        piece = draw(st.sampled_from(PIECES))
        middle = {"drop": "", "double": line[at : at + size] * 2, "put": piece + line[at : at + size], "replace": piece}
        line = line[:at] + middle[draw(st.sampled_from(sorted(middle)))] + line[at + size :]
    return line


STAMPS = st.sampled_from([0, NOON, NOON + 123_456_789, NOON + 3 * SECOND, NOON - 2 * SECOND, NOON + 86_400 * SECOND])
ROWS = st.lists(
    st.tuples(st.sampled_from(LINES).flatmap(mutated), STAMPS, st.integers(0, 2**40)), min_size=1, max_size=4
)


def pure(do: Callable[[], Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parser, "compiled", None)
        do()


def batch_of(rows: list[tuple[str, int, int]]) -> Batch:
    lines, stamps, offsets = map(list, zip(*rows, strict=True))
    resources = [Resource("test", {})] * len(rows)
    return Batch(stamps, stamps, list(range(len(rows))), lines, resources, offsets)


def parsed(batch: Batch) -> list[str]:
    """Give what a parser fills as text, which tells 1 from True and -0.0 from 0.0.

    The order of attributes is left out: that of an access-log line is not always the same in Python either.
    """
    attributes = [sorted(map(repr, one.items())) for one in batch.attributes or []]
    rows = zip(batch.severities or [], batch.messages or [], attributes, batch.times, batch.stamps, strict=True)
    return list(map(repr, rows))


@EXAMPLES
@given(ROWS)
def test_parse(rows: list[tuple[str, int, int]]) -> None:
    found, expected = batch_of(rows), batch_of(rows)
    Parser().parse(found)
    pure(lambda: Parser().parse(expected))
    assert parsed(found) == parsed(expected)


@EXAMPLES
@given(ROWS)
def test_levels(rows: list[tuple[str, int, int]]) -> None:
    """One by one in Python, where it depends on the neighbours whether a number beyond all floats is passed over."""
    found, expected = batch_of(rows), [batch_of([row]) for row in rows]
    Parser().levels(found)
    for one in expected:
        pure(lambda one=one: Parser().levels(one))
    assert found.severities == [one.severities[0] for one in expected if one.severities]


def test_common_lines_are_not_declined() -> None:
    for stamp in (NOON, NOON + SECOND):
        batch = batch_of([(line, stamp, 300 * place) for place, line in enumerate(LINES)])
        severities, attributes = [0] * len(LINES), [{} for _ in LINES]
        times = list(batch.stamps)
        rest = compiled.parse(
            batch.raws, batch.stamps, times, batch.offsets, severities, list(batch.raws), attributes, KNOWN
        )
        assert rest == []
        assert compiled.levels(batch.raws, [0] * len(LINES), KNOWN) == []


# Docker's lines


def docker_line(
    text: str, stream: str = "stdout", time: str = "2026-11-22T12:00:00.123456789Z", attrs: str = ""
) -> str:
    return f'{{"log":{json.dumps(text)},"stream":"{stream}",{attrs}"time":"{time}"}}\n'


DOCKER = (
    docker_line(WINSTON + "\n"), docker_line(ACCESS + "\n", "stderr"), docker_line("\n", time="2026-11-22T12:00:01Z"),
    docker_line("größe\t日\U0001f600\x00\x1b[1m\n", time="2026-11-22T12:00:00.5Z"),
    docker_line("x\n", attrs='"attrs":{"tag":"faildaily-app","b":"c"},'), docker_line("plain\r\n"),
    docker_line("<é&>\n").replace("<", "\\u003c"),
)  # fmt: skip
INVALID = st.sampled_from([b"", b"\xff", b"\xc3", b"\xe6\x97", b"\xed\xa0\x80", b"\xf0\x9f\x98", b"\xc0\x80", b"\xf5"])


@st.composite
def docker_block(draw: st.DrawFn) -> bytes:
    text = "".join(draw(st.lists(st.sampled_from(DOCKER).flatmap(mutated), min_size=1, max_size=4)))
    block = text.encode()
    at = draw(st.integers(0, len(block)))
    return block[:at] + draw(INVALID) + block[at:]


def docker_lines() -> DockerLines:
    return DockerLines(Container("c" * 64, source="docker", host="h", labels=[]))


def cut(block: bytes, position: int) -> Any:
    return compiled.docker_lines(block, position, docker_lines()._seed)


@EXAMPLES
@given(docker_block(), st.integers(0, 2**40))
def test_docker_lines(block: bytes, position: int) -> None:
    found = cut(block, position)
    if found is not None:
        assert found == docker_lines()._columns(block, position)


@pytest.mark.parametrize("attrs", ['{\r"tag":"t"}', '{"tag":\r"t"}', '{"tag":"t"\r}'])
def test_docker_lines_with_a_carriage_return_between_are_declined_by_both(attrs: str) -> None:
    block = docker_line("x\n", attrs=f'"attrs":{attrs},').encode()
    assert cut(block, 0) is None
    assert docker_lines()._columns(block, 0) is None


def test_common_docker_lines_are_not_declined() -> None:
    for block in (*DOCKER, "".join(DOCKER)):
        assert cut(block.encode(), 7) == docker_lines()._columns(block.encode(), 7) is not None


# Ids

NUMBERS = st.one_of(st.integers(-(2**64), 2**64), st.integers(0, 2**63 - 1), st.sampled_from([-1, 0, 2**63 - 1, 2**63]))
HASHES = st.one_of(st.integers(-1, 2**128), st.sampled_from([-1, 0, 2**128 - 1, 2**128, 2**200]))


@EXAMPLES
@given(st.lists(st.tuples(NUMBERS, HASHES), max_size=5))
def test_make_ids(pairs: list[tuple[int, int]]) -> None:
    stamps, hashes = [one for one, _ in pairs], [two for _, two in pairs]
    found = compiled.make_ids(stamps, hashes)
    if found is not None:
        assert found == make_ids(stamps, hashes)


@EXAMPLES
@given(st.lists(st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 2**128 - 1)), min_size=1, max_size=5))
def test_make_ids_declines_nothing_that_is_common(pairs: list[tuple[int, int]]) -> None:
    stamps, hashes = [one for one, _ in pairs], [two for _, two in pairs]
    assert compiled.make_ids(stamps, hashes) == make_ids(stamps, hashes)


@pytest.mark.parametrize("number", [-1, -(2**127), -(2**128), 2**128, 2**200])
def test_hashes_beyond_128_bits_are_declined_without_a_trace(number: int) -> None:
    """From Python 3.13 on by another function of the C API, which tells what it refuses in two ways."""
    assert compiled.make_ids([0, 0], [2**128 - 1, number]) is None


# What is to be known of a column


@EXAMPLES
@given(st.lists(NUMBERS, max_size=6))
def test_span(numbers: list[int]) -> None:
    found = compiled.span(numbers)
    plain = bool(numbers) and all(-(2**63) <= number < 2**63 for number in numbers)
    ascends = all(one < two for one, two in pairwise(numbers))
    assert found == ((min(numbers), max(numbers), ascends) if plain else None)


@EXAMPLES
@given(st.lists(st.text(max_size=5), max_size=5))
def test_lengths(texts: list[str]) -> None:
    assert compiled.lengths(texts) == (max(map(len, texts), default=0), sum(map(len, texts)))
    assert compiled.lengths([*texts, b"x"]) is None


# Picking


@EXAMPLES
@given(st.lists(st.text(max_size=2), max_size=6), st.lists(st.integers(-7, 7) | st.just(2**70), max_size=6))
def test_pick(column: list[str], rows: list[int]) -> None:
    found = compiled.pick(column, rows)
    if found is None:
        assert any(not 0 <= row < len(column) for row in rows)
    else:
        assert found == [column[row] for row in rows]


# Rendering


class Text(str):
    __slots__ = ()


class Object(dict[str, Any]):
    pass


CHARACTERS = "ab\"\\/'\x00\x01\x08\t\n\x0b\x0c\r\x1b\x1c\x1d\x1e\x1f\x7f\x80é\u07ff\u0800\u2028日\uffff\U0001f600"
WHOLE = st.one_of(st.text(CHARACTERS, max_size=20), st.text(max_size=5).filter(lambda text: text.isascii()))
TEXTS = st.one_of(WHOLE, WHOLE.map(Text), st.text(st.sampled_from(CHARACTERS + "\ud800\udfff"), max_size=9))
VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), TEXTS, st.integers(-(2**65), 2**65), st.floats(), st.binary(max_size=4),
        st.sampled_from([2**63 - 1, 2**63, -(2**63), -(2**63) - 1, -0.0]), st.just({1}), st.just(Object(a=1)),
        st.just((1, "a")), st.just({1: "a"}),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=8,
)  # fmt: skip
TIMES = st.one_of(
    st.integers(0, 2**62), st.integers(-(2**63), 2**63 - 1), st.sampled_from([0, -1, NOON, 2**63, 951_782_400 * SECOND])
)
COLUMNS = {
    **dict.fromkeys([Kind.TEXT, Kind.STRING, Kind.ESCAPED], TEXTS),
    Kind.OPEN: WHOLE.map(lambda text: text + "}"),
    Kind.NUMBER: st.integers(-(2**65), 2**65),
    Kind.VALUE: VALUES,
    **dict.fromkeys([Kind.RFC3339, Kind.TICKS, Kind.CREATED, Kind.MILLIS, Kind.BELOW], TIMES),
    **dict.fromkeys([Kind.FIELD, Kind.QUOTED], st.none() | TEXTS),
    **dict.fromkeys([Kind.MEMBERS, Kind.ENCODED], st.dictionaries(TEXTS, VALUES, max_size=4)),
}


@st.composite
def parts_and_count(draw: st.DrawFn) -> tuple[list[Any], int]:
    count = draw(st.integers(1, 4))
    parts: list[Any] = []
    for kind in draw(st.lists(st.sampled_from([None, *COLUMNS]), min_size=1, max_size=5)):
        if kind is None:
            parts.append(draw(WHOLE).encode())
        else:
            parts.append((kind, draw(st.lists(COLUMNS[kind], min_size=count, max_size=count))))
    return parts, count


def rendered(render: Callable[..., Any], *arguments: Any) -> Any:
    ends: list[int] = []
    try:
        text = render(*arguments, ends)
    except Exception as error:  # noqa: BLE001 - the same is expected from both, whatever it is
        return type(error)
    return text, ends


def test_every_kind_is_tested() -> None:
    assert set(COLUMNS) == set(Kind)


@EXAMPLES
@given(parts_and_count(), st.data())
def test_render(given_parts: tuple[list[Any], int], data: st.DataObject) -> None:
    parts, count = given_parts
    start = data.draw(st.integers(0, count))
    end = data.draw(st.integers(start, count))
    found = rendered(compiled.render, parts, start, end, columns._encode)
    if not (isinstance(found, tuple) and found[0] is None):
        assert found == rendered(columns._render, parts, start, end)


def test_render_declines_nothing_that_is_common() -> None:
    times = [NOON, 0, 951_782_400 * SECOND + 1]
    for kind in Kind:
        column: list[Any] = ["é\n'\x1c", "", "b"]
        if kind in {Kind.RFC3339, Kind.TICKS, Kind.CREATED, Kind.MILLIS, Kind.BELOW, Kind.NUMBER}:
            column = times
        elif kind is Kind.VALUE:
            column = [{"a": [1, 0.5, None]}, "é", -(2**63)]
        elif kind in {Kind.MEMBERS, Kind.ENCODED}:
            column = [{"a": [1, 0.5, None], "é": "b"}, {}, {"n": -(2**63)}]
        parts = [b"[", (kind, column), b"]"]
        assert compiled.render(parts, 0, 3, columns._encode, None) == columns._render(parts, 0, 3, None)
