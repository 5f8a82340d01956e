"""Which file is which: rotation, truncation, copies, archives, and files that vanish.

A log's siblings on disk are compared with what is open (by inode: a held inode is not reused) and with what the
checkpoint knows (by head, and by the bytes before the offset). What matches is continued, what is done is left
alone, what is unknown is read from the beginning, oldest first. What the checkpoint knows and nobody finds any more
is accounted as lost, if it had unread bytes.
"""

# Path objects cost more than the calls they wrap, every second for each of many files.

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from shipper.source import FileState
from shipper.tailing.archive import ArchiveBytes, UnreadableArchiveError, open_bytes
from shipper.tailing.bytes import PlainBytes, open_log
from shipper.tailing.fingerprint import copies, matches
from shipper.tailing.paths import NotFollowedError, followed, printable, regular
from shipper.tailing.sibling import FileStatus, Sibling
from shipper.tailing.tailedfile import TailedFile
from shipper.telemetry.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shipper.source import SourceContext
    from shipper.tailing.bytes import Bytes
    from shipper.tailing.fileset import FileSet

_log = get_logger(__name__)

#: Looks at a directory whose names move before it is left to the next sweep.
LOOKS = 8


class _NothingToRead(NamedTuple):
    """What becomes of a sibling that holds nothing for us.

    ``key`` is the generation that it holds to its end, if known. ``changed`` says that the log changed under the look,
    so that nothing can be said of it yet.
    """

    key: int | None = None
    changed: bool = False


class _Overwritten:
    """The bytes of a generation that was overwritten: nothing can be read, what was read is accounted for."""

    fd = -1

    def __init__(self, file: TailedFile) -> None:
        self.device, self.inode = self.identity = file.identity
        self._size = file.position

    def size(self) -> int:
        return self._size

    def read(self, position: int, count: int) -> bytes:  # noqa: ARG002 - the protocol's signature
        return b""

    def close(self) -> None:
        pass


class _Scan:
    """What one look at a log's siblings found, the oldest first."""

    def __init__(self, fileset: FileSet) -> None:
        self.open_files = {file.identity: file for file in fileset.open_files}
        self.opened: list[TailedFile] = []  # in this look
        self.in_order: list[TailedFile] = []
        self.identities: list[tuple[str, tuple[int, int]]] = []  # path and identity of each sibling
        self.named: set[tuple[int, int]] = set()  # identities of files that have a name among the siblings
        self.finished: set[int] = set()  # keys of generations that siblings hold to their end
        self.unreadable: list[tuple[Sibling, FileStatus, UnreadableArchiveError]] = []
        self.steady = True  # no name moved under the look

    def states(self) -> list[FileState]:
        """Give the states of the generations that are open."""
        return [file.state for file in (*self.open_files.values(), *self.opened) if file.state is not None]


class Rotation(ABC):
    """Keeps each log's queue of generations true to what is on disk."""

    _context: SourceContext
    #: Whether ids are made of the file's identity and the place in it, so that no two files may share an identity.
    ids_by_place = False

    def __init__(self) -> None:
        self.filesets: dict[str, FileSet] = {}
        self.open_files_changed = True
        self._unreadable: dict[str, tuple[int | None, str | None]] = {}

    @abstractmethod
    def siblings(self, fileset: FileSet) -> list[Sibling]:
        """Give the log's files, oldest first, the live one last. Raises OSError when the directory is gone."""

    @abstractmethod
    def fileset_for(self, name: str) -> FileSet:
        """Give the log of this name, made on demand."""

    def status(self, path: str) -> FileStatus:
        """Give the status of the file that a path leads to. Raises OSError for what is no log of ours to read."""
        return FileStatus.of(regular(followed(path), path))

    def strangers(self, fileset: FileSet) -> list[Sibling]:  # noqa: ARG002 - the file source needs it
        """Give files of no known name that may be copies of the log."""
        return []

    def first_offset(self, file: TailedFile) -> int:  # noqa: ARG002 - the file source needs it
        """Give where reading an unknown file begins."""
        return 0

    def _adopt_states(self, states: Iterable[FileState]) -> None:
        for state in states:
            name, _, _ = state.tag.partition("\n")
            fileset = self.fileset_for(name)
            fileset.states[state.key] = state
            fileset.missing[state.key] = 0
            fileset.first_scan = False

    # One look at the disk

    def _reconcile(self, fileset: FileSet) -> bool:
        """Compare the log with the disk; tell whether there may be something to read."""
        # A rotation between listing and looking shows as a vanished name: look again at once.
        for _ in range(LOOKS):
            if self._scan(fileset):
                for _, fd in fileset.seized:
                    os.close(fd)
                fileset.seized = []
                break
        else:
            # What the watcher opened is kept: its place among the others is not known yet.
            fileset.scan_failed = True
        self.open_files_changed = True
        fileset.first_scan = False
        return bool(fileset.queue)

    def _scan(self, fileset: FileSet) -> bool:
        """Look once at all siblings and take over what was found; False when names moved meanwhile."""
        before = fileset.current
        fileset.scan_failed = False
        for state in fileset.states.values():
            self._context.positions.refresh(state)
        self._notice_truncation(fileset)
        siblings = self._list_siblings(fileset)
        scan = _Scan(fileset)
        self._take_seized(fileset, scan)
        for sibling in siblings:
            self._look_at(fileset, sibling, scan)
        if not scan.steady or (siblings and scan.identities != self._identities(fileset)):
            # A generation may have passed the look by. What was found for the first time is let go: read now, it could
            # come before an older one that is not known yet. The caller looks again.
            for file in scan.opened:
                if file in fileset.queue:
                    fileset.queue.remove(file)
                file.data.close()
            return False
        self._enqueue(fileset, scan.in_order)
        for file in fileset.open_files:
            if file.identity not in scan.named and isinstance(file.data, PlainBytes):
                file.live = False
                file.linked = os.fstat(file.data.fd).st_nlink > 0
        if before is not None and fileset.current is not before and before not in fileset.drained:
            fileset.joiner.flush()
        self._pass_over(fileset, scan)
        if not fileset.scan_failed:
            self._account_missing(fileset, scan.finished)
        return True

    def _notice_truncation(self, fileset: FileSet) -> None:
        # Before its copy is looked at: a copy of a file that is no longer what it was would look like a new one.
        for file in list(fileset.queue):
            if isinstance(file.data, PlainBytes) and not file.unchanged():
                self._truncated(fileset, file)

    def _list_siblings(self, fileset: FileSet) -> list[Sibling]:
        try:
            siblings = self.siblings(fileset)
        except FileNotFoundError:
            fileset.directory_gone = True
            return []
        fileset.directory_gone = False
        return siblings

    def _take_seized(self, fileset: FileSet, scan: _Scan) -> None:
        """Take files that the watcher opened the moment they appeared; they may have no name by now."""
        for path, fd in fileset.seized:
            data: Bytes = PlainBytes(os.dup(fd))
            if data.identity in scan.open_files:
                data.close()
                continue
            file = self._identify(fileset, Sibling(path, live=True), data, [])
            if isinstance(file, TailedFile):
                scan.open_files[file.identity] = file
                scan.opened.append(file)
                fileset.queue.append(file)

    def _look_at(self, fileset: FileSet, sibling: Sibling, scan: _Scan) -> None:
        """Find out which file stands under one name, and open it if there is something to read in it."""
        try:
            status = self.status(sibling.path)
            scan.identities.append((sibling.path, status.identity))
            known = scan.open_files.get(status.identity)
            if known is not None:
                self._readable(sibling.path)
                scan.named.add(status.identity)
                self._found_at(fileset, known, sibling)
                if known in fileset.queue:
                    scan.in_order.append(known)
                return
            if not sibling.live and status in fileset.finished_siblings:
                scan.finished.add(fileset.finished_siblings[status])
                return
            data = _open(sibling)
        except FileNotFoundError:
            scan.steady = False
            return
        except UnreadableArchiveError as error:
            self._readable(sibling.path)
            scan.unreadable.append((sibling, status, error))
            return
        except OSError as error:
            fileset.scan_failed = True
            self._report(sibling.path, error)
            return
        self._readable(sibling.path)
        if data.identity != status.identity:
            data.close()
            scan.steady = False
            return
        file = self._identify(fileset, sibling, data, scan.states())
        if isinstance(file, TailedFile):
            scan.named.add(status.identity)
            scan.in_order.append(file)
            scan.opened.append(file)
        elif file.changed:
            scan.steady = False
        elif file.key is not None:
            fileset.finished_siblings[status] = file.key
            scan.finished.add(file.key)

    def _identities(self, fileset: FileSet) -> list[tuple[str, tuple[int, int]]]:
        """Give path and identity of each sibling as of now; unreadable ones are left out."""
        result = []
        try:
            for sibling in self.siblings(fileset):
                with suppress(OSError):
                    result.append((sibling.path, self.status(sibling.path).identity))
        except FileNotFoundError:
            return []
        return result

    def _pass_over(self, fileset: FileSet, scan: _Scan) -> None:
        """Account for packed files that cannot be read: known ones again, new ones as lost.

        Where a generation is no longer found, the packed file is what became of it: what of it was unread is accounted
        for with it, and the rest was delivered.
        """
        if not scan.unreadable:
            return
        held = scan.finished | {file.state.key for file in fileset.open_files if file.state is not None}
        unexplained = [s for s in fileset.states.values() if s.key not in held and s.inode and s.head_size]
        for sibling, status, error in scan.unreadable:
            state = next(
                (s for s in fileset.states.values() if (s.device, s.inode, s.size) == (*status.identity, status.size)),
                None,
            )
            if state is None:
                state = self._register_unreadable(fileset, sibling, status)
                became = unexplained.pop(0) if unexplained else None
                _log.warning(
                    "file is packed in a format that cannot be read; it is passed over",
                    file=printable(sibling.path),
                    error=error.strerror,
                    lost="nothing that was not counted before" if became is not None else f"{status.size} packed bytes",
                    fix="pack rotated logs with gzip, xz, bzip2 or zstd, or exclude this file",
                )
                if became is None:
                    self._context.positions.lost(state, 0, status.size, "archive_unreadable")
            fileset.finished_siblings[status] = state.key
            scan.finished.add(state.key)

    def _register_unreadable(self, fileset: FileSet, sibling: Sibling, status: FileStatus) -> FileState:
        generation = max([fileset.next_generation, *(s.generation + 1 for s in fileset.states.values())])
        fileset.next_generation = generation + 1
        state = self._context.positions.add(
            FileState(
                key=0,
                source=self._context.name,
                path=sibling.path,
                device=status.device,
                inode=status.inode,
                uid=f"packed:{status.device}:{status.inode}",
                head=0,
                head_size=0,
                generation=generation,
                size=status.size,
                tag=fileset.name,
                done=True,
            )
        )
        fileset.states[state.key] = state
        return state

    # Which file it is

    def _identify(
        self, fileset: FileSet, sibling: Sibling, data: Bytes, taken: list[FileState]
    ) -> TailedFile | _NothingToRead:
        """Open the file that continues or begins a generation; ``data`` is closed when there is nothing in it for us.

        ``taken`` are the generations that other siblings hold.
        """
        try:
            file = (
                self._copy_of_open(fileset, sibling, data)
                or self._continued(fileset, sibling, data, taken)
                or self._begun(fileset, sibling, data)
            )
        except BaseException:
            data.close()
            raise
        if isinstance(file, _NothingToRead):
            data.close()
        return file

    def _copy_of_open(self, fileset: FileSet, sibling: Sibling, data: Bytes) -> _NothingToRead | None:
        if sibling.live:
            return None
        for file in fileset.open_files:
            if copies(data, file.data):
                return _NothingToRead(file.state.key if file.state is not None else None)
        return None

    def _continued(
        self, fileset: FileSet, sibling: Sibling, data: Bytes, taken: list[FileState]
    ) -> TailedFile | _NothingToRead | None:
        """Continue the generation of the checkpoint that these bytes are, if they are one."""
        held = {state.key for state in taken} | {f.state.key for f in fileset.open_files if f.state is not None}
        candidates = [
            state
            for state in fileset.states.values()
            if state.key not in held and not self._shares_only_head(state, sibling, data)
        ]
        candidates.sort(key=lambda state: ((state.device, state.inode) != data.identity, -state.offset))
        state = next((state for state in candidates if matches(state, data)), None)
        if state is None:
            return None
        fileset.missing.pop(state.key, None)
        if not sibling.live and not data.read(state.offset, 1):
            moved = (state.device, state.inode, state.path) != (*data.identity, sibling.path)
            if not state.done or moved:
                if not state.done:
                    self._account_damage(state, data, state.offset)
                state.done, state.path = True, sibling.path
                state.device, state.inode = data.identity
                self._context.positions.update(state)
            return _NothingToRead(state.key)
        state.done = False
        return self._resume(fileset, sibling, data, state)

    def _begun(self, fileset: FileSet, sibling: Sibling, data: Bytes) -> TailedFile | _NothingToRead:
        """Begin a new generation with these bytes."""
        if not sibling.live and isinstance(data, PlainBytes):
            # A file that copytruncate has truncated since it was looked at is nobody's original any more.
            if any(isinstance(file.data, PlainBytes) and not file.unchanged() for file in fileset.queue):
                fileset.signature = ()
                return _NothingToRead(changed=True)
            if not data.size():
                # A copy that has only just begun, or has nothing: looked at again until it has.
                fileset.signature = ()
                return _NothingToRead()
        known = [state.generation for state in fileset.states.values()]
        known += [file.generation for file in fileset.open_files]
        generation = max([fileset.next_generation, *(number + 1 for number in known)])
        fileset.next_generation = generation + 1
        file = TailedFile(data, sibling.path, generation=generation)
        file.live = sibling.live
        if fileset.first_scan:
            file.position = file.emitted = self.first_offset(file)
            file.remember()
        return file

    def _shares_only_head(self, state: FileState, sibling: Sibling, data: Bytes) -> bool:
        """Tell whether a file may be like the state's only in how it begins.

        Nothing is safe of that one, so no marker tells; but its lines may have been sent, and ids of another file's
        lines must not equal theirs. A live file is never a copy, so the inode decides.
        """
        return self.ids_by_place and sibling.live and state.offset == 0 and data.identity != (state.device, state.inode)

    def _resume(self, fileset: FileSet, sibling: Sibling, data: Bytes, state: FileState) -> TailedFile:
        """Open a generation that the checkpoint knows, with all that it knows of how it was read before."""
        file = TailedFile(data, sibling.path, state=state)
        file.remember()
        _, _, skips = state.tag.partition("\n")
        if skips:
            file.skips = [(int(a), int(b)) for a, _, b in (r.partition("-") for r in skips.split(","))]
        file.cuts = frozenset(start for start, end, _ in self._context.positions.anchors(state.key) if start == end)
        self._found_at(fileset, file, sibling)
        return file

    # Keeping the queue true

    def _found_at(self, fileset: FileSet, file: TailedFile, sibling: Sibling) -> None:
        """Take note of the name under which an open file was found."""
        file.live = sibling.live
        file.linked = True
        if sibling.live and file in fileset.drained:
            fileset.drained.remove(file)
            fileset.queue.append(file)
        state = file.state
        if state is not None and (state.path != sibling.path or state.done or state.inode != file.data.inode):
            state.path = sibling.path
            state.device, state.inode = file.identity
            state.done = False
            self._context.positions.update(state)
        file.path = sibling.path

    def _enqueue(self, fileset: FileSet, in_order: list[TailedFile]) -> None:
        """Bring new files into the queue at their place among the others (oldest first)."""
        place = len(fileset.queue)
        for file in reversed(in_order):
            if file in fileset.queue:
                place = min(place, fileset.queue.index(file))
            else:
                fileset.queue.insert(place, file)

    # What is gone

    def _account_damage(self, state: FileState, data: Bytes, offset: int) -> None:
        """Account for what a torn or corrupt archive no longer gives behind an offset, as far as that is known."""
        if isinstance(data, ArchiveBytes) and data.torn:
            self._context.positions.lost(state, offset, max(offset, state.size, data.promised()), "archive_damaged")

    def _account_missing(self, fileset: FileSet, finished: set[int]) -> None:
        """Account for generations that nobody holds and no sibling contains, once two looks agree."""
        held = finished | {file.state.key for file in fileset.open_files if file.state is not None}
        positions = self._context.positions
        for key, state in list(fileset.states.items()):
            if key in held:
                fileset.missing.pop(key, None)
                continue
            newest = all(other.generation <= state.generation for other in fileset.states.values())
            if self.ids_by_place and newest and state.done and not state.inode:
                fileset.missing.pop(key, None)
                continue
            scans = fileset.missing[key] = fileset.missing.get(key, 0) + 1
            if scans < 2:
                continue
            if not state.done and state.size > state.offset:
                positions.lost(state, state.offset, state.size, "file_vanished")
            del fileset.missing[key]
            if self.ids_by_place and newest:
                # Kept without what a file could match: it remembers the generation. A new file may get the same inode
                # and begin with the same line, and its ids must be others.
                state.done, state.head, state.head_size, state.device, state.inode = True, 0, 0, 0, 0
                positions.update(state)
                continue
            positions.forget(key)
            del fileset.states[key]

    def _truncated(self, fileset: FileSet, file: TailedFile) -> None:
        """Take note that the bytes of an open file changed: finish its copy if there is one, then begin anew."""
        place = fileset.queue.index(file)
        fresh = TailedFile(file.data, file.path, generation=max(fileset.next_generation, file.generation + 1))
        fresh.live, fresh.linked, fresh.size = file.live, file.linked, file.data.size()
        fileset.next_generation = fresh.generation + 1
        fileset.queue[place] = fresh
        self.open_files_changed = True
        state = file.state
        if state is None:
            self.account_cut(fileset, file, file.position)
            return
        state.offset, state.marker = file.emitted, file.marker
        copy = self._find_copy(fileset, state)
        if copy is not None:
            _log.info("file was truncated; its copy is finished first", file=file.path, copy=copy.path)
            fileset.joiner.drop(file)
            fileset.queue.insert(place, copy)
            return
        fileset.joiner.flush()
        _log.warning("file was truncated; reading from its new beginning", file=file.path)
        self.account_cut(fileset, file, file.position)
        file.data = _Overwritten(file)
        file.live = file.linked = False
        file.quiet_since = None
        fileset.drained.append(file)

    def account_cut(self, fileset: FileSet, file: TailedFile, size: int) -> None:
        """Account for the bytes behind ``size``, which were there and were cut off."""
        state = file.state
        if state is None:
            # Nothing was read of it, so it is in no state.
            device, inode = file.identity
            state = FileState(0, self._context.name, file.path, device, inode, "", 0, 0, tag=fileset.name)
        if file.size > size:
            self._context.positions.lost(state, size, file.size, "file_truncated")
        file.size = size

    def _find_copy(self, fileset: FileSet, state: FileState) -> TailedFile | None:
        """Open the sibling that a file was copied to before it was truncated."""
        try:
            siblings = self.siblings(fileset)
        except FileNotFoundError:
            return None
        opened = {file.identity for file in fileset.open_files}
        for sibling in [*reversed(siblings), *self.strangers(fileset)]:
            if sibling.live:
                continue
            try:
                data = _open(sibling)
            except OSError:
                continue
            if data.identity not in opened and matches(state, data):
                fileset.finished_siblings = {
                    status: key for status, key in fileset.finished_siblings.items() if key != state.key
                }
                return self._resume(fileset, sibling, data, state)
            data.close()
        return None

    def _readable(self, path: str) -> None:
        if self._unreadable.pop(path, None) is not None:
            _log.info("file can be read again", file=path)

    def _forget_unreadable(self) -> None:
        """Count no longer what is no longer there."""
        for path in [p for p in self._unreadable if p != self._context.name and not os.path.lexists(p)]:
            del self._unreadable[path]

    def _report(self, path: str, error: Exception) -> None:
        """Say once per cause that a file cannot be read; it is tried again at every sweep."""
        cause = (error.errno, error.strerror) if isinstance(error, OSError) else (None, type(error).__name__)
        if self._unreadable.get(path, (0, "")) != cause:
            self._unreadable[path] = cause
            details = {"file": printable(path), "error": getattr(error, "strerror", None) or f"{cause[1]}: {error}"}
            if isinstance(error, NotFollowedError):
                details["fix"] = error.fix
            elif isinstance(error, PermissionError):
                groups = sorted({os.getegid(), *os.getgroups()})
                details["fix"] = (
                    f"let user id {os.geteuid()} or one of its group ids {groups} read it and enter its directory"
                )
            _log.error("file cannot be read; it is tried again", **details, exc_info=not isinstance(error, OSError))


def _open(sibling: Sibling) -> Bytes:
    return open_bytes(open_log(sibling.path), sibling.path)
