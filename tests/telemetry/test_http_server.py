from __future__ import annotations

import http.client
import json
import logging
import socket
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from shipper import __version__
from shipper.config.types import HttpConfig
from shipper.errors import ConfigError
from shipper.native import compiled
from shipper.telemetry.health import Health
from shipper.telemetry.http import HttpServer, split_address
from shipper.telemetry.metrics import Metrics
from shipper.telemetry.status import ConfigStatus, Status


def ask(
    server: HttpServer, path: str, *, method: str = "GET", headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection(server.address, timeout=10)
    try:
        connection.request(method, path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read().decode()
    finally:
        connection.close()


def test_metrics_are_prometheus_text(server: HttpServer, metrics: Metrics) -> None:
    metrics.acked('my"sql\n', 5)
    status, headers, body = ask(server, "/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=")
    assert 'shipper_sink_lines_acked_total{sink="my\\"sql\\n"} 5.0' in body
    assert "# HELP shipper_sink_lines_acked_total Lines that a sink has taken durably." in body
    assert "# TYPE shipper_sink_lines_acked_total counter" in body
    form = "pure" if compiled is None else "compiled"
    assert f'shipper_build_info{{form="{form}",version="{__version__}"}} 1.0' in body


def test_metrics_are_openmetrics_when_asked_for(server: HttpServer, metrics: Metrics) -> None:
    metrics.dropped("spool_full", 1)
    _, headers, body = ask(server, "/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    assert body.endswith("# EOF\n")
    assert 'shipper_dropped_total{reason="spool_full"} 1.0' in body


def test_a_scrape_after_a_count_sees_it(server: HttpServer, metrics: Metrics) -> None:
    ask(server, "/metrics")
    metrics.acked("late", 1)
    assert 'acked_total{sink="late"} 1.0' in ask(server, "/metrics")[2]


def test_a_sink_that_is_away_is_told_by_readyz_only(server: HttpServer, health: Health) -> None:
    health.report("sink:mysql", "retrying", "connection refused")
    status, headers, body = ask(server, "/readyz")
    assert (status, headers["Content-Type"]) == (503, "application/json")
    assert json.loads(body)["components"]["sink:mysql"]["detail"] == "connection refused"
    assert ask(server, "/healthz")[0] == 200


def test_healthz_fails_when_a_restart_could_help(server: HttpServer, health: Health) -> None:
    health.report("pipeline", "failed", "the reader died")
    status, _, body = ask(server, "/healthz")
    assert status == 503
    assert json.loads(body)["faults"] == ["pipeline failed: the reader died"]


def test_status_is_told_when_there_is_one_to_tell(metrics: Metrics, health: Health) -> None:
    told = Status(
        version="1", pid=7, uptime=1.5, state_dir="/s", config=ConfigStatus(path="/c", hash="ab", loaded_seconds=1)
    )
    server = HttpServer(HttpConfig(listen="127.0.0.1:0"), metrics, health, lambda: told)
    server.start()
    try:
        status, headers, body = ask(server, "/status")
    finally:
        server.stop()
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert (json.loads(body)["pid"], json.loads(body)["config"]["path"]) == (7, "/c")


def test_an_unknown_path_names_the_known_ones(server: HttpServer) -> None:
    status, _, body = ask(server, "/")
    assert status == 404
    assert "/metrics, /healthz, /readyz" in body


def test_a_query_string_is_ignored(server: HttpServer) -> None:
    assert ask(server, "/healthz?verbose=1")[0] == 200


def test_head_sends_the_same_headers_and_no_body(server: HttpServer) -> None:
    status, headers, body = ask(server, "/nothing", method="HEAD")
    assert (status, body) == (404, "")
    assert int(headers["Content-Length"]) > 0


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "BREW"])
def test_any_other_method_is_refused(server: HttpServer, method: str) -> None:
    status, headers, _ = ask(server, "/metrics", method=method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8687", "localhost.evil.example", "127.0.0.1.evil.example"]
)
def test_a_foreign_host_name_is_refused_on_loopback(server: HttpServer, host: str) -> None:
    assert ask(server, "/metrics", headers={"Host": host})[0] == 403


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9", "127.0.0.1:8687", "[::1]:8687", "10.0.0.7"])
def test_addresses_and_localhost_are_ours(server: HttpServer, host: str) -> None:
    assert ask(server, "/healthz", headers={"Host": host})[0] == 200


def test_a_server_opened_to_the_network_answers_under_any_name(metrics: Metrics, health: Health) -> None:
    server = HttpServer(HttpConfig(listen="0.0.0.0:0"), metrics, health)
    server.start()
    try:
        assert ask(server, "/healthz", headers={"Host": "shipper:8687"})[0] == 200
    finally:
        server.stop()


def test_a_taken_port_says_so_and_what_to_do(server: HttpServer, metrics: Metrics, health: Health) -> None:
    second = HttpServer(HttpConfig(listen=server.address), metrics, health)
    with pytest.raises(ConfigError, match=r"http.listen: cannot listen on 127.0.0.1:\d+: .*choose another port"):
        second.start()
    second.stop()


def test_a_host_that_can_be_no_name_says_so(metrics: Metrics, health: Health) -> None:
    with pytest.raises(ConfigError, match=r"http.listen: cannot listen on a\.\.b:80: .*choose another port"):
        HttpServer(HttpConfig(listen="a..b:80"), metrics, health).start()


def test_a_stopped_server_frees_its_port(metrics: Metrics, health: Health) -> None:
    first = HttpServer(HttpConfig(listen="127.0.0.1:0"), metrics, health)
    first.start()
    address = first.address
    first.stop()
    second = HttpServer(HttpConfig(listen=address), metrics, health)
    second.start()
    second.stop()


def test_a_client_that_says_nothing_holds_up_nobody(server: HttpServer) -> None:
    host, port = split_address(server.address)
    with socket.create_connection((host, port)):
        assert ask(server, "/healthz")[0] == 200


def test_stop_does_not_wait_for_a_silent_client(metrics: Metrics, health: Health) -> None:
    server = HttpServer(HttpConfig(listen="127.0.0.1:0"), metrics, health)
    server.start()
    with socket.create_connection(split_address(server.address)):
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        stopping.join(3)
        assert not stopping.is_alive()


def test_first_requests_may_come_together(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "shipper.telemetry.http_request", raising=False)
    together = threading.Barrier(8)

    def first(_: int) -> int:
        together.wait(10)
        return ask(server, "/healthz")[0]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(first, range(8))) == [200] * 8


@pytest.mark.parametrize("fault", [ImportError("it is gone"), OSError(24, "Too many open files")])
def test_a_request_that_cannot_be_loaded_is_our_fault_and_the_next_may_succeed(
    server: HttpServer, fault: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing:
        @staticmethod
        def find_spec(name: str, path: Sequence[str] | None, target: object = None) -> None:
            if name == "shipper.telemetry.http_request":
                raise fault

    monkeypatch.delitem(sys.modules, "shipper.telemetry.http_request", raising=False)
    with caplog.at_level(logging.ERROR), monkeypatch.context() as during:
        during.setattr(sys, "meta_path", [Failing, *sys.meta_path])
        with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
            ask(server, "/healthz")
    assert [record.getMessage() for record in caplog.records] == ["a request failed"]
    assert str(fault) in caplog.text
    assert ask(server, "/healthz")[0] == 200


@pytest.mark.parametrize("listen", ["8687", "127.0.0.1", "127.0.0.1:http", "127.0.0.1:99999", "127.0.0.1:"])
def test_a_listen_that_is_no_address_is_a_config_error(listen: str) -> None:
    with pytest.raises(ConfigError, match=r"http\.listen"):
        split_address(listen)


@pytest.mark.parametrize(
    ("listen", "expected"),
    [("[::1]:80", ("::1", 80)), (":8687", ("127.0.0.1", 8687)), ("0.0.0.0:0", ("0.0.0.0", 0))],
)
def test_addresses_are_split(listen: str, expected: tuple[str, int]) -> None:
    assert split_address(listen) == expected
