"""Checks of the clock: lines are stamped with it, and sinks refuse what is too new or too old."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from shipper.doctor.result import CheckResult, ok, several, warn
from shipper.units import format_duration

if TYPE_CHECKING:
    from shipper.doctor.host import Host

#: Seconds that a file may be ahead of the clock before that is told.
_AHEAD = 60.0
_FIX = "enable chrony or systemd-timesyncd on the host"


def results(host: Host, found: dict[str, list[str]]) -> Iterator[CheckResult]:
    """Check whether the clock is kept right, and whether it has been set back."""
    if host.clock is None:
        yield ok("D60", "the kernel does not say here")
    elif not host.clock.synchronised:
        yield warn("D60", "nothing keeps this machine's clock right (the kernel says: not synchronised)", _FIX)
    else:
        yield ok("D60", f"synchronised, within {format_duration(host.clock.error)}")
    ahead = {
        path: seconds
        for paths in found.values()
        for path in paths
        if (seconds := _seconds_ahead(path, host.now)) > _AHEAD
    }
    if ahead:
        worst = format_duration(max(ahead.values()))
        text = f"{several(list(ahead))}: written up to {worst} in the future, so this clock or the writer's is wrong"
        yield warn("D61", text, _FIX)
    else:
        yield ok("D61", "no log is ahead of the clock")


def _seconds_ahead(path: str, now: float) -> float:
    try:
        return os.stat(path).st_mtime - now  # noqa: PTH116 - one of very many
    except OSError:
        return 0.0
