"""``shipper test-parse`` shows what the daemon would ship."""

from __future__ import annotations

import gzip
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]
SAMPLES = Path(__file__).parents[1] / "samples"


def docker_line(text: str, second: int, stream: str = "stdout") -> str:
    return json.dumps(
        {"log": text, "stream": stream, "time": f"2026-11-22T12:00:{second:02d}.5Z"}, separators=(",", ":")
    )


def test_fallback_file(run: Run) -> None:
    answer = run("test-parse", SAMPLES / "logs" / "fallback.log", "-n", "2")
    assert answer.returncode == 0
    assert answer.stdout == (
        "line 1: ERROR 2026-11-22T20:47:22.856000000Z\n"
        "  message  Logs DB unavailable, saving fail 29\n"
        "line 2: INFO 2026-11-22T20:47:22.857001075Z\n"
        "  message  user 29 action like\n"
    )
    assert answer.stderr == "-- plain: 2 lines became 2 records: 1 error, 1 info --\n"


@pytest.mark.parametrize("packed", [False, True])
def test_docker_lines_are_recognised_joined_and_parsed(tmp_path: Path, run: Run, packed: bool) -> None:
    lines = [
        docker_line('{"level":"warn","message":"slow","ms":7}\n', 1),
        docker_line("x" * 16_384, 2),
        docker_line("line\n", 2),
        docker_line("TypeError: x\n", 4, "stderr"),
        docker_line("    at a (/a.js:1:2)\n", 4, "stderr"),
        docker_line("\x1b[32mok\x1b[0m\n", 5),
    ]
    path = tmp_path / ("x-json.log.1.gz" if packed else "x-json.log")
    with gzip.open(path, "wt") if packed else path.open("w") as file:
        file.write("\n".join(lines) + "\n")
    answer = run("test-parse", path, "-o", "json")
    records = sorted((json.loads(line) for line in answer.stdout.splitlines()), key=lambda record: record["ts"])
    assert [(record["level"], record["message"], record["stream"]) for record in records][:3] == [
        ("warn", "slow", "stdout"),
        ("info", "x" * 16_384 + "line", "stdout"),
        ("error", "TypeError: x", "stderr"),
    ]
    assert records[2]["attributes"]["exception.stacktrace"] == "TypeError: x\n    at a (/a.js:1:2)"
    assert records[0]["attributes"] == {"ms": 7}
    assert "Docker json-file: 6 lines became 4 records" in answer.stderr
    shown = run("test-parse", path).stdout
    assert "line 4: ERROR 2026-11-22T12:00:04.5" in shown
    assert "\x1b" not in shown


def test_names_come_from_the_file_beside_it(run: Run) -> None:
    (log,) = (SAMPLES / "containers").glob("885a*/*-json.log")
    record = json.loads(run("test-parse", log, "-n", "1", "-o", "json").stdout)
    assert (record["container"], record["service"], record["message"]) == ("faildaily-tty-1", "tty", "tty line 0")


def test_empty_file(tmp_path: Path, run: Run) -> None:
    (tmp_path / "empty.log").touch()
    answer = run("test-parse", tmp_path / "empty.log")
    assert (answer.returncode, answer.stdout) == (0, "")
    assert answer.stderr == "-- plain: 0 lines became 0 records: none --\n"


def test_undated_lines_have_no_time(tmp_path: Path, run: Run) -> None:
    (tmp_path / "a.log").write_text("hello\n")
    assert run("test-parse", tmp_path / "a.log").stdout == "line 1: INFO no time\n  message  hello\n"


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["/nowhere.log"], 2, "File '/nowhere.log' does not exist"),
        (["--parser", "xml", str(SAMPLES / "logs" / "fallback.log")], 78, "xml"),
    ],
)
def test_mistakes(run: Run, arguments: list[str], code: int, text: str) -> None:
    answer = run("test-parse", *arguments)
    assert answer.returncode == code
    assert text in answer.stderr
    assert "Traceback" not in answer.stderr
