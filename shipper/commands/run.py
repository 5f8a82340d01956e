"""``shipper run``: the daemon."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import click

from shipper.commands.options import config_option

#: Seconds after which a thread that computes lets another go on. So long a delivery that has its sink's answer may wait
#: for the reader: with Python's own 5 ms MariaDB idled 5 ms for each batch's file, with this 2.
_SWITCH = 0.0005
#: Bytes of the largest block whose memory is kept for the next one, and of all that is kept so, for each thread. A block
#: of a file, or a piece of a request, is smaller, and is made anew many times a second.
_BLOCK, _KEPT = 1 << 20, 4 << 20


@click.command("run", short_help="Ship logs until told to stop.")
@config_option("The configuration.", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--once", is_flag=True, help="Deliver everything present, then exit: 0 all delivered, 3 something is left."
)
def command(path: Path, *, once: bool) -> None:
    """Ship logs from the configured sources to the configured sinks.

    SIGTERM drains and stops, a second one stops at once; SIGHUP reloads the configuration. In a container a state_dir
    that would go with it is refused; SHIPPER_TEMPORARY_STATE=allow allows it.
    """
    # Until the daemon has handlers of its own, a reload that comes early must not end the process.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if os.getpid() == 1:
        # The first process of a container: the kernel ignores an end that comes early, unless there is a handler.
        signal.signal(signal.SIGTERM, _end_at_once)

    from shipper.config.loader import load
    from shipper.daemon.daemon import Daemon
    from shipper.native import compiled
    from shipper.secret import Masker, secret_values
    from shipper.state.volume import require_lasting
    from shipper.telemetry.logs import configure, get_logger

    sys.setswitchinterval(_SWITCH)
    if compiled is not None:
        compiled.keep_memory(_BLOCK, _KEPT)
    config = load(path, os.environ)
    doubt = require_lasting(config.state_dir, os.environ)
    mask = Masker(secret_values(config))
    log = configure(config.log, mask=mask)
    try:
        if doubt:
            get_logger("run").warning(doubt)
        sys.exit(Daemon(config, once=once, mask=mask).run())
    finally:
        log.close()


def _end_at_once(_signum: int, _frame: object) -> None:
    """End a daemon that has not begun: nothing was read yet."""
    sys.exit(0)
