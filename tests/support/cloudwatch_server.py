"""A stand-in for AWS CloudWatch Logs: moto behind a proxy that is as strict as the service.

moto (https://github.com/getmoto/moto) keeps groups, streams and roles, in a process of its own. What it takes though
the service does not is refused here, with the service's statuses and texts: sizes, counts, spans, names, retentions,
signatures, rights. What it gets wrong is put right: the indexes of rejected events, the expiry by retention, the text
for a stream that exists. FilterLogEvents is answered here: with pages that are short or empty and have a token, at most
1 MB and 10,000 events each, and either end first. Events are kept here too, so that hundreds of thousands cost little.

::

    with CloudwatchServer() as server:
        server.script(throttled())                                  # the next request
        server.script(unavailable(), stored=True)                   # taken, but told otherwise
        server.denied.add("CreateLogGroup")

As a process: ``python -m support.cloudwatch_server [--port N] [--discard]`` prints its URL.
"""

from __future__ import annotations

import argparse
import re
import ssl
import threading
import time
import uuid
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable
from operator import itemgetter
from typing import Any

import msgspec

from shipper.testing.http_server import HttpServer, Reply, Request
from support import aws_signature
from support.moto_server import Moto

#: Limits of PutLogEvents and FilterLogEvents (their API reference, and the service quotas).
BATCH, EVENT, OVERHEAD, EVENTS = 1_048_576, 1_048_576, 26, 10_000
DAY = 86_400_000
OLDEST, NEWEST = 14 * DAY, 2 * 3_600_000
PAGE_BYTES, PAGE_EVENTS = 1_048_576, 10_000
RETENTIONS = [1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653]
#: The only account, its key and the region.
REGION, ACCESS_KEY, SECRET = "eu-west-1", "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
ROLE = "arn:aws:iam::123456789012:role/logs-writer"

_GROUP = re.compile(r"[.\-_/#A-Za-z0-9]+")
_STREAM = re.compile(r"[^:*]*")
_TAIL = ',"shipper":{"form":"line"'
_SINCE_2024 = 1_704_067_200_000
_encode = msgspec.json.encode


class PutEvent(msgspec.Struct, frozen=True):
    """An event as it is put."""

    timestamp: int
    message: str


class Put(msgspec.Struct, frozen=True, rename="camel"):
    """What PutLogEvents takes."""

    log_group_name: str
    log_stream_name: str
    log_events: list[PutEvent]
    sequence_token: str = ""


class Stored(msgspec.Struct, frozen=True):
    """An event that was taken; ``number`` counts them."""

    timestamp: int
    number: int
    stream: str
    message: str
    ingested: int


class RefusedError(Exception):
    """What the service says no with."""

    def __init__(self, code: str, text: str, *, status: int = 400, **more: Any) -> None:
        super().__init__(text)
        self.reply = refusal(code, text, status=status, **more)


def refusal(code: str, text: str, *, status: int = 400, **more: Any) -> Reply:
    """Make an answer of the service that is an error."""
    return _reply({"__type": code, "message": text, **more}, status=status, code=code)


def throttled() -> Reply:
    """Make the answer to whoever asks too often."""
    return refusal("ThrottlingException", "Rate exceeded")


def unavailable() -> Reply:
    """Make the answer of a service that is away, or that has lost count of what it did."""
    return refusal("ServiceUnavailableException", "Service is unavailable, try again", status=503)


class CloudwatchServer(HttpServer):
    """CloudWatch Logs of one account in `REGION`, and STS beside it.

    ``moto`` is a process to share, which is emptied; else one is started. ``keep=False`` only counts the events, in
    ``count``, and needs no moto: every group and stream exists. ``now`` gives seconds since 1970, for ages and creation
    times. ``tokens`` asks for sequence tokens, as the service did once. ``empty_pages`` come before each page that has
    events.
    """

    def __init__(
        self,
        *,
        keep: bool = True,
        moto: Moto | None = None,
        now: Callable[[], float] = time.time,
        tokens: bool = False,
        empty_pages: int = 1,
        tls: ssl.SSLContext | None = None,
        port: int = 0,
    ) -> None:
        self.count = 0
        #: Operations that the account may not use.
        self.denied: set[str] = set()
        self.keys = {ACCESS_KEY: aws_signature.Key(SECRET)}
        self._keep = keep
        self._now = now
        self._tokens = tokens
        self._expected: dict[tuple[str, str], tuple[int, bytes]] = {}
        self._empty_pages = empty_pages
        self._groups: dict[str, list[Stored]] = {}
        self._retention: dict[str, int] = {}
        self._pages: dict[str, tuple[dict[str, Any], int, int]] = {}
        self._own_moto = Moto() if keep and moto is None else None
        self._moto = moto or self._own_moto
        if moto is not None:
            moto.reset()
        super().__init__(tls=tls, port=port)

    def clear(self) -> None:
        """Forget everything that came and was told: groups, events, requests, replies that wait, rights, keys."""
        with self._lock:
            if self._moto is not None:
                self._moto.reset()
            self.count = 0
            self.denied.clear()
            self.keys = {ACCESS_KEY: aws_signature.Key(SECRET)}
            self.requests.clear()
            self._scripted.clear()
            for kept in (self._groups, self._retention, self._pages, self._expected):
                kept.clear()

    def sink(self, **changes: Any) -> dict[str, Any]:
        """Give the configuration of a sink that writes and reads here."""
        section = {
            "type": "cloudwatch", "region": REGION, "log_group": "faildaily-production", "endpoint": self.url,
            "access_key_id": ACCESS_KEY, "secret_access_key": SECRET,
        }  # fmt: skip
        return {name: value for name, value in {**section, **changes}.items() if value is not None}

    def events(self, group: str | None = None) -> list[Stored]:
        """Give every event stored, doubles included, in the order of time."""
        with self._lock:
            found = [event for name, events in self._groups.items() if group in {None, name} for event in events]
        return sorted(found, key=_by_time)

    def messages(self) -> list[str]:
        """Give the message or line of every record stored, doubles included, in the order of time."""
        return [message for _, message in self._records()]

    def ids(self) -> list[str]:
        """Give the id of every record stored, doubles included, in the order of time."""
        return [record_id for record_id, _ in self._records()]

    def operations(self) -> list[str]:
        """Give the names of the operations that were asked for, in order."""
        return [request.headers.get("x-amz-target", ".").rpartition(".")[2] for request in self.requests]

    def close(self) -> None:
        """Stop listening, and end a moto of our own."""
        super().close()
        if self._own_moto is not None:
            self._own_moto.close()

    def _records(self) -> list[tuple[str, str]]:
        """Give id and message of each record; parts that follow one another are put together."""
        found: list[tuple[int, str, int, str, str]] = []
        parts: dict[str, list[str]] = {}
        for event in self.events():
            text = event.message
            whole = msgspec.json.decode(text)
            tail = whole["shipper"]
            if tail["form"] == "part":
                pieces = parts.setdefault(tail["id"], [])
                pieces.append(whole["message"])
                if len(pieces) < tail["parts"]:
                    continue
                text = "".join(parts.pop(tail["id"]))
                whole = msgspec.json.decode(text)
            line = whole["shipper"]["form"] == "line"
            message = text[: text.rindex(_TAIL)] + "}" if line else whole["message"]
            found.append((event.timestamp, tail["ns"], event.number, tail["id"], message))
        return [(row[3], row[4]) for row in sorted(found, key=itemgetter(0, 1, 2))]

    # Answers

    def answer(self, request: Request) -> Reply:
        """See `HttpServer`."""
        if not self._keep:
            self.requests.clear()
        try:
            if request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
                return self._assume_role(request)
            return self._answer(request)
        except RefusedError as no:
            return no.reply
        except aws_signature.SignatureError as no:
            return refusal(no.code, str(no))

    def _answer(self, request: Request) -> Reply:
        version, _, operation = request.headers.get("x-amz-target", "").partition(".")
        answers: dict[str, Callable[[Request], Reply]] = {
            "PutLogEvents": self._put,
            "FilterLogEvents": self._filter,
            "CreateLogGroup": self._create_group,
            "CreateLogStream": self._create_stream,
            "PutRetentionPolicy": self._set_retention,
            "DescribeLogGroups": self._describe_groups,
        }
        if request.method != "POST" or request.path != "/" or version != "Logs_20140328" or operation not in answers:
            return refusal("UnknownOperationException", "")
        if request.headers.get("content-type") != "application/x-amz-json-1.1":
            raise RefusedError("SerializationException", "Content-Type must be application/x-amz-json-1.1")
        self._authenticate(request, "logs")
        if operation in self.denied:
            raise RefusedError(
                "AccessDeniedException",
                f"User: arn:aws:iam::123456789012:user/shipper is not authorized to perform: logs:{operation} on"
                f" resource: arn:aws:logs:{REGION}:123456789012:log-group:* because no identity-based policy allows the"
                f" logs:{operation} action",
            )
        return answers[operation](request)

    def _authenticate(self, request: Request, service: str) -> None:
        aws_signature.check(request, keys=self.keys, service=service, region=REGION, now=time.time())

    def _assume_role(self, request: Request) -> Reply:
        self._authenticate(request, "sts")
        if "AssumeRole" in self.denied:
            text = (
                "<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>not authorized to perform:"
            )
            text += " sts:AssumeRole</Message></Error></ErrorResponse>"
            return Reply(403, text.encode(), {"Content-Type": "text/xml"})
        assert self._moto is not None
        status, _, body = self._moto.ask(request, request.body)
        parts = {name: re.search(f"<{name}>(.*?)</{name}>", body.decode()) for name in _CREDENTIALS}
        key, secret, token = (found[1] if found else "" for found in parts.values())
        self.keys[key] = aws_signature.Key(secret, token)
        return Reply(status, body, {"Content-Type": "text/xml"})

    def _put(self, request: Request) -> Reply:
        try:
            put = msgspec.json.decode(request.content(), type=Put)
        except (ValueError, UnicodeError) as error:
            raise RefusedError("SerializationException", str(error)) from error
        _check_names(put.log_group_name, put.log_stream_name)
        events = put.log_events
        _check_events(events)
        now = int(self._now() * 1000)
        retention = self._retention.get(put.log_group_name, 0) * DAY
        times = [event.timestamp for event in events]
        old, new = bisect_left(times, now - OLDEST), bisect_right(times, now + NEWEST)
        expired = bisect_left(times, now - retention) if retention else 0
        first = max(old, expired)
        if first < new and times[new - 1] - times[first] > DAY:
            text = "The batch of log events in a single PutLogEvents request cannot span more than 24 hours."
            raise RefusedError("InvalidParameterException", text)
        good = events[first:new]
        if not self._keep:
            self.count += len(good)
            return _reply({})
        self._check_token(put, request.body)
        self._ask_put(request, put, good)
        kept = self._groups.setdefault(put.log_group_name, [])
        for event in good:
            stored = Stored(event.timestamp, self.count, put.log_stream_name, event.message, now)
            self.count += 1
            if kept and kept[-1].timestamp > event.timestamp:
                insort(kept, stored, key=_by_time)
            else:
                kept.append(stored)
        info = {}
        if old:
            info["tooOldLogEventEndIndex"] = old
        if expired > old:
            info["expiredLogEventEndIndex"] = expired
        if new < len(events):
            info["tooNewLogEventStartIndex"] = new
        answer: dict[str, Any] = {"rejectedLogEventsInfo": info} if info else {}
        if self._tokens:
            number, _ = self._expected.get((put.log_group_name, put.log_stream_name), (0, b""))
            self._expected[put.log_group_name, put.log_stream_name] = (number + 1, request.body)
            answer["nextSequenceToken"] = f"{number + 1:056d}"
        return _reply(answer)

    def _ask_put(self, request: Request, put: Put, good: list[PutEvent]) -> None:
        """Let moto keep what the service would: it knows whether group and stream are there."""
        # moto knows no clock but its own, and has judged the ages wrongly: it is told times that it takes.
        clock = int(time.time() * 1000)
        shift, least, most = clock - int(self._now() * 1000), clock - OLDEST + DAY, clock
        times = [min(max(event.timestamp + shift, least), most) for event in good]
        self._ask(
            request,
            {
                "logGroupName": put.log_group_name,
                "logStreamName": put.log_stream_name,
                "logEvents": [PutEvent(at, event.message) for at, event in zip(times, good, strict=True)],
            },
        )

    def _check_token(self, put: Put, body: bytes) -> None:
        if not self._tokens:
            return  # ignored, since 2023
        number, before = self._expected.get((put.log_group_name, put.log_stream_name), (0, b""))
        expected = f"{number:056d}" if number else ""
        if put.sequence_token != expected:
            if before and before == body:
                text = f"The given batch of log events has already been accepted. The next batch can be sent with {expected}"
                raise RefusedError("DataAlreadyAcceptedException", text, expectedSequenceToken=expected)
            text = f"The given sequenceToken is invalid. The next expected sequenceToken is: {expected}"
            raise RefusedError("InvalidSequenceTokenException", text, expectedSequenceToken=expected)

    def _create_group(self, request: Request) -> Reply:
        parameters = _parameters(request)
        _check_names(parameters.get("logGroupName", ""))
        self._ask(request, parameters)
        return _reply(None)

    def _create_stream(self, request: Request) -> Reply:
        parameters = _parameters(request)
        _check_names(parameters.get("logGroupName", ""), parameters.get("logStreamName", ""))
        try:
            self._ask(request, parameters)
        except RefusedError as no:
            if b"already exists" in no.reply.body:
                text = "The specified log stream already exists"
                raise RefusedError("ResourceAlreadyExistsException", text) from no
            raise
        return _reply(None)

    def _set_retention(self, request: Request) -> Reply:
        parameters = _parameters(request)
        _check_names(parameters.get("logGroupName", ""))
        days = parameters.get("retentionInDays")
        if days not in RETENTIONS:
            text = f"Member must satisfy enum value set: [{', '.join(map(str, RETENTIONS))}]"
            raise _invalid(days, "retentionInDays", text)
        self._ask(request, parameters)
        self._retention[parameters["logGroupName"]] = days
        return _reply(None)

    def _describe_groups(self, request: Request) -> Reply:
        parameters = _parameters(request)
        if not self._keep:
            return _reply({"logGroups": []})
        answer = self._ask(request, parameters)
        for group in answer["logGroups"]:
            group["creationTime"] += int((self._now() - time.time()) * 1000)
        return _reply(answer)

    def _filter(self, request: Request) -> Reply:
        parameters = _parameters(request)
        name, limit = parameters.get("logGroupName", ""), parameters.get("limit", PAGE_EVENTS)
        _check_names(name)
        if not 1 <= limit <= PAGE_EVENTS:
            raise _invalid(limit, "limit", f"Member must have value less than or equal to {PAGE_EVENTS}")
        if parameters.get("filterPattern"):
            raise RefusedError("InvalidParameterException", "this stand-in knows no filter patterns")
        token = parameters.pop("nextToken", "")
        head = parameters.get("startFromHead", True)
        if not head and parameters.get("startTime", 0) < _SINCE_2024:
            text = "startFromHead=false is supported only when startTime is on or after Jan 1, 2024 00:00:00 UTC."
            raise RefusedError("InvalidParameterException", text)
        if token:
            asked, skip, empty = self._pages.pop(token, ({}, 0, 0))
            if asked != parameters:
                raise RefusedError("InvalidParameterException", "The specified nextToken is invalid.")
        else:
            skip, empty = 0, self._empty_pages
            self._ask(request, {"logGroupName": name, "limit": 1, "startTime": 1, "endTime": 1})  # is it there?
        found = self._matching(name, parameters)
        if not head:
            found.reverse()
        page = [] if empty else _page(found, skip, limit)
        answer: dict[str, Any] = {"events": [_event(event) for event in page], "searchedLogStreams": []}
        if skip + len(page) < len(found) or empty:
            answer["nextToken"] = str(uuid.uuid4())
            left = empty - 1 if empty else self._empty_pages
            self._pages[answer["nextToken"]] = (parameters, skip + len(page), left)
        return _reply(answer)

    def _matching(self, name: str, parameters: dict[str, Any]) -> list[Stored]:
        """Give the events of a group in a range of time, both ends included, and of some streams."""
        streams, prefix = parameters.get("logStreamNames"), parameters.get("logStreamNamePrefix")
        if streams and (prefix or len(streams) > 100):
            raise RefusedError(
                "InvalidParameterException", "at most 100 logStreamNames, and no logStreamNamePrefix with them"
            )
        kept = self._groups.get(name, [])
        first = bisect_left(kept, parameters.get("startTime", 0), key=_timestamp)
        last = bisect_right(kept, parameters["endTime"], key=_timestamp) if parameters.get("endTime") else len(kept)
        found = kept[first:last]
        if streams or prefix:
            found = [
                one for one in found if one.stream in (streams or ()) or (prefix and one.stream.startswith(prefix))
            ]
        return found

    def _ask(self, request: Request, parameters: dict[str, Any]) -> dict[str, Any]:
        """Give moto's answer. Raises RefusedError with what it refuses."""
        if self._moto is None:
            return {}
        status, _, body = self._moto.ask(request, _encode(parameters))
        answer: dict[str, Any] = msgspec.json.decode(body) if body else {}
        if status != 200:
            raise RefusedError(answer["__type"], answer["message"], status=status)
        return answer


_CREDENTIALS = ("AccessKeyId", "SecretAccessKey", "SessionToken")


def _by_time(event: Stored) -> tuple[int, int]:
    return event.timestamp, event.number


def _timestamp(event: Stored) -> int:
    return event.timestamp


def _parameters(request: Request) -> dict[str, Any]:
    try:
        return msgspec.json.decode(request.body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeError) as error:
        raise RefusedError("SerializationException", str(error)) from error


def _reply(answer: dict[str, Any] | None, *, status: int = 200, code: str = "") -> Reply:
    headers = {"x-amzn-RequestId": str(uuid.uuid4()), "Content-Type": "application/x-amz-json-1.1"}
    if code:
        headers["x-amzn-ErrorType"] = code
    return Reply(status, b"" if answer is None else _encode(answer), headers)


def _event(event: Stored) -> dict[str, Any]:
    return {
        "eventId": f"{event.number:056d}", "timestamp": event.timestamp, "message": event.message,
        "logStreamName": event.stream, "ingestionTime": event.ingested,
    }  # fmt: skip


def _page(found: list[Stored], skip: int, limit: int) -> list[Stored]:
    """Cut a page: at most ``limit`` events and 1 MB, and never none."""
    size = 0
    for place, event in enumerate(found[skip : skip + limit]):
        size += len(event.message.encode())
        if size > PAGE_BYTES and place:
            return found[skip : skip + place]
    return found[skip : skip + limit]


def _invalid(value: Any, name: str, constraint: str) -> RefusedError:
    text = f"1 validation error detected: Value '{value}' at '{name}' failed to satisfy constraint: {constraint}"
    return RefusedError("InvalidParameterException", text)


def _check_names(group: str, stream: str | None = None) -> None:
    for name, value, pattern in (("logGroupName", group, _GROUP), ("logStreamName", stream, _STREAM)):
        if value is None:
            continue
        if not value:
            raise _invalid(value, name, "Member must have length greater than or equal to 1")
        if len(value) > 512:
            raise _invalid(value, name, "Member must have length less than or equal to 512")
        if not pattern.fullmatch(value):
            raise _invalid(value, name, f"Member must satisfy regular expression pattern: {pattern.pattern}")
    if group.startswith("aws/"):
        raise RefusedError("InvalidParameterException", "Log groups starting with AWS/ are reserved for AWS.")


def _check_events(events: list[PutEvent]) -> None:
    if not events:
        raise _invalid("[]", "logEvents", "Member must have length greater than or equal to 1")
    if len(events) > EVENTS:
        raise _invalid("[...]", "logEvents", f"Member must have length less than or equal to {EVENTS}")
    whole = before = 0
    for number, event in enumerate(events, 1):
        message = event.message
        if not message:
            at = f"logEvents.{number}.member.message"
            raise _invalid("", at, "Member must have length greater than or equal to 1")
        if event.timestamp < 0:
            at = f"logEvents.{number}.member.timestamp"
            raise _invalid(event.timestamp, at, "Member must have value greater than or equal to 0")
        size = (len(message) if message.isascii() else len(message.encode())) + OVERHEAD
        if size > EVENT:
            raise RefusedError(
                "InvalidParameterException", f"Log event too large: {size} bytes exceeds limit of {EVENT}"
            )
        whole += size
        if event.timestamp < before:
            text = "Log events in a single PutLogEvents request must be in chronological order."
            raise RefusedError("InvalidParameterException", text)
        before = event.timestamp
    if whole > BATCH:
        raise RefusedError("InvalidParameterException", f"Upload too large: {whole} bytes exceeds limit of {BATCH}")


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m support.cloudwatch_server", description=main.__doc__)
    parser.add_argument("--port", type=int, default=0, help="the port; any free one by default")
    parser.add_argument("--discard", action="store_true", help="count events and keep none, without moto")
    args = parser.parse_args()
    with CloudwatchServer(keep=not args.discard, port=args.port) as server:
        print(server.url, flush=True)  # noqa: T201 - what a benchmark reads
        threading.Event().wait()


if __name__ == "__main__":
    main()
