"""Ids of a whole batch are those of its records, one by one."""

from __future__ import annotations

import random
import uuid

import pytest

from shipper.record import make_id, make_ids


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
