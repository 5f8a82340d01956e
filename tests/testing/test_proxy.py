"""The fault proxy, in front of a server that answers every line with itself in capitals."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest

from shipper.testing.proxy import FaultProxy

Connect = Callable[[], socket.socket]


class Shout(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        try:
            for line in self.rfile:
                self.server.seen.append(line)  # type: ignore[attr-defined]
                if line == b"bye\n":
                    return
                self.wfile.write(line.upper())
        except OSError:
            return


class Server(socketserver.ThreadingTCPServer):
    seen: list[bytes]
    daemon_threads = True
    allow_reuse_address = True


class UnixServer(socketserver.ThreadingUnixStreamServer):
    seen: list[bytes]
    daemon_threads = True


def run(server: Server | UnixServer) -> threading.Thread:
    server.seen = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    return thread


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Shout) as server:
        thread = run(server)
        yield server
        server.shutdown()
        thread.join(10)


@pytest.fixture
def proxy(server: Server) -> Iterator[FaultProxy]:
    with FaultProxy(server.server_address) as proxy:
        yield proxy


@pytest.fixture
def connect(proxy: FaultProxy) -> Iterator[Connect]:
    opened = []

    def connect() -> socket.socket:
        client = socket.create_connection(("127.0.0.1", proxy.port), timeout=10)
        opened.append(client)
        return client

    yield connect
    for client in opened:
        client.close()


def ask(client: socket.socket, text: bytes) -> bytes:
    client.sendall(text)
    return client.recv(1000)


def assert_broken(client: socket.socket) -> None:
    """Reads to the end of the connection: a reset or a plain end, both are a loss to a client."""
    with contextlib.suppress(ConnectionError):
        assert client.recv(1000) == b""


def test_pass(connect: Connect, proxy: FaultProxy) -> None:
    client = connect()
    assert ask(client, b"one\n") == b"ONE\n"
    assert ask(client, b"two\n") == b"TWO\n"
    assert (proxy.connections, proxy.cuts) == (1, 0)


def test_unix_socket_upstream(tmp_path: Path) -> None:
    with UnixServer(str(tmp_path / "s"), Shout) as server:
        thread = run(server)
        with (
            FaultProxy(str(tmp_path / "s")) as proxy,
            socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as client,
        ):
            assert ask(client, b"one\n") == b"ONE\n"
        server.shutdown()
        thread.join(10)


def test_the_end_of_a_connection_is_passed_on(connect: Connect) -> None:
    client = connect()
    client.sendall(b"bye\n")
    assert client.recv(10) == b""


def test_reset_breaks_open_and_new_connections_until_switched_back(connect: Connect, proxy: FaultProxy) -> None:
    client = connect()
    ask(client, b"one\n")
    proxy.switch("reset")
    assert_broken(client)
    with contextlib.suppress(ConnectionError):  # the reset may come before connect returns
        assert_broken(connect())
    proxy.switch("pass")
    assert ask(connect(), b"one\n") == b"ONE\n"


def test_reset_all_breaks_once(connect: Connect, proxy: FaultProxy) -> None:
    client = connect()
    ask(client, b"one\n")
    proxy.reset_all()
    assert_broken(client)
    assert ask(connect(), b"one\n") == b"ONE\n"


def test_refuse_and_come_back_on_the_same_port(connect: Connect, proxy: FaultProxy) -> None:
    port = proxy.port
    proxy.switch("refuse")
    with pytest.raises(ConnectionRefusedError):
        connect()
    proxy.switch("pass")
    assert proxy.port == port
    assert ask(connect(), b"one\n") == b"ONE\n"


def test_cut_upstream_lets_so_many_bytes_through(connect: Connect, proxy: FaultProxy, server: Server) -> None:
    client = connect()
    proxy.switch("cut_upstream", after_bytes=4)
    client.sendall(b"one\ntwo\n")
    proxy.wait_for_cuts(1)
    assert b"two\n" not in server.seen


def test_cut_answer_lets_the_server_do_it(connect: Connect, proxy: FaultProxy, server: Server) -> None:
    client = connect()
    proxy.switch("cut_answer")
    client.sendall(b"one\n")
    assert_broken(client)
    assert server.seen == [b"one\n"]


def test_half_answer(connect: Connect, proxy: FaultProxy) -> None:
    client = connect()
    proxy.switch("half_answer")
    assert ask(client, b"abcd\n") == b"AB"
    assert_broken(client)


@pytest.mark.parametrize(("answer", "seen"), [("before", []), ("after", [b"COMMIT\n"])])
def test_cut_when_a_request_matches(
    connect: Connect, proxy: FaultProxy, server: Server, answer: Literal["before", "after"], seen: list[bytes]
) -> None:
    proxy.cut_when(lambda sent: b"COMMIT" in sent, answer=answer)
    client, other = connect(), connect()
    assert ask(client, b"insert\n") == b"INSERT\n"
    client.sendall(b"COMMIT\n")
    assert_broken(client)
    assert [line for line in server.seen if line == b"COMMIT\n"] == seen
    assert ask(other, b"COMMIT\n") == b"COMMIT\n", "once only"
    proxy.wait_for_cuts(1)  # a cut is counted once it is done, which the client may see first
    assert proxy.cuts == 1


def test_cut_within_the_answer_to_a_request_that_matches(connect: Connect, proxy: FaultProxy, server: Server) -> None:
    proxy.cut_when(lambda sent: b"commit" in sent, answer="half")
    client = connect()
    assert ask(client, b"insert\n") == b"INSERT\n"
    assert ask(client, b"commit\n") == b"COM"
    assert_broken(client)
    assert server.seen == [b"insert\n", b"commit\n"]
    assert ask(connect(), b"commit\n") == b"COMMIT\n", "once only"


def test_cuts_one_after_the_other(connect: Connect, proxy: FaultProxy, server: Server) -> None:
    proxy.cut_when(lambda sent: b"commit" in sent, answer="before", more=["half", "after"])
    for answer in (b"", b"COM", b""):
        client = connect()
        assert ask(client, b"insert\n") == b"INSERT\n"
        client.sendall(b"commit\n")
        if answer:
            assert client.recv(10) == answer
        assert_broken(client)
    assert server.seen.count(b"commit\n") == 2
    assert ask(connect(), b"commit\n") == b"COMMIT\n"
    proxy.wait_for_cuts(3)
    assert proxy.cuts == 3


def test_latency_delays_both_ways(connect: Connect, proxy: FaultProxy) -> None:
    proxy.switch("latency", seconds=0.05)
    client = connect()
    started = time.monotonic()
    assert ask(client, b"one\n") == b"ONE\n"
    assert time.monotonic() - started >= 0.1


def test_slow_close(connect: Connect, proxy: FaultProxy) -> None:
    client = connect()
    proxy.switch("slow_close", seconds=0.1)
    started = time.monotonic()
    client.sendall(b"bye\n")
    assert client.recv(10) == b""
    assert time.monotonic() - started >= 0.1


def test_waiting_for_a_cut_that_does_not_come_ends(proxy: FaultProxy) -> None:
    with pytest.raises(TimeoutError):
        proxy.wait_for_cuts(1, timeout=0.01)


def test_close_ends_every_thread(server: Server) -> None:
    before = threading.active_count()
    proxy = FaultProxy(server.server_address)
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as client:
        ask(client, b"one\n")
        proxy.close()
        assert_broken(client)
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("fault-proxy") == 0
    assert threading.active_count() <= before + 1  # the server's own handler
