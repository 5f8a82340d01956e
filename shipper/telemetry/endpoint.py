"""Asking a running daemon over its own HTTP server: where it listens, and what it answers.

Only the ``http`` section of the configuration is read, and a file that cannot be read is no reason to give up: the
daemon runs on the configuration that it loaded, while somebody may be editing the file.
"""

from __future__ import annotations

import json
import math
import re
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from shipper.config.types import HttpConfig
from shipper.errors import ConfigError, ShipperError
from shipper.secret import masked_url

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Seconds to wait for an answer; the daemon gives it in milliseconds, and Docker's probes usually end after 5.
TIMEOUT = 4.0
_EVERYWHERE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - looked for, not listened on
_MOST = 16 << 20
_MOST_CONFIG = 1 << 20
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})")
_SERVER = re.compile(rb"^Server: shipper/", re.IGNORECASE | re.MULTILINE)


class SilentError(ShipperError):
    """Nobody answers at the daemon's address, or somebody else does."""


class Answer(msgspec.Struct, frozen=True):
    """What the daemon said: the HTTP status and the object in the body."""

    status: int
    body: dict[str, Any]


class Endpoint(msgspec.Struct, frozen=True):
    """Host and port of a daemon's HTTP server."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def of_url(cls, url: str) -> Endpoint:
        """Take ``http://host[:port]``, with or without the scheme and one of the server's paths. Raises ConfigError."""
        scheme, sep, rest = url.partition("://")
        host, _, port = (rest if sep else url).partition("/")[0].rpartition(":")
        if not host and not port.isdigit():
            host, port = port, "80"
        elif host.startswith("[") and not host.endswith("]"):
            host, port = f"{host}:{port}", "80"
        name = host.removeprefix("[").removesuffix("]")
        if (sep and scheme != "http") or not name or not (port.isascii() and port.isdigit()) or int(port) > 65_535:
            raise ConfigError(
                f"{masked_url(url)!r} is not the address of a daemon; write one such as http://127.0.0.1:8687"
            )
        return cls(name, int(port))

    @classmethod
    def of_config(cls, config: HttpConfig) -> Endpoint:
        """Give where a daemon with this section answers on this machine. Raises ConfigError where that is unknown."""
        if not config.enabled:
            raise ConfigError("http.enabled is false, so nothing can be asked; set it to true and reload")
        host, port = config.address
        if port == 0:
            raise ConfigError("http.listen has port 0, so only the daemon's log tells its port; name it with --url")
        return cls(_EVERYWHERE.get(host, host), port)

    @classmethod
    def of_file(cls, path: Path, environ: Mapping[str, str]) -> Endpoint:
        """Give where a daemon with this configuration file answers; a file that cannot be read means the default."""
        return cls.of_config(_section(path, environ))

    def ask(self, path: str, *, timeout: float = TIMEOUT) -> Answer:
        """Ask for a page that is JSON; ``timeout`` in seconds. Raises SilentError."""
        try:
            head, _, data = self._fetch(path, timeout).partition(b"\r\n\r\n")
        except TimeoutError as error:
            raise SilentError(f"no answer from {self} within {timeout:g} s") from error
        except OSError as error:
            raise SilentError(f"no daemon answers at {self}: {error.strerror or error}") from error
        found = _STATUS.match(head)
        try:
            body = (
                json.loads(data, parse_float=_finite, parse_constant=_finite)
                if found and _SERVER.search(head)
                else None
            )
        except (ValueError, RecursionError):
            body = None
        if found is None or not isinstance(body, dict):
            raise SilentError(f"what answers at {self} is not shipper, or not of this version")
        return Answer(int(found[1]), body)

    def _fetch(self, path: str, timeout: float) -> bytes:
        # HTTP/1.0, whose answer ends with the connection. http.client would bring ssl and email: 30 ms of the 100
        # that a health check may take.
        deadline = time.monotonic() + timeout
        with socket.create_connection((self.host, self.port), timeout) as connection:
            connection.sendall(f"GET {path} HTTP/1.0\r\nHost: {self}\r\n\r\n".encode())
            data = b""
            while len(data) < _MOST:
                connection.settimeout(max(0.001, deadline - time.monotonic()))
                more = connection.recv(1 << 16)
                if not more:
                    break
                data += more
        return data


def _section(path: Path, environ: Mapping[str, str]) -> HttpConfig:
    # Not the loader, which would cost a health check as much again as all the rest.
    from shipper.config.document import Problems, TooManyProblems, parse  # noqa: PLC0415 - not needed with --url

    try:
        with path.open("rb") as file:
            text = file.read(_MOST_CONFIG).decode("utf-8-sig")
        root = parse(text, environ, Problems(str(path)))
        node = root.value.get("http") if root is not None and isinstance(root.value, dict) else None
        return HttpConfig() if node is None or node.value is None else msgspec.convert(node.plain(), HttpConfig)
    except (OSError, ValueError, msgspec.ValidationError, TooManyProblems):
        return HttpConfig()


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no number of ours")
    return number
