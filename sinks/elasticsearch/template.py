"""The index template, and the policy that deletes old data: made when opening, left alone once there.

The mapping follows the Elastic Common Schema where it has a field. ``dynamic: false``: nothing that a record holds can
add a field, so neither conflicts of types nor an explosion of fields are possible; all of it stays in ``_source``.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import msgspec

from shipper.errors import ParkedError, RetryableError, SinkError
from shipper.sink import Change
from shipper.units import parse_duration
from sinks.elasticsearch import faults

if TYPE_CHECKING:
    from sinks._http import Answer
    from sinks.elasticsearch.config import ElasticsearchConfig
    from sinks.elasticsearch.session import Product, Session

#: Above the built-in templates (100) and what is recommended (200); an exact name goes before a pattern.
_PRIORITY_PATTERN, _PRIORITY_NAME = 200, 500
#: The first OpenSearch whose flat_object takes nulls and arrays (its pull requests 13259, 14069).
_FLAT_OBJECT = 3
_KEYWORD = {"type": "keyword", "ignore_above": 1024}
#: Kept in the source alone: no index, no column, so no limit on its length.
_KEPT = {"type": "keyword", "index": False, "doc_values": False}


def mapping(product: Product) -> dict[str, Any]:
    """Give the mapping of a document."""
    flat: dict[str, Any] = {"type": "flattened"}
    if not product.elastic:
        flat = {"type": "flat_object"} if product.major >= _FLAT_OBJECT else {"type": "object", "enabled": False}
    return {
        "dynamic": False,
        "properties": {
            "@timestamp": {"type": "date_nanos"},
            "message": {"type": "match_only_text" if product.elastic else "text"},
            "attributes": flat,
            "event": {
                "properties": {"id": {"type": "keyword"}, "severity": {"type": "long"}, "original": _KEPT},
            },
            "log": {
                "properties": {
                    "level": _KEYWORD,
                    "iostream": _KEYWORD,
                    "file": {"properties": {"path": _KEYWORD}},
                },
            },
            "service": {"properties": {"name": _KEYWORD}},
            "container": {
                "properties": {"id": _KEYWORD, "name": _KEYWORD, "image": {"properties": {"name": _KEYWORD}}},
            },
            "host": {"properties": {"name": _KEYWORD}},
            "shipper": {
                "properties": {
                    "source": _KEYWORD,
                    "resource": flat,
                    "unindexed": {"type": "boolean"},
                    "attributes": _KEPT,
                    "resource_unindexed": {"type": "boolean"},
                    "resource_text": _KEPT,
                },
            },
        },
    }


def template(config: ElasticsearchConfig, product: Product) -> dict[str, Any]:
    """Give the body of the index template. ``_meta.digest`` tells whether the one that is there is this one."""
    body: dict[str, Any] = {"mappings": mapping(product)}
    if product.elastic:
        # logsdb, which newer servers choose for logs-*-*, would rebuild the source from columns and lose types.
        body["settings"] = {"index": {"mode": "standard"}}
    if config.retention and product.elastic:
        if config.data_stream:
            body["lifecycle"] = {"data_retention": _age(config.retention)}
        else:
            body["settings"]["index"]["lifecycle"] = {"name": config.template}
    priority = _PRIORITY_PATTERN if "*" in config.pattern else _PRIORITY_NAME
    whole: dict[str, Any] = {
        "index_patterns": [config.pattern],
        "priority": priority + len(config.pattern),
        "template": body,
    }
    if config.data_stream:
        whole["data_stream"] = {}
    digest = hashlib.sha256(msgspec.json.encode([whole, config.retention], order="sorted")).hexdigest()[:16]
    whole["_meta"] = {"managed_by": "shipper", "digest": digest}
    return whole


def prepare(config: ElasticsearchConfig, session: Session) -> None:
    """Create the template and the policy unless they are there; one that somebody else made is left as it is.

    Raises ParkedError when the account may not, RetryableError when the server is away.
    """
    there = found(config, session)
    if not is_wanted(config, session, there):
        return
    product = session.product()
    wanted = template(config, product)
    if config.retention:
        _policy(config, session, product, ours=there is not None)
    if there is not None and config.retention and product.elastic and config.data_stream and "*" not in config.pattern:
        # A data stream that is there already took the retention of the template it was made by: ours, or it stays as
        # it is, for somebody else's data would be deleted by it.
        body = msgspec.json.encode({"data_retention": _age(config.retention)})
        answer = session.request("PUT", f"/_data_stream/{config.pattern}/_lifecycle", body=body)
        if answer.status != 404:
            _check(answer, session, "set the retention")
    # Last: its digest says that all of this is done.
    answer = session.request("PUT", f"/_index_template/{config.template}", body=msgspec.json.encode(wanted))
    _check(answer, session, "create the index template")


def is_wanted(config: ElasticsearchConfig, session: Session, there: dict[str, Any] | None) -> bool:
    """Tell whether the template is to be made: it is missing, or ours and of another configuration."""
    if there is None:
        return True
    meta = there.get("_meta") or {}
    if meta.get("managed_by") != "shipper":
        return False
    return bool(meta.get("digest") != template(config, session.product())["_meta"]["digest"])


def changes(config: ElasticsearchConfig, session: Session) -> list[Change]:
    """Give the request that makes the template, if it is to be made. Raises SinkError."""
    if not config.create_template or not is_wanted(config, session, found(config, session)):
        return []
    body = msgspec.json.encode(template(config, session.product())).decode()
    return [Change(f"PUT /_index_template/{config.template} {body}")]


def found(config: ElasticsearchConfig, session: Session) -> dict[str, Any] | None:
    """Give the index template that is there. Raises SinkError."""
    answer = session.request("GET", f"/_index_template/{config.template}")
    if answer.status == 404:
        return None
    _check(answer, session, "read the index template")
    listed = _decoded(answer, session).get("index_templates")
    return dict(listed[0]["index_template"]) if listed else None


def _policy(config: ElasticsearchConfig, session: Session, product: Product, *, ours: bool) -> None:
    """Make the policy for retention. One that is there without a template of ours is somebody else's. Raises SinkError."""
    age = _age(config.retention)
    if product.elastic:
        if not config.data_stream:
            there = session.request("GET", f"/_ilm/policy/{config.template}")
            if there.status == 200 and not ours and b'"managed_by":"shipper"' not in there.body.replace(b" ", b""):
                raise _foreign_policy(config, session)
            policy = {
                "policy": {
                    "_meta": {"managed_by": "shipper"},
                    "phases": {"delete": {"min_age": age, "actions": {"delete": {}}}},
                }
            }
            answer = session.request("PUT", f"/_ilm/policy/{config.template}", body=msgspec.json.encode(policy))
            _check(answer, session, "create the lifecycle policy for retention of dated indices")
        return
    transition = {"state_name": "delete", "conditions": {"min_index_age": age}}
    rollover = [{"rollover": {"min_index_age": "1d"}}] if config.data_stream else []
    body = {
        "policy": {
            "description": f"made by shipper: delete after {age}",
            "default_state": "hot",
            "states": [
                {"name": "hot", "actions": rollover, "transitions": [transition]},
                {"name": "delete", "actions": [{"delete": {}}], "transitions": []},
            ],
            "ism_template": [{"index_patterns": [config.pattern], "priority": 100}],
        }
    }
    path = f"/_plugins/_ism/policies/{config.template}"
    there = session.request("GET", path)
    query = {}
    if there.status == 200 and not ours and b"made by shipper" not in there.body:
        raise _foreign_policy(config, session)
    if there.status == 200:  # it is replaced only by who has seen it
        current = _decoded(there, session)
        query = {"if_seq_no": str(current.get("_seq_no")), "if_primary_term": str(current.get("_primary_term"))}
    answer = session.request("PUT", path, query, body=msgspec.json.encode(body))
    _check(answer, session, "create the policy for retention")


def _foreign_policy(config: ElasticsearchConfig, session: Session) -> ParkedError:
    return ParkedError(
        f"{session.what}: there is a policy {config.template} that shipper did not make, and leaves as it is; leave"
        " retention out, or choose another index",
        code="policy",
    )


def _decoded(answer: Answer, session: Session) -> dict[str, Any]:
    try:
        return msgspec.json.decode(answer.body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeError) as error:
        text = f"{session.what}: cannot be read: {answer.text[:100]}; check the endpoint"
        raise ParkedError(text, code="answer") from error


def _check(answer: Answer, session: Session, what: str) -> None:
    if 200 <= answer.status < 300:
        return
    error: SinkError = faults.of_answer(answer, session.what)
    if isinstance(error, RetryableError) and not isinstance(error, ParkedError):
        raise error
    raise ParkedError(
        f"cannot {what}: {error}; give the account the right that the sink's page names, or create it yourself and set"
        " create_template: false",
        code=error.code,
    )


def _age(retention: str) -> str:
    seconds = round(parse_duration(retention))
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{max(1, seconds)}s"
