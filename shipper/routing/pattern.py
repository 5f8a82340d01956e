r"""Regular expressions of the user's: in redact rules, and between slashes in the filter language.

Python's ``re`` may take longer than anybody waits for a text that somebody else chose, and nothing else of the daemon
runs meanwhile. RE2 (the package ``google-re2``, extra ``re2``) takes time linear in the text. It is used where it is
installed; without it ``re`` looks at the first `LIMIT` characters of a text only.

A configuration means the same on every machine: what only one of the two knows is refused with both, and ``\d``,
``\w``, ``\s`` and ``\b`` mean ASCII with both.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

#: Characters of a text that are looked at without RE2.
LIMIT: Final = 8192
#: Bytes that RE2 may take for one expression.
_MAX_MEMORY: Final = 32 << 20

#: One element of an expression: an escape, a class, the beginning of a special group, a quantifier, a character.
_ELEMENT: Final = re.compile(
    r"\\.|\[\^?\]?(?:\\.|[^\]\\])*+\]?|\(\?(?:P?<(?![=!])[^>]*+>|P=|<[=!]|[a-zA-Z-]*+[:)]|.)|\{[\d,]*+\}|.", re.DOTALL
)
_ESCAPE: Final = re.compile(r"\\.", re.DOTALL)
#: What RE2 does not have, by how it begins, so that time stays linear.
_REFUSED: Final = {
    "(?=": "lookahead",
    "(?!": "lookahead",
    "(?<=": "lookbehind",
    "(?<!": "lookbehind",
    "(?P=": "a backreference",
    "(?(": "a condition",
    "(?>": "an atomic group",
    "(?#": "a comment",
    "\\Z": "\\Z; write $",
    "\\u": "\\u; write the character itself",
    "\\U": "\\U; write the character itself",
    "\\N": "\\N; write the character itself",
}
_MOST_REPEATS: Final = 1000


class PatternError(ValueError):
    """An expression that is not taken. ``position`` counts from 0 where that is known."""

    def __init__(self, message: str, position: int = 0) -> None:
        super().__init__(message)
        self.position = position


class Pattern:
    """One expression, compiled by the engine at hand. Safe to use from several threads."""

    def __init__(self, source: str, *, ignore_case: bool = False) -> None:
        """Compile. Raises PatternError."""
        self.source = source
        _check(source)
        flags = (re.IGNORECASE if ignore_case else 0) | (re.ASCII if source.isascii() else 0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of what a later Python may make of [[
                self._re = re.compile(source, flags)
        except re.error as error:
            raise PatternError(error.msg, error.pos or 0) from error
        except (OverflowError, RecursionError) as error:
            raise PatternError(str(error)) from error
        self._re2: Any = None
        if (engine := linear_engine()) is not None:
            options = engine.Options()
            options.case_sensitive = not ignore_case
            options.log_errors = False
            options.max_mem = _MAX_MEMORY
            try:
                self._re2 = engine.compile(source.encode(), options)
            except (engine.error, UnicodeEncodeError) as error:
                reason = error.args[0] if error.args else error
                text = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
                raise PatternError(f"RE2, the engine in use, says: {text}") from error

    @property
    def linear(self) -> bool:
        """Whether a text of any length is looked at whole, in time linear in it."""
        return self._re2 is not None

    def search(self, text: str) -> bool:
        """Tell whether the expression is found in a text; without RE2, in its first `LIMIT` characters."""
        if self._re2 is None:
            return self._re.search(text, 0, LIMIT) is not None
        return self._re2.search(text.encode("utf-8", "surrogatepass")) is not None

    def replace(self, text: str, replacement: Callable[[str], str]) -> str:
        """Put something in place of every match that is not empty.

        Without RE2, what stands behind the first `LIMIT` characters was not looked at and is replaced as a whole.
        """
        if self._re2 is None:
            found = self._re.sub(lambda match: match[0] and replacement(match[0]), text[:LIMIT])
            return found if len(text) <= LIMIT else found + replacement(text[LIMIT:])
        data = text.encode("utf-8", "surrogatepass")
        pieces: list[str] = []
        done = 0
        for match in self._re2.finditer(data):
            begin, end = match.span()
            if end > begin:
                pieces += _text(data[done:begin]), replacement(_text(data[begin:end]))
                done = end
        return "".join([*pieces, _text(data[done:])]) if pieces else text


def linear_engine() -> ModuleType | None:
    """Give RE2's module, if it is installed."""
    try:
        import re2  # noqa: PLC0415 - an extra, and only who writes expressions needs it
    except ImportError:
        return None
    module: ModuleType = re2
    return module


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def _check(source: str) -> None:
    """Refuse what only one of the engines knows."""
    before = ""
    for match in _ELEMENT.finditer(source):
        element, at = match[0], match.start()
        if element[0] == "[":
            if "[:" in element[1:] and ":]" in element:
                raise PatternError("a class by name is not supported; write [A-Za-z] or the like", at)
            for escape in _ESCAPE.finditer(element):
                _check_element(escape[0], at + escape.start())
        else:
            _check_element(element, at)
        if element == "+" and before in {"*", "+", "?", "{}"}:
            raise PatternError("a possessive quantifier is not supported", at)
        before = "{}" if element[0] == "{" else element


def _check_element(element: str, at: int) -> None:
    if element[0] == "\\" and element[1:] in set("123456789"):
        raise PatternError("a backreference is not supported", at)
    for start, name in _REFUSED.items():
        if element.startswith(start):
            raise PatternError(f"{name} is not supported" if ";" not in name else f"there is no {name}", at)
    if element[:2] == "(?" and element[-1] in ":)" and not set(element[2:-1]) <= set("ims-"):
        raise PatternError(f"the flags {element[2:-1]} are not supported; i, m and s are", at)
    if element[0] == "{" and any(int(n[:9]) > _MOST_REPEATS for n in element[1:-1].split(",") if n.isdecimal()):
        raise PatternError(f"more than {_MOST_REPEATS} repeats are not supported", at)
    if element.startswith("{,"):
        raise PatternError("a repeat without its least is not supported; write {0,n}", at)
