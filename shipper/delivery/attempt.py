"""What becomes of one batch at one sink: the policy, once, for the delivery and for ``shipper dead-letters retry``.

An `Attempt` is a list of what is still to be written; each `Attempt.write` takes the next part of it to the sink, once,
and notes what became of its rows. Who runs it decides how to wait, and when it has had enough. The rule, by what the
sink raises:

=====================================================  ==============================================================
RetryableError, ParkedError                            the part waits and is written again, without limit
PartialError                                           every row has an error of its own; the others were taken
PermanentError                                         bisected; a record that stands alone is refused
DroppedError                                           counted, neither written again nor kept
`RECORD`: ValueError, TypeError, LookupError,          a record tripped the sink's own code: as PermanentError, with the
AttributeError, ArithmeticError, RecursionError,       code ``bug``
UnicodeError, MemoryError, AssertionError ...
`ELSEWHERE`: OSError, EOFError                         the network, the disk: as RetryableError
any other Exception                                    in doubt: as RetryableError `DOUBTS` times, then as a bug
=====================================================  ==============================================================

Nothing here recurses: a batch may fail in part as often as it likes.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from shipper.errors import DroppedError, PartialError, PermanentError, RetryableError, SinkError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shipper.record import Batch
    from shipper.sink import Sink

#: What a record can make a sink's own code raise. A sink that runs out of memory or stack may do better with less.
RECORD = (
    ValueError,  # UnicodeError is one
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    MemoryError,
    AssertionError,
    BufferError,
    NotImplementedError,
    msgspec.MsgspecError,
)
#: What no record can be blamed for.
ELSEWHERE = (OSError, EOFError)
#: How often, for one batch, an exception that could be either is taken for a fault that passes.
DOUBTS = 5


class Step(msgspec.Struct):
    """What one write did: how many records were taken, which rows were refused now, how many were dropped, by code.

    ``wait`` says that what is left must wait, and why; ``bug`` is what the sink raised against its contract.
    """

    taken: int = 0
    refused: list[int] = []
    dropped: dict[str, int] = {}
    wait: RetryableError | None = None
    bug: Exception | None = None


class Attempt:
    """One batch on its way to a sink. ``refused`` maps rows of the batch to their errors."""

    def __init__(self, batch: Batch, *, doubts: int = DOUBTS) -> None:
        self.batch = batch
        self.taken = 0
        self.refused: dict[int, SinkError] = {}
        self._doubts = doubts
        # The last is written next.
        self._parts: list[Sequence[int]] = [range(len(batch))] if len(batch) else []

    @property
    def done(self) -> bool:
        """Whether every record is taken, refused or dropped."""
        return not self._parts

    def left(self) -> list[int]:
        """Give the rows of which nothing is known yet, in order."""
        return sorted(row for rows in self._parts for row in rows)

    def take_back(self) -> None:
        """Forget the refusals: those records are written again, together with what is left."""
        self._parts = [sorted([*self.left(), *self.refused])]
        self.refused.clear()

    def write(self, sink: Sink) -> Step:
        """Write the next part, once. Raises nothing that a sink may raise."""
        rows = self._parts.pop()
        whole = len(rows) == len(self.batch)
        error: Exception
        try:
            sink.write(self.batch if whole else self.batch.select(rows))
        except Exception as raised:  # noqa: BLE001 - whatever a sink raises costs a record or time, never the thread
            error = raised
        else:
            return self._took(len(rows))
        # Outside of the handler: what a part is refused for has nothing to do with the refusal of the whole.
        return self._judge(rows, error)

    def _took(self, count: int) -> Step:
        self.taken += count
        return Step(taken=count)

    def _judge(self, rows: Sequence[int], error: Exception) -> Step:
        if isinstance(error, PartialError):
            if _within(error, len(rows)):
                return self._judge_rows(rows, error)
            error = ValueError(f"the sink named rows that are not in its batch of {len(rows)}: {error}")
        if isinstance(error, PermanentError):
            return self._split(rows, error)
        if isinstance(error, DroppedError):
            return Step(dropped={error.code: len(rows)})
        if isinstance(error, RetryableError):
            self._parts.append(rows)
            return Step(wait=error)
        blamed = isinstance(error, RECORD)
        if not blamed and not isinstance(error, ELSEWHERE):
            blamed, self._doubts = self._doubts <= 0, self._doubts - 1
        if blamed:
            step = self._split(rows, PermanentError(describe(error), code="bug"))
        else:
            self._parts.append(rows)
            step = Step(wait=RetryableError(describe(error), code=type(error).__name__))
        step.bug = error
        return step

    def _split(self, rows: Sequence[int], error: SinkError) -> Step:
        if len(rows) == 1:
            self.refused[rows[0]] = error
            return Step(refused=[rows[0]])
        middle = len(rows) // 2
        self._parts += (rows[middle:], rows[:middle])
        return Step()

    def _judge_rows(self, rows: Sequence[int], error: PartialError) -> Step:
        dropped: Counter[str] = Counter()
        refused: list[int] = []
        again: list[int] = []
        wait: RetryableError | None = None
        for index, failure in sorted(error.failed.items()):
            if isinstance(failure, RetryableError):
                again.append(rows[index])
                wait = failure
            elif isinstance(failure, DroppedError):
                dropped[failure.code] += 1
            else:
                refused.append(rows[index])
                self.refused[rows[index]] = failure
        apart = [(([rows[index] for index in group]), refusal) for group, refusal in error.together]
        taken = len(rows) - len(error.failed) - sum(len(group) for group, _ in apart)
        for group, refusal in reversed(apart):
            if group:
                refused += self._split(group, refusal).refused
        if again:
            self._parts.append(again)
        step = self._took(taken) if taken else Step()
        step.dropped, step.refused, step.wait = dict(dropped), refused, wait
        return step


def _within(error: PartialError, count: int) -> bool:
    named = [*error.failed, *(index for group, _ in error.together for index in group)]
    return len(set(named)) == len(named) and all(0 <= index < count for index in named)


def describe(error: BaseException) -> str:
    """Say what was raised, in one text."""
    return f"{type(error).__name__}: {error}"
