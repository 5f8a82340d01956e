"""The contract of a source.

A source finds files, reads them in order and turns bytes into batches. It is called by the pipeline's one reader
thread and never blocks: ``poll`` gives what is there now. It does not know sinks; it asks the `Positions` it was
given where to begin and learns from them what is safe.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol

import msgspec
from msgspec import Meta

from shipper.secret import masked_repr

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shipper.clock import Clock
    from shipper.record import Batch


class SourceConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every source's section may say. Subclasses add their own described fields."""

    type: Annotated[str, Meta(description="Which kind of source this is.")]

    def __repr__(self) -> str:
        return masked_repr(self)


class FileState(msgspec.Struct):
    """What the checkpoint knows of one file (one *generation*: a truncated file is a new one).

    ``key`` is the row's key and `Span.file`. ``offset`` is where reading must begin: the lowest offset that every
    sink of today has safe. ``marker`` is the hash of the bytes just before it. ``size`` is the last size seen.
    ``uid`` is the file's identity in ids, ``head`` the hash of its first ``head_size`` bytes (uncompressed).
    ``tag`` is the source's own, small and opaque (a container id, say). ``done`` means: rotated and safe to its end.
    """

    key: int
    source: str
    path: str
    device: int
    inode: int
    uid: str
    head: int
    head_size: int
    generation: int = 0
    offset: int = 0
    marker: int = 0
    size: int = 0
    tag: str = ""
    done: bool = False


class Positions(Protocol):
    """What a source may ask of and tell the checkpoint. Every method is cheap and thread-safe.

    The states that it is given are its own: nobody else changes them. `refresh` brings one up to date.
    """

    def files(self, source: str) -> list[FileState]:
        """Give all files known of this source, with the offsets to begin at."""

    def add(self, state: FileState) -> FileState:
        """Register a new file; gives the state back with its key. Durable at the next checkpoint or before."""

    def update(self, state: FileState) -> None:
        """Save a changed path, head, size, tag or done flag of a known file at the next checkpoint."""

    def refresh(self, state: FileState) -> None:
        """Set offset and marker of a known file to where every sink has it safe now, both of one moment."""

    def forget(self, key: int) -> None:
        """Drop a file that is gone and fully accounted for."""

    def safe(self, key: int) -> int:
        """Give the offset up to which every sink has this file safe: acked, spilled, filtered, dead-lettered."""

    def lost(self, state: FileState, start: int, end: int, cause: str) -> None:
        """Account for bytes that can never be read: counted, logged and kept in the ledger."""

    def anchors(self, key: int) -> list[tuple[int, int, int]]:
        """Give (start, end, time_ns) of ranges of undated lines that were stamped before, and of cuts; see `anchor`."""

    def anchor(self, key: int, start: int, end: int, time_ns: int) -> None:
        """Stamp a range of undated lines with the time it was first read, durably, so a replay says the same.

        An empty range (``start`` = ``end``, time 0) says that a record was cut there: by silence, not by what stands
        in the file. It must be durable before that record leaves. A replay, which may find more bytes, cuts there again,
        or else they would hide under an id that the sink already has.
        Raises sqlite3.Error when the state cannot be written.
        """


class InHand(msgspec.Struct, frozen=True):
    """Bytes of a file (its key in the checkpoint) from an offset on, and how many processes ended with them in hand."""

    file: int
    start: int
    ends: int


class Progress(Protocol):
    """What a source notes before it touches bytes, so that a crash that the same bytes cause each time is noticed."""

    #: What the last process had in hand when it died, until that is got through.
    left: InHand | None

    def is_stuck(self, file: int, start: int) -> bool:
        """Tell whether so many processes died with these bytes in hand that they must be set aside."""

    def take(self, file: int, start: int) -> None:
        """Note that the bytes of a file from ``start`` on are in hand now."""

    def set_aside(self, data: bytes) -> str:
        """Keep a copy of the bytes that are stuck and begin anew behind them; give its path. Raises OSError."""


def ignore_fault(path: str, kind: str) -> None:
    """Take no note of a fault."""


class SourceContext(msgspec.Struct, frozen=True):
    """What the pipeline hands a source. ``wake`` may be called from any thread to have ``poll`` called soon.

    ``once`` means: deliver everything present, then stop; a last line without newline is complete at once.
    ``own_paths`` are files this daemon itself writes; a source must never read them. ``fault`` counts what a line or a
    file made the code raise: it takes the file's path and the kind of the exception. ``progress`` is told of bytes before
    they are touched.
    """

    name: str
    positions: Positions
    clock: Clock
    wake: Callable[[], None]
    host: str
    once: bool = False
    own_paths: frozenset[str] = frozenset()
    fault: Callable[[str, str], None] = ignore_fault
    progress: Progress | None = None


class Source(ABC):
    """Reads lines from somewhere. All methods are called by one thread."""

    config: ClassVar[type[SourceConfig]] = SourceConfig
    #: The format its lines are parsed as; see `shipper.parse.Parser`.
    parser: str = "auto"

    @abstractmethod
    def __init__(self, config: Any) -> None:
        """Take the section of the configuration. Nothing is opened yet. Raises ConfigError."""

    @abstractmethod
    def open(self, context: SourceContext) -> None:
        """Match what the checkpoint knows with what is there, start watching. Raises SourceError."""

    @abstractmethod
    def poll(self, accept: Callable[[bool], bool]) -> Iterator[Batch]:
        """Give the batches that can be read now, a bounded amount per file, then end. Never blocks.

        Before each read the source asks ``accept(at_risk)``; False means the sinks have no room, and the file must
        wait (the file is the queue). ``at_risk`` is True for a rotated, unlinked or vanishing file: it is accepted
        while disk allows, because waiting could lose it. Batches of one file come in order and their spans are
        contiguous: each starts where the last one ended. The parsed columns are left to the parser.
        """

    @abstractmethod
    def idle(self) -> float:
        """Seconds until the next poll is worthwhile, judged by what the last polls found: busy short, idle long."""

    @abstractmethod
    def exhausted(self) -> bool:
        """Tell whether everything present has been read and nothing is held back. For ``--once`` and for stopping."""

    def rescue(self, accept: Callable[[bool], bool]) -> Iterator[Batch]:  # noqa: ARG002 - for sources with such files
        """Give, when the daemon stops, all that only an open descriptor still holds (unlinked files).

        Called once, after the last ``poll``. Nobody can read these lines after ``close``.
        """
        return iter(())

    def counts(self) -> tuple[int, int]:
        """Give the numbers of open files and of files that cannot be read."""
        return 0, 0

    @abstractmethod
    def close(self) -> None:
        """Stop watching and close files. What was read but not given (half a join) is read again next time."""
