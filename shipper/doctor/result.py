"""What a check says, and the list of all checks."""

from __future__ import annotations

from typing import NamedTuple

import msgspec


class CheckResult(msgspec.Struct, frozen=True):
    """One thing that was looked at. ``verdict`` is ok, warn (works, but will hurt) or fail; ``fix`` is empty when ok."""

    id: str
    what: str
    verdict: str
    evidence: str
    fix: str = ""


class Check(NamedTuple):
    """A check as the documentation lists it: its word, and what is looked at."""

    what: str
    looks_at: str


#: Every check there is. Ids are stable: scripts may name them.
CHECKS = {
    "D01": Check("config", "the file is valid: no unknown key, every name known, every secret file there"),
    "D02": Check("secrets", "nobody else can read a password: not in the file, not in a secret file"),
    "D03": Check("daemon", "whether a daemon runs, answers, and is alive"),
    "D04": Check("reload", "the daemon runs what the file says, and the file was not refused"),
    "D05": Check("form", "the compiled form of the program is the one that is used"),
    "D10": Check("sources", "every source finds something to read"),
    "D11": Check("permission", "the daemon's user can read every file, and pass every directory above it"),
    "D12": Check("names", "the names of containers can be read (config.v2.json)"),
    "D13": Check("filesystem", "logs are on a file system that tells of new files and keeps inode numbers"),
    "D14": Check("rotation", "no logrotate rule copies and truncates a log that is read"),
    "D15": Check("twice", "no file is read by two sources"),
    "D16": Check("loop", "no source reads what shipper itself writes"),
    "D17": Check("links", "every symbolic link to a log is one that is followed"),
    "D20": Check("driver", "every container logs with json-file, the driver whose files can be read"),
    "D21": Check("growth", "every container's log is rotated by Docker (max-size)"),
    "D22": Check("generations", "rotation keeps old files until they are read (max-file)"),
    "D23": Check("blocking", "Docker does not drop lines under load (mode)"),
    "D30": Check("inotify", "enough inotify watches for the directories that are watched"),
    "D31": Check("instances", "an inotify instance is left for the daemon's user"),
    "D32": Check("descriptors", "enough open files are allowed for every log and the rest"),
    "D40": Check("state", "the daemon's user can write the state directory"),
    "D41": Check("lasting", "the state directory outlives the container and the machine's restart"),
    "D42": Check("space", "the disk has room for the spill that the sinks may take, and inodes"),
    "D43": Check("locks", "the state directory is on a file system whose locks SQLite can trust"),
    "D44": Check("damage", "no state was found damaged and set aside"),
    "D45": Check("leftover", "no spill waits for a sink that is not configured"),
    "D46": Check("spill", "no spill is near its limit"),
    "D47": Check("dead letters", "no record was refused for good"),
    "D60": Check("clock", "the machine's clock is kept right by the network"),
    "D61": Check("future", "no log was written in the future"),
    "D70": Check("reachable", "the sink answers"),
    "D71": Check("tls", "the connection is encrypted, the certificate accepted"),
    "D72": Check("login", "the sink accepts the credentials"),
    "D73": Check("rights", "the account may do what is needed, and the place can be written"),
    "D74": Check("schema", "tables, indexes and columns are there or can be made"),
    "D75": Check("limits", "the sink's own limits fit: request size, space, modes"),
    "D76": Check("skew", "the sink's clock agrees with ours"),
    "D77": Check("canary", "the sink takes a test record"),
    "D78": Check("read back", "the test record can be read back"),
    "D79": Check("sink", "anything else that the sink tells of itself"),
}


def ok(identifier: str, evidence: str) -> CheckResult:
    """Make a result that says all is well."""
    return CheckResult(identifier, CHECKS[identifier].what, "ok", evidence)


def warn(identifier: str, evidence: str, fix: str) -> CheckResult:
    """Make a result that says what will hurt, and what to do."""
    return CheckResult(identifier, CHECKS[identifier].what, "warn", evidence, fix)


def fail(identifier: str, evidence: str, fix: str) -> CheckResult:
    """Make a result that says what is wrong, and what to do."""
    return CheckResult(identifier, CHECKS[identifier].what, "fail", evidence, fix)


def several(paths: list[str], most: int = 3) -> str:
    """Name a few of many."""
    rest = len(paths) - most
    return ", ".join(paths[:most]) + (f" and {rest} more" if rest > 0 else "")
