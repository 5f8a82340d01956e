"""The section of a cloudwatch sink in the configuration."""

from __future__ import annotations

import re
from typing import Annotated

from msgspec import Meta

from shipper.secret import Secret
from shipper.units import parse_size
from sinks import _http
from sinks.cloudwatch.names import Template

#: The days that PutRetentionPolicy takes (its API reference); 0 leaves the group as the account makes it.
RETENTIONS = (
    1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653,
)  # fmt: skip
#: Bytes that an event may have, its 26 bytes of overhead included: "Event size" of the service quotas.
EVENT = 1 << 20
_LEAST_EVENT = 4 << 10
_ROLE = re.compile(r"arn:aws[a-z-]*:iam::\d{12}:role/.+")


class CloudwatchConfig(_http.HttpSinkConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Put records into AWS CloudWatch Logs."""

    log_group: Annotated[
        str,
        Meta(
            description="The log group. {service}, {container}, {stream}, {host}, {source} and attributes of the resource"
            " such as {container.image.name} are filled in."
        ),
    ]
    log_stream: Annotated[
        str, Meta(description="The log stream, a template too; one per machine keeps writers apart.")
    ] = "{host}/{service}"
    region: Annotated[
        str, Meta(description="The AWS region; empty asks AWS_REGION, AWS_DEFAULT_REGION and the profile.")
    ] = ""
    line: Annotated[
        str,
        Meta(
            description="What an event holds: raw, the line as the application wrote it, or json, the parsed record. Id,"
            " time and resource stand beside it either way.",
            pattern="^(raw|json)$",
        ),
    ] = "raw"
    metadata: Annotated[
        str,
        Meta(
            description="What stands beside each line: all, or the id alone, which CloudWatch bills less for; the"
            " resource is then not read back.",
            pattern="^(all|id)$",
        ),
    ] = "all"
    compression: Annotated[
        str,
        Meta(
            description="Compression of requests. AWS takes gzip (its own agent sends it); an emulator may not.",
            pattern="^(gzip|none)$",
        ),
    ] = "gzip"
    create: Annotated[bool, Meta(description="Whether a group or stream that is missing is created.")] = True
    retention_days: Annotated[
        int, Meta(description="How long a group that we create keeps its events; 0 sets nothing: for ever.")
    ] = 0
    max_event_size: Annotated[
        str | int, Meta(description="The most an event may take; longer records are sent in parts.")
    ] = "1MiB"
    endpoint: Annotated[
        str, Meta(description="URL of the service instead of AWS's own: a VPC endpoint, or an emulator.")
    ] = ""
    sts_endpoint: Annotated[str, Meta(description="The same for STS, which gives the credentials of role_arn.")] = ""
    use_fips: Annotated[bool, Meta(description="Use the region's FIPS endpoint.")] = False
    use_dualstack: Annotated[bool, Meta(description="Use the region's endpoint that speaks IPv6 too.")] = False
    profile: Annotated[str, Meta(description="Profile of AWS's own configuration files; empty is the default one.")] = (
        ""
    )
    access_key_id: Annotated[
        str, Meta(description="Access key; without it the default credential chain is asked, which is better.")
    ] = ""
    secret_access_key: Annotated[
        Secret, Meta(description="The access key's secret; secret_access_key_file is better.")
    ] = ""
    secret_access_key_file: Annotated[str, Meta(description="File that holds the access key's secret.")] = ""
    session_token: Annotated[Secret, Meta(description="Session token of temporary credentials.")] = ""
    role_arn: Annotated[str, Meta(description="Role to assume with those credentials.")] = ""
    role_session_name: Annotated[str, Meta(description="Name of the role's session, for CloudTrail.")] = "shipper"
    external_id: Annotated[str, Meta(description="External id that the role asks for.")] = ""

    def __post_init__(self) -> None:
        """Check what types cannot. Raises ValueError."""
        self.check_http()
        self.group_template()
        self.stream_template()
        for name in ("endpoint", "sts_endpoint"):
            if getattr(self, name):
                _http.check_url(name, getattr(self, name))
        if self.endpoint and (self.use_fips or self.use_dualstack):
            raise ValueError("endpoint: use_fips and use_dualstack choose an endpoint of AWS; leave them or it out")
        if self.retention_days and self.retention_days not in RETENTIONS:
            known = ", ".join(map(str, RETENTIONS))
            raise ValueError(f"retention_days: {self.retention_days} is not one of the days that AWS takes: {known}")
        if self.retention_days and not self.create:
            raise ValueError("retention_days: is set for groups that we create, and create is false")
        if not _LEAST_EVENT <= parse_size(self.max_event_size) <= EVENT:
            raise ValueError("max_event_size: 4KiB to 1MiB, the service's limit")
        if self.role_arn and not _ROLE.fullmatch(self.role_arn):
            raise ValueError("role_arn: not a role, such as arn:aws:iam::123456789012:role/logs-writer")
        if not self.role_arn and (self.external_id or self.sts_endpoint):
            raise ValueError("external_id, sts_endpoint: belong to role_arn, which is not given")
        if bool(self.access_key_id) != bool(self.secret_access_key or self.secret_access_key_file):
            raise ValueError("access_key_id: needs secret_access_key_file, and the reverse")
        if self.secret_access_key and self.secret_access_key_file:
            raise ValueError("secret_access_key: secret_access_key_file says it as well; give one")
        if self.session_token and not self.access_key_id:
            raise ValueError("session_token: belongs to access_key_id, which is not given")
        if self.access_key_id and self.profile:
            raise ValueError("profile: access_key_id would be used instead; give one")

    def group_template(self) -> Template:
        """Give the log group's template."""
        return Template("log_group", self.log_group)

    def stream_template(self) -> Template:
        """Give the log stream's template."""
        return Template("log_stream", self.log_stream)
