"""The section of an elasticsearch sink in the configuration."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from shipper.secret import Secret
from shipper.units import parse_duration, parse_size
from sinks._http import LoginConfig, check_url

#: What stands for a part of the event's time in ``index``.
_DIRECTIVE = re.compile(r"%(.?)")
#: What the server refuses in the name of an index or data stream (both families' create index page).
_FORBIDDEN = re.compile(r'[\\/*?"<>| ,#:A-Z]')
#: Bytes that the name of an index may have.
_LONGEST = 255


class SigV4Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Sign requests for Amazon OpenSearch. Credentials come from where every AWS tool looks for them."""

    region: Annotated[str, Meta(description="The AWS region, such as eu-west-1.", min_length=1)]
    service: Annotated[
        str, Meta(description="es for a domain, aoss for OpenSearch Serverless.", pattern="^(es|aoss)$")
    ] = "es"
    profile: Annotated[str, Meta(description="The profile of the AWS configuration files; empty is the default.")] = ""


class ElasticsearchConfig(LoginConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Index records in Elasticsearch 8 or later or OpenSearch 2 or later, also serverless."""

    endpoint: Annotated[
        str | list[str], Meta(description="URL of the server, or a list of those of one cluster's nodes.")
    ]
    index: Annotated[
        str,
        Meta(description="Name of a data stream or an index; %Y, %m, %d and %H are those of the event's time in UTC."),
    ] = "logs-shipper-%Y.%m.%d"
    mode: Annotated[
        str,
        Meta(
            description="What index names; auto is index when the name is dated, else data_stream.",
            pattern="^(auto|data_stream|index)$",
        ),
    ] = "auto"
    ids: Annotated[
        str,
        Meta(
            description="record gives each document its record's id, so that a repeat is stored once; auto leaves it to"
            " servers that refuse that.",
            pattern="^(record|auto)$",
        ),
    ] = "record"
    api_key: Annotated[Secret, Meta(description="An API key, encoded or as id:key; api_key_file is better.")] = ""
    api_key_file: Annotated[str, Meta(description="File that holds the API key.", extra={"path": True})] = ""
    sigv4: Annotated[
        SigV4Config | None, Meta(description="Sign requests for Amazon OpenSearch: region, service, profile.")
    ] = None
    create_template: Annotated[
        bool, Meta(description="Whether to create the index template with the mapping when opening.")
    ] = True
    retention: Annotated[
        str, Meta(description="The server deletes data older than this, such as 30d; empty keeps it.")
    ] = ""
    pipeline: Annotated[str, Meta(description="Ingest pipeline of the server that documents go through.")] = ""
    original: Annotated[
        bool, Meta(description="Also store the line as it was written, where it is not the message, as event.original.")
    ] = False
    compression: Annotated[str, Meta(description="How requests are compressed.", pattern="^(gzip|none)$")] = "gzip"
    max_body: Annotated[
        str | int, Meta(description="Most bytes of one request before compression; less once the server said so.")
    ] = "8MiB"

    def __post_init__(self) -> None:
        """Check what types cannot. Raises ValueError."""
        self.check_http()
        if not self.endpoints:
            raise ValueError("endpoint: the list is empty")
        for endpoint in self.endpoints:
            check_url("endpoint", endpoint)
        self._check_index()
        self._check_ways()
        self.check_login()
        if self.retention:
            if not parse_duration(self.retention):
                raise ValueError("retention: leave it empty to keep data forever; 0 would delete all")
            if self.sigv4 is not None and self.sigv4.service == "aoss":
                raise ValueError("retention: OpenSearch Serverless has its own, the collection's data lifecycle policy")
            if not self.create_template:
                raise ValueError("retention: stands in the index template, so it needs create_template: true")
        if parse_size(self.max_body) < 1 << 16:
            raise ValueError("max_body: at least 64KiB, or single records will not fit")

    def _check_index(self) -> None:
        for directive in _DIRECTIVE.findall(self.index):
            if directive not in {"Y", "m", "d", "H"}:
                raise ValueError(f"index: '%{directive}' is not known; use %Y, %m, %d and %H")
        name = datetime(2026, 1, 2, tzinfo=UTC).strftime(self.index)
        found = _FORBIDDEN.search(name)
        if found is not None:
            raise ValueError(f"index: no server takes {found[0]!r} in a name; use small letters, digits, '-', '_', '.'")
        if not name or name[0] in "-_+." or len(name.encode()) > _LONGEST:
            raise ValueError(f"index: a name has 1 to {_LONGEST} bytes and does not begin with '-', '_', '+' or '.'")

    def _check_ways(self) -> None:
        ways = {
            "api_key": self.api_key or self.api_key_file,
            "username": self.username,
            "bearer_token": self.bearer_token or self.bearer_token_file,
            "sigv4": self.sigv4,
        }
        given = [name for name, value in ways.items() if value]
        if len(given) > 1:
            raise ValueError(f"{given[0]}: {given[1]} is there too; one way to log in is enough")

    @property
    def endpoints(self) -> list[str]:
        """The URLs of the nodes."""
        return [self.endpoint] if isinstance(self.endpoint, str) else list(self.endpoint)

    @property
    def dated(self) -> bool:
        """Whether the name depends on the event's time."""
        return "%" in self.index

    @property
    def data_stream(self) -> bool:
        """Whether ``index`` names a data stream."""
        return self.mode == "data_stream" or (self.mode == "auto" and not self.dated)

    @property
    def pattern(self) -> str:
        """The name with a star for each part that depends on the time."""
        return re.sub(r"(?:%[YmdH][-._]?)+", "*", self.index)

    @property
    def template(self) -> str:
        """The name of the index template, and of the policy for retention."""
        return "shipper-" + self.pattern.replace("*", "dated")
