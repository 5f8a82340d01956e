"""The part of LogQL that reading log lines needs: a stream selector, line filters and label filters.

::

    {job="shipper", level=~"error|fatal"} |= "text" |~ `a|b` | id="x" or id="" | part!=""
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import msgspec

from support.loki_wire import unquoted

_STRING = r'("(?:[^"\\]|\\.)*"|`[^`]*`)'
_SELECTOR = re.compile(r'\s*\{((?:[^"`}]|"(?:[^"\\]|\\.)*"|`[^`]*`)*)\}\s*')
_MATCHER = re.compile(rf"\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*(=~|!~|!=|=)\s*{_STRING}\s*(,|$)")
_LINE_FILTER = re.compile(rf"\s*(\|=|\|~|!=|!~)\s*{_STRING}\s*")
_LABEL_FILTER = re.compile(rf"\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*(=~|!~|!=|=)\s*{_STRING}\s*")

Test = Callable[[str], bool]


class Query(msgspec.Struct, frozen=True):
    """A compiled query."""

    matchers: tuple[tuple[str, Test], ...]
    stages: tuple[Callable[[str, Mapping[str, str]], bool], ...]

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Tell whether a stream is asked for."""
        return all(test(labels.get(name, "")) for name, test in self.matchers)

    def keeps(self, line: str, labels: Mapping[str, str]) -> bool:
        """Tell whether an entry passes the pipeline; ``labels`` are those of the stream and its structured metadata."""
        return all(stage(line, labels) for stage in self.stages)


def compile_query(text: str) -> Query:
    """Compile a query. Raises ValueError with a text as Loki's, for 400."""
    selector = _SELECTOR.match(text)
    if selector is None:
        raise ValueError("parse error at line 1, col 1: syntax error: unexpected IDENTIFIER, expecting {")
    matchers: list[tuple[str, Test]] = []
    sure = False
    at, inner = 0, selector[1].strip()
    while at < len(inner):
        match = _MATCHER.match(inner, at)
        if match is None:
            raise ValueError(f"parse error at line 1, col {at + 2}: syntax error: unexpected {inner[at:][:20]!r}")
        test = _test(match[2], unquoted(match[3]))
        sure = sure or (match[2] in {"=", "=~"} and not test(""))
        matchers.append((match[1], test))
        at = match.end()
    if not sure:
        raise ValueError(
            "parse error : queries require at least one regexp or equality matcher that does not have an empty-compatible"
            ' value. For instance, app=~".*" does not meet this requirement, but app=~".+" will'
        )
    return Query(tuple(matchers), tuple(_stages(text, selector.end())))


def _stages(text: str, at: int) -> list[Callable[[str, Mapping[str, str]], bool]]:
    stages: list[Callable[[str, Mapping[str, str]], bool]] = []
    while at < len(text):
        match = _LINE_FILTER.match(text, at)
        if match is not None:
            stages.append(_line_filter(match[1], unquoted(match[2])))
            at = match.end()
            continue
        if text[at] != "|":
            raise ValueError(f"parse error at line 1, col {at + 1}: syntax error: unexpected {text[at:][:20]!r}")
        # or binds weaker than and, which may also be a comma.
        ways: list[list[tuple[str, Test]]] = [[]]
        at += 1
        while True:
            match = _LABEL_FILTER.match(text, at)
            if match is None:
                raise ValueError(f"parse error at line 1, col {at + 1}: syntax error: unexpected {text[at:][:20]!r}")
            ways[-1].append((match[1], _test(match[2], unquoted(match[3]))))
            at = match.end()
            word = re.compile(r"(or\b|and\b|,)").match(text, at)
            if word is None:
                break
            if word[1] == "or":
                ways.append([])
            at = word.end()
        stages.append(_label_filter(ways))
    return stages


def _line_filter(operator: str, value: str) -> Callable[[str, Mapping[str, str]], bool]:
    if operator in {"|=", "!="}:
        return lambda line, _labels: (value in line) == (operator == "|=")
    pattern = _compiled(value)
    return lambda line, _labels: (pattern.search(line) is not None) == (operator == "|~")


def _label_filter(ways: list[list[tuple[str, Test]]]) -> Callable[[str, Mapping[str, str]], bool]:
    return lambda _line, labels: any(all(test(labels.get(name, "")) for name, test in way) for way in ways)


def _test(operator: str, value: str) -> Test:
    if operator in {"=", "!="}:
        return lambda text: (text == value) == (operator == "=")
    pattern = _compiled(value)
    return lambda text: (pattern.fullmatch(text) is not None) == (operator == "=~")


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ValueError(f"parse error : error parsing regexp: {error}") from error
