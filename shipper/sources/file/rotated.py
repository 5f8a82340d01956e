"""Names that rotation gives: which log a file was, as far as its name tells."""

from __future__ import annotations

import re

from shipper.tailing.archive import SUFFIXES

_PACKED = "|".join(re.escape(suffix) for suffix in SUFFIXES)
_TIME = r"\d\d(?:[:.-]?\d\d(?:[:.-]?\d\d)?)?(?:[.,]\d{1,9})?(?:Z|[+-]\d\d:?\d\d)?"
_STAMP = (
    # 1, 00001, 1795168800; 20261120, 20261120-1795168800, 20261120T101500Z; 2026-11-20, 2026-11-20_10-15, 2026-11-20.1
    r"(?:\d{1,5}|\d{10}"
    r"|\d{8}(?:[-T_.]?\d{1,10}){0,2}Z?"
    rf"|\d{{4}}-\d\d(?:-\d\d)?(?:[T_.:-]{_TIME})?(?:[.-]\d{{1,4}})?)"
)
_ROTATED = re.compile(
    rf"(?P<base>.+?)(?:(?:[.-]{_STAMP}|_\d{{8}}(?:[-T_.]?\d{{1,10}})?|\.(?:old|bak|backup|prev|orig|save)|~)(?:{_PACKED})?|{_PACKED})",
    re.ASCII,
)
_NUMBER = re.compile(rf"[.-](\d{{1,5}})(?:{_PACKED})?$", re.ASCII)


def base_of(path: str) -> str | None:
    """Give the path of the log that a file of this name was, None for a name that rotation does not give."""
    match = _ROTATED.fullmatch(path)
    return match["base"] if match is not None and not match["base"].endswith("/") else None


def number_of(name: str) -> int:
    """Give the number that rotation by counting gave: the higher, the older; 0 without one."""
    match = _NUMBER.search(name)
    return int(match[1]) if match is not None else 0


def unpacked(path: str) -> str:
    """Give the name that a packed file had before, or the path itself."""
    return next((path.removesuffix(suffix) for suffix in SUFFIXES if path.endswith(suffix)), path)


def kin(name: str, log: str) -> bool:
    """Tell whether a file's name begins like a log's, so that it may be what became of it."""
    stem = log.split(".", 1)[0] or log
    return name.startswith(stem)
