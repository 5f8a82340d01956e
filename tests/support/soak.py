"""Random faults against a real daemon, for as long as you like: ``make soak SECONDS=3600 [SEED=n]``.

Containers and an application write numbered lines, many of them hostile, while the daemon is killed, stopped, frozen,
reloaded (also with broken configurations), its logs rotated and packed, its SQLite database locked and its Loki cut off
in every way that the fault proxy knows. A watcher asks for its health all the while. Then the faults end, and every line
must be there: once in SQLite (or in its dead letters), at least once in Loki. The seed is printed first.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw

from shipper.delivery.deadletter import DeadLetters
from shipper.testing.proxy import FaultProxy
from support.arrivals import sqlite_database
from support.daemon import Daemon, eventually
from support.docker_log import DockerLog
from support.loki_server import LokiLimits, LokiServer

_NUMBER = re.compile(r"<#(\d+)#>")
#: Seconds within which a daemon that runs must answer for its health, and the pauses between two faults.
ANSWER, PAUSE = 10.0, (0.05, 0.8)
#: Seconds within which SIGTERM must end it, and all lines must have arrived once the faults are over.
TERM, SETTLE = 40.0, 120.0


class Soak:
    """One run. ``written`` counts lines; `run` raises AssertionError with the seed when something is wrong."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.seed = seed
        self.written = 0
        self.faults: Counter[str] = Counter()
        self._random = random.Random(seed)  # noqa: S311 - chance in a test, to be repeated
        self._directory = directory
        self._containers = [
            DockerLog(directory / "containers", name=name, max_size=150_000, max_file=200, compress=packed)
            for name, packed in (("api", False), ("worker", True))
        ]
        self._plain = directory / "app" / "app.log"
        self._plain.parent.mkdir(parents=True)
        self._plain.touch()
        self._database = directory / "logs.db"
        self._proxy: FaultProxy | None = None
        self._frozen_until = 0.0
        self._up_since: float | None = None
        self._silent: list[str] = []
        self._over = threading.Event()

    def run(self, seconds: float) -> None:
        """Make trouble for ``seconds``, then look whether everything arrived."""
        try:
            self._run(seconds)
        finally:
            self._over.set()
            for log in self._containers:
                log.close()

    def _run(self, seconds: float) -> None:
        limits = LokiLimits(
            reject_old_samples=False, ingestion_rate=1 << 30, ingestion_burst=1 << 30, per_stream_rate=1 << 30,
            per_stream_burst=1 << 30,
        )  # fmt: skip
        with LokiServer(limits=limits) as loki, FaultProxy(("127.0.0.1", loki.port)) as self._proxy:
            self._daemon = Daemon(self._directory / "daemon", self._config())
            watcher = threading.Thread(target=self._watch, daemon=True)
            watcher.start()
            with self._daemon as daemon:
                self._up_since = time.monotonic()
                deadline = time.monotonic() + seconds
                while time.monotonic() < deadline:
                    for _ in range(self._random.randrange(60)):
                        self._write()
                    name, fault = self._random.choice(self._all_faults())
                    self.faults[name] += 1
                    fault()
                    self._over.wait(self._random.uniform(*PAUSE))
                self._proxy.switch("pass")
                if not daemon.running:
                    self._start()
                daemon.reload(self._config())
                arrived = eventually(lambda: not self._missing(loki), timeout=SETTLE, every=1.0)
                self._over.set()
                watcher.join()
                assert arrived, self._told(f"missing after {SETTLE:.0f} s: {self._missing(loki)}")
                doubled = [number for number, count in self._stored().items() if count > 1]
                assert not doubled, self._told(f"stored twice in SQLite: {doubled[:10]} of {len(doubled)}")
                assert not self._silent, self._told("; ".join(self._silent[:5]))
                began = time.monotonic()
                code = daemon.term(timeout=TERM)
                assert code == 0, self._told(f"SIGTERM gave {code} after {time.monotonic() - began:.1f} s")

    def _told(self, what: str) -> str:
        return f"seed {self.seed}: {what} (faults so far: {dict(self.faults)})"

    def _config(self, **changes: Any) -> dict[str, Any]:
        assert self._proxy is not None
        return {
            "sources": {
                "docker": {"type": "docker", "path": str(self._directory / "containers")},
                "app": {"type": "file", "include": [str(self._plain)]},
            },
            "transforms": {"mask": {"type": "redact", "rules": ["password", "bearer_token", "email", "card"]}},
            "sinks": {
                "db": {"type": "sqlite", "path": str(self._database)},
                "loki": {"type": "loki", "endpoint": f"http://127.0.0.1:{self._proxy.port}", "timeout": "5s"},
            },
            "active": ["db", "loki"],
            **changes,
        }

    # What is written

    def _write(self) -> None:
        text = self._line(f"<#{self.written}#>")
        self.written += 1
        if self._random.random() < 0.3:
            with self._plain.open("ab") as file:
                data = text.encode(errors="surrogateescape")
                middle = self._random.randrange(len(data)) if self._random.random() < 0.1 else 0
                if middle:
                    file.write(data[:middle])
                    file.flush()
                    self._over.wait(0.01)
                file.write(data[middle:] + b"\n")
        else:
            log = self._random.choice(self._containers)
            log.clock_ns = max(log.clock_ns, time.time_ns())
            log.write(text.encode(errors="replace").decode(), self._random.choice(["stdout", "stderr"]))

    def _line(self, mark: str) -> str:
        pick, many = self._random.choice, self._random.choice([1, 10, 300, 5_000])
        now = time.gmtime()
        iso, common = time.strftime("%Y-%m-%dT%H:%M:%S", now), time.strftime("%d/%b/%Y:%H:%M:%S +0000", now)
        return pick(
            [
                f"plain {mark} {'x' * many}",
                f"{iso}.000Z [error] {mark} fallback",
                json.dumps({"level": "warn", "message": f"{mark} json", "n": many, "timestamp": f"{iso}Z"}),
                json.dumps({"message": mark, **{f"k{i}": i for i in range(min(many, 500))}}),
                f'{{"message":"{mark}","deep":{"[" * many}{"]" * many}}}',
                f'{{"message":"{mark}","deep":{"[" * 980}{"]" * 980}}}',
                f'{{"message":"{mark}","wide":{"9" * many}}}',
                f'{{"message":"{mark} \\ud800","x":"\\u0000"}}',
                f"level=info msg={mark} {'a=b ' * many}",
                f"{mark} {'4111 1111 ' * many}",
                f"{mark} {'2026-11-22 ' * many}",
                f"{mark} Error{'Error' * many}x",
                f'127.0.0.1 - - [{common}] "GET /{mark} HTTP/1.1" 500 9 "-" "{"a" * many}"',
                f"{mark} \x00\x1b[31m\x9b\u202e nul, escape, C1, bidi",
                f"{mark} \udcff\udcfe not UTF-8",
                mark + "{" * many + '"' * many,
            ]
        )

    # What goes wrong

    def _all_faults(self) -> list[tuple[str, Callable[[], object]]]:
        assert self._proxy is not None
        proxy = self._proxy
        return [
            ("none", lambda: None),
            ("pass", lambda: proxy.switch("pass")),
            ("latency", lambda: proxy.switch("latency", seconds=0.2)),
            ("reset", proxy.reset_all),
            ("cut answers", lambda: proxy.switch("cut_answer")),
            ("half answers", lambda: proxy.switch("half_answer")),
            ("cut requests", lambda: proxy.switch("cut_upstream", after_bytes=2_000)),
            ("refuse", lambda: proxy.switch("refuse")),
            ("rotate", lambda: self._random.choice(self._containers).rotate()),
            ("rename", self._rename),
            ("lock the database", self._lock),
            ("kill", self._kill),
            ("term", self._term),
            ("freeze", self._freeze),
            ("reload", lambda: self._reload(self._config(log={"level": self._random.choice(["info", "warn"])}))),
            ("reload without mask", lambda: self._reload(self._config(transforms={}))),
            ("reload refused", lambda: self._reload(self._config(active="nobody"))),
            ("reload garbage", self._garbage),
        ]

    def _rename(self) -> None:
        for number in range(self.faults["rename"], 0, -1):
            older = self._plain.with_name(f"app.log.{number}")
            if older.exists():
                older.rename(self._plain.with_name(f"app.log.{number + 1}"))
        self._plain.rename(self._plain.with_name("app.log.1"))
        self._plain.touch()

    def _lock(self) -> None:
        if not self._database.exists():
            return
        try:
            with sqlite_database(self._database) as database:
                database.execute("BEGIN IMMEDIATE")
                self._over.wait(self._random.uniform(0.1, 2.0))
                database.execute("ROLLBACK")
        except apsw.BusyError:
            pass

    def _kill(self) -> None:
        self._up_since = None
        self._daemon.kill9()
        while self._random.random() < 0.3:  # again while it starts
            self._daemon.configure(self._config())
            self._daemon.start(wait=False)
            self._over.wait(self._random.uniform(0.0, 0.5))
            self._daemon.kill9()
        self._start()

    def _term(self) -> None:
        self._up_since = None
        code = self._daemon.term(timeout=TERM)
        assert code == 0, self._told(f"SIGTERM gave {code}")
        self._start()

    def _start(self) -> None:
        self._daemon.configure(self._config())
        self._daemon.start()
        self._up_since = time.monotonic()

    def _freeze(self) -> None:
        self._up_since = None
        self._daemon.signal(signal.SIGSTOP)
        self._over.wait(self._random.uniform(0.1, 2.0))
        self._daemon.signal(signal.SIGCONT)
        self._up_since = time.monotonic()

    def _reload(self, config: dict[str, Any]) -> None:
        assert self._daemon.running, self._told(f"the daemon has ended: {self._daemon.log[-2000:]}")
        self._daemon.reload(config)

    def _garbage(self) -> None:
        assert self._daemon.running, self._told(f"the daemon has ended: {self._daemon.log[-2000:]}")
        self._daemon.path.write_bytes(
            self._random.choice([b"", b"a: [", b"\0", b"[" * 900, b"a: &a [*a]", b"\xff\xfe"])
        )
        self._daemon.signal(signal.SIGHUP)

    # What must be true

    def _watch(self) -> None:
        while not self._over.wait(1.0):
            up_since = self._up_since
            if up_since is None or time.monotonic() - up_since < ANSWER:
                continue
            status, body = self._daemon.get("/healthz", timeout=ANSWER)
            # Asked again if it was killed or frozen meanwhile.
            if status != 200 and self._up_since == up_since:
                self._silent.append(f"healthz said {status} {body[:500]}")

    def _stored(self) -> Counter[int]:
        if not self._database.exists():
            return Counter()
        with sqlite_database(self._database, read_only=True) as database:
            rows = database.execute("SELECT message, details FROM activity_logs")
            return Counter(number for message, details in rows for number in _numbers(f"{message} {details}"))

    def _missing(self, loki: LokiServer) -> str:
        try:
            stored = set(self._stored())
        except apsw.Error as error:
            return str(error)
        wanted = set(range(self.written))
        found = {
            "db": stored,
            "loki": {number for _, _, line, meta in loki.entries() for number in _numbers(f"{line} {meta}")},
        }
        gaps = []
        for sink, there in found.items():
            letters = DeadLetters(self._directory / "daemon" / "state" / "dead-letter" / f"{sink}.jsonl")
            refused = {number for entry in letters.entries() for number in _numbers(f"{entry.message} {entry.raw}")}
            gap = wanted - there - refused
            if gap:
                gaps.append(f"{sink}: {len(gap)} of {self.written}, such as {sorted(gap)[:5]}")
        return "; ".join(gaps)


def _numbers(text: str) -> set[int]:
    """Give the lines that a record holds: an undated line may belong to the dated one before it."""
    return {int(number) for number in _NUMBER.findall(text)}


@contextmanager
def _kept(directory: Path | None) -> Iterator[Path]:
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        yield directory
    else:
        with tempfile.TemporaryDirectory(prefix="shipper-soak-") as name:
            yield Path(name)


def main() -> None:
    """Run until the time is over; exit 1 with what is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=3600, help="how long faults are made")
    parser.add_argument("--seed", type=int, default=None, help="repeat the faults of an earlier run")
    parser.add_argument("--round", type=float, default=300, help="seconds after which everything is looked at")
    parser.add_argument("--directory", type=Path, default=None, help="where to work; kept")
    options = parser.parse_args()
    first = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    deadline, number = time.monotonic() + options.seconds, 0
    while (left := deadline - time.monotonic()) > 0:
        seed = first + number
        sys.stdout.write(f"seed {seed}: ")
        sys.stdout.flush()
        with _kept(options.directory and options.directory / str(seed)) as directory:
            soak = Soak(directory, seed)
            soak.run(min(options.round, left))
        sys.stdout.write(f"{soak.written} lines, {sum(soak.faults.values())} faults, nothing lost or doubled\n")
        sys.stdout.flush()
        number += 1


if __name__ == "__main__":
    main()
