"""A booted Debian with shipper installed as a user would, once per run; every test gets its service without a past."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.daemon import eventually, free_port
from support.docker_engine import DockerEngine, EngineUnavailableError
from support.logs_database import LogsDatabase
from support.machine import TREE, Machine, MachineUnavailableError, why_unavailable
from support.mariadb import MariaDB

ROOT = Path(__file__).parents[2]
UNIT = "shipper.service"
DROP_INS = "/etc/systemd/system/shipper.service.d"
LOGS = "/var/log/app"
STATE = "/var/lib/shipper"
#: A transform that stands still while a file is there, and a sink that takes its time: for what no real one does.
PLUGIN = f"""
import os, time
from shipper.sink import Sink
from shipper.transform import Transform

class Hang(Transform):
    def __init__(self, config):
        pass

    def apply(self, batch):
        while os.path.exists("{LOGS}/hang"):
            time.sleep(0.05)
        return batch

class Slow(Sink):
    def __init__(self, config):
        pass

    def open(self):
        pass

    def write(self, batch):
        open("{STATE}/begun", "w").close()
        time.sleep(3)
        with open("{STATE}/slow", "a") as file:
            file.writelines(raw + "\\n" for raw in batch.raws)

    def close(self):
        pass
"""


@pytest.fixture(scope="session")
def wheels() -> Path:
    """A directory with everything that an installation for Debian's Python takes from a package index.

    Kept beside the Debian tree, so that it is fetched once for every list of requirements.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["mysql"],
    ]
    place = TREE.parent / f"wheels-{hashlib.sha256('|'.join(needed).encode()).hexdigest()[:12]}"
    if not place.exists():
        new = Path(tempfile.mkdtemp(dir=place.parent, prefix=f"{place.name}."))
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(new)]
        subprocess.run(
            [*command, "--only-binary=:all:", "--python-version=3.11", *needed],
            check=True, capture_output=True, timeout=240,
        )  # fmt: skip
        new.chmod(0o755)
        try:
            new.rename(place)
        except OSError:  # another run was faster
            shutil.rmtree(new)
    return place


@pytest.fixture(scope="session")
def engine() -> Iterator[DockerEngine]:
    engine = DockerEngine()
    try:
        engine.start()
    except EngineUnavailableError as error:
        _skip(error)
    yield engine
    engine.stop()


@pytest.fixture(scope="session")
def machine(
    engine: DockerEngine, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machine]:
    """Boot, and install by the script that ``make install`` runs, with the machine's own Python and no network."""
    if reason := why_unavailable():
        _skip(MachineUnavailableError(reason))
    shown = {
        "/src": ROOT,
        "/wheels": request.getfixturevalue("wheels"),
        "/var/lib/docker/containers": engine.containers,
    }
    machine = Machine(tmp_path_factory.mktemp("machine"), shown=shown)
    try:
        machine.__enter__()
    except MachineUnavailableError as error:
        _skip(error)
    try:
        before = _files(machine)
        install = ("sh", "/src/systemd/install.sh", "install")
        machine.do(*install, environ={"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels"}, timeout=240)
        packages = machine.path("/usr/local/lib/shipper/lib/python3.11/site-packages")
        (packages / "stalls.py").write_text(PLUGIN)
        (packages / "stalls-1.dist-info").mkdir()
        (packages / "stalls-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: stalls\nVersion: 1\n")
        (packages / "stalls-1.dist-info/entry_points.txt").write_text(
            "[shipper.transforms]\nhang = stalls:Hang\n[shipper.sinks]\nslow = stalls:Slow\n"
        )
        machine.do("systemctl", "daemon-reload")
        yield machine
        machine.do("systemctl", "stop", UNIT)
        machine.do("sh", "/src/systemd/install.sh", "uninstall")
        left = _files(machine) - before
        assert left <= {"/etc/shipper", "/etc/shipper/shipper.yaml"}, "a configuration that was changed, no more"
    finally:
        machine.__exit__(None, None, None)


class Service:
    """The service in the machine, on a configuration of the test's own."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.port = free_port()
        self._mark = len(machine.journal(UNIT))

    def configure(self, **config: Any) -> None:
        """Write the configuration; one plain file is the source unless another is given."""
        sources = {"app": {"type": "file", "include": [f"{LOGS}/*.log"]}}
        full = {"sources": sources, "http": {"listen": f"127.0.0.1:{self.port}"}, **config}
        self.machine.path("/etc/shipper/shipper.yaml").write_text(json.dumps(full))

    def credential(self, name: str, text: str) -> str:
        """Put a secret where root alone reads it; gives what the configuration calls it."""
        path = self.machine.path(f"/etc/shipper/credentials/{name}")
        path.write_text(text)
        path.chmod(0o600)
        return f"credentials/{name}"

    def drop_in(self, *lines: str) -> None:
        """Change the unit as ``systemctl edit`` would."""
        path = self.machine.path(f"{DROP_INS}/test.conf")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(["[Service]", *lines, ""]))
        self.machine.do("systemctl", "daemon-reload")

    def read_docker(self) -> None:
        """Let the service read Docker's files, as the page says."""
        self.machine.do("install", "-D", "-m", "644", "-t", DROP_INS, "/usr/local/share/shipper/docker-files.conf")
        self.machine.do("systemctl", "daemon-reload")

    def start(self) -> None:
        self.machine.do("systemctl", "start", UNIT, timeout=100)

    def stop(self) -> None:
        self.machine.do("systemctl", "stop", UNIT, timeout=100)

    def log(self, *lines: str) -> None:
        """Append lines to a log that root and the group adm may read."""
        with self.machine.path(f"{LOGS}/app.log").open("a") as file:
            file.writelines(f"{line}\n" for line in lines)

    def show(self, name: str) -> str:
        return self.machine.show(UNIT, name)

    def inside(self, name: str) -> str:
        """What a file of the state directory holds; "" when there is none."""
        return self.machine.run("cat", f"{STATE}/{name}").stdout

    @property
    def journal(self) -> str:
        """What the journal has of this test."""
        return self.machine.journal(UNIT)[self._mark :]

    def wait(self, text: str, *, timeout: float = 20.0) -> None:
        """Wait until the journal has the text."""
        assert eventually(lambda: text in self.journal, timeout=timeout, every=0.1), self.journal[-4000:]

    def clean(self) -> None:
        """Take away what a test left."""
        self.machine.run("systemctl", "stop", UNIT)
        self.machine.run("systemctl", "reset-failed", UNIT)
        self.machine.do("systemctl", "clean", "--what=state", UNIT)
        shutil.rmtree(self.machine.path(DROP_INS), ignore_errors=True)
        for path in self.machine.path("/etc/shipper/credentials").iterdir():
            path.unlink()
        self.machine.do("systemctl", "daemon-reload")


@pytest.fixture
def service(machine: Machine) -> Iterator[Service]:
    service = Service(machine)
    logs = machine.path(LOGS)
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir()
    service.log()
    machine.do("chgrp", "adm", f"{LOGS}/app.log")
    machine.do("chmod", "640", f"{LOGS}/app.log")
    yield service
    print(f"--- the journal of the test ends with:\n{service.journal[-6000:]}")  # noqa: T201 - pytest shows it on failure
    service.clean()


@pytest.fixture
def make_database(mariadb: MariaDB) -> Iterator[Callable[[], LogsDatabase]]:
    """Make databases on the shared server that go when the test ends."""
    made: list[LogsDatabase] = []

    def make() -> LogsDatabase:
        made.append(LogsDatabase(mariadb))
        return made[-1]

    yield make
    for database in made:
        database.drop()


def _files(machine: Machine) -> set[str]:
    found = machine.do("find", "/usr", "/etc", "/opt", "/var/lib", "-xdev").splitlines()
    return {path for path in found if not path.startswith("/var/lib/systemd")}


def _skip(error: Exception) -> None:
    """Skip with the reason; where the test must run (in CI) fail with it."""
    if os.environ.get("CI"):
        raise error
    pytest.skip(str(error))
