"""The sink: a batch becomes one request, or a few where the limits ask for it."""

from __future__ import annotations

import logging
from itertools import groupby
from typing import TYPE_CHECKING, ClassVar

from shipper.errors import PermanentError, SinkError
from shipper.sink import Finding, Limits, Sink, SinkConfig
from shipper.units import parse_size
from sinks import _http
from sinks._http import Answer, Client
from sinks._outcome import Outcome
from sinks.otlp import answers, json, protobuf
from sinks.otlp.config import OtlpConfig
from sinks.otlp.values import Rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shipper.record import Batch

#: What an empty request may be answered with by a receiver that would take a full one: Loki refuses to store nothing.
_FINE = frozenset([200, 204, 400, 422])
_PATH = "/v1/logs"
_log = logging.getLogger(__name__)


class OtlpSink(Sink):
    """Sends batches to an OTLP receiver."""

    config: ClassVar[type[SinkConfig]] = OtlpConfig
    limits = Limits(records=5_000, bytes=4 << 20)

    def __init__(self, config: OtlpConfig) -> None:
        self._config = config
        self._most_bytes = parse_size(config.max_request_bytes)
        self._most_records = config.max_request_records
        encoder = json.Encoder if config.encoding == "json" else protobuf.Encoder
        self._encoder: json.Encoder | protobuf.Encoder = encoder(original=config.original)
        base = config.endpoint.rstrip("/").removesuffix(_PATH)
        self._client = Client(base, config, what=f"OTLP receiver {base}{_PATH}")
        self._headers: dict[str, str] = {}
        self._last_message = ""

    def open(self) -> None:
        """Read the secrets. Raises ParkedError when a file of one cannot be read."""
        config = self._config
        headers = {"Content-Type": self._encoder.content_type, "User-Agent": "shipper"}
        if config.compression == "gzip":
            headers["Content-Encoding"] = "gzip"
        self._headers = {**headers, **config.login()}

    def write(self, batch: Batch) -> None:
        """Send the batch. Raises PartialError when requests of it had different fates."""
        if not len(batch):
            return
        records = self._encoder.records(batch)
        resources = self._encoder.resources(batch.resources)
        outcome = Outcome(len(batch))
        for rows in self._requests(records, resources):
            if outcome.stopped is not None:
                outcome.skip(rows)
                continue
            try:
                self._send(rows, records, resources, outcome)
            except SinkError as error:
                outcome.fail(rows, error)
        outcome.close()

    def healthcheck(self) -> None:
        """Send a request without records. Raises SinkError."""
        self.open()
        answer = self._probe()
        if answer.status not in _FINE:
            raise self._refusal(answer)

    def examine(self) -> Iterator[Finding]:
        """Look at the receiver with a request without records."""
        try:
            self.open()
        except SinkError as error:
            yield Finding("login", "fail", str(error), "make the file readable for the daemon's user")
            return
        yield from _http.examine(self._client, self._probe, fine=_FINE)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _requests(self, records: Rows, resources: list[bytes]) -> Iterator[range]:
        """Cut the batch, in order, into requests within the limits."""
        most = self._most_bytes
        if (
            len(records.data) + sum(map(self._encoder.overhead, set(resources))) <= most
            and len(resources) <= self._most_records
        ):
            yield range(len(resources))
            return
        start = size = before = 0
        seen: set[bytes] = set()
        for row, (end, resource) in enumerate(zip(records.ends, resources, strict=True)):
            more = end - before
            before = end
            extra = 0 if resource in seen else self._encoder.overhead(resource)
            if row > start and (size + more + extra > most or row - start >= self._most_records):
                yield range(start, row)
                start, size = row, 0
                seen.clear()
                extra = self._encoder.overhead(resource)
            seen.add(resource)
            size += more + extra
        yield range(start, len(resources))

    def _send(self, rows: range, records: Rows, resources: list[bytes], outcome: Outcome) -> None:
        groups: dict[bytes, list[memoryview]] = {}
        for start, end, resource in _runs(rows, resources):
            groups.setdefault(resource, []).append(records.part(start, end))
        body = self._encoder.request(list(groups.items()))
        size = sum(map(len, body))
        if size > self._most_bytes:  # a record alone: all others were cut to fit
            raise PermanentError(
                f"the record takes {size} bytes as a request, and max_request_bytes is {self._most_bytes}",
                code="too_large",
                certain=True,
            )
        answer = self._post(body)
        if answer.status not in answers.TAKEN:
            raise self._refusal(answer)
        count, words = answers.rejected(answer, self._client.what)
        if count:
            self._rejected(rows, count, words, outcome)
        elif words and words != self._last_message:
            self._last_message = words
            _log.warning("%s took everything and says: %s", self._client.what, words)

    def _rejected(self, rows: range, count: int, words: str, outcome: Outcome) -> None:
        """Hand over what a partial success refused.

        The same request must not be sent again (OTLP specification, "Partial Success"), nor may parts of it: most
        records are stored. Which are not, only the server knows. So all of them go to the dead letters, where the
        refused ones are safe.
        """
        what = self._client.what
        if count >= len(rows):
            text = f"{what}: refused, in a partial success: {words}"
        else:
            text = (
                f"{what}: refused {count} of the {len(rows)} records of a request and did not say which; this is one of"
                f" the {len(rows)}, so it may be stored (look for its log.record.uid): {words}"
            )
            _log.warning(
                "%s refused %d of %d records and did not say which: %s; all are in the dead letters", what, count,
                len(rows), words,
            )  # fmt: skip
        error = PermanentError(text, code="partial_success", certain=True)
        for row in rows:
            outcome.refuse(row, error)

    def _probe(self) -> Answer:
        return self._post(self._encoder.request([]))

    def _post(self, pieces: list[bytes | memoryview]) -> Answer:
        body = _http.gzipped(pieces) if self._config.compression == "gzip" else b"".join(pieces)
        return self._client.request("POST", _PATH, body=body, headers=self._headers)

    def _refusal(self, answer: Answer) -> SinkError:
        return answers.refusal(answer, self._client.what, retry_500=self._config.retry_500)


def _runs(rows: range, resources: list[bytes]) -> Iterator[tuple[int, int, bytes]]:
    """Give the runs of rows that share a resource: where each starts and ends, and the resource."""
    if resources.count(resources[0]) == len(resources):
        yield rows.start, rows.stop, resources[0]
        return
    start = rows.start
    for resource, run in groupby(map(resources.__getitem__, rows)):
        end = start + sum(1 for _ in run)
        yield start, end, resource
        start = end
