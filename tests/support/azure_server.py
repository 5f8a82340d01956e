"""What the stand-ins for Azure's services share: Entra's token endpoint, the instance metadata service, the query API.

Tokens: ``POST /<tenant>/oauth2/v2.0/token`` with a secret or a client assertion, ``GET /metadata/identity/oauth2/token``
with ``Metadata: true``. They end after ``life`` seconds of the server's own clock and are good for one audience. Query:
``POST /v1/workspaces/<id>/query`` answers exactly the KQL that our readers make; anything else is a syntax error.

``script`` and ``requests`` of `HttpServer` are about the ingestion alone; ``token_requests`` and ``queries`` have the
rest, `script_tokens` and `script_queries` script it.
"""

from __future__ import annotations

import argparse
import re
import secrets
import ssl
import threading
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, ClassVar
from urllib.parse import parse_qsl

import msgspec

from shipper.testing.http_server import HttpServer, Reply, Request

Row = dict[str, Any]

TENANT = "11111111-2222-3333-4444-555555555555"
CLIENT = "66666666-7777-8888-9999-aaaaaaaaaaaa"
SECRET = "the client's secret: /+&=%"  # noqa: S105 - of a server that lives for one test
ASSERTION = "header.assertion.signature"
WORKSPACE = "99999999-0000-0000-0000-000000000001"
_AUDIENCE, QUERY_AUDIENCE = "https://monitor.azure.com", "https://api.loganalytics.io"
_TOKEN_PATH = f"/{TENANT}/oauth2/v2.0/token"
_IMDS_PATH = "/metadata/identity/oauth2/token"
_QUERY_PATH = re.compile(r"/v1/workspaces/([^/]+)/query")
_STRING = r'"(?:[^"\\]|\\.)*"'
_BOUND = re.compile(r"where Ns (>=|<) (\d+)")
_KEYSET = re.compile(rf"where Ns ([<>]) (\d+) or \(Ns == \2 and strcmp\(RecordId, ({_STRING})\) \1 0\)")
_MOMENT = re.compile(r"where EventTime (>=|<=) datetime\((\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{7}Z)\)")
_AMONG = re.compile(rf'where (\w+|tostring\(Properties\["service\.name"\]\)) in \(({_STRING}(?:, {_STRING})*)\)')
_LEVELS = re.compile(r"where isnull\(SeverityLevel\) or SeverityLevel in \((\d(?:, \d)*)\)")
_CONTAINS = re.compile(rf"where (\w+) contains_cs ({_STRING}) or Part > 0")
_ORDER = re.compile(r"order by Ns (asc|desc), RecordId \1")
_TAKE = re.compile(r"take (\d+)")
_PROJECT = re.compile(r"project (\w+(?:, \w+)*)")


class AzureServer(HttpServer):
    """The base of both stand-ins. ``now`` gives seconds since 1970; with ``keep`` false records are counted only."""

    #: Column names of type dynamic, which the query API gives as text.
    dynamic: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self,
        *,
        tls: ssl.SSLContext | None = None,
        port: int = 0,
        keep: bool = True,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.now = now
        self.keep = keep
        #: Records that came, doubles included, parts of a record not.
        self.count = 0
        self.rows: list[Row] = []
        self.life = 3599.0
        self.token_requests: list[Request] = []
        self.queries: list[str] = []
        self._issued: dict[str, tuple[str, float]] = {}
        self._token_script: deque[Reply] = deque()
        self._query_script: deque[Reply] = deque()
        self._side = threading.Lock()
        self._base_table: tuple[tuple[int, int], tuple[list[Row], list[str]]] = ((0, -1), ([], []))
        super().__init__(tls=tls, port=port)

    @abstractmethod
    def sink(self, **changes: Any) -> dict[str, Any]:
        """Give the section of a sink that writes and reads here."""

    @abstractmethod
    def base_table(self) -> tuple[list[Row], list[str]]:
        """Give the rows that the first lines of KQL ask for, with the columns they add, and those lines."""

    @abstractmethod
    def records(self) -> list[tuple[str, str]]:
        """Give the id and the whole message of every record stored, doubles included, in time order."""

    def messages(self) -> list[str]:
        """Give the message of every record stored, doubles included, in time order."""
        return [message for _, message in self.records()]

    def ids(self) -> list[str]:
        """Give the id of every record stored, doubles included, in time order."""
        return [record for record, _ in self.records()]

    def script_tokens(self, *replies: Reply) -> None:
        """Give these replies to the next requests for a token."""
        self._token_script.extend(replies)

    def script_queries(self, *replies: Reply) -> None:
        """Give these replies to the next queries."""
        self._query_script.extend(replies)

    def revoke(self) -> None:
        """Let no token that was issued hold any longer."""
        self._issued.clear()

    def credentials(self) -> dict[str, Any]:
        """Give the options of a section that say how tokens are had, and where is read."""
        return {
            "authority": self.url,
            "tenant_id": TENANT,
            "client_id": CLIENT,
            "client_secret": SECRET,
            "workspace_id": WORKSPACE,
            "query_endpoint": self.url,
        }

    def handle(self, request: Request) -> Reply:
        """Answer tokens and queries by ourselves, all else as `HttpServer` does."""
        if request.path in {_TOKEN_PATH, _IMDS_PATH} or request.path.endswith("/oauth2/v2.0/token"):
            with self._side:
                self.token_requests.append(request)
                return self._token_script.popleft() if self._token_script else self._token(request)
        if (match := _QUERY_PATH.fullmatch(request.path)) is not None:
            with self._side:
                return self._query_script.popleft() if self._query_script else self._query(match[1], request)
        reply = super().handle(request)
        if not self.keep:
            self.requests.clear()
        return reply

    # Tokens

    def _token(self, request: Request) -> Reply:
        if request.path == _IMDS_PATH:
            if request.headers.get("metadata") != "true":
                return _error(400, "invalid_request", "Required metadata header not specified")
            if request.query.get("api-version") != "2018-02-01" or not request.query.get("resource"):
                return _error(400, "invalid_request", "api-version and resource are required")
            if request.query.get("client_id", CLIENT) != CLIENT:
                return _error(400, "invalid_request", "Identity not found")
            return self._issue(request.query["resource"], text=True)
        if request.path != _TOKEN_PATH:
            return _error(400, "invalid_request", "AADSTS90002: Tenant not found.")
        form = dict(parse_qsl(request.content().decode(), keep_blank_values=True))
        scope = form.get("scope", "")
        if form.get("grant_type") != "client_credentials":
            return _error(400, "unsupported_grant_type", "AADSTS70003: unsupported grant type")
        if not scope.endswith("/.default"):
            return _error(400, "invalid_scope", f"AADSTS1002012: The provided value for scope {scope} is not valid.")
        if form.get("client_id") != CLIENT:
            return _error(400, "unauthorized_client", "AADSTS700016: Application was not found in the directory.")
        if "client_assertion" in form:
            kind = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
            if form.get("client_assertion_type") != kind or form["client_assertion"] != ASSERTION:
                return _error(401, "invalid_client", "AADSTS700211: No matching federated identity record found.")
        elif form.get("client_secret") != SECRET:
            return _error(401, "invalid_client", "AADSTS7000215: Invalid client secret provided.")
        return self._issue(scope.removesuffix("/.default"), text=False)

    def _issue(self, audience: str, *, text: bool) -> Reply:
        token = secrets.token_urlsafe(40)
        self._issued[token] = (audience.rstrip("/"), self.now() + self.life)
        life = int(self.life)
        # IMDS gives its numbers as texts.
        body = {"token_type": "Bearer", "expires_in": str(life) if text else life, "access_token": token}
        return Reply(200, msgspec.json.encode(body), {"Content-Type": "application/json"})

    def unauthorized(self, request: Request, audience: str = _AUDIENCE) -> Reply | None:
        """Give 401 unless the request has a token of ours for the audience that has not expired."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        held, ends = self._issued.get(token, ("", 0.0))
        if scheme.lower() == "bearer" and held == audience.rstrip("/") and self.now() < ends:
            return None
        body = {"error": {"code": "InvalidToken", "message": "The provided authentication token is invalid."}}
        return Reply(401, msgspec.json.encode(body), {"WWW-Authenticate": "Bearer"})

    # Queries

    def _query(self, workspace: str, request: Request) -> Reply:
        if (refusal := self.unauthorized(request, QUERY_AUDIENCE)) is not None:
            return refusal
        if workspace != WORKSPACE:
            return _problem(404, "WorkspaceNotFoundError", "The workspace could not be found")
        kql = msgspec.json.decode(request.content(), type=dict[str, str]).get("query", "")
        self.queries.append(kql)
        try:
            names, rows = self._evaluated(kql)
        except ValueError as error:
            return _problem(400, "BadArgumentError", f"The request had some invalid properties; SyntaxError: {error}")
        kinds = {"Ns": "long", "Severity": "int", "Part": "int", "Parts": "int"}
        columns = [
            {"name": name, "type": "dynamic" if name in self.dynamic else kinds.get(name, "string")} for name in names
        ]
        body = {"tables": [{"name": "PrimaryResult", "columns": columns, "rows": rows}]}
        return Reply(200, msgspec.json.encode(body), {"Content-Type": "application/json"})

    def _evaluated(self, kql: str) -> tuple[list[str], list[list[Any]]]:
        lines = kql.split("\n| ")
        with self._lock:
            # Made once for all pages, as long as nothing is written.
            look = (id(self.rows), len(self.rows))
            if self._base_table[0] != look:
                self._base_table = (look, self.base_table())
            rows, start = self._base_table[1]
        if lines[: len(start)] != start:
            raise ValueError(f"cannot resolve {lines[0]!r}")
        at = len(start)
        names: list[str] = []
        for line in lines[at:]:
            if (match := _PROJECT.fullmatch(line)) is not None:
                names = match[1].split(", ")
            elif names:
                raise ValueError(f"after project: {line!r}")
            elif (match := _TAKE.fullmatch(line)) is not None:
                rows = rows[: int(match[1])]
            elif (match := _ORDER.fullmatch(line)) is not None:
                rows = sorted(rows, key=lambda row: (row["Ns"], row["RecordId"]), reverse=match[1] == "desc")
            else:
                test = _where(line)
                rows = [row for row in rows if test(row)]
        if not names:
            raise ValueError("no project")
        return names, [[self._cell(name, row.get(name)) for name in names] for row in rows]

    def _cell(self, name: str, value: Any) -> Any:
        return msgspec.json.encode(value).decode() if name in self.dynamic and value is not None else value


def _where(line: str) -> Callable[[Row], bool]:
    """Give the test of a line. Raises ValueError for one that our readers do not make."""
    if (match := _BOUND.fullmatch(line)) is not None:
        bound, least = int(match[2]), match[1] == ">="
        return lambda row: row["Ns"] >= bound if least else row["Ns"] < bound
    if (match := _MOMENT.fullmatch(line)) is not None:
        moment, least = match[2], match[1] == ">="
        return lambda row: row["EventTime"] >= moment if least else row["EventTime"] <= moment
    if (match := _KEYSET.fullmatch(line)) is not None:
        key, up = (int(match[2]), _literal(match[3])), match[1] == ">"
        return lambda row: (row["Ns"], row["RecordId"]) > key if up else (row["Ns"], row["RecordId"]) < key
    if (match := _AMONG.fullmatch(line)) is not None:
        values = {_literal(text) for text in re.findall(_STRING, match[2])}
        if match[1].startswith("tostring"):
            return lambda row: row["Properties"].get("service.name", "") in values
        column = match[1]
        return lambda row: row.get(column, "") in values
    if (match := _LEVELS.fullmatch(line)) is not None:
        levels = set(map(int, match[1].split(", ")))
        return lambda row: row.get("SeverityLevel") is None or row["SeverityLevel"] in levels
    if (match := _CONTAINS.fullmatch(line)) is not None:
        column, part = match[1], _literal(match[2])
        return lambda row: part in (row.get(column) or "") or (row.get("Part") or 0) > 0
    raise ValueError(repr(line))


def _literal(text: str) -> str:
    return msgspec.json.decode(text, type=str)


def _error(status: int, code: str, text: str) -> Reply:
    body = {"error": code, "error_description": text}
    return Reply(status, msgspec.json.encode(body), {"Content-Type": "application/json"})


def _problem(status: int, code: str, text: str) -> Reply:
    return Reply(status, msgspec.json.encode({"error": {"code": code, "message": text}}))


def seconds_of(text: Any) -> float | None:
    """Give seconds since 1970 of an RFC 3339 text with at most seven digits, as .NET reads it, or ``None``."""
    if not isinstance(text, str) or not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,7})?Z", text):
        return None
    return datetime.fromisoformat(f"{text[:19]}+00:00").replace(tzinfo=UTC).timestamp() + float(f"0{text[19:-1]}")


def cut(text: str, most: int) -> str:
    """Give the first ``most`` UTF-16 units of a text, as .NET cuts."""
    return text.encode("utf-16-le", "surrogatepass")[: 2 * most].decode("utf-16-le", "ignore")


def serve(make: Callable[..., AzureServer]) -> None:
    """Run a stand-in as a process of its own: print its URL, then serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0, help="where to listen; 0 takes a free port")
    parser.add_argument("--discard", action="store_true", help="keep nothing, count only")
    args = parser.parse_args()
    with make(port=args.port, keep=not args.discard) as server:
        print(server.url, flush=True)  # noqa: T201 - that is what the caller waits for
        threading.Event().wait()
