"""Clients of the daemon's HTTP server that are slow, greedy or rude, over real sockets: a probe gets its answer."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import socket
import socketserver
import threading
import time
from collections.abc import Iterator

import pytest

from shipper.config.types import HttpConfig
from shipper.secret import Masker
from shipper.telemetry import http, http_request
from shipper.telemetry.endpoint import Endpoint
from shipper.telemetry.exposition import label
from shipper.telemetry.health import Health
from shipper.telemetry.http import MAX_CLIENTS, HttpServer, split_address
from shipper.telemetry.metrics import Metrics
from shipper.telemetry.status import ConfigStatus, Status

HOST = b"Host: 127.0.0.1\r\n"


def connect(server: HttpServer) -> socket.socket:
    return socket.create_connection(split_address(server.address), timeout=10)


def exchange(server: HttpServer, request: bytes) -> bytes:
    with connect(server) as client:
        client.sendall(request)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while more := client.recv(1 << 16):
                answer += more
    return answer


def probe(server: HttpServer) -> float:
    """Ask as ``shipper healthcheck`` does; give the seconds until the answer."""
    began = time.monotonic()
    assert Endpoint(*split_address(server.address)).ask("/healthz", timeout=4).status == 200
    return time.monotonic() - began


@contextlib.contextmanager
def dribbling(clients: list[socket.socket], piece: bytes) -> Iterator[None]:
    """Let clients send a little now and then, for ever, until they are hung up on."""
    done = threading.Event()

    def run() -> None:
        while not done.wait(0.05):
            for client in clients:
                with contextlib.suppress(OSError):
                    client.send(piece)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        for client in clients:
            client.close()


@pytest.mark.parametrize("count", [MAX_CLIENTS, 200])
@pytest.mark.parametrize(
    ("first", "piece"),
    [(b"", b""), (b"GET /healthz HT", b"T"), (b"GET /healthz HTTP/1.1\r\n" + HOST, b"X-a: b\r\n")],
    ids=["silent", "slow line", "slow headers"],
)
def test_clients_that_never_end_their_request_keep_no_probe_waiting(
    server: HttpServer, count: int, first: bytes, piece: bytes
) -> None:
    probe(server)  # loads what answers
    clients = []
    for _ in range(count):
        clients.append(connect(server))
        clients[-1].sendall(first)
    with dribbling(clients, piece):
        assert [probe(server) for _ in range(5)] == [pytest.approx(0, abs=1.0)] * 5


def test_clients_that_take_no_answer_keep_no_probe_waiting(metrics: Metrics, health: Health) -> None:
    told = Status(
        version="1",
        pid=7,
        uptime=1,
        state_dir="/s" * 4_000_000,
        config=ConfigStatus(path="", hash="", loaded_seconds=1),
    )
    server = HttpServer(HttpConfig(listen="127.0.0.1:0"), metrics, health, lambda: told)
    server.start()
    clients = []
    try:
        for _ in range(MAX_CLIENTS):
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(split_address(server.address))
            client.sendall(b"GET /status HTTP/1.0\r\n\r\n")
            client.recv(100)  # from here on we are what it waits for
            clients.append(client)
        assert probe(server) < 1
    finally:
        for client in clients:
            client.close()
        server.stop()


def test_one_deadline_holds_for_the_whole_request(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    probe(server)
    monkeypatch.setattr(http_request, "CLIENT_TIMEOUT", 0.4)
    client = connect(server)
    client.sendall(b"GET /healthz HTTP/1.1\r\n")
    began = time.monotonic()
    done = threading.Event()

    def dribble() -> None:
        while not done.wait(0.05):
            with contextlib.suppress(OSError):
                client.send(b"X-a: b\r\n")

    thread = threading.Thread(target=dribble)
    thread.start()
    try:
        answer = client.recv(1 << 16)
    finally:
        done.set()
        thread.join()
        client.close()
    assert answer.startswith(b"HTTP/1.0 408 ")
    assert time.monotonic() - began < 3


def test_who_is_hung_up_on_is_the_slowest_and_the_log_says_so(
    server: HttpServer, caplog: pytest.LogCaptureFixture
) -> None:
    probe(server)
    clients = [connect(server) for _ in range(MAX_CLIENTS)]
    try:
        with caplog.at_level(logging.WARNING):
            probe(server)
        assert clients[0].recv(1) == b"", "the first has waited longest"
        clients[-1].sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert clients[-1].recv(100).startswith(b"HTTP/1.0 200")
        assert "hung up on the slowest" in caplog.text
    finally:
        for client in clients:
            client.close()


def test_a_thread_that_cannot_be_started_costs_no_slot(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    probe(server)
    with monkeypatch.context() as during:

        def refused(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        clients = [connect(server) for _ in range(3)]
        during.setattr(threading.Thread, "start", refused)
        for _ in range(2 * MAX_CLIENTS):
            with connect(server) as client, contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b"", "hung up on"
    for client in clients:
        client.close()
    assert probe(server) < 1


def test_without_descriptors_the_server_waits_and_does_not_spin(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe(server)
    tries: list[float] = []
    enough = threading.Event()

    def refused(_: object) -> None:
        tries.append(time.monotonic())
        if len(tries) == 3:
            enough.set()
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as during:
        during.setattr(socketserver.TCPServer, "get_request", refused)
        client = connect(server)
        assert enough.wait(10)
    assert tries[2] - tries[0] >= 2 * http.PAUSE * 0.9
    client.close()
    assert probe(server) < 1


ACCEPTS = [
    "application/openmetrics-text;version=abc",
    "application/openmetrics-text;version=",
    "application/openmetrics-text; version=; q=",
    "application/openmetrics-text;version=1.0.0.0.0",
    "application/openmetrics-text;version=1e9",
    "application/openmetrics-text;version=abc;escaping=zzz",
    "application/openmetrics-text;version=1.0.0;escaping=zzz",
    "text/plain;version=zzz;escaping=allow-utf-8",
    "text/plain;version=1.0.0;escaping=",
    ";;;,,,===",
    "application/openmetrics-text;" * 300,
    ",".join(["application/openmetrics-text; version=1.0.0;q=zzz"] * 200),
    "\xff\xfe",
    "",
]


@pytest.mark.parametrize("accept", ACCEPTS, ids=range(len(ACCEPTS)))
def test_whatever_an_accept_header_says_the_numbers_are_told(
    server: HttpServer, accept: str, caplog: pytest.LogCaptureFixture
) -> None:
    answer = exchange(
        server, b"GET /metrics HTTP/1.0\r\n" + HOST + b"Accept: " + accept.encode("latin-1") + b"\r\n\r\n"
    )
    assert answer.startswith(b"HTTP/1.0 200 ")
    assert b"shipper_build_info" in answer
    assert not caplog.records


RUDE = {
    "large header": (b"GET /healthz HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 70_000 + b"\r\n\r\n", b"431"),
    "large line": (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", b"431"),
    "many headers": (b"GET /healthz HTTP/1.1\r\n" + b"".join(b"X%d: a\r\n" % n for n in range(200)) + b"\r\n", b"431"),
    "no request": (b"\xff\x00\x1b[2J\r\n\r\n", b"400"),
    "unknown version": (b"GET / HTTP/9.9\r\n\r\n", b"505"),
    "two hosts": (b"GET /status HTTP/1.0\r\n" + HOST + b"Host: evil\r\n\r\n", b"400"),
    "absolute": (b"GET http://evil.example/status HTTP/1.0\r\n\r\n", b"404"),
    "odd method": (b"__class__ /healthz HTTP/1.0\r\n\r\n", b"405"),
    "post": (b"POST /status HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello", b"405"),
    "line feeds alone": (b"GET /healthz HTTP/1.0\n\n", b"200"),
    "in pieces": (b"GET /healthz HTTP/1.0\r\n\r\nGET /status HTTP/1.0\r\n\r\n", b"200"),
}


@pytest.mark.parametrize("name", RUDE)
def test_a_rude_request_gets_its_answer(server: HttpServer, name: str, caplog: pytest.LogCaptureFixture) -> None:
    request, status = RUDE[name]
    answer = exchange(server, request)
    # A request that is larger than we read may lose the answer to the reset that its rest causes.
    assert answer.startswith((b"HTTP/1.0 " + status, b"HTTP/1.1 " + status)) or (status == b"431" and not answer)
    assert answer.count(b"HTTP/1.") <= 1
    assert b"\x1b" not in answer
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    probe(server)


def test_a_request_that_ends_early_gets_none(server: HttpServer) -> None:
    with connect(server) as client:
        client.sendall(b"GET /status HTTP/1.1\r\nHost: 127.0.0.1")
        client.shutdown(socket.SHUT_WR)
        assert client.recv(100) == b""


def test_a_page_that_fails_says_so(metrics: Metrics, health: Health, caplog: pytest.LogCaptureFixture) -> None:
    def failing() -> Status:
        raise OSError(24, "Too many open files")

    server = HttpServer(HttpConfig(listen="127.0.0.1:0"), metrics, health, failing)
    server.start()
    try:
        with caplog.at_level(logging.ERROR):
            assert exchange(server, b"GET /status HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.0 500 ")
    finally:
        server.stop()
    assert "Too many open files" in caplog.text


@pytest.mark.parametrize("accept", [b"", b"Accept: application/openmetrics-text; version=1.0.0\r\n"])
def test_no_label_steers_a_terminal_or_ends_a_line(server: HttpServer, metrics: Metrics, accept: bytes) -> None:
    names = ["/a\x1b[31m\n.log", "/a\\x1b[31m\n.log", "/\udcff.log", "/\u202e\x9b\u200b.log", '/"} 1\n# x']
    for name in names:
        metrics.set_lag(name, 1, 0.0)
    body = exchange(server, b"GET /metrics HTTP/1.0\r\n" + accept + b"\r\n").partition(b"\r\n\r\n")[2].decode()
    assert all(character.isprintable() for character in body.replace("\n", ""))
    shown = [line for line in body.splitlines() if line.startswith("shipper_source_lag_bytes{")]
    assert len(set(shown)) == len(names), "two files stay two series"


def test_labels_stay_apart() -> None:
    assert label("a\x1b") != label("a\\x1b")
    assert label("/var/log/app.log") == "/var/log/app.log"


def test_no_answer_holds_a_secret_or_steers(metrics: Metrics) -> None:
    mask = Masker(["S3CRETvalue"])
    health = Health(mask=mask)
    told = Status(
        version="1", pid=7, uptime=1, state_dir="/s", config=ConfigStatus(path="/c", hash="", loaded_seconds=1),
        troubles={"x": "http://u:S3CRETother@h/?sig=S3CRETelse and S3CRETvalue \x1b[2J\u202e\x9b"},
    )  # fmt: skip
    health.report("sink:a", "retrying", "driver quotes S3CRETvalue \x1b[2J\x9b\u202e\n")
    server = HttpServer(HttpConfig(listen="127.0.0.1:0"), metrics, health, lambda: told, mask=mask)
    server.start()
    try:
        for path in (b"/healthz", b"/readyz", b"/status"):
            answer = exchange(server, b"GET " + path + b" HTTP/1.0\r\n\r\n")
            assert b"S3CRET" not in answer
            assert b"***" in answer
            assert answer.isascii()
            assert b"\x1b" not in answer
            json.loads(answer.partition(b"\r\n\r\n")[2])
    finally:
        server.stop()
    assert "S3CRET" not in health.summary()
    assert health.summary().isprintable()


def test_the_bounds_are_what_the_documentation_says() -> None:
    assert (MAX_CLIENTS, http_request.MAX_HEAD, http_request.CLIENT_TIMEOUT, http.GRACE) == (16, 16 << 10, 5.0, 0.03)
