"""``shipper check --online``: what it finds, what it writes, and its exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from sinks.sqlite import SqliteConfig, SqliteSink
from support.arrivals import sqlite_database, sqlite_rows

Run = Callable[..., "CompletedProcess[str]"]

CONFIG = """
sources: {{app: {{type: file, include: [{0}/app.log]}}}}
sinks:
  good: {{type: sqlite, path: {0}/good.db}}
  bad: {{type: sqlite, path: {0}/plain/bad.db}}
  out: {{type: file, path: {0}/out.log}}
active: good
state_dir: {0}/state
"""


@pytest.fixture(autouse=True)
def _config(tmp_path: Path) -> None:
    (tmp_path / "shipper.yaml").write_text(CONFIG.format(tmp_path))
    (tmp_path / "plain").write_text("a file where a directory should be")


def canaries(path: Path) -> int:
    return sum(message.startswith("shipper canary") for (message,) in sqlite_rows(path))


def test_a_database_that_is_not_there_yet_is_left_for_the_daemon_to_make(run: Run, tmp_path: Path) -> None:
    """Made here it would belong to root, who asks, and the daemon could not write to it."""
    done = run("check", "--online")
    assert done.returncode == 0, done.stderr
    assert "the daemon makes it, so no canary was written" in done.stdout
    assert not (tmp_path / "good.db").exists()


def test_sink_in_use_is_examined_and_takes_a_canary(run: Run, tmp_path: Path) -> None:
    sink = SqliteSink(SqliteConfig(type="sqlite", path=str(tmp_path / "good.db")))
    sink.open()
    sink.close()
    done = run("check", "--online")
    assert done.returncode == 0, done.stderr
    assert all(line.startswith("√ good: ") for line in done.stdout.splitlines())
    assert "read back" in done.stdout
    assert canaries(tmp_path / "good.db") == 1


def test_a_table_that_is_not_there_yet_is_left_for_the_daemon_to_make(run: Run, tmp_path: Path) -> None:
    (tmp_path / "good.db").touch()
    with sqlite_database(tmp_path / "good.db") as db:
        db.execute("CREATE TABLE theirs (a)")
    before = (tmp_path / "good.db").read_bytes()
    done = run("check", "--online")
    assert done.returncode == 0, done.stderr
    assert "no canary was written, because that would first make: CREATE TABLE" in done.stdout
    assert (tmp_path / "good.db").read_bytes() == before


def test_without_canary_nothing_is_written(run: Run, tmp_path: Path) -> None:
    assert run("check", "--online", "--no-canary").returncode == 0
    assert not (tmp_path / "good.db").exists()


def test_fault_is_told_with_its_fix_and_exit_1(run: Run) -> None:
    done = run("check", "--online", "--sink", "bad")
    assert done.returncode == 1
    assert done.stdout.startswith("x bad: directory: ")
    assert "\n  fix: check that the directory exists" in done.stdout


def test_json_has_one_object_a_finding(run: Run) -> None:
    done = run("check", "--online", "--sink", "bad", "--sink", "out", "-o", "json")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {(row["sink"], row["verdict"]) for row in found} == {("bad", "fail"), ("out", "ok")}
    assert all(row["fix"] for row in found if row["verdict"] == "fail")


def test_sink_that_takes_no_canary_gets_none(run: Run, tmp_path: Path) -> None:
    assert run("check", "--online", "--sink", "out").returncode == 0
    assert not (tmp_path / "out.log").exists()


def test_unknown_sink_and_options_out_of_place(run: Run) -> None:
    done = run("check", "--online", "--sink", "goood")
    assert (done.returncode, "did you mean 'good'?" in done.stderr) == (78, True)
    assert run("check", "--no-canary").returncode == 2


def test_offline_looks_at_the_file_alone(run: Run, tmp_path: Path) -> None:
    """What systemd runs before a reload: it may not read the service's secrets there."""
    path = tmp_path / "shipper.yaml"
    path.write_text(
        f"sources: {{app: {{type: file, include: [{tmp_path}/app.log]}}}}\n"
        "sinks: {db: {type: mysql, host: x, database: x, user: x, password_file: credentials/none}}\n"
    )
    assert run("check").returncode == 78
    done = run("check", "--offline", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert run("check", "--offline", "--online").returncode == 2
    path.write_text(path.read_text() + "nonsense: 1\n")
    done = run("check", "--offline", "--quiet")
    assert done.returncode == 78
    assert "shipper.yaml:3:1 unknown key 'nonsense'" in done.stderr
