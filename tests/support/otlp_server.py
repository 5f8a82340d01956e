"""A stand-in for an OTLP/HTTP receiver: a collector's ``/v1/logs``, and Loki's ``/otlp/v1/logs``.

It decodes protobuf by itself, by the field numbers of opentelemetry-proto 1.x, and holds what a collector holds: the method,
the content type (415), the encoding, the size before and after unpacking (413), and the token. Loki's path answers 204, a
request without records with 422, and never a partial success. ``rejects`` says which records are refused in a
partial success, which has their number and does not name them.

::

    with OtlpServer(rejects=lambda record: "poison" in record.message) as server:
        sink = {"endpoint": server.url, ...}
        server.throttle(7)                  # the next request: 429, Retry-After: 7
        server.ids(), server.records()

``python -m support.otlp_server [--port N] [--discard]`` serves until it is ended, and prints its URL first.
"""

from __future__ import annotations

import argparse
import base64
import json
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from email.utils import formatdate
from typing import Any

import msgspec

from shipper.record import Record, Resource
from shipper.testing.http_server import HttpServer, Reply, Request

PROTOBUF, JSON = "application/x-protobuf", "application/json"
#: What a collector takes by default, before and after unpacking.
MAX_BODY = 20 << 20
#: google.rpc.Code of a status.
_CODES = {400: 3, 401: 16, 403: 7, 413: 3, 415: 3, 422: 3, 429: 8, 500: 13, 503: 14}
_SOURCE, _UID = "shipper.source", "log.record.uid"


class Received(msgspec.Struct, frozen=True):
    """One LogRecord as it came. Times are nanoseconds since 1970 UTC."""

    time_ns: int
    observed_ns: int
    severity: int
    severity_text: str
    body: Any
    attributes: dict[str, Any]
    resource: dict[str, Any]
    scope: str

    @property
    def id(self) -> str:
        """The record's id, ``""`` if it has none."""
        return str(self.attributes.get(_UID, ""))

    @property
    def message(self) -> str:
        """The body as text."""
        return self.body if isinstance(self.body, str) else json.dumps(self.body)


class OtlpServer(HttpServer):
    """Stores what it takes, in the order it came; ``keep=False`` only counts, in ``count``.

    ``token`` (Bearer) or ``login`` (user, password) is demanded if given. ``max_body`` is in bytes. ``encodings`` are the
    content types taken.
    """

    def __init__(
        self,
        *,
        keep: bool = True,
        rejects: Callable[[Received], bool] | None = None,
        words: str = "records were refused",
        token: str = "",
        login: tuple[str, str] | None = None,
        max_body: int = MAX_BODY,
        encodings: tuple[str, ...] = (PROTOBUF, JSON),
        tls: ssl.SSLContext | None = None,
        port: int = 0,
    ) -> None:
        self.received: list[Received] = []
        self.count = 0
        self.token, self.login, self.max_body, self.rejects, self.words = token, login, max_body, rejects, words
        self._encodings = encodings
        self._keep = keep
        super().__init__(tls=tls, port=port)

    def handle(self, request: Request) -> Reply:
        """See `HttpServer.handle`; requests are kept only if records are."""
        reply = super().handle(request)
        if not self._keep:
            self.requests.clear()
        return reply

    def answer(self, request: Request) -> Reply:
        """Take the records and say so as a collector would, or Loki."""
        if request.path not in {"/v1/logs", "/otlp/v1/logs"}:
            return Reply(404, b"404 page not found\n", {"Content-Type": "text/plain; charset=utf-8"})
        if request.method != "POST":
            return Reply(405, b"405 method not allowed, supported: [POST]", {"Content-Type": "text/plain"})
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in self._encodings:
            supported = ", ".join(sorted(self._encodings))
            text = f"415 unsupported media type, supported: [{supported}]"
            return Reply(415, text.encode(), {"Content-Type": "text/plain"})
        if not self._known(request.headers.get("authorization", "")):
            return status(401, "missing or wrong credentials", kind)
        if len(request.body) > self.max_body:
            return status(413, "http: request body too large", kind)
        try:
            content = request.content()
            if len(content) > self.max_body:
                return status(413, "http: request body too large", kind)
            if not self._keep:
                self.count += _count(content) if kind == PROTOBUF else content.count(b'"timeUnixNano"')
                return success(kind)
            found = list(from_protobuf(content) if kind == PROTOBUF else from_json(content))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return status(400, f"cannot decode: {error}", kind)
        if request.path.startswith("/otlp") and not found:
            return status(422, "error at least one valid stream is required for ingestion", kind)
        taken = [record for record in found if self.rejects is None or not self.rejects(record)]
        self.received += taken
        self.count = len(self.received)
        refused = len(found) - len(taken)
        if request.path.startswith("/otlp"):
            return Reply(204)
        return success(kind, rejected=refused, words=self.words if refused else "")

    def throttle(self, seconds: int, *, code: int = 429, as_date: bool = False, kind: str = PROTOBUF) -> None:
        """Refuse the next request and say when to come back, in seconds or as a date."""
        after = formatdate(time.time() + seconds, usegmt=True) if as_date else str(seconds)
        reply = status(code, "slow down", kind)
        self.script(Reply(code, reply.body, {**reply.headers, "Retry-After": after}))

    def sink(self, **changes: Any) -> dict[str, Any]:
        """Give the section of a sink that writes here."""
        secret = {"bearer_token": self.token} if self.token else {}
        if self.login is not None:
            secret = {"username": self.login[0], "password": self.login[1]}
        return {"type": "otlp", "endpoint": self.url, **secret, **changes}

    def arrived(self) -> list[str]:
        """Give the ids of all records stored, doubles included, as they came."""
        return [record.id for record in self.received]

    def ids(self) -> list[str]:
        """Give the ids of all records stored, doubles included, in time order."""
        return [record.id for record in self._sorted()]

    def messages(self) -> list[str]:
        """Give the bodies of all records stored, doubles included, in time order."""
        return [record.message for record in self._sorted()]

    def records(self) -> list[Record]:
        """Give what is stored as shipper's records, as they came. What OTLP does not carry is empty."""
        return [_record(received) for received in self.received]

    def _sorted(self) -> list[Received]:
        return sorted(self.received, key=lambda record: record.time_ns)

    def _known(self, authorization: str) -> bool:
        if self.token:
            return authorization == f"Bearer {self.token}"
        if self.login is not None:
            return authorization == "Basic " + base64.b64encode(":".join(self.login).encode()).decode()
        return True


def success(kind: str, *, rejected: int = 0, words: str = "") -> Reply:
    """Make an ExportLogsServiceResponse; with a number or words it has a partial_success."""
    partial = rejected or words
    if kind == JSON:
        response = {"partialSuccess": {"rejectedLogRecords": str(rejected), "errorMessage": words}} if partial else {}
        return Reply(200, json.dumps(response).encode(), {"Content-Type": JSON})
    body = b""
    if partial:
        inner = (b"\x08" + _varint(rejected) if rejected else b"") + (_text(2, words) if words else b"")
        body = b"\x0a" + _varint(len(inner)) + inner
    return Reply(200, body, {"Content-Type": PROTOBUF})


def status(code: int, message: str, kind: str = PROTOBUF) -> Reply:
    """Make an answer that carries a google.rpc.Status, as every OTLP error does."""
    number = _CODES.get(code, 2)
    if kind == JSON:
        return Reply(code, json.dumps({"code": number, "message": message}).encode(), {"Content-Type": JSON})
    return Reply(code, b"\x08" + _varint(number) + _text(2, message), {"Content-Type": PROTOBUF})


def from_protobuf(data: bytes) -> Iterator[Received]:
    """Decode an ExportLogsServiceRequest. Raises ValueError when it is none."""
    for resource_logs in _all(data, 1):
        resource = _attributes(b"".join(_all(resource_logs, 1)), 1)
        for scope_logs in _all(resource_logs, 2):
            scope = "".join(_utf8(name) for one in _all(scope_logs, 1) for name in _all(one, 1))
            for log_record in _all(scope_logs, 2):
                yield _from_protobuf(log_record, resource, scope)


def from_json(data: bytes) -> Iterator[Received]:
    """Decode a request of OTLP's JSON mapping. Raises ValueError, KeyError or TypeError when it is none."""
    for resource_logs in json.loads(data).get("resourceLogs", ()):
        resource = _pairs(resource_logs.get("resource", {}).get("attributes", ()))
        for scope_logs in resource_logs["scopeLogs"]:
            scope = scope_logs.get("scope", {}).get("name", "")
            for row in scope_logs["logRecords"]:
                for name in ("timeUnixNano", "observedTimeUnixNano"):
                    if not isinstance(row.get(name, ""), str):
                        raise TypeError(f"{name}: a 64-bit integer must be text")
                if not isinstance(row.get("severityNumber", 0), int):
                    raise TypeError("severityNumber: an enum must be a number")
                yield Received(
                    int(row.get("timeUnixNano", "0")),
                    int(row.get("observedTimeUnixNano", "0")),
                    row.get("severityNumber", 0),
                    row.get("severityText", ""),
                    _json_value(row.get("body", {})),
                    _pairs(row.get("attributes", ())),
                    resource,
                    scope,
                )


def _record(received: Received) -> Record:
    attributes = dict(received.attributes)
    resource = dict(received.resource)
    return Record(
        id=attributes.pop(_UID, ""),
        time_ns=received.time_ns,
        severity=received.severity,
        message=received.message,
        raw=attributes.pop("log.record.original", received.message),
        attributes=attributes,
        resource=Resource(resource.pop(_SOURCE, ""), resource),
        offset=0,
    )


# Protobuf


def _fields(data: bytes) -> Iterator[tuple[int, int, Any]]:
    """Give field number, wire type and value: an int, or the bytes of fixed and length-delimited fields."""
    at = 0
    while at < len(data):
        tag, at = _number(data, at)
        number, wire = tag >> 3, tag & 7
        if number == 0 or wire not in {0, 1, 2, 5}:
            raise ValueError(f"proto: cannot parse invalid wire-format data: field {number}, type {wire}")
        if wire == 0:
            value, at = _number(data, at)
            yield number, wire, value
            continue
        size = {1: 8, 5: 4}.get(wire, 0)
        if wire == 2:
            size, at = _number(data, at)
        if at + size > len(data):
            raise ValueError("proto: unexpected EOF")
        yield number, wire, data[at : at + size]
        at += size


def _number(data: bytes, at: int) -> tuple[int, int]:
    result = shift = 0
    for index in range(at, min(at + 10, len(data))):
        result |= (data[index] & 0x7F) << shift
        if data[index] < 0x80:
            return result, index + 1
        shift += 7
    raise ValueError("proto: unexpected EOF")


def _all(data: bytes, wanted: int) -> Iterator[bytes]:
    for number, wire, value in _fields(data):
        if number == wanted:
            if wire != 2:
                raise ValueError(f"proto: field {number} has the wrong wire type {wire}")
            yield value


def _from_protobuf(data: bytes, resource: dict[str, Any], scope: str) -> Received:
    time_ns = observed_ns = severity = 0
    text, body = "", None
    pairs = []
    for number, wire, value in _fields(data):
        expected = {1: 1, 2: 0, 3: 2, 5: 2, 6: 2, 7: 0, 8: 5, 9: 2, 10: 2, 11: 1, 12: 2}.get(number)
        if expected is not None and wire != expected:
            raise ValueError(f"proto: field {number} of LogRecord has the wrong wire type {wire}")
        if number == 1:
            (time_ns,) = struct.unpack("<Q", value)
        elif number == 11:
            (observed_ns,) = struct.unpack("<Q", value)
        elif number == 2:
            severity = value
        elif number == 3:
            text = _utf8(value)
        elif number == 5:
            body = _value(value)
        elif number == 6:
            pairs.append(_pair(value))
    return Received(time_ns, observed_ns, severity, text, body, _unique(pairs), resource, scope)


def _attributes(data: bytes, field: int) -> dict[str, Any]:
    return _unique([_pair(pair) for pair in _all(data, field)])


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice among the attributes")  # forbidden by the data model
    return found


def _pair(data: bytes) -> tuple[str, Any]:
    key, value = "", None
    for number, _, part in _fields(data):
        if number == 1:
            key = _utf8(part)
        elif number == 2:
            value = _value(part)
    return key, value


def _value(data: bytes) -> Any:
    result: Any = None
    for number, _, part in _fields(data):
        if number == 1:
            result = _utf8(part)
        elif number == 2:
            result = bool(part)
        elif number == 3:
            result = part - (1 << 64) if part >> 63 else part
        elif number == 4:
            (result,) = struct.unpack("<d", part)
        elif number == 5:
            result = [_value(item) for item in _all(part, 1)]
        elif number == 6:
            result = _attributes(part, 1)
        elif number == 7:
            result = part
    return result


def _utf8(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValueError("proto: string field contains invalid UTF-8") from error


def _count(data: bytes) -> int:
    return sum(1 for one in _all(data, 1) for scope in _all(one, 2) for _ in _all(scope, 2))


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _text(field: int, text: str) -> bytes:
    data = text.encode()
    return bytes([field << 3 | 2]) + _varint(len(data)) + data


# JSON


def _pairs(pairs: Any) -> dict[str, Any]:
    return _unique([(pair["key"], _json_value(pair.get("value", {}))) for pair in pairs])


def _json_value(value: Mapping[str, Any]) -> Any:
    if len(value) > 1:
        raise ValueError("an AnyValue holds one value")
    for name, part in value.items():
        if name == "intValue":
            if not isinstance(part, str):
                raise TypeError("intValue: a 64-bit integer must be text")
            return int(part)
        if name == "arrayValue":
            return [_json_value(item) for item in part.get("values", ())]
        if name == "kvlistValue":
            return _pairs(part.get("values", ()))
        if name == "doubleValue":
            return float(part)
        if name == "bytesValue":
            return base64.b64decode(part)
        if name not in {"stringValue", "boolValue"}:
            raise ValueError(f"unknown field {name!r}")
        return part
    return None


def main(arguments: list[str] | None = None) -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description="A stand-in for an OTLP/HTTP receiver.")
    parser.add_argument("--port", type=int, default=0, help="where to listen; 0 takes a free port")
    parser.add_argument("--discard", action="store_true", help="count the records and keep none")
    options = parser.parse_args(arguments)
    with OtlpServer(port=options.port, keep=not options.discard) as server:
        print(server.url, flush=True)  # noqa: T201 - whoever started it reads it
        threading.Event().wait()


if __name__ == "__main__":
    main()
