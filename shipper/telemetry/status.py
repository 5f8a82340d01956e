"""How a daemon stands, as ``/status`` tells it and ``shipper status`` shows it;

Sizes are bytes, times are seconds, counters count since the daemon started.
"""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING

import msgspec

from shipper.units import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Seconds that a source may be behind before the verdict says so; the alert ShipperBehind uses the same.
BEHIND = 300.0
#: The share of its limit from which on a spill is trouble to come.
NEARLY_FULL = 0.8
#: Seconds for which refused records count as news.
RECENT = 86_400.0


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """What the state directory holds for a sink: spilled records (at most) and bytes, dead letters, their age."""

    spill_records: int = 0
    spill_bytes: int = 0
    dead_letters: int = 0
    dead_letters_damaged: int = 0
    dead_letters_age: float | None = None


class SourceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One source: its state and what it has read, and how far no sink has got yet."""

    state: str
    detail: str = ""
    files_open: int = 0
    files_unreadable: int = 0
    lag_bytes: int = 0
    lag_seconds: float = 0.0
    lines: int = 0


class SinkStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One sink that has a delivery. ``role`` is active, routed or draining; ``next_try`` is None when none waits.

    ``backlog_bytes`` wait in memory, the oldest for ``oldest_seconds``; ``error`` is the last, ``error_seconds`` ago.
    ``restarts`` counts faults of our own; ``given_up`` records that it will never be given, by reason, since the state
    was begun.
    """

    role: str
    state: str
    detail: str = ""
    since: float = 0.0
    lines: int = 0
    backlog_bytes: int = 0
    oldest_seconds: float = 0.0
    spill_bytes: int = 0
    spill_limit: int = 0
    dead_letter_bytes: int = 0
    dead_letter_limit: int = 0
    restarts: int = 0
    given_up: dict[str, int] = {}
    attempts: int = 0
    retries: int = 0
    next_try: float | None = None
    error: str = ""
    error_seconds: float | None = None


class ConfigStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Which configuration runs: its file, a hash of it, how long ago it was loaded, and why a newer one was refused."""

    path: str
    hash: str
    loaded_seconds: float
    valid: bool = True
    detail: str = ""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Everything ``/status`` tells. ``faults`` are what a restart could mend, ``troubles`` all other components."""

    version: str
    pid: int
    uptime: float
    config: ConfigStatus
    state_dir: str
    faults: list[str] = []
    troubles: dict[str, str] = {}
    sources: dict[str, SourceStatus] = {}
    sinks: dict[str, SinkStatus] = {}
    waiting: dict[str, Waiting] = {}
    dropped_lines: dict[str, int] = {}
    lost_bytes: dict[str, int] = {}


class Verdict(msgspec.Struct, frozen=True):
    """OK, STARTING, DEGRADED, FAILED or DOWN; why, the worst first; and the command to run next."""

    word: str
    reasons: list[str]
    next: str


def judge(status: Status) -> Verdict:
    """Say in one word how the daemon is, why, and what to do next."""
    if status.faults:
        return Verdict("FAILED", status.faults, "restart the daemon, then: shipper status")
    reasons = list(_reasons(status))
    starting = [f"sink {name} is starting" for name, sink in status.sinks.items() if sink.state == "starting"]
    if reasons:
        return Verdict("DEGRADED", [text for text, _ in reasons] + starting, reasons[0][1])
    if starting:
        return Verdict("STARTING", starting, "shipper status")
    return Verdict("OK", [], "shipper query --since 1h")


def _reasons(status: Status) -> Iterator[tuple[str, str]]:
    """Give each reason for concern with the command that helps, the worst first."""
    for cause, size in status.lost_bytes.items():
        yield f"{counted(size, 'byte')} lost since the start ({cause})", "shipper doctor"
    for cause, lines in status.dropped_lines.items():
        yield f"{counted(lines, 'line')} given up since the start ({cause})", "shipper doctor"
    for name, sink in status.sinks.items():
        if sink.state not in {"ok", "starting"}:
            yield f"sink {name} is {sink.state}: {sink.detail}", f"shipper check --online --sink {quote(name)}"
        if sink.restarts:
            text = f"sink {name} began anew {counted(sink.restarts, 'time')} after a fault of our own; please report it"
            yield text, "shipper doctor"
        if sink.spill_limit and sink.spill_bytes > NEARLY_FULL * sink.spill_limit:
            share = 100 * sink.spill_bytes // sink.spill_limit
            yield f"the spill of sink {name} is {share} % full", f"shipper check --online --sink {quote(name)}"
        if sink.dead_letter_limit and sink.dead_letter_bytes > NEARLY_FULL * sink.dead_letter_limit:
            share = 100 * sink.dead_letter_bytes // sink.dead_letter_limit
            yield f"the dead letters of sink {name} are {share} % full", f"shipper dead-letters ls --sink {quote(name)}"
    for component, text in status.troubles.items():
        yield f"{component} {text}", "shipper doctor"
    for name, source in status.sources.items():
        if source.state not in {"ok", "starting"}:
            yield f"source {name} is {source.state}: {source.detail}", "shipper doctor"
        if source.files_unreadable:
            yield f"source {name}: {counted(source.files_unreadable, 'file')} cannot be read", "shipper doctor"
        if source.lag_seconds > BEHIND:
            yield f"source {name} is {source.lag_bytes} bytes behind, for {source.lag_seconds:.0f} s", "shipper doctor"
    if not status.config.valid:
        yield (
            status.config.detail or "the configuration file is refused",
            f"shipper check --config {quote(status.config.path)}",
        )
    for name, waiting in status.waiting.items():
        if waiting.dead_letters_age is not None and waiting.dead_letters_age < RECENT:
            text = f"{counted(waiting.dead_letters, 'record')} refused by sink {name}, the newest in the last day"
            yield text, f"shipper dead-letters ls --sink {quote(name)}"
        if waiting.spill_bytes and name not in status.sinks:
            yield (
                f"at most {counted(waiting.spill_records, 'record')} on disk for {name}, which is not configured",
                "shipper spill ls",
            )
