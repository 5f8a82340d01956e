"""The intake: everything left of the buffers, in one thread of plain calls.

Each round asks every source for what is there, and takes each batch through parsing, transforms and routing to the
buffers of the sinks. The intake never waits for a sink but by leaving lines in their files: see `Intake.accepts`.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from shipper.errors import SourceError
from shipper.parse import Parser
from shipper.parse.recordtime import stamp_undated
from shipper.source import Source, SourceContext
from shipper.telemetry.logs import get_logger, own_log_paths

if TYPE_CHECKING:
    from collections.abc import Callable

    from shipper.clock import Clock
    from shipper.daemon.parts import Parts
    from shipper.delivery.delivery import Delivery
    from shipper.record import Batch
    from shipper.state.ledger import Ledger
    from shipper.telemetry.health import Health
    from shipper.telemetry.metrics import Metrics

log = get_logger("pipeline")

#: Seconds without an ack after which a full buffer no longer counts as merely busy.
STUCK = 2.0
#: Seconds between two tries to open a source, and at most between two rounds.
REOPEN, ROUND = 5.0, 1.0


class Feed:
    """One source with its parser: whether it is open, and since when (monotonic seconds) it cannot be opened."""

    def __init__(self, name: str, source: Source) -> None:
        self.name = name
        self.source = source
        self.parser = Parser(source.parser)
        self.opened = False
        self.retry_at = 0.0
        self.failing_since: float | None = None

    @property
    def exhausted(self) -> bool:
        """Whether all that is there has been read."""
        return self.opened and self.source.exhausted()


class Intake:
    """Reads the sources of one configuration into the buffers of its sinks, from ``start`` until ``stop``."""

    def __init__(
        self,
        parts: Parts,
        deliveries: dict[str, Delivery],
        ledger: Ledger,
        *,
        clock: Clock,
        metrics: Metrics,
        health: Health,
        once: bool,
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._metrics = metrics
        self._health = health
        self._once = once
        self._router = parts.router
        self._transforms = parts.transforms
        self._wants_parse, self._wants_levels = parts.wants_parse, parts.wants_levels
        self._targets = [deliveries[name] for name in parts.router.sinks]
        self.feeds = [Feed(name, source) for name, source in parts.sources.items()]
        #: Parts of batches that had to be spilled and could not be: nothing is read until they are.
        self.unspilled: list[tuple[Delivery, Batch]] = []
        #: For ``--once``: asked after each round whether it was the last.
        self.is_last_round: Callable[[], bool] = lambda: False
        #: Set when the thread has ended by itself: after the last round, or by a fault.
        self.finished = threading.Event()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reader", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """Make the next round come soon. May be called from any thread."""
        self._wake.set()

    def stop(self) -> None:
        """End after the batch at hand, then read what exists only through our descriptors."""
        self._stopping.set()
        self._wake.set()

    def join(self, seconds: float) -> bool:
        """Wait for the thread to end; tell whether it has."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def close(self) -> None:
        """Close the sources, unless the thread still uses them."""
        for feed in self.feeds:
            if feed.opened and not self._thread.is_alive():
                feed.source.close()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._wake.clear()
                self._put_unspilled()
                for feed in self.feeds:
                    self._poll(feed)
                self._health.beat()
                if self.is_last_round():
                    self.finished.set()
                    break
                self._clock.wait(self._wake, self._pause())
            self._rescue()
            self._health.rest()
        except BaseException as error:
            log.error("the reader ended by a fault of our own; restart the daemon", exc_info=True)
            self._health.report("reader", "failed", f"{type(error).__name__}: {error}")
            self.finished.set()

    def _pause(self) -> float:
        if self.unspilled:
            return ROUND
        idle = min((feed.source.idle() for feed in self.feeds if feed.opened), default=ROUND)
        return min(idle, 0.02) if self._once else idle

    def _poll(self, feed: Feed) -> None:
        if not feed.opened and not self._open(feed):
            return
        try:
            for batch in feed.source.poll(self.accepts):
                self._process(feed, batch)
                self._health.beat()
                if self._stopping.is_set():
                    break
        except (OSError, SourceError) as error:
            self._health.report(f"source:{feed.name}", "retrying", str(error))
            log.error("source failed; it is tried again", source=feed.name, error=str(error), exc_info=True)

    def _open(self, feed: Feed) -> bool:
        now = self._clock.monotonic()
        if now < feed.retry_at:
            return False
        context = SourceContext(
            name=feed.name,
            positions=self._ledger,
            clock=self._clock,
            wake=self.wake,
            host=os.uname().nodename,
            once=self._once,
            own_paths=own_log_paths(),
        )
        try:
            feed.source.open(context)
        except (OSError, SourceError) as error:
            feed.retry_at = now + REOPEN
            feed.failing_since = feed.failing_since or now
            self._health.report(f"source:{feed.name}", "retrying", str(error))
            log.error("source cannot be opened; it is tried again", source=feed.name, error=str(error))
            return False
        feed.opened, feed.failing_since = True, None
        self._health.report(f"source:{feed.name}", "ok")
        return True

    def accepts(self, at_risk: bool) -> bool:
        """Tell a source whether it may read on; see `Source.poll`.

        Without room the file is the queue, unless waiting would lose the file or starve another sink.
        """
        if self.unspilled or self._stopping.is_set():
            return False
        full = [delivery for delivery in self._targets if not delivery.buffer.room()]
        if not full:
            return True
        stuck = any(not delivery.healthy or delivery.buffer.waiting_seconds() > STUCK for delivery in full)
        starving = any(delivery.healthy and delivery.buffer.empty() for delivery in self._targets)
        return ((at_risk and stuck) or starving) and all(delivery.buffer.can_spill() for delivery in full)

    def _accepts_last(self, _at_risk: bool) -> bool:
        return not self.unspilled and all(delivery.buffer.can_spill() for delivery in self._targets)

    def _rescue(self) -> None:
        for feed in self.feeds:
            if feed.opened:
                for batch in feed.source.rescue(self._accepts_last):
                    self._process(feed, batch)
                    self._health.beat()

    # One batch, from a source to the buffers. Nothing here may drop a record uncounted.

    def _process(self, feed: Feed, batch: Batch) -> None:
        self._metrics.lines_read(feed.name, len(batch), batch.size)
        if len(batch):
            self._parse(feed.parser, batch)
            batch = self._transform(batch)
        parts = self._router.split(batch)
        for delivery in self._targets:
            self._put(delivery, parts.get(delivery.name), batch)

    def _parse(self, parser: Parser, batch: Batch) -> None:
        """Fill what the sinks, transforms and routes ask for; times always, for ids are made of them."""
        undated = 0 in batch.stamps
        if self._wants_parse or undated:
            parser.parse(batch)
            if undated:
                stamp_undated(batch, self._ledger, self._clock.time_ns())
        elif self._wants_levels:
            parser.levels(batch)

    def _transform(self, batch: Batch) -> Batch:
        for name, transform in self._transforms.items():
            before = len(batch)
            batch = transform.apply(batch)
            if len(batch) < before:
                self._metrics.filtered(name, before - len(batch))
        return batch

    def _put(self, delivery: Delivery, part: Batch | None, whole: Batch) -> None:
        span = whole.span
        if span is not None:
            begin = self._ledger.offset(span.file, delivery.name)
            if span.end <= begin and span.end > span.start:
                return
            if part is not None and begin > span.start:
                part = part.select([i for i, offset in enumerate(part.offsets) if offset >= begin])
        if part is None or not len(part):
            if span is not None:
                self._ledger.done(delivery.name, [span])
            return
        try:
            delivery.buffer.put(part, safe=part.at_risk and not delivery.healthy)
        except OSError as error:
            log.error("cannot spill; reading waits", sink=delivery.name, error=str(error))
            self._health.report("state", "retrying", f"cannot spill for {delivery.name}: {error}")
            self.unspilled.append((delivery, part))

    def _put_unspilled(self) -> None:
        while self.unspilled:
            delivery, part = self.unspilled[0]
            try:
                delivery.buffer.put(part)
            except OSError:
                return
            self.unspilled.pop(0)
            if not self.unspilled:
                self._health.report("state", "ok")
