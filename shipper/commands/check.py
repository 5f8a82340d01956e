"""``shipper check``: is this configuration fine? And with ``--online``: do its sinks take records?"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shipper.commands.options import config_option

if TYPE_CHECKING:
    from shipper.config.types import Config
    from shipper.sink import Finding


@click.command(name="check")
@config_option("The configuration file.", show_envvar=True)
@click.option("-q", "--quiet", is_flag=True, help="Print nothing when the configuration is fine.")
@click.option("--online", is_flag=True, help="Also look at the sinks in use, and write a test record to each.")
@click.option("--offline", is_flag=True, help="Look at nothing but the file: its secret files may be missing.")
@click.option("--sink", "sinks", metavar="NAME", multiple=True, help="With --online: only this sink, in use or not.")
@click.option("--no-canary", is_flag=True, help="With --online: write no test record.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="With --online.")
def command(
    *, path: Path, quiet: bool, online: bool, offline: bool, sinks: tuple[str, ...], no_canary: bool, output: str
) -> int:
    """Check a configuration, without running it.

    Tells every problem of the file at once, with its line and column, and exits with 78. Static unless --online:
    nothing is opened but the file itself and the secret files it names, with --offline not even these: for whoever
    may not read them, as the command that systemd runs before a reload. Online every sink in use is examined, a test
    record is written to it and, where that can be, read back; exit 1 when a fault is found. Nothing but that record is
    written: where a table or the like would have to be made for it, none is.
    """
    if not online and (sinks or no_canary or output != "text"):
        raise click.UsageError("--sink, --no-canary and -o belong to --online")
    if online and offline:
        raise click.UsageError("--online and --offline: give one of them")
    from shipper.commands.marks import say
    from shipper.config.loader import load

    config = load(path, os.environ, secrets=not offline)
    if warning := _slow_expressions(config):
        click.echo(f"{path}: warning: {warning}", err=True)
    if not online:
        if not quiet:
            say(f"{path}: fine: {summary(config)}")
        return 0
    from shipper.clock import SystemClock
    from shipper.delivery.canary import examine

    failed = False
    for name in named(config, sinks):
        for finding in examine(config.sinks[name], clock=SystemClock(), canary=not no_canary):
            failed = failed or finding.verdict == "fail"
            if not quiet or finding.verdict != "ok":
                _print_finding(name, finding, output)
    return 1 if failed else 0


def _slow_expressions(config: Config) -> str:
    """Say that regular expressions of the user's run on an engine that a hostile line can hold up."""
    from shipper import registry
    from shipper.routing.condition import expressions_of
    from shipper.routing.pattern import LIMIT, linear_engine

    if linear_engine() is not None:
        return ""
    found = [source for route in config.routes for source in expressions_of(route.match)]
    for section in config.transforms.values():
        found += registry.transform(section.type)(section).expressions
    if not found:
        return ""
    what = f"the regular expression /{found[0]}/ runs" if len(found) == 1 else f"{len(found)} regular expressions run"
    return (
        f"{what} on Python's re, which a line that is made for it can hold up, and which looks at the first {LIMIT}"
        " characters of a text only; install RE2: pip install 'shipper[re2]'"
    )


def named(config: Config, names: tuple[str, ...]) -> tuple[str, ...]:
    """Give the sinks that were named, or those in use. Raises ConfigError for one that there is not."""
    from shipper.errors import ConfigError
    from shipper.registry import suggestion
    from shipper.routing.router import Router

    for name in names:
        if name not in config.sinks:
            raise ConfigError(f"there is no sink '{name}'; {suggestion(name, list(config.sinks), noun='sinks')}")
    return names or Router(config.active, config.routes).sinks


def _print_finding(name: str, finding: Finding, output: str) -> None:
    from shipper.commands.marks import say, say_json

    if output == "json":
        import msgspec

        say_json({"sink": name, **msgspec.to_builtins(finding)})
        return
    say(f"{name}: {finding.what}: {finding.evidence}", finding.verdict)
    if finding.fix and finding.verdict != "ok":
        say(f"  fix: {finding.fix}")


def summary(config: Config) -> str:
    """Say in one line what goes where."""
    sources = ", ".join(config.sources)
    text = f"{sources} -> {', '.join(config.active)}"
    if config.routes:
        text += f", {len(config.routes)} route{'s' if len(config.routes) > 1 else ''}"
    used = {*config.active, *(name for route in config.routes for name in route.sinks)}
    idle = [name for name in config.sinks if name not in used]
    return f"{text}; not in use: {', '.join(idle)}" if idle else text
