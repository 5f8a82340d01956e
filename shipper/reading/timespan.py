"""Times as people write them, and as we write them.

Every time flag takes the same forms: ``2h``, ``-2h``, ``2h ago``, ``1d12h``, ``now``, ``now-15m``, ``today``,
``yesterday 18:00``, ``friday``, ``14:30`` (today, else yesterday), ``2026-11-22``,
``2026-11-22T14:30[:05[.123]][Z|+01:00|Europe/Berlin]`` (a space may stand for the T), and a bare number of seconds,
milliseconds, microseconds or nanoseconds since 1970. Without a zone the local one is meant.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta, tzinfo

from shipper.errors import ConfigError
from shipper.units import parse_duration

_SECOND = 1_000_000_000
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_FORMS = "write one such as 2h, now-15m, yesterday 18:00, 14:30, 2026-11-22T14:30 or seconds since 1970"
_AGO = re.compile(r"-?\s*((?:\d+(?:\.\d+)?(?:ms|[smhdw])\s*)+)(?:\s*ago)?", re.IGNORECASE)
_FROM_NOW = re.compile(r"now(?:\s*([+-])\s*((?:\d+(?:\.\d+)?(?:ms|[smhdw]))+))?", re.IGNORECASE)
_EPOCH = re.compile(r"(\d{9,19})(?:\.(\d{1,9}))?")
_CLOCK = r"(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:[.,](?P<fraction>\d{1,9}))?)?"
_ZONE = r"(?:\s*(?P<zone>Z|z|UTC|[+-]\d{2}:?\d{2}|[A-Za-z]+(?:/[A-Za-z0-9_+-]+)+))?"
_NAMED = re.compile(
    rf"(?P<day>today|yesterday|(?:last\s+)?(?:{'|'.join(_DAYS)}))(?:(?:\s+|\s+at\s+){_CLOCK})?{_ZONE}", re.IGNORECASE
)
_TIME_ONLY = re.compile(_CLOCK + _ZONE)
_DATE = re.compile(rf"(?P<date>\d{{4}}-\d{{2}}-\d{{2}})(?:[Tt\s]{_CLOCK})?{_ZONE}")


def parse_time(text: str, *, now_ns: int, zone: tzinfo | None = None) -> int:
    """Give nanoseconds since 1970 UTC for a time as people write it; see the module for the forms.

    ``now_ns`` is the one clock of the command; ``zone`` is meant where the text names none, the machine's own by
    default. Raises ConfigError for anything else, for times that a clock change skipped, and for those it made
    ambiguous, with both readings.
    """
    word = text.strip()
    if match := _AGO.fullmatch(word):
        return now_ns - _nanoseconds(re.sub(r"\s+", "", match[1]))
    if match := _FROM_NOW.fullmatch(word):
        delta = _nanoseconds(match[2]) if match[2] else 0
        return now_ns + (delta if match[1] == "+" else -delta)
    if match := _EPOCH.fullmatch(word):
        return _epoch(match[1], match[2] or "", text)
    for form, day_of in ((_NAMED, _named_day), (_TIME_ONLY, _today), (_DATE, _written_day)):
        match = form.fullmatch(word)
        if match is None:
            continue
        where = _zone(match["zone"], zone, text)
        now = datetime.fromtimestamp(now_ns // _SECOND, where)
        try:
            day = day_of(match, now.date())
            clock = time(int(match["hour"] or 0), int(match["minute"] or 0), int(match["second"] or 0))
        except ValueError as error:
            raise ConfigError(f"cannot read the time {text!r}: {error}; {_FORMS}") from error
        fraction = int((match["fraction"] or "").ljust(9, "0"))
        moment = _moment(datetime.combine(day, clock), where, text) * _SECOND + fraction
        if form is _TIME_ONLY and moment > now_ns:
            moment = _moment(datetime.combine(day - timedelta(days=1), clock), where, text) * _SECOND + fraction
        return moment
    raise ConfigError(f"cannot read the time {text!r}; {_FORMS}")


def parse_zone(name: str) -> tzinfo:
    """Give the time zone ``UTC``, ``local``, ``+01:00`` or ``Europe/Berlin``. Raises ConfigError."""
    if name.lower() == "local":
        return local_zone()
    zone = _zone(name, None, name)
    assert zone is not None
    return zone


def local_zone() -> tzinfo:
    """Give the machine's zone with all its clock changes; a fixed offset where the system names none."""
    import os  # noqa: PLC0415 - start-up
    from pathlib import Path  # noqa: PLC0415
    from zoneinfo import ZoneInfo  # noqa: PLC0415 - 10 ms, and only needed for dates

    name = os.environ.get("TZ", "").lstrip(":")
    try:
        if name:
            return ZoneInfo(name)
        with Path("/etc/localtime").open("rb") as file:
            return ZoneInfo.from_file(file, key="local")
    except (OSError, ValueError, KeyError):
        return datetime.now(UTC).astimezone().tzinfo or UTC


def _nanoseconds(duration: str) -> int:
    return round(parse_duration(duration.lower()) * _SECOND)


def _epoch(digits: str, fraction: str, text: str) -> int:
    """Tell the unit by the size: each covers the years from 1973 to 5138 in seconds, then a thousandth each."""
    length = len(digits)
    power = 9 if length <= 11 else 6 if length <= 14 else 3 if length <= 17 else 0
    if len(fraction) > power:
        raise ConfigError(f"cannot read the time {text!r}: it is finer than a nanosecond; {_FORMS}")
    return int(digits) * int(10**power) + (int(fraction.ljust(power, "0")) if fraction else 0)


def _named_day(match: re.Match[str], today: date) -> date:
    name = match["day"].lower().split()[-1]
    if name in {"today", "yesterday"}:
        return today - timedelta(days=name == "yesterday")
    back = (today.weekday() - _DAYS.index(name)) % 7
    if back == 0 and " " in match["day"]:
        back = 7
    return today - timedelta(days=back)


def _today(match: re.Match[str], today: date) -> date:  # noqa: ARG001 - one shape for three forms
    return today


def _written_day(match: re.Match[str], today: date) -> date:  # noqa: ARG001 - one shape for three forms
    return date.fromisoformat(match["date"])


def _zone(name: str | None, default: tzinfo | None, text: str) -> tzinfo:
    if name is None:
        return default or local_zone()
    if name.upper() in {"Z", "UTC"}:
        return UTC
    if name[0] in "+-":
        try:
            return datetime.strptime(name, "%z").tzinfo or UTC
        except ValueError as error:
            raise ConfigError(f"unknown time zone {name!r} in {text!r}; write one such as +01:00") from error
    from zoneinfo import ZoneInfo  # noqa: PLC0415 - 10 ms, and only needed for named zones

    try:
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"unknown time zone {name!r}; write one such as UTC, +01:00 or Europe/Berlin") from error


def _moment(wall: datetime, zone: tzinfo, text: str) -> int:
    """Give the seconds since 1970 of a wall clock time, refusing those that a clock change skipped or doubled."""
    first, second = (wall.replace(tzinfo=zone, fold=fold) for fold in (0, 1))
    if first.utcoffset() != second.utcoffset():
        back = first.astimezone(UTC).astimezone(zone).replace(tzinfo=None, fold=0)
        if back != wall:
            raise ConfigError(f"the time {text!r} was skipped when the clock went forward; write one with an offset")
        readings = " or ".join(reading.isoformat() for reading in (first, second))
        raise ConfigError(f"the time {text!r} came twice when the clock went back; write {readings}")
    return int(first.timestamp())
