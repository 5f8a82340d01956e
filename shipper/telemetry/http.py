"""The daemon's own HTTP server: /metrics, /healthz, /readyz, /status.

Imported only when it is enabled; what answers a request (`shipper.telemetry.http_request`) only when the first one comes, and
prometheus-client only when /metrics is asked for the first time.

Nothing here can change anything: GET and HEAD only, no parameter is read. While we listen on a loopback address, the
``Host`` of a request must be an address, ``localhost`` or this machine's name, so that a web page cannot read us
through a name that it lets point to 127.0.0.1 (DNS rebinding). Who listens on other addresses has opened the numbers
to that network on purpose, under whatever name a scraper there uses.

A client has `CLIENT_TIMEOUT` for its whole request. When `MAX_CLIENTS` are served already, the one that has kept us
waiting longest makes room for the newcomer, so that clients that are slow, on purpose or not, never keep a probe from
its answer.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import socketserver
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from shipper.errors import ConfigError
from shipper.secret import Masker
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
#: Seconds that a client has at least before it must make room for another; a request that is sent at once takes less.
GRACE = 0.03
#: Seconds that a newcomer waits for room while all clients wait for us.
ROOM = 0.5
#: Seconds before a connection is looked at again for which there was no descriptor.
PAUSE = 0.2

log = get_logger("http")


class HttpServer:
    """Serves the daemon's numbers and states from threads of its own.

    ``start`` raises ConfigError when it cannot listen. A daemon that starts treats that as a mistake in the
    configuration and does not start: an operator whose probes ask the wrong process would trust a lie. A reload
    that moves the server to a taken address changes nothing, like any other bad configuration.
    """

    def __init__(
        self,
        config: HttpConfig,
        metrics: Metrics,
        health: Health,
        status: Callable[[], Status] | None = None,
        *,
        mask: Masker | None = None,
    ) -> None:
        """Take what is to be told; ``status`` gives what /status says, and without it there is none.

        ``mask`` knows the secrets that no answer may hold.
        """
        self._listen = config.listen
        self._metrics = metrics
        self._health = health
        self._status = status
        self._mask = mask or Masker()
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
                where[:2],
                family,
                host,
                metrics=self._metrics,
                health=self._health,
                status=self._status,
                mask=self._mask,
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
    # A burst of clients must not keep a probe's connection from being taken: its retry comes a second later.
    request_queue_size = 128

    def __init__(
        self,
        where: Any,
        family: int,
        host: str,
        *,
        metrics: Metrics,
        health: Health,
        status: Callable[[], Status] | None,
        mask: Masker,
    ) -> None:
        self.address_family = socket.AddressFamily(family)
        self.exposition = Exposition(
            metrics,
            health,
            status,
            loopback=ipaddress.ip_address(where[0].partition("%")[0]).is_loopback,
            hosts=frozenset({"localhost", socket.gethostname().lower(), host.lower()}),
            mask=mask,
        )
        # Connections whose client has the next move, and since when; the first waits longest.
        self._waiting: dict[Any, float] = {}
        self._waiting_lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(MAX_CLIENTS)
        super().__init__(where, socketserver.BaseRequestHandler)

    def get_request(self) -> Any:
        """Take the next connection; wait a little when there is no descriptor for it, for it stays the next."""
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE}:
                time.sleep(PAUSE)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the request a thread; the client that has kept us waiting longest makes room if there is none."""
        if not self._slots.acquire(blocking=False) and not self._make_room():
            log.warning("more clients ask for our state than are served; the newest was turned away", most=MAX_CLIENTS)
            self.shutdown_request(request)
            return
        self.waiting(request)
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started, so none gives the slot back
            self._slots.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve the request; its slot is free afterwards."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def shutdown_request(self, request: Any) -> None:
        """Close a connection, which nobody may shut down any more: its number may soon be another's."""
        self.working(request)
        super().shutdown_request(request)

    def waiting(self, connection: Any) -> None:
        """Take note that the next move is the client's: to ask, or to take the answer."""
        with self._waiting_lock:
            self._waiting.setdefault(connection, time.monotonic())

    def working(self, connection: Any) -> None:
        """Take note that the client has asked, and the next move is ours."""
        with self._waiting_lock:
            self._waiting.pop(connection, None)

    def _make_room(self) -> bool:
        """Hang up on the client that has kept us waiting longest, and take its slot; tell whether there is one."""
        with self._waiting_lock:
            since = next(iter(self._waiting.values()), None)
        if since is not None and (pause := since + GRACE - time.monotonic()) > 0 and self._slots.acquire(timeout=pause):
            return True
        with self._waiting_lock:
            oldest = next(iter(self._waiting), None)
            if oldest is not None:
                del self._waiting[oldest]
                with contextlib.suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)  # ends its thread's wait
        if oldest is not None:
            log.warning("more clients ask for our state than are served; hung up on the slowest", most=MAX_CLIENTS)
        return self._slots.acquire(timeout=ROOM)

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
