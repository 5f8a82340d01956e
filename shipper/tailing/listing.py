"""Directories as they were listed last: the regular files in them with their identities, and what is wrong with others.

A directory is listed again when its modification time changed. What a symbolic link leads to may change without that, so
links are looked at every time.
"""

# Path objects cost more than the calls they wrap, every second for each of many files.
# ruff: noqa: PTH116, PTH118

from __future__ import annotations

import os
import stat
import time
from typing import NamedTuple

from shipper.tailing.paths import followed, is_text, regular

#: Directory times have the kernel's tick; a change this shortly after another may show the same time.
TICK_NS = 100_000_000


class Entry(NamedTuple):
    """One regular file in a directory. ``link`` says that the name is a symbolic link to it."""

    name: str
    identity: tuple[int, int]
    link: bool = False


class Listing:
    """One directory's files by name, and why other names that are no directories are not among them."""

    def __init__(self, seen: tuple[int, int, int], *, trusting: bool) -> None:
        self.seen = seen  # device, inode and modification time of the directory
        self.files: dict[str, Entry] = {}
        self.refused: dict[str, OSError] = {}
        self.links: list[str] = []
        self._trusting = trusting

    def add(self, directory: str, entry: os.DirEntry[str]) -> None:
        """Take a name in."""
        path = os.path.join(directory, entry.name)
        if not is_text(path):
            self.refused[entry.name] = OSError(
                84, "a name that is not UTF-8 can be kept nowhere; rename the file", path
            )
            return
        try:
            if entry.is_dir(follow_symlinks=False):
                return
            if entry.is_symlink():
                self.links.append(entry.name)
                return
            status = regular(entry.stat(follow_symlinks=False), path)
        except FileNotFoundError:
            return
        except OSError as error:
            self.refused[entry.name] = error
            return
        self.files[entry.name] = Entry(entry.name, (status.st_dev, status.st_ino))

    def follow_links(self, directory: str) -> bool:
        """Look again at what links lead to; tell whether that changed."""
        changed = False
        for name in self.links:
            before = self.files.pop(name, None), self.refused.pop(name, None)
            path = os.path.join(directory, name)
            try:
                status = os.stat(path) if self._trusting else followed(path)
                if not stat.S_ISDIR(status.st_mode):
                    regular(status, path)
                    self.files[name] = Entry(name, (status.st_dev, status.st_ino), link=True)
            except FileNotFoundError:
                pass
            except OSError as error:
                self.refused[name] = error
            after = self.files.get(name), self.refused.get(name)
            changed |= before[0] != after[0] or (before[1] is None) != (after[1] is None)
        return changed


class Listings:
    """The directories that logs are in. ``trusting`` follows every symbolic link, whoever made it."""

    def __init__(self, *, trusting: bool = False) -> None:
        self._trusting = trusting
        self._known: dict[str, Listing] = {}
        #: Goes up whenever a directory changed.
        self.version = 0

    def of(self, directory: str) -> Listing:
        """Give a directory's files as of now. Raises OSError."""
        known = self._known.get(directory)
        try:
            status = os.stat(directory)
            if known is not None and known.seen == (status.st_dev, status.st_ino, status.st_mtime_ns):
                if known.follow_links(directory):
                    self.version += 1
                return known
            if not self._trusting:
                status = followed(directory)
            late = time.time_ns() - status.st_mtime_ns <= TICK_NS
            seen = status.st_dev, status.st_ino, -1 if late else status.st_mtime_ns
            listing = Listing(seen, trusting=self._trusting)
            with os.scandir(directory) as entries:
                for entry in entries:
                    listing.add(directory, entry)
            listing.follow_links(directory)
        except OSError:
            if self._known.pop(directory, None) is not None:
                self.version += 1
            raise
        if known is None or (known.files, known.refused.keys()) != (listing.files, listing.refused.keys()):
            self.version += 1
        self._known[directory] = listing
        return listing

    def keep(self, directories: set[str]) -> None:
        """Forget the directories that nobody asks for any more."""
        for directory in self._known.keys() - directories:
            del self._known[directory]
