"""docs/how-to/write-a-sink.md, done to the letter by somebody who has the wheel and nothing of this repository."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

#: What the page leaves to the author: the bodies of three methods.
METHODS = {
    "    def open(self) -> None: ...  # connect; harmless when called again\n": """
    def open(self) -> None:
        self.close()
        host, _, port = self._config.server.rpartition(":")
        try:
            self._socket = socket.create_connection((host, int(port)), parse_duration(self._config.timeout))
            self._answers = self._socket.makefile("rb")
            self._expect(b"INFO ")
            self._socket.sendall(b'CONNECT {"verbose":true}\\r\\n')
            self._expect(b"+OK")
        except OSError as error:
            self.close()
            raise RetryableError(f"{self._config.server}: {error}; the records wait") from error
""",
    "    def write(self, batch: Batch) -> None: ...\n": """
    def write(self, batch: Batch) -> None:
        texts = [msgspec.json.encode(msgspec.structs.replace(record, raw="")) for record in batch.records()]
        for text in texts:
            if len(text) > 1 << 20:
                raise PermanentError(f"{self._config.server} takes no message above 1 MiB", certain=True)
        subject = self._config.subject.encode()
        try:
            self._socket.sendall(b"".join(b"PUB %s %d\\r\\n%s\\r\\n" % (subject, len(text), text) for text in texts))
            for _ in texts:
                self._expect(b"+OK")
        except OSError as error:
            text = f"{self._config.server}: {error}; the records are sent again"
            raise RetryableError(text, maybe_taken=True) from error

    def _expect(self, begin: bytes) -> None:
        line = self._answers.readline()
        if not line.startswith(begin):
            raise ConnectionError(f"it says {line.decode(errors='replace')!r}")
""",
    "    def close(self) -> None: ...  # never raises\n": """
    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            if self._answers is not None:
                self._answers.close()
                self._answers = None
""",
    "        self._config = config\n": """        self._config = config
        self._socket = self._answers = None
""",
    "from msgspec import Meta\n": """import msgspec
import socket
from msgspec import Meta
""",
}

#: A small real server: the verbose form of NATS's protocol, in which each message is acknowledged.
SERVER = """
import socketserver
import threading

import msgspec

from shipper.record import Record


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b'INFO {"max_payload":1048576}\\r\\n')
        while words := self.rfile.readline().split():
            if words[0] == b"PUB":
                text = self.rfile.read(int(words[2]) + 2)[:-2]
                if len(text) != int(words[2]):
                    return
                if len(text) > 1 << 20:
                    self.wfile.write(b"-ERR 'Maximum Payload Violation'\\r\\n")
                    return
                self.server.texts.append(text)
            self.wfile.write(b"+OK\\r\\n")

    def finish(self):
        try:
            super().finish()
        except OSError:
            pass


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass


class NatsServer:
    def __enter__(self):
        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.texts = []
        self.port = self._server.server_address[1]
        self.address = f"127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def records(self):
        return [msgspec.json.decode(text, type=Record) for text in self._server.texts]
"""


def blocks(kind: str) -> list[str]:
    page = (ROOT / "docs/how-to/write-a-sink.md").read_text()
    return [text for found, text in BLOCK.findall(page) if found == kind]


def write_project(project: Path) -> None:
    sink, contract, faults = blocks("python")
    for stub, body in METHODS.items():
        assert sink.count(stub) == 1, f"the page's sink has no {stub!r} that could be filled in"
        sink = sink.replace(stub, body)
    tests = f"{contract}\n\n{faults}".replace("from sinks.nats import", "from shipper_nats import")
    files = {
        "pyproject.toml": blocks("toml")[0],
        "shipper_nats.py": sink,
        "tests/test_shipper_nats.py": tests.replace("from support.nats_server import", "from nats_server import"),
        "tests/nats_server.py": SERVER,
        "tests/conftest.py": 'import pytest\n\npytest.register_assert_rewrite("shipper.testing")\n',
        "config/examples/nats.yaml": blocks("yaml")[0],
    }
    for name, text in files.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)


@pytest.mark.slow
def test_a_sink_written_by_the_page_alone_passes_its_contract_and_runs(tmp_path: Path, wheel: Path) -> None:
    project = tmp_path / "shipper-nats"
    write_project(project)
    venv.create(tmp_path / "venv")
    clean = {"PATH": f"{tmp_path / 'venv' / 'bin'}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    clean |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}

    def run(*command: str) -> str:
        done = subprocess.run(
            command, cwd=project, env=clean, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stdout[-8000:]}"
        return done.stdout

    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", str(tmp_path / "venv"))
    run(*pip, "install", f"shipper[testing] @ {wheel.as_uri()}", "--editable", ".[test]")
    where = run("python", "-c", "import shipper, sinks, sys; print(shipper.__file__, sinks.__file__, *sys.path)")
    assert f"{ROOT}/" not in where
    assert Path(sys.executable).parent.as_posix() not in where
    said = run("pytest", "-ra", "-p", "no:cacheprovider", "tests")
    assert "no way to refuse the login is known" in said
    passed, skipped = re.search(r"(\d+) passed, (\d+) skipped", said).groups()  # type: ignore[union-attr] # else it fails
    assert int(passed) > 35
    assert int(skipped) == 2, "what the page says is skipped"
    (tmp_path / "containers").mkdir()
    assert "nats" in run("shipper", "check", "--config", "config/examples/nats.yaml")
