"""Filter: drop records that match a condition, or keep only those that do."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from shipper.errors import ConfigError
from shipper.record import Batch
from shipper.routing.condition import compile_condition, expressions_of
from shipper.transform import Transform, TransformConfig


class FilterConfig(TransformConfig, frozen=True, kw_only=True):
    """Drops records by a condition. Exactly one of ``drop`` and ``keep``."""

    drop: Annotated[str, Meta(description="Records that match this condition are removed.")] = ""
    keep: Annotated[str, Meta(description="Records that do not match this condition are removed.")] = ""


class FilterTransform(Transform):
    """Removes rows on purpose; the pipeline counts them. Raises ConfigError for a bad condition."""

    config = FilterConfig
    masks = False

    def __init__(self, config: FilterConfig) -> None:
        if bool(config.drop) == bool(config.keep):
            raise ConfigError("a filter needs either drop or keep, with a condition such as level<info")
        self._dropping = bool(config.drop)
        self._condition = compile_condition(config.drop or config.keep)
        self.expressions = expressions_of(config.drop or config.keep)

    def apply(self, batch: Batch) -> Batch:
        """Give the rows that stay."""
        found = self._condition.indexes(batch)
        if self._dropping:
            if not found:
                return batch
            gone = set(found)
            found = [i for i in range(len(batch)) if i not in gone]
        return batch if len(found) == len(batch) else batch.select(found)


TRANSFORM = FilterTransform
