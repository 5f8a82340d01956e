"""Tells the service manager that started the daemon (systemd) how it is: the protocol of sd_notify(3).

Without ``$NOTIFY_SOCKET`` nothing is sent and nothing else happens. The main thread calls `Supervisor.tick` as it goes
round, so a main thread that stands still feeds no watchdog either; and what it feeds it with is the progress of the
others (`Health.alive`), never the mere passing of time. A sink that is away is no lack of progress.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from shipper.telemetry.health import READER
from shipper.telemetry.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shipper.clock import Clock
    from shipper.telemetry.health import Health

log = get_logger("notify")

#: Seconds between ticks at most: while the daemon starts, and later when no watchdog wants it oftener.
START_TICK, TICK = 0.05, 1.0
#: Pings in the watchdog's interval. sd_watchdog_enabled(3) asks for two; a tick may come late.
PINGS = 4
#: Seconds that spilling and the last save may take once the time to drain is over.
AFTER_DRAIN = 15.0
#: Characters of the status line, so that ``systemctl status`` shows it whole.
MAX_STATUS = 200
#: Seconds to wait for a service manager that does not read.
_SEND_TIMEOUT = 1.0


class Supervisor:
    """The service manager, as the daemon's main thread sees it. Not for use by several threads."""

    def __init__(self, health: Health, clock: Clock, environ: Mapping[str, str], *, pid: int) -> None:
        """Take ``$NOTIFY_SOCKET``, ``$WATCHDOG_USEC`` and ``$WATCHDOG_PID``; nothing is sent yet."""
        self._health = health
        self._clock = clock
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self._watchdog = _watchdog(environ, pid) if self._address else 0.0
        self._ready = False
        self._deadline: float | None = None
        self._due = clock.monotonic()
        self._status = ""

    @property
    def watched(self) -> bool:
        """Whether the service manager kills a daemon that makes no progress."""
        return self._watchdog > 0

    @property
    def pause(self) -> float:
        """The most seconds that may pass between two ticks."""
        if not self._address:
            return TICK
        most = TICK if self._ready else START_TICK
        return min(most, self._watchdog / PINGS) if self.watched else most

    def tick(self) -> None:
        """Send what is due. Call it at least every `pause` seconds; calls in between cost next to nothing."""
        now = self._clock.monotonic()
        if not self._address or now < self._due:
            return
        lines = []
        if not self._ready and self._deadline is None and self._health.has_beaten(READER):
            lines.append("READY=1")
        if self.watched and self._health.alive(silence=self._watchdog):
            lines.append("WATCHDOG=1")
        if self._deadline is not None:
            lines.append(_extension(self._deadline - now))
        status = self._health.summary()[:MAX_STATUS]
        if status != self._status:
            lines.append(f"STATUS={status}")
        if self._send(lines):
            self._status = status
            self._ready = self._ready or "READY=1" in lines
        self._due = now + self.pause

    def reloading(self) -> None:
        """Say that a reload has begun. `reloaded` must follow, whatever becomes of it."""
        # systemd takes a RELOADING=1 without the time, or with one in another datagram, for one that never ends.
        self._send(["RELOADING=1", f"MONOTONIC_USEC={_microseconds(self._clock.monotonic())}"])

    def reloaded(self) -> None:
        """Say that the reload is over: the new configuration runs, or still the old one."""
        self._ready = self._send(["READY=1"])
        self._due = self._clock.monotonic()
        self.tick()

    def stopping(self, seconds: float) -> None:
        """Say that the end has begun, and that draining takes up to ``seconds``. Ticks go on until the end."""
        self._deadline = self._clock.monotonic() + seconds
        self._send(["STOPPING=1", _extension(seconds)])

    def _send(self, lines: list[str]) -> bool:
        """Send one datagram; tell whether the service manager has it. A failure is worth a warning, never an end."""
        if not lines or not self._address:
            return not lines
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(_SEND_TIMEOUT)
                sender.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            log.warning("the service manager cannot be told how the daemon is", error=str(error))
            return False
        return True


def _address(text: str) -> str:
    """Give the address of the socket: a path, or a name in the abstract name space, which ``@`` stands for."""
    if text.startswith("@"):
        return "\0" + text[1:]
    if text and not text.startswith("/"):
        log.warning("NOTIFY_SOCKET is neither a path nor an abstract socket; nobody is told how the daemon is")
        return ""
    return text


def _watchdog(environ: Mapping[str, str], pid: int) -> float:
    """Give the watchdog's interval in seconds, 0 when there is none or when it is another process's."""
    if environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return 0.0
    text = environ.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 if text.isascii() and text.isdigit() else 0.0


def _extension(seconds: float) -> str:
    return f"EXTEND_TIMEOUT_USEC={_microseconds(max(0.0, seconds) + AFTER_DRAIN)}"


def _microseconds(seconds: float) -> int:
    return round(seconds * 1e6)
