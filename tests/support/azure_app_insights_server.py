"""A stand-in for Application Insights: the ingestion endpoint (Breeze), its quota, sampling and redirects, the tables.

Holds what the service holds: 64,000 items a request; 64 KB an item; no item older than 48 hours; a known key; required
fields. Answers tell each refused item by its index: 200 all taken, 206 some, 400 none. What is too long is cut in
silence at the documented lengths, a property whose key is too long is dropped. ``quota``, ``sampled``, ``verdict`` and
``moved_to`` let a test have the rest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any, ClassVar

import msgspec

from shipper.testing.http_server import Reply, Request
from support.azure_server import AzureServer, Row, cut, seconds_of, serve

KEY = "0f0e0d0c-0b0a-4900-8807-060504030201"
#: Bytes of an item, items of a request, seconds of age, UTF-16 units of a message, a key, a value and an event's name.
ITEM, ITEMS, AGE, MESSAGE, PROPERTY, VALUE, EVENT = 65_536, 64_000, 172_800, 32_768, 150, 8_192, 512
SAMPLED = "Telemetry sampled out."
_TABLES = {"MessageData": "AppTraces", "ExceptionData": "AppExceptions", "EventData": "AppEvents"}
_START = [
    "union isfuzzy=true AppTraces, AppExceptions, AppEvents",
    "extend RecordId = tostring(Properties.id), Ns = tolong(Properties.time_ns)",
    'extend Part = toint(Properties["shipper.part"])',
    "extend Text = iff(isempty(Properties.message), Message, tostring(Properties.message))",
    "where isnotempty(RecordId) and isnotnull(Ns)",
]


class AppInsightsServer(AzureServer):
    """One resource and its workspace.

    ``entra`` asks for a token. ``quota`` is 402 or 439 while the daily quota is used up, else 0. ``sampled`` tells
    which envelopes ingestion sampling leaves out. ``verdict`` may give the status and message of any envelope's failure.
    ``moved_to`` is a URL that requests are redirected to (307).
    """

    dynamic: ClassVar[frozenset[str]] = frozenset({"Properties"})

    def __init__(self, **options: Any) -> None:
        self.entra = False
        self.quota = 0
        self.sampled: Callable[[Row], bool] = lambda _: False
        self.verdict: Callable[[Row], tuple[int, str] | None] = lambda _: None
        self.moved_to = ""
        self._decode = msgspec.json.Decoder(list[msgspec.Raw]).decode
        super().__init__(**options)

    def sink(self, **changes: Any) -> dict[str, Any]:
        """Give the section of a sink that writes and reads here."""
        string = f"InstrumentationKey={KEY};IngestionEndpoint={self.url}/;LiveEndpoint={self.url}/;ApplicationId=app"
        return {"type": "azure_app_insights", "connection_string": string, **self.credentials(), **changes}

    def answer(self, request: Request) -> Reply:
        """Judge each item of a request."""
        if request.path != "/v2.1/track" or request.method != "POST":
            return Reply(404, b"not found")
        if self.moved_to:
            return Reply(307, headers={"Location": self.moved_to})
        if self.entra and (refusal := self.unauthorized(request)) is not None:
            return refusal
        if self.quota:
            return _response(self.quota, 0, 0, [(0, self.quota, "Monthly quota of the resource is used up")])
        try:
            items = self._items(request)
        except (ValueError, msgspec.MsgspecError) as error:
            return _response(400, 0, 0, [(0, 400, f"100: Invalid JSON: {error}")])
        if len(items) > ITEMS:
            return Reply(413, b"too many items")
        errors: list[tuple[int, int, str]] = []
        for index, raw in enumerate(items):
            if (problem := self._taken(bytes(raw))) is not None:
                errors.append((index, *problem))
        status = 200 if not errors else 206 if len(errors) < len(items) or self._all_sampled(errors) else 400
        return _response(status, len(items), len(items) - len(errors), errors)

    @staticmethod
    def _all_sampled(errors: list[tuple[int, int, str]]) -> bool:
        return all(message == SAMPLED for _, _, message in errors)

    def _items(self, request: Request) -> list[msgspec.Raw]:
        content = request.content()
        if request.headers.get("content-type", "").startswith("application/x-json-stream"):
            return [msgspec.Raw(line) for line in content.splitlines() if line.strip()]
        return self._decode(content)

    def _taken(self, raw: bytes) -> tuple[int, str] | None:
        """Store an item, or give the status and message of its refusal."""
        if len(raw) > ITEM:
            return 400, f"Telemetry item of {len(raw)} bytes exceeds the limit of {ITEM}"
        try:
            envelope = msgspec.json.decode(raw)
            data = envelope["data"]["baseData"]
            kind = envelope["data"]["baseType"]
            table = _TABLES[kind]
        except (msgspec.MsgspecError, KeyError, TypeError) as error:
            return 400, f"106: Field 'data' on type 'Envelope' is not as expected: {error}"
        if str(envelope.get("iKey", "")) != KEY:
            return 400, "Invalid instrumentation key"
        if (problem := self._time(envelope.get("time")) or _fields(kind, data)) is not None:
            return problem
        if (given := self.verdict(envelope)) is not None:
            return given
        if self.sampled(envelope):
            return 500, SAMPLED
        properties = data.get("properties", {})
        if int(properties.get("shipper.part", "1")) == 1:
            self.count += 1
        if self.keep:
            self.rows.append(_row(table, envelope, data))
        return None

    def _time(self, text: Any) -> tuple[int, str] | None:
        moment = seconds_of(text)
        if moment is None:
            return 400, "102: Field 'time' on type 'Envelope' is not of the expected type. Expected: date"
        age = self.now() - moment
        if age > AGE:
            return 400, (
                "103: Field 'time' on type 'Envelope' is older than the allowed min date. Expected: now -"
                f" {AGE * 1000}ms, Actual: now - {int(age * 1000)}ms"
            )
        return None

    def base_table(self) -> tuple[list[Row], list[str]]:
        """Give all rows that have an id and a time of ours."""
        rows = []
        for row in self.rows:
            properties = row["Properties"]
            if properties.get("id") and str(properties.get("time_ns", "")).isdecimal():
                more = {"RecordId": properties["id"], "Ns": int(properties["time_ns"])}
                part = properties.get("shipper.part")
                more |= {"Part": None if part is None else int(part)}
                more |= {"Text": properties.get("message") or row.get("Message") or ""}
                rows.append({**row, **more})
        return rows, _START

    def records(self) -> list[tuple[str, str]]:
        """Give the id and the whole message of every record stored, doubles included, in time order."""
        chunks: dict[str, dict[int, str]] = defaultdict(dict)
        for row in self.rows:
            for name, value in row["Properties"].items():
                if name.startswith("shipper.") and name[8:].isdecimal():
                    chunks[row["Properties"]["id"]][int(name[8:])] = value
        found = []
        for row in self.rows:
            properties = row["Properties"]
            if int(properties.get("shipper.part", "1")) > 1 or "id" not in properties:
                continue
            message = properties.get("message", row.get("Message", ""))
            marker = msgspec.json.decode(properties.get("shipper", "{}"))
            message = marker.get("message", message)
            if pieces := chunks.get(properties["id"]):
                rest = msgspec.json.decode("".join(pieces[number] for number in sorted(pieces)))
                message = rest.get("message", message)
            found.append((int(properties["time_ns"]), properties["id"], message))
        return [(record, message) for _, record, message in sorted(found, key=lambda each: each[:2])]


def _fields(kind: str, data: Any) -> tuple[int, str] | None:
    """Check what each kind of telemetry must have."""
    properties = data.get("properties", {})
    if any(not isinstance(value, str) for value in properties.values()):
        return 400, f"109: Field 'properties' on type '{kind}' is not of the expected type. Expected: string"
    if kind == "MessageData":
        missing = "" if str(data.get("message", "")).strip() else "message"
    elif kind == "EventData":
        missing = "" if str(data.get("name", "")).strip() else "name"
    else:
        exceptions = data.get("exceptions") or []
        whole = exceptions and all(each.get("typeName") and each.get("message") for each in exceptions)
        missing = "" if whole else "exceptions"
    if missing:
        return (
            400,
            f"109: Field '{missing}' on type '{kind}' is required but missing or empty. Expected: string, Actual: ",
        )
    level = data.get("severityLevel")
    if level is not None and level not in {0, 1, 2, 3, 4}:
        return 400, f"109: Field 'severityLevel' on type '{kind}' is not of the expected type"
    return None


def _row(table: str, envelope: Row, data: Row) -> Row:
    """Make the row of the workspace's table: what is too long is cut, and nobody is told."""
    properties = {
        name: cut(value, VALUE)
        for name, value in data.get("properties", {}).items()
        if len(cut(name, PROPERTY)) == len(name)
    }
    row: Row = {
        "Type": table,
        "TimeGenerated": envelope["time"],
        "AppRoleName": envelope.get("tags", {}).get("ai.cloud.role", ""),
        "AppRoleInstance": envelope.get("tags", {}).get("ai.cloud.roleInstance", ""),
        "OperationId": envelope.get("tags", {}).get("ai.operation.id", ""),
        "SeverityLevel": data.get("severityLevel"),
        "Properties": properties,
    }
    if table == "AppTraces":
        row["Message"] = cut(data["message"], MESSAGE)
    elif table == "AppEvents":
        row["Name"] = cut(data["name"], EVENT)
    else:
        first = data["exceptions"][0]
        row["ExceptionType"], row["OuterMessage"] = first["typeName"], cut(first["message"], MESSAGE)
        row["Details"] = [{**first, "stack": cut(first.get("stack", ""), MESSAGE)}]
    return row


def _response(status: int, received: int, accepted: int, errors: list[tuple[int, int, str]]) -> Reply:
    body = {
        "itemsReceived": received,
        "itemsAccepted": accepted,
        "appId": "app",
        "errors": [{"index": index, "statusCode": code, "message": message} for index, code, message in errors],
    }
    return Reply(status, msgspec.json.encode(body), {"Content-Type": "application/json"})


if __name__ == "__main__":
    serve(AppInsightsServer)
