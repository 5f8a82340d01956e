"""Bytes that end the whole process at every start are passed over before the service manager gives up."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.arrivals import sqlite_messages, wait_for
from support.daemon import Daemon, eventually
from support.docker_log import DockerLog

#: Starts after which systemd leaves the service dead (StartLimitBurst of the unit).
PATIENCE = 10
_CRASH = """
import os
from shipper.parse.parser import Parser

def parse(self, batch, real=Parser.parse):
    if any("poison" in raw for raw in batch.raws):
        os.abort()
    real(self, batch)

Parser.parse = parse
"""


@pytest.mark.parametrize("kind", ["file", "docker", "unterminated"])
def test_a_line_that_kills_every_process_is_set_aside_and_all_others_arrive(tmp_path: Path, kind: str) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(_CRASH)
    database = tmp_path / "logs.db"
    lines = [f"line {number}" for number in range(3_000)]
    lines.insert(1_500 if kind != "unterminated" else 3_000, "poison")
    if kind == "docker":
        log = DockerLog(tmp_path / "containers")
        for line in lines:
            log.write(line)
        log.close()
        source = {"type": "docker", "path": str(tmp_path / "containers")}
    else:
        text = "\n".join(lines) + ("\n" if kind == "file" else "")
        (tmp_path / "app.log").write_text(text)
        source = {"type": "file", "include": [str(tmp_path / "app.log")]}
    daemon = Daemon(
        tmp_path / "daemon",
        {"sources": {"app": source}, "sinks": {"db": {"type": "sqlite", "path": str(database)}}},
        environ={"PYTHONPATH": str(tmp_path / "site")},
    )
    wanted = [line for line in lines if line != "poison"]
    try:
        assert any(_lives(daemon, wanted, database) for _ in range(PATIENCE - 1)), "it is still dying"
        assert wait_for(wanted, lambda: sqlite_messages(database)) == ""
        assert eventually(lambda: daemon.metric("shipper_lost_bytes_total", cause="crashed") >= len("poison"))
        (kept,) = (daemon.state_dir / "set-aside").iterdir()
        assert b"poison" in kept.read_bytes()
        assert b"line" not in kept.read_bytes(), "nothing else was passed over"
        assert kept.stat().st_mode & 0o777 == 0o600
        assert daemon.term() == 0
    finally:
        daemon.kill9()
    daemon.start()
    try:
        daemon.wait_ready()
        assert daemon.term() == 0, "and it does not begin again"
    finally:
        daemon.kill9()


def _lives(daemon: Daemon, wanted: list[str], database: Path) -> bool:
    """Whether a process gets through everything; False as soon as it has died."""
    daemon.kill9()
    daemon.start(wait=False)
    aside = daemon.state_dir / "set-aside"
    eventually(
        lambda: not daemon.running or (aside.exists() and len(sqlite_messages(database)) >= len(wanted)),
        timeout=30,
        every=0.02,
    )
    return daemon.running
