"""The pipeline: built from one configuration, run from start to stop.

One reader thread calls the sources and does everything left of the buffers: parse, transforms, routing. One
delivery thread per sink does everything right of them. One keeper thread saves the checkpoint and the gauges every
second. The threads share the ledger, the buffers, metrics and health, and nothing else.

Order of stopping, and why:

1. the reader, so that nothing new comes; what it had half joined is read again next time;
2. files that exist only through our descriptors are read to their end and spilled: nobody can read them again;
3. the deliveries drain, until the deadline;
4. what is left in memory is spilled, so that no rotation before the next start can take it;
5. the checkpoint is saved, last, because all of the above moves offsets.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec

from shipper import registry
from shipper.config.types import Config
from shipper.delivery.buffer import Buffer
from shipper.delivery.deadletter import DeadLetters
from shipper.delivery.delivery import Delivery
from shipper.delivery.spill import Spill
from shipper.errors import ConfigError, SourceError, StateError
from shipper.fs import FileSystem
from shipper.parse import Parser
from shipper.parse.times import fill
from shipper.routing.router import Router
from shipper.sink import Sink, SinkConfig
from shipper.source import Source, SourceContext
from shipper.state.checkpoint import Checkpoint, Cursor
from shipper.state.ledger import Ledger
from shipper.telemetry.logs import get_logger, own_log_paths
from shipper.telemetry.status import SinkStatus, SourceStatus
from shipper.transform import Transform
from shipper.units import parse_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from shipper.clock import Clock
    from shipper.record import Batch
    from shipper.telemetry.health import Health
    from shipper.telemetry.metrics import Metrics

log = get_logger("pipeline")

#: Seconds between saves of the checkpoint: the most that is delivered again after a kill.
SAVE_INTERVAL = 1.0
KEEPER = "keeper"
#: Seconds without an ack after which a full buffer no longer counts as merely busy.
STUCK = 2.0
#: Seconds a sink may fail before ``--once`` gives up on it.
ONCE_PATIENCE = 10.0


class Parts(msgspec.Struct, frozen=True):
    """Everything of a configuration, built but not opened: what a reload needs before it may stop the old pipeline.

    ``draining`` are sinks that no record goes to any more but for which spilled batches wait: they are still
    delivered. ``removed`` are the last sections of sinks that a reload took out of the configuration.
    """

    config: Config
    router: Router
    sources: dict[str, Source]
    transforms: dict[str, Transform]
    sinks: dict[str, Sink]
    draining: dict[str, Sink]
    removed: dict[str, SinkConfig] = {}

    @classmethod
    def build(cls, config: Config, removed: Mapping[str, SinkConfig] = MappingProxyType({})) -> Parts:
        """Build all parts; ``removed`` has the last sections of sinks that the config may lack. Raises ConfigError."""
        router = Router(config.active, config.routes)
        return cls(
            config=config,
            router=router,
            sources={name: registry.source(section.type)(section) for name, section in config.sources.items()},
            transforms={name: registry.transform(section.type)(section) for name, section in config.transforms.items()},
            sinks={name: _build_sink(config.sinks[name]) for name in router.sinks},
            draining={},
            removed={name: section for name, section in removed.items() if name not in config.sinks},
        ).with_draining()

    def with_draining(self) -> Parts:
        """Give the same parts with every sink that has spill left now, and gets no records, as draining.

        A pipeline that stops may spill: a reload asks again after that. A sink that cannot be built any more (its
        package is gone) keeps its spill and must not keep the others from running.
        """
        draining: dict[str, Sink] = {}
        for name in pending_spills(self.config.state_dir):
            if name in self.router.sinks or (name not in self.config.sinks and name not in self.removed):
                continue
            try:
                draining[name] = _build_sink(self.section(name))
            except ConfigError as error:
                log.warning("undelivered lines wait for a sink that cannot be built", sink=name, error=str(error))
        return msgspec.structs.replace(self, draining=draining)

    def section(self, name: str) -> SinkConfig:
        """Give the section of a sink, of a removed one its last."""
        return self.config.sinks.get(name) or self.removed[name]

    @property
    def running(self) -> dict[str, SinkConfig]:
        """The sections of all sinks that have a delivery."""
        return {name: self.section(name) for name in (*self.sinks, *self.draining)}


def _build_sink(section: SinkConfig) -> Sink:
    return registry.sink(section.type)(section)


class _Feed:
    """One source with its parser."""

    def __init__(self, name: str, source: Source) -> None:
        self.name = name
        self.source = source
        self.parser = Parser(source.parser)
        self.opened = False
        self.retry_at = 0.0
        self.failing_since: float | None = None


class Pipeline:
    """One running configuration. ``start``, then ``stop`` once."""

    def __init__(self, parts: Parts, *, clock: Clock, metrics: Metrics, health: Health, once: bool = False) -> None:
        """Open the state directory and build the threads. Raises StateError."""
        config = parts.config
        self._parts = parts
        self._clock = clock
        self._metrics = metrics
        self._health = health
        self._once = once
        self._router = parts.router
        self._wake = threading.Event()
        self._transforms = parts.transforms
        checkpoint = Checkpoint(config.state_dir)
        if checkpoint.damaged is not None:
            log.error("the state was damaged; it is set aside and files are read again", kept=str(checkpoint.damaged))
            health.report("state", "ok", f"was damaged and set aside as {checkpoint.damaged}")
        try:
            self._ledger = Ledger(checkpoint, parts.router.sinks, clock, on_lost=metrics.lost)
            self._deliveries = {
                name: self._delivery(name, sink, parts.section(name))
                for name, sink in {**parts.sinks, **parts.draining}.items()
            }
        except sqlite3.Error as error:
            checkpoint.close()
            raise StateError(f"cannot use {checkpoint.path}: {error}") from error
        except BaseException:
            checkpoint.close()
            raise
        self._targets = [self._deliveries[name] for name in parts.router.sinks]
        self._wants_parse = (
            any(sink.wants_parse for sink in parts.sinks.values())
            or any(transform.wants_parse for transform in parts.transforms.values())
            or parts.router.wants_parse
        )
        self._wants_levels = any(sink.wants_levels for sink in parts.sinks.values())
        self._feeds = [_Feed(name, source) for name, source in parts.sources.items()]
        self._lags: list[tuple[str, str, int]] = []
        self._behind: dict[str, float] = {}
        self._waiting: set[str] = set()
        self._drained: set[str] = set()
        self._unput: list[tuple[Delivery, Batch]] = []
        self._stopping = threading.Event()
        self._kept = threading.Event()
        self.finished = threading.Event()
        self._reader = threading.Thread(target=self._read, name="reader", daemon=True)
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)

    def _delivery(self, name: str, sink: Sink, section: SinkConfig) -> Delivery:
        state = self._ledger.sink_state(name)
        sink.resume(state.position)
        metrics, ledger = self._metrics, self._ledger
        spill = Spill(
            _spill_directory(self._parts.config.state_dir, name),
            limit=parse_size(section.buffer.max_size),
            fs=FileSystem(),
            cursor=Cursor(state.segment, state.offset),
            on_lost=metrics.dropped,
        )
        buffer = Buffer(
            spill,
            clock=self._clock,
            max_memory=parse_size(section.buffer.max_memory),
            drop_oldest=section.buffer.when_full == "drop_oldest",
            on_safe=lambda spans: ledger.done(name, spans),
            on_cursor=lambda cursor: ledger.spill_cursor(name, cursor.segment, cursor.offset),
            on_dropped=lambda records: metrics.dropped("spill_full", records),
        )
        buffer.on_room = self._wake.set
        return Delivery(
            name, sink, buffer,
            ledger=ledger,
            dead_letters=DeadLetters(self._parts.config.state_dir / "dead-letter" / f"{name}.jsonl"),
            clock=self._clock, metrics=metrics, health=self._health,
        )  # fmt: skip

    def start(self) -> None:
        """Start all threads."""
        for delivery in self._deliveries.values():
            delivery.start()
        self._reader.start()
        self._keeper.start()

    # The reader thread

    def _read(self) -> None:
        try:
            while not self._stopping.is_set():
                self._wake.clear()
                self._put_again()
                for feed in self._feeds:
                    self._poll(feed)
                self._health.beat()
                if self._once and self._is_done():
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
        if self._unput:
            return SAVE_INTERVAL
        idle = min((feed.source.idle() for feed in self._feeds if feed.opened), default=SAVE_INTERVAL)
        return min(idle, 0.02) if self._once else idle

    def _poll(self, feed: _Feed) -> None:
        if not feed.opened and not self._open(feed):
            return
        try:
            for batch in feed.source.poll(self._accept):
                self._process(feed, batch)
                self._health.beat()
                if self._stopping.is_set():
                    break
        except (OSError, SourceError) as error:
            self._health.report(f"source:{feed.name}", "retrying", str(error))
            log.error("source failed; it is tried again", source=feed.name, error=str(error), exc_info=True)

    def _open(self, feed: _Feed) -> bool:
        now = self._clock.monotonic()
        if now < feed.retry_at:
            return False
        context = SourceContext(
            name=feed.name,
            positions=self._ledger,
            clock=self._clock,
            wake=self._wake.set,
            host=os.uname().nodename,
            once=self._once,
            own_paths=own_log_paths(),
        )
        try:
            feed.source.open(context)
        except (OSError, SourceError) as error:
            feed.retry_at = now + 5.0
            feed.failing_since = feed.failing_since or now
            self._health.report(f"source:{feed.name}", "retrying", str(error))
            log.error("source cannot be opened; it is tried again", source=feed.name, error=str(error))
            return False
        feed.opened, feed.failing_since = True, None
        self._health.report(f"source:{feed.name}", "ok")
        return True

    def _accept(self, at_risk: bool) -> bool:
        """Tell a source whether it may read on; see `Source.poll`.

        Without room the file is the queue, unless waiting would lose the file or starve another sink.
        """
        if self._unput or self._stopping.is_set():
            return False
        full = [delivery for delivery in self._targets if not delivery.buffer.room()]
        if not full:
            return True
        stuck = any(not delivery.healthy or delivery.buffer.waiting_seconds() > STUCK for delivery in full)
        starving = any(delivery.healthy and delivery.buffer.empty() for delivery in self._targets)
        return ((at_risk and stuck) or starving) and all(delivery.buffer.can_spill() for delivery in full)

    def _accept_last(self, _at_risk: bool) -> bool:
        return not self._unput and all(delivery.buffer.can_spill() for delivery in self._targets)

    def _process(self, feed: _Feed, batch: Batch) -> None:
        """Parse, stamp, transform, route and put one batch. Nothing here may drop a record uncounted."""
        lines = len(batch)
        self._metrics.lines_read(feed.name, lines, batch.size)
        if lines:
            dated = 0 not in batch.stamps
            if self._wants_parse or not dated:
                feed.parser.parse(batch)
                if not dated:
                    self._stamp(batch)
            elif self._wants_levels:
                feed.parser.levels(batch)
            for name, transform in self._transforms.items():
                before = len(batch)
                batch = transform.apply(batch)
                if len(batch) < before:
                    self._metrics.filtered(name, before - len(batch))
        parts = self._router.split(batch)
        for delivery in self._targets:
            self._put(delivery, parts.get(delivery.name), batch)

    def _stamp(self, batch: Batch) -> None:
        """Give undated lines of a plain file the time they were first read, the same on every replay."""
        span = batch.span
        if span is not None and 0 in batch.times:
            anchors = self._ledger.anchors(span.file)
            undated = [i for i, time_ns in enumerate(batch.times) if not time_ns]
            times = list(batch.times)
            for i in undated:
                times[i] = _anchored(anchors, batch.offsets[i])
            missing = [i for i in undated if not times[i]]
            if missing:
                now = self._clock.time_ns() // 1_000_000 * 1_000_000
                self._ledger.anchor(span.file, batch.offsets[missing[0]], span.end, now)
                for i in missing:
                    times[i] = now
            for i in undated:
                # Distinct and in order within the millisecond, by position.
                times[i] += fill(batch.offsets[i], 1000)
            batch.times = times
        batch.stamps = batch.times

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
            self._unput.append((delivery, part))

    def _put_again(self) -> None:
        while self._unput:
            delivery, part = self._unput[0]
            try:
                delivery.buffer.put(part)
            except OSError:
                return
            self._unput.pop(0)
            if not self._unput:
                self._health.report("state", "ok")

    def _rescue(self) -> None:
        """Read what exists only through our descriptors into the buffers (step 2 of stopping)."""
        for feed in self._feeds:
            if feed.opened:
                for batch in feed.source.rescue(self._accept_last):
                    self._process(feed, batch)
                    self._health.beat()

    def _is_done(self) -> bool:
        """For ``--once``: everything is delivered, or all that is not has been failing for too long."""
        waiting = [feed for feed in self._feeds if not (feed.opened and feed.source.exhausted())]
        pending = [delivery for delivery in self._deliveries.values() if not delivery.buffer.empty()]
        if not waiting and not pending and not self._unput:
            return True
        failing = [delivery for delivery in self._deliveries.values() if self._hopeless(delivery.failing_since)]
        blocked = any(delivery in failing for delivery in self._targets)
        return all(delivery in failing for delivery in pending) and all(
            blocked if feed.opened else self._hopeless(feed.failing_since) for feed in waiting
        )

    def _hopeless(self, since: float | None) -> bool:
        return since is not None and self._clock.monotonic() - since > ONCE_PATIENCE

    def leftovers(self) -> int:
        """Count what is not delivered: pending batches, dead letters of this run, unread or unopened sources."""
        return (
            len(self._unput)
            + sum(not delivery.buffer.empty() for delivery in self._deliveries.values())
            + sum(delivery.dead_lettered for delivery in self._deliveries.values())
            + sum(not feed.opened or not feed.source.exhausted() for feed in self._feeds)
        )

    def standing(self) -> tuple[int, int]:
        """Give the number of files and the sum of their offsets in bytes."""
        return self._ledger.standing()

    def draining(self) -> dict[str, int]:
        """Give the bytes of spill that sinks without records of their own still have to deliver."""
        return {name: self._deliveries[name].buffer.spill_bytes for name in self._parts.draining}

    def sources(self) -> dict[str, SourceStatus]:
        """Tell how every source stands; lags are those of the last save, a second old at most."""
        now, lags, behind = self._clock.monotonic(), self._lags, self._behind
        components = self._health.components()
        found = {}
        for feed in self._feeds:
            state = components.get(f"source:{feed.name}")
            files_open, unreadable = feed.source.counts() if feed.opened else (0, 0)
            own = [(path, lag) for source, path, lag in lags if source == feed.name]
            found[feed.name] = SourceStatus(
                state=state.state if state else "starting",
                detail=state.detail if state else "",
                files_open=files_open,
                files_unreadable=unreadable,
                lag_bytes=sum(lag for _, lag in own),
                lag_seconds=max((now - behind.get(path, now) for path, lag in own if lag), default=0.0),
                lines=round(self._metrics.value("shipper_lines_read_total", source=feed.name)),
            )
        return found

    def deliveries(self) -> dict[str, SinkStatus]:
        """Tell how every sink stands that has a delivery."""
        now, components = self._clock.monotonic(), self._health.components()
        retries: dict[str, float] = {}
        for (sink, _code), count in self._metrics.series()["shipper_sink_retries_total"].items():
            retries[sink] = retries.get(sink, 0) + count
        found = {}
        for name, delivery in self._deliveries.items():
            state = components.get(f"sink:{name}")
            buffer, retry_at, error_at = delivery.buffer, delivery.retry_at, delivery.last_error_at
            draining, active = name in self._parts.draining, name in self._parts.config.active
            found[name] = SinkStatus(
                role="draining" if draining else "active" if active else "routed",
                state=state.state if state else "starting",
                detail=state.detail if state else "",
                since=max(0.0, now - state.since) if state else 0.0,
                lines=round(self._metrics.value("shipper_sink_lines_acked_total", sink=name)),
                backlog_bytes=buffer.memory_bytes,
                oldest_seconds=buffer.waiting_seconds(),
                spill_bytes=buffer.spill_bytes,
                spill_limit=buffer.spill_limit,
                attempts=delivery.attempts,
                retries=round(retries.get(name, 0)),
                next_try=None if retry_at is None else max(0.0, retry_at - now),
                error=delivery.last_error,
                error_seconds=None if error_at is None else now - error_at,
            )
        return found

    # The keeper thread

    def _keep(self) -> None:
        while not self._clock.wait(self._kept, SAVE_INTERVAL):
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
            if self._health.state("state") == "retrying" and not self._unput:
                self._health.report("state", "ok")
        for delivery in self._deliveries.values():
            buffer = delivery.buffer
            waits = not buffer.room() and not buffer.can_spill()
            if waits and delivery.name not in self._waiting:
                log.warning(
                    "the spill is full (max_size, or No space left on its disk); reading waits for the sink",
                    sink=delivery.name, bytes=buffer.spill_bytes, limit=buffer.spill_limit,
                )  # fmt: skip
            if delivery.name in self._parts.draining and buffer.empty() and delivery.name not in self._drained:
                self._drained.add(delivery.name)
                log.info("drained: a sink that gets no records any more has all that it was given", sink=delivery.name)
            (self._waiting.add if waits else self._waiting.discard)(delivery.name)
            self._metrics.set_spool(delivery.name, buffer.spill_bytes, buffer.spill_limit)
            self._metrics.set_buffer(delivery.name, buffer.memory_bytes, buffer.waiting_seconds())
        open_files = unreadable = 0
        for feed in self._feeds:
            if feed.opened:
                counts = feed.source.counts()
                open_files, unreadable = open_files + counts[0], unreadable + counts[1]
        self._metrics.set_files(open=open_files, unreadable=unreadable)
        self._refresh_lags()

    def _refresh_lags(self) -> None:
        now = self._clock.monotonic()
        self._lags = self._ledger.lags()
        lags = {path: lag for _, path, lag in self._lags}
        for path in self._behind.keys() - lags.keys():
            self._metrics.forget_lag(path)
        # A file's lag in seconds is the time since it was last caught up.
        self._behind = {path: (self._behind.get(path, now) if lag else now) for path, lag in lags.items()}
        for path, lag in lags.items():
            self._metrics.set_lag(path, lag, now - self._behind[path])

    # Stopping

    def stop(self, seconds: float, *, now: Callable[[], bool] = lambda: False) -> None:
        """Stop in the order the module states, within ``seconds``; ``now`` tells that a second signal came."""
        deadline = self._clock.monotonic() + seconds
        self._stopping.set()
        self._wake.set()
        self._join(self._reader, deadline, now)
        for delivery in self._deliveries.values():
            delivery.drain()
        while (
            not now()
            and self._clock.monotonic() < deadline
            and any(not d.buffer.empty() and d.healthy for d in self._deliveries.values())
        ):
            self._clock.wait(threading.Event(), 0.05)
        for delivery in self._deliveries.values():
            delivery.stop()
        for delivery in self._deliveries.values():
            while not delivery.join(0.1) and not now() and self._clock.monotonic() < deadline:
                pass
        for delivery in self._deliveries.values():
            try:
                delivery.buffer.spill_all()
            except OSError as error:
                log.error("cannot spill at the end; lines wait in their files", sink=delivery.name, error=str(error))
            delivery.buffer.close()
        for feed in self._feeds:
            if feed.opened and not self._reader.is_alive():
                feed.source.close()
        self._kept.set()
        self._keeper.join(5.0)
        self._ledger.close()

    def _join(self, thread: threading.Thread, deadline: float, now: Callable[[], bool]) -> None:
        while thread.is_alive() and not now() and self._clock.monotonic() < deadline:
            thread.join(0.1)


def _anchored(anchors: list[tuple[int, int, int]], offset: int) -> int:
    return next((time_ns for start, end, time_ns in anchors if start <= offset < end), 0)


def _spill_directory(state_dir: Path, sink: str) -> Path:
    return state_dir / "spill" / sink


def pending_spills(state_dir: Path) -> Iterator[str]:
    """Give the names of sinks that have undelivered spill on disk."""
    root = state_dir / "spill"
    if root.is_dir():
        for directory in sorted(root.iterdir()):
            if any(directory.glob("*.seg")):
                yield directory.name
