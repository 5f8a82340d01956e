"""The service under a real systemd: start, reload, watchdog, kill, stop, credentials, Docker's files, MariaDB."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.arrivals import sqlite_rows
from support.daemon import Daemon, eventually
from support.docker_engine import DockerEngine, shell_lines, shell_writer
from support.logs_database import LogsDatabase
from support.machine import Machine

if TYPE_CHECKING:
    from tests.systemd.conftest import Service

pytestmark = [pytest.mark.mariadb, pytest.mark.docker]

SAMPLES = Path(__file__).parents[1] / "samples" / "containers"
FILE = "/var/lib/shipper/out"
#: Bits of capabilities(7).
DAC_READ_SEARCH = 1 << 2

MakeDatabase = Callable[[], LogsDatabase]


def raw_file(name: str = "out") -> dict[str, str]:
    return {"type": "file", "path": f"/var/lib/shipper/{name}", "format": "raw"}


def status(machine: Machine, pid: str) -> dict[str, str]:
    """What /proc says of a process."""
    lines = machine.do("cat", f"/proc/{pid}/status").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_the_unit_has_no_fault_that_systemd_finds(machine: Machine, service: Service) -> None:
    """systemd-analyze ends with 0 for an unknown key: any word of it is a failure."""
    unit = machine.path("/usr/local/lib/systemd/system/shipper.service").read_text()
    wrong = machine.path("/etc/systemd/system/wrong.service")
    wrong.write_text(unit.replace("Restart=", "Restrat="))
    verify = ("systemd-analyze", "verify", "--man=no")
    assert "Restrat" in machine.run(*verify, "wrong.service").stderr
    wrong.unlink()
    for _ in range(2):
        done = machine.run(*verify, "shipper.service")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        service.read_docker()


def test_exposure_is_1_5_or_better(machine: Machine, service: Service) -> None:
    security = ("systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold=15", "shipper.service")
    plain = machine.do(*security)
    service.read_docker()
    docker = machine.do(*security)
    assert "CAP_DAC_READ_SEARCH" not in plain
    assert "exposure level for shipper.service: 1.1" in plain
    assert "exposure level for shipper.service: 1.5" in docker


def test_samples_and_live_lines_of_docker_are_in_mariadb_once_read_by_a_user_of_no_rank(
    machine: Machine, service: Service, engine: DockerEngine, make_database: MakeDatabase, tmp_path: Path
) -> None:
    expected = tmp_path / "containers"
    for sample in SAMPLES.iterdir():
        for root in (expected, engine.containers):
            shutil.copytree(sample, root / sample.name)
        (engine.containers / sample.name).chmod(0o710)
        for path in (engine.containers / sample.name).iterdir():
            path.chmod(0o640)
    engine.containers.chmod(0o710)
    here = Daemon(
        tmp_path / "here",
        {
            "sources": {"docker": {"type": "docker", "path": str(expected)}},
            "sinks": {"db": {"type": "sqlite", "path": str(tmp_path / "here.db")}},
        },
    )
    assert here.once().code == 0
    lines = [row[0] for row in sqlite_rows(tmp_path / "here.db", "message")]
    assert len(lines) > 100
    database = make_database()
    secret = service.credential("logs_db", "logs\n")
    sink = {name: value for name, value in database.sink(password_file=secret).items() if name != "password"}
    service.configure(sources={"docker": {"type": "docker"}}, sinks={"mysql": sink})
    service.start()
    service.wait('"file":"/var/lib/docker/containers","error":"Permission denied"')
    assert database.count() == 0, "without the drop-in"
    service.read_docker()
    machine.do("systemctl", "restart", "shipper")
    live = engine.run(shell_writer(500, prefix="live", per_second=2000), name="systemd-live")
    lines += shell_lines(500, prefix="live")
    try:
        assert eventually(lambda: database.count() >= len(lines), timeout=30), database.count()
        assert sorted(database.messages()) == sorted(lines)
        process = status(machine, service.show("MainPID"))
        assert "0" not in process["Uid"].split()
        assert int(process["CapEff"], 16) == int(process["CapBnd"], 16) == DAC_READ_SEARCH
        assert eventually(lambda: service.show("StatusText") == "sink:mysql ok; source:docker ok")
    finally:
        engine.remove(live)
        for sample in SAMPLES.iterdir():
            shutil.rmtree(engine.containers / sample.name)


def test_start_waits_for_ready_and_the_daemon_has_no_rights(machine: Machine, service: Service) -> None:
    service.log("one")
    service.configure(sinks={"out": raw_file()})
    service.start()
    assert service.show("ActiveState") == "active"
    assert eventually(lambda: service.inside("out") == "one\n")
    process = status(machine, service.show("MainPID"))
    assert "0" not in process["Uid"].split()
    assert [process[name] for name in ("CapEff", "CapBnd", "CapAmb")] == ["0" * 16] * 3
    assert (process["NoNewPrivs"], process["Seccomp"]) == ("1", "2")
    assert '"level":"warn"' not in service.journal, "what the sandbox refuses is nothing that the daemon wants"
    assert '"level":"error"' not in service.journal
    assert machine.do("stat", "-c", "%a", "/var/lib/private/shipper").strip() == "700"


def test_start_does_not_wait_for_a_destination(service: Service) -> None:
    service.configure(sinks={"mysql": {"type": "mysql", "host": "127.0.0.1", "port": 1, "database": "x", "user": "x"}})
    service.start()
    assert service.show("ActiveState") == "active"
    assert eventually(lambda: service.show("StatusText").startswith("sink:mysql retrying: "))


def test_refused_configuration_ends_with_its_line_and_is_not_tried_again(service: Service) -> None:
    service.configure(sinks={"out": raw_file()}, nonsense=1)
    assert service.machine.run("systemctl", "start", "shipper").returncode != 0
    assert "unknown key 'nonsense'" in service.journal
    assert [service.show(name) for name in ("ActiveState", "ExecMainStatus", "NRestarts")] == ["failed", "78", "0"]


def test_reload_to_another_database_splits_the_lines_and_a_mistake_changes_nothing(
    service: Service, make_database: MakeDatabase
) -> None:
    first, second = make_database(), make_database()
    secret = service.credential("logs_db", "logs")
    sinks = {
        name: {key: value for key, value in database.sink(password_file=secret).items() if key != "password"}
        for name, database in (("first", first), ("second", second))
    }
    service.configure(sinks=sinks, active="first")
    service.log("before")
    service.start()
    assert eventually(lambda: first.messages() == ["before"])
    pid = service.show("MainPID")

    service.configure(sinks=sinks, active="nobody")
    assert service.machine.run("systemctl", "reload", "shipper").returncode != 0
    assert "there is no sink 'nobody'" in service.journal
    assert "reload refused" not in service.journal, "the daemon heard nothing of it"
    service.log("between")
    assert eventually(lambda: first.messages() == ["before", "between"])

    service.configure(sinks=sinks, active="second")
    service.machine.do("systemctl", "reload", "shipper")
    service.wait("switched")
    service.log("after")
    assert eventually(lambda: "after" in second.messages())
    assert [text for text in second.messages() if "canary" not in text] == ["after"]
    assert first.messages() == ["before", "between"]
    assert eventually(lambda: service.show("ActiveState") == "active"), "RELOADING=1 was followed by READY=1"
    assert service.show("MainPID") == pid


def test_after_a_kill_it_is_back_and_every_line_is_there_once(service: Service, make_database: MakeDatabase) -> None:
    database = make_database()
    service.configure(sinks={"mysql": database.sink()})
    service.start()
    lines = [f"line {number}" for number in range(2000)]
    service.log(*lines[:1000])
    assert eventually(lambda: database.count() > 0)
    service.machine.do("kill", "-9", service.show("MainPID"))
    service.log(*lines[1000:])
    assert eventually(lambda: database.count() >= len(lines), timeout=30), database.count()
    assert sorted(database.messages()) == sorted(lines)
    assert service.show("NRestarts") == "1"


def test_a_reader_that_stands_still_is_killed_by_the_watchdog_and_a_sink_that_is_down_is_not(
    service: Service, make_database: MakeDatabase
) -> None:
    database = make_database()
    service.drop_in("WatchdogSec=1s", "RestartSec=100ms")
    service.configure(sinks={"mysql": database.sink()}, transforms={"hang": {"type": "hang"}})
    with database.refusing("wrong_password"):
        service.log("one")
        service.start()
        assert eventually(lambda: "sink:mysql parked" in service.show("StatusText"))
        time.sleep(2.5)  # what is shown is that nothing happens in two intervals of the watchdog
        assert service.show("NRestarts") == "0"
    service.machine.do("systemctl", "restart", "shipper")
    assert eventually(lambda: database.messages() == ["one"])
    hang = service.machine.path("/var/log/app/hang")
    hang.touch()
    service.log("two")
    service.wait("Watchdog timeout")
    hang.unlink()
    assert eventually(lambda: database.messages() == ["one", "two"])
    assert int(service.show("NRestarts")) >= 1
    assert "stalls.py" in service.journal, "SIGABRT says where every thread stood"


def test_stop_flushes_asks_for_the_time_it_takes_and_leaves_no_process(service: Service) -> None:
    """The sink takes 3 s for a write; without EXTEND_TIMEOUT_USEC systemd would kill after one."""
    service.drop_in("TimeoutStopSec=1s")
    service.configure(sinks={"slow": {"type": "slow"}})
    service.start()
    cgroup = service.show("ControlGroup")
    service.log("one", "two")
    assert eventually(lambda: service.machine.run("test", "-e", "/var/lib/shipper/begun").returncode == 0, every=0.05)
    begin = time.monotonic()
    service.stop()
    assert 1 < time.monotonic() - begin < 20
    assert service.inside("slow") == "one\ntwo\n"
    assert [service.show(name) for name in ("Result", "ExecMainStatus")] == ["success", "0"]
    found = service.machine.run(
        "cat", f"/sys/fs/cgroup/systemd{cgroup}/cgroup.procs", f"/sys/fs/cgroup{cgroup}/cgroup.procs"
    )
    assert found.stdout == ""
    assert service.machine.run("pgrep", "-f", "bin/shipper").stdout == ""


def test_stop_while_the_database_is_away_ends_within_its_time_and_the_lines_are_kept(
    service: Service, make_database: MakeDatabase
) -> None:
    database = make_database()
    service.configure(sinks={"mysql": database.sink()}, shutdown_timeout="2s")
    lines = [f"line {number}" for number in range(100)]
    with database.refusing("wrong_password"):
        service.log(*lines)
        service.start()
        assert eventually(lambda: "sink:mysql parked" in service.show("StatusText"))
        begin = time.monotonic()
        service.stop()
        assert time.monotonic() - begin < 10
        assert service.show("Result") == "success"
    service.machine.path("/var/log/app/app.log").unlink()
    service.start()
    assert eventually(lambda: database.count() == len(lines)), "from the spill: the file is gone"
    assert sorted(database.messages()) == sorted(lines)
