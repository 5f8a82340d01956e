"""The condition language of routes, filters and queries.

::

    query = and {"OR" and}                and = unary {["AND"] unary}
    unary = ("-" | "NOT") unary | "(" query ")" | term
    term  = WORD | "STRING"                             text that the message contains
          | field ":" value | field ("!="|">"|">="|"<"|"<=") value
    value = WORD | "STRING" | "*" | glob | lo".."hi | "/"regex"/"["i"] | "(" value {["OR"] value} ")"

Meaning, the same on every backend: text is a case-sensitive substring of the message; a field matches exactly and
case-sensitively; levels are normalised and ordered; a field that is missing or empty never matches, so the
negation of it does, and ``field:""`` asks for just that; numeric comparisons ignore what is not a number.
Attributes are compared as the text JSON would give them (``true``, ``200``), nested ones by their dotted path;
names that a record lacks are looked up in its resource (``container.id``).
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from shipper.errors import ConfigError
from shipper.reader import Condition, Term
from shipper.record import LEVELS, SEVERITIES, Batch, Record, Resource
from shipper.routing.pattern import Pattern, PatternError

#: Parentheses and negations deeper than this are refused, so that a hostile text cannot exhaust the stack.
MAX_DEPTH = 64

_LEVEL_NAMES = tuple(SEVERITIES)
_LEVEL_ALIASES = {
    "warning": "warn",
    "err": "error",
    "critical": "fatal",
    "crit": "fatal",
    "panic": "fatal",
    "alert": "fatal",
    "emerg": "fatal",
    "emergency": "fatal",
    "information": "info",
    "notice": "info",
    "verbose": "trace",
}
_CORE = {"level", "service", "host", "source", "stream", "logger", "container", "id", "message"}
_OF_RESOURCE: dict[str, Callable[[Resource], str]] = {
    "service": lambda resource: resource.service,
    "host": lambda resource: resource.host,
    "source": lambda resource: resource.source,
    "stream": lambda resource: resource.stream,
    "container": lambda resource: resource.container,
}
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?")
_FIELD = re.compile(r"[A-Za-z_@][\w.@/\[\]-]*")
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
}


def compile_condition(text: str) -> Condition:
    """Compile a condition. The empty text matches everything.

    Raises ConfigError with one text that names the column (counted from 1) and what to write instead.
    """
    return _Parser(text).parse()


def expressions_of(text: str) -> tuple[str, ...]:
    """Give the regular expressions in a condition. Raises ConfigError."""
    return _Parser(text).parse().expressions()


def compile_all(texts: Sequence[str]) -> Condition:
    """Compile several conditions that must all hold. Columns in errors count from each text's own start."""
    nodes = [node for node in (_Parser(text).parse() for text in texts) if not isinstance(node, _All)]
    return nodes[0] if len(nodes) == 1 else _And(nodes) if nodes else _All()


# Nodes. `among` narrows rows of a batch; every other way of matching is built on the same test.


class _Node(Condition):
    #: What a row costs: an `and` asks the cheap ones first.
    cost = 3

    @abstractmethod
    def among(self, batch: Batch, rows: Sequence[int]) -> list[int]:
        """Give those of ``rows``, ascending, that match."""

    def indexes(self, batch: Batch) -> list[int]:
        return self.among(batch, range(len(batch)))

    def expressions(self) -> tuple[str, ...]:
        """Give the regular expressions in it."""
        return ()


class _All(_Node):
    cost = 0

    def matches(self, record: Record) -> bool:  # noqa: ARG002
        return True

    def among(self, batch: Batch, rows: Sequence[int]) -> list[int]:  # noqa: ARG002
        return list(rows)


class _And(_Node):
    def __init__(self, nodes: Sequence[_Node]) -> None:
        self._nodes = sorted(nodes, key=lambda node: node.cost)
        self._terms = tuple(term for node in nodes for term in node.conjuncts())
        self.cost = max(node.cost for node in nodes)

    def matches(self, record: Record) -> bool:
        return all(node.matches(record) for node in self._nodes)

    def among(self, batch: Batch, rows: Sequence[int]) -> list[int]:
        for node in self._nodes:
            if not rows:
                break
            rows = node.indexes(batch) if len(rows) == len(batch) else node.among(batch, rows)
        return list(rows)

    def conjuncts(self) -> tuple[Term, ...]:
        return self._terms

    def expressions(self) -> tuple[str, ...]:
        return tuple(source for node in self._nodes for source in node.expressions())


class _Or(_Node):
    def __init__(self, nodes: Sequence[_Node]) -> None:
        self._nodes = sorted(nodes, key=lambda node: node.cost)
        self.cost = max(node.cost for node in nodes)

    def matches(self, record: Record) -> bool:
        return any(node.matches(record) for node in self._nodes)

    def among(self, batch: Batch, rows: Sequence[int]) -> list[int]:
        hits: set[int] = set()
        left = rows
        for node in self._nodes:
            if not left:
                break
            hits.update(node.among(batch, left))
            left = [row for row in rows if row not in hits]
        return sorted(hits)

    def expressions(self) -> tuple[str, ...]:
        return tuple(source for node in self._nodes for source in node.expressions())


class _Not(_Node):
    def __init__(self, node: _Node) -> None:
        self._node = node
        self.cost = node.cost

    def matches(self, record: Record) -> bool:
        return not self._node.matches(record)

    def among(self, batch: Batch, rows: Sequence[int]) -> list[int]:
        hits = set(self._node.among(batch, rows))
        return [row for row in rows if row not in hits]

    def expressions(self) -> tuple[str, ...]:
        return self._node.expressions()


class _Level(_Node):
    """The level is one of some; a comparison of levels is that too."""

    cost = 1

    def __init__(self, names: Sequence[str]) -> None:
        names = tuple(names)
        # No level below trace: there is nothing a backend could be asked for.
        self._terms = (Term("level", "in" if len(names) > 1 else "=", names),) if names else ()
        self._severities = frozenset(number for number, name in enumerate(LEVELS) if name in names)

    def matches(self, record: Record) -> bool:
        return record.severity in self._severities

    def among(self, batch: Batch, rows: Sequence[int]) -> list[int]:
        allowed, severities = self._severities, batch.severities
        if severities is None:
            return list(rows) if SEVERITIES["info"] in allowed else []
        return [row for row in rows if severities[row] in allowed]

    def indexes(self, batch: Batch) -> list[int]:
        if batch.severities is None:
            return super().indexes(batch)
        allowed = self._severities
        return [row for row, severity in enumerate(batch.severities) if severity in allowed]

    def conjuncts(self) -> tuple[Term, ...]:
        return self._terms


class _Text(_Node):
    """The message contains a text."""

    cost = 2

    def __init__(self, text: str) -> None:
        self._text = text

    def matches(self, record: Record) -> bool:
        return self._text in record.message

    def among(self, batch: Batch, rows: Sequence[int]) -> list[int]:
        text, messages = self._text, batch.raws if batch.messages is None else batch.messages
        if len(rows) == len(messages):
            return [row for row, message in enumerate(messages) if text in message]
        return [row for row in rows if text in messages[row]]

    def conjuncts(self) -> tuple[Term, ...]:
        return (Term("message", "contains", (self._text,)),)


class _FieldTest(_Node):
    """A test of the text of one field. What is missing or empty fails it."""

    def __init__(self, term: Term, test: Callable[[str], bool]) -> None:
        self._term = term
        self._test = test
        self._resource = _OF_RESOURCE.get(term.field)
        self._path = tuple(term.field.split(".")) if "." in term.field else ()
        self.cost = 1 if self._resource else 3

    def matches(self, record: Record) -> bool:
        name = self._term.field
        if self._resource is not None:
            value = self._resource(record.resource)
        elif name == "message":
            value = record.message
        elif name == "id":
            value = record.id
        elif name == "level":
            value = record.level
        else:
            value = self._attribute(record.attributes, record.resource)
        return value != "" and self._test(value)

    def among(self, batch: Batch, rows: Sequence[int]) -> list[int]:
        name, test = self._term.field, self._test
        if (of_resource := self._resource) is not None:
            every = batch.resources
            hits = {resource for resource in set(every) if (value := of_resource(resource)) and test(value)}
            return [row for row in rows if every[row] in hits] if hits else []
        if name in {"message", "id"}:
            column = batch.ids if name == "id" else batch.raws if batch.messages is None else batch.messages
            return [row for row in rows if column[row] and test(column[row])]
        if name == "level":
            hit = [test(level) for level in LEVELS]
            severities = batch.severities
            if severities is None:
                return list(rows) if hit[SEVERITIES["info"]] else []
            return [row for row in rows if hit[severities[row]]]
        attributes, resources, attribute = batch.attributes, batch.resources, self._attribute
        found: list[int] = []
        for row in rows:
            value = attribute({} if attributes is None else attributes[row], resources[row])
            if value and test(value):
                found.append(row)
        return found

    def conjuncts(self) -> tuple[Term, ...]:
        return (self._term,)

    def expressions(self) -> tuple[str, ...]:
        return self._term.values if self._term.op in {"regex", "iregex"} else ()

    def _attribute(self, attributes: dict[str, Any], resource: Resource) -> str:
        name = self._term.field
        value = attributes.get(name)
        if value is None and self._path:
            value = attributes
            for part in self._path:
                value = value.get(part) if isinstance(value, dict) else None
        if value is None:
            return resource.attributes.get(name, "")
        return value if type(value) is str else attribute_text(value)


def _glob(pattern: str) -> Callable[[str], bool]:
    first, *middle, last = pattern.split("*")
    least = len(pattern) - len(middle) - 1

    def test(text: str) -> bool:
        if len(text) < least or not text.startswith(first) or not text.endswith(last):
            return False
        at, end = len(first), len(text) - len(last)
        for part in middle:
            # The first place where a part is found is as good as any later one.
            at = text.find(part, at, end)
            if at < 0:
                return False
            at += len(part)
        return True

    return test


def attribute_text(value: Any) -> str:
    """Give the text that conditions see of an attribute: text as it is, anything else as JSON, ``None`` as ``""``."""
    if value is None:
        return ""
    return value if isinstance(value, str) else msgspec.json.encode(value, enc_hook=str).decode()


# The parser: recursive descent straight over the text, because what a character means depends on where it stands.


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0

    def parse(self) -> _Node:
        self._space()
        if self._at == len(self._text):
            return _All()
        node = self._or()
        if self._at < len(self._text):
            raise self._error("unexpected ')'", self._at, "there is no '(' it could close")
        return node

    def _or(self) -> _Node:
        nodes = [self._and()]
        while (at := self._keyword("OR")) is not None:
            if self._ended():
                raise self._error("OR needs a term on both sides", at)
            nodes.append(self._and())
        return nodes[0] if len(nodes) == 1 else _Or(nodes)

    def _and(self) -> _Node:
        for word in ("OR", "AND"):
            if (at := self._keyword(word)) is not None:
                raise self._error(f"{word} needs a term on both sides", at, f'write "{word}" to search for the word')
        nodes = [self._unary()]
        while not self._ended() and not self._sees("OR"):
            at = self._keyword("AND")
            if at is not None and (self._ended() or self._sees("OR") or self._sees("AND")):
                raise self._error("AND needs a term on both sides", at)
            nodes.append(self._unary())
        return nodes[0] if len(nodes) == 1 else _And(nodes)

    def _unary(self) -> _Node:
        start, text = self._at, self._text
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(f"more than {MAX_DEPTH} nested parentheses or negations", start)
        try:
            if (at := self._keyword("NOT")) is not None:
                if self._ended():
                    raise self._error("NOT needs a term after it", at)
                return _Not(self._unary())
            if text[start] == "-" and start + 1 < len(text) and not text[start + 1].isspace():
                self._at += 1
                if text[self._at] == ")":
                    raise self._error("'-' needs a term after it", start)
                return _Not(self._unary())
            if text[start] == "(":
                self._at += 1
                self._space()
                if self._ended():
                    raise self._error(
                        *(("empty parentheses", start) if self._at < len(text) else ("missing ')'", start))
                    )
                node = self._or()
                if self._at == len(text):
                    raise self._error("missing ')'", self._at, f"the '(' at column {start + 1} is open")
                self._at += 1
                self._space()
                return node
            return self._term()
        finally:
            self._depth -= 1

    def _term(self) -> _Node:
        start, text = self._at, self._text
        if text[start] == '"':
            word = self._string()
            self._space()
            return _Text(word) if word else _All()
        match = re.compile(r'(?:[^\s()":<>=!]|!(?!=))+').match(text, start)
        if match is None:
            raise self._error(
                f"unexpected '{text[start]}'",
                start,
                f"a field's name comes before it, or quote the text: {self._quoted(start)}",
            )
        word = match[0]
        self._at = match.end()
        operator = re.compile(r":(?:!=|>=|<=|>|<)|!=|>=|<=|>|<|:").match(text, self._at)
        if operator is not None:
            if not _FIELD.fullmatch(word):
                raise self._error(
                    f"'{word}' is not a field's name", start, f"quote it to search for the text: {self._quoted(start)}"
                )
            self._at = operator.end()
            field = word.lower() if word.lower() in _CORE else word
            return self._field(field, operator[0].lstrip(":") or ":")
        if self._at < len(text) and text[self._at] == "=":
            whole = self._quoted(start)
            raise self._error(
                "'=' is not an operator",
                self._at,
                f"write {word}:{whole[len(word) + 2 : -1]}, or {whole} to search for the text",
            )
        self._space()
        return _All() if word == "*" else _Text(word)

    def _field(self, field: str, op: str) -> _Node:
        start, text = self._at, self._text
        if start == len(text) or text[start].isspace() or text[start] == ")":
            raise self._error(f"a value is missing after {field}{op}", start, f"write {field}:* for any value")
        if op == ":" and text[start] == "(":
            return self._list(field)
        node = self._value(field, op)
        self._space()
        return node

    def _list(self, field: str) -> _Node:
        start = self._at
        self._at += 1
        self._space()
        nodes: list[_Node] = []
        while self._at < len(self._text) and self._text[self._at] != ")":
            if self._text[self._at] == ",":
                self._at += 1
                self._space()
                continue
            if self._keyword("OR") is not None:
                continue
            nodes.append(self._value(field, ":", end=","))
            self._space()
        if self._at == len(self._text):
            raise self._error("missing ')'", self._at, f"the '(' at column {start + 1} is open")
        if not nodes:
            raise self._error(f"the list of values for {field} is empty", start)
        self._at += 1
        self._space()
        terms = [term for node in nodes for term in node.conjuncts()]
        if any(term.op not in {"=", "in"} for term in terms) or len(terms) != len(nodes):
            return nodes[0] if len(nodes) == 1 else _Or(nodes)
        values = tuple(dict.fromkeys(value for term in terms for value in term.values))
        return (
            _Level(values)
            if field == "level"
            else _FieldTest(Term(field, "in", values), frozenset(values).__contains__)
        )

    def _value(self, field: str, op: str, *, end: str = "") -> _Node:
        start, text = self._at, self._text
        if op == ":" and text[start] == "/" and self._closed_regex():
            return self._regex(field)
        if text[start] == '"':
            return self._compare(field, op, self._string(), start)
        match = re.compile(rf'[^\s()"{end}]+').match(text, start)
        if match is None:
            raise self._error(f"a value is missing after {field}{op}", start)
        value = match[0]
        self._at = match.end()
        if op != ":":
            return self._compare(field, op, value, start)
        if value == "*":
            return _FieldTest(Term(field, "exists"), bool)
        low, dots, high = value.partition("..")
        if dots and (low or high) and (field == "level" or all(not v or _NUMBER.fullmatch(v) for v in (low, high))):
            bounds = [(">=", low, start), ("<=", high, start + len(low) + 2)]
            nodes = [self._compare(field, bound, v, at) for bound, v, at in bounds if v]
            return nodes[0] if len(nodes) == 1 else _And(nodes)
        if "*" in value:
            return _FieldTest(Term(field, "glob", (value,)), _glob(value))
        return self._compare(field, op, value, start)

    def _compare(self, field: str, op: str, value: str, at: int) -> _Node:
        if op in {":", "!="}:
            if field == "level":
                node: _Node = _Level((self._level(value, at),))
            elif value:
                node = _FieldTest(Term(field, "=", (value,)), value.__eq__)
            else:
                node = _Not(_FieldTest(Term(field, "exists"), bool))
            return _Not(node) if op == "!=" else node
        if field == "level":
            bound = _LEVEL_NAMES.index(self._level(value, at))
            return _Level([name for rank, name in enumerate(_LEVEL_NAMES) if _COMPARE[op](rank, bound)])
        if not _NUMBER.fullmatch(value):
            raise self._error(f"'{value}' is not a number", at, f"{op} compares numbers; {field}:{value} compares text")
        number, compare = float(value), _COMPARE[op]
        return _FieldTest(
            Term(field, op, (value,)),
            lambda found: _NUMBER.fullmatch(found) is not None and compare(float(found), number),
        )

    def _level(self, value: str, at: int) -> str:
        name = _LEVEL_ALIASES.get(value.lower(), value.lower())
        if name in SEVERITIES:
            return name
        import difflib  # noqa: PLC0415 - only a mistake pays for it

        close = difflib.get_close_matches(name, [*_LEVEL_NAMES, *_LEVEL_ALIASES], n=1)
        advice = f"did you mean '{close[0]}'?" if close else f"levels are {', '.join(_LEVEL_NAMES)}"
        raise self._error(f"unknown level '{value}'", at, advice)

    def _closed_regex(self) -> bool:
        """Tell a regex from a value that only begins with a slash, such as ``path:/api/users``."""
        match = re.compile(r"/(?:\\.|[^/\\\n])+/i?(?=[\s)]|$)").match(self._text, self._at)
        if match is not None:
            return True
        # A slash with regex characters and no end is a regex somebody forgot to close, not a path.
        word = re.compile(r'[^\s"]*').match(self._text, self._at)
        return word is not None and re.search(r"[\\^$|?+\[\]{}]", word[0]) is not None

    def _regex(self, field: str) -> _Node:
        start = self._at
        match = re.compile(r"/((?:\\.|[^/\\\n])+)/(i?)(?=[\s),]|$)").match(self._text, start)
        if match is None:
            raise self._error(
                "unterminated regular expression", start, "it ends with / or /i; write \\/ for a slash in it"
            )
        self._at = match.end()
        source = match[1].replace("\\/", "/")
        try:
            pattern = Pattern(source, ignore_case=bool(match[2]))
        except PatternError as error:
            position = start + 2 + error.position
            raise ConfigError(f"bad regular expression (column {position}); {error}") from error
        return _FieldTest(Term(field, "iregex" if match[2] else "regex", (source,)), pattern.search)

    def _string(self) -> str:
        start = self._at
        match = re.compile(r'"((?:\\.|[^"\\])*)"', re.DOTALL).match(self._text, start)
        if match is None:
            raise self._error("unterminated quote", start, 'a text ends with "; write \\" for a quote in it')
        self._at = match.end()
        try:
            return msgspec.json.decode(match[0], type=str)
        except (msgspec.DecodeError, UnicodeEncodeError):
            pass
        raise self._error("bad escape in the quoted text", start, "write \\\\ for a backslash; the rest is as in JSON")

    # The small things.

    def _space(self) -> None:
        while self._at < len(self._text) and self._text[self._at].isspace():
            self._at += 1

    def _ended(self) -> bool:
        return self._at == len(self._text) or self._text[self._at] == ")"

    def _sees(self, word: str) -> bool:
        end = self._at + len(word)
        return self._text.startswith(word, self._at) and (end == len(self._text) or self._text[end] in ' \t\r\n()"')

    def _keyword(self, word: str) -> int | None:
        """Step over the keyword if it stands here; give where it stood."""
        if not self._sees(word):
            return None
        at = self._at
        self._at += len(word)
        self._space()
        return at

    def _quoted(self, start: int) -> str:
        match = re.compile(r'[^\s()"]*').match(self._text, start)
        return f'"{match[0]}"' if match else '""'

    @staticmethod
    def _error(what: str, at: int, advice: str = "") -> ConfigError:
        return ConfigError(f"{what} (column {at + 1})" + (f"; {advice}" if advice else ""))
