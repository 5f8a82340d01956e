"""``shipper status``: what a running daemon tells, what the state alone tells, verdicts and exit codes."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import msgspec
import pytest

from shipper.delivery.deadletter import DeadLetters
from shipper.delivery.survey import StateSurvey
from shipper.errors import PermanentError
from shipper.record import Batch, Resource
from shipper.state.checkpoint import holder
from shipper.telemetry.status import ConfigStatus, SinkStatus, SourceStatus, Status, Waiting, judge
from support.daemon import Daemon, eventually, free_port

Run = Callable[..., "CompletedProcess[str]"]


def refuse(state_dir: Path, sink: str, count: int = 2) -> None:
    """Put dead letters into the state, as a delivery would."""
    batch = Batch(
        times=[1] * count, stamps=[1] * count, hashes=list(range(count)), raws=["bad"] * count,
        resources=[Resource("app", {})] * count, offsets=[0] * count, severities=[9] * count,
        messages=["bad"] * count, attributes=[{}] * count,
    )  # fmt: skip
    letters = DeadLetters(state_dir / "dead-letter" / f"{sink}.jsonl")
    letters.append(batch, [PermanentError("no", code="1")] * count, sink)


def config(tmp_path: Path, **more: Any) -> dict[str, Any]:
    return {
        "sources": {"app": {"type": "file", "include": [str(tmp_path / "app.log")]}},
        "sinks": {
            "good": {"type": "sqlite", "path": str(tmp_path / "good.db")},
            "bad": {"type": "sqlite", "path": str(tmp_path / "plain" / "bad.db")},
        },
        "active": ["good"],
        **more,
    }


@pytest.fixture
def app_log(tmp_path: Path) -> Path:
    (tmp_path / "plain").write_text("a file where a directory should be")
    path = tmp_path / "app.log"
    path.write_text("one\ntwo\n")
    return path


def test_a_healthy_daemon_is_ok_and_tells_what_it_did(tmp_path: Path, app_log: Path) -> None:
    with Daemon(tmp_path / "daemon", config(tmp_path)) as daemon:
        assert eventually(lambda: daemon.metric("shipper_sink_lines_acked_total") == 2)
        assert eventually(lambda: daemon.metric("shipper_source_lag_bytes") == 0)
        told = json.loads(daemon.command("status", "--json").stdout)
        assert (told["verdict"], told["reasons"], told["next"]) == ("OK", [], "shipper query --since 1h")
        assert told["sources"]["app"] | {"lag_seconds": 0} == {
            "state": "ok", "detail": "", "files_open": 1, "files_unreadable": 0, "lag_bytes": 0, "lag_seconds": 0,
            "lines": 2,
        }  # fmt: skip
        sink = told["sinks"]["good"]
        assert (sink["role"], sink["state"], sink["lines"], sink["spill_limit"]) == ("active", "ok", 2, 1 << 30)
        assert len(told["config"]["hash"]) == 12
        assert daemon.process is not None
        assert told["pid"] == daemon.process.pid

        shown = daemon.command("status")
        first, *_, last = shown.stdout.splitlines()
        assert shown.returncode == 0
        assert "config ok (loaded " in first
        assert first.endswith("VERDICT: OK")
        assert last == "next: shipper query --since 1h"
        assert "√ sink   good  ok" in shown.stdout
        assert "\x1b" not in shown.stdout

        brief = daemon.command("status", "--check")
        assert (brief.returncode, brief.stdout) == (0, "OK\n")
        assert holder(daemon.state_dir) == daemon.process.pid


def test_a_sink_that_is_away_degrades_with_its_error_and_the_next_step(tmp_path: Path, app_log: Path) -> None:
    with Daemon(tmp_path / "daemon", config(tmp_path, active=["good", "bad"])) as daemon:
        refuse(daemon.state_dir, "good")
        assert eventually(lambda: json.loads(daemon.get("/status")[1])["sinks"]["bad"]["attempts"] > 0)
        told = json.loads(daemon.command("status", "--json").stdout)
        sink = told["sinks"]["bad"]
        assert told["verdict"] == "DEGRADED"
        assert told["next"] == "shipper check --online --sink bad"
        assert sink["error"] == sink["detail"] != ""
        assert sink["next_try"] is not None
        assert sink["retries"] >= 1
        assert told["waiting"]["good"]["dead_letters"] == 2

        shown = daemon.command("status").stdout
        assert "VERDICT: DEGRADED" in shown
        assert re.search(r"2 dead letters \([0-9.]+ (B|KiB) of 256 MiB\)", shown)
        assert "next try in " in shown
        assert shown.endswith("next: shipper check --online --sink bad\n")
        brief = daemon.command("status", "--check")
        assert brief.returncode == 1
        assert brief.stdout.startswith("DEGRADED: sink bad is ")
        assert len(brief.stdout.splitlines()) == 1


def test_a_refused_reload_is_told(tmp_path: Path, app_log: Path) -> None:
    with Daemon(tmp_path / "daemon", config(tmp_path)) as daemon:
        daemon.reload(config(tmp_path, active=["none"]))
        daemon.wait_log("reload refused")
        done = daemon.command("status")
        assert "config REFUSED" in done.stdout
        assert done.stdout.endswith(f"next: shipper check --config {daemon.path}\n")


def test_nobody_there_shows_what_the_state_tells(tmp_path: Path, run: Run) -> None:
    port, state = free_port(), tmp_path / "state"
    (tmp_path / "shipper.yaml").write_text(
        json.dumps({**config(tmp_path), "state_dir": str(state), "http": {"listen": f"127.0.0.1:{port}"}})
    )
    done = run("status")
    assert done.returncode == 69
    assert f"no daemon answers at 127.0.0.1:{port}" in done.stdout
    assert "nothing waits for any sink" in done.stdout
    assert done.stdout.endswith(f"next: shipper run --config {tmp_path}/shipper.yaml\n")

    refuse(state, "good", 3)
    spill = state / "spill" / "old"
    spill.mkdir(parents=True)
    (spill / "0000000000000001.seg").write_bytes(b"x" * 2048)
    done = run("status")
    assert "  good: spill 0 B, at most 0 records; 3 dead letters\n" in done.stdout
    assert "  old: spill 2 KiB, at most 0 records; 0 dead letters\n" in done.stdout
    told = json.loads(run("status", "--json").stdout)
    assert (told["verdict"], told["waiting"]["good"]["dead_letters"]) == ("DOWN", 3)
    brief = run("status", "--check")
    assert (brief.returncode, brief.stdout[:6]) == (69, "DOWN: ")


def test_nobody_there_and_a_broken_file(tmp_path: Path, run: Run) -> None:
    (tmp_path / "shipper.yaml").write_text(f"sources: {{}}\nhttp: {{listen: '127.0.0.1:{free_port()}'}}")
    done = run("status")
    assert done.returncode == 69
    assert "E-CFG-MISSING" in done.stdout
    assert done.stdout.endswith(f"next: shipper check --config {tmp_path}/shipper.yaml\n")


def test_a_daemon_that_does_not_answer_is_known_by_its_lock(tmp_path: Path, app_log: Path) -> None:
    with Daemon(tmp_path / "daemon", config(tmp_path, http={"enabled": False})) as daemon:
        done = daemon.command("status")
        assert done.returncode == 69
        assert daemon.process is not None
        assert f"process {daemon.process.pid} holds {daemon.state_dir}" in done.stdout
        assert "http.enabled is false" in done.stdout


def test_nobody_holds_a_directory_that_is_not_there(tmp_path: Path) -> None:
    assert holder(tmp_path) is None
    (tmp_path / "lock").touch()
    assert holder(tmp_path) is None


def test_a_wrong_url_is_a_usage_error(run: Run) -> None:
    assert run("status", "--url", "https://x").returncode == 2


def test_what_is_not_of_this_version_is_not_trusted(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        import threading

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b'HTTP/1.0 200 OK\r\nServer: shipper/9\r\n\r\n{"version": 9}')

        thread = threading.Thread(target=answer)
        thread.start()
        done = run("status", "--check", "--url", f"127.0.0.1:{server.getsockname()[1]}")
        thread.join()
    assert done.returncode == 69
    assert "is of another version" in done.stdout


def status(**more: Any) -> Status:
    made: dict[str, Any] = {
        "version": "1", "pid": 1, "uptime": 1.0, "state_dir": "/s",
        "config": ConfigStatus(path="/c.yaml", hash="ab", loaded_seconds=1.0),
        "sources": {"app": SourceStatus(state="ok")}, "sinks": {"db": SinkStatus(role="active", state="ok")},
    }  # fmt: skip
    return Status(**{**made, **more})


@pytest.mark.parametrize(
    ("more", "word", "reason", "next_step"),
    [
        ({}, "OK", "", "shipper query --since 1h"),
        ({"faults": ["reader failed"]}, "FAILED", "reader failed", "restart the daemon, then: shipper status"),
        (
            {"sinks": {"db": SinkStatus(role="active", state="starting")}},
            "STARTING", "sink db is starting", "shipper status",
        ),
        (
            {"sinks": {"db": SinkStatus(role="active", state="parked", detail="no such table")}},
            "DEGRADED", "sink db is parked: no such table", "shipper check --online --sink db",
        ),
        (
            {"sinks": {"db": SinkStatus(role="active", state="ok", spill_bytes=90, spill_limit=100)}},
            "DEGRADED", "the spill of sink db is 90 % full", "shipper check --online --sink db",
        ),
        (
            {"sinks": {"db": SinkStatus(role="active", state="ok", dead_letter_bytes=81, dead_letter_limit=100)}},
            "DEGRADED", "the dead letters of sink db are 81 % full", "shipper dead-letters ls --sink db",
        ),
        (
            {"sinks": {"db": SinkStatus(role="active", state="ok", restarts=2)}},
            "DEGRADED", "sink db began anew 2 times after a fault of our own; please report it", "shipper doctor",
        ),
        ({"sinks": {"db": SinkStatus(role="active", state="ok", given_up={"too_old": 9})}}, "OK", "", "shipper query --since 1h"),
        (
            {"sources": {"app": SourceStatus(state="ok", files_unreadable=2)}},
            "DEGRADED", "source app: 2 files cannot be read", "shipper doctor",
        ),
        (
            {"sources": {"app": SourceStatus(state="retrying", detail="gone")}},
            "DEGRADED", "source app is retrying: gone", "shipper doctor",
        ),
        (
            {"sources": {"app": SourceStatus(state="ok", lag_bytes=5, lag_seconds=301)}},
            "DEGRADED", "source app is 5 bytes behind, for 301 s", "shipper doctor",
        ),
        (
            {"config": ConfigStatus(path="/c.yaml", hash="", loaded_seconds=1, valid=False, detail="bad")},
            "DEGRADED", "bad", "shipper check --config /c.yaml",
        ),
        ({"troubles": {"state": "is retrying: full"}}, "DEGRADED", "state is retrying: full", "shipper doctor"),
        ({"dropped_lines": {"spill_full": 3}}, "DEGRADED", "3 lines given up since the start (spill_full)", "shipper doctor"),
        ({"lost_bytes": {"gone": 3}}, "DEGRADED", "3 bytes lost since the start (gone)", "shipper doctor"),
        (
            {"waiting": {"db": Waiting(dead_letters=4, dead_letters_age=60)}},
            "DEGRADED", "4 records refused by sink db, the newest in the last day", "shipper dead-letters ls --sink db",
        ),
        ({"waiting": {"db": Waiting(dead_letters=4, dead_letters_age=100_000)}}, "OK", "", "shipper query --since 1h"),
        (
            {"waiting": {"old": Waiting(spill_records=4, spill_bytes=60)}},
            "DEGRADED", "at most 4 records on disk for old, which is not configured", "shipper spill ls",
        ),
    ],
)  # fmt: skip
def test_verdicts(more: dict[str, Any], word: str, reason: str, next_step: str) -> None:
    verdict = judge(status(**more))
    assert (verdict.word, "; ".join(verdict.reasons), verdict.next) == (word, reason, next_step)


def test_dead_letters_are_counted_again_only_after_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[Path] = []
    count = DeadLetters.count.fget
    assert count is not None
    monkeypatch.setattr(DeadLetters, "count", property(lambda self: counted.append(self.path) or count(self)))
    survey = StateSurvey(tmp_path)
    assert survey.waiting(0) == {}
    refuse(tmp_path, "db")
    now = (tmp_path / "dead-letter" / "db.jsonl").stat().st_mtime
    for _ in range(2):
        assert survey.waiting(now + 5) == {
            "db": Waiting(dead_letters=2, dead_letters_age=pytest.approx(5, abs=0.1)),
        }
    assert len(counted) == 1
    refuse(tmp_path, "db", 3)
    assert survey.waiting(now)["db"].dead_letters == 3
    assert len(counted) == 2


def test_status_survives_the_way_over_json() -> None:
    assert msgspec.convert(json.loads(msgspec.json.encode(status())), Status) == status()
