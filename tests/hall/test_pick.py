"""Items of a column by their places."""

from __future__ import annotations

from typing import Any

import pytest

from shipper.record import pick


@pytest.mark.parametrize("rows", [[2, 0, 2], [], range(3), range(1, 2), range(2, -1, -1), (1, 0), [-1]])
def test_columns_are_picked_from_by_any_rows(rows: Any) -> None:
    assert pick(["a", "b", "c"], rows) == [["a", "b", "c"][row] for row in rows]


@pytest.mark.parametrize("rows", [[3], range(4), range(2, 4)])
def test_a_row_that_is_not_there_is_a_fault(rows: Any) -> None:
    with pytest.raises(IndexError):
        pick(["a", "b", "c"], rows)
