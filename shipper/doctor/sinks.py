"""Checks of the sinks, as they examine themselves (`Sink.examine`) and as the canary proves them (`shipper.delivery.canary`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from shipper.delivery.canary import examine
from shipper.doctor.result import CheckResult
from shipper.routing.router import Router

if TYPE_CHECKING:
    from shipper.clock import Clock
    from shipper.config.types import Config

#: What a finding is about, by the word that the sink gives it; any other word is D79.
IDS = {
    "reachable": "D70", "open": "D70", "dns": "D70",
    "tls": "D71",
    "login": "D72",
    "rights": "D73", "directory": "D73", "writable": "D73", "lock": "D73",
    "table": "D74", "schema": "D74", "index": "D74", "group": "D74", "stream": "D74",
    "limits": "D75", "space": "D75", "journal": "D75", "load_data": "D75", "quota": "D75",
    "clock": "D76",
    "write": "D77",
    "read": "D78",
}  # fmt: skip


def results(config: Config, clock: Clock, *, canary: bool) -> Iterator[CheckResult]:
    """Examine every sink in use, one after the other; ``canary`` also writes a test record to each."""
    for name in Router(config.active, config.routes).sinks:
        for finding in examine(config.sinks[name], clock=clock, canary=canary):
            fix = finding.fix if finding.verdict != "ok" else ""
            identifier = IDS.get(finding.what, "D79")
            yield CheckResult(identifier, f"{name} {finding.what}", finding.verdict, finding.evidence, fix)
