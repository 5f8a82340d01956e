"""Records as rows of a table: compiled code and its twins in Python make the same of everything."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from shipper.native import compiled
from shipper.record import Batch
from shipper.render import Kind, _render, render
from shipper.testing.batches import START_NS, make_batch, make_resource
from sinks._plain import MAX_DEPTH, TOO_DEEP
from sinks._sql import COLUMNS, FIRST, Mapping, _encoder, _time_order
from sinks._sql_fit import Fit, FittedMapping, levels_for
from sinks._sql_read import RowReader

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


FITS = {
    "user_id": st.sampled_from([Fit(bounds=(-128, 127)), Fit(bounds=(0, 255), filler="0"), Fit(closed=True)]),
    "action": st.sampled_from([Fit(words=frozenset({"x", "é"}), filler="x"), Fit(width=3, charset="latin1", trimmed=True)]),
    "message": st.builds(Fit, width=st.sampled_from([None, 4, 30]), charset=st.sampled_from(["", "utf8mb3", "ascii"])),
    "details": st.builds(
        Fit, charset=st.sampled_from(["", "latin1", "ascii"]), filler=st.sampled_from([None, "{}"])
    ),
    "service": st.just(Fit(width=5, charset="ascii", filler="")),
    "shipper": st.just(Fit(charset="latin1")),
}  # fmt: skip
WORDS = [None, ["info", "ERROR"], ["warning"], ["trace", "debug", "info", "warn", "error"]]


@given(
    fits=st.fixed_dictionaries({}, optional=FITS),
    words=st.sampled_from(WORDS),
    messages=st.lists(TEXTS, min_size=1, max_size=5),
    attributes=ATTRIBUTES,
    severity=st.integers(0, 24),
    width=st.sampled_from([255, 40]),
)
def test_rows_for_any_table_fit_it_and_come_back_as_they_were(
    *,
    fits: dict[str, Fit],
    words: list[str] | None,
    messages: list[str],
    attributes: dict[str, Any],
    severity: int,
    width: int,
) -> None:
    levels = None if words is None else levels_for(words)
    fitted = FittedMapping(COLUMNS, fits=fits, levels=levels, widths={"shipper": width})
    batch = make_batch(messages, attributes=attributes, resource=make_resource("größe"), start_ns=START_NS + 3)
    batch.severities = [severity] * len(messages)
    expected, found = (_records(mapping, batch) for mapping in (Mapping(COLUMNS), fitted))
    assume(TOO_DEEP not in repr(found))  # where details is opened depends on the room that marks have
    assert found == expected
    rows = fitted.rows(batch, fitted.order(batch)).clean()
    columns = dict(zip((*FIRST, *COLUMNS), rows.texts, strict=True))
    for name, fit in fits.items():
        for text in columns.get(name, []):
            assert (text is None and fit.filler is None) or (text is not None and _held(name, fit, text))
    if words is not None:
        assert set(rows.levels) <= set(words)


def _held(name: str, fit: Fit, text: str) -> bool:
    """A filler is of the column's own kind; JSON has no width."""
    return text == fit.filler or fit.holds(text) or (name == "message" and len(text) <= (fit.width or len(text)))


def _records(mapping: Mapping, batch: Batch) -> list[Any]:
    reader = RowReader(COLUMNS)
    rows = mapping.rows(batch, mapping.order(batch)).clean()
    reader._json.update({shared.key: shared.json for shared in rows.resource_columns if shared.key})
    made = zip(*rows.texts, rows.created, *zip(*[shared.columns for shared in rows.resource_columns], strict=True),
               rows.markers or [], strict=True)  # fmt: skip
    found = []
    for row in made:
        record = reader.record(row)
        found.append((record.id, record.time_ns, record.severity, record.message, record.attributes,
                      record.resource.source, record.resource.attributes))  # fmt: skip
    return found


@pytest.mark.parametrize(
    ("words", "fatal", "trace"),
    [(["info", "error"], "error", "info"), (["WARN"], "WARN", "WARN"), (["crit", "verbose"], "crit", "verbose")],
)
def test_level_is_the_nearest_that_the_column_knows(words: list[str], fatal: str, trace: str) -> None:
    levels = levels_for(words)
    assert (levels["fatal"], levels["trace"]) == (fatal, trace)
    assert levels_for(["a", "b"]) == {}
