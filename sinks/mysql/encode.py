"""Rows as bytes: the VALUES of an INSERT, or the file of a LOAD DATA.

The file uses control characters that log text hardly ever holds as its separators, so that nothing needs to be
escaped: whether one occurs is counted once per batch, and only then is every value escaped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shipper.record import Batch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sinks._sql import Mapping, Rows, Tail

FIELD, ROW, ESCAPE = "\x1e", "\x1d", "\x1c"
NULL = ESCAPE + "N"
#: Rows that are encoded at once: while the server works on them the next are made, and what they touch stays in
#: the processor's cache.
SLICE = 500
#: The clauses of LOAD DATA for this format.
FORMAT = "FIELDS TERMINATED BY X'1E' ESCAPED BY X'1C' LINES TERMINATED BY X'1D'"


def pieces(mapping: Mapping, batch: Batch) -> Iterator[bytes]:
    """Make the file of a LOAD DATA piece by piece, each only when it is asked for."""
    ids = batch.ids
    for start in range(0, len(batch), SLICE):
        rows = slice(start, start + SLICE)
        part = Batch(
            times=batch.times[rows],
            stamps=[],
            hashes=[],
            raws=batch.raws[rows],
            resources=batch.resources[rows],
            offsets=[],
            severities=None if batch.severities is None else batch.severities[rows],
            messages=None if batch.messages is None else batch.messages[rows],
            attributes=None if batch.attributes is None else batch.attributes[rows],
            _ids=ids[rows],
        )
        yield load_file(mapping.rows(part))


def load_file(rows: Rows) -> bytes:
    """Make the file of a LOAD DATA; lone surrogates become U+FFFD."""
    nulls = 0
    columns: list[Sequence[str | None]] = [rows.ids, rows.levels, rows.messages]
    for values in rows.varying[3:]:
        absent = values.count(None)
        nulls += absent
        columns.append([NULL if value is None else value for value in values] if absent else values)
    tails: dict[Tail, str] = {}
    for tail in set(rows.tails):
        tails[tail] = FIELD.join(NULL if value is None else _escaped(value) for value in tail.columns)
    text = ROW.join(map(FIELD.join, zip(*columns, map(tails.__getitem__, rows.tails), strict=True))) + ROW
    own = {tail: text.count(ESCAPE) for tail, text in tails.items()}
    escapes = nulls + sum(map(own.__getitem__, rows.tails))
    if (
        text.count(ROW) != len(rows)
        or text.count(FIELD) != len(rows) * (len(columns) + 4)
        or text.count(ESCAPE) != escapes
    ):
        plain = [[NULL if value is None else _escaped(value) for value in values] for values in rows.varying]
        text = ROW.join(map(FIELD.join, zip(*plain, map(tails.__getitem__, rows.tails), strict=True))) + ROW
    try:
        return text.encode()
    except UnicodeEncodeError:
        return load_file(rows.clean())


def _escaped(text: str) -> str:
    return text.replace(ESCAPE, ESCAPE * 2).replace(FIELD, ESCAPE + FIELD).replace(ROW, ESCAPE + ROW)


def values(rows: Rows) -> list[bytes]:
    """Make each row's ``('...',NULL,...)``; lone surrogates become U+FFFD."""
    columns = [_quoted(column) for column in rows.varying]
    tails = {tail: ",".join(_quoted(tail.columns)) for tail in set(rows.tails)}
    columns.append([tails[tail] for tail in rows.tails])
    try:
        return [f"({row})".encode() for row in map(",".join, zip(*columns, strict=True))]
    except UnicodeEncodeError:
        return values(rows.clean())


def _quoted(texts: Sequence[str | None]) -> list[str]:
    """Quote texts. Within single quotes only the quote and the backslash mean something, sql_mode being ours."""
    whole = "".join(filter(None, texts))
    if "\\" in whole or "'" in whole:
        return [
            "NULL" if text is None else "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'" for text in texts
        ]
    return ["NULL" if text is None else f"'{text}'" for text in texts]
