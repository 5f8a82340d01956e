"""Rows for a table of somebody else's making: what its columns do not hold stands in ``details`` or is marked.

`sinks._sql` says what a row is like. In a table that shipper did not make a column may hold less than a text of any kind:
only integers, few characters, an older character set, a list of words, no NULL. Then

* a value of an attribute that its column does not hold stays whole in ``details``, as one that is too long does;
* a message is cut, or has ``?`` for what its column lacks, and stands whole in ``details`` (the mark ``!``);
* a level that the column does not know is the nearest that it knows, and its severity is marked;
* a column that may not be NULL is filled where a record has nothing for it, and that is marked.

Without the column ``shipper`` the marks are lost; the values are not.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from shipper.record import SEVERITIES
from sinks._plain import cleaned
from sinks._sql import CUT, LEVEL_ALIASES, Mapping

if TYPE_CHECKING:
    from collections.abc import Iterable

_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,19}")
_BEYOND = {"ascii": re.compile(r"[^\x00-\x7f]"), "utf8mb3": re.compile(r"[^\u0000-\uffff]|[\ud800-\udfff]")}
_encode = msgspec.json.encode


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """What a text must be for its column.

    ``width`` is in characters. ``charset`` is ``utf8mb3``, ``latin1``, or ``ascii`` for any other; empty holds all.
    ``words`` are those of an ENUM, ``bounds`` those of an integer. ``trimmed``: spaces at the end get lost. ``filler``
    is what stands for NULL where that is not allowed. ``closed``: holds no text at all.
    """

    width: int | None = None
    charset: str = ""
    words: frozenset[str] | None = None
    bounds: tuple[int, int] | None = None
    trimmed: bool = False
    filler: str | None = None
    closed: bool = False

    def holds(self, text: str) -> bool:
        """Tell whether the column gives back this text."""
        if self.closed or (self.width is not None and len(text) > self.width):
            return False
        if self.words is not None:
            return text in self.words
        if self.bounds is not None:
            return bool(_INTEGER.fullmatch(text)) and self.bounds[0] <= int(text) <= self.bounds[1]
        if self.trimmed and text.endswith(" "):
            return False
        return self._encodes(text)

    def _encodes(self, text: str) -> bool:
        if not self.charset or text.isascii():
            return True
        if self.charset == "latin1":
            try:
                text.encode("cp1252")
            except UnicodeEncodeError:
                return False
            return True
        return _BEYOND[self.charset].search(text) is None

    def near(self, text: str) -> str:
        """Give what the column can hold of a text: a mark at the end where it was cut, ``?`` for what it lacks."""
        if self.width is not None and len(text) > self.width:
            end = CUT if self._encodes(CUT) else "..."
            text = text[: max(0, self.width - len(end))] + end[: self.width]
        if self.charset == "latin1":
            return text.encode("cp1252", "replace").decode("cp1252")
        return _BEYOND[self.charset].sub("?", text) if self.charset else text

    def escaped(self, json: str) -> str:
        """Give the same JSON in characters that the column holds."""
        if self._encodes(json):
            return json
        return _BEYOND["ascii"].sub(lambda found: _escape(found[0]), json)


def _escape(character: str) -> str:
    code = ord(character)
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"


def levels_for(words: Iterable[str]) -> dict[str, str]:
    """Give what stands for each level in a column that knows only these words; empty when none of them is a level."""
    known: dict[int, str] = {}
    for word in words:
        name = word.strip().lower()
        severity = SEVERITIES.get(LEVEL_ALIASES.get(name, name))
        if severity is not None and (severity not in known or word == name):
            known[severity] = word
    if not known:
        return {}
    # Of two that are equally near the more severe one.
    return {
        level: known[min(known, key=lambda at: (abs(at - severity), -at))] for level, severity in SEVERITIES.items()
    }


class FittedMapping(Mapping):
    """A mapping for a table some of whose columns hold less than any text: ``fits`` by column, ``levels`` by level."""

    def __init__(
        self,
        columns: dict[str, str],
        *,
        fits: dict[str, Fit],
        levels: dict[str, str] | None = None,
        widths: dict[str, int] | None = None,
        wide_integers: bool = True,
        marker: bool = True,
    ) -> None:
        super().__init__(columns, widths=widths, wide_integers=wide_integers, marker=marker)
        self._fits = fits
        self._levels = levels
        if marker and levels is not None:
            self._unmarked &= {SEVERITIES[name] for name, word in levels.items() if name == word}
        self._fillers = [
            (place, column, filler)
            for place, column in enumerate(columns)
            if column in fits and (filler := fits[column].filler) is not None
        ]
        self._room -= 2 + len(self._fillers)

    def _split_attributes(
        self, attributes: list[dict[str, Any]]
    ) -> tuple[list[list[str | None]], list[str | None], str | list[str]]:
        return self._split_in_python(attributes)

    def _column(
        self,
        column: str,
        attributes: list[dict[str, Any]],
        kept: dict[int, list[str]],
        integers: list[tuple[str, list[bool] | None]],
    ) -> list[str | None]:
        before = len(integers)
        values = super()._column(column, attributes, kept, integers)
        fit = self._fits.get(column)
        if fit is None:
            return values
        wrong = [index for index, value in enumerate(values) if value is not None and not fit.holds(value)]
        for index in wrong:
            values[index] = None
            kept.setdefault(index, []).append(self.columns[column])
        if wrong and len(integers) > before:
            flags = integers[-1][1] or [True] * len(values)
            for index in wrong:
                flags[index] = False
            integers[-1] = (column, flags)
        return values

    def _mark_outside(self, outside: Any) -> str | None:
        mark = super()._mark_outside(outside)
        fit = self._fits.get("shipper")
        return mark if mark is None or fit is None or fit.holds(mark) else None

    def _truncated(self, column: str, value: str | None) -> str | None:
        value = super()._truncated(column, value)
        fit = self._fits.get(column)
        if fit is None:
            return value
        if value is None:
            return fit.filler
        return value if fit.holds(value) else fit.near(value)

    def _fit(
        self,
        messages: list[str],
        mapped: list[list[str | None]],
        details: list[str | None],
        marks: str | list[str],
    ) -> tuple[list[str], str | list[str]]:
        for place, column, filler in self._fillers:
            empty = [index for index, value in enumerate(mapped[place]) if value is None]
            if empty:
                marks = _marked(marks, len(messages), empty, f",!{column}")
                for index in empty:
                    mapped[place][index] = filler
        if (fit := self._fits.get("message")) is not None:
            long = [index for index, text in enumerate(messages) if not fit.holds(text)]
            if long:
                marks = _marked(marks, len(messages), long, ",!")
                messages = list(messages)
                for index in long:
                    whole = _json_text(messages[index])
                    details[index] = f'{{"attributes":{details[index] or "{}"},"message":{whole}}}'
                    messages[index] = fit.near(messages[index])
        if (fit := self._fits.get("details")) is not None:
            for index, text in enumerate(details):
                details[index] = fit.filler if text is None else fit.escaped(text)
        return messages, marks


def _marked(marks: str | list[str], count: int, where: list[int], mark: str) -> list[str]:
    each = [marks] * count if isinstance(marks, str) else marks
    for index in where:
        each[index] = mark + each[index]
    return each


def _json_text(text: str) -> str:
    try:
        return _encode(text).decode()
    except UnicodeEncodeError:
        return _encode(cleaned(text)).decode()
