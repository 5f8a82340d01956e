"""The section of an azure_app_insights sink, and the connection string in it."""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from shipper.secret import Secret
from sinks._azure import CLOUDS, AzureConfig

#: Where telemetry goes when the connection string names no place.
DEFAULT_ENDPOINT = "https://dc.services.visualstudio.com"
_KEY = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


class Connection(msgspec.Struct, frozen=True):
    """What a connection string says. ``audience`` is what Entra tokens are asked for."""

    key: str
    endpoint: str
    audience: str


def parse_connection(text: str, *, audience: str) -> Connection:
    """Read a connection string, or a bare instrumentation key.

    Lenient where it does no harm: names in any case, spaces, empty parts, a ``;`` at the end, values with ``=``,
    quotes around the whole, unknown names. Raises ValueError, without quoting the text.
    """
    text = text.strip().strip("\"'").strip()
    if _KEY.fullmatch(text.lower()):
        text = f"InstrumentationKey={text}"
    given: dict[str, str] = {}
    for part in text.split(";"):
        name, equals, value = part.partition("=")
        if equals and value.strip():
            given[name.strip().lower()] = value.strip()
    key = given.get("instrumentationkey", "").lower()
    if not key:
        raise ValueError("no InstrumentationKey in it; copy it whole from the resource's overview page")
    if not _KEY.fullmatch(key):
        raise ValueError("the InstrumentationKey is not a UUID; copy the string anew from the resource's overview page")
    if given.get("authorization", "ikey").lower() != "ikey":
        raise ValueError("Authorization must be ikey or absent")
    endpoint = given.get("ingestionendpoint", "")
    if not endpoint and "endpointsuffix" in given:
        location = given.get("location", "").strip(".")
        endpoint = f"https://{location + '.' if location else ''}dc.{given['endpointsuffix'].strip('.')}"
    endpoint = (endpoint or DEFAULT_ENDPOINT).rstrip("/")
    try:
        parts = urlsplit(endpoint)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and not parts.username and not parts.query
        usable = usable and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(
            "the IngestionEndpoint is not a URL such as https://westeurope-5.in.applicationinsights.azure.com"
        )
    return Connection(key, endpoint, given.get("aadaudience", audience))


class AppInsightsConfig(AzureConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Send records to Azure Application Insights."""

    connection_string: Annotated[
        Secret, Meta(description="The resource's connection string; connection_string_file is better.")
    ] = ""
    connection_string_file: Annotated[
        str, Meta(description="File that holds the connection string, read anew whenever the sink opens.")
    ] = ""
    entra: Annotated[
        bool,
        Meta(description="Send an Entra token with the telemetry, as a resource without local authentication asks."),
    ] = False
    event_attributes: Annotated[
        tuple[str, ...],
        Meta(description="A record with one of these attributes becomes a custom event of that name."),
    ] = ("microsoft.custom_event.name", "event.name")
    compression: Annotated[str, Meta(description="gzip or none.", pattern="^(gzip|none)$")] = "gzip"

    def __post_init__(self) -> None:
        """Check what types cannot. Raises ValueError."""
        self.check_azure()
        if not (self.connection_string or self.connection_string_file):
            raise ValueError("connection_string: give it or connection_string_file")
        # As the file has it a variable may stand here; the loader checks what becomes of it.
        if self.connection_string and not self.connection_string.startswith("${"):
            try:
                self.connection(self.connection_string)
            except ValueError as error:
                raise ValueError(f"connection_string: {error}") from error
        if self.entra and not self.has_credential:
            raise ValueError("entra: needs a credential: client_secret_file, federated_token_file or managed_identity")

    def connection(self, text: str) -> Connection:
        """Read a connection string in this section's cloud. Raises ValueError."""
        # The second slash is deliberate: the audience ends in one.
        return parse_connection(text, audience=CLOUDS[self.cloud].monitor + "/")
