"""A stand-in for Azure's Logs Ingestion API: one data collection rule with one stream, and the table that it fills.

Holds what the service holds: a token; the role (``granted``); 1 MB a request, as sent and unpacked; the rule and the
stream. 204 and nothing else means taken. In silence, as there: a field above 64 KB is cut, whichever way it is counted;
a column that the stream does not declare is dropped; a value of the wrong type becomes null; a TimeGenerated of more
than two days ago or a day ahead is replaced; an integer beyond 64 bits in a dynamic value is rounded.
"""

from __future__ import annotations

import re
from collections import defaultdict
from datetime import UTC, datetime
from typing import Any, ClassVar

import msgspec

from shipper.testing.http_server import Reply, Request
from support.azure_server import AzureServer, Row, cut, seconds_of, serve

RULE, STREAM, TABLE = "dcr-00112233445566778899aabbccddeeff", "Custom-Shipper_CL", "Shipper_CL"
#: Bytes of a request and of a field.
CALL, FIELD = 1_048_576, 65_536
_DAY = 86_400.0
COLUMNS = {
    "TimeGenerated": "datetime", "EventTime": "datetime", "TimeNs": "string", "RecordId": "string", "Level": "string",
    "Severity": "int", "Message": "string", "Attributes": "dynamic", "Service": "string", "Container": "string",
    "Stream": "string", "Host": "string", "Source": "string", "Resource": "dynamic", "Part": "int", "Parts": "int",
    "Rest": "string",
}  # fmt: skip
_START = [TABLE, "extend Ns = tolong(TimeNs)", "where isnotempty(RecordId) and isnotnull(Ns)"]
_PATH = re.compile(r"/dataCollectionRules/([^/]+)/streams/([^/]+)")


class AzureLogsServer(AzureServer):
    """One rule, stream and table. ``granted`` is false while the role is missing. ``too_large`` is the status of a
    request above 1 MB: 413, or the 404 that some have met.
    """

    dynamic: ClassVar[frozenset[str]] = frozenset({"Attributes", "Resource"})

    def __init__(self, **options: Any) -> None:
        self.granted = True
        self.too_large = 413
        super().__init__(**options)

    def sink(self, **changes: Any) -> dict[str, Any]:
        """Give the section of a sink that writes and reads here."""
        place = {"endpoint": self.url, "rule_id": RULE, "stream": STREAM}
        return {"type": "azure_logs", **place, **self.credentials(), **changes}

    def answer(self, request: Request) -> Reply:
        """Take a request's rows, or none of them."""
        match = _PATH.fullmatch(request.path)
        if match is None or request.method != "POST":
            return Reply(404, b"")
        if (refusal := self.unauthorized(request)) is not None:
            return refusal
        if request.query.get("api-version") != "2023-01-01":
            return _error(400, "MissingApiVersionParameter", "The api-version query parameter is required.")
        try:
            content = request.content()
        except ValueError as error:
            return _error(400, "InvalidRequestContent", str(error))
        size = max(len(request.body), len(content))
        if size > CALL and self.too_large == 404:
            return Reply(404, b"")
        if size > CALL:
            text = f"Maximum allowed content length: {CALL} bytes (1 MB). Provided content length: {size} bytes."
            return _error(413, "ContentLengthLimitExceeded", text)
        if match[1] != RULE:
            return _error(404, "NotFound", f"Data collection rule with immutable Id '{match[1]}' not found.")
        if not self.granted:
            text = (
                "The authentication token provided does not have access to ingest data for the data collection rule"
                f" with immutable Id '{RULE}'."
            )
            return _error(403, "OperationFailed", text)
        if match[2] != STREAM:
            text = f"The stream {match[2]} was not configured in the data collection rule"
            return _error(400, "InvalidStream", text)
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            return _error(415, "UnsupportedMediaType", "The content type must be application/json")
        try:
            rows = msgspec.json.decode(content, type=list[dict[str, Any]])
        except (msgspec.MsgspecError, UnicodeError) as error:
            return _error(400, "InvalidRequestContent", f"The body is no JSON array of objects: {error}")
        self.count += sum(1 for row in rows if (row.get("Part") or 1) == 1)
        if self.keep:
            self.rows += map(self._stored, rows)
        return Reply(204)

    def _stored(self, given: Row) -> Row:
        row = {name: _stored(given.get(name), kind) for name, kind in COLUMNS.items()}
        moment = seconds_of(row["TimeGenerated"])
        if moment is None or not self.now() - 2 * _DAY <= moment <= self.now() + _DAY:
            row["TimeGenerated"] = f"{datetime.fromtimestamp(self.now(), UTC):%Y-%m-%dT%H:%M:%S.%f}0Z"
        return row

    def base_table(self) -> tuple[list[Row], list[str]]:
        """Give all rows that have an id and a time of ours."""
        named = [row for row in self.rows if row["RecordId"] and (row["TimeNs"] or "").isdecimal()]
        return [{**row, "Ns": int(row["TimeNs"])} for row in named], _START

    def records(self) -> list[tuple[str, str]]:
        """Give the id and the whole message of every record stored, doubles included, in time order."""
        pieces: dict[str, dict[int, str]] = defaultdict(dict)
        for row in self.rows:
            if row["Part"]:
                pieces[row["RecordId"]][row["Part"]] = row["Rest"]
        found = []
        for row in self.rows:
            if (row["Part"] or 1) > 1:
                continue
            message = row["Message"]
            if parts := pieces.get(row["RecordId"]):
                rest = msgspec.json.decode("".join(parts[number] for number in sorted(parts)))
                message = rest.get("message", message)
            found.append((int(row["TimeNs"]), row["RecordId"], message))
        return [(record, message) for _, record, message in sorted(found, key=lambda each: each[:2])]


def _stored(value: Any, kind: str) -> Any:
    """Give what the table holds of a value."""
    if value is None:
        return "" if kind == "string" else None
    if kind == "int":
        return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 31 else None
    if kind == "datetime":
        return value if seconds_of(value) is not None else None
    if kind == "string":
        return _cut(value if isinstance(value, str) else msgspec.json.encode(value).decode())
    text = msgspec.json.encode(_rounded(value)).decode()
    return msgspec.json.decode(text) if _cut(text) == text else _cut(text)


def _cut(text: str) -> str:
    text = cut(text, FIELD // 2)
    return text.encode()[:FIELD].decode("utf-8", "ignore")


def _rounded(value: Any) -> Any:
    """Integers beyond 64 bits become doubles."""
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        return float(value)
    return value


def _error(status: int, code: str, text: str) -> Reply:
    body = {"error": {"code": code, "message": text}}
    return Reply(status, msgspec.json.encode(body), {"Content-Type": "application/json"})


if __name__ == "__main__":
    serve(AzureLogsServer)
