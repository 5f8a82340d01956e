"""Which file is which: rotation, truncation, copies, archives, and files that vanish.

A log's siblings on disk are compared with what is open (by inode: a held inode is not reused) and with what the
checkpoint knows (by head, and by the bytes before the offset). What matches is continued, what is done is left
alone, what is unknown is read from the beginning, oldest first. What the checkpoint knows and nobody finds any more
is accounted as lost, if it had unread bytes.
"""

# Path objects cost more than the calls they wrap, every second for each of many files.
# ruff: noqa: PTH116

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from shipper.tailing.bytes import Bytes, GzipBytes, PlainBytes, copies, matches, open_log
from shipper.tailing.tail import Log, Tail
from shipper.telemetry.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shipper.source import FileState, SourceContext

_log = get_logger(__name__)


class Sibling(NamedTuple):
    """One file of a log: ``live`` is the one being written, ``archive`` is gzipped."""

    path: str
    live: bool
    archive: bool


class _Vanished:
    """The bytes of a generation that was overwritten: nothing can be read, what was read is accounted for."""

    fd = -1

    def __init__(self, tail: Tail) -> None:
        self.device, self.inode = self.identity = tail.identity
        self._size = tail.position

    def size(self) -> int:
        return self._size

    def read(self, position: int, count: int) -> bytes:  # noqa: ARG002 - the protocol's signature
        return b""

    def close(self) -> None:
        pass


#: Looks at a directory whose names move before it is left to the next sweep.
LOOKS = 8


class Rotation(ABC):
    """Keeps each log's queue of generations true to what is on disk."""

    _context: SourceContext
    #: Whether ids are made of the file's identity and the place in it, so that no two files may share an identity.
    ids_by_place = False

    def __init__(self) -> None:
        self.logs: dict[str, Log] = {}
        self.rewatch = True
        self._unreadable: dict[str, int | None] = {}

    @abstractmethod
    def siblings(self, log: Log) -> list[Sibling]:
        """Give the log's files, oldest first, the live one last. Raises OSError when the directory is gone."""

    @abstractmethod
    def log_for(self, name: str) -> Log:
        """Give the log of this name, made on demand."""

    def first_offset(self, log: Log, data: Bytes) -> int:  # noqa: ARG002 - the file source needs them
        """Give where reading an unknown file begins."""
        return 0

    def _adopt_states(self, states: Iterable[FileState]) -> None:
        for state in states:
            name, _, _ = state.tag.partition("\n")
            log = self.log_for(name)
            log.states[state.key] = state
            log.missing[state.key] = 0
            log.first_scan = False

    def _reconcile(self, log: Log) -> bool:
        """Compare the log with the disk; tell whether there may be something to read."""
        # A rotation between listing and looking shows as a vanished name: look again at once.
        for _ in range(LOOKS):
            if self._compare(log):
                for _, fd in log.spare:
                    os.close(fd)
                log.spare = []
                break
        else:
            # What the watcher opened is kept: its place among the others is not known yet.
            log.troubled = True
        self.rewatch = True
        log.first_scan = False
        return bool(log.queue)

    def _compare(self, log: Log) -> bool:
        before = log.current
        log.troubled = False
        for tail in list(log.queue):
            # Seen before its copy is: a copy of a file that is no longer what it was would look like a new one.
            if isinstance(tail.data, PlainBytes) and not tail.unchanged():
                self._truncated(log, tail)
        try:
            siblings = self.siblings(log)
            log.gone = False
        except FileNotFoundError:
            siblings = []
            log.gone = True
        opened = {tail.identity: tail for tail in log.tails}
        made: list[Tail] = []  # in this look
        for path, fd in log.spare:
            # Files that the watcher opened the moment they appeared; they may have no name by now.
            data: Bytes = PlainBytes(os.dup(fd))
            if data.identity in opened:
                data.close()
                continue
            seized = self._identify(log, Sibling(path, live=True, archive=False), data, [])
            if seized is not None:
                opened[seized.identity] = seized
                log.queue.append(seized)
                made.append(seized)
        seen: set[tuple[int, int]] = set()
        found: set[int] = set()
        order: list[Tail] = []
        looked: list[tuple[str, tuple[int, int]]] = []
        complete = True
        taken: list[FileState] = [tail.state for tail in opened.values() if tail.state is not None]
        for sibling in siblings:
            try:
                status = os.stat(sibling.path)
            except FileNotFoundError:
                complete = False
                continue
            except OSError as error:
                log.troubled = True
                self._report(sibling.path, error)
                continue
            identity = status.st_dev, status.st_ino
            looked.append((sibling.path, identity))
            known = opened.get(identity)
            if known is not None:
                self._readable(sibling.path)
                seen.add(identity)
                self._place(log, known, sibling)
                if known in log.queue:
                    order.append(known)
                continue
            judged = (*identity, status.st_size, status.st_mtime_ns)
            if not sibling.live and judged in log.settled:
                found.add(log.settled[judged])
                continue
            try:
                data = _open(sibling)
            except FileNotFoundError:
                complete = False
                continue
            except OSError as error:
                log.troubled = True
                self._report(sibling.path, error)
                continue
            self._readable(sibling.path)
            if data.identity != identity:
                data.close()
                complete = False
                continue
            fresh = self._identify(log, sibling, data, taken)
            if fresh is None:
                if self._again:
                    complete = False
                elif self._verdict is not None:
                    log.settled[judged] = self._verdict
                    found.add(self._verdict)
                continue
            if fresh.state is not None:
                taken.append(fresh.state)
            seen.add(identity)
            order.append(fresh)
            made.append(fresh)
        if not complete or (siblings and looked != self._identities(log)):
            # Names moved under the look, so a generation may have passed it by. What it found for the first time is let
            # go: read now, it could come before an older one that is not known yet. The caller looks again.
            for tail in made:
                if tail in log.queue:
                    log.queue.remove(tail)
                tail.data.close()
            return False
        self._arrange(log, order)
        for tail in log.tails:
            if tail.identity not in seen and isinstance(tail.data, PlainBytes):
                tail.live = False
                tail.linked = os.fstat(tail.data.fd).st_nlink > 0
        if before is not None and log.current is not before and before not in log.lingering:
            log.joiner.flush()
        if not log.troubled:
            self._miss(log, found)
        return True

    def _identities(self, log: Log) -> list[tuple[str, tuple[int, int]]]:
        """Give path and identity of each sibling as of now; unreadable ones are left out."""
        result = []
        try:
            for sibling in self.siblings(log):
                with suppress(OSError):
                    status = os.stat(sibling.path)
                    result.append((sibling.path, (status.st_dev, status.st_ino)))
        except FileNotFoundError:
            return []
        return result

    _verdict: int | None = None
    _again = False

    def _identify(self, log: Log, sibling: Sibling, data: Bytes, taken: list[FileState]) -> Tail | None:
        """Make the tail that continues or begins this file, or None when there is nothing in it for us.

        In the latter case ``_verdict`` is the key of the generation it holds, if known, and ``_again`` says that
        the log changed under the look.
        """
        self._verdict = None
        self._again = False
        try:
            for tail in log.tails:
                if not sibling.live and copies(data, tail.data):
                    self._verdict = tail.state.key if tail.state is not None else None
                    data.close()
                    return None
            held = {state.key for state in taken} | {t.state.key for t in log.tails if t.state is not None}
            candidates = [s for s in log.states.values() if s.key not in held and not self._alike(s, sibling, data)]
            candidates.sort(key=lambda s: ((s.device, s.inode) != (data.device, data.inode), -s.offset))
            state = next((state for state in candidates if matches(state, data)), None)
            if state is not None:
                log.missing.pop(state.key, None)
                finished = not data.read(state.offset, 1)
                if finished and not sibling.live:
                    if not state.done:
                        self._damaged(state, data, state.offset)
                        state.done = True
                        self._context.positions.update(state)
                    self._verdict = state.key
                    data.close()
                    return None
                state.done = False
                tail = Tail(data, sibling.path, state=state)
                self._resume(tail, state)
                self._place(log, tail, sibling)
                return tail
            if not sibling.live and isinstance(data, PlainBytes):
                # A file that copytruncate has truncated since its tail was looked at is nobody's original any more.
                self._again = any(isinstance(t.data, PlainBytes) and not t.unchanged() for t in log.queue)
                if self._again or not data.size():
                    # An empty one is a copy that has only just begun, or has nothing: looked at again until it has.
                    log.signature = ()
                    data.close()
                    return None
            known = [s.generation for s in log.states.values()] + [t.generation for t in log.tails]
            generation = max([log.generation, *(g + 1 for g in known)])
            log.generation = generation + 1
            tail = Tail(data, sibling.path, generation=generation)
            tail.live = sibling.live
            if log.first_scan:
                tail.position = tail.given = self.first_offset(log, data)
                tail.remember()
        except BaseException:
            data.close()
            raise
        return tail

    def _alike(self, state: FileState, sibling: Sibling, data: Bytes) -> bool:
        """Tell whether a file may be like the state's only in how it begins.

        Nothing is safe of that one, so no marker tells; but its lines may have been sent, and ids of another file's
        lines must not equal theirs. A live file is never a copy, so the inode decides.
        """
        return self.ids_by_place and sibling.live and state.offset == 0 and data.identity != (state.device, state.inode)

    def _resume(self, tail: Tail, state: FileState) -> None:
        """Take what the checkpoint knows of how a file was read before."""
        tail.remember()
        _, _, skips = state.tag.partition("\n")
        if skips:
            tail.skips = [(int(a), int(b)) for a, _, b in (r.partition("-") for r in skips.split(","))]
        tail.cuts = frozenset(start for start, end, _ in self._context.positions.anchors(state.key) if start == end)

    def _damaged(self, state: FileState, data: Bytes, offset: int) -> None:
        """Account for what a torn or corrupt archive no longer gives behind an offset, as far as that is known."""
        if isinstance(data, GzipBytes) and data.torn:
            self._context.positions.lost(state, offset, max(offset, state.size, data.promised()), "archive_damaged")

    def _place(self, log: Log, tail: Tail, sibling: Sibling) -> None:
        tail.live = sibling.live
        tail.linked = True
        if sibling.live and tail in log.lingering:
            log.lingering.remove(tail)
            log.queue.append(tail)
        state = tail.state
        if state is not None and (state.path != sibling.path or state.done or state.inode != tail.data.inode):
            state.path = sibling.path
            state.device, state.inode = tail.identity
            state.done = False
            self._context.positions.update(state)
        tail.path = sibling.path

    def _arrange(self, log: Log, order: list[Tail]) -> None:
        """Bring new tails into the queue at their place in ``order`` (oldest first)."""
        place = len(log.queue)
        for tail in reversed(order):
            if tail in log.queue:
                place = min(place, log.queue.index(tail))
            else:
                log.queue.insert(place, tail)

    def _miss(self, log: Log, found: set[int]) -> None:
        """Account for generations that nobody holds and no sibling contains, once two looks agree."""
        held = found | {tail.state.key for tail in log.tails if tail.state is not None}
        positions = self._context.positions
        for key, state in list(log.states.items()):
            if key in held:
                log.missing.pop(key, None)
                continue
            newest = all(other.generation <= state.generation for other in log.states.values())
            if self.ids_by_place and newest and state.done and not state.inode:
                log.missing.pop(key, None)
                continue
            looks = log.missing[key] = log.missing.get(key, 0) + 1
            if looks < 2:
                continue
            if not state.done and state.size > state.offset:
                positions.lost(state, state.offset, state.size, "file_vanished")
            del log.missing[key]
            if self.ids_by_place and newest:
                # Kept without what a file could match: it remembers the generation. A new file may get the same inode
                # and begin with the same line, and its ids must be others.
                state.done, state.head, state.head_size, state.device, state.inode = True, 0, 0, 0, 0
                positions.update(state)
                continue
            positions.forget(key)
            del log.states[key]

    def _truncated(self, log: Log, tail: Tail) -> None:
        """The bytes under an open tail changed: finish its copy if there is one, then begin anew."""
        place = log.queue.index(tail)
        fresh = Tail(tail.data, tail.path, generation=max(log.generation, tail.generation + 1))
        fresh.live, fresh.linked, fresh.size = tail.live, tail.linked, tail.data.size()
        log.generation = fresh.generation + 1
        log.queue[place] = fresh
        self.rewatch = True
        state = tail.state
        if state is None:
            return
        state.offset, state.marker = tail.given, tail.marker
        copy = self._find_copy(log, state)
        if copy is not None:
            _log.info("file was truncated; its copy is finished first", file=tail.path, copy=copy.path)
            log.joiner.drop(tail)
            log.queue.insert(place, copy)
            return
        log.joiner.flush()
        _log.warning("file was truncated; reading from its new beginning", file=tail.path)
        if tail.size > tail.position:
            self._context.positions.lost(state, tail.position, tail.size, "file_truncated")
        tail.data = _Vanished(tail)
        tail.live = tail.linked = False
        tail.quiet_since = None
        log.lingering.append(tail)

    def _find_copy(self, log: Log, state: FileState) -> Tail | None:
        try:
            siblings = self.siblings(log)
        except FileNotFoundError:
            return None
        opened = {tail.identity for tail in log.tails}
        for sibling in reversed(siblings):
            if sibling.live:
                continue
            try:
                data = _open(sibling)
            except OSError:
                continue
            if data.identity not in opened and matches(state, data):
                log.settled = {judged: key for judged, key in log.settled.items() if key != state.key}
                tail = Tail(data, sibling.path, state=state)
                self._resume(tail, state)
                self._place(log, tail, sibling)
                return tail
            data.close()
        return None

    def _readable(self, path: str) -> None:
        if self._unreadable.pop(path, None) is not None:
            _log.info("file can be read again", file=path)

    def _report(self, path: str, error: OSError) -> None:
        """Say once per cause that a file cannot be read; it is tried again at every sweep."""
        if self._unreadable.get(path, -1) != error.errno:
            self._unreadable[path] = error.errno
            told = {"file": path, "error": error.strerror or str(error)}
            if isinstance(error, PermissionError):
                groups = sorted({os.getegid(), *os.getgroups()})
                told["fix"] = (
                    f"let user id {os.geteuid()} or one of its group ids {groups} read it and enter its directory"
                )
            _log.error("file cannot be read; it is tried again", **told)


def _open(sibling: Sibling) -> Bytes:
    fd = open_log(sibling.path)
    try:
        return GzipBytes(fd) if sibling.archive else PlainBytes(fd)
    except BaseException:
        os.close(fd)
        raise
