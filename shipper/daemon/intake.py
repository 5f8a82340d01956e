"""The intake: everything left of the buffers, in one thread of plain calls.

Each round asks every source for what is there, and takes each batch through parsing, transforms and routing to the
buffers of the sinks. The intake never waits for a sink but by leaving lines in their files: see `Intake.accepts`.

Nothing ends it but being stopped. What a source raises costs that source's turn; what a record makes a stage raise costs
that record (`shipper.daemon.barrier`); a state or a disk that cannot be written makes reading wait.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections import deque
from typing import TYPE_CHECKING

from shipper.daemon.barrier import as_written, contain, halves, joined, withheld
from shipper.errors import SourceError, StateError
from shipper.parse import Parser
from shipper.parse.recordtime import stamp_undated
from shipper.record import FAULT
from shipper.source import Source, SourceContext
from shipper.telemetry.logs import get_logger, own_log_paths

if TYPE_CHECKING:
    from collections.abc import Callable

    from shipper.clock import Clock
    from shipper.daemon.parts import Parts
    from shipper.delivery.delivery import Delivery
    from shipper.record import Batch
    from shipper.state.ledger import Ledger
    from shipper.state.progress import Progress
    from shipper.telemetry.health import Health
    from shipper.telemetry.metrics import Metrics

log = get_logger("pipeline")

#: Seconds without an ack after which a full buffer no longer counts as merely busy.
STUCK = 2.0
#: Seconds between two tries of a source that failed, and at most between two rounds.
RETRY, ROUND = 5.0, 1.0


class Feed:
    """One source with its parser, and how its last turn went. Times are monotonic seconds."""

    def __init__(self, name: str, source: Source) -> None:
        self.name = name
        self.source = source
        self.parser = Parser(source.parser)
        self.opened = False
        self.retry_at = 0.0
        self.failing_since: float | None = None  # as long as it cannot be opened
        self.failed = False  # in its last turn

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
        progress: Progress,
        *,
        clock: Clock,
        metrics: Metrics,
        health: Health,
        once: bool,
    ) -> None:
        self._ledger = ledger
        self._progress = progress
        self._clock = clock
        self._metrics = metrics
        self._health = health
        self._once = once
        self._router = parts.router
        self._transforms = parts.transforms
        self._wants_parse, self._wants_levels = parts.wants_parse, parts.wants_levels
        self._targets = [deliveries[name] for name in parts.router.sinks]
        self.feeds = [Feed(name, source) for name, source in parts.sources.items()]
        #: Parts of batches that had to be spilled and could not be, and batches whose first-read time could not be
        #: saved: nothing is read until they are.
        self.unspilled: deque[tuple[Delivery, Batch]] = deque()
        self.unstamped: deque[Batch] = deque()
        #: For ``--once``: asked after each round whether it was the last.
        self.is_last_round: Callable[[], bool] = lambda: False
        #: Set when the thread has ended.
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
            self._read()
        except BaseException as error:
            log.error("the reader ended; restart the daemon", exc_info=True)
            self._health.report("reader", "failed", f"{type(error).__name__}: {error}")
            raise
        finally:
            self.finished.set()
            self._health.rest()

    def _read(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                self._take_up_again()
                for feed in self.feeds:
                    self._poll(feed)
                if self.is_last_round():
                    break
            except Exception as error:
                self._fault("reader", "the reader tripped; it goes on with the next round; please report this", error)
                self._clock.wait(self._stopping, ROUND)
            self._health.beat()
            self._clock.wait(self._wake, self._pause())
        for feed in self.feeds:
            self._rescue(feed)

    @property
    def blocked(self) -> bool:
        """Whether what was read waits for a disk."""
        return bool(self.unspilled or self.unstamped)

    def _pause(self) -> float:
        if self.blocked:
            return ROUND
        idle = min((feed.source.idle() for feed in self.feeds if feed.opened), default=ROUND)
        return min(idle, 0.02) if self._once else idle

    def _poll(self, feed: Feed) -> None:
        if self._clock.monotonic() < feed.retry_at or (not feed.opened and not self._open(feed)):
            return
        try:
            for batch in feed.source.poll(self.accepts):
                self._process(feed, batch)
                self._progress.done()
                self._health.beat()
                if self._stopping.is_set():
                    break
        except (OSError, SourceError) as error:
            self._failed(feed, error)
            log.error("source failed; it is tried again", source=feed.name, error=str(error), exc_info=True)
        except Exception as error:
            # The source is asked again: what it had not given out is still in its files.
            self._failed(feed, error)
            self._fault("source", "source tripped; it is tried again; please report this", error, source=feed.name)
        else:
            if feed.failed:
                feed.failed = False
                self._health.report(f"source:{feed.name}", "ok")

    def _failed(self, feed: Feed, error: Exception) -> None:
        feed.failed = True
        expected = isinstance(error, (OSError, SourceError))
        if not expected:
            feed.retry_at = self._clock.monotonic() + RETRY
        self._health.report(
            f"source:{feed.name}", "retrying", str(error) if expected else f"{type(error).__name__}: {error}"
        )

    def _fault(self, stage: str, event: str, error: Exception, **fields: object) -> None:
        """Tell of a fault of our own code, and count it."""
        self._metrics.fault(stage)
        log.error(
            event,
            stage=stage, error=f"{type(error).__name__}: {error}", exc_info=error, **fields,
        )  # fmt: skip

    def _open(self, feed: Feed) -> bool:
        now = self._clock.monotonic()
        context = SourceContext(
            name=feed.name,
            positions=self._ledger,
            clock=self._clock,
            wake=self.wake,
            host=os.uname().nodename,
            once=self._once,
            own_paths=own_log_paths(),
            fault=lambda _path, _kind: self._metrics.fault("line"),
            progress=self._progress,
        )
        try:
            feed.source.open(context)
        except Exception as error:
            feed.retry_at = now + RETRY
            feed.failing_since = feed.failing_since or now
            self._failed(feed, error)
            if isinstance(error, (OSError, SourceError)):
                log.error("source cannot be opened; it is tried again", source=feed.name, error=str(error))
            else:
                self._fault(
                    "source",
                    "source tripped while opening; it is tried again; please report this",
                    error,
                    source=feed.name,
                )
            return False
        feed.opened, feed.failing_since, feed.failed = True, None, False
        self._health.report(f"source:{feed.name}", "ok")
        return True

    def accepts(self, at_risk: bool) -> bool:
        """Tell a source whether it may read on; see `Source.poll`.

        Without room the file is the queue, unless waiting would lose the file or starve another sink.
        """
        if self.blocked or self._stopping.is_set():
            return False
        full = [delivery for delivery in self._targets if not delivery.buffer.room()]
        if not full:
            return True
        stuck = any(not delivery.healthy or delivery.buffer.waiting_seconds() > STUCK for delivery in full)
        starving = any(delivery.healthy and delivery.buffer.empty() for delivery in self._targets)
        return ((at_risk and stuck) or starving) and all(delivery.buffer.can_spill() for delivery in full)

    def _accepts_last(self, _at_risk: bool) -> bool:
        return not self.blocked and all(delivery.buffer.can_spill() for delivery in self._targets)

    def _rescue(self, feed: Feed) -> None:
        """Read to the end what exists only through a source's descriptors."""
        if not feed.opened:
            return
        try:
            for batch in feed.source.rescue(self._accepts_last):
                self._process(feed, batch)
                self._progress.done()
                self._health.beat()
        except Exception as error:
            self._fault("source", "what only an open descriptor holds could not all be read", error, source=feed.name)

    # One batch, from a source to the buffers. Nothing here may raise, or drop a record uncounted.

    def _process(self, feed: Feed, batch: Batch) -> None:
        self._metrics.lines_read(feed.name, len(batch), batch.size)
        if len(batch):
            batch = self._parse(feed.parser, batch)
        self._stamp_and_send(batch)

    def _stamp_and_send(self, batch: Batch) -> None:
        if 0 in batch.stamps:
            if self.unstamped:  # its file's older batches go first
                self.unstamped.append(batch)
                return
            try:
                stamp_undated(batch, self._ledger, self._clock.time_ns())
            except (sqlite3.Error, StateError) as error:
                log.error("the time of undated lines cannot be saved; reading waits", error=str(error))
                self._health.report("state", "retrying", f"the time of undated lines cannot be saved: {error}")
                self.unstamped.append(batch)
                return
        if len(batch):
            batch = self._transform(batch)
        parts = self._route(batch)
        for delivery in self._targets:
            self._put(delivery, parts.get(delivery.name), batch)

    def _parse(self, parser: Parser, batch: Batch) -> Batch:
        """Fill what the sinks, transforms and routes ask for; times always, for ids are made of them."""
        undated = 0 in batch.stamps

        def parse(part: Batch) -> Batch:
            part.times = list(part.times)
            if undated:
                part.stamps = list(part.stamps)
            parser.parse(part)
            return part

        def levels(part: Batch) -> Batch:
            parser.levels(part)
            return part

        def on_fault(record: Batch, error: Exception) -> Batch:
            self._record_fault("parse", record, error)
            return as_written(record, f"parse: {type(error).__name__}")

        if self._wants_parse or undated:
            return contain(batch, parse, on_fault)
        return contain(batch, levels, on_fault) if self._wants_levels else batch

    def _transform(self, batch: Batch) -> Batch:
        for name, transform in self._transforms.items():

            def on_fault(record: Batch, error: Exception, name: str = name, masks: bool = transform.masks) -> Batch:
                self._record_fault(f"transform {name}", record, error)
                return (withheld if masks else as_written)(record, f"{name}: {type(error).__name__}")

            before = len(batch)
            batch = contain(batch, transform.apply, on_fault)
            if len(batch) < before:
                self._metrics.filtered(name, before - len(batch))
        return batch

    def _route(self, batch: Batch) -> dict[str, Batch]:
        """Give each sink its part; a record that a condition trips over goes to the active sinks."""
        try:
            return self._router.split(batch)
        except Exception as error:
            if len(batch) <= 1:
                self._record_fault("route", batch, error)
                return dict.fromkeys(self._router.active, batch)
        first, second = (self._route(half) for half in halves(batch))
        return {
            sink: joined([parts[sink] for parts in (first, second) if sink in parts], batch)
            for sink in self._router.sinks
            if sink in first or sink in second
        }

    def _record_fault(self, stage: str, record: Batch, error: Exception) -> None:
        resource = record.resources[0].attributes if record.resources else {}
        self._fault(
            stage, "a record could not be processed; it goes on marked; please report this", error,
            offset=record.offsets[0] if record.offsets else None,
            file=resource.get("log.file.path") or resource.get("container.name", ""),
        )  # fmt: skip

    def _put(self, delivery: Delivery, part: Batch | None, whole: Batch) -> None:
        span = whole.span
        if span is not None:
            begin = self._ledger.offset(span.file, delivery.name)
            if span.end <= begin and span.end > span.start:
                return
            if part is not None and begin > span.start:
                part = part.select([i for i, offset in enumerate(part.offsets) if offset >= begin])
        if part is not None:
            part = delivery.admit(part, span.file if span is not None else None)
        if part is None or not len(part):
            if span is not None:
                self._ledger.done(delivery.name, [span])
            return
        self._buffer(delivery, part, safe=part.at_risk and not delivery.healthy)

    def _buffer(self, delivery: Delivery, part: Batch, *, safe: bool = False) -> None:
        """Put a part into a sink's buffer, or into ``unspilled`` when the disk does not take it now."""
        if self.unspilled:  # this file's older batches go first
            self.unspilled.append((delivery, part))
            return
        try:
            delivery.buffer.put(part, safe=safe)
        except OSError as error:
            log.error("cannot spill; reading waits", sink=delivery.name, error=str(error))
            self._health.report("state", "retrying", f"cannot spill for {delivery.name}: {error}")
            self.unspilled.append((delivery, part))
        except Exception as error:
            if len(part) > 1:
                for half in halves(part):
                    self._buffer(delivery, half, safe=safe)
                return
            self._record_fault("buffer", part, error)
            if part.attributes and part.attributes[0].keys() - {FAULT}:
                self._buffer(delivery, as_written(part, f"buffer: {type(error).__name__}"), safe=safe)
                return
            self._metrics.dropped("fault", len(part))
            if part.span is not None:
                self._ledger.done(delivery.name, [part.span])

    def _take_up_again(self) -> None:
        """Go on with what waited for a disk."""
        if not self.blocked:
            return
        unspilled, self.unspilled = self.unspilled, deque()
        for delivery, part in unspilled:
            self._buffer(delivery, part)
        unstamped, self.unstamped = self.unstamped, deque()
        for batch in unstamped:
            self._stamp_and_send(batch)
        if not self.blocked:
            self._health.report("state", "ok")
