"""Which values are secrets, and how they are kept out of everything that is printed.

A field says that it holds a secret by its type: ``password: Annotated[Secret, Meta(description="...")]``. Names that
tell of secrets count too, for sinks that others wrote. Beside that, logins and keys inside URLs, the values of headers
and what a text assigns to such a name are masked. What is masked at all is rather too much than too little.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, get_args
from urllib.parse import quote

import msgspec

MASK = "***"

#: The type of a field that holds a secret.
Secret = Annotated[str, msgspec.Meta(extra={"secret": True})]
_NAME = re.compile(
    r"(?:.*_)?(?:password|passwd|pwd|passphrase|passcode|secret|secrets|token|credential|credentials|salt"
    r"|authorization|cookie|bearer|jwt|signature|sig|sas|webhook|webhook_url|connection_string|dsn|apikey"
    r"|(?:api|access|secret|private|license|instrumentation|account|hash|shared|shared_access|signing|encryption|master"
    r"|session|client|subscription|ingest|ingestion|write|integration|routing|application|storage)_key)"
)
#: Every name above and every word that the expressions below look for has one of these in it: most texts have none.
_PARTS: tuple[str, ...] = (
    "pass",
    "pwd",
    "secret",
    "token",
    "credential",
    "salt",
    "authorization",
    "cookie",
    "bearer",
    "basic",
    "jwt",
)
_PARTS += ("sig", "sas", "webhook", "connection", "dsn", "key")
_CAPITAL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
#: Parameters of URLs that are secret beside those whose names say so.
_PARAMETERS = frozenset({"key", "code", "auth", "pass", "p"})
#: Headers whose values may be shown.
_HARMLESS = frozenset(
    {"accept", "accept-encoding", "accept-language", "cache-control", "connection", "content-encoding", "content-type"}
    | {"user-agent"}
)
_USERINFO = re.compile(r"(?<=://)[^/\s]*@")
_PARAMETER = re.compile(r"(?<=[?&;#])([\w.~%+-]{1,64})=([^&#\s\"'<>]+)")
# Each begins at the start of a word and looks at a bounded name, so that the whole takes time linear in the text.
_HEADER = re.compile(r"""(?i)\b((?:proxy-)?authorization|(?:set-)?cookie)(["']?\s{0,4}[:=]\s{0,4})[^\r\n"']+""")
_SCHEME = re.compile(r"(?i)\b(bearer|basic)\s{1,4}[A-Za-z0-9._~+/=-]{6,}")
# After a colon our own messages go on with one of these words: ``password: needs username``.
_ASSIGNS = re.compile(
    r"""(?<![\w-])([\w-]{1,64})["']?\s{0,4}[=:](?! (?:expected|needs|give|is|are|must|cannot|no|a|the|would|key)\b)\s{0,4}"""
)
_VALUE = re.compile(r"""[\[({]{0,4}(?:\*\*\*|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[^\s,;&]+)""")
#: Shorter values would mask words and numbers everywhere.
_SHORTEST = 4
_MOST_FILE = 1 << 16


def is_secret(name: str) -> bool:
    """Tell whether a field of this name holds a secret. ``password_file`` holds a path and does not."""
    return _NAME.fullmatch(_CAPITAL.sub("_", name).lower().replace("-", "_").replace(".", "_")) is not None


def is_secret_field(name: str, kind: Any) -> bool:
    """Tell whether a field holds a secret, by its type or by its name."""
    return is_secret(name) or any(meta.extra and meta.extra.get("secret") for meta in _metas(kind))


def is_secret_stem(struct: msgspec.Struct, stem: str) -> bool:
    """Tell whether a file that a section names by ``stem + "_file"`` holds a secret."""
    kind = next((field.type for field in msgspec.structs.fields(type(struct)) if field.name == stem), None)
    return is_secret_field(stem, kind)


def is_secret_member(mapping: str, name: str) -> bool:
    """Tell whether a member of a mapping holds a secret; ``mapping`` is the field's name, such as ``headers``."""
    return is_secret(name) or ("header" in mapping.lower() and name.lower() not in _HARMLESS)


def masked_url(text: str) -> str:
    """Give the text with the login and the keys of every URL in it hidden."""
    if "://" not in text:
        return text
    return _PARAMETER.sub(_masked_parameter, _USERINFO.sub(MASK + "@", text))


def masked_text(text: str) -> str:
    """Give a text that others wrote without what looks like a secret: in URLs, headers and assignments."""
    if "://" in text and "@" in text:
        text = _USERINFO.sub(MASK + "@", text)
    if "=" in text:  # clients quote the path of a request apart from its host
        text = _PARAMETER.sub(_masked_parameter, text)
    lowered = text.lower()
    if not any(part in lowered for part in _PARTS):
        return text
    text = _SCHEME.sub(rf"\1 {MASK}", _HEADER.sub(rf"\1\2{MASK}", text))
    # What is no secret is not skipped: a text such as "base 10: 'password=...'" is an assignment in another.
    parts, done = [], 0
    for match in _ASSIGNS.finditer(text):
        if match.start() >= done and is_secret(match[1]) and (value := _VALUE.match(text, match.end())):
            parts += [text[done : match.end()], MASK]
            done = value.end()
    return "".join([*parts, text[done:]])


def masked(value: Any, *, secret: bool = False) -> Any:
    """Give a section of the configuration as plain dicts, lists and scalars, without its secrets."""
    if isinstance(value, msgspec.Struct):
        return {
            field.encode_name: _masked_field(
                field.name, getattr(value, field.name), is_secret_field(field.name, field.type)
            )
            for field in msgspec.structs.fields(type(value))
        }
    if isinstance(value, dict):
        return _masked_field("", value, secret)
    if isinstance(value, list | tuple | set | frozenset):
        return [masked(item, secret=secret) for item in value]
    if secret:
        return MASK if value else value
    if value is None or isinstance(value, bool | int | float):
        return value
    return masked_url(str(value))


def masked_repr(struct: msgspec.Struct) -> str:
    """Render a config section for people: secrets as ``***``, also those inside URLs and headers."""
    shown = masked(struct)
    names = {field.encode_name: field.name for field in msgspec.structs.fields(type(struct))}
    return f"{type(struct).__name__}({', '.join(f'{names[key]}={value!r}' for key, value in shown.items())})"


def secret_values(value: Any, *, secret: bool = False) -> set[str]:
    """Collect the secrets of a configuration, or of a part of it, and what the secret files that it names hold now."""
    if isinstance(value, msgspec.Struct):
        found: set[str] = set()
        for field in msgspec.structs.fields(type(value)):
            inner = getattr(value, field.name)
            stem = field.name.removesuffix("_file")
            if stem != field.name and inner and is_secret_stem(value, stem):
                found |= _contents(str(inner))
            found |= _values_of_field(field.name, inner, is_secret_field(field.name, field.type))
        return found
    if isinstance(value, dict):
        return _values_of_field("", value, secret)
    if isinstance(value, list | tuple | set | frozenset):
        return set[str]().union(*(secret_values(item, secret=secret) for item in value))
    if isinstance(value, str):
        return {value, *_parts(value)} if secret else set(_in_url(value))
    return {str(value)} if secret and isinstance(value, int | float) and not isinstance(value, bool) else set()


class Masker:
    """Hides secrets in texts: values that are known, in every form that quoting gives them, and what looks like one."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        self._values: list[str] = []
        self.add(values)

    def add(self, values: Iterable[str]) -> None:
        """Know more values, and each line of those of several. Very short ones are left out: they would mask words."""
        whole = {part for value in values for part in (value, *value.splitlines())}
        forms = {
            form
            for value in whole
            if len(value) >= _SHORTEST
            for form in (value, quote(value, safe=""), json.dumps(value)[1:-1], repr(value)[1:-1])
        }
        # Longest first, so that a secret that holds another one is masked whole. Swapped at once: other threads mask.
        self._values = sorted({*self._values, *forms}, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """Give the text without secrets."""
        return masked_text(self.exactly(text))

    def exactly(self, text: str) -> str:
        """Give the text without the known values alone."""
        for value in self._values:
            if value in text:
                text = text.replace(value, MASK)
        return text

    def within(self, value: Any) -> Any:
        """Give plain dicts, lists and scalars with every text in them masked; keys stay."""
        if isinstance(value, str):
            return self(value)
        if isinstance(value, dict):
            return {key: self.within(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.within(item) for item in value]
        return value


Mask = Callable[[str], str]


def _metas(kind: Any) -> Iterator[msgspec.Meta]:
    # Annotated and unions alike have arguments; a Meta among them belongs to the field.
    for argument in get_args(kind):
        if isinstance(argument, msgspec.Meta):
            yield argument
        else:
            yield from _metas(argument)
    yield from (meta for meta in getattr(kind, "__metadata__", ()) if isinstance(meta, msgspec.Meta))


def _masked_field(name: str, value: Any, secret: bool) -> Any:
    if not isinstance(value, dict):
        return masked(value, secret=secret)
    return {str(key): masked(item, secret=hidden) for key, item, hidden in _members(name, value, secret)}


def _values_of_field(name: str, value: Any, secret: bool) -> set[str]:
    if not isinstance(value, dict):
        return secret_values(value, secret=secret)
    return set[str]().union(*(secret_values(item, secret=hidden) for _, item, hidden in _members(name, value, secret)))


def _members(field: str, mapping: dict[Any, Any], secret: bool) -> Iterator[tuple[Any, Any, bool]]:
    """Give the members of a mapping, and whether each is secret."""
    for key, item in mapping.items():
        # A sink may be named "token"; the fields of its section are judged by themselves.
        section = isinstance(item, msgspec.Struct)
        yield key, item, secret or (not section and is_secret_member(field, str(key)))


def _contents(path: str) -> set[str]:
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            return set()
        with Path(path).open("rb") as file:
            text = file.read(_MOST_FILE).decode("utf-8", "replace").strip()
    except (OSError, ValueError):
        return set()
    return {text, *_parts(text)} - {""}


def _parts(text: str) -> Iterator[str]:
    """Give the secrets inside of one that is made of parts: a connection string, a URL, ``id:key``."""
    for part in text.split(";"):
        name, sign, value = part.partition("=")
        if sign and is_secret(name.strip()):
            yield value.strip()
    yield from _in_url(text)


def _in_url(text: str) -> Iterator[str]:
    if "://" not in text:
        return
    for match in _USERINFO.finditer(text):
        user, colon, password = match[0][:-1].partition(":")
        yield password if colon else user
    for match in _PARAMETER.finditer(text):
        if _is_parameter(match[1]):
            yield match[2]


def _is_parameter(name: str) -> bool:
    return name.lower() in _PARAMETERS or is_secret(name)


def _masked_parameter(match: re.Match[str]) -> str:
    return f"{match[1]}={MASK}" if _is_parameter(match[1]) else match[0]
