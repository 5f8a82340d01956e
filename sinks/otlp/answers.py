"""What an answer means (OTLP specification 1.x, "OTLP/HTTP response").

The specification says which answers may be tried again: 429, 502, 503, 504, and none at all. Everything else is
final for the request. What is final is not dropped here: a request that is refused as a whole is bisected, and what is
refused alone goes to the dead letters. Answers that speak of the operator's business (login, rights, path, encoding)
park the sink, because the records are not at fault.
"""

from __future__ import annotations

import json
from typing import Any

from shipper.errors import ParkedError, PermanentError, RetryableError, SinkError
from sinks import _http
from sinks._http import Answer
from sinks.otlp import protobuf

#: The statuses that OTLP allows to try again.
LATER = frozenset([429, 502, 503, 504])
#: Those of them (and 500) that come from something in front of the receiver, which may have taken the request.
_UNKNOWN = frozenset([500, 502, 504])
#: Full success: OTLP's, and Loki's.
TAKEN = frozenset([200, 204])
_PROTOBUF, _JSON = "application/x-protobuf", "application/json"


def refusal(answer: Answer, what: str, *, retry_500: bool) -> SinkError:
    """Sort an answer that is no success."""
    status = answer.status
    shown = Answer(status, answer.headers, _status_text(answer).encode())
    code, text = str(status), f"{what}: {status} {shown.text}".rstrip()
    if status in LATER or (status == 500 and retry_500):
        return RetryableError(text, code=code, retry_after=_http.retry_after(answer), maybe_taken=status in _UNKNOWN)
    if status == 402:
        return ParkedError(f"{text}; check the account and its quota", code=code)
    if status in {406, 415}:
        return ParkedError(f"{text}; the receiver does not take this encoding: try encoding or compression", code=code)
    if status == 431:
        return ParkedError(f"{text}; check headers, the token and the user", code=code)
    if status < 400 or status in {401, 403, 404, 405, 407, 501}:
        return _http.refusal(shown, what)
    if status == 413:
        return PermanentError(f"{text}; the receiver takes smaller requests: lower max_request_bytes", code=code)
    if status == 500:
        return PermanentError(f"{text}; OTLP says that 500 is final, retry_500: true tries again", code=code)
    return PermanentError(text, code=code)


def rejected(answer: Answer, what: str) -> tuple[int, str]:
    """Give how many records a successful answer says were refused, and its words.

    Raises ParkedError when it is no answer of an OTLP receiver: a web page, say, of something else at the endpoint.
    """
    if not answer.body or answer.status == 204:
        return 0, ""
    kind = _kind(answer)
    try:
        if kind == _PROTOBUF:
            return _protobuf_success(answer.body)
        if kind == _JSON:
            return _json_success(answer.body)
    except (ValueError, TypeError, AttributeError) as error:
        raise _strange(answer, what, f"cannot be read ({error})") from error
    raise _strange(answer, what, f"is {kind or 'of no type'}, not protobuf or JSON")


def _strange(answer: Answer, what: str, why: str) -> ParkedError:
    return ParkedError(
        f"{what}: the answer to a request {why}, so nobody knows whether anything was stored; check that the endpoint"
        f" is an OTLP receiver: {answer.text}",
        code="answer",
        maybe_taken=True,
    )


def _kind(answer: Answer) -> str:
    return answer.headers.get("content-type", "").partition(";")[0].strip().lower()


def _protobuf_success(body: bytes) -> tuple[int, str]:
    count, text = 0, ""
    for number, value in protobuf.fields(body):
        if number == 1 and isinstance(value, bytes):  # partial_success
            for inner, part in protobuf.fields(value):
                if inner == 1 and isinstance(part, int):
                    count = part if part < 1 << 63 else 0
                elif inner == 2 and isinstance(part, bytes):
                    text = part.decode("utf-8", "replace")
    return count, text


def _json_success(body: bytes) -> tuple[int, str]:
    success: Any = json.loads(body).get("partialSuccess") or {}
    return max(0, int(success.get("rejectedLogRecords") or 0)), str(success.get("errorMessage") or "")


def _status_text(answer: Answer) -> str:
    """Give the message of a google.rpc.Status, or the body as it is."""
    kind = _kind(answer)
    try:
        if kind == _PROTOBUF:
            for number, value in protobuf.fields(answer.body):
                if number == 2 and isinstance(value, bytes):
                    return value.decode("utf-8", "replace")
        elif kind == _JSON:
            return str(json.loads(answer.body)["message"])
    except (ValueError, KeyError, TypeError):
        pass
    return answer.text
