"""The delivery: one loop for every sink. Take from the buffer, write, then ack, wait, split or dead-letter.

Retry policy, back-off, circuit state and bisection live here and never in a sink. States of the circuit:

* ``ok``: the last write succeeded.
* ``retrying``: the backend is away or busy; the same batch is tried again without limit.
* ``throttled``: the backend asks for less and said when to come back; otherwise as ``retrying``.
* ``parked``: only the operator can help (login, rights, quota, schema); probed, nothing is discarded.

A batch that is refused for good is bisected until the guilty records stand alone (`shipper.delivery.attempt` has the
rule for whatever a sink may raise); they go to the dead letters with the reason, durably, before the batch is acked. If
record after record is refused and none is taken, the sink, not the records, is taken to be at fault: nothing is
dead-lettered and the sink is parked. Dead letters that cannot be kept, because their disk or their limit is full, make
the batch wait.

A fault of our own never ends a delivery: it is counted, told by health, and the loop begins anew after a pause, with the
batch that was not acked.
"""

from __future__ import annotations

import random
import sqlite3
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from shipper.delivery.attempt import Attempt, Step, describe
from shipper.delivery.deadletter import FullError
from shipper.delivery.retry import backoff
from shipper.errors import ParkedError, PermanentError, RetryableError, StateError
from shipper.record import Batch
from shipper.render import rfc3339, span
from shipper.telemetry.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shipper.clock import Clock
    from shipper.delivery.buffer import Buffer
    from shipper.delivery.deadletter import DeadLetters
    from shipper.sink import Sink
    from shipper.state.ledger import Ledger
    from shipper.telemetry.health import Health, State
    from shipper.telemetry.metrics import Metrics

log = get_logger("delivery")

#: Refusals in a row, with nothing taken in between, after which the sink and not the record is held guilty.
_SUSPICIOUS = 32
#: Faults of our own in a row after which a restart of the daemon may help, which health then says.
_HOPELESS = 10
#: Dead letters written at a time.
_LETTERS = 1_000


class _Stopped(Exception):  # noqa: N818 - control flow, not an error
    """The delivery was told to stop while it waited."""


class Delivery:
    """Delivers one buffer to one sink in its own thread, from ``start`` until ``stop``."""

    def __init__(
        self,
        name: str,
        sink: Sink,
        buffer: Buffer,
        *,
        ledger: Ledger,
        dead_letters: DeadLetters,
        clock: Clock,
        metrics: Metrics,
        health: Health,
        rng: random.Random | None = None,
    ) -> None:
        self.name = name
        self.sink = sink
        self.buffer = buffer
        self._ledger = ledger
        self._dead_letters = dead_letters
        self._clock = clock
        self._metrics = metrics
        self._health = health
        self._rng = rng or random.Random()  # noqa: S311 - jitter
        self._component = f"sink:{name}"
        self._draining = threading.Event()
        self._stop = threading.Event()
        self._open = False
        self._attempt = 0
        self._refused = 0
        self._faults = 0
        self._told_too_old = False
        self.dead_lettered = 0
        #: When the running row of failures began, on the monotonic clock; None while all is well.
        self.failing_since: float | None = None
        #: The last failure and when it was, and when the next attempt is due; on the monotonic clock.
        self.last_error = ""
        self.last_error_at: float | None = None
        self.retry_at: float | None = None
        self._thread = threading.Thread(target=self._run, name=f"delivery-{name}", daemon=True)

    def admit(self, batch: Batch, file: int | None) -> Batch:
        """Leave out what was too old for the sink when its file was first seen. Called by the reader.

        It is told once, counted, and noted in the state. What grows too old while it waits here is not passed over: the
        sink refuses it, and it goes to the dead letters.
        """
        if self.sink.max_age is None or file is None or not len(batch):
            return batch
        oldest = self._ledger.seen(file) - int(self.sink.max_age * 1e9)
        if oldest <= 0 or span(batch.times)[0] >= oldest:
            return batch
        fresh = [row for row, time_ns in enumerate(batch.times) if time_ns >= oldest]
        count = len(batch) - len(fresh)
        self._metrics.passed_over(self.name, "too_old", count)
        self._ledger.give_up(self.name, "too_old", count)
        if not self._told_too_old:
            self._told_too_old = True
            log.warning(
                "lines are older than this sink takes and are passed over; to keep them, route them to another sink",
                sink=self.name, days=round(self.sink.max_age / 86_400, 1), first=rfc3339(min(batch.times)),
                counter="shipper_passed_over_total",
            )  # fmt: skip
        return batch.select(fresh)

    def start(self) -> None:
        """Begin."""
        self._health.report(self._component, "starting")
        self._thread.start()

    def drain(self) -> None:
        """Deliver what is pending, then end."""
        self._draining.set()
        self.buffer.wake()

    def stop(self) -> None:
        """End at once: the batch in flight is finished or abandoned, never half acked."""
        self._stop.set()
        self._draining.set()
        self.buffer.wake()

    def join(self, seconds: float) -> bool:
        """Wait for the thread to end; tell whether it has."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    @property
    def dead_letter_bytes(self) -> int:
        """Bytes of the disk that the dead letters take; 0 where they cannot be looked at."""
        try:
            return self._dead_letters.size
        except (OSError, StateError):
            return 0

    @property
    def dead_letter_limit(self) -> int:
        """The most bytes that the dead letters may take, 0 for any."""
        return self._dead_letters.limit

    @property
    def healthy(self) -> bool:
        """Whether the sink takes what it is given."""
        return self.failing_since is None

    @property
    def attempts(self) -> int:
        """How many writes in a row have failed."""
        return self._attempt

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    self._loop()
                    break
                except _Stopped:
                    break
                except BaseException as error:
                    log.error("fault of our own in a delivery; it begins anew", sink=self.name, exc_info=True)
                    self._pause(error)
        except BaseException as error:
            # Not even waiting works.
            log.error("a delivery ended by a fault of our own; restart the daemon", sink=self.name, exc_info=True)
            self._health.report(self._component, "failed", describe(error))
            self.failing_since = self.failing_since or self._clock.monotonic()
        finally:
            self._health.rest(self._component)
            try:
                self.sink.close()
            except Exception:
                log.error("the sink cannot be closed", sink=self.name, exc_info=True)

    def _loop(self) -> None:
        self._ensure_open()
        while not self._stop.is_set():
            with self._idle():
                batches = self.buffer.peek(
                    records=self.sink.limits.records, size=self.sink.limits.bytes, timeout=3600.0
                )
            if not batches:
                if self._draining.is_set() and self.buffer.empty():
                    break
                continue
            self._deliver(batches)
            self._faults = 0

    def _pause(self, error: BaseException) -> None:
        """Wait after a fault of our own, and say so; what was not acked is delivered again."""
        self._faults += 1
        self._open = False
        self.failing_since = self.failing_since or self._clock.monotonic()
        self.last_error, self.last_error_at = describe(error), self._clock.monotonic()
        self._metrics.restarted(self.name)
        delay = backoff(self._faults, rng=self._rng)
        state: State = "failed" if self._faults >= _HOPELESS else "retrying"
        self._health.report(
            self._component, state, f"fault of our own, tried again for the {self._faults}. time: {describe(error)}"
        )
        self.retry_at = self._clock.monotonic() + delay
        with self._idle():
            self._clock.wait(self._stop, delay)
        self.retry_at = None

    @contextmanager
    def _idle(self) -> Iterator[None]:
        """Mark what may take as long as it likes: the sink's own calls and waiting. Everything else must go on."""
        self._health.rest(self._component)
        try:
            yield
        finally:
            self._health.beat(self._component)

    def _deliver(self, batches: list[Batch]) -> None:
        """Deliver and ack what was peeked; returns when every record is taken, dropped or dead-lettered."""
        attempt = Attempt(Batch.concat(batches))
        while not attempt.done:
            self._ensure_open()
            with self._idle():
                step = attempt.write(self.sink)
            self._count_diverted()
            self._follow(attempt, step)
        self._set_aside(attempt)
        self._metrics.acked(self.name, attempt.taken)
        position = self.sink.position()
        self.buffer.ack(lambda spans, cursor: self._ledger.acked(self.name, spans, cursor=cursor, position=position))
        if attempt.refused:
            # A kill before the next save would have them refused, and written to the dead letters, again.
            self._save("dead letters may be written again after a crash")

    def _follow(self, attempt: Attempt, step: Step) -> None:
        """Count what a write did, and wait if it must be. Raises _Stopped."""
        if step.bug is not None:
            log.error("the sink tripped over a record", sink=self.name, error=describe(step.bug), exc_info=step.bug)
            self._open = False
        for reason, count in step.dropped.items():
            self._metrics.dropped(reason, count)
        if step.taken or step.dropped:
            self._succeeded()
        for row in step.refused:
            error = attempt.refused[row]
            if step.taken or (isinstance(error, PermanentError) and error.certain):
                continue  # a sink that took others of this very request is not at fault
            self._refused += 1
            if self._refused >= _SUSPICIOUS:
                self._refused = 0
                attempt.take_back()
                self._failed(
                    ParkedError(
                        f"{_SUSPICIOUS} records in a row were refused and none was taken, so the sink is held at fault,"
                        f" not the records; the last refusal: {error}",
                        code=error.code,
                    )
                )
                return
        if step.wait is not None:
            self._failed(step.wait)

    def _set_aside(self, attempt: Attempt) -> None:
        """Write what was refused to the dead letters. What cannot be kept must not be dropped: it waits."""
        rows = sorted(attempt.refused)
        for start in range(0, len(rows), _LETTERS):
            chunk = rows[start : start + _LETTERS]
            while True:
                try:
                    self._dead_letters.append(
                        attempt.batch.select(chunk), [attempt.refused[row] for row in chunk], self.name
                    )
                    break
                except FullError as error:
                    self._failed(ParkedError(str(error), code="dead_letters_full"))
                except StateError as error:
                    self._failed(RetryableError(str(error), code="state"))
            self.dead_lettered += len(chunk)
            self._metrics.dead_lettered(self.name, len(chunk))
        for row in rows[:3]:
            log.warning(
                "record refused for good; it is in the dead letters",
                sink=self.name, reason=str(attempt.refused[row]), code=attempt.refused[row].code, records=len(rows),
            )  # fmt: skip
        if rows and self._attempt:
            self._succeeded()

    def _count_diverted(self) -> None:
        try:
            diverted = self.sink.diverted()
        except Exception as error:
            log.error("the sink cannot say what was put aside", sink=self.name, error=describe(error), exc_info=True)
            return
        for reason, lines in diverted.items():
            self._metrics.diverted(self.name, reason, lines)
            log.warning(
                "the destination put records aside; look there why, they are not sent again",
                sink=self.name, reason=reason, records=lines,
            )  # fmt: skip

    def _ensure_open(self) -> None:
        """Open the sink, waiting as long as it takes. Raises _Stopped."""
        while not self._open:
            self._check_stop()
            try:
                with self._idle():
                    self.sink.open()
            except RetryableError as error:
                error.maybe_taken = False  # whatever became of the request: opening stores no record
                self._failed(error)
            except Exception as error:
                log.error("cannot open the sink", sink=self.name, error=describe(error), exc_info=error)
                self._failed(RetryableError(describe(error), code=type(error).__name__))
            else:
                self._open = True
                self._note_position()
                if self.failing_since is None:
                    self._health.report(self._component, "ok")

    def _note_position(self) -> None:
        """Note where the sink stands. Its very first position is saved before anything is written behind it: a kill
        before the next save would leave a sink that tells doubles by its position without one.
        """
        position = self.sink.position()
        first = position is not None and self._ledger.sink_state(self.name).position is None
        self._ledger.done(self.name, (), position=position)
        if first:
            self._save("the sink's first position is not saved yet", durable=True)

    def _save(self, otherwise: str, *, durable: bool = False) -> None:
        try:
            self._ledger.save(durable=durable)
        except sqlite3.Error as error:
            log.warning("positions cannot be saved", sink=self.name, so=otherwise, error=str(error))

    def _succeeded(self) -> None:
        self._refused = 0
        if self.failing_since is not None or self._attempt:
            if self.failing_since is not None:
                log.info(
                    "sink is back",
                    sink=self.name, away=round(self._clock.monotonic() - self.failing_since, 1), attempts=self._attempt,
                )  # fmt: skip
            self._attempt = 0
            self.failing_since = None
            self._health.report(self._component, "ok")

    def _failed(self, error: RetryableError) -> None:
        """Note a failure and wait for the next attempt. Raises _Stopped when told to stop meanwhile."""
        self._attempt += 1
        self._open = False
        parked = isinstance(error, ParkedError)
        if self.failing_since is None:
            self.failing_since = self._clock.monotonic()
        self.last_error, self.last_error_at = str(error), self._clock.monotonic()
        self._metrics.retried(self.name, error.code)
        if error.maybe_taken:
            self._metrics.maybe_doubled(self.name)
        throttled = error.retry_after is not None
        self._health.report(
            self._component, "parked" if parked else "throttled" if throttled else "retrying", str(error)
        )
        delay = backoff(self._attempt, retry_after=error.retry_after, parked=parked, rng=self._rng)
        log.warning(
            "sink parked, its lines are kept" if parked else "sink failed, its lines are kept",
            sink=self.name, error=str(error), code=error.code, attempt=self._attempt, next_try=round(delay, 1),
        )  # fmt: skip
        self._check_stop()
        if self._attempt > 1:
            self._make_safe()
        self.retry_at = self._clock.monotonic() + delay
        with self._idle():
            self._clock.wait(self._stop, delay)
        self.retry_at = None
        self._check_stop()

    def _make_safe(self) -> None:
        # A sink that is down for longer must not leave lines at the mercy of a rotation and a crash.
        try:
            self.buffer.spill_all()
        except OSError as error:
            log.error("cannot spill; lines wait in their files", sink=self.name, error=str(error))

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise _Stopped
