"""Joining of physical lines to records: 16 KiB fragments of Docker (or CRI), and stack traces.

Records leave strictly in the order of their first lines. While one is open, all later ones of the log wait behind it in
memory, and the checkpoint stays at its first line. That keeps one rule for the ledger: what lies below the offset is
delivered. The wait is bounded by bytes, lines and time.

Where a timer or the bound on bytes ended a record, a replay that finds more bytes would join more under the same id,
and the sink would take it for a double. So these ends are listed in ``cuts``, to be made durable before the record
leaves, and are given back in `TailedFile.cuts` after a restart: a record that ended there ends there again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from shipper.record import Resource
    from shipper.tailing.tailedfile import TailedFile

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
#: Bytes that may wait behind open records; above, the open ones are cut. A record is counted with what it costs empty.
HELD_BYTES = 4 << 20
RECORD_BYTES = 200

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


class PendingRecord:
    """One record in the making. ``open`` until nothing more can be joined to it."""

    __slots__ = ("digest", "end", "file", "mark", "offset", "open", "raw", "resource", "stamp", "time")

    def __init__(
        self, file: TailedFile, offset: int, *, time: int, stamp: int, digest: int, raw: str, resource: Resource
    ) -> None:
        self.file = file
        self.offset = offset
        self.end = offset  # where its last line in its file ends
        self.time = time
        self.stamp = stamp
        self.digest = digest
        self.raw = raw
        self.resource = resource
        self.mark: dict[str, Any] | None = None
        self.open = False


class _Group:
    """The lines that one open record is joined of: fragments of one line, or the lines of a trace."""

    __slots__ = ("end", "file", "key", "last_time", "lines", "on_trial", "part", "record", "size", "texts", "trace")

    def __init__(self, record: PendingRecord, *, key: str | None, trace: Trace | None, part: int = 0) -> None:
        self.record = record
        self.file = record.file  # where the last line stands, those on trial included, and
        self.end = record.end  # where it ends there
        self.key = key  # the fragments' common time
        self.trace = trace
        self.texts = [record.raw]
        self.size = len(record.raw)
        self.lines = 1
        self.last_time = record.stamp
        self.part = part
        self.on_trial: list[PendingRecord] = []

    @property
    def wait(self) -> float:
        """Seconds of silence at the end of the file after which the record is complete."""
        return TRACE_WAIT if self.trace else FRAGMENT_WAIT


class Joiner:
    """The records of one log in order, and what is being joined in each of its streams.

    ``cuts`` lists where a timer or a bound ended a record: file and offset.
    """

    def __init__(self, *, open_trace: TraceOpener, rule: str | None, max_bytes: int) -> None:
        self.rule = rule
        self._open_trace = open_trace
        self._max_bytes = max_bytes
        self._records: list[PendingRecord] = []
        self._groups: dict[str, _Group] = {}
        self._held = 0
        self.cuts: list[tuple[TailedFile, int]] = []

    @property
    def holding(self) -> bool:
        """Whether a record is held back."""
        return bool(self._records)

    def feed(self, record: PendingRecord, *, end: int, stream: str, key: str | None = None, whole: bool = True) -> None:
        """Take the next physical line, which ends at ``end``.

        ``whole`` is False for a fragment whose rest must follow under the same ``key`` (None: any key).
        """
        group = self._groups.get(stream)
        record.end = end
        if group is not None:
            if group.end in group.file.cuts:
                self._close(stream)
            elif group.trace is not None:
                if whole and self._continue_trace(group, group.trace, record):
                    return
                self._close(stream)
            elif group.key == key:
                self._continue_line(group, record, stream=stream, key=key, whole=whole)
                return
            else:
                self._close(stream)
        if record.file.skips and record.file.skipped(record.offset):
            return
        trace = None
        if whole and self.rule is not None and record.mark is None and not _is_json(record.raw):
            trace = self._open_trace(record.raw, self.rule)
        self._hold(record)
        if trace is not None or not whole:
            self._open(stream, _Group(record, key=key, trace=trace))

    def feed_alone(self, record: PendingRecord, *, end: int, stream: str) -> None:
        """Take a line that nothing may be joined to; what is open in its stream ends before it."""
        record.end = end
        if stream in self._groups:
            self._close(stream)
        if not (record.file.skips and record.file.skipped(record.offset)):
            self._hold(record)

    def relieve(self) -> None:
        """Cut what is open when too much waits behind it and nothing can leave."""
        if self._held > HELD_BYTES and self._groups and not self._count_complete():
            self.flush()

    def close_overdue(self, quiet: float) -> bool:
        """Close what is complete after ``quiet`` seconds at the end of the file; tell whether anything was."""
        overdue = [stream for stream, group in self._groups.items() if quiet >= group.wait]
        for stream in overdue:
            self._cut(stream)
        return bool(overdue)

    def flush(self) -> None:
        """Close everything: nothing more is expected."""
        for stream in list(self._groups):
            self._cut(stream)

    def take_complete(self) -> list[PendingRecord]:
        """Give the records that may leave: those before the first open one that also end before it."""
        records = self._records
        if not records:
            return []
        if not self._groups:
            self._records, self._held = [], 0
            return records
        count = self._count_complete()
        self._records = records[count:]
        self._count_held()
        return records[:count]

    def first_held(self, file: TailedFile) -> int | None:
        """Give the offset of the file's first record that is held back, if any."""
        return next((record.offset for record in self._records if record.file is file), None)

    def drop(self, file: TailedFile) -> None:
        """Forget what is held of a file: it is read again from another place."""
        for stream in [stream for stream, group in self._groups.items() if group.record.file is not file]:
            self._cut(stream)
        self._groups.clear()
        self._records = [record for record in self._records if record.file is not file]
        self._count_held()
        self.cuts = [cut for cut in self.cuts if cut[0] is not file]

    # Joining

    def _continue_line(
        self, group: _Group, record: PendingRecord, *, stream: str, key: str | None, whole: bool
    ) -> None:
        """Take the next fragment of a line."""
        text = record.raw
        if group.size + len(text) > self._max_bytes:
            self._next_part(group, record, stream=stream, key=key, whole=whole)
            return
        self._append(group, record)
        group.texts.append(text)
        group.size += len(text)
        self._held += len(text)
        if whole:
            self._close(stream)

    def _continue_trace(self, group: _Group, trace: Trace, record: PendingRecord) -> bool:
        """Tell whether the line belongs to the trace, and take it if so."""
        text = record.raw
        if (
            record.mark is not None
            or record.stamp - group.last_time > TRACE_GAP
            or group.lines >= TRACE_LINES
            or group.size + len(text) >= TRACE_BYTES
            or _is_json(text)
            or not trace.continues(text)
        ):
            return False
        group.size += len(text) + 1
        group.lines += 1
        group.last_time = record.stamp
        group.file, group.end = record.file, record.end
        self._held += RECORD_BYTES + len(text)
        # Lines on trial (blank ones) stay records of their own until a later line proves them.
        group.on_trial.append(record)
        if not trace.loose:
            for line in group.on_trial:
                self._append(group, line)
                group.texts.append(line.raw)
            group.on_trial.clear()
        return True

    def _next_part(self, group: _Group, record: PendingRecord, *, stream: str, key: str | None, whole: bool) -> None:
        """End a record that would be too long, and begin the next of the same line."""
        part = group.part or 1
        self._close(stream, mark={PART: f"{part}/?"})
        self._hold(record)
        if whole:
            record.mark = {PART: f"{part + 1}/{part + 1}"}
        else:
            self._open(stream, _Group(record, key=key, trace=None, part=part + 1))

    def _append(self, group: _Group, record: PendingRecord) -> None:
        """Count a line to the group's record."""
        group.file, group.end = record.file, record.end
        if group.record.file is record.file:
            group.record.end = record.end
        else:
            # The record is accounted for in the older file; a restart must not show these lines a second time.
            record.file.note_skip(record.offset, record.end)

    def _count_held(self) -> None:
        self._held = sum(RECORD_BYTES + len(record.raw) for record in self._records)
        self._held += sum(group.lines * RECORD_BYTES + group.size for group in self._groups.values())

    def _hold(self, record: PendingRecord) -> None:
        self._records.append(record)
        self._held += RECORD_BYTES + len(record.raw)

    def _open(self, stream: str, group: _Group) -> None:
        group.record.open = True
        self._groups[stream] = group

    def _close(self, stream: str, mark: dict[str, Any] | None = None) -> None:
        group = self._groups.pop(stream)
        for record in group.on_trial:
            self._insert(record)
        group.record.raw = ("" if group.trace is None else "\n").join(group.texts)
        group.record.open = False
        if mark is not None:
            group.record.mark = mark
        elif group.part:
            group.record.mark = {PART: f"{group.part}/{group.part}"}

    def _cut(self, stream: str) -> None:
        """Close what more bytes could have continued."""
        group = self._groups[stream]
        self.cuts.append((group.file, group.end))
        self._close(stream)

    def _insert(self, record: PendingRecord) -> None:
        """Put a line that was on trial back at its place."""
        records = self._records
        place = len(records)
        while place and records[place - 1].file is record.file and records[place - 1].offset > record.offset:
            place -= 1
        records.insert(place, record)

    def _count_complete(self) -> int:
        """Count the records that may leave.

        One that has lines behind the first line of an open one waits for it: the checkpoint will stand at that line,
        and a replay from there would take the lines behind it for records of their own.
        """
        count, file, reached = 0, None, 0
        for number, record in enumerate(self._records):
            if record.file is not file:
                file, reached = record.file, 0
            if record.offset >= reached:
                count = number  # nothing before it goes on behind it
            if record.open:
                return count
            reached = max(reached, record.end)
        return len(self._records)


def _is_json(text: str) -> bool:
    return text.startswith('{"') and text.endswith("}")
