"""All generations of one log in order (`FileSet`): the live file and its rotated siblings, oldest first."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from shipper.record import Batch

if TYPE_CHECKING:
    from shipper.source import FileState
    from shipper.tailing.joiner import Joiner, PendingRecord
    from shipper.tailing.sibling import FileStatus
    from shipper.tailing.tailedfile import TailedFile


class FileSet:
    """One log: the generations of one container's log or of one path.

    ``queue`` is oldest first and only its first file is read, so records leave in the order they were written.
    """

    def __init__(self, name: str, path: str, joiner: Joiner) -> None:
        self.name = name
        self.path = path
        self.joiner = joiner
        self.queue: deque[TailedFile] = deque()
        self.drained: list[TailedFile] = []  # read to the end, held until they are safe everywhere
        self.states: dict[int, FileState] = {}  # every generation the checkpoint knows of this log
        self.finished_siblings: dict[FileStatus, int] = {}  # keys of the generations that siblings hold to their end
        self.missing: dict[int, int] = {}  # generations that nobody found, with how many scans in a row missed them
        self.seized: list[tuple[str, int]] = []  # opened by the watcher the moment they appeared: path, descriptor
        self.next_generation = 0  # the number of the next new generation, at least
        self.signature: tuple[int, ...] = ()  # what `discover` saw of its directory the last time
        self.writer_ended = False  # nobody will write any more
        self.directory_gone = False  # its directory was removed
        self.first_scan = True
        self.unwanted_reported = (
            False  # the checkpoint knows it, the configuration no longer wants it, and that was said
        )
        self.scan_failed = False  # a file of it could not be looked at: try again, and call nothing lost

    @property
    def current(self) -> TailedFile | None:
        """The file that is being read."""
        return self.queue[0] if self.queue else None

    @property
    def open_files(self) -> list[TailedFile]:
        """All open files, oldest first."""
        return [*self.drained, *self.queue]

    def batches(self) -> list[Batch]:
        """Make batches of all records that may leave, one a file, spans contiguous."""
        records = self.joiner.take_complete()
        result = []
        for file in self.open_files:
            if file.state is None or (file.emitted == file.position and not records):
                continue
            held = self.joiner.first_held(file) if self.joiner.holding else None
            end = file.position if held is None else held
            mine = [record for record in records if record.file is file]
            if end > file.emitted or mine:
                result.append(_batch(file, mine, end))
            if held is not None:
                break
        return result


def _batch(file: TailedFile, records: list[PendingRecord], end: int) -> Batch:
    marks = {index: record.mark for index, record in enumerate(records) if record.mark is not None}
    start = file.emitted
    return Batch(
        times=[record.time for record in records],
        stamps=[record.stamp for record in records],
        hashes=[record.digest for record in records],
        raws=[record.raw for record in records],
        resources=[record.resource for record in records],
        offsets=[record.offset for record in records],
        span=file.span(end),
        size=end - start,
        at_risk=file.at_risk,
        marks=marks or None,
    )
