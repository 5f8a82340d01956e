"""What a sick disk, a crash or a hand may do to a spill: what is whole is delivered, what is not is counted, once."""

from __future__ import annotations

import os
import random
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from shipper.clock import SystemClock
from shipper.delivery.buffer import Buffer
from shipper.delivery.frames import HEADER_BYTES, headers
from shipper.delivery.spill import Spill, inspect, repair, survey
from shipper.fs import FileSystem
from shipper.record import Batch, Resource, Span
from shipper.state.checkpoint import Cursor
from shipper.testing.batches import make_batch
from shipper.testing.filesystem import Crash, FaultyFileSystem

Damage = Callable[[bytearray, list[tuple[int, int]]], None]


class Disk:
    """A spill directory, what was told of it, and what a state would have saved."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.lost: list[tuple[str, int]] = []
        self.cursor = Cursor(0, 0)
        self.number = 0

    def spill(self, **kwargs: object) -> Spill:
        return Spill(
            self.directory,
            cursor=self.cursor,
            limit=1 << 30,
            fs=FileSystem(),
            on_lost=lambda cause, count: self.lost.append((cause, count)),
            **kwargs,  # type: ignore[arg-type]
        )

    def fill(self, batches: int, *, segments: int = 1, records: int = 10) -> list[str]:
        """Append batches of so many records, spread over segments, and end as a daemon that is killed."""
        spill = self.spill()
        spill._segment_bytes = 1 << 40
        raws = []
        for number in range(batches):
            if number and number % -(-batches // segments) == 0:
                spill._segment_bytes = 1
            raws += self.append(spill, records)
            spill._segment_bytes = 1 << 40
        spill.close()
        return raws

    def append(self, spill: Spill, records: int = 10) -> list[str]:
        texts = [f"{self.number}.{row}" for row in range(records)]
        self.number += 1
        spill.append(make_batch(texts))
        return texts

    def segments(self) -> list[Path]:
        return sorted(self.directory.glob("*.seg"))

    def frames(self, path: Path) -> list[tuple[int, int]]:
        with path.open("rb") as file:
            return [(frame.offset, frame.end) for frame in headers(file, 0, path.stat().st_size)]

    def buffer(self, spill: Spill) -> Buffer:
        return Buffer(
            spill,
            clock=SystemClock(),
            max_memory=1 << 20,
            drop_oldest=False,
            on_safe=lambda _spans: None,
            on_cursor=lambda cursor: setattr(self, "cursor", cursor),
            on_dropped=lambda records: self.lost.append(("dropped", records)),
        )

    def drain(self, *, records: int = 15) -> list[str]:
        """Start anew and deliver everything, in batches of some frames."""
        spill = self.spill()
        buffer = self.buffer(spill)
        found: list[str] = []

        def on_acked(_spans: Sequence[Span], cursor: Cursor | None) -> None:
            self.cursor = cursor or self.cursor

        while not buffer.empty():
            # Looking twice counts nothing twice.
            buffer.peek(records=records, size=1 << 30, timeout=0)
            found += [raw for one in buffer.peek(records=records, size=1 << 30, timeout=0) for raw in one.raws]
            buffer.ack(on_acked)
        buffer.close()
        return found


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    (tmp_path / "state").mkdir()
    return Disk(tmp_path / "state" / "spill" / "x")


def payload_flip(data: bytearray, frames: list[tuple[int, int]]) -> None:
    data[frames[0][0] + HEADER_BYTES + 20] ^= 0xFF


def header_flip(data: bytearray, frames: list[tuple[int, int]]) -> None:
    data[frames[0][0]] ^= 0xFF


def huge_length(data: bytearray, frames: list[tuple[int, int]]) -> None:
    data[frames[0][0] + 4 : frames[0][0] + 8] = b"\xff" * 4


def zeros(data: bytearray, frames: list[tuple[int, int]]) -> None:
    data[frames[0][0] : frames[0][1]] = bytes(frames[0][1] - frames[0][0])


def noise(data: bytearray, frames: list[tuple[int, int]]) -> None:
    data[frames[0][0] : frames[0][1]] = random.Random(1).randbytes(frames[0][1] - frames[0][0])


def garbage_with_a_right_checksum(data: bytearray, frames: list[tuple[int, int]]) -> None:
    start, end = frames[0]
    payload = random.Random(2).randbytes(end - start - HEADER_BYTES)
    data[start + HEADER_BYTES : end] = payload
    data[start + 8 : start + 12] = struct.pack("<I", zlib.crc32(payload))
    data[start + HEADER_BYTES - 4 : start + HEADER_BYTES] = struct.pack(
        "<I", zlib.crc32(bytes(data[start : start + HEADER_BYTES - 4]))
    )


DAMAGES = [payload_flip, header_flip, huge_length, zeros, noise, garbage_with_a_right_checksum]


@pytest.mark.parametrize("segments", [1, 3])
@pytest.mark.parametrize("which", [0, 4, 9])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_one_damaged_frame_costs_its_own_records_and_each_is_counted(
    disk: Disk, damage: Damage, which: int, segments: int
) -> None:
    """One flipped byte in the first of 31 frames once cut 18,000 records off, uncounted."""
    raws = disk.fill(10, segments=segments)
    places = [(path, frame) for path in disk.segments() for frame in disk.frames(path)]
    path, frame = places[which]
    data = bytearray(path.read_bytes())
    damage(data, [frame])
    path.write_bytes(data)
    assert disk.drain() == raws[: which * 10] + raws[which * 10 + 10 :]
    assert disk.lost == [("spill_damaged", 10)]
    assert disk.segments() == []


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_behind_the_cursor_counts_nothing_that_was_delivered(disk: Disk, damage: Damage) -> None:
    raws = disk.fill(10)
    spill = disk.spill()
    buffer = disk.buffer(spill)
    assert [raw for one in buffer.peek(records=40, size=1 << 30, timeout=0) for raw in one.raws] == raws[:40]
    buffer.ack(lambda _spans, cursor: setattr(disk, "cursor", cursor))
    buffer.close()
    (path,) = disk.segments()
    data = bytearray(path.read_bytes())
    damage(data, disk.frames(path)[3:5] if damage is zeros else disk.frames(path)[4:])
    if damage is zeros:
        damage(data, disk.frames(path)[4:])
    path.write_bytes(data)
    assert disk.drain() == raws[50:]
    assert disk.lost == [("spill_damaged", 10)]


def test_a_segment_of_zeros_is_counted_whole(disk: Disk) -> None:
    raws = disk.fill(12, segments=3)
    for path in disk.segments()[1:]:
        path.write_bytes(bytes(path.stat().st_size))
    assert disk.drain() == raws[:40]
    assert sum(count for _, count in disk.lost) == 80


def test_the_only_segment_of_zeros_is_counted_behind_the_cursor(disk: Disk) -> None:
    raws = disk.fill(10)
    spill = disk.spill()
    buffer = disk.buffer(spill)
    buffer.peek(records=30, size=1 << 30, timeout=0)
    buffer.ack(lambda _spans, cursor: setattr(disk, "cursor", cursor))
    buffer.close()
    (path,) = disk.segments()
    path.write_bytes(bytes(path.stat().st_size))
    assert disk.drain() == []
    assert disk.lost == [("spill_damaged", len(raws) - 30)]


@pytest.mark.parametrize("which", [1, 2])
def test_a_segment_that_is_gone_is_counted(disk: Disk, which: int) -> None:
    raws = disk.fill(12, segments=3)
    disk.segments()[which].unlink()
    assert disk.drain() == [raw for row, raw in enumerate(raws) if row // 40 != which]
    assert disk.lost == [("spill_damaged", 40)]


def test_all_segments_gone_are_counted(disk: Disk) -> None:
    disk.fill(12, segments=3)
    for path in disk.segments():
        path.unlink()
    assert disk.drain() == []
    assert disk.lost == [("spill_damaged", 120)]
    assert disk.drain() == []
    assert len(disk.lost) == 1


@pytest.mark.parametrize("cut", [1, 100, 10_000])
def test_a_safe_end_that_is_cut_off_is_damage(disk: Disk, cut: int) -> None:
    raws = disk.fill(10, records=200)
    (path,) = disk.segments()
    kept = sum(end <= path.stat().st_size - cut for _, end in disk.frames(path))
    os.truncate(path, path.stat().st_size - cut)
    assert disk.drain() == raws[: kept * 200]
    assert disk.lost == [("spill_damaged", (10 - kept) * 200)]


def test_what_a_kill_left_half_written_is_cut_off_and_counts_nothing(tmp_path: Path) -> None:
    """After each operation in turn the process dies: what append returned for is there, and nothing is called lost."""
    for nth in range(1, 30):
        disk = Disk(tmp_path / str(nth) / "state" / "spill" / "x")
        disk.directory.parent.parent.mkdir(parents=True)
        spill = Spill(
            disk.directory, cursor=Cursor(0, 0), limit=1 << 30, fs=FaultyFileSystem(crash_after=nth),
            on_lost=lambda *_: None,
        )  # fmt: skip
        safe: list[str] = []
        try:
            for _ in range(8):
                spill._segment_bytes = 1 if spill.end.record == 40 else 1 << 40
                safe += disk.append(spill)
        except Crash:
            pass
        found = disk.drain()
        assert found[: len(safe)] == safe
        assert len(found) <= len(safe) + 10
        assert disk.lost == []


def test_a_torn_append_of_any_length_is_no_loss(disk: Disk) -> None:
    spill = disk.spill()
    raws = [text for _ in range(5) for text in disk.append(spill)]
    (path,) = disk.segments()
    # Written after the frame, so a kill in between leaves the older one.
    whole, end = path.stat().st_size, (disk.directory / "end").read_bytes()
    disk.append(spill)
    spill.close()
    grown = path.read_bytes()
    for size in range(whole + 1, len(grown), 3):
        path.write_bytes(grown[:size])
        (disk.directory / "end").write_bytes(end)
        spill = disk.spill()
        assert spill.size == path.stat().st_size == whole
        spill.close()
    assert disk.drain() == raws
    assert disk.lost == []


def test_without_a_note_of_the_end_a_flip_is_still_no_torn_end(disk: Disk) -> None:
    raws = disk.fill(10)
    (disk.directory / "end").unlink()
    (path,) = disk.segments()
    data = bytearray(path.read_bytes())
    payload_flip(data, disk.frames(path)[9:])
    path.write_bytes(data)
    assert disk.drain() == raws[:90]
    assert disk.lost == [("spill_damaged", 10)]


def test_new_batches_do_not_stand_behind_garbage(disk: Disk) -> None:
    raws = disk.fill(4)
    (path,) = disk.segments()
    data = bytearray(path.read_bytes())
    noise(data, disk.frames(path)[3:])
    path.write_bytes(data)
    spill = disk.spill()
    later = disk.append(spill)
    spill.close()
    assert len(disk.segments()) == 2
    assert disk.drain() == raws[:30] + later
    assert disk.lost == [("spill_damaged", 10)]


def test_strangers_in_the_directory_end_nothing(disk: Disk) -> None:
    raws = disk.fill(4)
    (disk.directory / "0000000000000000.seg").mkdir()
    (disk.directory / "xyz.seg").write_bytes(b"abc")
    (disk.directory / "9999999999999999.seg").write_bytes(b"")
    (disk.directory / "7777777777777777.seg").write_bytes(os.urandom(5_000))
    assert disk.drain() == raws
    spill = disk.spill()
    later = disk.append(spill)
    spill.close()
    assert disk.drain() == later


def test_a_cursor_that_is_not_of_this_spill_delivers_everything(disk: Disk) -> None:
    """As if state.db, or the spill, was put back from a copy."""
    raws = disk.fill(4)
    disk.cursor = Cursor(999_999, 5, 10_000)
    assert disk.drain() == raws
    assert disk.lost == []


def test_an_older_cursor_counts_nothing_as_lost(disk: Disk) -> None:
    raws = disk.fill(12, segments=3)
    saved = disk.cursor
    spill = disk.spill()
    buffer = disk.buffer(spill)
    buffer.peek(records=60, size=1 << 30, timeout=0)
    buffer.ack(lambda _spans, _cursor: None)
    buffer.close()
    disk.cursor = saved
    assert disk.drain() == raws[40:]
    assert disk.lost == []


def test_frames_of_version_0_1_are_read_and_their_damage_is_counted(disk: Disk) -> None:
    raws = disk.fill(6)
    (path,) = disk.segments()
    old = bytearray()
    starts = []
    with path.open("rb") as file:
        data = path.read_bytes()
        for frame in headers(file, 0, len(data)):
            starts.append(len(old))
            payload = data[frame.payload : frame.end]
            old += struct.pack("<4sIII", b"SHP1", len(payload), zlib.crc32(payload), frame.records) + payload
    (disk.directory / "end").unlink()
    old[starts[2] + 30] ^= 0xFF
    path.write_bytes(old)
    disk.cursor = Cursor(1, 0, -1)
    assert survey(disk.directory).records == 60
    spill = disk.spill()
    later = disk.append(spill)
    spill.close()
    assert disk.drain() == raws[:20] + raws[30:] + later
    assert disk.lost == [("spill_damaged", 10)]


@pytest.mark.parametrize("kind", ["deep", "surrogate"])
def test_a_record_that_trips_the_encoder_costs_neither_the_batch_nor_its_line(disk: Disk, kind: str) -> None:
    """A reader that had to spill a deep record once ended the daemon."""
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    batch = make_batch(["a", "the line" if kind == "deep" else "half \ud800", "c"])
    batch.attributes = [{"n": 1}, {"x": deep, "kept": 2} if kind == "deep" else {"k\ud800": "v\udfff"}, {"n": 3}]
    faults: list[int] = []
    spill = disk.spill(on_fault=faults.append)
    spill.append(batch)
    spill.close()
    assert faults == ([1] if kind == "deep" else [])
    ((back, _),) = list(disk.spill().batches())
    assert back.raws == ["a", "the line" if kind == "deep" else "half \ufffd", "c"]
    assert back.attributes is not None
    assert (back.attributes[0], back.attributes[2]) == ({"n": 1}, {"n": 3})
    if kind == "deep":
        assert back.attributes[1] == {"kept": 2, "shipper.fault": "spill: x: RecursionError"}
    else:
        assert back.attributes[1] == {"k\ufffd": "v\ufffd"}
    assert back.ids == batch.ids


def test_files_and_directories_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        (tmp_path / "state").mkdir(mode=0o700)
        Disk(tmp_path / "state" / "spill" / "x").fill(3)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "state").rglob("*")}
    assert modes == {"spill": 0o700, "x": 0o700, "0000000000000001.seg": 0o600, "end": 0o600}


def test_the_names_of_a_new_spill_are_on_the_disk_before_a_batch_counts_as_safe(tmp_path: Path) -> None:
    synced: list[Path] = []

    class Watching(FileSystem):
        def fsync_dir(self, path: Path | str) -> None:
            synced.append(Path(path))
            super().fsync_dir(path)

    (tmp_path / "state").mkdir()
    spill = Spill(tmp_path / "state" / "spill" / "x", cursor=Cursor(0, 0), fs=Watching())
    spill.append(make_batch(["a"]))
    spill.close()
    assert synced == [tmp_path / "state", tmp_path / "state" / "spill", tmp_path / "state" / "spill" / "x"]


def test_inspecting_changes_nothing_and_repair_leaves_what_is_whole(disk: Disk) -> None:
    raws = disk.fill(9, segments=3)
    first, second, _third = disk.segments()
    data = bytearray(second.read_bytes())
    header_flip(data, disk.frames(second)[1:])
    second.write_bytes(data)
    before = {path: path.read_bytes() for path in disk.directory.iterdir()}
    found = inspect(disk.directory, disk.cursor)
    assert (found.batches, found.records, found.lost) == (8, 80, 10)
    assert [damage.path for damage in found.damages] == [second]
    assert {path: path.read_bytes() for path in disk.directory.iterdir()} == before
    (kept,) = repair(disk.directory, disk.cursor)
    assert kept.read_bytes() == bytes(data)
    assert not first.exists()
    again = inspect(disk.directory, disk.cursor)
    assert (again.records, again.lost, again.damages) == (80, 0, [])
    assert disk.drain() == raws[:40] + raws[50:]
    assert disk.lost == []


def test_searching_for_the_next_frame_takes_time_linear_in_the_damage(disk: Disk) -> None:
    """Two MiB of nothing but magic words."""
    disk.fill(1)
    (path,) = disk.segments()
    whole = path.read_bytes()
    path.write_bytes(b"SHP2" * (1 << 19) + whole)
    with path.open("rb") as file:
        (found,) = list(headers(file, 0, path.stat().st_size))
    assert found.offset == 2 << 20


# What is dropped


def test_what_is_dropped_while_memory_moves_to_disk_acks_nothing_else(tmp_path: Path) -> None:
    """64 batches move to a disk that holds few, with the first in flight: each other is delivered or counted."""
    spill = Spill(
        tmp_path / "state" / "spill" / "x", cursor=Cursor(0, 0), limit=1 << 20, fs=FileSystem(),
        on_lost=lambda *_: None,
    )  # fmt: skip
    (tmp_path / "state").mkdir()
    dropped: list[int] = []
    buffer = Buffer(
        spill, clock=SystemClock(), max_memory=64 << 20, drop_oldest=True, on_safe=lambda _spans: None,
        on_cursor=lambda _cursor: None, on_dropped=dropped.append,
    )  # fmt: skip
    noisy = random.Random(3)
    for number in range(64):
        batch = make_batch([f"m{number}-{row} " + noisy.randbytes(3_000).hex() for row in range(10)])
        buffer.put(batch)
    held = sum(map(len, buffer.peek(records=20, size=1 << 30, timeout=0)))
    buffer.spill_all()
    buffer.ack(lambda _spans, _cursor: None)
    delivered = held
    while batches := buffer.peek(records=100, size=1 << 30, timeout=0):
        delivered += sum(map(len, batches))
        buffer.ack(lambda _spans, _cursor: None)
    buffer.close()
    assert dropped
    assert delivered + sum(dropped) == 640


def test_a_move_to_disk_that_fails_lost_nothing_and_says_nothing(tmp_path: Path) -> None:
    fs = FaultyFileSystem()
    (tmp_path / "state").mkdir()
    told: list[int] = []
    spill = Spill(tmp_path / "state" / "spill" / "x", cursor=Cursor(0, 0), limit=1 << 20, fs=fs)
    buffer = Buffer(
        spill, clock=SystemClock(), max_memory=64 << 20, drop_oldest=True, on_safe=lambda _spans: told.append(-1),
        on_cursor=lambda _cursor: None, on_dropped=told.append,
    )  # fmt: skip
    noisy = random.Random(3)
    for number in range(64):
        buffer.put(make_batch([f"m{number}-{row} " + noisy.randbytes(3_000).hex() for row in range(10)]))
    fs.tear_write = 60
    with pytest.raises(OSError, match="Input/output"):
        buffer.spill_all()
    assert told == []
    delivered = 0
    while batches := buffer.peek(records=100, size=1 << 30, timeout=0):
        delivered += sum(map(len, batches))
        buffer.ack(lambda _spans, _cursor: None)
    assert delivered == 640
    buffer.close()


def test_what_was_in_flight_when_it_was_dropped_and_is_peeked_anew_is_counted(tmp_path: Path) -> None:
    """A delivery that begins anew after a fault does not have it any more."""
    (tmp_path / "state").mkdir()
    dropped: list[int] = []
    spill = Spill(tmp_path / "state" / "spill" / "x", cursor=Cursor(0, 0), limit=1 << 20, fs=FileSystem())
    buffer = Buffer(
        spill, clock=SystemClock(), max_memory=1 << 10, drop_oldest=True, on_safe=lambda _spans: None,
        on_cursor=lambda _cursor: None, on_dropped=dropped.append,
    )  # fmt: skip
    noisy = random.Random(3)
    resource = Resource("s", {})
    for number in range(64):
        texts = [f"m{number}-{row} " + noisy.randbytes(3_000).hex() for row in range(10)]
        buffer.put(Batch([1] * 10, [1] * 10, list(range(10)), texts, [resource] * 10, list(range(10)), size=60_000))
        if not number:
            buffer.peek(records=20, size=1 << 30, timeout=0)
    delivered = 0
    while batches := buffer.peek(records=100, size=1 << 30, timeout=0):
        delivered += sum(map(len, batches))
        buffer.ack(lambda _spans, _cursor: None)
    buffer.close()
    assert delivered + sum(dropped) == 640


def test_looking_beside_a_daemon_that_delivers_and_spills_finds_no_damage(disk: Disk) -> None:
    raws = disk.fill(9, segments=3)
    saved = disk.cursor
    spill = disk.spill()
    buffer = disk.buffer(spill)
    seen: list[str] = []

    def meanwhile(batch: Batch) -> None:
        seen.extend(batch.raws)
        buffer.peek(records=20, size=1 << 30, timeout=0)
        buffer.ack(lambda _spans, _cursor: None)
        disk.append(spill)

    found = inspect(disk.directory, saved, meanwhile)
    assert seen == raws
    assert (found.records, found.lost, found.damages) == (90, 0, [])
    buffer.close()
