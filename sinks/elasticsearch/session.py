"""Requests to the nodes of one cluster: the login, the next node when one is lost, and what kind of server it is."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING
from urllib.parse import quote

import msgspec

from shipper.errors import ConfigError, ParkedError, RetryableError
from sinks import _http
from sinks._http import Answer, Client
from sinks.elasticsearch import faults

if TYPE_CHECKING:
    from sinks.elasticsearch.config import ElasticsearchConfig
    from sinks.elasticsearch.sigv4 import Signer

JSON = {"Content-Type": "application/json"}
#: Statuses of a gateway or a node that is on its way out: the next request goes to another node.
_AWAY = frozenset([502, 503, 504])


class Product(msgspec.Struct, frozen=True):
    """What the server is: ``family`` elasticsearch or opensearch, the version's first number, 0 if it does not say."""

    family: str
    major: int
    version: str
    serverless: bool

    @property
    def elastic(self) -> bool:
        """Whether it is Elasticsearch."""
        return self.family == "elasticsearch"

    def __str__(self) -> str:
        name = "Elasticsearch" if self.elastic else "OpenSearch"
        return " ".join(filter(None, (name, "Serverless" if self.serverless else self.version)))


class Session:
    """Speaks to one node at a time. Not for several threads at once."""

    def __init__(self, config: ElasticsearchConfig) -> None:
        """Open nothing. Raises ConfigError when the package that signs is missing."""
        if config.sigv4 is not None and find_spec("botocore") is None:
            raise ConfigError("sigv4: needs the package botocore: pip install 'shipper[elasticsearch]'")
        self._config = config
        self._clients = [Client(url, config, what=f"elasticsearch {url}") for url in config.endpoints]
        self._at = 0
        self._signer: Signer | None = None
        self._product: Product | None = None

    @property
    def client(self) -> Client:
        """The node whose turn it is."""
        return self._clients[self._at]

    @property
    def what(self) -> str:
        """Name the node for errors."""
        return self.client.what

    def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] = JSON,
    ) -> Answer:
        """Ask one node. If nobody listens there, ask the others in turn; nothing was sent yet.

        Raises RetryableError when none answers or the answer did not come: then the next request goes to the next
        node. Raises ParkedError for credentials that cannot be had.
        """
        target = quote(path, safe="/-_.~")
        if query:
            target += "?" + "&".join(f"{name}={quote(value, safe='-_.~')}" for name, value in sorted(query.items()))
        for left in reversed(range(len(self._clients))):
            try:
                login = self._login(method, target, body, headers)
                answer = self.client.request(method, target, body=body, headers=login)
            except RetryableError as error:
                self._next()
                if left and error.code == "connect":
                    continue
                raise
            if answer.status in _AWAY:
                self._next()
            return answer
        raise AssertionError  # the loop has at least one round, and its last one returns or raises

    def product(self) -> Product:
        """Say what kind of server it is, asked once. Raises SinkError."""
        if self._product is None:
            self._product = self._asked()
        return self._product

    def close(self) -> None:
        """Close all connections."""
        for client in self._clients:
            client.close()

    def _next(self) -> None:
        self._at = (self._at + 1) % len(self._clients)

    def _asked(self) -> Product:
        if self._config.sigv4 is not None and self._config.sigv4.service == "aoss":
            return Product("opensearch", 0, "", serverless=True)  # it answers nothing at its root
        answer = self.request("GET", "/")
        if answer.status not in {200, 403, 404}:
            error = faults.of_answer(answer, self.what)
            raise error if isinstance(error, RetryableError) else ParkedError(str(error), code=error.code)
        about = _mapping(answer.body).get("version")
        version_info = about if isinstance(about, dict) else {}
        version = str(version_info.get("number", ""))
        # An account that may only write is refused here; the header is there all the same.
        elastic = "x-elastic-product" in answer.headers or (
            bool(version) and version_info.get("distribution") != "opensearch"
        )
        if answer.status == 200 and not version:
            raise ParkedError(
                f"{self.what}: answers, but not as Elasticsearch or OpenSearch: {answer.text[:100]}; check the endpoint",
                code="product",
            )
        first = version.partition(".")[0]
        return Product(
            "elasticsearch" if elastic else "opensearch",
            int(first) if first.isdigit() else 0,
            version,
            serverless=version_info.get("build_flavor") == "serverless",
        )

    def _login(self, method: str, target: str, body: bytes | None, headers: Mapping[str, str]) -> dict[str, str]:
        config = self._config
        given = dict(headers)
        if config.api_key or config.api_key_file:
            key = _http.secret(config.api_key, config.api_key_file, "api_key_file")
            encoded = base64.b64encode(key.encode()).decode() if ":" in key else key
            given |= _http.authorization(f"ApiKey {encoded}")
        elif config.sigv4 is not None:
            if self._signer is None:
                from sinks.elasticsearch.sigv4 import Signer  # noqa: PLC0415 - botocore is loaded when used

                self._signer = Signer(config.sigv4)
            given |= self._signer.headers(method, self.client.base + target, body or b"", headers)
        else:
            given |= config.login()
        return given


def _mapping(body: bytes) -> dict[str, object]:
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeError):
        return {}
    return value if isinstance(value, dict) else {}
