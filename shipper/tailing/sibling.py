"""One name of one of a log's files on disk, as a directory shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import os


class Sibling(NamedTuple):
    """One file of a log: ``live`` is the one being written."""

    path: str
    live: bool


class FileStatus(NamedTuple):
    """What stat says of a file that nobody changed: the same status is the same content."""

    device: int
    inode: int
    size: int
    modified: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileStatus:
        """Take it from a stat."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode."""
        return self.device, self.inode
