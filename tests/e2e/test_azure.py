"""The daemon's commands with the Azure sinks: ship a container's log, look at the sink, read it back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from support.azure_app_insights_server import AppInsightsServer
from support.azure_logs_server import AzureLogsServer
from support.azure_server import AzureServer
from support.daemon import Daemon

LINES = (
    '{"level":"error","message":"payment failed","user_id":42,"details":{"fail_id":7}}',
    "plain words",
    "TypeError: x is undefined\n    at f (/app/a.js:1:2)\n    at g (/app/b.js:3:4)",
    "m" * 100_000,
)


@pytest.fixture(params=[AppInsightsServer, AzureLogsServer])
def server(request: pytest.FixtureRequest) -> Iterator[AzureServer]:
    with request.param() as server:
        yield server


def _log(containers: Path) -> None:
    """A container's log as Docker writes it: long lines in pieces of 16 KiB."""
    identity = hashlib.sha256(b"shop").hexdigest()
    directory = containers / identity
    directory.mkdir(parents=True)
    about = {"ID": identity, "Name": "/shop", "Config": {"Image": "shop:1", "Labels": {}, "Tty": False}}
    (directory / "config.v2.json").write_text(json.dumps(about))
    moment = datetime.now(UTC) - timedelta(minutes=5)
    with (directory / f"{identity}-json.log").open("w") as file:
        for number, line in enumerate("\n".join(LINES).split("\n")):
            stamp = f"{moment + timedelta(milliseconds=number):%Y-%m-%dT%H:%M:%S.%f}123Z"
            whole = line + "\n"
            for start in range(0, len(whole), 16_384):
                entry = {"log": whole[start : start + 16_384], "stream": "stdout", "time": stamp}
                file.write(json.dumps(entry, separators=(",", ":")) + "\n")


def test_ship_look_and_read_back(server: AzureServer, tmp_path: Path) -> None:
    _log(tmp_path / "containers")
    config = {
        "sources": {"docker": {"type": "docker", "path": str(tmp_path / "containers")}},
        "sinks": {"azure": server.sink()},
    }
    daemon = Daemon(tmp_path / "daemon", config)
    assert daemon.once().code == 0, daemon.log
    assert server.count == 4
    read = daemon.command("query", "-o", "json", "--since", "1h")
    assert read.returncode == 0, read.stderr
    records = [json.loads(line) for line in read.stdout.splitlines()]
    assert [record["message"] for record in records] == [
        "payment failed",
        "plain words",
        "TypeError: x is undefined",
        LINES[3],
    ]
    assert records[0]["attributes"] == {"user_id": 42, "details": {"fail_id": 7}}
    assert records[2]["attributes"]["exception.stacktrace"] == LINES[2]
    found = daemon.command("query", "-o", "raw", "--since", "1h", "level:error user_id:42")
    assert found.stdout == "payment failed\n"
    looked = daemon.command("check", "--online", "-o", "json")
    assert looked.returncode == 0, looked.stdout + looked.stderr
    findings = {each["what"]: each["verdict"] for each in map(json.loads, looked.stdout.splitlines())}
    assert (
        findings.items()
        >= {"reachable": "ok", "login": "ok", "limits": "ok", "reading": "ok", "write": "ok", "read": "ok"}.items()
    )
