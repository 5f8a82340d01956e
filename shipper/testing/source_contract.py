"""What every source that follows files must keep, as tests to inherit.

Give a subclass the fixture ``subject``: a `Subject` that makes sources and writes, rotates and reads back.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from shipper.source import Source, SourceContext, ignore_fault
from shipper.testing.clock import FakeClock
from shipper.testing.positions import MemoryPositions

if TYPE_CHECKING:
    from collections.abc import Callable

    from shipper.record import Batch


class Subject(Protocol):
    """A kind of source and the writer of what it reads."""

    def source(self) -> Source:
        """Make a source, not opened."""

    def write(self, line: str) -> None:
        """Append a line."""

    def rotate(self) -> None:
        """Rotate as the writer's world does."""


class Reading:
    """A source under test with its positions and everything it gave."""

    def __init__(
        self,
        source: Source,
        positions: MemoryPositions | None = None,
        *,
        once: bool = False,
        clock: FakeClock | None = None,
        own_paths: frozenset[str] = frozenset(),
        fault: Callable[[str, str], None] = ignore_fault,
    ) -> None:
        self.source = source
        self.positions = positions if positions is not None else MemoryPositions()
        self.clock = clock or FakeClock()
        self.batches: list[Batch] = []
        self.woken = 0
        self.context = SourceContext(
            name="source",
            positions=self.positions,
            clock=self.clock,
            wake=self._wake,
            host="testhost",
            once=once,
            own_paths=own_paths,
            fault=fault,
        )
        source.open(self.context)

    def _wake(self) -> None:
        self.woken += 1

    def poll(self, *, ack: bool = True, room: bool = True) -> list[str]:
        """Poll until nothing comes, acknowledging or not; give the raw lines that came."""
        lines: list[str] = []
        for _ in range(1000):
            got = False
            for batch in self.source.poll(lambda at_risk: room or at_risk):
                got = True
                self.batches.append(batch)
                lines += batch.raws
                if ack:
                    self.positions.ack(batch)
            if not got and (self.source.idle() > 0 or not room):
                return lines
        raise AssertionError("the source never comes to rest")

    def after(self, seconds: float, *, ack: bool = True) -> list[str]:
        """Let time pass in steps that see every sweep, then poll."""
        lines: list[str] = []
        while seconds > 0:
            step = min(seconds, 1.1)
            self.clock.advance(step)
            seconds -= step
            lines += self.poll(ack=ack)
        return lines

    @property
    def lines(self) -> list[str]:
        """All raw lines so far."""
        return [line for batch in self.batches for line in batch.raws]

    @property
    def ids(self) -> list[str]:
        """All ids so far."""
        return [identifier for batch in self.batches for identifier in batch.ids]

    def restart(self, source: Source, **options: Any) -> Reading:
        """Close and begin again with what the checkpoint has."""
        self.source.close()
        return Reading(source, self.positions.restarted(), clock=self.clock, **options)


class SourceContract:
    """Inherit, and give the fixture ``subject``."""

    @pytest.fixture
    def subject(self) -> Subject:
        """Give the kind of source under test."""
        raise NotImplementedError

    def test_everything_written_arrives_once_and_in_order(self, subject: Subject) -> None:
        """Lines written before and after opening arrive once, in order, as columns of equal length."""
        subject.write("before")
        reading = Reading(subject.source())
        assert reading.poll() == ["before"]
        for number in range(3000):
            subject.write(f"line {number}")
        reading.after(2)
        assert reading.lines == ["before", *(f"line {number}" for number in range(3000))]
        for batch in reading.batches:
            assert batch.severities is None
            assert {len(c) for c in (batch.times, batch.stamps, batch.hashes, batch.resources, batch.offsets)} == {
                len(batch)
            }
        assert len(set(reading.ids)) == len(reading.ids)
        reading.source.close()

    def test_without_room_the_file_waits(self, subject: Subject) -> None:
        """Nothing is read while there is no room, and everything afterwards."""
        reading = Reading(subject.source())
        subject.write("patience")
        reading.clock.advance(1.1)
        assert reading.poll(room=False) == []
        assert not reading.source.exhausted()
        assert reading.poll() == ["patience"]
        reading.source.close()

    def test_a_source_can_be_closed_and_opened_again(self, subject: Subject) -> None:
        """After a restart only what is new arrives."""
        subject.write("one")
        reading = Reading(subject.source())
        assert reading.poll() == ["one"]
        reading = reading.restart(subject.source())
        assert reading.poll() == []
        subject.write("two")
        assert reading.after(2) == ["two"]
        reading.source.close()

    def test_reading_again_from_any_offset_gives_the_same_ids(self, subject: Subject) -> None:
        """Whatever was acknowledged before a crash, the replay gives the same ids for the same lines."""
        for number in range(400):
            subject.write(f"line {number} " + "x" * (number % 50))
        first = Reading(subject.source(), once=True)
        first.poll(ack=False)
        expected = dict(zip(first.lines, first.ids, strict=True))
        first.source.close()
        positions = MemoryPositions()
        seen: set[str] = set()
        while len(seen) < len(expected):
            # A new process each time that reads all and acknowledges a single batch.
            reading = Reading(subject.source(), positions, once=True)
            reading.poll(ack=False)
            assert all(
                expected[line] == identifier for line, identifier in zip(reading.lines, reading.ids, strict=True)
            )
            seen.update(reading.lines[: len(reading.batches[0])])
            positions.ack(reading.batches[0])
            reading.source.close()
            positions = positions.restarted()

    @pytest.mark.parametrize("seed", range(8))
    def test_random_writes_rotations_and_restarts(self, subject: Subject, seed: int) -> None:
        """No line is missing and none comes under two ids, whatever the order of events."""
        rng = random.Random(seed)  # noqa: S311 - events, not secrets
        written: list[str] = []
        arrived: dict[str, str] = {}
        reading = Reading(subject.source())

        def collect() -> None:
            for line, identifier in zip(reading.lines, reading.ids, strict=True):
                assert arrived.setdefault(identifier, line) == line
            reading.batches.clear()

        for step in range(120):
            action = rng.random()
            if action < 0.6:
                for _ in range(rng.randrange(1, 30)):
                    written.append(f"{seed} {step} {len(written)} " + "y" * rng.randrange(300))
                    subject.write(written[-1])
            elif action < 0.7:
                subject.rotate()
            elif action < 0.9:
                reading.after(rng.random() * 3)
                collect()
            else:
                reading.poll(ack=rng.random() < 0.5)
                collect()
                reading = reading.restart(subject.source())
        reading = reading.restart(subject.source())
        reading.after(10)
        collect()
        assert sorted(arrived.values()) == sorted(written)
        assert reading.positions.losses == []
        reading.source.close()
