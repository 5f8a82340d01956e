"""Requests to CloudWatch Logs: credentials, endpoint, signature, and answers that can be trusted.

botocore alone is used, not the object layer that boto3 puts on it: 0.15 s less to start, and nothing is lost. This
module is imported by the sink when it is used; nothing else may import botocore.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any

import botocore.session
import msgspec
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest, AWSResponse
from botocore.config import Config
from botocore.credentials import (
    AssumeRoleCredentialFetcher,
    CredentialProvider,
    CredentialResolver,
    DeferredRefreshableCredentials,
)
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import create_parser
from urllib3.exceptions import InsecureRequestWarning

from shipper.errors import RetryableError, SinkError
from shipper.units import parse_duration
from sinks import _http
from sinks.cloudwatch import faults

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from sinks.cloudwatch.config import CloudwatchConfig

#: The headers of which one tells where a body ends (RFC 9112, 6.3).
_ENDS = frozenset(["content-length", "transfer-encoding", "connection"])
_decode = msgspec.json.decode
_log = logging.getLogger(__name__)


class Client:
    """Talks to one account and region. Every method raises SinkError. Not for several threads at once.

    ``reads`` lets botocore repeat requests that fail, which for reading is harmless.
    """

    def __init__(self, config: CloudwatchConfig, *, reads: bool = False) -> None:
        self._config = config
        self.what = where(config)
        #: URL and headers of every put, as botocore makes them.
        self._target: tuple[str, dict[str, str]] | None = None
        #: Answers that emulators want back (`put`), by group and stream.
        self._tokens: dict[tuple[str, str], str] = {}
        with self._sorted():
            session = _session(config)
            self._client = session.create_client("logs", **_options(config, config.endpoint, reads=reads))
            self._credentials = session.get_credentials()
        self.what = where(config, self._client.meta.endpoint_url)
        if not config.tls_verify:
            warnings.filterwarnings("ignore", category=InsecureRequestWarning)
            _log.warning("%s: tls_verify is false, so anybody may pose as the server", self.what)
        events = self._client.meta.events
        if config.headers:
            events.register("before-call.cloudwatch-logs", self._add_headers)
        events.register("before-call.cloudwatch-logs.PutLogEvents", self._keep_target)

    @property
    def url(self) -> str:
        """The endpoint in use."""
        return str(self._client.meta.endpoint_url)

    def put(
        self, group: str, stream: str, make: Callable[[dict[str, str]], Iterable[bytes | memoryview]]
    ) -> Mapping[str, Any]:
        """Put events, at most what the service takes; the answer's ``rejectedLogEventsInfo``.

        ``make`` makes the body of a request, in pieces, of its first members.
        """
        try:
            return self._put(group, stream, make)
        except SinkError as error:
            if error.code != "InvalidSequenceTokenException":
                raise
            # Only emulators and the service of old want one; what they expect, they say.
            response = error.__cause__.response if isinstance(error.__cause__, ClientError) else {}
            self._tokens[group, stream] = str(response.get("expectedSequenceToken") or "")
        return self._put(group, stream, make)

    def _put(
        self, group: str, stream: str, make: Callable[[dict[str, str]], Iterable[bytes | memoryview]]
    ) -> Mapping[str, Any]:
        target = {"logGroupName": group, "logStreamName": stream}
        token = self._tokens.get((group, stream))
        pieces = make({**target, "sequenceToken": token} if token else target)
        body = _http.gzipped(pieces) if self._config.compression == "gzip" else b"".join(pieces)
        try:
            with self._sorted(unsure=True):
                answer = self._sent(body)
        except SinkError as error:
            if error.code == "DataAlreadyAcceptedException":
                return {}
            raise
        if token is not None:
            self._tokens[group, stream] = str(answer.get("nextSequenceToken") or "")
        return dict(answer.get("rejectedLogEventsInfo") or {})

    def _sent(self, body: bytes) -> dict[str, Any]:
        """Send a put and give its answer.

        botocore names the place, signs and sends; what it does between, for any operation of any service, costs more
        than these three and nothing here needs it.
        """
        if self._target is None:
            self._client.put_log_events(logGroupName="", logStreamName="", logEvents=[])
        assert self._target is not None  # by `_keep_target`
        request = AWSRequest("POST", *self._target, body)
        meta = self._client.meta
        credentials = self._credentials and self._credentials.get_frozen_credentials()
        SigV4Auth(credentials, meta.service_model.signing_name, meta.region_name).add_auth(request)
        # Its session alone knows proxies, certificates and timeouts as all other requests have them.
        return self._judged(self._client._endpoint.http_session.send(request.prepare()))  # noqa: SLF001

    def _keep_target(self, params: dict[str, Any], **_: Any) -> tuple[Any, dict[str, Any]]:
        """Keep what botocore makes of a put and have it sent nowhere: an answer given here stands for the service's."""
        headers = {**params["headers"], **self._config.headers}
        if self._config.compression == "gzip":
            headers["Content-Encoding"] = "gzip"
        self._target = params["url"], headers
        return AWSResponse(params["url"], 200, {}, None), {}

    def create_stream(self, group: str, stream: str) -> None:
        """Create a stream; one that is there is fine."""
        self._create("create_log_stream", logGroupName=group, logStreamName=stream)

    def create_group(self, group: str) -> bool:
        """Create a group; tell whether it was not there before."""
        return self._create("create_log_group", logGroupName=group)

    def set_retention(self, group: str, days: int) -> None:
        """Say how long a group keeps its events."""
        self.call("put_retention_policy", logGroupName=group, retentionInDays=days)

    def groups(self, prefix: str) -> Iterator[Mapping[str, Any]]:
        """Give what is known of every group whose name begins with ``prefix``."""
        options: dict[str, Any] = {"logGroupNamePrefix": prefix} if prefix else {}
        while True:
            answer = self.call("describe_log_groups", **options)
            yield from answer.get("logGroups", [])
            if not answer.get("nextToken"):
                return
            options["nextToken"] = answer["nextToken"]

    def call(self, operation: str, **options: Any) -> dict[str, Any]:
        """Ask for any operation; the answer, with its ``ResponseMetadata``."""
        with self._sorted():
            answer: dict[str, Any] = getattr(self._client, operation)(**options)
        return answer

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def _create(self, operation: str, **names: str) -> bool:
        try:
            self.call(operation, **names)
        except SinkError as error:
            if error.code != faults.EXISTS:
                raise
            return False
        return True

    @contextmanager
    def _sorted(self, *, unsure: bool = False) -> Iterator[None]:
        try:
            yield
        except (BotoCoreError, ClientError, OSError, ValueError) as error:
            raise faults.sorted_error(error, self.what, unsure=unsure) from error

    def _add_headers(self, params: dict[str, Any], **_: Any) -> None:
        params["headers"].update(self._config.headers)

    def _judged(self, response: Any) -> dict[str, Any]:
        """Take for success only what says so whole: botocore takes any text, and any end of it, for an answer."""
        headers = {name.lower(): value for name, value in response.headers.items()}
        status, body = response.status_code, response.content
        length = headers.get("content-length", "")
        whole = _ENDS.intersection(headers) and not (length.isdigit() and int(length) != len(body))
        if not whole:
            response.raw.close()  # or its connection waits for the rest
        if status >= 300:
            raise _refusal(status, headers, body)
        if not whole:
            raise RetryableError(
                f"{self.what}: the connection broke before the answer was complete", code="connection", maybe_taken=True
            )
        answer = _object(body) if status == 200 else None
        if answer is None:
            text = " ".join(body[:200].decode("utf-8", "replace").split())
            raise RetryableError(
                f"{self.what}: {status} without the service's answer: {text!r}; check the endpoint and what stands"
                " between",
                code="answer",
                maybe_taken=True,
            )
        return answer


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        value = _decode(body)
    except (msgspec.DecodeError, UnicodeError):
        return None
    return value if isinstance(value, dict) else None


def _refusal(status: int, headers: dict[str, str], body: bytes) -> ClientError:
    """Give the error that botocore raises for an answer to a put."""
    response = create_parser("json").parse({"status_code": status, "headers": headers, "body": body}, None)
    response["expectedSequenceToken"] = (_object(body) or {}).get("expectedSequenceToken")
    return ClientError(response, "PutLogEvents")


def where(config: CloudwatchConfig, url: str = "") -> str:
    """Name the destination for errors."""
    at = re.sub(r"^https?://", "", url or config.endpoint) or config.region
    return f"cloudwatch {at}" if at else "cloudwatch"


def _session(config: CloudwatchConfig) -> Any:
    session = botocore.session.Session(profile=config.profile or None)
    if config.access_key_id:
        key = _http.secret(config.secret_access_key, config.secret_access_key_file, "secret_access_key_file")
        session.set_credentials(config.access_key_id, key, config.session_token or None)
    if config.role_arn:
        source = session.get_credentials()
        role = _Role(config, session, source)
        session = botocore.session.Session(profile=config.profile or None)
        session.register_component("credential_provider", CredentialResolver([role]))
    return session


class _Role(CredentialProvider):  # type: ignore[misc]
    """Credentials of a role, renewed by botocore before they end."""

    METHOD = "custom-role"
    CANONICAL_NAME = "custom-role"

    def __init__(self, config: CloudwatchConfig, session: Any, source: Any) -> None:
        super().__init__(session)
        self._config = config
        self._source = source

    def load(self) -> Any:
        config = self._config
        if self._source is None:
            return None
        options = _options(config, config.sts_endpoint, reads=True)
        more = {"RoleSessionName": config.role_session_name}
        if config.external_id:
            more["ExternalId"] = config.external_id

        def fetch() -> Any:
            with ExitStack() as made:  # the client is used once an hour: its connection need not wait

                def creator(service: str, **given: Any) -> Any:
                    return made.enter_context(closing(self.session.create_client(service, **{**given, **options})))

                fetcher = AssumeRoleCredentialFetcher(creator, self._source, config.role_arn, extra_args=more)
                return fetcher.fetch_credentials()

        return DeferredRefreshableCredentials(fetch, self.METHOD)


def _options(config: CloudwatchConfig, endpoint: str, *, reads: bool) -> dict[str, Any]:
    certificate = (config.cert_file, config.key_file) if config.key_file else config.cert_file
    settings = Config(
        # Policy is the delivery's: a request repeated in secret is stored twice.
        retries={"mode": "standard", "total_max_attempts": 5} if reads else {"total_max_attempts": 1},
        connect_timeout=parse_duration(config.connect_timeout),
        read_timeout=parse_duration(config.timeout),
        tcp_keepalive=True,
        max_pool_connections=2,
        parameter_validation=False,
        use_fips_endpoint=config.use_fips or None,
        use_dualstack_endpoint=config.use_dualstack or None,
        client_cert=certificate or None,
        user_agent_extra="shipper",
    )
    return {
        # botocore itself knows AWS_DEFAULT_REGION and the profile; AWS's own containers set this one.
        "region_name": config.region or os.environ.get("AWS_REGION") or None,
        "endpoint_url": endpoint or None,
        "verify": (config.ca_file or None) if config.tls_verify else False,
        "config": settings,
    }
