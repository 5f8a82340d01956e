"""The command line itself: help, exit codes, errors as one text, and what starting costs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shipper import __version__
from shipper.__main__ import COMMANDS, EXIT_CODES, main
from shipper.errors import ParkedError, PermanentError, RetryableError, SourceError, StateError
from shipper.native import FORM
from shipper.secret import masked_text

Run = Callable[..., "subprocess.CompletedProcess[str]"]
#: Modules that a command must not load unless it uses them.
HEAVY = ("boto3", "pymysql", "prometheus_client", "watchdog", "apsw", "sqlite3", "structlog", "rich", "urllib3")


def test_version_and_form(run: Run) -> None:
    answer = run("--version")
    assert (answer.returncode, answer.stdout) == (0, f"shipper {__version__} ({FORM})\n")
    assert run("--version", SHIPPER_PURE="1").stdout == f"shipper {__version__} (pure Python: SHIPPER_PURE is set)\n"


def test_help_leads_with_three_examples(run: Run) -> None:
    text = run("--help").stdout
    assert text.index("Examples:") < text.index("Options:") < text.index("Commands:")
    assert text.count("  shipper ", text.index("Examples:")) == 3
    for name, listed in COMMANDS.items():
        assert name in text
        assert listed.summary in text


def test_no_arguments_print_the_help_and_are_a_usage_error(run: Run) -> None:
    answer = run()
    assert answer.returncode == 2
    assert "Examples:" in answer.stdout


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_every_command_has_help_anywhere(name: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, flag]) == 0
    assert "Usage: shipper " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["qeury"], "unknown command 'qeury'; did you mean 'query'?"),
        (["zzz"], "unknown command 'zzz'; commands are run, check, prepare"),
        (["--frobnicate"], "No such option"),
        (["query", "--lvel", "x"], "No such option"),
    ],
)
def test_usage_errors(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert text in capsys.readouterr().err


def _raising(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("shipper.config.loader.load", fail)


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RetryableError("mysql: away"), 69),
        (PermanentError("mysql: no"), 69),
        (ParkedError("mysql: access denied"), 77),
        (SourceError("docker: gone"), 69),
        (StateError("locked by another daemon"), 75),
        (caused(StateError("not writable"), PermissionError(13, "denied")), 77),
        (PermissionError(13, "Permission denied", "/x"), 77),
        (FileNotFoundError(2, "No such file or directory", "/x"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes_by_error(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _raising(error, monkeypatch)
    assert main(["query"]) == code
    assert code in EXIT_CODES
    text = capsys.readouterr().err
    assert "Traceback" not in text
    assert len(text.splitlines()) == (0 if code == 130 else 1)


@pytest.mark.parametrize("arguments", [["-v", "query"], ["query", "-v"]])
def test_verbose_shows_the_traceback(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _raising(StateError("locked"), monkeypatch)
    assert main(arguments) == 75
    text = capsys.readouterr().err
    assert "Traceback" in text
    assert text.endswith("shipper: locked\n")


def test_verbose_reaches_the_commands_of_a_group(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _raising(StateError("locked"), monkeypatch)
    assert main(["dead-letters", "ls", "-v"]) == 75
    assert "Traceback" in capsys.readouterr().err


def test_bug_leaves_a_crash_file_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "shipper.yaml"
    config.write_text(
        f"state_dir: {tmp_path}\nsources: {{app: {{type: file, include: [app.log]}}}}\n"
        "sinks:\n  mysql: {type: mysql, user: u, password: hunter2, host: db, database: d}\n"
    )
    _raising(ZeroDivisionError("oops"), monkeypatch)
    assert main(["query", "--config", str(config)]) == 70
    text = capsys.readouterr().err
    assert text.startswith("shipper: this is a bug: ZeroDivisionError: oops; what we know is in ")
    assert "Traceback" not in text
    (crash,) = tmp_path.glob("crash-*.txt")
    written = crash.read_text()
    assert written.startswith(f"shipper {__version__} ({FORM}), Python ")
    assert "hunter2" not in written
    assert "could not be loaded (ZeroDivisionError), so nothing of it is shown" in written
    assert "Traceback" in written
    assert crash.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("password: x", "password: ***"),
        ("  api_key: 'a b'", "  api_key: ***"),
        ('"api_key": "a \\" b", "c": 1', '"api_key": ***, "c": 1'),
        ("clientSecret=x&y=1", "clientSecret=***&y=1"),
        ("Authorization: ApiKey x", "Authorization: ***"),
        ("Set-Cookie: a=x; b=y", "Set-Cookie: ***"),
        ("GET /push?sig=x&n=1", "GET /push?sig=***&n=1"),
        ("http://u:p@x@h/d", "http://***@h/d"),
        ("base 10: 'password=x'", "base 10: 'password=***"),
        ("{host: db, password: hunter2, port: 1}", "{host: db, password: ***, port: 1}"),
        ("dsn: mysql://u:p@h/d", "dsn: ***"),
        ("endpoint: http://u:p@h/d", "endpoint: http://***@h/d"),
        ("host: db", "host: db"),
    ],
)
def test_what_looks_like_a_secret_is_masked_in_a_text(text: str, expected: str) -> None:
    assert masked_text(text) == expected


def test_interrupt_exits_130(tmp_path: Path) -> None:
    """SIGINT while something runs ends with 130 and no traceback."""
    fifo = tmp_path / "shipper.yaml"
    os.mkfifo(fifo)
    # Reading the pipe blocks the command in a place we know it has reached: our end opens with it.
    child = subprocess.Popen(
        [sys.executable, "-m", "shipper", "query", "--config", str(fifo)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Who runs the tests in the background of a shell hands down that SIGINT is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - no threads run here
    )
    with child, fifo.open("wb", buffering=0):
        # Again until it ends: a signal between the interpreter's last look and its read would wait with the read.
        for _ in range(300):
            child.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(0.2)
                break
        assert child.poll() == 130
        assert child.stderr is not None
        assert b"Traceback" not in child.stderr.read()


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["query", "--help"], ["dead-letters", "ls", "-h"]])
def test_starting_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys, json; from shipper.__main__ import main; main(sys.argv[1:]);"
        f"print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]), file=sys.stderr)"
    )
    answer = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert json.loads(answer.stderr) == []


def test_query_loads_no_sink_it_does_not_read(rows_sink: Path, run: Run) -> None:
    (rows_sink / "rows.jsonl").write_bytes(b"")
    code = (
        "import sys, json; from shipper.__main__ import main; main(sys.argv[1:]);"
        "print(json.dumps([m for m in ('boto3', 'pymysql', 'apsw', 'prometheus_client', 'watchdog') if m in sys.modules]))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, "query", "-c", rows_sink / "shipper.yaml", "--all", "-o", "json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(answer.stdout) == [], answer.stderr


def test_daemon_lets_a_delivery_go_on_while_it_reads(tmp_path: Path) -> None:
    """Python's own 5 ms would be added to each answer of a sink."""
    log, path = tmp_path / "one.log", tmp_path / "shipper.yaml"
    log.write_text("a line\n")
    path.write_text(
        f"state_dir: {tmp_path / 'state'}\nsources: {{one: {{type: file, include: [{log}]}}}}\n"
        "sinks: {out: {type: blackhole}}\nactive: out\n"
    )
    code = "import atexit, sys; atexit.register(lambda: print(sys.getswitchinterval())); import shipper.__main__ as m; m.main()"
    command = [sys.executable, "-c", code, "run", "--config", str(path), "--once"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(answer.stdout) < 0.001


def test_dead_letters_from_refusal_to_retry(rows_sink: Path, run: Run) -> None:
    """The way of a refused record: listed, shown, retried in vain, then taken once the cause is gone."""
    from shipper.delivery.deadletter import DeadLetters
    from shipper.errors import PermanentError as Refused
    from shipper.record import Batch, Resource

    assert run("dead-letters", "ls").stdout == "no dead letters\n"
    assert run("dead-letters", "show").returncode == 1
    batch = Batch(
        times=[1, 2], stamps=[1, 2], hashes=[1, 2], raws=["bad one", "good"], resources=[Resource("app", {})] * 2,
        offsets=[0, 1], severities=[9, 9], messages=["bad one", "good"], attributes=[{}, {}],
    )  # fmt: skip
    DeadLetters(rows_sink / "state" / "dead-letter" / "rows.jsonl").append(batch, [Refused("no", code="1")] * 2, "rows")
    listing = run("dead-letters", "ls").stdout
    assert listing.startswith("rows: 2 records, newest 20")
    assert "2  [1] no\n" in listing
    shown = [json.loads(line)["raw"] for line in run("dead-letters", "show", "--sink", "rows").stdout.splitlines()]
    assert shown == ["bad one", "good"]
    assert json.loads(run("dead-letters", "show", batch.ids[1]).stdout)["raw"] == "good"

    first = run("dead-letters", "retry")
    assert first.returncode == 3
    assert first.stdout.startswith("rows: 1 taken, 1 refused again, 1 left, ")
    assert "1  value too bad" in first.stderr
    assert json.loads(run("dead-letters", "show").stdout)["attempts"] == 2

    (rows_sink / "rows.mended").touch()
    second = run("dead-letters", "retry")
    assert (second.returncode, second.stdout.split(",")[0]) == (0, "rows: 1 taken")
    assert run("dead-letters", "ls").stdout == "no dead letters\n"
    rows = [json.loads(line) for line in (rows_sink / "rows.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [batch.ids[1], batch.ids[0]]


def test_dead_letters_are_given_up_by_name_and_on_purpose(rows_sink: Path, run: Run) -> None:
    from shipper.delivery.deadletter import DeadLetters
    from shipper.errors import PermanentError as Refused
    from shipper.testing.batches import make_batch

    assert run("dead-letters", "drop", "--sink", "rows", "-y").returncode == 1
    letters = DeadLetters(rows_sink / "state" / "dead-letter" / "rows.jsonl")
    letters.append(make_batch(["bad", "worse"]), [Refused("no")] * 2, "rows")
    assert " on disk of 256 MiB, " in run("dead-letters", "ls").stdout
    assert run("dead-letters", "drop", "-y").returncode == 2, "never those of all sinks"
    assert run("dead-letters", "drop", "--sink", "rows").returncode != 0, "no answer is no"
    assert letters.count == 2
    done = run("dead-letters", "drop", "--sink", "rows", "--yes")
    assert (done.returncode, done.stdout) == (0, "dropped 2 records that were never delivered to rows\n")
    assert letters.parts() == []
