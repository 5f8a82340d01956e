"""A private Docker engine for tests: its own daemon, data root and image, gone without a trace afterwards.

Starting takes about a quarter of a second, running a container about half of one. The engine is made with neither
bridge nor firewall rules, so it leaves the machine's network alone; containers run with ``--network none`` from an
image that is busybox and nothing else. It needs root, ``dockerd``, ``docker`` and a statically linked ``busybox``.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from support.daemon import with_parent

IMAGE = "shipper-test:latest"
#: Applets the image offers beside the shell's own builtins.
APPLETS = ("sh", "awk", "cat", "dd", "head", "kill", "printf", "seq", "sleep", "tail", "tr", "true", "usleep", "yes")


class EngineUnavailableError(RuntimeError):
    """No Docker engine can be started here; the text says why."""


class DockerEngine:
    """A Docker engine of our own, as a context manager.

    ``containers`` is the directory that holds the container directories, as the source ``docker`` wants it.
    Raises EngineUnavailableError on entry when the machine cannot run one.
    """

    def __init__(self, *, timeout: float = 30.0) -> None:
        self._timeout = timeout
        self._root: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """See `start`."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """See `stop`."""
        self.stop()

    def start(self) -> None:
        """Start the daemon and make the image. Raises EngineUnavailableError when this machine cannot."""
        reason = why_unavailable()
        if reason:
            raise EngineUnavailableError(reason)
        # A short path: socket names end at 108 bytes.
        self._root = Path(tempfile.mkdtemp(prefix="shipper-docker-", dir="/tmp"))
        try:
            self._launch()
            self._import_image()
        except BaseException:
            self.stop()
            raise

    @property
    def root(self) -> Path:
        """The directory everything lives in."""
        assert self._root is not None, "the engine is not running"
        return self._root

    @property
    def containers(self) -> Path:
        """The directory that holds one directory per container."""
        return self.root / "data" / "containers"

    @property
    def log(self) -> str:
        """What the daemon said so far."""
        path = self.root / "dockerd.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def run(
        self,
        script: str,
        *,
        name: str,
        log_opts: Mapping[str, str | int] | None = None,
        labels: Mapping[str, str] | None = None,
        tty: bool = False,
        remove: bool = False,
        wait: bool = False,
    ) -> str:
        """Start a container that runs a busybox shell script; give its id, or with ``wait`` "" once it has ended."""
        args = ["run", "--network", "none", "--name", name]
        args += ["--tty"] * tty + ["--rm"] * remove
        if not wait:
            args.append("--detach")
        for key, value in (log_opts or {}).items():
            args += ["--log-opt", f"{key}={value}"]
        for key, value in (labels or {}).items():
            args += ["--label", f"{key}={value}"]
        said = self.docker(*args, IMAGE, "sh", "-c", script)
        return "" if wait else said.decode().strip()

    def wait(self, name: str) -> int:
        """Wait until a container has ended; give its exit code."""
        return int(self.docker("wait", name))

    def logs(self, name: str) -> tuple[bytes, bytes]:
        """What ``docker logs`` gives now: standard output and standard error of the container."""
        done = self._call("logs", name)
        return done.stdout, done.stderr

    def directory(self, name: str) -> Path:
        """The container's own directory, which holds its log."""
        return self.containers / self.docker("inspect", "--format", "{{.Id}}", name).decode().strip()

    def remove(self, *names: str) -> None:
        """Remove containers, running or not, known or not."""
        for name in names:
            with contextlib.suppress(subprocess.CalledProcessError):
                self.docker("rm", "--force", name)

    def docker(self, *args: str, timeout: float = 120.0) -> bytes:
        """Run the docker command against this engine, for at most the seconds; give its standard output."""
        return self._call(*args, timeout=timeout).stdout

    def stop(self) -> None:
        """Remove all containers, stop the daemon by its pid, unmount and delete the directory. Safe to repeat."""
        if self._root is None:
            return
        if self._process is not None:
            if self._process.poll() is None:
                with contextlib.suppress(subprocess.SubprocessError):
                    self.remove(*self.docker("ps", "--all", "--quiet").decode().split())
                self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                # Its own session: what dockerd started (containerd, shims) ends with it.
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
            self._process = None
        for mount in reversed(_mounts_under(self._root)):
            subprocess.run(["umount", "--lazy", mount], check=False, capture_output=True)
        shutil.rmtree(self._root, ignore_errors=True)
        self._root = None

    def _launch(self) -> None:
        settings = self.root / "daemon.json"
        settings.write_text("{}")
        with (self.root / "dockerd.log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *with_parent("TERM"),
                    "dockerd",
                    *("--config-file", str(settings)),
                    *("--data-root", str(self.root / "data")),
                    *("--exec-root", str(self.root / "exec")),
                    *("--pidfile", str(self.root / "dockerd.pid")),
                    *("--host", f"unix://{self.root}/docker.sock"),
                    *("--iptables=false", "--ip6tables=false", "--bridge=none"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + self._timeout
        while True:
            with contextlib.suppress(subprocess.CalledProcessError):
                self.docker("version")
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise EngineUnavailableError(f"dockerd did not start: {self.log[-2000:]}")
            time.sleep(0.05)

    def _import_image(self) -> None:
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.add(_busybox(), "bin/busybox")
            for applet in APPLETS:
                link = tarfile.TarInfo(f"bin/{applet}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(link)
        self._call("import", "-", IMAGE, stdin=archive.getvalue())

    def _call(
        self, *args: str, stdin: bytes | None = None, timeout: float = 120.0
    ) -> subprocess.CompletedProcess[bytes]:
        environ = {
            "PATH": os.environ.get("PATH", os.defpath),
            "DOCKER_HOST": f"unix://{self.root}/docker.sock",
            "DOCKER_CONFIG": str(self.root),
            "HOME": str(self.root),
        }
        try:
            return subprocess.run(
                ["docker", *args], input=stdin, capture_output=True, check=True, env=environ, timeout=timeout
            )
        except subprocess.CalledProcessError as error:
            error.add_note(error.stderr.decode(errors="replace"))
            raise


def why_unavailable() -> str:
    """Say why no engine can run here, or ``""`` when one can be tried."""
    if os.geteuid() != 0:
        return "a Docker engine needs root"
    for program in ("dockerd", "docker", "containerd", "runc"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    if not _busybox():
        return "busybox is not installed; the package busybox-static has it"
    return ""


def shell_writer(lines: int, *, prefix: str = "line", padding: int = 0, per_second: int = 1000) -> str:
    """A shell script that writes the lines of `shell_lines` at about a rate, 20 at a time."""
    pad = f" {'x' * padding}" if padding else ""
    pause = 20_000_000 // per_second
    return (
        f"i=0; while [ $i -lt {lines} ]; do echo '{prefix}' $i{pad}; i=$((i+1));"
        f" [ $((i%20)) -eq 0 ] && usleep {pause}; done; true"
    )


def shell_lines(lines: int, *, prefix: str = "line", padding: int = 0) -> list[str]:
    """The lines that `shell_writer` writes, without their ends."""
    pad = f" {'x' * padding}" if padding else ""
    return [f"{prefix} {number}{pad}" for number in range(lines)]


def _busybox() -> str:
    return shutil.which("busybox") or ""


def _mounts_under(directory: Path) -> list[str]:
    prefix = f"{directory}/"
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [point for line in lines if (point := line.split(" ")[4]).startswith(prefix)]
