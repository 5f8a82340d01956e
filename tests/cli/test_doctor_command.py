"""``shipper doctor`` as it is run: its output, its exit codes, and whose permissions it judges."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import rmtree
from subprocess import CompletedProcess
from typing import Any

import pytest

from shipper.doctor.result import CHECKS
from support.daemon import Daemon, eventually, free_port

Run = Callable[..., "CompletedProcess[str]"]


def config(directory: Path, **more: Any) -> dict[str, Any]:
    return {
        "sources": {"app": {"type": "file", "include": [str(directory / "app.log")]}},
        "sinks": {"db": {"type": "sqlite", "path": str(directory / "logs.db"), "buffer": {"max_size": "1MiB"}}},
        **more,
    }


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that other users may enter."""
    top = Path(tempfile.mkdtemp(prefix="shipper-doctor-"))
    top.chmod(0o755)
    (top / "app.log").write_text("a line\n")
    yield top
    rmtree(top)


def written(place: Path, **more: Any) -> Path:
    path = place / "shipper.yaml"
    http = {"listen": f"127.0.0.1:{free_port()}"}
    path.write_text(json.dumps({"state_dir": str(place / "state"), "http": http, **config(place), **more}))
    return path


def told(done: CompletedProcess[str]) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in json.loads(done.stdout)["rows"]:
        rows.setdefault(row["id"], []).append(row)
    return rows


def test_a_running_daemon_is_fine(tmp_path: Path) -> None:
    (tmp_path / "app.log").write_text("a line\n")
    with Daemon(tmp_path / "daemon", config(tmp_path)) as daemon:
        assert eventually(lambda: daemon.metric("shipper_sink_lines_acked_total") == 1)
        assert daemon.process is not None
        done = daemon.command("doctor")
        assert done.returncode == 0, done.stdout
        lines = done.stdout.splitlines()
        # The clock of a test machine is kept by somebody else, or by nobody; and it may lack a compiler.
        assert {line[:5] for line in lines if line.startswith(("x", "!"))} <= {"! D05", "! D60"}
        assert f"√ D03 daemon       shipper 0.1.0 runs as process {daemon.process.pid}, up " in done.stdout
        assert f"√ D04 reload       {daemon.path} is what runs" in done.stdout
        assert re.search(r"^√ D77 db write +canary [0-9a-f-]{36} written$", done.stdout, re.MULTILINE)
        assert re.fullmatch(r"0 problems, [012] warnings?, \d+ checks are fine", lines[-1])

        daemon.path.write_text(daemon.path.read_text() + "\n# changed\n")
        rows = told(daemon.command("doctor", "--json", "--no-canary"))
        assert rows["D04"][0]["fix"] == f"reload: kill -HUP {daemon.process.pid}"
        assert "D77" not in rows


def test_a_daemon_that_does_not_answer_is_told(tmp_path: Path) -> None:
    (tmp_path / "app.log").write_text("a line\n")
    with Daemon(tmp_path / "daemon", config(tmp_path, http={"enabled": False})) as daemon:
        done = daemon.command("doctor", "--json", "--offline")
        assert done.returncode == 0
        (row,) = told(done)["D03"]
        assert daemon.process is not None
        assert row["verdict"] == "warn"
        assert row["evidence"].startswith(f"process {daemon.process.pid} holds the state directory but does not answer")


def test_a_broken_file_is_the_only_thing_told_and_exits_1(tmp_path: Path, run: Run) -> None:
    (tmp_path / "shipper.yaml").write_text("sources: {}\nsinkz: {}\n")
    done = run("doctor")
    assert done.returncode == 1
    assert {line.split()[1] for line in done.stdout.splitlines() if line.startswith("x")} == {"D01"}
    assert "unknown key 'sinkz'; did you mean 'sinks'?" in done.stdout
    assert "fix: correct it, then: shipper check" in done.stdout


def test_a_fault_exits_1_and_quiet_prints_nothing_else(place: Path, run: Run) -> None:
    path = written(place, sources={"docker": {"type": "docker", "path": str(place / "none")}})
    done = run("doctor", "-c", path, "--offline", "-q")
    assert done.returncode == 1
    assert next(line[:5] for line in done.stdout.splitlines() if line[:1] in "x!√") == "x D10"
    assert "√" not in done.stdout
    assert json.loads(run("doctor", "-c", path, "--offline", "--json").stdout)["problems"] == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_another_user_is_judged_by_his_own_permissions(place: Path, run: Run) -> None:
    path = written(place)
    os.chown(place / "app.log", 0, 4242)
    (place / "app.log").chmod(0o640)
    rows = told(run("doctor", "-c", path, "--offline", "--json", "--user", "10001:10001"))
    assert rows["D11"][0]["fix"] == 'add gid 4242: group_add: ["4242"]   (systemd: SupplementaryGroups=4242)'
    assert rows["D40"][0]["verdict"] == "fail"
    rows = told(run("doctor", "-c", path, "--offline", "--json", "--user", "10001:10001,4242"))
    assert rows["D11"][0]["verdict"] == "ok"


def test_a_user_that_is_none_is_a_usage_error(place: Path, run: Run) -> None:
    done = run("doctor", "-c", written(place), "--user", "no_such_user")
    assert done.returncode == 2
    assert "there is no user 'no_such_user'" in done.stderr


def test_nothing_is_made_by_looking(place: Path, run: Run) -> None:
    path = written(place)
    before = sorted(place.rglob("*"))
    assert run("doctor", "-c", path).returncode == 0
    assert sorted(place.rglob("*")) == before


def test_the_page_lists_every_check() -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/doctor.md").read_text()
    rows = re.findall(r"^\| (D\d\d) \| ([^|]+) \| ([^|]+) \|", page, re.MULTILINE)
    assert rows == [(identifier, check.what, check.looks_at) for identifier, check in CHECKS.items()]
