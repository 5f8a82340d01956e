"""The bytes of one file: how a log is opened and read at any place. `shipper.tailing.archive` has those of archives."""

# Path objects cost more than the calls they wrap, every second for each of many files.
# ruff: noqa: PTH116

from __future__ import annotations

import errno
import os
import resource
from typing import Protocol

from shipper.tailing.paths import regular

#: Descriptors left for everything that is no log: the state, sinks, HTTP, directories; a quarter when few are allowed.
SPARE_DESCRIPTORS = 64


def open_log(path: str) -> int:
    """Open a log for reading; give its descriptor.

    Raises OSError for what is no regular file, which is not even opened: a FIFO would block, and a device may do
    anything. Raises it with EMFILE already when only `SPARE_DESCRIPTORS` are left: a file more must not cost the daemon
    its state and its sinks. The system gives the lowest free number, so the number tells how many are in use.
    """
    fd = open_regular(path)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit != resource.RLIM_INFINITY and fd >= limit - min(SPARE_DESCRIPTORS, limit // 4):
        os.close(fd)
        raise OSError(errno.EMFILE, f"only {limit} files may be open; raise LimitNOFILE= or ulimit -n", path)
    return fd


def open_regular(path: str) -> int:
    """Open a regular file for reading, never waiting. Raises OSError, for what is no regular file as well."""
    regular(os.stat(path), path)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        regular(os.fstat(fd), path)
    except OSError:
        os.close(fd)
        raise
    return fd


def read_small(path: str, most: int) -> tuple[bytes, os.stat_result]:
    """Read a small regular file whole, with its status. Raises OSError, with EFBIG if it is not small."""
    fd = open_regular(path)
    try:
        status = os.fstat(fd)
        content = os.read(fd, most + 1) if status.st_size else b""
        while len(content) < status.st_size <= most and (more := os.read(fd, most + 1 - len(content))):
            content += more
    finally:
        os.close(fd)
    if len(content) > most or status.st_size > most:
        raise OSError(errno.EFBIG, f"larger than {most} bytes", path)
    return content, status


class Bytes(Protocol):
    """Random access to a file's uncompressed bytes. Errors are OSError and EOFError (a torn archive)."""

    device: int
    inode: int
    fd: int

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode."""

    def size(self) -> int:
        """Give the size in bytes as far as it is known; for an archive, what was inflated so far."""

    def read(self, position: int, count: int) -> bytes:
        """Read up to ``count`` bytes; fewer only at the end."""

    def close(self) -> None:
        """Close the descriptor."""


class PlainBytes:
    """A file read with pread. The descriptor's own position is only used to ask for the size."""

    def __init__(self, fd: int) -> None:
        status = os.fstat(fd)
        self.device = status.st_dev
        self.inode = status.st_ino
        self.fd = fd

    @property
    def identity(self) -> tuple[int, int]:
        """See `Bytes.identity`."""
        return self.device, self.inode

    def size(self) -> int:
        """See `Bytes.size`. lseek costs a third of fstat, which counts for 500 idle files."""
        return os.lseek(self.fd, 0, os.SEEK_END)

    def read(self, position: int, count: int) -> bytes:
        """See `Bytes.read`."""
        return os.pread(self.fd, count, position)

    def data_after(self, position: int) -> int:
        """Give where bytes begin at or after a position inside a hole; the size when none follow."""
        try:
            return os.lseek(self.fd, position, os.SEEK_DATA)
        except OSError:
            return self.size()

    def close(self) -> None:
        """See `Bytes.close`."""
        os.close(self.fd)
