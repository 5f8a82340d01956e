"""Rows as bytes: the VALUES of an INSERT, or the file of a LOAD DATA.

The file uses control characters that log text hardly ever holds as its separators, so that nothing needs to be
escaped: whether one occurs is looked for once per column, and only then are its values escaped.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, cast

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


def pieces(mapping: Mapping, batch: Batch, order: Sequence[int]) -> Iterator[bytes]:
    """Make the file of a LOAD DATA piece by piece, each only when it is asked for."""
    for start in range(0, len(order), SLICE):
        yield load_file(mapping.rows(picked(batch, order[start : start + SLICE])))


def picked(batch: Batch, order: Sequence[int]) -> Batch:
    """Give a batch of the records at ``order``, with what makes rows of them and no more."""
    return Batch(
        times=list(map(batch.times.__getitem__, order)),
        stamps=list(map(batch.stamps.__getitem__, order)),
        hashes=list(map(batch.hashes.__getitem__, order)),
        raws=[] if batch.messages is not None else list(map(batch.raws.__getitem__, order)),
        resources=list(map(batch.resources.__getitem__, order)),
        offsets=[],
        severities=None if batch.severities is None else list(map(batch.severities.__getitem__, order)),
        messages=None if batch.messages is None else list(map(batch.messages.__getitem__, order)),
        attributes=None if batch.attributes is None else list(map(batch.attributes.__getitem__, order)),
    )


def load_file(rows: Rows) -> bytes:
    """Make the file of a LOAD DATA; lone surrogates become U+FFFD."""
    # Ids, levels, times and markers are of our own making, and JSON has no control characters.
    columns = [
        rows.ids,
        rows.levels,
        _safe(rows.messages),
        _no_nulls(rows.details),
        *map(_safe, rows.mapped),
        rows.created,
    ]
    if rows.markers is not None:
        columns.append(_no_nulls(rows.markers))
    ends: dict[Tail, str] = {}
    for tail in set(rows.tails):
        ends[tail] = FIELD.join([NULL if value is None else _escaped(value) for value in ("", *tail.columns)]) + ROW
    if len(ends) == 1:
        (end,) = ends.values()
        text = end.join(map(FIELD.join, zip(*columns, strict=True))) + end
    else:
        text = "".join(
            chain.from_iterable(
                zip(map(FIELD.join, zip(*columns, strict=True)), map(ends.__getitem__, rows.tails), strict=True)
            )
        )
    try:
        return text.encode()
    except UnicodeEncodeError:
        return load_file(rows.clean())


def _safe(values: Sequence[str | None]) -> Sequence[str]:
    """Give values as fields: escaped where they need it, which is looked for in all of them at once."""
    whole = "".join(filter(None, values))
    if ESCAPE in whole or FIELD in whole or ROW in whole:
        values = [None if value is None else _escaped(value) for value in values]
    return _no_nulls(values)


def _no_nulls(values: Sequence[str | None]) -> Sequence[str]:
    absent = values.count(None)
    if absent == len(values):
        return [NULL] * absent
    return [NULL if value is None else value for value in values] if absent else cast("Sequence[str]", values)


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
