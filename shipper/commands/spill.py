"""``shipper spill``: what waits on disk for sinks, and giving up what a removed sink was never given."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shipper.commands.options import config_option

if TYPE_CHECKING:
    from collections.abc import Callable

    from shipper.config.types import Config
    from shipper.delivery.spill import Inspection
    from shipper.record import Batch
    from shipper.state.checkpoint import Cursor

_config = config_option("The configuration that names the sinks and the state directory.")

_HELP = """Show, check, repair, export or drop what waits on disk for a sink.

Lines that a sink cannot take now are spilled, and delivered when it can. The spill of a sink that was taken out of
the configuration stays until its section is put back or somebody drops it here.

\b
Examples:
  shipper spill ls
  shipper spill check
  shipper spill export old_mysql > old_mysql.ndjson
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


@command.command("check")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@_config
def check_command(*, names: tuple[str, ...], path: Path) -> int:
    """Read all that waits, or what waits for NAME, and say what is damaged. Changes nothing. Exit 1 if anything is.

    Works while the daemon runs. Damage never stops a delivery: what is whole is delivered, the rest counted as lost.
    """
    from shipper.commands.marks import say

    config = _load(path)
    found = _named(config, names)
    if found is None:
        return 1
    damaged = False
    for name in found:
        seen = _inspect(config, name)
        say(f"{name}: {seen.records} records in {seen.batches} batches are whole, {seen.lost} records are lost")
        for damage in seen.damages:
            say(f"  {damage.path}: bytes {damage.start} to {damage.end}: {damage.why}")
        if seen.torn:
            say(f"  {seen.torn} bytes at the end were never written to their end; nothing is lost with them")
        damaged = damaged or bool(seen.lost or seen.damages)
    if not found:
        click.echo("no spill")
    return 1 if damaged else 0


@command.command("export")
@click.argument("name")
@_config
def export_command(*, name: str, path: Path) -> int:
    """Print what waits for the sink NAME as JSON lines, as far as it can be read. Exit 1 when nothing waits.

    Changes nothing, and works while the daemon runs.
    """
    from shipper.commands.marks import say, say_json

    config = _load(path)
    found = _named(config, (name,))
    if not found:
        return 1

    def write(batch: Batch) -> None:
        for record in batch.records():
            say_json(
                {
                    "id": record.id,
                    "time": record.time_ns,
                    "level": record.level,
                    "message": record.message,
                    "attributes": record.attributes,
                    "raw": record.raw,
                    "resource": {"source": record.resource.source, "attributes": record.resource.attributes},
                    "offset": record.offset,
                }
            )

    seen = _inspect(config, name, write)
    if seen.lost:
        say(f"{seen.lost} records cannot be read; shipper spill check {name} says where", err=True)
    return 0


@command.command("repair")
@click.argument("name")
@_config
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def repair_command(*, name: str, path: Path, yes: bool) -> int:
    """Write the spill of the sink NAME anew from what is whole, and count the rest as lost. Exit 1 when the answer is no.

    Refused while the daemon runs. The damaged files are kept beside the spill, for whoever can make more of them.
    """
    from shipper.commands.marks import say
    from shipper.delivery.spill import repair
    from shipper.state.checkpoint import Changes, Checkpoint, Cursor, GivenUp

    config = _load(path)
    if not _named(config, (name,)):
        return 1
    # The lock of the state: no daemon runs, and none starts while we write.
    checkpoint = Checkpoint(config.state_dir)
    try:
        state = checkpoint.sinks().get(name)
        cursor = Cursor(state.segment, state.offset, state.record) if state is not None else Cursor(0, 0)
        seen = _inspect(config, name, cursor=cursor)
        if not seen.damages and not seen.lost:
            say(f"{name}: nothing is damaged, {seen.records} records are whole")
            return 0
        what = f"{seen.records} records and count {seen.lost} as lost"
        if not yes and not click.confirm(f"Keep {what}?", err=True):
            return 1
        kept = repair(_directory(config, name), cursor)
        if seen.lost:
            now = time.time_ns()
            checkpoint.save(Changes(given_up=[GivenUp(name, "spill_damaged", seen.lost, now, now)], durable=True))
    finally:
        checkpoint.close()
    say(f"{name}: {seen.records} records kept, {seen.lost} lost")
    for file in kept:
        say(f"  damaged file kept: {file}")
    return 0


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
        # Without it nobody takes what is gone for lost. The newest first: a drop that is interrupted leaves the oldest.
        (directory / "end").unlink(missing_ok=True)
        for segment in sorted(directory.glob("*.seg"), reverse=True):
            segment.unlink()
    finally:
        checkpoint.close()
    say(f"dropped {what}")
    return 0


def _load(path: Path) -> Config:
    from shipper.config.loader import load

    return load(path, os.environ)


def _named(config: Config, names: tuple[str, ...]) -> list[str] | None:
    """Give the sinks that have spill, or those of the names; None when one of those has none, which is then told."""
    from shipper.commands.marks import say
    from shipper.delivery.survey import pending_spills

    there = list(pending_spills(config.state_dir))
    for name in names:
        # Only a name that was listed is ever made a path.
        if name not in there:
            say(f"there is no spill of '{name}'", err=True)
            return None
    return list(names) or there


def _inspect(
    config: Config, name: str, on_batch: Callable[[Batch], None] = lambda _batch: None, cursor: Cursor | None = None
) -> Inspection:
    import sqlite3

    from shipper.delivery.spill import inspect
    from shipper.state.checkpoint import Cursor, spill_cursor

    if cursor is None:
        try:
            cursor = spill_cursor(config.state_dir, name)
        except sqlite3.Error:
            cursor = Cursor(0, 0)
    return inspect(_directory(config, name), cursor, on_batch)


def _directory(config: Config, name: str) -> Path:
    return config.state_dir / "spill" / name
