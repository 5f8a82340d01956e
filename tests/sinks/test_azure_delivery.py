"""What becomes of records whose delivery to Azure fails: through the real delivery."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shipper.record import Batch
from shipper.sink import Sink
from shipper.testing.batches import make_batch
from shipper.testing.http_server import Reply
from shipper.testing.rig import Rig
from sinks.azure_app_insights import AppInsightsConfig, AppInsightsSink
from sinks.azure_logs import AzureLogsConfig, AzureLogsSink
from support.azure_app_insights_server import AppInsightsServer
from support.azure_logs_server import AzureLogsServer
from support.azure_server import AzureServer

HOUR = 3_600 * 10**9

MakeRig = Callable[[Sink], Rig]


@pytest.fixture
def make_rig(tmp_path: Path) -> Iterator[MakeRig]:
    made: list[Rig] = []

    def make(sink: Sink) -> Rig:
        made.append(Rig(tmp_path, sink))
        return made[-1]

    yield make
    for rig in made:
        rig.close()


def _run(rig: Rig, batch: Batch) -> None:
    rig.put("/x", batch)
    rig.run()


def _dead(rig: Rig) -> list[tuple[str, str]]:
    return [(entry.raw, entry.code) for entry in rig.dead()]


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


def test_each_failure_of_a_mixed_answer_has_its_own_end(insights: AppInsightsServer, make_rig: MakeRig) -> None:
    seen: list[str] = []

    def verdict(item: dict[str, Any]) -> tuple[int, str] | None:
        message = item["data"]["baseData"]["message"]
        seen.append(message)
        first = seen.count(message) == 1
        return {"bad": (400, "no"), "later": (500, "busy") if first else None}.get(message)

    insights.verdict = verdict
    insights.sampled = lambda item: item["data"]["baseData"]["message"] == "sampled"
    rig = make_rig(_sink(insights))
    old = _batch("old", ago=49)
    _run(rig, Batch.concat([old, _batch("a", "bad", "later", "sampled", "b")]))
    assert sorted(insights.messages()) == ["a", "b", "later"]
    assert _dead(rig) == [("old", "103"), ("bad", "400")]
    assert rig.metrics.value("shipper_dropped_total", reason="sampled_out") == 1
    assert rig.acked == 3
    assert rig.maybe_doubled == 0


def test_many_old_records_do_not_bring_the_sink_under_suspicion(insights: AppInsightsServer, make_rig: MakeRig) -> None:
    rig = make_rig(_sink(insights))
    _run(rig, _batch(*map(str, range(200)), ago=72))
    assert len(rig.dead()) == 200
    assert rig.clock.waits == []


@pytest.mark.parametrize("status", [402, 439])
def test_quota_parks_and_everything_arrives_once_it_resets(
    insights: AppInsightsServer, make_rig: MakeRig, status: int
) -> None:
    insights.quota = status
    rig = make_rig(_sink(insights))

    def wait(_seconds: float) -> None:
        rig.states.append(rig.state())
        if len(rig.clock.waits) == 4:
            insights.quota = 0

    rig.clock.on_wait = wait
    _run(rig, _batch("a", "b"))
    assert insights.messages() == ["a", "b"]
    assert set(rig.states) == {"parked"}
    # Until midnight, and ten minutes at a time at most, in case somebody raises the quota.
    assert all(1 <= seconds <= 600 for seconds in rig.clock.waits)
    assert rig.dead() == []


def test_unknown_outcomes_are_counted_and_sent_again(insights: AppInsightsServer, make_rig: MakeRig) -> None:
    insights.script(Reply(504), stored=True)
    rig = make_rig(_sink(insights))
    _run(rig, _batch("a", "b"))
    assert insights.messages() == ["a", "a", "b", "b"]
    assert rig.maybe_doubled == 1


def test_retry_after_is_kept(logs: AzureLogsServer, make_rig: MakeRig) -> None:
    logs.script(Reply(429, b"", {"Retry-After": "17"}))
    rig = make_rig(_sink(logs))
    _run(rig, _batch("a"))
    assert rig.clock.waits == [17]
    assert rig.states == ["throttled"]
    assert logs.messages() == ["a"]


@pytest.mark.parametrize("status", [404, 413])
def test_requests_that_are_too_large_for_the_server_are_halved(
    logs: AzureLogsServer, make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """Were the service's megabyte smaller than ours, nothing would be lost."""
    monkeypatch.setattr("support.azure_logs_server.CALL", 100_000)
    logs.too_large = status
    rig = make_rig(_sink(logs))
    batch = _batch(*(f"{number} " + "m" * 2_000 for number in range(300)))
    _run(rig, batch)
    assert logs.messages() == batch.messages
    assert rig.dead() == []
    assert rig.clock.waits == []


def test_role_that_takes_time_to_hold_parks_meanwhile(logs: AzureLogsServer, make_rig: MakeRig) -> None:
    logs.granted = False
    rig = make_rig(_sink(logs))

    def wait(_seconds: float) -> None:
        rig.states.append(rig.state())
        logs.granted = len(rig.clock.waits) == 3

    rig.clock.on_wait = wait
    _run(rig, _batch("a"))
    assert rig.states == ["parked"] * 3
    assert logs.messages() == ["a"]
    assert rig.dead() == []
