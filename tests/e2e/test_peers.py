"""What other shippers lose or double, measured, at reduced size: ours loses none and shows none twice.

Every test uses default settings. The sink is sqlite where the fault is on the side of the files, and MariaDB behind
a proxy where it is on the side of the sink.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shipper.testing.proxy import FaultProxy
from support.arrivals import difference, sqlite_messages, wait_for
from support.daemon import Daemon, eventually
from support.docker_log import DockerLog
from support.load import Load
from support.logs_database import LogsDatabase

MakeDaemon = Callable[..., Daemon]
MakeLog = Callable[..., DockerLog]


class Case:
    """Containers, a daemon before them, and a database behind it."""

    def __init__(self, make_daemon: MakeDaemon, directory: Path, **section: Any) -> None:
        self.containers = directory / "containers"
        self.containers.mkdir()
        self.database = directory / "logs.db"
        sources = {"docker": {"type": "docker", "path": str(self.containers)}}
        sinks = {"db": {"type": "sqlite", "path": str(self.database)}}
        self.daemon = make_daemon({"sources": sources, "sinks": sinks, **section})

    def arrived(self) -> list[str]:
        return sqlite_messages(self.database)

    def check(self, written: list[str], *, timeout: float = 30.0) -> None:
        check(self.daemon, written, self.arrived, timeout=timeout)


def check(daemon: Daemon, written: list[str], arrived: Callable[[], list[str]], *, timeout: float = 30.0) -> None:
    """Everything written has arrived once, also after a stop and another start."""
    assert wait_for(written, arrived, timeout=timeout) == ""
    assert daemon.term() == 0
    assert difference(written, arrived()) == ""
    daemon.start()
    daemon.wait_ready()
    assert daemon.term() == 0
    assert difference(written, arrived()) == ""


@pytest.fixture
def case(make_daemon: MakeDaemon, tmp_path: Path) -> Case:
    return Case(make_daemon, tmp_path)


@pytest.mark.parametrize("max_size", [40_000, 100_000_000], ids=["rotation", "no-rotation"])
def test_kill_9_ten_times(case: Case, max_size: int, docker_log: MakeLog) -> None:
    rng = random.Random(1)
    log = docker_log(case.containers, max_size=max_size, max_file=10)
    with Load(log.write) as load:
        for _ in range(10):
            case.daemon.start()
            time.sleep(rng.uniform(0.05, 0.4))
            case.daemon.kill9()
    case.daemon.start()
    case.check(load.written)


def test_sigterm_ten_times_with_rotation(case: Case, docker_log: MakeLog) -> None:
    rng = random.Random(2)
    log = docker_log(case.containers, max_size=40_000, max_file=10)
    with Load(log.write) as load:
        for _ in range(10):
            case.daemon.start()
            time.sleep(rng.uniform(0.05, 0.4))
            assert case.daemon.term() == 0
    case.daemon.start()
    case.check(load.written)


@contextmanager
def behind_proxy(
    make_daemon: MakeDaemon, database: LogsDatabase, containers: Path
) -> Iterator[tuple[Daemon, FaultProxy]]:
    with FaultProxy(database.address) as proxy:
        containers.mkdir(exist_ok=True)
        sources = {"docker": {"type": "docker", "path": str(containers)}}
        daemon = make_daemon(
            {"sources": sources, "sinks": {"mysql": database.sink(port=proxy.port, ssl_mode="disabled")}}
        )
        daemon.start()
        daemon.wait_ready()
        yield daemon, proxy


@pytest.mark.mariadb
@pytest.mark.parametrize("killed", [False, True], ids=["", "kill-9-in-the-middle"])
def test_sink_refuses_while_three_rotations_pass_with_max_file_3(
    make_daemon: MakeDaemon, database: LogsDatabase, tmp_path: Path, killed: bool, docker_log: MakeLog
) -> None:
    """The oldest file is gone before the sink is back: what it held was spilled in time."""
    log = docker_log(tmp_path / "containers", max_size=100_000_000, max_file=3)
    with behind_proxy(make_daemon, database, tmp_path / "containers") as (daemon, proxy):
        with Load(log.write) as load:
            time.sleep(0.5)
            proxy.switch("refuse")
            proxy.reset_all()
            for number in range(4):
                time.sleep(1.0)
                with load.lock:
                    log.rotate()
                if killed and number == 1:
                    time.sleep(0.5)
                    daemon.kill9()
                    daemon.start()
            time.sleep(0.5)
            proxy.switch("pass")
        check(daemon, load.written, database.messages)


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "compressed"])
def test_two_rotations_while_stopped(case: Case, compress: bool, docker_log: MakeLog) -> None:
    log = docker_log(case.containers, max_size=100_000_000, max_file=5, compress=compress)
    load = Load(log.write)
    load.add(300)
    case.daemon.start()
    assert wait_for(load.written, case.arrived) == ""
    case.daemon.term()
    load.add(100)
    log.rotate()
    load.add(200)
    log.rotate()
    load.add(100)
    case.daemon.start()
    case.check(load.written)


@pytest.mark.mariadb
def test_max_file_1_with_a_slow_sink(
    make_daemon: MakeDaemon, database: LogsDatabase, tmp_path: Path, docker_log: MakeLog
) -> None:
    """Rotation unlinks the file at once: only the descriptor that the daemon holds still has the lines."""
    log = docker_log(tmp_path / "containers", max_size=40_000, max_file=1)
    with behind_proxy(make_daemon, database, tmp_path / "containers") as (daemon, proxy):
        proxy.switch("latency", seconds=0.3)
        with Load(log.write) as load:
            time.sleep(4)
        proxy.switch("pass")
        check(daemon, load.written, database.messages)
    assert log.rotations >= 3


class AppLog:
    """A plain file that an application appends to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def write(self, line: str) -> None:
        with self.path.open("a") as file:
            file.write(f"{line}\n")

    def copytruncate(self) -> None:
        """As logrotate does it; the caller sees to it that nobody writes meanwhile, or lines would be lost by it."""
        for number in (3, 2, 1):
            older = self.path.with_name(f"{self.path.name}.{number}")
            if older.exists():
                older.rename(self.path.with_name(f"{self.path.name}.{number + 1}"))
        shutil.copyfile(self.path, self.path.with_name(f"{self.path.name}.1"))
        self.path.write_text("")


@pytest.fixture
def app(make_daemon: MakeDaemon, tmp_path: Path) -> tuple[Case, AppLog]:
    log = AppLog(tmp_path / "srv" / "app.log")
    return Case(make_daemon, tmp_path, sources={"app": {"type": "file", "include": [str(log.path)]}}), log


def test_copytruncate_under_load(app: tuple[Case, AppLog]) -> None:
    case, log = app
    case.daemon.start()
    with Load(log.write) as load:
        for _ in range(5):
            time.sleep(0.7)
            with load.lock:
                log.copytruncate()
    case.check(load.written)


def test_same_inode_longer_file_while_stopped(app: tuple[Case, AppLog]) -> None:
    """The offset of old lies inside the new content: it must not be taken for a place to go on."""
    case, log = app
    load = Load(log.write)
    load.add(200)
    case.daemon.start()
    assert wait_for(load.written, case.arrived) == ""
    case.daemon.term()
    inode = log.path.stat().st_ino
    with log.path.open("r+") as file:
        file.truncate(0)
    load.add(400)
    assert log.path.stat().st_ino == inode
    case.daemon.start()
    case.check(load.written)


@pytest.mark.mariadb
@pytest.mark.parametrize("fault", ["wrong_password", "no_right", "read_only"])
def test_the_server_refuses_for_a_while(
    make_daemon: MakeDaemon, database: LogsDatabase, tmp_path: Path, fault: str, docker_log: MakeLog
) -> None:
    """A login or right taken away parks the sink; nothing is given up, and all of it arrives once it is back."""
    log = docker_log(tmp_path / "containers", max_size=40_000, max_file=3)
    with behind_proxy(make_daemon, database, tmp_path / "containers") as (daemon, proxy):
        with Load(log.write, per_second=200) as load:
            time.sleep(0.5)
            with database.refusing(fault):
                proxy.reset_all()
                assert eventually(lambda: database.count() < len(load.written) - 100, timeout=5)
                assert eventually(lambda: daemon.get("/readyz")[0] == 503, timeout=10), daemon.health()
                time.sleep(3)
                assert daemon.get("/healthz")[0] == 200, "a fault of the operator is no reason to restart the daemon"
        check(daemon, load.written, database.messages, timeout=40)


def test_ten_containers_that_live_300_ms(case: Case, docker_log: MakeLog) -> None:
    case.daemon.start()
    case.daemon.wait_ready()
    written: list[str] = []
    for number in range(10):
        log = docker_log(case.containers, name=f"brief-{number}")
        load = Load(log.write, prefix=f"brief {number}")
        load.add(25)
        time.sleep(0.3)
        load.add(25)
        log.remove()
        written += load.written
    case.check(written)


@pytest.mark.parametrize("max_size", [20_000, 100_000_000], ids=["across-rotation", "one-file"])
def test_messages_over_16_kib_arrive_whole(case: Case, max_size: int, docker_log: MakeLog) -> None:
    # Up to sixty rotations a second: the files that are kept must outlast a stall of the machine.
    log = docker_log(case.containers, max_size=max_size, max_file=30)
    case.daemon.start()
    written = []
    for number in range(64):
        written.append(f"long {number} {'y' * (16_000 + 700 * number)}")
        log.write(written[-1])
        time.sleep(0.05)
    case.check(written)


@pytest.mark.mariadb
def test_one_poison_line_alone_is_set_aside_and_delivered_once_the_cause_is_gone(
    make_daemon: MakeDaemon, database: LogsDatabase, tmp_path: Path, docker_log: MakeLog
) -> None:
    log = docker_log(tmp_path / "containers")
    load = Load(log.write)
    load.add(1)
    sources = {"docker": {"type": "docker", "path": str(tmp_path / "containers")}}
    daemon = make_daemon({"sources": sources, "sinks": {"mysql": database.sink()}})
    daemon.start()
    assert wait_for(load.written, database.messages) == ""
    database.execute(f"ALTER TABLE {database.table} ADD CONSTRAINT clean CHECK (message <> 'poison')")
    load.add(499)
    log.write("poison")
    load.add(500)
    assert wait_for(load.written, database.messages) == ""
    letters = (daemon.state_dir / "dead-letter" / "mysql.jsonl").read_text().splitlines()
    assert len(letters) == 1
    assert '"raw":"poison"' in letters[0].replace(": ", ":")
    assert "clean" in letters[0], "the reason names the constraint"
    assert daemon.metric("shipper_dead_letter_total", sink="mysql") == 1
    assert daemon.term() == 0
    database.execute(f"ALTER TABLE {database.table} DROP CONSTRAINT clean")
    retried = daemon.command("dead-letters", "retry", "--sink", "mysql")
    assert retried.returncode == 0, retried.stderr
    assert difference([*load.written, "poison"], database.messages()) == ""


def _writes(block: bytes) -> bool:
    return any(word in block for word in (b"INSERT", b"LOAD DATA", b"COMMIT"))


@pytest.mark.mariadb
def test_the_answer_is_cut_after_the_request_was_taken(
    make_daemon: MakeDaemon, database: LogsDatabase, tmp_path: Path, docker_log: MakeLog
) -> None:
    log = docker_log(tmp_path / "containers", max_size=40_000, max_file=5)
    with behind_proxy(make_daemon, database, tmp_path / "containers") as (daemon, proxy):
        with Load(log.write) as load:
            for number in range(6):
                before = database.count()
                proxy.cut_when(_writes, answer="after")
                proxy.wait_for_cuts(number + 1, timeout=20)
                assert eventually(lambda: database.count() > before), "it goes on"  # noqa: B023
        check(daemon, load.written, database.messages)


def test_500_idle_files_and_one_that_is_busy(case: Case, docker_log: MakeLog) -> None:
    written = []
    for number in range(500):
        log = docker_log(case.containers, name=f"idle-{number}")
        written.append(f"idle {number}")
        log.write(written[-1])
        log.close()
    case.daemon.start()
    assert wait_for(written, case.arrived, timeout=30) == ""
    before = case.daemon.cpu_seconds()
    time.sleep(3)
    assert case.daemon.cpu_seconds() - before < 0.3, "500 idle files cost more than a tenth of a core"
    log = docker_log(case.containers, name="busy", max_size=40_000, max_file=5)
    with Load(log.write) as load:
        time.sleep(2)
    case.check(written + load.written)
