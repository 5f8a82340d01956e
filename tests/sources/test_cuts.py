"""Records that time cut: a kill before the checkpoint, more bytes meanwhile, and nothing lost, nothing under two ids."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shipper.clock import SystemClock
from shipper.source import FileState
from shipper.sources.docker import DockerConfig, DockerSource
from shipper.sources.file import FileConfig, FileSource
from shipper.state.checkpoint import Checkpoint
from shipper.state.ledger import Ledger
from shipper.testing.positions import MemoryPositions
from shipper.testing.source_contract import Reading
from support.docker_log import DockerLog

Start = Callable[..., Reading]


@pytest.fixture
def read(tmp_path: Path) -> Iterator[Start]:
    open_readings = []

    def start(positions: MemoryPositions | None = None, **options: Any) -> Reading:
        source = FileSource(FileConfig(include=[str(tmp_path / "app.log")], **options))
        open_readings.append(Reading(source, positions))
        return open_readings[-1]

    yield start
    for reading in open_readings:
        reading.source.close()


@pytest.fixture
def read_docker(tmp_path: Path) -> Iterator[Start]:
    open_readings = []

    def start(positions: MemoryPositions | None = None) -> Reading:
        open_readings.append(Reading(DockerSource(DockerConfig(path=str(tmp_path))), positions))
        return open_readings[-1]

    yield start
    for reading in open_readings:
        reading.source.close()


@pytest.fixture
def container(tmp_path: Path) -> Iterator[DockerLog]:
    log = DockerLog(tmp_path, max_file=3)
    yield log
    log.close()


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def wait(reading: Reading, seconds: float, *, ack: bool = True) -> list[str]:
    """Read to the end of the file, then let time pass there."""
    return reading.poll(ack=ack) + reading.after(seconds, ack=ack)


def sunk(*readings: Reading) -> list[str]:
    """Give what a sink holds that keeps the first record of every id."""
    kept: dict[str, str] = {}
    for reading in readings:
        for identifier, line in zip(reading.ids, reading.lines, strict=True):
            assert kept.setdefault(identifier, line) == line, "an id came with another text"
    return list(kept.values())


@pytest.mark.parametrize("rotated", [False, True])
def test_line_without_end_that_goes_on_after_a_kill(read: Start, tmp_path: Path, rotated: bool) -> None:
    path = tmp_path / "app.log"
    path.write_text("one\nunfinished")
    first = read()
    assert wait(first, 6, ack=False) == ["one", "unfinished"]
    append(path, " business\ntwo\n")
    if rotated:
        path.rename(tmp_path / "app.log.1")
        path.write_text("three\n")
    second = read(first.positions.restarted())
    wait(second, 3)
    assert sunk(first, second) == ["one", "unfinished", " business", "two", *(["three"] if rotated else [])]


def test_line_cut_twice(read: Start, tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    path.write_text("a")
    first = read()
    wait(first, 6, ack=False)
    append(path, "b")
    wait(first, 7, ack=False)
    append(path, "c\n")
    second = read(first.positions.restarted())
    wait(second, 2)
    assert sunk(first, second) == ["a", "b", "c"]


def test_line_without_end_longer_than_a_record(read: Start, tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    path.write_text("x" * 50)
    first = read(max_line_bytes=20)
    assert wait(first, 6, ack=False) == ["x" * 20, "x" * 20, "x" * 10]
    append(path, "yz\n")
    second = read(first.positions.restarted(), max_line_bytes=20)
    wait(second, 2)
    assert sunk(first, second) == ["x" * 20, "x" * 20, "x" * 10, "yz"]
    assert second.batches[-1].marks is None


def test_after_the_checkpoint_the_rest_of_a_cut_line_is_no_part_of_it(read: Start, tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    path.write_text("unfinished")
    first = read()
    wait(first, 6)
    append(path, " business\n")
    second = read(first.positions.restarted())
    assert wait(second, 2) == [" business"]
    assert second.batches[-1].marks is None


def test_trace_cut_by_silence_that_goes_on_after_a_kill(read: Start, tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    path.write_text("Error: boom\n    at one (a.js:1:1)\n")
    first = read()
    assert wait(first, 1, ack=False) == ["Error: boom\n    at one (a.js:1:1)"]
    append(path, "    at two (a.js:2:2)\nnext\n")
    second = read(first.positions.restarted())
    wait(second, 2)
    assert sunk(first, second) == ["Error: boom\n    at one (a.js:1:1)", "    at two (a.js:2:2)", "next"]


def test_fallback_message_cut_by_silence(read: Start, tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    path.write_text("2026-11-22T10:00:00.000Z [error] one\nmore\n")
    first = read(parser="fallback")
    assert len(wait(first, 1, ack=False)) == 1
    append(path, "still more\n2026-11-22T10:00:01.000Z [info] two\n")
    second = read(first.positions.restarted(), parser="fallback")
    wait(second, 2)
    assert sunk(first, second) == [
        "2026-11-22T10:00:00.000Z [error] one\nmore", "still more", "2026-11-22T10:00:01.000Z [info] two"
    ]  # fmt: skip


def test_line_whose_end_is_written_at_the_last_moment_is_not_cut(read: Start, tmp_path: Path) -> None:
    """The size that was seen may be old when the line is read."""
    path = tmp_path / "app.log"
    path.write_text("unfinished")
    reading = read()
    wait(reading, 4)
    reading.clock.advance(1.5)
    polled = reading.source.poll(lambda _: bool(append(path, "") or True))
    source = reading.source
    assert isinstance(source, FileSource)
    source._poll_sizes()
    append(path, " business\nnext")
    source._polled_sizes = [path.stat().st_size]  # the look that came just too early
    lines = [line for batch in polled for line in batch.raws]
    assert [*lines, *reading.poll()] == ["unfinished business"]


def test_fragment_cut_after_five_seconds_whose_rest_comes_after_a_kill(
    read_docker: Start, container: DockerLog
) -> None:
    stamp = container.tick()
    container.entry("p" * 16384, "stdout", stamp)
    first = read_docker()
    assert wait(first, 6, ack=False) == ["p" * 16384]
    container.entry("rest\n", "stdout", stamp)
    second = read_docker(first.positions.restarted())
    wait(second, 2)
    assert sunk(first, second) == ["p" * 16384, "rest"]


def test_fragment_cut_in_one_file_whose_rest_stands_in_the_next(read_docker: Start, container: DockerLog) -> None:
    stamp = container.tick()
    container.entry("p" * 16384, "stdout", stamp)
    first = read_docker()
    wait(first, 6, ack=False)
    container.rotate()
    container.entry("rest\n", "stdout", stamp)
    second = read_docker(first.positions.restarted())
    wait(second, 2)
    assert sunk(first, second) == ["p" * 16384, "rest"]


def test_cut_of_one_stream_leaves_the_other_whole(read_docker: Start, container: DockerLog) -> None:
    container.write("Error: boom", time_ns=container.tick())
    stamp = container.tick()
    container.entry("e" * 16384, "stderr", stamp)
    first = read_docker()
    assert wait(first, 1, ack=False) == ["Error: boom"]
    container.entry("end\n", "stderr", stamp)
    second = read_docker(first.positions.restarted())
    wait(second, 2)
    assert sunk(first, second) == ["Error: boom", "e" * 16384 + "end"]


def test_torn_entry_of_docker_that_is_finished_after_a_kill(read_docker: Start, container: DockerLog) -> None:
    container.write("one")
    container.raw(b'{"log":"torn')
    container.configure(running=False)
    first = read_docker()
    assert wait(first, 5, ack=False) == ["one", '{"log":"torn']
    container.raw(b' line\\n","stream":"stdout","time":"2026-11-22T10:00:00Z"}\n')
    second = read_docker(first.positions.restarted())
    wait(second, 2)
    assert sunk(first, second) == [
        "one", '{"log":"torn', ' line\\n","stream":"stdout","time":"2026-11-22T10:00:00Z"}'
    ]  # fmt: skip


@pytest.mark.parametrize("kept", range(4))
def test_records_of_two_streams_that_interleave_are_not_doubled(
    read_docker: Start, container: DockerLog, kept: int
) -> None:
    """The checkpoint may stand at the first line of one while the other has lines behind it."""
    for text, stream in (
        ("Error: out", "stdout"), ("Error: err", "stderr"), ("    at out (a.js:1:1)", "stdout"), ("done", "stdout"),
        ("    at err (a.js:1:1)", "stderr"),
    ):  # fmt: skip
        container.write(text, stream)
    first = read_docker()
    first.poll(ack=False)
    wait(first, 1, ack=False)
    for batch in first.batches[:kept]:
        first.positions.ack(batch)
    second = read_docker(first.positions.restarted())
    wait(second, 2)
    assert sorted(sunk(first, second)) == [
        "Error: err\n    at err (a.js:1:1)",
        "Error: out\n    at out (a.js:1:1)",
        "done",
    ]


def test_row_of_an_interleaved_record_waits_for_the_open_one_before_its_last_line(
    read_docker: Start, container: DockerLog
) -> None:
    container.write("Error: out", "stdout")
    container.entry("e" * 16384, "stderr", container.tick())
    container.write("    at out (a.js:1:1)", "stdout")
    container.write("done", "stdout")
    reading = read_docker()
    assert wait(reading, 1) == []
    again = read_docker(reading.positions.restarted())
    assert wait(again, 6) == ["Error: out\n    at out (a.js:1:1)", "e" * 16384, "done"]


class _Failing(MemoryPositions):
    broken = True

    def anchor(self, key: int, start: int, end: int, time_ns: int) -> None:
        if self.broken:
            raise sqlite3.OperationalError("database or disk is full")
        super().anchor(key, start, end, time_ns)


def test_cut_record_waits_while_the_state_cannot_be_written(read: Start, tmp_path: Path) -> None:
    (tmp_path / "app.log").write_text("Error: boom\n")
    positions = _Failing()
    reading = read(positions)
    assert wait(reading, 3) == []
    assert not reading.source.exhausted()
    positions.broken = False
    assert wait(reading, 1) == ["Error: boom"]


def test_cuts_are_kept_beside_dated_ranges_and_go_when_they_are_passed(tmp_path: Path) -> None:
    """A dated range may start where a record was cut; the cut right at the offset is still known."""
    ledger = Ledger(Checkpoint(tmp_path / "state"), ["a"], SystemClock())
    state = FileState(
        key=0, source="s", path="p", device=1, inode=2, uid="u", head=3, head_size=4
    )  # fmt: skip
    key = ledger.add(state).key
    ledger.anchor(key, 10, 10, 0)
    ledger.anchor(key, 10, 20, 222)
    ledger._checkpoint.close()
    again = Ledger(Checkpoint(tmp_path / "state"), ["a"], SystemClock())
    assert sorted(again.anchors(key)) == [(10, 10, 0), (10, 20, 222)]
    again.close()
