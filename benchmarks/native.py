#!/usr/bin/env python3
"""Tell what a whole job loses without one compiled function, for each function of `shipper.native`.

    benchmarks/native.py [--lines N] [--rounds N] [--jobs WORD ...] [--functions NAME ...] [--inside] [--output DIR]

A job is the daemon with ``--once`` on the log that all figures are taken on: to nothing, to SQLite, to MariaDB
(``load_data``), to Loki, and to the sinks that have a function of their own. Its servers are real ones or stand-ins in
processes of their own. What is measured is the CPU (user and system) of the daemon's whole process, without what it takes
to start on an empty log and stop. A function is left out by a stand-in that declines everything, so that its Python twin
works, as it does for uncommon lines. First each job is run once to see which functions it calls. The daemon is kept on
one processor: on two, what they hand to each other is a matter of chance, and hides losses of less than a tenth.

Runs take turns: in each round every function is left out once, between two runs with all of them, and told by their
mean. The table has the median of all rounds and, in brackets, the two quartiles. A function that gives less than 3 % of
every job is not worth its C. `hash` is none of its own: it leaves out XXH3 in C by hashing all lines in Python once more.

A small loss drowns in the noise of a machine that others use, too. With ``--inside`` a small function
and its twin do the same one behind the other, in turns first, at each call within the job, and both are timed: a loss is
what the twins take more, by what the job takes without them. That is less than the whole truth (what a function does to
the caches and memory of others is not in it), and exact to a few tenths of a percent.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from itertools import cycle, islice, repeat
from operator import lt
from pathlib import Path
from typing import Any

from run import PATIENCE, Bench, container, discarding, machine, mariadb, to_azure_logs, to_cloudwatch
from xxhash import xxh3_128_intdigest

#: A function stays if it gives at least this share of some job.
LEAST = 3.0
HASH = "hash"


# Within the daemon


def _declining(name: str) -> Callable[..., Any]:
    """A stand-in that leaves everything to the Python twin; for most functions None says so."""

    def suspects(values: list[Any], *_: Any) -> Any:
        from sinks.elasticsearch import encode  # noqa: PLC0415 - only where it is called

        return encode._suspects(values)  # noqa: SLF001

    others: dict[str, Callable[..., Any]] = {
        "parse": lambda lines, *_: range(len(lines)),
        "levels": lambda lines, *_: range(len(lines)),
        "otlp_records": lambda times, *_: (b"", [0] * len(times), range(len(times))),
        "flattened_suspects": suspects,
    }
    return others.get(name, lambda *_: None)


def _hashing_twice(docker_lines: Callable[..., Any]) -> Callable[..., Any]:
    def cut(block: bytes, position: int, seed: int) -> Any:
        list(map(xxh3_128_intdigest, block.splitlines(keepends=True), repeat(seed)))
        return docker_lines(block, position, seed)

    return cut


def _twins() -> dict[str, Callable[..., Any]]:
    """What Python does in place of the small functions, with their arguments."""
    from shipper import columns, record  # noqa: PLC0415 - the parent needs none of it

    def wide(column: list[Any]) -> Any:
        return columns._WIDE in columns._encoder.encode_lines(column).translate(columns._DIGITS)  # noqa: SLF001

    return {
        "make_ids": record.make_ids,
        "span": lambda numbers: (min(numbers), max(numbers), all(map(lt, numbers, islice(numbers, 1, None)))),
        "lengths": lambda texts: (max(map(len, texts), default=0), sum(map(len, texts))),
        "wide": wide,
        "flattened_suspects": _declining("flattened_suspects"),
        "render": lambda parts, start, end, *_: columns._render(parts, start, end, []),  # noqa: SLF001
    }


def _timed_with_their_twins(module: Any) -> dict[str, list[float]]:
    """Have each function and its twin work at each call; the seconds of both grow in what is given."""
    took: dict[str, list[float]] = {}

    def both(name: str, function: Callable[..., Any], twin: Callable[..., Any]) -> Callable[..., Any]:
        took[name] = seconds = [0.0, 0.0]
        turns = cycle(((0, 1), (1, 0)))

        def timed(*arguments: Any) -> Any:
            found = {}
            # Whoever is the second finds everything in the processor's cache.
            for turn in next(turns):
                begin = time.thread_time()
                found[turn] = (function, twin)[turn](*arguments)
                seconds[turn] += time.thread_time() - begin
            return found[0]

        return timed

    for name, twin in _twins().items():
        if name in functions(module):
            setattr(module, name, both(name, getattr(module, name), twin))
    return took


def daemon(without: str, config: str) -> None:
    """Run the daemon once without a function, or with all of them.

    ``?`` prints the names of those it calls, ``!`` the seconds of the small ones and of their twins, and of all but these.
    """
    from shipper.__main__ import main  # noqa: PLC0415 - the parent needs none of it
    from shipper.native import WHY_PURE, compiled  # noqa: PLC0415

    assert compiled is not None, WHY_PURE
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    called: set[str] = set()
    took: dict[str, list[float]] = {}

    def noted(name: str) -> Callable[..., Any]:
        function = getattr(compiled, name)

        def noting(*arguments: Any) -> Any:
            called.add(name)
            return function(*arguments)

        return noting

    if without == "?":
        for name in functions(compiled):
            setattr(compiled, name, noted(name))
    elif without == "!":
        took = _timed_with_their_twins(compiled)
    elif without == HASH:
        compiled.docker_lines = _hashing_twice(compiled.docker_lines)  # type: ignore[attr-defined]
    elif without:
        assert without in functions(compiled), without
        setattr(compiled, without, _declining(without))
    try:
        main(["run", "--config", config, "--once"])
    finally:
        if without == "?":
            print(json.dumps(sorted(called)))
        if without == "!":
            print(json.dumps([took, time.process_time() - sum(theirs for _, theirs in took.values())]))


def functions(module: Any) -> list[str]:
    return [name for name, one in vars(module).items() if callable(one) and not name.startswith("_")]


# Beside it


class Job:
    """One destination: runs of the daemon to it, and the CPU seconds that they took."""

    def __init__(
        self, bench: Bench, name: str, containers: Path, empty: Path, sink: Callable[[], dict[str, Any]]
    ) -> None:
        self.name = name
        self._bench = bench
        self._containers = containers
        self._sink = sink
        self._start = statistics.median(self._seconds("", empty) for _ in range(3))

    def _run(self, without: str, containers: Path) -> subprocess.CompletedProcess[str]:
        daemon = self._bench.daemon(containers, self._sink())
        environ = {**os.environ, "SHIPPER_TEMPORARY_STATE": "allow"}
        command = [sys.executable, __file__, "--daemon", without, str(daemon.path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ, timeout=PATIENCE)
        shutil.rmtree(daemon.directory)
        if done.returncode:
            raise RuntimeError(f"the daemon ended with {done.returncode}:\n{done.stderr[-4000:]}")
        return done

    def _seconds(self, without: str, containers: Path) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        self._run(without, containers)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    def called(self) -> list[str]:
        return list(json.loads(self._run("?", self._containers).stdout.splitlines()[-1]))

    def seconds(self, without: str = "") -> float:
        """CPU seconds for the lines alone."""
        return self._seconds(without, self._containers) - self._start

    def inside(self, rounds: int) -> dict[str, list[float]]:
        """Give what the twins of small functions take more, in percent of what the job takes, a figure a round."""
        losses: dict[str, list[float]] = defaultdict(list)
        for _ in range(rounds):
            took, whole = json.loads(self._run("!", self._containers).stdout.splitlines()[-1])
            for name, (ours, theirs) in took.items():
                if not ours:
                    continue
                losses[name].append(100 * (theirs - ours) / (whole - self._start))
        return losses

    def losses(self, names: list[str], rounds: int) -> dict[str, list[float]]:
        """Give what the job loses without each function, in percent of what it takes with all, a figure a round."""
        losses: dict[str, list[float]] = {name: [] for name in names}
        before = self.seconds()
        for _ in range(rounds):
            for name in random.sample(names, len(names)):
                seconds = self.seconds(name)
                after = self.seconds()
                losses[name].append(100 * (2 * seconds / (before + after) - 1))
                before = after
        return losses


def empty_log(bench: Bench) -> Path:
    path = bench.directory / "containers-empty"
    container(path, "bench").touch()
    return path


@contextmanager
def jobs(bench: Bench, words: list[str]) -> Iterator[Iterator[Job]]:
    """All jobs, or those whose name has one of the words; each has its server while it is the last one given."""
    empty = empty_log(bench)

    def sqlite() -> dict[str, Any]:
        for path in bench.directory.glob("logs-*.db*"):
            path.unlink()
        return bench.sqlite()

    services: dict[str, tuple[str, Callable[[str], dict[str, Any]]]] = {
        "Loki": ("loki_server", lambda url: {"type": "loki", "endpoint": url, "max_age": ""}),
        "OTLP": ("otlp_server", lambda url: {"type": "otlp", "endpoint": url}),
        "Elasticsearch": ("elasticsearch_server", lambda url: {"type": "elasticsearch", "endpoint": url}),
        "CloudWatch": ("cloudwatch_server", to_cloudwatch),
        "Azure": ("azure_logs_server", to_azure_logs),
    }

    def each() -> Iterator[Job]:
        def chosen(name: str) -> bool:
            return not words or any(word.lower() in name.lower() for word in words)

        log = bench.log(bench.lines)
        if chosen("nothing"):
            yield Job(bench, "nothing", log, empty, lambda: {"type": "blackhole"})
        if chosen("SQLite"):
            yield Job(bench, "SQLite", log, empty, sqlite)
        if chosen("MariaDB"):
            with mariadb() as server:
                yield Job(bench, "MariaDB", log, empty, server.fresh)
        for name, (module, section) in services.items():
            if chosen(name):
                with discarding(module) as url:
                    containers = log if name == "Loki" else bench.recent_log()
                    yield Job(bench, name, containers, empty, lambda section=section, url=url: section(url))  # type: ignore[misc]

    with ExitStack() as stack:
        found = each()
        stack.callback(found.close)  # type: ignore[attr-defined]
        yield found


def cell(losses: list[float]) -> str:
    middle = statistics.median(losses)
    if len(losses) < 3:
        return f"{middle:.1f}"
    low, _, high = statistics.quantiles(losses, n=4, method="inclusive")
    return f"{middle:.1f} ({low:.1f} to {high:.1f})"


def main() -> None:
    if sys.argv[1:2] == ["--daemon"]:
        daemon(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=200_000, help="lines of the log (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of each job (default %(default)s)")
    parser.add_argument("--jobs", nargs="*", default=[], metavar="WORD", help="only jobs whose name has a word")
    parser.add_argument("--functions", nargs="*", default=[], metavar="NAME", help="only these functions")
    parser.add_argument("--inside", action="store_true", help="time small functions and their twins within the job")
    parser.add_argument("--output", type=Path, help="where the table is written")
    args = parser.parse_args()
    from shipper.native import WHY_PURE, compiled  # noqa: PLC0415 - the daemon above must not have it from here

    assert compiled is not None, WHY_PURE
    every = set(_twins()) if args.inside else {*functions(compiled), HASH}
    names = [name for name in (*functions(compiled), HASH) if name in every and name in (args.functions or every)]
    table: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    directory = Path(tempfile.mkdtemp(prefix="shipper-bench-"))
    done = []
    try:
        with jobs(Bench(directory, args.lines), args.jobs) as found:
            for job in found:
                if args.inside:
                    found_losses = job.inside(args.rounds)
                else:
                    called = {*job.called(), HASH}
                    found_losses = job.losses([name for name in names if name in called], args.rounds)
                for name, losses in found_losses.items():
                    if name not in table:
                        continue
                    table[name][job.name] = losses
                    print(f"{job.name}: {name}: {cell(losses)}", flush=True)
                done.append(job.name)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    lines = [
        f"# What a job loses without a compiled function, {datetime.now(UTC):%Y-%m-%d}",
        "",
        f"{machine()}. {args.lines:,} lines, median of {args.rounds} (quartiles), in percent of the CPU of the job's lines.",
        "",
        f"| without | {' | '.join(done)} | |",
        f"|---|{'---|' * len(done)}---|",
    ]
    for name, row in table.items():
        most = max((statistics.median(losses) for losses in row.values()), default=0.0)
        cells = [cell(row[job]) if job in row else "not called" for job in done]
        lines.append(f"| {name} | {' | '.join(cells)} | {'stays' if most >= LEAST else 'GOES'} |")
    print("", *lines, sep="\n")
    if args.output:
        path = args.output / f"{datetime.now(UTC):%Y-%m-%d}-native.md"
        path.write_text("\n".join(lines) + "\n")
        print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
