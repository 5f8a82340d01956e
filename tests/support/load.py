"""Numbered lines at a steady rate from a thread: what an application under load does to its log."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

#: Seconds between bursts; a rate of 400 lines a second is then four lines at a time.
_STEP = 0.01


class Load:
    """Writes ``<prefix> <number> <padding>`` lines through ``write`` until stopped; ``written`` holds them in order.

    ``write`` gets one line without its end; ``padding`` is in characters. ``lock`` is held during each burst, so
    that a test may do something to the file between two lines.
    """

    def __init__(
        self, write: Callable[[str], object], *, per_second: int = 400, prefix: str = "line", padding: int = 60
    ) -> None:
        self.written: list[str] = []
        self.lock = threading.Lock()
        self._write = write
        self._per_second = per_second
        self._prefix = prefix
        self._padding = f" {'x' * padding}" if padding else ""
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def __enter__(self) -> Self:
        """Begin to write."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write no more. Raises what the writing raised."""
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def add(self, lines: int) -> None:
        """Write so many lines at once, from the caller's thread."""
        with self.lock:
            for _ in range(lines):
                self._write_line()

    def _run(self) -> None:
        begin = time.monotonic()
        done = 0
        try:
            while not self._stop.wait(_STEP):
                due = int((time.monotonic() - begin) * self._per_second)
                with self.lock:
                    for _ in range(due - done):
                        self._write_line()
                done = due
        except BaseException as error:  # noqa: BLE001 - told to the test's own thread
            self._error = error

    def _write_line(self) -> None:
        line = f"{self._prefix} {len(self.written)}{self._padding}"
        self._write(line)
        self.written.append(line)
