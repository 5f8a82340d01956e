"""Looks at the cluster for an operator: one finding at a time, nothing is created or changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from shipper.errors import SinkError
from shipper.sink import Finding
from shipper.units import parse_size
from sinks import _http
from sinks.elasticsearch import template
from sinks.elasticsearch.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sinks._http import Answer
    from sinks.elasticsearch.config import ElasticsearchConfig

#: What an account that writes needs on the index, and what is needed to make the template.
_WRITE = ("create_doc", "auto_configure")
_MANAGE = ("manage_index_templates",)


def examine(config: ElasticsearchConfig) -> Iterator[Finding]:
    """Say what there is to say: reachable, tls, login, clock, version, rights, limits, template. Does not raise."""
    session = Session(config)
    try:
        fine = True
        for finding in _http.examine(session.client, lambda: _ping(session), fine=frozenset([200, 400])):
            fine = fine and finding.verdict != "fail"
            yield finding
        if fine:
            yield from _looked(config, session)
    except (SinkError, msgspec.MsgspecError, LookupError, TypeError, AttributeError) as error:
        yield Finding("reachable", "fail", f"{session.what}: {error}", "see the message; a proxy may answer instead")
    finally:
        session.close()


def _ping(session: Session) -> Answer:
    """Send a bulk request without a document: refused as such, but only after the login was taken."""
    return session.request("POST", "/_bulk", body=b"\n", headers={"Content-Type": "application/x-ndjson"})


def _looked(config: ElasticsearchConfig, session: Session) -> Iterator[Finding]:
    product = session.product()
    old = 0 < product.major < (8 if product.elastic else 2)
    fix = "use Elasticsearch 8 or later, or OpenSearch 2 or later" if old else ""
    yield Finding("version", "warn" if old else "ok", str(product), fix)
    if product.elastic:
        yield from _rights(config, session)
    yield from _limits(config, session)
    yield _template(config, session)


def _rights(config: ElasticsearchConfig, session: Session) -> Iterator[Finding]:
    """Ask Elasticsearch; with its security off, and in OpenSearch, nobody can say."""
    asked = {
        "index": [{"names": [config.pattern], "privileges": list(_WRITE)}],
        "cluster": list(_MANAGE) if config.create_template else [],
    }
    answer = session.request("POST", "/_security/user/_has_privileges", body=msgspec.json.encode(asked))
    if answer.status != 200:
        return
    privileges = msgspec.json.decode(answer.body)
    lacking = [name for name, held in privileges["index"].get(config.pattern, {}).items() if not held]
    if lacking:
        fix = f"grant them on {config.pattern}; the sink's page has a role that is enough"
        yield Finding("rights", "fail", f"no {', '.join(lacking)} on {config.pattern}", fix)
        return
    lacking = [name for name, held in privileges.get("cluster", {}).items() if not held]
    if lacking:
        fix = "grant it, or make the template by another account and set create_template: false"
        yield Finding("rights", "warn", f"no {', '.join(lacking)}", fix)
        return
    yield Finding("rights", "ok", f"{', '.join(_WRITE)} on {config.pattern}")


def _limits(config: ElasticsearchConfig, session: Session) -> Iterator[Finding]:
    query = {"filter_path": "nodes.*.http.max_content_length_in_bytes"}
    answer = session.request("GET", "/_nodes/http", query)
    if answer.status != 200:
        return
    nodes: dict[str, Any] = msgspec.json.decode(answer.body).get("nodes", {})
    sizes = [node["http"]["max_content_length_in_bytes"] for node in nodes.values() if "http" in node]
    if not sizes:
        return
    small = min(sizes) < parse_size(config.max_body)
    text = f"a request may have {min(sizes) >> 20} MiB, max_body is {parse_size(config.max_body) >> 10} KiB"
    fix = "lower max_body, or raise http.max_content_length" if small else ""
    yield Finding("limits", "warn" if small else "ok", text, fix)


def _template(config: ElasticsearchConfig, session: Session) -> Finding:
    try:
        there = template.found(config, session)
    except SinkError as error:
        verdict = "fail" if config.create_template else "ok"
        fix = "grant manage_index_templates, or set create_template: false" if config.create_template else ""
        return Finding("template", verdict, str(error), fix)
    name = config.template
    if there is None and config.create_template:
        return Finding("template", "ok", f"{name} is not there yet; it is made at the first start")
    if there is None:
        fix = "make the one of the sink's page; without it the server guesses types, and refuses what does not fit them"
        return Finding("template", "warn", f"there is no template {name}, and create_template is false", fix)
    wanted = template.template(config, session.product())["_meta"]["digest"]
    own = there.get("_meta") or {}
    if own.get("managed_by") != "shipper":
        return Finding("template", "ok", f"{name} is there, made by somebody else, and left as it is")
    if own.get("digest") != wanted:
        return Finding("template", "ok", f"{name} is of another configuration; it is made anew at the next start")
    return Finding("template", "ok", f"{name} is there")
