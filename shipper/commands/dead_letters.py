"""``shipper dead-letters``: what a sink refused for good, and sending it again once the cause is gone."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shipper.commands.options import config_option
from shipper.errors import ConfigError, RetryableError, SinkError

if TYPE_CHECKING:
    from shipper.config.types import Config
    from shipper.delivery.deadletter import DeadLetters
    from shipper.record import Batch
    from shipper.sink import Sink

_config = config_option("The configuration that names the sinks and the state directory.")
_sink = click.option("--sink", metavar="NAME", help="Only this sink.")


#: Bytes of a file that is not rewritten after each batch.
_LARGE = 8 << 20

_HELP = """List, show, send again or give up what a sink refused.

A record that a healthy backend would refuse again is written to a file under the state directory, with the reason,
and never blocks the others.

\b
Examples:
  shipper dead-letters ls
  shipper dead-letters show --sink mysql | jq .reason
  shipper dead-letters retry --sink mysql
  shipper dead-letters drop --sink mysql
"""


@click.group(help=_HELP)
def command() -> None:
    """Group what can be done with dead letters."""


@command.command("ls")
@_config
@_sink
def list_command(*, path: Path, sink: str | None) -> None:
    """Count the dead letters of every sink, by reason."""
    from shipper.commands.marks import say
    from shipper.secret import Masker, secret_values
    from shipper.units import format_size

    config = _load(path)
    mask = Masker(secret_values(config))
    any_left = False
    for name, letters in _letters(config, sink):
        # Only the counts stay in memory: a file may hold more than fits.
        reasons: Counter[tuple[str, str]] = Counter()
        newest = ""
        for entry in letters.entries():
            reasons[entry.code, _shape(entry.reason)] += 1
            newest = max(newest, entry.when)
        damaged = letters.damaged
        if not reasons and not damaged:
            continue
        any_left = True
        say(
            f"{name}: {reasons.total()} records, newest {newest or 'unknown'}, {format_size(letters.size)} on disk of"
            f" {format_size(letters.limit)}, {letters.path}"
        )
        for (code, reason), count in reasons.most_common(20):
            say(f"  {count:>8}  {f'[{code}] ' if code else ''}{mask(reason)}")
        if damaged:
            say(f"  {damaged:>8}  unreadable lines, left as they are")
    if not any_left:
        click.echo("no dead letters")


@command.command("show")
@click.argument("ids", metavar="[ID]...", nargs=-1)
@_config
@_sink
@click.option("-n", "--limit", type=click.IntRange(min=1), help="How many at most, per sink.")
def show_command(*, ids: tuple[str, ...], path: Path, sink: str | None, limit: int | None) -> int:
    """Print dead letters as JSON lines: all, or those with an ID. Exit 1 when there is none."""
    import msgspec

    from shipper.commands.marks import say_json
    from shipper.secret import Masker, secret_values

    config = _load(path)
    mask = Masker(secret_values(config))
    found = 0
    wanted = set(ids)
    for _, letters in _letters(config, sink):
        shown = 0
        for entry in letters.entries():
            if (wanted and entry.id not in wanted) or (limit is not None and shown >= limit):
                continue
            # The reason is the text of a client, which may quote its login. The record is the user's own.
            say_json({**msgspec.to_builtins(entry), "reason": mask.exactly(entry.reason)})
            shown += 1
        found += shown
    return 0 if found else 1


@command.command("drop")
@_config
@click.option("--sink", metavar="NAME", required=True, help="The sink whose dead letters are given up.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def drop_command(*, path: Path, sink: str, yes: bool) -> int:
    """Delete the dead letters of a sink, for good. Exit 1 when there are none, or when the answer is no."""
    from shipper.commands.marks import say

    ((name, letters),) = _letters(_load(path), sink)
    count = letters.count
    if not letters.parts():
        say(f"there are no dead letters of '{name}'", err=True)
        return 1
    if not yes and not click.confirm(f"Delete {count} records that {name} refused, for good?", err=True):
        return 1
    say(f"dropped {letters.drop()} records that were never delivered to {name}")
    return 0


@command.command("retry")
@_config
@_sink
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
def retry_command(*, path: Path, sink: str | None, quiet: bool) -> int:
    """Send dead letters again. What is refused again stays, with the new reason. Exit 3 if some are left."""
    from shipper import registry
    from shipper.commands.marks import say
    from shipper.secret import Masker, secret_values

    config = _load(path)
    mask = Masker(secret_values(config))
    left = 0
    trouble: SinkError | None = None
    for name, letters in _letters(config, sink):
        if not letters.count:
            continue
        section = config.sinks[name]
        target = registry.sink(section.type)(section)
        attempt = _Retry(target, letters)
        started = time.monotonic()
        try:
            attempt.run()
        except RetryableError as error:
            trouble = error
        finally:
            target.close()
        remaining = letters.count
        left += remaining
        if not quiet:
            seconds = time.monotonic() - started
            dropped = f", {attempt.dropped} dropped by a rule of the destination" if attempt.dropped else ""
            click.echo(
                f"{name}: {attempt.taken} taken, {attempt.refused} refused again{dropped}, {remaining} left,"
                f" {seconds:.2f} s"
            )
        for reason, count in attempt.reasons.most_common(5):
            say(f"  {count:>8}  {mask(reason)}", err=True)
    if trouble is not None:
        raise trouble
    return 3 if left else 0


class _Retry:
    """One attempt to send all dead letters of a sink. Counts what became of them."""

    def __init__(self, sink: Sink, letters: DeadLetters) -> None:
        self._sink = sink
        self._letters = letters
        self.taken = 0
        self.refused = 0
        self.dropped = 0
        self.reasons: Counter[str] = Counter()

    def run(self) -> None:
        """Send batch by batch and note each before the next, so that an interruption loses no result.

        Of a large file, which an older version left, the outcomes are noted at its end or when the sending ends, because
        each note rewrites the file. Raises RetryableError when the backend is away or the operator must act; what was
        not sent stays.
        """
        self._sink.open()
        for part in self._letters.parts():
            large = part.exists() and part.stat().st_size > _LARGE
            settled: set[str] = set()
            failed: dict[str, SinkError] = {}
            try:
                for batch in self._letters.batches(records=self._sink.limits.records, part=part):
                    self._send(batch, settled, failed)
                    if not large:
                        self._note(part, settled, failed)
            finally:
                self._note(part, settled, failed)

    def _note(self, part: Path, settled: set[str], failed: dict[str, SinkError]) -> None:
        self._letters.settle(settled, failed, part=part)
        self.refused += len(failed)
        self.reasons.update(_shape(str(error)) for error in failed.values())
        settled.clear()
        failed.clear()

    def _send(self, batch: Batch, settled: set[str], failed: dict[str, SinkError]) -> None:
        """Send a batch by the delivery's own rule, but for waiting."""
        from shipper.delivery.attempt import Attempt

        attempt = Attempt(batch, doubts=0)
        try:
            while not attempt.done:
                step = attempt.write(self._sink)
                self.taken += step.taken
                self.dropped += sum(step.dropped.values())
                if step.wait is not None:
                    raise step.wait
                if attempt.left() and not step.taken:
                    self._sink.open()
        finally:
            untold = {*attempt.left(), *attempt.refused}
            settled.update(identity for row, identity in enumerate(batch.ids) if row not in untold)
            failed.update((batch.ids[row], error) for row, error in attempt.refused.items())


def _load(path: Path) -> Config:
    from shipper.config.loader import load

    return load(path, os.environ)


def _letters(config: Config, name: str | None) -> Iterator[tuple[str, DeadLetters]]:
    from shipper.delivery.deadletter import DeadLetters
    from shipper.units import parse_size

    if name is not None and name not in config.sinks:
        from shipper.registry import suggestion

        raise ConfigError(f"there is no sink '{name}'; {suggestion(name, list(config.sinks), noun='sinks')}")
    for sink in config.sinks if name is None else [name]:
        limit = parse_size(config.sinks[sink].buffer.max_dead_letters)
        yield sink, DeadLetters(config.state_dir / "dead-letter" / f"{sink}.jsonl", limit=limit)


def _shape(reason: str) -> str:
    """Shorten a reason to one line of what is the same for many records."""
    first = reason.partition("\n")[0]
    return first if len(first) <= 160 else first[:159] + "…"
