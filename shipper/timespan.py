"""Times as people write them, and as we write them."""

from __future__ import annotations

from datetime import UTC, datetime

_SECOND = 1_000_000_000


def rfc3339(time_ns: int) -> str:
    """Write nanoseconds since 1970 as RFC 3339 in UTC with nine digits, the form of every file and JSON output."""
    seconds, nanoseconds = divmod(time_ns, _SECOND)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"
