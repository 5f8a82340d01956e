"""The state directory lost, full or damaged; outages longer than memory; reloads, signals and exit codes."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from shipper.testing.proxy import FaultProxy
from support.arrivals import difference, sqlite_database, sqlite_messages, sqlite_rows, wait_for
from support.daemon import Daemon, eventually
from support.docker_log import DockerLog
from support.load import Load
from support.logs_database import LogsDatabase

MakeDaemon = Callable[..., Daemon]
MakeLog = Callable[..., DockerLog]
SAMPLES = Path(__file__).parents[1] / "samples"


def docker_to(containers: Path, **sinks: dict[str, Any]) -> dict[str, Any]:
    return {
        "sources": {"docker": {"type": "docker", "path": str(containers)}},
        "sinks": sinks,
        "active": list(sinks),
    }


def sqlite_at(path: Path) -> dict[str, Any]:
    return {"type": "sqlite", "path": str(path)}


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the database's write lock: to the sink it is away."""
    with sqlite_database(path) as database:
        database.execute("BEGIN IMMEDIATE")
        yield
        database.execute("ROLLBACK")


# --- the state directory --------------------------------------------------------------------------------------------


def test_state_directory_deleted_reads_docker_lines_again_and_doubles_no_row(
    make_daemon: MakeDaemon, tmp_path: Path, docker_log: MakeLog
) -> None:
    """Also those that meanwhile stand in rotated and compressed files."""
    containers, database = tmp_path / "containers", tmp_path / "logs.db"
    log = docker_log(containers, max_file=5, compress=True)
    load = Load(log.write)
    load.add(300)
    daemon = make_daemon(docker_to(containers, db=sqlite_at(database)))
    daemon.start()
    assert wait_for(load.written, lambda: sqlite_messages(database)) == ""
    assert daemon.term() == 0
    log.rotate()
    load.add(100)
    log.rotate()
    load.add(100)
    shutil.rmtree(daemon.state_dir)
    daemon.start()
    assert wait_for(load.written, lambda: sqlite_messages(database)) == ""
    assert daemon.metric("shipper_lines_read_total") == 500, "without state everything is read again"
    assert daemon.term() == 0
    assert difference(load.written, sqlite_messages(database)) == ""


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(path)], check=False, capture_output=True
    )
    if done.returncode:
        pytest.skip(f"no right to mount a file system: {done.stderr.decode().strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(path: Path) -> None:
    """Write until the file system is full."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(512))
        except OSError as error:
            assert error.errno == errno.ENOSPC  # noqa: PT017 - it ends in no other way


def test_full_state_disk_goes_on_delivering_and_says_so(
    make_daemon: MakeDaemon, tmp_path: Path, docker_log: MakeLog
) -> None:
    """Stated outcome: lines are delivered, positions are not saved, health tells it, the daemon does not end; with
    space again positions are saved and a restart doubles nothing."""
    containers, database = tmp_path / "containers", tmp_path / "logs.db"
    log = docker_log(containers)
    load = Load(log.write)
    load.add(100)

    def told() -> str:
        return str(daemon.health()).lower()

    with small_disk(tmp_path / "small", "1m") as disk:
        config = docker_to(containers, db=sqlite_at(database)) | {"state_dir": str(disk / "state")}
        daemon = make_daemon(config)
        daemon.start()
        assert wait_for(load.written, lambda: sqlite_messages(database)) == ""
        assert eventually((disk / "state" / "state.db").exists)
        time.sleep(1.5)
        filler = disk / "filler"
        fill(filler)
        with Load(log.write, prefix="full", per_second=100) as full:
            assert eventually(lambda: "positions cannot be saved" in told(), timeout=15), told()
            time.sleep(1)
        assert daemon.running
        assert daemon.get("/healthz")[0] == 200, "a restart would not help"
        assert wait_for(load.written + full.written, lambda: sqlite_messages(database)) == ""
        filler.unlink()
        load.add(100)
        written = load.written + full.written
        assert wait_for(written, lambda: sqlite_messages(database)) == ""
        assert eventually(lambda: "cannot be saved" not in told(), timeout=15), told()
        assert daemon.term() == 0
        daemon.start()
        daemon.wait_ready()
        assert daemon.term() == 0
        assert difference(written, sqlite_messages(database)) == ""


def test_disk_full_in_the_middle_of_an_outage_makes_the_reader_wait_and_loses_nothing(
    make_daemon: MakeDaemon, tmp_path: Path, docker_log: MakeLog
) -> None:
    """The spill has no space: files that rotate away are held open until the sink is back."""
    containers, local, away = tmp_path / "containers", tmp_path / "logs.db", tmp_path / "away.db"
    log = docker_log(containers, max_size=100_000, max_file=3)
    written: list[str] = []

    def write(lines: int) -> None:
        for _ in range(lines):
            written.append(f"line {len(written)} {os.urandom(150).hex()}")
            log.write(written[-1])

    with small_disk(tmp_path / "small", "600k") as disk:
        sink = sqlite_at(away) | {"busy_timeout": "0.1s", "buffer": {"max_memory": "64KiB", "max_size": "2MiB"}}
        config = docker_to(containers, db=sqlite_at(local), away=sink) | {"state_dir": str(disk / "state")}
        daemon = make_daemon(config)
        daemon.start()
        write(100)
        assert wait_for(written, lambda: sqlite_messages(away)) == ""
        with locked(away):
            for _ in range(40):
                write(100)
                time.sleep(0.1)
            assert "No space left" in daemon.log
            assert "positions cannot be saved" not in daemon.log, "the spill leaves room for the positions"
            assert daemon.get("/healthz")[0] == 200
        assert log.rotations >= 10
        assert wait_for(written, lambda: sqlite_messages(away)) == ""
        assert wait_for(written, lambda: sqlite_messages(local)) == ""
        assert daemon.metric("shipper_lost_bytes_total") == daemon.metric("shipper_dropped_total") == 0
        assert daemon.term() == 0
        assert difference(written, sqlite_messages(away)) == ""


@pytest.mark.parametrize("damage", ["garbage", "truncated", "middle"])
def test_damaged_state_is_set_aside_and_reported(
    make_daemon: MakeDaemon, tmp_path: Path, damage: str, docker_log: MakeLog
) -> None:
    containers, database = tmp_path / "containers", tmp_path / "logs.db"
    log = docker_log(containers)
    load = Load(log.write)
    load.add(200)
    daemon = make_daemon(docker_to(containers, db=sqlite_at(database)))
    daemon.start()
    assert wait_for(load.written, lambda: sqlite_messages(database)) == ""
    assert daemon.term() == 0
    state = daemon.state_dir / "state.db"
    content = state.read_bytes()
    if damage == "garbage":
        state.write_bytes(os.urandom(len(content)))
    elif damage == "truncated":
        state.write_bytes(content[: len(content) // 2])
    else:
        state.write_bytes(content[:4096] + os.urandom(len(content) - 4096))
    load.add(100)
    daemon.start()
    assert wait_for(load.written, lambda: sqlite_messages(database)) == ""
    daemon.wait_ready()
    assert list(daemon.state_dir.glob("state.db.damaged-*")), "the damaged file is kept"
    assert "set aside" in daemon.log
    assert daemon.term() == 0
    assert difference(load.written, sqlite_messages(database)) == ""


# --- outages longer than memory -------------------------------------------------------------------------------------


@pytest.mark.mariadb
def test_outage_longer_than_memory_spills_drains_in_order_and_delays_no_other_sink(
    make_daemon: MakeDaemon, own_database: LogsDatabase, tmp_path: Path, docker_log: MakeLog
) -> None:
    containers, local = tmp_path / "containers", tmp_path / "logs.db"
    log = docker_log(containers, max_size=300_000, max_file=3)
    away = own_database.sink(buffer={"max_memory": "64KiB"})
    daemon = make_daemon(docker_to(containers, db=sqlite_at(local), mysql=away))
    daemon.start()
    with Load(log.write, per_second=1000, padding=200) as load:
        time.sleep(0.5)
        own_database.server.kill()
        slowest = 0.0
        for _ in range(20):
            time.sleep(0.25)
            there = len(load.written)
            begin = time.monotonic()
            assert eventually(lambda: len(sqlite_rows(local, "1")) >= there, timeout=10, every=0.02)  # noqa: B023
            slowest = max(slowest, time.monotonic() - begin)
        spilled = sum(path.stat().st_size for path in (daemon.state_dir / "spill" / "mysql").iterdir())
        assert spilled > 0, "an outage beyond memory goes to disk"
        assert daemon.metric("shipper_spool_bytes", sink="mysql") > 0
        assert daemon.get("/readyz")[0] == 503
    assert slowest < 2.0, f"the other sink was {slowest:.1f} s behind"
    assert log.rotations >= 3, "files went away that only the spill still has"
    own_database.server.start()
    assert wait_for(load.written, own_database.messages, timeout=30) == ""
    assert difference(load.written, sqlite_messages(local)) == ""
    assert eventually(lambda: daemon.metric("shipper_spool_bytes", sink="mysql") == 0, timeout=10)
    assert daemon.term() == 0


@pytest.mark.mariadb
def test_the_spill_drains_in_the_order_of_the_lines(
    make_daemon: MakeDaemon, own_database: LogsDatabase, tmp_path: Path, docker_log: MakeLog
) -> None:
    """The server numbers rows as they come: an auto-increment column of the test shows the order of arrival."""
    containers = tmp_path / "containers"
    log = docker_log(containers, max_size=300_000, max_file=3)
    load = Load(log.write, padding=200)
    load.add(10)
    daemon = make_daemon(docker_to(containers, mysql=own_database.sink(buffer={"max_memory": "64KiB"})))
    daemon.start()
    assert wait_for(load.written, own_database.messages) == ""
    own_database.execute(
        "CREATE TABLE arrivals (number BIGINT AUTO_INCREMENT PRIMARY KEY, message LONGTEXT)",
        f"CREATE TRIGGER arrived AFTER INSERT ON {own_database.table} FOR EACH ROW"
        " INSERT INTO arrivals (message) VALUES (NEW.message)",
    )
    own_database.server.kill()
    for _ in range(5):
        load.add(700)
        time.sleep(0.4)
    own_database.server.start()
    load.add(50)
    assert wait_for(load.written, own_database.messages, timeout=30) == ""
    arrived = [row[0] for row in own_database.execute("SELECT message FROM arrivals ORDER BY number")]
    assert arrived == load.written[10:]


@pytest.mark.parametrize("policy", ["block", "drop_oldest"])
def test_a_full_spill_does_what_the_user_chose_within_its_limit(
    make_daemon: MakeDaemon, tmp_path: Path, policy: str, docker_log: MakeLog
) -> None:
    """block: the reader waits and nothing is lost. drop_oldest: the newest are kept, each lost line is counted."""
    containers, local, away = tmp_path / "containers", tmp_path / "logs.db", tmp_path / "away.db"
    log = docker_log(containers, max_file=50, max_size=2_000_000)
    load = Load(log.write, padding=400)
    load.add(1)
    limit = 1 << 20
    sink = sqlite_at(away) | {
        "busy_timeout": "0.1s",
        "buffer": {"max_memory": "64KiB", "max_size": limit, "when_full": policy},
    }
    daemon = make_daemon(docker_to(containers, db=sqlite_at(local), away=sink))
    daemon.start()
    assert wait_for(load.written, lambda: sqlite_messages(away)) == ""
    spill = daemon.state_dir / "spill" / "away"
    with locked(away):
        largest = 0
        for _ in range(15):
            # Text that does not compress to nothing, or the limit would never be met.
            for _ in range(800):
                line = f"line {len(load.written)} {os.urandom(200).hex()}"
                log.write(line)
                load.written.append(line)
            time.sleep(0.2)
            largest = max(largest, sum(path.stat().st_size for path in spill.iterdir() if path.exists()))
        time.sleep(1)
        there = len(sqlite_messages(local))
        assert daemon.running
    assert limit // 2 < largest <= limit * 1.2, f"{largest} bytes of {limit}"
    if policy == "block":
        assert there < len(load.written), "a full spill with block holds the reader"
        assert wait_for(load.written, lambda: sqlite_messages(away), timeout=30) == ""
        assert wait_for(load.written, lambda: sqlite_messages(local)) == ""
        assert daemon.metric("shipper_dropped_total") == 0
    else:
        assert there == len(load.written), "with drop_oldest the other sink never waits"
        assert eventually(lambda: load.written[-1] in sqlite_messages(away), timeout=30)
        dropped = daemon.metric("shipper_dropped_total")
        assert dropped > 0
        arrived = len(sqlite_messages(away))
        assert arrived + dropped == len(load.written), f"{arrived} arrived, {dropped:.0f} dropped"
    assert daemon.term() == 0
    assert max(Counter(sqlite_messages(away)).values()) == 1


# --- reloads --------------------------------------------------------------------------------------------------------


def test_reload_with_a_bad_config_changes_nothing_and_says_why(
    make_daemon: MakeDaemon, tmp_path: Path, docker_log: MakeLog
) -> None:
    containers, database = tmp_path / "containers", tmp_path / "logs.db"
    log = docker_log(containers)
    config = docker_to(containers, db=sqlite_at(database))
    daemon = make_daemon(config)
    daemon.start()
    with Load(log.write) as load:
        time.sleep(0.3)
        mark = daemon.mark()
        daemon.reload(config | {"active": "loki"})
        daemon.wait_log("reload refused", since=mark)
        assert "there is no sink 'loki'" in daemon.log
        assert daemon.metric("shipper_config_valid") == 0
        time.sleep(0.5)
        mark = daemon.mark()
        daemon.reload(config)
        daemon.wait_log('"started"', since=mark)
        assert eventually(lambda: daemon.metric("shipper_config_valid") == 1)
        time.sleep(0.3)
    assert wait_for(load.written, lambda: sqlite_messages(database)) == ""
    assert daemon.term() == 0


# --- signals and exit codes -----------------------------------------------------------------------------------------


def test_sigterm_drains_what_was_read(make_daemon: MakeDaemon, tmp_path: Path, docker_log: MakeLog) -> None:
    containers, database = tmp_path / "containers", tmp_path / "logs.db"
    log = docker_log(containers)
    load = Load(log.write)
    load.add(20_000)
    daemon = make_daemon(docker_to(containers, db=sqlite_at(database)))
    daemon.start()
    eventually(lambda: sqlite_messages(database), every=0.01)
    assert daemon.term(timeout=15) == 0
    delivered = len(sqlite_messages(database))
    assert daemon.once().code == 0
    assert difference(load.written, sqlite_messages(database)) == ""
    assert delivered > 0


def test_sigterm_does_not_wait_for_a_sink_that_is_away(
    make_daemon: MakeDaemon, tmp_path: Path, docker_log: MakeLog
) -> None:
    """What is left is delivered by the next life."""
    containers, database = tmp_path / "containers", tmp_path / "logs.db"
    load = Load(docker_log(containers).write)
    load.add(10)
    daemon = make_daemon(docker_to(containers, db=sqlite_at(database) | {"busy_timeout": "0.1s"}))
    daemon.start()
    assert wait_for(load.written, lambda: sqlite_messages(database)) == ""
    with locked(database):
        load.add(1000)
        assert eventually(lambda: daemon.get("/readyz")[0] == 503)
        begin = time.monotonic()
        assert daemon.term(timeout=10) == 0
        assert time.monotonic() - begin < 3
    daemon.start()
    assert wait_for(load.written, lambda: sqlite_messages(database)) == ""
    assert daemon.term() == 0
    assert difference(load.written, sqlite_messages(database)) == ""


@pytest.mark.mariadb
def test_sigterm_keeps_its_deadline_and_a_second_one_stops_at_once(
    make_daemon: MakeDaemon, database: LogsDatabase, tmp_path: Path, docker_log: MakeLog
) -> None:
    """The sink is so slow that draining cannot end in time; what is left is delivered by the next life."""
    containers = tmp_path / "containers"
    load = Load(docker_log(containers).write, padding=200)
    load.add(10)
    with FaultProxy(database.address) as proxy:
        config = docker_to(containers, mysql=database.sink(port=proxy.port, ssl_mode="disabled"))
        daemon = make_daemon(config | {"shutdown_timeout": "2s"})
        daemon.start()
        assert wait_for(load.written, database.messages) == ""
        proxy.switch("latency", seconds=1.0)
        load.add(5000)
        assert eventually(lambda: daemon.metric("shipper_buffer_bytes", sink="mysql") > 0)
        begin = time.monotonic()
        assert daemon.term(timeout=10) == 0
        assert 1.5 < time.monotonic() - begin < 4
        proxy.switch("pass")
        daemon.configure(config | {"shutdown_timeout": "60s"})
        daemon.start()
        assert wait_for(load.written, database.messages) == ""
        proxy.switch("latency", seconds=1.0)
        load.add(5000)
        assert eventually(lambda: daemon.metric("shipper_buffer_bytes", sink="mysql") > 0)
        daemon.signal(signal.SIGTERM)
        time.sleep(1)
        assert daemon.running, "the first SIGTERM leaves time to drain"
        begin = time.monotonic()
        assert daemon.term(timeout=10) == 0
        assert time.monotonic() - begin < 2
        proxy.switch("pass")
        daemon.start()
        assert wait_for(load.written, database.messages) == ""
        assert daemon.term() == 0
        assert difference(load.written, database.messages()) == ""


def test_once_ends_with_0_when_all_is_delivered_and_3_when_something_is_left(
    make_daemon: MakeDaemon, tmp_path: Path, docker_log: MakeLog
) -> None:
    containers, database = tmp_path / "containers", tmp_path / "logs.db"
    log = docker_log(containers)
    load = Load(log.write)
    load.add(1000)
    daemon = make_daemon(docker_to(containers, db=sqlite_at(database) | {"busy_timeout": "0.1s"}))
    assert daemon.once().code == 0
    assert difference(load.written, sqlite_messages(database)) == ""
    load.add(100)
    with locked(database):
        assert daemon.once(timeout=60).code == 3
    assert daemon.once().code == 0
    assert difference(load.written, sqlite_messages(database)) == ""


# --- samples --------------------------------------------------------------------------------------------------------


@pytest.mark.mariadb
def test_the_samples_are_the_same_in_sqlite_and_mariadb(
    make_daemon: MakeDaemon, database: LogsDatabase, tmp_path: Path
) -> None:
    columns = (
        "id, level, message, details, user_id, action, ip_address, user_agent, created_at,"
        " service, container, stream, host, source"
    )
    local = tmp_path / "logs.db"
    sources = {
        "docker": {"type": "docker", "path": str(SAMPLES / "containers")},
        "fallback": {"type": "file", "include": [str(SAMPLES / "logs" / "fallback.log")], "parser": "fallback"},
    }
    sinks = {"db": sqlite_at(local), "mysql": database.sink()}
    daemon = make_daemon({"sources": sources, "sinks": sinks, "active": ["db", "mysql"]})
    assert daemon.once().code == 0
    ours = sorted(sqlite_rows(local, columns))
    theirs = sorted(tuple(None if cell is None else str(cell) for cell in row) for row in database.rows(columns))
    assert len(ours) > 50

    def comparable(rows: list[tuple[str, ...]]) -> list[tuple[str | datetime, ...]]:
        # DATETIME(6) against text: the same instant in the column's own form.
        return [(*row[:8], datetime.fromisoformat(row[8].rstrip("Z")), *row[9:]) for row in rows]

    assert comparable(ours) == comparable(theirs)
