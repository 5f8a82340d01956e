"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


def config_option(text: str, **more: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make ``-c/--config``, passed as ``path``: the file, $SHIPPER_CONFIG or the place a package puts it."""
    return click.option(
        "-c",
        "--config",
        "path",
        envvar="SHIPPER_CONFIG",
        default="/etc/shipper/shipper.yaml",
        show_default=True,
        help=text,
        **{"type": click.Path(path_type=Path), **more},
    )


url_option = click.option(
    "--url",
    metavar="URL",
    help="Where the daemon answers, such as http://127.0.0.1:8687, instead of what the file says.",
)
