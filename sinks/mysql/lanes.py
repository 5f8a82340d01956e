"""Connections that store at the same time, each in a thread of its own."""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from sinks import _sql
    from sinks.mysql.session import Session


class Lane(NamedTuple):
    """A connection, and the mapping of the thread that uses it."""

    session: Session
    mapping: _sql.Mapping


class SecondLane:
    """A lane beside the delivery's own, from its making until `release`. Its thread waits from one batch to the next:
    to start one for each would keep the server waiting.
    """

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self._work: SimpleQueue[Callable[[], BaseException | None] | None] = SimpleQueue()
        self._done: SimpleQueue[BaseException | None] = SimpleQueue()
        # A daemon's: the process may end while it waits for a server's answer.
        threading.Thread(target=self._run, name="mysql-second", daemon=True).start()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            self._done.put(work())
            del work  # it holds a batch

    def begin(self, work: Callable[[], BaseException | None]) -> None:
        """Do some work, which gives what went wrong and raises nothing."""
        self._work.put(work)

    def wait(self) -> BaseException | None:
        """Wait for the work that was begun; give what went wrong with it."""
        return self._done.get()

    def release(self) -> None:
        """Close the connection and end the thread; never raises."""
        self._work.put(None)
        self.lane.session.release()
