"""What sinks remember of the names of attributes is small, whatever names come."""

from __future__ import annotations

import json

from shipper import render
from shipper.parse import Parser
from shipper.record import Batch, Resource
from sinks._azure import Columns
from sinks._sql import COLUMNS, Mapping
from sinks.azure_app_insights.encode import Encoder

RESOURCE = Resource("s", {})


def test_records_of_many_names_are_not_remembered() -> None:
    mapping, encoder = Mapping(COLUMNS), Encoder("key", ["event"])
    for number in range(20):
        line = json.dumps({"level": "info", "message": "m", **{f"{number}.{key}": 1 for key in range(5_000)}})
        batch = Batch([1], [1], [1], [line], [RESOURCE], [0])
        Parser().parse(batch)
        mapping.rows(batch, [0])
        encoder.encode(Columns.of(batch, 0, 1, [0]))
        render._members(batch.attributes or [])
    assert sum(len(name) for names in mapping._shapes for name in names) < 10_000
    assert sum(len(name) for names, _ in encoder._shapes for name in names) < 10_000


def test_long_names_are_not_remembered() -> None:
    render._named.cache_clear()
    for number in range(5):
        (text,) = render._members([{f"{number}" + "x" * 10_000: "v", "short": "w"}])
        assert text == f',"{number}{"x" * 10_000}":"v","short":"w"'
    assert render._named.cache_info().currsize == 1
