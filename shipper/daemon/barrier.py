"""The fault barrier left of the buffers: what our own code trips over costs the record that caused it, nothing else.

A stage (parsing, a transform, routing) takes a batch at once. When it raises, the batch is halved until the guilty
records stand alone. Those go on as they were written, marked by the attribute `FAULT`, which names the stage and the
error; a masking transform's are withheld instead, for their text must not leave unmasked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from shipper.record import FAULT, SEVERITIES, Batch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: What stands for a text that could not be masked.
WITHHELD = "[withheld: it could not be masked; the line is in its log file]"


def contain(batch: Batch, stage: Callable[[Batch], Batch], on_fault: Callable[[Batch, Exception], Batch]) -> Batch:
    """Take a batch through a stage; give what came out, in order.

    ``stage`` gets a copy that it may change. ``on_fault`` gets each single record that it raised for, as it was.
    """
    try:
        return stage(msgspec.structs.replace(batch))
    except Exception as error:
        if len(batch) <= 1:
            return on_fault(batch, error)
    return joined([contain(half, stage, on_fault) for half in halves(batch)], batch)


def halves(batch: Batch) -> tuple[Batch, Batch]:
    """Give the first and the second half of a batch. Only the last part of a whole has its span: see `joined`."""
    middle = len(batch) // 2
    first, second = batch.select(range(middle)), batch.select(range(middle, len(batch)))
    first.span = None
    return first, second


def joined(parts: Sequence[Batch], whole: Batch) -> Batch:
    """Put the parts of a whole together again."""
    batch = Batch.concat([_with_columns(part) for part in parts] if any(part.parsed for part in parts) else parts)
    return msgspec.structs.replace(batch, span=whole.span)


def as_written(record: Batch, fault: str) -> Batch:
    """Give a single record as its raw line, marked."""
    mark = {**(record.marks or {}).get(0, {}), FAULT: fault}
    return msgspec.structs.replace(
        record,
        severities=[SEVERITIES["info"]],
        messages=list(record.raws),
        attributes=[mark],
        marks={0: mark},
    )


def withheld(record: Batch, fault: str) -> Batch:
    """Give a single record without any of its text, marked; its level and its place remain."""
    return msgspec.structs.replace(
        as_written(record, fault),
        severities=record.severities or [SEVERITIES["info"]],
        messages=[WITHHELD],
        raws=[WITHHELD],
    )


def _with_columns(part: Batch) -> Batch:
    """Give a part the parsed columns that its siblings have."""
    if part.parsed:
        return part
    count = len(part)
    marks = part.marks or {}
    return msgspec.structs.replace(
        part,
        severities=part.severities or [SEVERITIES["info"]] * count,
        messages=list(part.raws),
        attributes=[dict(marks.get(row, {})) for row in range(count)],
    )
