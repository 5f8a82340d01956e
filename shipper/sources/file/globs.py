"""The files that a configuration names: globs to read, globs not to read."""

# Path objects cost more than the calls they wrap, every second for each of many files.
# ruff: noqa: PTH100, PTH116, PTH120, PTH207

from __future__ import annotations

import errno
import glob
import os
import time
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from shipper.tailing.listing import TICK_NS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Globs:
    """``include`` less ``exclude``. A directory is only listed again when it changed."""

    def __init__(self, include: Sequence[str], exclude: Sequence[str]) -> None:
        self._include = include
        self._exclude = exclude
        self._known: dict[str, tuple[int, list[str]]] = {}

    def paths(self, closed: Callable[[str, OSError | None], None]) -> list[str]:
        """Give every path that is named now, whatever stands under it.

        ``closed`` is called for each directory that must be looked at: with an error when we may not, else with None.
        """
        found: dict[str, None] = {}
        for pattern in self._include:
            for path in self._expand(pattern, closed):
                found[os.path.abspath(path)] = None
        return [path for path in found if not self.excluded(path)]

    def excluded(self, path: str) -> bool:
        """Tell whether a path is not to be read."""
        return any(fnmatchcase(path, pattern) for pattern in self._exclude)

    def name(self, path: str) -> bool:
        """Tell whether a path is named, without looking at the disk."""
        return not self.excluded(path) and any(_matches(os.path.abspath(p), path) for p in self._include)

    def name_exactly(self, path: str) -> bool:
        """Tell whether a path is named in full, not by a wildcard."""
        return any(not glob.has_magic(pattern) and os.path.abspath(pattern) == path for pattern in self._include)

    def directories(self) -> set[str]:
        """Give the directories that files are looked for in, as far as the globs say them."""
        return {os.path.dirname(os.path.abspath(p)) for p in self._include if not glob.has_magic(os.path.dirname(p))}

    def _expand(self, pattern: str, closed: Callable[[str, OSError | None], None]) -> list[str]:
        if not _may_look(_fixed(pattern), closed):
            return []
        if not glob.has_magic(pattern):
            return [pattern] if os.path.lexists(pattern) else []
        directory, name = os.path.split(pattern)
        if glob.has_magic(directory) or name == "**":
            return glob.glob(pattern, recursive=True)
        try:
            modified = os.stat(directory or ".").st_mtime_ns
        except OSError:
            return []
        known = self._known.get(pattern)
        if known is None or known[0] != modified:
            late = time.time_ns() - modified <= TICK_NS
            known = self._known[pattern] = (-1 if late else modified, glob.glob(pattern))
        return known[1]


def _may_look(directory: str, closed: Callable[[str, OSError | None], None]) -> bool:
    """Tell whether a directory is there and ours to list and enter; report it when only the right is missing."""
    if os.access(directory, os.R_OK | os.X_OK):
        closed(directory, None)
        return True
    try:
        os.stat(directory)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        closed(directory, error)
    else:
        closed(directory, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
    return False


def _fixed(pattern: str) -> str:
    """Give the directory that a glob begins in: its path before the first component with magic."""
    directory = os.path.dirname(pattern)
    while glob.has_magic(directory):
        directory = os.path.dirname(directory)
    return directory or "."


def _matches(pattern: str, path: str) -> bool:
    parts = path.split("/")

    def match(patterns: list[str], at: int) -> bool:
        if not patterns:
            return at == len(parts)
        if patterns[0] == "**":
            return any(match(patterns[1:], later) for later in range(at, len(parts) + 1))
        return at < len(parts) and fnmatchcase(parts[at], patterns[0]) and match(patterns[1:], at + 1)

    return match(pattern.split("/"), 0)
