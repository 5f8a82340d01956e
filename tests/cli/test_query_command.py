"""``shipper query`` over a plug-in sink that pushes nothing down: the answer is the same whatever a backend can."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from shipper.record import Record, Resource, make_id
from shipper.render import rfc3339

Run = Callable[..., "subprocess.CompletedProcess[str]"]
NOON = 1_795_348_800_000_000_000  # 2026-11-22T12:00:00Z
API = Resource("docker", {"service.name": "api", "container.name": "api-1", "log.iostream": "stdout", "host.name": "h"})
WORKER = Resource("docker", {"service.name": "worker", "container.name": "worker-1"})


def record(second: int, message: str, *, severity: int = 9, resource: Resource = API, **attributes: object) -> Record:
    time_ns = NOON + second * 1_000_000_000 + 123_456_789
    return Record(make_id(time_ns, second), time_ns, severity, message, attributes, f"raw {message}", resource, second)


@pytest.fixture
def rows(rows_sink: Path) -> Path:
    records = [
        record(0, "start"),
        record(1, "login", user_id=42, action="login"),
        record(2, "connection refused", severity=17, dur_ms=5012),
        record(3, "slow request", severity=13, path="/api/x y"),
        record(4, "job done", resource=WORKER),
        record(5, "TypeError: x\n    at a.js:1\n\x1b[31mred\x07 \u202etxet", severity=21),
    ]
    (rows_sink / "rows.jsonl").write_bytes(b"".join(msgspec.json.encode(r) + b"\n" for r in records))
    return rows_sink


def messages(answer: subprocess.CompletedProcess[str]) -> list[str]:
    assert answer.returncode == 0, answer.stderr
    return [json.loads(line)["message"].partition("\n")[0] for line in answer.stdout.splitlines()]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), ["start", "login", "connection refused", "slow request", "job done", "TypeError: x"]),
        (("-n", "2"), ["job done", "TypeError: x"]),
        (("level>=warn",), ["connection refused", "slow request", "TypeError: x"]),
        (("--level", "error"), ["connection refused"]),
        (("--level", "error,warn"), ["connection refused", "slow request"]),
        (("--level", ">=error"), ["connection refused", "TypeError: x"]),
        (("--service", "worker"), ["job done"]),
        (("--user", "42"), ["login"]),
        (("connection", "refused"), ["connection refused"]),
        (("a OR done", "--service", "worker"), ["job done"]),
        (("--since", "2026-11-22T12:00:04Z"), ["job done", "TypeError: x"]),
        (("--until", "2026-11-22T12:00:01Z"), ["start"]),
        (("--since", "2026-11-22T12:00:03.123456789Z", "--until", "2026-11-22T12:00:04.123456789Z"), ["slow request"]),
        (("nothing",), []),
    ],
)
def test_what_is_found(rows: Path, run: Run, arguments: tuple[str, ...], expected: list[str]) -> None:
    since = () if "--since" in arguments else ("--since", "2026-11-22T00:00Z")
    assert messages(run("query", "-o", "json", *since, *arguments)) == expected


def test_all_streams_everything_oldest_first(rows: Path, run: Run) -> None:
    assert len(messages(run("query", "--all", "-n", "1", "-o", "json"))) == 6


def test_json_holds_the_whole_record(rows: Path, run: Run) -> None:
    answer = run("query", "--all", "-o", "json", "refused")
    assert json.loads(answer.stdout) == {
        "ts": "2026-11-22T12:00:02.123456789Z",
        "level": "error",
        "message": "connection refused",
        "id": make_id(NOON + 2_123_456_789, 2),
        "service": "api",
        "host": "h",
        "container": "api-1",
        "stream": "stdout",
        "source": "docker",
        "attributes": {"dur_ms": 5012},
        "resource": API.attributes,
    }


def test_pretty_shows_local_time_marks_further_lines_and_disarms_terminals(rows: Path, run: Run) -> None:
    answer = run("query", "--all", "--tz", "Europe/Berlin", "refused OR TypeError")
    assert answer.stdout == (
        "2026-11-22 13:00:02.123 ERROR api connection refused dur_ms=5012\n"
        "2026-11-22 13:00:05.123 FATAL api TypeError: x\n"
        "    │     at a.js:1\n"
        "    │ \\x1b[31mred\\x07 \\u202etxet\n"
    )


def test_other_forms(rows: Path, run: Run) -> None:
    assert run("query", "--all", "-o", "raw", "slow").stdout == "raw slow request\n"
    line = run("query", "--all", "-o", "logfmt", "slow").stdout
    assert line.startswith(
        'ts=2026-11-22T12:00:03.123456789Z level=warn service=api msg="slow request" path="/api/x y" '
    )
    table = list(csv.DictReader(io.StringIO(run("query", "--all", "-o", "csv").stdout)))
    assert [row["level"] for row in table] == ["info", "info", "error", "warn", "info", "fatal"]
    assert json.loads(table[1]["attributes"]) == {"user_id": 42, "action": "login"}
    assert "\x1b" not in table[5]["message"]


def test_footer_says_range_sink_and_how_to_go_on(rows: Path, run: Run) -> None:
    arguments = (
        "query",
        "--utc",
        "--since",
        "2026-11-22T11:00Z",
        "--until",
        "2026-11-22T13:00Z",
        "-n",
        "2",
        "-o",
        "json",
    )
    seen: list[str] = []
    before: tuple[str, ...] = ()
    while True:
        answer = run(*arguments, *before)
        seen = messages(answer) + seen
        if "--before" not in answer.stderr:
            break
        assert "-- the newest 2 lines, 22 Nov 11:00:00 → " in answer.stderr
        assert " +00:00, rows, " in answer.stderr
        before = ("--before", answer.stderr.split("--before ")[1].split(" --")[0])
    assert seen == ["start", "login", "connection refused", "slow request", "job done", "TypeError: x"]
    assert before == ("--before", f"{rfc3339(NOON + 2_123_456_789)}/{make_id(NOON + 2_123_456_789, 2)}")


def test_one_hour_is_the_default(rows: Path, run: Run) -> None:
    assert messages(run("query", "-o", "json", "--until", "2026-11-22T13:00:02Z")) == [
        "connection refused",
        "slow request",
        "job done",
        "TypeError: x",
    ]


def test_quiet_answers_by_exit_code(rows: Path, run: Run) -> None:
    yes, no = run("query", "--all", "-q", "refused"), run("query", "--all", "-q", "nothing")
    assert (yes.returncode, no.returncode) == (0, 1)
    assert yes.stdout == no.stdout == no.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("level:eror",), 78, "shipper: unknown level 'eror' (column 7); did you mean 'error'?\n"),
        (("--since", "soon"), 78, "shipper: cannot read the time 'soon'; write one such as"),
        (("--sink", "row"), 78, "shipper: there is no sink 'row'; did you mean 'rows'?\n"),
        (("--sink", "out"), 78, "shipper: nothing to read from: out (type stdout) cannot be read back"),
        (("--since", "1h", "--until", "2h"), 78, "shipper: --since is not before --until: no record can match\n"),
        (("--utc", "--tz", "UTC"), 2, "--utc and --tz are two answers to one question; give one"),
        (("-n", "0"), 2, "Invalid value for '-n'"),
        (("-o", "xml"), 2, "'xml' is not one of"),
        (("--config", "/nowhere/shipper.yaml"), 78, "/nowhere/shipper.yaml"),
    ],
)
def test_mistakes(rows: Path, run: Run, arguments: tuple[str, ...], code: int, text: str) -> None:
    answer = run("query", *arguments)
    assert answer.returncode == code
    assert text in answer.stderr
    assert answer.stdout == ""
    assert "Traceback" not in answer.stderr


def test_closed_pipe_is_silent(rows: Path) -> None:
    many = rows / "rows.jsonl"
    many.write_bytes(many.read_bytes() * 5000)
    arguments = [sys.executable, "-m", "shipper", "query", "--config", str(rows / "shipper.yaml"), "--all"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.readline()
        child.stdout.close()
        assert child.stderr.read() == b""
        assert child.wait(60) == 0


def test_colours_only_when_wanted(rows: Path, run: Run) -> None:
    assert "\x1b[31mERROR" in run("query", "--all", "--color", "always", "refused").stdout
    assert "\x1b" not in run("query", "--all", "--color", "auto", "refused").stdout


def test_pager_only_on_a_terminal(rows: Path) -> None:
    """On a terminal the chosen pager gets the answer; without one it is never started."""
    pager = rows / "pager"
    pager.write_text(f"#!/bin/sh\ncat > {rows}/paged\n")
    pager.chmod(0o755)
    arguments = [sys.executable, "-m", "shipper", "query", "--config", str(rows / "shipper.yaml"), "--all", "refused"]
    environment = {**os.environ, "SHIPPER_PAGER": str(pager), "NO_COLOR": "1"}
    subprocess.run(arguments, env=environment, capture_output=True, check=True, timeout=60)
    assert not (rows / "paged").exists()
    leader, follower = pty.openpty()
    try:
        subprocess.run(arguments, env=environment, stdout=follower, stderr=subprocess.PIPE, check=True, timeout=60)
    finally:
        os.close(leader)
        os.close(follower)
    assert "connection refused" in (rows / "paged").read_text()


def test_pretty_shows_a_trace_as_lines_and_cuts_long_values(rows_sink: Path, run: Run) -> None:
    trace = record(
        0, "E: x", **{"exception.type": "E", "exception.message": "x", "exception.stacktrace": "E: x\n  at a\n  at b"}
    )
    long = record(1, "long", blob="y" * 250)
    (rows_sink / "rows.jsonl").write_bytes(b"".join(msgspec.json.encode(r) + b"\n" for r in (trace, long)))
    lines = run("query", "--all", "--utc").stdout.splitlines()
    assert lines[0].endswith("INFO  api E: x")
    assert lines[1:3] == ["    │   at a", "    │   at b"]
    assert lines[3].endswith(f'long blob="{"y" * 200}… (50 more)"')
