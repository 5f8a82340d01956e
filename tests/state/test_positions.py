"""The contract of `Positions`, over the real ledger and the double that tests of sources use: one keeps what the other
promises."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from shipper.clock import SystemClock
from shipper.record import Batch, Resource, Span
from shipper.source import FileState, Positions
from shipper.state.checkpoint import Checkpoint
from shipper.state.ledger import Ledger
from shipper.testing.positions import MemoryPositions


class Kept:
    """Positions, and what a sink, a broken disk and a kill do to them."""

    positions: Positions

    def ack(self, key: int, start: int, end: int, marker: int) -> None:
        raise NotImplementedError

    def restarted(self) -> Positions:
        raise NotImplementedError

    def losses(self) -> list[tuple[str, int, int, str]]:
        raise NotImplementedError

    def fill_disk(self) -> None:
        raise NotImplementedError

    def free_disk(self) -> None:
        raise NotImplementedError


class InLedger(Kept):
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.checkpoint = Checkpoint(directory)
        self.positions = self.ledger = Ledger(self.checkpoint, ["a"], SystemClock())

    def ack(self, key: int, start: int, end: int, marker: int) -> None:
        self.ledger.done("a", [Span(key, start, end, marker)])

    def restarted(self) -> Positions:
        self.checkpoint.close()  # a kill: what was not saved is gone
        return InLedger(self.directory).positions

    def losses(self) -> list[tuple[str, int, int, str]]:
        self.ledger.save()
        return [(loss.path, loss.start, loss.end, loss.cause) for loss in self.checkpoint.losses()]

    def fill_disk(self) -> None:
        # SQLite then says what it says on a full disk.
        db = self.checkpoint._db
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.execute("CREATE TABLE IF NOT EXISTS ballast (data BLOB)")
        pages = db.execute("PRAGMA page_count").fetchone()[0]
        db.execute(f"PRAGMA max_page_count = {pages}")
        with suppress(sqlite3.OperationalError):
            while True:
                db.execute("INSERT INTO ballast VALUES (zeroblob(100))")
        for _ in range(400):
            self.ledger.lost(FileState(-1, "", "x" * 900, 0, 0, "", 0, 0), 0, 1, "ballast")

    def free_disk(self) -> None:
        self.checkpoint._db.execute("PRAGMA max_page_count = 1000000")


class InMemory(Kept):
    def __init__(self) -> None:
        self.positions = self.memory = MemoryPositions()

    def ack(self, key: int, start: int, end: int, marker: int) -> None:
        batch = Batch([], [], [], [], [Resource("s", {})] * 0, [], span=Span(key, start, end, marker))
        self.memory.ack(batch)

    def restarted(self) -> Positions:
        return self.memory.restarted()

    def losses(self) -> list[tuple[str, int, int, str]]:
        return self.memory.losses

    def fill_disk(self) -> None:
        self.memory.failure = sqlite3.OperationalError("database or disk is full")

    def free_disk(self) -> None:
        self.memory.failure = None


@pytest.fixture(params=["ledger", "memory"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Kept:
    makers: dict[str, Callable[[], Kept]] = {"ledger": lambda: InLedger(tmp_path), "memory": InMemory}
    return makers[request.param]()


def state() -> FileState:
    return FileState(key=0, source="s", path="/a.log", device=1, inode=2, uid="u", head=3, head_size=4, size=100)


def test_an_anchor_is_durable_when_it_returns(kept: Kept) -> None:
    """EIO on the state and a kill once stored undated lines twice."""
    key = kept.positions.add(state()).key
    kept.positions.anchor(key, 0, 10, 111)
    kept.positions.anchor(key, 10, 10, 0)
    again = kept.restarted()
    assert sorted(again.anchors(key)) == [(0, 10, 111), (10, 10, 0)]
    assert [found.key for found in again.files("s")] == [key], "with the file it belongs to"


def test_an_anchor_that_cannot_be_written_is_raised_and_unknown(kept: Kept) -> None:
    key = kept.positions.add(state()).key
    kept.positions.anchor(key, 0, 10, 111)
    kept.fill_disk()
    for _ in range(2):
        with pytest.raises(sqlite3.Error, match="full"):
            kept.positions.anchor(key, 10, 20, 222)
        assert kept.positions.anchors(key) == [(0, 10, 111)], "a second try must not find it there"
    kept.free_disk()
    kept.positions.anchor(key, 10, 20, 333)
    assert kept.positions.anchors(key) == [(0, 10, 111), (10, 20, 333)]
    assert kept.restarted().anchors(key) == [(0, 10, 111), (10, 20, 333)]


def test_the_state_that_a_source_has_is_its_own(kept: Kept) -> None:
    mine = kept.positions.add(state())
    kept.ack(mine.key, 0, 40, 7)
    assert (mine.offset, mine.marker) == (0, 0), "nobody changes it under its hands"
    kept.positions.refresh(mine)
    assert (mine.offset, mine.marker) == (40, 7)
    mine.offset, mine.path = 99, "/a.log.1"
    (found,) = kept.positions.files("s")
    assert (found.offset, found.path) == (40, "/a.log")
    kept.positions.update(mine)
    (found,) = kept.positions.files("s")
    assert (found.offset, found.marker, found.path) == (40, 7, "/a.log.1"), "what is safe is not the source's to say"
    found.path = "/other"
    assert kept.positions.files("s")[0].path == "/a.log.1"


def test_what_every_sink_has_is_never_lost(kept: Kept) -> None:
    mine = kept.positions.add(state())
    kept.ack(mine.key, 0, 40, 7)
    kept.positions.lost(mine, 0, 100, "file_vanished")
    kept.positions.lost(mine, 0, 40, "file_vanished")
    kept.positions.lost(mine, 40, 40, "archive_damaged")
    assert kept.losses() == [("/a.log", 40, 100, "file_vanished"), ("/a.log", 40, 40, "archive_damaged")], (
        "an empty range says that nobody knows how much"
    )


def test_a_forgotten_file_is_unknown(kept: Kept) -> None:
    mine = kept.positions.add(state())
    kept.positions.anchor(mine.key, 0, 10, 111)
    kept.positions.forget(mine.key)
    kept.positions.refresh(mine)
    assert kept.positions.files("s") == []
    assert kept.positions.anchors(mine.key) == []
    assert kept.positions.add(state()).key != mine.key


def test_offset_and_marker_are_always_of_one_moment(tmp_path: Path) -> None:
    """The reader once read them while a delivery wrote them, took its file for another, and read it again."""
    kept = InLedger(tmp_path)
    mine = kept.positions.add(state())
    stop = threading.Event()

    def deliver() -> None:
        at = 0
        while not stop.is_set():
            kept.ack(mine.key, at, at + 1, at + 1)
            at += 1

    thread = threading.Thread(target=deliver)
    thread.start()
    try:
        for _ in range(20_000):
            kept.positions.refresh(mine)
            assert mine.offset == mine.marker
            assert all(found.offset == found.marker for found in kept.positions.files("s"))
    finally:
        stop.set()
        thread.join()
    kept.ledger.close()
