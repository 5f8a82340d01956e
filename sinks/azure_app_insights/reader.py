"""Reads records back from the workspace of the Application Insights resource: AppTraces, AppExceptions, AppEvents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from shipper.reader import Reader
from shipper.record import SEVERITIES, Record
from sinks import _azure_read
from sinks._azure_read import Row, among, contains, object_of
from sinks._resources import Resources
from sinks.azure_app_insights.encode import Marker, of_resource, severity_level, taken

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shipper.reader import Query, Term
    from sinks.azure_app_insights.config import AppInsightsConfig


def _pushed(term: Term) -> str:
    if term.field == "id" and term.op in {"=", "in"}:
        return among("RecordId", term.values)
    if term.field == "service" and term.op in {"=", "in"} and all(len(value) < 250 for value in term.values):
        return among('tostring(Properties["service.name"])', term.values)
    if term.field == "level" and term.op in {"=", "in"}:
        levels = sorted({severity_level(SEVERITIES[value]) for value in term.values})
        return f"where isnull(SeverityLevel) or SeverityLevel in ({', '.join(map(str, levels))})"
    if term.field == "message" and term.op == "contains":
        return contains("Text", term.value)
    return ""


DIALECT = _azure_read.Dialect(
    start=(
        "union isfuzzy=true AppTraces, AppExceptions, AppEvents",
        "extend RecordId = tostring(Properties.id), Ns = tolong(Properties.time_ns)",
        'extend Part = toint(Properties["shipper.part"])',
        "extend Text = iff(isempty(Properties.message), Message, tostring(Properties.message))",
        "where isnotempty(RecordId) and isnotnull(Ns)",
    ),
    columns=("Message", "Properties"),
    pushed=_pushed,
)


class AppInsightsReader(Reader):
    """Gives the records that this sink wrote; telemetry of other writers, which has no id of ours, is passed by."""

    def __init__(self, config: AppInsightsConfig) -> None:
        self._workspace = _azure_read.Workspace(config, DIALECT, what="azure_app_insights")
        self._resources = Resources()

    def read(self, query: Query) -> Iterator[Record]:
        """Give matching records. Raises RetryableError when the API is away or busy, ParkedError for login, rights or
        a missing workspace_id.
        """
        yield from self._workspace.records(query, self._record)

    def _record(self, rows: Sequence[Row]) -> Record | None:
        """Make the record of its rows: several when it has parts, and the same row again when it was sent twice."""
        main: dict[str, Any] = {}
        message = ""
        chunks: dict[str, str] = {}
        for row in rows:
            properties = object_of(row["Properties"])
            if "shipper" in properties and not main:
                main = properties
                message = str(properties.get("message", row["Message"] or ""))
            chunks.update({name: str(value) for name, value in properties.items() if _numbered(name)})
        marker = _marker(main.get("shipper"))
        if marker is None:
            return None  # its first part is missing, or it is not ours
        if marker.message is not None:
            message = marker.message
        rest = _rest(chunks, marker.rest)
        attributes: dict[str, Any] = {}
        resource: dict[str, str] = dict(object_of(rest.get("resource")))
        left = object_of(rest.get("attributes"))
        for name, value in main.items():
            if taken(name):
                continue
            if name in marker.resource or (of_resource(name) and name not in marker.own):
                resource[name] = str(value)
                continue
            key = name.removeprefix("attribute.") if name in marker.renamed else name
            if key not in left:
                attributes[key] = _decoded(value) if name in marker.json else value
        text = str(rest.get("message", message))
        return Record(
            id=str(rows[0]["RecordId"]),
            time_ns=int(rows[0]["Ns"]),
            severity=marker.severity,
            message=text,
            attributes={**attributes, **left},
            raw=text,
            resource=self._resources.of(marker.source, resource),
            offset=0,
        )

    def close(self) -> None:
        """Close all connections."""
        self._workspace.close()


def _numbered(name: str) -> bool:
    return name.startswith("shipper.") and name[8:].isdecimal()


def _marker(text: Any) -> Marker | None:
    try:
        return msgspec.json.decode(text, type=Marker)
    except (msgspec.MsgspecError, TypeError, UnicodeError, RecursionError):
        return None


def _rest(chunks: dict[str, str], count: int) -> dict[str, Any]:
    """Join the numbered properties. If one is missing, what is cut stays cut, and its marks say so."""
    return object_of("".join(chunks.get(f"shipper.{number}", "\0") for number in range(1, count + 1)))


def _decoded(value: Any) -> Any:
    try:
        return msgspec.json.decode(value)
    except (msgspec.MsgspecError, TypeError, UnicodeError, RecursionError):
        return value
