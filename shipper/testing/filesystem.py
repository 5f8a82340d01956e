"""A file system that fails on demand: full disk, failing sync, torn writes, a crash after any operation."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

from shipper.fs import FileSystem


class Crash(BaseException):
    """The process would be gone here. A BaseException, so that no ``except Exception`` survives its own death."""


class FaultyFileSystem(FileSystem):
    """A real file system that fails as told. Attributes may be changed at any time; counters start at 1.

    ``space``: bytes that may still be written; then a write stops in the middle and ENOSPC is raised (what fitted
    stands in the file, as on a real full disk). ``None`` is without end; ``free_bytes`` tells it.
    ``fail_sync``: the nth ``fdatasync`` or ``fsync_dir`` raises EIO; 0 never.
    ``tear_write``: the nth ``write_all`` writes only half of its bytes and raises EIO; 0 never.
    ``crash_after``: the nth operation is the last: a write does only half of its work, anything else all of it,
    then `Crash` is raised; 0 never. Operations are open, write, sync, rename, unlink and directory sync.
    ``operations`` lists what was done, by name, so that a test can crash after each in turn.
    """

    def __init__(
        self, *, space: int | None = None, fail_sync: int = 0, tear_write: int = 0, crash_after: int = 0
    ) -> None:
        self.space = space
        self.fail_sync = fail_sync
        self.tear_write = tear_write
        self.crash_after = crash_after
        self.operations: list[str] = []
        self._lock = threading.Lock()

    def open_append(self, path: Path | str, *, mode: int = 0o600) -> int:
        """See `FileSystem.open_append`."""
        fd = super().open_append(path, mode=mode)
        try:
            self._count("open")
        except Crash:
            os.close(fd)
            raise
        return fd

    def write_all(self, fd: int, data: bytes) -> None:
        """See `FileSystem.write_all`; fails by ``space``, ``tear_write`` and ``crash_after``."""
        with self._lock:
            self.operations.append("write")
            nth = self.operations.count("write")
            last = len(self.operations) == self.crash_after
            taken = len(data)
            failure: BaseException | None = None
            if last:
                taken, failure = taken // 2, Crash()
            elif nth == self.tear_write:
                taken, failure = taken // 2, OSError(errno.EIO, os.strerror(errno.EIO))
            if self.space is not None:
                if taken > self.space:
                    taken, failure = self.space, failure or OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self.space -= taken
        super().write_all(fd, data[:taken])
        if failure is not None:
            raise failure

    def fdatasync(self, fd: int) -> None:
        """See `FileSystem.fdatasync`; fails by ``fail_sync``."""
        self._sync("sync")
        super().fdatasync(fd)

    def rename(self, source: Path | str, target: Path | str) -> None:
        """See `FileSystem.rename`."""
        super().rename(source, target)
        self._count("rename")

    def unlink(self, path: Path | str) -> None:
        """See `FileSystem.unlink`."""
        super().unlink(path)
        self._count("unlink")

    def fsync_dir(self, path: Path | str) -> None:
        """See `FileSystem.fsync_dir`; fails by ``fail_sync``."""
        self._sync("sync directory")
        super().fsync_dir(path)

    def free_bytes(self, path: Path | str) -> int:
        """Give ``space``, or the truth when that is without end."""
        return super().free_bytes(path) if self.space is None else self.space

    def _sync(self, operation: str) -> None:
        self._count(operation)
        with self._lock:
            nth = self.operations.count("sync") + self.operations.count("sync directory")
            if nth == self.fail_sync:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

    def _count(self, operation: str) -> None:
        with self._lock:
            self.operations.append(operation)
            if len(self.operations) == self.crash_after:
                raise Crash
