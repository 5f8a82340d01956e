"""Level words and numbers, as applications write them, and the six levels they mean."""

from __future__ import annotations

import re
from typing import Any, Final

from shipper.record import SEVERITIES

INFO: Final = SEVERITIES["info"]
WARN: Final = SEVERITIES["warn"]
ERROR: Final = SEVERITIES["error"]
FATAL: Final = SEVERITIES["fatal"]

#: The names under which a structured line may state its level; the first that holds a known level counts.
LEVEL_KEYS: Final = ("level", "severity", "levelname", "lvl", "loglevel", "log.level")

_WORDS: Final = {
    "trace": "trace trc silly finest finer",
    "debug": "debug dbg verbose fine",
    "info": "info inf information informational notice note log http success default",
    "warn": "warn warning wrn",
    "error": "error err severe",
    "fatal": "fatal ftl critical crit alert emerg emergency panic dpanic",
}
#: Severity number of every level word, lower case.
WORDS: Final[dict[str, int]] = {word: SEVERITIES[level] for level, words in _WORDS.items() for word in words.split()}
#: Every spelling met in practice, and the numbers of pino and bunyan: one lookup on the hot path.
KNOWN: Final[dict[str | int, int]] = {
    spelling: number for word, number in WORDS.items() for spelling in (word, word.upper(), word.capitalize())
} | {(place + 1) * 10: number for place, number in enumerate(SEVERITIES.values())}
#: Words that, in capitals at the head of a plain line, are its level and nothing else.
BARE: Final = frozenset(["TRACE", "DEBUG", "INFO", "WARN", "WARNING", "ERROR", "FATAL", "CRITICAL"])

#: CSI and OSC sequences and two-byte escapes of ECMA-48: colours, cursor moves, terminal titles.
ANSI: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")

_LOWEST, _HIGHEST = 10, 100


def severity_of(value: Any) -> int | None:
    """Give the severity number that a level means in whatever form it was written, None if it means none.

    Numbers are pino's and bunyan's (10 trace to 60 fatal); one in between belongs to the level below it.
    """
    if isinstance(value, str):
        text = ANSI.sub("", value).strip().lower()
        found = WORDS.get(text)
        if found is not None or not (text.isascii() and text.isdigit() and len(text) <= len(str(_HIGHEST))):
            return found
        value = int(text)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not _LOWEST <= value <= _HIGHEST:
        return None
    return KNOWN[min(int(value) // 10 * 10, 60)]


def take_level(attributes: dict[str, Any]) -> int:
    """Remove a structured line's level from its attributes and give it; info if none of the keys states one."""
    for key in LEVEL_KEYS:
        if key in attributes:
            found = severity_of(attributes[key])
            if found is not None:
                del attributes[key]
                return found
    return INFO
