"""What a host answers, a file is called or a backend says steers no terminal and forges no line of any command."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import msgspec
import pytest
import yaml

from shipper.delivery.deadletter import DeadLetters
from shipper.errors import PermanentError
from shipper.record import Batch, Resource
from shipper.telemetry.status import ConfigStatus, SinkStatus, SourceStatus, Status, Waiting, judge

Run = Callable[..., "CompletedProcess[str]"]
RAW = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)
EVIL = "x\x1b]0;t\x07\x1b[2J\x9b31m\x85\u202e\u2066\u200b\ufeff\u061c\r\x08\x7f\nFORGED √ D99 all is well\u2028FORGED"


def evil_status(evil: str = EVIL + "\0") -> Status:
    return Status(
        version=evil, pid=7, uptime=1, state_dir=evil,
        config=ConfigStatus(path=f"/c; rm -rf x{evil}", hash=evil, loaded_seconds=1, valid=False, detail=evil),
        faults=[evil], troubles={evil: evil},
        sources={evil: SourceStatus(state=evil, detail=evil)},
        sinks={evil: SinkStatus(role=evil, state=evil, detail=evil, error=evil, attempts=1)},
        waiting={f"{evil}2": Waiting(spill_bytes=1, spill_records=1)},
        dropped_lines={evil: 1}, lost_bytes={evil: 1},
    )  # fmt: skip


class Evil(BaseHTTPRequestHandler):
    server_version = "shipper/1"

    def do_GET(self) -> None:
        health = {"alive": self.server.alive, "faults": [EVIL], "components": {EVIL: {"state": EVIL, "detail": EVIL}}}  # type: ignore[attr-defined]
        body = json.dumps(msgspec.to_builtins(evil_status()) if self.path == "/status" else health).encode()
        body = getattr(self.server, "body", None) or body
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002 - the base's signature


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Evil)
    server.alive = True  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts(item)


def is_clean(done: CompletedProcess[str]) -> None:
    assert done.stdout + done.stderr
    for text in (done.stdout, done.stderr):
        assert not RAW.search(text), ascii(text)
        assert not re.search("^FORGED", text, re.MULTILINE), text


@pytest.mark.parametrize(
    "command",
    [
        ("status",),
        ("status", "--json"),
        ("status", "--check"),
        ("healthcheck",),
        ("doctor", "--offline"),
        ("doctor", "--offline", "--json"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("alive", [True, False])
def test_a_host_that_answers_for_the_daemon(
    command: tuple[str, ...], alive: bool, run: Run, rows_sink: Path, server: ThreadingHTTPServer
) -> None:
    server.alive = alive  # type: ignore[attr-defined]
    done = run(*command, "--url", f"http://127.0.0.1:{server.server_address[1]}")
    is_clean(done)
    assert "FORGED" in done.stdout
    if "--json" in command:
        assert any(EVIL in text for text in texts(json.loads(done.stdout))), "what is read back is what was said"


ODD = [
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"alive": true, "components": [1]}',
    b'{"alive": true, "components": {"a": 1}}',
    b'{"alive": false, "faults": 3}',
    b'{"alive": true, "components": {"a": {"state": 1e999, "detail": NaN}}}',
    b'{"version": "1", "pid": 1, "uptime": NaN, "state_dir": "", "config": {"path": "", "hash": "", "loaded_seconds": 1e999}}',
    b'{"version": "1", "pid": ' + b"9" * 5_000 + b"}",
    b"\xff\xfe",
    b"",
]


@pytest.mark.parametrize("command", ["status", "healthcheck", "doctor"])
@pytest.mark.parametrize("body", ODD, ids=range(len(ODD)))
def test_an_answer_that_is_none_of_ours_is_told_and_no_bug(
    command: str, body: bytes, run: Run, rows_sink: Path, server: ThreadingHTTPServer
) -> None:
    server.body = body or b" "  # type: ignore[attr-defined]
    done = run(
        command, "--url", f"http://127.0.0.1:{server.server_address[1]}", *(["--offline"] * (command == "doctor"))
    )
    assert "bug" not in done.stderr, done.stderr
    assert done.returncode in {1, 69} or command == "doctor"


def test_what_is_to_be_pasted_is_one_command(run: Run, rows_sink: Path, server: ThreadingHTTPServer) -> None:
    told = json.loads(run("status", "--json", "--url", f"http://127.0.0.1:{server.server_address[1]}").stdout)
    assert told["next"].startswith("restart the daemon")
    status = msgspec.structs.replace(
        evil_status(), faults=[], lost_bytes={}, dropped_lines={}, sinks={}, sources={}, troubles={}
    )
    assert judge(status).next.startswith("shipper check --config '/c; rm -rf x")


def refuse(state_dir: Path, sink: str, reason: str = EVIL) -> None:
    batch = Batch(
        times=[1], stamps=[1], hashes=[1], raws=[EVIL], resources=[Resource("app", {"service.name": EVIL})],
        offsets=[0], severities=[9], messages=[EVIL], attributes=[{EVIL: EVIL}],
    )  # fmt: skip
    DeadLetters(state_dir / "dead-letter" / f"{sink}.jsonl").append(batch, [PermanentError(reason, code=EVIL)], sink)


@pytest.mark.parametrize("command", [("ls",), ("show",), ("retry",)], ids=" ".join)
def test_dead_letters(command: tuple[str, ...], run: Run, rows_sink: Path) -> None:
    refuse(rows_sink / "state", "rows")
    done = run("dead-letters", *command)
    is_clean(done)
    if command == ("show",):
        assert EVIL in json.loads(done.stdout)["reason"]


@pytest.mark.parametrize("command", ["ls", "show"])
def test_dead_letters_tell_no_secret_that_a_client_quoted(command: str, run: Run, rows_sink: Path) -> None:
    refuse(rows_sink / "state", "rows", "no login for u:S3CRETlogin@h")
    with (rows_sink / "shipper.yaml").open("a") as file:
        file.write("log: {loki_url: 'http://u:S3CRETlogin@h'}\n")
    done = run("dead-letters", command)
    assert "no login for" in done.stdout
    assert "S3CRET" not in done.stdout


def test_names_of_files_in_doctor_and_check(run: Run, rows_sink: Path) -> None:
    name = "a\x1b[2J\x9b\u202e\nFORGED √ D99 x.log"
    (rows_sink / "logs").mkdir()
    (rows_sink / "logs" / name).write_text("x\n")
    (rows_sink / "logs" / name).chmod(0)
    config = yaml.safe_load((rows_sink / "shipper.yaml").read_text())
    config["sources"]["two"] = {"type": "file", "include": [f"{rows_sink}/logs/*.log"]}
    config["sources"]["again"] = {"type": "file", "include": [f"{rows_sink}/logs/a*"]}
    path = rows_sink / "b\x1b[2J\u202e\nFORGED.yaml"
    path.write_text(yaml.safe_dump(config))
    for command in (("doctor", "--user", "nobody"), ("doctor", "--json"), ("check",), ("check", "--online")):
        is_clean(run(*command, "--config", path))
    path.write_text(yaml.safe_dump({**config, "active": EVIL, EVIL: 1}))
    for command in (("doctor",), ("check",), ("status",)):
        is_clean(run(*command, "--config", path))


def test_lines_in_test_parse(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text(json.dumps({"level": "info", "message": EVIL, EVIL: EVIL, "k": {EVIL: [EVIL]}}) + "\n" + EVIL)
    for form in ("pretty", "json"):
        is_clean(run("test-parse", path, "-o", form))
    shown = run("test-parse", path).stdout
    assert [line for line in shown.splitlines() if line[:2] != "  " and not line.startswith("line ")] == []
