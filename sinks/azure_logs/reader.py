"""Reads records back from the table by the query API of the workspace."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shipper.reader import Reader
from shipper.record import SEVERITIES, Record
from sinks import _azure_read
from sinks._azure import tick_text
from sinks._azure_read import Row, among, contains, object_of
from sinks._resources import Resources
from sinks.azure_logs.encode import COLUMNS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shipper.reader import Query, Term
    from sinks.azure_logs.config import AzureLogsConfig

_FIELDS = {"id": "RecordId", "service": "Service", "container": "Container", "stream": "Stream", "host": "Host"}


def _pushed(term: Term) -> str:
    if term.op in {"=", "in"} and term.field in _FIELDS:
        return among(_FIELDS[term.field], term.values) if all(len(value) < 250 for value in term.values) else ""
    if term.op in {"=", "in"} and term.field == "level":
        return among("Level", term.values)
    if term.field == "message" and term.op == "contains":
        return contains("Message", term.value)
    return ""


def dialect(table: str) -> _azure_read.Dialect:
    """Give the KQL of a table with our columns."""
    return _azure_read.Dialect(
        start=(table, "extend Ns = tolong(TimeNs)", "where isnotempty(RecordId) and isnotnull(Ns)"),
        columns=(
            "Level", "Severity", "Message", "Attributes", *COLUMNS.values(), "Source", "Resource", "Part", "Parts", "Rest",
        ),
        pushed=_pushed,
        # A datetime column is what the table is searched by quickly; it is cut to ticks, so both ends are widened.
        since=lambda time_ns: f"where EventTime >= datetime({tick_text(time_ns)})",
        until=lambda time_ns: f"where EventTime <= datetime({tick_text(time_ns)})",
    )  # fmt: skip


class AzureLogsReader(Reader):
    """Gives the records that this sink wrote; rows without an id and a time of ours are passed by."""

    def __init__(self, config: AzureLogsConfig) -> None:
        self._workspace = _azure_read.Workspace(config, dialect(config.read_table), what="azure_logs")
        self._resources = Resources()

    def read(self, query: Query) -> Iterator[Record]:
        """Give matching records. Raises RetryableError when the API is away or busy, ParkedError for login, rights or
        a missing workspace_id.
        """
        yield from self._workspace.records(query, self._record)

    def _record(self, rows: Sequence[Row]) -> Record | None:
        """Make the record of its rows: several when it has parts, and the same row again when it was sent twice."""
        main = next((row for row in rows if (row["Part"] or 1) == 1), None)
        if main is None:
            return None  # its first part is missing
        pieces = {row["Part"]: row["Rest"] or "" for row in rows if row["Part"]}
        # If one is missing, what is cut stays cut, and its marks say so.
        text = "".join(pieces.get(number, "\0") for number in range(1, (main["Parts"] or 0) + 1))
        rest = object_of(text)
        message = str(rest.get("message", main["Message"] or ""))
        resource: dict[str, str] = {name: main[column] for name, column in COLUMNS.items() if main[column]}
        resource |= object_of(main["Resource"]) | object_of(rest.get("resource"))
        severity = main["Severity"]
        if not isinstance(severity, int) or not 0 <= severity <= 24:
            severity = SEVERITIES.get(main["Level"], SEVERITIES["info"])
        return Record(
            id=str(main["RecordId"]),
            time_ns=int(main["Ns"]),
            severity=severity,
            message=message,
            attributes=object_of(main["Attributes"]) | object_of(rest.get("attributes")),
            raw=message,
            resource=self._resources.of(main["Source"] or "", resource),
            offset=0,
        )

    def close(self) -> None:
        """Close all connections."""
        self._workspace.close()
