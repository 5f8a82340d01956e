"""Which file belongs to which log: by identity first, by name where identity says nothing.

A file that a log has open is that log's, under whatever name it stands now. So is one that the checkpoint knows by device
and inode, if its bytes agree. Only what nobody knows is judged by its name: the log's own, or one that rotation gives.
"""

# Path objects cost more than the calls they wrap, every second for each of many files.
# ruff: noqa: PTH116, PTH118, PTH119

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, NamedTuple

from shipper.sources.file.rotated import base_of, kin, number_of, unpacked
from shipper.tailing.archive import SUFFIXES, open_bytes
from shipper.tailing.bytes import open_log
from shipper.tailing.fingerprint import matches
from shipper.tailing.listing import Entry
from shipper.tailing.sibling import Sibling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from shipper.source import FileState
    from shipper.tailing.fileset import FileSet
    from shipper.tailing.listing import Listing

#: What says that an entry is no log at all, whoever asks. With any other error it may be one that cannot be looked at now.
_NO_LOG = {errno.ELOOP, errno.EINVAL, errno.EILSEQ, errno.EPERM}
_UNKNOWN = (0, 0)


class Member(NamedTuple):
    """One name of one of a log's files. ``usual`` says that the name alone tells whose it is."""

    path: str
    entry: Entry
    usual: bool


class Grouping:
    """The files of the directories at hand by log, and those that belong to none (yet)."""

    def __init__(self, keep: Callable[[str], bool]) -> None:
        """Take what tells whether a path may be read at all."""
        self._keep = keep
        self._members: dict[str, list[Member]] = {}
        self._strangers: dict[str, list[Member]] = {}
        self._open: dict[tuple[int, int], FileSet] = {}
        self._states: dict[tuple[int, int], list[tuple[FileSet, FileState]]] = {}
        self._live: dict[tuple[int, int], FileSet] = {}
        self._by_path: dict[str, FileSet] = {}
        #: Paths of all members.
        self.paths: set[str] = set()

    def group(
        self, filesets: Mapping[str, FileSet], listings: Mapping[str, Listing], targets: Mapping[str, str]
    ) -> None:
        """Group all files anew. ``targets`` are what logs that are symbolic links lead to, by the logs' names."""
        self._index(filesets, listings, targets)
        self._members, self._strangers, self.paths = {}, {}, set()
        for directory, listing in listings.items():
            strangers = self._strangers[directory] = []
            for path, entry in _entries(directory, listing):
                if not self._keep(path) or (_packed(path) and os.path.basename(unpacked(path)) in listing.files):
                    # While x exists, x.gz is only half written.
                    continue
                named = self._named(path)
                owner = self._owner(path, entry, named)
                if owner is None:
                    strangers.append(Member(path, entry, usual=False))
                else:
                    self.paths.add(path)
                    self._members.setdefault(owner.name, []).append(Member(path, entry, usual=owner is named))

    def members(self, fileset: FileSet) -> list[Member]:
        """Give the names of a log's files."""
        return self._members.get(fileset.name, [])

    def siblings(self, fileset: FileSet, named: Callable[[str], bool]) -> list[Sibling]:
        """Give a log's files, one name each, oldest first. ``named`` tells whether the configuration names a path."""
        members = self.members(fileset)
        by_identity: dict[tuple[int, int], Member] = {}
        unknown = [member for member in members if member.entry.identity == _UNKNOWN]
        for member in members:
            if member.entry.identity != _UNKNOWN:
                known = by_identity.get(member.entry.identity)
                if known is None or (member.path == fileset.path) > (known.path == fileset.path):
                    by_identity[member.entry.identity] = member
        rotated: list[tuple[int, int, Sibling]] = []
        live: list[Sibling] = []
        for path, _, usual in (*by_identity.values(), *unknown):
            if path == fileset.path:
                live.append(Sibling(path, live=not _packed(path)))
                continue
            try:
                age = os.stat(path).st_mtime_ns
            except FileNotFoundError:
                continue
            except OSError:
                age = 0
            rotated.append((age, -number_of(path), Sibling(path, live=False)))
            if not live and not usual and named(path):
                # Renamed for good: what nobody made anew is written to under its new name.
                rotated[-1] = (age, 1, Sibling(path, live=True))
        rotated.sort()
        files = [sibling for _, _, sibling in rotated]
        if live:
            files = [sibling._replace(live=False) for sibling in files]
        else:
            files = [
                sibling._replace(live=sibling.live and number == len(files)) for number, sibling in enumerate(files, 1)
            ]
        return files + live

    def strangers(self, fileset: FileSet, directories: set[str]) -> Iterator[Member]:
        """Give the files that belong to no log and are named like this one's."""
        log = os.path.basename(fileset.path)
        for directory in directories:
            for member in self._strangers.get(directory, ()):
                if member.entry.identity != _UNKNOWN and kin(member.entry.name, log):
                    yield member

    def _index(
        self, filesets: Mapping[str, FileSet], listings: Mapping[str, Listing], targets: Mapping[str, str]
    ) -> None:
        self._open, self._states, self._live, self._by_path = {}, {}, {}, {}
        for fileset in filesets.values():
            self._by_path[fileset.path] = fileset
            for file in fileset.open_files:
                self._open.setdefault(file.identity, fileset)
            for state in fileset.states.values():
                if state.inode and (state.head_size or not state.done):
                    self._states.setdefault((state.device, state.inode), []).append((fileset, state))
            directory, name = os.path.split(fileset.path)
            listing = listings.get(directory)
            entry = listing.files.get(name) if listing is not None else None
            if entry is not None:
                self._live.setdefault(entry.identity, fileset)
        for name, target in targets.items():
            if name in filesets:
                self._by_path.setdefault(target, filesets[name])

    def _named(self, path: str) -> FileSet | None:
        fileset = self._by_path.get(path)
        if fileset is None:
            base = base_of(path)
            while fileset is None and base is not None:
                fileset, base = self._by_path.get(base), base_of(base)
        return fileset

    def _owner(self, path: str, entry: Entry, named: FileSet | None) -> FileSet | None:
        if entry.identity == _UNKNOWN:
            return named
        owner = self._open.get(entry.identity)
        if owner is not None:
            return owner
        known = self._states.get(entry.identity, ())
        if any(fileset is named for fileset, _ in known):
            return named
        for fileset, state in known:
            if state.head_size and holds(state, path):
                return fileset
        return self._live.get(entry.identity, named)


def holds(state: FileState, path: str) -> bool:
    """Tell whether the file under a path is the generation that a state describes."""
    try:
        data = open_bytes(open_log(path), path)
    except OSError:
        return False
    try:
        return matches(state, data)
    except OSError:
        return False
    finally:
        data.close()


def _entries(directory: str, listing: Listing) -> Iterator[tuple[str, Entry]]:
    for name, entry in listing.files.items():
        yield os.path.join(directory, name), entry
    for name, error in listing.refused.items():
        if error.errno not in _NO_LOG:
            yield os.path.join(directory, name), Entry(name, _UNKNOWN)


def _packed(path: str) -> bool:
    return path.endswith(SUFFIXES)
