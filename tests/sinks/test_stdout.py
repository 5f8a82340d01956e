"""The stdout sink: what people see, and what happens when nobody reads."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shipper.errors import ParkedError, PartialError, RetryableError
from shipper.record import SEVERITIES, Batch, Record, Resource
from shipper.sink import Sink
from shipper.testing.batches import make_batch
from shipper.testing.sink_contract import SinkContract
from sinks.stdout import StdoutConfig, StdoutSink


def make(descriptor: int, **options: Any) -> StdoutSink:
    return StdoutSink(StdoutConfig(type="stdout", **options), descriptor=descriptor, patience=0.05)


class TestStdoutJson(SinkContract):
    example = Path("config/examples/stdout.yaml")
    file_format = "json"

    @pytest.fixture(autouse=True)
    def _descriptor(self, tmp_path: Path) -> Iterator[None]:
        self.path = tmp_path / "printed"
        self.descriptor = os.open(self.path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        yield
        os.close(self.descriptor)

    def make_sink(self, tmp_path: Path) -> Sink:
        return make(self.descriptor, format=self.file_format)

    def read_back(self, sink: Sink) -> list[Record] | None:
        from datetime import datetime

        def time_ns(text: str) -> int:
            return int(datetime.fromisoformat(text[:19] + "+00:00").timestamp()) * 10**9 + int(text[20:29])

        rows = [msgspec.json.decode(line) for line in self.path.read_bytes().split(b"\n")[:-1]]
        return [
            Record(
                row["id"], time_ns(row["time"]), SEVERITIES[row["level"]], row["message"], row["attributes"], "",
                Resource(row["source"], row["resource"]), 0,
            )
            for row in rows
        ]  # fmt: skip


class TestStdoutText(TestStdoutJson):
    """Text cannot be read back exactly, but takes everything."""

    file_format = "text"

    def read_back(self, sink: Sink) -> list[Record] | None:
        return None


class Pipe:
    """Both ends of a pipe, and what was read from it."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        self.ends = {self.reader, self.writer}

    def close(self, end: int) -> None:
        self.ends.discard(end)
        os.close(end)

    def read(self) -> str:
        os.set_blocking(self.reader, False)
        data = b""
        with contextlib.suppress(BlockingIOError):
            while block := os.read(self.reader, 65_536):
                data += block
        return data.decode()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    both = Pipe()
    yield both
    for end in list(both.ends):
        both.close(end)


def printed(pipe: Pipe, batch: Batch, **options: Any) -> str:
    make(pipe.writer, **options).write(batch)
    return pipe.read()


def test_text_is_time_in_utc_level_service_message_and_attributes(pipe: Pipe) -> None:
    batch = make_batch(["paid"], level="warn", attributes={"user_id": "7", "note": "two words", "ok": True, "e": ""})
    assert (
        printed(pipe, batch)
        == '2026-01-02T03:04:05.000000000Z WARN  api paid user_id=7 note="two words" ok=true e=""\n'
    )


def test_text_does_not_depend_on_zone_or_locale(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.setenv("LC_ALL", "C")
    time.tzset()
    try:
        assert printed(pipe, make_batch(["größe"])).startswith("2026-01-02T03:04:05.000000000Z INFO  api größe")
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("resource", "who"),
    [
        (Resource("docker", {"service.name": "api", "container.name": "api-1"}), "api"),
        (Resource("docker", {"container.name": "api-1"}), "api-1"),
        (Resource("fallback", {}), "fallback"),
    ],
)
def test_text_names_the_service_or_the_container_or_the_source(pipe: Pipe, resource: Resource, who: str) -> None:
    assert printed(pipe, make_batch(["x"], resource=resource)).split()[2] == who


def test_text_indents_the_further_lines_of_a_message(pipe: Pipe) -> None:
    assert printed(pipe, make_batch(["Error: x\n    at y\nend"])).splitlines()[1:] == ["        at y", "    end"]


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("\x1b[31mred", "\\x1b[31mred"),
        ("over\rwritten", "over\\rwritten"),
        ("nul\x00", "nul\\x00"),
        ("c1 \x9b2J", "c1 \\x9b2J"),
        ("turned \u202e", "turned \\u202e"),
        ("tab\tstays", "tab\tstays"),
    ],
)
def test_log_text_cannot_steer_a_terminal(pipe: Pipe, message: str, shown: str) -> None:
    assert printed(pipe, make_batch([message])) == f"2026-01-02T03:04:05.000000000Z INFO  api {shown}\n"


def test_attributes_cannot_forge_a_record(pipe: Pipe) -> None:
    batch = make_batch(["x"], attributes={"k\n2026 forged": "v\n2026 forged\x1b", "list": ["a\nb"]})
    text = printed(pipe, batch)
    assert text.count("\n") == 1
    assert "\x1b" not in text


def test_a_reader_that_is_gone_parks_the_sink(pipe: Pipe) -> None:
    pipe.close(pipe.reader)
    with pytest.raises(ParkedError, match="its reader is gone") as caught:
        make(pipe.writer).write(make_batch(["x"]))
    assert caught.value.code == "EPIPE"


def test_a_closed_descriptor_parks_the_sink(pipe: Pipe) -> None:
    pipe.close(pipe.writer)
    with pytest.raises(ParkedError, match="is closed"):
        make(pipe.writer).open()


def test_records_that_did_not_fit_into_a_pipe_are_tried_again_and_none_is_doubled(pipe: Pipe) -> None:
    """A non-blocking descriptor inherited from a parent: the kernel takes what fits, in the middle of a line."""
    fcntl.fcntl(pipe.writer, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(pipe.writer, False)
    sink = make(pipe.writer, format="json")
    batch = make_batch([f"{index} " + "x" * 500 for index in range(40)])
    text, taken = "", 0
    codes: set[str] = set()
    while len(batch):
        try:
            sink.write(batch)
            break
        except PartialError as error:
            failed = error.failed
        codes |= {failure.code for failure in failed.values()}
        taken += len(batch) - len(failed)
        batch = batch.select(sorted(failed))
        text += pipe.read()
    assert codes == {"EAGAIN"}
    assert taken > 0
    sink.close()
    text += pipe.read()
    numbers = [msgspec.json.decode(line)["message"].split()[0] for line in text.splitlines()]
    assert numbers == [str(index) for index in range(40)]


def test_a_full_pipe_takes_nothing_and_the_whole_batch_is_retryable(pipe: Pipe) -> None:
    os.set_blocking(pipe.writer, False)
    while True:
        try:
            os.write(pipe.writer, b"x" * 4096)
        except BlockingIOError:
            break
    with pytest.raises(RetryableError, match="takes nothing now"):
        make(pipe.writer).write(make_batch(["x"]))


def test_a_slow_reader_is_waited_for(pipe: Pipe) -> None:
    os.set_blocking(pipe.writer, False)
    sink = StdoutSink(StdoutConfig(type="stdout"), descriptor=pipe.writer, patience=30)
    batch = make_batch(["x" * 1_000 for _ in range(500)])
    size = 0

    def read() -> None:
        nonlocal size
        while size < 500 * 1_000:
            size += len(os.read(pipe.reader, 65_536))

    reader = threading.Thread(target=read)
    reader.start()
    sink.write(batch)
    reader.join(30)
    assert size > 500 * 1_000


def test_examine_says_what_standard_output_is_or_that_there_is_none(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "printed", os.O_CREAT | os.O_WRONLY)
    (finding,) = make(descriptor).examine()
    assert (finding.verdict, "a file" in finding.evidence) == ("ok", True)
    os.close(descriptor)
    (finding,) = make(descriptor).examine()
    assert (finding.verdict, bool(finding.fix)) == ("fail", True)
