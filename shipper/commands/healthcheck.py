"""``shipper healthcheck``: would restarting the daemon help? For containers and supervisors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from shipper.commands.options import config_option, url_option

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
    alive = answer.body.get("alive") is True
    say(_line(answer.body, alive=alive))
    return 0 if alive else 1


def _line(state: dict[str, Any], *, alive: bool) -> str:
    if not alive:
        return f"failed: {'; '.join(map(str, state.get('faults') or ['the daemon says so and gives no reason']))}"
    away = [
        f"{name} is {item.get('state')}" + (f" ({item['detail']})" if item.get("detail") else "")
        for name, item in state.get("components", {}).items()
        if item.get("state") != "ok"
    ]
    return f"ok; {'; '.join(away)}" if away else "ok"
