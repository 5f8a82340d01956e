"""The section of a mysql sink in the configuration."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from shipper.secret import Secret
from shipper.sink import SinkConfig
from shipper.units import parse_duration
from sinks import _sql


class MysqlConfig(SinkConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Insert records into a table of MySQL 8 or later, or MariaDB 10.11 or later."""

    database: Annotated[str, Meta(description="The database (schema) that holds the table.", min_length=1)]
    user: Annotated[str, Meta(description="The account; it needs INSERT on the table, see the sink's page.")]
    host: Annotated[str, Meta(description="The server's name or address.")] = "127.0.0.1"
    port: Annotated[int, Meta(description="The server's TCP port.", ge=1, le=65535)] = 3306
    unix_socket: Annotated[
        str, Meta(description="Path of the server's socket, instead of host and port.", extra={"path": True})
    ] = ""
    password: Annotated[Secret, Meta(description="The account's password; password_file is better.")] = ""
    password_file: Annotated[
        str, Meta(description="File that holds the password; one newline at its end is not part of it.")
    ] = ""
    table: Annotated[str, Meta(description="The table's name.")] = "activity_logs"
    columns: Annotated[
        dict[str, str], Meta(description="Text columns that attributes of their own go to: column to attribute.")
    ] = msgspec.field(default_factory=_sql.COLUMNS.copy)
    create_table: Annotated[
        bool,
        Meta(
            description="Whether to create the table when opening, and columns that a table of shipper's making lacks."
            " Another table is never changed but by shipper prepare."
        ),
    ] = True
    partition: Annotated[
        str, Meta(description="day gives each day a partition, so that retention is instant.", pattern="^(none|day)$")
    ] = "none"
    retention: Annotated[str, Meta(description="Rows older than this are deleted, such as 30d; empty keeps them.")] = ""
    load_data: Annotated[
        bool | Annotated[str, Meta(pattern="^(auto|true|false)$")],
        Meta(
            description="Use LOAD DATA LOCAL, faster than INSERT; large batches go by two connections. auto uses it"
            " where the server allows it (local_infile=ON), true also warns where it does not, false is INSERT."
        ),
    ] = "auto"
    ssl_mode: Annotated[
        str,
        Meta(
            description="auto is verify_identity when ssl_ca is given, else preferred: encrypted if the server can,"
            " its certificate not checked.",
            pattern="^(auto|disabled|preferred|required|verify_ca|verify_identity)$",
        ),
    ] = "auto"
    ssl_ca: Annotated[
        str, Meta(description="File with the certificates that may sign the server's.", extra={"path": True})
    ] = ""
    ssl_cert: Annotated[str, Meta(description="File with this client's certificate.", extra={"path": True})] = ""
    ssl_key: Annotated[str, Meta(description="File with this client's private key.", extra={"path": True})] = ""
    connect_timeout: Annotated[str, Meta(description="How long to wait for a connection.")] = "10s"
    read_timeout: Annotated[str, Meta(description="How long to wait for the server's answer.")] = "60s"
    write_timeout: Annotated[str, Meta(description="How long to wait for the server to take what is sent.")] = "60s"
    lock_wait_timeout: Annotated[str, Meta(description="How long the server waits for row locks.")] = "10s"
    maintenance_user: Annotated[
        str, Meta(description="Account for creating, partitions and retention; empty means user.")
    ] = ""
    maintenance_password: Annotated[Secret, Meta(description="The maintenance account's password.")] = ""
    maintenance_password_file: Annotated[str, Meta(description="File that holds the maintenance password.")] = ""

    @property
    def loads(self) -> bool:
        """Whether LOAD DATA is used where the server allows it."""
        return self.load_data in {True, "true", "auto"}

    def __post_init__(self) -> None:
        """Check what types cannot. Raises ValueError."""
        _sql.check_table(self.table)
        _sql.check_columns(self.columns)
        for name in ("connect_timeout", "read_timeout", "write_timeout", "lock_wait_timeout"):
            if parse_duration(getattr(self, name)) <= 0:
                raise ValueError(f"{name}: must be more than 0")
        if self.retention and not parse_duration(self.retention):
            raise ValueError("retention: leave it empty to keep rows forever; 0 would delete all")
        if self.ssl_key and not self.ssl_cert:
            raise ValueError("ssl_key: needs ssl_cert, the certificate that belongs to it")
        if self.ssl_mode in {"verify_ca", "verify_identity"} and not self.ssl_ca:
            raise ValueError(f"ssl_mode: {self.ssl_mode} needs ssl_ca, the certificates to check against")
        if self.ssl_mode in {"disabled", "preferred"} and (self.ssl_ca or self.ssl_cert):
            raise ValueError(f"ssl_mode: {self.ssl_mode} would not use ssl_ca and ssl_cert; leave them or it out")
