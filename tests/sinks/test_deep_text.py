"""Texts that look like JSON nested without end: no sink and no reader is stopped by one."""

from __future__ import annotations

from typing import Any

import pytest

from shipper.parse import Parser
from shipper.parse.objects import MAX_DEPTH, is_deep
from shipper.record import Batch, Resource
from shipper.routing.condition import attribute_text
from sinks import _render
from sinks._azure_read import object_of
from sinks._sql import COLUMNS, Mapping
from sinks._sql_read import _parsed
from sinks.cloudwatch.encode import read, read_metadata
from sinks.elasticsearch.encode import Documents
from sinks.loki import lines as loki_lines
from sinks.mysql import encode as mysql_encode
from sinks.otlp import json as otlp_json
from sinks.otlp import protobuf as otlp_protobuf

DEEP = ["[" * 100_000, "[" * 5_000 + "]" * 5_000, '{"a":' * 5_000 + "1" + "}" * 5_000]


def parsed(line: str) -> Batch:
    batch = Batch([1], [1], [1], [line], [Resource("s", {})], [0])
    Parser().parse(batch)
    return batch


def encode_everywhere(batch: Batch) -> None:
    _render.json_text(batch, raw=True)
    _render.text_lines(batch)
    for form in ("json", "logfmt"):
        loki_lines.writer(form)(batch)
    mysql_encode.values(Mapping(COLUMNS).rows(batch, range(len(batch))))
    Documents(ids=True, original=True, gzip=False).body(batch, range(len(batch)), 1 << 30)
    otlp_protobuf.Encoder(original=True).records(batch)
    otlp_json.Encoder(original=True).records(batch)


@pytest.mark.parametrize("text", DEEP)
def test_a_text_that_looks_deep_is_a_text(text: str) -> None:
    batch = parsed("plain")
    batch.messages, batch.attributes = [text], [{"n": text}]
    encode_everywhere(batch)
    for form in ("json", "logfmt"):
        (line,) = loki_lines.writer(form)(batch)
        assert loki_lines.read(form, line) == (text, {"n": text})


@pytest.mark.parametrize("text", DEEP)
def test_readers_take_what_another_writer_nested(text: str) -> None:
    line = f'{{"message":"m","attributes":{text}}}'
    assert loki_lines.read("json", line) == (line, {})
    assert loki_lines.read("logfmt", text) == (text, {})
    assert _parsed(text) == {"details": text}
    assert object_of(text) == {}
    assert read_metadata(text) is None
    assert read(text, 1, None, raws=False) is None


@pytest.mark.parametrize(
    "depth", [1, 2, MAX_DEPTH - 2, MAX_DEPTH - 1, MAX_DEPTH, MAX_DEPTH + 1, 500, 970, 985, 1_500, 50_000]
)
@pytest.mark.parametrize(("opener", "closer"), [("[", "]"), ('{"a":', "}"), ('[{"a": ', " } ]")])
def test_what_is_nested_deeper_stays_text(depth: int, opener: str, closer: str) -> None:
    inner = opener * depth + '"x"' + closer * depth
    batch = parsed(f'{{"level":"error","message":"m","n":{inner},"last":1}}')
    assert (batch.severities, batch.messages) == ([17], ["m"])
    assert batch.attributes is not None
    (attributes,) = batch.attributes
    assert attributes["last"] == 1
    assert not is_deep(attributes)
    encode_everywhere(batch)
    value: Any = attributes["n"]
    levels = 1
    while isinstance(value, list | dict):
        (value,) = value if isinstance(value, list) else value.values()
        levels += 1
    opened = depth * (2 if opener.startswith("[{") else 1)
    assert levels == min(opened + 1, MAX_DEPTH)
    if opened < MAX_DEPTH:
        assert value == "x"
    else:
        assert value in inner
        assert value.count("[") + value.count("{") == opened + 1 - MAX_DEPTH
    assert attribute_text(attributes["n"])
