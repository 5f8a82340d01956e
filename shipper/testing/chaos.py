"""A sink that fails on demand and remembers what it holds, by id: for tests of everything in front of a sink."""

from __future__ import annotations

import random
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import ClassVar

from shipper.errors import PartialError, PermanentError, RetryableError, SinkError
from shipper.record import Batch, Record
from shipper.sink import Limits, Sink, SinkConfig


class TookItButRaised(Exception):  # noqa: N818 - the name of an outcome, raised as itself only when scripted bare
    """In a script: the batch is taken, then a RetryableError is raised. The caller cannot know which."""


#: One step of a script: an error to raise, `TookItButRaised`, or ``None`` to take the batch.
Step = SinkError | TookItButRaised | None


class ChaosSink(Sink):
    """Holds records in memory, or passes them to ``inner``, and fails as told. Thread-safe.

    ``script`` is consumed one step a write, then everything is taken; add to it with `then`. ``down`` (settable)
    fails every write and open while it is not ``None``, as an outage does. ``poison`` makes the batch with a
    matching record fail as a whole with PermanentError, and nothing of it is taken. ``partly`` names indexes of a
    batch to refuse, with their errors. ``gate`` (an event) holds every write back until it is set. ``unlucky`` is
    the probability from 0 to 1 that a write fails by chance, drawn from ``rng``: half before it was taken, half after.

    ``records`` maps id to record, ``order`` has the ids as they came, `duplicates` those that came more than once
    (counted where they were taken; ``dedupe`` makes the sink tell them by id and count none). ``writes`` counts
    attempts, ``entered`` is set when one begins.
    """

    config: ClassVar[type[SinkConfig]] = SinkConfig

    def __init__(
        self,
        inner: Sink | None = None,
        *,
        script: Iterable[Step] = (),
        poison: Callable[[Record], bool] | None = None,
        partly: Callable[[Batch], dict[int, SinkError]] | None = None,
        gate: threading.Event | None = None,
        unlucky: float = 0.0,
        rng: random.Random | None = None,
        dedupe: bool = False,
        wants_parse: bool = True,
        limits: Limits | None = None,
    ) -> None:
        self._inner = inner
        self._script: deque[Step] = deque(script)
        self._poison = poison
        self._partly = partly
        self._unlucky = unlucky
        self._rng = rng or random.Random(0)  # noqa: S311 - chance in a test, to be repeated
        self._dedupe = dedupe
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self._counts: Counter[str] = Counter()
        self.gate = gate
        self.down: SinkError | None = None
        self.entered = threading.Event()
        self.records: dict[str, Record] = {}
        self.order: list[str] = []
        self.writes = 0
        self.closed = False
        self.wants_parse = wants_parse if inner is None else inner.wants_parse
        self.limits = limits or (inner.limits if inner is not None else Limits())

    def then(self, *steps: Step) -> None:
        """Add steps to the script."""
        with self._lock:
            self._script.extend(steps)

    @property
    def duplicates(self) -> dict[str, int]:
        """The ids that were taken more than once, with how often."""
        with self._lock:
            return {identity: count for identity, count in self._counts.items() if count > 1}

    def wait_for(self, count: int, *, timeout: float = 10.0) -> None:
        """Return once ``count`` distinct records are held. Raises TimeoutError after ``timeout`` seconds."""
        with self._arrived:
            if not self._arrived.wait_for(lambda: len(self.records) >= count, timeout):
                raise TimeoutError(f"{len(self.records)} of {count} records arrived")

    def open(self) -> None:
        """See `Sink.open`."""
        with self._lock:
            if self.down is not None:
                raise self.down
        if self._inner is not None:
            self._inner.open()

    def write(self, batch: Batch) -> None:
        """See `Sink.write`; fails as told."""
        self.entered.set()
        if self.gate is not None:
            self.gate.wait()
        with self._lock:
            self.writes += 1
            if self.down is not None:
                raise self.down
            step = self._script.popleft() if self._script else None
            if step is None and self._unlucky and self._rng.random() < self._unlucky:
                step = RetryableError("by chance, not taken") if self._rng.random() < 0.5 else TookItButRaised()
        if isinstance(step, SinkError):
            raise step
        if self._poison is not None and any(map(self._poison, batch.records())):
            raise PermanentError("a record of this batch is poison", code="poison")
        failed = self._partly(batch) if self._partly is not None else {}
        self._take(batch.select([index for index in range(len(batch)) if index not in failed]) if failed else batch)
        if failed:
            raise PartialError(failed)
        if isinstance(step, TookItButRaised):
            raise RetryableError("taken, but the answer was lost") from step

    def position(self) -> str | None:
        """See `Sink.position`."""
        return None if self._inner is None else self._inner.position()

    def resume(self, position: str | None) -> None:
        """See `Sink.resume`."""
        if self._inner is not None:
            self._inner.resume(position)

    def close(self) -> None:
        """See `Sink.close`."""
        self.closed = True
        if self._inner is not None:
            self._inner.close()

    def _take(self, batch: Batch) -> None:
        if self._inner is not None:
            self._inner.write(batch)
        with self._arrived:
            for record in batch.records():
                if self._dedupe and record.id in self.records:
                    continue
                self._counts[record.id] += 1
                self.order.append(record.id)
                self.records[record.id] = record
            self._arrived.notify_all()
