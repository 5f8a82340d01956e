"""``shipper prepare``: show what a sink lacks at its destination, ask, and make it."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from pathlib import Path

import click

from shipper.commands.options import config_option

_HELP = """Make what sinks need at their destination: tables, columns, templates.

Everything that would be run is printed first, and run when the answer is yes. The daemon makes by itself what is new
there, and changes what it made; a table that somebody else made is changed by this command alone. Without SINK every
sink in use is looked at. Exit 1 when something is left to make.

\b
Examples:
  shipper prepare --print                 only show it, to be run by whoever may
  shipper prepare mysql
  shipper prepare mysql --yes             ask nothing, for scripts
"""


@click.command("prepare", help=_HELP)
@click.argument("sinks", nargs=-1, metavar="[SINK]...")
@config_option("The configuration file.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--print", "only_print", is_flag=True, help="Only print what would be run.")
def command(*, sinks: tuple[str, ...], path: Path, yes: bool, only_print: bool) -> int:
    """Look, print, ask, make, and give the exit code."""
    from shipper import registry
    from shipper.commands.check import named
    from shipper.commands.marks import say
    from shipper.config.loader import load

    if yes and only_print:
        raise click.UsageError("--yes and --print: give one of them")
    config = load(path, os.environ)
    left = False
    for name in named(config, sinks):
        section = config.sinks[name]
        with closing(registry.sink(section.type)(section)) as sink:
            changes = sink.changes()
            if not changes:
                say(f"{name}: nothing to make", err=only_print)
                continue
            say(f"-- {name}" if only_print else f"{name} ({section.type}) lacks:")
            for change in changes:
                for line in f"{change.text};".split("\n"):
                    say(line)
            if only_print or not (yes or _asked(name)):
                left = True
                continue
            sink.prepare()
            say(f"{name}: done")
    return 1 if left else 0


def _asked(name: str) -> bool:
    """Ask; where nobody can answer, the answer is no."""
    try:
        return click.confirm(f"\nRun this at {name}?", default=False)
    except click.Abort:
        if sys.stdin.isatty():
            raise
        click.echo("\nnobody is there to answer: nothing was run; --yes runs it", err=True)
        return False
