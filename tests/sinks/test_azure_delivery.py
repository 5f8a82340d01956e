"""What becomes of records whose delivery to Azure fails: through the real delivery."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shipper.buffer import Buffer
from shipper.checkpoint import Checkpoint
from shipper.clock import SystemClock
from shipper.deadletter import DeadLetters
from shipper.delivery import Delivery
from shipper.fs import FileSystem
from shipper.health import Health
from shipper.ledger import Ledger
from shipper.metrics import Metrics
from shipper.record import Batch, Span
from shipper.sink import Sink
from shipper.source import FileState
from shipper.spill import Cursor, Spill
from shipper.testing.azure_app_insights_server import AppInsightsServer
from shipper.testing.azure_logs_server import AzureLogsServer
from shipper.testing.azure_server import AzureServer
from shipper.testing.batches import make_batch
from shipper.testing.http_server import Reply
from sinks.azure_app_insights import AppInsightsConfig, AppInsightsSink
from sinks.azure_logs import AzureLogsConfig, AzureLogsSink

HOUR = 3_600 * 10**9


class Clock(SystemClock):
    """Waits take no time; ``on_wait`` sees each."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.on_wait: Callable[[], None] = lambda: None

    def wait(self, event: object, seconds: float) -> bool:
        self.waits.append(seconds)
        self.on_wait()
        return event.is_set()  # type: ignore[attr-defined, no-any-return]


class Rig:
    def __init__(self, directory: Path, sink: Sink) -> None:
        self.clock, self.metrics, self.health = Clock(), Metrics(), Health()
        self.states: list[str] = []
        ledger = Ledger(Checkpoint(directory), ["azure"], self.clock)
        state = FileState(key=0, source="x", path="/x", device=1, inode=1, uid="u", head=0, head_size=0)
        self.file = ledger.add(state).key
        spill = Spill(
            directory / "spill", limit=1 << 24, fs=FileSystem(), cursor=Cursor(0, 0), on_lost=self.metrics.dropped
        )
        self.buffer = Buffer(
            spill,
            clock=self.clock,
            max_memory=1 << 24,
            drop_oldest=False,
            on_safe=lambda spans: ledger.done("azure", spans),
            on_cursor=lambda cursor: ledger.spill_cursor("azure", cursor.segment, cursor.offset),
            on_dropped=lambda _: None,
        )
        self.dead_letters = DeadLetters(directory / "azure.jsonl")
        self.delivery = Delivery(
            "azure",
            sink,
            self.buffer,
            ledger=ledger,
            dead_letters=self.dead_letters,
            clock=self.clock,
            metrics=self.metrics,
            health=self.health,
            rng=random.Random(1),
        )
        self.clock.on_wait = lambda: self.states.append(self.state())

    def state(self) -> str:
        return str(self.health.as_dict()["components"]["sink:azure"]["state"])

    def run(self, batch: Batch) -> None:
        self.buffer.put(msgspec.structs.replace(batch, span=Span(self.file, 0, 100, 7)))
        self.delivery.start()
        self.delivery.drain()
        assert self.delivery.join(20)
        self.buffer.close()

    def dead(self) -> list[tuple[str, str]]:
        return [(entry.raw, entry.code) for entry in self.dead_letters.entries()]


@pytest.fixture
def insights() -> Iterator[AppInsightsServer]:
    with AppInsightsServer() as server:
        yield server


@pytest.fixture
def logs() -> Iterator[AzureLogsServer]:
    with AzureLogsServer() as server:
        yield server


def _sink(server: AzureServer) -> Sink:
    section = server.sink()
    if section["type"] == "azure_logs":
        return AzureLogsSink(AzureLogsConfig(**section))
    return AppInsightsSink(AppInsightsConfig(**section))


def _batch(*messages: str, ago: float = 1.0, **options: Any) -> Batch:
    return make_batch(messages, start_ns=time.time_ns() - int(ago * HOUR), **options)


def test_each_failure_of_a_mixed_answer_has_its_own_end(insights: AppInsightsServer, tmp_path: Path) -> None:
    seen: list[str] = []

    def verdict(item: dict[str, Any]) -> tuple[int, str] | None:
        message = item["data"]["baseData"]["message"]
        seen.append(message)
        first = seen.count(message) == 1
        return {"bad": (400, "no"), "later": (500, "busy") if first else None}.get(message)

    insights.verdict = verdict
    insights.sampled = lambda item: item["data"]["baseData"]["message"] == "sampled"
    rig = Rig(tmp_path, _sink(insights))
    old = _batch("old", ago=49)
    rig.run(Batch.concat([old, _batch("a", "bad", "later", "sampled", "b")]))
    assert sorted(insights.messages()) == ["a", "b", "later"]
    assert rig.dead() == [("old", "103"), ("bad", "400")]
    assert rig.metrics.value("shipper_dropped_total", reason="sampled_out") == 1
    assert rig.metrics.value("shipper_sink_lines_acked_total", sink="azure") == 3
    assert rig.metrics.value("shipper_sink_maybe_doubled_total", sink="azure") == 0


def test_many_old_records_do_not_bring_the_sink_under_suspicion(insights: AppInsightsServer, tmp_path: Path) -> None:
    rig = Rig(tmp_path, _sink(insights))
    rig.run(_batch(*map(str, range(200)), ago=72))
    assert len(rig.dead()) == 200
    assert rig.clock.waits == []


@pytest.mark.parametrize("status", [402, 439])
def test_quota_parks_and_everything_arrives_once_it_resets(
    insights: AppInsightsServer, tmp_path: Path, status: int
) -> None:
    insights.quota = status
    rig = Rig(tmp_path, _sink(insights))

    def wait() -> None:
        rig.states.append(rig.state())
        if len(rig.clock.waits) == 4:
            insights.quota = 0

    rig.clock.on_wait = wait
    rig.run(_batch("a", "b"))
    assert insights.messages() == ["a", "b"]
    assert set(rig.states) == {"parked"}
    # Until midnight, and ten minutes at a time at most, in case somebody raises the quota.
    assert all(1 <= seconds <= 600 for seconds in rig.clock.waits)
    assert rig.dead() == []


def test_unknown_outcomes_are_counted_and_sent_again(insights: AppInsightsServer, tmp_path: Path) -> None:
    insights.script(Reply(504), stored=True)
    rig = Rig(tmp_path, _sink(insights))
    rig.run(_batch("a", "b"))
    assert insights.messages() == ["a", "a", "b", "b"]
    assert rig.metrics.value("shipper_sink_maybe_doubled_total", sink="azure") == 1


def test_retry_after_is_kept(logs: AzureLogsServer, tmp_path: Path) -> None:
    logs.script(Reply(429, b"", {"Retry-After": "17"}))
    rig = Rig(tmp_path, _sink(logs))
    rig.run(_batch("a"))
    assert rig.clock.waits == [17]
    assert rig.states == ["throttled"]
    assert logs.messages() == ["a"]


@pytest.mark.parametrize("status", [404, 413])
def test_requests_that_are_too_large_for_the_server_are_halved(
    logs: AzureLogsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """Were the service's megabyte smaller than ours, nothing would be lost."""
    monkeypatch.setattr("shipper.testing.azure_logs_server.CALL", 100_000)
    logs.too_large = status
    rig = Rig(tmp_path, _sink(logs))
    batch = _batch(*(f"{number} " + "m" * 2_000 for number in range(300)))
    rig.run(batch)
    assert logs.messages() == batch.messages
    assert rig.dead() == []
    assert rig.clock.waits == []


def test_role_that_takes_time_to_hold_parks_meanwhile(logs: AzureLogsServer, tmp_path: Path) -> None:
    logs.granted = False
    rig = Rig(tmp_path, _sink(logs))

    def wait() -> None:
        rig.states.append(rig.state())
        logs.granted = len(rig.clock.waits) == 3

    rig.clock.on_wait = wait
    rig.run(_batch("a"))
    assert rig.states == ["parked"] * 3
    assert logs.messages() == ["a"]
    assert rig.dead() == []
