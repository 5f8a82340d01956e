"""A real buffer, delivery, ledger and dead-letter file around one sink, for tests of what becomes of a failure.

::

    rig = Rig(tmp_path, sink)
    rig.put("/var/log/a", make_batch(["one", "two"]))
    rig.run()                         # until everything is delivered; waits take no time
    assert rig.waits == []            # nothing had to be tried again
    assert rig.safe()                 # every byte is accounted for
"""

from __future__ import annotations

import random
from pathlib import Path

import msgspec

from shipper.delivery.buffer import Buffer
from shipper.delivery.deadletter import DeadLetters
from shipper.delivery.delivery import Delivery
from shipper.delivery.letters import Entry
from shipper.delivery.spill import Spill
from shipper.fs import FileSystem
from shipper.record import Batch, Span
from shipper.sink import Sink
from shipper.source import FileState
from shipper.state.checkpoint import Checkpoint, Cursor
from shipper.state.ledger import Ledger
from shipper.telemetry.health import Health
from shipper.telemetry.metrics import Metrics
from shipper.testing.clock import JumpingClock

_NAME = "sink"
_SPILL = 64 << 20
_MEMORY = 4 << 20


class Rig:
    """One sink and everything between the reader and it. ``health`` has the state at each wait, in order."""

    def __init__(self, directory: Path, sink: Sink, *, clock: JumpingClock | None = None) -> None:
        self.clock = clock or JumpingClock()
        self.clock.on_wait = self._waits
        self.metrics = Metrics()
        self.states: list[str] = []
        self._health = Health(self.clock)
        self._ledger = Ledger(Checkpoint(directory), [_NAME], self.clock)
        self._started = False
        self._ends: dict[str, tuple[int, int]] = {}
        self._dead_letters = DeadLetters(directory / "dead-letter.jsonl")
        spill = Spill(
            directory / "spill", limit=_SPILL, fs=FileSystem(), cursor=Cursor(0, 0), on_lost=self.metrics.dropped
        )
        self.buffer = Buffer(
            spill,
            clock=self.clock,
            max_memory=_MEMORY,
            drop_oldest=False,
            on_safe=lambda spans: self._ledger.done(_NAME, spans),
            on_cursor=lambda cursor: self._ledger.spill_cursor(_NAME, cursor.segment, cursor.offset, cursor.record),
            on_dropped=lambda records: self.metrics.dropped("spill_full", records),
        )
        self.delivery = Delivery(
            _NAME,
            sink,
            self.buffer,
            ledger=self._ledger,
            dead_letters=self._dead_letters,
            clock=self.clock,
            metrics=self.metrics,
            health=self._health,
            rng=random.Random(1),  # noqa: S311 - jitter, to be repeated
        )

    @property
    def waits(self) -> list[float]:
        """The seconds of every wait so far: one for each failure."""
        return self.clock.waits

    @property
    def maybe_doubled(self) -> int:
        """How many requests were sent again although they may have been stored."""
        return int(self.metrics.value("shipper_sink_maybe_doubled_total", sink=_NAME))

    @property
    def acked(self) -> int:
        """How many records the sink has taken."""
        return int(self.metrics.value("shipper_sink_lines_acked_total", sink=_NAME))

    def put(self, path: str, batch: Batch) -> None:
        """Put a batch as read from the file at ``path``, right behind the last one of that file."""
        if path not in self._ends:
            state = FileState(key=0, source="rig", path=path, device=1, inode=1, uid=path, head=0, head_size=0)
            self._ends[path] = self._ledger.add(state).key, 0
        file, start = self._ends[path]
        end = start + max(1, batch.size)
        self._ends[path] = file, end
        self.buffer.put(msgspec.structs.replace(batch, span=Span(file, start, end, 0)))

    def run(self, *, timeout: float = 60.0) -> None:
        """Deliver everything, then end. Raises TimeoutError when it takes longer than so many real seconds."""
        self.start()
        self.finish(timeout=timeout)

    def start(self) -> None:
        """Begin to deliver; more may be put."""
        self._started = True
        self.delivery.start()

    def finish(self, *, timeout: float = 60.0) -> None:
        """Deliver what is pending, then end. Raises TimeoutError when it takes longer than so many real seconds."""
        self.delivery.drain()
        if not self.delivery.join(timeout):
            self.delivery.stop()
            raise TimeoutError(f"not delivered within {timeout} s; after {len(self.waits)} waits: {self.why()}")

    def why(self) -> str:
        """Say what the sink's last failure was, or how it is."""
        component = self._health.as_dict()["components"].get(f"sink:{_NAME}")
        return f"{component['state']}: {component['detail']}" if component else "never started"

    def state(self) -> str:
        """Give the sink's state."""
        return str(self._health.state(f"sink:{_NAME}"))

    def safe(self) -> bool:
        """Tell whether every byte of every file is accounted for, and nothing is pending."""
        return self.buffer.empty() and all(self._ledger.safe(file) == end for file, end in self._ends.values())

    def dead(self) -> list[Entry]:
        """Give the dead letters."""
        return list(self._dead_letters.entries())

    def close(self) -> None:
        """End the delivery, if it was begun, and close the files. Harmless when called again."""
        self.delivery.stop()
        if self._started:
            self.delivery.join(10)
        self.buffer.close()
        self._ledger.close()

    def _waits(self, _seconds: float) -> None:
        self.states.append(self.state())
