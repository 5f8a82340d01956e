"""The buffer: what waits for one sink, in memory or on disk, in order.

Everything pending is in one of two places. In *memory* mode it is a short queue of batches whose lines are not yet
safe: after a crash they are read again from their files. In *disk* mode all of it is in the spill, and safe. The
switch to disk moves what is in memory first, so order holds; the switch back happens when the spill is empty.

``put`` never waits: the reader asks ``room`` first and lets the file be the queue. A put without room spills, which
the reader only does when waiting would lose a file or hold back another sink.
"""

from __future__ import annotations

import threading
from collections import deque
from itertools import repeat
from typing import TYPE_CHECKING

import msgspec

from shipper.delivery.spill import Spill
from shipper.state.checkpoint import Cursor
from shipper.telemetry.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shipper.clock import Clock
    from shipper.record import Batch, Span

log = get_logger("buffer")

#: Bytes of source text that a record counts as, at least.
RECORD = 48


class _Taken(msgspec.Struct):
    """A batch that was peeked and not yet acked: its records, and the cursor behind it once it is on disk.

    ``dropped`` says that its copy on disk was dropped: it is lost only if it is never acked.
    """

    records: int
    cursor: Cursor | None = None
    dropped: bool = False


class Buffer:
    """Pending batches of one sink. The reader puts, one delivery thread peeks and acks.

    ``max_memory`` is in bytes of source text, of which those of parsed batches count twice: their records take two to
    three times the memory of lines alone. A record counts as `RECORD` bytes of text at least. ``on_safe`` gets the spans of batches that were spilled; ``on_cursor``
    the spill's cursor whenever it moves.
    """

    def __init__(
        self,
        spill: Spill,
        *,
        clock: Clock,
        max_memory: int,
        drop_oldest: bool,
        on_safe: Callable[[Sequence[Span]], None],
        on_cursor: Callable[[Cursor], None],
        on_dropped: Callable[[int], None],
    ) -> None:
        self._spill = spill
        self._clock = clock
        self._max_memory = max_memory
        self._drop_oldest = drop_oldest
        self._on_safe = on_safe
        self._on_cursor = on_cursor
        self._on_dropped = on_dropped
        self._memory: deque[Batch] = deque()
        self._memory_bytes = 0
        self._disk = not spill.empty
        self._taken: list[_Taken] = []
        self._condition = threading.Condition()
        self._closed = False
        self._abandoned = False
        self._waiting_since = clock.monotonic()
        #: Called without the lock whenever room appears, so that a waiting reader reads on.
        self.on_room: Callable[[], None] = lambda: None

    @property
    def memory_bytes(self) -> int:
        """Bytes of source text in memory."""
        return self._memory_bytes

    @property
    def spill_bytes(self) -> int:
        """Bytes on disk."""
        return self._spill.size

    @property
    def spill_limit(self) -> int:
        """The most bytes on disk."""
        return self._spill.limit

    def room(self) -> bool:
        """Tell whether a batch can be put in memory."""
        return not self._disk and self._memory_bytes < self._max_memory

    def can_spill(self) -> bool:
        """Tell whether a batch without room could go to disk."""
        return self._drop_oldest or not self._spill.full

    def empty(self) -> bool:
        """Tell whether nothing is pending, batches in flight included."""
        return not self._disk and not self._memory

    def waiting_seconds(self) -> float:
        """Seconds since something was last acked, or since the oldest pending batch came; 0 if nothing is pending."""
        return 0.0 if self.empty() else self._clock.monotonic() - self._waiting_since

    def put(self, batch: Batch, *, safe: bool = False) -> None:
        """Add a batch at the end; on disk when there is no room or when it must be ``safe`` at once.

        Raises OSError when it had to be spilled and could not be; then nothing changed and the batch is still the
        caller's.
        """
        with self._condition:
            if self.empty():
                self._waiting_since = self._clock.monotonic()
            if not self._abandoned and (safe or not self.room()):
                if not self._disk:
                    self._move_to_disk()
                self._append(batch)
                self._disk = True
                if batch.span is not None:
                    self._on_safe([batch.span])
            else:
                self._memory.append(batch)
                self._memory_bytes += _weight(batch)
            self._condition.notify_all()

    def spill_all(self) -> None:
        """Move everything pending to disk, so that it is safe. Raises OSError; then it stays in memory."""
        with self._condition:
            if not self._disk and self._memory:
                self._move_to_disk()

    def _move_to_disk(self) -> None:
        taken = self._taken
        lost = 0
        try:
            for number, batch in enumerate(self._memory):
                lost += self._make_room()
                cursor = self._spill.append(batch)
                # What is in the delivery's hands is at the head of the memory.
                if number < len(taken):
                    taken[number].cursor = cursor
        except OSError:
            # All is still in memory: what reached the disk would be delivered twice, and nothing was dropped.
            self._spill.clear()
            self._taken = [_Taken(one.records) for one in taken]
            raise
        spans = [batch.span for batch in self._memory if batch.span is not None]
        self._memory.clear()
        self._memory_bytes = 0
        self._disk = not self._spill.empty
        self._on_cursor(self._spill.cursor)
        self._on_safe(spans)
        self._tell_dropped(lost)

    def _append(self, batch: Batch) -> None:
        began = self._spill.empty
        lost = self._make_room()
        if lost:
            self._on_cursor(self._spill.cursor)
            self._tell_dropped(lost)
        self._spill.append(batch)
        if began:
            self._on_cursor(self._spill.cursor)

    def _make_room(self) -> int:
        """Drop the oldest batches while the spill is full, if the user wants that; give the number of records lost."""
        lost = 0
        while self._drop_oldest and self._spill.full and not self._spill.empty:
            lost += self._spill.drop_oldest()
            for taken in self._taken:
                # The delivery still holds it and may yet deliver it.
                if taken.cursor is not None and not taken.dropped and taken.cursor.place <= self._spill.cursor.place:
                    taken.dropped = True
                    lost -= taken.records
        return lost

    def _tell_dropped(self, records: int) -> None:
        if records > 0:
            log.error("spill is full: oldest records dropped, as when_full says", records=records)
            self._on_dropped(records)

    def peek(self, *, records: int, size: int, timeout: float) -> list[Batch]:
        """Give the oldest pending batches, at most so many records and bytes, at least one batch if there is any.

        Waits up to ``timeout`` seconds for a first one. What was peeked stays pending until ``ack``. At most half of
        the memory is given at a time: while the sink works on one half the reader fills the other.
        """
        memory = self._max_memory // 2
        taken: list[Batch] = []
        cursors: list[Cursor | None] = []
        with self._condition:
            self._condition.wait_for(lambda: not self.empty() or self._closed, timeout)
            for batch, cursor in self._spill.batches() if self._disk else zip(self._memory, repeat(None)):
                if taken and not _fits(batch, taken, count=records, size=size, memory=memory):
                    break
                taken.append(batch)
                cursors.append(cursor)
                records -= len(batch)
                size -= batch.size
                memory -= _weight(batch)
                if records <= 0 or size <= 0 or memory <= 0:
                    break
            # What was peeked before and not acked is given again, but for what was dropped since.
            self._give_up_taken()
            self._taken = [_Taken(len(batch), cursor) for batch, cursor in zip(taken, cursors, strict=True)]
            if self._disk and not taken:
                # What is left is damaged, and was reported by the spill.
                self._spill.give_up()
                self._disk = False
                self._on_cursor(self._spill.cursor)
        return taken

    def ack(self, on_acked: Callable[[Sequence[Span], Cursor | None], None]) -> None:
        """Everything peeked was dealt with: remove it.

        ``on_acked`` gets the spans that thereby became safe and the spill's cursor if it moved, in one call, so that
        no save of the checkpoint can fall between the two.
        """
        with self._condition:
            if self._abandoned:
                return
            self._waiting_since = self._clock.monotonic()
            was_full = not self.room()
            if self._disk:
                kept = [taken for taken in self._taken if taken.cursor is not None and not taken.dropped]
                if kept and kept[-1].cursor is not None:
                    self._spill.consume(kept[-1].cursor, delivered=sum(taken.records for taken in kept))
                self._disk = not self._spill.empty
                cursor = self._spill.cursor
                self._taken = []
                on_acked([], cursor)
            else:
                done = [self._memory[number] for number in range(len(self._taken))]
                # Should this raise, all is still pending and given again.
                on_acked([batch.span for batch in done if batch.span is not None], None)
                for batch in done:
                    self._memory.popleft()
                    self._memory_bytes -= _weight(batch)
                self._taken = []
            room = was_full and self.room()
        if room:
            self.on_room()

    def wake(self) -> None:
        """Make a waiting ``peek`` return."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    def close(self) -> None:
        """Close the spill's files and leave them alone from now on.

        A thread that outlives its pipeline (a write that hangs) must not touch what the next pipeline has opened.
        """
        with self._condition:
            self._abandoned = True
            self._spill.close()
            self._give_up_taken()

    def _give_up_taken(self) -> None:
        lost = sum(taken.records for taken in self._taken if taken.dropped)
        self._taken = []
        if lost:
            log.error("records dropped from the full spill were not delivered in time either", records=lost)
            self._on_dropped(lost)


def _weight(batch: Batch) -> int:
    # Short lines cost what a record costs: an empty one takes a few hundred bytes of memory and one of the file.
    text = max(batch.size, RECORD * len(batch))
    return 2 * text if batch.parsed else text


def _fits(batch: Batch, taken: list[Batch], *, count: int, size: int, memory: int) -> bool:
    # A spill from before a change of configuration may hold batches that were not parsed.
    small = len(batch) <= count and batch.size <= size and _weight(batch) <= memory
    return small and batch.parsed == taken[0].parsed
