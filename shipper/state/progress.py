"""What the reader has in hand, so that a crash that the same bytes cause each time is noticed.

Some faults leave no time for an exception: a fault in compiled code, the kernel's out-of-memory killer, a hang that the
watchdog ends. The reader therefore notes what it takes in hand, in a small file that is mapped into memory: a note costs a
copy of 48 bytes, and the kernel keeps it when the process dies. A process that finds a note on its start died with those
bytes in hand. `Progress.stuck` names them once that has happened `STARTS` times in a row; the first batch that comes
through ends the row::

    progress = Progress(config.state_dir)
    if progress.is_stuck(file, start):          # before each read, by the source
        progress.set_aside(data)                # and account for them as lost
    progress.take(file, start)                  # before bytes are touched, by the source
    progress.done()                             # once they are in the buffers, by the intake

A power failure may leave an older note or none. A note is never a reason to skip anything before the same bytes were in
hand at `STARTS` ends that nobody asked for, with nothing getting past them in between.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from typing import TYPE_CHECKING

from shipper.source import InHand

if TYPE_CHECKING:
    from pathlib import Path

#: Ends in a row with the same bytes in hand after which they are passed over; systemd gives up after ten starts.
STARTS = 5

_FORM = struct.Struct("<4sBxxxqqq")
_MAGIC = b"SHPP"
_BYTES = _FORM.size + 4


class Progress:
    """The note of one reader; see `shipper.source.Progress`. ``take`` and ``done`` are called by its thread, once a batch.

    Copies of bytes that were passed over are in ``<state_dir>/set-aside/<file>-<offset>``.
    """

    def __init__(self, state_dir: Path) -> None:
        """Open the note and look at what the last process left. Raises OSError. The state directory must be locked."""
        self._state_dir = state_dir
        fd = os.open(state_dir / "progress", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(fd, 0o600)
            os.ftruncate(fd, _BYTES)
            self._note = mmap.mmap(fd, _BYTES)
        finally:
            os.close(fd)
        busy, found = self._read()
        #: What the last process had in hand when it ended; None when it had nothing, or ended as it should.
        self.left: InHand | None = None
        if busy and found is not None:
            self.left = InHand(found.file, found.start, found.ends + 1)
        self._write(busy=False, hand=self.left)

    @property
    def stuck(self) -> InHand | None:
        """What every one of the last `STARTS` processes ended with, and must be passed over."""
        return self.left if self.left is not None and self.left.ends >= STARTS else None

    def take(self, file: int, start: int) -> None:
        """Note that the bytes of a file from ``start`` on are in hand now."""
        left = self.left
        ends = left.ends if left is not None and (left.file, left.start) == (file, start) else 0
        self._write(busy=True, hand=InHand(file, start, ends))

    def done(self) -> None:
        """Note that nothing is in hand: what was got through. A row of ends on other bytes stays until those do."""
        busy, hand = self._read()
        left = self.left
        if busy and hand is not None and left is not None and (hand.file, hand.start) == (left.file, left.start):
            self.left = left = None
        self._write(busy=False, hand=left)

    def is_stuck(self, file: int, start: int) -> bool:
        """See `shipper.source.Progress.is_stuck`."""
        stuck = self.stuck
        return stuck is not None and (stuck.file, stuck.start) == (file, start)

    def set_aside(self, data: bytes) -> str:
        """See `shipper.source.Progress.set_aside`."""
        stuck = self.stuck
        assert stuck is not None
        directory = self._state_dir / "set-aside"
        directory.mkdir(mode=0o700, exist_ok=True)
        path = directory / f"{stuck.file}-{stuck.start}"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(fd, 0o600)
            with open(fd, "wb", closefd=False) as file:
                file.write(data)
            os.fsync(fd)
        finally:
            os.close(fd)
        self.pass_over()
        return str(path)

    def pass_over(self) -> None:
        """The bytes that are stuck were set aside: begin anew behind them."""
        self.left = None
        self._write(busy=False, hand=None)

    def close(self) -> None:
        """End as one should: nothing is in hand."""
        self._write(busy=False, hand=self.left)
        self._note.close()

    def _read(self) -> tuple[bool, InHand | None]:
        data = self._note[:]
        if zlib.crc32(data[: _FORM.size]) != int.from_bytes(data[_FORM.size :], "little"):
            return False, None
        magic, busy, file, start, ends = _FORM.unpack_from(data)
        return (bool(busy), InHand(file, start, ends) if file else None) if magic == _MAGIC else (False, None)

    def _write(self, *, busy: bool, hand: InHand | None) -> None:
        file, start, ends = (hand.file, hand.start, hand.ends) if hand is not None else (0, 0, 0)
        data = _FORM.pack(_MAGIC, busy, file, start, ends)
        self._note[:] = data + zlib.crc32(data).to_bytes(4, "little")
