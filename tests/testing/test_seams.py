"""The fake clock, the faulty file system and the builders."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shipper.clock import Clock
from shipper.fs import FileSystem
from shipper.testing.batches import make_batch, make_resource, random_batch
from shipper.testing.clock import FakeClock, JumpingClock
from shipper.testing.filesystem import Crash, FaultyFileSystem


def test_fake_clock_moves_only_when_told() -> None:
    clock: Clock = FakeClock(start_ns=5)
    assert (clock.monotonic(), clock.time_ns()) == (0.0, 5)
    clock.advance(1.5)
    assert (clock.monotonic(), clock.time_ns()) == (1.5, 5 + 1_500_000_000)


def wait_in_thread(clock: FakeClock, event: threading.Event, seconds: float) -> tuple[threading.Thread, list[bool]]:
    result: list[bool] = []
    thread = threading.Thread(target=lambda: result.append(clock.wait(event, seconds)))
    thread.start()
    clock.settle()
    return thread, result


def test_wait_ends_when_the_clock_is_advanced_past_it() -> None:
    clock = FakeClock()
    thread, result = wait_in_thread(clock, threading.Event(), 10)
    clock.advance(9)
    assert clock.waiting == 1
    clock.advance(1)
    thread.join(10)
    assert result == [False]


def test_wait_ends_when_the_event_is_set() -> None:
    clock, event = FakeClock(), threading.Event()
    thread, result = wait_in_thread(clock, event, 10)
    event.set()
    thread.join(10)
    assert result == [True]


def test_wait_for_nothing_returns_at_once() -> None:
    assert not FakeClock().wait(threading.Event(), 0)


def test_settle_gives_up() -> None:
    with pytest.raises(TimeoutError):
        FakeClock().settle(timeout=0.01)


def test_jumping_clock_is_there_at_once_and_does_on_the_way_what_falls_due() -> None:
    clock, event, done = JumpingClock(start_ns=5), threading.Event(), list[object]()
    clock.at(7.0, lambda: done.append(("late", clock.monotonic())))
    clock.at(2.0, lambda: done.append(("early", clock.monotonic())))
    clock.on_wait = done.append
    assert not clock.wait(event, 3.0)
    assert done == [3.0, ("early", 2.0)]
    assert (clock.monotonic(), clock.time_ns()) == (3.0, 5 + 3_000_000_000)
    event.set()
    assert clock.wait(event, 3600.0)
    assert done[2:] == [3600.0, ("late", 7.0)]
    assert clock.waits == [3.0, 3600.0]


def test_jumping_clock_does_not_jump_forever() -> None:
    clock = JumpingClock(most=2)
    for _ in range(2):
        clock.wait(threading.Event(), 1.0)
    with pytest.raises(RuntimeError, match="2 waits and no end"):
        clock.wait(threading.Event(), 1.0)


def test_file_system_does_what_it_says(tmp_path: Path) -> None:
    fs = FileSystem()
    path = tmp_path / "a"
    fd = fs.open_append(path)
    try:
        fs.write_all(fd, b"one")
        fs.write_all(fd, b"two")
        fs.fdatasync(fd)
    finally:
        os.close(fd)
    fs.rename(path, tmp_path / "b")
    fs.fsync_dir(tmp_path)
    assert (tmp_path / "b").read_bytes() == b"onetwo"
    fs.unlink(tmp_path / "b")
    assert list(tmp_path.iterdir()) == []
    assert fs.free_bytes(tmp_path) > 0


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[tuple[FaultyFileSystem, int, Path]]:
    fs = FaultyFileSystem()
    fd = fs.open_append(tmp_path / "a")
    yield fs, fd, tmp_path / "a"
    os.close(fd)


def test_full_disk_takes_what_fits(opened: tuple[FaultyFileSystem, int, Path]) -> None:
    fs, fd, path = opened
    fs.space = 5
    with pytest.raises(OSError, match="No space left"):
        fs.write_all(fd, b"1234567")
    assert path.read_bytes() == b"12345"
    assert fs.free_bytes(path) == 0
    fs.space = None
    fs.write_all(fd, b"67")


def test_nth_sync_fails_once(opened: tuple[FaultyFileSystem, int, Path]) -> None:
    fs, fd, path = opened
    fs.fail_sync = 2
    fs.fdatasync(fd)
    with pytest.raises(OSError, match="Input/output"):
        fs.fsync_dir(path.parent)
    fs.fdatasync(fd)


def test_torn_write_leaves_half(opened: tuple[FaultyFileSystem, int, Path]) -> None:
    fs, fd, path = opened
    fs.tear_write = 1
    with pytest.raises(OSError, match="Input/output"):
        fs.write_all(fd, b"1234")
    assert path.read_bytes() == b"12"


@pytest.mark.parametrize("after", range(1, 7))
def test_crash_after_every_operation_in_turn(tmp_path: Path, after: int) -> None:
    fs = FaultyFileSystem(crash_after=after)
    fd = -1
    with pytest.raises(Crash):  # noqa: PT012 - the crash may come at any of these
        try:
            fd = fs.open_append(tmp_path / "a")
            fs.write_all(fd, b"12")
            fs.fdatasync(fd)
            fs.rename(tmp_path / "a", tmp_path / "b")
            fs.fsync_dir(tmp_path)
            fs.unlink(tmp_path / "b")
        finally:
            if fd >= 0:
                os.close(fd)
    assert len(fs.operations) == after
    expected = [("a", b""), ("a", b"1"), ("a", b"12"), ("b", b"12"), ("b", b"12")][after - 1 : after]
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == expected


def test_crash_is_not_caught_by_exception_handlers() -> None:
    assert not issubclass(Crash, Exception)


def test_the_same_call_builds_the_same_ids() -> None:
    assert make_batch(["a", "a"]).ids == make_batch(["a", "a"]).ids
    assert len(set(make_batch(["a"] * 100).ids)) == 100
    assert make_batch(["a"]).ids != make_batch(["a"], start_ns=1).ids


def test_columns_have_equal_length_and_sizes_are_bytes() -> None:
    batch = make_batch(["é", "b"], level=["warn", "info"], attributes=[{"a": 1}, {}])
    assert (batch.size, batch.offsets) == (5, [0, 3])
    assert [record.level for record in batch.records()] == ["warn", "info"]
    assert not make_batch(["a"], parsed=False).parsed


def test_random_batches_repeat() -> None:
    one, two = (list(random_batch(random.Random(3)).records()) for _ in range(2))
    assert [record.id for record in one] == [record.id for record in two]


def test_resources_take_attributes_with_dots() -> None:
    assert make_resource("db", container_image_name="mysql").attributes["container.image.name"] == "mysql"
