"""The source ``file``: globs, rotation of all kinds, encodings, long lines, CRI."""

from __future__ import annotations

import gzip
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shipper.errors import ConfigError
from shipper.sources.file import FileConfig, FileSource
from shipper.testing.source_contract import Reading, SourceContract


def source(*include: object, **options: Any) -> FileSource:
    return FileSource(FileConfig(include=[str(path) for path in include], **options))


class FileSubject:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.rotations = 0
        self.path.touch()

    def source(self) -> FileSource:
        return source(self.path)

    def write(self, line: str) -> None:
        with self.path.open("a") as file:
            file.write(line + "\n")

    def rotate(self) -> None:
        siblings = sorted(
            (p for p in self.path.parent.iterdir() if p != self.path), key=lambda p: -int(p.name.rpartition(".")[2])
        )
        for sibling in siblings:
            number = int(sibling.name.rpartition(".")[2])
            sibling.rename(self.path.with_name(f"{self.path.name}.{number + 1}"))
        self.path.rename(self.path.with_name(f"{self.path.name}.1"))
        self.path.touch()


class CopyTruncateSubject(FileSubject):
    def rotate(self) -> None:
        shutil.copy2(self.path, self.path.with_name(f"{self.path.name}.{1000 + self.rotations}"))
        os.truncate(self.path, 0)
        self.rotations += 1


class ArchiveSubject(FileSubject):
    def rotate(self) -> None:
        self.rotations += 1
        target = self.path.with_name(f"{self.path.name}-202611{self.rotations:02d}")
        self.path.rename(target)
        self.path.touch()
        with gzip.open(f"{target}.gz", "wb") as archive:
            archive.write(target.read_bytes())
        status = target.stat()
        os.utime(f"{target}.gz", ns=(status.st_atime_ns, status.st_mtime_ns))
        target.unlink()


class TestFileContract(SourceContract):
    @pytest.fixture
    def subject(self, tmp_path: Path) -> FileSubject:
        return FileSubject(tmp_path / "app.log")


class TestCopyTruncateContract(SourceContract):
    @pytest.fixture
    def subject(self, tmp_path: Path) -> FileSubject:
        return CopyTruncateSubject(tmp_path / "app.log")


class TestArchiveContract(SourceContract):
    @pytest.fixture
    def subject(self, tmp_path: Path) -> FileSubject:
        return ArchiveSubject(tmp_path / "app.log")


@pytest.fixture
def read(tmp_path: Path) -> Iterator[Callable[..., Reading]]:
    open_readings = []

    def start(*include: object, **options: Any) -> Reading:
        config = options.pop("config", {})
        reading = Reading(source(*(include or (tmp_path / "app.log",)), **config), **options)
        open_readings.append(reading)
        return reading

    yield start
    for reading in open_readings:
        reading.source.close()


@pytest.fixture
def app(tmp_path: Path) -> FileSubject:
    return FileSubject(tmp_path / "app.log")


def test_globs_and_exclude(read: Callable[..., Reading], tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("a.log", "b.txt", "deep/er/c.log", "deep/secret.log"):
        (tmp_path / name).write_text(f"{name}\n")
    reading = read(tmp_path / "**" / "*.log", config={"exclude": ["*secret*"]})
    assert sorted(reading.poll()) == ["a.log", "deep/er/c.log"]


def test_resource_of_a_file(read: Callable[..., Reading], app: FileSubject) -> None:
    app.write("x")
    reading = read(config={"service": "shop"})
    reading.poll()
    assert reading.batches[0].resources[0].attributes == {
        "log.file.path": str(app.path),
        "service.name": "shop",
        "host.name": "testhost",
    }
    assert reading.batches[0].times == reading.batches[0].stamps == [0]


def test_file_that_appears_later(read: Callable[..., Reading], tmp_path: Path) -> None:
    reading = read(tmp_path / "*.log")
    assert reading.poll() == []
    (tmp_path / "late.log").write_text("one\n")
    assert reading.after(2.2) == ["one"]


def test_start_at_the_end(read: Callable[..., Reading], app: FileSubject, tmp_path: Path) -> None:
    """What was there is left out, rotated siblings included; what comes is read, also in files that appear."""
    app.write("old sibling")
    app.rotate()
    app.write("old")
    with app.path.open("a") as file:
        file.write("half")
    reading = read(tmp_path / "*.log", config={"start_position": "end"})
    assert reading.poll() == []
    app.write(" a line")
    (tmp_path / "new.log").write_text("from the start\n")
    assert sorted(reading.after(2.2)) == ["from the start", "half a line"]
    again = reading.restart(source(tmp_path / "*.log", start_position="end"))
    assert again.after(2.2) == []
    app.write("more")
    assert again.after(2.2) == ["more"]
    again.source.close()


def test_last_line_without_newline_leaves_after_five_seconds(read: Callable[..., Reading], app: FileSubject) -> None:
    app.path.write_text("one\nunfinished")
    reading = read()
    assert reading.poll() == ["one"]
    assert reading.after(4) == []
    assert reading.after(2) == ["unfinished"]


def test_last_line_without_newline_leaves_at_once_when_asked_to_read_once(
    read: Callable[..., Reading], app: FileSubject
) -> None:
    app.path.write_text("one\nunfinished")
    reading = read(once=True)
    assert reading.poll() == ["one", "unfinished"]
    assert reading.source.exhausted()


def test_unlinked_file_is_read_to_its_last_byte(read: Callable[..., Reading], app: FileSubject) -> None:
    app.write("one")
    reading = read()
    reading.poll()
    with app.path.open("a") as file:
        file.write("two\nlast words")
    app.path.unlink()
    assert reading.after(2.2) == ["two", "last words"]


def test_writer_that_keeps_the_rotated_file_open(read: Callable[..., Reading], app: FileSubject) -> None:
    """Between the rename and the writer's reopening lines go to the old file."""
    reading = read()
    with app.path.open("a", buffering=1) as file:
        file.write("one\n")
        assert reading.after(1.1) == ["one"]
        app.rotate()
        app.write("three")
        assert reading.after(1.1) == ["three"]
        file.write("two\n")
        assert reading.after(1.1) == ["two"]


@pytest.mark.parametrize("when", ["running", "stopped"])
def test_copytruncate_finishes_the_copy_first(
    read: Callable[..., Reading], app: FileSubject, tmp_path: Path, when: str
) -> None:
    subject = CopyTruncateSubject(app.path)
    subject.write("one")
    reading = read()
    reading.poll()
    if when == "stopped":
        reading.source.close()
    subject.write("two")
    subject.rotate()
    subject.write("three")
    if when == "stopped":
        reading = read(positions=reading.positions.restarted())
        assert reading.poll() == ["two", "three"]
    else:
        assert reading.after(1.1) == ["two", "three"]
    assert len(set(reading.ids)) == len(reading.ids)
    assert reading.positions.losses == []


def test_copy_seen_while_it_is_still_empty_is_not_a_new_file(
    read: Callable[..., Reading], app: FileSubject, tmp_path: Path
) -> None:
    app.write("one")
    reading = read()
    reading.poll()
    copy = tmp_path / "app.log.1"
    copy.touch()
    assert reading.after(1.1) == []
    app.write("two")
    copy.write_bytes(app.path.read_bytes())
    app.path.write_text("three\n")
    assert reading.after(2.2) == ["two", "three"]
    assert reading.positions.losses == []


def test_file_rotated_empty_and_written_to_afterwards_is_read(
    read: Callable[..., Reading], app: FileSubject, tmp_path: Path
) -> None:
    app.write("one")
    reading = read()
    reading.poll()
    late = tmp_path / "app.log.1"
    late.touch()
    assert reading.after(2.2) == []
    late.write_text("late\n")
    assert reading.after(1.1) == ["late"]


def test_copytruncate_in_the_middle_of_a_look_doubles_nothing(
    read: Callable[..., Reading], app: FileSubject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.write("one")
    reading = read()
    reading.poll()
    app.write("two")
    (tmp_path / "app.log.2").touch()  # so that the log is looked at
    siblings = reading.source.siblings  # type: ignore[attr-defined]

    def truncated_meanwhile(log: object) -> object:
        if not (tmp_path / "app.log.1").exists():
            (tmp_path / "app.log.1").write_bytes(app.path.read_bytes())
            app.path.write_text("three\n")
        return siblings(log)

    monkeypatch.setattr(reading.source, "siblings", truncated_meanwhile)
    assert reading.after(2.2) == ["two", "three"]
    assert reading.positions.losses == []


def test_copy_that_is_not_a_rotation_is_not_read(
    read: Callable[..., Reading], app: FileSubject, tmp_path: Path
) -> None:
    for number in range(5):
        app.write(f"line {number}")
    reading = read()
    reading.poll()
    shutil.copy(app.path, tmp_path / "app.log.1")
    assert reading.after(3) == []


def test_truncated_and_written_past_the_old_size(read: Callable[..., Reading], app: FileSubject) -> None:
    """The size alone does not tell; the bytes before the offset do."""
    app.write("short")
    reading = read()
    reading.poll()
    app.path.write_text("a much longer first line of the new content\n")
    assert reading.after(1.1) == ["a much longer first line of the new content"]


def test_same_first_line_in_every_generation(read: Callable[..., Reading], app: FileSubject) -> None:
    """A banner makes all heads equal: inode and the bytes before the offset tell the files apart."""
    banner = "=== server started ==="
    expected = []
    reading = read()
    for number in range(4):
        app.write(banner)
        app.write(f"line {number}")
        expected += [banner, f"line {number}"]
        if number % 2:
            reading.after(1.1)
        app.rotate()
    reading = read(positions=reading.positions.restarted())
    reading.after(1.1)
    app.write(banner)
    reading.after(1.1)
    first = [line for r in (reading,) for line in r.lines]
    assert first[-1] == banner
    assert len(set(reading.ids)) == len(reading.ids)


def test_truncated_file_with_the_same_beginning_gets_new_ids(read: Callable[..., Reading], app: FileSubject) -> None:
    app.write("banner")
    app.write("one")
    reading = read()
    reading.poll()
    app.path.write_text("banner\n")
    reading.after(1.1)
    assert reading.lines == ["banner", "one", "banner"]
    assert len(set(reading.ids)) == 3


def test_reused_inode_is_a_new_file(read: Callable[..., Reading], app: FileSubject) -> None:
    app.write("old")
    reading = read()
    reading.poll()
    reading.source.close()
    positions = reading.positions.restarted()
    app.path.write_text("another file, another story\n")
    assert read(positions=positions).poll() == ["another file, another story"]


def test_offset_past_the_end_is_a_new_file(read: Callable[..., Reading], app: FileSubject) -> None:
    for number in range(100):
        app.write(f"line {number}")
    reading = read()
    reading.poll()
    reading.source.close()
    app.path.write_text("x\n")
    assert read(positions=reading.positions.restarted()).poll() == ["x"]


def test_rename_while_stopped_and_id_in_the_archive(
    read: Callable[..., Reading], app: FileSubject, tmp_path: Path
) -> None:
    for number in range(300):
        app.write(f"line {number}")
    reading = read()
    batches = list(reading.source.poll(lambda _: True))
    for batch in batches:
        reading.positions.ack(batch)
    reading.source.close()
    app.write("unread")
    subject = ArchiveSubject(app.path)
    subject.rotate()
    app.write("live")
    again = read(positions=reading.positions.restarted())
    assert again.poll() == ["unread", "live"]
    assert again.positions.files("source")[0].uid == reading.positions.files("source")[0].uid


def test_bad_bytes_are_kept_as_replacement_characters(read: Callable[..., Reading], app: FileSubject) -> None:
    app.path.write_bytes(b"good \xc3\xa9\nbad \xff\xfe end\n")
    assert read().poll() == ["good é", "bad \ufffd\ufffd end"]


def test_byte_order_mark_and_carriage_returns(read: Callable[..., Reading], app: FileSubject) -> None:
    app.path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n\r\n")
    assert read().poll() == ["one", "two", ""]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_encodings(read: Callable[..., Reading], app: FileSubject, encoding: str) -> None:
    """U+010A and U+0A0A have newline bytes inside them in UTF-16."""
    text = "café\nsecond ÿ\n" if encoding == "latin-1" else "café Ċ\n\u0a0a second 😀\n"
    app.path.write_bytes(text.encode(encoding))
    reading = read(config={"encoding": encoding})
    assert reading.poll() == text.split("\n")[:-1]
    assert len(set(reading.ids)) == 2


def test_unknown_encoding_is_refused() -> None:
    with pytest.raises(ConfigError, match="utf-9"):
        source("/x", encoding="utf-9")


@pytest.mark.parametrize("chunked", [False, True])
def test_long_line_is_split_and_marked(read: Callable[..., Reading], app: FileSubject, chunked: bool) -> None:
    size = 300_000 if chunked else 2500
    limit = 130_000 if chunked else 1000
    app.path.write_text("short\n" + "é" * (size // 2) + "\nafter\n")
    reading = read(config={"max_line_bytes": limit})
    lines = reading.poll()
    assert lines[0] == "short"
    assert lines[-1] == "after"
    assert "".join(lines[1:-1]) == "é" * (size // 2)
    marks = [b.marks[i]["log.record.part"] for b in reading.batches if b.marks for i in sorted(b.marks)]
    assert len(marks) == 3
    assert marks[-1] == "3/3"
    assert len(set(reading.ids)) == 5


def test_long_line_is_continued_after_a_restart(read: Callable[..., Reading], app: FileSubject) -> None:
    app.path.write_text("x" * 400_000 + "\nafter\n")
    config = {"max_line_bytes": 150_000}
    reading = read(config=config)
    expected = dict(zip(reading.poll(ack=False), reading.ids, strict=True))
    reading.positions.ack(reading.batches[0])
    again = read(config=config, positions=reading.positions.restarted())
    assert again.poll() == ["x" * 150_000, "x" * 100_000, "after"]
    assert again.ids[1:] == [expected["x" * 100_000], expected["after"]]
    assert again.batches[-1].marks == {0: {"log.record.part": "3/3"}}


def test_hole_of_nul_bytes(read: Callable[..., Reading], app: FileSubject) -> None:
    with app.path.open("wb") as file:
        file.write(b"one\n")
        file.seek(5_000_000)
        file.write(b"two\nthr\n")
    reading = read()
    assert reading.poll() == ["one", "two", "thr"]
    assert reading.batches[-1].offsets[-2:] == [5_000_000, 5_000_004]


def test_fallback_message_over_several_lines(read: Callable[..., Reading], app: FileSubject) -> None:
    app.write("2026-11-22T10:00:00.000Z [error] first")
    app.write("  second line")
    app.write("third line")
    app.write("2026-11-22T10:00:01.000Z [info] next")
    reading = read()
    assert reading.poll() == ["2026-11-22T10:00:00.000Z [error] first\n  second line\nthird line"]
    assert reading.after(0.3) == ["2026-11-22T10:00:01.000Z [info] next"]


def test_plain_parser_joins_nothing(read: Callable[..., Reading], app: FileSubject) -> None:
    app.write("Traceback (most recent call last):")
    app.write('  File "a.py", line 1')
    assert len(read(config={"parser": "plain"}).poll()) == 2


def test_cri_lines(read: Callable[..., Reading], app: FileSubject) -> None:
    app.write("2026-11-22T10:00:00.5Z stdout F one")
    app.write("2026-11-22T10:00:01.000000001Z stdout P two ")
    app.write("2026-11-22T11:00:02+01:00 stderr F beside")
    app.write("2026-11-22T10:00:03Z stdout F halves")
    reading = read()
    assert reading.poll() == ["one", "two halves", "beside"]
    rows = [row for b in reading.batches for row in zip(b.times, b.resources, strict=True)]
    assert [time % 10_000_000_000 for time, _ in rows] == [500_000_000, 1_000_000_001, 2_000_000_000]
    assert [resource.stream for _, resource in rows] == ["stdout", "stdout", "stderr"]


def test_own_file_is_never_read(read: Callable[..., Reading], app: FileSubject) -> None:
    app.write("myself")
    assert read(own_paths=frozenset({str(app.path)})).poll() == []


def test_rotated_names_that_match_the_glob_are_siblings(
    read: Callable[..., Reading], app: FileSubject, tmp_path: Path
) -> None:
    app.write("one")
    app.rotate()
    app.write("two")
    reading = read(tmp_path / "app.log*")
    assert reading.poll() == ["one", "two"]
    assert {r.attributes["log.file.path"] for b in reading.batches for r in b.resources} == {str(app.path)}


def test_numbered_files_without_a_base_are_logs_of_their_own(read: Callable[..., Reading], tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"worker-{number}").write_text(f"{number}\n")
    reading = read(tmp_path / "worker-*")
    assert sorted(reading.poll()) == ["1", "2"]
    for number in (1, 2):
        with (tmp_path / f"worker-{number}").open("a") as file:
            file.write(f"{number} more\n")
    assert sorted(reading.after(1.1)) == ["1 more", "2 more"]
    assert not any(batch.at_risk for batch in reading.batches)


def archive_of(number: int) -> tuple[bytes, bytes]:
    rng = random.Random(number)
    content = b"".join(b"line %d %s\n" % (n, rng.randbytes(20).hex().encode()) for n in range(number))
    return content, gzip.compress(content)


def test_torn_archive_gives_what_it_has_and_the_rest_is_accounted_for_once(
    read: Callable[..., Reading], app: FileSubject, tmp_path: Path
) -> None:
    content, packed = archive_of(5000)
    (tmp_path / "app.log.1.gz").write_bytes(packed[: len(packed) // 2])
    app.write("live")
    reading = read()
    lines = reading.poll() + reading.after(70)
    assert lines[-1] == "live"
    assert 1000 < len(lines) < 4000
    got = len("\n".join(lines[:-1]))
    assert reading.positions.losses == [(f"{app.path}.1.gz", got, got, "archive_damaged")]
    assert content.startswith("\n".join(lines[:-1]).encode())
    again = read(positions=reading.positions.restarted())
    assert again.after(70) == []
    assert again.positions.losses == []


def test_corrupt_archive_gives_what_stands_before_the_fault_and_says_how_much_is_missing(
    read: Callable[..., Reading], app: FileSubject, tmp_path: Path
) -> None:
    content, packed = archive_of(20000)
    at = len(packed) // 2
    (tmp_path / "app.log.1.gz").write_bytes(packed[:at] + bytes(64) + packed[at + 64 :])
    reading = read(once=True)
    lines = reading.poll()
    text = "\n".join(lines).encode()
    sound = 0
    while sound < len(text) and text[sound] == content[sound]:
        sound += 1
    assert sound > 0.49 * len(content)
    reading.after(2)
    [(path, start, end, cause)] = reading.positions.losses
    assert (path, end, cause) == (f"{app.path}.1.gz", len(content), "archive_damaged")
    assert sound <= start < end


def test_archive_that_is_nothing_but_damage_is_accounted_for_once(
    read: Callable[..., Reading], app: FileSubject, tmp_path: Path
) -> None:
    (tmp_path / "app.log.1.gz").write_bytes(gzip.compress(b"x\n")[:10])
    reading = read()
    assert reading.after(70) == []
    assert reading.positions.losses == [(f"{app.path}.1.gz", 0, 0, "archive_damaged")]
    (tmp_path / "app.log.2").write_text("two\n")
    again = read(positions=reading.positions.restarted())
    assert again.after(70) == ["two"]
    assert again.positions.losses == []


def test_archive_that_was_whole_once_is_not_read_again_when_it_is_torn(
    read: Callable[..., Reading], app: FileSubject, tmp_path: Path
) -> None:
    """What was read stays read; what was not is lost, and its size was known."""
    _, packed = archive_of(9000)
    path = tmp_path / "app.log.1.gz"
    path.write_bytes(packed)
    reading = read()
    for batch in reading.source.poll(lambda _: len(reading.batches) < 3):
        reading.batches.append(batch)
        reading.positions.ack(batch)
    given = reading.batches[-1].span.end
    reading.source.close()
    with path.open("r+b") as file:
        file.truncate(2000)
    again = read(positions=reading.positions.restarted())
    assert again.after(70) == []
    [(_, start, end, cause)] = again.positions.losses
    assert (start, cause) == (given, "archive_damaged")
    assert end >= given


def test_archive_that_is_still_being_copied_is_read_to_its_end(read: Callable[..., Reading], tmp_path: Path) -> None:
    content, packed = archive_of(5000)
    path = tmp_path / "backup.gz"
    path.write_bytes(packed[: len(packed) // 2])
    reading = read(path)
    half = reading.poll()
    reading.after(3)
    with path.open("ab") as file:
        file.write(packed[len(packed) // 2 :])
    reading.after(70)
    assert len(half) > 1000
    assert "\n".join(reading.lines).encode() + b"\n" == content
    assert reading.positions.losses == []


def test_bytes_behind_an_archive_are_ignored(read: Callable[..., Reading], app: FileSubject, tmp_path: Path) -> None:
    (tmp_path / "app.log.1.gz").write_bytes(gzip.compress(b"one\n") + gzip.compress(b"two\n") + b"garbage")
    reading = read()
    assert reading.poll() == ["one", "two"]
    reading.after(70)
    assert reading.positions.losses == []


def test_file_that_include_no_longer_names_is_kept_in_the_state_and_not_read(
    read: Callable[..., Reading], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.log", "b.log"):
        (tmp_path / name).write_text("one\n")
    first = read(tmp_path / "*.log")
    assert first.poll() == ["one", "one"]
    for name in ("a.log", "b.log"):
        with (tmp_path / name).open("a") as file:
            file.write("two\n")
    caplog.set_level("INFO")
    second = read(tmp_path / "a.log", positions=first.positions.restarted())
    assert second.after(5) == ["two"]
    assert second.positions.losses == []
    assert [r.getMessage() for r in caplog.records].count(
        "log is no longer asked for; what is known of it is kept"
    ) == 1  # fmt: skip
    third = read(tmp_path / "**" / "*.log", positions=second.positions.restarted())
    assert third.after(2) == ["two"]


@pytest.mark.parametrize("include", ["app.log", "a*.log", "**/app.*", "app.log*"])
def test_rotated_file_without_a_live_one_is_still_followed(
    read: Callable[..., Reading], app: FileSubject, tmp_path: Path, include: str
) -> None:
    app.write("one")
    reading = read(tmp_path / include)
    assert reading.poll() == ["one"]
    app.write("two")
    app.path.rename(f"{app.path}.1")
    again = read(tmp_path / include, positions=reading.positions.restarted())
    assert again.after(2) == ["two"]


def test_new_file_with_the_inode_and_the_first_line_of_a_forgotten_one_gets_other_ids(
    read: Callable[..., Reading], app: FileSubject
) -> None:
    """A deploy removes the log, the daemon restarts, and the file system hands the inode out again."""
    app.path.write_text("start\none\n")
    inode = app.path.stat().st_ino
    first = read()
    assert first.poll() == ["start", "one"]
    aside = app.path.rename(app.path.with_name("elsewhere"))
    first.after(70)
    first.source.close()
    second = read(positions=first.positions.restarted())
    assert second.after(5) == []
    second.source.close()
    aside.write_text("start\ntwo\n")
    aside.rename(app.path)
    assert app.path.stat().st_ino == inode
    third = read(positions=second.positions.restarted())
    assert third.after(3) == ["start", "two"]
    assert not set(first.ids) & set(third.ids)
    assert third.positions.losses == []
    aside = app.path.rename(app.path.with_name("elsewhere"))
    third.after(70)
    assert len(third.positions.states) == 1, "only the newest generation is remembered"


def test_new_file_that_begins_like_one_of_which_nothing_was_safe_gets_other_ids(
    read: Callable[..., Reading], app: FileSubject, tmp_path: Path
) -> None:
    app.path.write_text("start\none\n")
    first = read()
    assert first.poll(ack=False) == ["start", "one"]
    first.source.close()
    app.path.rename(tmp_path.parent / f"{tmp_path.name}-elsewhere")
    app.path.write_text("start\none\ntwo\n")
    second = read(positions=first.positions.restarted())
    assert second.after(5) == ["start", "one", "two"]
    assert not set(first.ids) & set(second.ids)
    assert [cause for *_, cause in second.positions.losses] == ["file_vanished"]


def test_directory_that_changes_under_every_look_is_looked_at_again(
    read: Callable[..., Reading], app: FileSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.write("one")
    reading = read()
    reading.poll()
    app.write("two")
    app.rotate()
    app.write("three")
    real, looks = os.stat, [0]

    def vanishing(path: Any, **options: Any) -> os.stat_result:
        if str(path) == str(app.path) and looks[0] < 3:
            looks[0] += 1
            raise FileNotFoundError(path)
        return real(path, **options)

    with monkeypatch.context() as patched:
        patched.setattr("shipper.tailing.rotation.os.stat", vanishing)
        reading.clock.advance(1.1)
        reading.poll()
    assert looks == [3]
    reading.after(3)
    assert reading.lines == ["one", "two", "three"]


def test_read_that_failed_is_tried_again_though_nothing_more_is_written(
    read: Callable[..., Reading], app: FileSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.write("one")
    reading = read()

    def failing(fd: int, count: int, position: int) -> bytes:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr("shipper.tailing.bytes.os.pread", failing)
        assert reading.after(2) == []
        assert reading.source.counts()[1] == 1
    assert reading.after(3) == ["one"]
    assert reading.source.counts()[1] == 0
    assert reading.positions.losses == []


def test_counts_may_be_asked_while_the_reader_finds_new_logs(tmp_path: Path) -> None:
    """The keeper and the HTTP server ask from threads of their own; an error there would end the keeper."""
    source = FileSource(FileConfig(include=[str(tmp_path / "*.log")]))

    class Found:
        @property
        def open_files(self) -> list[object]:
            source.filesets[f"new{len(source.filesets)}"] = Found()  # type: ignore[assignment]
            return []

    source.filesets["first"] = Found()  # type: ignore[assignment]
    assert source.counts() == (0, 0)
