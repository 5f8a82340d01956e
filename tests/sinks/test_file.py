"""The file sink: whole batches or nothing, one writer, rotation, exactly once across a crash."""

from __future__ import annotations

import gzip
import os
import resource as limits
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shipper.errors import ConfigError, ParkedError, RetryableError
from shipper.record import SEVERITIES, Record, Resource
from shipper.sink import Sink
from shipper.testing.batches import START_NS, make_batch
from shipper.testing.clock import FakeClock
from shipper.testing.sink_contract import SinkContract
from sinks.file import FileConfig, FileSink


def make(tmp_path: Path, clock: FakeClock | None = None, **options: Any) -> FileSink:
    return FileSink(FileConfig(type="file", path=str(tmp_path / "out.log"), **options), clock=clock)


def resumed(tmp_path: Path, position: str | None, clock: FakeClock | None = None, **options: Any) -> FileSink:
    sink = make(tmp_path, clock, **options)
    sink.resume(position)
    sink.open()
    return sink


def die(sink: FileSink) -> None:
    """What kill -9 leaves: a closed descriptor and nothing else."""
    os.close(sink._fd)
    sink._fd = -1


def lines(tmp_path: Path) -> list[str]:
    return (tmp_path / "out.log").read_text().split("\n")[:-1]


def messages(tmp_path: Path) -> list[str]:
    return [msgspec.json.decode(line)["message"] for line in lines(tmp_path)]


def parse_time(text: str) -> int:
    from datetime import datetime

    whole, _, rest = text.rstrip("Z").partition(".")
    return int(datetime.fromisoformat(whole + "+00:00").timestamp()) * 10**9 + int(rest)


class TestJson(SinkContract):
    exactly_once = True
    example = Path("config/examples/file.yaml")

    def make_sink(self, tmp_path: Path) -> Sink:
        self.directory = tmp_path
        return make(tmp_path, fsync="never")

    def read_back(self, sink: Sink) -> list[Record] | None:
        rows = [msgspec.json.decode(line) for line in (self.directory / "out.log").read_bytes().split(b"\n")[:-1]]
        return [
            Record(
                row["id"], parse_time(row["time"]), SEVERITIES[row["level"]], row["message"], row["attributes"], "",
                Resource(row["source"], row["resource"]), 0,
            )
            for row in rows
        ]  # fmt: skip


class TestText(SinkContract):
    example = Path("config/examples/file.yaml")

    def make_sink(self, tmp_path: Path) -> Sink:
        return make(tmp_path, format="text", fsync="never")

    def read_back(self, sink: Sink) -> list[Record] | None:
        return None


class TestRaw(TestText):
    def make_sink(self, tmp_path: Path) -> Sink:
        return make(tmp_path, format="raw", fsync="never")


def test_raw_gives_the_bytes_the_application_wrote(tmp_path: Path) -> None:
    sink = resumed(tmp_path, None, format="raw")
    assert not sink.wants_parse
    sink.write(make_batch(["a\tb \x1b[1m", "", "at x\n  at y", "cr\r", "é"], parsed=False))
    sink.close()
    assert (tmp_path / "out.log").read_bytes() == "a\tb \x1b[1m\n\nat x\n  at y\ncr\r\né\n".encode()


def test_json_carries_the_raw_line_when_asked(tmp_path: Path) -> None:
    sink = resumed(tmp_path, None, include_raw=True)
    sink.write(make_batch(["parsed"], raws=['{"msg":"parsed"}']))
    sink.close()
    assert msgspec.json.decode(lines(tmp_path)[0])["raw"] == '{"msg":"parsed"}'


@pytest.mark.parametrize("file_format", ["json", "text", "raw"])
@pytest.mark.parametrize("rotate_size", [0, 3_000])
@pytest.mark.parametrize("crashes", [1, 2])
def test_no_line_is_lost_or_doubled_by_crashes(
    tmp_path: Path, file_format: str, rotate_size: int, crashes: int
) -> None:
    """Every prefix of the replay may be acknowledged and saved before the second crash."""
    options = {"format": file_format, "rotate_size": rotate_size, "rotate_keep": 50, "fsync": "never"}
    batches = [make_batch([f"line {i % 3}" for i in range(7)], start_ns=START_NS + n * 10**10) for n in range(6)]
    expected = resumed(tmp_path, None, **(options | {"rotate_size": 0}))
    for batch in batches:
        expected.write(batch)
    expected.close()
    wanted = Counter(lines(tmp_path))
    (tmp_path / "out.log").unlink()

    sink = resumed(tmp_path, None, **options)
    sink.write(batches[0])
    saved, acked = sink.position(), 1
    for batch in batches[1:5]:
        sink.write(batch)
    die(sink)
    for _ in range(crashes - 1):
        sink = resumed(tmp_path, saved, **options)
        for number in (acked, acked + 1):
            sink.write(batches[number])
        saved, acked = sink.position(), acked + 2
        sink.write(batches[acked])
        die(sink)
    sink = resumed(tmp_path, saved, **options)
    for batch in batches[acked:]:
        sink.write(batch)
    assert sink.position().count(":") == 1, "all awaited lines have come"
    sink.close()
    found = Counter(line for path in tmp_path.iterdir() for line in path.read_text().split("\n")[:-1])
    assert found == wanted


def test_a_failed_write_does_not_use_up_the_awaited_lines(tmp_path: Path) -> None:
    sink = resumed(tmp_path, None)
    start = sink.position()
    batch = make_batch(["one", "two"])
    sink.write(batch)
    die(sink)
    sink = resumed(tmp_path, start)
    more = make_batch(["one", "two", "three" * 2_000])
    with file_size_limit(tmp_path, 1_000), pytest.raises(RetryableError):
        sink.write(more)
    sink.open()
    sink.write(more)
    sink.close()
    assert messages(tmp_path) == ["one", "two", "three" * 2_000]


def test_awaited_lines_that_do_not_come_are_forgotten_after_a_minute_of_writes(tmp_path: Path) -> None:
    clock = FakeClock()
    sink = resumed(tmp_path, None, format="raw")
    start = sink.position()
    sink.write(make_batch(["same"]))
    die(sink)
    sink = resumed(tmp_path, start, clock, format="raw")
    clock.advance(1_000)  # nothing was written yet, so the minute has not begun
    sink.write(make_batch(["other"]))
    assert sink.position().count(":") == 2
    clock.advance(61)
    sink.write(make_batch(["same"]))
    sink.close()
    assert lines(tmp_path) == ["same", "other", "same"]


def test_json_without_a_saved_position_knows_its_ids(tmp_path: Path) -> None:
    """The state directory was deleted: all lines come again."""
    sink = resumed(tmp_path, None)
    sink.write(make_batch(["one", "two"]))
    sink.close()
    sink = resumed(tmp_path, None)
    sink.write(make_batch(["one", "two", "three"]))
    sink.close()
    assert messages(tmp_path) == ["one", "two", "three"]


@pytest.mark.parametrize("file_format", ["json", "raw"])
def test_a_line_of_ours_torn_by_a_crash_is_cut_off_and_written_again(tmp_path: Path, file_format: str) -> None:
    sink = resumed(tmp_path, None, format=file_format)
    start = sink.position()
    batch = make_batch(["one", "two two"])
    sink.write(batch)
    whole = lines(tmp_path)
    die(sink)
    path = tmp_path / "out.log"
    os.truncate(path, path.stat().st_size - 4)
    sink = resumed(tmp_path, start, format=file_format)
    sink.write(batch)
    sink.close()
    assert lines(tmp_path) == whole


def test_a_foreign_last_line_is_ended_not_cut(tmp_path: Path) -> None:
    (tmp_path / "out.log").write_text("somebody's notes")
    sink = resumed(tmp_path, None, format="raw")
    sink.write(make_batch(["ours"]))
    sink.close()
    assert lines(tmp_path) == ["somebody's notes", "ours"]


class file_size_limit:  # noqa: N801 - reads as a statement
    """Let the kernel refuse growth past a size, in the middle of a write as a full disk does."""

    def __init__(self, tmp_path: Path, size: int) -> None:
        self.size = size

    def __enter__(self) -> None:
        self.before = limits.getrlimit(limits.RLIMIT_FSIZE)
        self.handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        limits.setrlimit(limits.RLIMIT_FSIZE, (self.size, self.before[1]))

    def __exit__(self, *error: object) -> None:
        limits.setrlimit(limits.RLIMIT_FSIZE, self.before)
        signal.signal(signal.SIGXFSZ, self.handler)


def test_a_write_that_stops_half_way_leaves_the_file_as_before(tmp_path: Path) -> None:
    sink = resumed(tmp_path, None)
    sink.write(make_batch(["first"]))
    before = (tmp_path / "out.log").read_bytes()
    big = make_batch(["x" * 400 for _ in range(10)], start_ns=START_NS + 10**10)
    with file_size_limit(tmp_path, 2_000), pytest.raises(RetryableError, match="the file is as before") as caught:
        sink.write(big)
    assert caught.value.code == "EFBIG"
    assert (tmp_path / "out.log").read_bytes() == before
    sink.open()
    sink.write(big)
    sink.close()
    assert len(messages(tmp_path)) == 11


def test_a_full_disk_is_retryable_and_says_so() -> None:
    if not os.access("/dev/full", os.W_OK):
        pytest.skip("no /dev/full")
    sink = FileSink(FileConfig(type="file", path="/dev/full"))
    with pytest.raises(ParkedError, match="not a regular file"):
        sink.open()


def test_a_second_writer_is_parked_until_the_first_is_gone(tmp_path: Path) -> None:
    first, second = resumed(tmp_path, None), make(tmp_path)
    with pytest.raises(ParkedError, match="another process"):
        second.open()
    first.close()
    second.open()
    second.close()


@pytest.mark.parametrize("how", ["rename", "unlink"])
def test_rotation_by_others_is_followed(tmp_path: Path, how: str) -> None:
    sink = resumed(tmp_path, None)
    sink.write(make_batch(["one"]))
    path = tmp_path / "out.log"
    if how == "rename":
        path.rename(tmp_path / "out.log-20260102")
    else:
        path.unlink()
    sink.write(make_batch(["two"]))
    assert messages(tmp_path) == ["two"]
    assert sink.position().startswith(f"{path.stat().st_ino}:")
    sink.close()


def test_lines_in_a_file_rotated_by_others_are_remembered_too(tmp_path: Path) -> None:
    sink = resumed(tmp_path, None)
    start = sink.position()
    sink.write(make_batch(["one"]))
    (tmp_path / "out.log").rename(tmp_path / "out.log-20260102")
    second = make_batch(["two"], start_ns=START_NS + 5)
    sink.write(second)
    die(sink)
    sink = resumed(tmp_path, start)
    sink.write(make_batch(["one"]))
    sink.write(second)
    sink.close()
    assert messages(tmp_path) == ["two"]


def test_own_rotation_keeps_the_newest(tmp_path: Path) -> None:
    sink = resumed(tmp_path, None, format="raw", rotate_size=10, rotate_keep=2)
    for number in range(5):
        sink.write(make_batch([f"batch {number}"]))
    sink.close()
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert found == {"out.log": "batch 4\n", "out.log.1": "batch 3\n", "out.log.2": "batch 2\n"}


def test_a_gap_in_the_chain_is_used_before_anything_is_deleted(tmp_path: Path) -> None:
    """A shift that failed half-way leaves a gap."""
    (tmp_path / "out.log.1").write_text("b\n")
    (tmp_path / "out.log.3").write_text("a\n")
    sink = resumed(tmp_path, None, format="raw", rotate_size=3, rotate_keep=3)
    sink.write(make_batch(["c"]))
    sink.write(make_batch(["d"]))
    sink.close()
    assert [(tmp_path / f"out.log.{n}").read_text() for n in (1, 2, 3)] == ["c\n", "b\n", "a\n"]


def test_compression_packs_what_has_been_closed_for_a_minute(tmp_path: Path) -> None:
    import time

    clock = FakeClock(time.time_ns())
    sink = resumed(tmp_path, None, clock, format="raw", rotate_size=10, compress=True)
    for number in range(3):
        sink.write(make_batch([f"batch {number}"]))
    assert not list(tmp_path.glob("*.gz")), "a saved position may still name them"
    clock.advance(120)
    sink.write(make_batch(["batch 3"]))
    sink.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.log", "out.log.1", "out.log.2.gz", "out.log.3.gz"]
    packed = tmp_path / "out.log.3.gz"
    assert gzip.decompress(packed.read_bytes()) == b"batch 0\n"
    assert packed.stat().st_mode & 0o777 == 0o640


def test_mode_is_0640_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        resumed(tmp_path, None).close()
    finally:
        os.umask(before)
    assert (tmp_path / "out.log").stat().st_mode & 0o777 == 0o640


def test_a_missing_directory_parks_and_says_what_to_do(tmp_path: Path) -> None:
    sink = make(tmp_path / "missing")
    with pytest.raises(ParkedError, match="see that its directory exists"):
        sink.open()
    with pytest.raises(ParkedError, match="cannot be written"):
        sink.healthcheck()


def test_a_wrong_size_is_told_when_the_config_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rotate_size: not a size: 'big'"):
        make(tmp_path, rotate_size="big")


@pytest.mark.parametrize(("fsync", "expected"), [("batch", 3), ("interval", 2), ("never", 0)])
def test_fsync_is_done_as_promised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsync: str, expected: int) -> None:
    synced = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    clock = FakeClock()
    clock.advance(10)
    sink = resumed(tmp_path, None, clock, fsync=fsync)
    for number in range(3):
        sink.write(make_batch([str(number)]))
    sink.close()
    assert len(synced) == expected


def test_a_failing_sync_leaves_the_file_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = resumed(tmp_path, None)

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(RetryableError, match="Input/output error"):
            sink.write(make_batch(["one"]))
    assert lines(tmp_path) == []
    sink.open()
    sink.write(make_batch(["one"]))
    sink.close()
    assert messages(tmp_path) == ["one"]


_WRITER = """
import sys
from shipper.testing.batches import START_NS, make_batch
from sinks.file import FileConfig, FileSink
path, saved, acked, form = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
sink = FileSink(FileConfig(type="file", path=path, format=form, rotate_size=200_000, rotate_keep=500, fsync="never"))
sink.resume(saved or None)
sink.open()
print("saved", sink.position(), acked, flush=True)
while acked < 400:
    sink.write(make_batch([f"line {acked} {i}" for i in range(200)], start_ns=START_NS + acked * 10**9))
    acked += 1
    if acked % 7 == 0:
        print("saved", sink.position(), acked, flush=True)
print("saved", "done", acked, flush=True)
sink.close()
"""


@pytest.mark.parametrize("file_format", ["json", "raw"])
def test_kill_9_at_random_moments(tmp_path: Path, file_format: str) -> None:
    """A real process is killed in the middle of writes; what it printed last was its checkpoint."""
    import random

    rng = random.Random(7)
    saved, acked, kills = "", "0", 0
    while saved != "done":
        process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path / "out.log"), saved, acked, file_format],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        killer = threading.Timer(rng.uniform(0.2, 0.35) if kills < 8 else 60, process.kill)
        killer.start()
        for line in process.stdout:
            if line.startswith("saved ") and line.endswith("\n"):
                _, saved, acked = line.split()
        process.wait()
        killer.cancel()
        process.stdout.close()
        kills += 1
        if kills > 20:
            pytest.fail("does not come to an end")
    found: Counter[str] = Counter()
    for path in tmp_path.iterdir():
        for line in path.read_text().split("\n")[:-1]:
            found[msgspec.json.decode(line)["message"] if file_format == "json" else line] += 1
    assert found == Counter(f"line {n} {i}" for n in range(400) for i in range(200))


def test_examine_tells_rights_space_and_whether_it_is_being_written(tmp_path: Path) -> None:
    path = tmp_path / "out.log"
    sink = FileSink(FileConfig(type="file", path=str(path)))

    def found() -> dict[str, str]:
        return {finding.what: finding.evidence for finding in sink.examine()}

    assert found().keys() == {"rights", "space"}
    assert not path.exists()
    writer = FileSink(FileConfig(type="file", path=str(path)))
    writer.open()
    assert "being written now" in found()["lock"]
    writer.close()
    assert "nobody else" in found()["lock"]
    lost = FileSink(FileConfig(type="file", path=str(tmp_path / "none" / "out.log")))
    assert [finding.verdict for finding in lost.examine()] == ["fail"]
