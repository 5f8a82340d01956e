"""Rows as bytes: the VALUES of an INSERT, or the file of a LOAD DATA.

The file uses control characters that log text hardly ever holds as its separators, so that next to nothing needs to
be escaped.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from shipper.render import Kind, render

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from shipper.record import Batch
    from shipper.render import Part
    from sinks._sql import Mapping, ResourceColumns, Rows

FIELD, ROW = b"\x1e", b"\x1d"
#: Rows that are encoded at once: while the server works on them the next are made, and what they touch stays in
#: the processor's cache. The first are fewer, because the server waits for them.
FIRST_SLICE, SLICE = 100, 500
#: The clauses of LOAD DATA for this format.
FORMAT = "FIELDS TERMINATED BY X'1E' ESCAPED BY X'1C' LINES TERMINATED BY X'1D'"


def pieces(mapping: Mapping, batch: Batch, order: Sequence[int]) -> Iterator[bytes]:
    """Make the file of a LOAD DATA piece by piece, each only when it is asked for."""
    for start, end in pairwise([0, *range(FIRST_SLICE, len(order), SLICE), len(order)]):
        yield load_file(mapping.rows(batch, order[start:end]))


def load_file(rows: Rows) -> bytes:
    """Make the file of a LOAD DATA; lone surrogates become U+FFFD."""
    parts: list[Part] = []
    for column in rows.texts:
        parts += [(Kind.FIELD, column), FIELD]
    parts.append((Kind.CREATED, rows.times))
    if rows.markers is not None:
        parts += [FIELD, (Kind.FIELD, rows.markers)]
    parts += _resource_columns(rows, lambda shared: _rendered(Kind.FIELD, FIELD, shared) + ROW)
    try:
        return render(parts, 0, len(rows))
    except UnicodeEncodeError:
        return load_file(rows.clean())


def values(rows: Rows) -> list[bytes]:
    """Make each row's ``('...',NULL,...)``; lone surrogates become U+FFFD."""
    parts: list[Part] = [b"("]
    for column in rows.texts:
        parts += [(Kind.QUOTED, column), b","]
    parts += [b"'", (Kind.CREATED, rows.times), b"'"]
    if rows.markers is not None:
        parts += [b",", (Kind.QUOTED, rows.markers)]
    parts += _resource_columns(rows, lambda shared: _rendered(Kind.QUOTED, b",", shared) + b")")
    ends: list[int] = []
    try:
        text = render(parts, 0, len(rows), ends=ends)
    except UnicodeEncodeError:
        return values(rows.clean())
    return [text[start:end] for start, end in pairwise([0, *ends])]


def _resource_columns(rows: Rows, rendered: Callable[[ResourceColumns], bytes]) -> list[Part]:
    ends = {shared: rendered(shared) for shared in set(rows.resource_columns)}
    if len(ends) == 1:
        return list(ends.values())
    texts = {shared: end.decode() for shared, end in ends.items()}
    return [(Kind.TEXT, list(map(texts.__getitem__, rows.resource_columns)))]


def _rendered(kind: Kind, between: bytes, shared: ResourceColumns) -> bytes:
    parts: list[Part] = []
    for value in shared.columns:
        parts += [between, (kind, [value])]
    return render(parts, 0, 1)
