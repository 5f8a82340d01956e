"""The source ``docker`` against logs written as Docker writes them."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shipper.sources.docker import DockerConfig, DockerSource
from shipper.tailing.bytes import SPARE_DESCRIPTORS
from shipper.tailing.container import Selection
from shipper.testing.positions import MemoryPositions
from shipper.testing.source_contract import Reading, SourceContract
from support.docker_log import DockerLog, docker_time

SAMPLES = Path(__file__).parent.parent / "samples" / "containers"


def source(root: Path, **options: Any) -> DockerSource:
    return DockerSource(DockerConfig(path=str(root), **options))


class DockerSubject:
    def __init__(self, root: Path, **options: Any) -> None:
        self.root = root
        self.log = DockerLog(root, **options)

    def source(self) -> DockerSource:
        return source(self.root)

    def write(self, line: str) -> None:
        self.log.write(line)

    def rotate(self) -> None:
        self.log.rotate()


class TestDockerContract(SourceContract):
    @pytest.fixture
    def subject(self, tmp_path: Path) -> Iterator[DockerSubject]:
        subject = DockerSubject(tmp_path, max_file=200)
        yield subject
        subject.log.close()


class TestDockerContractCompressed(SourceContract):
    @pytest.fixture
    def subject(self, tmp_path: Path) -> Iterator[DockerSubject]:
        subject = DockerSubject(tmp_path, max_file=200, compress=True)
        yield subject
        subject.log.close()


@pytest.fixture
def read(tmp_path: Path) -> Iterator[Callable[..., Reading]]:
    """Open a reading of tmp_path; closed at the end."""
    open_readings = []

    def start(**options: Any) -> Reading:
        config = options.pop("config", {})
        reading = Reading(source(tmp_path, **config), **options)
        open_readings.append(reading)
        return reading

    yield start
    for reading in open_readings:
        reading.source.close()


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Callable[..., DockerLog]]:
    logs = []

    def make(**options: Any) -> DockerLog:
        log = DockerLog(tmp_path, **options)
        logs.append(log)
        return log

    yield make
    for log in logs:
        log.close()


def test_samples_of_a_real_engine(read: Callable[..., Reading], tmp_path: Path) -> None:
    shutil.copytree(SAMPLES, tmp_path, dirs_exist_ok=True)
    reading = read(once=True)
    lines = reading.poll()
    assert reading.source.exhausted()
    jobs = [line for line in lines if line.startswith("ts=")]
    assert len(jobs) == len(set(jobs)) > 100
    assert "tty line 0" in lines
    assert "tty line 199" in lines
    assert "y" * 50000 in lines
    assert not any("Env" in r.attributes for b in reading.batches for r in b.resources)
    names = {r.container for b in reading.batches for r in b.resources}
    assert names == {"faildaily-api-1", "faildaily-worker-1", "faildaily-tty-1"}


def test_resource_of_a_container(read: Callable[..., Reading], container: Callable[..., DockerLog]) -> None:
    labels = {"com.docker.compose.project": "shop", "com.docker.compose.service": "web", "team": "red", "x": "y"}
    log = container(name="shop-web-1", image="web:2", labels=labels)
    log.write("hello", "stderr")
    reading = read(config={"labels": ["team"]})
    reading.poll()
    [resource] = reading.batches[0].resources
    assert resource.attributes == {
        "container.id": log.id,
        "container.name": "shop-web-1",
        "container.image.name": "web:2",
        "service.name": "web",
        "container.label.com.docker.compose.project": "shop",
        "container.label.team": "red",
        "log.iostream": "stderr",
        "host.name": "testhost",
    }


def test_renamed_container_is_named_anew(read: Callable[..., Reading], container: Callable[..., DockerLog]) -> None:
    log = container(name="old")
    log.write("one")
    reading = read()
    reading.poll()
    log.configure(name="new")
    log.write("two")
    reading.after(2)
    assert [r.container for b in reading.batches for r in b.resources] == ["old", "new"]


def test_name_from_the_tag_when_the_config_is_unreadable(
    read: Callable[..., Reading], container: Callable[..., DockerLog]
) -> None:
    log = container(config=False, attrs={"tag": "faildaily-app"})
    log.write("one")
    reading = read()
    reading.poll()
    assert reading.batches[0].resources[0].container == "faildaily-app"


def test_short_id_when_nothing_names_the_container(
    read: Callable[..., Reading], container: Callable[..., DockerLog]
) -> None:
    log = container(config=False)
    log.write("one")
    reading = read()
    reading.poll()
    assert reading.batches[0].resources[0].container == log.id[:12]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"include": Selection(names=["api*"])}, ["from api"]),
        ({"exclude": Selection(names=["api*"])}, ["from db"]),
        ({"include": Selection(images=["mysql:*"])}, ["from db"]),
        ({"exclude": Selection(labels={"log": "off"})}, ["from api"]),
    ],
)
def test_include_and_exclude(
    read: Callable[..., Reading], container: Callable[..., DockerLog], options: Any, expected: list[str]
) -> None:
    container(name="api").write("from api")
    container(name="db", image="mysql:8", labels={"log": "off"}).write("from db")
    assert read(config=options).poll() == expected


def test_times_of_every_length(read: Callable[..., Reading], container: Callable[..., DockerLog]) -> None:
    log = container()
    for nanoseconds in (0, 100_000_000, 123_456_789, 999_999_990):
        log.write(f"{nanoseconds}", time_ns=1_700_000_000_000_000_000 + nanoseconds)
    reading = read()
    reading.poll()
    batch = reading.batches[0]
    assert batch.times == batch.stamps == [1_700_000_000_000_000_000 + int(line) for line in batch.raws]


def test_empty_lines_and_control_characters(read: Callable[..., Reading], container: Callable[..., DockerLog]) -> None:
    log = container()
    for text in ("", "a\rb", 'quote " back \\ slash', "\x1b[31mred\x1b[0m", "<é😀>"):
        log.write(text)
    assert read().poll() == ["", "a\rb", 'quote " back \\ slash', "\x1b[31mred\x1b[0m", "<é😀>"]


def test_carriage_return_is_kept_without_a_terminal_and_dropped_with_one(
    read: Callable[..., Reading], container: Callable[..., DockerLog]
) -> None:
    container(name="plain").write("x\r")
    container(name="terminal", tty=True).write("y")
    assert sorted(read().poll()) == ["x\r", "y"]


def test_text_that_ends_in_a_literal_backslash_n(
    read: Callable[..., Reading], container: Callable[..., DockerLog]
) -> None:
    log = container()
    log.write("ends in \\n", newline=False)
    log.write("next")
    assert read().poll() == ["ends in \\n", "next"]


@pytest.mark.parametrize("size", [16383, 16384, 16385, 50000, 200_000])
def test_long_lines_are_whole(read: Callable[..., Reading], container: Callable[..., DockerLog], size: int) -> None:
    log = container()
    log.write("a" * size)
    log.write("after")
    assert read().poll() == ["a" * size, "after"]


def test_fragments_of_both_streams_interleave(
    read: Callable[..., Reading], container: Callable[..., DockerLog]
) -> None:
    log = container()
    out = list(log.fragments("o" * 40000 + "\n"))
    err = list(log.fragments("e" * 40000 + "\n"))
    first, second = log.tick(), log.tick()
    for a, b in zip(out, err, strict=True):
        log.entry(a, "stdout", first)
        log.entry(b, "stderr", second)
    log.write("after")
    reading = read()
    assert reading.poll() == ["o" * 40000, "e" * 40000, "after"]
    assert len({b.span.file for b in reading.batches}) == 1


def test_lines_behind_an_open_fragment_wait_and_the_span_stays_at_it(
    read: Callable[..., Reading], container: Callable[..., DockerLog]
) -> None:
    log = container()
    log.write("before")
    stamp = log.tick()
    log.entry("p" * 16384, "stdout", stamp)
    log.write("other stream", "stderr")
    reading = read()
    assert reading.poll() == ["before"]
    held = reading.batches[-1].span.end
    log.entry("end\n", "stdout", stamp)
    assert reading.after(0.1) == ["p" * 16384 + "end", "other stream"]
    assert reading.batches[-1].span.start == held


def test_fragment_without_its_rest_leaves_after_five_seconds(
    read: Callable[..., Reading], container: Callable[..., DockerLog]
) -> None:
    log = container()
    log.entry("p" * 16384, "stdout", log.tick())
    reading = read()
    assert reading.poll() == []
    assert reading.after(4) == []
    assert reading.after(2) == ["p" * 16384]


@pytest.mark.parametrize("rotated", [False, True])
def test_line_of_a_container_that_is_not_yet_marked_as_running_is_whole(
    read: Callable[..., Reading], container: Callable[..., DockerLog], rotated: bool
) -> None:
    """Docker marks a container as running only after it began to write; until then it looks like one that ended."""
    log = container(max_file=1)
    log.configure(running=False)
    stamp = log.tick()
    log.entry("p" * 16384, "stdout", stamp)
    reading = read()
    assert reading.poll() == []
    if rotated:
        log.rotate()
        assert reading.after(0.2) == []
    log.raw(b'{"log":"end\\n","stream":"stdout",')
    assert reading.after(0.2) == []
    log.configure(running=True)
    log.raw(f'"time":"{docker_time(stamp)}"}}\n'.encode())
    assert reading.after(1.1) == ["p" * 16384 + "end"]


def test_fragment_leaves_soon_when_the_container_has_stopped(
    read: Callable[..., Reading], container: Callable[..., DockerLog]
) -> None:
    log = container()
    log.entry("p" * 16384, "stdout", log.tick())
    reading = read()
    assert reading.poll() == []
    log.configure(running=False)
    assert reading.after(2.2) == ["p" * 16384]


def test_last_words_without_newline_are_complete_at_once(
    read: Callable[..., Reading], container: Callable[..., DockerLog]
) -> None:
    log = container()
    log.write("died mid-li", newline=False)
    log.write("next run", time_ns=log.clock_ns + 5)
    assert read().poll() == ["died mid-li", "next run"]


def test_fragment_of_the_run_before_is_not_glued_to_the_next(
    read: Callable[..., Reading], container: Callable[..., DockerLog]
) -> None:
    log = container()
    log.entry("p" * 16384, "stdout", log.tick())
    log.write("next run")
    assert read().poll() == ["p" * 16384, "next run"]


def test_joined_line_over_the_limit_is_split_and_marked(
    read: Callable[..., Reading], container: Callable[..., DockerLog]
) -> None:
    log = container()
    log.write("z" * 100_000)
    reading = read(config={"max_line_bytes": 40_000})
    lines = reading.poll()
    assert "".join(lines) == "z" * 100_000
    marks = [b.marks[i]["log.record.part"] for b in reading.batches for i in range(len(b))]
    assert marks == ["1/?", "2/?", "3/3"]


@pytest.mark.parametrize("max_file", [1, 5])
@pytest.mark.parametrize("compress", [False, True])
def test_line_across_a_rotation(
    read: Callable[..., Reading], container: Callable[..., DockerLog], max_file: int, compress: bool
) -> None:
    log = container(max_file=max_file, compress=compress)
    reading = read()
    pieces = list(log.fragments("r" * 40000 + "\n"))
    stamp = log.tick()
    log.entry(pieces[0], "stdout", stamp)
    assert reading.after(1.1) == []
    log.rotate()
    log.entry(pieces[1], "stdout", stamp)
    log.write("beside", "stderr")
    log.entry(pieces[2], "stdout", stamp)
    log.write("after")
    assert reading.after(2.2) == ["r" * 40000, "beside", "after"]


def test_line_across_a_rotation_is_not_doubled_after_a_crash(
    read: Callable[..., Reading], container: Callable[..., DockerLog]
) -> None:
    """The older file is safe and the younger is not: its fragments belong to a record that was delivered."""
    log = container(max_file=1)
    reading = read()
    pieces = list(log.fragments("r" * 40000 + "\n"))
    stamp = log.tick()
    log.entry(pieces[0], "stdout", stamp)
    reading.poll()
    log.rotate()
    for piece in pieces[1:]:
        log.entry(piece, "stdout", stamp)
    log.write("after")
    assert reading.after(2.2, ack=False) == ["r" * 40000, "after"]
    reading.positions.ack(reading.batches[0])
    again = read(positions=reading.positions.restarted())
    assert again.after(2.2) == ["after"]


def test_rotation_in_the_middle_of_a_look_passes_no_generation_by(
    read: Callable[..., Reading], container: Callable[..., DockerLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second file takes a name that was looked at before, and would be found only after its successors."""
    log = container(max_file=10)
    log.write("one")
    reading = read(once=True)  # without the watch, which may have opened the file in time
    assert reading.poll() == ["one"]
    for line in ("two", "three"):
        log.rotate()
        log.write(line)
    siblings = reading.source.siblings  # type: ignore[attr-defined]
    moved = []

    def moving(which: object) -> Iterator[object]:
        for sibling in siblings(which):
            yield sibling
            if not moved:
                moved.append(sibling)
                log.rotate()
                log.write("four")

    monkeypatch.setattr(reading.source, "siblings", moving)
    assert reading.after(2.2) == ["two", "three", "four"]
    assert moved


def test_trace_is_one_record_per_stream(read: Callable[..., Reading], container: Callable[..., DockerLog]) -> None:
    log = container()
    trace = ["Traceback (most recent call last):", '  File "a.py", line 1, in <module>', "ValueError: no"]
    for number, line in enumerate(trace):
        log.write(line, "stderr")
        log.write(f"beside {number}")
    log.write("done", "stderr")
    assert read().poll() == ["\n".join(trace), "beside 0", "beside 1", "beside 2", "done"]


def test_open_trace_leaves_soon_after_the_end_of_the_file(
    read: Callable[..., Reading], container: Callable[..., DockerLog]
) -> None:
    log = container()
    log.write("Error: boom")
    log.write("    at f (a.js:1:2)")
    reading = read()
    assert reading.poll() == []
    assert reading.after(0.25) == ["Error: boom\n    at f (a.js:1:2)"]


def test_far_lines_are_no_trace(read: Callable[..., Reading], container: Callable[..., DockerLog]) -> None:
    log = container()
    log.write("Error: boom")
    log.tick(2_000_000_000)
    log.write("    at f (a.js:1:2)")
    assert read(once=True).poll() == ["Error: boom", "    at f (a.js:1:2)"]


def test_equal_lines_at_an_equal_time_stay_apart_and_keep_their_ids(
    read: Callable[..., Reading], container: Callable[..., DockerLog]
) -> None:
    log = container()
    log.write("first")
    stamp = log.tick()
    for _ in range(2000):
        log.write("same", time_ns=stamp)
    reading = read()
    assert len(reading.poll(ack=False)) == 2001
    assert len(set(reading.ids)) == 2001
    times = [time for b in reading.batches for time in b.times]
    assert times[1:4] == [stamp, stamp + 1, stamp + 2]
    reading.positions.ack(reading.batches[0])
    again = read(positions=reading.positions.restarted())
    again.poll()
    assert again.ids == reading.ids[len(reading.batches[0]) :]


def test_ids_without_any_state_are_the_same_in_an_archive(
    read: Callable[..., Reading], container: Callable[..., DockerLog]
) -> None:
    log = container(max_file=9, compress=True)
    for number in range(50):
        log.write(f"line {number}")
    before = read()
    before.poll()
    log.rotate()
    after = read()
    after.poll()
    assert after.lines == before.lines
    assert after.ids == before.ids


@pytest.mark.parametrize("compress", [False, True])
def test_rotations_while_stopped_are_read_oldest_first(
    read: Callable[..., Reading], container: Callable[..., DockerLog], compress: bool
) -> None:
    log = container(max_file=9, compress=compress)
    log.write("0")
    reading = read()
    reading.poll()
    reading.source.close()
    for number in range(1, 40):
        log.write(str(number))
        if number % 10 == 0:
            log.rotate()
    again = read(positions=reading.positions.restarted())
    assert again.poll() == [str(number) for number in range(1, 40)]
    assert again.positions.losses == []


def test_two_rotations_while_the_sink_is_slow(
    read: Callable[..., Reading], container: Callable[..., DockerLog]
) -> None:
    log = container(max_file=9)
    log.write("0")
    reading = read()
    reading.poll()
    for number in range(1, 30):
        log.write(str(number))
        if number % 10 == 0:
            log.rotate()
    reading.clock.advance(1.1)
    assert reading.poll(room=False) == [str(number) for number in range(1, 21)], "rotated files are at risk"
    assert reading.poll() == [str(number) for number in range(21, 30)]


def test_a_finished_archive_is_never_read_again(
    read: Callable[..., Reading], container: Callable[..., DockerLog]
) -> None:
    log = container(max_file=9)
    log.write("one")
    reading = read()
    reading.poll()
    log.rotate()
    log.write("two")
    assert reading.after(3) == ["two"]
    log.archive(1)
    assert reading.after(3) == []
    again = read(positions=reading.positions.restarted())
    assert again.after(3) == []


def test_archive_while_it_is_half_written_is_ignored(
    read: Callable[..., Reading], container: Callable[..., DockerLog]
) -> None:
    log = container(max_file=9)
    for number in range(1000):
        log.write(f"{number} {os.urandom(8).hex()}")
    log.rotate()
    log.archive(1, finish=False)
    log.write("live")
    assert len(read().poll()) == 1001


def test_archive_is_resumed_in_the_middle(read: Callable[..., Reading], container: Callable[..., DockerLog]) -> None:
    log = container(max_file=9)
    for number in range(5000):
        log.write(f"{number}")
    reading = read()
    reading.poll(ack=False)
    for batch in reading.batches[:2]:
        reading.positions.ack(batch)
    delivered = sum(len(batch) for batch in reading.batches[:2])
    log.rotate()
    log.archive(1)
    again = read(positions=reading.positions.restarted())
    assert again.poll() == [str(number) for number in range(delivered, 5000)]


def test_unlinked_file_is_read_to_its_end(read: Callable[..., Reading], container: Callable[..., DockerLog]) -> None:
    log = container(max_file=1)
    log.write("one")
    reading = read()
    reading.poll()
    log.write("two")
    log.rotate()
    log.write("three")
    assert reading.after(1.1) == ["two", "three"]
    assert [b.at_risk for b in reading.batches][-2:] == [True, False]
    reading.after(6)
    assert len(reading.positions.forgotten) == 1


def test_descriptor_of_an_unlinked_file_is_held_until_it_is_safe(
    read: Callable[..., Reading], container: Callable[..., DockerLog]
) -> None:
    log = container(max_file=1)
    log.write("one")
    reading = read()
    reading.poll(ack=False)
    log.rotate()
    reading.after(3, ack=False)
    assert reading.source.counts()[0] == 2
    reading.positions.ack(reading.batches[0])
    reading.after(3)
    assert reading.source.counts()[0] == 1


def test_removed_container_is_read_to_its_end(
    read: Callable[..., Reading], container: Callable[..., DockerLog]
) -> None:
    log = container()
    reading = read()
    log.write("last words")
    log.remove()
    assert reading.after(2) == ["last words"]
    reading.after(3)
    assert reading.source.counts()[0] == 0


def test_container_that_lived_between_two_polls(
    read: Callable[..., Reading], container: Callable[..., DockerLog], tmp_path: Path
) -> None:
    """The watcher holds the file open although its directory is gone before anybody polls."""
    reading = read()
    log = container(name="blink")
    log.write("I was here")
    watch = reading.source._watch
    from support.daemon import eventually

    eventually(lambda: bool(watch.opened), timeout=5)
    log.remove()
    assert reading.after(1.1) == ["I was here"]
    assert reading.batches[0].resources[0].container == "blink"
    assert reading.woken > 0


def test_rescue_gives_what_only_a_descriptor_holds(
    read: Callable[..., Reading], container: Callable[..., DockerLog]
) -> None:
    log = container(max_file=1)
    log.write("one")
    reading = read()
    reading.poll()
    log.write("two")
    log.rotate()
    log.write("three")
    reading.clock.advance(1.1)
    for batch in reading.source.poll(lambda _: False):
        pytest.fail(f"read without room: {batch}")
    assert [line for batch in reading.source.rescue(lambda _: True) for line in batch.raws] == ["two"]


def test_hole_of_nul_bytes_is_skipped(read: Callable[..., Reading], container: Callable[..., DockerLog]) -> None:
    log = container()
    log.rotate()
    for number in range(10):
        log.write(f"old {number}")
    reading = read()
    assert len(reading.poll()) == 10
    os.truncate(log.path, 0)
    reading.after(1.1)
    log.write("after the hole")
    assert log.path.read_bytes().startswith(b"\0")
    assert reading.after(1.1) == ["after the hole"]


def test_truncation_to_zero(read: Callable[..., Reading], container: Callable[..., DockerLog]) -> None:
    log = container()
    log.write("old line that was read")
    reading = read()
    reading.poll()
    os.truncate(log.path, 0)
    assert reading.after(1.1) == []
    log.write("new")
    assert reading.after(1.1) == ["new"]
    assert reading.positions.losses == []


def test_unread_bytes_of_a_truncated_file_are_accounted_as_lost(
    read: Callable[..., Reading], container: Callable[..., DockerLog]
) -> None:
    log = container()
    log.write("read")
    reading = read()
    reading.poll()
    end = reading.batches[-1].span.end
    log.write("never read")
    size = log.path.stat().st_size
    reading.clock.advance(0.1)
    reading.poll(room=False)
    os.truncate(log.path, 0)
    assert reading.after(1.1) == []
    assert [(start, stop) for _, start, stop, _ in reading.positions.losses] == [(end, size)]


def test_file_that_vanished_while_stopped_is_accounted_as_lost(
    read: Callable[..., Reading], container: Callable[..., DockerLog]
) -> None:
    log = container()
    log.write("one")
    reading = read()
    reading.poll()
    log.write("two")
    reading.clock.advance(0.1)
    reading.poll(room=False)
    reading.after(1.1, ack=False)
    reading.batches.clear()
    positions = reading.positions.restarted()
    reading.source.close()
    positions.safe_at = dict.fromkeys(positions.safe_at, (0, 0))
    log.remove()
    again = read(positions=positions)
    again.after(3)
    assert [cause for *_, cause in again.positions.losses] == ["file_vanished"]


def test_torn_line_and_the_one_written_behind_it(
    read: Callable[..., Reading], container: Callable[..., DockerLog]
) -> None:
    log = container()
    log.write("one")
    log.raw(b'{"log":"torn by a cra')
    log.write("two")
    log.write("three")
    reading = read()
    assert reading.poll() == ["one", '{"log":"torn by a cra', "two", "three"]
    assert len(set(reading.ids)) == 4


def test_line_of_garbage_is_kept_as_text(read: Callable[..., Reading], container: Callable[..., DockerLog]) -> None:
    log = container()
    log.write("one")
    log.raw(b"\xff not json\n")
    log.write("two")
    assert read().poll() == ["one", "� not json", "two"]


def test_unfinished_last_entry_waits_until_it_is_whole(
    read: Callable[..., Reading], container: Callable[..., DockerLog]
) -> None:
    log = container()
    log.write("one")
    whole = b'{"log":"two\\n","stream":"stdout","time":"2026-11-22T10:00:00Z"}\n'
    log.raw(whole[:20])
    reading = read()
    assert reading.poll() == ["one"]
    assert reading.after(20) == []
    log.raw(whole[20:])
    assert reading.after(0.1) == ["two"]


def test_more_files_than_may_be_open_leave_descriptors_for_the_rest(
    read: Callable[..., Reading], container: Callable[..., DockerLog]
) -> None:
    """A file that finds no descriptor is reported and waits; the others are read, and the daemon keeps working."""
    logs = [container(name=f"c{number}") for number in range(40)]
    for number, log in enumerate(logs):
        log.write(f"line {number}")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = 4 * SPARE_DESCRIPTORS
    taken = [os.open("/dev/null", os.O_RDONLY)]
    while taken[-1] < allowed - SPARE_DESCRIPTORS - 21:
        taken.append(os.open("/dev/null", os.O_RDONLY))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, limits[1]))
        reading = read()
        lines = reading.poll()
        assert 15 <= len(lines) <= 20
        assert reading.source.counts()[1] == 40 - len(lines)
        taken += [os.open("/dev/null", os.O_RDONLY) for _ in range(SPARE_DESCRIPTORS - 5)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in taken:
            os.close(fd)
    assert sorted([*lines, *reading.after(2)]) == sorted(f"line {number}" for number in range(40))
    assert reading.source.counts()[1] == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file_is_retried(read: Callable[..., Reading], container: Callable[..., DockerLog]) -> None:
    log = container()
    log.write("one")
    log.path.chmod(0)
    reading = read()
    assert reading.poll() == []
    assert reading.source.counts()[1] == 1
    log.path.chmod(0o644)
    os.utime(log.directory)
    assert reading.after(2) == ["one"]


def test_own_file_is_never_read(read: Callable[..., Reading], container: Callable[..., DockerLog]) -> None:
    log = container()
    log.write("myself")
    assert read(own_paths=frozenset({str(log.path)})).poll() == []


def test_root_that_appears_later(tmp_path: Path) -> None:
    reading = Reading(source(tmp_path / "later"))
    reading.poll()
    log = DockerLog(tmp_path / "later")
    log.write("one")
    assert reading.after(2.2) == ["one"]
    log.close()
    reading.source.close()


def test_same_inode_with_other_content_while_stopped(
    read: Callable[..., Reading], container: Callable[..., DockerLog]
) -> None:
    log = container()
    log.write("old")
    reading = read()
    reading.poll()
    reading.source.close()
    os.truncate(log.path, 0)
    for number in range(20):
        log.write(f"new {number}")
    again = read(positions=reading.positions.restarted())
    assert again.poll() == [f"new {number}" for number in range(20)]


def test_idle_containers_are_asked_less_often(
    read: Callable[..., Reading], container: Callable[..., DockerLog]
) -> None:
    container().write("one")
    reading = read()
    reading.poll()
    assert reading.source.idle() < 0.1
    for _ in range(20):
        reading.poll()
    assert reading.source.idle() == 0.5


def test_no_container_starves_another(read: Callable[..., Reading], container: Callable[..., DockerLog]) -> None:
    big, small = container(name="big"), container(name="small")
    for number in range(40_000):
        big.write(f"big {number} " + "x" * 100)
    small.write("small")
    reading = read()
    for position, batch in enumerate(reading.source.poll(lambda _: True)):
        if "small" in batch.raws:
            assert position <= 2
            break
    else:
        pytest.fail("the small one had no turn")


def test_positions_survive_a_copy() -> None:
    positions = MemoryPositions()
    assert positions.restarted().states == {}


def test_unreadable_file_is_counted_tried_again_and_not_called_lost(
    read: Callable[..., Reading], container: Callable[..., DockerLog], tmp_path: Path
) -> None:
    log = container()
    log.write("one")
    reading = read()
    reading.poll()
    log.write("two")
    reading.clock.advance(0.1)
    reading.poll(room=False)
    positions = reading.positions.restarted()
    log.path.rename(tmp_path / "aside")
    log.path.symlink_to(log.path)
    again = read(positions=positions)
    assert again.after(6) == []
    assert again.source.counts()[1] == 1
    assert again.positions.losses == []
    log.path.unlink()
    (tmp_path / "aside").rename(log.path)
    assert again.after(3) == ["two"]
    assert again.source.counts()[1] == 0


def test_torn_last_entry_of_a_stopped_container_is_kept_as_text(
    read: Callable[..., Reading], container: Callable[..., DockerLog]
) -> None:
    log = container()
    log.write("one")
    log.raw(b'{"log":"never finished')
    reading = read()
    assert reading.poll() == ["one"]
    log.configure(running=False)
    assert reading.after(5) == ['{"log":"never finished']


def test_container_that_is_excluded_later_is_left_alone_and_not_called_lost(
    read: Callable[..., Reading], container: Callable[..., DockerLog]
) -> None:
    log = container(name="api")
    log.write("one")
    reading = read()
    reading.poll()
    log.write("two")
    exclude = {"exclude": Selection(names=["api"])}
    again = read(positions=reading.positions.restarted(), config=exclude)
    assert again.after(5) == []
    assert again.positions.losses == []
    third = read(positions=again.positions.restarted())
    assert third.after(2) == ["two"]


def test_own_container_is_never_read(
    read: Callable[..., Reading], container: Callable[..., DockerLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each line of the daemon's own that it read would make it write another."""
    own = container(name="shipper")
    own.write("read 1 line")
    container(name="api").write("hello")
    monkeypatch.setattr("shipper.sources.docker.own_container_id", lambda: own.id[:12])
    reading = read()
    assert reading.poll() == ["hello"]
    own.write("read 2 lines")
    assert reading.after(3) == []


def test_a_line_that_is_being_written_does_not_make_a_rotated_file_pass_for_its_copy(
    read: Callable[..., Reading], container: Callable[..., DockerLog]
) -> None:
    """The kernel shows the first pages of a large write before the rest; long lines look alike there."""
    log = container(max_file=10)
    log.write("y" * 12_000)
    log.write("y" * 12_000)
    reading = read()
    assert len(reading.after(3)) == 2
    log.rotate()
    whole = ('{"log":"' + "y" * 12_000 + '\\n","stream":"stdout","time":"' + docker_time(log.tick()) + '"}\n').encode()
    log.raw(whole[:4096])
    assert reading.after(90) == []  # the rotated file is closed meanwhile, and looked at again and again
    log.raw(whole[4096:])
    assert reading.after(5) == ["y" * 12_000]
    assert reading.positions.losses == []
