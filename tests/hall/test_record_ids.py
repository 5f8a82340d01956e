"""Ids of a whole batch are those of its records, one by one."""

from __future__ import annotations

import random
import uuid

import pytest

from shipper.parse.times import Clocks
from shipper.record import Batch, Resource, make_id, make_ids
from shipper.render import Kind, Part, render, rfc3339


def test_ids_made_together_are_the_ids_made_one_by_one() -> None:
    rng = random.Random(7)
    stamps = [rng.randrange(-(10**18), 10**19) for _ in range(500)] + [0, 2**63, 1_763_769_600_123_456_789]
    values = [rng.getrandbits(128) for _ in stamps[:-2]] + [0, 2**128 - 1]
    ids = make_ids(stamps, values)
    assert ids == [make_id(stamp, value) for stamp, value in zip(stamps, values, strict=True)]
    assert {uuid.UUID(text).version for text in ids} == {8}
    assert make_ids([], []) == []


def test_ids_sort_by_time_to_a_quarter_of_a_microsecond_whatever_the_hash() -> None:
    rng = random.Random(8)
    stamps = [1_763_769_600_999_000_000 + number * 250 for number in range(9000)]
    ids = make_ids(stamps, [rng.getrandbits(128) for _ in stamps])
    assert ids == sorted(ids)


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="2 stamps for 1 hashes"):
        make_ids([1, 2], [3])


@pytest.mark.parametrize(
    "stamp", [10**40, -(10**40), 2**63, -(2**63) - 1, 2**63 * 10**6, 253_402_300_799 * 10**9, -1, 0]
)
def test_a_time_that_nobody_means_has_an_id(stamp: int) -> None:
    """What a damaged file says: forty digits of a second, the year 9999."""
    stamps, values = [stamp, 1_795_348_800 * 10**9], [7, 8]
    ids = Batch(stamps, stamps, values, ["", ""], [Resource("s", {})] * 2, [0, 0]).ids
    assert (
        ids == make_ids(stamps, values) == [make_id(stamp, value) for stamp, value in zip(stamps, values, strict=True)]
    )
    assert all(len(one) == 36 for one in ids)


@pytest.mark.parametrize(
    ("stamp", "date"),
    [
        (10**40, "9999-12-31T23:59:59."), (-(10**40), "0001-01-01T00:00:00."), (2**63, "2262-04-11T23:47:16."),
        (-62_135_596_801 * 10**9, "0001-01-01T00:00:00."), (253_402_300_800 * 10**9, "9999-12-31T23:59:59."),
    ],
)  # fmt: skip
def test_a_time_that_no_calendar_has_is_written(stamp: int, date: str) -> None:
    parts: list[Part] = [(kind, [stamp]) for kind in (Kind.RFC3339, Kind.TICKS, Kind.CREATED)]
    assert render(parts, 0, 1).decode().startswith(date)
    assert rfc3339(stamp).startswith(date)


@pytest.mark.parametrize(
    "value",
    [
        10**30, -5, 1e300, float("inf"), float("nan"), "9" * 60, "9" * 5000, "2026-13-45T99:99:99Z", "9999-12-31T23:59:59Z",
        "0000-00-00T00:00:00Z", "2026-11-22T12:00:00." + "9" * 40 + "Z", "2026-11-22T12:00:00+99:99", "٢٠٢٦-11-22T12:00:00Z",
        True, None, [], {},
    ],
)  # fmt: skip
def test_a_time_of_a_line_that_cannot_be_is_no_time(value: object) -> None:
    moment = Clocks().read(value)
    assert moment is None or 0 < moment.ns < 7_289_654_400 * 10**9


@pytest.mark.parametrize(
    "text",
    ["99/Nov/2026:12:00:00 +0000", "22/Xxx/2026:12:00:00 +0000", "22/Nov/9999:12:00:00 +9999", "[]", "", "\0" * 26],
)
def test_a_time_of_an_access_log_that_cannot_be_is_no_time(text: str) -> None:
    assert Clocks().access(text) is None
    assert Clocks().bracketed(f"[{text}]") is None
