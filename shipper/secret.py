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
        kinds = {field.name: field for field in msgspec.structs.fields(type(value))}
        return {
            field.encode_name: _masked_mapping(name, found)
            if isinstance(found := getattr(value, name), dict)
            else masked(found, secret=secret or is_secret_field(name, field.type))
            for name, field in kinds.items()
        }
    if isinstance(value, dict):
        return _masked_mapping("headers" if secret else "", value)
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
    found: set[str] = set()
    if isinstance(value, msgspec.Struct):
        for field in msgspec.structs.fields(type(value)):
            inner = getattr(value, field.name)
            stem = field.name.removesuffix("_file")
            if stem != field.name and inner and is_secret_stem(value, stem):
                found |= _contents(str(inner))
            found |= (
                _of_mapping(field.name, inner)
                if isinstance(inner, dict)
                else secret_values(inner, secret=secret or is_secret_field(field.name, field.type))
            )
    elif isinstance(value, dict):
        found |= _of_mapping("headers" if secret else "", value)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            found |= secret_values(item, secret=secret)
    elif isinstance(value, str):
        found |= {value, *_parts(value)} if secret else set(_in_url(value))
    elif secret and isinstance(value, int | float) and not isinstance(value, bool):
        found.add(str(value))
    return found


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


def _masked_mapping(field: str, mapping: dict[Any, Any]) -> dict[str, Any]:
    hidden = is_secret(field)
    return {
        str(name): masked(item, secret=hidden or (is_secret_member(field, str(name)) and not _is_section(item)))
        for name, item in mapping.items()
    }


def _of_mapping(field: str, mapping: dict[Any, Any]) -> set[str]:
    hidden = is_secret(field)
    return set[str]().union(
        *(
            secret_values(item, secret=hidden or (is_secret_member(field, str(name)) and not _is_section(item)))
            for name, item in mapping.items()
        )
    )


def _is_section(item: Any) -> bool:
    # A sink may be named "token"; its fields are judged by themselves.
    return isinstance(item, msgspec.Struct)


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
