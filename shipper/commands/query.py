"""``shipper query``: read logs back from a sink, the same way whatever the sink is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, tzinfo
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import click

from shipper.commands.options import config_option
from shipper.errors import ConfigError

if TYPE_CHECKING:
    from shipper.config.types import Config
    from shipper.reader import Condition, Query, Reader
    from shipper.record import Record
    from shipper.sink import SinkConfig

_HOUR = 3_600_000_000_000
_HELP = """Read logs back: the newest that match FILTER, oldest of them first.

\b
Examples:
  shipper query --since 2h 'level>=warn service:api "connection refused"'
  shipper query --user 42 --since yesterday -o json | jq .message
  shipper query --all 'http.response.status_code>=500' -o csv > errors.csv

FILTER: words and "quoted text" are searched in the message; level:error, level>=warn, service:(api worker), user_id:42,
status>=500, path:/^.api/i, trace_id:*; AND, OR, NOT or -, and parentheses.
"""


class Window(NamedTuple):
    """What part of time is asked for: nanoseconds since 1970, ``cursor`` the record to go on before."""

    since: int | None
    until: int | None
    cursor: tuple[int, str] | None


@click.command(help=_HELP)
@click.argument("filter_words", metavar="[FILTER]", nargs=-1)
@config_option("The configuration that names the sinks.")
@click.option("--sink", metavar="NAME", help="The sink to read; the active one by default.")
@click.option("--level", metavar="LEVEL", help="A level, several (error,fatal), or at least one (>=warn).")
@click.option("--service", metavar="NAME", help="Only this service.")
@click.option("--user", metavar="ID", help="Only this user: the attribute user_id.")
@click.option(
    "-s", "--since", "--from", metavar="TIME", help="From this time on: 2h, yesterday 18:00, 2026-11-22. [1h]"
)
@click.option("-u", "--until", "--to", metavar="TIME", help="Up to, but not with, this time.")
@click.option("--before", metavar="CURSOR", help="Go on before the record that an earlier answer ended with.")
@click.option("-n", "--limit", type=click.IntRange(min=1), default=200, show_default=True, help="How many at most.")
@click.option("--all", "everything", is_flag=True, help="Everything that matches: no limit, and all time unless told.")
@click.option(
    "-o", "--output", type=click.Choice(["pretty", "json", "raw", "logfmt", "csv"]), default="pretty", help="The form."
)
@click.option("--utc", is_flag=True, help="Times in UTC.")
@click.option("--tz", metavar="ZONE", help="Times in this zone, such as Europe/Berlin.")
@click.option("--color", type=click.Choice(["auto", "always", "never"]), default="auto", help="When to use colours.")
@click.option("--no-pager", is_flag=True, help="Never start a pager.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing; exit 0 if something matches, 1 if not.")
def command(
    *,
    filter_words: tuple[str, ...],
    path: Path,
    sink: str | None,
    level: str | None,
    service: str | None,
    user: str | None,
    since: str | None,
    until: str | None,
    before: str | None,
    limit: int,
    everything: bool,
    output: str,
    utc: bool,
    tz: str | None,
    color: str,
    no_pager: bool,
    quiet: bool,
) -> int:
    """Read logs back."""
    from shipper.config.loader import load
    from shipper.reader import Query
    from shipper.reading.timespan import parse_zone
    from shipper.routing.condition import compile_all

    started, now = time.monotonic(), time.time_ns()
    if utc and tz:
        raise click.UsageError("--utc and --tz are two answers to one question; give one")
    zone = parse_zone("UTC" if utc else tz or "local")
    window = _window(since, until, before, everything=everything, now=now, zone=zone)
    condition = compile_all([" ".join(filter_words), *_flag_terms(level, service, user)])
    config = load(path, os.environ)
    name, reader = open_reader(config, sink)
    try:
        query = Query(
            condition=condition,
            since=window.since,
            until=window.until,
            # One more than is shown tells whether there is more. A cursor cuts the answer afterwards.
            limit=1 if quiet else None if everything or window.cursor else limit + 1,
            oldest_first=everything,
        )
        found = _matching(_parsed(reader, query, config), condition, window)
        if quiet:
            return 0 if next(found, None) is not None else 1
        older = None
        if not everything:
            newest = list(islice(found, limit + 1))
            older = newest[limit - 1] if len(newest) > limit else None
            found = reversed(newest[:limit])
        count = _print(found, output, zone=zone, now=now, color=_colored(color), pager=not no_pager)
    finally:
        reader.close()
    _footer(count, older, window, now=now, zone=zone, sink=name, seconds=time.monotonic() - started)
    return 0


def open_reader(config: Config, name: str | None) -> tuple[str, Reader]:
    """Give the reader of the named sink, or of the first active one that can be read. Raises ConfigError."""
    from shipper import registry

    if name is not None and name not in config.sinks:
        raise ConfigError(f"there is no sink '{name}'; {registry.suggestion(name, list(config.sinks), noun='sinks')}")
    candidates = [name] if name is not None else [*config.active, *(n for n in config.sinks if n not in config.active)]
    for candidate in candidates:
        section = config.sinks[candidate]
        reader = registry.reader(section.type)
        if reader is not None:
            return candidate, cast("Callable[[SinkConfig], Reader]", reader)(section)
    kinds = ", ".join(f"{candidate} (type {config.sinks[candidate].type})" for candidate in candidates)
    raise ConfigError(f"nothing to read from: {kinds} cannot be read back; a database or a log service can, but otlp")


def _parsed(reader: Reader, query: Query, config: Config) -> Iterator[Record]:
    """Give what was read; raw lines are parsed as the pipeline would have."""
    if reader.parsed:
        return reader.read(query)
    from shipper.parse.reparse import reparse

    formats = {name: getattr(section, "parser", "auto") for name, section in config.sources.items()}
    return reparse(reader.read(query), formats)


def _flag_terms(level: str | None, service: str | None, user: str | None) -> Iterator[str]:
    import msgspec

    if level:
        yield f"level{level}" if level[0] in "<>=!" else f"level:({' '.join(level.split(','))})"
    for field, value in (("service", service), ("user_id", user)):
        if value is not None:
            yield f"{field}:{msgspec.json.encode(value).decode()}"


def _window(
    since: str | None, until: str | None, before: str | None, *, everything: bool, now: int, zone: tzinfo
) -> Window:
    from shipper.reading.timespan import parse_time

    start = parse_time(since, now_ns=now, zone=zone) if since else None
    end = parse_time(until, now_ns=now, zone=zone) if until else None
    cursor = None
    if before:
        moment, _, record = before.partition("/")
        at = parse_time(moment, now_ns=now, zone=zone)
        cursor = (at, record)
        end = at + 1 if end is None else min(end, at + 1)
    if start is None and not everything and not before:
        start = (now if end is None else end) - _HOUR
    if start is not None and end is not None and start >= end:
        raise ConfigError("--since is not before --until: no record can match")
    return Window(start, end, cursor)


def _matching(records: Iterator[Record], condition: Condition, window: Window) -> Iterator[Record]:
    """Apply the whole question again: a backend may give too much, never too little."""
    since, until, cursor = window
    for record in records:
        if (
            (since is None or record.time_ns >= since)
            and (until is None or record.time_ns < until)
            and (cursor is None or (record.time_ns, record.id) < cursor)
            and condition.matches(record)
        ):
            yield record


def _colored(wish: str) -> bool:
    if wish == "auto":
        return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return wish == "always"


def _print(records: Iterator[Record], output: str, *, zone: tzinfo, now: int, color: bool, pager: bool) -> int:
    from shipper.reading import display

    shows: dict[str, display.RecordFormat] = {
        "pretty": display.Pretty(zone=zone, now_ns=now, color=color),
        "json": display.json_line,
        "raw": display.raw_line,
        "logfmt": display.logfmt_line,
        "csv": display.csv_line,
    }
    show, count = shows[output], 0
    with _out(pager=pager and output == "pretty") as write:
        if output == "csv":
            write(display.csv_header())
        for record in records:
            write(show(record))
            count += 1
    return count


@contextmanager
def _out(*, pager: bool) -> Iterator[Callable[[str], object]]:
    """Give a function that prints: to a pager on a terminal, which quits by itself when all fits on one screen."""
    words = (os.environ.get("SHIPPER_PAGER") or os.environ.get("PAGER") or "less").split()
    program = shutil.which(words[0]) if pager and words and sys.stdout.isatty() else None
    if program is None:
        stream = sys.stdout.buffer
        yield lambda text: stream.write(text.encode("utf-8", "replace"))
        stream.flush()
        return
    child = subprocess.Popen(  # noqa: S603 - the user's own choice of pager
        [program, *words[1:]], stdin=subprocess.PIPE, env={"LESS": "FRX", **os.environ}
    )
    assert child.stdin is not None
    pipe = child.stdin
    # A pager that was quit has seen enough: that is no error, and the generator behind us ends here.
    with suppress(BrokenPipeError):
        yield lambda text: pipe.write(text.encode("utf-8", "replace"))
    with suppress(BrokenPipeError):
        pipe.close()
    while True:
        with suppress(KeyboardInterrupt):  # Ctrl-C belongs to the pager
            child.wait()
            return


def _footer(
    count: int, older: Record | None, window: Window, *, now: int, zone: tzinfo, sink: str, seconds: float
) -> None:
    from shipper.commands.marks import say
    from shipper.render import rfc3339

    def moment(time_ns: int) -> str:
        return f"{datetime.fromtimestamp(time_ns // 1_000_000_000, zone):%d %b %H:%M:%S}"

    start = "the beginning" if window.since is None else moment(window.since)
    end = now if window.until is None else window.until
    offset = datetime.fromtimestamp(end // 1_000_000_000, zone).strftime("%z")
    lines = f"{count} line" if count == 1 else f"{count} lines"
    shown = f"the newest {lines}" if older is not None else lines
    more = f". older: --before {rfc3339(older.time_ns)}/{older.id}" if older is not None else ""
    text = f"-- {shown}, {start} → {moment(end)} {offset[:3]}:{offset[3:]}, {sink}, {seconds:.2f} s{more} --"
    say(text, err=True)
