"""``shipper doctor``: each planted fault is found by its check, with its verdict and the exact words of its fix.

A system is made in temporary directories: logs, containers, a state, and a root in which /proc and /etc are looked up.
Whose permissions count is computed from uid, gids and mode, so that the tests run as root and as anybody else.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import msgspec
import pytest
import yaml

from shipper.commands.doctor import examine
from shipper.config.loader import fingerprint, load
from shipper.config.types import Config
from shipper.delivery.deadletter import DeadLetters
from shipper.doctor import configuration
from shipper.doctor.docker import containers
from shipper.doctor.docker import results as docker_results
from shipper.doctor.files import group_name, obstacle
from shipper.doctor.host import ClockState, Host, Identity, files_allowed, is_shipper, kernel_clock
from shipper.doctor.result import CHECKS, CheckResult
from shipper.errors import ConfigError, PermanentError
from shipper.native import CHOSEN
from shipper.record import Batch, Resource
from shipper.sources.docker import DockerConfig
from shipper.telemetry.status import ConfigStatus, SourceStatus, Status
from sinks.sqlite import SqliteConfig, SqliteSink
from support.daemon import free_port

ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="only root may give files away")
OTHER = Identity(10_001, (10_001, 4))
CAPABILITY = (
    "systemd: AmbientCapabilities=CAP_DAC_READ_SEARCH and CapabilityBoundingSet=CAP_DAC_READ_SEARCH;"
    ' compose: user: "0:0", cap_drop: [ALL], cap_add: [DAC_READ_SEARCH]'
)
MOUNT = "30 1 8:1 {root} {point} rw,relatime - {kind} /dev/sda1 rw\n"


class System:
    """A healthy system that a test may spoil. Everything is under ``top``."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.logs, self.state, self.root = top / "logs", top / "state", top / "root"
        for directory in (self.logs, top / "containers", top / "data", self.root / "etc/logrotate.d"):
            directory.mkdir(parents=True)
        self.state.mkdir(mode=0o700)
        self.log = self.logs / "app.log"
        self.log.write_text("a line\n")
        self.write("proc/sys/fs/inotify/max_user_watches", "65536\n")
        self.write("proc/sys/fs/inotify/max_user_instances", "128\n")
        self.write("proc/self/mountinfo", MOUNT.format(root="/", point="/", kind="ext4"))
        self.path = top / "shipper.yaml"
        self.config: dict[str, Any] = {
            "sources": {
                "app": {"type": "file", "include": [str(self.logs / "*.log")]},
                "docker": {"type": "docker", "path": str(top / "containers")},
            },
            "sinks": {"db": {"type": "sqlite", "path": str(top / "data" / "logs.db"), "buffer": {"max_size": "1MiB"}}},
            "state_dir": str(self.state),
            "http": {"listen": f"127.0.0.1:{free_port()}"},
        }
        self.host = Host(
            identity=Identity(os.geteuid(), (os.getegid(),)),
            root=self.root,
            clock=ClockState(synchronised=True, error=0.002),
            files_allowed=65_536,
            why_pure="",
        )
        self.container("api")

    def write(self, path: str, text: str) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def container(self, name: str, driver: str = "json-file", **options: str) -> Path:
        """Make a container's directory; its options replace the healthy ones."""
        identifier = name.encode().hex().ljust(64, "0")
        directory = self.top / "containers" / identifier
        directory.mkdir(exist_ok=True)
        (directory / "config.v2.json").write_text(
            json.dumps(
                {"Name": f"/proj-{name}-1", "Config": {"Image": "x", "Labels": {"com.docker.compose.service": name}}}
            )
        )
        kept = options or {"max-size": "10m", "max-file": "3"}
        told = {"LogConfig": {"Type": driver, "Config": {k.replace("_", "-"): v for k, v in kept.items()}}}
        (directory / "hostconfig.json").write_text(json.dumps(told))
        log = directory / f"{identifier}-json.log"
        log.touch()
        return log

    def status(self, **more: Any) -> Status:
        """Let a daemon answer, healthy but for what is given."""
        self.save()
        digest = fingerprint(self.path)
        made = {
            "version": "1", "pid": 77, "uptime": 5.0, "state_dir": str(self.state),
            "config": ConfigStatus(path=str(self.path), hash=digest, loaded_seconds=60),
        }  # fmt: skip
        self.host.status = Status(**{**made, **more})
        return self.host.status

    def save(self) -> None:
        self.path.write_text(yaml.safe_dump(self.config, sort_keys=False))

    def results(self, *, online: bool = False, canary: bool = False) -> list[CheckResult]:
        self.save()
        try:
            config = load(self.path, {})
        except ConfigError as error:
            return list(configuration.refused(error))
        return list(examine(config, self.host, online=online, canary=canary))


@pytest.fixture
def system() -> Iterator[System]:
    """Not pytest's own directory, which nobody else may enter."""
    top = Path(tempfile.mkdtemp(prefix="shipper-doctor-"))
    top.chmod(0o755)
    yield System(top)
    shutil.rmtree(top)


def refuse(state: Path, sink: str) -> None:
    batch = Batch(
        times=[1], stamps=[1], hashes=[1], raws=["bad"], resources=[Resource("app", {})], offsets=[0],
        severities=[9], messages=["bad"], attributes=[{}],
    )  # fmt: skip
    DeadLetters(state / "dead-letter" / f"{sink}.jsonl").append(batch, [PermanentError("no")], sink)


def spill(state: Path, sink: str, size: int) -> None:
    directory = state / "spill" / sink
    directory.mkdir(parents=True)
    (directory / "0000000000000001.seg").write_bytes(bytes(size))


# The faults: each plants one thing, and says what its row must hold.


def unknown_key(s: System) -> None:
    s.config["sinks"]["db"]["pth"] = "x"


def open_config(s: System) -> None:
    s.config["sinks"]["mysql"] = {
        "type": "mysql", "host": "h", "database": "d", "user": "u", "password": "hunter2",
    }  # fmt: skip
    s.config["active"] = "db"
    s.path.touch()
    s.path.chmod(0o644)


def open_config_with_a_secret_that_no_name_tells(s: System) -> None:
    s.config["sinks"]["otlp"] = {"type": "otlp", "headers": {"X-Scope": "hunter2"}}
    s.config["active"] = "db"
    s.path.touch()
    s.path.chmod(0o644)


def open_salt(s: System) -> None:
    salt = s.top / "salt"
    salt.write_text("hunter2")
    salt.chmod(0o644)
    s.config["transforms"] = {"m": {"type": "redact", "rules": ["email"], "mode": "hash", "salt_file": str(salt)}}


def open_secret(s: System) -> None:
    secret = s.top / "secret"
    secret.write_text("hunter2")
    secret.chmod(0o644)
    s.config["sinks"]["mysql"] = {
        "type": "mysql", "host": "h", "database": "d", "user": "u", "password_file": str(secret),
    }  # fmt: skip
    s.config["active"] = "db"


def failed_daemon(s: System) -> None:
    s.status(faults=["reader failed: it ended"])


def silent_daemon(s: System) -> None:
    s.host.holder, s.host.silence = 41, "connection refused"


def stopped_daemon(s: System) -> None:
    (s.state / "state.db").touch()
    s.host.silence = "connection refused"


def refused_reload(s: System) -> None:
    s.status(config=ConfigStatus(path=str(s.path), hash="", loaded_seconds=1, valid=False, detail="unknown key"))


def changed_file(s: System) -> None:
    s.status()
    s.config["shutdown_timeout"] = "31s"


def other_file(s: System) -> None:
    s.status(config=ConfigStatus(path="/etc/other.yaml", hash="", loaded_seconds=1))


def no_docker(s: System) -> None:
    shutil.rmtree(s.top / "containers")


def no_directory(s: System) -> None:
    s.config["sources"]["app"]["include"] = [f"{s.top}/nowhere/*.log"]


def foreign_group(s: System) -> None:
    os.chown(s.log, 0, 4242)
    s.log.chmod(0o640)
    shutil.rmtree(s.top / "containers")
    (s.top / "containers").mkdir()
    s.state.chmod(0o777)
    s.host.identity = OTHER


def closed_directory(s: System) -> None:
    foreign_group(s)
    s.log.chmod(0o644)
    os.chown(s.logs, 0, 4242)
    s.logs.chmod(0o750)


def closed_mode(s: System) -> None:
    foreign_group(s)
    s.log.chmod(0o600)


def own_closed(s: System) -> None:
    s.log.chmod(0o200)


def closed_container(s: System) -> None:
    (s.container("api").parent).chmod(0o700)
    s.state.chmod(0o777)
    s.host.identity = OTHER


def sandbox(s: System) -> None:
    s.status(sources={"app": SourceStatus(state="ok", files_unreadable=2)})


def nameless(s: System) -> None:
    (s.container("api").parent / "config.v2.json").unlink()


def remote_logs(s: System) -> None:
    s.write(
        "proc/self/mountinfo",
        MOUNT.format(root="/", point="/", kind="ext4") + MOUNT.format(root="/", point=s.logs, kind="nfs4"),
    )


def copytruncate(s: System) -> None:
    s.write("etc/logrotate.d/app", f"# comment\n{s.logs}/*.log {{\n  daily\n  copytruncate\n}}\n")


def read_twice(s: System) -> None:
    s.config["sources"]["again"] = {"type": "file", "include": [str(s.log)]}


def own_output(s: System) -> None:
    s.config["sinks"]["out"] = {"type": "file", "path": f"{s.logs}/out.log"}
    s.config["active"] = ["db", "out"]


def foreign_link(s: System) -> None:
    secret = s.top / "secret.log"
    secret.write_text("root only\n")
    (s.logs / "link.log").symlink_to(secret)
    os.chown(s.logs / "link.log", 4242, 4242, follow_symlinks=False)
    s.config["sources"]["app"]["include"].append(f"{s.logs}/link.log")


def own_state(s: System) -> None:
    s.config["sources"]["app"]["include"].append(f"{s.top}/state/**/*.jsonl")
    (s.state / "other.jsonl").touch()


def own_log(s: System) -> None:
    (s.logs / "shipper.log").touch()
    fds = s.root / "proc/77/fd"
    fds.mkdir(parents=True)
    (fds / "2").symlink_to(s.logs / "shipper.log")
    s.status()


def many_watches(s: System) -> None:
    s.write("proc/sys/fs/inotify/max_user_watches", "1\n")


def many_instances(s: System) -> None:
    s.write("proc/sys/fs/inotify/max_user_instances", "1\n")
    fds = s.root / "proc/123/fd"
    fds.mkdir(parents=True)
    (fds / "5").symlink_to("anon_inode:inotify")


def few_descriptors(s: System) -> None:
    s.host.files_allowed = 65


def closed_state(s: System) -> None:
    s.state.chmod(0o755)
    s.host.identity = OTHER
    s.log.chmod(0o644)


def no_state(s: System) -> None:
    s.config["state_dir"] = f"{s.top}/sub/state"
    s.host.identity = OTHER


def foreign_state(s: System) -> None:
    s.state.chmod(0o777)
    (s.state / "state.db").touch(mode=0o644)
    s.host.identity = OTHER


def state_in_memory(s: System) -> None:
    s.write(
        "proc/self/mountinfo",
        MOUNT.format(root="/", point="/", kind="ext4") + MOUNT.format(root="/", point=s.top, kind="tmpfs"),
    )


def state_in_layer(s: System) -> None:
    s.write("proc/self/mountinfo", MOUNT.format(root="/", point="/", kind="overlay"))
    (s.root / ".dockerenv").touch()


def greedy_spill(s: System) -> None:
    s.config["sinks"]["db"]["buffer"] = {"max_size": "900000GiB"}


def remote_state(s: System) -> None:
    s.write(
        "proc/self/mountinfo",
        MOUNT.format(root="/", point="/", kind="ext4") + MOUNT.format(root="/", point=s.state, kind="nfs4"),
    )


def damaged_state(s: System) -> None:
    (s.state / "state.db.damaged-1").touch()


def left_spill(s: System) -> None:
    spill(s.state, "old", 2048)


def full_spill(s: System) -> None:
    spill(s.state, "db", 900 << 10)


def dead_letters(s: System) -> None:
    refuse(s.state, "db")


def free_running(s: System) -> None:
    s.host.clock = ClockState(synchronised=False, error=16)


def future(s: System) -> None:
    os.utime(s.log, (time.time(), time.time() + 7200))


def not_compiled(s: System) -> None:
    s.host.why_pure = "the compiled module is not there"


class Fault(NamedTuple):
    """A planted fault: what its row must hold; ``{top}`` stands for the directory of the system."""

    identifier: str
    verdict: str
    plant: Callable[[System], object]
    evidence: str
    fix: str


FORCE = "then make the container anew (docker compose up -d --force-recreate api)"
GID = 'add gid 4242: group_add: ["4242"]   (systemd: SupplementaryGroups=4242)'
FAULTS: list[Any] = [
    Fault("D01", "fail", unknown_key, "unknown key 'pth'; did you mean 'path'?", "correct it, then: shipper check"),
    Fault("D02", "warn", open_config, "everyone on this machine can read the secrets in {top}/shipper.yaml", "chmod o= {top}/shipper.yaml"),
    Fault("D02", "warn", open_config_with_a_secret_that_no_name_tells, "everyone on this machine can read the secrets in {top}/shipper.yaml", "chmod o= {top}/shipper.yaml"),
    Fault("D02", "warn", open_salt, "{top}/salt", "chmod o= {top}/salt"),
    Fault("D02", "warn", open_secret, "{top}/secret", "chmod o= {top}/secret"),
    Fault("D03", "fail", failed_daemon, "reader failed: it ended", "restart the daemon, and report what its log says"),
    Fault("D03", "warn", silent_daemon, "process 41 holds the state directory but does not answer: connection refused", "set http.enabled to true and http.listen to a free address, then restart it"),
    Fault("D03", "warn", stopped_daemon, "none runs, though one did: connection refused", "start it: shipper run --config {top}/shipper.yaml   (systemctl start shipper, or docker compose up -d shipper)"),
    Fault("D04", "fail", refused_reload, "unknown key", "correct the file, look with shipper check, then reload: kill -HUP 77"),
    Fault("D04", "warn", changed_file, "has changed since it was loaded 1m ago", "reload: kill -HUP 77"),
    Fault("D04", "warn", other_file, "it runs /etc/other.yaml, not {top}/shipper.yaml", "name its file: --config /etc/other.yaml"),
    Fault("D05", "warn", not_compiled, "pure Python, which does the same and is slower: the compiled module is not there", "install a C compiler and Python's headers (Debian: gcc python3-dev), then install shipper anew (pip install -v --force-reinstall --no-deps . tells what fails); or set SHIPPER_PURE=1, and it stays as it is"),
    Fault("D10", "fail", no_docker, "docker: {top}/containers is not there", "set sources.docker.path to the containers directory of Docker's data root (docker info -f '{{{{.DockerRootDir}}}}'), or in a container mount it: -v {top}/containers:{top}/containers:ro"),
    Fault("D10", "warn", no_directory, "app: nothing is named by {top}/nowhere/*.log", "correct sources.app.include, or mount that directory into the container"),
    pytest.param(Fault("D11", "fail", foreign_group, "{top}/logs/app.log is -rw-r----- root:4242; shipper is uid 10001 groups 10001,4", GID), marks=needs_root),
    pytest.param(Fault("D11", "fail", closed_directory, "{top}/logs is drwxr-x--- root:4242", GID), marks=needs_root),
    pytest.param(Fault("D11", "fail", closed_mode, "-rw------- root:4242", "chmod g+r {top}/logs/app.log, then " + GID), marks=needs_root),
    Fault("D11", "fail", own_closed, "--w------- ", "chmod u+r {top}/logs/app.log"),
    Fault("D11", "fail", closed_container, "drwx------ ", CAPABILITY),
    Fault("D11", "fail", sandbox, "the daemon cannot read 2 files of app", "look for 'cannot be read' in its log, then at systemd's ProtectHome= and ReadOnlyPaths=, SELinux, AppArmor"),
    Fault("D12", "warn", nameless, "config.v2.json: cannot be read, so containers have no name or image", CAPABILITY),
    Fault("D13", "warn", remote_logs, "{top}/logs is on nfs4", "run shipper on the machine that writes the logs"),
    Fault("D14", "warn", copytruncate, "/etc/logrotate.d/app says copytruncate: lines written during the copy are lost", "in /etc/logrotate.d/app say create instead, and let the application reopen its log"),
    Fault("D15", "fail", read_twice, "{top}/logs/app.log is read by the sources app and again: every line is delivered twice", 'sources.again.exclude: ["{top}/logs/app.log"]'),
    Fault("D16", "fail", own_output, "source app reads {top}/logs/out.log, which is written by shipper (sink out): a loop without end", 'sources.app.exclude: ["{top}/logs/out.log"]'),
    Fault("D16", "fail", own_state, "the state directory", 'sources.app.exclude: ["{top}/state/other.jsonl"]'),
    pytest.param(Fault("D17", "warn", foreign_link, "{top}/logs/link.log: symbolic link is not followed: it is user id 4242's, what it points to is user id 0's", "if you trust it: chown -h 0 '{top}/logs/link.log', or set follow_symlinks: always for this source"), marks=needs_root),
    Fault("D16", "fail", own_log, "the daemon's own log", 'sources.app.exclude: ["{top}/logs/shipper.log"]'),
    Fault("D20", "warn", lambda s: s.container("api", "local"), "proj-api-1 logs with local: nothing of it is read", 'logging: {{driver: json-file, options: {{max-size: 10m, max-file: "3"}}}}, ' + FORCE),
    Fault("D20", "warn", lambda s: (s.container("api").parent / "hostconfig.json").write_text("{"), "hostconfig.json: cannot be read, so log driver and rotation are not known", "run shipper doctor as root"),
    Fault("D21", "warn", lambda s: s.container("api", max_file="3"), "proj-api-1: the log grows without limit until the disk is full", 'options: {{max-size: 10m, max-file: "3"}}, ' + FORCE),
    Fault("D22", "warn", lambda s: s.container("api", max_size="10m", max_file="1"), "proj-api-1: max-file is 1, so each rotation deletes what was not read yet", 'options: {{max-file: "3"}}, ' + FORCE),
    Fault("D22", "warn", lambda s: s.container("api", max_size="10m"), "proj-api-1: max-file is 1", 'options: {{max-file: "3"}}, ' + FORCE),
    Fault("D23", "warn", lambda s: s.container("api", max_size="10m", max_file="3", mode="non-blocking"), "proj-api-1: mode is non-blocking, so Docker drops lines when its buffer is full", "options: {{mode: blocking}}, " + FORCE),
    Fault("D30", "warn", many_watches, "max_user_watches 1, need ", "sysctl -w fs.inotify.max_user_watches=65536, and write that to /etc/sysctl.d/shipper.conf (on the host, not in a container)"),
    Fault("D31", "warn", many_instances, "max_user_instances 1, and uid ", "sysctl -w fs.inotify.max_user_instances=512, and write that to /etc/sysctl.d/shipper.conf (on the host, not in a container)"),
    Fault("D32", "fail", few_descriptors, "65 open files are allowed, 66 are needed for 2 logs", "LimitNOFILE=65536 (systemd), ulimits: {{nofile: 65536}} (compose)"),
    Fault("D40", "fail", closed_state, "{top}/state is drwxr-xr-x ", "chown -R 10001:10001 {top}/state"),
    Fault("D40", "fail", no_state, "{top}/sub/state is not there, and uid 10001 groups 10001,4 may not make it in {top}", "install -d -m 0700 -o 10001 -g 10001 {top}/sub/state   (systemd: StateDirectory=shipper)"),
    Fault("D40", "fail", foreign_state, "{top}/state/state.db is -rw-r--r-- ", "chown -R 10001:10001 {top}/state"),
    Fault("D41", "warn", state_in_memory, "is in memory (tmpfs at {top}): gone when the machine restarts", "set state_dir to a directory on a disk, such as /var/lib/shipper"),
    Fault("D41", "fail", state_in_layer, "is in the container's own layer: gone when the container is removed", "mount a named volume there, such as -v shipper-state:{top}/state"),
    Fault("D42", "warn", greedy_spill, "but the spill may take 878.9 TiB", "lower sinks.db.buffer.max_size to "),
    Fault("D43", "fail", remote_state, "{top}/state is on nfs4, where SQLite's locks fail", "set state_dir to a local disk"),
    Fault("D44", "warn", damaged_state, "{top}/state/state.db.damaged-1: positions were damaged and set aside", "look at the disk (dmesg, smartctl), then: rm {top}/state/state.db.damaged-1"),
    Fault("D45", "warn", left_spill, "at most 0 records on disk for old, which is not in the file", "put sinks.old back to deliver them, or: shipper spill drop old"),
    Fault("D46", "warn", full_spill, "900 KiB of 1 MiB wait for db", "bring it back (shipper check --online --sink db), or raise sinks.db.buffer.max_size"),
    Fault("D47", "warn", dead_letters, "1 record refused by db for good and kept", "shipper dead-letters ls --sink db; mend the cause, then: shipper dead-letters retry --sink db"),
    Fault("D60", "warn", free_running, "nothing keeps this machine's clock right", "enable chrony or systemd-timesyncd on the host"),
    Fault("D61", "warn", future, "{top}/logs/app.log: written up to ", "enable chrony or systemd-timesyncd on the host"),
]  # fmt: skip


def test_a_healthy_system_is_fine_everywhere(system: System) -> None:
    # Without its table no test record is written, for looking makes nothing.
    with closing(SqliteSink(SqliteConfig(type="sqlite", path=str(system.top / "data" / "logs.db")))) as sink:
        sink.prepare()
    system.status()
    results = system.results(online=True, canary=True)
    assert [result for result in results if result.verdict != "ok"] == []
    assert {result.id for result in results} >= set(CHECKS) - {"D70", "D71", "D72", "D74", "D76", "D79"}
    assert all(result.evidence and not result.fix for result in results)


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_found_with_its_fix(system: System, fault: Fault) -> None:
    fault.plant(system)
    found = [result for result in system.results() if result.verdict != "ok"]
    (result,) = [result for result in found if result.id == fault.identifier]
    assert result.verdict == fault.verdict
    assert fault.evidence.format(top=system.top) in result.evidence
    expected = fault.fix.format(top=system.top)
    # How much disk is free is not known here; everything else is word for word.
    assert result.fix.startswith(expected) if result.id == "D42" else result.fix == expected
    # One cause, one row, but for what really hurts twice.
    follows = {"D40": {"D03"}, "D11": {"D12"}, "D41": {"D43"}, "D43": {"D13"}}
    assert {other.id for other in found} - {result.id} <= follows.get(result.id, set())


def test_whoever_chose_the_pure_form_needs_no_advice(system: System) -> None:
    system.host.why_pure = CHOSEN
    (result,) = [result for result in system.results() if result.id == "D05"]
    assert (result.verdict, result.evidence) == ("ok", "pure Python: SHIPPER_PURE is set")


def test_every_check_of_the_machine_has_a_planted_fault() -> None:
    planted = {(fault if isinstance(fault, Fault) else fault.values[0]).identifier for fault in FAULTS}
    assert planted >= {identifier for identifier in CHECKS if identifier < "D70"}
    assert len(FAULTS) >= 15


@pytest.mark.parametrize(
    ("free", "inodes", "evidence"),
    [(1, 10_000, "1 MiB are free at"), (10_000, 5, "5 inodes are free at")],
)
def test_a_full_disk(system: System, monkeypatch: pytest.MonkeyPatch, free: int, inodes: int, evidence: str) -> None:
    told = SimpleNamespace(f_bavail=free, f_frsize=1 << 20, f_files=10_000, f_favail=inodes, f_flag=0)
    monkeypatch.setattr(os, "statvfs", lambda _: told)
    (result,) = [result for result in system.results() if result.id == "D42"]
    assert result.verdict == "fail"
    assert evidence in result.evidence
    assert result.fix.endswith("or move state_dir")


def test_a_read_only_state(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    told = SimpleNamespace(f_bavail=10_000, f_frsize=1 << 20, f_files=0, f_favail=0, f_flag=os.ST_RDONLY)
    monkeypatch.setattr(os, "statvfs", lambda _: told)
    (result,) = [result for result in system.results() if result.id == "D40"]
    assert result.fix == (
        f"mount a named volume there, such as -v shipper-state:{system.state}   (systemd: StateDirectory=shipper)"
    )


def test_container_that_is_not_asked_for_is_not_judged(system: System) -> None:
    system.container("batch", "local")
    system.config["sources"]["docker"]["exclude"] = {"names": ["*batch*"]}
    assert [result for result in system.results() if result.verdict != "ok"] == []


def test_sinks_that_are_away_or_closed(system: System) -> None:
    (system.top / "plain").write_text("a file where a directory should be")
    system.config["sinks"] = {
        "db": {"type": "sqlite", "path": f"{system.top}/plain/logs.db"},
        "mysql": {
            "type": "mysql", "host": "127.0.0.1", "port": free_port(), "database": "d", "user": "u", "password": "p",
        },
    }  # fmt: skip
    system.config["active"] = ["db", "mysql"]
    system.path.touch(mode=0o600)
    results = {result.id: result for result in system.results(online=True, canary=True) if result.verdict != "ok"}
    assert results["D73"].what == "db directory"
    assert results["D73"].fix.startswith("check that the directory exists")
    assert (results["D70"].what, results["D70"].verdict) == ("mysql reachable", "fail")
    assert results["D70"].fix == "check host, port, the network, and that the server runs"


def test_no_canary_makes_a_file_that_the_daemon_could_not_write(system: System) -> None:
    system.results(online=True, canary=True)
    assert not (system.top / "data" / "logs.db").exists()


@needs_root
@pytest.mark.parametrize(
    ("directory", "mode", "owner"),
    list(product((0o700, 0o710, 0o750, 0o705), (0o600, 0o640, 0o604), ((0, 0), (0, 4), (10_001, 0)))),
)
def test_computed_permission_is_what_the_kernel_says(
    system: System, directory: int, mode: int, owner: tuple[int, int]
) -> None:
    """`cat` as that user is the judge."""
    os.chown(system.logs, *owner)
    system.logs.chmod(directory)
    os.chown(system.log, *owner)
    system.log.chmod(mode)
    both = f"ls {system.logs} && cat {system.log}"
    tried = subprocess.run(
        ["sh", "-c", both], user=OTHER.uid, group=OTHER.gids[0], extra_groups=[4], capture_output=True, check=False
    )
    stopped = obstacle(system.log, OTHER, 4)
    assert (stopped is None) == (tried.returncode == 0), (stopped, tried.stderr)


def test_capabilities_pass_by_permissions() -> None:
    closed = os.stat_result((stat.S_IFREG | 0o600, 0, 0, 1, 0, 0, 0, 0, 0, 0))
    folder = os.stat_result((stat.S_IFDIR | 0o700, 0, 0, 1, 0, 0, 0, 0, 0, 0))
    plain, reader = Identity(5, (5,)), Identity(5, (5,), reads_all=True)
    writer = Identity(5, (5,), reads_all=True, writes_all=True)
    assert [who.may(closed, 4) for who in (plain, reader, writer)] == [False, True, True]
    assert [who.may(closed, 2) for who in (plain, reader, writer)] == [False, False, True]
    assert [who.may(folder, 1) for who in (plain, reader, writer)] == [False, True, True]


def test_identity_of_a_process(tmp_path: Path) -> None:
    (tmp_path / "proc/9").mkdir(parents=True)
    (tmp_path / "proc/9/status").write_text(
        "Name:\tshipper\nUid:\t5\t10001\t5\t5\nGid:\t6\t10002\t6\t6\nGroups:\t4 10002 \nCapEff:\t0000000000000004\n"
    )
    (tmp_path / "proc/9/limits").write_text(
        "Limit  Soft  Hard\nMax open files            1024                 4096                 files\n"
    )
    found = Identity.of_process(9, tmp_path)
    assert found == Identity(10_001, (10_002, 4), reads_all=True, writes_all=False)
    assert str(found) == "uid 10001 groups 10002,4"
    assert files_allowed(9, tmp_path) == 4096
    assert files_allowed(8, tmp_path) is None
    ours = Identity.of_process(os.getpid())
    assert (ours.uid, ours.ours) == (os.geteuid(), True)


@needs_root
def test_identity_of_another_users_process() -> None:
    with subprocess.Popen(["sleep", "60"], user=10_001, group=10_001, extra_groups=[4]) as process:
        try:
            assert Identity.of_process(process.pid) == OTHER
            assert not is_shipper(process.pid)
            assert files_allowed(process.pid) is not None
        finally:
            process.kill()


def test_a_link_to_the_file_that_runs_is_that_file(system: System) -> None:
    link = system.top / "link.yaml"
    system.status()
    link.symlink_to(system.path)
    system.status(config=ConfigStatus(path=str(link), hash=fingerprint(link), loaded_seconds=1))
    assert [result for result in system.results() if result.verdict != "ok"] == []


def test_identity_of_a_user() -> None:
    assert Identity.of_user("root").writes_all
    assert Identity.of_user("10001:10001,4") == Identity(10_001, (10_001, 4))
    for text in ("no_such_user", "10001", "x:y"):
        with pytest.raises(ConfigError, match="there is no user"):
            Identity.of_user(text)


def test_the_kernel_is_asked_for_its_clock() -> None:
    told = kernel_clock()
    assert told is None or told.error >= 0


def test_a_group_without_a_name() -> None:
    assert group_name(4_242_424) == ""


def test_rows_are_json(system: System) -> None:
    assert msgspec.json.decode(msgspec.json.encode(system.results()), type=list[CheckResult])


def test_the_files_of_a_real_engine_are_understood() -> None:
    """Written by dockerd: the names of the keys are its own."""
    samples = Path(__file__).parents[1] / "samples" / "containers"
    config = Config(
        sources={"docker": DockerConfig(path=str(samples))}, sinks={}, active=(), state_dir=Path("/nowhere")
    )
    seen = containers(config)
    assert len(seen) == 3
    assert all(item.named and item.driver == "json-file" for item in seen)
    results = {result.id: result for result in docker_results(config, seen)}
    assert {identifier: result.verdict for identifier, result in results.items()} == {
        "D20": "ok", "D21": "warn", "D22": "ok", "D23": "ok",
    }  # fmt: skip
    assert results["D21"].evidence.startswith("faildaily-tty-1: ")
