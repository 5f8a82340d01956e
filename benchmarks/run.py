#!/usr/bin/env python3
"""Measure what the daemon costs and print every figure next to its budget.

    benchmarks/run.py [--quick] [--lines N] [--only WORD ...] [--output DIR]

CPU is told in yardsticks (`yardstick.py`, same file, same minute), each figure the median of three runs that take
turns with the yardstick, because machines are noisy. CPU and memory are those of the whole process, with default
settings; wall time includes the start of the interpreter. A miss does not fail the run: the table says it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import apsw

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "tests"))  # where `support` is

from support import azure_app_insights_server, azure_logs_server, azure_server, cloudwatch_server
from support.arrivals import sqlite_database
from support.daemon import Daemon, Usage, eventually
from support.logs_database import LogsDatabase
from support.mariadb import MariaDB
from support.process import serving

MIB = 1 << 20
ROUNDS = 3
#: The daemon waits this long at most for anything; a figure that takes longer is a fault, not a figure.
PATIENCE = 300.0


@dataclass(frozen=True)
class Figure:
    """One measured figure: what it is of, its value, and the least or most it may be."""

    job: str
    value: float
    unit: str
    budget: float
    at_least: bool = False
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.value >= self.budget if self.at_least else self.value <= self.budget

    def row(self) -> str:
        sign = "≥" if self.at_least else "≤"
        verdict = "pass" if self.passed else "MISS"
        return f"| {self.job} | {self.value:.2f} {self.unit} | {sign} {self.budget:g} | {verdict} | {self.note} |"


class Bench:
    """One run: its files in a temporary directory, its figures in order."""

    def __init__(self, directory: Path, lines: int) -> None:
        self.directory = directory
        self.lines = lines
        self.figures: list[Figure] = []
        self.yardsticks: list[float] = []
        self._count = 0
        self._logs: dict[str, Path] = {}

    def add(self, figure: Figure) -> None:
        self.figures.append(figure)
        print(figure.row(), flush=True)

    def log(self, lines: int) -> Path:
        """The directory of containers with one log of so many lines."""
        if (name := str(lines)) not in self._logs:
            self._logs[name] = self.directory / f"containers-{name}"
            make_log(container(self._logs[name], "bench"), lines)
        return self._logs[name]

    def recent_log(self) -> Path:
        """The same main log with all times of the last hour, for backends that refuse what is old."""
        if (name := "recent") not in self._logs:
            start = datetime.now(UTC) - timedelta(hours=1)
            self._logs[name] = self.directory / f"containers-{name}"
            path = container(self._logs[name], "bench")
            make_log(path, self.lines, "--start", f"{start:%Y-%m-%dT%H:%M:%S}")
            old = path.rename(path.with_suffix(".old"))
            with old.open() as lines, path.open("w") as recent:
                # Line by line: what this process holds counts as its children's peak, too (getrusage(2), ru_maxrss).
                for line in lines:
                    text = line.replace("22/Nov/2026:10:00:00", f"{start:%d/%b/%Y:%H:%M:%S}")
                    recent.write(text.replace("2026-11-22T10:00:00.000Z", f"{start:%Y-%m-%dT%H:%M:%S.000Z}"))
            old.unlink()
        return self._logs[name]

    def yardstick(self, containers: Path | None = None) -> float:
        """CPU seconds of one yardstick on the main log."""
        path = next((containers or self.log(self.lines)).glob("*/*-json.log"))
        said = subprocess.run([sys.executable, HERE / "yardstick.py", path], check=True, capture_output=True, text=True)
        self.yardsticks.append(float(said.stdout.split(", ")[1].split()[0]))
        return self.yardsticks[-1]

    def daemon(self, containers: Path, sink: dict[str, Any]) -> Daemon:
        """A daemon with a state of its own, not started."""
        self._count += 1
        config = {"sources": {"docker": {"type": "docker", "path": str(containers)}}, "sinks": {"out": sink}}
        return Daemon(self.directory / f"daemon-{self._count}", config)

    def costs(self, sink: Callable[[], dict[str, Any]]) -> tuple[float, list[Usage]]:
        """Run ``--once`` in turns with the yardstick; the median ratio of CPU, and what each run took."""
        ratios, runs = [], []
        for _ in range(ROUNDS):
            yardstick = self.yardstick()
            daemon = self.daemon(self.log(self.lines), sink())
            usage = daemon.once(timeout=PATIENCE)
            if usage.code:
                raise RuntimeError(f"the daemon ended with {usage.code}:\n{daemon.log[-4000:]}")
            ratios.append(usage.cpu / yardstick)
            runs.append(usage)
        return statistics.median(ratios), runs

    def costs_of_encoding(self, sink: dict[str, Any], *, parse: bool) -> tuple[float, float, list[Usage]]:
        """Run ``--once`` on a recent log in turns with the yardstick and with reading alone (and parsing).

        The medians, in yardsticks, of the sink's encoding and of all that the sink adds to the daemon; and what each run
        with it took.
        """
        containers = self.recent_log()
        encoding, beyond, runs = [], [], []
        for _ in range(ROUNDS):
            usages = []
            yardstick = self.yardstick(containers)
            for section in ({"type": "blackhole", "parse": parse}, sink):
                daemon = self.daemon(containers, section)
                usages.append(daemon.once(timeout=PATIENCE))
                if usages[-1].code:
                    raise RuntimeError(f"the daemon ended with {usages[-1].code}:\n{daemon.log[-4000:]}")
            command = [sys.executable, HERE / "encoding.py", self.daemon(containers, sink).path]
            environ = {**os.environ, "SHIPPER_TEMPORARY_STATE": "allow"}
            said = subprocess.run(command, check=True, capture_output=True, text=True, env=environ, timeout=PATIENCE)
            encoding.append(float(said.stdout.split()[0]) / yardstick)
            beyond.append((usages[1].cpu - usages[0].cpu) / yardstick)
            runs.append(usages[1])
        return statistics.median(encoding), statistics.median(beyond), runs

    def sqlite(self) -> dict[str, Any]:
        """A sqlite sink with a database of its own."""
        self._count += 1
        return {"type": "sqlite", "path": str(self.directory / f"logs-{self._count}.db")}


def make_log(path: Path, lines: int, *options: str) -> None:
    """Write the log that every figure is taken on."""
    subprocess.run([sys.executable, HERE / "make_docker_log.py", str(lines), path, *options], check=True)


def container(containers: Path, name: str) -> Path:
    """Make a container's directory; the path of its log, which does not exist yet."""
    identity = hashlib.sha256(name.encode()).hexdigest()
    directory = containers / identity
    directory.mkdir(parents=True)
    about = {"ID": identity, "Name": f"/{name}", "Config": {"Image": "bench:1", "Labels": {}, "Tty": False}}
    (directory / "config.v2.json").write_text(json.dumps(about))
    return directory / f"{identity}-json.log"


def docker_line(text: str) -> str:
    """One line of Docker's json-file driver, stamped now."""
    now = time.time_ns()
    stamp = f"{datetime.fromtimestamp(now // 10**9, UTC):%Y-%m-%dT%H:%M:%S}.{now % 10**9:09d}Z"
    return json.dumps({"log": f"{text}\n", "stream": "stdout", "time": stamp}, separators=(",", ":")) + "\n"


def parse_to_nothing(bench: Bench) -> None:
    ratio, runs = bench.costs(lambda: {"type": "blackhole"})
    note = f"{rate(bench, runs):,.0f} lines/s"
    bench.add(Figure("Docker log, inner line parsed, to nothing: CPU", ratio, "yardsticks", 4, note=note))


def to_sqlite(bench: Bench) -> None:
    ratio, runs = bench.costs(bench.sqlite)
    note = f"{rate(bench, runs):,.0f} lines/s"
    bench.add(Figure("Docker log to SQLite: CPU", ratio, "yardsticks", 10, note=note))
    bench.add(Figure("Docker log to SQLite: resident memory, peak", peak(runs), "MiB", 64))


def memory_over_file_size(bench: Bench) -> None:
    peaks = []
    for lines in (bench.lines // 5, bench.lines):
        daemon = bench.daemon(bench.log(lines), bench.sqlite())
        peaks.append(daemon.once(timeout=PATIENCE).peak_rss / MIB)
    note = f"{peaks[0]:.1f} MiB for {bench.lines // 5:,} lines, {peaks[1]:.1f} for {bench.lines:,}"
    bench.add(Figure("memory for five times the file", peaks[1] / peaks[0], "times", 1.1, note=note))


def to_mariadb(bench: Bench) -> None:
    with mariadb() as server:
        ratio, runs = bench.costs(server.fresh)
        note = f"{rate(bench, runs):,.0f} lines/s"
        bench.add(Figure("Docker log to MariaDB: CPU", ratio, "yardsticks", 8, note=note))
        bench.add(Figure("Docker log to MariaDB: resident memory, peak", peak(runs), "MiB", 64))
        shares, rates = [], []
        for _ in range(ROUNDS):
            usage = bench.daemon(bench.log(bench.lines), server.fresh()).once(timeout=PATIENCE)
            seconds = server.load_seconds(bench.directory / "rows.tsv", bench.lines)
            rates.append(bench.lines / seconds)
            shares.append(seconds / usage.wall)
        note = f"the server alone: {statistics.median(rates):,.0f} lines/s; ours with start and stop of the process"
        share = statistics.median(shares)
        bench.add(Figure("rate against LOAD DATA INFILE", share, "times", 0.9, at_least=True, note=note))


def to_loki(bench: Bench) -> None:
    """Against a server that answers at once, in a process of its own; the log is older than Loki's limit of age."""
    with serving("loki_server", "--discard") as url:
        section: dict[str, Any] = {"type": "loki", "endpoint": url, "max_age": ""}
        ratio, runs = bench.costs(lambda: section)
        walls = [run.wall / yardstick for run, yardstick in zip(runs, bench.yardsticks[-len(runs) :], strict=True)]
        encoding, _, _ = bench.costs_of_encoding(section, parse=False)
    note = f"{rate(bench, runs):,.0f} lines/s"
    bench.add(Figure("Docker log to Loki: CPU", ratio, "yardsticks", 4, note=note))
    bench.add(Figure("Docker log to Loki: wall time", statistics.median(walls), "yardsticks' CPU", 4.5))
    bench.add(Figure("Docker log to Loki: resident memory, peak", peak(runs), "MiB", 64))
    bench.add(Figure("Loki's encoder: CPU", encoding, "yardsticks", 3))


def to_services(bench: Bench) -> None:
    """Into stand-ins that take everything and keep nothing, each a process of its own: what is measured is ours."""
    services: list[tuple[str, str, bool, float, Callable[[str], dict[str, Any]]]] = [
        ("CloudWatch", "cloudwatch_server", False, 110, to_cloudwatch),
        ("Elasticsearch", "elasticsearch_server", True, 64, lambda url: {"type": "elasticsearch", "endpoint": url}),
        ("Application Insights", "azure_app_insights_server", True, 64, to_azure_app_insights),
        ("Azure Logs Ingestion", "azure_logs_server", True, 64, to_azure_logs),
        ("OTLP", "otlp_server", True, 64, lambda url: {"type": "otlp", "endpoint": url}),
    ]
    for name, module, parse, memory, section in services:
        with serving(module, "--discard") as url:
            encoding, beyond, runs = bench.costs_of_encoding(section(url), parse=parse)
        whole = (
            f"all that the sink adds to reading{' and parsing' * parse}: {beyond:.2f}; {rate(bench, runs):,.0f} lines/s"
        )
        bench.add(Figure(f"{name}'s encoder: CPU", encoding, "yardsticks", 3, note=whole))
        bench.add(Figure(f"Docker log to {name}: resident memory, peak", peak(runs), "MiB", memory))


def to_cloudwatch(url: str) -> dict[str, Any]:
    keys = {"access_key_id": cloudwatch_server.ACCESS_KEY, "secret_access_key": cloudwatch_server.SECRET}
    place = {"region": cloudwatch_server.REGION, "endpoint": url, "log_group": "bench"}
    return {"type": "cloudwatch", **place, **keys}


def to_azure_app_insights(url: str) -> dict[str, Any]:
    string = f"InstrumentationKey={azure_app_insights_server.KEY};IngestionEndpoint={url}"
    return {"type": "azure_app_insights", "connection_string": string}


def to_azure_logs(url: str) -> dict[str, Any]:
    login = {"tenant_id": azure_server.TENANT, "client_id": azure_server.CLIENT, "client_secret": azure_server.SECRET}
    place = {"endpoint": url, "rule_id": azure_logs_server.RULE, "stream": azure_logs_server.STREAM}
    return {"type": "azure_logs", "authority": url, **place, **login}


def memory_over_an_outage(bench: Bench) -> None:
    """The sink is away from the start; the peak while the whole log waits, and the growth from second 5 on."""
    with bench.daemon(bench.log(bench.lines), {"type": "mysql", "host": "127.0.0.1", "port": 1, **ACCESS}) as daemon:
        time.sleep(5)
        early = daemon.rss()
        time.sleep(15)
        late = daemon.rss()
        bench.add(Figure("memory during an outage, peak", daemon.peak_rss() / MIB, "MiB", 64))
        bench.add(Figure("memory after 20 s of an outage against 5 s", late / early, "times", 1.1))


def idle_files(bench: Bench) -> None:
    containers = bench.directory / "containers-idle"
    for number in range(500):
        container(containers, f"idle-{number}").write_text(docker_line(f"line {number}"))
    sink = bench.sqlite()
    with bench.daemon(containers, sink) as daemon:
        if not eventually(lambda: sqlite_count(sink) == 500, timeout=PATIENCE):
            raise RuntimeError(f"only {sqlite_count(sink)} of 500 lines arrived")
        time.sleep(5)
        before, begin = daemon.cpu_seconds(), time.monotonic()
        time.sleep(20)
        share = 100 * (daemon.cpu_seconds() - before) / (time.monotonic() - begin)
        bench.add(Figure("500 idle files: share of a core", share, "%", 0.5, note="over 20 s"))
        bench.add(Figure("500 idle files: resident memory", daemon.rss() / MIB, "MiB", 40))


def start_to_first_line(bench: Bench) -> None:
    containers = bench.directory / "containers-start"
    container(containers, "start").write_text(docker_line("the first line"))
    sink: dict[str, Any] = {}

    def fresh_sqlite() -> dict[str, Any]:
        sink.update(bench.sqlite())
        return sink

    def measure(name: str, fresh: Callable[[], dict[str, Any]], count: Callable[[], int]) -> None:
        seconds = []
        for _ in range(5):
            daemon = bench.daemon(containers, fresh())
            begin = time.monotonic()
            daemon.start(wait=False)
            if not eventually(lambda: count() == 1, timeout=PATIENCE, every=0.002):
                raise RuntimeError(f"the first line did not arrive:\n{daemon.log[-4000:]}")
            seconds.append(time.monotonic() - begin)
            daemon.kill9()
        bench.add(Figure(f"start to first line delivered, {name}", statistics.median(seconds), "s", 0.4))

    measure("SQLite", fresh_sqlite, lambda: sqlite_count(sink))
    with mariadb() as server:
        measure("MariaDB", server.fresh, server.count)


def latency(bench: Bench) -> None:
    sink = bench.sqlite()
    latency_of(bench, "SQLite", sink, lambda: sqlite_count(sink))
    with mariadb() as server:
        latency_of(bench, "MariaDB", server.fresh(), server.count)


def latency_of(bench: Bench, name: str, sink: dict[str, Any], count: Callable[[], int]) -> None:
    """100 lines a second for ten seconds; lines arrive in order, so the count tells which are there."""
    total, per_second = 1000, 100
    path = container(bench.directory / f"containers-latency-{name}", "latency")
    path.touch()
    written: list[float] = []

    def write() -> None:
        with path.open("a") as file:
            begin = time.monotonic()
            for number in range(total):
                time.sleep(max(0.0, begin + number / per_second - time.monotonic()))
                file.write(docker_line(f"latency {number}"))
                file.flush()
                written.append(time.monotonic())

    with bench.daemon(path.parent.parent, sink) as daemon:
        daemon.wait_ready()
        writer = threading.Thread(target=write)
        writer.start()
        seen: list[float] = []
        deadline = time.monotonic() + PATIENCE
        while len(seen) < total:
            there = count()
            now = time.monotonic()
            seen.extend(now - moment for moment in written[len(seen) : there])
            if now > deadline:
                raise RuntimeError(f"only {there} of {total} lines arrived:\n{daemon.log[-4000:]}")
            time.sleep(0.004)
        writer.join()
    seen.sort()
    middle, worst = seen[total // 2], seen[total * 99 // 100]
    bench.add(Figure(f"line written to row queryable, {name}: p50", middle, "s", 0.25, note="100 lines/s"))
    bench.add(Figure(f"line written to row queryable, {name}: p99", worst, "s", 0.6))


JOBS = (
    parse_to_nothing,
    to_sqlite,
    memory_over_file_size,
    to_mariadb,
    to_loki,
    to_services,
    memory_over_an_outage,
    idle_files,
    start_to_first_line,
    latency,
)

#: Login of an outage's sink: nobody is there to check it.
ACCESS = {"user": "nobody", "password": "nothing", "database": "logs"}


class Database:
    """One MariaDB server for the figures, each run in an empty table."""

    def __init__(self, logs: LogsDatabase) -> None:
        self._logs = logs

    def fresh(self) -> dict[str, Any]:
        """A sink with the fast path on; the table that the run before it left is dropped."""
        self._logs.execute(f"DROP TABLE IF EXISTS {self._logs.table}")
        return self._logs.sink()

    def count(self) -> int:
        return self._logs.count()

    def load_seconds(self, path: Path, lines: int) -> float:
        """The seconds the server needs to load the rows of the table from a file into the emptied table."""
        path.unlink(missing_ok=True)
        path.parent.chmod(0o777)
        # All columns, the invisible one too, and in the order in which the lines were written, which ids keep.
        columns = "id, level, message, details, user_id, action, ip_address, user_agent, created_at"
        columns += ", service, container, stream, host, source, shipper"
        table = self._logs.table
        self._logs.execute(f"SELECT {columns} FROM {table} ORDER BY id INTO OUTFILE '{path}' CHARACTER SET utf8mb4")
        self._logs.execute(f"TRUNCATE TABLE {table}")
        begin = time.monotonic()
        self._logs.execute(f"LOAD DATA INFILE '{path}' INTO TABLE {table} CHARACTER SET utf8mb4 ({columns})")
        seconds = time.monotonic() - begin
        if self.count() != lines:
            raise RuntimeError(f"{self.count()} rows loaded of {lines}")
        return seconds


@contextmanager
def mariadb() -> Iterator[Database]:
    """A server with default settings and a database on it."""
    with MariaDB() as server:
        yield Database(LogsDatabase(server))


def rate(bench: Bench, runs: list[Usage]) -> float:
    return bench.lines / statistics.median(run.wall for run in runs)


def peak(runs: list[Usage]) -> float:
    return max(run.peak_rss for run in runs) / MIB


def sqlite_count(sink: dict[str, Any]) -> int:
    if not Path(sink["path"]).exists():
        return 0
    try:
        with sqlite_database(sink["path"], read_only=True) as database:
            return int(database.execute("SELECT COUNT(*) FROM activity_logs").get)
    except (apsw.CantOpenError, apsw.SQLError, apsw.BusyError):
        return 0


def machine() -> str:
    about = Path("/proc/cpuinfo").read_text()
    model = next((line.split(": ")[1] for line in about.splitlines() if line.startswith("model name")), "unknown")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return (
        f"{os.cpu_count()} x {model}, {memory:.0f} GiB, Linux {platform.release()}, Python {platform.python_version()}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=500_000, help="lines of the main log (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="the same with 100,000 lines")
    parser.add_argument("--only", nargs="*", default=[], metavar="WORD", help="only jobs whose name has a word")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="where the table is written")
    args = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="shipper-bench-"))
    bench = Bench(directory, 100_000 if args.quick else args.lines)
    head = [
        f"# Cost, {datetime.now(UTC):%Y-%m-%d}",
        "",
        f"{machine()}. {bench.lines:,} lines, median of {ROUNDS}. Budgets are those of the design, section 8.",
        "",
        "| job | measured | budget | | |",
        "|---|---|---|---|---|",
    ]
    print("\n".join(head), flush=True)
    try:
        for job in JOBS:
            if not args.only or any(word in job.__name__ for word in args.only):
                job(bench)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    if not args.only:
        args.output.mkdir(parents=True, exist_ok=True)
        path = args.output / f"{datetime.now(UTC):%Y-%m-%d}{'-quick' if args.quick else ''}.md"
        path.write_text("\n".join([*head, *(figure.row() for figure in bench.figures)]) + "\n")
        print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
