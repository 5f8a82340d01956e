"""Reads records back from a Log Analytics workspace: one query API, one form of KQL for both Azure sinks.

``POST {endpoint}/v1/workspaces/{id}/query``. A row stands for a record or for a part of one; what a record needs is
known from ``Ns`` (nanoseconds), ``RecordId`` and the parts' own numbers. Neither backend can tell doubles, so the same
row may come several times; rows of one record stand together by the order, and are made one record here.

The KQL is fixed in form, a line each::

    <tables and the two columns Ns and RecordId>
    | where Ns >= 1 | where Ns < 2                                     time, and with it the backend's own column
    | where Ns < 2 or (Ns == 2 and strcmp(RecordId, "...") < 0)        the next page, by key
    | where <what the backend may search for>
    | order by Ns desc, RecordId desc
    | take 1000
    | project <columns>
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

import msgspec

from shipper.errors import ParkedError, RetryableError, SinkError
from shipper.reader import Query
from shipper.sink import Finding
from sinks._azure import AzureConfig, Credential, failure, with_token
from sinks._http import Answer, Client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from shipper.reader import Term
    from shipper.record import Record

#: Rows of the first page and of all further ones; the API gives at most 500,000 rows and about 100 MB.
_FIRST_PAGE, _PAGE = 200, 2_000
#: Rows below which a page that the API does not give in full is not made smaller.
_SMALLEST_PAGE = 10
#: Rows of one record beyond which a page is not made larger: a record has hundreds of parts at most.
_LARGEST_PAGE = 200_000

Row = dict[str, Any]


class _Column(msgspec.Struct, frozen=True):
    name: str


class _Table(msgspec.Struct, frozen=True):
    columns: list[_Column]
    rows: list[list[Any]]


class _Answer(msgspec.Struct, frozen=True):
    tables: list[_Table]
    error: Any = None


class Dialect(msgspec.Struct, frozen=True):
    """What one backend's KQL has of its own: the lines that begin it, the columns to give back, its own bounds of time
    (from texts in ticks), and how a term is searched for ("" leaves it to the caller's filter).
    """

    start: tuple[str, ...]
    columns: tuple[str, ...]
    pushed: Callable[[Term], str]
    since: Callable[[int], str] = lambda _: ""
    until: Callable[[int], str] = lambda _: ""


class Workspace:
    """Asks one workspace. Not for several threads at once."""

    def __init__(self, config: AzureConfig, dialect: Dialect, *, what: str) -> None:
        """Take the section of the sink. Opens nothing."""
        self._config = config
        self._dialect = dialect
        self.what = f"{what}: Log Analytics"
        addresses = config.addresses
        self._client = Client(addresses.query, msgspec.structs.replace(config, headers={}), what=self.what)
        self._credential = Credential(config, f"{addresses.query_audience}/.default", what=self.what)

    def records(self, query: Query, joined: Callable[[Sequence[Row]], Record | None]) -> Iterator[Record]:
        """Give the records of a question, each once, page by page, exactly filtered.

        ``joined`` makes a record of its rows. Raises RetryableError when the API is away or busy, ParkedError for
        login, rights or a missing workspace_id.
        """
        left = query.limit
        for rows in self._groups(query):
            if left is not None and left <= 0:
                return
            record = joined(rows)
            if record is None or not _matches(query, record):
                continue
            if left is not None:
                left -= 1
            yield record

    def _groups(self, query: Query) -> Iterator[list[Row]]:
        after: tuple[int, str] | None = None
        size = _FIRST_PAGE
        while True:
            try:
                rows = self.rows(self.kql(query, after=after, size=size))
            except RetryableError as error:
                if error.code != "partial" or size < _SMALLEST_PAGE:
                    raise
                size //= 10  # so many rows are more bytes than the API gives at once
                continue
            groups = [list(group) for _, group in groupby(rows, key=_key)]
            if len(rows) < size:
                yield from groups
                return
            groups.pop()  # its other rows may be on the next page
            if groups:
                after = _key(groups[-1][0])
                size = _PAGE
                yield from groups
            elif size >= _LARGEST_PAGE:
                raise RetryableError(f"{self.what}: more than {size} rows of one record {rows[0]['RecordId']}")
            else:
                size *= 10

    def kql(self, query: Query, *, after: tuple[int, str] | None, size: int) -> str:
        """Make the KQL of a page: ``after`` is (Ns, RecordId) of the last record before it."""
        dialect = self._dialect
        order, sign = ("asc", ">") if query.oldest_first else ("desc", "<")
        lines = list(dialect.start)
        if query.since is not None:
            lines += [dialect.since(query.since), f"where Ns >= {query.since}"]
        if query.until is not None:
            lines += [dialect.until(query.until), f"where Ns < {query.until}"]
        if after is not None:
            time_ns, record = after
            key = f"(Ns == {time_ns} and strcmp(RecordId, {text(record)}) {sign} 0)"
            lines.append(f"where Ns {sign} {time_ns} or {key}")
        terms = query.condition.conjuncts() if query.condition is not None else ()
        lines += [dialect.pushed(term) for term in terms]
        lines += [
            f"order by Ns {order}, RecordId {order}",
            f"take {size}",
            f"project {', '.join(('Ns', 'RecordId', *dialect.columns))}",
        ]
        return "\n| ".join(filter(None, lines))

    def rows(self, kql: str) -> list[Row]:
        """Ask, and give the rows by column name. Raises SinkError."""
        if not self._config.workspace_id:
            raise ParkedError(
                f"{self.what}: workspace_id is not set, so nothing can be read; give the workspace's GUID",
                code="workspace_id",
            )
        answer = self._asked(kql)
        if answer.status != 200:
            rights = "give the application the role Log Analytics Data Reader on the workspace"
            error = failure(answer, self.what, rights=rights)
            if answer.status == 400:
                raise ParkedError(f"{error}; the tables may lack a column that the sink's page names", code="400")
            raise error
        try:
            response = msgspec.json.decode(answer.body, type=_Answer)
        except (msgspec.MsgspecError, UnicodeError) as error:
            raise RetryableError(f"{self.what}: not an answer of the query API: {answer.text}", code="200") from error
        if (
            response.error is not None or not response.tables
        ):  # a part of the rows, and that may not pass for all of them
            raise RetryableError(f"{self.what}: the query was not answered in full: {answer.text}", code="partial")
        names = [column.name for column in response.tables[0].columns]
        return [dict(zip(names, row, strict=True)) for row in response.tables[0].rows]

    def _asked(self, kql: str) -> Answer:
        body = msgspec.json.encode({"query": kql})
        path = f"/v1/workspaces/{self._config.workspace_id}/query"

        def send(token: dict[str, str]) -> Answer:
            headers = {"Content-Type": "application/json", "Prefer": "wait=180", **token}
            return self._client.request("POST", path, body=body, headers=headers)

        return with_token(send, self._credential)

    def finding(self) -> Finding:
        """Look for one row, for an operator; does not raise."""
        try:
            self.rows(self.kql(Query(), after=None, size=1))
        except SinkError as error:
            return Finding("reading", "warn", str(error), "see the message; shipping goes on without reading")
        return Finding("reading", "ok", f"workspace {self._config.workspace_id} answers")

    def close(self) -> None:
        """Close all connections."""
        self._client.close()
        self._credential.close()


def text(value: str) -> str:
    """Give a KQL string literal. Its escapes are JSON's but for what stands above ASCII, which needs none."""
    return msgspec.json.encode(value).decode()


def among(column: str, values: Sequence[str]) -> str:
    """Give the line that asks for one of some texts; such as only JSON can quote are left to the caller's filter."""
    if any(not value.isprintable() for value in values):
        return ""
    return f"where {column} in ({', '.join(map(text, values))})"


def contains(expression: str, value: str) -> str:
    """Give the line that asks for a case-sensitive part of a text, or for rows that are parts of a larger record."""
    if not value.isprintable() or "\ufffd" in value:
        return ""
    return f"where {expression} contains_cs {text(value)} or Part > 0"


def object_of(value: Any) -> dict[str, Any]:
    """Give a dynamic value: the API gives it as text. Another writer may have put anything there."""
    if isinstance(value, str) and value:
        try:
            value = msgspec.json.decode(value)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}


def _key(row: Row) -> tuple[int, str]:
    return int(row["Ns"]), str(row["RecordId"])


def _matches(query: Query, record: Record) -> bool:
    return (
        (query.since is None or record.time_ns >= query.since)
        and (query.until is None or record.time_ns < query.until)
        and (query.condition is None or query.condition.matches(record))
    )
