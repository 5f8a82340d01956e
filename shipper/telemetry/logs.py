"""The daemon's own voice: key-value events on standard error, repeats grouped, secrets masked.

Everything goes through Python's `logging`, because a sink's SDK speaks that already: `get_logger` adds keyword
fields to it, and a sink, which must not import this module, may call ``logging.getLogger(__name__)`` directly.

On a terminal structlog's console renderer writes coloured text. Otherwise each event is one JSON object written by
msgspec: importing structlog costs 150 ms and 12 MiB (it brings asyncio and rich), a fifth of the daemon's memory,
for one call of a JSON encoder.

Repeats: the first of a kind is written at once; the same again (component, event and all text fields alike;
numbers may differ) within the window is only counted, and the count is written when the window closes or when a
new text of the same event comes. The window starts at 60 s and doubles to 5 min while repeats go on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import stat
import sys
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import msgspec

from shipper.clock import Clock, SystemClock
from shipper.errors import ConfigError
from shipper.secret import MASK, Masker, is_secret, masked_text
from shipper.telemetry.event import Event, Output
from shipper.visible import json_text, key_text, one_line, visible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from shipper.config.types import LogConfig

    Renderer = Callable[["Event"], str]

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}
FORMATS = ("auto", "text", "json")
FORMAT_VARIABLE = "SHIPPER_LOG_FORMAT"
#: The loggers that are ours. The root's own warnings (SDKs) are written as well.
OURS = ("shipper", "sinks")

FIRST_WINDOW = 60.0
LONGEST_WINDOW = 300.0
#: Kinds of repeats remembered at once; the one longest unseen is closed early to make room.
MAX_KINDS = 256
#: Characters of one text field that are written; a driver may put a whole statement into its error.
MAX_FIELD = 2_000
#: Characters of it in which secrets are looked for; known values are looked for in all of it.
_LOOKED_AT = 4 * MAX_FIELD

_CONTAINER_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_SHORT_ID = re.compile(r"[0-9a-f]{12}")


class Logger:
    """Says events of one component: ``log.warning("write failed", sink="mysql", code="1045")``."""

    def __init__(self, component: str, fields: dict[str, Any] | None = None) -> None:
        ours = component.startswith(tuple(f"{name}." for name in OURS))
        self._logger = logging.getLogger(component if ours else f"shipper.{component}")
        self._component = component
        self._fields = fields or {}

    def bind(self, **fields: Any) -> Logger:
        """Make a logger that adds these fields to everything it says."""
        return Logger(self._component, {**self._fields, **fields})

    def debug(self, event: str, **fields: Any) -> None:
        """Say what only someone who looks for a fault wants to know."""
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """Say what changed."""
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Say what may need a human, though nothing is lost."""
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """Say what needs a human. ``exc_info=True`` or an exception adds the traceback."""
        self._log(logging.ERROR, event, fields)

    def exception(self, event: str, **fields: Any) -> None:
        """Say an error with the traceback of the exception being handled."""
        self._log(logging.ERROR, event, {"exc_info": True, **fields})

    def _log(self, level: int, event: str, fields: dict[str, Any]) -> None:
        if self._logger.isEnabledFor(level):
            exc_info = fields.pop("exc_info", None)
            self._logger.log(level, "%s", event, exc_info=exc_info, extra={"fields": {**self._fields, **fields}})


def get_logger(component: str) -> Logger:
    """Give the logger of a component, such as ``pipeline`` or a module's ``__name__``."""
    return Logger(component)


class StreamOutput:
    """Writes rendered events to a text stream. A closed, full or broken stream loses the event, never the daemon."""

    def __init__(self, stream: TextIO, render: Renderer) -> None:
        self._stream = stream
        self._render = render

    def put(self, event: Event) -> None:
        """See `Output.put`."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(self._render(event) + "\n")
            self._stream.flush()

    def close(self) -> None:
        """The stream is the caller's."""


class _Repeats(msgspec.Struct):
    """Repeats of one event: the last one, when the window opened and how long it is, in monotonic seconds."""

    last: Event
    opened: float
    window: float
    count: int = 0


class Grouping(logging.Handler):
    """Turns log records into events, groups repeats of warnings and errors, and hands on what is to be written."""

    def __init__(self, outputs: Iterable[Output], *, clock: Clock, mask: Masker) -> None:
        super().__init__()
        self.outputs = list(outputs)
        self._clock = clock
        self._mask = mask
        self._repeats: OrderedDict[tuple[str, ...], _Repeats] = OrderedDict()
        self._closer: threading.Thread | None = None
        self._stopped = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record or count it as a repeat. Called under the handler's own lock."""
        try:
            self._write_or_count(self._event(record))
        except Exception:  # noqa: BLE001 - a log call that cannot be rendered must never stop what logged it
            self._write(Event(record.created, record.levelno, record.name, "an event could not be written", {}))

    def close_windows(self, *, everything: bool = False) -> float | None:
        """Write the counts of windows that are over; give the seconds until the next one is, None if none is open."""
        with self.lock or contextlib.nullcontext():
            now = self._clock.monotonic()
            for key, repeats in list(self._repeats.items()):
                if everything or now - repeats.opened >= repeats.window:
                    self._close_window(key, repeats, now)
            waits = [repeats.opened + repeats.window - now for repeats in self._repeats.values() if repeats.count]
            return min(waits, default=None)

    def close(self) -> None:
        """Write what was counted, close the outputs."""
        self._stopped.set()
        self.close_windows(everything=True)
        for output in self.outputs:
            output.close()
        super().close()

    def _event(self, record: logging.LogRecord) -> Event:
        fields: dict[str, Any] = {}
        for name, value in getattr(record, "fields", {}).items():
            fields[name] = MASK if is_secret(name) else self._plain(value)
        if record.exc_info:
            fields["traceback"] = self._plain(logging.Formatter().formatException(_exception(record.exc_info)))
        component = record.name.removeprefix("shipper.")
        return Event(record.created, record.levelno, component, self._plain(record.getMessage()), fields)

    def _plain(self, value: Any) -> Any:
        if value is None or isinstance(value, (bool, int, float)):
            return value
        if isinstance(value, (list, tuple)):
            return [self._plain(item) for item in value]
        whole = str(value)
        text = masked_text(self._mask.exactly(whole)[:_LOOKED_AT])
        return text if len(text) <= MAX_FIELD else f"{text[:MAX_FIELD]}… ({len(whole)} characters)"

    def _write_or_count(self, event: Event) -> None:
        if event.level < logging.WARNING:
            self._write(event)
            return
        now = self._clock.monotonic()
        texts = (f"{name}={value}" for name, value in sorted(event.fields.items()) if isinstance(value, (str, list)))
        key = (event.component, event.text, str(event.fields.get("sink", "")), *texts)
        repeats = self._repeats.get(key)
        if repeats is not None and now - repeats.opened >= repeats.window:
            self._close_window(key, repeats, now)
            repeats = self._repeats.get(key)
        if repeats is not None:
            repeats.count += 1
            repeats.last = event
            self._repeats.move_to_end(key)
            self._close_later()
            return
        for other, waiting in list(self._repeats.items()):
            # A new text of the same event: say first how often the old one came, so that the order reads true.
            if other[:3] == key[:3] and waiting.count:
                self._close_window(other, waiting, now)
        if len(self._repeats) >= MAX_KINDS:
            self._close_window(*next(iter(self._repeats.items())), now, forget=True)
        self._repeats[key] = _Repeats(event, now, FIRST_WINDOW)
        self._write(event)

    def _close_window(self, key: tuple[str, ...], repeats: _Repeats, now: float, *, forget: bool = False) -> None:
        if repeats.count:
            last = repeats.last
            seconds = max(1.0, now - repeats.opened)
            self._write(
                Event(
                    last.time,
                    last.level,
                    last.component,
                    last.text,
                    last.fields,
                    repeats=repeats.count,
                    seconds=seconds,
                )
            )
            repeats.opened, repeats.window, repeats.count = now, min(repeats.window * 2, LONGEST_WINDOW), 0
            if not forget:
                return
        del self._repeats[key]

    def _write(self, event: Event) -> None:
        for output in self.outputs:
            output.put(event)

    def _close_later(self) -> None:
        # The thread lives only while a count waits to be written, so a quiet daemon has none.
        if self._closer is None and not self._stopped.is_set():
            self._closer = threading.Thread(target=self._run_closer, name="log-repeats", daemon=True)
            self._closer.start()

    def _run_closer(self) -> None:
        while True:
            with self.lock or contextlib.nullcontext():
                wait = self.close_windows()
                if wait is None:
                    self._closer = None
                    return
            if self._clock.wait(self._stopped, max(wait, 0.01)):
                return


class Log:
    """A configured log. ``close`` writes what was counted, drains Loki for up to 2 s and takes our handler away."""

    def __init__(self, handler: Grouping, level: int) -> None:
        self.handler = handler
        self._before = [(name, logging.getLogger(name).level) for name in OURS]
        root = logging.getLogger()
        self._other_handlers = root.handlers[:]
        # SDKs speak through the root from WARNING up; ours from the level that was configured.
        for name in OURS:
            logging.getLogger(name).setLevel(level)
        root.handlers[:] = [handler]
        # Python would print the exception that ends a thread as it is: with secrets, and with what a line says.
        self._thread_hook = threading.excepthook
        threading.excepthook = _log_end_of_thread

    def close(self) -> None:
        """Stop. Logging afterwards is what it was before."""
        root = logging.getLogger()
        if self.handler in root.handlers:
            root.handlers[:] = self._other_handlers
        for name, level in self._before:
            logging.getLogger(name).setLevel(level)
        if threading.excepthook is _log_end_of_thread:
            threading.excepthook = self._thread_hook
        self.handler.close()


def configure(
    config: LogConfig, stream: TextIO | None = None, *, mask: Masker | None = None, clock: Clock | None = None
) -> Log:
    """Send everything that is logged to ``stream`` (standard error) and, if asked, warnings to Loki.

    ``mask`` knows values that must never be written, besides what looks like a secret. The environment variable
    SHIPPER_LOG_FORMAT (auto, text, json) goes before ``config.format``. Raises ConfigError.
    """
    stream = stream if stream is not None else sys.stderr
    render = _as_text(stream) if _wants_text(config, stream) else _as_json
    outputs: list[Output] = [StreamOutput(stream, render)]
    if config.loki_url:
        from shipper.telemetry.lokilog import LokiOutput  # noqa: PLC0415 - requests costs 15 MiB; only who asks pays

        outputs.append(LokiOutput(config.loki_url, complain=outputs[0].put))
    _adopt_structlog()
    handler = Grouping(outputs, clock=clock or SystemClock(), mask=mask or Masker())
    return Log(handler, LEVELS[config.level])


def own_log_paths() -> frozenset[str]:
    """Give the real paths of standard output and error when they are regular files, which must never be read."""
    paths = set()
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                paths.add(os.path.realpath(f"/proc/self/fd/{descriptor}"))
    return frozenset(paths)


def own_container_id(root: Path = Path("/")) -> str | None:
    """Give the id of the container that we run in, or None. 64 hex digits, or 12 when only the host name tells.

    Compare with ``id.startswith``. Sources, surest first: the files that the engine mounts over /etc (cgroup v2 hides
    the id from /proc/self/cgroup), /proc/self/cgroup (v1), the host name where Docker left its mark.
    """
    for line in _lines(root / "proc/self/mountinfo"):
        fields = line.split(" ")
        if len(fields) > 4 and fields[4] in ("/etc/hostname", "/etc/hosts", "/etc/resolv.conf"):
            found = _CONTAINER_ID.search(fields[3])
            if found:
                return found[0]
    for line in _lines(root / "proc/self/cgroup"):
        found = _CONTAINER_ID.search(line)
        if found:
            return found[0]
    if (root / ".dockerenv").exists():
        name = next(iter(_lines(root / "etc/hostname")), "").strip()
        if _SHORT_ID.fullmatch(name):
            return name
    return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _adopt_structlog() -> None:
    """Let events of a plugin that speaks structlog come the same way, if one has loaded it."""
    structlog = sys.modules.get("structlog")
    if structlog is None:
        return

    def hand_over(logger: Logger, method: str, event: dict[str, Any]) -> Any:
        text = str(event.pop("event", ""))
        getattr(logger, {"warn": "warning", "critical": "error", "fatal": "error"}.get(method, method))(text, **event)
        raise structlog.DropEvent

    structlog.configure(
        processors=[hand_over],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=lambda *names: get_logger(str(names[0]) if names else "plugin"),
        cache_logger_on_first_use=False,
    )


def _log_end_of_thread(ended: threading.ExceptHookArgs) -> None:
    if ended.exc_value is not None and not isinstance(ended.exc_value, SystemExit):
        name = "" if ended.thread is None else ended.thread.name
        get_logger("threads").error("a thread ended by a bug", thread=name, exc_info=ended.exc_value)


def _exception(exc_info: Any) -> Any:
    return exc_info if isinstance(exc_info, tuple) else sys.exc_info()


def _wants_text(config: LogConfig, stream: TextIO) -> bool:
    wanted = os.environ.get(FORMAT_VARIABLE) or config.format
    if wanted not in FORMATS:
        raise ConfigError(f"{FORMAT_VARIABLE}={wanted} is not a log format; formats: {', '.join(FORMATS)}")
    return wanted == "text" or (wanted == "auto" and _is_terminal(stream))


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except ValueError:  # closed
        return False


def _as_json(event: Event) -> str:
    seconds = int(event.time)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    whole: dict[str, Any] = {
        "time": f"{stamp}.{int((event.time - seconds) * 1000):03d}Z",
        "level": _level_name(event.level),
        "component": event.component,
        "event": event.text,
        **{name if name not in _RESERVED else f"{name}_": value for name, value in event.fields.items()},
    }
    if event.repeats:
        whole |= {"repeats": event.repeats, "window_seconds": round(event.seconds)}
    return json_text(whole)


_RESERVED = frozenset({"time", "level", "component", "event", "repeats", "window_seconds"})


def _as_text(stream: TextIO) -> Renderer:
    import structlog.dev  # noqa: PLC0415 - see the module's docstring

    colours = _is_terminal(stream) and not os.environ.get("NO_COLOR")
    console = structlog.dev.ConsoleRenderer(colors=colours, pad_event_to=0, sort_keys=False)

    def render(event: Event) -> str:
        fields = dict(event.fields)
        traceback = fields.pop("traceback", None)
        text = f"{event.component}: {event.text}"
        if event.repeats:
            text += f" ×{event.repeats} in {_span(event.seconds)}"  # noqa: RUF001 - meant: times
        stamp = time.strftime("%H:%M:%S", time.localtime(event.time))
        shown = {"timestamp": stamp, "level": _level_name(event.level), "event": one_line(text)}
        shown |= {name if name not in shown else f"{name}_": _shown(value) for name, value in fields.items()}
        line = str(console(None, "", {key_text(name): value for name, value in shown.items()}))
        # Further lines are indented, so that none can pass for an event.
        return (
            "\n".join([line, *(f"    {text}" for text in visible(str(traceback)).split("\n"))]) if traceback else line
        )

    return render


def _shown(value: Any) -> Any:
    if isinstance(value, list):
        return [_shown(item) for item in value]
    return one_line(value) if isinstance(value, str) else value


def _span(seconds: float) -> str:
    return f"{round(seconds)}s" if seconds < 90 else f"{round(seconds / 60)}m"


def _level_name(level: int) -> str:
    return "warn" if level == logging.WARNING else logging.getLevelName(level).lower()
