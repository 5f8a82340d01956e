"""The keeper: every second it saves the checkpoint and tells how everything stands."""

from __future__ import annotations

import sqlite3
import threading
from typing import TYPE_CHECKING

from shipper.telemetry.logs import get_logger
from shipper.telemetry.status import SinkStatus, SourceStatus

if TYPE_CHECKING:
    from shipper.clock import Clock
    from shipper.daemon.intake import Intake
    from shipper.daemon.parts import Parts
    from shipper.delivery.delivery import Delivery
    from shipper.state.ledger import Ledger
    from shipper.telemetry.health import Health
    from shipper.telemetry.metrics import Metrics

log = get_logger("pipeline")

#: Seconds between saves of the checkpoint: the most that is delivered again after a kill.
SAVE_INTERVAL = 1.0
KEEPER = "keeper"


class Keeper:
    """Saves positions, sets the gauges, and answers how sources and sinks stand."""

    def __init__(
        self,
        parts: Parts,
        intake: Intake,
        deliveries: dict[str, Delivery],
        ledger: Ledger,
        *,
        clock: Clock,
        metrics: Metrics,
        health: Health,
    ) -> None:
        self._parts = parts
        self._intake = intake
        self._deliveries = deliveries
        self._ledger = ledger
        self._clock = clock
        self._metrics = metrics
        self._health = health
        self._lags: list[tuple[str, str, int]] = []  # source, path and bytes, as of the last save
        self._caught_up: dict[str, float] = {}  # when each file last had no lag, in monotonic seconds
        self._waiting: set[str] = set()  # sinks whose spill is full
        self._drained: set[str] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, without a last save: the ledger saves when it is closed."""
        self._stopping.set()
        self._thread.join(5.0)

    def _run(self) -> None:
        while not self._clock.wait(self._stopping, SAVE_INTERVAL):
            self._health.beat(KEEPER)
            self.save()
        self._health.rest(KEEPER)

    def save(self) -> None:
        """Save the checkpoint and refresh the gauges."""
        try:
            self._ledger.save()
        except sqlite3.Error as error:
            log.error("positions cannot be saved; delivery goes on", error=str(error))
            self._health.report("state", "retrying", f"positions cannot be saved: {error}")
        else:
            if self._health.state("state") == "retrying" and not self._intake.blocked:
                self._health.report("state", "ok")
        for delivery in self._deliveries.values():
            self._look_at(delivery)
        open_files = unreadable = 0
        for feed in self._intake.feeds:
            if feed.opened:
                counts = feed.source.counts()
                open_files, unreadable = open_files + counts[0], unreadable + counts[1]
        self._metrics.set_files(open=open_files, unreadable=unreadable)
        self._refresh_lags()

    def _look_at(self, delivery: Delivery) -> None:
        name, buffer = delivery.name, delivery.buffer
        waits = not buffer.room() and not buffer.can_spill()
        if waits and name not in self._waiting:
            log.warning(
                "the spill is full (max_size, or No space left on its disk); reading waits for the sink",
                sink=name, bytes=buffer.spill_bytes, limit=buffer.spill_limit,
            )  # fmt: skip
        (self._waiting.add if waits else self._waiting.discard)(name)
        if name in self._parts.draining and buffer.empty() and name not in self._drained:
            self._drained.add(name)
            log.info("drained: a sink that gets no records any more has all that it was given", sink=name)
        self._metrics.set_spool(name, buffer.spill_bytes, buffer.spill_limit)
        self._metrics.set_buffer(name, buffer.memory_bytes, buffer.waiting_seconds())

    def _refresh_lags(self) -> None:
        now = self._clock.monotonic()
        self._lags = self._ledger.lags()
        lags = {path: lag for _, path, lag in self._lags}
        for path in self._caught_up.keys() - lags.keys():
            self._metrics.forget_lag(path)
        # A file's lag in seconds is the time since it was last caught up.
        self._caught_up = {path: (self._caught_up.get(path, now) if lag else now) for path, lag in lags.items()}
        for path, lag in lags.items():
            self._metrics.set_lag(path, lag, now - self._caught_up[path])

    def sources(self) -> dict[str, SourceStatus]:
        """Tell how every source stands; lags are those of the last save, a second old at most."""
        now, lags, caught_up = self._clock.monotonic(), self._lags, self._caught_up
        components = self._health.components()
        found = {}
        for feed in self._intake.feeds:
            state = components.get(f"source:{feed.name}")
            files_open, unreadable = feed.source.counts() if feed.opened else (0, 0)
            own = [(path, lag) for source, path, lag in lags if source == feed.name]
            found[feed.name] = SourceStatus(
                state=state.state if state else "starting",
                detail=state.detail if state else "",
                files_open=files_open,
                files_unreadable=unreadable,
                lag_bytes=sum(lag for _, lag in own),
                lag_seconds=max((now - caught_up.get(path, now) for path, lag in own if lag), default=0.0),
                lines=round(self._metrics.value("shipper_lines_read_total", source=feed.name)),
            )
        return found

    def sinks(self) -> dict[str, SinkStatus]:
        """Tell how every sink stands that has a delivery."""
        retries: dict[str, float] = {}
        for (sink, _code), count in self._metrics.series()["shipper_sink_retries_total"].items():
            retries[sink] = retries.get(sink, 0) + count
        return {name: self._sink(delivery, round(retries.get(name, 0))) for name, delivery in self._deliveries.items()}

    def _sink(self, delivery: Delivery, retries: int) -> SinkStatus:
        now, name = self._clock.monotonic(), delivery.name
        state = self._health.components().get(f"sink:{name}")
        buffer, retry_at, error_at = delivery.buffer, delivery.retry_at, delivery.last_error_at
        draining, active = name in self._parts.draining, name in self._parts.config.active
        return SinkStatus(
            role="draining" if draining else "active" if active else "routed",
            state=state.state if state else "starting",
            detail=state.detail if state else "",
            since=max(0.0, now - state.since) if state else 0.0,
            lines=round(self._metrics.value("shipper_sink_lines_acked_total", sink=name)),
            backlog_bytes=buffer.memory_bytes,
            oldest_seconds=buffer.waiting_seconds(),
            spill_bytes=buffer.spill_bytes,
            spill_limit=buffer.spill_limit,
            dead_letter_bytes=delivery.dead_letter_bytes,
            dead_letter_limit=delivery.dead_letter_limit,
            restarts=round(self._metrics.value("shipper_sink_restarts_total", sink=name)),
            given_up=self._ledger.given_up(name),
            attempts=delivery.attempts,
            retries=retries,
            next_try=None if retry_at is None else max(0.0, retry_at - now),
            error=delivery.last_error,
            error_seconds=None if error_at is None else now - error_at,
        )
