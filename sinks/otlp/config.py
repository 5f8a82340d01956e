"""The section of an otlp sink in the configuration."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from shipper.units import parse_size
from sinks._http import LoginConfig, check_url


class OtlpConfig(LoginConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Send records by OTLP over HTTP: to an OpenTelemetry collector, Loki, or any vendor that takes it."""

    endpoint: Annotated[
        str,
        Meta(description="URL of the receiver, such as http://collector:4318; /v1/logs is added unless it ends so."),
    ] = "http://127.0.0.1:4318"
    encoding: Annotated[
        str, Meta(description="protobuf, or json for receivers that take nothing else.", pattern="^(protobuf|json)$")
    ] = "protobuf"
    compression: Annotated[str, Meta(description="How a request is compressed.", pattern="^(gzip|none)$")] = "gzip"
    original: Annotated[
        bool, Meta(description="Also send the line as it was written, as log.record.original, where the body differs.")
    ] = False
    retry_500: Annotated[
        bool,
        Meta(
            description="Try again after 500 too, for receivers that say 500 when they are busy or away. OTLP says that"
            " 500 is final, so by default such records are dead-lettered."
        ),
    ] = False
    max_request_bytes: Annotated[
        str | int, Meta(description="Most bytes of a request before compression; collectors take 20MiB by default.")
    ] = "20MiB"
    max_request_records: Annotated[
        int,
        Meta(
            description="Most records of a request. Of a request that was taken in part nobody can tell which records"
            " were: all are dead-lettered. With 1 every refusal is exact, at the price of a request a record.",
            ge=1,
        ),
    ] = 5_000

    def __post_init__(self) -> None:
        """Check what types cannot. Raises ValueError."""
        self.check_http()
        check_url("endpoint", self.endpoint)
        if parse_size(self.max_request_bytes) < 1024:
            raise ValueError("max_request_bytes: at least 1KiB, or no record fits")
        self.check_login()
