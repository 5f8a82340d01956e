"""The seam for time: production code asks a clock, tests bend it."""

from __future__ import annotations

import threading
import time
from typing import Protocol


class Clock(Protocol):
    """What the pipeline may ask about time."""

    def monotonic(self) -> float:
        """Seconds that never go back, for intervals and deadlines."""

    def time_ns(self) -> int:
        """Nanoseconds since 1970 UTC."""

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait until the event is set or the seconds are over; tell whether the event is set."""


class SystemClock:
    """The machine's own clock."""

    def monotonic(self) -> float:
        """See `Clock.monotonic`."""
        return time.monotonic()

    def time_ns(self) -> int:
        """See `Clock.time_ns`."""
        return time.time_ns()

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """See `Clock.wait`."""
        return event.wait(seconds)
