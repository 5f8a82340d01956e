"""Values that JSON and every database hold: of those that are not, what comes nearest."""

from __future__ import annotations

from typing import Any

import msgspec

#: Levels of nesting that a value may have; MariaDB accepts 31 (tried on 10.11).
MAX_DEPTH = 20
#: What a value begins with that was too deep and became text.
TOO_DEEP = "[too deep] "
_encoder = msgspec.json.Encoder(enc_hook=str)


def cleaned(text: str) -> str:
    """Give the text with lone surrogates as U+FFFD, and pairs of them as the character they mean."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def plain(value: Any, depth: int = 1, *, wide: bool = True) -> Any:
    """Make a value that JSON and every backend hold: see the module's text."""
    if isinstance(value, str):
        return cleaned(value)
    if isinstance(value, dict | list | tuple | set | frozenset):
        if depth > MAX_DEPTH:
            return TOO_DEEP + _deep_text(value)
        if isinstance(value, dict):
            return {cleaned(str(key)): plain(item, depth + 1, wide=wide) for key, item in value.items()}
        return [plain(item, depth + 1, wide=wide) for item in value]
    if isinstance(value, int) and not wide and not -(1 << 63) <= value < 1 << 64:
        return str(value)
    try:
        return msgspec.Raw(_encoder.encode(value))
    except (ValueError, TypeError, OverflowError, UnicodeError):
        return cleaned(str(value))


def _deep_text(value: Any) -> str:
    try:
        return cleaned(_encoder.encode(value).decode())
    except (UnicodeError, ValueError, TypeError, OverflowError, RecursionError):
        return cleaned(repr(value))
