"""The base of stand-ins for HTTP backends: a server on a free loopback port that a test can script.

A stand-in inherits `HttpServer` and implements ``answer``, holding the limits and giving the answers of the real server::

    class NatsServer(HttpServer):
        def answer(self, request):
            if len(request.content()) > MOST:
                return Reply(413, b"too large")
            ...

    with NatsServer() as server:
        server.script(Reply(503), Reply(429, headers={"Retry-After": "2"}))     # the next two requests
        server.script(Reply(500), stored=True)                                  # taken, but told otherwise

Faults below HTTP (resets, cuts, latency) are the business of `shipper.testing.proxy`.
"""

from __future__ import annotations

import ssl
import threading
import time
import zlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec


class Request(msgspec.Struct, frozen=True):
    """What came: ``path`` is decoded and without its query, ``headers`` have lower-case names, ``body`` is as sent."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    def content(self) -> bytes:
        """Give the body unpacked by its Content-Encoding: none, gzip or deflate. Raises ValueError."""
        encoding = self.headers.get("content-encoding", "").lower()
        if encoding in {"", "identity"}:
            return self.body
        windows = {"gzip": 31, "deflate": -15}
        if encoding not in windows:
            raise ValueError(f"Content-Encoding {encoding!r} not supported")
        unpacker = zlib.decompressobj(windows[encoding])
        try:
            content = unpacker.decompress(self.body) + unpacker.flush()
        except zlib.error as error:
            raise ValueError(f"not {encoding}: {error}") from error
        if not unpacker.eof:
            raise ValueError(f"not {encoding}: cut short")
        return content


class Reply(msgspec.Struct, frozen=True):
    """What is said."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = {}


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that does not trust us, or that a test has killed, hangs up."""


class HttpServer(ABC):
    """Listens from its making until ``close``. One request at a time is answered, whatever the connections.

    ``requests`` has every request that came, whatever it was told. ``tls`` makes it speak TLS alone. ``port`` 0 is a
    free one.
    """

    def __init__(self, *, tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        self.requests: list[Request] = []
        self._scripted: deque[tuple[Reply, bool]] = deque()
        self._lock = threading.Lock()
        self._server = _Quiet(("127.0.0.1", port), _handler(self))
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port: int = self._server.server_port
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    @abstractmethod
    def answer(self, request: Request) -> Reply:
        """Do what the real server would and say what it would say. A ValueError is answered with 400 and its text."""

    def time(self) -> float:
        """Give the seconds since 1970 that answers carry as their Date."""
        return time.time()

    def script(self, *replies: Reply, stored: bool = False) -> None:
        """Give these replies to the next requests; with ``stored`` each is first taken as usual."""
        with self._lock:
            self._scripted.extend((reply, stored) for reply in replies)

    def handle(self, request: Request) -> Reply:
        """Give the scripted reply, or else the server's own."""
        with self._lock:
            self.requests.append(request)
            scripted, stored = self._scripted.popleft() if self._scripted else (None, True)
            answer = self._answer_or_refuse(request) if stored else None
        reply = scripted or answer
        assert reply is not None
        return reply

    def _answer_or_refuse(self, request: Request) -> Reply:
        try:
            return self.answer(request)
        except ValueError as error:
            return Reply(400, str(error).encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _handler(server: HttpServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1  # headers and body in one packet: no delayed ack between them

        def handle_request(self) -> None:
            parts = urlsplit(self.path)
            request = Request(
                method=self.command,
                path=unquote(parts.path),
                query=dict(parse_qsl(parts.query, keep_blank_values=True)),
                headers={name.lower(): value for name, value in self.headers.items()},
                body=self.rfile.read(int(self.headers.get("Content-Length", 0))),
            )
            reply = server.handle(request)
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            if reply.status not in {204, 304}:
                self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            if reply.status not in {204, 304} and self.command != "HEAD":
                self.wfile.write(reply.body)

        do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = handle_request  # noqa: N815 - the names http.server looks for

        def date_time_string(self, timestamp: float | None = None) -> str:
            return super().date_time_string(server.time() if timestamp is None else timestamp)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler
