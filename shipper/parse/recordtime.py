"""Whose time a record gets. Decided here alone, for lines of every form.

============================  =============================  =================================================
the source gives a time       the line has a time            the record's time
============================  =============================  =================================================
yes (Docker's)                none, or it names no zone      the source's
yes                           within `TOLERANCE` of it       the source's: it is finer and in order
yes                           further away                   the line's: it was replayed or held up
no (a plain file)             yes                            the line's; a missing zone is read as UTC
no                            none                           when it was first read, the same on every replay
============================  =============================  =================================================

The digits below the precision of a line's time are filled from its place in the file (`shipper.parse.times.fill`).
``stamps``, of which ids are made, are the source's times; where it gives none, the record's. The compiled forms of the
first four rows are in ``shipper/native/lines.c``; tests hold them to this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shipper.parse.times import TOLERANCE, Moment, fill

if TYPE_CHECKING:
    from shipper.record import Batch
    from shipper.source import Positions

#: What an undated line is stamped to, in nanoseconds: the digits below tell lines of one reading apart.
_READING = 1_000_000


def settle(batch: Batch, row: int, moment: Moment) -> bool:
    """Decide whether a row takes its line's own time, and do so; tell which."""
    return settle_parts(batch, row, moment.ns, moment.unit_us, zoned=moment.zoned)


def settle_parts(batch: Batch, row: int, own: int, unit_us: int, *, zoned: bool = True) -> bool:
    """As `settle`, with the moment in parts: for loops that have no need of the object."""
    stamp = batch.stamps[row]
    if stamp and (not zoned or -TOLERANCE <= own - stamp <= TOLERANCE):
        return False
    if unit_us:
        own += fill(batch.offsets[row], unit_us, stamped=bool(stamp))
    batch.times[row] = own
    if not stamp:
        batch.stamps[row] = own
    return True


def stamp_undated(batch: Batch, positions: Positions, now_ns: int) -> None:
    """Give the lines of a plain file that have no time the one at which they were first read.

    That time is in the state before the batch leaves, so a replay says the same. What `Positions.anchor` raises when
    the state cannot be written passes through; then the batch is unchanged and must not leave.
    """
    span = batch.span
    if span is not None and 0 in batch.times:
        anchors = positions.anchors(span.file)
        undated = [row for row, time_ns in enumerate(batch.times) if not time_ns]
        times = list(batch.times)
        for row in undated:
            times[row] = _anchored(anchors, batch.offsets[row])
        fresh = [row for row in undated if not times[row]]
        if fresh:
            now = now_ns // _READING * _READING
            positions.anchor(span.file, batch.offsets[fresh[0]], span.end, now)
            for row in fresh:
                times[row] = now
        for row in undated:
            times[row] += fill(batch.offsets[row], _READING // 1000)
        batch.times = times
    batch.stamps = batch.times


def _anchored(anchors: list[tuple[int, int, int]], offset: int) -> int:
    return next((time_ns for start, end, time_ns in anchors if start <= offset < end), 0)
