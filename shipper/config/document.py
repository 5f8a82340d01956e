"""A YAML file as a tree that remembers where everything stood, with ``${VAR}`` filled in.

Scalars follow YAML 1.2: only ``true`` and ``false`` are booleans, so ``no``, ``off`` and ``22:30`` stay text, and a
number with a leading zero stays text too. Interpolation happens after parsing and in values only, so a variable can
never change the structure of the file.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec
import yaml

if TYPE_CHECKING:
    from collections.abc import Mapping


Scalar = str | int | float | bool | None

_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_HEX = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?")
_VARIABLE = re.compile(r"\$(?:(\$)|\{([^}]*)(\}?))")
_EXPRESSION = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?:(:-|:\?)(.*))?", re.DOTALL)
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_TAG = "tag:yaml.org,2002:"


class Node(msgspec.Struct, eq=False):
    """One value and where it stands; line and column count from 1.

    ``value`` is a scalar, a list of nodes or a dict of nodes. ``keys`` tells where the keys of a dict stand.
    ``source`` is the text before interpolation, if there was any: what may be shown, while ``value`` may not.
    """

    line: int
    column: int
    value: Any
    keys: dict[str, tuple[int, int]] = {}
    source: str | None = None

    def plain(self) -> Any:
        """Give the value as plain lists, dicts and scalars."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value


class Problems:
    """Collects what is wrong with one file and tells it in the file's order."""

    def __init__(self, file: str) -> None:
        self.file = file
        self._found: list[tuple[int, int, int, str]] = []

    def __len__(self) -> int:
        return len(self._found)

    def add(self, code: str, place: tuple[int, int] | Node, text: str) -> None:
        """Note a problem at (line, column)."""
        line, column = (place.line, place.column) if isinstance(place, Node) else place
        self._found.append((line, column, len(self._found), f"{code} {self.file}:{line}:{column} {text}"))

    def texts(self) -> tuple[str, ...]:
        """Give the problems, one text each, in the order of the file, each once."""
        return tuple(dict.fromkeys(text for *_, text in sorted(self._found)))


def parse(text: str, environ: Mapping[str, str], problems: Problems) -> Node | None:
    """Parse YAML text. Gives ``None`` for an empty file or, with the problem noted, for broken YAML."""
    try:
        root = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        because = f" {error.context}:" if error.context else ""
        problems.add("E-CFG-YAML", place, f"not valid YAML:{because} {error.problem}; {_yaml_hint(error)}")
        return None
    except yaml.YAMLError as error:
        problems.add("E-CFG-YAML", (1, 1), f"not valid YAML: {' '.join(str(error).split())}")
        return None
    return None if root is None else _Walk(environ, problems).node(root)


def resolve(text: str) -> Scalar:
    """Give the number, boolean, null or text that an unquoted YAML scalar stands for."""
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if text in {"", "~", "null", "Null", "NULL"}:
        return None
    if _INT.fullmatch(text):
        return int(text) if len(text) < 20 else text
    if _HEX.fullmatch(text):
        return int(text, 16)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def interpolate(text: str, environ: Mapping[str, str]) -> str:
    """Fill in ``${VAR}``, ``${VAR:-default}`` and ``${VAR:?message}``; ``$$`` is a dollar sign.

    A dollar sign before anything else stands for itself. As in a shell, ``:-`` and ``:?`` treat an empty variable
    like a missing one. Raises ValueError.
    """

    def fill(match: re.Match[str]) -> str:
        if match[1]:
            return "$"
        if not match[3]:
            raise ValueError("'${' without its '}'; write $${ for the characters themselves")
        found = _EXPRESSION.fullmatch(match[2])
        if found is None:
            raise ValueError(
                "cannot read this '${...}'; write ${VAR}, ${VAR:-default} or ${VAR:?message},"
                " and $${ for the characters themselves"
            )
        name, operator, word = found.groups()
        value = environ.get(name)
        if operator == ":-":
            return value or str(word)
        if operator == ":?" and not value:
            raise ValueError(f"environment variable {name} is not set: {word or 'it is required'}")
        if value is None:
            raise ValueError(f"environment variable {name} is not set; set it or give a default: ${{{name}:-value}}")
        return value

    return _VARIABLE.sub(fill, text)


class _Walk:
    """Turns PyYAML's nodes into ours."""

    def __init__(self, environ: Mapping[str, str], problems: Problems) -> None:
        self._environ = environ
        self._problems = problems
        self._open: set[int] = set()

    def node(self, found: yaml.Node) -> Node:
        place = _place(found)
        if found.tag and not found.tag.startswith(_TAG):
            self._problems.add("E-CFG-YAML", place, "unknown YAML tag; put values that begin with ! in quotes")
        if isinstance(found, yaml.ScalarNode):
            return self._scalar(found, place)
        if id(found) in self._open:
            self._problems.add("E-CFG-YAML", place, "this YAML anchor contains itself; remove the alias inside it")
            return Node(*place, None)
        self._open.add(id(found))
        try:
            if isinstance(found, yaml.SequenceNode):
                return Node(*place, [self.node(item) for item in found.value])
            return self._mapping(found, place)
        finally:
            self._open.discard(id(found))

    def _scalar(self, found: yaml.ScalarNode, place: tuple[int, int]) -> Node:
        text = found.value
        filled, source = text, None
        if "$" in text:
            try:
                filled = interpolate(text, self._environ)
            except ValueError as error:
                self._problems.add("E-CFG-ENV", place, str(error))
            source = text if "${" in text else None
        if found.style or found.tag == _TAG + "str" or "$" in text:
            return Node(*place, filled, source=source)
        return Node(*place, resolve(text))

    def _mapping(self, found: Any, place: tuple[int, int]) -> Node:
        values: dict[str, Node] = {}
        keys: dict[str, tuple[int, int]] = {}
        merged: dict[str, Node] = {}
        for key, value in found.value:
            at = _place(key)
            if not isinstance(key, yaml.ScalarNode):
                self._problems.add("E-CFG-YAML", at, "a key must be a single word, not a list or a mapping")
                continue
            name = key.value
            if name == "<<" and not key.style:
                parents = self.node(value)
                for parent in parents.value if isinstance(parents.value, list) else [parents]:
                    if isinstance(parent.value, dict):
                        for inherited, child in parent.value.items():
                            merged.setdefault(inherited, child)
                            keys.setdefault(inherited, (child.line, child.column))
                    else:
                        self._problems.add("E-CFG-YAML", parent, "'<<' takes a mapping or a list of mappings")
            elif name in values:
                first = keys[name]
                self._problems.add("E-CFG-DUP", at, f"key {name!r} is here twice; the first is in line {first[0]}")
            else:
                values[name] = self.node(value)
                keys[name] = at
        return Node(*place, merged | values, keys)


def _place(found: yaml.Node) -> tuple[int, int]:
    mark = found.start_mark
    return (mark.line + 1, mark.column + 1)


def _yaml_hint(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or ""
    if "cannot start any token" in problem or "\\t" in problem:
        return "indent with spaces, not tabs, and quote values that begin with % @ or `"
    if "mapping values are not allowed" in problem:
        return "quote values that contain ': ', and check the indentation"
    if "document" in problem or "document" in (error.context or ""):
        return "one file holds one document; remove the '---' between them"
    return "check indentation, brackets and quotes just before this place"
