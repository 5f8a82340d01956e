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
from shipper.tailing.join import Joiner
from shipper.tailing.rotation import Sibling
from shipper.tailing.tail import Log, Tail
from shipper.tailing.traces import open_trace
from shipper.tailing.watch import Watch
from shipper.telemetry.logs import own_container_id

if TYPE_CHECKING:
    from shipper.record import Batch

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
    carries = True
    linger = 0.0
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
        self._own: str | None = None

    def open(self, context: SourceContext) -> None:
        """See `Source.open`."""
        self._own = own_container_id()
        super().open(context)

    def start_watch(self, context: SourceContext) -> Watch:
        """See `TailSource.start_watch`."""
        watch = Watch(context.wake, seize=_SUFFIX, enabled=not context.once)
        if os.path.isdir(self._root):
            watch.add(self._root, recursive=True)
        return watch

    def discover(self) -> list[Log]:
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
                        if _ID.fullmatch(entry.name) and entry.name not in self.logs:
                            self.log_for(entry.name)
            self._unreadable.pop(self._root, None)
        except OSError as error:
            self._report(self._root, error)
        changed = []
        for log in self.logs.values():
            try:
                mtime = os.stat(log.path).st_mtime_ns
            except FileNotFoundError:
                mtime = 0
            except OSError as error:
                self._report(log.path, error)
                continue
            if log.signature != (mtime,) or log.spare:
                log.signature = (mtime if now - mtime > _TICK_NS else -1,)
                container = self._containers[log.name]
                container.refresh(os.path.join(log.path, "config.v2.json"))
                log.ended = not container.running or mtime == 0
                if log.ended:
                    self._timed[log] = None
                if self.wanted(log):
                    changed.append(log)
        return changed

    def siblings(self, log: Log) -> list[Sibling]:
        """See `Rotation.siblings`."""
        base = log.name + _SUFFIX
        numbered: dict[int, Sibling] = {}
        live = []
        for name in os.listdir(log.path):
            if not name.startswith(base):
                continue
            path = os.path.join(log.path, name)
            if name == base:
                live.append(Sibling(path, live=True, archive=False))
                continue
            number, archive = name[len(base) + 1 :], name.endswith(".gz")
            number = number.removesuffix(".gz")
            # While .1 exists, .1.gz is only half written.
            if number.isdecimal() and not (archive and int(number) in numbered):
                numbered[int(number)] = Sibling(path, live=False, archive=archive)
        files = [numbered[number] for number in sorted(numbered, reverse=True)] + live
        return [file for file in files if file.path not in self._context.own_paths]

    def log_for(self, name: str) -> Log:
        """See `Rotation.log_for`."""
        log = self.logs.get(name)
        if log is None:
            joiner = Joiner(
                open_trace=open_trace,
                rule="fallback" if self.parser == "fallback" else "trace" if self.parser != "plain" else None,
                max_bytes=self._selected.max_line_bytes,
            )
            log = self.logs[name] = Log(name, os.path.join(self._root, name), joiner)
            container = Container(
                name, source=self._context.name, host=self._context.host, labels=self._selected.labels
            )
            self._containers[name] = container
            self._lines[name] = DockerLines(container)
        return log

    def begin(self, log: Log, tail: Tail) -> None:
        """See `TailSource.begin`."""
        self._lines[log.name].begin(tail)

    def decode(self, log: Log, tail: Tail, block: bytes) -> Batch | None:
        """See `TailSource.decode`."""
        return self._lines[log.name].decode(tail, block, log.joiner)

    def piece(self, log: Log, tail: Tail, piece: bytes, *, last: bool) -> None:  # noqa: ARG002 - see the base
        """See `TailSource.piece`."""
        self._lines[log.name].feed_line(tail, piece, tail.position, log.joiner)

    def may_finish(self, log: Log) -> bool:
        """See `TailSource.may_finish`: a line of JSON that is not whole is being written, or was torn."""
        return log.ended

    def uid(self, log: Log, tail: Tail, head: bytes) -> str:  # noqa: ARG002 - see the base
        """See `TailSource.uid`."""
        return log.name

    def wanted(self, log: Log) -> bool:
        """See `TailSource.wanted`. The daemon's own container never is: each line read would make another."""
        if self._own is not None and log.name.startswith(self._own):
            return False
        container = self._containers[log.name]
        include, exclude = self._selected.include, self._selected.exclude
        return (not include or include.matches(container)) and not (exclude and exclude.matches(container))

    def _take_opened(self) -> None:
        assert self._watch is not None or not self.logs
        while self._watch is not None and self._watch.opened:
            path, fd, config = self._watch.opened.popleft()
            name = os.path.basename(path).removesuffix(_SUFFIX)
            if not _ID.fullmatch(name):
                os.close(fd)
                continue
            log = self.log_for(name)
            if config and not self._containers[name].known:
                self._containers[name].load(config)
            if self.wanted(log):
                log.spare.append((path, fd))
            else:
                os.close(fd)


SOURCE = DockerSource
