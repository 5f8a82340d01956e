"""The real daemon as a process of its own, for end-to-end tests and for measuring.

`Daemon` writes a configuration, starts ``python -m shipper run`` on it in its own process group with standard error
going to a file, and offers what a user or a fault can do to it: signals, kill -9, a reload, a restart. Nothing
here looks inside the daemon: what is asked is asked over HTTP, of ``/proc``, or of its log.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import yaml

_SERIES = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_TICKS = os.sysconf("SC_CLK_TCK")


class Usage(msgspec.Struct, frozen=True):
    """What a process that has ended took: exit code, CPU and wall seconds, bytes of peak resident memory."""

    code: int
    cpu: float
    wall: float
    peak_rss: int


class Daemon:
    """A daemon on a configuration of its own in ``directory``.

    ``config`` is the YAML as a mapping; ``state_dir`` defaults to ``directory/state`` and HTTP to a free port.
    ``file_size_limit`` is the most bytes the daemon may write to one file (RLIMIT_FSIZE), or ``None``.
    As a context manager it starts on entry and is killed on exit if it still runs.
    """

    def __init__(
        self,
        directory: Path,
        config: Mapping[str, Any],
        *,
        environ: Mapping[str, str] | None = None,
        file_size_limit: int | None = None,
    ) -> None:
        self.directory = directory
        self.path = directory / "shipper.yaml"
        self.log_path = directory / "daemon.log"
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        # An installed program has its bytecode, whatever the shell of the tests says; and the tests' own directories may
        # well be in a container's layer or in memory.
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        ours = {"PYTHONUNBUFFERED": "1", "SHIPPER_TEMPORARY_STATE": "allow"}
        self._environ = {**inherited, **ours, **(environ or {})}
        self._file_size_limit = file_size_limit
        directory.mkdir(parents=True, exist_ok=True)
        self.configure(config)

    def __enter__(self) -> Self:
        """Start and wait until it has started."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill it if it still runs; show the end of its log when the test failed."""
        self.kill9()
        if error is not None:
            error.add_note(f"the daemon's log ends with:\n{self.log[-4000:]}")

    def configure(self, config: Mapping[str, Any]) -> None:
        """Write the configuration file; a running daemon sees it at the next `reload`."""
        full = {
            "state_dir": str(self.directory / "state"),
            "http": {"listen": f"127.0.0.1:{self.port}"},
            **config,
        }
        self.state_dir = Path(full["state_dir"])
        self.path.write_text(yaml.safe_dump(full, sort_keys=False))

    def start(self, *, wait: bool = True) -> None:
        """Start the process and, unless told otherwise, wait until the log says that it has started."""
        assert self.process is None, "it runs already"
        mark = self._log_size()
        self.process = self._spawn()
        if wait:
            self.wait_log('"started"', since=mark)

    def once(self, *, timeout: float = 120.0) -> Usage:
        """Run with ``--once`` to the end; what it took. Raises TimeoutError, having killed it."""
        begin = time.monotonic()
        process = self._spawn("--once")
        return _reaped(process, begin, timeout)

    def command(self, *args: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run another command of ``shipper`` on this configuration; what it said and its exit code."""
        return subprocess.run(
            [sys.executable, "-m", "shipper", *args, "--config", str(self.path)],
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=self._environ,
            timeout=timeout,
            check=False,
        )

    def kill9(self) -> None:
        """Kill the whole process group at once, as the kernel would when memory is short. Nothing if it has ended."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None

    def term(self, *, timeout: float = 40.0) -> int:
        """Send SIGTERM and wait for the end; give the exit code. Raises TimeoutError, having killed it."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout=timeout)

    def wait(self, *, timeout: float = 40.0) -> int:
        """Wait for the end; give the exit code (negative: the signal that ended it)."""
        assert self.process is not None, "it does not run"
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            self.kill9()
            raise TimeoutError(f"the daemon did not end within {timeout} s:\n{self.log[-2000:]}") from error
        self.process = None
        return code

    def signal(self, signum: int) -> None:
        """Send a signal to the daemon."""
        assert self.process is not None, "it does not run"
        self.process.send_signal(signum)

    def reload(self, config: Mapping[str, Any] | None = None) -> None:
        """Write a new configuration, if one is given, and send SIGHUP. Does not wait for what becomes of it."""
        if config is not None:
            self.configure(config)
        self.signal(signal.SIGHUP)

    def restart(self) -> None:
        """Stop by SIGTERM and start again."""
        self.term()
        self.start()

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self.process is not None and self.process.poll() is None

    @property
    def log(self) -> str:
        """Everything it wrote to standard error in all its lives."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def events(self) -> list[dict[str, Any]]:
        """The log's lines that are JSON objects, in order."""
        found = []
        for line in self.log.splitlines():
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict):
                    found.append(event)
        return found

    def wait_log(self, text: str, *, since: int = 0, timeout: float = 20.0) -> None:
        """Wait until the log, from byte ``since`` on, contains the text. Raises TimeoutError."""

        def said() -> bool:
            if not self.log_path.exists():
                return False
            with self.log_path.open("rb") as file:
                file.seek(since)
                return text.encode() in file.read()

        def stopped() -> bool:
            return not self.running

        if not eventually(lambda: said() or stopped(), timeout=timeout, every=0.01) or not said():
            state = "ended" if stopped() else "did not say it"
            raise TimeoutError(f"the daemon {state} while waiting {timeout} s for {text!r}:\n{self.log[-4000:]}")

    def mark(self) -> int:
        """The log's size in bytes now, for `wait_log`."""
        return self._log_size()

    def wait_ready(self, *, timeout: float = 20.0) -> None:
        """Wait until /readyz says yes."""
        if not eventually(lambda: self.get("/readyz")[0] == 200, timeout=timeout):
            raise TimeoutError(f"not ready within {timeout} s: {self.get('/healthz')}\n{self.log[-2000:]}")

    def get(self, path: str, *, timeout: float = 5.0) -> tuple[int, str]:
        """Ask the daemon's HTTP server; give status and body, or 0 and the reason when nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=timeout) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def health(self) -> dict[str, Any]:
        """What /healthz tells, as a mapping; empty when nobody answers."""
        status, body = self.get("/healthz")
        found = json.loads(body) if status else {}
        assert isinstance(found, dict)
        return found

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's series that have the labels; 0 when there is none."""
        _, body = self.get("/metrics")
        total = 0.0
        for found, pairs, value in _SERIES.findall(body):
            if found == name and labels.items() <= dict(_LABEL.findall(pairs)).items():
                total += float(value)
        return total

    def rss(self) -> int:
        """Bytes of resident memory now."""
        return self._status("VmRSS")

    def peak_rss(self) -> int:
        """Bytes of resident memory at the highest point of this life."""
        return self._status("VmHWM")

    def cpu_seconds(self) -> float:
        """CPU seconds of this life so far, user and system."""
        assert self.process is not None, "it does not run"
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def _status(self, key: str) -> int:
        assert self.process is not None, "it does not run"
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"^{key}:\s+(\d+) kB", text, re.MULTILINE)
        return int(found[1]) * 1024 if found else 0

    def _log_size(self) -> int:
        return self.log_path.stat().st_size if self.log_path.exists() else 0

    def _spawn(self, *options: str) -> subprocess.Popen[bytes]:
        limit = self._file_size_limit

        def limited() -> None:
            if limit is not None:
                # The daemon gets EFBIG, as Python ignores SIGXFSZ.
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                [*with_parent("KILL"), sys.executable, "-m", "shipper", "run", "--config", str(self.path), *options],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environ,
                start_new_session=True,
                preexec_fn=limited if limit is not None else None,  # noqa: PLW1509 - no threads of ours hold locks
            )


def eventually(condition: Callable[[], object], *, timeout: float = 20.0, every: float = 0.05) -> bool:
    """Ask until the answer is true or the seconds are over; tell which. Asks at least once."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every)
    return True


def with_parent(signal_name: str) -> list[str]:
    """The beginning of a command that is sent the signal when its parent ends, however that ends; empty without it."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", signal_name, "--"] if setpriv else []


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert isinstance(port, int)
    return port


def _reaped(process: subprocess.Popen[bytes], begin: float, timeout: float) -> Usage:
    deadline = begin + timeout
    while True:
        pid, status, used = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        if time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise TimeoutError(f"the daemon did not end within {timeout} s")
        time.sleep(0.005)
    process.returncode = os.waitstatus_to_exitcode(status)
    return Usage(
        code=process.returncode,
        cpu=used.ru_utime + used.ru_stime,
        wall=time.monotonic() - begin,
        peak_rss=used.ru_maxrss * 1024,
    )
