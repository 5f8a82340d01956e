"""What all HTTP sinks share: TLS, credentials, what an answer or its absence means."""

from __future__ import annotations

import gzip
import ssl
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from shipper.errors import ParkedError, PartialError, PermanentError, RetryableError, SinkError
from shipper.testing.http_server import HttpServer, Reply, Request
from shipper.testing.proxy import FaultProxy
from sinks import _http
from sinks._http import Answer, Client, HttpSinkConfig
from sinks._outcome import Outcome
from support.certificates import Authority, Pair


class Server(HttpServer):
    """Answers every request with ``status``, ``headers`` and ``body``."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.status, self.body = 200, b"{}"
        self.headers: dict[str, str] = {}
        super().__init__(tls=tls)

    def answer(self, request: Request) -> Reply:
        return Reply(self.status, self.body, self.headers)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def config(**options: Any) -> HttpSinkConfig:
    return HttpSinkConfig(type="x", **options)


def client(port: int, scheme: str = "http", **options: Any) -> Client:
    return Client(f"{scheme}://127.0.0.1:{port}/base/", config(**options), what="it")


def test_request_carries_configured_headers_and_reaches_the_path_below_the_base(server: Server) -> None:
    it = client(server.port, headers={"X-Team": "blue"})
    assert it.request("POST", "/push", body=[b"a", b"b"], headers={"X-One": "1"}).status == 200
    [request] = server.requests
    assert (request.method, request.path, request.body) == ("POST", "/base/push", b"ab")
    assert (request.headers["x-team"], request.headers["x-one"]) == ("blue", "1")
    it.close()


def test_redirects_are_not_followed(server: Server) -> None:
    server.status, server.headers = 307, {"Location": "http://127.0.0.1:1/elsewhere"}
    it = client(server.port)
    answer = it.request("POST", "/", body=b"secret")
    assert answer.status == 307
    assert isinstance(_http.refusal(answer, "it"), ParkedError)
    it.close()


def test_nobody_listening_is_retryable_and_nothing_was_taken(server: Server) -> None:
    with FaultProxy(("127.0.0.1", server.port)) as proxy:
        proxy.switch("refuse")
        with pytest.raises(RetryableError, match="cannot connect") as caught:
            client(proxy.port).request("POST", "/", body=b"x")
    assert not caught.value.maybe_taken
    assert caught.value.code == "connect"


@pytest.mark.parametrize("mode", ["cut_answer", "half_answer", "reset"])
def test_answer_that_never_came_may_mean_taken_and_the_next_request_works(server: Server, mode: Any) -> None:
    server.body = b"x" * 1000
    with FaultProxy(("127.0.0.1", server.port)) as proxy:
        it = client(proxy.port)
        it.request("POST", "/", body=b"first")
        proxy.switch(mode)
        with pytest.raises(RetryableError) as caught:
            it.request("POST", "/", body=b"second")
        # A reset may also come while the next connection is made: then nothing was sent.
        assert caught.value.maybe_taken or (mode == "reset" and caught.value.code == "connect")
        assert not isinstance(caught.value, ParkedError)
        proxy.switch("pass")
        assert it.request("POST", "/", body=b"third").status == 200
        it.close()


def test_slow_server_is_given_up_after_the_timeout(server: Server) -> None:
    with FaultProxy(("127.0.0.1", server.port)) as proxy:
        proxy.switch("latency", seconds=5.0)
        it = client(proxy.port, timeout="100ms")
        with pytest.raises(RetryableError, match="no answer within 100ms") as caught:
            it.request("POST", "/", body=b"x")
        assert (caught.value.code, caught.value.maybe_taken) == ("timeout", True)
        it.close()


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (408, RetryableError), (425, RetryableError), (429, RetryableError), (500, RetryableError),
        (502, RetryableError), (503, RetryableError), (504, RetryableError), (507, RetryableError),
        (401, ParkedError), (403, ParkedError), (407, ParkedError), (404, ParkedError), (405, ParkedError),
        (301, ParkedError), (308, ParkedError), (202, ParkedError), (260, ParkedError),
        (400, PermanentError), (413, PermanentError), (415, PermanentError), (422, PermanentError),
    ],
)  # fmt: skip
def test_status_has_its_class(status: int, kind: type[SinkError]) -> None:
    error = _http.refusal(Answer(status, {}, b"why"), "it")
    assert type(error) is kind
    assert error.code == str(status)
    assert "why" in str(error)


def test_retry_after_in_seconds_as_a_date_and_as_nonsense() -> None:
    def after(value: str) -> float | None:
        return _http.retry_after(Answer(429, {"retry-after": value}, b""))

    assert after("17") == 17.0
    assert after("") is None
    assert after("soon") is None
    assert after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    later = after(formatdate(usegmt=True, timeval=4_102_444_800))
    assert later is not None
    assert later > 1e6


def test_gzip_is_read_by_others_and_the_same_for_the_same_bytes() -> None:
    data = b"line\n" * 1000
    assert gzip.decompress(_http.gzipped(data)) == data
    assert _http.gzipped(data) == _http.gzipped(data)


def test_secret_file_is_read_anew_each_time_and_missing_parks(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("one\n")
    assert _http.secret("", str(path), "token_file") == "one"
    path.write_text("two")
    assert _http.secret("", str(path), "token_file") == "two"
    path.unlink()
    with pytest.raises(ParkedError, match="token_file: cannot read"):
        _http.secret("", str(path), "token_file")
    assert _http.secret("plain", "", "token_file") == "plain"


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("loki:3100", "not an http"), ("ftp://x", "not an http"), ("http://", "not an http"),
        ("http://u:p@x", "would be printed"), ("http://x/?a=1", "behind"),
    ],
)  # fmt: skip
def test_bad_endpoint_is_refused(url: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        _http.check_url("endpoint", url)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"timeout": "0s"}, "timeout: must be"),
        ({"key_file": "/k"}, "needs cert_file"),
        ({"tls_verify": False, "ca_file": "/ca"}, "would not use ca_file"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        config(**options).check_http()


# TLS, with real handshakes


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def tls_server(pair: Pair, *, clients: Path | None = None) -> Server:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key)
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(clients)
    return Server(context)


def test_certificate_of_the_given_authority_is_accepted(authority: Authority) -> None:
    server = tls_server(authority.issue("127.0.0.1"))
    it = client(server.port, "https", ca_file=str(authority.cert))
    assert it.request("POST", "/", body=b"x").status == 200
    assert [finding.what for finding in _http.examine(it, lambda: it.request("GET", "/"))] == [
        "reachable", "tls", "login", "clock",
    ]  # fmt: skip
    it.close()
    server.close()


def test_certificate_of_a_stranger_or_for_another_name_parks(authority: Authority, tmp_path: Path) -> None:
    stranger = tls_server(Authority(tmp_path, "stranger").issue("127.0.0.1"))
    other = tls_server(authority.issue("logs.example.com"))
    for server in (stranger, other):
        it = client(server.port, "https", ca_file=str(authority.cert))
        with pytest.raises(ParkedError, match="certificate is not accepted") as caught:
            it.request("POST", "/", body=b"x")
        assert caught.value.code == "tls"
        [finding] = _http.examine(it, lambda it=it: it.request("GET", "/"))  # type: ignore[misc]
        assert (finding.what, finding.verdict) == ("tls", "fail")
        assert server.requests == []
        server.close()


def test_verification_can_be_switched_off(authority: Authority) -> None:
    server = tls_server(authority.issue("logs.example.com"))
    it = client(server.port, "https", tls_verify=False)
    assert it.request("POST", "/", body=b"x").status == 200
    it.close()
    server.close()


def test_client_certificate_is_shown(authority: Authority) -> None:
    server = tls_server(authority.issue("127.0.0.1"), clients=authority.cert)
    mine = authority.issue("shipper", client=True)
    it = client(server.port, "https", ca_file=str(authority.cert), cert_file=str(mine.cert), key_file=str(mine.key))
    assert it.request("POST", "/", body=b"x").status == 200
    it.close()
    without = client(server.port, "https", ca_file=str(authority.cert))
    with pytest.raises(RetryableError):
        without.request("POST", "/", body=b"x")
    server.close()


@pytest.mark.parametrize("scheme", ["https", "HTTPS"])
def test_unusable_tls_file_parks_and_names_it(scheme: str) -> None:
    with pytest.raises(ParkedError, match="TLS files"):
        client(1, scheme, ca_file="/nowhere/ca.pem").request("GET", "/")


# Findings


def test_findings_tell_login_and_clock_apart(server: Server) -> None:
    it = client(server.port)
    server.status = 401
    found = {one.what: one for one in _http.examine(it, lambda: it.request("GET", "/"))}
    assert found["reachable"].verdict == "ok"
    assert found["tls"].verdict == "warn"
    assert found["login"].verdict == "fail"
    assert found["login"].fix
    it.close()


def test_clock_that_is_off_is_a_warning() -> None:
    answer = Answer(200, {"date": "Wed, 21 Oct 2015 07:28:00 GMT"}, b"")
    it = client(1)
    found = {one.what: one for one in _http.examine(it, lambda: answer)}
    assert found["clock"].verdict == "warn"


# Outcome of several requests


def test_outcome_of_success_is_silence() -> None:
    Outcome(3).close()


def test_outcome_of_one_failed_request_that_was_the_whole_batch_is_that_error() -> None:
    later, never = RetryableError("later"), PermanentError("never")
    for error in (later, never):
        outcome = Outcome(2)
        outcome.fail([0, 1], error)
        with pytest.raises(type(error)) as caught:
            outcome.close()
        assert caught.value is error


def test_outcome_names_rows_groups_and_what_was_not_sent() -> None:
    outcome = Outcome(6)
    outcome.refuse(0, PermanentError("too old", certain=True))
    outcome.fail([1, 2], PermanentError("malformed"))
    outcome.fail([3], PermanentError("malformed"))
    outcome.fail([4], RetryableError("busy"))
    outcome.skip([5])
    with pytest.raises(PartialError) as caught:
        outcome.close()
    assert set(caught.value.failed) == {0, 3, 4, 5}
    assert caught.value.together[0][0] == (1, 2)
    assert caught.value.failed[5] is caught.value.failed[4]
    assert str(caught.value) == "6 records were not taken"
