"""JSON objects that stand on a line, decoded to a bounded depth and to a bounded number of values.

Whoever walks over what was decoded, sinks among them, may do so by recursion: nothing is nested deeper than
`MAX_DEPTH`. What stands deeper stays JSON text. How deep the interpreter's stack is at the moment decides nothing.

A value costs up to seventy times the memory of its text. Of a line with more than `MAX_VALUES` of them the members that
a record's level, message and time are made of are decoded alone; the whole stays JSON text, under `REST`.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from shipper.parse.levels import LEVEL_KEYS
from shipper.parse.times import TIME_KEYS

#: Levels of objects and lists that are decoded; the object itself is the first. At least DEPTH of native.h and one.
MAX_DEPTH: Final = 64
#: Characters up to which a line may have any number of values; those of longer ones are counted. WIDE of native.h.
WIDE: Final = 65_536
#: Values of a longer line that are decoded, told by its commas.
MAX_VALUES: Final = 20_000
#: The attribute that a line with more values has its JSON text in.
REST: Final = "log.record.json"
_NO_OPENERS: Final = bytes(byte for byte in range(256) if byte not in b"[{\n")

#: A string (to the end of the text, if it does not end), or a bracket.
_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{}]', re.DOTALL)
_ESCAPE = re.compile(r"\\(?:u00([2-7][0-9a-fA-F])|(.))", re.DOTALL)
_OPENERS: Final = ("[", "{")

_decode = msgspec.json.Decoder(dict[str, Any]).decode
_decode_value = msgspec.json.Decoder(Any).decode
_ABSENT: Final = msgspec.Raw(b"")
#: The members that are looked at by name, each under a name that Python allows.
_NAMED: Final = {f"m{number}": key for number, key in enumerate((*LEVEL_KEYS, "message", "msg", *TIME_KEYS))}
_decode_named = msgspec.json.Decoder(
    msgspec.defstruct("_Named", [(name, msgspec.Raw, _ABSENT) for name in _NAMED], rename=_NAMED)
).decode


def decode_document(text: str) -> dict[str, Any] | None:
    """Decode the JSON object of a line as `decode_object` does, within a bound on the number of values."""
    if len(text) <= WIDE or text.count(",") < MAX_VALUES:
        return decode_object(text)
    flat = _flattened(text) if _may_be_deep(text) else text
    try:
        named = msgspec.structs.astuple(_decode_named(flat))
        found = {
            key: bytes(value).decode() if len(bytes(value)) > WIDE else _decode_value(value)
            for key, value in zip(_NAMED.values(), named, strict=True)
            if bytes(value)
        }
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    if found.get("message") is not None or found.get("msg") is not None:
        found[REST] = text  # else the line is the message
    return found


def decode_object(text: str) -> dict[str, Any] | None:
    """Decode a JSON object; ``None`` if the text is none, or is one that JSON of ours could not carry (NaN)."""
    try:
        found = _decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        if not _may_be_deep(text):
            return None
    else:
        if not _may_be_deep(text) or not is_deep(found):
            return found
    try:
        return _decode(_flattened(text))
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None  # what is too deep even so has a bracket that is not closed, so it is no JSON


def may_be_deep(lines: str) -> list[int]:
    """Give the indexes of lines that have brackets enough to be nested too deep: cheap, and at least those that are."""
    openers = lines.encode("utf-8", "surrogatepass").translate(None, _NO_OPENERS)
    if len(openers) <= MAX_DEPTH:
        return []
    return [place for place, opened in enumerate(openers.split(b"\n")) if len(opened) > MAX_DEPTH]


def is_deep(value: Any) -> bool:
    """Tell whether a decoded value is nested deeper than `MAX_DEPTH`."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def _may_be_deep(text: str) -> bool:
    return text.count("{") + text.count("[") > MAX_DEPTH


def _flattened(text: str) -> str:
    """Put each value that is too deep into a JSON string. Whether such a value is JSON itself is not looked at."""
    pieces: list[str] = []
    done = depth = begin = 0
    for token in _TOKEN.finditer(text):
        if token[0] in _OPENERS:
            depth += 1
            if depth == MAX_DEPTH + 1:
                begin = token.start()
        elif token[0][0] != '"':
            if depth == MAX_DEPTH + 1:
                inner = _ESCAPE.sub(_unescaped, text[begin : token.end()])
                pieces += text[done:begin], msgspec.json.encode(inner).decode()
                done = token.end()
            depth -= 1
    return "".join([*pieces, text[done:]])


def _unescaped(match: re.Match[str]) -> str:
    # Plain characters as themselves, so that whoever looks for one in the text finds it. The JSON means the same.
    if match[1]:
        character = chr(int(match[1], 16))
        return match[0] if character in '"\\\x7f' else character
    return "/" if match[2] == "/" else match[0]
