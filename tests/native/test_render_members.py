"""Attributes as columns: members as texts, the names of those that are none, and integers that 64 bits do not hold."""

from __future__ import annotations

import json
import random
from enum import StrEnum
from math import isfinite
from typing import Any

import pytest

from shipper import render as columns
from shipper.render import Kind, is_wide, render, wide

COMPILED = columns.compiled


class Text(str):
    __slots__ = ()


class Members(dict[str, Any]):
    pass


class Colour(StrEnum):
    RED = "red"


class Odd:
    def __str__(self) -> str:
        return 'an "odd" value'


TEXTS = [
    "", "a", "exactly8", "nine char", 'a "quote"', "back\\slash", "\x00", "\x1f\x7f", "line\nbreak\ttab\r\b\f", "ü", "日本",
    "\U0001f600", "ü" * 40 + '"', "x" * 5_000, "/", "\u2028",
]  # fmt: skip
PLAIN = [
    None, True, False, 0, -1, 2**63 - 1, -(2**63), 2**63, 2**64 - 1, 0.0, -1.5, 1e300, float("nan"), float("inf"), [], {},
    [[]], {"": {}}, [1, "a", None], {"fail_id": 7, "tags": ["a", 'b"']}, {"ü": "\x01\\"},
]  # fmt: skip
UNUSUAL = [(), (1, "b"), b"bytes", Text("text"), Colour.RED, Members(a=1), Odd(), {1: 2}, {"a": Odd()}, [Text('"')]]


def _nested(value: Any, depth: int) -> Any:
    for _ in range(depth):
        value = {"a": [value]}
    return value


def _column(seed: int) -> list[dict[str, Any]]:
    chance = random.Random(seed)
    values = [*TEXTS, *PLAIN, *([*UNUSUAL, _nested(1, 20), _nested("a", 40)] if seed % 3 == 0 else [])]
    return [
        {chance.choice(TEXTS) + str(number): chance.choice(values) for number in range(chance.randrange(6))}
        for _ in range(40)
    ]


def _pure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "compiled", None)


@pytest.mark.parametrize("seed", range(60))
def test_both_forms_write_the_same(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    column = _column(seed)
    parts: list[Any] = [b"<", (Kind.ENCODED, column), b"|", (Kind.MEMBERS, column), b">"]
    ends: list[int] = []
    text, places = render(parts, 3, 40, ends=ends), wide(column)
    _pure(monkeypatch)
    pure_ends: list[int] = []
    assert text == render(parts, 3, 40, ends=pure_ends)
    assert ends == pure_ends
    assert places == wide(column)


@pytest.mark.parametrize("pure", [False, True])
def test_what_is_written_says_what_the_members_were(monkeypatch: pytest.MonkeyPatch, *, pure: bool) -> None:
    if pure:
        _pure(monkeypatch)
    plain = [value for value in PLAIN if not isinstance(value, float) or isfinite(value)]
    column = [{name + "0": value} for name in TEXTS for value in [*TEXTS, *plain]]
    ends: list[int] = []
    text = render([b'{"json":"', (Kind.ENCODED, column), b'"', (Kind.MEMBERS, column), b"}"], 0, len(column), ends=ends)
    for start, end, members in zip([0, *ends], ends, column, strict=False):
        found = json.loads(text[start:end])
        names = json.loads(found.pop("json"))
        assert {name: json.loads(value) if name in names else value for name, value in found.items()} == members


@pytest.mark.parametrize("pure", [False, True])
@pytest.mark.parametrize("members", [{"a": "\ud800"}, {"\udc00": 1}, {"a": ["\ud800"]}, {"a": {"\ud800": 1}}])
@pytest.mark.parametrize("kind", [Kind.MEMBERS, Kind.ENCODED])
def test_half_of_a_surrogate_pair_is_told(
    monkeypatch: pytest.MonkeyPatch, kind: Kind, members: dict[str, Any], *, pure: bool
) -> None:
    if pure:
        _pure(monkeypatch)
    if kind is Kind.ENCODED and "\udc00" not in members:
        render([(kind, [members])], 0, 1)  # only names are written
        return
    with pytest.raises(UnicodeEncodeError):
        render([(kind, [members])], 0, 1)


@pytest.mark.parametrize("pure", [False, True])
@pytest.mark.parametrize(
    ("value", "found"),
    [
        (2**63 - 1, False), (-(2**63), False), (2**63, True), (-(2**63) - 1, True), (10**30, True), (1e30, False),
        ("9" * 30, False), (True, False), (None, False), ({"a": [{"b": 2**64}]}, True), ([], False), ({}, False),
        ((2**63,), True), (Members(a=2**63), True), (_nested(2**63, 60), True), (_nested(1, 60), False),
    ],
)  # fmt: skip
def test_wide_integers_are_found_wherever_they_stand(
    monkeypatch: pytest.MonkeyPatch, value: Any, *, found: bool, pure: bool
) -> None:
    if pure:
        _pure(monkeypatch)
    assert is_wide(value) == found
    assert wide([{"a": 1}, value, {"b": "c"}]) == ([1] if found else [])
    assert wide([]) == []


@pytest.mark.skipif(COMPILED is None, reason="nothing is compiled here")
def test_what_is_unusual_is_left_to_the_twin() -> None:
    assert COMPILED is not None

    def compiled(column: list[Any]) -> Any:
        return COMPILED.render([(Kind.MEMBERS, column)], 0, 1, columns._encode, None)

    assert compiled([{"a": 1}]) == b',"a":"1"'
    assert compiled([Members(a=1)]) is None
    assert compiled([{"a": Text("b")}]) is None
    assert COMPILED.wide([()]) is None
    with pytest.raises(TypeError):
        COMPILED.wide(())
