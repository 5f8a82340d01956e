"""Joining of physical lines to records: 16 KiB fragments of Docker (or CRI), and stack traces.

Rows leave strictly in the order of their first lines. While one is open, all later rows of the log wait behind it in
memory, and the checkpoint stays at its first line. That keeps one rule for the ledger: what lies below the offset is
delivered. The wait is bounded by bytes, lines and time.

Where a timer or the bound on bytes ended a record, a replay that finds more bytes would join more under the same id,
and the sink would take it for a double. So these ends are listed in ``cuts``, to be made durable before the record
leaves, and are given back in ``Tail.cuts`` after a restart: a record that ended there ends there again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from shipper.record import Resource
    from shipper.tailing.tail import Tail

#: A trace is cut at this many bytes or lines.
TRACE_BYTES = 1 << 20
TRACE_LINES = 500
#: Lines of a trace stand at most this far apart by Docker's times, in nanoseconds. It equals `TRACE_WAIT`: were it
#: longer, a live trace would be cut where a replay of the same bytes would not.
TRACE_GAP = 200_000_000
#: Seconds at the end of the file after which a trace is complete.
TRACE_WAIT = 0.2
#: Seconds after which a fragment without its rest, or a last line without newline, is complete.
FRAGMENT_WAIT = 5.0
#: Bytes of text that may wait behind open rows; above, the open rows are cut.
HELD_BYTES = 4 << 20

#: The attribute that marks pieces of a line too long for one record: "1/?" while the end is unknown, "3/3" the last.
PART = "log.record.part"


class Trace(Protocol):
    """A stack trace being joined; see `shipper.tailing.traces`."""

    loose: int

    def continues(self, line: str) -> bool:
        """Tell whether the line belongs to the trace, and remember it."""


class TraceOpener(Protocol):
    """See `shipper.tailing.traces.open_trace`."""

    def __call__(self, line: str, rule: str) -> Trace | None:
        """Start a trace at this line, if it can start one."""


class Row:
    """One record in the making. ``open`` until nothing more can be joined to it."""

    __slots__ = ("digest", "end", "mark", "offset", "open", "raw", "resource", "stamp", "tail", "time")

    def __init__(
        self, tail: Tail, offset: int, *, time: int, stamp: int, digest: int, raw: str, resource: Resource
    ) -> None:
        self.tail = tail
        self.offset = offset
        self.end = offset  # where its last line in its tail ends
        self.time = time
        self.stamp = stamp
        self.digest = digest
        self.raw = raw
        self.resource = resource
        self.mark: dict[str, Any] | None = None
        self.open = False


class _Join:
    __slots__ = ("end", "key", "last", "lines", "loose", "part", "parts", "row", "size", "tail", "trace")

    def __init__(self, row: Row, *, key: str | None, trace: Trace | None, part: int = 0) -> None:
        self.row = row
        self.tail = row.tail  # where the last line stands, those on trial included, and
        self.end = row.end  # where it ends there
        self.key = key  # the fragments' common time; None for a trace
        self.trace = trace
        self.parts = [row.raw]
        self.size = len(row.raw)
        self.lines = 1
        self.last = row.stamp
        self.part = part
        self.loose: list[Row] = []


class Joiner:
    """Rows of one log in order, and what is being joined in each of its streams."""

    def __init__(self, *, open_trace: TraceOpener, rule: str | None, max_bytes: int) -> None:
        self.rule = rule
        self._open_trace = open_trace
        self._max_bytes = max_bytes
        self._rows: list[Row] = []
        self._joins: dict[str, _Join] = {}
        self._held = 0
        self.cuts: list[tuple[Tail, int]] = []

    @property
    def holding(self) -> bool:
        """Whether a row is held back."""
        return bool(self._rows)

    def feed(self, row: Row, *, end: int, stream: str, key: str | None = None, whole: bool = True) -> None:
        """Take the next physical line, which ends at ``end``.

        ``whole`` is False for a fragment whose rest must follow under the same ``key`` (None: any key).
        """
        join = self._joins.get(stream)
        text = row.raw
        row.end = end
        if join is not None and join.end in join.tail.cuts:
            self._close(stream)
            join = None
        if join is not None:
            if join.trace is None:
                if join.key == key:
                    if join.size + len(text) > self._max_bytes:
                        self._next_part(join, row, stream=stream, key=key, whole=whole)
                        return
                    self._absorb(join, row)
                    join.parts.append(text)
                    join.size += len(text)
                    self._held += len(text)
                    if whole:
                        self._close(stream)
                    return
                self._close(stream)
            else:
                if (
                    whole
                    and row.mark is None
                    and row.stamp - join.last <= TRACE_GAP
                    and join.lines < TRACE_LINES
                    and join.size + len(text) < TRACE_BYTES
                    and not _is_json(text)
                    and join.trace.continues(text)
                ):
                    join.size += len(text) + 1
                    join.lines += 1
                    join.last = row.stamp
                    join.tail, join.end = row.tail, end
                    self._held += len(text)
                    # Lines on trial (blank ones) stay rows of their own until a later line proves them.
                    join.loose.append(row)
                    if not join.trace.loose:
                        for loose in join.loose:
                            self._absorb(join, loose)
                            join.parts.append(loose.raw)
                        join.loose.clear()
                    return
                self._close(stream)
        if row.tail.skips and row.tail.skipped(row.offset):
            return
        self._rows.append(row)
        self._held += len(text)
        if not whole:
            row.open = True
            self._joins[stream] = _Join(row, key=key, trace=None)
        elif self.rule is not None and row.mark is None and not _is_json(text):
            trace = self._open_trace(text, self.rule)
            if trace is not None:
                row.open = True
                self._joins[stream] = _Join(row, key=None, trace=trace)
        if self._held > HELD_BYTES and not self._free():
            self.flush()

    def due(self, quiet: float) -> bool:
        """Close what is complete after ``quiet`` seconds at the end of the file; tell whether anything was."""
        ready = [s for s, join in self._joins.items() if quiet >= (TRACE_WAIT if join.trace else FRAGMENT_WAIT)]
        for stream in ready:
            self._cut(stream)
        return bool(ready)

    def wait(self) -> float | None:
        """Seconds at the end of the file after which `due` has work, None when nothing is open."""
        if not self._joins:
            return None
        return min(TRACE_WAIT if join.trace else FRAGMENT_WAIT for join in self._joins.values())

    def flush(self) -> None:
        """Close everything: nothing more is expected."""
        for stream in list(self._joins):
            self._cut(stream)

    def take(self) -> list[Row]:
        """Give the rows that may leave: those before the first open one that also end before it."""
        rows = self._rows
        if not rows:
            return []
        if not self._joins:
            self._rows, self._held = [], 0
            return rows
        cut = self._free()
        self._rows = rows[cut:]
        self._held -= sum(len(row.raw) for row in rows[:cut])
        self._held = max(self._held, 0)
        return rows[:cut]

    def first_held(self, tail: Tail) -> int | None:
        """Give the offset of the tail's first row that is held back, if any."""
        return next((row.offset for row in self._rows if row.tail is tail), None)

    def drop(self, tail: Tail) -> None:
        """Forget what is held of a tail: it is read again from another place."""
        for stream in [stream for stream, join in self._joins.items() if join.row.tail is not tail]:
            self._cut(stream)
        self._joins.clear()
        self._rows = [row for row in self._rows if row.tail is not tail]
        self._held = sum(len(row.raw) for row in self._rows)
        self.cuts = [cut for cut in self.cuts if cut[0] is not tail]

    def _free(self) -> int:
        """Count the rows that may leave.

        One that has lines behind the first line of an open one waits for it: the checkpoint will stand at that line,
        and a replay from there would take the lines behind it for records of their own.
        """
        rows = self._rows
        count = next((i for i, row in enumerate(rows) if row.open), len(rows))
        while count < len(rows):
            barrier = rows[count]
            early = next((i for i in range(count) if rows[i].tail is barrier.tail and rows[i].end > barrier.offset), -1)
            if early < 0:
                break
            count = early
        return count

    def _cut(self, stream: str) -> None:
        join = self._joins[stream]
        self.cuts.append((join.tail, join.end))
        self._close(stream)

    def _absorb(self, join: _Join, row: Row) -> None:
        join.tail, join.end = row.tail, row.end
        if join.row.tail is row.tail:
            join.row.end = row.end
        else:
            # The record is accounted for in the older file; a restart must not show these lines a second time.
            row.tail.absorb(row.offset, row.end)

    def _next_part(self, join: _Join, row: Row, *, stream: str, key: str | None, whole: bool) -> None:
        part = join.part or 1
        self._close(stream, mark={PART: f"{part}/?"})
        self._rows.append(row)
        self._held += len(row.raw)
        if whole:
            row.mark = {PART: f"{part + 1}/{part + 1}"}
        else:
            row.open = True
            self._joins[stream] = _Join(row, key=key, trace=None, part=part + 1)

    def _insert(self, row: Row) -> None:
        rows = self._rows
        place = len(rows)
        while place and rows[place - 1].tail is row.tail and rows[place - 1].offset > row.offset:
            place -= 1
        rows.insert(place, row)

    def _close(self, stream: str, mark: dict[str, Any] | None = None) -> None:
        join = self._joins.pop(stream)
        for row in join.loose:
            self._insert(row)
        join.row.raw = ("" if join.trace is None else "\n").join(join.parts)
        join.row.open = False
        if mark is not None:
            join.row.mark = mark
        elif join.part:
            join.row.mark = {PART: f"{join.part}/{join.part}"}


def _is_json(text: str) -> bool:
    return text.startswith('{"') and text.endswith("}")
