"""What a reader is asked: the same question for every backend."""

from __future__ import annotations

import msgspec

from shipper.condition import Condition


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """A question to a `Reader`.

    ``since`` (inclusive) and ``until`` (exclusive) are nanoseconds since 1970 UTC; ``None`` leaves the end open.
    ``condition`` decides what matches. A backend may push any part of it down as long as that never loses a match;
    whoever runs the query applies the condition again to what comes back, so the answer is the same everywhere.
    ``limit`` bounds the rows after filtering, ``None`` gives all. Newest first unless ``oldest_first``.
    """

    condition: Condition | None = None
    since: int | None = None
    until: int | None = None
    limit: int | None = None
    oldest_first: bool = False
