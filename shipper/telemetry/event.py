"""What the daemon's own log is made of: one event, and where events go."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec


class Event(msgspec.Struct, frozen=True):
    """One thing to say. ``time`` is seconds since 1970 UTC; ``repeats`` counts those left out in ``seconds``."""

    time: float
    level: int
    component: str
    text: str
    fields: dict[str, Any]
    repeats: int = 0
    seconds: float = 0.0


class Output(Protocol):
    """Where events go: standard error, Loki."""

    def put(self, event: Event) -> None:
        """Write one event, soon; never raises."""

    def close(self) -> None:
        """Write what waits, within seconds."""
