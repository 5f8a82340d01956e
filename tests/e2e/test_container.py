"""The image, built here without a network and run as the docs say: without network, rights or a root to write on."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from shipper import __version__
from support.arrivals import difference, sqlite_messages, wait_for
from support.daemon import Daemon, eventually
from support.docker_engine import DockerEngine, shell_lines, shell_writer
from support.logs_database import LogsDatabase

pytestmark = pytest.mark.docker

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "tests" / "samples"
#: Made by tests/setup.sh; wheels are put beside it.
TREE = Path("/var/cache/shipper-tests/debian-bookworm")
BASE, IMAGE = "shipper-test-base:local", "shipper-test-image:local"
#: What a base with Python does without; importing it costs seconds.
SPARED = (
    "usr/share/doc",
    "usr/share/locale",
    "usr/share/man",
    "usr/share/zoneinfo",
    "usr/share/perl",
    "usr/lib/systemd",
)
SPARED += ("usr/lib/udev", "usr/lib/x86_64-linux-gnu/perl*", "var", "boot", "dev", "proc", "sys", "run", "tmp")
USER = 10001
#: As docs/how-to/container.md has it.
HARDENED = ("--network", "none", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")

MakeShipper = Callable[..., "Shipper"]


def wheels() -> Path:
    """The directory with every file of the two lists; downloaded when they have changed."""
    lists = sorted((ROOT / "deploy" / "image").glob("*requirements.txt"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in lists)).hexdigest()[:16]
    found = TREE.parent / f"image-wheels-{digest}"
    if not found.exists():
        new = TREE.parent / f"{found.name}.{os.getpid()}"
        named = [option for path in lists for option in ("--requirement", str(path))]
        download = [
            "download",
            "--quiet",
            "--no-deps",
            "--require-hashes",
            "--only-binary",
            ":all:",
            "--dest",
            str(new),
        ]
        subprocess.run([sys.executable, "-m", "pip", *download, "--python-version", "3.11", *named], check=True)
        new.rename(found)
    return found


@pytest.fixture(scope="module")
def image(engine: DockerEngine, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The image, built once a run: where several processes test, the others load what the first has built."""
    if not TREE.exists():
        text = f"there is no {TREE}; tests/setup.sh makes it"
        if os.environ.get("CI"):
            pytest.fail(text)
        pytest.skip(text)
    if "PYTEST_XDIST_WORKER" not in os.environ:
        build(engine, tmp_path_factory.mktemp("image"))
        return IMAGE
    shared = tmp_path_factory.getbasetemp().parent
    archive = shared / "image.tar"
    with (shared / "image.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if archive.exists():
            engine.docker("load", "--input", str(archive))
        else:
            build(engine, tmp_path_factory.mktemp("image"))
            engine.docker("save", "--output", str(archive), IMAGE, BASE)
    return IMAGE


def build(engine: DockerEngine, work: Path) -> None:
    """Build from the tree as the base, without a network, by the builder that every engine has."""
    spared = [f"--exclude=./{name}" for name in SPARED]
    subprocess.run(["tar", "-C", str(TREE), *spared, "-cf", str(work / "base.tar"), "."], check=True)
    engine.docker("import", str(work / "base.tar"), BASE)
    context = work / "context"
    ignore = shutil.ignore_patterns("__pycache__", "wheels", "*.so")
    for name in ("shipper", "sinks", "man", "deploy/image"):
        shutil.copytree(ROOT / name, context / name, ignore=ignore)
    for name in ("Dockerfile", ".dockerignore", "pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, context)
    shutil.copytree(wheels(), context / "deploy/image/wheels")
    arguments = {
        "BASE": BASE,
        "PIP_NO_INDEX": "1",
        "VERSION": "9.9.9",
        "REVISION": "abc",
        "SOURCE": "https://example.com",
    }
    named = [option for pair in arguments.items() for option in ("--build-arg", "=".join(pair))]
    engine.docker("build", "--network", "none", *named, "--tag", IMAGE, str(context), timeout=250)
    shutil.rmtree(work)


class Shipper:
    """A container of the image, with its configuration in a directory and its state on a volume, both of its own.

    ``options`` are further options of ``docker run``; ``user`` is given when it is not the image's.
    """

    def __init__(self, engine: DockerEngine, directory: Path, config: dict[str, Any], options: tuple[str, ...]) -> None:
        self.engine = engine
        self.name = f"s-{uuid.uuid4().hex[:8]}"
        self.directory = directory
        self.options = options
        directory.mkdir()
        directory.chmod(0o755)
        self.configure(config)
        engine.docker("volume", "create", self.name)

    def configure(self, config: dict[str, Any]) -> None:
        path = self.directory / "shipper.yaml"
        path.write_text(yaml.safe_dump(config))
        path.chmod(0o644)

    @property
    def state(self) -> Path:
        """The volume, as the host sees it."""
        return self.engine.root / "data" / "volumes" / self.name / "_data"

    def start(self) -> None:
        """Make a container and wait until its daemon has started."""
        mounts = ("-v", f"{self.name}:/var/lib/shipper", "-v", f"{self.directory}:/etc/shipper:ro")
        health = ("--health-interval", "500ms", "--health-start-period", "10s")
        self.engine.docker("run", "--detach", "--name", self.name, *HARDENED, *mounts, *health, *self.options, IMAGE)
        self.wait_log("started")

    def again(self) -> None:
        """Start the container that has ended, and wait until its daemon has started."""
        mark = len(self.events())
        self.engine.docker("start", self.name)
        self.wait_log("started", since=mark)

    def signal(self, name: str) -> None:
        self.engine.docker("kill", "--signal", name, self.name)

    def stop(self) -> tuple[int, float]:
        """End it as ``docker stop`` does; the exit code and the seconds that it took."""
        begin = time.monotonic()
        self.engine.docker("stop", "--time", "30", self.name)
        return int(self.inspect("{{.State.ExitCode}}")), time.monotonic() - begin

    def inspect(self, form: str) -> str:
        return self.engine.docker("inspect", "--format", form, self.name).decode().strip()

    def execute(self, *command: str) -> str:
        return self.engine.docker("exec", self.name, *command).decode()

    def events(self) -> list[dict[str, Any]]:
        """Its log. Every line must be JSON."""
        # From Docker's own file: what the client says for itself would stand on the same standard error.
        directory = self.engine.directory(self.name)
        lines = (directory / f"{directory.name}-json.log").read_text().splitlines(keepends=True)
        found = []
        for line in (json.loads(line)["log"] for line in lines if line.endswith("\n")):
            assert line.startswith("{"), f"not JSON in the log: {line!r}"
            found.append(json.loads(line))
        return found

    def wait_log(self, event: str, *, since: int = 0, timeout: float = 20.0) -> dict[str, Any]:
        found: list[dict[str, Any]] = []

        def said() -> bool:
            found[:] = [one for one in self.events()[since:] if one["event"].startswith(event)]
            return bool(found) or self.inspect("{{.State.Running}}") != "true"

        assert eventually(said, timeout=timeout), f"never said {event!r}: {self.events()[-5:]}"
        assert found, f"ended without {event!r}: {self.events()[-5:]}"
        return found[0]


@pytest.fixture
def make_shipper(engine: DockerEngine, image: str, tmp_path: Path) -> Iterator[MakeShipper]:
    """Make containers of the image, not yet started, that are gone with their volumes when the test ends."""
    made: list[Shipper] = []

    def make(config: dict[str, Any], *options: str) -> Shipper:
        made.append(Shipper(engine, tmp_path / f"config-{len(made)}", config, options))
        return made[-1]

    yield make
    for shipper in made:
        engine.remove(shipper.name)
        engine.docker("volume", "rm", shipper.name)


class Server:
    """The way to MariaDB: a directory with its socket, to be mounted. Without the socket the server is away."""

    def __init__(self, database: LogsDatabase, directory: Path) -> None:
        self._database = database
        self.directory = directory
        directory.mkdir()
        directory.chmod(0o755)
        (directory / "password").write_text("logs\n")
        os.chown(directory / "password", USER, 0)
        (directory / "password").chmod(0o440)
        self.mount = ("-v", f"{directory}:/run/logs_db:ro")
        self.sink = {"type": "mysql", "unix_socket": "/run/logs_db/socket", "database": database.name}
        self.sink |= {"user": database.name, "password_file": "/run/logs_db/password"}
        self.come()

    def come(self) -> None:
        os.link(self._database.server.socket, self.directory / "socket")

    def go(self) -> None:
        """Take no connection any more, and end those that there are."""
        (self.directory / "socket").unlink()
        user = self._database.name
        for (number,) in self._database.execute(f"SELECT id FROM information_schema.processlist WHERE user = '{user}'"):
            self._database.execute(f"KILL {number}")


@pytest.fixture
def server(database: LogsDatabase, tmp_path: Path) -> Server:
    return Server(database, tmp_path / "logs_db")


@pytest.fixture
def here(make_daemon: Callable[..., Daemon], tmp_path: Path) -> Callable[..., list[str]]:
    """The messages that a daemon without a container makes of the samples."""
    sources = {
        "containers": {"type": "docker", "path": str(SAMPLES / "containers")},
        "fallback": {"type": "file", "include": [str(SAMPLES / "logs/fallback.log")], "parser": "fallback"},
    }

    def messages(*names: str) -> list[str]:
        sink = {"type": "sqlite", "path": str(tmp_path / "here.db")}
        daemon = make_daemon({"sources": {name: sources[name] for name in names}, "sinks": {"db": sink}})
        assert daemon.once().code == 0
        found = sqlite_messages(tmp_path / "here.db")
        assert len(found) > 20
        return found

    return messages


@pytest.fixture
def app(engine: DockerEngine) -> Iterator[Callable[..., str]]:
    """Start containers that write; they are removed when the test ends."""
    used: list[str] = []

    def start(script: str, *, name: str = "") -> str:
        used.append(name or f"app-{uuid.uuid4().hex[:8]}")
        engine.run(script, name=used[-1])
        return used[-1]

    yield start
    engine.remove(*used)


def agent(engine: DockerEngine, server: Server) -> tuple[str, ...]:
    """The options of the host's agent: user 0 owns Docker's logs and needs no capability to read them."""
    logs = ("-v", f"{engine.containers}:/var/lib/docker/containers:ro", "-v", f"{SAMPLES}:/samples:ro")
    return ("--user", "0:0", *logs, *server.mount)


def test_the_image_says_what_it_is_and_holds_nothing_to_write_on(engine: DockerEngine, image: str) -> None:
    (about,) = json.loads(engine.docker("inspect", image))
    config = about["Config"]
    assert (config["User"], config["StopSignal"], config["Volumes"]) == (f"{USER}:{USER}", "SIGTERM", None)
    assert (config["Entrypoint"], config["Cmd"]) == (["shipper"], ["run"])
    assert config["Healthcheck"]["Test"] == ["CMD", "shipper", "healthcheck"]
    said = {key.removeprefix("org.opencontainers.image."): value for key, value in config["Labels"].items()}
    assert said["version"] == "9.9.9"
    version = engine.docker("run", "--rm", *HARDENED, image, "--version").decode()
    assert version == f"shipper {__version__} (pure Python: the compiled module is not there)\n", "its base has no gcc"
    assert (said["revision"], said["source"], said["licenses"]) == ("abc", "https://example.com", "MIT")
    (base,) = json.loads(engine.docker("inspect", BASE))
    assert about["Size"] - base["Size"] < 110_000_000
    # What its user may write, what is left of pip; bytecode, which it could not write; who it is; a client for AWS.
    script = (
        "find / -xdev -path /proc -prune -o ! -type l -writable ! -path '/dev/*' -print;"
        " find /opt/shipper -maxdepth 4 -name 'pip*';"
        " ls /opt/shipper/lib/python3*/site-packages/shipper/daemon/__pycache__/daemon.*.pyc | wc -l;"
        ' id -u; id -G; python -c \'import boto3; print(boto3.client("logs", region_name="eu-west-1").meta.endpoint_url)\''
    )
    found = engine.docker("run", "--rm", *HARDENED[:2], "--entrypoint", "sh", image, "-c", script).decode().splitlines()
    assert found == ["/tmp"] * ("/tmp" in found) + [
        "/var/lib/shipper",
        "1",
        *(str(USER), str(USER)),
        "https://logs.eu-west-1.amazonaws.com",
    ]


def test_state_in_the_containers_own_layer_or_in_memory_is_refused(
    engine: DockerEngine, image: str, tmp_path: Path
) -> None:
    config = {"sources": {"app": {"type": "file", "include": ["/logs/*"]}}, "sinks": {"x": {"type": "blackhole"}}}
    tmp_path.chmod(0o755)
    (tmp_path / "shipper.yaml").write_text(yaml.safe_dump(config))
    run = ("run", "--rm", "--network", "none", "-v", f"{tmp_path}:/etc/shipper:ro")
    memory = ("--read-only", "--tmpfs", "/var/lib/shipper:mode=1777")
    for options, reason in (((), "in the container's own layer"), (memory, "is in memory")):
        with pytest.raises(subprocess.CalledProcessError) as caught:
            engine.docker(*run, *options, image)
        assert caught.value.returncode == 78
        said = caught.value.stderr.decode()
        assert "E-STATE-TEMPORARY" in said
        assert reason in said
        assert "-v shipper-state:/var/lib/shipper" in said
    engine.docker(*run, "--env", "SHIPPER_TEMPORARY_STATE=allow", image, "run", "--once")


def test_sigterm_ends_it_also_before_it_has_begun(engine: DockerEngine, make_shipper: MakeShipper) -> None:
    """As process 1 it has no default action to fall back on. A configuration that blocks holds it at its beginning."""
    shipper = make_shipper({})
    (shipper.directory / "shipper.yaml").unlink()
    os.mkfifo(shipper.directory / "shipper.yaml")
    mounts = ("-v", f"{shipper.directory}:/etc/shipper:ro", "-v", f"{shipper.name}:/var/lib/shipper")
    engine.docker("run", "--detach", "--name", shipper.name, *HARDENED, *mounts, IMAGE)
    # It opens the pipe for reading: opening it for writing succeeds at that moment.
    writer = -1

    def opened() -> bool:
        nonlocal writer
        try:
            writer = os.open(shipper.directory / "shipper.yaml", os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            return False
        return True

    assert eventually(opened, every=0.01)
    try:
        code, seconds = shipper.stop()
    finally:
        os.close(writer)
    assert code == 0
    assert seconds < 5


def test_the_agent_ships_samples_and_live_lines_through_kill_reload_and_stop(  # noqa: PLR0917 - fixtures
    engine: DockerEngine,
    make_shipper: MakeShipper,
    here: Callable[..., list[str]],
    server: Server,
    database: LogsDatabase,
    app: Callable[..., str],
) -> None:
    samples = here("containers", "fallback")
    config: dict[str, Any] = {
        "sources": {
            "docker": {"type": "docker"},
            "samples": {"type": "docker", "path": "/samples/containers"},
            "fallback": {"type": "file", "include": ["/samples/logs/fallback.log"], "parser": "fallback"},
        },
        "sinks": {"mysql": server.sink, "local": {"type": "sqlite", "path": "/var/lib/shipper/logs.db"}},
        "active": "mysql",
    }
    shipper = make_shipper(config, *agent(engine, server))
    # User 0 without capabilities is nobody special: the password's group 0 lets it in.
    shipper.start()
    name = app(f"{shell_writer(1500, prefix='first', per_second=1500)}; sleep 60")
    assert eventually(lambda: database.count() > len(samples))
    shipper.signal("KILL")
    assert engine.wait(shipper.name) == 137
    shipper.again()
    first = shell_lines(1500, prefix="first")
    assert wait_for(samples + first, database.messages) == ""
    assert eventually(lambda: shipper.inspect("{{.State.Health.Status}}") == "healthy")
    assert shipper.execute("shipper", "healthcheck").startswith("ok")
    memory = int(re.findall(r"VmHWM:\s+(\d+) kB", shipper.execute("cat", "/proc/1/status"))[0])
    assert memory < 64 * 1024

    mark = len(shipper.events())
    shipper.configure(config | {"active": "local"})
    shipper.signal("HUP")
    shipper.wait_log("switched", since=mark)
    app(shell_writer(300, prefix="second"))
    second = shell_lines(300, prefix="second")
    found = shipper.state / "logs.db"
    assert wait_for(second, lambda: [line for line in sqlite_messages(found) if "second" in line]) == ""
    code, seconds = shipper.stop()
    assert code == 0
    assert seconds < 10
    assert shipper.events()[-1]["event"] == "stopped"
    # Nothing waits, nothing came twice, and nothing of its own log came at all; the canary is the daemon's own.
    assert not any(path.is_file() for path in (shipper.state / "spill").rglob("*"))
    assert difference(samples + first, database.messages()) == ""
    assert database.execute(f"SELECT count(*) FROM activity_logs WHERE container = '{shipper.name}'") == ((0,),)
    assert name in {row[0] for row in database.rows("container")}

    # An upgrade is another container with the same volume: it goes on where the old one stopped.
    engine.remove(shipper.name)
    shipper.start()
    app(shell_writer(20, prefix="third"))
    third = shell_lines(20, prefix="third")
    lines = lambda: [line for line in sqlite_messages(found) if re.match("second|third", line)]  # noqa: E731
    assert wait_for(second + third, lines) == ""
    assert shipper.stop()[0] == 0
    assert difference(samples + first, database.messages()) == ""


def test_the_sidecar_ships_the_applications_volume_and_outlives_an_outage(  # noqa: PLR0917 - fixtures
    engine: DockerEngine,
    make_shipper: MakeShipper,
    here: Callable[..., list[str]],
    server: Server,
    database: LogsDatabase,
    tmp_path: Path,
) -> None:
    """The files belong to the application's group; without it the log says which ids may not read them."""
    logs = tmp_path / "logs"
    logs.mkdir(mode=0o750)
    shutil.copy(SAMPLES / "logs/fallback.log", logs)
    for path in (logs, logs / "fallback.log"):
        os.chown(path, 1000, 20_000)
    logs.chmod(0o2750)
    (logs / "fallback.log").chmod(0o640)
    config = {
        "sources": {"fallback": {"type": "file", "include": ["/logs/fallback.log"], "parser": "fallback"}},
        "sinks": {"mysql": server.sink},
        "shutdown_timeout": "2s",
    }
    stranger = make_shipper(config, "-v", f"{logs}:/logs:ro", *server.mount)
    stranger.start()
    told = stranger.wait_log("file cannot be read")
    assert told["fix"].startswith(f"let user id {USER} or one of its group ids [{USER}] read it")
    assert stranger.execute("shipper", "healthcheck").startswith("ok")
    # What a restart would help against is told apart: a daemon that does not answer.
    stranger.signal("STOP")
    with pytest.raises(subprocess.CalledProcessError) as caught:
        stranger.execute("shipper", "healthcheck", "--timeout", "0.3")
    assert caught.value.returncode == 1
    stranger.signal("CONT")
    assert stranger.stop()[0] == 0

    shipper = make_shipper(config, "--group-add", "20000", "-v", f"{logs}:/logs:ro", *server.mount)
    shipper.start()
    samples = here("fallback")
    assert wait_for(samples, database.messages) == ""

    def write(numbers: range) -> list[str]:
        with (logs / "fallback.log").open("a") as file:
            file.writelines(f"2026-11-22T21:00:00.{number:03}Z [error] live {number}\n" for number in numbers)
        return [f"live {number}" for number in range(numbers.stop)]

    assert wait_for(samples + write(range(100)), database.messages) == ""
    # The server goes: the health says so, and that a restart would not help. A stop ends within the deadline.
    server.go()
    write(range(100, 200))
    assert eventually(lambda: "sink:mysql is retrying" in shipper.execute("shipper", "healthcheck"))
    code, seconds = shipper.stop()
    assert code == 0
    assert seconds < 8
    written = write(range(200, 300))
    server.come()
    shipper.again()
    assert wait_for(samples + written, database.messages) == ""
    assert shipper.stop()[0] == 0
    assert difference(samples + written, database.messages()) == ""
