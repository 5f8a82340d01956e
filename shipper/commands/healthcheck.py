"""``shipper healthcheck``: would restarting the daemon help? For containers and supervisors."""

from __future__ import annotations

import os
from pathlib import Path

import click
import msgspec

from shipper.commands.options import config_option, url_option


class ComponentAnswer(msgspec.Struct):
    """What /healthz says of one component."""

    state: str
    detail: str = ""


class HealthAnswer(msgspec.Struct):
    """What /healthz says."""

    alive: bool = False
    faults: list[str] = []
    components: dict[str, ComponentAnswer] = {}


_HELP = """Ask the running daemon whether it is alive. Exit 0 when it is, 1 when restarting it could help.

A sink that is away, parked or throttled is not a reason to restart, so it does not fail this check; the line that is
printed names it. For an alert on sinks use `shipper status --check`. Of the configuration only `http` is read.

\b
Examples:
  shipper healthcheck
  shipper healthcheck --url http://127.0.0.1:8687
"""


@click.command("healthcheck", help=_HELP)
@config_option("The configuration that says where the daemon listens.")
@url_option
@click.option(
    "--timeout", type=click.FloatRange(min=0.1), default=4.0, show_default=True, help="Seconds to wait for the answer."
)
def command(*, path: Path, url: str | None, timeout: float) -> int:
    """Ask, print one line, and give the exit code."""
    from shipper.commands.marks import say
    from shipper.errors import ConfigError
    from shipper.telemetry.endpoint import Endpoint, SilentError

    try:
        endpoint = Endpoint.of_url(url) if url else Endpoint.of_file(path, os.environ)
    except ConfigError as error:
        if url:
            raise click.UsageError(str(error)) from error
        say(f"failed: {error}")
        return 1
    try:
        answer = endpoint.ask("/healthz", timeout=timeout)
    except SilentError as error:
        say(f"failed: {error}")
        return 1
    try:
        health = msgspec.convert(answer.body, HealthAnswer)
    except msgspec.ValidationError as error:
        say(f"failed: what answers at {endpoint} is not shipper, or not of this version: {error}")
        return 1
    say(_line(health))
    return 0 if health.alive else 1


def _line(health: HealthAnswer) -> str:
    if not health.alive:
        return f"failed: {'; '.join(health.faults or ['the daemon says so and gives no reason'])}"
    away = [
        f"{name} is {item.state}" + (f" ({item.detail})" if item.detail else "")
        for name, item in health.components.items()
        if item.state != "ok"
    ]
    return f"ok; {'; '.join(away)}" if away else "ok"
