"""Which file is which, whatever it is called: renamed, copied, linked, overwritten, packed."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from shipper.sources.file import REMEMBERED, FileConfig, FileSource
from shipper.testing.source_contract import Reading, SourceContract

NAMES_OF_ROTATION = [
    "app-20261120.log",
    "app.2026-11-20.log",
    "app.1.log",
    "app1.log",
    "app.log.bak",
    "app.log.prev",
    "app.log~",
    "app.log.00001",
    "app.log.2026-11-20.1",
    "app.log.2026-11-20_10",
    "app.log.2026-11-20-10",
    "app.log.20261120T101500Z",
    "app.log-20261120-1795168800",
    "app.log-202611201795168800",
    "app.log-1795168800",
    "app.log_20261120",
    "app.log-20112026",
    "backup of app.log",
]


def source(*include: object, **options: Any) -> FileSource:
    return FileSource(FileConfig(include=[str(path) for path in include], **options))


@pytest.fixture
def read() -> Iterator[Callable[..., Reading]]:
    open_readings = []

    def start(*include: object, **options: Any) -> Reading:
        config = options.pop("config", {})
        reading = Reading(source(*include, **config), **options)
        open_readings.append(reading)
        return reading

    yield start
    for reading in open_readings:
        reading.source.close()


@pytest.fixture
def app(tmp_path: Path) -> Path:
    return tmp_path / "app.log"


def append(path: Path, *lines: str) -> None:
    with path.open("a") as file:
        file.writelines(f"{line}\n" for line in lines)


class _Subject:
    """A log whose rotated files are named by numbers before the extension, which the glob names as well."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "app.log"
        self.glob = directory / "*.log"
        self.rotations = 0
        self.path.touch()

    def source(self) -> FileSource:
        return source(self.glob)

    def write(self, line: str) -> None:
        append(self.path, line)

    def rotate(self) -> None:
        self.rotations += 1
        self.path.rename(self.path.with_name(f"app.{self.rotations}.log"))
        self.path.touch()


class _CopyingSubject(_Subject):
    def rotate(self) -> None:
        self.rotations += 1
        shutil.copy2(self.path, self.path.with_name(f"app-{self.rotations}.log"))
        os.truncate(self.path, 0)


class _WinstonSubject(_Subject):
    """``tailable``: every rotated file is renamed once more at each rotation."""

    def rotate(self) -> None:
        for number in range(self.rotations, 0, -1):
            self.path.with_name(f"app{number}.log").rename(self.path.with_name(f"app{number + 1}.log"))
        self.rotations += 1
        self.path.rename(self.path.with_name("app1.log"))
        self.path.touch()


class _PackingSubject(_Subject):
    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.glob = directory / "app*"

    def rotate(self) -> None:
        self.rotations += 1
        target = self.path.with_name(f"app-{self.rotations}.log")
        self.path.rename(target)
        self.path.touch()
        target.with_name(f"{target.name}.xz").write_bytes(lzma.compress(target.read_bytes()))
        target.unlink()


class _KubernetesSubject(_Subject):
    """A link in one directory, to a log that is rotated in another."""

    def __init__(self, directory: Path) -> None:
        (directory / "pods").mkdir()
        (directory / "containers").mkdir()
        self.path = directory / "pods" / "0.log"
        self.path.touch()
        (directory / "containers" / "web.log").symlink_to("../pods/0.log")
        self.glob = directory / "containers" / "*.log"
        self.rotations = 0

    def rotate(self) -> None:
        self.rotations += 1
        self.path.rename(self.path.with_name(f"0.log.20261120-1{self.rotations:05d}"))
        self.path.touch()


class _AnyName:
    kind: type[_Subject]

    @pytest.fixture
    def subject(self, tmp_path: Path) -> _Subject:
        return self.kind(tmp_path)


class TestRenamedWithinTheGlob(_AnyName, SourceContract):
    kind = _Subject


class TestRenamedAgainAndAgain(_AnyName, SourceContract):
    kind = _WinstonSubject


class TestCopiedWithinTheGlob(_AnyName, SourceContract):
    kind = _CopyingSubject


class TestPackedUnderAnOddName(_AnyName, SourceContract):
    kind = _PackingSubject


class TestRotatedBehindALink(_AnyName, SourceContract):
    kind = _KubernetesSubject


# Renamed


@pytest.mark.parametrize("stopped", [False, True], ids=["live", "stopped"])
@pytest.mark.parametrize("pattern", ["app.log", "*"])
@pytest.mark.parametrize("name", NAMES_OF_ROTATION)
def test_a_renamed_file_is_read_on_under_any_name(
    read: Callable[..., Reading], app: Path, name: str, pattern: str, stopped: bool
) -> None:
    append(app, "one", "two")
    reading = read(app.with_name(pattern))
    assert reading.poll() == ["one", "two"]
    if stopped:
        reading.source.close()
    append(app, "three")
    app.rename(app.with_name(name))
    append(app, "four")
    if stopped:
        reading = read(app.with_name(pattern), positions=reading.positions.restarted())
        assert reading.poll() == ["three", "four"]
    else:
        assert reading.after(3) == ["three", "four"]
    assert reading.after(200) == []
    again = reading.restart(source(app.with_name(pattern)))
    assert again.after(3) == []
    assert again.positions.losses == []
    again.source.close()


@pytest.mark.parametrize("stopped", [False, True], ids=["live", "stopped"])
@pytest.mark.parametrize("pattern", ["app.log", "app*"])
@pytest.mark.parametrize("name", NAMES_OF_ROTATION[:-1])
def test_a_copy_that_is_cut_is_read_on_under_any_name(
    read: Callable[..., Reading], app: Path, name: str, pattern: str, stopped: bool
) -> None:
    append(app, "one", "two")
    reading = read(app.with_name(pattern))
    assert reading.poll() == ["one", "two"]
    if stopped:
        reading.source.close()
    append(app, "three")
    shutil.copy2(app, app.with_name(name))
    if not stopped:
        reading.after(2)
    os.truncate(app, 0)
    append(app, "four")
    if stopped:
        reading = read(app.with_name(pattern), positions=reading.positions.restarted())
    reading.after(200)
    assert sorted(reading.lines) == (["four", "three"] if stopped else ["four", "one", "three", "two"])
    assert reading.positions.losses == []


def test_what_a_renamed_log_still_gets_is_read(read: Callable[..., Reading], app: Path) -> None:
    """Nobody makes the log anew: the program writes on under the other name, for hours."""
    append(app, "one")
    reading = read(app.with_name("*.log"))
    assert reading.poll() == ["one"]
    app.rename(app.with_name("web.log"))
    assert reading.after(200) == []
    append(app.with_name("web.log"), "two")
    assert reading.after(3) == ["two"]


def test_a_rotated_file_that_is_written_to_after_it_was_closed_is_read(read: Callable[..., Reading], app: Path) -> None:
    append(app, "one")
    reading = read(app.with_name("*.log"))
    reading.poll()
    app.rename(app.with_name("app.1.log"))
    append(app, "new")
    assert reading.after(200) == ["new"]
    append(app.with_name("app.1.log"), "late")
    assert reading.after(3) == ["late"]


def test_two_logs_that_change_names_are_told_apart(read: Callable[..., Reading], app: Path) -> None:
    other = app.with_name("b.log")
    append(app, "a1")
    append(other, "b1")
    reading = read(app.with_name("*.log"))
    assert sorted(reading.poll()) == ["a1", "b1"]
    reading.source.close()
    append(app, "a2")
    append(other, "b2")
    app.rename(app.with_name("c"))
    other.rename(app)
    app.with_name("c").rename(other)
    again = read(app.with_name("*.log"), positions=reading.positions.restarted())
    again.after(3)
    assert sorted(again.lines) == ["a2", "b2"]


def test_a_new_file_with_the_inode_of_one_that_is_gone_is_another(read: Callable[..., Reading], app: Path) -> None:
    append(app, "one")
    reading = read(app.with_name("*.log"))
    assert reading.poll() == ["one"]
    reading.source.close()
    positions = reading.positions.restarted()
    app.unlink()
    other = app.with_name("other.log")
    append(other, "something else", "two")
    for state in positions.states.values():
        state.device, state.inode = other.stat().st_dev, other.stat().st_ino
    again = read(app.with_name("*.log"), positions=positions)
    again.after(3)
    assert again.lines == ["something else", "two"]
    assert again.batches[0].resources[0].attributes["log.file.path"] == str(other)


# More names than one


def test_hard_links_are_one_file(read: Callable[..., Reading], app: Path) -> None:
    append(app, "one")
    app.with_name("b.log").hardlink_to(app)
    reading = read(app.with_name("*.log"), app)
    assert reading.poll() == ["one"]
    app.with_name("c.log").hardlink_to(app)
    append(app, "two")
    assert reading.after(3) == ["two"]
    app.unlink()
    append(app.with_name("c.log"), "three")
    assert reading.after(100) == ["three"]
    again = reading.restart(source(app.with_name("*.log")))
    assert again.after(3) == []
    again.source.close()


def test_a_link_and_what_it_leads_to_are_one_file(read: Callable[..., Reading], tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "links").mkdir()
    append(tmp_path / "real" / "0.log", "one")
    (tmp_path / "links" / "web.log").symlink_to("../real/0.log")
    reading = read(tmp_path / "links" / "*.log", tmp_path / "**" / "*.log", tmp_path / "real" / "0.log")
    assert reading.poll() == ["one"]
    append(tmp_path / "real" / "0.log", "two")
    assert reading.after(3) == ["two"]


def test_a_link_that_leads_elsewhere_now_is_followed(read: Callable[..., Reading], tmp_path: Path) -> None:
    append(tmp_path / "app-1.log", "one")
    (tmp_path / "current").symlink_to("app-1.log")
    reading = read(tmp_path / "current")
    assert reading.poll() == ["one"]
    append(tmp_path / "app-1.log", "two")
    append(tmp_path / "app-2.log", "three")
    (tmp_path / "new").symlink_to("app-2.log")
    (tmp_path / "new").rename(tmp_path / "current")
    assert reading.after(3) == ["two", "three"]


# Overwritten


def rewritten(path: Path, text: str) -> None:
    """Write a file in place, at a time that is later than before."""
    before = path.stat()
    path.write_text(text)
    while path.stat().st_mtime_ns <= before.st_mtime_ns:
        path.write_text(text)


def test_a_log_that_is_overwritten_with_as_many_bytes_is_read_again(read: Callable[..., Reading], app: Path) -> None:
    app.write_text("run 1\n")
    reading = read(app)
    assert reading.poll() == ["run 1"]
    for number in range(2, 6):
        rewritten(app, f"run {number}\n")
        assert reading.after(3) == [f"run {number}"]
    assert reading.positions.losses == []
    assert len(set(reading.ids)) == 5


def test_a_log_that_is_overwritten_with_the_same_bytes_is_read_again(read: Callable[..., Reading], app: Path) -> None:
    app.write_text("starting\nfailed\n")
    reading = read(app)
    assert reading.poll() == ["starting", "failed"]
    rewritten(app, "starting\nfailed\n")
    assert reading.after(8) == ["starting", "failed"]
    assert reading.after(20) == []
    assert len(set(reading.ids)) == 4


@pytest.mark.parametrize(
    "touch",
    [
        os.utime,
        lambda path: os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 10**9)),
        lambda path: path.chmod(0o600),
    ],
    ids=["touch", "utime", "chmod"],
)
def test_a_log_that_is_only_touched_is_not(
    read: Callable[..., Reading], app: Path, touch: Callable[[Path], None]
) -> None:
    app.write_text("once\n")
    reading = read(app)
    assert reading.poll() == ["once"]
    for _ in range(3):
        touch(app)
        assert reading.after(8) == []


def test_bytes_that_never_were_are_not_lost(read: Callable[..., Reading], app: Path) -> None:
    """An overwritten log that is longer than before did not grow: what is behind the old end is the new one's."""
    app.write_text("first run\n")
    reading = read(app)
    assert reading.poll() == ["first run"]
    app.write_text("second run, with more to say\n")
    assert reading.after(3) == ["second run, with more to say"]
    assert reading.positions.losses == []


def test_bytes_that_were_cut_before_they_were_read_are_lost(read: Callable[..., Reading], app: Path) -> None:
    append(app, "one")
    reading = read(app)
    assert reading.poll() == ["one"]
    append(app, "two", "three")
    assert reading.poll(room=False) == []
    os.truncate(app, 0)
    append(app, "four")
    assert reading.after(3) == ["four"]
    assert reading.positions.losses == [(str(app), 4, 14, "file_truncated")]


def test_a_log_that_was_cut_before_anything_was_read_is_accounted_for(read: Callable[..., Reading], app: Path) -> None:
    app.touch()
    reading = read(app)
    reading.poll()
    append(app, "one", "two")
    assert reading.poll(room=False) == []
    os.truncate(app, 0)
    reading.after(2)
    append(app, "new")
    assert reading.after(3) == ["new"]
    assert reading.positions.losses == [(str(app), 0, 8, "file_truncated")]


# Packed

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": lambda data: zstandard.ZstdCompressor().compress(data),
}


@pytest.mark.parametrize("pattern", ["app.log", "*"])
@pytest.mark.parametrize("suffix", PACKERS)
def test_packed_siblings_are_read_once(read: Callable[..., Reading], app: Path, suffix: str, pattern: str) -> None:
    history = [f"line {number} {'x' * (number % 90)}" for number in range(5000)]
    text = "".join(f"{line}\n" for line in history).encode()
    app.with_name(f"app.log-20261119{suffix}").write_bytes(
        PACKERS[suffix](text[:100_000]) + PACKERS[suffix](text[100_000:])
    )
    os.utime(app.with_name(f"app.log-20261119{suffix}"), (1, 1))
    append(app, "one")
    reading = read(app.with_name(pattern))
    assert reading.poll() == [*history, "one"]
    reading.source.close()
    append(app, "two")
    rotated = app.with_name("app.log-20261120")
    app.rename(rotated)
    append(app, "three")
    rotated.with_name(rotated.name + suffix).write_bytes(PACKERS[suffix](rotated.read_bytes()))
    rotated.unlink()
    again = read(app.with_name(pattern), positions=reading.positions.restarted())
    assert again.after(3) == ["two", "three"]
    assert again.after(100) == []
    assert again.positions.losses == []


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_torn_archive_gives_what_it_has_and_the_rest_is_lost(
    read: Callable[..., Reading], app: Path, suffix: str
) -> None:
    text = b"".join(b"%d %s\n" % (number, os.urandom(40).hex().encode()) for number in range(60_000))
    packed = PACKERS[suffix](text)
    app.touch()
    app.with_name(f"app.log.1{suffix}").write_bytes(packed[: len(packed) // 2])
    reading = read(app, once=True)
    lines = reading.poll()
    reading.after(3)
    assert 100 < len(lines) < 60_000
    assert [line.encode() for line in lines[:-1]] == text.split(b"\n")[: len(lines) - 1]
    assert [cause for *_, cause in reading.positions.losses] == ["archive_damaged"]


@pytest.mark.parametrize("name", ["app.log-20261120", "app.log.1.zst", "old.log", "app.log.1"])
@pytest.mark.parametrize("suffix", PACKERS)
def test_a_packed_file_is_never_text_whatever_its_name(
    read: Callable[..., Reading], app: Path, suffix: str, name: str
) -> None:
    app.with_name(name).write_bytes(PACKERS[suffix](b"packed\n"))
    reading = read(app.with_name("*"))
    reading.after(3)
    assert reading.lines == ["packed"]


UNREADABLE = {
    "lz4": b"\x04\x22\x4d\x18" + bytes(range(256)),
    "zip": b"PK\x03\x04" + bytes(range(256)),
    "compress": b"\x1f\x9d\x90" + bytes(range(256)),
    "7z": b"7z\xbc\xaf\x27\x1c" + bytes(range(256)),
    "tar": b"name\0" + bytes(252) + b"ustar\x0000" + bytes(700),
    "tar.gz": gzip.compress(b"name\0" + bytes(252) + b"ustar\x0000" + bytes(700)),
}


@pytest.mark.parametrize("form", UNREADABLE)
def test_a_format_that_cannot_be_read_is_passed_over_once(
    read: Callable[..., Reading], app: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    append(app, "text")
    packed = app.with_name("app.log.1.packed" if form != "zip" else "history.zip")
    packed.write_bytes(UNREADABLE[form])
    reading = read(app.with_name("*"))
    reading.after(5)
    assert reading.lines == ["text"]
    assert reading.positions.losses == [(str(packed), 0, len(UNREADABLE[form]), "archive_unreadable")]
    again = reading.restart(source(app.with_name("*")))
    again.after(5)
    assert len(again.positions.losses) == 0
    again.source.close()


def test_a_format_that_cannot_be_read_loses_nothing_of_what_was_read(read: Callable[..., Reading], app: Path) -> None:
    append(app, "one")
    reading = read(app)
    assert reading.poll() == ["one"]
    app.rename(app.with_name("app.log.1"))
    append(app, "two")
    assert reading.after(100) == ["two"]
    app.with_name("app.log.1.lz4").write_bytes(UNREADABLE["lz4"])
    app.with_name("app.log.1").unlink()
    assert reading.after(5) == []
    assert reading.positions.losses == []


# Gone, and made again


@pytest.mark.parametrize("text", ["", "zero\n"], ids=["empty", "read"])
@pytest.mark.parametrize("pattern", ["f/*.log", "f/app.log", "**/*.log"])
def test_a_directory_that_is_made_again_is_read_again(
    read: Callable[..., Reading], tmp_path: Path, pattern: str, text: str
) -> None:
    app = tmp_path / "f" / "app.log"
    app.parent.mkdir()
    app.write_text(text)
    reading = read(tmp_path / pattern)
    reading.poll()
    shutil.rmtree(app.parent)
    assert reading.after(6) == []
    app.parent.mkdir()
    app.write_text("one\ntwo\n")
    assert reading.after(4) == ["one", "two"]


def sizes(source: FileSource) -> dict[str, int]:
    return {name: len(value) for name, value in vars(source).items() if hasattr(value, "__len__")}


def test_nothing_is_kept_of_logs_that_are_gone(read: Callable[..., Reading], tmp_path: Path) -> None:
    reading = read(tmp_path / "*" / "*.log")

    def come_and_go(first: int, count: int) -> dict[str, int]:
        for number in range(first, first + count):
            directory = tmp_path / f"d{number}"
            directory.mkdir()
            append(directory / "app.log", f"line {number}")
        reading.after(3)
        for number in range(first, first + count):
            shutil.rmtree(tmp_path / f"d{number}")
        reading.after(80)
        assert isinstance(reading.source, FileSource)
        return sizes(reading.source)

    come_and_go(0, REMEMBERED)
    few = come_and_go(REMEMBERED, 50)
    many = come_and_go(REMEMBERED + 50, 150)
    assert many == few
    assert len(reading.positions.states) <= REMEMBERED
    assert len(reading.lines) == REMEMBERED + 200
