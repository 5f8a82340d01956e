"""The sink: one PutLogEvents after the other, each as large as the service takes."""

from __future__ import annotations

import importlib.util
import logging
import time
from typing import TYPE_CHECKING, ClassVar

from shipper.errors import ConfigError, ParkedError, PermanentError, RetryableError, SinkError
from shipper.render import span
from shipper.sink import Change, Finding, Limits, Sink, SinkConfig
from shipper.units import parse_size
from sinks._outcome import Outcome
from sinks.cloudwatch import encode
from sinks.cloudwatch.config import CloudwatchConfig
from sinks.cloudwatch.events import MILLI

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from shipper.record import Batch, Resource
    from sinks.cloudwatch.client import Client
    from sinks.cloudwatch.events import Events

#: How far in milliseconds an event may lie back and ahead (API reference of PutLogEvents).
OLDEST, NEWEST = 14 * 86_400_000, 2 * 3_600_000
#: Milliseconds by which our clock may be wrong: within them the service is asked, and its answer holds. A signature
#: that is further off is refused anyhow.
_DOUBT = 300_000
_MISSING = "ResourceNotFoundException"

_log = logging.getLogger(__name__)


class CloudwatchSink(Sink):
    """Writes batches to streams. ``now`` gives seconds since 1970, for the ages that the service takes."""

    config: ClassVar[type[SinkConfig]] = CloudwatchConfig
    limits = Limits(records=10_000, bytes=2 << 20)
    max_age = (OLDEST + _DOUBT) / 1000

    def __init__(self, config: CloudwatchConfig, *, now: Callable[[], float] = time.time) -> None:
        require_boto3()
        self.wants_parse = config.line == "json"
        self._config = config
        self._now = now
        self._group = config.group_template()
        self._stream = config.stream_template()
        self._most = parse_size(config.max_event_size)
        self._encoder = encode.Encoder(parsed=self.wants_parse, resource=config.metadata == "all")
        self._places: dict[Resource, tuple[str, str]] = {}
        #: Groups that we created and whose retention is still to be set.
        self._unset: set[str] = set()
        self._client: Client | None = None

    def open(self) -> None:
        """Find credentials and endpoint. Groups and streams are created when a write finds that they are missing.

        Raises ParkedError without credentials or region.
        """
        if self._client is None:
            self._client = connect(self._config)

    def write(self, batch: Batch) -> None:
        """Put the batch, stream by stream, each in the order of time."""
        if self._client is None:
            raise RetryableError("cloudwatch: not connected")
        outcome = Outcome(len(batch))
        if not len(batch):
            return
        events = self._encoder.events(batch)
        rows = self._in_time(batch.times, outcome)
        try:
            for (group, stream), members in self._by_place(batch.resources, rows).items():
                part = events if len(members) == len(batch) else events.pick(members)
                self._put_all(group, stream, self._encoder.parted(part.in_order(), self._most), outcome)
        finally:
            if outcome.stopped is not None and _stale(outcome.stopped):
                self._release()
        outcome.close()

    def _in_time(self, times: Sequence[int], outcome: Outcome) -> Sequence[int]:
        """Give the rows that the service may take by their age; refuse all others."""
        now = int(self._now() * 1000)
        least, end = (now - OLDEST - _DOUBT) * MILLI, (now + NEWEST + _DOUBT + 1) * MILLI
        first, last, _ = span(times)
        if least <= first and last < end:
            return range(len(times))
        rows = []
        for row, at in enumerate(times):
            if least <= at < end:
                rows.append(row)
            elif at < least:
                outcome.refuse(row, _too_old())
            else:
                outcome.refuse(row, _too_new())
        return rows

    def _by_place(self, resources: Sequence[Resource], rows: Sequence[int]) -> dict[tuple[str, str], Sequence[int]]:
        """Give the rows of each group and stream."""
        places = {resource: self._place(resource) for resource in set(resources)}
        if len(set(places.values())) == 1:
            return {next(iter(places.values())): rows} if rows else {}
        found: dict[tuple[str, str], list[int]] = {}
        for row in rows:
            found.setdefault(places[resources[row]], []).append(row)
        return dict(found)

    def _place(self, resource: Resource) -> tuple[str, str]:
        place = self._places.get(resource)
        if place is None:
            if len(self._places) > 4_096:  # containers come and go
                self._places.clear()
            place = self._places[resource] = (self._group.name(resource), self._stream.name(resource))
        return place

    def _put_all(self, group: str, stream: str, events: Events, outcome: Outcome) -> None:
        refused: set[int] = set()  # the parts of one record may stand in two requests
        for start, end in events.requests():
            rows = events.rows[start:end]
            if outcome.stopped is not None:
                outcome.skip([row for row in rows if row not in refused])
                continue
            try:
                rejected = self._put(group, stream, lambda target: events.body(target, start, end))  # noqa: B023
            except SinkError as error:
                outcome.fail(sorted(set(rows) - refused), error)
                refused.update(rows)
            else:
                _refuse(rejected, rows, outcome)

    def _put(
        self, group: str, stream: str, make: Callable[[dict[str, str]], Iterable[bytes | memoryview]]
    ) -> Mapping[str, int]:
        assert self._client is not None
        if group in self._unset:
            self._set_retention(group)
        try:
            return self._client.put(group, stream, make)
        except SinkError as error:
            if error.code != _MISSING:
                raise
            if not self._config.create:
                raise ParkedError(
                    f"{error}; create is false, so run: aws logs create-log-group --log-group-name {group}; aws logs"
                    f" create-log-stream --log-group-name {group} --log-stream-name {stream}",
                    code=error.code,
                ) from error
        self._create(group, stream)
        try:
            return self._client.put(group, stream, make)
        except SinkError as error:
            if error.code != _MISSING:
                raise
            raise RetryableError(f"{error}, though it was created just now", code=error.code) from error

    def _create(self, group: str, stream: str) -> None:
        """Create what is missing; nothing is looked up first, which would need another right and has a quota."""
        assert self._client is not None
        try:
            self._client.create_stream(group, stream)
        except SinkError as error:
            if error.code != _MISSING:
                raise
        else:
            return
        if self._client.create_group(group) and self._config.retention_days:
            self._unset.add(group)
            self._set_retention(group)
        self._client.create_stream(group, stream)

    def _set_retention(self, group: str) -> None:
        """Set the retention of a group that we created. A right that lacks is told and holds up nothing."""
        assert self._client is not None
        try:
            self._client.set_retention(group, self._config.retention_days)
        except ParkedError as error:
            _log.warning(
                "%s: the group %s was created, but keeps its events for ever: %s; to mend it run: aws logs"
                " put-retention-policy --log-group-name %s --retention-in-days %d",
                self._client.what, group, error, group, self._config.retention_days,
            )  # fmt: skip
        self._unset.discard(group)

    def healthcheck(self) -> None:
        """Prove credentials and connection by looking at the group. Raises SinkError.

        That the account may not look is fine: then it is known to the service. A write alone proves the right to write.
        """
        from sinks.cloudwatch.examine import look  # noqa: PLC0415 - see `connect`

        self.open()
        assert self._client is not None
        look(self._client, self._config)

    def changes(self) -> list[Change]:
        """Give the command that makes the group, if it is known to be missing. Raises SinkError."""
        from sinks.cloudwatch.examine import missing  # noqa: PLC0415 - see `connect`

        self.open()
        assert self._client is not None
        if not missing(self._client, self._config):
            return []
        name, days = self._config.log_group, self._config.retention_days
        wanted = [f"aws logs create-log-group --log-group-name {name}"]
        if days:
            wanted.append(f"aws logs put-retention-policy --log-group-name {name} --retention-in-days {days}")
        return [Change(text, ours=self._config.create) for text in wanted]

    def prepare(self) -> None:
        """Make the group. One whose name a record gives is made with the first record. Raises SinkError."""
        if self.changes() and "{" not in self._config.log_group:
            assert self._client is not None
            if self._client.create_group(self._config.log_group) and self._config.retention_days:
                self._set_retention(self._config.log_group)

    def examine(self) -> Iterator[Finding]:
        """See `sinks.cloudwatch.examine`. Creates nothing."""
        from sinks.cloudwatch.examine import examine  # noqa: PLC0415 - see `connect`

        return examine(self._config)

    def close(self) -> None:
        """Close the connections."""
        self._release()

    def _release(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()


def connect(config: CloudwatchConfig, *, reads: bool = False) -> Client:
    """Make a client. botocore takes 20 MiB and 0.2 s, so nobody who does not use this sink may load it."""
    from sinks.cloudwatch.client import Client  # noqa: PLC0415 - see the docstring

    return Client(config, reads=reads)


def require_boto3() -> None:
    """Find out whether boto3 is there, without loading it. Raises ConfigError."""
    if importlib.util.find_spec("botocore") is None:
        raise ConfigError(
            "sink type 'cloudwatch' needs the package 'boto3', which is not installed: pip install 'shipper[cloudwatch]'"
        )


def _stale(error: SinkError) -> bool:
    from sinks.cloudwatch.faults import stale  # noqa: PLC0415 - see `connect`

    return stale(error)


def _refuse(rejected: Mapping[str, int], rows: Sequence[int], outcome: Outcome) -> None:
    """Read ``rejectedLogEventsInfo``: two ends that are exclusive, and a start that is inclusive."""
    if not rejected:
        return
    count = len(rows)
    old = min(rejected.get("tooOldLogEventEndIndex") or 0, count)
    expired = min(rejected.get("expiredLogEventEndIndex") or 0, count)
    new = rejected.get("tooNewLogEventStartIndex")
    for row in rows[:old]:
        outcome.refuse(row, _too_old())
    for row in rows[old:expired]:
        outcome.refuse(row, _refusal("expired", "it is older than the log group keeps events"))
    for row in rows[max(old, expired, new) :] if new is not None else ():
        outcome.refuse(row, _too_new())


def _too_old() -> PermanentError:
    return _refusal("too_old", "it is older than 14 days, which CloudWatch does not take")


def _too_new() -> PermanentError:
    return _refusal("too_new", "its time is more than 2 hours ahead, which CloudWatch does not take yet")


def _refusal(code: str, text: str) -> PermanentError:
    return PermanentError(f"cloudwatch: {text}", code=code, certain=True)
