"""Checks of the state directory: may it be written, will it last, has it room, and what waits in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from shipper.delivery.deadletter import DeadLetters
from shipper.delivery.survey import StateSurvey
from shipper.doctor.files import described
from shipper.doctor.host import Host, Identity, is_directory, present
from shipper.doctor.result import CheckResult, fail, ok, several, warn
from shipper.errors import StateError
from shipper.routing.router import Router
from shipper.state.volume import filesystem_of, short_lived
from shipper.telemetry.status import NEARLY_FULL, Waiting
from shipper.units import counted, format_size, parse_size

if TYPE_CHECKING:
    from shipper.config.types import Config

#: Bytes below which positions themselves are in danger; the spill leaves 16 MiB.
_LEAST_FREE = 64 << 20
_LEAST_INODES = 1_000
_REMOTE = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "glusterfs", "fuse.sshfs"})
_PARTS = ("lock", "state.db", "state.db-wal", "spill", "dead-letter")


def results(config: Config, host: Host) -> Iterator[CheckResult]:
    """Check the directory and what is in it."""
    directory = config.state_dir
    yield _writable(directory, host.identity)
    yield _outlives_restart(directory, host.root)
    yield from _space(config)
    yield _locks(directory, host.root)
    yield _damage(directory)
    try:
        waiting = StateSurvey(directory).waiting(host.now)
    except (OSError, StateError) as error:
        reason = getattr(error, "strerror", None) or error
        yield warn("D47", f"what waits in {directory} cannot be counted: {reason}", "run shipper doctor as root")
        return
    yield _leftover(config, waiting)
    yield from _spills(config, waiting)
    yield from _dead_letters(config, waiting)


def _existing(directory: Path) -> Path:
    """Give the directory, or the nearest one above it that is there."""
    while present(directory) is None and directory != directory.parent:
        directory = directory.parent
    return directory


def _writable(directory: Path, identity: Identity) -> CheckResult:
    owner = f"{identity.uid}:{identity.gids[0] if identity.gids else identity.uid}"
    place = _existing(directory)
    if os.statvfs(place).f_flag & os.ST_RDONLY:
        fix = f"mount a named volume there, such as -v shipper-state:{directory}   (systemd: StateDirectory=shipper)"
        return fail("D40", f"{place} is mounted read-only", fix)
    if not _may_write(place, identity):
        if place == directory:
            text, fix = f"{described(place)}; shipper is {identity}", f"chown -R {owner} {directory}"
        else:
            text = f"{directory} is not there, and {identity} may not make it in {place}"
            fix = f"install -d -m 0700 -o {owner.replace(':', ' -g ')} {directory}   (systemd: StateDirectory=shipper)"
        return fail("D40", text, fix)
    if place == directory:
        for part in (directory / name for name in _PARTS):
            if present(part) and not _may_write(part, identity):
                text = f"{described(part)}, as if shipper had run as another user; it is {identity}"
                return fail("D40", text, f"chown -R {owner} {directory}")
        return ok("D40", f"{directory} can be written by {identity}")
    return ok("D40", f"{directory} is not there yet; {identity} may make it")


def _may_write(place: Path, identity: Identity) -> bool:
    directory = is_directory(place)
    if identity.ours:
        return os.access(place, os.W_OK | (os.X_OK if directory else 0), effective_ids=True)
    status = present(place)
    if status is None:
        return False
    return identity.may(status, 2) and (not directory or identity.may(status, 1))


def _outlives_restart(directory: Path, root: Path) -> CheckResult:
    found = short_lived(directory, root)
    if found is None:
        return ok("D41", f"{directory} stays")
    return (fail if found.certain else warn)("D41", found.reason, found.fix)


def _space(config: Config) -> Iterator[CheckResult]:
    place = _existing(config.state_dir)
    usage = os.statvfs(place)
    free = usage.f_bavail * usage.f_frsize
    used = Router(config.active, config.routes).sinks
    may = sum(parse_size(config.sinks[name].buffer.max_size) for name in used)
    if free < _LEAST_FREE:
        yield fail("D42", f"{format_size(free)} are free at {place}", "free some disk space, or move state_dir")
    elif free < may:
        text = f"{format_size(free)} are free at {place}, but the spill may take {format_size(may)}"
        names = " and ".join(f"sinks.{name}.buffer.max_size" for name in used)
        together = " together" if len(used) > 1 else ""
        yield warn("D42", text, f"lower {names} to {format_size(free // 2)}{together}, or give the disk more room")
    elif usage.f_files and usage.f_favail < _LEAST_INODES:
        yield fail("D42", f"{usage.f_favail} inodes are free at {place}", "delete files there, or move state_dir")
    else:
        yield ok("D42", f"{format_size(free)} are free at {place}, the spill may take {format_size(may)}")


def _locks(directory: Path, root: Path) -> CheckResult:
    kind = filesystem_of(directory, root)
    if kind in _REMOTE:
        return fail("D43", f"{directory} is on {kind}, where SQLite's locks fail", "set state_dir to a local disk")
    return ok("D43", f"{directory} is on {kind or 'a local disk'}")


def _damage(directory: Path) -> CheckResult:
    found = sorted(map(str, directory.glob("state.db.damaged-*"))) if is_directory(directory) else []
    if found:
        text = f"{several(found)}: positions were damaged and set aside, files were read again under the same ids"
        return warn("D44", text, f"look at the disk (dmesg, smartctl), then: rm {' '.join(found)}")
    return ok("D44", "no state was damaged")


def _leftover(config: Config, waiting: dict[str, Waiting]) -> CheckResult:
    left = [name for name, item in waiting.items() if item.spill_bytes and name not in config.sinks]
    if left:
        name = left[0]
        text = f"at most {counted(waiting[name].spill_records, 'record')} on disk for {name}, which is not in the file"
        return warn("D45", text, f"put sinks.{name} back to deliver them, or: shipper spill drop {name}")
    return ok("D45", "no spill is left over")


def _spills(config: Config, waiting: dict[str, Waiting]) -> Iterator[CheckResult]:
    for name, item in waiting.items():
        limit = parse_size(config.sinks[name].buffer.max_size) if name in config.sinks else 0
        if limit and item.spill_bytes > NEARLY_FULL * limit:
            text = f"{format_size(item.spill_bytes)} of {format_size(limit)} wait for {name}"
            fix = f"bring it back (shipper check --online --sink {name}), or raise sinks.{name}.buffer.max_size"
            yield warn("D46", text, fix)
            return
    total = sum(item.spill_bytes for item in waiting.values())
    yield ok("D46", f"{format_size(total)} wait on disk")


def _dead_letters(config: Config, waiting: dict[str, Waiting]) -> Iterator[CheckResult]:
    refused = {name: item.dead_letters for name, item in waiting.items() if item.dead_letters}
    for name, count in refused.items():
        taken = format_size(DeadLetters(config.state_dir / "dead-letter" / f"{name}.jsonl").size)
        if name in config.sinks:
            taken += f" of {format_size(parse_size(config.sinks[name].buffer.max_dead_letters))}"
        fix = f"shipper dead-letters ls --sink {name}; mend the cause, then: shipper dead-letters retry --sink {name}"
        yield warn("D47", f"{counted(count, 'record')} refused by {name} for good and kept ({taken})", fix)
    if not refused:
        yield ok("D47", "none")
