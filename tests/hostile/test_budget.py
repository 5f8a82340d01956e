"""A line of a megabyte, whatever is in it, costs at most thirty times what as many ordinary bytes cost."""

from __future__ import annotations

import time
from typing import Any

import pytest

from shipper.native import compiled
from shipper.parse import Parser, parser
from shipper.record import Batch, Resource
from shipper.routing.router import RouteConfig, Router
from shipper.testing.hostile import ordinary, shapes
from shipper.transforms.redact import RedactConfig, RedactTransform
from sinks import _render
from sinks._sql import COLUMNS, Mapping
from sinks.elasticsearch.encode import Documents
from sinks.loki import lines as loki_lines
from sinks.mysql import encode as mysql_encode
from sinks.otlp import json as otlp_json
from sinks.otlp import protobuf as otlp_protobuf

SIZE = 1 << 20
TIMES = 30
RESOURCE = Resource("test", {"service.name": "api", "container.id": "c" * 64})
ROUTES = [
    RouteConfig(match="message:*a*b*c* user_id>5", to="a"),
    RouteConfig(match='level>=error OR n:*x* OR "refused"', to=["a", "b"]),
]
RULES = ["password", "bearer_token", "jwt", "email", "card", "aws_key"]


class Way:
    """What becomes of lines between a source and the request of a sink: parsed, masked, routed, encoded."""

    def __init__(self) -> None:
        self.parser = Parser()
        self.redact = RedactTransform(RedactConfig(type="redact", rules=[*RULES]))
        self.router = Router(["a"], ROUTES)
        self.mapping = Mapping(COLUMNS)

    def go(self, lines: list[str]) -> float:
        """Give the seconds of CPU that it takes."""
        start = time.thread_time()
        batch = self.batch(lines)
        self.parser.parse(batch)
        self.redact.apply(batch)
        for part in self.router.split(batch).values():
            self.encode(part)
        raw = self.batch(lines)
        self.parser.levels(raw)
        self.redact.apply(raw)
        self.encode_raw(raw)
        return time.thread_time() - start

    @staticmethod
    def batch(lines: list[str]) -> Batch:
        count = len(lines)
        return Batch([0] * count, [0] * count, [1] * count, list(lines), [RESOURCE] * count, [0] * count)

    def encode(self, batch: Batch) -> None:
        _render.json_text(batch, raw=True)
        _render.text_lines(batch)
        for form in ("json", "logfmt"):
            loki_lines.writer(form)(batch)
        mysql_encode.values(self.mapping.rows(batch, range(len(batch))))
        Documents(ids=True, original=True, gzip=False).body(batch, range(len(batch)), 1 << 30)
        for encoder in (otlp_protobuf.Encoder(original=True), otlp_json.Encoder(original=True)):
            encoder.records(batch)

    @staticmethod
    def encode_raw(batch: Batch) -> None:
        _render.raw_text(batch)
        loki_lines.writer("raw")(batch)


@pytest.fixture(params=["compiled", "pure"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "pure":
        monkeypatch.setattr(parser, "compiled", None)
    elif compiled is None:
        pytest.skip("needs the compiled form")


@pytest.mark.slow
def test_every_shape_of_a_megabyte(form: None) -> None:
    way = Way()
    lines = ordinary(SIZE)
    usual = min(way.go(lines) for _ in range(3))
    over: dict[str, Any] = {}
    for name, text in shapes(SIZE).items():
        taken = min(way.go([text]) for _ in range(2))
        if taken > TIMES * usual:
            over[name] = f"{taken / usual:.0f} times"
    assert over == {}
