"""Indices and mappings of the stand-in: what a document must be like to be taken."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

#: Bytes of a term (Lucene), fields of an index and levels of a flattened field by default.
MAX_TERM, MAX_FIELDS, MAX_DEPTH = 32_766, 1_000, 20
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TYPES = {
    "keyword", "text", "match_only_text", "date", "date_nanos", "long", "double", "boolean", "flattened", "flat_object",
    "object",
}  # fmt: skip


class Fault(Exception):  # noqa: N818 - an answer, not a bug
    """An answer that is no success; one without a type has its reason as body."""

    def __init__(self, status: int, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.status, self.type, self.reason = status, kind, reason


class Document(msgspec.Struct):
    """One stored document. ``order`` rises with each that is stored anywhere; ``terms`` are what a search finds."""

    id: str
    source: dict[str, Any]
    time_ns: int
    order: int
    terms: dict[str, list[Any]]


_orders = itertools.count()


class Index:
    """One index with its mapping, which grows where it is dynamic."""

    def __init__(self, name: str, template: Mapping[str, Any]) -> None:
        self.name = name
        mappings = template.get("template", {}).get("mappings", {})
        self.dynamic = mappings.get("dynamic", True) not in {False, "false"}
        self._strings = "keyword" if mappings.get("all_strings_to_keywords") else "text"
        self.fields: dict[str, dict[str, Any]] = dict(_flat(mappings.get("properties", {})))
        self.documents: dict[str, Document] = {}

    def check(self, elastic: bool, major: int) -> None:
        """Refuse a mapping that this kind of server does not know."""
        for name, field in self.fields.items():
            kind = field["type"]
            missing = {"flat_object"} if elastic else {"flattened"}
            if not elastic and major < 2:
                missing.add("flat_object")
            if kind not in _TYPES or kind in missing:
                text = f"No handler for type [{kind}] declared on field [{name}]"
                raise Fault(400, "mapper_parsing_exception", text)

    def parsed(self, line: bytes, *, stream: bool, modern: bool) -> Document:
        """Make the document of a line, or say why it cannot be indexed."""
        refused = "document_parsing_exception" if modern else "mapper_parsing_exception"
        try:
            source = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeError) as error:
            raise Fault(400, refused, f"failed to parse: {error}") from error
        if not isinstance(source, dict):
            raise Fault(400, refused, "failed to parse: not an object")
        if stream and "@timestamp" not in source:
            raise Fault(400, refused, "data stream timestamp field [@timestamp] is missing")
        terms: dict[str, list[Any]] = {}
        grown: dict[str, dict[str, Any]] = {}
        self._walk("", source, terms, grown, refused)
        if len(self.fields) + len(grown) > MAX_FIELDS:
            text = f"Limit of total fields [{MAX_FIELDS}] has been exceeded while adding new fields"
            raise Fault(400, refused, text)
        self.fields |= grown
        time_ns = terms.get("@timestamp", [0])[0]
        return Document("", source, time_ns, next(_orders), terms)

    def add(self, name: str, document: Document, *, replace: bool) -> None:
        """Store a document under its id, or one made up."""
        document.id = name or f"auto-{document.order}"
        if document.id in self.documents and not replace:
            text = f"[{document.id}]: version conflict, document already exists (current version [1])"
            raise Fault(409, "version_conflict_engine_exception", text)
        self.documents[document.id] = document

    def type_of(self, name: str) -> str:
        """Give the type of a field, of a member of a flattened one too; empty if it is not mapped."""
        field = self.fields.get(name)
        if field is not None:
            return str(field["type"])
        return self._parent(name)

    def _parent(self, name: str) -> str:
        while "." in name:
            name = name.rpartition(".")[0]
            kind = self.fields.get(name, {}).get("type")
            if kind in {"flattened", "flat_object"}:
                return str(kind)
        return ""

    def _walk(
        self,
        path: str,
        value: Mapping[str, Any],
        terms: dict[str, list[Any]],
        grown: dict[str, dict[str, Any]],
        refused: str,
    ) -> None:
        for key, inner in value.items():
            if not key.strip() or not all(key.split(".")):
                raise Fault(400, refused, f"field name cannot be an empty string: [{path}{key}]")
            name = path + key
            field = self.fields.get(name) or grown.get(name)
            kind = field["type"] if field else ""
            if kind == "object":
                continue  # enabled: false
            if kind in {"flattened", "flat_object"}:
                _flattened(name, inner, terms, refused)
            elif isinstance(inner, dict):
                if kind:
                    text = f"failed to parse field [{name}] of type [{kind}]"
                    raise Fault(400, refused, text)
                self._walk(name + ".", inner, terms, grown, refused)
            elif inner is None or inner == []:
                continue
            else:
                self._scalars(name, inner if isinstance(inner, list) else [inner], terms, grown, refused)

    def _scalars(
        self,
        name: str,
        values: list[Any],
        terms: dict[str, list[Any]],
        grown: dict[str, dict[str, Any]],
        refused: str,
    ) -> None:
        if any(isinstance(one, dict) for one in values):
            for one in values:
                if isinstance(one, dict):
                    self._walk(name + ".", one, terms, grown, refused)
            return
        values = [one for one in values if one is not None]
        field = self.fields.get(name) or grown.get(name)
        if not values:
            return
        if field is None:
            if not self.dynamic:
                return
            if any(known.startswith(name + ".") for known in itertools.chain(self.fields, grown)):
                text = (
                    f"object mapping for [{name}] tried to parse field [{name}] as object, but found a concrete value"
                )
                raise Fault(400, refused, text)
            field = grown[name] = {"type": self._guessed(values[0]), "ignore_above": 1024}
            if field["type"] == "text":
                grown[name + ".keyword"] = {"type": "keyword", "ignore_above": 256, "multi": True}
        kept = [_value(name, field, value, refused) for value in values]
        if field.get("index") is not False:
            terms.setdefault(name, []).extend(value for value in kept if value is not None)
            if name + ".keyword" in self.fields or name + ".keyword" in grown:
                terms.setdefault(name + ".keyword", []).extend(kept)

    def _guessed(self, value: Any) -> str:
        if isinstance(value, bool):
            return "boolean"
        if isinstance(value, int):
            return "long"
        if isinstance(value, float):
            return "double"
        try:
            datetime.fromisoformat(str(value))
        except ValueError:
            return self._strings
        return "date" if len(str(value)) >= 10 and str(value)[4:5] == "-" else self._strings


def _flat(properties: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for name, field in properties.items():
        if "properties" in field:
            yield from _flat(field["properties"], f"{path}{name}.")
        else:
            yield path + name, field


def _value(name: str, field: Mapping[str, Any], value: Any, refused: str) -> Any:
    """Give what is indexed of a value, or refuse it as its type does."""
    kind = field["type"]
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    try:
        if kind in {"date", "date_nanos"}:
            return date_nanos_of(kind, text)
        if kind == "long":
            return int(float(text))
        if kind == "double":
            return float(text)
        if kind == "boolean":
            return {"true": True, "false": False}[text]
    except (ValueError, KeyError, OverflowError) as error:
        raise Fault(400, refused, f"failed to parse field [{name}] of type [{kind}] in document: {error}") from error
    if kind == "keyword" and len(text) > field.get("ignore_above", 1 << 31):
        return None
    if kind == "keyword" and field.get("index") is not False:
        _term(name, text)
    return text


def _term(name: str, text: str) -> None:
    if len(text.encode()) > MAX_TERM:
        text = f'Document contains at least one immense term in field="{name}" (whose UTF8 encoding is longer than the'
        raise Fault(400, "illegal_argument_exception", f"{text} max length {MAX_TERM}), all of which were skipped.")


def date_nanos_of(kind: str, text: str) -> int:
    """Give the nanoseconds since 1970 that a date field of this kind holds of a text. Raises ValueError."""
    whole, _, rest = text.removesuffix("Z").partition(".")
    since = datetime.fromisoformat(whole).replace(tzinfo=UTC) - _EPOCH
    nanos = (since.days * 86_400 + since.seconds) * 1_000_000_000 + int(rest.ljust(9, "0")[:9] or 0)
    if kind == "date":
        return nanos // 1_000_000 * 1_000_000
    if nanos < 0:
        raise ValueError(f"date[{text}] is before the epoch in 1970 and cannot be stored in nanosecond resolution")
    if nanos >= 1 << 63:
        raise ValueError(
            f"date[{text}] is after 2262-04-11T23:47:16.854775807 and cannot be stored in nanosecond resolution"
        )
    return nanos


def _flattened(name: str, value: Any, terms: dict[str, list[Any]], refused: str) -> None:
    if value is not None and not isinstance(value, dict):
        raise Fault(400, refused, f"failed to parse field [{name}] of type [flattened]")
    terms.setdefault(name, [])
    waiting: list[tuple[str, Any, int]] = [(name, value, 0)]
    while waiting:
        path, inner, depth = waiting.pop()
        if isinstance(inner, dict):
            if depth >= MAX_DEPTH:
                text = f"The provided [flattened] field [{name}] exceeds the maximum depth limit of [{MAX_DEPTH}]."
                raise Fault(400, refused, text)
            for key, one in inner.items():
                if "\0" in key:
                    text = f"Do not include null bytes [\\0] in keys of [{name}]"
                    raise Fault(400, refused, text)
                if not key or not all(part.strip() for part in (key.rstrip(".") if "." in key else "x").split(".")):
                    # Servers before 9 expand dots within such a field too.
                    raise Fault(400, refused, f"field name cannot contain only whitespace: ['{key}']")
                waiting.append((f"{path}.{key}", one, depth + 1))
        elif isinstance(inner, list):
            waiting += [(path, one, depth) for one in inner]
        elif inner is not None:
            text = inner if isinstance(inner, str) else msgspec.json.encode(inner).decode()
            _term(name, f"{path}\0{text}")
            terms.setdefault(path, []).append(text)
            terms[name].append(text)
