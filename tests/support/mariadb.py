"""A real, private MariaDB server for tests and benchmarks: own data directory, own port, nothing left behind.

::

    with MariaDB(tmp_path) as server:
        connection = server.connect()
        server.kill()        # as a power cut would
        server.restart()

Needs Debian's ``mariadb-server`` (``mariadbd`` and ``mariadb-install-db``). Start-up takes a few seconds.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pymysql

if TYPE_CHECKING:
    from types import TracebackType

_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])


class MariaDB:
    """One server on 127.0.0.1 and on a socket. ``root`` has no password; ``directory`` holds everything.

    ``options`` are further arguments of the server, such as ``--local-infile=0``.
    """

    user = "root"
    password = ""
    host = "127.0.0.1"

    def __init__(self, directory: Path | None = None, *, options: tuple[str, ...] = ()) -> None:
        self._owns_directory = directory is None
        self.directory = Path(tempfile.mkdtemp(prefix="mariadb-")) if directory is None else directory
        self.options = options
        # The path of a unix socket is at most 107 bytes, which a test's directory may exceed.
        self._socket_directory = Path(tempfile.mkdtemp(prefix="mdb-"))
        self.socket = str(self._socket_directory / "s")
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def available() -> bool:
        """Tell whether the server's programs are installed."""
        return all(shutil.which(name, path=_PATH) for name in ("mariadbd", "mariadb-install-db"))

    @property
    def pid(self) -> int:
        """The running server's process id. Raises RuntimeError when none runs."""
        if self._process is None:
            raise RuntimeError("the server is not running")
        return self._process.pid

    def start(self, *, timeout: float = 60.0) -> None:
        """Make the data directory when missing, start, and wait until connections are taken."""
        data = self.directory / "data"
        if not data.exists():
            self.directory.mkdir(parents=True, exist_ok=True)
            subprocess.run(
                [
                    _program("mariadb-install-db"),
                    "--no-defaults",
                    f"--datadir={data}",
                    "--auth-root-authentication-method=normal",
                    "--skip-test-db",
                    *self._as_root(),
                ],
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        self.port = self.port or _free_port()
        with (self.directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    _program("mariadbd"),
                    "--no-defaults",
                    f"--datadir={data}",
                    f"--socket={self.socket}",
                    f"--port={self.port}",
                    "--bind-address=127.0.0.1",
                    f"--pid-file={self._socket_directory / 'pid'}",
                    "--innodb-buffer-pool-size=256M",
                    "--skip-name-resolve",
                    *self._as_root(),
                    *self.options,
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + timeout
        while True:
            if self._process.poll() is not None:
                raise RuntimeError(f"mariadbd ended at start:\n{self.log()[-2000:]}")
            try:
                self.connect().close()
            except pymysql.err.OperationalError:
                if time.monotonic() > deadline:
                    self.kill()
                    raise
                time.sleep(0.05)
            else:
                return

    def stop(self, *, timeout: float = 60.0) -> None:
        """Shut down in order."""
        self._end(signal.SIGTERM, timeout)

    def kill(self) -> None:
        """Kill the server as a power cut would."""
        self._end(signal.SIGKILL, 30.0)

    def restart(self) -> None:
        """Stop, when it runs, and start again on the same port."""
        self.stop()
        self.start()

    def _end(self, number: signal.Signals, timeout: float) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def connect(self, **changes: Any) -> pymysql.connections.Connection[Any]:
        """Open a connection as root over TCP, in autocommit mode unless told otherwise."""
        arguments: dict[str, Any] = {
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "password": self.password,
            "autocommit": True,
            "ssl_disabled": True,
            "connect_timeout": 5,
        }
        return pymysql.connect(**{**arguments, **changes})

    def execute(self, *statements: str, database: str | None = None) -> tuple[tuple[Any, ...], ...]:
        """Run statements as root on a connection of their own; gives the rows of the last."""
        connection = self.connect(database=database)
        try:
            with connection.cursor() as cursor:
                for statement in statements:
                    cursor.execute(statement)
                return tuple(cursor.fetchall())
        finally:
            connection.close()

    def is_mariadb(self) -> bool:
        """Tell a MariaDB from a MySQL, which only a `RunningServer` can be."""
        return "MariaDB" in str(self.execute("SELECT VERSION()")[0][0])

    def log(self) -> str:
        """What the server printed."""
        return (self.directory / "server.log").read_text("utf-8", "replace")

    @staticmethod
    def _as_root() -> tuple[str, ...]:
        return ("--user=root",) if os.geteuid() == 0 else ()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self._socket_directory, ignore_errors=True)
        if self._owns_directory:
            shutil.rmtree(self.directory, ignore_errors=True)


class RunningServer(MariaDB):
    """A server that runs already, MySQL or MariaDB, at ``host:port``; it is neither started nor stopped."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self.host, _, port = address.rpartition(":")
        self.port = int(port)

    def start(self, *, timeout: float = 60.0) -> None:
        """Nothing to start."""

    def stop(self, *, timeout: float = 60.0) -> None:
        """Nothing to stop."""

    def connect(self, **changes: Any) -> pymysql.connections.Connection[Any]:
        """See `MariaDB.connect`; TLS as the server likes it, for MySQL's default login needs it or RSA."""
        return super().connect(**{"ssl_disabled": False, **changes})


def _program(name: str) -> str:
    found = shutil.which(name, path=_PATH)
    if found is None:
        raise RuntimeError(f"{name} is not installed; it comes with the package mariadb-server")
    return found


def _free_port() -> int:
    with suppress(OSError), socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
    raise RuntimeError("no free port on 127.0.0.1")
