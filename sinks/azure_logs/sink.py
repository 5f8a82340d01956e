"""Sends rows by the Logs Ingestion API, a megabyte a request, and says what each answer means."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import urlsplit

from shipper.errors import ParkedError, PermanentError, RetryableError, SinkError
from shipper.render import span
from shipper.sink import Finding, Limits, Sink, SinkConfig
from sinks import _http
from sinks._azure import CLOUDS, Credential, Requests, failure, storable, with_token
from sinks._azure_read import Workspace
from sinks._http import Answer, Client, gzipped
from sinks._outcome import Outcome
from sinks.azure_logs.config import AzureLogsConfig
from sinks.azure_logs.encode import Encoder
from sinks.azure_logs.reader import dialect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from shipper.record import Batch

#: Bytes of a request's body before compression: 1 MB, whichever million is meant, brackets and commas counted.
REQUEST = 1_000_000
#: Records that are encoded at once: a text of less than a MiB, whose memory is kept for the next one.
AT_ONCE = 512
_RIGHTS = (
    "give the application the role Monitoring Metrics Publisher on the data collection rule; it takes up to half an"
    " hour to hold"
)


class AzureLogsSink(Sink):
    """Sends batches to one stream of a data collection rule. ``now`` gives seconds since 1970, for tokens."""

    config: ClassVar[type[SinkConfig]] = AzureLogsConfig
    limits = Limits(records=5_000, bytes=2 << 20)

    def __init__(self, config: AzureLogsConfig, *, now: Callable[[], float] = time.time) -> None:
        self._config = config
        self._what = f"azure_logs {urlsplit(config.endpoint).netloc}"
        self._client = Client(config.endpoint, config, what=self._what)
        self._credential = Credential(config, f"{CLOUDS[config.cloud].monitor}/.default", what=self._what, now=now)
        self._encoder = Encoder()
        self._path = f"/dataCollectionRules/{config.rule_id}/streams/{config.stream}?api-version=2023-01-01"

    def open(self) -> None:
        """Get a token, unless there is one. Raises RetryableError without an answer, ParkedError when refused."""
        self._credential.header()

    def write(self, batch: Batch) -> None:
        """Send the batch. What the server says of a request holds for all of its records: the delivery bisects."""
        if not len(batch):
            return
        outcome = Outcome(len(batch))
        good = self._storable(batch, outcome)
        if good:
            self._send_all(batch if len(good) == len(batch) else batch.select(good), good, outcome)
        outcome.close()

    def _send_all(self, batch: Batch, rows: Sequence[int], outcome: Outcome) -> None:
        """Encode and send; ``rows`` names the batch's records in the outcome."""

        def send(body: bytes, records: list[int]) -> None:
            self._send(body, records, outcome)

        requests = Requests(REQUEST, gzip=self._config.compression == "gzip", send=send)
        requests.fill(batch, rows, self._encoder.encode, at_once=AT_ONCE)

    @staticmethod
    def _storable(batch: Batch, outcome: Outcome) -> Sequence[int]:
        least, most, _ = span(batch.times)
        if storable(least) and storable(most):
            return range(len(batch))
        for row, time_ns in enumerate(batch.times):
            if not storable(time_ns):
                text = "azure_logs: the record's time is not between 1970 and 2262, and no column holds it"
                outcome.refuse(row, PermanentError(text, code="time", certain=True))
        return [row for row, time_ns in enumerate(batch.times) if storable(time_ns)]

    def _send(self, body: bytes, records: list[int], outcome: Outcome) -> None:
        if outcome.stopped is not None:
            outcome.skip(records)
            return
        try:
            answer = self._post(body)
            if answer.status != 204:
                outcome.fail(list(dict.fromkeys(records)), self._refusal(answer))
        except RetryableError as error:
            outcome.fail(records, error)

    def _post(self, body: bytes) -> Answer:
        headers = {"Content-Type": "application/json"}
        if self._config.compression == "gzip":
            headers["Content-Encoding"] = "gzip"
        return with_token(
            lambda token: self._client.request("POST", self._path, body=body, headers={**headers, **token}),
            self._credential,
        )

    def _post_nothing(self) -> Answer:
        """Post a request without rows, which shows whether one with rows would be taken."""
        return self._post(gzipped(b"[]") if self._config.compression == "gzip" else b"[]")

    def _refusal(self, answer: Answer) -> SinkError:
        """Sort an answer to a request that had rows."""
        if answer.status not in {400, 404}:
            return failure(answer, self._what, rights=_RIGHTS)
        # Either is said of the rule, the stream or its columns, and of a request that is too large or malformed. The
        # same request without rows tells which.
        bare = self._post_nothing()
        if bare.status != 204:
            return self._unusable(bare)
        text = f"{self._what}: {answer.status} {answer.text}".rstrip()
        why = "a request without rows is taken, so it is about these"
        return PermanentError(f"{text}; {why}", code=str(answer.status))

    def _unusable(self, answer: Answer) -> SinkError:
        """Sort an answer to a request without rows."""
        if answer.status not in {400, 404}:
            return failure(answer, self._what, rights=_RIGHTS)
        return ParkedError(
            f"{self._what}: {answer.status} {answer.text}; check endpoint, rule_id {self._config.rule_id} and stream"
            f" {self._config.stream}: the rule must be in the endpoint's region and declare the stream",
            code=str(answer.status),
        )

    def healthcheck(self) -> None:
        """Send a request without rows, which must be taken and stores nothing. Raises SinkError."""
        answer = self._post_nothing()
        if answer.status != 204:
            raise self._unusable(answer)

    def examine(self) -> Iterator[Finding]:
        """Say what there is to say: token, reachable, tls, rights, clock, limits, reading. Writes nothing."""
        try:
            self._credential.header()
        except SinkError as error:
            yield Finding("login", "fail", str(error), "see the message")
            return
        seen: list[Answer] = []

        def probe() -> Answer:
            seen.append(self._post_nothing())
            return seen[0]

        known = frozenset([204, 400, 403, 404])
        yield from _http.examine(self._client, probe, fine=known)
        if seen and seen[0].status in known:
            yield self._rights(seen[0])
        if seen:
            yield Finding("limits", "ok", "1 MB a request and 64 KB a field; longer records are spread over rows")
        if self._config.workspace_id:
            workspace = Workspace(self._config, dialect(self._config.read_table), what="azure_logs")
            yield workspace.finding()
            workspace.close()

    def _rights(self, answer: Answer) -> Finding:
        if answer.status == 204:
            return Finding("rights", "ok", f"rule {self._config.rule_id} takes the stream {self._config.stream}")
        fix = _RIGHTS if answer.status == 403 else "make the rule and the table by the template on the sink's page"
        return Finding("rights", "fail", str(self._unusable(answer)), fix)

    def close(self) -> None:
        """Close all connections."""
        self._client.close()
        self._credential.close()
