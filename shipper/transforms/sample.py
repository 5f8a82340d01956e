"""Sample: keep a share of the records, always the same ones."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

from shipper.record import Batch
from shipper.routing.condition import compile_condition, expressions_of
from shipper.transform import Transform, TransformConfig

#: Bits of a record's hash that decide. Ids hold these bits too, so the choice can be checked from a stored record.
_BITS: Final = 32


class SampleConfig(TransformConfig, frozen=True, kw_only=True):
    """Keeps a share of the records that match, chosen by their hash."""

    rate: Annotated[float, Meta(description="The share that is kept, from 0 to 1.", ge=0, le=1)]
    match: Annotated[str, Meta(description="Only records that match are sampled; empty samples all.")] = ""
    keep: Annotated[str, Meta(description="Records that match this are always kept; empty spares none.")] = (
        "level>=warn"
    )


class SampleTransform(Transform):
    """Removes rows on purpose; the pipeline counts them. Raises ConfigError for a bad condition.

    A record's hash decides, so a replay keeps the same records and no two agents disagree.
    """

    config = SampleConfig
    masks = False

    def __init__(self, config: SampleConfig) -> None:
        self._limit = int(config.rate * (1 << _BITS))
        self._match = compile_condition(config.match) if config.match else None
        self._keep = compile_condition(config.keep) if config.keep else None
        self.expressions = expressions_of(config.match) + expressions_of(config.keep)

    def apply(self, batch: Batch) -> Batch:
        """Give the rows that stay, in order."""
        limit, mask = self._limit, (1 << _BITS) - 1
        losing = {i for i, value in enumerate(batch.hashes) if value & mask >= limit}
        if losing and self._match is not None:
            losing.intersection_update(self._match.indexes(batch))
        if losing and self._keep is not None:
            losing.difference_update(self._keep.indexes(batch))
        return batch.select([i for i in range(len(batch)) if i not in losing]) if losing else batch


TRANSFORM = SampleTransform
