"""The configuration: types of the root sections. Loading is in `shipper.config.loader`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from shipper.routing.router import RouteConfig
from shipper.sink import SinkConfig
from shipper.source import SourceConfig
from shipper.transform import TransformConfig

_MAX_PORT = 65_535
#: What holds when the file says nothing.
STATE_DIR, SHUTDOWN_TIMEOUT = Path("/var/lib/shipper"), 30.0


class HttpConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The daemon's own HTTP server: /metrics, /healthz, /readyz, /status."""

    enabled: Annotated[bool, Meta(description="Whether to listen at all.")] = True
    listen: Annotated[
        str, Meta(description="Address and port; port 0 takes any free one.", pattern=r"^\S*:[0-9]{1,5}$")
    ] = "127.0.0.1:8687"

    @property
    def address(self) -> tuple[str, int]:
        """Host (without the brackets of IPv6) and port of ``listen``; an empty host means every address."""
        host, _, port = self.listen.rpartition(":")
        return host.removeprefix("[").removesuffix("]"), int(port)

    def __post_init__(self) -> None:
        if self.address[1] > _MAX_PORT:
            raise ValueError(f"listen: there is no port {self.address[1]}; the highest is {_MAX_PORT}")


class LogConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The daemon's own log, on standard error."""

    level: Annotated[str, Meta(description="The least level written.", pattern="^(debug|info|warn|error)$")] = "info"
    format: Annotated[
        str, Meta(description="auto is text on a terminal and JSON otherwise.", pattern="^(auto|text|json)$")
    ] = "auto"
    loki_url: Annotated[
        str, Meta(description="Push endpoint of a Loki that gets the daemon's own warnings, or empty.")
    ] = ""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """A loaded, checked configuration. ``sources``, ``sinks`` and ``transforms`` hold each type's own config class.

    ``active`` is normalised to a tuple of names. ``path`` is the file it came from. ``shutdown_timeout`` is the
    seconds that SIGTERM leaves for draining.
    """

    sources: Annotated[
        dict[str, SourceConfig], Meta(description="Where lines come from: a name of your choice to a section each.")
    ]
    sinks: Annotated[
        dict[str, SinkConfig], Meta(description="Where records may go: a name of your choice to a section each.")
    ]
    active: Annotated[
        tuple[str, ...],
        Meta(
            description="The sink, or the list of sinks, that gets every record no route matches."
            " May be left out when there is one sink."
        ),
    ]
    routes: Annotated[
        tuple[RouteConfig, ...],
        Meta(description="Finer than active: every route that matches a record adds its sinks."),
    ] = ()
    transforms: Annotated[
        dict[str, TransformConfig],
        Meta(description="What happens to records before routing, in the order of the file."),
    ] = {}
    state_dir: Annotated[
        Path,
        Meta(
            description="Where positions, spilled batches and dead letters live. Left out: $STATE_DIRECTORY, which"
            " systemd sets, or else /var/lib/shipper."
        ),
    ] = STATE_DIR
    http: Annotated[
        HttpConfig, Meta(description="The daemon's own HTTP server: /metrics, /healthz, /readyz, /status.")
    ] = HttpConfig()
    log: Annotated[LogConfig, Meta(description="The daemon's own log, on standard error.")] = LogConfig()
    shutdown_timeout: Annotated[
        float, Meta(description="What SIGTERM leaves for draining, such as 30s.", extra={"unit": "duration"})
    ] = SHUTDOWN_TIMEOUT
    path: Path | None = None
