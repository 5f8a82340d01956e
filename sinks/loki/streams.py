"""What is known of each stream at Loki: how new it is, and whether what is refused in it would be told."""

from __future__ import annotations

from collections import OrderedDict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from shipper.render import span
from sinks.loki.config import BACKFILL

if TYPE_CHECKING:
    from sinks.loki.encode import Pairs, Run

#: Streams that are remembered.
MOST = 20_000
#: Seconds for which a stream that took something is sure to be in Loki's memory (chunk_idle_period is 30 minutes).
ACTIVE = 600.0
#: Seconds for which a stream goes alone after it had much at once.
CALM = 10.0
_SECOND = 1_000_000_000


class State:
    """One stream: its newest time, what stands at that time (line: id), and when, on the monotonic clock, it last took
    something and last was given much.
    """

    __slots__ = ("heavy", "newest", "tail", "took")

    def __init__(self) -> None:
        self.newest = 0
        self.tail: dict[str, str] = {}
        self.took = self.heavy = float("-inf")

    def note(self, run: Run, now: float) -> None:
        """Loki has taken a run."""
        self.took = now
        _, newest, ascends = span(run.times)
        if newest < self.newest:
            return
        if newest > self.newest:
            self.newest, self.tail = newest, {}
        if ascends:
            self.tail[run.lines[-1]] = run.ids[-1]
            return
        place = -1
        for _ in range(run.times.count(newest)):
            place = run.times.index(newest, place + 1)
            self.tail[run.lines[place]] = run.ids[place]

    def is_open(self, now: float) -> bool:
        """Tell whether the stream may share a push: nothing in it can be refused in silence (see `sinks.loki.sink`)."""
        return now - self.took < ACTIVE and now - self.heavy >= CALM


class States:
    """The streams by their labels; those not used for longest are forgotten first."""

    def __init__(self, window_ns: int) -> None:
        self._window = window_ns
        self._known: OrderedDict[Pairs, State] = OrderedDict()

    def of(self, labels: Pairs) -> State:
        """Give the state of a stream, which may be new."""
        state = self._known.get(labels)
        if state is None:
            state = self._known[labels] = State()
            if len(self._known) > MOST:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(labels)
        return state

    def doubt(self) -> None:
        """Loki may have been restarted: no stream is sure to be in its memory."""
        for state in self._known.values():
            state.took = float("-inf")

    def is_late(self, labels: Pairs, time_ns: int) -> bool:
        """Tell whether a record is too far behind the newest of a stream."""
        return time_ns < self.of(labels).newest - self._window

    def place(self, labels: Pairs, time_ns: int) -> Pairs:
        """Give the labels of the stream that takes a record of this time: its own; that of its day for what is late;
        that of its hour (the window) for what is late even there. Within an hour nothing is late.
        """
        if not self.is_late(labels, time_ns):
            return labels
        seconds = time_ns // _SECOND
        by_day = (*labels, (BACKFILL, datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")))
        return self._finest(labels, time_ns) if self.is_late(by_day, time_ns) else by_day

    def is_finest(self, labels: Pairs, time_ns: int) -> bool:
        """Tell whether there is no stream that a record refused by this one could go to."""
        name, value = labels[-1]
        return name == BACKFILL and labels == self._finest(labels[:-1], time_ns) and "T" in value

    def learn(self, labels: Pairs, time_ns: int) -> None:
        """Loki holds records so new that one of this time is late."""
        state = self.of(labels)
        if state.newest <= time_ns + self._window:
            state.newest, state.tail = time_ns + self._window + 1, {}

    def _finest(self, labels: Pairs, time_ns: int) -> Pairs:
        start = time_ns // self._window * self._window // _SECOND
        return (*labels, (BACKFILL, datetime.fromtimestamp(start, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")))
