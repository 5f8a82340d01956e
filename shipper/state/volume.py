"""Whether a directory outlives what the daemon runs in.

In a container only what is mounted stays when the container is removed, and an upgrade removes it. State that goes
with it means reading every file again from its beginning, and losing what was spilled. `short_lived` finds that out
from /proc/self/mountinfo alone; nothing is written.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from shipper.errors import ConfigError
from shipper.telemetry.logs import own_container_id

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Set to ``allow`` for who wants state that goes with its container: a trial, a test.
OVERRIDE = "SHIPPER_TEMPORARY_STATE"

_IN_MEMORY = frozenset({"tmpfs", "ramfs"})
_LAYERED = frozenset({"overlay", "aufs", "fuse-overlayfs"})
#: What engines leave in the root of a container: Docker's mark, Podman's mark.
_MARKS = (".dockerenv", "run/.containerenv")
#: A volume that nobody named gets 64 hexadecimal digits; the next container gets another.
_UNNAMED = re.compile(r"/volumes/[0-9a-f]{64}/_data(?:/|$)")
_ESCAPED = re.compile(r"\\([0-7]{3})")


class ShortLived(msgspec.Struct, frozen=True):
    """Why a directory will be gone too soon, and what to do. ``certain`` is False when it may be meant that way."""

    reason: str
    fix: str
    certain: bool


class _Mount(NamedTuple):
    point: str
    #: The directory of the mounted file system that stands there.
    root: str
    kind: str


def short_lived(directory: Path, root: Path = Path("/")) -> ShortLived | None:
    """Say why ``directory`` would not outlive its container or machine, or None when it does.

    It need not exist yet. ``root`` is the root that /proc and the engines' marks are looked up in; `directory` is
    inside it, as mountinfo names it. Without a readable mountinfo nothing is known and None is given.
    """
    mount = _mount_of(directory, root)
    if mount is None:
        return None
    identifier = own_container_id(root)
    inside = identifier is not None or any((root / mark).exists() for mark in _MARKS)
    volume = f"mount a named volume there, such as -v shipper-state:{directory}"
    if mount.kind in _IN_MEMORY:
        what = "container ends" if inside else "machine restarts"
        fix = volume if inside else "set state_dir to a directory on a disk, such as /var/lib/shipper"
        return ShortLived(
            f"{directory} is in memory ({mount.kind} at {mount.point}): gone when the {what}", fix, inside
        )
    # A root file system that is no stack of layers is a container's own (btrfs, zfs, vfs) only where we know that we
    # are in one: machines made from images carry the marks too.
    if mount.point == "/" and (identifier is not None or (inside and mount.kind in _LAYERED)):
        return ShortLived(
            f"{directory} is in the container's own layer: gone when the container is removed", volume, True
        )
    if inside and _UNNAMED.search(mount.root):
        text = f"{directory} is on a volume without a name: the container that replaces this one gets another"
        return ShortLived(text, volume, False)
    return None


def require_lasting(directory: Path, environ: Mapping[str, str]) -> str:
    """Refuse a state directory that will surely be gone too soon; give a warning about a doubtful one, or "".

    Raises ConfigError, unless ``SHIPPER_TEMPORARY_STATE=allow`` is in the environment, and for another value of it.
    """
    override = environ.get(OVERRIDE, "")
    if override not in {"", "allow"}:
        raise ConfigError(
            f"E-STATE-TEMPORARY {OVERRIDE}={override}: the only value is allow; correct it or leave it out"
        )
    found = short_lived(directory)
    if found is None:
        return ""
    if found.certain and not override:
        raise ConfigError(
            f"E-STATE-TEMPORARY state_dir {found.reason}, and with it the positions of all files and every line that"
            f" waits for a sink. Fix: {found.fix}. If that is meant, set {OVERRIDE}=allow."
        )
    return f"state_dir {found.reason}; {found.fix}"


def _mount_of(directory: Path, root: Path) -> _Mount | None:
    try:
        lines = (root / "proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return None
    place = str(directory.resolve())
    found: _Mount | None = None
    for line in lines:
        # proc(5): id, parent, device, root, mount point, options, any number of tags, "-", type, source, options.
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        if len(fields) < 5 or not right:
            continue
        point = _unescaped(fields[4])
        # Of two mounts on one place the later hides the earlier.
        if (point == "/" or f"{place}/".startswith(f"{point}/")) and (found is None or len(point) >= len(found.point)):
            found = _Mount(point, _unescaped(fields[3]), right.split(" ")[0])
    return found


def _unescaped(text: str) -> str:
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), text)


def filesystem_of(directory: Path, root: Path = Path("/")) -> str:
    """Give the type of the file system that holds ``directory``, such as ext4 or nfs4, or "" where it is not known."""
    mount = _mount_of(directory, root)
    return "" if mount is None else mount.kind
