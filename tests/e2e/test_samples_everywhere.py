"""The samples, delivered by a real daemon to every backend, are there what they are in sqlite: field by field."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from shipper.record import Record
from support.azure_app_insights_server import AppInsightsServer
from support.azure_logs_server import AzureLogsServer
from support.cloudwatch_server import CloudwatchServer
from support.daemon import Daemon
from support.elasticsearch_server import ElasticsearchServer
from support.loki_server import LokiServer
from support.otlp_server import OtlpServer

SAMPLES = Path(__file__).parent.parent / "samples"
RECORDED = datetime(2026, 11, 22, tzinfo=UTC)
FIELDS = {"id", "ts", "level", "message", "attributes", "source", "resource"}

Rows = dict[str, dict[str, Any]]
MakeDaemon = Callable[..., Daemon]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The samples as if they were written yesterday: backends refuse what is old. Only dates change."""
    directory = tmp_path_factory.mktemp("samples")
    shutil.copytree(SAMPLES, directory, dirs_exist_ok=True)
    day = datetime.fromtimestamp(time.time(), UTC) - timedelta(days=1)
    later = (day - RECORDED).days * 86_400_000
    for path in directory.rglob("*"):
        if path.is_dir() or path.name.endswith(".json"):
            continue
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rb") as file:
            text = file.read()
        text = text.replace(b"2026-11-22", f"{day:%Y-%m-%d}".encode())
        text = text.replace(b"22/Nov/2026", f"{day:%d/%b/%Y}".encode())
        text = re.sub(rb"\b1795\d{9}\b", lambda match: str(int(match[0]) + later).encode(), text)
        with opener(path, "wb") as file:
            file.write(text)
    return directory


def run(daemon: Daemon, *sinks: str) -> list[Rows]:
    """Deliver to all the sinks at once, then ask for everything in each as a user would."""
    usage = daemon.once()
    assert usage.code == 0, daemon.log[-4000:]
    return [read(daemon, sink) for sink in sinks]


def read(daemon: Daemon, sink: str) -> Rows:
    told = daemon.command("query", "--sink", sink, "--all", "--utc", "-o", "json")
    assert told.returncode == 0, told.stderr
    rows = [json.loads(line) for line in told.stdout.splitlines()]
    found = {row["id"]: row for row in rows}
    assert len(found) == len(rows), "read back twice"
    return found


def config(samples: Path, tmp_path: Path, sinks: dict[str, Any]) -> dict[str, Any]:
    return {
        "sources": {
            "docker": {"type": "docker", "path": str(samples / "containers")},
            "fallback": {"type": "file", "include": [str(samples / "logs" / "*.log")], "parser": "fallback"},
        },
        "sinks": {"sqlite": {"type": "sqlite", "path": str(tmp_path / "logs.db")}, **sinks},
        "active": ["sqlite", *sinks],
    }


def assert_same(found: Rows, expected: Rows) -> None:
    assert len(expected) > 2_000
    assert expected.keys() - found.keys() == set(), "missing"
    assert found.keys() - expected.keys() == set(), "unknown"
    assert {name for one in expected.values() for name in one} >= FIELDS  # empty ones are left out of a row
    wrong = [
        f"{name} of {identity}: {one.get(name)!r:.300} is {found[identity].get(name)!r:.300}"
        for identity, one in expected.items()
        for name in one.keys() | found[identity].keys()
        if one.get(name) != found[identity].get(name)
    ]
    assert wrong == [], f"{len(wrong)} fields differ"


@contextmanager
def stand_in(kind: str, request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """Start the server of a backend; gives the section of a sink that writes there."""
    if kind == "mysql":
        yield request.getfixturevalue("database").sink()
        return
    servers: dict[str, Callable[[], Any]] = {
        "loki": LokiServer,
        "elasticsearch": ElasticsearchServer,
        "cloudwatch": CloudwatchServer,
        "azure_logs": AzureLogsServer,
        "azure_app_insights": AppInsightsServer,
    }
    with servers[kind]() as server:
        yield server.sink()


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("mysql", marks=pytest.mark.mariadb),
        "loki",
        "elasticsearch",
        "cloudwatch",
        "azure_logs",
        "azure_app_insights",
    ],
)
def test_read_back_by_its_own_reader(
    kind: str, samples: Path, tmp_path: Path, make_daemon: MakeDaemon, request: pytest.FixtureRequest
) -> None:
    with stand_in(kind, request) as section:
        daemon = make_daemon(config(samples, tmp_path, {"other": section}))
        expected, found = run(daemon, "sqlite", "other")
    assert_same(found, expected)


@pytest.mark.parametrize("encoding", ["protobuf", "json"])
def test_as_an_otlp_receiver_decodes_it(encoding: str, samples: Path, tmp_path: Path, make_daemon: MakeDaemon) -> None:
    with OtlpServer() as server:
        sink = server.sink(encoding=encoding, original=True)
        [expected] = run(make_daemon(config(samples, tmp_path, {"otlp": sink})), "sqlite")
        records = server.records()
    assert len(records) == len(expected)
    assert_same({record.id: row(record) for record in records}, expected)


def row(record: Record) -> dict[str, Any]:
    """Give a record as ``query -o json`` would."""
    from shipper.reading.display import json_line

    told: dict[str, Any] = json.loads(json_line(record))
    return told
