"""Checks of the files that are read: found, permitted, on a fit file system, rotated well, read once, not our own."""

from __future__ import annotations

import glob
import grp
import os
import re
import stat
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from shipper.doctor.docker import ContainerLog
from shipper.doctor.host import Host, Identity, is_directory, present
from shipper.doctor.result import CheckResult, fail, ok, several, warn
from shipper.sources.docker import DockerConfig
from shipper.sources.file import FileConfig
from shipper.state.volume import filesystem_of
from shipper.tailing.paths import NotFollowedError, followed
from shipper.units import counted

if TYPE_CHECKING:
    from shipper.config.types import Config

_READ, _PASS = 4, 1
_REMOTE = re.compile(r"nfs\d?|cifs|smb\d?|9p|ceph|glusterfs|fuse\..*|fuse(?!blk).*")
_SCRIPT = re.compile(
    r"^[ \t]*+(?:pre|post|first|last|preremove)\w*[ \t]*+$.*?^[ \t]*+endscript", re.MULTILINE | re.DOTALL
)
_BLOCK = re.compile(r"(?:\A|(?<=[{}]))([^{}]*+)\{([^{}]*+)\}")
_CAPABILITY = (
    "systemd: AmbientCapabilities=CAP_DAC_READ_SEARCH and CapabilityBoundingSet=CAP_DAC_READ_SEARCH;"
    ' compose: user: "0:0", cap_drop: [ALL], cap_add: [DAC_READ_SEARCH]'
)


class Obstacle(NamedTuple):
    """The first place on the way to a file where permissions say no, and the bits (4 read, 1 pass) that lack."""

    place: Path
    bits: int


def logs(config: Config, seen: list[ContainerLog]) -> dict[str, list[str]]:
    """Give the files that every source would read now, by source."""
    found: dict[str, list[str]] = {}
    for name, section in config.sources.items():
        if isinstance(section, FileConfig):
            paths = {
                os.path.abspath(path)  # noqa: PTH100 - as the source does it: links stay
                for pattern in section.include
                for path in glob.glob(pattern, recursive=True)  # noqa: PTH207 - as the source does it
                if os.path.isfile(path)  # noqa: PTH113
            }
            found[name] = sorted(path for path in paths if not any(fnmatchcase(path, p) for p in section.exclude))
        else:
            # What is behind a directory that is closed to us is taken to be there: the permission check will tell.
            found[name] = [
                str(item.log)
                for item in seen
                if item.source == name and (present(item.log) or not os.access(item.directory, os.X_OK))
            ]
    return found


def results(config: Config, host: Host, seen: list[ContainerLog]) -> Iterator[CheckResult]:
    """Check all that is read."""
    found = logs(config, seen)
    for name in config.sources:
        yield _found(config, name, found[name], host.identity)
    yield from _permissions(config, found, host)
    yield from _names(config, seen, host.identity)
    yield _filesystems(config, found, host.root)
    yield _rotation(found, host.root)
    yield _read_by_two_sources(config, found)
    yield _own_output(config, found, host)
    yield _links(config, found, host.identity)


def _found(config: Config, name: str, paths: list[str], identity: Identity) -> CheckResult:
    section = config.sources[name]
    if isinstance(section, DockerConfig):
        if not is_directory(section.path) and obstacle(Path(section.path), identity, _READ | _PASS) is None:
            text = f"{name}: {section.path} is not there"
            fix = (
                f"set sources.{name}.path to the containers directory of Docker's data root"
                " (docker info -f '{{.DockerRootDir}}'), or in a container mount it: -v"
                f" {section.path}:{section.path}:ro"
            )
            return fail("D10", text, fix)
        return ok("D10", f"{name}: {counted(len(paths), 'log')} of containers under {section.path}")
    assert isinstance(section, FileConfig)
    empty = [pattern for pattern in section.include if not _expected(pattern)]
    if not paths and empty:
        text = f"{name}: nothing is named by {several(empty)}, nor does the directory exist"
        fix = f"correct sources.{name}.include, or mount that directory into the container"
        return warn("D10", text, fix)
    return ok(
        "D10",
        f"{name}: {counted(len(paths), 'file')}" if paths else f"{name}: no file yet; read as soon as it is there",
    )


def _expected(pattern: str) -> bool:
    """Tell whether files may appear under a glob: it has some, or the directory they would be in is there."""
    if glob.glob(pattern, recursive=True):  # noqa: PTH207 - as the source does it
        return True
    fixed = []
    for part in PurePosixPath(pattern).parent.parts:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return is_directory(Path(*fixed)) if fixed else True


def _permissions(config: Config, found: dict[str, list[str]], host: Host) -> Iterator[CheckResult]:
    identity = host.identity
    blocked: dict[str, list[tuple[str, Obstacle]]] = {}
    total = 0
    for name, section in config.sources.items():
        docker = isinstance(section, DockerConfig)
        paths = list(found[name])
        if isinstance(section, DockerConfig) and not paths:
            paths = [section.path]
        elif isinstance(section, FileConfig) and not paths:
            # What is not seen may be there behind a directory that is closed to us or to the daemon.
            paths = [str(place) for pattern in section.include if (place := _nearest(pattern)) is not None]
        for path in paths:
            total += 1
            bits = _READ | _PASS if is_directory(path) else _READ
            stop = obstacle(Path(path), identity, bits)
            if stop is not None:
                blocked.setdefault(_CAPABILITY if docker else remedy(stop, identity), []).append((path, stop))
    for fix, items in blocked.items():
        path, stop = items[0]
        more = f" and {len(items) - 1} more" if len(items) > 1 else ""
        lead = f"{path}{more}: " if more or str(stop.place) != path else ""
        yield fail("D11", f"{lead}{described(stop.place)}; shipper is {identity}", fix)
    sources = host.status.sources if host.status is not None else {}
    closed = {name: source.files_unreadable for name, source in sources.items() if source.files_unreadable}
    if blocked:
        return
    if closed:
        counts = ", ".join(f"{counted(count, 'file')} of {name}" for name, count in closed.items())
        text = f"the daemon cannot read {counts}, though permissions let {identity}: something else keeps it out"
        fix = (
            "look for 'cannot be read' in its log, then at systemd's ProtectHome= and ReadOnlyPaths=, SELinux, AppArmor"
        )
        yield fail("D11", text, fix)
    else:
        yield ok("D11", f"{identity} can read all {total}")


def _nearest(pattern: str) -> Path | None:
    """Give the part of a glob that is there: the directory to be looked through."""
    fixed: list[str] = []
    for part in PurePosixPath(pattern).parent.parts:
        if glob.has_magic(part):
            break
        fixed.append(part)
    place = Path(*fixed) if fixed else Path()
    while present(place) is None and place != place.parent:
        place = place.parent
    return place if place != Path("/") else None


def obstacle(path: Path, identity: Identity, bits: int) -> Obstacle | None:
    """Give the first place that stops the identity from using ``bits`` on a path, None if none does.

    The directory that holds a file must be readable too, because its rotated siblings are looked for there. For this
    process it is tried, so access lists count; for another it is computed from owner, group and mode.
    """
    real = Path(os.path.realpath(path))
    for place in (*reversed(real.parents), real):
        need = bits if place == real else _PASS | (_READ if place == real.parent and not is_directory(real) else 0)
        try:
            status = place.stat()
        except FileNotFoundError:
            return None
        except OSError:
            return Obstacle(place.parent, _PASS)
        lacking = sum(bit for bit in (_READ, _PASS) if need & bit and not _may(place, status, bit, identity))
        if lacking:
            return Obstacle(place, lacking)
    return None


def _may(place: Path, status: os.stat_result, bit: int, identity: Identity) -> bool:
    if identity.ours:
        return os.access(place, os.R_OK if bit == _READ else os.X_OK, effective_ids=True)
    return identity.may(status, bit)


def remedy(stop: Obstacle, identity: Identity) -> str:
    """Say which group to add, by its exact gid, or which mode to change."""
    try:
        status = stop.place.stat()
    except OSError:
        return f"run shipper doctor as root: {stop.place} cannot be looked at"
    letters = ("r" if stop.bits & _READ else "") + ("x" if stop.bits & _PASS else "")
    if status.st_uid == identity.uid:
        return f"chmod u+{letters} {stop.place}"
    change = "" if status.st_mode >> 3 & stop.bits == stop.bits else f"chmod g+{letters} {stop.place}"
    if status.st_gid in identity.gids:
        return change
    name = group_name(status.st_gid)
    gid = status.st_gid
    who = f"group {name} (gid {gid})" if name else f"gid {gid}"
    add = f'add {who}: group_add: ["{gid}"]   (systemd: SupplementaryGroups={name or gid})'
    return f"{change}, then {add}" if change else add


def described(place: Path) -> str:
    """Show a place as ``ls -ld`` would: mode, owner, group."""
    try:
        status = place.stat()
    except OSError:
        return f"{place} cannot be looked at"
    return f"{place} is {stat.filemode(status.st_mode)} {_user_name(status.st_uid)}:{group_name(status.st_gid) or status.st_gid}"


def group_name(gid: int) -> str:
    """Give a group's name, or "" when it has none here."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return ""


def _user_name(uid: int) -> str:
    import pwd  # noqa: PLC0415 - only for what is wrong

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _names(config: Config, seen: list[ContainerLog], identity: Identity) -> Iterator[CheckResult]:
    if not any(isinstance(section, DockerConfig) for section in config.sources.values()):
        return
    closed = []
    for item in seen:
        path = item.directory / "config.v2.json"
        if not item.named or obstacle(path, identity, _READ) is not None:
            closed.append(str(path))
    if not seen:
        return
    if closed:
        yield warn("D12", f"{several(closed, 1)}: cannot be read, so containers have no name or image", _CAPABILITY)
    else:
        yield ok("D12", f"{counted(len(seen), 'container')} known by name")


def _filesystems(config: Config, found: dict[str, list[str]], root: Path) -> CheckResult:
    places = {str(Path(path).parent) for paths in found.values() for path in paths}
    places |= {section.path for section in config.sources.values() if isinstance(section, DockerConfig)}
    kinds = {place: filesystem_of(Path(place), root) for place in sorted(places)}
    remote = [place for place, kind in kinds.items() if _REMOTE.fullmatch(kind)]
    if remote:
        text = f"{several(remote)} is on {kinds[remote[0]]}: new files are seen a second late, inode numbers may change"
        return warn("D13", text, "run shipper on the machine that writes the logs")
    return ok("D13", f"what is read is on {', '.join(sorted(set(filter(None, kinds.values())))) or 'disk'}")


def _rotation(found: dict[str, list[str]], root: Path) -> CheckResult:
    paths = [path for group in found.values() for path in group]
    for rules in (root / "etc/logrotate.conf", *sorted((root / "etc/logrotate.d").glob("*"))):
        try:
            text = rules.read_text(errors="replace")
        except OSError:
            continue
        text = _SCRIPT.sub("", re.sub(r"^[ \t]*+#.*$", "", text, flags=re.MULTILINE))
        for names, body in _BLOCK.findall(text):
            patterns = [word.strip("\"'") for word in names.split() if word.strip("\"'").startswith("/")]
            hit = [path for path in paths if any(PurePosixPath(path).match(pattern) for pattern in patterns)]
            if hit and "copytruncate" in body.split():
                shown = f"/{rules.relative_to(root)}"
                trouble = f"{several(hit)}: {shown} says copytruncate: lines written during the copy are lost"
                return warn("D14", trouble, f"in {shown} say create instead, and let the application reopen its log")
    return ok("D14", "no logrotate rule copies and truncates what is read")


def _read_by_two_sources(config: Config, found: dict[str, list[str]]) -> CheckResult:
    readers: dict[str, list[str]] = {}
    for name, paths in found.items():
        for path in paths:
            readers.setdefault(os.path.realpath(path), []).append(name)
    doubled = {path: names for path, names in readers.items() if len(set(names)) > 1}
    if doubled:
        path, names = next(iter(doubled.items()))
        more = f" and {len(doubled) - 1} more" if len(doubled) > 1 else ""
        plain = next((n for n in reversed(names) if isinstance(config.sources[n], FileConfig)), names[-1])
        text = f"{path}{more} is read by the sources {' and '.join(names)}: every line is delivered twice"
        return fail("D15", text, f'sources.{plain}.exclude: ["{path}"]')
    return ok("D15", "every file is read by one source")


def _own_output(config: Config, found: dict[str, list[str]], host: Host) -> CheckResult:
    state = os.path.realpath(config.state_dir)
    own = {os.path.realpath(path): f"sink {name}" for name, path in _written(config)}
    if host.status is not None:
        for descriptor in (1, 2):
            link = host.root / f"proc/{host.status.pid}/fd/{descriptor}"
            own[os.path.realpath(link)] = "the daemon's own log"
    for source, section in config.sources.items():
        if not isinstance(section, FileConfig):
            continue
        candidates = [*found[source], *(path for path in own if _named(section, path))]
        for path in candidates:
            real = os.path.realpath(path)
            writer = own.get(real) or ("the state directory" if real.startswith(f"{state}/") else "")
            if writer:
                text = f"source {source} reads {path}, which is written by shipper ({writer}): a loop without end"
                return fail("D16", text, f'sources.{source}.exclude: ["{path}"]')
    return ok("D16", "no source reads what shipper writes")


def _links(config: Config, found: dict[str, list[str]], identity: Identity) -> CheckResult:
    refused: list[NotFollowedError] = []
    for name, section in config.sources.items():
        if isinstance(section, FileConfig) and section.follow_symlinks == "always":
            continue
        for path in found[name]:
            try:
                followed(path, identity.uid)
            except NotFollowedError as error:
                refused.append(error)
            except OSError:
                continue  # the permission check tells
    if refused:
        more = f", and {len(refused) - 1} more" if len(refused) > 1 else ""
        return warn("D17", f"{refused[0].filename}: {refused[0].strerror}{more}", refused[0].fix)
    return ok("D17", "every symbolic link to a log is followed")


def _written(config: Config) -> Iterator[tuple[str, str]]:
    for name, section in config.sinks.items():
        path = getattr(section, "path", None)
        if isinstance(path, str) and path.startswith("/"):
            yield name, path


def _named(section: FileConfig, path: str) -> bool:
    return any(PurePosixPath(path).match(pattern) for pattern in section.include) and not any(
        fnmatchcase(path, pattern) for pattern in section.exclude
    )
