"""What state every component is in, and what follows from it.

A component is named ``sink:mysql``, ``source:docker``, ``config`` and so on. *Alive* asks whether a restart could
help: something has failed for good, or the reader has stopped going round. *Ready* asks whether every sink takes
what it is given: a sink that is away or parked is not the daemon's fault, so it makes us unready, never dead.
"""

from __future__ import annotations

import threading
from typing import Any, Literal, get_args

import msgspec

from shipper.clock import Clock, SystemClock
from shipper.secret import Masker
from shipper.visible import one_line

State = Literal["ok", "starting", "retrying", "throttled", "parked", "failed"]
STATES: tuple[State, ...] = get_args(State)

#: Seconds without a beat after which a loop counts as stuck. A round takes milliseconds; a full disk or a
#: dying file system can hold one for long, and then a restart may help.
SILENCE = 60.0
READER = "reader"
SINK_PREFIX = "sink:"


class Component(msgspec.Struct, frozen=True):
    """The state of one component, why, and since when (monotonic seconds)."""

    state: State
    detail: str
    since: float


class Health:
    """The states of all components. Every method is thread-safe and cheap."""

    def __init__(self, clock: Clock | None = None, *, mask: Masker | None = None) -> None:
        """``mask`` knows the secrets that no detail may hold: it may quote the error of a client library."""
        self._clock = clock or SystemClock()
        self._mask = mask or Masker()
        self._lock = threading.Lock()
        self._components: dict[str, Component] = {}
        self._beats: dict[str, float] = {}

    def report(self, component: str, state: State, detail: str = "") -> None:
        """Set a component's state; ``detail`` says what happened and what to do."""
        detail = self._mask(detail) if detail else ""
        if state not in STATES:
            raise ValueError(f"unknown state {state!r}; states: {' '.join(STATES)}")
        with self._lock:
            known = self._components.get(component)
            since = known.since if known is not None and known.state == state else self._clock.monotonic()
            self._components[component] = Component(state, detail, since)

    def remove(self, component: str) -> None:
        """Forget a component that was closed on purpose (a reload removed it)."""
        with self._lock:
            self._components.pop(component, None)
            self._beats.pop(component, None)

    def beat(self, component: str = READER) -> None:
        """Say that a loop has gone round once more. It must go on beating until it rests."""
        with self._lock:
            self._beats[component] = self._clock.monotonic()

    def rest(self, component: str = READER) -> None:
        """Say that a loop has ended, or waits for something that is not ours; its silence is no fault until it beats."""
        with self._lock:
            self._beats.pop(component, None)

    def has_beaten(self, component: str = READER) -> bool:
        """Tell whether a loop has gone round and does not rest."""
        with self._lock:
            return component in self._beats

    def state(self, component: str) -> State | None:
        """Give a component's state, or None when it never reported."""
        with self._lock:
            known = self._components.get(component)
        return None if known is None else known.state

    def alive(self, *, silence: float = SILENCE) -> bool:
        """Tell whether a restart could not help: nothing failed and every loop has gone round within ``silence`` s."""
        return not self._faults(silence)

    def ready(self) -> bool:
        """Tell whether the daemon is alive and every sink takes what it is given."""
        with self._lock:
            sinks_ok = all(
                item.state == "ok" for name, item in self._components.items() if name.startswith(SINK_PREFIX)
            )
        return sinks_ok and self.alive()

    def components(self) -> dict[str, Component]:
        """Give every component that reported."""
        with self._lock:
            return dict(self._components)

    def faults(self) -> list[str]:
        """Say what has failed in a way that a restart could mend."""
        return self._faults()

    def as_dict(self) -> dict[str, Any]:
        """Give everything for /healthz, /readyz and ``shipper status``; times are seconds in the state."""
        now = self._clock.monotonic()
        with self._lock:
            components = dict(self._components)
        return {
            "alive": self.alive(),
            "ready": self.ready(),
            "faults": self._faults(),
            "components": {
                name: {"state": item.state, "detail": item.detail, "seconds": round(max(0.0, now - item.since), 1)}
                for name, item in sorted(components.items())
            },
        }

    def summary(self) -> str:
        """Say in one line which state every component is in, and first why those are not ``ok`` that are not."""
        with self._lock:
            components = sorted(self._components.items())
        parts = [
            f"{name} {item.state}: {item.detail}" if item.detail else f"{name} {item.state}"
            for name, item in sorted(components, key=lambda pair: pair[1].state == "ok")
        ]
        return one_line(" ".join("; ".join(parts).split()))

    def _faults(self, silence: float = SILENCE) -> list[str]:
        now = self._clock.monotonic()
        with self._lock:
            faults = [
                f"{name} failed: {item.detail}" if item.detail else f"{name} failed"
                for name, item in sorted(self._components.items())
                if item.state == "failed"
            ]
            faults += [
                f"{name} has not gone round for {now - beat:.0f} s"
                for name, beat in sorted(self._beats.items())
                if now - beat > silence
            ]
        return faults
