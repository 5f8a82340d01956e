"""Checks of the kernel's limits: inotify watches and instances, open files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from shipper.doctor.result import CheckResult, fail, ok, warn
from shipper.sources.docker import DockerConfig
from shipper.tailing.bytes import SPARE_DESCRIPTORS
from shipper.units import counted

if TYPE_CHECKING:
    from shipper.config.types import Config
    from shipper.doctor.host import Host

_INOTIFY = "proc/sys/fs/inotify"
_SYSCTL = "sysctl -w {key}={value}, and write that to /etc/sysctl.d/shipper.conf (on the host, not in a container)"


def results(config: Config, host: Host, found: dict[str, list[str]]) -> Iterator[CheckResult]:
    """Check the limits against the files that are there now."""
    yield _watches(config, host, found)
    yield _instances(host)
    yield _descriptors(host, sum(map(len, found.values())))


def _watches(config: Config, host: Host, found: dict[str, list[str]]) -> CheckResult:
    need = len({Path(path).parent for paths in found.values() for path in paths})
    for section in config.sources.values():
        if isinstance(section, DockerConfig):
            need += sum(1 for _ in os.walk(section.path))
    have = host.number(f"{_INOTIFY}/max_user_watches")
    if have is not None and have < need:
        fix = _SYSCTL.format(key="fs.inotify.max_user_watches", value=max(65_536, 2 * need))
        return warn(
            "D30", f"max_user_watches {have}, need {need}: new files are only seen by looking every second", fix
        )
    return ok("D30", f"max_user_watches {have if have is not None else 'unknown'}, need {need}")


def _instances(host: Host) -> CheckResult:
    have = host.number(f"{_INOTIFY}/max_user_instances")
    used = sum(_instances_of(process, host.identity.uid) for process in (host.root / "proc").glob("[0-9]*"))
    # A daemon that runs has its one already.
    need = 0 if host.status is not None else 1
    if have is not None and used + need > have:
        fix = _SYSCTL.format(key="fs.inotify.max_user_instances", value=max(512, 2 * have))
        return warn("D31", f"max_user_instances {have}, and uid {host.identity.uid} uses {used}", fix)
    return ok("D31", f"max_user_instances {have if have is not None else 'unknown'}, in use {used}")


def _instances_of(process: Path, uid: int) -> int:
    try:
        if process.stat().st_uid != uid:
            return 0
        links = [os.readlink(link) for link in (process / "fd").iterdir()]  # noqa: PTH115 - these links point nowhere
    except OSError:
        return 0
    return links.count("anon_inode:inotify")


def _descriptors(host: Host, files: int) -> CheckResult:
    have = host.files_allowed
    need = files + SPARE_DESCRIPTORS
    if 0 <= have < need:
        most = max(65_536, 2 * need)
        fix = f"LimitNOFILE={most} (systemd), ulimits: {{nofile: {most}}} (compose)"
        return fail("D32", f"{have} open files are allowed, {need} are needed for {counted(files, 'log')}", fix)
    return ok("D32", f"{have if have >= 0 else 'any number of'} open files are allowed, {need} are needed")
