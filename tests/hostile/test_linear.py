"""Whatever looks at text that somebody else wrote takes time linear in it: every expression, and every way in."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

import shipper
import sinks
from shipper.native import compiled
from shipper.parse import Parser, parser
from shipper.parse.levels import ANSI
from shipper.parse.lines import exception_of
from shipper.parse.objects import decode_object
from shipper.reading import display
from shipper.record import Batch, Resource
from shipper.routing.condition import compile_condition
from shipper.routing.pattern import Pattern
from shipper.secret import masked_text
from shipper.tailing.traces import Trace, may_contain, may_contain_lines, open_trace
from shipper.telemetry import logs
from shipper.testing.hostile import shapes
from shipper.transforms import redact
from sinks import _render
from sinks._azure import Columns
from sinks.azure_app_insights import encode as azure_app_insights
from sinks.azure_logs import encode as azure_logs
from sinks.cloudwatch import encode as cloudwatch_encode
from sinks.loki import lines as loki_lines

#: Characters, and four times as many. What is quadratic takes sixteen times as long.
SMALL, FACTOR = 8_192, 4
FEW, MANY = shapes(SMALL), shapes(SMALL * FACTOR)
#: Seconds that nothing may take for the larger text, and below which a clock tells nothing.
MOST, NOISE = 0.5, 0.01
RULES: list[str | redact.RedactRule] = ["password", "bearer_token", "jwt", "email", "card", "aws_key"]

#: Modules whose expressions never see what was logged, and why.
ELSEWHERE = {
    "shipper.config": "reads the configuration, of a bounded size",
    "shipper.doctor": "reads files of root's and the configuration, when it is called",
    "shipper.docgen": "reads our own code",
    "shipper.commands": "reads arguments",
    "shipper.units": "reads the configuration",
    "shipper.secret": "reads names of the configuration's keys, and texts that our own log has cut",
    "shipper.registry": "reads names in the configuration",
    "shipper.reading.timespan": "reads arguments",
    "shipper.routing.condition": "reads the condition itself; values are matched whole",
    "shipper.sources.file": "reads names of files, of 255 bytes",
    "shipper.state": "reads /proc",
    "shipper.telemetry.crash": "reads the configuration",
    "sinks.loki.faults": "reads answers of the backend",
}


def grows_linearly(do: Callable[[str], Any], shape: str) -> None:
    for attempt in range(3):  # a machine that does something else meanwhile is no fault of ours
        small, large = cpu(do, FEW[shape]), cpu(do, MANY[shape])
        if large < MOST and large <= max(NOISE, 2.5 * FACTOR * small):
            return
        if large > 4 * MOST or attempt == 2:
            pytest.fail(f"{shape}: {small:.4f} s for {SMALL} characters, {large:.4f} s for {FACTOR} times as many")


def cpu(do: Callable[[str], Any], text: str) -> float:
    start = time.thread_time()
    do(text)
    return time.thread_time() - start


# Expressions


def modules() -> Iterator[ModuleType]:
    for package in (shipper, sinks):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not found.name.endswith(("__main__", "._native")) and not found.name.startswith(tuple(ELSEWHERE)):
                yield importlib.import_module(found.name)


def patterns_in(value: Any) -> Iterator[re.Pattern[Any]]:
    if isinstance(value, re.Pattern):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from patterns_in(one)


def searched_names(module: ModuleType) -> set[str]:
    """Give the names on which a module calls a method that begins at every place of a text."""
    searching = {"search", "sub", "subn", "finditer", "findall", "split"}
    return {
        node.value.id
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Attribute) and node.attr in searching and isinstance(node.value, ast.Name)
    }


def expressions() -> list[Any]:
    found: dict[tuple[re.Pattern[Any], bool], str] = {}
    for module in modules():
        searched = searched_names(module)
        for name, value in vars(module).items():
            for pattern in patterns_in(value):
                # One of several in a tuple is searched for by the name of a loop.
                found.setdefault(
                    (pattern, name in searched or not isinstance(value, re.Pattern)), f"{module.__name__}.{name}"
                )
    for rule in redact._built_in().values():
        for number, pattern in enumerate([*rule.decoded, *rule.in_json, *([rule.keys] if rule.keys else [])]):
            found.setdefault((pattern, True), f"redact.{rule.name}.{number}")
    return [pytest.param(pattern, searched, id=name) for (pattern, searched), name in found.items()]


@pytest.mark.parametrize(("pattern", "searched"), expressions())
def test_every_expression(pattern: re.Pattern[Any], searched: bool) -> None:
    def use(text: str) -> None:
        data = text.encode("utf-8", "surrogatepass") if isinstance(pattern.pattern, bytes) else text
        pattern.match(data)
        pattern.fullmatch(data)
        if searched:
            for _ in pattern.finditer(data):
                pass

    for shape in FEW:
        grows_linearly(use, shape)


def test_the_lists_of_expressions_are_not_empty() -> None:
    names = {param.id for param in expressions()}
    assert {
        "shipper.parse.lines._FRAME",
        "shipper.parse.levels.ANSI",
        "redact.password.0",
        "sinks.loki.lines._PAIR",
    } <= names


# Ways in


def batch_of(text: str) -> Batch:
    return Batch([0], [0], [1], [text], [Resource("test", {})], [0])


def parsed(text: str) -> Batch:
    batch = batch_of(text)
    Parser().parse(batch)
    return batch


def parse_as(format: str) -> Callable[[str], Any]:  # noqa: A002
    return lambda text: Parser(format).parse(batch_of(text))


def mask(text: str) -> None:
    transform = redact.RedactTransform(redact.RedactConfig(type="redact", rules=RULES, mode="hash", salt="s"))
    transform.apply(parsed(text))


def gather(text: str) -> None:
    may_contain(text.encode("utf-8", "replace"))
    may_contain_lines([text])
    open_trace(text)
    open_trace(text, "fallback")
    for kind, state in (
        ("v8", "uncaught"),
        ("code", "caret"),
        ("python", ""),
        ("python", "chain"),
        ("go", "goroutine"),
    ):
        Trace(kind, state=state, braces=True).continues(text)  # type: ignore[arg-type]


CONDITIONS = [
    "message:*a*a*a*a*b*", 'message:"(((((((("', "n>5", "user_id:42", "message:1..2", "-message:x OR level>=error",
    "n:*", "n:*x*", "message:/(a|aa|a.)+$/", "message:/(.*)*x/i", "n:/([0-9a-z]+[,. ]?)+$/",
]  # fmt: skip


def ask(text: str) -> None:
    batch = parsed(text)
    for condition in CONDITIONS:
        compile_condition(condition).indexes(batch)


def show(text: str) -> None:
    for record in parsed(text).records():
        display.json_line(record)
        display.logfmt_line(record)
        display.csv_line(record)


def render_lines(text: str) -> None:
    for batch in (parsed(text), batch_of(text)):
        _render.json_lines(batch, raw=True)
        _render.text_lines(batch)
        _render.raw_text(batch)


def loki_forms(text: str) -> None:
    batch = parsed(text)
    for form in ("raw", "json", "logfmt"):
        for line in loki_lines.writer(form)(batch):
            loki_lines.read(form, line)
        loki_lines.read(form, text)


def azure(text: str) -> None:
    some = Columns.of(parsed(text), 0, 1, [0]).cleaned()
    azure_logs.Encoder().encode(some)
    azure_app_insights.Encoder("key", ["event"]).encode(some)


def cloudwatch(text: str) -> None:
    for whole in (True, False):
        encoder = cloudwatch_encode.Encoder(parsed=whole, resource=True)
        batch = cloudwatch_encode.cleaned(parsed(text))
        encoder.parted(encoder.events(batch), 200_000)


WAYS: dict[str, Callable[[str], Any]] = {
    "parse": parsed,
    **{f"parse as {name}": parse_as(name) for name in ("json", "logfmt", "access", "fallback", "plain")},
    "levels": lambda text: Parser().levels(batch_of(text)),
    "exception": exception_of,
    "exception below a frame": lambda text: exception_of(f"{text}\n    at x (y.js:1:1)"),
    "exception of Python": lambda text: exception_of(f"Traceback (most recent call last):\n{text}"),
    "exception of Go": lambda text: exception_of(f"goroutine 1 [running]:\n{text}"),
    "colours": lambda text: ANSI.sub("", text),
    "JSON object": decode_object,
    "gather": gather,
    "redact": mask,
    "conditions": ask,
    "display": show,
    "render": render_lines,
    "loki": loki_forms,
    "azure": azure,
    "cloudwatch": cloudwatch,
    "own log": lambda text: masked_text(text[: logs._LOOKED_AT]),
    "own log of secrets": lambda text: masked_text((('secret="\\"' + text[:9]) * len(text))[: logs._LOOKED_AT]),
    "a user's expression": lambda text: Pattern(r"(\w+\s?)+[A-F]$").replace(text, str.upper),
}  # fmt: skip


@pytest.fixture(params=["compiled", "pure"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "pure":
        monkeypatch.setattr(parser, "compiled", None)
    elif compiled is None:
        pytest.skip("needs the compiled form")


@pytest.mark.parametrize("way", WAYS)
def test_every_way_in(form: None, way: str) -> None:
    for shape in FEW:
        grows_linearly(WAYS[way], shape)
