"""What Docker's config.v2.json says of a container, as resources. Its environment is never looked at.

The file is 0600 and is replaced by rename at every change of state. Without it the container's name is the ``tag``
that Docker wrote into the lines (`--log-opt tag="{{.Name}}"`), or else the short id.
"""

# Path objects cost more than the calls they wrap, every second for each of many files.
# ruff: noqa: PTH116

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from shipper.record import Resource
from shipper.tailing.bytes import read_small

if TYPE_CHECKING:
    from collections.abc import Sequence

#: A config.v2.json of more bytes is none.
CONFIG_BYTES = 4 << 20
_COMPOSE = "com.docker.compose."
#: Names of streams that are remembered; Docker writes two.
_STREAMS = 8


class Selection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Containers by name, image and labels. Patterns are globs; of those given, one of each kind must match."""

    names: Annotated[list[str], Meta(description="Patterns of container names, such as faildaily-*.")] = []
    images: Annotated[list[str], Meta(description="Patterns of image names, such as mysql:*.")] = []
    labels: Annotated[
        dict[str, str], Meta(description="Label names and patterns of their values; all must match.")
    ] = {}

    def __bool__(self) -> bool:
        return bool(self.names or self.images or self.labels)

    def matches(self, container: Container) -> bool:
        """Tell whether the container is among those meant."""
        return (
            (not self.names or any(fnmatchcase(container.name, pattern) for pattern in self.names))
            and (not self.images or any(fnmatchcase(container.image, pattern) for pattern in self.images))
            and all(fnmatchcase(container.labels.get(name, ""), pattern) for name, pattern in self.labels.items())
        )


class _State(msgspec.Struct):
    running: bool = msgspec.field(default=True, name="Running")


class _Settings(msgspec.Struct):
    image: str = msgspec.field(default="", name="Image")
    labels: dict[str, str] | None = msgspec.field(default=None, name="Labels")
    tty: bool = msgspec.field(default=False, name="Tty")


class _File(msgspec.Struct):
    name: str = msgspec.field(default="", name="Name")
    config: _Settings = msgspec.field(default_factory=_Settings, name="Config")
    state: _State = msgspec.field(default_factory=_State, name="State")


_DECODER = msgspec.json.Decoder(_File)


class Container:
    """One container: its names and one resource per stream."""

    def __init__(self, identifier: str, *, source: str, host: str, labels: Sequence[str]) -> None:
        self.id = identifier
        self.name = identifier[:12]
        self.image = ""
        self.labels: dict[str, str] = {}
        self.tty: bool | None = None
        self.running = True
        self.known = False
        self.problem: Exception | None = None  # what keeps its config.v2.json from being read
        self._source = source
        self._host = host
        self._wanted = labels
        self._seen: tuple[int, int] = (0, 0)
        self._resources: dict[str, Resource] = {}

    def refresh(self, path: str) -> None:
        """Read config.v2.json again if it is another file than last time."""
        try:
            status = os.stat(path)
            if self._seen == (status.st_ino, status.st_mtime_ns):
                return
            content, status = read_small(path, CONFIG_BYTES)
        except OSError as error:
            self.problem = error
            return
        self._seen = status.st_ino, status.st_mtime_ns
        self.problem = None if self.load(content) else ValueError("this is no config.v2.json of Docker's")

    def load(self, content: bytes) -> bool:
        """Take names from the content of a config.v2.json; tell whether it is one."""
        try:
            file = _DECODER.decode(content)
        except msgspec.MsgspecError:
            return False
        before = self.name, self.image, self.labels
        self.name = file.name.lstrip("/") or self.id[:12]
        self.image = file.config.image
        self.labels = file.config.labels or {}
        self.tty = file.config.tty
        self.running = file.state.running
        self.known = True
        if before != (self.name, self.image, self.labels):
            self._resources = {}
        return True

    def tagged(self, tag: str) -> None:
        """Take the ``tag`` of its lines as the name while nothing better is known."""
        if not self.known and tag and tag != self.name:
            self.name = tag
            self._resources = {}

    def resource(self, stream: str) -> Resource:
        """Give the resource of a stream, the same object while the names stay."""
        resource = self._resources.get(stream)
        if resource is None:
            if len(self._resources) >= _STREAMS:
                self._resources.clear()
            attributes = {
                "container.id": self.id,
                "container.name": self.name,
                "service.name": self.labels.get(_COMPOSE + "service") or self.name,
                "log.iostream": stream,
                "host.name": self._host,
            }
            if self.image:
                attributes["container.image.name"] = self.image
            for label in (_COMPOSE + "project", *self._wanted):
                if label in self.labels:
                    attributes["container.label." + label] = self.labels[label]
            resource = self._resources[stream] = Resource(self._source, attributes)
        return resource
