"""Every container's log under Docker's data root, read from the json-file driver's files.

Nothing is asked of the Docker socket. Names, image and labels come from config.v2.json. Rotated generations
(``-json.log.1``, ``.2.gz``) are read oldest first; a container that lives for a moment is opened by the watcher
before its directory is gone.
"""

# Path objects cost more than the calls they wrap, every second for each of many files.
# ruff: noqa: PTH112, PTH116, PTH118, PTH119, PTH208

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING, Annotated, ClassVar

import msgspec
from msgspec import Meta

from shipper.source import SourceConfig, SourceContext
from shipper.tailing.container import Container, Selection
from shipper.tailing.dockerjson import DockerLines
from shipper.tailing.engine import TailSource
from shipper.tailing.fileset import FileSet
from shipper.tailing.joiner import Joiner
from shipper.tailing.sibling import Sibling
from shipper.tailing.tailedfile import TailedFile
from shipper.tailing.traces import open_trace
from shipper.tailing.watch import Watch
from shipper.telemetry.logs import own_container_id

if TYPE_CHECKING:
    from shipper.tailing.decoding import Decoded

_ID = re.compile(r"[0-9a-f]{64}")
_SUFFIX = "-json.log"
#: Directory times have the kernel's tick; a change this shortly after another may show the same time.
_TICK_NS = 100_000_000


class DockerConfig(SourceConfig, frozen=True, kw_only=True):
    """Docker containers that log with the json-file driver."""

    type: Annotated[str, Meta(description="docker")] = "docker"
    path: Annotated[str, Meta(description="The directory that holds the container directories.")] = (
        "/var/lib/docker/containers"
    )
    include: Annotated[Selection, Meta(description="Only these containers; all when empty.")] = Selection()
    exclude: Annotated[Selection, Meta(description="Not these containers.")] = Selection()
    labels: Annotated[
        list[str], Meta(description="Labels to keep, as container.label.<name>; the compose project always is.")
    ] = msgspec.field(default_factory=list)
    parser: Annotated[
        str,
        Meta(description="Format of the lines.", pattern="^(auto|json|logfmt|access|fallback|plain)$"),
    ] = "auto"
    max_line_bytes: Annotated[
        int, Meta(description="Longest record in bytes; a longer line becomes several, marked.", ge=16384, le=64 << 20)
    ] = 1 << 20


class DockerSource(TailSource):
    """Follows all containers of one data root."""

    config: ClassVar[type[SourceConfig]] = DockerConfig
    joins_across_rotation = True
    rotate_wait = 0.0
    # A json-file line holds at most 16 KiB of text, six times that when all of it is escaped, and the attributes.
    max_line = 8 << 20

    def __init__(self, config: DockerConfig) -> None:
        super().__init__(config)
        self.parser = config.parser
        self._root = config.path
        self._selected = config
        self._containers: dict[str, Container] = {}
        self._lines: dict[str, DockerLines] = {}
        self._root_seen = 0
        self._own_container: str | None = None

    def open(self, context: SourceContext) -> None:
        """See `Source.open`."""
        self._own_container = own_container_id()
        super().open(context)

    def start_watch(self, context: SourceContext) -> Watch:
        """See `TailSource.start_watch`."""
        watch = Watch(context.wake, seize=_SUFFIX, enabled=not context.once)
        if os.path.isdir(self._root):
            watch.add(self._root, recursive=True)
        return watch

    def discover(self) -> list[FileSet]:
        """See `TailSource.discover`."""
        now = time.time_ns()
        self._take_opened()
        try:
            seen = os.stat(self._root).st_mtime_ns
            if seen != self._root_seen:
                if not self._root_seen and self._watch is not None:
                    self._watch.add(self._root, recursive=True)
                self._root_seen = seen if now - seen > _TICK_NS else -1
                with os.scandir(self._root) as entries:
                    for entry in entries:
                        if _ID.fullmatch(entry.name) and entry.name not in self.filesets:
                            self.fileset_for(entry.name)
            self._unreadable.pop(self._root, None)
        except OSError as error:
            self._report(self._root, error)
        changed = []
        for fileset in self.filesets.values():
            try:
                mtime = os.stat(fileset.path).st_mtime_ns
            except FileNotFoundError:
                mtime = 0
            except OSError as error:
                self._report(fileset.path, error)
                continue
            if fileset.signature != (mtime,) or fileset.seized:
                fileset.signature = (mtime if now - mtime > _TICK_NS else -1,)
                container = self._containers[fileset.name]
                self._refresh(container, os.path.join(fileset.path, "config.v2.json"))
                fileset.writer_ended = not container.running or mtime == 0
                if fileset.writer_ended:
                    self._awaiting_timer[fileset] = None
                if self.wanted(fileset):
                    changed.append(fileset)
        return changed

    def _refresh(self, container: Container, path: str) -> None:
        container.refresh(path)
        if container.problem is None:
            self._readable(path)
        elif not isinstance(container.problem, (FileNotFoundError, PermissionError)):
            # Without the right to read it names come from the lines; doctor says so. Anything else is not Docker's doing.
            self._report(path, container.problem)

    def siblings(self, fileset: FileSet) -> list[Sibling]:
        """See `Rotation.siblings`."""
        base = fileset.name + _SUFFIX
        numbered: dict[int, Sibling] = {}
        live = []
        for name in os.listdir(fileset.path):
            if not name.startswith(base):
                continue
            path = os.path.join(fileset.path, name)
            if name == base:
                live.append(Sibling(path, live=True))
                continue
            number, archive = name[len(base) + 1 :], name.endswith(".gz")
            number = number.removesuffix(".gz")
            # While .1 exists, .1.gz is only half written.
            if number.isdecimal() and not (archive and int(number) in numbered):
                numbered[int(number)] = Sibling(path, live=False)
        files = [numbered[number] for number in sorted(numbered, reverse=True)] + live
        return [file for file in files if file.path not in self._context.own_paths]

    def fileset_for(self, name: str) -> FileSet:
        """See `Rotation.fileset_for`."""
        fileset = self.filesets.get(name)
        if fileset is None:
            joiner = Joiner(
                open_trace=open_trace,
                rule="fallback" if self.parser == "fallback" else "trace" if self.parser != "plain" else None,
                max_bytes=self._selected.max_line_bytes,
            )
            fileset = self.filesets[name] = FileSet(name, os.path.join(self._root, name), joiner)
            container = Container(
                name, source=self._context.name, host=self._context.host, labels=self._selected.labels
            )
            self._containers[name] = container
            self._lines[name] = DockerLines(container, self._line_at_fault)
        return fileset

    def forget(self, fileset: FileSet) -> None:
        """See `TailSource.forget`."""
        super().forget(fileset)
        self._containers.pop(fileset.name, None)
        self._lines.pop(fileset.name, None)

    def begin(self, fileset: FileSet, file: TailedFile) -> None:
        """See `TailSource.begin`."""
        self._lines[fileset.name].begin(file)

    def decode(self, fileset: FileSet, file: TailedFile, block: bytes) -> Decoded:
        """See `TailSource.decode`."""
        return self._lines[fileset.name].decode(file, block, fileset.joiner)

    def decode_partial(self, fileset: FileSet, file: TailedFile, piece: bytes, *, last: bool) -> None:  # noqa: ARG002 - see the base
        """See `TailSource.decode_partial`."""
        self._lines[fileset.name].feed_line(file, piece, file.position, fileset.joiner)

    def may_finish(self, fileset: FileSet) -> bool:
        """See `TailSource.may_finish`: a line of JSON that is not whole is being written, or was torn."""
        return fileset.writer_ended

    def uid(self, fileset: FileSet, file: TailedFile, head: bytes) -> str:  # noqa: ARG002 - see the base
        """See `TailSource.uid`."""
        return fileset.name

    def wanted(self, fileset: FileSet) -> bool:
        """See `TailSource.wanted`. The daemon's own container never is: each line read would make another."""
        if self._own_container is not None and fileset.name.startswith(self._own_container):
            return False
        container = self._containers[fileset.name]
        include, exclude = self._selected.include, self._selected.exclude
        return (not include or include.matches(container)) and not (exclude and exclude.matches(container))

    def _take_opened(self) -> None:
        assert self._watch is not None or not self.filesets
        while self._watch is not None and self._watch.opened:
            path, fd, config = self._watch.opened.popleft()
            name = os.path.basename(path).removesuffix(_SUFFIX)
            if not _ID.fullmatch(name):
                os.close(fd)
                continue
            fileset = self.fileset_for(name)
            if config and not self._containers[name].known:
                self._containers[name].load(config)
            if self.wanted(fileset):
                fileset.seized.append((path, fd))
            else:
                os.close(fd)


SOURCE = DockerSource
