"""Looks at the log group for an operator: one finding at a time, nothing is created or changed."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from shipper.errors import ParkedError, SinkError
from shipper.sink import Finding
from sinks import _http
from sinks.cloudwatch import faults
from sinks.cloudwatch.client import Client

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sinks.cloudwatch.config import CloudwatchConfig

#: What is known of a group's creation and retention, or nothing if it is not there.
_RIGHTS = (
    "logs:PutLogEvents, logs:CreateLogStream, logs:CreateLogGroup, logs:PutRetentionPolicy, logs:DescribeLogGroups"
)


def look(client: Client, config: CloudwatchConfig) -> None:
    """Prove credentials and connection by looking for the group. Raises SinkError.

    A group that is missing is a fault only where it is not ours to create.
    """
    try:
        _, groups = _looked(client, config)
    except SinkError as error:
        if error.code in faults.DENIED:
            return  # we are known, and may not look: that says nothing of writing
        raise
    if not groups and not config.create:
        raise ParkedError(f"{client.what}: {_absent(config)}, and create is false", code=faults.MISSING)


def missing(client: Client, config: CloudwatchConfig) -> bool:
    """Tell whether the group is known to be missing; not where the account may not look. Raises SinkError."""
    try:
        return not _looked(client, config)[1]
    except SinkError as error:
        if error.code in faults.DENIED:
            return False
        raise


def examine(config: CloudwatchConfig) -> Iterator[Finding]:
    """Say what there is to say: reachable, tls, login, rights, clock, group, retention. Does not raise."""
    try:
        client = Client(config)
    except SinkError as error:
        yield _failed(error)
        return
    try:
        yield from _findings(client, config)
    finally:
        client.close()


def _findings(client: Client, config: CloudwatchConfig) -> Iterator[Finding]:
    try:
        meta, groups = _looked(client, config)
    except SinkError as error:
        if error.code not in faults.DENIED:
            yield _failed(error)
            return
        yield Finding("reachable", "ok", f"{client.url} answers")
        yield _tls(client)
        yield Finding("login", "ok", "the credentials are known")
        yield Finding("rights", "warn", str(error), "nothing, if the canary is written; else allow " + _RIGHTS)
        return
    yield Finding("reachable", "ok", f"{client.url} answers")
    yield _tls(client)
    yield Finding("login", "ok", "the credentials are accepted")
    yield Finding("rights", "ok", "may look at log groups; only a write proves the right to write")
    yield from _clock(meta)
    if groups:
        yield Finding("group", "ok", ", ".join(sorted(groups)[:5]))
        yield _retention(groups, config)
    elif config.create:
        yield Finding("group", "ok", f"{_absent(config)} yet; it is created by the first write")
    else:
        fix = f"aws logs create-log-group --log-group-name {config.log_group}, or create: true"
        yield Finding("group", "fail", f"{_absent(config)}, and create is false", fix)


def _looked(client: Client, config: CloudwatchConfig) -> tuple[Mapping[str, Any], dict[str, Mapping[str, Any]]]:
    """Give the answer's headers and the groups that the template may give, of the first page."""
    template = config.group_template()
    prefix = {"logGroupNamePrefix": template.prefix} if template.prefix else {}
    answer = client.call("describe_log_groups", **prefix)
    found = {group["logGroupName"]: group for group in answer.get("logGroups", [])}
    return answer["ResponseMetadata"]["HTTPHeaders"], {n: g for n, g in found.items() if template.may_give(n)}


def _absent(config: CloudwatchConfig) -> str:
    return f"the log group {config.log_group} is not there"


def _failed(error: SinkError) -> Finding:
    if error.code == "credentials":
        return Finding("login", "fail", str(error), "give a role, a profile or access_key_id")
    if error.code == "tls":
        return Finding("tls", "fail", str(error), "check ca_file and the name in the endpoint")
    if isinstance(error, ParkedError) and error.code != "region":
        return Finding("login", "fail", str(error), "do what the message says")
    return Finding("reachable", "fail", str(error), "check region, endpoint, the network and the proxy")


def _tls(client: Client) -> Finding:
    if client.url.startswith("https:"):
        return Finding("tls", "ok", "encrypted, the certificate is accepted")
    return Finding("tls", "warn", "not encrypted", "use an https endpoint if anybody else can listen")


def _clock(headers: Mapping[str, Any]) -> Iterator[Finding]:
    try:
        skew = parsedate_to_datetime(str(headers.get("date", ""))).timestamp() - time.time()
    except (ValueError, TypeError):
        return
    far = abs(skew) > _http.SKEW
    fix = "run a time service; a signature that is 5 minutes off is refused" if far else ""
    yield Finding("clock", "warn" if far else "ok", f"the service's is {skew:+.0f} s from ours", fix)


def _retention(groups: Mapping[str, Mapping[str, Any]], config: CloudwatchConfig) -> Finding:
    wanted = config.retention_days
    other = {name: group.get("retentionInDays", 0) for name, group in groups.items()}
    differ = sorted(name for name, days in other.items() if wanted and days != wanted)
    if differ:
        fix = f"aws logs put-retention-policy --log-group-name {differ[0]} --retention-in-days {wanted}"
        text = f"{differ[0]} keeps {other[differ[0]] or 'everything for ever'}, retention_days is {wanted}; only groups"
        return Finding("retention", "warn", f"{text} that we create are set", fix)
    periods = sorted({f"{days} days" if days else "for ever" for days in other.values()})
    return Finding("retention", "ok", "events are kept " + ", ".join(periods))
