"""When to try again: full-jitter back-off, reset by success, overruled by the backend's own word."""

from __future__ import annotations

import random

#: Seconds: first and longest ceiling of the back-off, and the bounds put on a backend's Retry-After.
BASE, CAP = 0.5, 30.0
RETRY_AFTER_MIN, RETRY_AFTER_MAX = 1.0, 600.0
#: Seconds between probes of a parked sink, shortest and longest.
PARKED_MIN, PARKED_MAX = 2.0, 60.0


def backoff(attempt: int, *, retry_after: float | None = None, parked: bool = False, rng: random.Random) -> float:
    """Give the seconds to wait before the next attempt; ``attempt`` counts failures from 1."""
    if retry_after is not None:
        return min(max(retry_after, RETRY_AFTER_MIN), RETRY_AFTER_MAX)
    if parked:
        return min(PARKED_MAX, PARKED_MIN * 2.0 ** min(attempt - 1, 10)) * rng.uniform(0.5, 1.0)
    ceiling = min(CAP, BASE * 2.0 ** min(attempt - 1, 10))
    # Not below a tenth: a storm of immediate retries helps nobody.
    return rng.uniform(0.1, 1.0) * ceiling
