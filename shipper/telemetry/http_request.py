"""What answers a request to the daemon's own HTTP server; `shipper.telemetry.http` imports it when the first one comes."""

from __future__ import annotations

import ipaddress
import json
import re
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from typing import Any, Protocol

import msgspec

from shipper import __version__
from shipper.telemetry.exposition import CLIENT_TIMEOUT, Exposition
from shipper.telemetry.logs import get_logger
from shipper.visible import one_line

#: Bytes that a request's line and headers may have; those of a scraper are some hundreds.
MAX_HEAD = 16 << 10
PATHS = ("/metrics", "/healthz", "/readyz", "/status")

TEXT, JSON = "text/plain; charset=utf-8", "application/json"
_END = re.compile(rb"\r?\n\r?\n")
_PIECE = 4 << 10

log = get_logger("http")


class Server(Protocol):
    """What a request needs of the server that took it."""

    exposition: Exposition

    def working(self, connection: Any) -> None:
        """Take note that the client has asked, and the next move is ours."""

    def waiting(self, connection: Any) -> None:
        """Take note that the next move is the client's: to ask, or to take the answer."""


class Request(BaseHTTPRequestHandler):
    """One request and its answer."""

    server: Server  # type: ignore[assignment]  # the base says any server, ours has an exposition
    timeout = CLIENT_TIMEOUT
    server_version = f"shipper/{__version__}"
    sys_version = ""
    default_request_version = "HTTP/1.0"

    def handle(self) -> None:
        """Take the whole head within one deadline and one size, then answer it. HTTP/1.0: one request a connection."""
        self.close_connection = True
        self.command, self.requestline, self.request_version = "", "", "HTTP/1.0"
        head = self._head(time.monotonic() + CLIENT_TIMEOUT)
        self.server.working(self.connection)
        if head is not None:
            self.rfile = BytesIO(head)
            self.handle_one_request()

    def do_GET(self) -> None:
        """Answer by the path alone."""
        if len(self.headers.get_all("Host", ())) > 1:
            self._answer(HTTPStatus.BAD_REQUEST, "one Host at most\n")
            return
        if not self._host_is_ours():
            self._answer(HTTPStatus.FORBIDDEN, "this host name is not ours; ask by address or as localhost\n")
            return
        try:
            status, body, content_type = self._page(self.path.partition("?")[0])
        except Exception as error:
            # A probe must see that we fail, not that we hang up.
            log.error("a request failed", path=self.path, exc_info=error)
            status, body, content_type = HTTPStatus.INTERNAL_SERVER_ERROR, "this failed; the log says why\n", TEXT
        self._answer(status, body, content_type=content_type)

    do_HEAD = do_GET  # noqa: N815 - the base looks it up by this name

    def _head(self, deadline: float) -> bytes | None:
        """Read up to the empty line that ends the headers; ``None`` when there is nothing to answer any more."""
        head = b""
        while True:
            end = _END.search(head, max(0, len(head) - _PIECE - 3))
            if end is not None:
                return head[: end.end()]
            if len(head) > MAX_HEAD:
                self._answer(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "this request is too large\n")
                return None
            left = deadline - time.monotonic()
            try:
                if left <= 0:
                    raise TimeoutError  # noqa: TRY301 - as the socket's own
                self.connection.settimeout(left)
                more = self.connection.recv(_PIECE)
            except TimeoutError:
                self._answer(HTTPStatus.REQUEST_TIMEOUT, f"a request must be here within {CLIENT_TIMEOUT:g} s\n")
                return None
            if not more:
                return None
            head += more

    def _page(self, path: str) -> tuple[HTTPStatus, str | bytes, str]:
        """Give the status, the body and its type of a path."""
        exposition = self.server.exposition
        if path == "/metrics":
            return (HTTPStatus.OK, *exposition.numbers(self.headers.get("Accept", "")))
        if path in {"/healthz", "/readyz"}:
            state = exposition.health.as_dict()
            well = state["alive" if path == "/healthz" else "ready"]
            return HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE, self._json(state), JSON
        if path == "/status" and exposition.status is not None:
            return HTTPStatus.OK, self._json(msgspec.to_builtins(exposition.status())), JSON
        return HTTPStatus.NOT_FOUND, f"nothing here; there are {', '.join(PATHS)}\n", TEXT

    def _json(self, value: dict[str, Any]) -> str:
        # ASCII alone: what steers a terminal is escaped, whoever looks at it with whatever.
        return json.dumps(self.server.exposition.mask.within(value), indent=2) + "\n"

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """Answer what the base finds wrong with a request, in one line."""
        status = HTTPStatus(code)
        self._answer(status, f"{one_line(message or status.phrase)}\n")

    def __getattr__(self, name: str) -> Any:
        # The base looks for do_<METHOD>; any other method gets 405 where the base would say 501.
        if name.startswith("do_"):
            return self._refuse
        raise AttributeError(name)

    def _refuse(self) -> None:
        self.close_connection = True
        self._answer(HTTPStatus.METHOD_NOT_ALLOWED, "GET and HEAD only\n", headers={"Allow": "GET, HEAD"})

    def _answer(
        self,
        status: HTTPStatus,
        body: str | bytes,
        *,
        content_type: str = TEXT,
        headers: dict[str, str] | None = None,
    ) -> None:
        data = body.encode() if isinstance(body, str) else body
        self.server.waiting(self.connection)
        self.connection.settimeout(CLIENT_TIMEOUT)
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _host_is_ours(self) -> bool:
        text = self.headers.get("Host", "").strip().lower()
        if not text or not self.server.exposition.loopback:
            return True  # no Host: HTTP/1.0 and hand-made probes; a browser always sends one
        bracketed = text.startswith("[")
        name = text[1:].partition("]")[0] if bracketed else text.partition(":")[0]
        if name in self.server.exposition.hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's signature
        """Log at debug level, where the base would write to standard error."""
        log.debug("request", text=format % args)
