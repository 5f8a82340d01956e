"""Durations and sizes as people write them: ``1h30m``, ``2MiB``."""

from __future__ import annotations

import re
from itertools import pairwise

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|[smhdw]))+")
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhdw])")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)(b?)", re.IGNORECASE)
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_LONG = (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1))
_MOST_DIGITS = 40
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


#: The longest duration, in seconds (a hundred years), and the largest size: what waits, timers and files can take.
LONGEST, LARGEST = 36_525 * 86_400.0, 1 << 62


def parse_duration(value: str | float) -> float:
    """Give seconds for ``30s``, ``10m``, ``1h30m``, ``7d``, ``250ms`` or a plain number of seconds.

    Units are ms, s, m, h, d and w (7 days). Raises ValueError for anything else, for negative values and for more than
    a hundred years.
    """
    seconds = _seconds(value)
    if seconds > LONGEST:
        raise ValueError("a duration cannot be longer than 100 years; write one such as 30s, 10m, 1h30m or 7d")
    return seconds


def _seconds(value: str | float) -> float:
    if isinstance(value, bool):
        raise ValueError(f"not a duration: {str(value).lower()}; write one such as 30s, 10m, 1h30m or 7d")  # noqa: TRY004 - promised
    if isinstance(value, int | float):
        if not 0 <= value < float("inf"):
            raise ValueError(f"a duration cannot be {value}; write one such as 30s, 10m, 1h30m or 7d")
        return float(value)
    text = value.strip()
    if _NUMBER.fullmatch(text):
        return float(text)
    if not _DURATION.fullmatch(text):
        raise ValueError(f"not a duration: {value!r}; write one such as 30s, 10m, 1h30m or 7d")
    return sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))


def parse_size(value: str | int) -> int:
    """Give bytes for ``2MiB`` (binary), ``1GB`` or ``10m`` (decimal) or a plain number of bytes.

    Without an ``i`` the units are decimal. Case does not matter. Raises ValueError for anything else.
    """
    if isinstance(value, bool):
        raise ValueError(f"not a size: {str(value).lower()}; write one such as 512KiB, 2MiB or 1GB")  # noqa: TRY004 - promised
    if isinstance(value, int):
        if not 0 <= value <= LARGEST:
            raise ValueError(f"a size cannot be {value}; write one such as 512KiB, 2MiB or 1GB")
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None or (match[3] and not match[2]) or len(match[1]) > _MOST_DIGITS:
        raise ValueError(f"not a size: {value!r}; write one such as 512KiB, 2MiB or 1GB")
    base = 1024 if match[3] else 1000
    size = round(float(match[1]) * float(base ** _POWERS[match[2].lower()]))
    if size > LARGEST:
        raise ValueError(f"not a size: {value!r} is more than any file can have; write one such as 2MiB or 1GB")
    return size


def format_size(size: int) -> str:
    """Write bytes as people read them, with binary units: ``0 B``, ``1.2 MiB``, ``2 GiB``."""
    power = max(0, min(4, (size.bit_length() - 1) // 10))
    number = f"{size / 1024**power:.1f}".removesuffix(".0")
    return f"{number} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def format_duration(seconds: float) -> str:
    """Write seconds as people read them, in two units at most: ``0.8s``, ``6m12s``, ``3d4h``."""
    if seconds < 10:
        return f"{seconds:.1f}".removesuffix(".0") + "s"
    rest = round(seconds)
    for (large, size), (small, part) in pairwise(_LONG):
        if rest >= size:
            count, more = divmod(rest // part, size // part)
            return f"{count}{large}" + (f"{more}{small}" if more else "")
    return f"{rest}s"


def counted(count: int, noun: str) -> str:
    """Write a number of things: ``1 file``, ``2 files``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
