"""Clocks for tests: one stands still until it is told to move, one jumps over every wait."""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable

# A wait on a fake clock looks at its event this often, since an event cannot be watched together with a condition.
_LOOK = 0.005


class FakeClock:
    """A `shipper.clock.Clock` for tests; moves only by `advance`.

    ``time_ns`` begins at ``start_ns`` (nanoseconds since 1970 UTC), ``monotonic`` at 0 seconds. `waiting` tells how
    many threads wait, so that a test can let a thread come to rest before it moves on: ``clock.settle()``.
    """

    def __init__(self, start_ns: int = 1_700_000_000_000_000_000) -> None:
        self._start_ns = start_ns
        self._now_ns = 0
        self._changed = threading.Condition()
        self._waiting = 0

    def monotonic(self) -> float:
        """Seconds since the clock was made."""
        with self._changed:
            return self._now_ns / 1e9

    def time_ns(self) -> int:
        """Nanoseconds since 1970 UTC."""
        with self._changed:
            return self._start_ns + self._now_ns

    def advance(self, seconds: float) -> None:
        """Move on, and release every wait that is over by then."""
        with self._changed:
            self._now_ns += round(seconds * 1e9)
            self._changed.notify_all()

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait until the event is set or the clock was advanced by ``seconds``; tell whether the event is set."""
        with self._changed:
            deadline = self._now_ns + round(seconds * 1e9)
            self._waiting += 1
            self._changed.notify_all()
            try:
                while not event.is_set() and self._now_ns < deadline:
                    self._changed.wait(_LOOK)
            finally:
                self._waiting -= 1
        return event.is_set()

    @property
    def waiting(self) -> int:
        """How many threads wait on this clock now."""
        with self._changed:
            return self._waiting

    def settle(self, threads: int = 1, *, timeout: float = 10.0) -> None:
        """Return once ``threads`` threads wait on this clock. Raises TimeoutError after real seconds."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while self._waiting < threads:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"{self._waiting} of {threads} threads wait on the clock")
                self._changed.wait(left)


class JumpingClock(FakeClock):
    """A clock whose waits take no time: it jumps to their end, so that an hour of retries is over at once.

    ``waits`` has the seconds of each. What ``at`` was told is done by the thread that waits when the time comes;
    ``on_wait`` is called before each jump. More than ``most`` waits raise RuntimeError: something waits forever.
    """

    def __init__(self, start_ns: int = 1_700_000_000_000_000_000, *, most: int = 5_000) -> None:
        super().__init__(start_ns)
        self.waits: list[float] = []
        self.on_wait: Callable[[float], None] = lambda _seconds: None
        self._most = most
        self._due: list[tuple[float, int, Callable[[], None]]] = []

    def at(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something once so many seconds have passed since the clock was made."""
        heapq.heappush(self._due, (seconds, len(self._due), action))

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Jump on by ``seconds`` and do what falls due; tell whether the event is set."""
        if len(self.waits) >= self._most:
            raise RuntimeError(f"{self._most} waits and no end")
        self.waits.append(seconds)
        self.on_wait(seconds)
        end = self.monotonic() + seconds
        while self._due and self._due[0][0] <= end:
            due, _, action = heapq.heappop(self._due)
            self.advance(max(0.0, due - self.monotonic()))
            action()
        self.advance(max(0.0, end - self.monotonic()))
        return event.is_set()
