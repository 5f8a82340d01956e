"""``shipper run``: the daemon."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import click

from shipper.commands.options import config_option


@click.command("run", short_help="Ship logs until told to stop.")
@config_option("The configuration.", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--once", is_flag=True, help="Deliver everything present, then exit: 0 all delivered, 3 something is left."
)
def command(path: Path, *, once: bool) -> None:
    """Ship logs from the configured sources to the configured sinks.

    SIGTERM drains and stops, a second one stops at once; SIGHUP reloads the configuration.
    """
    # Until the daemon has handlers of its own, a reload that comes early must not end the process.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    from shipper.daemon import Daemon
    from shipper.loader import load
    from shipper.logs import configure

    config = load(path, os.environ)
    log = configure(config.log)
    try:
        sys.exit(Daemon(config, once=once).run())
    finally:
        log.close()
