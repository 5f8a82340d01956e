"""The configuration: types of the root sections. Loading is in `shipper.loader`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from shipper.sink import SinkConfig
from shipper.source import SourceConfig
from shipper.transform import TransformConfig


class RouteConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One route: records that match go to these sinks instead of ``active``."""

    match: Annotated[str, Meta(description="The condition, such as level>=error service:api.")]
    to: Annotated[str | list[str], Meta(description="One sink's name or a list of them.")]

    @property
    def sinks(self) -> tuple[str, ...]:
        """The names in ``to``."""
        return (self.to,) if isinstance(self.to, str) else tuple(self.to)


class HttpConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The daemon's own HTTP server: /metrics, /healthz, /readyz."""

    enabled: Annotated[bool, Meta(description="Whether to listen at all.")] = True
    listen: Annotated[str, Meta(description="Address and port; port 0 takes any free one.")] = "127.0.0.1:8687"


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

    sources: dict[str, SourceConfig]
    sinks: dict[str, SinkConfig]
    active: tuple[str, ...]
    routes: tuple[RouteConfig, ...] = ()
    transforms: dict[str, TransformConfig] = {}
    state_dir: Path = Path("/var/lib/shipper")
    http: HttpConfig = HttpConfig()
    log: LogConfig = LogConfig()
    shutdown_timeout: float = 30.0
    path: Path | None = None
