"""What an answer means for the delivery: of a whole request, and of one item of a bulk request.

Types of errors are those of both families' REST APIs. What is the cluster's or the operator's fault never costs a
record, though some of it is answered with status 400.
"""

from __future__ import annotations

from typing import Any

import msgspec

from shipper.errors import ParkedError, PermanentError, RetryableError, SinkError
from sinks import _http
from sinks._http import Answer

#: Seconds before the next try when the cluster has blocked writes, mostly because a disk is full.
BLOCKED = 30.0
_DISK = "free space on the cluster's disks or raise its limits; the block ends by itself then"
#: Types of status 400 that the configuration or the cluster is to blame for.
_OPERATOR = {
    "invalid_index_name_exception": "mend index in the sink's section",
    "media_type_header_exception": "check the endpoint; a proxy may change headers",
    "content_type_header_exception": "check the endpoint; a proxy may change headers",
    "validation_exception": "the cluster takes no more indices or shards; delete old ones, or use a data stream",
    "security_exception": "check the credentials and the rights that the sink's page names",
    "index_closed_exception": "open the index",
}
#: Reasons of an illegal_argument_exception with the same blame, by a part of their text.
_REASONS = {
    "document id is not supported": "set ids: auto; this server refuses ids",
    "ids must be auto-generated": "set ids: auto; this server refuses ids",
    "pipeline with id": "create the pipeline, or mend pipeline in the sink's section",
    "no write index is defined": "name a write index for the alias",
    "op_type of create are allowed in data streams": "check what index names",
    "matches multiple data stream": "mend the index templates",
    "maximum normal shards open": "delete old indices, or use a data stream",
}


def error_of(body: bytes) -> tuple[str, str]:
    """Give the type and the reason of an error's body, empty when it has none. AWS says ``message`` alone."""
    try:
        value: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeError):
        return "", ""
    if not isinstance(value, dict):
        return "", ""
    error = value.get("error")
    if isinstance(error, dict):
        causes = error.get("root_cause")
        if isinstance(causes, list) and causes and isinstance(causes[0], dict):
            error = causes[0] if error.get("type") == "search_phase_execution_exception" else error
        return str(error.get("type") or ""), str(error.get("reason") or "")
    if isinstance(error, str):
        return "", error
    return "", str(value.get("message") or value.get("Message") or "")


def of_answer(answer: Answer, what: str) -> SinkError:
    """Sort an answer of a whole request that is no success."""
    kind, reason = error_of(answer.body)
    if not kind:
        if answer.status in {406, 410, 415}:
            return ParkedError(f"{what}: {answer.status} {answer.text}; check the endpoint", code=str(answer.status))
        return _http.refusal(answer, what)
    error = _sorted(answer.status, kind, reason, what)
    if type(error) is RetryableError and error.retry_after is None:
        error.retry_after = _http.retry_after(answer)
    return error


def of_item(status: int, kind: str, reason: str, what: str) -> SinkError | None:
    """Sort the outcome of one document; ``None`` if it is stored, now or before."""
    if status in {200, 201}:
        return None
    if status == 409 and kind in {"version_conflict_engine_exception", ""}:
        return None  # its id is there: an earlier request brought it
    return _sorted(status, kind, reason, what)


def _sorted(status: int, kind: str, reason: str, what: str) -> SinkError:
    code = kind or str(status)
    text = f"{what}: {status} {kind}: {' '.join(reason.split())[: _http.QUOTED]}"
    if kind == "cluster_block_exception":
        return RetryableError(f"{text}; {_DISK}", code=code, retry_after=BLOCKED)
    if kind in _OPERATOR:
        return ParkedError(f"{text}; {_OPERATOR[kind]}", code=code)
    lower = reason.lower()
    advice = next((advice for part, advice in _REASONS.items() if part in lower), "")
    if advice and status < 500:
        return ParkedError(f"{text}; {advice}", code=code)
    if status in {401, 403, 407}:
        return ParkedError(f"{text}; {_OPERATOR['security_exception']}", code=code)
    if status in {404, 405, 406, 410, 415, 501}:
        return ParkedError(f"{text}; create the index or its template, or check endpoint and index", code=code)
    if status in {400, 413, 422}:
        return PermanentError(text, code=code)
    return RetryableError(text, code=code)
