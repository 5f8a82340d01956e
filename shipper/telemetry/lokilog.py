"""The daemon's own warnings and errors in a Loki, by python-logging-loki, kept on a short leash.

Never used for the data: that is the sink's work. What the library does, and what is done about it here:

* it posts inside the log call: here a thread of its own takes events from a bounded queue that drops the oldest;
* it stamps the time of sending, in steps of 256 ns: here the event's own time, one nanosecond apart at least;
* it waits for a hung Loki for ever: here a session with a timeout;
* it talks to an interface that Loki has removed unless told ``version="1"``;
* it gives up at the first failure and prints a traceback: here `ATTEMPTS` tries with a pause, then one event less,
  counted and said once on standard error;
* it turns every ``tags`` attribute of a record into a label: here the labels are fixed (``service``, ``host``,
  ``severity``, ``logger``);
* its HTTP client logs too: what urllib3 and requests say, or this very thread, never comes here.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections import deque
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from shipper.errors import ConfigError
from shipper.secret import masked_text
from shipper.telemetry.event import Event
from shipper.visible import json_text

if TYPE_CHECKING:
    from collections.abc import Callable

#: Events that wait; a Loki that is away costs at most this many of the oldest.
QUEUE = 1_000
#: Seconds for connecting and for each read of one push.
TIMEOUT = 5.0
ATTEMPTS = 3
#: Seconds between two tries, times the number of tries so far.
PAUSE = 2.0
#: Seconds that stopping waits for the queue to drain.
DRAIN = 2.0
#: Where Loki takes pushes when the URL names no path.
PUSH_PATH = "/loki/api/v1/push"
_FENCED = ("urllib3", "requests", "charset_normalizer", "logging_loki")


class LokiOutput:
    """Sends events of level warn and above to a Loki, behind a queue. See `shipper.telemetry.event.Output`."""

    def __init__(self, url: str, *, complain: Callable[[Event], None], pause: float = PAUSE) -> None:
        """Start the thread. Raises ConfigError when the URL is none or the extra is not installed."""
        self._queue: deque[Event] = deque(maxlen=QUEUE)
        self._more = threading.Event()
        self._closing = threading.Event()
        self._stopped = threading.Event()
        self._complain = complain
        self._complained = False
        self._pause = pause
        #: Events given up: pushed out of the full queue, or refused.
        self.dropped = 0
        self._handler = _handler(_push_url(url))
        self._thread = threading.Thread(target=self._run, name="log-loki", daemon=True)
        self._thread.start()

    def put(self, event: Event) -> None:
        """Queue the event; the oldest makes room. Never blocks."""
        if (
            event.level < logging.WARNING
            or event.component.startswith(_FENCED)
            or threading.current_thread() is self._thread
        ):
            return
        if len(self._queue) == QUEUE:
            self.dropped += 1
        self._queue.append(event)
        self._more.set()

    def close(self) -> None:
        """Send what waits, for at most 2 s, then let go."""
        self._closing.set()
        self._more.set()
        self._thread.join(DRAIN)
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                event = self._queue.popleft()
            except IndexError:
                if self._closing.is_set():
                    break
                self._more.wait()
                self._more.clear()
                continue
            self._send(event)
        self._handler.emitter.close()

    def _send(self, event: Event) -> None:
        record = logging.LogRecord(f"shipper.{event.component}", event.level, "", 0, _line(event), None, None)
        record.created = event.time
        failure: Exception | None = None
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._handler.emitter(record, self._handler.format(record))
            except Exception as error:  # noqa: BLE001 - requests' own, ValueError for a status: all mean not taken
                failure = error
                self._handler.emitter.close()
                # Closing stops the tries after the first: the process must not wait for a Loki that is away.
                if self._closing.is_set() or self._stopped.wait(self._pause * attempt):
                    break
            else:
                self._complained = False
                return
        self.dropped += 1
        if not self._complained:
            self._complained = True
            text = "own warnings cannot be sent to Loki (log.loki_url); they stand here only"
            # The library quotes the URL, whose login and keys are secret.
            fields = {"error": masked_text(f"{type(failure).__name__}: {failure}"[:500])}
            self._complain(Event(event.time, logging.WARNING, "logs", text, fields))


def _push_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError("log.loki_url is not an http or https URL, such as http://loki:3100/loki/api/v1/push")
    return url if parts.path not in ("", "/") else parts._replace(path=PUSH_PATH).geturl()


def _line(event: Event) -> str:
    whole: dict[str, Any] = {"event": event.text, **event.fields}
    if event.repeats:
        whole |= {"repeats": event.repeats, "window_seconds": round(event.seconds)}
    return json_text(whole)


def _handler(url: str) -> Any:
    try:
        import logging_loki  # noqa: PLC0415 - an extra
        import requests  # noqa: PLC0415 - comes with the extra
        from logging_loki.emitter import LokiEmitterV1  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            "log.loki_url needs python-logging-loki, which is not installed; run: pip install 'shipper[loki-handler]'"
        ) from error

    class Session(requests.Session):
        def request(self, *args: Any, **kwargs: Any) -> Any:
            kwargs.setdefault("timeout", TIMEOUT)
            return super().request(*args, **kwargs)

    class Emitter(LokiEmitterV1):  # type: ignore[misc] # untyped
        session_class = Session
        last = 0

        def build_payload(self, record: logging.LogRecord, line: str) -> dict[str, Any]:
            # A try that is repeated says the same time again, so that Loki keeps one of the two.
            stamp = getattr(record, "stamp", None)
            if stamp is None:
                stamp = max(round(record.created * 1_000_000) * 1_000, self.last + 1)
                self.last = stamp
                record.stamp = stamp
            return {"streams": [{"stream": self.build_tags(record), "values": [[str(stamp), line]]}]}

    tags = {"service": "shipper", "host": socket.gethostname()}
    handler = logging_loki.LokiHandler(url=url, tags=tags, version="1")
    handler.emitter = Emitter(url, tags)
    return handler
