"""``shipper demo``: real Docker logs into an embedded database, and what they look like there."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import click

from shipper.errors import ConfigError

_CONFIG = """\
# Made by `shipper demo`. Change it and run it again.
sources:
  docker:   {{type: docker, path: {containers}}}
  fallback: {{type: file, include: [{fallback}], parser: fallback}}
transforms:
  mask: {{type: redact, rules: [password, bearer_token, jwt, email, card]}}
sinks:
  sqlite: {{type: sqlite, path: {database}}}
active: sqlite
state_dir: {state}
http: {{enabled: false}}
log: {{level: warn}}
"""


@click.command()
@click.option(
    "--dir",
    "directory",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where to put it all; a new temporary directory by default.",
)
@click.pass_context
def command(ctx: click.Context, *, directory: Path | None) -> int:
    """Ship packaged sample logs into SQLite with the real daemon, and show them.

    The logs were written by an application in Docker: JSON, access lines, stack traces, long lines in pieces, colours,
    and the file it falls back to without its database. Running it again ships nothing twice.
    """
    from shipper.commands import query
    from shipper.config.loader import load
    from shipper.daemon.daemon import Daemon
    from shipper.telemetry.logs import configure

    base = (directory or Path(tempfile.mkdtemp(prefix="shipper-demo-"))).absolute()
    config_path = _prepare(base)
    config = load(config_path, os.environ)
    log = configure(config.log)
    try:
        code = Daemon(config, once=True).run()
    finally:
        log.close()
    click.echo(f"Shipped the logs under {base / 'containers'} and {base / 'logs'} to {base / 'logs.db'}.\n", err=True)
    arguments = ["--config", str(config_path), "--all", "--no-pager", "level>=warn"]
    with query.command.make_context("query", arguments, parent=ctx) as inner:
        query.command.invoke(inner)
    click.echo(
        "\nNext:\n"
        f"  shipper query --config {config_path} --all 'http.response.status_code>=500'\n"
        f"  shipper query --config {config_path} --all -o json TypeError\n"
        f"  echo '2026-11-22T21:00:00Z [error] it works' >> {base / 'logs' / 'fallback.log'}\n"
        f"  {run_line(config_path, base / 'state')}          # ships what is appended, until Ctrl-C",
        err=True,
    )
    return code


def run_line(config: Path, state: Path, root: Path = Path("/")) -> str:
    """Give the command that goes on with the demo; in a container with leave to keep the state in it, for a trial."""
    from shipper.state.volume import OVERRIDE, short_lived

    doubt = short_lived(state, root)
    leave = f"{OVERRIDE}=allow " if doubt is not None and doubt.certain else ""
    return f"{leave}shipper run --config {config}"


def _prepare(base: Path) -> Path:
    """Copy the samples unless they are there, write the configuration unless it is there. Gives its path."""
    samples = Path(__file__).parent.parent / "demo_data"
    for name in ("containers", "logs"):
        if not (base / name).exists():
            try:
                shutil.copytree(samples / name, base / name)
            except OSError as error:
                raise ConfigError(
                    f"cannot put the demo into {base}: {error}; name another directory with --dir"
                ) from error
    config = base / "shipper.yaml"
    if not config.exists():
        import msgspec

        paths = {"containers": "containers", "fallback": "logs/fallback.log", "database": "logs.db", "state": "state"}
        # A path written as JSON text is YAML whatever characters are in it; $$ keeps the loader from interpolating.
        quoted = {key: msgspec.json.encode(str(base / name)).decode() for key, name in paths.items()}
        text = _CONFIG.format(**{key: path.replace("$", "$$") for key, path in quoted.items()})
        config.write_text(text, encoding="utf-8")
    return config
