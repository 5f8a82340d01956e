"""The ledger: per file and per sink, the contiguous offset up to which everything is accounted for.

Accounted for means acked by the sink, spilled to disk, filtered by a rule, or dead-lettered. Spans may be done out
of order (a spilled batch is safe before an older one that is in flight); the offset moves only over what is
contiguous. The ledger is the one place where readers and deliveries meet in memory, and the one writer of the
checkpoint. It implements `shipper.source.Positions`.
"""

from __future__ import annotations

import sqlite3
import threading
from typing import TYPE_CHECKING, Any

import msgspec

from shipper.source import FileState
from shipper.state.checkpoint import Anchor, Changes, Checkpoint, GivenUp, Loss, Offset, SinkState
from shipper.telemetry.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from shipper.clock import Clock
    from shipper.record import Span
    from shipper.state.checkpoint import Cursor

log = get_logger("ledger")


class _Track(msgspec.Struct):
    """One file for one sink: contiguous offset, its marker, and spans done beyond it by their start."""

    offset: int
    marker: int
    beyond: dict[int, tuple[int, int]] = msgspec.field(default_factory=dict)


class _File(msgspec.Struct):
    """``state`` is ours: a source has a copy of its own, which no other thread changes under it."""

    state: FileState
    tracks: dict[str, _Track]
    seen: int = 0
    anchors: list[tuple[int, int, int]] = msgspec.field(default_factory=list)


class Ledger:
    """Accounts for every byte of every file, for the sinks that records go to. Thread-safe."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        sinks: Sequence[str],
        clock: Clock,
        on_lost: Callable[[str, int], None] = lambda _cause, _size: None,
    ) -> None:
        """Load the checkpoint for these sinks.

        A sink that a file has no offset for starts where the file stands: at the lowest offset of the sinks it had,
        so a new sink gets every line from a recorded position on. Sinks that are gone no longer hold a file back.
        """
        self._checkpoint = checkpoint
        self._sinks = tuple(sinks)
        self._clock = clock
        self._on_lost = on_lost
        self._lock = threading.RLock()
        self._dirty_files: set[int] = set()
        self._dirty_tracks: set[tuple[int, str]] = set()
        self._dirty_sinks: set[str] = set()
        self._forgotten: list[int] = []
        self._losses: list[Loss] = []
        self._new_anchors: list[Anchor] = []
        self._given_up: dict[tuple[str, str], GivenUp] = {}
        self._given_up_before = {(one.sink, one.reason): one.records for one in checkpoint.given_up()}
        seen = checkpoint.seen()
        self._sink_states = checkpoint.sinks()
        known: dict[int, dict[str, Offset]] = {}
        for offset in checkpoint.offsets():
            known.setdefault(offset.file, {})[offset.sink] = offset
        self._files: dict[int, _File] = {}
        for state in checkpoint.files():
            offsets = known.get(state.key, {})
            lowest = min(offsets.values(), key=lambda o: o.offset, default=None)
            tracks = {}
            for sink in self._sinks:
                found = offsets.get(sink, lowest)
                tracks[sink] = _Track(found.offset, found.marker) if found else _Track(0, 0)
                if sink not in offsets:
                    self._dirty_tracks.add((state.key, sink))
            self._files[state.key] = _File(state, tracks, seen[state.key])
            self._refresh(self._files[state.key])
        for anchor in checkpoint.anchors():
            if anchor.file in self._files:
                self._files[anchor.file].anchors.append((anchor.start, anchor.end, anchor.time_ns))
        self._next_key = max(self._files, default=0) + 1
        self._save()
        checkpoint.drop_sinks(self._sinks)

    # What sources use (shipper.source.Positions)

    def files(self, source: str) -> list[FileState]:
        """See `Positions.files`."""
        with self._lock:
            return [msgspec.structs.replace(file.state) for file in self._files.values() if file.state.source == source]

    def add(self, state: FileState) -> FileState:
        """See `Positions.add`."""
        with self._lock:
            state.key = self._next_key
            self._next_key += 1
            self._files[state.key] = _File(
                msgspec.structs.replace(state),
                {s: _Track(state.offset, state.marker) for s in self._sinks},
                self._clock.time_ns(),
            )
            self._dirty_files.add(state.key)
            self._dirty_tracks.update((state.key, sink) for sink in self._sinks)
            return state

    def update(self, state: FileState) -> None:
        """See `Positions.update`."""
        with self._lock:
            file = self._files.get(state.key)
            if file is not None:
                file.state = msgspec.structs.replace(state, offset=file.state.offset, marker=file.state.marker)
                self._dirty_files.add(state.key)

    def refresh(self, state: FileState) -> None:
        """See `Positions.refresh`."""
        with self._lock:
            file = self._files.get(state.key)
            if file is not None:
                state.offset, state.marker = file.state.offset, file.state.marker

    def forget(self, key: int) -> None:
        """See `Positions.forget`."""
        with self._lock:
            if self._files.pop(key, None) is not None:
                self._dirty_files.discard(key)
                self._dirty_tracks = {pair for pair in self._dirty_tracks if pair[0] != key}
                self._forgotten.append(key)

    def safe(self, key: int) -> int:
        """See `Positions.safe`."""
        with self._lock:
            file = self._files.get(key)
            return min((track.offset for track in file.tracks.values()), default=0) if file else 0

    def lost(self, state: FileState, start: int, end: int, cause: str) -> None:
        """See `Positions.lost`. What every sink has is not lost, whatever became of the file since."""
        with self._lock:
            if start < end:  # else it is not known how much
                start = max(start, min(self.safe(state.key), end))
                if start == end:
                    return
            self._losses.append(Loss(self._clock.time_ns(), state.path, start, end, cause))
        self._on_lost(cause, end - start)
        log.error("bytes lost", file=state.path, start=start, end=end, cause=cause)

    def anchors(self, key: int) -> list[tuple[int, int, int]]:
        """See `Positions.anchors`."""
        with self._lock:
            file = self._files.get(key)
            return list(file.anchors) if file else []

    def anchor(self, key: int, start: int, end: int, time_ns: int) -> None:
        """See `Positions.anchor`. Raises sqlite3.Error; then nothing is known of it, here or in the state."""
        new = (start, end, time_ns)
        with self._lock:
            file = self._files[key]
            if new in file.anchors:
                return
            safe = min((track.offset for track in file.tracks.values()), default=0)
            before = file.anchors
            file.anchors = [*(a for a in before if a[1] > safe), new]
            self._new_anchors.append(Anchor(key, start, end, time_ns))
            try:
                self._save(durable=True)
            except sqlite3.Error:
                file.anchors = before
                self._new_anchors.pop()
                raise

    # What the pipeline and the deliveries use

    def offset(self, key: int, sink: str) -> int:
        """Give the offset below which nothing of this file is sent to this sink again."""
        with self._lock:
            file = self._files.get(key)
            return file.tracks[sink].offset if file and sink in file.tracks else 0

    def done(self, sink: str, spans: Iterable[Span], *, position: str | None = None) -> None:
        """Account for spans of a sink: its offsets move on as far as that is contiguous.

        ``position`` is the sink's own (`Sink.position`), saved together with the offsets.
        """
        with self._lock:
            for span in spans:
                file = self._files.get(span.file)
                track = file.tracks.get(sink) if file else None
                if file is None or track is None or span.end <= track.offset:
                    continue
                if span.start > track.offset:
                    track.beyond[span.start] = (span.end, span.marker)
                    continue
                track.offset, track.marker = span.end, span.marker
                while track.beyond and (ahead := track.beyond.pop(track.offset, None)):
                    track.offset, track.marker = ahead
                self._dirty_tracks.add((span.file, sink))
                self._refresh(file)
            self._change(sink, position=position)

    def acked(self, sink: str, spans: Iterable[Span], *, cursor: Cursor | None, position: str | None) -> None:
        """Account for what a sink took: its spans, its spill's cursor and its own position, all at once."""
        with self._lock:
            self.done(sink, spans, position=position)
            if cursor is not None:
                self.spill_cursor(sink, cursor.segment, cursor.offset, cursor.record)

    def spill_cursor(self, sink: str, segment: int, offset: int, record: int = -1) -> None:
        """Note how far a sink's spill is consumed; see `Cursor`."""
        self._change(sink, segment=segment, offset=offset, record=record)

    def give_up(self, sink: str, reason: str, records: int) -> None:
        """Note that a sink will never be given so many records, and why; durable with the next save."""
        now = self._clock.time_ns()
        with self._lock:
            known = self._given_up.get((sink, reason))
            self._given_up[sink, reason] = GivenUp(
                sink, reason, records + (known.records if known else 0), known.first_ns if known else now, now
            )

    def given_up(self, sink: str) -> dict[str, int]:
        """Give how many records a sink will never be given, by reason, since the state was begun."""
        with self._lock:
            found = {reason: count for (name, reason), count in self._given_up_before.items() if name == sink}
            for (name, reason), one in self._given_up.items():
                if name == sink:
                    found[reason] = found.get(reason, 0) + one.records
            return found

    def seen(self, key: int) -> int:
        """Give when a file was first seen, in nanoseconds since 1970; 0 when that is not known."""
        with self._lock:
            file = self._files.get(key)
            return file.seen if file else 0

    def _change(self, sink: str, **fields: Any) -> None:
        with self._lock:
            old = self._sink_states.get(sink, SinkState(sink))
            new = msgspec.structs.replace(old, **{name: value for name, value in fields.items() if value is not None})
            if new != old:
                self._sink_states[sink] = new
                self._dirty_sinks.add(sink)

    def sink_state(self, sink: str) -> SinkState:
        """Give a sink's saved position and spill cursor."""
        with self._lock:
            return self._sink_states.get(sink, SinkState(sink))

    def standing(self) -> tuple[int, int]:
        """Give the number of files and the sum of their offsets in bytes: where reading stands."""
        with self._lock:
            return len(self._files), sum(file.state.offset for file in self._files.values())

    def lags(self) -> list[tuple[str, str, int]]:
        """Give source, path and unsafe bytes of every file that is not done."""
        with self._lock:
            return [
                (file.state.source, file.state.path, max(0, file.state.size - file.state.offset))
                for file in self._files.values()
                if not file.state.done
            ]

    def save(self, *, durable: bool = False) -> bool:
        """Write what changed since the last save; tell whether anything did. Raises sqlite3.Error.

        A ``durable`` save survives a power failure.
        """
        with self._lock:
            return self._save(durable=durable)

    def _save(self, *, durable: bool = False) -> bool:
        changes = Changes(
            files=[self._files[key].state for key in self._dirty_files],
            seen={key: self._files[key].seen for key in self._dirty_files},
            forgotten=self._forgotten,
            offsets=[
                Offset(key, sink, self._files[key].tracks[sink].offset, self._files[key].tracks[sink].marker)
                for key, sink in self._dirty_tracks
            ],
            sinks=[self._sink_states[sink] for sink in self._dirty_sinks],
            anchors=self._new_anchors,
            losses=self._losses,
            given_up=list(self._given_up.values()),
        )
        if not any(getattr(changes, name) for name in changes.__struct_fields__):
            return False
        changes.durable = durable
        self._checkpoint.save(changes)
        for one in changes.given_up:
            place = one.sink, one.reason
            self._given_up_before[place] = self._given_up_before.get(place, 0) + one.records
        self._given_up = {}
        self._dirty_files, self._dirty_tracks, self._dirty_sinks = set(), set(), set()
        self._forgotten, self._losses, self._new_anchors = [], [], []
        return True

    def close(self) -> None:
        """Save and close the checkpoint."""
        with self._lock:
            try:
                self._save()
            except sqlite3.Error as error:
                log.error("positions not saved; lines since the last save are delivered again", error=str(error))
            self._checkpoint.close()

    def _refresh(self, file: _File) -> None:
        # FileState.offset is the lowest track: where reading begins after a restart.
        lowest = min(file.tracks.values(), key=lambda track: track.offset, default=None)
        if lowest is not None:
            file.state.offset, file.state.marker = lowest.offset, lowest.marker
