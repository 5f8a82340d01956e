"""The daemon as a process: what signals, ports and bad configurations do to it."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import shipper.daemon.daemon as daemon_module
from shipper.config.loader import load
from shipper.daemon.parts import Parts
from shipper.daemon.pipeline import Pipeline
from shipper.errors import StateError
from support.arrivals import sqlite_messages
from support.daemon import Daemon, eventually
from support.docker_log import DockerLog

DEFAULT_PORT = 8687


def config(tmp_path: Path, **more: object) -> dict[str, object]:
    return {
        "sources": {"app": {"type": "file", "include": [str(tmp_path / "app.log")]}},
        "sinks": {"hole": {"type": "blackhole"}},
        "state_dir": str(tmp_path / "state"),
        **more,
    }


def test_taken_default_port_does_not_stop_the_daemon(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        # Another test's daemon may have it just now; soon one of us does.
        for _ in range(100):
            with contextlib.suppress(OSError):
                stack.enter_context(socket.create_server(("127.0.0.1", DEFAULT_PORT)))
                break
            time.sleep(0.1)
        with Daemon(tmp_path, config(tmp_path, http={})) as daemon:
            daemon.wait_log("the default address is taken")
            assert daemon.term() == 0


def test_reload_whose_pipeline_cannot_start_leaves_the_old_one_running_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "shipper.yaml"
    path.write_text(yaml.safe_dump(config(tmp_path)))
    running = daemon_module.Daemon(load(path, {}))
    pipeline = running._start(Parts.build(load(path, {})))
    starts = []

    def refusing(parts: Parts, **options: Any) -> Pipeline:
        starts.append(parts)
        if len(starts) == 1:
            raise StateError("the disk is full")
        return Pipeline(parts, **options)

    monkeypatch.setattr(daemon_module, "Pipeline", refusing)
    pipeline = running._reload(pipeline)
    status = running.status()
    assert not status.config.valid
    assert "the disk is full" in status.config.detail
    assert len(starts) == 2
    pipeline.stop(5.0, now=lambda: False)


def test_taken_port_that_was_chosen_is_an_error_with_exit_code_78(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        daemon = Daemon(tmp_path, config(tmp_path, http={"listen": f"127.0.0.1:{port}"}))
        daemon.start(wait=False)
        assert daemon.wait() == 78
        assert str(port) in daemon.log


def test_file_that_appears_later_is_read_and_term_ends_with_0(tmp_path: Path) -> None:
    with Daemon(tmp_path, config(tmp_path)) as daemon:
        (tmp_path / "app.log").write_text("one\ntwo\n")
        assert eventually(lambda: daemon.metric("shipper_sink_lines_acked_total", sink="hole") == 2)
        assert daemon.term() == 0


def test_second_daemon_on_the_same_state_exits_with_75_and_says_why(tmp_path: Path) -> None:
    with Daemon(tmp_path, config(tmp_path)):
        other = Daemon(tmp_path / "other", config(tmp_path))
        other.start(wait=False)
        assert other.wait() == 75
        assert "in use by another shipper" in other.log


def test_bad_configuration_exits_with_78_and_names_the_line(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, config(tmp_path, nonsense=1))
    daemon.start(wait=False)
    assert daemon.wait() == 78
    assert "unknown key 'nonsense'" in daemon.log


def test_reload_takes_a_good_file_and_refuses_a_bad_one_with_the_reason(tmp_path: Path) -> None:
    with Daemon(tmp_path, config(tmp_path)) as daemon:
        daemon.reload(config(tmp_path, active="nobody"))
        daemon.wait_log("reload refused")
        assert "nobody" in daemon.log
        (tmp_path / "app.log").write_text("one\n")
        assert eventually(lambda: daemon.metric("shipper_sink_lines_acked_total", sink="hole") == 1)
        assert daemon.metric("shipper_config_valid") == 0
        daemon.reload(config(tmp_path, sinks={"other": {"type": "blackhole"}}))
        assert eventually(lambda: daemon.metric("shipper_reloads_total", result="ok") == 1)
        with (tmp_path / "app.log").open("a") as file:
            file.write("two\n")
        assert eventually(lambda: daemon.metric("shipper_sink_lines_acked_total", sink="other") == 1)
        assert daemon.metric("shipper_config_valid") == 1
        assert 'shipper_buffer_bytes{sink="hole"}' not in daemon.get("/metrics")[1], "the old sink's gauges are gone"
        assert daemon.term() == 0


def test_once_exits_with_0_when_all_is_delivered(tmp_path: Path) -> None:
    (tmp_path / "app.log").write_text("one\ntwo without end")
    daemon = Daemon(
        tmp_path, config(tmp_path, sinks={"f": {"type": "file", "path": str(tmp_path / "out"), "format": "raw"}})
    )
    assert daemon.once().code == 0
    assert (tmp_path / "out").read_text() == "one\ntwo without end\n"


def database(path: Path) -> dict[str, str]:
    return {"type": "sqlite", "path": str(path)}


def both(tmp_path: Path, active: str | list[str], **sinks: object) -> dict[str, object]:
    return config(tmp_path, sinks={"one": database(tmp_path / "one.db"), **sinks}, active=active)


def messages(path: Path) -> list[str]:
    """Give the messages of an SQLite sink without the canaries, sorted."""
    return sorted(message for message in sqlite_messages(path) if "canary" not in message)


def add(tmp_path: Path, *texts: str) -> None:
    with (tmp_path / "app.log").open("a") as file:
        file.writelines(f"{text}\n" for text in texts)


def test_switch_proves_the_new_sink_by_a_canary_and_splits_the_lines(tmp_path: Path) -> None:
    with Daemon(tmp_path, both(tmp_path, "one", two=database(tmp_path / "two.db"))) as daemon:
        add(tmp_path, "first")
        assert eventually(lambda: messages(tmp_path / "one.db") == ["first"])
        daemon.reload(both(tmp_path, "two", two=database(tmp_path / "two.db")))
        daemon.wait_log("switched")
        add(tmp_path, "second")
        assert eventually(lambda: messages(tmp_path / "two.db") == ["second"])
        assert messages(tmp_path / "one.db") == ["first"]
        proven = [event for event in daemon.events() if event["event"] == "sink proven"]
        assert [event["sink"] for event in proven] == ["two"]
        assert "read back" in proven[0]["by"]
        (switched,) = [event for event in daemon.events() if event["event"].startswith("switched")]
        assert (switched["files"], switched["bytes"]) == (1, 6)
        assert len([message for message in sqlite_messages(tmp_path / "two.db") if "canary" in message]) == 1
        daemon.reload()
        assert eventually(lambda: daemon.metric("shipper_reloads_total", result="ok") == 2)
        assert len([event for event in daemon.events() if event["event"] == "sink proven"]) == 1, "nothing new in use"


def test_sink_that_fails_its_proof_refuses_the_reload_and_changes_nothing(tmp_path: Path) -> None:
    with Daemon(tmp_path, both(tmp_path, "one")) as daemon:
        add(tmp_path, "first")
        (tmp_path / "plain").write_text("no directory")
        daemon.reload(both(tmp_path, "two", two=database(tmp_path / "plain" / "two.db")))
        daemon.wait_log("reload refused")
        assert "sink two failed its proof" in daemon.log
        assert daemon.metric("shipper_config_valid") == 0
        assert "sink two" in str(daemon.health())
        add(tmp_path, "second")
        assert eventually(lambda: messages(tmp_path / "one.db") == ["first", "second"])
        assert daemon.term() == 0


def test_pipeline_runs_on_during_a_proof_and_term_ends_it_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mysql = {"type": "mysql", "host": "127.0.0.1", "port": silent.getsockname()[1], "database": "d", "user": "u"}
        with Daemon(tmp_path, both(tmp_path, "one", far={**mysql, "connect_timeout": "25s"})) as daemon:
            daemon.reload(both(tmp_path, "far", far={**mysql, "connect_timeout": "25s"}))
            silent.settimeout(20)
            connection, _ = silent.accept()
            with connection:
                add(tmp_path, "meanwhile")
                assert eventually(lambda: messages(tmp_path / "one.db") == ["meanwhile"])
                begin = time.monotonic()
                assert daemon.term() == 0
                assert time.monotonic() - begin < 10
                assert "reload given up" in daemon.log


def test_removed_sink_gets_what_it_was_given_after_the_reload(tmp_path: Path) -> None:
    gone = {"type": "file", "path": str(tmp_path / "later" / "out.log"), "format": "raw"}
    with Daemon(tmp_path, config(tmp_path, sinks={"old": gone})) as daemon:
        add(tmp_path, "first")
        assert eventually(lambda: daemon.metric("shipper_lines_read_total") == 1)
        daemon.reload(config(tmp_path, sinks={"new": database(tmp_path / "new.db")}))
        daemon.wait_log("still draining")
        add(tmp_path, "second")
        assert eventually(lambda: messages(tmp_path / "new.db") == ["second"])
        assert daemon.term() == 0
        assert not (tmp_path / "later").exists()
        daemon.start()
        daemon.wait_log("undelivered lines wait for a sink that is not configured")
        (tmp_path / "later").mkdir()
        daemon.reload(config(tmp_path, sinks={"new": database(tmp_path / "new.db"), "old": gone}, active="new"))
        assert eventually((tmp_path / "later" / "out.log").exists)
        assert eventually(lambda: (tmp_path / "later" / "out.log").read_text() == "first\n")
        daemon.reload(config(tmp_path, sinks={"new": database(tmp_path / "new.db")}))
        assert eventually(lambda: daemon.metric("shipper_reloads_total", result="ok") == 2)
        assert messages(tmp_path / "new.db") == ["second"]


def test_what_only_an_answer_over_http_needs_is_loaded_when_somebody_asks(tmp_path: Path) -> None:
    log = DockerLog(tmp_path / "containers")
    log.write("a line")
    log.close()
    whole = config(
        tmp_path,
        sources={"docker": {"type": "docker", "path": str(tmp_path / "containers")}},
        sinks={"one": database(tmp_path / "one.db")},
    )
    heavy = {"http.server", "http.client", "email", "ssl", "_ssl", "_hashlib", "prometheus_client"}
    with Daemon(tmp_path, whole, environ={"PYTHONPROFILEIMPORTTIME": "1"}) as daemon:

        def loaded() -> set[str]:
            return set(re.findall(r"^import time: .*\| +(\S+)$", daemon.log, re.MULTILINE))

        assert eventually(lambda: messages(tmp_path / "one.db") == ["a line"])
        assert loaded() >= {"shipper.telemetry.http", "sinks._sql"}
        assert loaded() & heavy == set()
        assert daemon.get("/healthz")[0] == 200
        assert "http.server" in loaded()
        assert daemon.term() == 0
