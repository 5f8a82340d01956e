"""Text of a log steers no terminal and forges no record, no field and no formula, in whatever form it is shown."""

from __future__ import annotations

import csv
import io
import json
import re
from datetime import UTC
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shipper.reading import display
from shipper.record import Record, Resource, make_id
from shipper.visible import json_text, key_text, one_line, visible

NOON = 1_795_348_800_000_000_000
#: Whatever of this reaches a terminal raw steers it, turns text around or hides.
RAW = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
HIDDEN = re.compile("[\u034f\u115f\u1160\u200c\u200d\u3164\ufe0f\uffa0\U000e0001\U000e0041]")
EVIL = (
    "\x1b]0;title\x07\x1b[31mred\x1b[2J\x9b31m\x9d0;t\x9c\x85\u202edrowssap\u2066x\u2069\u2028x\u2029\r\x08\x00\x7f\x0b\x0c"
    "\u061c\u200e\u200f\u200b\ufeff\u00ad\u2060\u180e"
)
UNSEEN = "adm\u200din\u3164\ufe0f\U000e0041\u034f"
FORGED = "a=1\n12:00:00.000 FATAL payments all cards declined x"

FORMS: dict[str, display.Show] = {
    "pretty": display.Pretty(zone=UTC, now_ns=NOON, color=False),
    "json": display.json_line,
    "logfmt": display.logfmt_line,
    "csv": display.csv_line,
}


def record(message: str = "m", *, attributes: dict[str, Any] | None = None, **resource: str) -> Record:
    about = {key.replace("_", "."): value for key, value in resource.items()}
    return Record(make_id(NOON, 1), NOON, 9, message, attributes or {}, message, Resource("app", about), 1)


#: A record with the text in every place where a log, a container or a file can put one.
def everywhere(text: str) -> list[Record]:
    return [
        record(text),
        record(attributes={text: 1}),
        record(attributes={"k": text}),
        record(attributes={"k": {text: [text]}}),
        record(service_name=text),
        record(container_name=text),
        record(host_name=text),
        record(service_name=text, container_name=text, host_name=text, log_iostream=text, log_file_path=text),
        Record(make_id(NOON, 1), NOON, 9, text, {text: text}, text, Resource(text, {text: text}), 1),
        Record(text, NOON, 9, "m", {}, "", Resource("app", {}), 1),
    ]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("text", [EVIL, EVIL + "\n" + EVIL, UNSEEN, FORGED, "\ud800x", "\t"], ids=ascii)
def test_nothing_steers_a_terminal(form: str, text: str) -> None:
    for item in everywhere(text):
        assert not RAW.search(FORMS[form](item)), item


@pytest.mark.parametrize("form", ["pretty", "logfmt"])
def test_a_name_hides_nothing(form: str) -> None:
    for item in (record(attributes={UNSEEN: 1}), record(service_name=UNSEEN)):
        assert not HIDDEN.search(FORMS[form](item))
    # In running text, letters and emoji are joined as their scripts want it.
    assert "\u0645\u06cc\u200c\u062e" in FORMS["pretty"](record("\u0645\u06cc\u200c\u062e"))


@pytest.mark.parametrize("text", [FORGED, "\nx", "x\n", "a\r\nb", "a\x85b", "a\u2028b", "a\x0bb"], ids=ascii)
def test_a_record_is_one_line_and_further_lines_are_marked(text: str) -> None:
    for item in everywhere(text):
        for form in ("json", "logfmt"):
            shown = FORMS[form](item)
            assert len(shown.splitlines()) == 1, shown
            assert shown.endswith("\n")
        first, *more = FORMS["pretty"](item).splitlines()
        assert first.startswith("12:00:00.000 INFO")
        assert all(line.startswith("    │ ") for line in more)
        assert len(list(csv.reader(io.StringIO(FORMS["csv"](item))))) == 1


@pytest.mark.parametrize("name", ["a=1 level", 'a" level="fatal', "a level", "a\u00a0b", "'a'", "a=", "="])
def test_a_name_is_one_name(name: str) -> None:
    for form in ("logfmt", "pretty"):
        shown = FORMS[form](record(attributes={name: "fatal"}))
        pairs = re.findall(r'(\S+?)=("(?:[^"\\]|\\.)*"|\S*)', shown)
        assert [value for _, value in pairs].count("fatal") == 1
        assert "level" not in [key for key, value in pairs if value == "fatal"]


def test_an_attribute_never_takes_the_place_of_a_field_of_the_record() -> None:
    own = ("ts", "level", "service", "msg", "container", "host", "id")
    item = record(
        "true", attributes=dict.fromkeys(own, "forged"), service_name="api", container_name="c", host_name="h"
    )
    shown = FORMS["logfmt"](item).split()
    assert shown[1:4] == ["level=info", "service=api", "msg=true"]
    assert [pair for pair in shown if "forged" in pair] == [f"attributes.{name}=forged" for name in own]
    assert shown[-3:] == ["container=c", "host=h", f"id={item.id}"]


FORMULAS = [
    "=HYPERLINK(1)",
    "@SUM(1)",
    "-2+3",
    "+1",
    "\t=1",
    "\r=1",
    "\n=1",
    " =1",
    "\uff1d1",
    "\uff0b1",
    "'=1",
    "'",
    "-",
]


@pytest.mark.parametrize("text", FORMULAS, ids=ascii)
def test_no_cell_is_a_formula_and_the_mark_comes_off_again(text: str) -> None:
    for item in everywhere(text):
        (row,) = csv.reader(io.StringIO(FORMS["csv"](item)))
        for cell in row:
            assert not re.match(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]", cell), row
    (row,) = csv.reader(io.StringIO(FORMS["csv"](record(text))))
    # A carriage return is written out, so that it begins nothing any more.
    assert row[7] == (visible(text) if text.startswith("\r") else f"'{visible(text)}")


@given(st.text(), st.text())
def test_every_text_comes_back_from_json_and_logfmt_and_csv_as_it_was(key: str, text: str) -> None:
    item = record(text, attributes={f"k{key}": text})
    assert json.loads(display.json_line(item))["message"] == text
    assert json.loads(display.json_line(item))["attributes"] == {f"k{key}": text}
    found = re.search(r'msg=("(?:[^"\\]|\\.)*"|\S+)', display.logfmt_line(item))
    if text:
        assert found is not None
        assert (json.loads(found[1]) if found[1].startswith('"') else found[1]) == text
    (row,) = csv.reader(io.StringIO(display.csv_line(item)))
    cell = row[7].removeprefix("'") if row[7].startswith("'") else row[7]
    assert cell == visible(text)
    attributes = row[8]
    assert json.loads(attributes) == {f"k{key}": text}


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.floats() | st.none(), max_size=4), st.text())
def test_no_record_makes_a_form_raise(attributes: dict[str, Any], text: str) -> None:
    for item in (record(text, attributes=attributes), record(attributes={"a": attributes}, service_name=text)):
        for show in FORMS.values():
            assert not RAW.search(show(item))


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": [value]}
    return value


@pytest.mark.parametrize(
    "value",
    [
        nested(5_000),
        1 << 80,
        -(1 << 70),
        10**5_000,
        float("nan"),
        float("inf"),
        "\udc80",
        {"\udc80": "\ud800"},
        b"x",
        object(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_that_no_encoder_takes_cost_the_command_nothing(value: Any) -> None:
    for form, show in FORMS.items():
        shown = show(record(attributes={"k": value}))
        if form == "json":
            assert "k" in json.loads(shown)["attributes"]
            assert "NaN" not in shown
            assert "Infinity" not in shown


@pytest.mark.parametrize("time_ns", [0, -1, 253_402_300_799_999_999_999, (1 << 63) - 1])
def test_the_ends_of_the_calendar_are_shown(time_ns: int) -> None:
    item = Record(make_id(NOON, 1), time_ns, 9, "m", {}, "m", Resource("app", {}), 1)
    assert "m" in display.Pretty(zone=ZoneInfo("Pacific/Kiritimati"), now_ns=NOON, color=False)(item)


def test_what_the_functions_show() -> None:
    assert visible("a\tb\n\x1b\u202e\r") == "a\tb\n\\x1b\\u202e\\r"
    assert one_line("a\tb\n\x1b\u200d\U000e0041") == "a\\tb\\n\\x1b\\u200d\\U000e0041"
    assert key_text('a=1 "x\\') == r"a\x3d1\x20\x22x\\"
    assert json_text({"a\u202e": "\x9b\U000e0041"}) == '{"a\\u202e":"\\u009b\\udb40\\udc41"}'
    assert visible("Grüße, 世界 👍🏽") == "Grüße, 世界 👍🏽"
