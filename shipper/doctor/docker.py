"""Checks of Docker's containers: what hostconfig.json says of their log driver and its rotation."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from shipper.doctor.result import CheckResult, ok, several, warn
from shipper.sources.docker import DockerConfig
from shipper.tailing.bytes import read_small
from shipper.tailing.container import CONFIG_BYTES, Container
from shipper.units import counted

if TYPE_CHECKING:
    from shipper.config.types import Config

_ID = re.compile(r"[0-9a-f]{64}")
_JSON_FILE = 'logging: {driver: json-file, options: {max-size: 10m, max-file: "3"}}'
_RECREATE = "then make the container anew (docker compose up -d --force-recreate {name})"


class ContainerLog(msgspec.Struct, frozen=True):
    """A container that a source wants: its log, its names, and its LogConfig; ``None`` where that cannot be read.

    ``service`` is what its compose file calls it, or else its name.
    """

    source: str
    directory: Path
    name: str
    service: str
    named: bool
    driver: str | None
    options: Mapping[str, str]

    @property
    def log(self) -> Path:
        """Where the json-file driver writes."""
        return self.directory / f"{self.directory.name}-json.log"


def containers(config: Config) -> list[ContainerLog]:
    """Give every container that a docker source wants. What may not be listed is left to the permission check."""
    found = []
    for source, section in config.sources.items():
        if not isinstance(section, DockerConfig):
            continue
        try:
            names = sorted(name for name in os.listdir(section.path) if _ID.fullmatch(name))  # noqa: PTH208
        except OSError:
            continue
        for name in names:
            directory = Path(section.path) / name
            container = Container(name, source=source, host="", labels=())
            container.refresh(str(directory / "config.v2.json"))
            if section.include and not section.include.matches(container):
                continue
            if section.exclude and section.exclude.matches(container):
                continue
            driver, options = _log_config(directory / "hostconfig.json")
            service = container.labels.get("com.docker.compose.service") or container.name
            found.append(ContainerLog(source, directory, container.name, service, container.known, driver, options))
    return found


def _log_config(path: Path) -> tuple[str | None, dict[str, str]]:
    try:
        host: Any = json.loads(read_small(str(path), CONFIG_BYTES)[0])
        declared = host["LogConfig"]
        return str(declared["Type"]), {str(key): str(value) for key, value in (declared.get("Config") or {}).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None, {}


def results(config: Config, seen: list[ContainerLog]) -> Iterator[CheckResult]:
    """Check the logging options of all containers together: one row for each kind of fault."""
    if not any(isinstance(section, DockerConfig) for section in config.sources.values()):
        return
    known = [item for item in seen if item.driver is not None]
    if not seen:
        yield ok("D20", "no container is seen")
        return
    if len(known) < len(seen):
        closed = [str(item.directory / "hostconfig.json") for item in seen if item.driver is None]
        text = f"{several(closed, 1)}: cannot be read, so log driver and rotation are not known"
        yield warn("D20", text, "run shipper doctor as root")
    if not known:
        return
    ours = [item for item in known if item.driver == "json-file"]
    others = [item for item in known if item.driver != "json-file"]
    if others:
        text = ", ".join(f"{item.name} logs with {item.driver}" for item in others[:5])
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        yield warn("D20", f"{text}{more}: nothing of it is read", f"{_JSON_FILE}, {_recreate(others)}")
    else:
        yield ok("D20", f"{counted(len(ours), 'container')} with json-file")
    yield _result_for_all(
        "D21",
        [item for item in ours if _size(item) is None],
        "the log grows without limit until the disk is full",
        'options: {max-size: 10m, max-file: "3"}',
        "all logs are rotated",
    )
    yield _result_for_all(
        "D22",
        [item for item in ours if _size(item) is not None and item.options.get("max-file", "1").strip() == "1"],
        "max-file is 1, so each rotation deletes what was not read yet",
        'options: {max-file: "3"}',
        "old files are kept until they are read",
    )
    yield _result_for_all(
        "D23",
        [item for item in ours if item.options.get("mode") == "non-blocking"],
        "mode is non-blocking, so Docker drops lines when its buffer is full",
        "options: {mode: blocking}",
        "Docker drops no lines",
    )


def _result_for_all(identifier: str, items: list[ContainerLog], trouble: str, options: str, well: str) -> CheckResult:
    if not items:
        return ok(identifier, well)
    return warn(identifier, f"{several([item.name for item in items])}: {trouble}", f"{options}, {_recreate(items)}")


def _recreate(items: list[ContainerLog]) -> str:
    return _RECREATE.format(name=" ".join(dict.fromkeys(item.service for item in items)))


def _size(item: ContainerLog) -> str | None:
    """Give max-size, or None for what Docker takes as unlimited."""
    size = item.options.get("max-size", "").strip()
    return None if size in {"", "0", "-1"} else size
