"""What the two Azure sinks share: clouds, Entra credentials, and how text is cut at Azure's limits.

Tokens come by plain HTTP: a client secret, a workload identity's token file, or the managed identity of the machine
(IMDS). A token is kept until shortly before it expires and dropped when a server refuses it.
"""

from __future__ import annotations

import time
from operator import sub
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar
from urllib.parse import quote, urlencode

import msgspec
from msgspec import Meta

from shipper.errors import ParkedError, RetryableError, SinkError
from shipper.record import SEVERITIES, Batch, Resource
from shipper.render import Kind, render, rfc3339
from shipper.secret import Secret
from sinks._http import LATER, Answer, Client, HttpSinkConfig, check_url, gzip_packer, refusal, retry_after, secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from shipper.render import Part

T = TypeVar("T")

#: Seconds before its end at which a token is fetched anew: longer than any request takes.
EARLY = 300.0
#: The address of the instance metadata service, the same on every Azure machine.
IMDS = "http://169.254.169.254"
_CLIENT_ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


class Cloud(msgspec.Struct, frozen=True):
    """The addresses of one Azure cloud: who gives tokens, the audience of those for ingestion, where is read, and the
    audience of the tokens for that.
    """

    authority: str
    monitor: str
    query: str
    query_audience: str


CLOUDS = {
    "public": Cloud(
        "https://login.microsoftonline.com",
        "https://monitor.azure.com",
        "https://api.loganalytics.azure.com",
        # The older name: not every tenant knows the newer one as something to give tokens for (AADSTS500011).
        "https://api.loganalytics.io",
    ),
    "china": Cloud(
        "https://login.chinacloudapi.cn",
        "https://monitor.azure.cn",
        "https://api.loganalytics.azure.cn",
        "https://api.loganalytics.azure.cn",
    ),
    "us_gov": Cloud(
        "https://login.microsoftonline.us",
        "https://monitor.azure.us",
        "https://api.loganalytics.us",
        "https://api.loganalytics.us",
    ),
}


class AzureConfig(HttpSinkConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the section of both Azure sinks may say: Entra credentials, the cloud, and where to read."""

    cloud: Annotated[
        str, Meta(description="Which Azure: public, china or us_gov.", pattern="^(public|china|us_gov)$")
    ] = "public"
    authority: Annotated[str, Meta(description="URL of the token service; empty means the cloud's own.")] = ""
    tenant_id: Annotated[str, Meta(description="The Entra tenant (directory) of the application.")] = ""
    client_id: Annotated[
        str, Meta(description="The Entra application, or the user-assigned managed identity; see the sink's page.")
    ] = ""
    client_secret: Annotated[Secret, Meta(description="The application's secret; client_secret_file is better.")] = ""
    client_secret_file: Annotated[
        str, Meta(description="File that holds the secret; one newline at its end is not part of it.")
    ] = ""
    federated_token_file: Annotated[
        str,
        Meta(
            description="Workload identity: file with the token that Kubernetes or another issuer writes.",
            extra={"path": True},
        ),
    ] = ""
    managed_identity: Annotated[
        bool, Meta(description="Use the managed identity of the Azure machine that this runs on.")
    ] = False
    identity_endpoint: Annotated[str, Meta(description="Where managed identities are asked for tokens.")] = IMDS
    workspace_id: Annotated[
        str, Meta(description="The Log Analytics workspace (its GUID) to read from; needed for reading alone.")
    ] = ""
    query_endpoint: Annotated[str, Meta(description="URL of the query API; empty means the cloud's own.")] = ""

    def check_azure(self) -> None:
        """Check what types cannot; call it from ``__post_init__``. Raises ValueError."""
        self.check_http()
        for name in ("authority", "identity_endpoint", "query_endpoint"):
            if getattr(self, name):
                check_url(name, getattr(self, name))
        ways = [
            name
            for name in ("client_secret", "client_secret_file", "federated_token_file", "managed_identity")
            if getattr(self, name)
        ]
        if len(ways) > 1:
            raise ValueError(f"{ways[1]}: {ways[0]} is given too; one credential is enough")
        if ways and ways[0] != "managed_identity" and not (self.tenant_id and self.client_id):
            lacking = "client_id" if self.tenant_id else "tenant_id"
            raise ValueError(f"{lacking}: {ways[0]} needs tenant_id and client_id")

    @property
    def has_credential(self) -> bool:
        """Whether tokens can be asked for."""
        return bool(self.client_secret or self.client_secret_file or self.federated_token_file or self.managed_identity)

    @property
    def addresses(self) -> Cloud:
        """The cloud's addresses, with those that the section gives itself."""
        cloud = CLOUDS[self.cloud]
        return msgspec.structs.replace(
            cloud, authority=self.authority or cloud.authority, query=self.query_endpoint or cloud.query
        )


class _Token(msgspec.Struct):
    text: str
    ends: float
    proven: bool = False


class Credential:
    """Gives the Authorization header for one scope. ``now`` gives seconds since 1970.

    ``scope`` ends in ``/.default``.
    """

    def __init__(self, config: AzureConfig, scope: str, *, what: str, now: Callable[[], float] = time.time) -> None:
        self._config = config
        self._scope = scope
        self._now = now
        self._token: _Token | None = None
        self.what = f"{what}: Entra"
        base = config.identity_endpoint if config.managed_identity else config.addresses.authority
        # Headers of the section are meant for the sink's own server.
        self._client = Client(base, msgspec.structs.replace(config, headers={}), what=self.what)

    def header(self) -> dict[str, str]:
        """Give the header with a valid token. Raises RetryableError when there is no answer, ParkedError when refused."""
        if self._token is None or self._now() >= self._token.ends:
            self._token = self._fetched()
        return {"Authorization": f"Bearer {self._token.text}"}

    def accepted(self) -> None:
        """A server took the token."""
        if self._token is not None:
            self._token.proven = True

    def refused(self) -> bool:
        """A server refused the token: forget it; tell whether a new one may help, because this one worked before."""
        token, self._token = self._token, None
        return token is not None and token.proven

    def close(self) -> None:
        """Close the connections; the token is kept."""
        self._client.close()

    def _fetched(self) -> _Token:
        config = self._config
        if config.managed_identity:
            asked = {"api-version": "2018-02-01", "resource": self._scope.removesuffix("/.default")}
            if config.client_id:
                asked["client_id"] = config.client_id
            path = f"/metadata/identity/oauth2/token?{urlencode(asked)}"
            answer = self._asked("GET", path, headers={"Metadata": "true"})
        elif config.has_credential:
            form = {"client_id": config.client_id, "grant_type": "client_credentials", "scope": self._scope}
            if config.federated_token_file:
                form["client_assertion_type"] = _CLIENT_ASSERTION
                form["client_assertion"] = secret("", config.federated_token_file, "federated_token_file").strip()
            else:
                form["client_secret"] = secret(config.client_secret, config.client_secret_file, "client_secret_file")
            answer = self._asked(
                "POST",
                f"/{quote(config.tenant_id, safe='')}/oauth2/v2.0/token",
                body=urlencode(form).encode(),
                headers={"Content-Type": "application/x-www-form-urlencoded"},
            )
        else:
            raise ParkedError(
                f"{self.what}: no credential; give client_secret_file, federated_token_file or managed_identity",
                code="credential",
            )
        return self._read(answer)

    def _asked(self, method: str, path: str, **options: Any) -> Answer:
        try:
            return self._client.request(method, path, **options)
        except ParkedError:
            raise
        except RetryableError as error:  # no log was on its way yet
            raise RetryableError(str(error), code=error.code) from error

    def _read(self, answer: Answer) -> _Token:
        if answer.status != 200:
            raise self._refusal(answer)
        try:
            token = msgspec.json.decode(answer.body, type=dict[str, Any])
            text, life = str(token["access_token"]), float(token["expires_in"])
        except (msgspec.MsgspecError, KeyError, TypeError, ValueError, UnicodeError) as error:
            # What came may hold a secret: it is not quoted.
            raise RetryableError(f"{self.what}: the answer holds no token", code="token") from error
        return _Token(text, self._now() + max(life - EARLY, life / 2))

    def _refusal(self, answer: Answer) -> SinkError:
        code = str(answer.status)
        text = f"{self.what}: no token: {code} {answer.text}"
        # IMDS answers 404 and 410 while it starts or is updated.
        if answer.status in LATER or (answer.status in {404, 410} and self._config.managed_identity):
            return RetryableError(text, code=code, retry_after=retry_after(answer))
        if answer.status >= 500:
            return RetryableError(text, code=code)
        if self._config.managed_identity:
            return ParkedError(f"{text}; give this machine a managed identity, or name it by client_id", code=code)
        return ParkedError(f"{text}; check tenant_id, client_id, the secret and that it has not expired", code=code)


def with_token(send: Callable[[dict[str, str]], Answer], credential: Credential | None) -> Answer:
    """Send with a token, and once more with a new one when a token that has worked so far is refused.

    The second request is no retry: a server that refuses the token has not looked at the first.
    """
    if credential is None:
        return send({})
    answer = send(credential.header())
    if answer.status == 401 and credential.refused():
        answer = send(credential.header())
        if answer.status == 401:
            credential.refused()
    if answer.status not in {401, 407}:
        credential.accepted()
    return answer


def failure(answer: Answer, what: str, *, rights: str) -> SinkError:
    """Sort an answer as `refusal` does; ``rights`` says what to do about 403. A gateway's word leaves open what became
    of the request.
    """
    code = str(answer.status)
    if answer.status == 403:
        return ParkedError(f"{what}: 403 {answer.text}; {rights}", code=code)
    error = refusal(answer, what)
    if answer.status in {408, 500, 502, 504} and isinstance(error, RetryableError):
        error.maybe_taken = True
    return error


def units(text: str) -> int:
    """Give the length of a text in UTF-16 units, as .NET counts characters."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2


def start_of(text: str, most: int) -> str:
    """Give the beginning of a text that has at most ``most`` UTF-16 units, with a mark that more follows."""
    if units(text) <= most:
        return text
    mark = "… [cut here; the whole text is in the parts of this record]"
    return text.encode("utf-16-le", "surrogatepass")[: 2 * (most - len(mark))].decode("utf-16-le", "ignore") + mark


def remove_oversized(
    shown: dict[str, Any], most: int, size_of: Callable[[dict[str, Any]], int], *, kept: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Take the largest members out of ``shown`` until the rest takes at most ``most`` bytes as JSON; give what was taken.

    Of ``kept``, what is searched for, only a value of more than a thousand characters is taken.
    """
    taken: dict[str, Any] = {}
    size = size_of(shown)
    if size <= most:
        return taken
    sizes = {name: size_of({name: value}) for name, value in shown.items()}
    for name in sorted(sizes, key=lambda name: sizes[name], reverse=True):
        if size <= most:
            break
        if name not in kept or sizes[name] > 1_000:
            taken[name] = shown.pop(name)
            size -= sizes[name] - 1
    return taken


def slices(text: str, size: int) -> Iterator[str]:
    """Cut a text into pieces of ``size`` characters."""
    return (text[start : start + size] for start in range(0, len(text), size))


def clean(value: Any) -> Any:
    """Replace lone surrogates by U+FFFD, however deep they stand."""
    if isinstance(value, str):
        # Pairs of them become the character they mean.
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, dict):
        return {clean(key): clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    return value


#: What stands between the items of a request, and in front of each as encoders make them. JSON has no line breaks within
#: a text, so items can be told apart there.
BETWEEN = b",\n"


class Columns(NamedTuple):
    """Some records of a batch. ``rows`` names each for the outcome; what a batch without parsing lacks is filled in."""

    rows: Sequence[int]
    times: list[int]
    ids: list[str]
    severities: list[int]
    messages: list[str]
    attributes: list[dict[str, Any]]
    resources: list[Resource]

    @classmethod
    def of(cls, batch: Batch, start: int, end: int, rows: Sequence[int]) -> Columns:
        """Take the records from ``start`` to ``end``; ``rows`` names all of the batch."""
        count = end - start
        return cls(
            rows[start:end],
            batch.times[start:end],
            batch.ids[start:end],
            batch.severities[start:end] if batch.severities is not None else [SEVERITIES["info"]] * count,
            (batch.messages if batch.messages is not None else batch.raws)[start:end],
            batch.attributes[start:end] if batch.attributes is not None else [{}] * count,
            batch.resources[start:end],
        )

    def cleaned(self) -> Columns:
        """Give the same without lone surrogates, which no UTF-8 can carry."""
        return self._replace(messages=clean(self.messages), attributes=clean(self.attributes))


def column_of(items: Sequence[T], text: Callable[[T], str]) -> Part:
    """Give what resources add to their records: bytes if it is the same of all, as it mostly is."""
    first = items[0]
    if items.count(first) == len(items):
        return text(first).encode()
    return (Kind.TEXT, list(map(text, items)))


class ByResource(dict[Resource, T]):
    """What a sink derives from a resource, made when it is first asked for."""

    def __init__(self, make: Callable[[Resource], T]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, resource: Resource) -> T:
        if len(self) > 10_000:  # bounds memory where containers come and go
            self.clear()
        made = self[resource] = self._make(resource)
        return made


class Encoded(NamedTuple):
    """Items of some records. ``texts`` have items with `BETWEEN` in front of each, and the record of each; ``several``
    the items, without it, of the records that have more than one.
    """

    texts: list[tuple[bytes | memoryview, Sequence[int]]]
    several: dict[int, list[bytes]]


def encoded(
    some: Columns, parts: list[Part], *, sure: int, unsure: set[int], singly: Callable[[int], list[bytes]]
) -> Encoded:
    """Render records as items, `BETWEEN` the first of their parts. ``singly`` makes the items of a record by its
    place instead, if it is one of ``unsure`` or its item has more than ``sure`` bytes.
    """
    ends: list[int] = []
    text = render(parts, 0, len(some.rows), ends=ends)
    starts = [0, *ends]
    if max(map(sub, ends, starts)) > sure:
        unsure = unsure | {
            place for place, (end, start) in enumerate(zip(ends, starts, strict=False)) if end - start > sure
        }
    if not unsure:
        return Encoded([(text, some.rows)], {})
    made = Encoded([], {})
    view, begin = memoryview(text), 0
    for place in [*sorted(unsure), len(ends)]:
        if begin < place:
            made.texts.append((view[starts[begin] : starts[place]], some.rows[begin:place]))
        begin = place + 1
    for place in sorted(unsure):
        items = singly(place)
        if len(items) > 1:
            made.several[some.rows[place]] = items
        else:
            made.texts.append((BETWEEN + items[0], some.rows[place : place + 1]))
    return made


class Requests:
    """Fills requests with items, arrays of at most ``most`` bytes before compression, and sends each when it is full.

    ``send`` gets a body and the record of each of its items. Items are compressed as they come: memory of many
    megabytes that is taken and given back again and again costs more than all else.
    """

    def __init__(self, most: int, *, gzip: bool, send: Callable[[bytes, list[int]], None]) -> None:
        self._most = most
        self._gzip = gzip
        self._send = send
        self._start()

    def _start(self) -> None:
        self._packer = gzip_packer() if self._gzip else None
        self._pieces: list[bytes | memoryview] = []
        self._records: list[int] = []
        self._size = 0

    def fill(self, batch: Batch, rows: Sequence[int], encode: Callable[[Columns], Encoded], *, at_once: int) -> None:
        """Encode and send a batch, so many records at once: what they touch stays in the processor's cache. ``rows``
        names each record.
        """
        several: dict[int, list[bytes]] = {}
        for start in range(0, len(batch), at_once):
            some = Columns.of(batch, start, min(start + at_once, len(batch)), rows)
            try:
                made = encode(some)
            except UnicodeEncodeError:
                made = encode(some.cleaned())
            several |= made.several
            for text, records in made.texts:
                self.add(text, records)
        self.flush()
        for record, items in several.items():
            # By itself, so that a refusal of the whole request is a refusal of this record.
            for item in items:
                self.add(BETWEEN + item, [record])
            self.flush()

    def add(self, text: bytes | memoryview, records: Sequence[int]) -> None:
        """Add items with `BETWEEN` in front of each; ``records`` names the record of each."""
        # The first has a bracket in place of what stands in front; another is at the end.
        if self._size and self._size + len(text) + 1 > self._most:
            self.flush()
        if not self._size:
            if len(text) - len(BETWEEN) + 2 > self._most and len(records) > 1:
                for item, record in zip(bytes(text).split(BETWEEN)[1:], records, strict=True):
                    self.add(BETWEEN + item, (record,))
                return
            self._put(b"[")
            text = memoryview(text)[len(BETWEEN) :]
        self._put(text)
        self._records += records

    def flush(self) -> None:
        """Send what there is, if anything."""
        if not self._size:
            return
        self._put(b"]")
        if self._packer is not None:
            self._pieces.append(self._packer.flush())
        body, records = b"".join(self._pieces), self._records
        self._start()
        self._send(body, records)

    def _put(self, text: bytes | memoryview) -> None:
        self._size += len(text)
        self._pieces.append(text if self._packer is None else self._packer.compress(text))


def storable(time_ns: int) -> bool:
    """Tell whether a time fits KQL's long: 1970 to 2262."""
    return 0 <= time_ns < 1 << 63


def tick_text(time_ns: int) -> str:
    """Render a time as `Kind.TICKS` does: ``2026-11-22T22:47:13.1234567Z``; those outside of 1970 to 2262 become the
    nearest within.
    """
    return rfc3339(min(max(time_ns, 0), (1 << 63) - 1))[:-3] + "Z"
