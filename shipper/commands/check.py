"""``shipper check``: is this configuration fine? Reads the file and the secrets it names, opens no connection."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shipper.commands.options import config_option

if TYPE_CHECKING:
    from shipper.config import Config


@click.command(name="check")
@config_option("The configuration file.", show_envvar=True)
@click.option("-q", "--quiet", is_flag=True, help="Print nothing when the configuration is fine.")
def command(path: Path, quiet: bool) -> int:
    """Check a configuration, without running it.

    Tells every problem of the file at once, with its line and column, and exits with 78. Static: nothing is opened
    but the file itself and the secret files it names.
    """
    from shipper.loader import load

    config = load(path, os.environ)
    if not quiet:
        click.echo(f"{path}: fine: {summary(config)}")
    return 0


def summary(config: Config) -> str:
    """Say in one line what goes where."""
    sources = ", ".join(config.sources)
    text = f"{sources} -> {', '.join(config.active)}"
    if config.routes:
        text += f", {len(config.routes)} route{'s' if len(config.routes) > 1 else ''}"
    used = {*config.active, *(name for route in config.routes for name in route.sinks)}
    idle = [name for name in config.sinks if name not in used]
    return f"{text}; not in use: {', '.join(idle)}" if idle else text
