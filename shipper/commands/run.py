"""``shipper run``: the daemon."""

from __future__ import annotations

import os
import signal
import sys

import click


@click.command("run", short_help="Ship logs until told to stop.")
@click.option(
    "--config",
    "-c",
    "path",
    type=click.Path(dir_okay=False),
    default="/etc/shipper/shipper.yaml",
    envvar="SHIPPER_CONFIG",
    show_default=True,
    help="The configuration.",
)
@click.option(
    "--once", is_flag=True, help="Deliver everything present, then exit: 0 all delivered, 3 something is left."
)
def command(path: str, *, once: bool) -> None:
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
