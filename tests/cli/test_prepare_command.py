"""``shipper prepare``: shows what a sink lacks, asks, and makes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from shipper.errors import ParkedError
from sinks.sqlite import SqliteConfig, SqliteSink
from support.arrivals import sqlite_database

Run = Callable[..., "CompletedProcess[str]"]

CONFIG = """
sources: {{app: {{type: file, include: [{0}/app.log]}}}}
sinks:
  db: {{type: sqlite, path: {0}/theirs.db}}
  out: {{type: file, path: {0}/out.log}}
active: [db, out]
state_dir: {0}/state
"""


@pytest.fixture(autouse=True)
def _place(tmp_path: Path) -> None:
    (tmp_path / "shipper.yaml").write_text(CONFIG.format(tmp_path))
    (tmp_path / "theirs.db").touch()
    with sqlite_database(tmp_path / "theirs.db") as db:
        db.execute("CREATE TABLE activity_logs (id TEXT PRIMARY KEY, level TEXT, message TEXT, created_at TEXT)")


def _schema(tmp_path: Path) -> list[str]:
    with sqlite_database(tmp_path / "theirs.db") as db:
        return [sql for (sql,) in db.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL")]


def _sink(tmp_path: Path) -> SqliteSink:
    return SqliteSink(SqliteConfig(type="sqlite", path=str(tmp_path / "theirs.db")))


def test_a_foreign_table_is_changed_by_the_command_alone(run: Run, tmp_path: Path) -> None:
    before = _schema(tmp_path)
    done = run("check", "--online")
    assert done.returncode == 1
    assert "was not made by shipper" in done.stdout
    assert "shipper prepare" in done.stdout
    with pytest.raises(ParkedError, match="run shipper prepare"):
        _sink(tmp_path).open()
    assert _schema(tmp_path) == before
    done = run("prepare", "db", "--yes")
    assert done.returncode == 0, done.stderr
    assert 'ALTER TABLE "activity_logs" ADD COLUMN "details" TEXT;' in done.stdout
    assert done.stdout.endswith("db: done\n")
    sink = _sink(tmp_path)
    sink.open()
    sink.close()
    assert run("check", "--online").returncode == 0
    assert run("prepare").stdout == "db: nothing to make\nout: nothing to make\n"


def test_print_shows_what_can_be_run_by_hand_and_runs_nothing(run: Run, tmp_path: Path) -> None:
    before = _schema(tmp_path)
    done = run("prepare", "--print")
    assert done.returncode == 1
    assert _schema(tmp_path) == before
    with sqlite_database(tmp_path / "theirs.db") as db:
        db.execute(done.stdout)
    assert run("prepare", "--print").returncode == 0


def test_no_answer_is_a_no(run: Run, tmp_path: Path) -> None:
    before = _schema(tmp_path)
    done = run("prepare")
    assert done.returncode == 1
    assert "nothing was run; --yes runs it" in done.stderr
    assert _schema(tmp_path) == before


def test_unknown_sink_and_options_that_exclude_each_other(run: Run) -> None:
    assert run("prepare", "dbb").returncode == 78
    assert run("prepare", "--yes", "--print").returncode == 2
