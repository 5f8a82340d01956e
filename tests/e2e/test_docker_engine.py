"""A real Docker engine writes and rotates; what the sinks hold is what was written, line for line, none twice."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.arrivals import difference, sqlite_rows, wait_for
from support.daemon import Daemon, eventually
from support.docker_engine import DockerEngine, shell_lines, shell_writer

pytestmark = pytest.mark.docker


class Shipped:
    """A daemon between the engine and two sinks: ``sqlite`` and ``file`` with the lines as they were written."""

    def __init__(self, engine: DockerEngine, daemon: Daemon, *, database: Path, lines: Path) -> None:
        self.engine, self.daemon, self.database, self._lines = engine, daemon, database, lines
        self.used: list[str] = []

    def name(self) -> str:
        """A container name that no other test uses; the container is removed when the test ends."""
        self.used.append(f"t-{uuid.uuid4().hex[:8]}")
        return self.used[-1]

    def rows(self, *names: str, columns: str = "message") -> list[tuple[str, ...]]:
        """The rows of the given containers, in order of time."""
        found = sqlite_rows(self.database, f"container, {columns}")
        return [row[1:] for row in found if row[0] in names]

    def messages(self, *names: str) -> list[str]:
        return [row[0] for row in self.rows(*names)]

    def text(self) -> bytes:
        """What the raw sink wrote; only the test's own containers write while its daemon runs."""
        return self._lines.read_bytes() if self._lines.exists() else b""

    def check(self, written: list[str], *names: str, timeout: float = 20.0) -> None:
        """Both sinks hold exactly these lines, also after the daemon has stopped."""
        wait_for(written, lambda: self.messages(*names), timeout=timeout)
        eventually(lambda: self.text().count(b"\n") >= len(written), timeout=5)
        assert self.daemon.term() == 0
        assert difference(written, self.messages(*names)) == ""
        assert difference(written, self.text().decode().split("\n")[:-1]) == ""


@pytest.fixture
def shipped(engine: DockerEngine, make_daemon: Callable[..., Daemon], tmp_path: Path) -> Iterator[Shipped]:
    database, lines = tmp_path / "logs.db", tmp_path / "lines.log"
    daemon = make_daemon(
        {
            "sources": {"docker": {"type": "docker", "path": str(engine.containers)}},
            "sinks": {
                "db": {"type": "sqlite", "path": str(database)},
                "raw": {"type": "file", "path": str(lines), "format": "raw"},
            },
            "active": ["db", "raw"],
        }
    )
    daemon.start()
    shipped = Shipped(engine, daemon, database=database, lines=lines)
    yield shipped
    daemon.kill9()
    engine.remove(*shipped.used)


@pytest.mark.parametrize(
    ("max_size", "max_file", "compress"),
    [("60k", 1, False), ("20k", 4, False), ("20k", 4, True)],
    ids=["max-file=1", "max-file=4", "compressed"],
)
def test_every_line_arrives_through_rotation(shipped: Shipped, max_size: str, max_file: int, compress: bool) -> None:
    name = shipped.name()
    options = {"max-size": max_size, "max-file": max_file, "compress": str(compress).lower()}
    shipped.engine.run(shell_writer(3000, padding=60), name=name, log_opts=options)
    assert shipped.engine.wait(name) == 0
    shipped.check(shell_lines(3000, padding=60), name)


@pytest.mark.parametrize(("max_size", "max_file"), [("150k", 1), ("60k", 4)], ids=["max-file=1", "max-file=4"])
def test_lines_over_16_kib_arrive_whole_also_across_rotation(shipped: Shipped, max_size: str, max_file: int) -> None:
    """Each line is two to four of Docker's parts, so most rotations fall inside a line.

    A file lives for longer than any machine stalls: one that is made and unlinked within a write of the container
    is gone before anybody can open it.
    """
    name = shipped.name()
    sizes = [16380 + 10 * i for i in range(8)] + [16384 * 2 + i for i in range(-9, 9)] + [60_000] * 4
    script = "".join(
        f"printf 'big {i} '; head -c {size} /dev/zero | tr '\\0' a; echo; usleep 60000\n"
        for i, size in enumerate(sizes)
    )
    shipped.engine.run(script, name=name, log_opts={"max-size": max_size, "max-file": max_file})
    assert shipped.engine.wait(name) == 0
    shipped.check([f"big {i} {'a' * size}" for i, size in enumerate(sizes)], name)


def test_a_terminal_container_arrives_without_carriage_returns(shipped: Shipped) -> None:
    name = shipped.name()
    shipped.engine.run(shell_writer(300), name=name, tty=True, log_opts={"max-size": "20k", "max-file": 4})
    shipped.engine.wait(name)
    assert wait_for(shell_lines(300), lambda: shipped.messages(name)) == ""


def test_containers_that_live_300_ms_and_are_removed_arrive_whole(shipped: Shipped) -> None:
    """Lines at the start and just before the end; Docker deletes the directory the moment each has ended."""
    names = [shipped.name() for _ in range(10)]
    for name in names:
        script = f"{shell_writer(25, prefix=name)}; usleep 300000; {shell_writer(25, prefix=f'{name} end')}"
        shipped.engine.run(script, name=name, remove=True)
    written = [line for name in names for line in shell_lines(25, prefix=name) + shell_lines(25, prefix=f"{name} end")]
    shipped.check(written, *names)


def test_restart_and_rename_go_on_where_they_were_under_the_new_name(shipped: Shipped) -> None:
    first = shipped.name()
    shipped.engine.run(f"{shell_writer(200)}; sleep 60", name=first)
    assert wait_for(shell_lines(200), lambda: shipped.messages(first)) == ""
    second = shipped.name()
    shipped.engine.docker("rename", first, second)
    shipped.engine.docker("restart", "--time", "0", second)
    assert wait_for(shell_lines(200), lambda: shipped.messages(second)) == ""
    shipped.check(shell_lines(200) * 2, first, second)


def test_both_streams_arrive_apart_and_equal_what_docker_logs_says(shipped: Shipped) -> None:
    name = shipped.name()
    script = "i=0; while [ $i -lt 500 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done"
    shipped.engine.run(script, name=name)
    shipped.engine.wait(name)
    wait_for(["x"] * 1000, lambda: shipped.messages(name))
    streams = shipped.engine.logs(name)
    for stream, said in zip(("stdout", "stderr"), streams, strict=True):
        rows = shipped.rows(name, columns="message, stream")
        assert [row[0] for row in rows if row[1] == stream] == said.decode().splitlines()


def test_a_last_line_without_newline_arrives_and_is_not_glued_to_the_next_run(shipped: Shipped) -> None:
    name = shipped.name()
    shipped.engine.run("echo one; printf two", name=name)
    shipped.engine.wait(name)
    assert wait_for(["one", "two"], lambda: shipped.messages(name)) == ""
    shipped.engine.docker("start", name)
    shipped.engine.wait(name)
    shipped.check(["one", "two"] * 2, name)


def test_odd_lines_arrive_as_the_container_wrote_them(shipped: Shipped) -> None:
    """Empty lines, blanks, tabs, quotes, escapes, colours and other alphabets: the raw sink equals ``docker logs``."""
    name = shipped.name()
    script = (
        "echo first; echo; printf '  two blanks\\n'; printf 'tab\\tin it\\n'; printf '\"quoted\" and back\\\\slash\\n';"
        " printf '\\033[31mred\\033[0m\\n'; printf 'caf\\303\\251 \\346\\227\\245 \\360\\237\\220\\263\\n';"
        " printf '<html> & </html>\\n'; printf 'trailing blanks   \\n'; printf 'bell \\007\\n'; echo last"
    )
    shipped.engine.run(script, name=name)
    shipped.engine.wait(name)
    said = shipped.engine.logs(name)[0]
    eventually(lambda: shipped.text().endswith(b"last\n"))
    assert shipped.text() == said


def test_what_was_written_and_rotated_before_the_daemon_started_arrives_too(
    engine: DockerEngine, make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    """Files compressed and not, of a container that has ended: everything still on disk, oldest first, once."""
    name = f"t-{uuid.uuid4().hex[:8]}"
    options = {"max-size": "20k", "max-file": 9, "compress": "true"}
    try:
        engine.run(shell_writer(700, padding=60), name=name, log_opts=options)
        engine.wait(name)
        assert eventually(lambda: len(list(engine.directory(name).glob("*.gz"))) >= 3)
        daemon = make_daemon(
            {
                "sources": {"docker": {"type": "docker", "path": str(engine.containers)}},
                "sinks": {"db": {"type": "sqlite", "path": str(tmp_path / "logs.db")}},
            }
        )
        assert daemon.once().code == 0
        rows = [row[0] for row in sqlite_rows(tmp_path / "logs.db", "message, container") if row[1] == name]
        assert rows == shell_lines(700, padding=60)
        assert daemon.once().code == 0
        assert len([row for row in sqlite_rows(tmp_path / "logs.db", "container") if row[0] == name]) == 700
    finally:
        engine.remove(name)
