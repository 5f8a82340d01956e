"""Times as people write them."""

from __future__ import annotations

from zoneinfo import ZoneInfo

import pytest

from shipper.errors import ConfigError
from shipper.reading.timespan import parse_time, parse_zone
from shipper.render import rfc3339

BERLIN = ZoneInfo("Europe/Berlin")
#: A Sunday, 23:56:18 in Berlin.
NOW = 1_795_388_178_000_000_005


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("now", "2026-11-22T22:56:18.000000005Z"),
        ("2h", "2026-11-22T20:56:18.000000005Z"),
        ("-2h", "2026-11-22T20:56:18.000000005Z"),
        ("2h ago", "2026-11-22T20:56:18.000000005Z"),
        ("2H AGO", "2026-11-22T20:56:18.000000005Z"),
        ("1h 30m ago", "2026-11-22T21:26:18.000000005Z"),
        ("1d12h", "2026-11-21T10:56:18.000000005Z"),
        ("1w", "2026-11-15T22:56:18.000000005Z"),
        ("250ms", "2026-11-22T22:56:17.750000005Z"),
        ("now-15m", "2026-11-22T22:41:18.000000005Z"),
        ("now - 15m", "2026-11-22T22:41:18.000000005Z"),
        ("now+1h", "2026-11-22T23:56:18.000000005Z"),
        ("today", "2026-11-21T23:00:00.000000000Z"),
        ("today 08:15", "2026-11-22T07:15:00.000000000Z"),
        ("yesterday", "2026-11-20T23:00:00.000000000Z"),
        ("yesterday 18:00", "2026-11-21T17:00:00.000000000Z"),
        ("friday", "2026-11-19T23:00:00.000000000Z"),
        ("Friday at 09:30", "2026-11-20T08:30:00.000000000Z"),
        ("sunday", "2026-11-21T23:00:00.000000000Z"),
        ("last sunday", "2026-11-14T23:00:00.000000000Z"),
        ("14:30", "2026-11-22T13:30:00.000000000Z"),
        ("23:59:59.5", "2026-11-21T22:59:59.500000000Z"),
        ("23:30Z", "2026-11-21T23:30:00.000000000Z"),
        ("2026-11-22", "2026-11-21T23:00:00.000000000Z"),
        ("2026-07-01", "2026-06-30T22:00:00.000000000Z"),
        ("2026-11-22T14:30", "2026-11-22T13:30:00.000000000Z"),
        ("2026-11-22 14:30:05.123", "2026-11-22T13:30:05.123000000Z"),
        ("2026-11-22T14:30:05.123456789Z", "2026-11-22T14:30:05.123456789Z"),
        ("2026-11-22T14:30+01:00", "2026-11-22T13:30:00.000000000Z"),
        ("2026-11-22T14:30-0530", "2026-11-22T20:00:00.000000000Z"),
        ("2026-11-22T14:30 America/New_York", "2026-11-22T19:30:00.000000000Z"),
        ("1795388178", "2026-11-22T22:56:18.000000000Z"),
        ("1795388178.5", "2026-11-22T22:56:18.500000000Z"),
        ("1795388178123", "2026-11-22T22:56:18.123000000Z"),
        ("1795388178123456", "2026-11-22T22:56:18.123456000Z"),
        ("1795388178123456789", "2026-11-22T22:56:18.123456789Z"),
        ("2026-10-25T02:30+02:00", "2026-10-25T00:30:00.000000000Z"),
    ],
)
def test_every_form(text: str, expected: str) -> None:
    assert rfc3339(parse_time(text, now_ns=NOW, zone=BERLIN)) == expected


FORMS = "write one such as 2h, now-15m, yesterday 18:00, 14:30, 2026-11-22T14:30 or seconds since 1970"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tomorrow", f"cannot read the time 'tomorrow'; {FORMS}"),
        ("", f"cannot read the time ''; {FORMS}"),
        ("5", f"cannot read the time '5'; {FORMS}"),
        (
            "2026-11-22 Mars/Phobos",
            "unknown time zone 'Mars/Phobos'; write one such as UTC, +01:00 or Europe/Berlin",
        ),
        (
            "2026-10-25 02:30",
            (
                "the time '2026-10-25 02:30' came twice when the clock went back;"
                " write 2026-10-25T02:30:00+02:00 or 2026-10-25T02:30:00+01:00"
            ),
        ),
        (
            "2026-03-29 02:30",
            "the time '2026-03-29 02:30' was skipped when the clock went forward; write one with an offset",
        ),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_time(text, now_ns=NOW, zone=BERLIN)
    assert str(raised.value) == message


@pytest.mark.parametrize("text", ["2026-13-01", "2026-02-30", "25:00", "12:61"])
def test_what_no_calendar_has(text: str) -> None:
    with pytest.raises(ConfigError, match=f"^cannot read the time '{text}': .*; write one such as"):
        parse_time(text, now_ns=NOW, zone=BERLIN)


def test_the_local_zone_is_meant_where_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    assert rfc3339(parse_time("2026-07-01", now_ns=NOW)) == "2026-06-30T22:00:00.000000000Z"


def test_zone_names() -> None:
    assert parse_zone("Europe/Berlin") == BERLIN
    assert str(parse_zone("UTC")) == "UTC"
    with pytest.raises(ConfigError, match="unknown time zone 'Nowhere'"):
        parse_zone("Nowhere")
