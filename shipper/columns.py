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
from itertools import accumulate, repeat
from typing import Any, Final

import msgspec

from shipper.native import compiled

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_encoder = msgspec.json.Encoder(enc_hook=str)
_encode = _encoder.encode


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


#: What every record has, or a kind and a column.
Part = bytes | tuple[Kind, list[Any]]


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


def rfc3339(time_ns: int) -> str:
    """Render nanoseconds since 1970 UTC as ``2026-11-22T22:47:13.123456789Z``."""
    return _time(time_ns, "T", 9) + "Z"


def _values(column: Sequence[Any]) -> list[str]:
    # JSON has no line breaks but those between the values.
    lines: list[str] = _encoder.encode_lines(column).decode().split("\n")
    lines.pop()
    return lines


def _times(column: Sequence[int], between: str, digits: int, end: str) -> list[str]:
    if column and min(column) >= 10**18 and max(column) < 10**19:
        texts = list(map(str, column))  # nineteen digits, from 2001 to 2286: slices are cheaper than arithmetic
        known = {second: _second(int(second), between) + "." for second in {text[:10] for text in texts}}
        return [known[text[:10]] + text[10 : 10 + digits] + end for text in texts]
    return [_time(time_ns, between, digits) + end for time_ns in column]


def _time(time_ns: int, between: str, digits: int) -> str:
    seconds, rest = divmod(time_ns, 1_000_000_000)
    return f"{_second(seconds, between)}.{rest // 10 ** (9 - digits):0{digits}d}"


@lru_cache(maxsize=1024)
def _second(seconds: int, between: str) -> str:
    return (_EPOCH + timedelta(seconds=seconds)).strftime(f"%Y-%m-%d{between}%H:%M:%S").zfill(19)


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
    Kind.RFC3339: lambda column: _times(column, "T", 9, "Z"),
    Kind.TICKS: lambda column: _times(column, "T", 7, "Z"),
    Kind.CREATED: lambda column: _times(column, " ", 6, ""),
    Kind.FIELD: _marked("\x1c\x1d\x1e", "\x1c", "\x1cN"),
    Kind.QUOTED: _marked("'\\", "\\", "NULL", quote="'"),
    Kind.MILLIS: lambda column: [str(time_ns // 1_000_000) for time_ns in column],
    Kind.BELOW: lambda column: [f"{time_ns % 1_000_000:06d}" for time_ns in column],
}
