"""Told by inotify (through watchdog) of names that appear, so that nothing waits for a sweep and no short-lived
container is missed.

Only IN_CREATE and IN_MOVED_TO are asked for. Modify events would cost with every line written, and IN_MOVED_FROM
makes watchdog hold events back for half a second, in which a container can come and go.
"""

# Path objects cost more than the calls they wrap, every second for each of many files.
# ruff: noqa: PTH118, PTH120

from __future__ import annotations

import os
import threading
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from shipper.tailing.bytes import open_log, read_small
from shipper.tailing.container import CONFIG_BYTES
from shipper.tailing.paths import followed
from shipper.telemetry.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

_log = get_logger(__name__)

#: Descriptors kept for the reader to take over; more than this and the sweep must do.
_OPENED = 256


class Found(NamedTuple):
    """A file opened the moment it appeared, with its container's config.v2.json of that moment."""

    path: str
    fd: int
    config: bytes


class Watch:
    """Watched directories. ``dirty`` says whether names appeared; `opened` holds files to be taken over."""

    def __init__(self, wake: Callable[[], None], *, seize: str = "", enabled: bool = True) -> None:
        """Take what to call when something appears, and the ending of file names to open at once.

        Who reads once what is there need not be told of what comes; not ``enabled`` saves him the threads and 50 ms.
        """
        self._enabled = enabled
        self._wake = wake
        self._seize = seize
        self._dirty = threading.Event()
        self._observer: Any = None
        self._handler: Any = None
        self._paths: dict[str, Any] = {}  # with what watchdog calls each watch
        self.opened: deque[Found] = deque()

    @property
    def pending(self) -> bool:
        """Whether something appeared since `dirty` was last asked."""
        return self._dirty.is_set()

    def dirty(self) -> bool:
        """Tell whether something appeared, and forget it."""
        if self._dirty.is_set():
            self._dirty.clear()
            return True
        return False

    def add(self, path: str, *, recursive: bool) -> None:
        """Watch a directory. Where inotify is exhausted or missing, the sweep still sees everything."""
        if not self._enabled or path in self._paths:
            return
        try:
            if self._observer is None:
                self._start()
            from watchdog.events import DirCreatedEvent, FileCreatedEvent  # noqa: PLC0415 - start-up time is a promise

            watch = self._observer.schedule(
                self._handler, path, recursive=recursive, event_filter=[DirCreatedEvent, FileCreatedEvent]
            )
        except OSError as error:
            _log.warning("directory cannot be watched; it is looked at every second", path=path, error=str(error))
            return
        self._paths[path] = watch

    def remove(self, path: str) -> None:
        """Stop watching a directory that is gone: one made anew under its name is another."""
        watch = self._paths.pop(path, None)
        if watch is not None:
            with suppress(KeyError, OSError):
                self._observer.unschedule(watch)

    def close(self) -> None:
        """Stop the threads and close what nobody took."""
        if self._observer is not None:
            self._observer.stop()
            self._observer.join()
            self._observer = None
        while self.opened:
            os.close(self.opened.popleft().fd)

    def appeared(self, path: str) -> None:
        """Take note of a name. Called by watchdog's thread."""
        if self._seize and path.endswith(self._seize) and len(self.opened) < _OPENED:
            with suppress(OSError):
                status = followed(path)
                fd = open_log(path)
                if os.fstat(fd).st_ino != status.st_ino:
                    os.close(fd)
                    return
                self.opened.append(Found(path, fd, _read(os.path.join(os.path.dirname(path), "config.v2.json"))))
        self._dirty.set()
        self._wake()

    def _start(self) -> None:
        from watchdog.events import FileSystemEvent, FileSystemEventHandler  # noqa: PLC0415 - start-up time
        from watchdog.observers.inotify import InotifyEmitter, InotifyObserver  # noqa: PLC0415
        from watchdog.observers.inotify_c import InotifyConstants  # noqa: PLC0415

        appeared = self.appeared

        class Handler(FileSystemEventHandler):
            def on_created(self, event: FileSystemEvent) -> None:
                appeared(os.fsdecode(event.src_path))

        class Emitter(InotifyEmitter):
            def get_event_mask_from_filter(self) -> Any:
                constants = InotifyConstants
                return constants.IN_CREATE | constants.IN_MOVED_TO | constants.IN_DELETE_SELF

        self._handler = Handler()
        # The timeout is only a poll of watchdog's older versions; nothing waits for it.
        self._observer = InotifyObserver(timeout=60)
        self._observer._emitter_class = Emitter  # noqa: SLF001 - the only way to choose the mask and one inotify
        self._observer.start()


def _read(path: str) -> bytes:
    try:
        return read_small(path, CONFIG_BYTES)[0]
    except OSError:
        return b""
