"""The daemon run plainly, as a user would start it: the way of running that systemd and containers are held against."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from support.arrivals import difference, sqlite_messages, wait_for
from support.daemon import Daemon, eventually
from support.docker_log import DockerLog
from support.load import Load
from support.logs_database import LogsDatabase

SAMPLES = Path(__file__).parents[1] / "samples"

MakeDaemon = Callable[..., Daemon]
MakeLog = Callable[..., DockerLog]


@pytest.mark.mariadb
def test_samples_and_live_lines_through_a_kill_a_reload_to_another_sink_and_a_stop(
    make_daemon: MakeDaemon, database: LogsDatabase, tmp_path: Path, docker_log: MakeLog
) -> None:
    containers, local = tmp_path / "containers", tmp_path / "local.db"
    shutil.copytree(SAMPLES / "containers", containers)
    sources = {
        "docker": {"type": "docker", "path": str(containers)},
        "fallback": {"type": "file", "include": [str(SAMPLES / "logs" / "*.log")], "parser": "fallback"},
    }
    reference = tmp_path / "reference.db"
    expected = make_daemon({"sources": sources, "sinks": {"db": {"type": "sqlite", "path": str(reference)}}})
    assert expected.once().code == 0
    samples = Counter(sqlite_messages(reference))
    assert samples.total() > 2_000

    sinks = {"mysql": database.sink(), "local": {"type": "sqlite", "path": str(local)}}
    config = {"sources": sources, "sinks": sinks, "active": "mysql", "shutdown_timeout": "10s"}
    log = docker_log(containers, max_size=50_000, max_file=10)
    daemon = make_daemon(config)
    daemon.start()
    with Load(log.write, per_second=200) as load:
        assert eventually(lambda: database.count() > samples.total(), timeout=30)
        daemon.kill9()
        before = database.count()
        daemon.start()
        # What the kill makes it read again goes to the old sink, so it is given the time: docs/how-to/switch.md.
        assert eventually(lambda: database.count() > before + 400, timeout=30)
        mark = daemon.mark()
        daemon.reload({**config, "active": "local"})
        daemon.wait_log('"switched', since=mark, timeout=30)
        assert eventually(lambda: len(sqlite_messages(local)) > 50)
    written = samples + Counter(load.written)

    def arrived() -> Counter[str]:
        found = Counter([*database.messages(), *sqlite_messages(local)])
        return Counter({line: count for line, count in found.items() if not line.startswith("shipper canary")})

    assert wait_for(written.elements(), lambda: arrived().elements(), timeout=20) == ""
    begin = time.monotonic()
    assert daemon.term(timeout=15) == 0
    assert time.monotonic() - begin < 10
    assert list((daemon.state_dir / "spill").glob("*/*")) == []
    assert difference(written.elements(), arrived().elements()) == ""
