"""The contract of a sink.

A sink is one module in ``sinks/`` with a config class and a sink class, named by ``SINK``. It turns batches into
requests of its backend and says by error type what became of them. It contains no loop, no retry, no queue and
no thread of its own: batching, back-off, bisection and dead letters are the delivery's (`shipper.delivery.delivery`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from shipper.errors import SinkError
from shipper.secret import masked_repr

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from shipper.record import Batch


class BufferConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How much waits for a sink, and where."""

    max_memory: Annotated[
        str | int,
        Meta(
            description="Source text held in memory for this sink, half of it at a time in flight, before the reader waits."
            " A record counts as 48 bytes at least, and text that was parsed for it twice."
        ),
    ] = "4MiB"
    max_size: Annotated[str | int, Meta(description="Disk that spilled batches of this sink may take.")] = "1GiB"
    when_full: Annotated[
        str,
        Meta(
            description="What happens when the spill has reached max_size, or the dead letters max_dead_letters: block"
            " makes the reader wait, or parks the sink; drop_oldest deletes the oldest spilled batches, or dead"
            " letters, and counts every record as lost.",
            pattern="^(block|drop_oldest)$",
        ),
    ] = "block"
    max_dead_letters: Annotated[
        str | int,
        Meta(description="Disk that the records which this sink refused for good may take, compressed."),
    ] = "256MiB"


class SinkConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every sink's section may say. Subclasses add their own described fields."""

    type: Annotated[str, Meta(description="Which kind of sink this is.")]
    buffer: Annotated[BufferConfig, Meta(description="How much waits for this sink, and where.")] = BufferConfig()

    def __repr__(self) -> str:
        return masked_repr(self)


class Limits(msgspec.Struct, frozen=True):
    """The largest batch a sink takes in one ``write`` and how long the delivery gathers for it.

    ``records`` and ``bytes`` (of source text) are upper limits; ``linger`` is the seconds the delivery waits for
    more before it writes a batch that is not full; 0 writes whatever is there.
    """

    records: int = 5_000
    bytes: int = 2 << 20
    linger: float = 0.0


class Finding(msgspec.Struct, frozen=True):
    """One thing about a sink that was looked at while online; see `Sink.examine`.

    ``what`` is a word such as reachable, tls, login, rights, limits, clock. ``verdict`` is ``ok``, ``warn`` (works, but
    will hurt) or ``fail``. ``evidence`` is what was seen; ``fix`` is what to do about it, empty when ok.
    """

    what: str
    verdict: str
    evidence: str
    fix: str = ""


class Change(msgspec.Struct, frozen=True):
    """Something that the destination lacks; see `Sink.changes`.

    ``text`` is what would be run there, such as an SQL statement that can be pasted. ``ours`` says that ``open`` or the
    first write makes it by itself; what is not changes something that another program may own, or was not to be made.
    """

    text: str
    ours: bool = True


class Sink(ABC):
    """Delivers batches to one backend. One thread at a time calls it.

    Class attributes, which an instance may override: ``config`` is the config class; ``wants_parse`` says whether
    batches must be parsed (a sink that ships raw lines must not pay for a parse); ``wants_levels`` that it needs the
    severities even so; ``limits`` bounds a batch; ``takes_canary`` whether a test record may be written to prove
    that the destination works, which a file or a pipe that somebody reads as it is does not want. ``max_age`` is the
    age in seconds past which the destination refuses records whatever they hold: those of a file that were older when the
    file was first seen are passed over, told and counted, instead of written. The others the sink still judges itself.
    """

    config: ClassVar[type[SinkConfig]] = SinkConfig
    wants_parse: bool = True
    wants_levels: bool = False
    limits: Limits = Limits()
    max_age: float | None = None
    takes_canary: ClassVar[bool] = True

    @abstractmethod
    def __init__(self, config: Any) -> None:
        """Take the section of the configuration. Nothing is opened yet. Raises ConfigError."""

    @abstractmethod
    def open(self) -> None:
        """Connect and prepare (create a table, say). Called again after any failure before the next write.

        May make what is new there, and change what it made itself; never what somebody else made. Raises
        RetryableError when the backend is away, ParkedError when the operator must act.
        """

    def changes(self) -> Sequence[Change]:
        """Say what the destination lacks, in the order in which it would be made, and change nothing.

        What looks on (``check --online``, ``doctor``) writes no test record while there is something: it would be made
        by that. Raises SinkError. A sink that makes nothing there needs none.
        """
        return ()

    def prepare(self) -> None:
        """Make everything that `changes` says, on the operator's word (``shipper prepare``). Raises SinkError."""
        self.open()

    @abstractmethod
    def write(self, batch: Batch) -> None:
        """Deliver the batch. Returning means: durable at the destination.

        The same batch may be passed again after an error or a crash; a sink whose backend can tell by id must not
        store it twice. Raises RetryableError, ParkedError, PermanentError, or PartialError with row indexes. Whatever
        else it raises is judged by the rule in `shipper.delivery.attempt`: what a record can cause (ValueError,
        TypeError, LookupError, RecursionError, MemoryError ...) is bisected like PermanentError, OSError is retried,
        and what could be either is retried a few times and then bisected.
        """

    def position(self) -> str | None:
        """Say how far the destination is written, for sinks whose backend cannot tell doubles by id.

        Called after ``open`` and after each ``write`` returned; saved in the same transaction as the positions of the
        sources.
        """
        return None

    def resume(self, position: str | None) -> None:  # noqa: B027 - most backends tell doubles by id
        """Take back, before ``open``, what ``position`` said at the last checkpoint; ``None`` if never saved."""

    def diverted(self) -> Mapping[str, int]:
        """Count, by reason, records of the last ``write`` that the destination took but put aside (a failure store).

        Called by the delivery after each write, whatever its outcome; what it gives is counted and warned of once.
        """
        return {}

    def healthcheck(self) -> None:
        """Prove that the backend would take a write, without writing. Raises SinkError. Default: ``open``."""
        self.open()

    def examine(self) -> Iterator[Finding]:
        """Look at the destination for an operator, one finding at a time, without writing; must not raise.

        The default says whether ``healthcheck`` passes. A sink that can tell more says it apart: reachable, tls,
        login, rights, limits, clock, each failure with its fix.
        """
        try:
            self.healthcheck()
        except SinkError as error:
            yield Finding("reachable", "fail", str(error), "see the message; nothing was changed")
        else:
            yield Finding("reachable", "ok", "it would take a write")

    @abstractmethod
    def close(self) -> None:
        """Release everything. Called once, after the last write; must not raise and not block for long."""
