from __future__ import annotations

import pytest

from shipper.units import counted, format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("10m", 600),
        ("1h30m", 5400),
        ("7d", 604_800),
        ("250ms", 0.25),
        ("1.5h", 5400),
        (5, 5),
        ("5", 5),
        (0, 0),
    ],
)
def test_durations(text: str | int, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-1s", "1x", "s", "1h 30m", -1, True, float("nan"), float("inf")])
def test_not_a_duration(text: str | float) -> None:
    with pytest.raises(ValueError, match=r"30s, 10m, 1h30m or 7d"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2MiB", 2 << 20),
        ("10m", 10_000_000),
        ("1GB", 10**9),
        ("1.5KiB", 1536),
        ("512", 512),
        (7, 7),
        ("3 kb", 3000),
        ("1Ti", 1 << 40),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "big", "-1", "1iB", "1XB", "1,5MB", -1, False])
def test_not_a_size(text: str | int) -> None:
    with pytest.raises(ValueError, match=r"512KiB, 2MiB or 1GB"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"), (1, "1 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (88_080_384, "84 MiB"),
        (2 << 30, "2 GiB"), (5 << 50, "5120 TiB"),
    ],
)  # fmt: skip
def test_sizes_are_written_for_people(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"), (0.84, "0.8s"), (9, "9s"), (59.6, "1m"), (60, "1m"), (372, "6m12s"), (3600, "1h"), (3725, "1h2m"),
        (273_600, "3d4h"), (86_400, "1d"),
    ],
)  # fmt: skip
def test_durations_are_written_for_people(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_things_are_counted_for_people() -> None:
    assert [counted(count, "file") for count in (0, 1, 2)] == ["0 files", "1 file", "2 files"]
