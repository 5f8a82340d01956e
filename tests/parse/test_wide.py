"""A JSON line with more values than memory is for: what a record is made of is decoded, the rest stays text."""

from __future__ import annotations

import json

import msgspec
import pytest

from shipper.parse import Parser
from shipper.parse.objects import MAX_VALUES, REST, WIDE
from shipper.record import SEVERITIES, Batch
from shipper.testing.batches import make_batch
from shipper.transforms.redact import RedactConfig, RedactTransform

MANY = ",".join(['{"":0}'] * (MAX_VALUES + 1))
WIDE_LINE = f'{{"level":"error","message":"m","time":"2026-11-22T10:00:00Z","token":"hunter2hunter2","n":[{MANY}]}}'
ORDINARY = '{"level":"warn","message":"next","n":[1,2]}'


def parsed(*raws: str) -> Batch:
    batch = make_batch(raws, parsed=False)
    Parser().parse(batch)
    return batch


@pytest.mark.parametrize("neighbours", [[], [ORDINARY], [ORDINARY, "plain", "a=b c=d"]])
def test_level_message_and_time_are_decoded_and_the_whole_stays_text(neighbours: list[str]) -> None:
    batch = parsed(WIDE_LINE, *neighbours)
    assert batch.severities is not None
    assert batch.messages is not None
    assert batch.attributes is not None
    assert batch.severities[0] == SEVERITIES["error"]
    assert batch.messages[0] == "m"
    assert batch.attributes[0][REST] == WIDE_LINE
    assert "n" not in batch.attributes[0]
    if neighbours:
        assert batch.attributes[1] == {"n": [1, 2]}, "its neighbours are decoded"
    levels = make_batch([WIDE_LINE, *neighbours], parsed=False)
    Parser().levels(levels)
    assert levels.severities == batch.severities


def test_as_many_values_as_are_allowed_are_decoded() -> None:
    line = json.dumps({"message": "m" * WIDE, "n": [0] * (MAX_VALUES - 2)}, separators=(",", ":"))
    assert line.count(",") == MAX_VALUES - 2
    batch = parsed(line)
    assert batch.attributes == [{"n": [0] * (MAX_VALUES - 2)}]


def test_a_long_line_with_few_values_is_decoded() -> None:
    batch = parsed(json.dumps({"message": "m", "text": "x" * (2 * WIDE)}))
    assert batch.attributes == [{"text": "x" * (2 * WIDE)}]


def test_a_wide_line_without_a_message_is_its_message() -> None:
    line = f'{{"n":[{MANY}]}}'
    batch = parsed(line)
    assert batch.messages == [line]
    assert batch.attributes == [{}]


@pytest.mark.parametrize(
    "line",
    [
        f'{{"message":"m","n":[{MANY}]',
        f'{{"message":"m","n":[{MANY},]}}',
        f'{{"message":"m","n":[{MANY}]}} {{}}',
    ],
)
def test_a_wide_line_that_is_no_json_is_text(line: str) -> None:
    batch = parsed(line)
    assert batch.messages == [line]


def test_a_wide_and_deep_line_keeps_its_message() -> None:
    deep = "[" * 5_000 + "]" * 5_000
    batch = parsed(f'{{"message":"m","deep":{deep},"n":[{MANY}]}}')
    assert batch.messages == ["m"]


def test_what_is_kept_as_text_is_masked() -> None:
    batch = parsed(WIDE_LINE)
    masked = RedactTransform(RedactConfig(type="redact", rules=["password", "bearer_token"])).apply(batch)
    assert masked.attributes is not None
    assert "hunter2" not in masked.raws[0] + msgspec.json.encode(masked.attributes[0]).decode()
