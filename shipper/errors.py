"""Every error shipper raises on purpose.

::

    ShipperError
    ├── ConfigError            the configuration is wrong; exit code 78
    ├── SourceError            a source cannot read what it was told to read
    ├── StateError             the state directory is damaged, locked or full
    └── SinkError
        ├── RetryableError     the same bytes may be taken later; retried without limit
        │   └── ParkedError    ... once the operator has mended login, quota, schema or rights
        ├── PermanentError     the same bytes would be refused again by a healthy destination
        ├── DroppedError       the destination threw the record away by a rule that its operator set
        └── PartialError       some rows failed, by index; all others were taken

Permanent means: a healthy, correctly configured destination would refuse the same bytes again. A wrong
password, a full quota, a missing table or a server error is the operator's or the server's fault, not the
record's, and is retryable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class ShipperError(Exception):
    """Base of all errors raised on purpose. The text says what happened, where, and what to do."""


class ConfigError(ShipperError):
    """The configuration is wrong. Carries every problem found, one text each."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class SourceError(ShipperError):
    """A source cannot read what it was told to read."""


class StateError(ShipperError):
    """The state directory cannot be used: locked by another daemon, not writable, or full."""


class SinkError(ShipperError):
    """A sink could not deliver. ``code`` is the backend's own code, for logs and metrics."""

    def __init__(self, message: str, *, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class RetryableError(SinkError):
    """The same batch may be taken later. ``retry_after`` is in seconds, when the backend named a time.

    ``maybe_taken`` says that the backend may have stored the batch and cannot tell doubles by id: an answer that
    never came. It is tried again all the same, and counted.
    """

    def __init__(
        self, message: str, *, code: str = "", retry_after: float | None = None, maybe_taken: bool = False
    ) -> None:
        super().__init__(message, code=code)
        self.retry_after = retry_after
        self.maybe_taken = maybe_taken


class ParkedError(RetryableError):
    """Only the operator can mend this: login, rights, quota, missing table. Data is kept, the sink is probed."""


class PermanentError(SinkError):
    """The backend refuses these very bytes for good. The delivery bisects to find the guilty rows.

    ``certain`` says that the sink knows the rule that the record breaks and applied it itself (too old, too large):
    however many such records come in a row, the destination is not under suspicion.
    """

    def __init__(self, message: str, *, code: str = "", certain: bool = False) -> None:
        super().__init__(message, code=code)
        self.certain = certain


class DroppedError(SinkError):
    """The destination took this record and threw it away by a rule that its operator set, such as sampling.

    Stands in a PartialError, by row. The delivery counts the record as dropped under the error's code (a word or two,
    it becomes a label), and neither retries nor dead-letters it: a dead letter would undo the operator's rule.
    """


class PartialError(SinkError):
    """Some rows failed; every row not named was taken. Indexes are those of the batch that was passed to ``write``.

    ``failed`` maps a row to its own error. ``together`` is for backends that refuse a whole request and do not say
    which row is guilty: groups of rows with the refusal they share; the delivery bisects each.
    """

    def __init__(
        self,
        failed: Mapping[int, SinkError],
        *,
        together: Sequence[tuple[Sequence[int], PermanentError]] = (),
        code: str = "",
    ) -> None:
        count = len(failed) + sum(len(rows) for rows, _ in together)
        super().__init__(f"{count} records were not taken", code=code)
        self.failed = dict(failed)
        self.together = tuple((tuple(rows), error) for rows, error in together)
