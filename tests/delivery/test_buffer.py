"""The buffer and its spill: order, safety, limits, damage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shipper.clock import SystemClock
from shipper.delivery.buffer import Buffer
from shipper.delivery.spill import Spill
from shipper.fs import FileSystem
from shipper.record import Batch, Resource, Span
from shipper.state.checkpoint import Cursor
from shipper.testing.filesystem import FaultyFileSystem

RESOURCE = Resource("docker", {"container.name": "api", "log.iostream": "stdout"})


def batch(number: int, *, records: int = 2, size: int = 100) -> Batch:
    count = range(records)
    return Batch(
        times=[number * 1000 + i for i in count],
        stamps=[number * 1000 + i for i in count],
        hashes=[(number << 100) + i for i in count],
        raws=[f"{number}.{i}" for i in count],
        resources=[RESOURCE] * records,
        offsets=[number * size + i for i in count],
        severities=[9] * records,
        messages=[f"{number}.{i}" for i in count],
        attributes=[{"big": 2**70, "nested": {"a": [None, 1.5]}} for _ in count],
        span=Span(1, number * size, (number + 1) * size, number),
        size=size,
    )


class Rig:
    """A buffer over a real spill directory, with what it told."""

    def __init__(self, directory: Path, *, memory: int = 600, limit: int = 1 << 20, drop_oldest: bool = False) -> None:
        self.directory = directory
        self.memory, self.limit, self.drop_oldest = memory, limit, drop_oldest
        self.safe: list[int] = []
        self.lost: list[int] = []
        self.cursor = Cursor(0, 0)
        self.fs: FileSystem = FileSystem()
        self.open()

    def open(self) -> None:
        self.spill = Spill(
            self.directory, limit=self.limit, fs=self.fs, cursor=self.cursor, on_lost=lambda _, n: self.lost.append(n)
        )
        self.buffer = Buffer(
            self.spill,
            clock=SystemClock(),
            max_memory=self.memory,
            drop_oldest=self.drop_oldest,
            on_safe=lambda spans: self.safe.extend(span.start // (span.end - span.start) for span in spans),
            on_cursor=lambda cursor: setattr(self, "cursor", cursor),
            on_dropped=self.lost.append,
        )

    def reopen(self) -> None:
        self.buffer.close()
        self.open()

    def ack(self) -> list[Span]:
        acked: list[Span] = []

        def on_acked(spans: Sequence[Span], cursor: Cursor | None) -> None:
            acked.extend(spans)
            self.cursor = cursor or self.cursor

        self.buffer.ack(on_acked)
        return acked

    def take(self, records: int = 4) -> list[str]:
        taken = [raw for one in self.buffer.peek(records=records, size=1 << 20, timeout=0) for raw in one.raws]
        self.ack()
        return taken

    def drain(self) -> list[str]:
        everything: list[str] = []
        while taken := self.take():
            everything += taken
        return everything


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path / "spill")


def raws(*numbers: int) -> list[str]:
    return [f"{number}.{i}" for number in numbers for i in range(2)]


def test_healthy_buffer_writes_nothing_to_disk(rig: Rig) -> None:
    for number in range(3):
        rig.buffer.put(batch(number))
    assert not rig.buffer.room()
    assert rig.drain() == raws(0, 1, 2)
    assert not rig.directory.exists()
    assert rig.safe == []


def test_half_of_the_memory_is_given_at_a_time_so_that_the_reader_can_fill_the_other(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "spill", memory=800)
    for number in range(4):
        rig.buffer.put(batch(number))
    assert not rig.buffer.room()
    assert [len(one) for one in rig.buffer.peek(records=100, size=1 << 20, timeout=0)] == [2, 2]
    rig.ack()
    assert rig.buffer.room()
    assert rig.drain() == raws(2, 3)


def test_text_that_was_parsed_counts_twice(tmp_path: Path) -> None:
    for parsed, fitting in ((True, 2), (False, 4)):
        rig = Rig(tmp_path / f"spill-{parsed}", memory=400)
        for number in range(fitting):
            assert rig.buffer.room()
            one = batch(number)
            rig.buffer.put(one if parsed else msgspec.structs.replace(one, messages=None, attributes=None))
        assert not rig.buffer.room()
        assert len(rig.buffer.peek(records=100, size=1 << 20, timeout=0)) == fitting // 2


def test_put_without_room_spills_everything_in_order_and_reports_it_safe(rig: Rig) -> None:
    for number in range(6):
        rig.buffer.put(batch(number))
    assert rig.safe == [0, 1, 2, 3, 4, 5]
    assert not rig.buffer.room()
    assert rig.drain() == raws(0, 1, 2, 3, 4, 5)
    assert rig.buffer.room()
    assert list(rig.directory.glob("*.seg")) == []


def test_batch_in_flight_while_all_is_spilled_is_acked_once(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "spill", memory=800)
    for number in range(3):
        rig.buffer.put(batch(number))
    assert len(rig.buffer.peek(records=4, size=1000, timeout=0)) == 2
    rig.buffer.spill_all()
    assert rig.ack() == [], "their spans were safe already"
    assert rig.drain() == raws(2)


def test_safe_put_goes_to_disk_though_there_is_room(rig: Rig) -> None:
    rig.buffer.put(batch(0), safe=True)
    assert rig.safe == [0]
    assert rig.drain() == raws(0)


def test_spill_survives_a_restart_with_all_columns(rig: Rig) -> None:
    for number in range(5):
        rig.buffer.put(batch(number))
    rig.take(2)
    rig.reopen()
    (first,) = rig.buffer.peek(records=2, size=1000, timeout=0)
    expected = batch(1)
    assert first.hashes == expected.hashes
    assert first.attributes == expected.attributes
    assert first.resources[0].attributes == RESOURCE.attributes
    assert first.ids == expected.ids
    rig.ack()
    assert rig.drain() == raws(2, 3, 4)


def test_restart_with_an_older_cursor_delivers_again_but_loses_nothing(rig: Rig) -> None:
    for number in range(5):
        rig.buffer.put(batch(number))
    saved = rig.cursor
    rig.take(4)
    rig.cursor = saved
    rig.reopen()
    assert set(raws(2, 3, 4)) <= set(rig.drain())


def test_torn_end_is_cut_off(rig: Rig) -> None:
    for number in range(4):
        rig.buffer.put(batch(number))
    rig.buffer.close()
    (segment,) = rig.directory.glob("*.seg")
    with segment.open("ab") as file:
        file.write(b"SHP1\x50\x00\x00\x00half a frame")
    rig.open()
    rig.buffer.put(batch(4))
    assert rig.drain() == raws(0, 1, 2, 3, 4)
    assert rig.lost == []


def test_damaged_frame_is_counted_and_skipped_not_a_crash_loop(rig: Rig) -> None:
    for number in range(4):
        rig.buffer.put(batch(number))
    rig.buffer.close()
    (segment,) = rig.directory.glob("*.seg")
    data = bytearray(segment.read_bytes())
    data[40] ^= 0xFF
    segment.write_bytes(data)
    rig.open()
    rig.drain()
    assert rig.buffer.empty()
    rig.buffer.put(batch(9))
    assert rig.drain() == raws(9)


def test_block_refuses_further_spill_at_the_limit(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "spill", limit=64 << 10)
    number = 0
    while rig.buffer.can_spill():
        rig.buffer.put(batch(number, records=50))
        number += 1
    assert rig.buffer.spill_bytes <= rig.limit
    assert rig.lost == []
    assert len(rig.drain()) == number * 50


def test_drop_oldest_keeps_the_newest_within_the_limit_and_counts_every_record(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "spill", limit=256 << 10, drop_oldest=True)
    for number in range(600):
        assert rig.buffer.can_spill()
        rig.buffer.put(batch(number, records=50))
        assert rig.buffer.spill_bytes <= rig.limit
    kept = rig.drain()
    assert sum(rig.lost) > 0
    assert len(kept) + sum(rig.lost) == 600 * 50
    assert kept[-1] == "599.49"


@pytest.mark.parametrize("delivered", [True, False])
def test_records_in_the_deliverys_hands_count_as_dropped_only_when_they_are_never_delivered(
    tmp_path: Path, delivered: bool
) -> None:
    rig = Rig(tmp_path / "spill", limit=256 << 10, drop_oldest=True)
    rig.buffer.put(batch(0, records=50), safe=True)
    held = sum(map(len, rig.buffer.peek(records=50, size=1 << 20, timeout=0)))
    for number in range(1, 600):
        rig.buffer.put(batch(number, records=50))
    if delivered:
        rig.ack()
    kept = len(rig.drain()) if delivered else 0
    rig.buffer.close()
    if delivered:
        assert held + kept + sum(rig.lost) == 600 * 50
    else:
        rig.open()
        assert len(rig.drain()) + sum(rig.lost) == 600 * 50


def test_full_disk_while_spilling_leaves_everything_in_memory(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "spill")
    rig.buffer.close()
    rig.fs = FaultyFileSystem(space=rig.limit // 8 + 150)
    rig.open()
    for number in range(3):
        rig.buffer.put(batch(number))
    with pytest.raises(OSError, match="No space"):
        rig.buffer.put(batch(3))
    assert rig.safe == []
    assert rig.drain() == raws(0, 1, 2)


def test_segment_that_cannot_be_made_durable_leaves_the_spill_as_it_was(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "spill")
    rig.buffer.close()
    rig.fs = FaultyFileSystem(fail_sync=1)
    rig.open()
    with pytest.raises(OSError, match="Input/output"):
        rig.buffer.put(batch(0), safe=True)
    assert rig.buffer.empty()
    rig.buffer.put(batch(1), safe=True)
    assert rig.drain() == raws(1)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.sampled_from(["put", "safe", "take", "peek", "ack", "spill", "reopen"]), max_size=40))
def test_any_order_of_steps_gives_every_record_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str]
) -> None:
    """A restart loses only what was in memory, and that was never told safe."""
    rig = Rig(tmp_path_factory.mktemp("buffer") / "spill")
    number = 0
    delivered: list[str] = []
    in_hand: list[str] = []
    for step in steps:
        if step in {"put", "safe"}:
            rig.buffer.put(batch(number), safe=step == "safe")
            number += 1
        elif step == "take":
            in_hand = []
            delivered += rig.take()
        elif step == "peek":
            in_hand = [raw for one in rig.buffer.peek(records=4, size=1 << 20, timeout=0) for raw in one.raws]
        elif step == "ack":
            rig.ack()
            delivered += in_hand
            in_hand = []
        elif step == "spill":
            rig.buffer.spill_all()
        else:
            in_hand = []
            rig.buffer.spill_all()
            rig.reopen()
    delivered += rig.drain()
    rig.buffer.close()
    assert delivered == raws(*range(number))
