"""Switching between backends under load, at random moments: every line is in one of them, none in both."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, Literal

import pytest

from shipper import registry
from shipper.reader import Query
from shipper.record import Record
from shipper.testing.proxy import FaultProxy
from support.arrivals import difference
from support.cloudwatch_server import CloudwatchServer
from support.daemon import Daemon, eventually
from support.docker_log import DockerLog
from support.elasticsearch_server import ElasticsearchServer
from support.load import Load
from support.logs_database import LogsDatabase
from support.loki_server import LokiServer

MakeDaemon = Callable[..., Daemon]
MakeLog = Callable[..., DockerLog]
Section = dict[str, Any]

#: Switches between each two of the backends, in one direction or the other.
SWITCHES = 20


@pytest.fixture
def sections(tmp_path: Path, database: LogsDatabase) -> Iterator[dict[str, Section]]:
    """A section for each backend that takes part, with its server running."""
    with LokiServer() as loki, CloudwatchServer() as cloudwatch, ElasticsearchServer() as elasticsearch:
        yield {
            "sqlite": {"type": "sqlite", "path": str(tmp_path / "logs.db")},
            "mysql": database.sink(),
            "loki": loki.sink(),
            "cloudwatch": cloudwatch.sink(),
            "elasticsearch": elasticsearch.sink(),
        }


def walk(names: list[str], times: int, rng: random.Random) -> list[str]:
    """A way over all names that goes so often between each two of them, in random order, and ends where it began.

    Hierholzer's: every name has an even number of ways left, so one that cannot go on has come back.
    """
    left = {one: Counter({other: times for other in names if other != one}) for one in names}
    way: list[str] = []
    stack = [names[0]]
    while stack:
        here = stack[-1]
        choices = list(left[here].elements())
        if not choices:
            way.append(stack.pop())
            continue
        there = rng.choice(choices)
        left[here][there] -= 1
        left[there][here] -= 1
        stack.append(there)
    return way


def records(section: Section) -> list[Record]:
    """Read all that a backend holds through its own reader; canaries left out."""
    cls: Any = registry.reader(section["type"])
    reader = cls(registry.sink(section["type"]).config(**section))
    try:
        return [record for record in reader.read(Query()) if not record.message.startswith("shipper canary")]
    finally:
        reader.close()


def config(containers: Path, sinks: dict[str, Section], active: str, **more: Any) -> dict[str, Any]:
    return {
        "sources": {"docker": {"type": "docker", "path": str(containers)}},
        "sinks": sinks,
        "active": active,
        **more,
    }


def switch(daemon: Daemon, new: dict[str, Any]) -> None:
    mark = daemon.mark()
    daemon.reload(new)
    daemon.wait_log('"switched', since=mark, timeout=30)


def assert_split(written: list[str], *parts: Section) -> list[int]:
    """Every line is in exactly one of the parts, once; gives how many each has."""

    def found() -> list[list[Record]]:
        return [records(part) for part in parts]

    eventually(lambda: sum(map(len, found())) >= len(written), timeout=30, every=0.3)
    held = found()
    ids = [{record.id for record in part} for part in held]
    for one, other in combinations(ids, 2):
        assert not one & other, "a record is in the old and in the new sink"
    assert difference(written, [record.message for part in held for record in part]) == ""
    return [len(part) for part in held]


@pytest.mark.mariadb
@pytest.mark.slow
def test_twenty_switches_between_each_two_backends_at_random_moments_under_load_lose_and_double_nothing(
    sections: dict[str, Section], make_daemon: MakeDaemon, docker_log: MakeLog, tmp_path: Path
) -> None:
    rng = random.Random(20261123)
    log = docker_log(tmp_path / "containers", max_size=100_000, max_file=30)
    first, *way = walk(list(sections), SWITCHES, rng)
    between = Counter(frozenset(pair) for pair in pairwise([first, *way]))
    assert set(between.values()) == {SWITCHES}
    assert len(between) == 10
    daemon = make_daemon(config(tmp_path / "containers", sections, first))
    with Load(log.write, per_second=200) as load:
        daemon.start()
        for name in way:
            time.sleep(rng.uniform(0.0, 0.2))
            switch(daemon, config(tmp_path / "containers", sections, name))
    held = assert_split(load.written, *sections.values())
    assert min(held) > len(load.written) // 20, "one of them got next to nothing: the test shows nothing"
    assert daemon.term() == 0
    assert_split(load.written, *sections.values())


@pytest.fixture
def behind_proxy(database: LogsDatabase) -> Iterator[tuple[FaultProxy, LogsDatabase]]:
    with FaultProxy(database.address) as proxy:
        yield proxy, database


@pytest.mark.mariadb
@pytest.mark.slow
@pytest.mark.parametrize("fault", ["reset", "latency"])
@pytest.mark.parametrize("removed", [False, True], ids=["unused", "removed"])
def test_old_sink_that_is_down_or_slow_keeps_what_it_was_given(  # noqa: PLR0917 - fixtures
    behind_proxy: tuple[FaultProxy, LogsDatabase],
    make_daemon: MakeDaemon,
    docker_log: MakeLog,
    tmp_path: Path,
    fault: Literal["reset", "latency"],
    removed: bool,
) -> None:
    proxy, database = behind_proxy
    log = docker_log(tmp_path / "containers")
    old = {**database.sink(), "port": proxy.port, "connect_timeout": "2s"}
    new = {"type": "sqlite", "path": str(tmp_path / "logs.db")}
    daemon = make_daemon(config(tmp_path / "containers", {"old": old, "new": new}, "old"))
    with Load(log.write, per_second=300) as load:
        daemon.start()
        assert eventually(lambda: daemon.metric("shipper_sink_lines_acked_total", sink="old") > 50)
        proxy.switch(fault, seconds=0.4)
        time.sleep(1.0)
        sinks = {"new": new} if removed else {"old": old, "new": new}
        switch(daemon, config(tmp_path / "containers", sinks, "new"))
        assert eventually(lambda: daemon.metric("shipper_sink_lines_acked_total", sink="new") > 50)
    proxy.switch("pass")
    held = assert_split(load.written, {**database.sink()}, new)
    assert min(held) > 50
    if fault == "reset":
        daemon.wait_log("drained")
    assert daemon.term() == 0


@pytest.mark.slow
def test_switch_of_routes_keeps_each_line_with_its_sink(
    make_daemon: MakeDaemon, docker_log: MakeLog, tmp_path: Path
) -> None:
    rng = random.Random(7)
    log = docker_log(tmp_path / "containers")
    sinks: dict[str, Section] = {n: {"type": "sqlite", "path": str(tmp_path / f"{n}.db")} for n in ("a", "b", "c")}
    ways = [
        {"active": "a", "routes": [{"match": "message:/[02468] x/", "to": "b"}]},
        {"active": "c", "routes": []},
        {"active": "b", "routes": [{"match": "message:/[02468] x/", "to": "c"}]},
    ]

    def made(number: int) -> dict[str, Any]:
        return {**config(tmp_path / "containers", sinks, "a"), **ways[number % 3]}

    daemon = make_daemon(made(0))
    with Load(log.write, per_second=300) as load:
        daemon.start()
        for number in range(1, 10):
            time.sleep(rng.uniform(0.0, 0.4))
            switch(daemon, made(number))
    held = assert_split(load.written, *sinks.values())
    assert min(held) > 20
