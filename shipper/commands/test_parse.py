"""``shipper test-parse``: what each line of a file becomes, by the very source and parser that would ship it."""

from __future__ import annotations

import gzip
import shutil
import sys
import tempfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate, chain, islice
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, BinaryIO, cast

import click

if TYPE_CHECKING:
    from shipper.record import Batch, Record
    from shipper.source import FileState, Source

_HELP = """Show what each line of FILE becomes, without shipping it.

FILE may be a Docker json-file log or any text file, plain or gzipped.

\b
Examples:
  shipper test-parse app.log
  shipper test-parse --parser fallback logs/fallback.log
  shipper test-parse -o json /var/lib/docker/containers/ID/ID-json.log | jq .attributes
"""

_GZIP = b"\x1f\x8b"
_DOCKER = b'{"log":"'
#: The name of the container when the file's directory does not say one.
_UNNAMED = "0" * 64


@click.command(help=_HELP)
@click.argument("path", metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--parser", default="auto", show_default=True, help="The format to parse the lines as.")
@click.option(
    "-n", "--limit", type=click.IntRange(min=0), default=1000, show_default=True, help="Lines to read; 0 for all."
)
@click.option("-o", "--output", type=click.Choice(["pretty", "json"]), default="pretty", help="The form.")
def command(*, path: Path, parser: str, limit: int, output: str) -> int:
    """Show what lines become."""
    from shipper.commands.marks import say
    from shipper.parse import Parser

    reading, positions = Parser(parser), _MemoryPositions()
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="shipper-test-parse-") as work:
        copied = _LinesCopy(path, Path(work), limit=limit)
        for batch in _read(copied.source(), positions):
            reading.parse(batch)
            for record in batch.records():
                counts[record.level] += 1
                text = _json(record) if output == "json" else _pretty(record, copied.line_of(record.offset))
                sys.stdout.buffer.write(text.encode("utf-8", "replace"))
    sys.stdout.flush()
    summary = ", ".join(f"{count} {level}" for level, count in counts.most_common())
    kind = "Docker json-file" if copied.docker else "plain"
    click.echo(f"-- {kind}: {copied.lines} lines became {counts.total()} records: {summary or 'none'} --", err=True)
    for cause in positions.causes:
        say(f"lost: {cause}", err=True)
    return 3 if positions.causes else 0


class _LinesCopy:
    """The first lines of the file, unpacked and put where a source would find them."""

    def __init__(self, path: Path, work: Path, *, limit: int) -> None:
        with _opened(path) as lines:
            first = lines.readline()
            self.docker = first.startswith(_DOCKER)
            if self.docker:
                name = path.name.partition("-json.log")[0]
                name = name if len(name) == len(_UNNAMED) else _UNNAMED
                self._target = work / name / f"{name}-json.log"
                self._target.parent.mkdir()
                about = path.with_name("config.v2.json")
                if about.is_file():
                    shutil.copy(about, self._target.parent)
            else:
                self._target = work / "lines.log"
            sizes = []
            with self._target.open("wb") as copy:
                rest = islice(lines, limit - 1) if limit else lines
                for line in chain([first], rest):
                    copy.write(line)
                    sizes.append(len(line))
        self.lines = sum(size > 0 for size in sizes)
        self._starts = list(accumulate(sizes, initial=0))[:-1]
        self._work = work

    def source(self) -> Source:
        """Build the source that reads the copy."""
        import msgspec

        from shipper import registry

        kind = registry.source("docker" if self.docker else "file")
        section = {"path": str(self._work)} if self.docker else {"include": [str(self._target)]}
        return kind(msgspec.convert({"type": "docker" if self.docker else "file", **section}, kind.config))

    def line_of(self, offset: int) -> int:
        """Give the number, from 1, of the line that holds the byte at the offset."""
        return max(1, bisect_right(self._starts, offset))


class _MemoryPositions:
    """Positions that begin at nothing and end with the command."""

    def __init__(self) -> None:
        self.causes: list[str] = []
        self._keys = 0

    def files(self, source: str) -> list[FileState]:  # noqa: ARG002
        return []

    def add(self, state: FileState) -> FileState:
        self._keys += 1
        state.key = self._keys
        return state

    def update(self, state: FileState) -> None:
        """Nothing to keep."""

    def refresh(self, state: FileState) -> None:
        """Nothing is ever safe."""

    def forget(self, key: int) -> None:
        """Nothing to forget."""

    def safe(self, key: int) -> int:  # noqa: ARG002
        return 1 << 62

    def lost(self, state: FileState, start: int, end: int, cause: str) -> None:  # noqa: ARG002
        self.causes.append(f"bytes {start} to {end}: {cause}")

    def anchors(self, key: int) -> list[tuple[int, int, int]]:  # noqa: ARG002
        return []

    def anchor(self, key: int, start: int, end: int, time_ns: int) -> None:
        """Undated lines are shown undated."""


def _read(source: Source, positions: _MemoryPositions) -> Iterator[Batch]:
    from shipper.clock import SystemClock
    from shipper.source import SourceContext

    woken = Event()
    clock = SystemClock()
    source.open(
        SourceContext(name="test-parse", positions=positions, clock=clock, wake=woken.set, host="localhost", once=True)
    )
    try:
        while True:
            yield from (batch for batch in source.poll(lambda _at_risk: True) if len(batch))
            if source.exhausted():
                return
            clock.wait(woken, min(source.idle(), 0.1))
            woken.clear()
    finally:
        source.close()


def _opened(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        packed = file.read(2) == _GZIP
    return cast("BinaryIO", gzip.open(path) if packed else path.open("rb"))


def _pretty(record: Record, line: int) -> str:
    from shipper.reading.display import value_text
    from shipper.render import rfc3339
    from shipper.visible import key_text, one_line, visible

    when = rfc3339(record.time_ns) if record.time_ns else "no time"
    message, *more = visible(record.message).split("\n")
    rows = [
        f"line {line}: {record.level.upper()} {when} {one_line(record.resource.stream)}".rstrip(),
        f"  message  {message}",
        *(f"         │ {further}" for further in more),
    ]
    rows += [f"  {key_text(name)}={one_line(value_text(value))}" for name, value in record.attributes.items()]
    return "\n".join(rows) + "\n"


def _json(record: Record) -> str:
    from shipper.reading.display import json_line

    return json_line(record)
