"""The section of an azure_logs sink."""

from __future__ import annotations

import re
from typing import Annotated

from msgspec import Meta

from sinks._azure import AzureConfig
from sinks._http import check_url

_STREAM = re.compile(r"Custom-[A-Za-z][A-Za-z0-9_-]*")
_TABLE = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}")
_RULE = re.compile(r"dcr-[0-9A-Za-z]+")


class AzureLogsConfig(AzureConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Send records to a Log Analytics table by Azure's Logs Ingestion API."""

    endpoint: Annotated[
        str, Meta(description="The logs ingestion endpoint of the data collection rule, or of its endpoint (DCE).")
    ]
    rule_id: Annotated[str, Meta(description="The immutable id of the data collection rule, such as dcr-0123....")]
    stream: Annotated[str, Meta(description="The stream of the rule, Custom- and a name.")] = "Custom-Shipper_CL"
    table: Annotated[
        str, Meta(description="The table to read from; empty means the stream's name without Custom-.")
    ] = ""
    compression: Annotated[str, Meta(description="gzip or none.", pattern="^(gzip|none)$")] = "gzip"

    def __post_init__(self) -> None:
        """Check what types cannot. Raises ValueError."""
        self.check_azure()
        check_url("endpoint", self.endpoint)
        if not _RULE.fullmatch(self.rule_id):
            raise ValueError("rule_id: not an immutable id; the rule's JSON view has it, dcr- and hexadecimal digits")
        if not _STREAM.fullmatch(self.stream):
            raise ValueError("stream: a stream of the rule is named Custom- and letters, digits and _")
        if not _TABLE.fullmatch(self.read_table):
            raise ValueError("table: not a table's name; give the one that the rule writes to, such as Shipper_CL")
        if not self.has_credential:
            raise ValueError(
                "client_secret_file: the API takes Entra tokens only; give it, federated_token_file or managed_identity"
            )

    @property
    def read_table(self) -> str:
        """The table that the reader asks."""
        return self.table or self.stream.removeprefix("Custom-")
