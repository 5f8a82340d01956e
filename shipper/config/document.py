"""A YAML file as a tree that remembers where everything stood, with ``${VAR}`` filled in, and its problems.

Scalars follow YAML 1.2: only ``true`` and ``false`` are booleans, so ``no``, ``off`` and ``22:30`` stay text, and a
number with a leading zero stays text too. Interpolation happens after parsing and in values only, so a variable can
never change the structure of the file.

A file may hold anything, and a daemon that reloads it must go on: the tree is made event by event, and depth, nodes and
characters are bounded while it grows, what an alias repeats counted each time.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec
import yaml

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


Scalar = str | int | float | bool | None

_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_HEX = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?")
_VARIABLE = re.compile(r"\$(?:(\$)|\{([^}]*)(\}?))")
_EXPRESSION = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?:(:-|:\?)(.*))?", re.DOTALL)
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_TAG = "tag:yaml.org,2002:"
_TAGS = frozenset(_TAG + name for name in ("str", "int", "float", "bool", "null", "seq", "map")) | {"!"}
_UNUSABLE = re.compile("[\0\ud800-\udfff]")
_NOT_YAML = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_ONE_DOCUMENT = "one file holds one document; remove the '---' between them"
_CHECK = "check indentation, brackets and quotes just before this place"

#: What one file may hold; the largest configuration that makes sense has some hundred values, six deep.
MAX_DEPTH, MAX_NODES, MAX_KEY = 32, 20_000, 1_024
#: Characters that variables may fill in, all together.
MAX_FILLED = 1 << 20
#: Problems that are told of one file, and characters of one and of what is quoted in it.
MAX_PROBLEMS, MAX_TEXT, MAX_QUOTED = 100, 1_000, 100


class Node(msgspec.Struct, eq=False):
    """One value and where it stands; line and column count from 1.

    ``value`` is a scalar, a list of nodes or a dict of nodes. ``keys`` tells where the keys of a dict stand.
    ``source`` is the text before interpolation, if there was any: what may be shown, while ``value`` may not.
    ``nodes`` and ``depth`` are those of the whole tree below, with itself.
    """

    line: int
    column: int
    value: Any
    keys: dict[str, tuple[int, int]] = {}
    source: str | None = None
    nodes: int = 1
    depth: int = 1

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
        """Note a problem at (line, column). Raises TooManyProblems with the last that is told."""
        line, column = (place.line, place.column) if isinstance(place, Node) else place
        text = text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}… ({len(text)} characters)"
        self._found.append((line, column, len(self._found), f"{code} {self.file}:{line}:{column} {text}"))
        if len(self._found) >= MAX_PROBLEMS:
            raise TooManyProblems

    def texts(self) -> tuple[str, ...]:
        """Give the problems, one text each, in the order of the file, each once."""
        found = tuple(dict.fromkeys(text for *_, text in sorted(self._found)))
        if len(self._found) < MAX_PROBLEMS:
            return found
        return (*found, f"E-CFG-FILE {self.file}: there are more; mend these first")


class TooManyProblems(Exception):  # noqa: N818 - control flow: enough has been told
    """A file has as many problems as are told."""


def parse(text: str, environ: Mapping[str, str], problems: Problems) -> Node | None:
    """Parse YAML text. Gives ``None`` for an empty file or, with the problem noted, for broken YAML.

    Raises TooManyProblems.
    """
    try:
        return _Builder(environ, problems).document(
            yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        )
    except _Refused:
        return None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        because = f" {error.context}:" if error.context else ""
        problems.add("E-CFG-YAML", place, f"not valid YAML:{because} {error.problem}; {_yaml_hint(error)}")
        return None
    except yaml.reader.ReaderError as error:
        problems.add("E-CFG-YAML", _unreadable(text), f"not valid YAML: {error.reason}; remove the character")
        return None
    except yaml.YAMLError as error:
        problems.add("E-CFG-YAML", (1, 1), f"not valid YAML: {' '.join(str(error).split())}")
        return None


def resolve(text: str) -> Scalar:
    """Give the number, boolean, null or text that an unquoted YAML scalar stands for."""
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if text in {"", "~", "null", "Null", "NULL"}:
        return None
    if _INT.fullmatch(text):
        return int(text) if len(text) < 20 else text
    if _HEX.fullmatch(text):
        return int(text, 16) if len(text) < 20 else text
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def interpolate(text: str, environ: Mapping[str, str]) -> str:
    """Fill in ``${VAR}``, ``${VAR:-default}`` and ``${VAR:?message}``; ``$$`` is a dollar sign.

    A dollar sign before anything else stands for itself. As in a shell, ``:-`` and ``:?`` treat an empty variable
    like a missing one. Raises ValueError, also when more than `MAX_FILLED` characters come of it.
    """
    size = 0

    def fill(match: re.Match[str]) -> str:
        nonlocal size
        filled = _filled(match, environ)
        size += len(filled)
        if size > MAX_FILLED:
            raise ValueError(f"variables fill in more than {MAX_FILLED >> 20} MiB; look for one that is too long")
        return filled

    return _VARIABLE.sub(fill, text)


def _filled(match: re.Match[str], environ: Mapping[str, str]) -> str:
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


class _Refused(Exception):  # noqa: N818 - control flow: the problem is noted
    """The file is too large for a configuration."""


class _Open:
    """A list or a mapping whose end has not come."""

    def __init__(self, place: tuple[int, int], anchor: str | None, *, mapping: bool) -> None:
        self.place = place
        self.anchor = anchor
        self.mapping = mapping
        #: The nodes so far; in a mapping keys and values in turn, keys as `_Key`.
        self.found: list[Node | _Key] = []

    @property
    def wants_key(self) -> bool:
        return self.mapping and len(self.found) % 2 == 0


class _Key(msgspec.Struct):
    """A key: its text, ``None`` when it cannot be one; ``merges`` tells of a plain ``<<``."""

    text: str | None
    place: tuple[int, int]
    merges: bool = False


class _Builder:
    """Makes the tree of PyYAML's events, without recursion and within bounds."""

    def __init__(self, environ: Mapping[str, str], problems: Problems) -> None:
        self._environ = environ
        self._problems = problems
        self._open: list[_Open] = []
        #: What was anchored; ``None`` while it is open.
        self._anchors: dict[str, Node | None] = {}
        self._root: Node | None = None
        self._seen = 0
        self._filled = 0

    def document(self, events: Iterator[yaml.Event]) -> Node | None:
        documents = 0
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    text = "expected a single document in the stream: but found another document; " + _ONE_DOCUMENT
                    self._refuse(_place(event), f"not valid YAML: {text}")
            elif isinstance(event, yaml.AliasEvent):
                self._alias(event)
            elif isinstance(event, yaml.ScalarEvent):
                self._scalar(event)
            elif isinstance(event, yaml.CollectionStartEvent):
                self._start(event)
            elif isinstance(event, yaml.CollectionEndEvent):
                self._end()
        return self._root

    def _refuse(self, place: tuple[int, int], text: str) -> NoReturn:
        self._problems.add("E-CFG-YAML", place, text)
        raise _Refused

    def _count(self, nodes: int, place: tuple[int, int]) -> None:
        self._seen += nodes
        if self._seen > MAX_NODES:
            what = f"more than {MAX_NODES} values, those that aliases and << repeat counted each time"
            self._refuse(place, f"{what}; this is not a config of shipper")

    def _start(self, event: yaml.CollectionStartEvent) -> None:
        place = _place(event)
        self._count(1, place)
        if len(self._open) >= MAX_DEPTH:
            self._refuse(place, f"nested more than {MAX_DEPTH} deep; this is not a config of shipper")
        mapping = isinstance(event, yaml.MappingStartEvent)
        self._check_tag(event, place)
        if event.anchor:
            self._anchors[event.anchor] = None
        self._open.append(_Open(place, event.anchor, mapping=mapping))

    def _end(self) -> None:
        opened = self._open.pop()
        node = self._mapping(opened) if opened.mapping else self._sequence(opened)
        if opened.anchor:
            self._anchors[opened.anchor] = node
        self._put(node, key=_Key(None, opened.place))

    def _sequence(self, opened: _Open) -> Node:
        items = [item for item in opened.found if isinstance(item, Node)]
        return _sized(Node(*opened.place, items), items)

    def _put(self, node: Node, key: _Key) -> None:
        """Put a node where it stands; ``key`` is what it is if a key stands there."""
        if not self._open:
            self._root = node
        elif not self._open[-1].wants_key:
            self._open[-1].found.append(node)
        else:
            if key.text is None:
                self._problems.add("E-CFG-YAML", key.place, "a key must be a single word, not a list or a mapping")
            self._open[-1].found.append(key)

    def _alias(self, event: yaml.AliasEvent) -> None:
        place = _place(event)
        name = event.anchor
        if name not in self._anchors:
            self._refuse(place, f"not valid YAML: found undefined alias; {_CHECK}")
        node = self._anchors[name]
        if node is None:
            anchored = next(item.place for item in reversed(self._open) if item.anchor == name)
            text = "this YAML anchor contains itself; remove the alias inside it"
            self._problems.add("E-CFG-YAML", anchored, text)
            node = Node(*anchored, None)
        self._count(node.nodes, place)
        if len(self._open) + node.depth > MAX_DEPTH:
            self._refuse(place, f"nested more than {MAX_DEPTH} deep by this alias; this is not a config of shipper")
        key = str(node.value) if isinstance(node.value, str | int | float | bool) else None
        self._put(node, _Key(key, place))

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        place = _place(event)
        self._count(1, place)
        self._check_tag(event, place)
        if self._open and self._open[-1].wants_key:
            node = Node(*place, event.value)
            if _UNUSABLE.search(event.value) or len(event.value) > MAX_KEY:
                self._problems.add("E-CFG-YAML", place, f"this key is no word; keys have at most {MAX_KEY} characters")
                node = Node(*place, "")
        else:
            node = self._value(event, place)
        if event.anchor:
            self._anchors[event.anchor] = node
        merges = node.value == "<<" and event.style in {None, ""}
        self._put(node, _Key(str(node.value), place, merges=merges))

    def _check_tag(self, event: Any, place: tuple[int, int]) -> None:
        if event.tag and event.tag not in _TAGS:
            self._problems.add("E-CFG-YAML", place, "unknown YAML tag; put values that begin with ! in quotes")

    def _value(self, event: yaml.ScalarEvent, place: tuple[int, int]) -> Node:
        text = event.value
        filled, source = text, None
        if "$" in text:
            try:
                filled = interpolate(text, self._environ)
            except ValueError as error:
                self._problems.add("E-CFG-ENV", place, str(error))
            source = text if "${" in text else None
            self._filled += len(filled)
            if self._filled > MAX_FILLED:
                self._refuse(
                    place, f"variables fill in more than {MAX_FILLED >> 20} MiB; look for one that is too long"
                )
        if found := _UNUSABLE.search(filled):
            what = "a NUL character" if found[0] == "\0" else "half of a character (a lone surrogate)"
            where = f", from {source!r}," if source is not None else ""
            self._problems.add("E-CFG-VALUE", place, f"{what}{where} cannot be in a value; remove it")
            # Without it the value may do, and nothing else is told of a mistake that is told already.
            return Node(*place, _UNUSABLE.sub("", filled) or "?", source=source)
        if event.style or event.tag in {_TAG + "str", "!"} or "$" in text:
            return Node(*place, filled, source=source)
        return Node(*place, resolve(text))

    def _mapping(self, opened: _Open) -> Node:
        values: dict[str, Node] = {}
        keys: dict[str, tuple[int, int]] = {}
        merged: dict[str, Node] = {}
        for key, value in zip(opened.found[::2], opened.found[1::2], strict=True):
            assert isinstance(key, _Key)
            assert isinstance(value, Node)
            if key.text is None:
                continue
            if key.merges:
                self._merge(value, merged, keys)
            elif key.text in values:
                first = keys[key.text]
                text = f"key {shortened(key.text)!r} is here twice; the first is in line {first[0]}"
                self._problems.add("E-CFG-DUP", key.place, text)
            else:
                values[key.text] = value
                keys[key.text] = key.place
        whole = merged | values
        return _sized(Node(*opened.place, whole, keys), whole.values())

    def _merge(self, parents: Node, merged: dict[str, Node], keys: dict[str, tuple[int, int]]) -> None:
        for parent in parents.value if isinstance(parents.value, list) else [parents]:
            if not isinstance(parent.value, dict):
                self._problems.add("E-CFG-YAML", parent, "'<<' takes a mapping or a list of mappings")
                continue
            for inherited, child in parent.value.items():
                if inherited not in merged:
                    merged[inherited] = child
                    self._count(child.nodes, (child.line, child.column))
                keys.setdefault(inherited, (child.line, child.column))


def _sized(node: Node, children: Iterable[Node]) -> Node:
    for child in children:
        node.nodes += child.nodes
        node.depth = max(node.depth, child.depth + 1)
    return node


def shortened(text: str) -> str:
    """Give a text that is quoted in a message, its first characters when it is long."""
    return text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}…"


def _unreadable(text: str) -> tuple[int, int]:
    """Find the character that no YAML may hold."""
    found = _NOT_YAML.search(text)
    if found is None:
        return (1, 1)
    return (text.count("\n", 0, found.start()) + 1, found.start() - text.rfind("\n", 0, found.start()))


def _place(found: Any) -> tuple[int, int]:
    mark = found.start_mark
    return (mark.line + 1, mark.column + 1)


def _yaml_hint(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or ""
    if "cannot start any token" in problem or "\\t" in problem:
        return "indent with spaces, not tabs, and quote values that begin with % @ or `"
    if "mapping values are not allowed" in problem:
        return "quote values that contain ': ', and check the indentation"
    if "document" in problem or "document" in (error.context or ""):
        return _ONE_DOCUMENT
    return _CHECK
