"""Sends records to Azure Application Insights, two megabytes a request, and says what an answer means for each item."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import urljoin, urlsplit

import msgspec

from shipper.errors import ConfigError, DroppedError, ParkedError, PermanentError, RetryableError, SinkError
from shipper.render import span
from shipper.sink import Finding, Limits, Sink, SinkConfig
from sinks import _http
from sinks._azure import Credential, Requests, failure, storable, with_token
from sinks._azure_read import Workspace
from sinks._http import Answer, Client, gzipped, retry_after, secret
from sinks._outcome import Outcome
from sinks.azure_app_insights.config import AppInsightsConfig, Connection
from sinks.azure_app_insights.encode import Encoder
from sinks.azure_app_insights.reader import DIALECT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from shipper.record import Batch

TRACK = "/v2.1/track"
#: Nanoseconds of age beyond which the server refuses an item: 172,800,000 ms (error 103).
OLDEST = 172_800 * 1_000_000_000
#: Bytes of a request before compression. The service names no limit but 64,000 items, which these cannot reach; a
#: request costs half a millisecond of CPU.
REQUEST = 2_000_000
#: Records that are encoded at once: a text of less than a MiB, whose memory is kept for the next one.
AT_ONCE = 512
#: Redirects followed for one request.
_HOPS = 5
#: Domains whose hosts are Azure's alone: a redirect from one host of such a domain to another leaks nothing.
_AZURE_OWNED = (
    ".applicationinsights.azure.com",
    ".applicationinsights.azure.cn",
    ".applicationinsights.azure.us",
    ".applicationinsights.us",
    ".services.visualstudio.com",
)
_QUOTA = frozenset([402, 439])
_LATER = frozenset([408, 429, 500, 502, 503, 504])
_RIGHTS = "give the application the role Monitoring Metrics Publisher on the resource; it takes some minutes to hold"
_log = logging.getLogger(__name__)


class _Failed(msgspec.Struct, frozen=True):
    index: int
    message: str = ""
    status: int = msgspec.field(name="statusCode", default=0)


class _TrackResponse(msgspec.Struct, frozen=True):
    received: int = msgspec.field(name="itemsReceived")
    accepted: int = msgspec.field(name="itemsAccepted")
    errors: list[_Failed] = []


class AppInsightsSink(Sink):
    """Sends batches to one resource. ``now`` gives seconds since 1970, for the age of records and of tokens."""

    config: ClassVar[type[SinkConfig]] = AppInsightsConfig
    limits = Limits(records=5_000, bytes=2 << 20)
    max_age = OLDEST / 1_000_000_000

    def __init__(self, config: AppInsightsConfig, *, now: Callable[[], float] = time.time) -> None:
        self._config = config
        self._now = now
        self._connection: Connection | None = None
        self._encoder: Encoder | None = None
        self._client: Client | None = None
        self._credential: Credential | None = None
        if config.connection_string:
            try:
                config.connection(config.connection_string)
            except ValueError as error:
                raise ConfigError(f"connection_string: {error}") from error

    def open(self) -> None:
        """Read the connection string, and forget a host that a redirect led to if it does not answer."""
        config = self._config
        text = secret(config.connection_string, config.connection_string_file, "connection_string_file")
        try:
            connection = config.connection(text)
        except ValueError as error:
            raise ParkedError(f"connection_string_file: {error}", code="connection_string") from error
        if connection == self._connection and self._client is not None:
            return
        self._release()
        self._connection = connection
        self._encoder = Encoder(connection.key, config.event_attributes)
        self._client = Client(connection.endpoint, config, what=_what(connection.endpoint))
        if config.entra:
            self._credential = Credential(
                config, f"{connection.audience}/.default", what=_what(connection.endpoint), now=self._now
            )

    def write(self, batch: Batch) -> None:
        """Send the batch. Records that are too old are refused at once, all others go out in order of their kind."""
        if self._encoder is None or self._client is None:
            self.open()
        assert self._encoder is not None
        if not len(batch):
            return
        outcome = Outcome(len(batch))
        fresh = self._fresh(batch, outcome)
        if fresh:
            self._send_all(self._encoder, batch if len(fresh) == len(batch) else batch.select(fresh), fresh, outcome)
        outcome.close()

    def _send_all(self, encoder: Encoder, batch: Batch, rows: Sequence[int], outcome: Outcome) -> None:
        """Encode and send; ``rows`` names the batch's records in the outcome."""

        def send(body: bytes, records: list[int]) -> None:
            self._send(body, records, outcome)

        requests = Requests(REQUEST, gzip=self._config.compression == "gzip", send=send)
        requests.fill(batch, rows, encoder.encode, at_once=AT_ONCE)

    def _fresh(self, batch: Batch, outcome: Outcome) -> Sequence[int]:
        oldest = int(self._now() * 1_000_000_000) - OLDEST
        least, most, _ = span(batch.times)
        if least >= oldest and storable(most):
            return range(len(batch))
        fresh: list[int] = []
        for row, time_ns in enumerate(batch.times):
            if time_ns >= oldest and storable(time_ns):
                fresh.append(row)
                continue
            age = timedelta(seconds=round(self._now() - time_ns / 1e9))
            why = f"{age} old, and Application Insights takes 48 hours" if time_ns < oldest else "in a year beyond 2262"
            text = (
                f"azure_app_insights: the record is {why}; write it to another sink (shipper dead-letters retry --sink)"
            )
            outcome.refuse(row, PermanentError(text, code="103", certain=True))
        return fresh

    def _send(self, body: bytes, rows: Sequence[int], outcome: Outcome) -> None:
        if outcome.stopped is not None:
            outcome.skip(rows)
            return
        try:
            answer = self._track(body)
        except RetryableError as error:
            outcome.fail(rows, error)
            return
        self._sort_out(answer, rows, outcome)

    def _track_nothing(self) -> Answer:
        """Post a request without items."""
        return self._track(gzipped(b"[]") if self._config.compression == "gzip" else b"[]")

    def _track(self, body: bytes) -> Answer:
        """Post items, following redirects that are safe, and remember where they led."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._config.compression == "gzip":
            headers["Content-Encoding"] = "gzip"
        for _ in range(_HOPS + 1):
            client = self._client
            assert client is not None
            try:
                answer = with_token(self._poster(client, body, headers), self._credential)
            except RetryableError:
                self._leave_redirect()
                raise
            if answer.status not in {307, 308}:
                return answer
            self._follow_redirect(client, answer)
        raise ParkedError(
            f"{_what(self._base)}: redirected more than {_HOPS} times; check the endpoint", code="redirect"
        )

    @staticmethod
    def _poster(client: Client, body: bytes, headers: dict[str, str]) -> Callable[[dict[str, str]], Answer]:
        return lambda token: client.request("POST", TRACK, body=body, headers={**headers, **token})

    def _follow_redirect(self, client: Client, answer: Answer) -> None:
        target = urljoin(client.base + TRACK, answer.headers.get("location", ""))
        if not _safe(client.base, target):
            raise ParkedError(
                f"{_what(client.base)}: {answer.status} to {target[:200]!r}, which is another host than ours and not of the"
                " same Azure domain, so nothing is sent there; check the IngestionEndpoint",
                code="redirect",
            )
        client.close()
        base = target.partition("?")[0].rstrip("/").removesuffix(TRACK).rstrip("/")
        _log.info("%s: redirected to %s", _what(client.base), base)
        self._client = Client(base, self._config, what=_what(base))

    def _leave_redirect(self) -> None:
        """Return to the host that the connection string names: the one that a redirect led to gives no answer."""
        assert self._connection is not None
        assert self._client is not None
        if self._client.base != self._connection.endpoint:
            self._client.close()
            self._client = Client(self._connection.endpoint, self._config, what=_what(self._connection.endpoint))

    def _sort_out(self, answer: Answer, rows: Sequence[int], outcome: Outcome) -> None:
        """Say what an answer means for each of the request's items; ``rows`` names the record of each."""
        response = _decode_response(answer) if answer.status in {200, 206, 400} else None
        if answer.status == 200 and response is not None and not response.errors and response.accepted == len(rows):
            return
        unique = list(dict.fromkeys(rows))
        if response is None or (answer.status == 400 and not response.errors):
            outcome.fail(unique, self._request_error(answer))
            return
        if any(not 0 <= each.index < len(rows) for each in response.errors):
            outcome.fail(unique, self._unaccounted(answer, "names items that were not sent"))
            return
        failed = {each.index: self._item_error(each, answer) for each in response.errors}
        for index, error in failed.items():
            outcome.refuse(rows[index], error)
            stops = isinstance(error, ParkedError) or (isinstance(error, RetryableError) and error.code == "429")
            if stops and isinstance(error, RetryableError):
                outcome.stopped = error
        if answer.status != 400 and response.accepted + len(failed) < len(rows):
            # Something was not accepted and is not named. What is named keeps its own fate.
            unclear = self._unaccounted(answer, f"accounts for {response.accepted + len(failed)} of {len(rows)} items")
            refused = {rows[index] for index in failed}
            outcome.fail([row for row in unique if row not in refused], unclear)

    def _request_error(self, answer: Answer) -> SinkError:
        """Sort an answer that is one for the whole request."""
        what, code = _what(self._base), str(answer.status)
        if answer.status in _QUOTA:
            return self._quota(answer, answer.text)
        if answer.status == 404:
            text = f"{what}: 404 {answer.text}; the endpoint is not the resource's own: copy its connection string anew"
            return ParkedError(text, code=code)
        if answer.status == 400 and "instrumentation key" in answer.text.lower():
            return self._bad_key(answer.text)
        return failure(answer, what, rights=_RIGHTS)

    def _item_error(self, failed: _Failed, answer: Answer) -> SinkError:
        """Sort the failure of one item."""
        status, message, code = failed.status, failed.message, str(failed.status)
        text = f"{_what(self._base)}: {status} {message[: _http.QUOTED]}"
        if message.strip().lower() == "telemetry sampled out.":
            return DroppedError(f"{text}; the resource's ingestion sampling left the record out", code="sampled_out")
        if "instrumentation key" in message.lower():
            return self._bad_key(message)
        if status in _QUOTA:
            return self._quota(answer, message)
        if status in {401, 403}:
            return ParkedError(f"{text}; {_RIGHTS}", code=code)
        if status in _LATER:
            return RetryableError(text, code=code, retry_after=retry_after(answer))
        old = message.startswith("103") and "older" in message
        return PermanentError(text, code="103" if old else code, certain=old)

    def _bad_key(self, message: str) -> ParkedError:
        text = f"{_what(self._base)}: {message[: _http.QUOTED]}; copy the connection string anew from the resource"
        return ParkedError(text, code="400")

    def _quota(self, answer: Answer, message: str) -> ParkedError:
        wait = retry_after(answer)
        if wait is None:
            now = datetime.fromtimestamp(self._now(), UTC)
            midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
            wait = (midnight - now).total_seconds()
        return ParkedError(
            f"{_what(self._base)}: {answer.status} the daily quota is used up ({message[: _http.QUOTED]}); it is tried again"
            " until the quota resets; to go on now raise the daily cap of the resource or of its workspace",
            code="402" if answer.status == 402 else "439",
            retry_after=wait,
        )

    def _unaccounted(self, answer: Answer, what: str) -> RetryableError:
        text = f"{_what(self._base)}: the answer {what}: {answer.status} {answer.text}"
        return RetryableError(text, code="unclear", maybe_taken=True)

    @property
    def _base(self) -> str:
        return self._client.base if self._client is not None else ""

    def healthcheck(self) -> None:
        """Send a request without items: it stores nothing and is answered as any other. Raises SinkError."""
        self.open()
        answer = self._track_nothing()
        if answer.status not in {200, 206, 400} or _decode_response(answer) is None:
            raise self._request_error(answer)

    def examine(self) -> Iterator[Finding]:
        """Say what there is to say: reachable, tls, login, clock, limits, reading. Writes nothing."""
        try:
            self.open()
        except SinkError as error:
            yield Finding("login", "fail", str(error), "see the message")
            return
        assert self._client is not None
        seen: list[Answer] = []

        def probe() -> Answer:
            seen.append(self._track_nothing())
            return seen[0]

        yield from _http.examine(self._client, probe, fine=frozenset([200, 206, 400, *_QUOTA]))
        if seen and seen[0].status in _QUOTA:
            fix = "raise the daily cap of the resource or of its workspace, or wait until it resets"
            yield Finding("limits", "fail", "the daily quota is used up", fix)
        elif seen:
            yield Finding("limits", "ok", "records of the last 48 hours are taken, older ones are dead-lettered")
        yield from examine_reading(self._config)

    def close(self) -> None:
        """Close all connections."""
        self._release()

    def _release(self) -> None:
        if self._client is not None:
            self._client.close()
        if self._credential is not None:
            self._credential.close()
        self._client = self._credential = None


def examine_reading(config: AppInsightsConfig) -> Iterator[Finding]:
    """Ask the workspace for one row, if there is one to ask."""
    if not config.workspace_id:
        return
    workspace = Workspace(config, DIALECT, what="azure_app_insights")
    yield workspace.finding()
    workspace.close()


def _decode_response(answer: Answer) -> _TrackResponse | None:
    try:
        return msgspec.json.decode(answer.body, type=_TrackResponse)
    except (msgspec.MsgspecError, UnicodeError):
        return None


def _safe(base: str, target: str) -> bool:
    """Tell whether a redirect may be followed: the same host, or both of one domain that Azure alone has hosts in."""
    origin = urlsplit(base)
    try:
        destination = urlsplit(target)
        port = destination.port
    except ValueError:
        return False
    if destination.username or destination.password or not destination.hostname:
        return False
    if destination.scheme not in {origin.scheme, "https"}:
        return False
    if destination.hostname == origin.hostname:
        return True
    hostname = origin.hostname or ""
    owned = any(hostname.endswith(suffix) and destination.hostname.endswith(suffix) for suffix in _AZURE_OWNED)
    return owned and destination.scheme == "https" and port in {None, 443}


def _what(base: str) -> str:
    return f"azure_app_insights {urlsplit(base).netloc}"
