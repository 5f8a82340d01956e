from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from shipper.config.types import LogConfig
from shipper.errors import ConfigError
from shipper.secret import Masker
from shipper.telemetry import logs, lokilog

Configure = Callable[..., logs.Log]


class StepClock:
    """A clock that goes only when told; waiting returns when the event is set."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return int(self.now * 1e9)

    def wait(self, event: threading.Event, seconds: float) -> bool:
        return event.wait()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock() -> StepClock:
    return StepClock()


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> Iterator[Configure]:
    monkeypatch.delenv(logs.FORMAT_VARIABLE, raising=False)
    opened: list[logs.Log] = []

    def configure(stream: io.StringIO, **options: object) -> logs.Log:
        settings = {name: options.pop(name) for name in ("level", "format", "loki_url") if name in options}
        opened.append(logs.configure(LogConfig(**settings), stream, **options))
        return opened[-1]

    yield configure
    for log in reversed(opened):
        log.close()


def said(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_away_from_a_terminal_each_event_is_one_json_object(configured: Configure, stream: io.StringIO) -> None:
    configured(stream)
    logs.get_logger("delivery").bind(sink="mysql").info("connected", port=3306, text="two\nlines", sinks=("a", "b"))
    (event,) = said(stream)
    assert event.pop("time").endswith("Z")
    assert event == {
        "level": "info",
        "component": "delivery",
        "event": "connected",
        "sink": "mysql",
        "port": 3306,
        "text": "two\nlines",
        "sinks": ["a", "b"],
    }


def test_on_a_terminal_it_is_coloured_text(configured: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    configured(stream)
    logs.get_logger("delivery").warning("write failed", sink="mysql")
    assert "\x1b[" in stream.getvalue()
    assert "delivery: write failed" in stream.getvalue()


def test_text_in_a_file_has_no_colours_and_a_traceback_stands_below_its_line(
    configured: Configure, stream: io.StringIO
) -> None:
    configured(stream, format="text")
    try:
        Path("/nowhere/at/all").stat()
    except OSError:
        logs.get_logger("reader").exception("broken", path="/a")
    assert "\x1b" not in stream.getvalue()
    first, second, *_ = stream.getvalue().splitlines()
    assert first.endswith("[error    ] reader: broken path=/a")
    assert second == "    Traceback (most recent call last):"


def test_the_environment_goes_before_the_configuration(
    configured: Configure, stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(logs.FORMAT_VARIABLE, "json")
    configured(stream, format="text")
    logs.get_logger("x").info("y")
    assert said(stream)[0]["event"] == "y"


def test_an_unknown_format_in_the_environment_is_a_config_error(
    configured: Configure, stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(logs.FORMAT_VARIABLE, "xml")
    with pytest.raises(ConfigError, match="SHIPPER_LOG_FORMAT=xml is not a log format; formats: auto, text, json"):
        configured(stream)


def test_what_is_below_the_level_is_not_written(configured: Configure, stream: io.StringIO) -> None:
    configured(stream, level="warn")
    log = logs.get_logger("x")
    log.debug("a")
    log.info("b")
    log.warning("c")
    assert [event["event"] for event in said(stream)] == ["c"]


def test_sinks_log_by_the_standard_library_and_strangers_only_from_warning_up(
    configured: Configure, stream: io.StringIO
) -> None:
    configured(stream)
    logging.getLogger("sinks.mysql").info("table %s made", "activity_logs")
    logging.getLogger("urllib3").info("chatter")
    logging.getLogger("botocore").warning("clock skew")
    assert [(event["component"], event["event"]) for event in said(stream)] == [
        ("sinks.mysql", "table activity_logs made"),
        ("botocore", "clock skew"),
    ]


def test_a_plugin_that_speaks_structlog_is_heard(configured: Configure, stream: io.StringIO) -> None:
    structlog = pytest.importorskip("structlog")
    configured(stream)
    structlog.get_logger("plugin").warning("hello", number=1)
    assert [(e["component"], e["event"], e["number"]) for e in said(stream)] == [("plugin", "hello", 1)]
    structlog.reset_defaults()


def fail(code: str, **fields: object) -> None:
    logs.get_logger("delivery").warning("write failed", sink="loki", code=code, **fields)


def test_repeats_are_counted_and_told_when_the_window_closes(
    configured: Configure, stream: io.StringIO, clock: StepClock
) -> None:
    log = configured(stream, clock=clock)
    for attempt in range(32):
        fail("429", attempt=attempt)
    assert len(said(stream)) == 1
    clock.now += logs.FIRST_WINDOW
    log.handler.close_windows()
    first, summary = said(stream)
    assert "repeats" not in first
    assert (summary["repeats"], summary["window_seconds"], summary["attempt"]) == (31, 60, 31)


def test_the_window_grows_to_five_minutes_while_repeats_go_on_and_closes_when_they_end(
    configured: Configure, stream: io.StringIO, clock: StepClock
) -> None:
    log = configured(stream, clock=clock)
    fail("429")
    for _ in range(4):
        fail("429")
        clock.now += 300
        log.handler.close_windows()
    assert [event.get("window_seconds") for event in said(stream)] == [None, 300, 300, 300, 300]
    clock.now += 300
    log.handler.close_windows()
    fail("429")
    assert "repeats" not in said(stream)[-1]
    assert len(said(stream)) == 6


def test_a_new_text_is_written_at_once_after_the_count_of_the_old_one(
    configured: Configure, stream: io.StringIO, clock: StepClock
) -> None:
    configured(stream, clock=clock)
    for code in ("429", "429", "429", "1045"):
        fail(code)
    assert [(event["code"], event.get("repeats")) for event in said(stream)] == [
        ("429", None),
        ("429", 2),
        ("1045", None),
    ]


def test_two_texts_that_alternate_are_grouped_each(
    configured: Configure, stream: io.StringIO, clock: StepClock
) -> None:
    configured(stream, clock=clock)
    for _ in range(20):
        fail("429")
        fail("1045")
    assert len(said(stream)) == 2


def test_news_are_never_grouped(configured: Configure, stream: io.StringIO, clock: StepClock) -> None:
    configured(stream, clock=clock)
    for _ in range(3):
        logs.get_logger("reader").info("rotated")
    assert len(said(stream)) == 3


def test_what_was_counted_is_told_at_the_end(configured: Configure, stream: io.StringIO, clock: StepClock) -> None:
    log = configured(stream, clock=clock)
    fail("429")
    fail("429")
    log.close()
    assert said(stream)[-1]["repeats"] == 1


def test_kinds_without_end_take_bounded_memory_and_lose_no_count(
    configured: Configure, stream: io.StringIO, clock: StepClock
) -> None:
    log = configured(stream, clock=clock)
    for number in range(logs.MAX_KINDS * 2):
        logs.get_logger(f"c{number}").warning("w")
        logs.get_logger(f"c{number}").warning("w")
    assert len(log.handler._repeats) == logs.MAX_KINDS
    log.close()
    assert sum(event.get("repeats", 0) for event in said(stream)) == logs.MAX_KINDS * 2


def test_a_summary_comes_without_another_event(configured: Configure) -> None:
    """The closing thread writes it when the window is over, though nothing else is logged."""
    written = threading.Event()

    class Watched(io.StringIO):
        def write(self, text: str) -> int:
            if '"repeats"' in text:
                written.set()
            return super().write(text)

    class Short(StepClock):
        def wait(self, event: threading.Event, seconds: float) -> bool:
            self.now += seconds
            return event.is_set()

    configured(Watched(), clock=Short())
    fail("429")
    fail("429")
    assert written.wait(10)


SECRETS = {
    "password field": ({"password": "tok-hunter2"}, "tok-hunter2"),
    "token field": ({"api_token": "tok-hunter2"}, "tok-hunter2"),
    "url": ({"error": "cannot reach mysql://u:tok-hunter2@db:3306/x"}, "tok-hunter2"),
    "bearer": ({"error": "sent Authorization: Bearer tok-hunter2"}, "tok-hunter2"),
    "assignment": ({"error": "DSN user=u password=tok-hunter2 host=h"}, "tok-hunter2"),
    "json": ({"error": '{"password": "tok-hunter2"}'}, "tok-hunter2"),
    "azure": ({"error": "InstrumentationKey=tok-hunter2;IngestionEndpoint=x"}, "tok-hunter2"),
    "known value": ({"error": "the server saw zebra-crossing-9"}, "zebra-crossing-9"),
    "nested": ({"value": {"a": ["zebra-crossing-9"]}}, "zebra-crossing-9"),
}


@pytest.mark.parametrize("form", ["json", "text"])
@pytest.mark.parametrize("case", SECRETS)
def test_no_secret_is_ever_written(configured: Configure, stream: io.StringIO, case: str, form: str) -> None:
    fields, secret = SECRETS[case]
    configured(stream, format=form, mask=Masker(["zebra-crossing-9"]))
    logs.get_logger("x").error("failed", **fields)
    try:
        int("password=tok-hunter2 zebra-crossing-9")
    except ValueError:
        logs.get_logger("x").exception("broken by zebra-crossing-9")
    assert secret not in stream.getvalue()
    assert "tok-hunter2" not in stream.getvalue()
    assert "***" in stream.getvalue()


def test_harmless_words_are_left_alone(configured: Configure, stream: io.StringIO) -> None:
    configured(stream)
    logs.get_logger("x").error("access denied", error="Access denied for user 'u'@'h' (using password: YES)", tokens=3)
    assert "Access denied for user 'u'@'h'" in str(said(stream)[0]["error"])


def test_a_huge_error_text_is_cut_and_says_so(configured: Configure, stream: io.StringIO) -> None:
    configured(stream)
    logs.get_logger("x").error("failed", error="x" * 100_000)
    assert str(said(stream)[0]["error"]).endswith("… (100000 characters)")


def test_a_closed_stream_loses_the_event_and_nothing_else(configured: Configure) -> None:
    stream = io.StringIO()
    configured(stream)
    stream.close()
    logs.get_logger("x").error("unheard")


def test_an_object_that_cannot_be_told_does_not_stop_the_caller(configured: Configure, stream: io.StringIO) -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("no")

    configured(stream)
    logs.get_logger("x").error("odd", value=Broken())
    assert said(stream)[0]["event"] == "an event could not be written"


def test_closing_gives_logging_back_as_it_was(stream: io.StringIO) -> None:
    root = logging.getLogger()
    before = (root.handlers[:], logging.getLogger("shipper").level)
    logs.configure(LogConfig(), stream).close()
    assert (root.handlers, logging.getLogger("shipper").level) == before


def test_own_log_files_are_named_by_their_real_path(tmp_path: Path) -> None:
    code = "from shipper.telemetry.logs import own_log_paths; print(sorted(own_log_paths()))"
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with (tmp_path / "link" / "own.log").open("w") as file:
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=file, text=True, check=True)
    assert done.stdout.strip() == str([os.path.realpath(tmp_path / "real" / "own.log")])


ID = "164051bb1523f3dad0fd2ee0fccf23d20a826d8d24d9c5713ee07ff614dc38d0"
OTHER = "2" * 64
MOUNTS = f"""
700 600 0:50 / /proc rw - proc proc rw
701 600 8:1 /var/lib/docker/containers /logs ro - ext4 /dev/sda1 rw
702 600 8:1 /var/lib/docker/containers/{OTHER} /one ro - ext4 /dev/sda1 rw
703 600 8:1 /var/lib/docker/containers/{ID}/hostname /etc/hostname rw - ext4 /dev/sda1 rw
"""


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"proc/self/mountinfo": MOUNTS, "proc/self/cgroup": f"0::/docker/{OTHER}\n"}, ID),
        ({"proc/self/mountinfo": "", "proc/self/cgroup": f"1:cpu:/docker/{ID}\n"}, ID),
        ({"proc/self/cgroup": f"0::/system.slice/docker-{ID}.scope\n"}, ID),
        ({"proc/self/cgroup": "0::/\n", ".dockerenv": "", "etc/hostname": "164051bb1523\n"}, "164051bb1523"),
        ({"proc/self/cgroup": "0::/\n", "etc/hostname": "164051bb1523\n"}, None),
        ({".dockerenv": "", "etc/hostname": "shipper\n"}, None),
    ],
)
def test_own_container_is_recognised(tmp_path: Path, files: dict[str, str], expected: str | None) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert logs.own_container_id(tmp_path) == expected


class LokiStandIn:
    """Takes pushes as Loki does: 204, or the statuses that it was told to give first."""

    def __init__(self) -> None:
        self.pushes: list[dict[str, object]] = []
        self.paths: list[str] = []
        self.statuses: list[int] = []
        self.arrived = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stand_in.gate.wait(20)
                stand_in.paths.append(self.path)
                stand_in.pushes.append(body)
                self.send_response(stand_in.statuses.pop(0) if stand_in.statuses else 204)
                self.send_header("Content-Length", "0")
                self.end_headers()
                stand_in.arrived.release()

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self._thread.start()

    def stop(self) -> None:
        self.gate.set()
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()

    def wait_for(self, count: int) -> list[dict[str, object]]:
        for _ in range(count):
            assert self.arrived.acquire(timeout=15)
        return [push["streams"][0] for push in self.pushes]


@pytest.fixture
def loki() -> Iterator[LokiStandIn]:
    pytest.importorskip("logging_loki")
    stand_in = LokiStandIn()
    yield stand_in
    stand_in.stop()


def test_warnings_go_to_loki_with_their_own_time_and_few_labels(
    configured: Configure, stream: io.StringIO, loki: LokiStandIn
) -> None:
    configured(stream, loki_url=loki.url)
    logs.get_logger("reader").info("not for Loki")
    logging.getLogger("shipper.reader").warning("odd", extra={"tags": {"user": "17"}, "fields": {"path": "/a"}})
    (entry,) = loki.wait_for(1)
    assert loki.paths == ["/loki/api/v1/push"]
    assert set(entry["stream"]) == {"service", "host", "severity", "logger"}
    assert entry["stream"]["logger"] == "shipper.reader"
    assert json.loads(entry["values"][0][1]) == {"event": "odd", "path": "/a"}


def test_times_are_the_events_own_and_never_equal(loki: LokiStandIn) -> None:
    output = lokilog.LokiOutput(loki.url, complain=lambda _: None)
    for number in range(3):
        output.put(logs.Event(1_700_000_000.123456, logging.ERROR, "x", f"e{number}", {}))
    stamps = [int(entry["values"][0][0]) for entry in loki.wait_for(3)]
    output.close()
    assert stamps == [1_700_000_000_123_456_000, 1_700_000_000_123_456_001, 1_700_000_000_123_456_002]


def test_a_refused_push_is_tried_again_with_the_same_time(loki: LokiStandIn) -> None:
    loki.statuses = [500, 429]
    output = lokilog.LokiOutput(loki.url, complain=lambda _: None, pause=0.001)
    output.put(logs.Event(1_700_000_000.5, logging.ERROR, "x", "e", {}))
    first, second, third = loki.wait_for(3)
    output.close()
    assert first == second == third
    assert output.dropped == 0


def test_a_loki_that_is_away_is_said_once_on_standard_error(loki: LokiStandIn) -> None:
    loki.statuses = [500] * 6
    complaints: list[logs.Event] = []
    output = lokilog.LokiOutput(loki.url, complain=complaints.append, pause=0.001)
    for _ in range(2):
        output.put(logs.Event(1_700_000_000.5, logging.ERROR, "x", "e", {}))
    loki.wait_for(6)
    output.close()
    assert output.dropped == 2
    assert [event.component for event in complaints] == ["logs"]


def test_a_hung_loki_costs_the_oldest_events_and_no_time(loki: LokiStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lokilog, "QUEUE", 10)
    monkeypatch.setattr(lokilog, "DRAIN", 0.05)
    loki.gate.clear()
    output = lokilog.LokiOutput(loki.url, complain=lambda _: None, pause=0.001)
    for number in range(100):
        output.put(logs.Event(float(number), logging.ERROR, "x", str(number), {}))
    assert [event.text for event in list(output._queue)] == [str(number) for number in range(90, 100)]
    assert output.dropped in (89, 90)
    output.close()


def test_pushes_have_a_timeout(loki: LokiStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lokilog, "TIMEOUT", 0.05)
    loki.gate.clear()
    complained = threading.Event()
    output = lokilog.LokiOutput(loki.url, complain=lambda _: complained.set(), pause=0.001)
    output.put(logs.Event(1.0, logging.ERROR, "x", "e", {}))
    assert complained.wait(15)
    output.close()


def test_what_the_http_client_says_never_goes_to_loki(loki: LokiStandIn) -> None:
    output = lokilog.LokiOutput(loki.url, complain=lambda _: None)
    output.put(logs.Event(1.0, logging.WARNING, "urllib3.connectionpool", "retrying", {}))
    output.put(logs.Event(2.0, logging.WARNING, "x", "real", {}))
    (entry,) = loki.wait_for(1)
    output.close()
    assert json.loads(entry["values"][0][1])["event"] == "real"


@pytest.mark.parametrize("url", ["loki:3100", "ftp://loki", "http://"])
def test_a_loki_url_that_is_none_is_a_config_error(configured: Configure, stream: io.StringIO, url: str) -> None:
    with pytest.raises(ConfigError, match=r"log\.loki_url is not an http or https URL"):
        configured(stream, loki_url=url)


def test_without_the_extra_it_says_what_to_install(
    configured: Configure, stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "logging_loki", None)
    with pytest.raises(ConfigError, match=r"pip install 'shipper\[loki-handler\]'"):
        configured(stream, loki_url="http://loki:3100")
