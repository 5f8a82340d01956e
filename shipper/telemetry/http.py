"""The daemon's own HTTP server: /metrics, /healthz, /readyz, /status.

Imported only when it is enabled; what answers a request (`shipper.telemetry.http_request`) only when the first one comes, and
prometheus-client only when /metrics is asked for the first time.

Nothing here can change anything: GET and HEAD only, no parameter is read. While we listen on a loopback address, the
``Host`` of a request must be an address, ``localhost`` or this machine's name, so that a web page cannot read us
through a name that it lets point to 127.0.0.1 (DNS rebinding). Who listens on other addresses has opened the numbers
to that network on purpose, under whatever name a scraper there uses.
"""

from __future__ import annotations

import ipaddress
import socket
import socketserver
import sys
import threading
from typing import TYPE_CHECKING, Any

from shipper.errors import ConfigError
from shipper.telemetry.exposition import CLIENT_TIMEOUT, Exposition
from shipper.telemetry.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from shipper.config.types import HttpConfig
    from shipper.telemetry.health import Health
    from shipper.telemetry.metrics import Metrics
    from shipper.telemetry.status import Status

#: Requests served at the same time; a scraper and two probes need three.
MAX_CLIENTS = 16

log = get_logger("http")


class HttpServer:
    """Serves the daemon's numbers and states from threads of its own.

    ``start`` raises ConfigError when it cannot listen. A daemon that starts treats that as a mistake in the
    configuration and does not start: an operator whose probes ask the wrong process would trust a lie. A reload
    that moves the server to a taken address changes nothing, like any other bad configuration.
    """

    def __init__(
        self, config: HttpConfig, metrics: Metrics, health: Health, status: Callable[[], Status] | None = None
    ) -> None:
        """Take what is to be told; ``status`` gives what /status says, and without it there is none."""
        self._listen = config.listen
        self._metrics = metrics
        self._health = health
        self._status = status
        self._server: Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> str:
        """``host:port`` as it is listened on; with port 0 in the configuration, the port that was taken."""
        if self._server is None:
            return self._listen
        host, port = self._server.server_address[:2]
        return f"[{host!s}]:{port}" if ":" in str(host) else f"{host!s}:{port}"

    def start(self) -> None:
        """Listen and serve. Raises ConfigError when the address is none, or taken, or not ours."""
        host, port = split_address(self._listen)
        try:
            family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self._server = Server(
                where[:2], family, host, metrics=self._metrics, health=self._health, status=self._status
            )
        except (OSError, UnicodeError) as error:  # UnicodeError: a host name that no encoding of names takes
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(
                f"http.listen: cannot listen on {self._listen}: {reason}; choose another port, stop what uses this one,"
                " or set http.enabled to false"
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.2,), name="http", daemon=True)
        self._thread.start()
        log.info("listening", address=self.address)

    def stop(self) -> None:
        """Stop listening. A request in flight is let finish within its own timeout."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        if self._thread is not None:
            self._thread.join(CLIENT_TIMEOUT)
            self._thread = None


def split_address(listen: str) -> tuple[str, int]:
    """Split ``host:port``, ``[v6]:port`` or ``:port`` (loopback). Raises ConfigError."""
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ConfigError(f"http.listen: {listen!r} is not an address and a port, such as 127.0.0.1:8687")
    return host.strip("[]") or "127.0.0.1", int(port)


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Listens, and tells the requests what they ask for."""

    daemon_threads = True
    # Connections of the process before us may still be in TIME_WAIT.
    allow_reuse_address = True
    # Closing must not wait for a client that is slow on purpose; its thread ends by its own timeout.
    block_on_close = False

    def __init__(
        self,
        where: Any,
        family: int,
        host: str,
        *,
        metrics: Metrics,
        health: Health,
        status: Callable[[], Status] | None,
    ) -> None:
        self.address_family = socket.AddressFamily(family)
        self.exposition = Exposition(
            metrics,
            health,
            status,
            loopback=ipaddress.ip_address(where[0].partition("%")[0]).is_loopback,
            hosts=frozenset({"localhost", socket.gethostname().lower(), host.lower()}),
        )
        self._slots = threading.BoundedSemaphore(MAX_CLIENTS)
        super().__init__(where, socketserver.BaseRequestHandler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the request a thread, or hang up when `MAX_CLIENTS` are served."""
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve the request; its slot is free afterwards."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Answer, in the request's own thread."""
        try:
            # http.server brings ssl and email: 16 ms and 6 MiB that a daemon need not have while nobody asks.
            from shipper.telemetry.http_request import Request  # noqa: PLC0415
        except OSError as error:
            # Else it would pass for the client's affair.
            raise ImportError(f"cannot load what answers a request: {error}") from error
        Request(request, client_address, self)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the base's signature
        """Log what went wrong, unless it was the client."""
        # A client that hangs up is its own affair; anything else is a fault of ours and must be seen.
        error = sys.exception()
        if not isinstance(error, OSError):
            log.error("a request failed", exc_info=error)
