"""Texts joined from columns, record after record: how sinks write many records at once.

What differs from record to record is a column, of one of the kinds below; what does not is bytes. One call writes all,
in compiled code where there is any.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from functools import lru_cache
from itertools import accumulate, chain, islice, repeat
from operator import lt
from typing import Any, Final

import msgspec

from shipper.native import compiled

#: Characters of a name that is remembered as JSON.
_KEPT_NAME: Final = 256
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
#: The seconds of the years 1 to 9999.
_FIRST_SECOND: Final = -62_135_596_800
_LAST_SECOND: Final = 253_402_300_799
_encoder = msgspec.json.Encoder(enc_hook=str)
_encode = _encoder.encode
#: All digits as one, and as many as an integer beyond 64 bits has at least.
_DIGITS: Final = bytes(48 if 48 <= byte <= 57 else 0 for byte in range(256))
_WIDE: Final = b"0" * 19


class Kind(IntEnum):
    """How the values of a column are written. Times are nanoseconds since 1970 UTC, cut below the last digit."""

    #: Text as it is.
    TEXT = 0
    #: Text as a JSON string.
    STRING = 1
    #: Text as the inside of a JSON string; the same without the text's last character, a brace that closes later.
    ESCAPED = 2
    OPEN = 3
    #: Integers in decimal.
    NUMBER = 4
    #: Any value as JSON.
    VALUE = 5
    #: ``2026-11-22T22:47:13.123456789Z``; the same with seven digits; ``2026-11-22 22:47:13.123456``.
    RFC3339 = 6
    TICKS = 7
    CREATED = 8
    #: Text or ``None`` for LOAD DATA (`sinks.mysql.encode`); text in single quotes or ``None`` for SQL.
    FIELD = 9
    QUOTED = 10
    #: A time's milliseconds in decimal; the six digits of its nanoseconds below the millisecond.
    MILLIS = 11
    BELOW = 12
    #: A dict's members, each with a comma in front, all values as JSON strings: what is no text as its JSON. The names
    #: of those that are none: a JSON array, as the inside of a JSON string.
    MEMBERS = 13
    ENCODED = 14


#: What every record has, or a kind and a column.
Part = bytes | tuple[Kind, list[Any]]


def span(numbers: Sequence[int]) -> tuple[int, int, bool]:
    """Give the least of at least one number, the greatest, and whether each is greater than the one before."""
    found: tuple[int, int, bool] | None = None
    if compiled is not None and isinstance(numbers, list):
        found = compiled.span(numbers)
    return found or (min(numbers), max(numbers), all(map(lt, numbers, islice(numbers, 1, None))))


def lengths(texts: Sequence[str]) -> tuple[int, int]:
    """Give the characters of the longest of some texts, and of all of them."""
    if compiled is not None and isinstance(texts, list):
        found: tuple[int, int] | None = compiled.lengths(texts)
        if found is not None:
            return found
    return max(map(len, texts), default=0), sum(map(len, texts))


def render(parts: list[Part], start: int, end: int, *, ends: list[int] | None = None) -> bytes:
    """Join the records from ``start`` to ``end``; ``ends`` gets where in the result each of them ends.

    Raises UnicodeEncodeError for half of a surrogate pair, and what msgspec raises for values that are no JSON.
    """
    text: bytes | None = None if compiled is None else compiled.render(parts, start, end, _encode, ends)
    return text if text is not None else _render(parts, start, end, ends)


def _render(parts: list[Part], start: int, end: int, ends: list[int] | None) -> bytes:
    columns = [
        repeat(part.decode(), end - start) if isinstance(part, bytes) else _TEXTS[part[0]](part[1][start:end])
        for part in parts
    ]
    rows = list(map("".join, zip(*columns, strict=True)))
    if ends is not None:
        ends[:] = accumulate(len(row) if row.isascii() else len(row.encode()) for row in rows)
    return "".join(rows).encode()


def wide(column: list[Any]) -> list[int]:
    """Give the indexes of the values that have an integer beyond 64 bits anywhere, which many a decoder would round."""
    places: list[int] | None = None if compiled is None else compiled.wide(column)
    if places is not None:
        return places
    if _WIDE not in _encoder.encode_lines(column).translate(_DIGITS):
        return []
    return [place for place, value in enumerate(column) if is_wide(value)]


def is_wide(value: Any) -> bool:
    """Tell whether an integer beyond 64 bits stands anywhere in a value."""
    if isinstance(value, int):
        return not -(1 << 63) <= value < 1 << 63
    if isinstance(value, dict):
        return any(map(is_wide, value.values()))
    return isinstance(value, list | tuple) and any(map(is_wide, value))


def rfc3339(time_ns: int) -> str:
    """Render nanoseconds since 1970 UTC as ``2026-11-22T22:47:13.123456789Z``."""
    return _time(time_ns, "T", 9) + "Z"


def _values(column: Sequence[Any]) -> list[str]:
    # JSON has no line breaks but those between the values.
    lines: list[str] = _encoder.encode_lines(column).decode().split("\n")
    lines.pop()
    return lines


def _members(column: Sequence[dict[str, Any]]) -> list[str]:
    values = list(chain.from_iterable([each.values() for each in column]))
    texts = [
        f"{_named(name) if len(name) <= _KEPT_NAME else f',{_string(name)}:'}"
        f"{text if isinstance(value, str) else _string(text)}"
        for name, value, text in zip(chain.from_iterable(column), values, _values(values), strict=True)
    ]
    members = iter(texts)
    return ["".join(islice(members, len(each))) for each in column]


def _encoded(column: Sequence[dict[str, Any]]) -> list[str]:
    return [
        _string(_string([name for name, value in each.items() if not isinstance(value, str)]))[1:-1] for each in column
    ]


@lru_cache(maxsize=1024)
def _named(name: str) -> str:
    return f",{_string(name)}:"


def _string(value: Any) -> str:
    return _encode(value).decode()


def _time(time_ns: int, between: str, digits: int) -> str:
    seconds, rest = divmod(time_ns, 1_000_000_000)
    return f"{_second(seconds, between)}.{rest // 10 ** (9 - digits):0{digits}d}"


def _times(between: str, digits: int, end: str = "") -> Callable[[Sequence[int]], list[str]]:
    def texts(column: Sequence[int]) -> list[str]:
        if min(column, default=0) < 10**18 or max(column) >= 10**19:
            return [_time(time_ns, between, digits) + end for time_ns in column]
        # Ten digits of seconds, nine of nanoseconds: no arithmetic, and each second is written once.
        numbers = list(map(str, column))
        known = {second: f"{_second(int(second), between)}." for second in {text[:10] for text in numbers}}
        return [f"{known[text[:10]]}{text[10 : 10 + digits]}{end}" for text in numbers]

    return texts


@lru_cache(maxsize=1024)
def _second(seconds: int, between: str) -> str:
    # A time that no calendar has is the calendar's first or last second: a record is not refused for it.
    moment = _EPOCH + timedelta(seconds=min(max(seconds, _FIRST_SECOND), _LAST_SECOND))
    return moment.strftime(f"%Y-%m-%d{between}%H:%M:%S").zfill(19)


def _marked(special: str, escape: str, null: str, quote: str = "") -> Callable[[Sequence[str | None]], list[str]]:
    find = re.compile(f"[{re.escape(special)}]")

    def texts(column: Sequence[str | None]) -> list[str]:
        whole = "".join(filter(None, column))
        if not any(character in whole for character in special):
            return [null if text is None else f"{quote}{text}{quote}" for text in column]
        return [
            null if text is None else f"{quote}{find.sub(lambda found: escape + found[0], text)}{quote}"
            for text in column
        ]

    return texts


_TEXTS: Final[dict[Kind, Callable[[Sequence[Any]], Sequence[str]]]] = {
    Kind.TEXT: lambda column: column,
    Kind.STRING: _values,
    Kind.ESCAPED: lambda column: [text[1:-1] for text in _values(column)],
    Kind.OPEN: lambda column: [text[1:-1] for text in _values([text[:-1] for text in column])],
    Kind.NUMBER: lambda column: list(map(str, column)),
    Kind.VALUE: _values,
    Kind.RFC3339: _times("T", 9, "Z"),
    Kind.TICKS: _times("T", 7, "Z"),
    Kind.CREATED: _times(" ", 6),
    Kind.FIELD: _marked("\x1c\x1d\x1e", "\x1c", "\x1cN"),
    Kind.QUOTED: _marked("'\\", "\\", "NULL", quote="'"),
    Kind.MILLIS: lambda column: [str(time_ns // 1_000_000) for time_ns in column],
    Kind.BELOW: lambda column: [f"{time_ns % 1_000_000:06d}" for time_ns in column],
    Kind.MEMBERS: _members,
    Kind.ENCODED: _encoded,
}
