"""Texts of others, shown: how text of a log, and any other text that we did not write, comes to a terminal, a log or a label.

Whatever stands in a log, a name of a file, a label or an answer of a host is data: it can neither steer a terminal, nor
turn text around, nor look like a line, a field or a record that it is not. Nothing else escapes.
"""

from __future__ import annotations

import re
from math import isfinite
from typing import Any, Final

import msgspec

_encode = msgspec.json.Encoder(enc_hook=str).encode
# Control characters but tab and newline (C0, DEL, C1), what turns the direction of text around, breaks lines in some
# viewers or annotates, what nobody can see and nobody writes, and halves of surrogate pairs.
_STEERS: Final = (
    r"\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    r"\ud800-\udfff"
)
# What joins letters and emoji in running text, and cannot be seen in a name: joiners, fillers, selectors, tags.
_HIDES: Final = (
    r"\u034f\u115f\u1160\u17b4\u17b5\u200c\u200d\u3164\ufe00-\ufe0f\uffa0\U000e0000-\U000e0fff"
    r"\U0001d173-\U0001d17a"
)
_STEERING: Final = re.compile(f"[{_STEERS}]")
_UNSEEN: Final = re.compile(f"[\t\n{_STEERS}{_HIDES}]")
_UNSEEN_IN_JSON: Final = re.compile(f"[{_STEERS}{_HIDES}]")
_WORD: Final = re.compile(r"[A-Za-z0-9_.:/@\[\]-]+")
_NO_WORD: Final = re.compile(r"[\s=\"']")
_SHORT: Final = {0x09: "\\t", 0x0A: "\\n", 0x0D: "\\r"}
#: How deep values are written that the encoder refuses, and the bits of the longest number.
_DEEPEST: Final = 64
_LONGEST_NUMBER: Final = 14_000


def visible(text: str) -> str:
    r"""Show a text of several lines: what would steer or hide is written out (``\x1b``); lines and tabs stay."""
    return text if text.isprintable() else _STEERING.sub(_escape, text)


def one_line(text: str) -> str:
    r"""Show a text as one line: a name, a path, an error. Ends of lines and what cannot be seen are written out."""
    return text if text.isascii() and text.isprintable() else _UNSEEN.sub(_escape, text)


def key_text(text: str) -> str:
    r"""Show the name of a ``key=value`` pair as one word that cannot be taken for several pairs."""
    return text if _WORD.fullmatch(text) else _NO_WORD.sub(_escape, one_line(text.replace("\\", "\\\\")))


def json_text(value: Any, *, indent: int = 0) -> str:
    r"""Write a value as JSON that is safe on a terminal: what steers or hides stands as ``\u202e``, and reads the same.

    Never raises for what a log may hold: half of a surrogate pair, a number beyond 64 bits, values nested too deep.
    """
    try:
        text = _encode(value).decode()
        if indent:
            text = msgspec.json.format(text, indent=indent)
    except (UnicodeEncodeError, OverflowError, RecursionError, TypeError, ValueError):
        text = _plain_json(value, indent)
    return safe_json(text)


def safe_json(text: str) -> str:
    """Give JSON that is written already without what steers or hides; it reads the same."""
    return text if text.isascii() and "\x7f" not in text else _UNSEEN_IN_JSON.sub(_json_escape, text)


def _plain_json(value: Any, indent: int) -> str:
    import json  # noqa: PLC0415 - only for what msgspec refuses

    return json.dumps(_jsonable(value, _DEEPEST), ensure_ascii=False, indent=indent or None)


def _jsonable(value: Any, depth: int) -> Any:
    if isinstance(value, msgspec.Struct):
        value = msgspec.structs.asdict(value)
    if isinstance(value, dict | list | tuple) and not depth:
        return "[nested too deep]"
    if isinstance(value, dict):
        return {str(key): _jsonable(item, depth - 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item, depth - 1) for item in value]
    if isinstance(value, float) and not isfinite(value):
        return None
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > _LONGEST_NUMBER:
        return hex(value)
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code in _SHORT:
        return _SHORT[code]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _json_escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x10000:
        return f"\\u{code:04x}"
    return f"\\u{0xD800 + (code - 0x10000 >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"
