"""What waits in a state directory, told from its files alone: spilled batches and dead letters, by sink."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from shipper.delivery.deadletter import DeadLetters
from shipper.delivery.spill import survey
from shipper.telemetry.status import Waiting

if TYPE_CHECKING:
    from collections.abc import Iterator


def spill_directory(state_dir: Path, sink: str) -> Path:
    """Give the directory of a sink's spill."""
    return state_dir / "spill" / sink


def pending_spills(state_dir: Path) -> Iterator[str]:
    """Give the names of sinks that have undelivered spill on disk."""
    root = state_dir / "spill"
    if root.is_dir():
        for directory in sorted(root.iterdir()):
            if any(directory.glob("*.seg")):
                yield directory.name


class StateSurvey:
    """Counts what waits in a state directory. Dead letters are counted again only when they have changed."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._counted: dict[str, tuple[tuple[object, ...], int, int]] = {}
        self._lock = threading.Lock()

    def waiting(self, now: float) -> dict[str, Waiting]:
        """Give what waits, by sink, for every sink that has something; ``now`` is in seconds since 1970.

        Raises OSError when the directory may not be read.
        """
        spills, letters = self._state_dir / "spill", self._state_dir / "dead-letter"
        names = {path.name for path in _listed(spills) if path.is_dir()}
        names |= {path.stem for path in _listed(letters) if path.suffix == ".jsonl"}
        names |= {path.name for path in _listed(letters) if path.is_dir()}
        found = {}
        with self._lock:
            for name in sorted(names):
                spill = survey(spills / name)
                count, damaged, age = self._letters(DeadLetters(letters / f"{name}.jsonl"), now)
                if spill.bytes or count or damaged:
                    found[name] = Waiting(
                        spill_records=spill.records, spill_bytes=spill.bytes,
                        dead_letters=count, dead_letters_damaged=damaged, dead_letters_age=age,
                    )  # fmt: skip
        return found

    def _letters(self, letters: DeadLetters, now: float) -> tuple[int, int, float | None]:
        newest: float | None = None
        signature: list[object] = []
        for part in letters.parts():
            try:
                status = part.stat()
            except FileNotFoundError:
                continue
            signature += (part.name, status.st_ino, status.st_size, status.st_mtime_ns)
            newest = max(newest or 0.0, status.st_mtime)
        if newest is None:
            return 0, 0, None
        known = self._counted.get(letters.path.name)
        if known is None or known[0] != tuple(signature):
            known = self._counted[letters.path.name] = (tuple(signature), letters.count, letters.damaged)
        return known[1], known[2], max(0.0, now - newest)


def _listed(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except FileNotFoundError:
        return []
