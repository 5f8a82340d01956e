"""A line's own time: reading it, and filling the digits below its precision."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

SECOND: Final = 1_000_000_000
#: Where a JSON line has its time, the first that is there and is one.
TIME_KEYS: Final = ("timestamp", "time", "ts", "@timestamp")
#: How far a line's own time may stand from Docker's and still be told by Docker's, in nanoseconds.
TOLERANCE: Final = 2 * SECOND
#: The first second after the last year that is believed, 2200.
_END: Final = 7_289_654_400
#: Entries a cache of times may hold before it is emptied.
_CACHE: Final = 4096

_ISO = re.compile(
    r"(\d{4})[-/](\d\d)[-/](\d\d)[T ](\d\d):(\d\d):(\d\d)(?:[.,](\d+))?\s?(Z|z|UTC|GMT|[+-]\d\d(?::?\d\d)?)?", re.ASCII
)
_CLF = re.compile(r"(\d\d)/([A-Z][a-z]{2})/(\d{4}):(\d\d):(\d\d):(\d\d) ?([+-])(\d\d)(\d\d)", re.ASCII)
_MONTHS: Final = {
    name: number
    for number, name in enumerate(
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"], 1
    )
}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Moment(NamedTuple):
    """A time as a line states it: nanoseconds since 1970, its precision, and whether it named its zone.

    ``unit_us`` is the precision in microseconds (1 s: 1,000,000), 0 when it is finer than one. A time without a
    zone is read as UTC.
    """

    ns: int
    unit_us: int
    zoned: bool


def fill(offset: int, unit_us: int, *, stamped: bool = False) -> int:
    """Give nanoseconds below a precision of ``unit_us`` from a line's place in its file.

    They keep lines of one coarse time in order and apart, the same on every replay. The place is counted in steps of
    64 bytes: a microsecond each in a plain file, so that order holds within 61 KiB for milliseconds and 61 MiB for
    seconds, also where microseconds are all that is kept. A ``stamped`` line has the time of Docker or CRI in its id,
    which tells the order within a microsecond; there a step is a nanosecond, order holds a thousand times as far, and
    lines that follow each other are close in a database's key, which is what makes storing them cheap.
    """
    step = offset >> 6
    return step % (unit_us * 1000) if stamped else step % unit_us * 1000 + (offset & 63) * 15


class Clocks:
    """Reads times in text. Keeps what it read, because neighbouring lines share their second."""

    def __init__(self) -> None:
        #: Nanoseconds at the start of ``YYYY-MM-DDTHH:MM:SS`` and of an access log's ``DD/Mon/YYYY:HH:MM:SS+ZZZZ``.
        self.starts: dict[str, int] = {}

    def second(self, text: str) -> int | None:
        """Give the nanoseconds of the ISO text ``YYYY-MM-DDTHH:MM:SS``, taken as UTC."""
        moment = self.iso(text)
        if moment is None or len(text) != 19:
            return None
        return self._keep(text, moment.ns)

    def access(self, text: str) -> int | None:
        """Give the nanoseconds of an access log's ``DD/Mon/YYYY:HH:MM:SS +ZZZZ``, the space optional."""
        found = self.starts.get(text)
        if found is not None:
            return found
        match = _CLF.fullmatch(text)
        if match is None:
            return None
        day, month, year, hour, minute, second, sign, zone_hours, zone_minutes = match.groups()
        offset = int(zone_hours) * 3600 + int(zone_minutes) * 60
        try:
            moment = datetime(int(year), _MONTHS[month], int(day), int(hour), int(minute), int(second), tzinfo=UTC)
        except (ValueError, KeyError):
            return None
        seconds = (moment - _EPOCH) // timedelta(seconds=1) - (offset if sign == "+" else -offset)
        return self._keep(text, seconds * SECOND) if 0 < seconds < _END else None

    def bracketed(self, text: str) -> int | None:
        """Give the same of ``[DD/Mon/YYYY:HH:MM:SS+ZZZZ]``."""
        return self.access(text[1:-1]) if text[:1] == "[" and text[-1:] == "]" else None

    def iso(self, text: str) -> Moment | None:
        """Read ISO 8601 and its relatives: space for T, comma or point, slashes, Z, +02:00, +0200, UTC or no zone."""
        match = _ISO.fullmatch(text)
        if match is None:
            return None
        year, month, day, hour, minute, second, digits, zone = match.groups()
        try:
            moment = datetime(int(year), int(month), int(day), int(hour), int(minute), int(second), tzinfo=UTC)
        except ValueError:
            return None
        seconds = (moment - _EPOCH) // timedelta(seconds=1)
        if zone and zone[0] in "+-":
            offset = int(zone[1:3]) * 3600 + int(zone[3:].lstrip(":") or 0) * 60
            seconds += -offset if zone[0] == "+" else offset
        if not 0 < seconds < _END:
            return None
        digits = (digits or "")[:9]
        return Moment(
            seconds * SECOND + int(digits.ljust(9, "0")),
            int(10 ** (6 - len(digits))) if len(digits) <= 6 else 0,
            bool(zone),
        )

    def read(self, value: Any) -> Moment | None:
        """Read a time attribute: ISO text, or a number of seconds, milliseconds, microseconds or nanoseconds."""
        if isinstance(value, str):
            if len(value) > 64:
                return None
            if value.isascii() and value.isdigit():
                return _epoch(int(value))
            return self.iso(value.strip())
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        return _epoch(value)

    def _keep(self, text: str, start: int) -> int:
        if len(self.starts) >= _CACHE:
            self.starts.clear()
        self.starts[text] = start
        return start


def _epoch(value: float) -> Moment | None:
    # The unit is told by the size: 1e11 seconds are the year 5138, 1e11 milliseconds 1973.
    unit = SECOND if value < 1e11 else 1_000_000 if value < 1e14 else 1000 if value < 1e17 else 1
    if not 0 < value < 1e20:
        return None
    if isinstance(value, int) or value.is_integer():
        ns, unit_us = int(value) * unit, unit // 1000
    else:
        # A float holds about microseconds of today, no more.
        ns, unit_us = round(value * (unit / 1000)) * 1000, 1
    return Moment(ns, unit_us, zoned=True) if 0 < ns < _END * SECOND else None
