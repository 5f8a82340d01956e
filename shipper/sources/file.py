"""Plain log files by glob, with their rotated siblings: ``app.log.1``, ``app.log-20261122.gz``, ``app.log.old``.

A sibling is a file whose name is that of a log plus a number, a date or ``old``, perhaps gzipped. It need not match
the globs: what was rotated while the daemon was away is history that nobody has shipped.
"""

# Path objects cost more than the calls they wrap, every second for each of many files.
# ruff: noqa: PTH100, PTH110, PTH113, PTH116, PTH118, PTH120, PTH207

from __future__ import annotations

import errno
import glob
import os
import re
import time
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, ClassVar, NamedTuple

import msgspec
from msgspec import Meta
from xxhash import xxh3_128_hexdigest

from shipper.errors import ConfigError
from shipper.record import Resource
from shipper.source import SourceConfig, SourceContext
from shipper.tailing.engine import TailSource
from shipper.tailing.fileset import FileSet
from shipper.tailing.joiner import Joiner
from shipper.tailing.plainlines import PlainLines, encode_newline, resources
from shipper.tailing.sibling import Sibling
from shipper.tailing.tailedfile import TailedFile
from shipper.tailing.traces import open_trace
from shipper.tailing.watch import Watch

if TYPE_CHECKING:
    from shipper.record import Batch
    from shipper.tailing.bytes import Bytes

_ROTATED = re.compile(
    r"(?P<base>.+?)(?:"
    r"[.-](?:\d{1,4}|\d{8}(?:[-T_.]?\d{2,6})?|\d{4}-\d\d-\d\d(?:[T_.-]\d\d[:.-]?\d\d(?:[:.-]?\d\d)?)?)(?:\.gz)?"
    r"|\.old(?:\.gz)?|\.gz)"
)
_NUMBER = re.compile(r"[.-](\d{1,4})(?:\.gz)?$")
_TICK_NS = 100_000_000
_FIRST_LINE = 1024
_BACK = 64 * 1024


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
    max_line_bytes: Annotated[
        int, Meta(description="Longest record in bytes; a longer line becomes several, marked.", ge=16, le=64 << 20)
    ] = 1 << 20


class _Listing(NamedTuple):
    mtime: int
    groups: dict[str, tuple[tuple[str, int], ...]]


class FileSource(TailSource):
    """Follows all files that its globs name."""

    config: ClassVar[type[SourceConfig]] = FileConfig
    ids_by_place = True

    def __init__(self, config: FileConfig) -> None:
        super().__init__(config)
        self.parser = config.parser
        self.max_line = config.max_line_bytes
        self._settings = config
        self._lines: dict[str, PlainLines] = {}
        self._listings: dict[str, _Listing] = {}
        self._wanted_paths: set[str] = set()
        self._glob_matches: dict[str, tuple[int, list[str]]] = {}
        try:
            self.nuls_are_holes = len(encode_newline(config.encoding)) == 1
        except LookupError:
            raise ConfigError(
                f"encoding: {config.encoding!r} is not a known character encoding; take utf-8, latin-1 or utf-16"
            ) from None

    def start_watch(self, context: SourceContext) -> Watch:
        """See `TailSource.start_watch`."""
        return Watch(context.wake, enabled=not context.once)

    def discover(self) -> list[FileSet]:
        """See `TailSource.discover`."""
        for pattern in self._settings.include:
            for path in self._expand(pattern):
                self._add(path)
        changed = []
        for fileset in self.filesets.values():
            directory, name = os.path.split(fileset.path)
            try:
                groups = self._list(directory)
            except FileNotFoundError:
                groups = {}
                fileset.directory_gone = True
            except OSError as error:
                self._report(directory, error)
                continue
            files = groups.get(name, ())
            signature = tuple(hash(file) for file in files)
            if signature != fileset.signature or (fileset.first_scan and files):
                fileset.signature = signature
                changed.append(fileset)
        return changed

    def siblings(self, fileset: FileSet) -> list[Sibling]:
        """See `Rotation.siblings`."""
        directory, name = os.path.split(fileset.path)
        files = []
        live = []
        for file, _ in self._list(directory).get(name, ()):
            path = os.path.join(directory, file)
            if path in self._context.own_paths or self._excluded(path):
                continue
            if file == name:
                archive = name.endswith(".gz")
                live.append(Sibling(path, live=not archive, archive=archive))
            elif not (file.endswith(".gz") and os.path.exists(path.removesuffix(".gz"))):
                # While x exists, x.gz is only half written.
                number = _NUMBER.search(file)
                try:
                    age = os.stat(path).st_mtime_ns
                except FileNotFoundError:
                    continue
                sibling = Sibling(path, live=False, archive=file.endswith(".gz"))
                files.append((age, -int(number[1]) if number else 0, sibling))
        return [sibling for _, _, sibling in sorted(files)] + live

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
                encoding=settings.encoding,
                parser=settings.parser,
                max_line=settings.max_line_bytes,
                resource=resources(attributes, lambda values: Resource(source, values)),
            )
            if self._watch is not None:
                self._watch.add(os.path.dirname(name) or ".", recursive=False)
        return fileset

    def wanted(self, fileset: FileSet) -> bool:
        """See `TailSource.wanted`. A log that has only rotated files left is named by the globs, not found by them."""
        if self._excluded(fileset.path):
            return False
        if fileset.path not in self._wanted_paths:
            if not any(_matches_glob(os.path.abspath(pattern), fileset.path) for pattern in self._settings.include):
                return False
            self._wanted_paths.add(fileset.path)
        return True

    def first_offset(self, fileset: FileSet, data: Bytes) -> int:  # noqa: ARG002 - see the base
        """See `Rotation.first_offset`."""
        if self._settings.start_position == "beginning" or self._polled:
            return 0
        position = 0
        while block := data.read(position, _BACK):
            position = max(position + len(block), data.size())
        start = max(0, position - _BACK)
        newline = data.read(start, position - start).rfind(b"\n")
        # A last line without its newline is still being written: it is not of the past.
        return start + newline + 1 if newline >= 0 and self.nuls_are_holes else position

    def begin(self, fileset: FileSet, file: TailedFile) -> None:
        """See `TailSource.begin`."""
        self._lines[fileset.name].begin(file)

    def decode(self, fileset: FileSet, file: TailedFile, block: bytes) -> Batch | None:
        """See `TailSource.decode`."""
        return self._lines[fileset.name].decode(file, block, fileset.joiner)

    def decode_partial(self, fileset: FileSet, file: TailedFile, piece: bytes, *, last: bool) -> None:
        """See `TailSource.decode_partial`."""
        self._lines[fileset.name].feed_piece(file, piece, fileset.joiner, last=last)

    def end_of_lines(self, file: TailedFile, block: bytes) -> int:
        """See `TailSource.end_of_lines`."""
        if self.nuls_are_holes:
            return block.rfind(b"\n") + 1
        return next(iter(self._lines.values())).end_of_lines(file, block)

    def uid(self, fileset: FileSet, file: TailedFile, head: bytes) -> str:  # noqa: ARG002 - see the base
        """See `TailSource.uid`: device, inode and the first line tell a file from all others."""
        first = head[:_FIRST_LINE].partition(b"\n")[0]
        return xxh3_128_hexdigest(b"%d:%d:%b" % (*file.identity, first))

    def _excluded(self, path: str) -> bool:
        return any(fnmatchcase(path, pattern) for pattern in self._settings.exclude)

    def _add(self, path: str) -> None:
        path = os.path.abspath(path)
        if path in self._wanted_paths or self._excluded(path) or os.path.realpath(path) in self._context.own_paths:
            return
        match = _ROTATED.fullmatch(path)
        if match is not None and path not in self.filesets:
            base = match["base"]
            if base in self.filesets or os.path.exists(base):
                path = base
        self._wanted_paths.add(path)
        self.fileset_for(path)

    def _expand(self, pattern: str) -> list[str]:
        """Give the files that a glob names; a directory is only listed again when it changed."""
        if not self._may_look(_fixed(pattern)):
            return []
        if not glob.has_magic(pattern):
            return [pattern] if os.path.isfile(pattern) else []
        directory, name = os.path.split(pattern)
        if glob.has_magic(directory) or name == "**":
            return [path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)]
        try:
            mtime = os.stat(directory or ".").st_mtime_ns
        except OSError:
            return []
        known = self._glob_matches.get(pattern)
        if known is None or known[0] != mtime:
            paths = [path for path in glob.glob(pattern) if os.path.isfile(path)]
            known = (mtime if time.time_ns() - mtime > _TICK_NS else -1, paths)
            self._glob_matches[pattern] = known
            if self._watch is not None:
                self._watch.add(directory or ".", recursive=False)
        return known[1]

    def _may_look(self, directory: str) -> bool:
        """Tell whether a directory is there and ours to list and enter; report it when only the right is missing."""
        if os.access(directory, os.R_OK | os.X_OK):
            self._unreadable.pop(directory, None)
            return True
        try:
            os.stat(directory)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            self._report(directory, error)
        else:
            self._report(directory, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
        return False

    def _list(self, directory: str) -> dict[str, tuple[tuple[str, int], ...]]:
        """Give a directory's files with their inodes, by the log they belong to."""
        mtime = os.stat(directory).st_mtime_ns
        known = self._listings.get(directory)
        if known is not None and known.mtime == mtime:
            return known.groups
        names: dict[str, int] = {}
        with os.scandir(directory) as entries:
            for entry in entries:
                try:
                    if entry.is_file():
                        names[entry.name] = entry.stat().st_ino if entry.is_symlink() else entry.inode()
                except FileNotFoundError:
                    continue
        groups: dict[str, list[tuple[str, int]]] = {}
        for name, inode in names.items():
            match = _ROTATED.fullmatch(name)
            base = match["base"] if match is not None else name
            if os.path.join(directory, name) in self.filesets:
                base = name
            elif base != name and base.removesuffix(".gz") in names:
                base = base.removesuffix(".gz")
            groups.setdefault(base, []).append((name, inode))
        self._listings[directory] = _Listing(
            mtime if time.time_ns() - mtime > _TICK_NS else -1,
            {base: tuple(sorted(files)) for base, files in groups.items()},
        )
        return self._listings[directory].groups


def _fixed(pattern: str) -> str:
    """Give the directory that a glob begins in: its path before the first component with magic."""
    directory = os.path.dirname(pattern)
    while glob.has_magic(directory):
        directory = os.path.dirname(directory)
    return directory or "."


def _matches_glob(pattern: str, path: str) -> bool:
    """Tell whether a glob names a path, without looking at the disk."""
    parts = path.split("/")

    def match(patterns: list[str], at: int) -> bool:
        if not patterns:
            return at == len(parts)
        if patterns[0] == "**":
            return any(match(patterns[1:], later) for later in range(at, len(parts) + 1))
        return at < len(parts) and fnmatchcase(parts[at], patterns[0]) and match(patterns[1:], at + 1)

    return match(pattern.split("/"), 0)


SOURCE = FileSource
