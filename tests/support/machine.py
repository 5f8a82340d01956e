"""A booted Debian of the test's own: systemd as process 1, in a container of systemd-nspawn.

It lies as an overlay in memory over the tree that ``tests/setup.sh`` makes, so that it is there within a second and gone
without a trace. It shares the machine's network: what listens on 127.0.0.1 here is reached from within. It needs root,
``systemd-nspawn``, ``nsenter`` and the right to mount; cgroups may be of either version.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

from support.daemon import eventually, with_parent

#: What ``tests/setup.sh`` makes. Never written to: a machine sees it through an overlay.
TREE = Path("/var/cache/shipper-tests/debian-bookworm")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: Where nspawn keeps a directory for each machine; it leaves it behind where /run is no file system of its own.
_PROPAGATE = Path("/run/systemd/nspawn/propagate")


class MachineUnavailableError(RuntimeError):
    """No machine can be booted here; the text says why."""


class Machine:
    """One booted Debian, as a context manager; ``directory`` is empty and takes its mounts and its console's log.

    ``shown`` are directories of this machine that are seen inside: the place there to the place here, read-only.
    Raises MachineUnavailableError on entry when none can be booted.
    """

    def __init__(self, directory: Path, *, shown: Mapping[str, Path] = MappingProxyType({})) -> None:
        self._name = f"shipper-{uuid.uuid4().hex[:8]}"
        self._memory = directory / "memory"
        self._root = self._memory / "root"
        self._console = directory / "console.log"
        self._shown = dict(shown)
        self._process: subprocess.Popen[bytes] | None = None
        self._leader = 0

    def __enter__(self) -> Self:
        """Boot, and wait until every unit has started."""
        reason = why_unavailable()
        if reason:
            raise MachineUnavailableError(reason)
        try:
            self._mount()
            self._boot()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Shut down and take everything away."""
        self._stop()

    def path(self, inside: str) -> Path:
        """Where a file of the machine is seen from here. What it mounts itself (/run, /tmp) is not."""
        return self._root / inside.lstrip("/")

    def run(
        self, *args: str, environ: Mapping[str, str] = MappingProxyType({}), timeout: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as root; gives its exit code and what it said."""
        return subprocess.run(
            ["nsenter", "--target", str(self._leader), "--all", "--", *args],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={"PATH": _PATH, "LANG": "C.UTF-8", **environ},
            timeout=timeout,
            check=False,
        )

    def do(self, *args: str, environ: Mapping[str, str] = MappingProxyType({}), timeout: float = 60.0) -> str:
        """Run a command that must succeed; gives its standard output. Raises CalledProcessError with what it said."""
        done = self.run(*args, environ=environ, timeout=timeout)
        if done.returncode:
            error = subprocess.CalledProcessError(done.returncode, args, done.stdout, done.stderr)
            error.add_note(done.stdout[-2000:] + done.stderr[-4000:])
            raise error
        return done.stdout

    def show(self, unit: str, name: str) -> str:
        """Give a property of a unit, as ``systemctl show`` has it."""
        return self.do("systemctl", "show", "--property", name, "--value", unit).strip()

    def journal(self, unit: str) -> str:
        """What the journal has of a unit, its own lines and systemd's about it."""
        return self.do("journalctl", "--no-pager", "--output=cat", f"--unit={unit}")

    def _mount(self) -> None:
        self._memory.mkdir()
        _mount("-t", "tmpfs", "-o", "mode=755", "shipper-test", str(self._memory))
        upper, work = self._memory / "upper", self._memory / "work"
        for directory in (upper, work, self._root):
            directory.mkdir()
        _mount(
            "-t", "overlay", "-o", f"lowerdir={TREE},upperdir={upper},workdir={work}", "shipper-test", str(self._root)
        )

    def _boot(self) -> None:
        with self._console.open("wb") as console:
            self._process = subprocess.Popen(
                [
                    *with_parent("TERM"),
                    *("systemd-nspawn", "--quiet", "--boot", "--directory", str(self._root), "--machine", self._name),
                    # No service of this machine takes part, and its journal is not looked for.
                    *("--register=no", "--keep-unit", "--link-journal=no", "--resolv-conf=off", "--timezone=off"),
                    *(f"--bind-ro={here}:{there}" for there, here in self._shown.items()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )
        if not eventually(self._has_booted, timeout=30, every=0.05):
            said = self._console.read_text(errors="replace")[-2000:]
            raise MachineUnavailableError(f"systemd-nspawn booted no machine: {said}")

    def _has_booted(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise MachineUnavailableError(f"systemd-nspawn ended: {self._console.read_text(errors='replace')[-2000:]}")
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if not children:
            return False
        self._leader = int(children[0])
        return self.run("systemctl", "is-system-running", "--wait").stdout.strip() in {"running", "degraded"}

    def _stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)  # nspawn shuts the machine down
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(60)
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
            self._process = None
        for mount in (self._root, self._memory):
            if mount.is_mount():
                _unmount(mount)
        for left in (_PROPAGATE / self._name, self._memory):
            with contextlib.suppress(FileNotFoundError):
                left.rmdir()


def why_unavailable() -> str:
    """Say why no machine can be booted here, or ``""`` when it can be tried."""
    if os.geteuid() != 0:
        return "a machine that boots systemd needs root"
    for program in ("systemd-nspawn", "nsenter"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    if not (TREE / ".packages").exists():
        return f"there is no Debian tree in {TREE}; tests/setup.sh makes it"
    return ""


def _mount(*args: str) -> None:
    done = subprocess.run(["mount", *args], capture_output=True, text=True, check=False)
    if done.returncode:
        raise MachineUnavailableError(f"cannot mount: {done.stderr.strip()}")


def _unmount(mount: Path) -> None:
    """Unmount; a process of the machine that is just ending may still hold it."""
    for _ in range(50):
        if subprocess.run(["umount", str(mount)], capture_output=True, check=False).returncode == 0:
            return
        time.sleep(0.1)
    subprocess.run(["umount", "--lazy", str(mount)], check=False, capture_output=True)
