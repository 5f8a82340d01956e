"""The machine and the daemon on it, as checks see them: a root to look facts up in, a clock, an identity."""

from __future__ import annotations

import ctypes
import os
import resource
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from shipper.errors import ConfigError
from shipper.native import WHY_PURE

if TYPE_CHECKING:
    from shipper.telemetry.status import Status

# linux/capability.h
_DAC_OVERRIDE, _DAC_READ_SEARCH = 1 << 1, 1 << 2
# linux/timex.h
_STA_UNSYNC = 0x40


class Identity(msgspec.Struct, frozen=True):
    """Who reads and writes. ``reads_all`` and ``writes_all`` say that a capability passes by permissions.

    ``ours`` says that it is this process, so that trying tells more than computing.
    """

    uid: int
    gids: tuple[int, ...]
    reads_all: bool = False
    writes_all: bool = False
    ours: bool = False

    def __str__(self) -> str:
        return f"uid {self.uid} groups {','.join(map(str, self.gids))}"

    @classmethod
    def of_process(cls, pid: int, root: Path = Path("/")) -> Identity:
        """Give the identity of a running process from its /proc/PID/status. Raises OSError."""
        fields = dict(
            line.split(":\t", 1) for line in (root / f"proc/{pid}/status").read_text().splitlines() if ":\t" in line
        )
        uid, gid = int(fields["Uid"].split()[1]), int(fields["Gid"].split()[1])
        capabilities = int(fields["CapEff"], 16)
        return cls(
            uid=uid,
            gids=tuple(dict.fromkeys((gid, *map(int, fields.get("Groups", "").split())))),
            reads_all=bool(capabilities & (_DAC_OVERRIDE | _DAC_READ_SEARCH)),
            writes_all=bool(capabilities & _DAC_OVERRIDE),
            ours=pid == os.getpid(),
        )

    @classmethod
    def of_user(cls, text: str) -> Identity:
        """Give the identity of ``USER`` (a name or a uid), or of ``UID:GID[,GID...]``. Raises ConfigError."""
        import pwd  # noqa: PLC0415 - only with --user

        name, _, groups = text.partition(":")
        try:
            entry = pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)
        except KeyError:
            entry = None
        try:
            if entry is None:
                gids = tuple(map(int, groups.split(",")))
                uid = int(name)
            else:
                uid = entry.pw_uid
                gids = (
                    tuple(map(int, groups.split(",")))
                    if groups
                    else tuple(dict.fromkeys((entry.pw_gid, *os.getgrouplist(entry.pw_name, entry.pw_gid))))
                )
        except ValueError:
            raise ConfigError(f"there is no user {text!r}; give a user's name, or uid:gid,gid as numbers") from None
        return cls(uid, gids, reads_all=uid == 0, writes_all=uid == 0)

    def may(self, status: os.stat_result, bit: int) -> bool:
        """Tell whether permissions allow ``bit`` (4 read, 2 write, 1 execute or pass) on what was looked at."""
        directory = stat.S_ISDIR(status.st_mode)
        if self.writes_all or (self.reads_all and (bit == 4 or (bit == 1 and directory))):
            return True
        shift = 6 if status.st_uid == self.uid else 3 if status.st_gid in self.gids else 0
        return bool(status.st_mode >> shift & bit)


def present(path: Path | str) -> os.stat_result | None:
    """Look at what a path names; None when there is nothing, or we may not look."""
    try:
        return os.stat(path)  # noqa: PTH116 - takes both
    except OSError:
        return None


def is_directory(path: Path | str) -> bool:
    """Tell whether a directory is there that we may look at; Path.is_dir raises where we may not."""
    found = present(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


class ClockState(NamedTuple):
    """What the kernel says of its clock: whether it is synchronised, and its greatest error in seconds."""

    synchronised: bool
    error: float


class Host(msgspec.Struct, kw_only=True):
    """Where facts come from; tests plant theirs.

    ``root`` is what /proc and /etc are looked up in. ``status`` is what a running daemon told, or ``silence`` why there is
    none, and ``holder`` the process that has the state's lock. ``files_allowed`` is -1 without a limit. ``why_pure`` is
    why this installation runs in its pure form, empty when it does not.
    """

    identity: Identity
    root: Path = Path("/")
    now: float = msgspec.field(default_factory=time.time)
    clock: ClockState | None = None
    status: Status | None = None
    silence: str = ""
    why_pure: str = WHY_PURE
    holder: int | None = None
    files_allowed: int = msgspec.field(default_factory=lambda: resource.getrlimit(resource.RLIMIT_NOFILE)[1])

    def number(self, path: str) -> int | None:
        """Give the number in a file under the root, None when there is none."""
        try:
            return int((self.root / path).read_text())
        except (OSError, ValueError):
            return None


def is_shipper(pid: int, root: Path = Path("/")) -> bool:
    """Tell whether a process is a daemon of ours; the number of one in another container may be somebody else's here."""
    try:
        return b"shipper" in (root / f"proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def files_allowed(pid: int, root: Path = Path("/")) -> int | None:
    """Give how many files a process may open at most, or None when it cannot be seen; -1 is without limit."""
    try:
        lines = (root / f"proc/{pid}/limits").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("Max open files"):
            hard = line.split()[4]
            return -1 if hard == "unlimited" else int(hard)
    return None


class _Timex(ctypes.Structure):
    """The head of struct timex (adjtimex(2)); the rest is room for what the kernel writes behind it."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 256),
    )


def kernel_clock() -> ClockState | None:
    """Ask the kernel how it keeps time, changing nothing; None where it does not say."""
    try:
        adjtimex = ctypes.CDLL(None, use_errno=True).adjtimex
    except (OSError, AttributeError):
        return None
    timex = _Timex()
    if adjtimex(ctypes.byref(timex)) < 0:
        return None
    return ClockState(not timex.status & _STA_UNSYNC, timex.maxerror / 1e6)
