"""What became of a batch that went out in several requests, collected for the delivery."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shipper.errors import PartialError, PermanentError, RetryableError, SinkError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Outcome:
    """Collects failures by row of one batch of ``count`` records; every row not named was taken.

    After `later` a sink should send nothing more of the batch: `skip` the rest, so that a backend that is away is
    not asked again and again, and order holds.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._failed: dict[int, SinkError] = {}
        self._together: list[tuple[Sequence[int], PermanentError]] = []
        #: The failure that stands in the way of all further requests of this batch, if any.
        self.stopped: RetryableError | None = None

    def refuse(self, row: int, error: SinkError) -> None:
        """One row failed by itself."""
        self._failed[row] = error

    def fail(self, rows: Sequence[int], error: SinkError) -> None:
        """A whole request failed. What may be taken later stops the batch; what never will is bisected."""
        if isinstance(error, RetryableError):
            self.stopped = error
            self.skip(rows)
        elif isinstance(error, PermanentError) and len(rows) > 1:
            self._together.append((rows, error))
        else:
            self._failed.update(dict.fromkeys(rows, error))

    def skip(self, rows: Sequence[int]) -> None:
        """Rows that were not sent because of ``stopped``."""
        assert self.stopped is not None
        self._failed.update(dict.fromkeys(rows, self.stopped))

    def close(self) -> None:
        """Raise what the delivery must know: nothing if all was taken, one error if it is that of all rows.

        Raises SinkError.
        """
        if self.stopped is not None and len(self._failed) == self._count:
            if all(error is self.stopped for error in self._failed.values()):
                raise self.stopped
        elif len(self._together) == 1 and len(self._together[0][0]) == self._count:
            raise self._together[0][1]
        if self._failed or self._together:
            raise PartialError(self._failed, together=self._together)
