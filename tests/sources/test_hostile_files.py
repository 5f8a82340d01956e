"""What stands in a directory, in a file or in a line costs that entry, that file or that line; nothing else stops."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from shipper.native import compiled
from shipper.record import FAULT, Batch
from shipper.sources.docker import DockerConfig, DockerSource
from shipper.sources.file import FileConfig, FileSource
from shipper.tailing import dockerjson, following, joiner, paths
from shipper.tailing.decoding import BATCH_RECORDS
from shipper.tailing.paths import NotFollowedError, followed
from shipper.testing.source_contract import Reading
from support.docker_log import DockerLog

CONTAINER = "{0:064x}"


@pytest.fixture
def start() -> Iterator[Callable[..., Reading]]:
    readings = []

    def make(source: FileSource | DockerSource, **options: Any) -> Reading:
        reading = Reading(source, **options)
        readings.append(reading)
        return reading

    yield make
    for reading in readings:
        reading.source.close()


@pytest.fixture
def read(start: Callable[..., Reading]) -> Callable[..., Reading]:
    def make(*include: object, **options: Any) -> Reading:
        return start(FileSource(FileConfig(include=[str(path) for path in include], **options)))

    return make


def append(path: Path, *lines: str) -> None:
    with path.open("a") as file:
        file.writelines(f"{line}\n" for line in lines)


def marks(reading: Reading) -> dict[str, Any]:
    return {batch.raws[row]: attributes for batch in reading.batches for row, attributes in (batch.marks or {}).items()}


# Entries of a directory


def fifo(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        before = Path.cwd()
        os.chdir(path.parent)
        try:
            server.bind(path.name)
        finally:
            os.chdir(before)


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def directory(path: Path) -> None:
    path.mkdir()


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def not_utf8(path: Path) -> None:
    Path(os.fsdecode(os.fsencode(path.parent) + b"/bad\xff.log")).write_text("not shipped\n")


ENTRIES = [fifo, unix_socket, loop, device, directory, dangling, not_utf8]


@pytest.mark.parametrize("name", ["bad.log", "a.log.1", "a.log.2.gz"])
@pytest.mark.parametrize("make", ENTRIES)
def test_a_bad_entry_costs_that_entry(
    read: Callable[..., Reading], tmp_path: Path, make: Callable[[Path], None], name: str
) -> None:
    append(tmp_path / "a.log", "one")
    make(tmp_path / name)
    reading = read(tmp_path / "*.log", tmp_path / name)
    assert reading.poll() == ["one"]
    append(tmp_path / "a.log", "two")
    append(tmp_path / "b.log", "three")
    assert sorted(reading.after(3)) == ["three", "two"]
    (tmp_path / "a.log").rename(tmp_path / "a.log.9")
    append(tmp_path / "a.log", "four")
    assert reading.after(100) == ["four"]
    assert reading.positions.losses == []


@pytest.mark.parametrize("make", [fifo, unix_socket, loop, device, not_utf8])
def test_it_is_said_once_and_no_longer_counted_when_it_is_gone(
    read: Callable[..., Reading], tmp_path: Path, make: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path / "bad.log")
    reading = read(tmp_path / "*.log")
    reading.after(8)
    assert len([record for record in caplog.records if "cannot be read" in record.getMessage()]) == 1
    assert reading.source.counts()[1] == 1
    for path in tmp_path.iterdir():
        path.unlink()
    reading.after(3)
    assert reading.source.counts()[1] == 0
    append(tmp_path / "bad.log", "good")
    assert reading.after(3) == ["good"]


@pytest.mark.parametrize("make", [fifo, loop, device, directory])
def test_a_file_that_becomes_something_else_and_a_file_again(
    read: Callable[..., Reading], tmp_path: Path, make: Callable[[Path], None]
) -> None:
    log = tmp_path / "a.log"
    append(log, "one")
    append(tmp_path / "b.log", "other")
    reading = read(log, tmp_path / "b.log")
    reading.poll()
    log.unlink()
    make(log)
    append(tmp_path / "b.log", "other two")
    assert reading.after(4) == ["other two"]
    if log.is_dir():
        log.rmdir()
    else:
        log.unlink()
    append(log, "two")
    assert reading.after(4) == ["two"]


@pytest.mark.parametrize("make", [fifo, loop, device, directory, dangling])
@pytest.mark.parametrize("name", ["config.v2.json", "{0}-json.log", "{0}-json.log.1", "{0}-json.log.2.gz"])
def test_a_bad_entry_of_a_container_costs_that_entry(
    start: Callable[..., Reading], tmp_path: Path, make: Callable[[Path], None], name: str
) -> None:
    identifier = CONTAINER.format(7)
    bad = tmp_path / identifier
    bad.mkdir()
    make(bad / name.format(identifier))
    if name == "config.v2.json":
        (bad / f"{identifier}-json.log").write_text(
            '{"log":"from the bad one\\n","stream":"stdout","time":"2026-11-22T20:47:54.8Z"}\n'
        )
    good = DockerLog(tmp_path, identifier=CONTAINER.format(1), name="good")
    good.write("one")
    reading = start(DockerSource(DockerConfig(path=str(tmp_path))))
    reading.after(3)
    good.write("two")
    reading.after(3)
    assert [line for line in reading.lines if line != "from the bad one"] == ["one", "two"]
    assert ("from the bad one" in reading.lines) == (name == "config.v2.json")
    good.close()


@pytest.mark.parametrize("content", [b"no JSON", b"[]", b'{"Name": 1}', b'{"Name":"' + b"x" * (8 << 20) + b'"}'])
def test_a_config_that_is_none_costs_the_name(start: Callable[..., Reading], tmp_path: Path, content: bytes) -> None:
    log = DockerLog(tmp_path, identifier=CONTAINER.format(1), name="web")
    log.write("one")
    (tmp_path / CONTAINER.format(1) / "config.v2.json").write_bytes(content)
    reading = start(DockerSource(DockerConfig(path=str(tmp_path))))
    assert reading.after(3) == ["one"]
    assert reading.source.counts()[1] == 1
    log.close()


# Symbolic links


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> int:
    """Be a daemon that is not root's, with a link owner who is neither; needs root to give files away."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    return 65534


def test_a_link_to_what_its_owner_does_not_own_is_not_followed(
    read: Callable[..., Reading], tmp_path: Path, other: int, caplog: pytest.LogCaptureFixture
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("root only\n")
    logs = tmp_path / "logs"
    logs.mkdir()
    os.chown(logs, other, other)
    append(logs / "a.log", "one")
    (logs / "evil.log").symlink_to(secret)
    os.chown(logs / "evil.log", other, other, follow_symlinks=False)
    reading = read(logs / "*.log")
    assert reading.poll() == ["one"]
    (logs / "a.log.1").symlink_to(secret)
    os.chown(logs / "a.log.1", other, other, follow_symlinks=False)
    append(logs / "a.log", "two")
    assert reading.after(3) == ["two"]
    assert "not followed" in caplog.text or "cannot be read" in caplog.text
    always = read(logs / "*.log", follow_symlinks="always")
    always.after(3)
    assert "root only" in always.lines


def test_links_of_root_and_of_who_owns_the_target_are_followed(
    read: Callable[..., Reading], tmp_path: Path, other: int
) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    append(tmp_path / "roots", "root's link")
    append(tmp_path / "theirs", "their own file")
    os.chown(tmp_path / "theirs", other, other)
    (logs / "a.log").symlink_to("../roots")
    (logs / "b.log").symlink_to("../theirs")
    os.chown(logs / "b.log", other, other, follow_symlinks=False)
    reading = read(logs / "*.log")
    assert sorted(reading.poll()) == ["root's link", "their own file"]


@pytest.mark.parametrize("target", ["{0}", "{0}/", "{0}/.", "./../{1}", "{0}/../{1}/"])
def test_a_directory_that_is_a_link_is_judged_as_well(
    read: Callable[..., Reading], tmp_path: Path, other: int, target: str
) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    append(hidden / "app.log", "root only")
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "evil").symlink_to(target.format(hidden, "hidden"))
    os.chown(tree / "evil", other, other, follow_symlinks=False)
    with pytest.raises(NotFollowedError):
        followed(str(tree / "evil" / "app.log"))
    reading = read(tree / "*" / "*.log", tree / "evil" / "app.log")
    assert reading.after(3) == []


def test_a_chain_of_links_is_as_good_as_its_worst(tmp_path: Path, other: int) -> None:
    append(tmp_path / "secret", "root only")
    (tmp_path / "good").symlink_to("secret")
    (tmp_path / "evil").symlink_to("good")
    os.chown(tmp_path / "evil", other, other, follow_symlinks=False)
    (tmp_path / "outer").symlink_to("evil")
    with pytest.raises(NotFollowedError) as caught:
        followed(str(tmp_path / "outer"))
    assert caught.value.filename == str(tmp_path / "evil")
    assert f"chown -h 0 '{tmp_path / 'evil'}'" in caught.value.fix
    assert followed(str(tmp_path / "good")).st_ino == (tmp_path / "secret").stat().st_ino


def test_every_link_is_followed_within_bounds(tmp_path: Path) -> None:
    (tmp_path / "l0").write_text("")
    for number in range(1, 45):
        (tmp_path / f"l{number}").symlink_to(f"l{number - 1}")
    assert followed(str(tmp_path / "l40")).st_ino == (tmp_path / "l0").stat().st_ino
    with pytest.raises(OSError, match="Too many levels"):
        followed(str(tmp_path / "l41"))
    assert paths.printable("/a\udcff") == "/a\\xff"


# Lines

GOOD = '{{"log":"{0}\\n","stream":"stdout","time":"2026-11-22T20:47:54.{1:09d}Z"}}\n'
BAD_TIMES = [
    "2026-11-22T20:47:54.820319,35Z",
    "2026-11-22T20:47:54." + "9" * 40 + "Z",
    "2026-11-22T20:47:54.1,1,1,1Z",
    "2026-11-22T20:47:54,820319Z",
    "2026-11-22T20:47:54.8 Z",
    "2026-11-22T20:47:54.1e5Z",
    "2026-11-22T20:47:54.1_1Z",
    "2026-11-22T20:47:54.Z",
    "2026-11-22T20:47:61Z",
    "2026-11-22T20:47:54",
    "2026-11-22T20:47:5\u0664.820319355Z",
    "9999-11-22T20:47:54.1Z",
    "0001-11-22T20:47:54.1Z",
    "1969-12-31T23:59:59.1Z",
    "2026-02-30T20:47:54.1Z",
    "2026-11-22T20:47:54.820319355+01:00",
    "Z",
    "[1]",
]


@pytest.mark.parametrize("form", ["compiled", "pure"])
@pytest.mark.parametrize("time", BAD_TIMES)
def test_a_docker_time_that_is_none_costs_that_line_its_form(
    start: Callable[..., Reading], tmp_path: Path, time: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if form == "pure":
        monkeypatch.setattr(dockerjson, "compiled", None)
    elif compiled is None:
        pytest.skip("not compiled")
    bad = json.dumps({"log": "bad\n", "stream": "stdout", "time": time}, separators=(",", ":"), ensure_ascii=False)
    log = DockerLog(tmp_path, identifier=CONTAINER.format(1), name="web")
    log.raw(GOOD.format("same", 5).encode())
    log.raw((bad + "\n").encode())
    log.raw((bad + "\n").encode())
    log.raw(GOOD.format("same", 5).encode())
    log.raw(GOOD.format("last", 6).encode())
    reading = start(DockerSource(DockerConfig(path=str(tmp_path))))
    assert reading.after(3) == ["same", bad, bad, "same", "last"]
    times = [time for batch in reading.batches for time in batch.times]
    base = times[0]
    assert times == [base, 0, 0, base + 1, base + 1]
    assert marks(reading) == {bad: {FAULT: "time"}}
    hashes = [number for batch in reading.batches for number in batch.hashes]
    assert len(set(hashes)) == 5
    again = reading.restart(DockerSource(DockerConfig(path=str(tmp_path))))
    assert again.after(3) == []
    again.source.close()
    log.close()


def feeds_line_by_line(monkeypatch: pytest.MonkeyPatch, trouble: type[Exception]) -> None:
    """Let what looks for traces raise, at once and for the line "bad", as a fault of ours would."""
    real = dockerjson.may_contain_lines

    def failing(lines: list[str]) -> bool:
        if any("bad" in line for line in lines):
            raise trouble("a fault")
        return real(lines)

    def opening(line: str, rule: str = "trace") -> None:
        if "bad" in line:
            raise trouble("a fault")

    for module in ("shipper.tailing.dockerjson", "shipper.tailing.plainlines"):
        monkeypatch.setattr(f"{module}.may_contain_lines", failing)
    for module in ("shipper.sources.docker", "shipper.sources.file.source"):
        monkeypatch.setattr(f"{module}.open_trace", opening)


@pytest.mark.parametrize("trouble", [RecursionError, OverflowError, MemoryError, ValueError, KeyError, OSError])
@pytest.mark.parametrize("kind", ["docker", "file"])
def test_whatever_a_line_raises_costs_that_line_its_form(
    start: Callable[..., Reading],
    tmp_path: Path,
    kind: str,
    trouble: type[Exception],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    feeds_line_by_line(monkeypatch, trouble)
    lines = [*(f"line {number}" for number in range(50)), "bad", *(f"line {number}" for number in range(50, 100))]
    if kind == "docker":
        log = DockerLog(tmp_path, identifier=CONTAINER.format(1), name="web")
        for line in lines:
            log.write(line)
        log.close()
        reading = start(DockerSource(DockerConfig(path=str(tmp_path))))
    else:
        append(tmp_path / "a.log", *lines)
        reading = start(FileSource(FileConfig(include=[str(tmp_path / "*.log")])))
    reading.after(3)
    assert [line for line in reading.lines if "bad" not in line] == [line for line in lines if line != "bad"]
    assert ["bad" in line for line in reading.lines].index(True) == 50
    assert [mark for line, mark in marks(reading).items() if "bad" in line] == [{FAULT: trouble.__name__}]
    assert len(set(reading.ids)) == 101


def test_a_file_that_makes_the_code_raise_is_counted_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(tmp_path / "bad.log", "one")
    append(tmp_path / "good.log", "two")
    faults: list[tuple[str, str]] = []
    reading = Reading(
        FileSource(FileConfig(include=[str(tmp_path / "*.log")])), fault=lambda *fault: faults.append(fault)
    )
    real = following.Following._read_chunk
    broken = True

    def failing(self: Any, fileset: Any) -> bool:
        if broken and fileset.path.endswith("bad.log"):
            raise RecursionError("a fault")
        return real(self, fileset)

    monkeypatch.setattr(FileSource, "_read_chunk", failing)
    assert reading.after(3) == ["two"]
    assert set(faults) == {(str(tmp_path / "bad.log"), "RecursionError")}
    append(tmp_path / "good.log", "three")
    assert reading.after(3) == ["three"]
    assert reading.source.counts() == (2, 1)
    broken = False
    assert reading.after(3) == ["one"]
    assert reading.source.counts() == (2, 0)
    reading.source.close()


# Encodings

BYTE_ORDER_MARKS = [("utf-16-le", b"\xff\xfe"), ("utf-16-be", b"\xfe\xff"), ("utf-32-le", b"\xff\xfe\0\0")]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize(("encoding", "mark"), BYTE_ORDER_MARKS)
def test_a_file_with_a_mark_is_decoded_by_it(
    read: Callable[..., Reading], tmp_path: Path, encoding: str, mark: bytes, newline: str
) -> None:
    log = tmp_path / "ERRORLOG"
    append(tmp_path / "b.log", "utf-8 beside it: ä")
    log.write_bytes(mark + f"Ä first{newline}second \u0a0a\u0d0a ✓{newline}".encode(encoding))
    reading = read(log, tmp_path / "b.log")
    assert sorted(reading.poll()) == sorted(["Ä first", "second \u0a0a\u0d0a ✓", "utf-8 beside it: ä"])
    text = f"{newline}third{newline}".encode(encoding)
    for number in range(len(text)):
        with log.open("ab") as file:
            file.write(text[number : number + 1])
        reading.poll()
    reading.after(3)
    assert reading.lines[3:] == ["", "third"]
    again = reading.restart(FileSource(FileConfig(include=[str(log)])))
    with log.open("ab") as file:
        file.write(f"fourth{newline}".encode(encoding))
    assert again.after(3) == ["fourth"]
    again.source.close()


def test_a_mark_that_comes_in_two_parts(read: Callable[..., Reading], tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.touch()
    reading = read(log)
    reading.poll()
    for part in (b"\xff", b"\xfe", "one\n".encode("utf-16-le")):
        with log.open("ab") as file:
            file.write(part)
        reading.after(1.2)
    assert reading.lines == ["one"]


def test_marks_at_the_beginnings_of_lines_are_no_text(read: Callable[..., Reading], tmp_path: Path) -> None:
    """Files put together, or a mark at each start of the program."""
    (tmp_path / "a.log").write_bytes(
        b'\xef\xbb\xbf{"level":"error"}\n\xef\xbb\xbf{"level":"warn"}\nin\xef\xbb\xbfside\n'
    )
    assert read(tmp_path / "a.log").poll() == ['{"level":"error"}', '{"level":"warn"}', "in\ufeffside"]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_an_encoding_that_was_chosen_is_believed(read: Callable[..., Reading], tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.log").write_bytes(b"\xff\xfe one\n")
    assert read(tmp_path / "a.log", encoding=encoding).poll() == ["ÿþ one"]


# Bounds


@pytest.mark.parametrize("line", [b"\n", b"x\n", b"\0\n", b"  x\n", b"ok\r\n"], ids=repr)
@pytest.mark.parametrize("parser", ["auto", "plain"])
def test_a_batch_is_bounded_by_records(read: Callable[..., Reading], tmp_path: Path, line: bytes, parser: str) -> None:
    (tmp_path / "a.log").write_bytes(line * 100_000)
    reading = read(tmp_path / "a.log", parser=parser)
    reading.after(3)
    assert len(reading.lines) == (100_000 if line != b"\0\n" else 0)
    assert max(map(len, reading.batches), default=0) <= BATCH_RECORDS
    spans = [batch.span for batch in reading.batches]
    assert all(a.end == b.start for a, b in pairwise(spans) if a and b)
    assert spans[-1] is not None
    assert spans[-1].end == len(line) * 100_000


def test_what_waits_behind_an_open_record_is_bounded_by_records(read: Callable[..., Reading], tmp_path: Path) -> None:
    """Short lines behind a fragment whose rest never comes."""
    time = "2026-11-20T10:00:00.000000001Z"
    (tmp_path / "a.log").write_text(f"{time} stderr P never ended\n" + f"{time} stdout F x\n" * 60_000)
    reading = read(tmp_path / "a.log")
    reading.poll()
    most = joiner.HELD_BYTES // joiner.RECORD_BYTES + BATCH_RECORDS
    assert len(reading.lines) > 60_000 - most
    assert reading.lines[0] == "never ended"
    reading.after(8)
    assert len(reading.lines) == 60_001


def test_records_that_overlap_are_counted_in_linear_time(read: Callable[..., Reading], tmp_path: Path) -> None:
    """Two streams whose fragments are woven into each other, so that each record ends behind the next one's start."""
    time = "2026-11-20T10:00:00.000000001Z"
    weave = "".join(
        f"{time} {stream} {flag} {n}\n"
        for n in range(20_000)
        for stream, flag in (("stdout", "PF"[n % 2]), ("stderr", "FP"[n % 2]))
    )
    (tmp_path / "a.log").write_text(weave)
    reading = read(tmp_path / "a.log")
    reading.after(8)
    assert sum(line.count("0") for line in reading.lines) == sum(str(n).count("0") * 2 for n in range(20_000))


# Memory


def test_nothing_is_kept_of_containers_that_are_gone(start: Callable[..., Reading], tmp_path: Path) -> None:
    reading = start(DockerSource(DockerConfig(path=str(tmp_path))))

    def sizes() -> dict[str, int]:
        return {name: len(value) for name, value in vars(reading.source).items() if hasattr(value, "__len__")}

    def come_and_go(first: int, count: int) -> None:
        logs = [DockerLog(tmp_path, identifier=CONTAINER.format(first + n), name=f"c{n}") for n in range(count)]
        for log in logs:
            log.write("hello")
        reading.after(3)
        for log in logs:
            log.remove()
        reading.after(10)

    come_and_go(0, 3)
    before = sizes()
    come_and_go(1000, 60)
    assert sizes() == before
    assert len(reading.lines) == 63
    assert reading.positions.states == {}


def test_a_stream_name_is_not_kept_for_each_line(start: Callable[..., Reading], tmp_path: Path) -> None:
    log = DockerLog(tmp_path, identifier=CONTAINER.format(1), name="web")
    for number in range(100):
        log.raw(json.dumps({"log": "x\n", "stream": f"s{number}", "time": "2026-11-22T20:47:54.1Z"}).encode() + b"\n")
    source = DockerSource(DockerConfig(path=str(tmp_path)))
    reading = start(source)
    assert len(reading.after(3)) == 100
    assert len(source._containers[CONTAINER.format(1)]._resources) < 10
    assert all(isinstance(batch, Batch) for batch in reading.batches)
    log.close()
