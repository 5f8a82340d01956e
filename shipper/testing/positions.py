"""Positions kept in memory: what a source is told and tells, without a pipeline or a state directory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from shipper.source import FileState

if TYPE_CHECKING:
    from shipper.record import Batch


class MemoryPositions:
    """A `shipper.source.Positions`. ``ack`` makes a batch safe; ``restarted`` is what a new process would find.

    ``failure`` is raised by what must be durable, as by a disk that is full. Held to the contract together with the real
    ledger (``tests/state/test_positions.py``).
    """

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.states: dict[int, FileState] = {}
        self.safe_at: dict[int, tuple[int, int]] = {}
        self.losses: list[tuple[str, int, int, str]] = []
        self.forgotten: list[int] = []
        self._next = 1
        self._anchors: dict[int, list[tuple[int, int, int]]] = {}

    def files(self, source: str) -> list[FileState]:
        """See `Positions.files`."""
        result = []
        for key, state in self.states.items():
            if state.source == source:
                offset, marker = self.safe_at[key]
                result.append(msgspec.structs.replace(state, offset=offset, marker=marker))
        return result

    def add(self, state: FileState) -> FileState:
        """See `Positions.add`."""
        state.key = self._next
        self._next += 1
        self.states[state.key] = msgspec.structs.replace(state)
        self.safe_at[state.key] = (state.offset, state.marker)
        return state

    def update(self, state: FileState) -> None:
        """See `Positions.update`."""
        assert state.key in self.states, "update of an unknown file"
        offset, marker = self.safe_at[state.key]
        self.states[state.key] = msgspec.structs.replace(state, offset=offset, marker=marker)

    def refresh(self, state: FileState) -> None:
        """See `Positions.refresh`."""
        if state.key in self.safe_at:
            state.offset, state.marker = self.safe_at[state.key]

    def forget(self, key: int) -> None:
        """See `Positions.forget`."""
        del self.states[key], self.safe_at[key]
        self._anchors.pop(key, None)
        self.forgotten.append(key)

    def safe(self, key: int) -> int:
        """See `Positions.safe`."""
        return self.safe_at[key][0]

    def lost(self, state: FileState, start: int, end: int, cause: str) -> None:
        """See `Positions.lost`."""
        if start < end and state.key in self.safe_at:
            start = max(start, min(self.safe_at[state.key][0], end))
            if start == end:
                return
        self.losses.append((state.path, start, end, cause))

    def anchors(self, key: int) -> list[tuple[int, int, int]]:
        """See `Positions.anchors`."""
        return list(self._anchors.get(key, []))

    def anchor(self, key: int, start: int, end: int, time_ns: int) -> None:
        """See `Positions.anchor`."""
        if self.failure is not None:
            raise self.failure
        self._anchors.setdefault(key, []).append((start, end, time_ns))

    def ack(self, batch: Batch) -> None:
        """Take note that every sink has the batch; batches of one file must come in order, without a gap."""
        span = batch.span
        assert span is not None, "a source's batch has a span"
        if span.file in self.safe_at:
            offset, _ = self.safe_at[span.file]
            assert span.start == offset, f"gap in file {span.file}: {offset} then {span}"
            self.safe_at[span.file] = (span.end, span.marker)

    def restarted(self) -> MemoryPositions:
        """Give what a new process would find in the checkpoint."""
        other = MemoryPositions()
        other.states = {key: msgspec.structs.replace(state) for key, state in self.states.items()}
        other.safe_at = dict(self.safe_at)
        other._next = self._next
        other._anchors = {key: list(ranges) for key, ranges in self._anchors.items()}
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> MemoryPositions:
        return self.restarted()
