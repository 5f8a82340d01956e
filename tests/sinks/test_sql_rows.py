"""Records as rows of a table: compiled code and its twins in Python make the same of everything."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shipper.native import compiled
from shipper.render import Kind, _render, render
from shipper.testing.batches import START_NS, make_batch
from sinks._sql import COLUMNS, MAX_DEPTH, Mapping, _encoder, _time_order

needs_compiled = pytest.mark.skipif(compiled is None, reason="there is no compiled form here")


class Text(str):
    __slots__ = ()


class Members(dict[str, Any]):
    pass


def _nested(depth: int) -> Any:
    value: Any = "end"
    for level in range(depth):
        value = [value] if level % 2 else {"k": value}
    return value


TEXTS = st.one_of(
    st.sampled_from(["", "x", "é", "日本", "😀", "a\0b", 'q"\\\n\t\x01\x7f', "\ud800", "x\udfff", "\ufffd", "z" * 80]),
    st.text(max_size=12),
)
NAMES = st.one_of(
    st.sampled_from([*COLUMNS.values(), "details", "details", "detailsx", "a,b", "", "é", "n" * 90, "k", "\x7f"]), TEXTS
)
SCALARS = st.one_of(
    TEXTS,
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64, 10**30]),
    st.floats(),
    st.sampled_from([Text("sub"), b"bytes", (1, 2), {1: 2}, Members(k=1), _nested(19), _nested(20), _nested(70)]),
)
VALUES = st.recursive(
    SCALARS, lambda each: st.lists(each, max_size=3) | st.dictionaries(NAMES, each, max_size=3), max_leaves=8
)
ATTRIBUTES = st.one_of(
    st.dictionaries(NAMES, VALUES, max_size=7),
    st.fixed_dictionaries({"details": st.dictionaries(NAMES, VALUES, max_size=3)}, optional={"k": VALUES, "user_id": VALUES}),
    st.sampled_from([{Text("user_id"): 1}, {Text("k"): 1}, Members(user_id=1)]),
)  # fmt: skip
MAPPINGS = [
    Mapping(COLUMNS),
    Mapping(COLUMNS, marker=False),
    Mapping(COLUMNS, wide_integers=False, widths={"user_id": 5, "action": 0, "shipper": 255}),
    Mapping(COLUMNS, widths={"shipper": 20 + sum(len(column) + 1 for column in COLUMNS) + 2}),
    Mapping(COLUMNS, widths={"shipper": 30}),
    Mapping({}),
    Mapping({f"c{number}": f"a{number}" for number in range(40)} | {"user_id": "user_id"}),
]


def _each(marks: str | list[str], count: int) -> list[str]:
    return [marks] * count if isinstance(marks, str) else list(marks)


@needs_compiled
@given(attributes=st.lists(ATTRIBUTES, min_size=1, max_size=6), mapping=st.sampled_from(MAPPINGS))
def test_attributes_are_divided_as_the_python_does(attributes: list[dict[str, Any]], mapping: Mapping) -> None:
    # Numbers that are none equal nothing, but JSON has none of them.
    *texts, marks = mapping._split_attributes(attributes)
    *expected, expected_marks = mapping._split_in_python(attributes)
    assert texts == expected
    assert _each(marks, len(attributes)) == _each(expected_marks, len(attributes))


@needs_compiled
def test_common_attributes_are_not_left_to_the_python() -> None:
    assert compiled is not None
    common: list[dict[str, Any]] = [
        {},
        {"user_id": 5, "action": "login", "ip_address": "10.0.0.1", "user_agent": "curl"},
        {"user_id": -(2**63), "details": {"fail_id": 1, "tags": ["a", 1.5, None, True]}, "status": 200},
        {"user_id": "é", "action": "日本", "k": "😀", "n": {"o": {}}, "l": []},
        {"details": "text", "a,b": 1},
        {"details": {}},
        {"k": _nested(MAX_DEPTH - 1)},
    ]
    names, marks = tuple(COLUMNS.values()), tuple(f",{column}" for column in COLUMNS)
    columns, odd = compiled.divide(common, names, marks, (-1,) * 4, 100, MAX_DEPTH, _encoder.encode)
    assert odd == []
    assert columns[0] == [None, "5", str(-(2**63)), "é", None, None, None]
    assert columns[4][1:4] == [
        None,
        '{"fail_id":1,"tags":["a",1.5,null,true],"status":200}',
        '{"k":"😀","n":{"o":{}},"l":[]}',
    ]
    assert columns[5][:3] == ["", ",user_id", ",user_id,+status"]


@needs_compiled
def test_divided_texts_are_those_of_the_record() -> None:
    """A text that has a column is not copied."""
    text = "a user agent"
    (*_, agents), _, _ = Mapping(COLUMNS)._split_attributes([{"user_agent": text}])
    assert agents[0] is text


TIMES = st.one_of(st.integers(START_NS, START_NS + 9), st.integers(-(2**63), 2**63 - 1))


@given(times=st.lists(TIMES, max_size=40))
def test_times_are_put_in_order_and_equal_ones_told(times: list[int]) -> None:
    order, ties = _time_order(times)
    assert order == [place for _, place in sorted(zip(times, range(len(times)), strict=True))]
    assert ties == [place for place, (one, two) in enumerate(pairwise(sorted(times))) if one == two]


def test_records_of_one_time_are_in_the_order_of_their_ids_once_each() -> None:
    rng = random.Random(3)
    batch = make_batch([f"line {number}" for number in range(60)])
    batch.times[:] = [START_NS + number // 4 for number in range(60)]
    rows = rng.sample(range(60), 60)
    twice = batch.select([*rows, *rows[:20]])
    order = Mapping.order(twice)
    ids = [twice.ids[index] for index in order]
    ranked = sorted(zip(batch.times, batch.ids, strict=True))
    assert ids == [each for _, each in ranked]


@needs_compiled
@given(texts=st.lists(st.none() | st.text(alphabet="ab'\\\x1c\x1d\x1eé😀\0", max_size=30), max_size=5))
@pytest.mark.parametrize("kind", [Kind.FIELD, Kind.QUOTED])
def test_texts_are_escaped_as_the_python_does(kind: Kind, texts: list[str | None]) -> None:
    ends: list[int] = []
    expected: list[int] = []
    parts: list[Any] = [(kind, texts), b"|"]
    assert render(parts, 0, len(texts), ends=ends) == _render(parts, 0, len(texts), expected)
    assert ends == expected


@given(times=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(10**18, 2**63 - 1), max_size=5))
@pytest.mark.parametrize("kind", [Kind.CREATED, Kind.TICKS, Kind.RFC3339])
def test_times_are_written_alike_alone_and_together(kind: Kind, times: list[int]) -> None:
    alone = b"".join([render([(kind, [time])], 0, 1) for time in times])
    assert render([(kind, times)], 0, len(times)) == _render([(kind, times)], 0, len(times), None) == alone


def test_created_is_cut_below_the_microsecond() -> None:
    batch = make_batch(["a", "b"])
    batch.times[:] = [START_NS + 999_999_999, START_NS - 1]
    assert Mapping(COLUMNS).rows(batch, range(2)).created == [
        "2026-01-02 03:04:05.999999",
        "2026-01-02 03:04:04.999999",
    ]
