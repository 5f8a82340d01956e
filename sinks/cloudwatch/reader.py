"""Reads records back by FilterLogEvents, window of time by window, each record once.

A page may be short or empty and more may follow: only an answer without a token is the end. Nothing is pushed down but
the time: a filter pattern sees the text of the event, where quotes and line feeds stand escaped.
"""

from __future__ import annotations

import time
from itertools import groupby
from typing import TYPE_CHECKING, Any

import msgspec
import xxhash

from shipper.errors import SinkError
from shipper.reader import Reader
from shipper.record import SEVERITIES, Record, Resource, make_id
from sinks._resources import Resources
from sinks.cloudwatch import encode
from sinks.cloudwatch.sink import NEWEST, OLDEST, connect, require_boto3

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shipper.reader import Query
    from sinks.cloudwatch.client import Client
    from sinks.cloudwatch.config import CloudwatchConfig

#: Events of a window beyond which it is cut, so that memory stays small.
_MANY = 20_000
#: Events of a window below which the next is four times as long.
_FEW = 2_000
#: Milliseconds of the first window.
_FIRST = 300_000
_MILLI = 1_000_000
_MISSING = "ResourceNotFoundException"


class Found(msgspec.Struct, frozen=True):
    """One event as FilterLogEvents gives it."""

    group: str
    stream: str
    millis: int
    text: str
    event: str


class CloudwatchReader(Reader):
    """Reads the log groups that the sink writes to; what others write there too. ``now`` gives seconds since 1970."""

    def __init__(self, config: CloudwatchConfig, *, now: Callable[[], float] = time.time) -> None:
        require_boto3()
        self.parsed = config.line == "json"
        self._config = config
        self._now = now
        self._group = config.group_template()
        self._client: Client | None = None
        self._resources = Resources()

    def read(self, query: Query) -> Iterator[Record]:
        """Give matching records. Raises RetryableError when the service is away, ParkedError for login or rights.

        Lines are not parsed (``parsed`` is false) unless ``line: json``; then only the time decides what matches here,
        and whoever asks parses and filters.
        """
        left = query.limit if self.parsed or query.condition is None else None
        if left is not None and left <= 0:
            return
        for events in self._milliseconds(query):
            records = {record.id: record for record in self._records(events)}
            for record in sorted(records.values(), key=_by_time, reverse=not query.oldest_first):
                if query.since is not None and record.time_ns < query.since:
                    continue
                if query.until is not None and record.time_ns >= query.until:
                    continue
                if self.parsed and query.condition is not None and not query.condition.matches(record):
                    continue
                yield record
                if left is not None:
                    left -= 1
                    if not left:
                        return

    def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _records(self, events: list[Found]) -> Iterator[Record]:
        """Give the records of one millisecond: all doubles and all parts of a record have the same."""
        parts: list[tuple[encode.Metadata, str]] = []
        for event in events:
            record = encode.read(event.text, event.millis, _place(event), raws=not self.parsed)
            if record is not None:
                yield self._shared(record)
                continue
            metadata = encode.read_metadata(event.text)
            if metadata is not None:
                parts.append((metadata, event.text))
            else:
                yield _foreign(event)
        for metadata, text, whole in encode.joined(parts):
            millis = events[0].millis
            record = encode.read(text, millis, _place(events[0]), raws=not self.parsed) if whole else None
            yield self._shared(record) if record is not None else _incomplete(metadata, text, millis)

    def _shared(self, record: Record) -> Record:
        """Give the record with one resource for all that come from the same."""
        own = record.resource
        return msgspec.structs.replace(record, resource=self._resources.of(own.source, own.attributes))

    def _milliseconds(self, query: Query) -> Iterator[list[Found]]:
        """Give all events of each millisecond that has any, in the order asked for."""
        self._client = self._client or connect(self._config, reads=True)
        groups = self._groups(self._client)
        if not groups:
            return
        # A record lies at most 14 days before its group began, and 2 hours ahead.
        least = min(groups.values()) - OLDEST
        most = int(self._now() * 1000) + NEWEST
        if query.since is not None:
            least = max(least, query.since // _MILLI)
        if query.until is not None:
            most = min(most, (query.until - 1) // _MILLI)
        windows = self._forwards if query.oldest_first else self._backwards
        for events in windows(sorted(groups), max(least, 0), most):
            events.sort(key=_by_millis, reverse=not query.oldest_first)
            for _, together in groupby(events, key=_by_millis):
                yield list(together)

    def _groups(self, client: Client) -> dict[str, int]:
        """Give the groups that there are, and when each began.

        Without the right to look, a group of a fixed name is read all the same.
        """
        try:
            known = client.groups(self._group.prefix)
            found = {str(group["logGroupName"]): int(group.get("creationTime", 0)) for group in known}
        except SinkError as error:
            if not self._group.fixed or not error.code.startswith("AccessDenied"):
                raise
            return {self._group.text: OLDEST}
        return {name: began for name, began in found.items() if self._group.may_give(name)}

    def _backwards(self, groups: list[str], least: int, most: int) -> Iterator[list[Found]]:
        """Give windows from the newest to the oldest."""
        length = _FIRST
        waiting: list[tuple[int, int]] = []
        while waiting or most >= least:
            if waiting:
                start, end = waiting.pop()
            else:
                start, end = max(least, most - length + 1), most
                most = start - 1
            events, last = self._window(groups, start, end, _MANY if start < end else None)
            if last is None:
                length = length * 4 if len(events) < _FEW else length
                yield events
                continue
            # Too many: what we have is its older part. The newer one comes first, and this one again.
            length = _FIRST
            last = min(last, end - 1)
            waiting += [(start, last), (last + 1, end)]

    def _forwards(self, groups: list[str], least: int, most: int) -> Iterator[list[Found]]:
        """Give windows from the oldest to the newest."""
        start = least
        while start <= most:
            events, last = self._window(groups, start, most, _MANY)
            if last is not None and last == start:  # more of this millisecond may follow
                events, _ = self._window(groups, start, start, None)
                last = start + 1
            if last is None:
                yield events
                return
            yield [event for event in events if event.millis < last]
            start = last

    def _window(self, groups: list[str], start: int, end: int, many: int | None) -> tuple[list[Found], int | None]:
        """Give the events from ``start`` to ``end``, both inclusive, of all groups.

        With more than ``many`` in a group it stops there; then also the millisecond from which on some are missing.
        """
        found: list[Found] = []
        missing: int | None = None
        for group in groups:
            events, last = self._pages(group, start, end, many)
            found += events
            if last is not None:
                missing = last if missing is None else min(missing, last)
        return found, missing

    def _pages(self, group: str, start: int, end: int, many: int | None) -> tuple[list[Found], int | None]:
        assert self._client is not None
        options: dict[str, Any] = {"logGroupName": group, "startTime": start, "endTime": end}
        found: list[Found] = []
        while True:
            try:
                answer = self._client.call("filter_log_events", **options)
            except SinkError as error:
                if error.code == _MISSING:  # not created yet, or deleted meanwhile
                    return found, None
                raise
            found += [
                Found(group, event["logStreamName"], event["timestamp"], event["message"], event["eventId"])
                for event in answer.get("events", ())
            ]
            token = answer.get("nextToken")
            if not token:
                return found, None
            if many is not None and len(found) > many:
                return found, found[-1].millis
            options["nextToken"] = token


def _by_time(record: Record) -> tuple[int, str]:
    return record.time_ns, record.id


def _by_millis(event: Found) -> int:
    return event.millis


def _place(event: Found) -> Resource:
    return Resource("", {"aws.log.group.names": event.group, "aws.log.stream.names": event.stream})


def _foreign(event: Found) -> Record:
    """What somebody else wrote: the text, under an id that the same event always has."""
    name = f"{event.group}\0{event.stream}\0{event.event}"
    return Record(
        id=make_id(event.millis * _MILLI, xxhash.xxh3_128_intdigest(name.encode())),
        time_ns=event.millis * _MILLI,
        severity=SEVERITIES["info"],
        message=event.text,
        attributes={},
        raw=event.text,
        resource=_place(event),
        offset=0,
    )


def _incomplete(metadata: encode.Metadata, text: str, millis: int) -> Record:
    """Parts of a record whose others are not there (yet): what there is, marked."""
    return Record(
        id=metadata.id,
        time_ns=millis * _MILLI + int(metadata.ns),
        severity=SEVERITIES["info"],
        message=text,
        attributes={"log.record.part": f"?/{metadata.parts}"},
        raw=text,
        resource=Resource(metadata.source, {}),
        offset=0,
    )
