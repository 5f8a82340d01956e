"""Raw lines that were read back are parsed as the pipeline would have parsed them, before anybody filters or shows them."""

from __future__ import annotations

from itertools import groupby, islice
from typing import TYPE_CHECKING

import msgspec

from shipper.parse import Parser
from shipper.record import Batch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from shipper.record import Record

#: Records of the first batch, which somebody waits for, and of all further ones.
_FIRST, _MORE = 200, 2_000


def reparse(records: Iterable[Record], formats: Mapping[str, str]) -> Iterator[Record]:
    """Give the records with the level, message and attributes of their lines.

    ``formats`` is the parser of each source by its name; a source that is not configured any more is ``auto``. A record's
    time stays, and so does its severity unless it is 0, which says that the backend did not know it; attributes that it
    has already are kept.
    """
    parsers: dict[str, Parser] = {}
    remaining = iter(records)
    size = _FIRST
    while chunk := list(islice(remaining, size)):
        size = _MORE
        for source, group in groupby(chunk, key=lambda record: record.resource.source):
            if source not in parsers:
                parsers[source] = Parser(formats.get(source, "auto"))
            yield from _parsed(list(group), parsers[source])


def _parsed(records: list[Record], parser: Parser) -> Iterator[Record]:
    batch = Batch(
        times=[record.time_ns for record in records],
        stamps=[_stamp(record) for record in records],
        hashes=[0] * len(records),
        raws=[record.raw for record in records],
        resources=[record.resource for record in records],
        offsets=[0] * len(records),
        marks={place: record.attributes for place, record in enumerate(records) if record.attributes} or None,
    )
    parser.parse(batch)
    for record, found in zip(records, batch.records(), strict=True):
        yield msgspec.structs.replace(
            record,
            severity=record.severity or found.severity,
            message=found.message,
            attributes=found.attributes,
        )


def _stamp(record: Record) -> int:
    """Give the time that the source had for a record, to the millisecond: its id begins with it.

    Whether a line's own time became the record's, and so left its attributes, was decided by that.
    """
    try:
        return int(record.id[:8] + record.id[9:13], 16) * 1_000_000
    except ValueError:  # a backend that keeps no ids
        return record.time_ns
