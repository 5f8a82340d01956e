"""What every sink that speaks HTTP shares: options, a connection pool, and what answers mean.

urllib3 without its own retries and redirects: policy is the delivery's, and a redirect would carry a password to
another host. Connections are kept, and looked up again by name whenever a new one is made.
"""

from __future__ import annotations

import base64
import logging
import ssl
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
import urllib3
from isal import isal_zlib
from msgspec import Meta
from urllib3.exceptions import (
    HTTPError,
    InsecureRequestWarning,
    LocationParseError,
    NewConnectionError,
    ProtocolError,
    ReadTimeoutError,
    SSLError,
)

from shipper.errors import ParkedError, PermanentError, RetryableError, SinkError
from shipper.secret import Secret
from shipper.sink import Finding, SinkConfig
from shipper.units import parse_duration

#: Statuses that say "later" whatever the backend (RFC 9110; 408 and 425 too).
LATER = frozenset([408, 425, 429, 500, 502, 503, 504])
#: Bytes of an answer's text that are quoted in an error.
QUOTED = 500
#: Seconds by which the clocks may differ before `examine` warns.
SKEW = 30.0
_GZIP = 31  # zlib's window bits for a gzip frame
_FASTEST = 0
_BODILESS = frozenset([204, 304])
#: The headers of which one tells where a body ends (RFC 9112, 6.3).
_ENDS = frozenset(["content-length", "transfer-encoding", "connection"])

_log = logging.getLogger(__name__)


class HttpSinkConfig(SinkConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the section of every HTTP sink may say. Subclasses add their own fields."""

    headers: Annotated[dict[str, str], Meta(description="Headers added to every request.")] = msgspec.field(
        default_factory=dict
    )
    ca_file: Annotated[
        str, Meta(description="File with the certificates that may sign the server's.", extra={"path": True})
    ] = ""
    cert_file: Annotated[str, Meta(description="File with this client's certificate.", extra={"path": True})] = ""
    key_file: Annotated[str, Meta(description="File with this client's private key.", extra={"path": True})] = ""
    tls_verify: Annotated[bool, Meta(description="Whether the server's certificate and name are checked.")] = True
    connect_timeout: Annotated[str, Meta(description="How long to wait for a connection.")] = "10s"
    timeout: Annotated[str, Meta(description="How long to wait for an answer.")] = "60s"

    def check_http(self) -> None:
        """Check what types cannot; call it from ``__post_init__``. Raises ValueError."""
        for name in ("connect_timeout", "timeout"):
            if parse_duration(getattr(self, name)) <= 0:
                raise ValueError(f"{name}: must be more than 0")
        if self.key_file and not self.cert_file:
            raise ValueError("key_file: needs cert_file, the certificate that belongs to it")
        if not self.tls_verify and self.ca_file:
            raise ValueError("tls_verify: false would not use ca_file; leave one of them out")


class LoginConfig(HttpSinkConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The same for servers that take basic or bearer authentication, or none."""

    username: Annotated[str, Meta(description="The user of basic authentication.")] = ""
    password: Annotated[Secret, Meta(description="The user's password; password_file is better.")] = ""
    password_file: Annotated[
        str,
        Meta(
            description="File that holds the password; one newline at its end is not part of it.", extra={"path": True}
        ),
    ] = ""
    bearer_token: Annotated[Secret, Meta(description="A bearer token; bearer_token_file is better.")] = ""
    bearer_token_file: Annotated[
        str,
        Meta(description="File that holds the token; one newline at its end is not part of it.", extra={"path": True}),
    ] = ""

    def check_login(self) -> None:
        """Check what types cannot; call it from ``__post_init__``. Raises ValueError."""
        for name in ("password", "bearer_token"):
            if getattr(self, name) and getattr(self, f"{name}_file"):
                raise ValueError(f"{name}: is given twice; leave out {name} or {name}_file")
        if self.username and (self.bearer_token or self.bearer_token_file):
            raise ValueError("username: basic and bearer authentication exclude each other; give one")
        if (self.password or self.password_file) and not self.username:
            raise ValueError("password: needs username, whose it is")
        own = self.username or self.bearer_token or self.bearer_token_file
        if own and any(name.lower() == "authorization" for name in self.headers):
            raise ValueError("headers: Authorization would be replaced by the token or the password; leave one out")

    def login(self) -> dict[str, str]:
        """Give the header that says who we are, if any. Raises ParkedError when a secret's file cannot be used."""
        if self.username:
            return authorization(basic(self.username, secret(self.password, self.password_file, "password_file")))
        if self.bearer_token or self.bearer_token_file:
            return authorization(f"Bearer {secret(self.bearer_token, self.bearer_token_file, 'bearer_token_file')}")
        return {}


def authorization(value: str) -> dict[str, str]:
    """Give the Authorization header of a value. Raises ParkedError when no header can carry it."""
    if not (value.isascii() and value.isprintable()):
        raise ParkedError("the secret has a line break or a character that no header can carry", code="secret")
    return {"Authorization": value}


def check_url(name: str, url: str) -> None:
    """Check an endpoint. Raises ValueError naming the option."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"{name}: not an http or https URL, such as https://logs.example.com:3100")
    if parts.username or parts.password:
        raise ValueError(f"{name}: a user or password in the URL would be printed; use the options for them")
    if parts.query or parts.fragment:
        raise ValueError(f"{name}: what stands behind ? or # would be lost; leave it out")


class Answer(msgspec.Struct, frozen=True):
    """What the server said. ``headers`` has lower-case names."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body for an error message: one line, at most `QUOTED` characters."""
        return " ".join(self.body[: 4 * QUOTED].decode("utf-8", "replace").split())[:QUOTED]


class Client:
    """Requests to one server. Not for several threads at once."""

    def __init__(self, base: str, config: HttpSinkConfig, *, what: str) -> None:
        """Make a client for URLs below ``base``; ``what`` names the destination in errors. Opens nothing."""
        self.base = base.rstrip("/")
        self.what = what
        self._config = config
        self._root = urlsplit(self.base).path
        self._pool: urllib3.HTTPConnectionPool | None = None

    def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | Sequence[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send and wait for the answer, whatever its status. ``path`` begins with a slash.

        Raises RetryableError when there was none; ``maybe_taken`` if the request may have arrived. Raises ParkedError
        when the server's certificate is not accepted or a TLS file cannot be used.
        """
        try:
            # Not by a PoolManager, which takes longer to find the pool than the pool to send.
            answer = self._opened().urlopen(
                method,
                self._root + path,
                body=body if body is None or isinstance(body, bytes) else b"".join(body),
                headers={**self._config.headers, **(headers or {})},
                retries=False,
                redirect=False,
            )
        except (HTTPError, OSError) as error:
            raise self._lost(error) from error
        headers = {name.lower(): value for name, value in answer.headers.items()}
        if answer.status not in _BODILESS and method != "HEAD" and not _ENDS.intersection(headers):
            # http.client takes headers that end with the connection for complete ones.
            raise self._lost(ProtocolError("the headers are incomplete"))
        return Answer(answer.status, headers, answer.data)

    def close(self) -> None:
        """Close all connections; the next request opens new ones."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def _opened(self) -> urllib3.HTTPConnectionPool:
        if self._pool is None:
            config = self._config
            timeout = urllib3.Timeout(
                connect=parse_duration(config.connect_timeout), read=parse_duration(config.timeout)
            )
            try:
                tls = {"ssl_context": self._tls()} if urlsplit(self.base).scheme == "https" else {}
            except (OSError, ssl.SSLError) as error:
                raise ParkedError(f"{self.what}: cannot use the TLS files: {error}", code="tls") from error
            self._pool = urllib3.connection_from_url(self.base, maxsize=2, timeout=timeout, **tls)
        return self._pool

    def _tls(self) -> ssl.SSLContext:
        config = self._config
        context = ssl.create_default_context(cafile=config.ca_file or None)
        if not config.tls_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            warnings.filterwarnings("ignore", category=InsecureRequestWarning)
            _log.warning("%s: tls_verify is false, so anybody may pose as the server", self.what)
        if config.cert_file:
            context.load_cert_chain(config.cert_file, config.key_file or None)
        return context

    def _lost(self, error: Exception) -> RetryableError:
        self.close()  # a connection in an unknown state must not be used again
        cause = _innermost(error)
        if isinstance(error, SSLError) or isinstance(cause, ssl.SSLCertVerificationError):
            if isinstance(cause, ssl.SSLCertVerificationError):
                return ParkedError(
                    f"{self.what}: the server's certificate is not accepted: {cause.verify_message}; give the certificate"
                    " that signed it as ca_file, or mend the name in the endpoint",
                    code="tls",
                )
            return RetryableError(f"{self.what}: TLS failed: {cause}", code="tls")
        if isinstance(error, LocationParseError):
            return ParkedError(f"{self.what}: {error}", code="url")
        unsent = isinstance(error, (NewConnectionError, urllib3.exceptions.ConnectTimeoutError))
        code = "connect" if unsent else "timeout" if isinstance(error, ReadTimeoutError) else "connection"
        what = "cannot connect" if unsent else "no answer"
        if isinstance(error, ReadTimeoutError):
            what = f"no answer within {self._config.timeout}"
        elif isinstance(error, ProtocolError):
            what = "the connection broke before the answer was complete"
        return RetryableError(f"{self.what}: {what}: {cause}", code=code, maybe_taken=not unsent)


def refusal(answer: Answer, what: str) -> SinkError:
    """Sort an answer that is no success, for backends without rules of their own for its status.

    Later (with the server's Retry-After), the operator's fault (login, rights, path), or the record's.
    """
    code, text = str(answer.status), f"{what}: {answer.status} {answer.text}".rstrip()
    if answer.status in LATER:
        return RetryableError(text, code=code, retry_after=retry_after(answer))
    if answer.status in {401, 403, 407}:
        return ParkedError(f"{text}; check the credentials and the rights that the sink's page names", code=code)
    if answer.status in {404, 405, 501} or 300 <= answer.status < 400:
        return ParkedError(f"{text}; check the endpoint", code=code)
    if answer.status < 300:
        return ParkedError(f"{text}; this answer does not mean that anything was stored", code=code)
    if answer.status in {400, 413, 414, 415, 422, 431}:
        return PermanentError(text, code=code)
    return RetryableError(text, code=code, retry_after=retry_after(answer))


def retry_after(answer: Answer) -> float | None:
    """Give the seconds of a Retry-After header, in either of its forms (RFC 9110, 10.2.3), or ``None``."""
    value = answer.headers.get("retry-after", "").strip()
    if not value:
        return None
    if value.replace(".", "", 1).isascii() and value.replace(".", "", 1).isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def gzipped(data: bytes | Iterable[bytes | memoryview]) -> bytes:
    """Compress as gzip at isal's fastest level, also piece by piece; the same pieces give the same result."""
    packer = gzip_packer()
    packed = [packer.compress(piece) for piece in ([data] if isinstance(data, bytes) else data)]
    return b"".join([*packed, packer.flush()])


def gzip_packer() -> Any:
    """Give a compressor as `gzipped` uses it, for data that comes piece by piece."""
    return isal_zlib.compressobj(_FASTEST, isal_zlib.DEFLATED, _GZIP)


def secret(value: str, path: str, option: str) -> str:
    """Give a secret from its option or its file, which is read anew each time so that it may be rotated.

    Raises ParkedError when the file cannot be read.
    """
    if not path:
        return value
    try:
        return Path(path).read_text().removesuffix("\n")
    except (OSError, UnicodeError) as error:
        raise ParkedError(f"{option}: cannot read {path}: {error}", code="secret") from error


def basic(user: str, password: str) -> str:
    """Give the value of an Authorization header (RFC 7617)."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def examine(
    client: Client, probe: Callable[[], Answer], *, fine: frozenset[int] = frozenset([200, 204])
) -> Iterator[Finding]:
    """Give the findings that every HTTP destination has: reachable, tls, login, clock. ``probe`` asks harmlessly."""
    try:
        answer = probe()
    except SinkError as error:
        what = "tls" if error.code == "tls" else "reachable"
        yield Finding(what, "fail", str(error), "check the endpoint, the network and the certificate files")
        return
    yield Finding("reachable", "ok", f"{client.base} answers")
    if urlsplit(client.base).scheme == "https":
        yield Finding("tls", "ok", "encrypted, the certificate is accepted")
    else:
        yield Finding("tls", "warn", "not encrypted", "use an https endpoint if anybody else can listen")
    if answer.status in fine:
        yield Finding("login", "ok", "the request was accepted")
    else:
        refused = refusal(answer, client.what)
        yield Finding("login", "fail", str(refused), "give credentials that may do what the sink's page names")
    yield from _clock(answer)


def _clock(answer: Answer) -> Iterator[Finding]:
    try:
        skew = parsedate_to_datetime(answer.headers.get("date", "")).timestamp() - time.time()
    except (ValueError, TypeError):
        return
    if abs(skew) > SKEW:
        yield Finding(
            "clock", "warn", f"the server's clock is {skew:+.0f} s from ours", "run a time service on both machines"
        )
    else:
        yield Finding("clock", "ok", f"{skew:+.0f} s from ours")


def _innermost(error: BaseException) -> BaseException:
    while (inner := error.__cause__ or error.__context__ or _argument(error)) is not None:
        error = inner
    return error


def _argument(error: BaseException) -> BaseException | None:
    return next((one for one in error.args if isinstance(one, BaseException)), None)
