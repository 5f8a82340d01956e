"""What answers a request to the daemon's own HTTP server; `shipper.telemetry.http` imports it when the first one comes."""

from __future__ import annotations

import ipaddress
import json
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, Protocol

import msgspec

from shipper import __version__
from shipper.telemetry.exposition import CLIENT_TIMEOUT, Exposition
from shipper.telemetry.logs import get_logger

PATHS = ("/metrics", "/healthz", "/readyz", "/status")

log = get_logger("http")


class Server(Protocol):
    """What a request needs of the server that took it."""

    exposition: Exposition


class Request(BaseHTTPRequestHandler):
    """One request and its answer."""

    server: Server  # type: ignore[assignment]  # the base says any server, ours has an exposition
    timeout = CLIENT_TIMEOUT
    server_version = f"shipper/{__version__}"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer by the path alone."""
        if not self._host_is_ours():
            self._answer(HTTPStatus.FORBIDDEN, "this host name is not ours; ask by address or as localhost\n")
            return
        path = self.path.partition("?")[0]
        if path == "/metrics":
            self._metrics()
        elif path == "/healthz":
            state = self.server.exposition.health.as_dict()
            self._json(HTTPStatus.OK if state["alive"] else HTTPStatus.SERVICE_UNAVAILABLE, state)
        elif path == "/readyz":
            state = self.server.exposition.health.as_dict()
            self._json(HTTPStatus.OK if state["ready"] else HTTPStatus.SERVICE_UNAVAILABLE, state)
        elif path == "/status" and self.server.exposition.status is not None:
            self._json(HTTPStatus.OK, msgspec.to_builtins(self.server.exposition.status()))
        else:
            self._answer(HTTPStatus.NOT_FOUND, f"nothing here; there are {', '.join(PATHS)}\n")

    do_HEAD = do_GET  # noqa: N815 - the base looks it up by this name

    def __getattr__(self, name: str) -> Any:
        # The base looks for do_<METHOD>; any other method gets 405 where the base would say 501.
        if name.startswith("do_"):
            return self._refuse
        raise AttributeError(name)

    def _refuse(self) -> None:
        self.close_connection = True
        self._answer(HTTPStatus.METHOD_NOT_ALLOWED, "GET and HEAD only\n", headers={"Allow": "GET, HEAD"})

    def _metrics(self) -> None:
        from prometheus_client.exposition import choose_encoder  # noqa: PLC0415

        encode, content_type = choose_encoder(self.headers.get("Accept", ""))
        self._answer(HTTPStatus.OK, encode(self.server.exposition.registry()), content_type=content_type)

    def _json(self, status: HTTPStatus, value: dict[str, Any]) -> None:
        self._answer(status, json.dumps(value, indent=2) + "\n", content_type="application/json")

    def _answer(
        self,
        status: HTTPStatus,
        body: str | bytes,
        *,
        content_type: str = "text/plain; charset=utf-8",
        headers: dict[str, str] | None = None,
    ) -> None:
        data = body.encode() if isinstance(body, str) else body
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
