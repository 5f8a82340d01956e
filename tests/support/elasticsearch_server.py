"""A stand-in for Elasticsearch, OpenSearch and both Serverless kinds: what a log shipper writes, reads and prepares.

It keeps documents in memory and refuses what the real servers refuse, with their statuses, types and texts: see
`support.elasticsearch_index` for documents, `support.elasticsearch_cluster` for where they go, and
`support.elasticsearch_search` for the part of the search API that it knows. What it does not know is answered with 400, never ignored.

``python -m support.elasticsearch_server [--port N] [--discard]`` runs it alone; its URL is its first output.
"""

from __future__ import annotations

import argparse
import base64
import fnmatch
import ssl
import sys
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from shipper.testing.http_server import HttpServer, Reply, Request
from support.aws_signature import Key, SignatureError, check
from support.elasticsearch_cluster import Cluster
from support.elasticsearch_index import Fault, Index
from support.elasticsearch_search import Search

FLAVOURS = ("elasticsearch", "opensearch", "elasticsearch_serverless", "opensearch_serverless")
#: http.max_content_length, of the body once unpacked.
MAX_CONTENT = 100 << 20
#: Bytes of an ``_id`` (DocWriteRequest in both code bases).
MAX_ID = 512
_LOGIN = {"WWW-Authenticate": 'Basic realm="security" charset="UTF-8"'}
_BULK_TYPES = frozenset(["application/x-ndjson", "application/json"])
_OPS = frozenset(["create", "index"])


class ItemFault(msgspec.Struct):
    """What the next documents whose text has ``part`` are told, ``times`` times, instead of being stored."""

    part: str
    status: int
    type: str
    reason: str
    times: int = 1


class ElasticsearchServer(HttpServer):
    """One cluster of one node.

    ``flavour`` is one of `FLAVOURS`. ``api_key`` (encoded), ``basic`` (user, password), ``bearer`` and ``sigv4`` (access
    key, secret key, region, service) demand a login. ``keep=False`` answers every document with 201 and counts it in
    ``count``. ``failure_store`` puts documents that do not fit a data stream aside, as Elasticsearch 9.1 does.
    ``auto_create=False`` is ``action.auto_create_index``. ``refuse`` names actions that the account may not do, by the
    start of the path: ``/_index_template``.
    """

    def __init__(
        self,
        *,
        flavour: str = "elasticsearch",
        version: str = "",
        keep: bool = True,
        max_content: int = MAX_CONTENT,
        api_key: str = "",
        basic: tuple[str, str] | None = None,
        bearer: str = "",
        sigv4: tuple[str, str, str, str] | None = None,
        failure_store: bool = False,
        auto_create: bool = True,
        refuse: Sequence[str] = (),
        page: int = 10_000,
        tls: ssl.SSLContext | None = None,
        port: int = 0,
    ) -> None:
        assert flavour in FLAVOURS
        self.flavour, self.keep, self.count = flavour, keep, 0
        self.elastic = flavour.startswith("elasticsearch")
        self.serverless = flavour.endswith("serverless")
        self.version = version or ("9.1.2" if self.elastic else "2.19.1")
        self.max_content, self.failure_store, self.auto_create = max_content, failure_store, auto_create
        self.refuse = tuple(refuse)
        self.cluster = Cluster(elastic=self.elastic)
        self.indices, self.streams, self.templates = self.cluster.indices, self.cluster.streams, self.cluster.templates
        self.policies: dict[str, dict[str, Any]] = {}
        self.lifecycles: dict[str, dict[str, Any]] = {}
        self.pipelines: set[str] = set()
        self.faults: list[ItemFault] = []
        #: The reason and status of a cluster block, as at the flood stage of a disk.
        self.block: tuple[int, str] | None = None
        self.search = Search(self.cluster, page)
        self._login = (api_key, basic, bearer, sigv4)
        super().__init__(tls=tls, port=port)

    # For tests

    def sink(self, **changes: Any) -> dict[str, Any]:
        """Give the section of a sink that writes and reads here."""
        section: dict[str, Any] = {"type": "elasticsearch", "endpoint": self.url}
        if self.flavour == "opensearch_serverless":
            section["ids"] = "auto"
        return section | changes

    def messages(self) -> list[str]:
        """Give the message of every document, in time order."""
        return [str(source.get("message")) for _, source in self._sorted()]

    def ids(self) -> list[str]:
        """Give the record id of every document, in time order."""
        return [str(source.get("event", {}).get("id", name)) for name, source in self._sorted()]

    def documents(self) -> list[dict[str, Any]]:
        """Give the source of every document, in time order."""
        return [source for _, source in self._sorted()]

    def diverted(self) -> list[dict[str, Any]]:
        """Give what is in failure stores."""
        return [source for stream in self.streams.values() for source in stream.failures]

    def rollover(self, name: str) -> None:
        """Give a data stream a new backing index to write to."""
        self.cluster.rollover(name)

    def fail(self, part: str, status: int, kind: str, reason: str, *, times: int = 1) -> None:
        """Refuse the next ``times`` documents whose text has ``part``."""
        self.faults.append(ItemFault(part, status, kind, reason, times))

    def _sorted(self) -> list[tuple[str, dict[str, Any]]]:
        documents = [found for index in self.indices.values() for found in index.documents.values()]
        return [(one.id, one.source) for one in sorted(documents, key=lambda one: one.time_ns)]

    # HTTP

    def answer(self, request: Request) -> Reply:
        """Do what the server would."""
        if not self.keep:
            self.requests.clear()
        try:
            self._authorize(request)
            return self._route(request)
        except Fault as fault:
            return self._error(fault)

    def reply(self, status: int, body: Any, **headers: str) -> Reply:
        """Give a reply with the headers that this kind of server sends."""
        own = {"Content-Type": "application/json; charset=UTF-8", **headers}
        if self.elastic:
            own["X-Elastic-Product"] = "Elasticsearch"
        return Reply(status, body if isinstance(body, bytes) else msgspec.json.encode(body), own)

    def _error(self, fault: Fault) -> Reply:
        if not fault.type:
            return self.reply(fault.status, fault.reason.encode())
        cause = {"type": fault.type, "reason": fault.reason}
        error: dict[str, Any] = {"root_cause": [cause], **cause}
        if fault.type == "search_context_missing_exception":
            error |= {"type": "search_phase_execution_exception", "reason": "all shards failed"}
        return self.reply(
            fault.status, {"error": error, "status": fault.status}, **(_LOGIN if fault.status == 401 else {})
        )

    def _authorize(self, request: Request) -> None:
        api_key, basic, bearer, sigv4 = self._login
        given = request.headers.get("authorization", "")
        if sigv4 is not None:
            access, secret, region, service = sigv4
            try:
                if "x-amz-content-sha256" not in request.headers:
                    raise SignatureError("", "The body's hash is missing")  # noqa: TRY301 - one way to refuse
                check(request, keys={access: Key(secret)}, service=service, region=region, now=self.time())
            except SignatureError as no:
                raise Fault(403, "", msgspec.json.encode({"message": str(no)}).decode()) from no
        elif api_key or basic or bearer:
            accepted = {f"ApiKey {api_key}"} if api_key else set()
            if basic:
                accepted.add("Basic " + base64.b64encode(":".join(basic).encode()).decode())
            if bearer:
                accepted.add(f"Bearer {bearer}")
            if not given:
                text = f"missing authentication credentials for REST request [{request.path}]"
                raise Fault(401, "security_exception", text)
            if given not in accepted:
                raise Fault(401, "security_exception", "unable to authenticate with provided credentials")
        for start in self.refuse:
            if request.path == start or (start != "/" and request.path.startswith(start)):
                text = f"action for [{request.path}] is unauthorized for this account"
                raise Fault(403, "security_exception", text)

    def _route(self, request: Request) -> Reply:
        parts = [part for part in request.path.split("/") if part]
        last = parts[-1] if parts else ""
        if not parts:
            return self._info()
        if last == "_bulk" and request.method in {"POST", "PUT"}:
            return self._bulk(request, parts[0] if len(parts) == 2 else "")
        if parts[0] == "_index_template" and len(parts) == 2:
            return self._template(request, parts[1])
        if parts[:2] in (["_ilm", "policy"], ["_plugins", "_ism"]):
            return self._policy(request, parts)
        if parts[0] == "_data_stream" and last == "_lifecycle" and request.method == "PUT" and self.elastic:
            return self._lifecycle(request, parts[1])
        if parts == ["_security", "user", "_has_privileges"] and self.elastic:
            return self._privileges(request)
        if parts == ["_nodes", "http"] and not self.serverless:
            return self.reply(200, {"nodes": {"n1": {"http": {"max_content_length_in_bytes": self.max_content}}}})
        return self.reply(*self.search.answer(request, parts))

    def _info(self) -> Reply:
        if self.flavour == "opensearch_serverless":
            return self.reply(404, b"")
        version: dict[str, Any] = {"number": self.version}
        if self.elastic:
            version["build_flavor"] = "serverless" if self.serverless else "default"
        else:
            version["distribution"] = "opensearch"
        tagline = "You Know, for Search" if self.elastic else "The OpenSearch Project: https://opensearch.org/"
        return self.reply(200, {"name": "n1", "cluster_name": "stand-in", "version": version, "tagline": tagline})

    # Preparing

    def _template(self, request: Request, name: str) -> Reply:
        if request.method == "GET":
            if name not in self.templates:
                raise Fault(404, "resource_not_found_exception", f"index template matching [{name}] not found")
            return self.reply(200, {"index_templates": [{"name": name, "index_template": self.templates[name]}]})
        body = msgspec.json.decode(request.content())
        priority = body.get("priority", 0)
        for other, there in self.templates.items():
            overlap = any(fnmatch.fnmatch(a, b) for a in body["index_patterns"] for b in there["index_patterns"])
            if other != name and overlap and there.get("priority", 0) == priority:
                text = (
                    f"index template [{name}] has index patterns {body['index_patterns']} matching patterns from existing"
                    f" templates [{other}] that have the same priority [{priority}]"
                )
                raise Fault(400, "illegal_argument_exception", text)
        inner = body.get("template", {})
        if not self.elastic:
            if "lifecycle" in inner:
                raise Fault(400, "x_content_parse_exception", "[template] unknown field [lifecycle]")
            if "mode" in inner.get("settings", {}).get("index", {}):
                raise Fault(400, "illegal_argument_exception", "unknown setting [index.mode]")
        Index(name, body).check(self.elastic, int(self.version.partition(".")[0]))
        self.templates[name] = body
        return self.reply(200, {"acknowledged": True})

    def _policy(self, request: Request, parts: list[str]) -> Reply:
        if (parts[0] == "_ilm") != self.elastic or self.flavour == "opensearch_serverless":
            raise Fault(404, "", f'{{"error":"no handler found for uri [{request.path}]"}}')
        if self.serverless:
            text = f"Request for uri [{request.path}] with method [{request.method}] exists but is not available when"
            raise Fault(410, "api_not_available_exception", f"{text} running in serverless mode")
        name = parts[-1]
        if request.method == "GET":
            if name not in self.policies:
                return self.reply(404, {"error": {"type": "status_exception", "reason": "Policy not found"}})
            return self.reply(200, {"_id": name, "_seq_no": 3, "_primary_term": 1, "policy": self.policies[name]})
        if not self.elastic and name in self.policies and request.query.get("if_seq_no") != "3":
            raise Fault(
                409, "version_conflict_engine_exception", f"[{name}]: version conflict, document already exists"
            )
        self.policies[name] = msgspec.json.decode(request.content())
        return self.reply(200, {"acknowledged": True})

    def _lifecycle(self, request: Request, name: str) -> Reply:
        if name not in self.streams:
            raise Fault(404, "index_not_found_exception", f"no such index [{name}]")
        self.lifecycles[name] = msgspec.json.decode(request.content())
        return self.reply(200, {"acknowledged": True})

    def _privileges(self, request: Request) -> Reply:
        asked = msgspec.json.decode(request.content())
        allowed = not any(start == "/_bulk" for start in self.refuse)
        manages = "/_index_template" not in self.refuse
        index = {name: dict.fromkeys(one["privileges"], allowed) for one in asked["index"] for name in one["names"]}
        return self.reply(200, {"index": index, "cluster": dict.fromkeys(asked.get("cluster", []), manages)})

    # Writing

    def _bulk(self, request: Request, target: str) -> Reply:
        content = request.content()
        if len(content) > self.max_content:
            raise Fault(413, "", "")
        kind = request.headers.get("content-type", "").partition(";")[0].strip()
        if kind not in _BULK_TYPES:
            raise Fault(
                406, "media_type_header_exception", f"Invalid media-type value on headers [Content-Type={kind}]"
            )
        if not content:
            raise Fault(400, "parse_exception", "request body is required")
        if not content.endswith(b"\n"):
            raise Fault(400, "illegal_argument_exception", "The bulk request must be terminated by a newline [\\n]")
        if not self.keep:
            count = content.count(b"\n") // 2
            self.count += count
            return self.reply(200, b'{"errors":false,"items":[%s]}' % b",".join([b'{"create":{"status":201}}'] * count))
        actions = self._actions(content, target)
        if self.block is not None and self.block[1].startswith("cluster"):
            raise Fault(self.block[0], "cluster_block_exception", f"blocked by: [{self.block[1]}];")
        items = [self._item(*action, pipeline=request.query.get("pipeline", "")) for action in actions]
        response: dict[str, Any] = {"took": 1, "errors": any("error" in next(iter(item.values())) for item in items)}
        response["items"] = items
        wanted = request.query.get("filter_path")
        return self.reply(200, _filtered(response, wanted.split(",")) if wanted else response)

    def _actions(self, content: bytes, target: str) -> list[tuple[str, str, str, bytes]]:
        """Give operation, index, id and document of each action, or refuse all of them."""
        found = []
        lines = content.split(b"\n")[:-1]
        number = 0
        while number < len(lines):
            line = lines[number]
            number += 1
            if not line:
                continue
            try:
                action = msgspec.json.decode(line)
                [(op, meta)] = action.items()
            except (msgspec.DecodeError, ValueError, AttributeError) as error:
                text = f"Malformed action/metadata line [{number}], expected START_OBJECT or END_OBJECT"
                raise Fault(400, "illegal_argument_exception", text) from error
            if op not in _OPS:
                text = (
                    f"Malformed action/metadata line [{number}], expected field [create], [delete], [index] or [update]"
                )
                raise Fault(400, "illegal_argument_exception", f"{text} but found [{op}]")
            if unknown := set(meta) - {"_index", "_id"}:
                text = f"Action/metadata line [{number}] contains an unknown parameter [{unknown.pop()}]"
                raise Fault(400, "illegal_argument_exception", text)
            if number == len(lines):
                break  # an action without a document is no request
            found.append((op, meta.get("_index", target), meta.get("_id", ""), lines[number]))
            number += 1
        problems = [] if found else ["no requests added"]
        for _, index, name, _ in found:
            if not index:
                problems.append("index is missing")
            if len(name.encode()) > MAX_ID:
                text = f"id [{name}] is too long, must be no longer than {MAX_ID} bytes but was: {len(name.encode())}"
                problems.append(text)
        if problems:
            text = "".join(f"{place}: {problem};" for place, problem in enumerate(problems, 1))
            raise Fault(400, "action_request_validation_exception", f"Validation Failed: {text}")
        return found

    def _item(self, op: str, index: str, name: str, line: bytes, *, pipeline: str) -> dict[str, Any]:
        meta: dict[str, Any] = {"_index": index, "_id": name or None}
        try:
            stored = self._store(op, index, name, line, pipeline)
        except Fault as fault:
            error = {"type": fault.type, "reason": fault.reason}
            return {op: {**meta, "status": fault.status, "error": error}}
        return {op: {**meta, **stored, "_version": 1, "result": "created", "status": 201}}

    def _store(self, op: str, index: str, name: str, line: bytes, pipeline: str) -> dict[str, Any]:
        for fault in self.faults:
            if fault.times and fault.part.encode() in line:
                fault.times -= 1
                raise Fault(fault.status, fault.type, fault.reason)
        if self.block is not None:
            raise Fault(self.block[0], "cluster_block_exception", f"index [{index}] blocked by: [{self.block[1]}];")
        if self.flavour == "opensearch_serverless" and name:
            raise Fault(
                400, "illegal_argument_exception", "Document ID is not supported in create/index operation request"
            )
        if pipeline and pipeline not in self.pipelines:
            raise Fault(400, "illegal_argument_exception", f"pipeline with id [{pipeline}] does not exist")
        place, stream = self.cluster.target(index, create=self.auto_create)
        if stream is not None and op != "create":
            text = "only write ops with an op_type of create are allowed in data streams"
            raise Fault(400, "illegal_argument_exception", text)
        try:
            document = place.parsed(line, stream=stream is not None, modern=self.elastic)
        except Fault as fault:
            if stream is None or not self.failure_store or fault.status != 400:
                raise
            stream.failures.append(msgspec.json.decode(line))
            return {"_index": f".fs-{index}-000001", "failure_store": "used"}
        place.add(name, document, replace=op == "index")
        self.count += 1
        return {"_index": place.name}


def _filtered(response: dict[str, Any], paths: Sequence[str]) -> dict[str, Any]:
    """Do what filter_path does, for paths of the form a or items.*.a[.b]."""
    result: dict[str, Any] = {name: response[name] for name in response if name in paths}
    items = []
    for item in response["items"]:
        ((op, body),) = item.items()
        kept: dict[str, Any] = {}
        for path in paths:
            _, _, inner = path.partition("items.*.")
            first, _, second = inner.partition(".")
            if not first or first not in body:
                continue
            if not second:
                kept[first] = body[first]
            elif second in body[first]:
                kept.setdefault(first, {})[second] = body[first][second]
        if kept:  # an item of which nothing is left vanishes, and all behind it move up
            items.append({op: kept})
    if items:
        result["items"] = items
    return result


def main() -> None:
    """Run until killed."""
    parser = argparse.ArgumentParser(description="A stand-in for Elasticsearch.")
    parser.add_argument("--port", type=int, default=0, help="where to listen; a free port unless given")
    parser.add_argument("--discard", action="store_true", help="count documents and keep none")
    args = parser.parse_args()
    with ElasticsearchServer(keep=not args.discard, port=args.port) as server:
        sys.stdout.write(server.url + "\n")
        sys.stdout.flush()
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main()
