"""The delivery: one loop for every sink. Take from the buffer, write, then ack, wait, split or dead-letter.

Retry policy, back-off, circuit state and bisection live here and never in a sink. States of the circuit:

* ``ok``: the last write succeeded.
* ``retrying``: the backend is away or busy; the same batch is tried again without limit.
* ``throttled``: the backend asks for less and said when to come back; otherwise as ``retrying``.
* ``parked``: only the operator can help (login, rights, quota, schema); probed, nothing is discarded.

A batch that is refused for good is bisected until the guilty records stand alone; they go to the dead letters with
the reason, durably, before the batch is acked. If record after record is refused and none is taken, the sink, not
the records, is taken to be at fault: nothing is dead-lettered and the sink is parked.
"""

from __future__ import annotations

import random
import sqlite3
import threading
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

from shipper.delivery.retry import backoff
from shipper.errors import (
    DroppedError,
    ParkedError,
    PartialError,
    PermanentError,
    RetryableError,
    SinkError,
    StateError,
)
from shipper.record import Batch
from shipper.telemetry.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shipper.clock import Clock
    from shipper.delivery.buffer import Buffer
    from shipper.delivery.deadletter import DeadLetters
    from shipper.sink import Sink
    from shipper.state.ledger import Ledger
    from shipper.telemetry.health import Health
    from shipper.telemetry.metrics import Metrics

log = get_logger("delivery")

#: Refusals in a row, with nothing taken in between, after which the sink and not the record is held guilty.
_SUSPICIOUS = 32
#: What a sink raises when its own code trips over a record: bisected like a refusal.
_BUGS = (TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError)


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
        self.dead_lettered = 0
        #: When the running row of failures began, on the monotonic clock; None while all is well.
        self.failing_since: float | None = None
        #: The last failure and when it was, and when the next attempt is due; on the monotonic clock.
        self.last_error = ""
        self.last_error_at: float | None = None
        self.retry_at: float | None = None
        self._thread = threading.Thread(target=self._run, name=f"delivery-{name}", daemon=True)

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
    def healthy(self) -> bool:
        """Whether the sink takes what it is given."""
        return self.failing_since is None

    @property
    def attempts(self) -> int:
        """How many writes in a row have failed."""
        return self._attempt

    def _run(self) -> None:
        try:
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
        except _Stopped:
            pass
        except BaseException as error:
            log.error("delivery ended by a fault of our own; restart the daemon", sink=self.name, exc_info=True)
            self._health.report(self._component, "failed", _describe_bug(error))
            self.failing_since = self.failing_since or self._clock.monotonic()
        finally:
            self._health.rest(self._component)
            self.sink.close()

    @contextmanager
    def _idle(self) -> Iterator[None]:
        """Mark what may take as long as it likes: the sink's own calls and waiting. Everything else must go on."""
        self._health.rest(self._component)
        try:
            yield
        finally:
            self._health.beat(self._component)

    def _deliver(self, batches: list[Batch]) -> None:
        """Deliver and ack what was peeked; returns when every record is taken or dead-lettered."""
        batch = Batch.concat(batches)
        rejected: list[tuple[Batch, SinkError]] = []
        if len(batch):
            while True:
                try:
                    taken = self._write(batch, rejected)
                    self._dead_letter(rejected)
                    break
                except StateError as error:
                    # Dead letters that cannot be kept must not be dropped: the batch waits.
                    rejected.clear()
                    self._failed(RetryableError(str(error), code="state"))
                except _RetryBatch:
                    continue
            self._metrics.acked(self.name, taken)
        position = self.sink.position()
        self.buffer.ack(lambda spans, cursor: self._ledger.acked(self.name, spans, cursor=cursor, position=position))

    def _write(self, batch: Batch, rejected: list[tuple[Batch, SinkError]]) -> int:
        """Write until every record is taken or in ``rejected``; give the number taken."""
        refusal: SinkError
        while True:
            # What a part is refused for has nothing to do with the refusal of the whole: no handler goes on from here.
            try:
                self._ensure_open()
                try:
                    with self._idle():
                        self.sink.write(batch)
                finally:
                    self._count_diverted()
            except RetryableError as error:
                self._failed(error)
            except PartialError as error:
                refusal = error
                break
            except (PermanentError, *_BUGS) as error:
                refusal = error if isinstance(error, SinkError) else PermanentError(_describe_bug(error), code="bug")
                if not isinstance(error, SinkError):
                    log.error(
                        "the sink tripped over a record", sink=self.name, error=_describe_bug(error), exc_info=error
                    )
                    self._open = False
                break
            except Exception as error:
                log.error("unexpected fault of the sink", sink=self.name, error=_describe_bug(error), exc_info=error)
                self._failed(RetryableError(_describe_bug(error), code=type(error).__name__))
            else:
                self._succeeded()
                return len(batch)
        if isinstance(refusal, PartialError):
            return self._write_rest(batch, refusal, rejected)
        return self._split(batch, refusal, rejected)

    def _split(self, batch: Batch, refusal: SinkError, rejected: list[tuple[Batch, SinkError]]) -> int:
        if len(batch) == 1:
            self._reject(batch, refusal, rejected)
            return 0
        middle = len(batch) // 2
        taken = self._write(batch.select(range(middle)), rejected)
        return taken + self._write(batch.select(range(middle, len(batch))), rejected)

    def _write_rest(self, batch: Batch, error: PartialError, rejected: list[tuple[Batch, SinkError]]) -> int:
        taken = len(batch) - len(error.failed) - sum(len(rows) for rows, _ in error.together)
        dropped = Counter(failure.code for failure in error.failed.values() if isinstance(failure, DroppedError))
        for reason, count in dropped.items():
            self._metrics.dropped(reason, count)
        if taken or dropped:
            self._succeeded()
        again: list[int] = []
        cause: RetryableError | None = None
        for index, failure in sorted(error.failed.items()):
            if isinstance(failure, RetryableError):
                again.append(index)
                cause = failure
            elif not isinstance(failure, DroppedError):
                self._reject(batch.select([index]), failure, rejected)
        if again and cause is not None:
            self._failed(cause)
            taken += self._write(batch.select(again), rejected)
        for rows, refusal in error.together:
            taken += self._split(batch.select(rows), refusal, rejected)
        return taken

    def _reject(self, batch: Batch, error: SinkError, rejected: list[tuple[Batch, SinkError]]) -> None:
        rejected.append((batch, error))
        if isinstance(error, PermanentError) and error.certain:
            return
        self._refused += 1
        if self._refused >= _SUSPICIOUS:
            self._refused = 0
            rejected.clear()
            self._failed(
                ParkedError(
                    f"{_SUSPICIOUS} records in a row were refused and none was taken, so the sink is held at fault, not"
                    f" the records; the last refusal: {error}",
                    code=error.code,
                )
            )
            raise _RetryBatch

    def _dead_letter(self, rejected: list[tuple[Batch, SinkError]]) -> None:
        if not rejected:
            return
        batch = Batch.concat([one for one, _ in rejected])
        self._dead_letters.append(batch, [error for _, error in rejected], self.name)
        self.dead_lettered += len(rejected)
        self._metrics.dead_lettered(self.name, len(rejected))
        for _, error in rejected[:3]:
            log.warning(
                "record refused for good; it is in the dead letters",
                sink=self.name, reason=str(error), code=error.code, records=len(rejected),
            )  # fmt: skip

    def _count_diverted(self) -> None:
        for reason, lines in self.sink.diverted().items():
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
                log.error("cannot open the sink", sink=self.name, error=_describe_bug(error), exc_info=error)
                self._failed(RetryableError(_describe_bug(error), code=type(error).__name__))
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
            try:
                self._ledger.save()
            except sqlite3.Error as error:
                log.warning("the sink's first position is not saved yet", sink=self.name, error=str(error))

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


class _RetryBatch(RetryableError):  # noqa: N818 - control flow, not an error
    """Take the refusals of this batch back and deliver it again from its start."""

    def __init__(self) -> None:
        super().__init__("all refused", code="suspicious")


def _describe_bug(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
