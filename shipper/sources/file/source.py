"""Plain log files by glob, with what rotation made of them: ``app.log.1``, ``app.log-20261122.gz``, ``app.log.old``.

A file belongs to the log that it was part of, whatever it is called now; see `shipper.sources.file.grouping`. What rotation
made of a log need not match the globs: it is history that nobody has shipped.
"""

# Path objects cost more than the calls they wrap, every second for each of many files.
# ruff: noqa: PTH112, PTH116, PTH120

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Annotated, ClassVar

import msgspec
from msgspec import Meta
from xxhash import xxh3_128_hexdigest

from shipper.errors import ConfigError
from shipper.record import Resource
from shipper.source import SourceConfig, SourceContext
from shipper.sources.file.globs import Globs
from shipper.sources.file.grouping import Grouping, Member, holds
from shipper.sources.file.rotated import base_of, kin
from shipper.tailing.archive import open_bytes
from shipper.tailing.bytes import open_log
from shipper.tailing.encoding import TextEncoding
from shipper.tailing.engine import TailSource
from shipper.tailing.fileset import FileSet
from shipper.tailing.fingerprint import copies
from shipper.tailing.joiner import Joiner
from shipper.tailing.listing import Entry, Listing, Listings
from shipper.tailing.paths import regular
from shipper.tailing.plainlines import PlainLines, resources
from shipper.tailing.sibling import FileStatus, Sibling
from shipper.tailing.tailedfile import TailedFile
from shipper.tailing.traces import open_trace
from shipper.tailing.watch import Watch

if TYPE_CHECKING:
    from shipper.source import FileState
    from shipper.tailing.decoding import Decoded

_FIRST_LINE = 1024
_BACK = 64 * 1024
#: Seconds that a new file which is a copy of an open log may take to become what copytruncate leaves of that log.
COPY_WAIT = 60.0
#: Logs that are gone and of which only the number of generations is remembered, at most.
REMEMBERED = 1000


class FileConfig(SourceConfig, frozen=True, kw_only=True):
    """Plain log files."""

    type: Annotated[str, Meta(description="file")] = "file"
    include: Annotated[list[str], Meta(description="Globs of the files to read; ** crosses directories.", min_length=1)]
    exclude: Annotated[list[str], Meta(description="Globs of files not to read.")] = msgspec.field(default_factory=list)
    parser: Annotated[
        str,
        Meta(description="Format of the lines.", pattern="^(auto|json|logfmt|access|fallback|plain)$"),
    ] = "auto"
    encoding: Annotated[str, Meta(description="Character encoding; bytes that are not in it become U+FFFD.")] = "utf-8"
    start_position: Annotated[
        str,
        Meta(description="Where files begin that are there at the first start.", pattern="^(beginning|end)$"),
    ] = "beginning"
    service: Annotated[str, Meta(description="Name of the service that writes the files, as service.name.")] = ""
    follow_symlinks: Annotated[
        str,
        Meta(
            description=(
                "Which symbolic links are followed: trusted (root's, the daemon's own user's, and those whose owner owns"
                " what they point to as well) or always."
            ),
            pattern="^(trusted|always)$",
        ),
    ] = "trusted"
    max_line_bytes: Annotated[
        int, Meta(description="Longest record in bytes; a longer line becomes several, marked.", ge=16, le=64 << 20)
    ] = 1 << 20


class FileSource(TailSource):
    """Follows all files that its globs name."""

    config: ClassVar[type[SourceConfig]] = FileConfig
    ids_by_place = True

    def __init__(self, config: FileConfig) -> None:
        super().__init__(config)
        self.parser = config.parser
        self.max_line = config.max_line_bytes
        self._settings = config
        self._trusting = config.follow_symlinks == "always"
        self._globs = Globs(config.include, config.exclude)
        self._listings = Listings(trusting=self._trusting)
        self._grouping = Grouping(self._may_read)
        self._lines: dict[str, PlainLines] = {}
        self._wanted_paths: set[str] = set()
        self._looked: dict[str, Listing] = {}
        self._targets: dict[str, str] = {}  # what logs that are symbolic links lead to
        self._copies: dict[str, float] = {}  # new files that look like copies of a log, and since when
        self._places: tuple[int, list[str], set[str]] = (-1, [], set())
        self._grouped: tuple[int, int, list[str]] = (-1, -1, [])
        self._signatures: dict[str, tuple[int, ...]] = {}  # of logs whose files all have usual names
        self._adopted = False  # a stranger may have become a log's file
        self._regroup = False  # files were opened since the last grouping, so identities say more
        try:
            self._encoding = TextEncoding(config.encoding)
        except LookupError:
            raise ConfigError(
                f"encoding: {config.encoding!r} is not a known character encoding; take utf-8, latin-1 or utf-16"
            ) from None

    def start_watch(self, context: SourceContext) -> Watch:
        """See `TailSource.start_watch`."""
        return Watch(context.wake, enabled=not context.once)

    # Which files there are

    def discover(self) -> list[FileSet]:
        """See `TailSource.discover`."""
        globbed = self._globs.paths(self._closed)
        self._look(globbed)
        grouped = (self._listings.version, len(self.filesets), globbed)
        if grouped != self._grouped or self._copies or self._regroup:
            self._group()
            self._search_renamed_copies()
            while self._begin_logs(globbed):
                self._look(globbed)
                self._group()
            self._report_refused(globbed)
            self._grouped = (self._listings.version, len(self.filesets), globbed)
        changed = []
        for fileset in self.filesets.values():
            signature = self._signature(fileset)
            if signature != fileset.signature or (fileset.first_scan and signature):
                fileset.signature = signature
                changed.append(fileset)
        self._forget_oldest()
        return changed

    def siblings(self, fileset: FileSet) -> list[Sibling]:
        """See `Rotation.siblings`."""
        before = self._listings.version
        for directory in self._directories(fileset):
            self._looked[directory] = self._listings.of(directory)
        if self._listings.version != before or self._adopted:
            self._group()
        return self._grouping.siblings(fileset, self._globs.name)

    def strangers(self, fileset: FileSet) -> list[Sibling]:
        """See `Rotation.strangers`."""
        self._adopted = True
        members = self._grouping.strangers(fileset, self._directories(fileset))
        return [Sibling(member.path, live=False) for member in members]

    def status(self, path: str) -> FileStatus:
        """See `Rotation.status`."""
        return FileStatus.of(regular(os.stat(path), path)) if self._trusting else super().status(path)

    def fileset_for(self, name: str) -> FileSet:
        """See `Rotation.fileset_for`."""
        fileset = self.filesets.get(name)
        if fileset is None:
            settings = self._settings
            joiner = Joiner(open_trace=open_trace, rule=None, max_bytes=settings.max_line_bytes)
            fileset = self.filesets[name] = FileSet(name, name, joiner)
            attributes = {"log.file.path": name, "host.name": self._context.host}
            if settings.service:
                attributes["service.name"] = settings.service
            source = self._context.name
            self._lines[name] = PlainLines(
                encoding=self._encoding,
                parser=settings.parser,
                max_line=settings.max_line_bytes,
                resource=resources(attributes, lambda values: Resource(source, values)),
                on_fault=self._line_at_fault,
            )
        return fileset

    def wanted(self, fileset: FileSet) -> bool:
        """See `TailSource.wanted`. A log that has only rotated files left is named by the globs, not found by them."""
        if self._globs.excluded(fileset.path):
            return False
        return fileset.path in self._wanted_paths or self._globs.name(fileset.path)

    def vanished(self, fileset: FileSet) -> bool:
        """See `TailSource.vanished`."""
        return not self._grouping.members(fileset)

    def forget(self, fileset: FileSet) -> None:
        """See `TailSource.forget`."""
        super().forget(fileset)
        self._lines.pop(fileset.name, None)
        self._targets.pop(fileset.name, None)
        self._wanted_paths.discard(fileset.path)

    def _may_read(self, path: str) -> bool:
        return path not in self._context.own_paths and not self._globs.excluded(path)

    def _closed(self, directory: str, error: OSError | None) -> None:
        if error is None:
            self._unreadable.pop(directory, None)
        else:
            self._report(directory, error)

    def _directories(self, fileset: FileSet) -> set[str]:
        target = self._targets.get(fileset.name)
        own = os.path.dirname(fileset.path)
        return {own} if target is None else {own, os.path.dirname(target)}

    def _look(self, globbed: list[str]) -> None:
        """List every directory that logs are in, with those that symbolic links lead to."""
        if self._places[:2] != (len(self.filesets), globbed):
            directories = {os.path.dirname(path) for path in globbed}
            directories.update(self._globs.directories())
            directories.update(os.path.dirname(fileset.path) for fileset in self.filesets.values())
            self._places = (len(self.filesets), globbed, directories)
        before, self._looked = self._looked, {}
        for directory in self._places[2]:
            self._list(directory)
        self._targets.clear()
        if any(listing.links for listing in self._looked.values()):
            self._follow_links()
        self._listings.keep(set(self._looked))
        if self._watch is not None:
            for directory in before.keys() - self._looked.keys():
                self._watch.remove(directory)
            for directory in self._looked.keys() - before.keys():
                self._watch.add(directory, recursive=False)

    def _follow_links(self) -> None:
        for fileset in self.filesets.values():
            directory, name = os.path.split(fileset.path)
            listing = self._looked.get(directory)
            entry = listing.files.get(name) if listing is not None else None
            if entry is not None and entry.link:
                target = self._targets[fileset.name] = os.path.realpath(fileset.path)
                self._list(os.path.dirname(target))

    def _list(self, directory: str) -> None:
        if directory in self._looked:
            return
        try:
            self._looked[directory] = self._listings.of(directory)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            self._report(directory, error)

    def _reconcile(self, fileset: FileSet) -> bool:
        self._regroup = True
        return super()._reconcile(fileset)

    def _group(self) -> None:
        self._adopted = self._regroup = False
        self._signatures.clear()
        self._grouping.group(self.filesets, self._looked, self._targets)

    def _signature(self, fileset: FileSet) -> tuple[int, ...]:
        """Give what says that a log must be compared with the disk again."""
        known = self._signatures.get(fileset.name)
        if known is not None:
            return known
        members = self._grouping.members(fileset)
        signature = tuple(sorted(hash((member.path, member.entry.identity)) for member in members))
        odd = [member.path for member in members if not member.usual]
        if not odd:
            self._signatures[fileset.name] = signature
        # A file that was closed under another name may be written to: nobody else looks at its size.
        return signature + tuple(_size(path) for path in odd)

    def _begin_logs(self, globbed: list[str]) -> bool:
        """Make a log of each path that is named and belongs to none; tell whether there were any."""
        self._copies = {path: since for path, since in self._copies.items() if path not in self._grouping.paths}
        known = len(self.filesets)
        fresh: list[tuple[bool, str, Entry]] = []
        for path in globbed:
            if path not in self._grouping.paths and path not in self.filesets:
                directory, name = os.path.split(path)
                listing = self._looked.get(directory)
                entry = listing.files.get(name) if listing is not None else None
                if entry is not None and os.path.realpath(path) not in self._context.own_paths:
                    fresh.append((entry.link, path, entry))
        identities = set()
        read = [(*os.path.split(fileset.path), fileset) for fileset in self.filesets.values() if fileset.open_files]
        for _, path, entry in sorted(fresh):
            if entry.identity in identities or self._may_be_copy(path, read):
                continue
            identities.add(entry.identity)
            base = base_of(path)
            if base is not None and not (base in self.filesets or os.path.lexists(base)):
                base = None
            self._wanted_paths.add(base or path)
            self.fileset_for(base or path)
        return len(self.filesets) > known

    def _may_be_copy(self, path: str, read: list[tuple[str, str, FileSet]]) -> bool:
        """Tell whether a new file is to wait, because it may be what copytruncate makes of a log before it cuts it.

        ``read`` are the logs that are open, by directory and name.
        """
        if self._context.once:
            return False
        directory, name = os.path.split(path)
        originals = [
            file
            for place, log, fileset in read
            if place == directory and kin(name, log)
            for file in fileset.open_files
            if file.state is not None or file.data.size()
        ]
        if not originals:
            return False
        now = self._context.clock.monotonic()
        if now - self._copies.setdefault(path, now) < COPY_WAIT:
            try:
                data = open_bytes(open_log(path), path)
            except OSError:
                return False
            try:
                if not data.size() or any(file.was(data) or copies(data, file.data) for file in originals):
                    return True
            except OSError:
                pass
            finally:
                data.close()
        del self._copies[path]
        return False

    def _search_renamed_copies(self) -> None:
        """Find what became of generations that stand under no name of theirs: copies and packed files."""
        moved = False
        for fileset in self.filesets.values():
            if not fileset.states:
                continue
            strangers = list(self._grouping.strangers(fileset, self._directories(fileset)))
            if strangers:
                for state in self._homeless(fileset):
                    found = next((member for member in strangers if holds(state, member.path)), None)
                    if found is not None:
                        state.device, state.inode = found.entry.identity
                        self._context.positions.update(state)
                        moved = True
        if moved:
            self._group()

    def _homeless(self, fileset: FileSet) -> list[FileState]:
        held = {file.state.key for file in fileset.open_files if file.state is not None}
        members = {member.entry.identity: member for member in self._grouping.members(fileset)}
        return [state for state in fileset.states.values() if _homeless(state, held, members)]

    def _report_refused(self, globbed: list[str]) -> None:
        """Say of each path that is named and is no log what it is."""
        for path in globbed:
            directory, name = os.path.split(path)
            listing = self._looked.get(directory)
            if listing is None or name in listing.files:
                continue
            if name in listing.refused:
                self._report(path, listing.refused[name])
            elif self._globs.name_exactly(path) and os.path.isdir(path):
                self._report(path, IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path))

    def _forget_oldest(self) -> None:
        """Bound the number of logs that are gone and only remembered for their number of generations."""
        if len(self.filesets) <= REMEMBERED:
            return
        gone = [
            fileset
            for fileset in self.filesets.values()
            if not fileset.open_files
            and not self._grouping.members(fileset)
            and all(state.done and not state.inode for state in fileset.states.values())
        ]
        for fileset in gone[: max(0, len(gone) - REMEMBERED)]:
            for key in fileset.states:
                self._context.positions.forget(key)
            fileset.states.clear()
            self.forget(fileset)

    # How their lines are read

    def first_offset(self, file: TailedFile) -> int:
        """See `Rotation.first_offset`."""
        if self._settings.start_position == "beginning" or self._polled:
            return 0
        data, position = file.data, 0
        while block := data.read(position, _BACK):
            position = max(position + len(block), data.size())
        start = max(0, position - _BACK)
        end = self._encoding.of(file).end_of_lines(data.read(start, position - start), start)
        # A last line without its newline is still being written: it is not of the past.
        return start + end if end else position

    def begin(self, fileset: FileSet, file: TailedFile) -> None:
        """See `TailSource.begin`."""
        self._lines[fileset.name].begin(file)

    def decode(self, fileset: FileSet, file: TailedFile, block: bytes) -> Decoded:
        """See `TailSource.decode`."""
        return self._lines[fileset.name].decode(file, block, fileset.joiner)

    def decode_partial(self, fileset: FileSet, file: TailedFile, piece: bytes, *, last: bool) -> None:
        """See `TailSource.decode_partial`."""
        self._lines[fileset.name].feed_piece(file, piece, fileset.joiner, last=last)

    def end_of_lines(self, file: TailedFile, block: bytes) -> int:
        """See `TailSource.end_of_lines`."""
        return self._encoding.of(file).end_of_lines(block, file.position)

    def width(self, file: TailedFile) -> int:
        """See `Following.width`."""
        return self._encoding.of(file).width

    def uid(self, fileset: FileSet, file: TailedFile, head: bytes) -> str:  # noqa: ARG002 - see the base
        """See `TailSource.uid`: device, inode and the first line tell a file from all others."""
        first = head[:_FIRST_LINE].partition(b"\n")[0]
        return xxh3_128_hexdigest(b"%d:%d:%b" % (*file.identity, first))


def _homeless(state: FileState, held: set[int], members: dict[tuple[int, int], Member]) -> bool:
    """Tell whether no name of its log leads to a generation of which a part was read."""
    if state.key in held or not state.head_size:
        return False
    member = members.get((state.device, state.inode))
    return member is None or not holds(state, member.path)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


SOURCE = FileSource
