"""The seam for files that must survive a crash: production code asks a file system, tests bend it.

`FileSystem` is the small set of operations whose failure or interruption matters to what the daemon writes:
spill segments and dead letters. Every method raises OSError as the system gave it.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path


class FileSystem:
    """The machine's own file system. Holds no state; one object may serve many threads."""

    def open_append(self, path: Path | str, *, mode: int = 0o600) -> int:
        """Open for appending, create with ``mode`` if missing, whatever the umask, and give the descriptor."""
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, mode)
        with contextlib.suppress(OSError):  # somebody else's file, which we may write
            if stat.S_IMODE(os.fstat(fd).st_mode) & ~mode:
                os.fchmod(fd, mode)
        return fd

    def make_private(self, directory: Path) -> None:
        """Make a directory, and those above it that are missing, for us alone and durably; mode 0700, whatever the umask."""
        missing: list[Path] = []
        place = directory
        while not place.exists():
            missing.append(place)
            place = place.parent
        for place in reversed(missing):
            with contextlib.suppress(FileExistsError):
                place.mkdir(mode=0o700)
            place.chmod(0o700)
            self.fsync_dir(place.parent)

    def write_all(self, fd: int, data: bytes) -> None:
        """Write all of ``data``. After an error any part of it may stand in the file; the caller cuts it off."""
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]

    def fdatasync(self, fd: int) -> None:
        """Return once the file's bytes and size are on the disk."""
        os.fdatasync(fd)

    def rename(self, source: Path | str, target: Path | str) -> None:
        """Rename within one file system, replacing the target at once. Durable after `fsync_dir`."""
        Path(source).replace(target)

    def unlink(self, path: Path | str) -> None:
        """Remove a name. Durable after `fsync_dir`."""
        Path(path).unlink()

    def fsync_dir(self, path: Path | str) -> None:
        """Return once the names in a directory are on the disk."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def free_bytes(self, path: Path | str) -> int:
        """Bytes that an unprivileged process may still write to the file system that holds ``path``."""
        status = os.statvfs(path)
        return status.f_bavail * status.f_frsize
