"""``shipper spill``: what waits on disk for sinks, and giving up what a removed sink was never given."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shipper.commands.options import config_option

if TYPE_CHECKING:
    from shipper.config.types import Config

_config = config_option("The configuration that names the sinks and the state directory.")

_HELP = """Show or drop what waits on disk for a sink.

Lines that a sink cannot take now are spilled, and delivered when it can. The spill of a sink that was taken out of
the configuration stays until its section is put back or somebody drops it here.

\b
Examples:
  shipper spill ls
  shipper spill drop old_mysql
"""


@click.group(help=_HELP)
def command() -> None:
    """Group what can be done with spill."""


@command.command("ls")
@_config
def list_command(*, path: Path) -> None:
    """Count what waits for every sink: records, bytes, and whether anything delivers it."""
    from shipper.commands.marks import say
    from shipper.delivery.spill import survey
    from shipper.delivery.survey import pending_spills
    from shipper.routing.router import Router

    config = _load(path)
    used = Router(config.active, config.routes).sinks
    any_left = False
    for name in pending_spills(config.state_dir):
        found = survey(_directory(config, name))
        any_left = True
        state = "in use" if name in used else "draining" if name in config.sinks else "not in the configuration"
        say(f"{name}: at most {found.records} records, {found.bytes} bytes, {state}")
    if not any_left:
        click.echo("no spill")


@command.command("drop")
@click.argument("name")
@_config
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def drop_command(*, name: str, path: Path, yes: bool) -> int:
    """Delete what waits for the sink NAME, for good. Exit 1 when nothing does, or when the answer is no.

    Refused while NAME is in the configuration, and while the daemon runs: it may be delivering it.
    """
    from shipper.commands.marks import say
    from shipper.delivery.spill import survey
    from shipper.delivery.survey import pending_spills
    from shipper.state.checkpoint import Checkpoint
    from shipper.visible import one_line

    config = _load(path)
    if name in config.sinks:
        raise click.UsageError(
            f"'{name}' is in the configuration, so its spill will be delivered; take its section out first"
        )
    # Only a name that was listed is ever made a path.
    if name not in set(pending_spills(config.state_dir)):
        say(f"there is no spill of '{name}'", err=True)
        return 1
    # The lock of the state: no daemon runs, and none starts while we delete.
    checkpoint = Checkpoint(config.state_dir)
    try:
        directory = _directory(config, name)
        found = survey(directory)
        what = f"at most {found.records} records ({found.bytes} bytes) that were never delivered to {name}"
        if not yes and not click.confirm(one_line(f"Delete {what}, for good?"), err=True):
            return 1
        # The newest first: a drop that is interrupted leaves the oldest, in order.
        for segment in sorted(directory.glob("*.seg"), reverse=True):
            segment.unlink()
    finally:
        checkpoint.close()
    say(f"dropped {what}")
    return 0


def _load(path: Path) -> Config:
    from shipper.config.loader import load

    return load(path, os.environ)


def _directory(config: Config, name: str) -> Path:
    return config.state_dir / "spill" / name
