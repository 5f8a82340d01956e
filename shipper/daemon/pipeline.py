"""The pipeline: the parts of one configuration, started, run and stopped together.

Three kinds of threads: the intake does everything left of the buffers, one delivery for each sink everything right of
them, the keeper saves the checkpoint and the gauges. They share the ledger, the buffers, metrics and health, and
nothing else.

Order of stopping, and why:

1. the intake, so that nothing new comes; what it had half joined is read again next time. Files that exist only
   through our descriptors are read to their end then and spilled: nobody can read them again;
2. the deliveries drain, until the deadline;
3. what is left in memory is spilled, so that no rotation before the next start can take it;
4. the checkpoint is saved, last, because all of the above moves offsets.
"""

from __future__ import annotations

import sqlite3
import threading
from typing import TYPE_CHECKING

from shipper.daemon.intake import Intake
from shipper.daemon.keeper import Keeper
from shipper.errors import StateError
from shipper.state.checkpoint import Checkpoint
from shipper.state.ledger import Ledger
from shipper.state.progress import Progress
from shipper.telemetry.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from shipper.clock import Clock
    from shipper.daemon.parts import Parts
    from shipper.telemetry.health import Health
    from shipper.telemetry.metrics import Metrics
    from shipper.telemetry.status import SinkStatus, SourceStatus

log = get_logger("pipeline")

#: Seconds a sink may fail before ``--once`` gives up on it.
ONCE_PATIENCE = 10.0


class Pipeline:
    """One running configuration. ``start``, then ``stop`` once."""

    def __init__(self, parts: Parts, *, clock: Clock, metrics: Metrics, health: Health, once: bool = False) -> None:
        """Open the state directory and build the threads. Raises StateError."""
        self._parts = parts
        self._clock = clock
        checkpoint = Checkpoint(parts.config.state_dir)
        if checkpoint.damaged is not None:
            log.error("the state was damaged; it is set aside and files are read again", kept=str(checkpoint.damaged))
            health.report("state", "ok", f"was damaged and set aside as {checkpoint.damaged}")
        elif checkpoint.missing:
            log.error(
                "the state is gone, though spilled lines or dead letters show that there was one; files are read again",
                missing=str(checkpoint.path),
            )
            health.report("state", "ok", f"{checkpoint.path} was gone; files were read again")
        try:
            self._progress = Progress(parts.config.state_dir)
            self._ledger = Ledger(checkpoint, parts.router.sinks, clock, on_lost=metrics.lost)
            self._deliveries = parts.deliveries(self._ledger, clock=clock, metrics=metrics, health=health)
        except (sqlite3.Error, OSError) as error:
            checkpoint.close()
            raise StateError(f"cannot use {checkpoint.path}: {error}") from error
        except BaseException:
            checkpoint.close()
            raise
        self._intake = Intake(
            parts,
            self._deliveries,
            self._ledger,
            self._progress,
            clock=clock,
            metrics=metrics,
            health=health,
            once=once,
        )
        for delivery in self._deliveries.values():
            delivery.buffer.on_room = self._intake.wake
        if once:
            self._intake.is_last_round = self._is_done
        self._keeper = Keeper(
            parts, self._intake, self._deliveries, self._ledger, clock=clock, metrics=metrics, health=health
        )
        #: Set when the intake has ended.
        self.finished = self._intake.finished

    def start(self) -> None:
        """Start all threads."""
        for delivery in self._deliveries.values():
            delivery.start()
        self._intake.start()
        self._keeper.start()

    def stop(self, seconds: float, *, now: Callable[[], bool] = lambda: False) -> None:
        """Stop in the order the module states, within ``seconds``; ``now`` tells that a second signal came."""
        deadline = self._clock.monotonic() + seconds

        def patient() -> bool:
            return not now() and self._clock.monotonic() < deadline

        deliveries = self._deliveries.values()
        self._intake.stop()
        while patient() and not self._intake.join(0.1):
            pass
        for delivery in deliveries:
            delivery.drain()
        while patient() and any(not d.buffer.empty() and d.healthy for d in deliveries):
            self._clock.wait(threading.Event(), 0.05)
        for delivery in deliveries:
            delivery.stop()
        for delivery in deliveries:
            while not delivery.join(0.1) and patient():
                pass
        for delivery in deliveries:
            try:
                delivery.buffer.spill_all()
            except OSError as error:
                log.error("cannot spill at the end; lines wait in their files", sink=delivery.name, error=str(error))
            delivery.buffer.close()
        self._intake.close()
        if self._intake.join(0):
            self._progress.close()
        self._keeper.stop()
        self._ledger.close()

    def save(self) -> None:
        """Save the checkpoint and refresh the gauges, as the keeper does every second."""
        self._keeper.save()

    # How it stands

    def sources(self) -> dict[str, SourceStatus]:
        """Tell how every source stands."""
        return self._keeper.sources()

    def sinks(self) -> dict[str, SinkStatus]:
        """Tell how every sink stands that has a delivery."""
        return self._keeper.sinks()

    def positions(self) -> tuple[int, int]:
        """Give the number of files and the sum of their offsets in bytes."""
        return self._ledger.standing()

    def draining(self) -> dict[str, int]:
        """Give the bytes of spill that sinks without records of their own still have to deliver."""
        return {name: self._deliveries[name].buffer.spill_bytes for name in self._parts.draining}

    # For --once

    def leftovers(self) -> int:
        """Count what is not delivered: pending batches, dead letters of this run, unread or unopened sources."""
        return (
            len(self._intake.unspilled)
            + len(self._intake.unstamped)
            + sum(not delivery.buffer.empty() for delivery in self._deliveries.values())
            + sum(delivery.dead_lettered for delivery in self._deliveries.values())
            + sum(not feed.exhausted for feed in self._intake.feeds)
        )

    def _is_done(self) -> bool:
        """Tell whether everything is delivered, or all that is not has been failing for too long."""
        waiting = [feed for feed in self._intake.feeds if not feed.exhausted]
        pending = [delivery for delivery in self._deliveries.values() if not delivery.buffer.empty()]
        if not waiting and not pending and not self._intake.blocked:
            return True
        failing = {name for name, delivery in self._deliveries.items() if self._hopeless(delivery.failing_since)}
        blocked = any(name in failing for name in self._parts.router.sinks)
        return all(delivery.name in failing for delivery in pending) and all(
            blocked if feed.opened else self._hopeless(feed.failing_since) for feed in waiting
        )

    def _hopeless(self, since: float | None) -> bool:
        return since is not None and self._clock.monotonic() - since > ONCE_PATIENCE
