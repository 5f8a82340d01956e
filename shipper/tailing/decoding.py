"""What the decoders of lines have in common: how much one batch holds, and what becomes of a line that is at fault.

Nothing that stands in a log may stop the reader. A block that cannot be decoded at once is taken line by line; a line
that still raises something goes on as it stands, marked with `FAULT`, and its neighbours are what they would have been.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from shipper.record import Batch

#: Records of one batch, at most: empty lines must not cost a hundred times what as many bytes of long lines cost.
BATCH_RECORDS = 8_000

#: Called with the path of a file and with what was raised for a line of it.
OnFault = Callable[[str, Exception], None]


class Decoded(NamedTuple):
    """What became of a block: ``batch`` is None when the joiner has its lines, ``size`` the bytes that were taken."""

    batch: Batch | None
    size: int


def ignore(path: str, error: Exception) -> None:
    """Take no note of a fault, for a decoder without a source."""
