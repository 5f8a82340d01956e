"""``shipper healthcheck``: one line, exit 0 or 1, and only a fault that a restart could mend fails."""

from __future__ import annotations

import json
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shipper.config.types import HttpConfig
from shipper.errors import ConfigError
from shipper.telemetry.endpoint import Endpoint
from shipper.telemetry.health import Health
from shipper.telemetry.http import HttpServer
from shipper.telemetry.metrics import Metrics
from shipper.testing.http_server import HttpServer as OtherServer
from shipper.testing.http_server import Reply, Request
from support.daemon import Daemon, free_port

Run = Callable[..., "subprocess.CompletedProcess[str]"]


class NotShipper(OtherServer):
    def answer(self, request: Request) -> Reply:
        return Reply(200, b'{"alive": true}')


@pytest.fixture
def health() -> Health:
    return Health()


@pytest.fixture
def server(health: Health) -> Iterator[HttpServer]:
    server = HttpServer(HttpConfig(listen="127.0.0.1:0"), Metrics(), health)
    server.start()
    yield server
    server.stop()


def test_alive_is_ok(run: Run, server: HttpServer) -> None:
    done = run("healthcheck", "--url", f"http://{server.address}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


def test_a_sink_that_is_down_is_told_and_does_not_fail(run: Run, server: HttpServer, health: Health) -> None:
    health.report("sink:loki", "retrying", "connection\nrefused\x1b[2J")
    done = run("healthcheck", "--url", f"{server.address}/healthz")
    assert (done.returncode, done.stdout) == (0, "ok; sink:loki is retrying (connection\\nrefused\\x1b[2J)\n")


def test_a_fault_that_a_restart_could_mend_fails(run: Run, server: HttpServer, health: Health) -> None:
    health.report("reader", "failed", "it ended")
    done = run("healthcheck", "--url", f"http://{server.address}")
    assert (done.returncode, done.stdout) == (1, "failed: reader failed: it ended\n")


def test_nobody_there_fails_in_one_line(run: Run) -> None:
    port = free_port()
    done = run("healthcheck", "--url", f"http://127.0.0.1:{port}")
    assert (done.returncode, done.stdout) == (1, f"failed: no daemon answers at 127.0.0.1:{port}: Connection refused\n")


def test_one_that_takes_and_says_nothing_fails_in_time(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = f"127.0.0.1:{silent.getsockname()[1]}"
        done = run("healthcheck", "--url", where, "--timeout", "0.2")
    assert (done.returncode, done.stdout) == (1, f"failed: no answer from {where} within 0.2 s\n")


def test_somebody_else_there_fails(run: Run) -> None:
    with NotShipper() as other:
        done = run("healthcheck", "--url", other.url)
    assert done.returncode == 1
    assert "is not shipper" in done.stdout


@pytest.mark.parametrize("url", ["https://127.0.0.1:1", "127.0.0.1:99999", "http://:1", "x:y"])
def test_a_wrong_url_is_a_usage_error(run: Run, url: str) -> None:
    done = run("healthcheck", "--url", url)
    assert done.returncode == 2
    assert "write one such as http://127.0.0.1:8687" in done.stderr


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://127.0.0.1:1", "127.0.0.1:1"),
        ("localhost:2/healthz", "localhost:2"),
        ("http://[::1]:3/", "[::1]:3"),
        ("http://shipper", "shipper:80"),
        ("http://[::1]", "[::1]:80"),
    ],
)
def test_addresses_of_urls(url: str, shown: str) -> None:
    assert str(Endpoint.of_url(url)) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http: {listen: '0.0.0.0:9'}", "127.0.0.1:9"),
        ("http: {listen: '[::]:9'}", "[::1]:9"),
        ("http: {listen: ':${PORT}'}", "127.0.0.1:7"),
        ("http: {listen: logs.internal:9}", "logs.internal:9"),
        ("sinks: {}", "127.0.0.1:8687"),
        # Being edited, while the daemon runs on what it loaded.
        ("http: {listen: [", "127.0.0.1:8687"),
        ("http: {listen: 'x:77777'}", "127.0.0.1:8687"),
        ("http: {lsten: 'x:1'}", "127.0.0.1:8687"),
        ("sinks: {a: {type: none_such}}\nhttp: {listen: '127.0.0.1:9'}", "127.0.0.1:9"),
    ],
)
def test_address_of_a_file(tmp_path: Path, text: str, shown: str) -> None:
    path = tmp_path / "shipper.yaml"
    path.write_text(text)
    assert str(Endpoint.of_file(path, {"PORT": "7"})) == shown


def test_no_file_means_the_default(tmp_path: Path) -> None:
    assert str(Endpoint.of_file(tmp_path / "none.yaml", {})) == "127.0.0.1:8687"


@pytest.mark.parametrize(
    ("text", "told"), [("http: {enabled: false}", "http.enabled is false"), ("http: {listen: ':0'}", "with --url")]
)
def test_what_cannot_be_asked_says_what_to_do(tmp_path: Path, run: Run, text: str, told: str) -> None:
    path = tmp_path / "shipper.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=told):
        Endpoint.of_file(path, {})
    done = run("healthcheck")
    assert done.returncode == 1
    assert told in done.stdout


def test_it_starts_within_its_budget_and_loads_nothing_heavy(server: HttpServer, tmp_path: Path) -> None:
    """100 ms on an idle machine; CPU time is compared, because the machine may be busy, with some air."""
    heavy = (
        "urllib3", "requests", "rich", "structlog", "apsw", "sqlite3", "watchdog", "prometheus_client",
        "shipper.config.loader", "shipper.daemon.pipeline", "shipper.registry", "http.client", "ssl",
    )  # fmt: skip
    (tmp_path / "shipper.yaml").write_text(f"http: {{listen: '{server.address}'}}")
    code = (
        "import sys, json; from shipper.__main__ import main; assert main(sys.argv[1:]) == 0;"
        f"print(json.dumps([m for m in {heavy!r} if m in sys.modules]), file=sys.stderr)"
    )
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        answer = subprocess.run(
            [sys.executable, "-c", code, "healthcheck", "-c", tmp_path / "shipper.yaml"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert json.loads(answer.stderr) == []
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < 0.25


def test_a_real_daemon_with_its_sink_away(tmp_path: Path) -> None:
    config = {
        "sources": {"app": {"type": "file", "include": [str(tmp_path / "app.log")]}},
        "sinks": {"db": {"type": "sqlite", "path": str(tmp_path / "plain" / "logs.db")}},
    }
    (tmp_path / "plain").write_text("a file where a directory should be")
    (tmp_path / "app.log").write_text("a line\n")
    with Daemon(tmp_path / "daemon", config) as daemon:
        done = daemon.command("healthcheck")
        assert done.returncode == 0
        assert done.stdout.startswith("ok")
        daemon.kill9()
        done = daemon.command("healthcheck")
        assert (done.returncode, done.stdout[:8]) == (1, "failed: ")
