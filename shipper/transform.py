"""The contract of a transform: what happens to records between parsing and routing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from shipper.record import Batch
from shipper.secret import masked_repr


class TransformConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every transform's section may say. Subclasses add their own described fields."""

    type: Annotated[str, Meta(description="Which kind of transform this is.")]

    def __repr__(self) -> str:
        return masked_repr(self)


class Transform(ABC):
    """Changes or removes records. Called by the reader thread with every batch, in the order of the config.

    ``wants_parse`` says whether batches must be parsed first. ``masks`` says that records must not leave without it: a
    record that ``apply`` raises for is then withheld; where it is false, it goes on unchanged and marked. Rows that are missing from the result were removed
    on purpose; the pipeline counts them under the transform's name. Must be a function of the batch alone, so
    that a replay gives the same result.
    """

    config: ClassVar[type[TransformConfig]] = TransformConfig
    wants_parse: bool = True
    masks: bool = True
    #: Regular expressions of the user's that this applies: `check` warns where they have no linear engine.
    expressions: tuple[str, ...] = ()

    @abstractmethod
    def __init__(self, config: Any) -> None:
        """Take the section of the configuration. Nothing is opened yet. Raises ConfigError."""

    @abstractmethod
    def apply(self, batch: Batch) -> Batch:
        """Give the batch back, changed or not. The batch is the transform's own: columns may be replaced."""
