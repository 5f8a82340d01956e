"""What surrounds the writing of documents: logins, hosts, templates, reading back, findings, a real delivery."""

from __future__ import annotations

import base64
import random
import ssl
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shipper.clock import SystemClock
from shipper.delivery.canary import examine
from shipper.errors import ConfigError, ParkedError, RetryableError, SinkError
from shipper.reader import Query
from shipper.record import Batch, Record, Resource
from shipper.routing.condition import compile_condition
from shipper.sink import Finding
from shipper.testing.batches import START_NS, make_batch, make_resource, random_batch
from shipper.testing.http_server import Reply
from shipper.testing.proxy import FaultProxy
from shipper.testing.rig import Rig
from sinks.elasticsearch import ElasticsearchConfig, ElasticsearchReader, ElasticsearchSink
from sinks.elasticsearch import template as index_template
from sinks.elasticsearch.session import Product
from support.certificates import Authority
from support.elasticsearch_server import ElasticsearchServer

MakeRig = Callable[[ElasticsearchSink], Rig]

ELASTIC = Product("elasticsearch", 9, "9.1.2", serverless=False)
OPEN = Product("opensearch", 2, "2.19.1", serverless=False)


@pytest.fixture
def server() -> Iterator[ElasticsearchServer]:
    with ElasticsearchServer() as server:
        yield server


def config(server: ElasticsearchServer, **options: Any) -> ElasticsearchConfig:
    return msgspec.convert(server.sink(**options), ElasticsearchConfig)


def opened(server: ElasticsearchServer, **options: Any) -> ElasticsearchSink:
    sink = ElasticsearchSink(config(server, **options))
    sink.open()
    return sink


def written(server: ElasticsearchServer, *batches: Batch, **options: Any) -> None:
    sink = opened(server, **options)
    for batch in batches:
        sink.write(batch)
    sink.close()


def read(server: ElasticsearchServer, *, options: dict[str, Any] | None = None, **query: Any) -> list[Record]:
    reader = ElasticsearchReader(config(server, **(options or {})))
    try:
        return list(reader.read(Query(**query)))
    finally:
        reader.close()


def asked(server: ElasticsearchServer, ending: str) -> list[Any]:
    return [request for request in server.requests if request.path.endswith(ending)]


# Options


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"endpoint": []}, "endpoint"),
        ({"endpoint": "es:9200"}, "endpoint"),
        ({"endpoint": ["http://a", "http://u:p@b"]}, "endpoint"),
        ({"index": ""}, "index"),
        ({"index": "Logs"}, "small letters"),
        ({"index": "logs *"}, "index"),
        ({"index": "_logs"}, "index"),
        ({"index": "x" * 256}, "255 bytes"),
        ({"index": "logs-%j"}, "%j"),
        ({"index": "logs-100%"}, "'%'"),
        ({"api_key": "k", "username": "u"}, "one way"),
        ({"bearer_token": "k", "sigv4": {"region": "eu-west-1"}}, "one way"),
        ({"password": "p"}, "username"),
        ({"retention": "0"}, "retention"),
        ({"retention": "30d", "create_template": False}, "create_template"),
        ({"retention": "30d", "sigv4": {"region": "eu-west-1", "service": "aoss"}}, "lifecycle policy"),
        ({"max_body": "1KiB"}, "max_body"),
        ({"timeout": "0s"}, "timeout"),
        ({"mode": "table"}, "mode"),
        ({"sigv4": {"region": "eu-west-1", "service": "s3"}}, "service"),
        ({"sigv4": {"region": ""}}, "region"),
    ],
)
def test_option_that_cannot_work_is_refused(options: dict[str, Any], part: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=part):
        msgspec.convert({"type": "elasticsearch", "endpoint": "http://es:9200", **options}, ElasticsearchConfig)


@pytest.mark.parametrize(
    ("index", "mode", "stream", "pattern"),
    [
        ("logs-shipper-%Y.%m.%d", "auto", False, "logs-shipper-*"),
        ("logs-%Y-app", "auto", False, "logs-*app"),
        ("logs-app-default", "auto", True, "logs-app-default"),
        ("logs-app", "index", False, "logs-app"),
        ("logs-app-%Y.%m", "data_stream", True, "logs-app-*"),
        ("x" * 255, "auto", True, "x" * 255),
    ],
)
def test_mode_and_pattern_follow_from_the_name(index: str, mode: str, stream: bool, pattern: str) -> None:
    made = ElasticsearchConfig(type="elasticsearch", endpoint="http://es", index=index, mode=mode)
    assert (made.data_stream, made.pattern) == (stream, pattern)


def test_secrets_are_not_printed() -> None:
    made = ElasticsearchConfig(type="elasticsearch", endpoint="http://es", username="u", password="hunter2")
    assert "hunter2" not in repr(made)
    made = ElasticsearchConfig(type="elasticsearch", endpoint="http://es", api_key="k3y", headers={"X-Key": "s3cret"})
    assert "k3y" not in repr(made)
    assert "s3cret" not in repr(made)


# Logins

_ENCODED = base64.b64encode(b"id:key").decode()


@pytest.mark.parametrize(
    ("demanded", "given"),
    [
        ({"api_key": _ENCODED}, {"api_key": "id:key"}),
        ({"api_key": _ENCODED}, {"api_key": _ENCODED}),
        ({"basic": ("u", "p:ü")}, {"username": "u", "password": "p:ü"}),
        ({"bearer": "token"}, {"bearer_token": "token"}),
        ({}, {"headers": {"X-Team": "blue"}}),
    ],
)
def test_login_is_taken_for_writing_and_reading(demanded: dict[str, Any], given: dict[str, Any]) -> None:
    with ElasticsearchServer(**demanded) as server:
        written(server, make_batch(["a"]), **given)
        assert [record.message for record in read(server, options=given)] == ["a"]
        if "headers" in given:
            assert all(request.headers["x-team"] == "blue" for request in server.requests)


@pytest.mark.parametrize("name", ["api_key", "password", "bearer_token"])
def test_secret_is_read_from_its_file_each_time(tmp_path: Path, name: str) -> None:
    path = tmp_path / "secret"
    demanded: dict[str, Any] = {"api_key": {"api_key": "new"}, "bearer_token": {"bearer": "new"}}.get(
        name, {"basic": ("u", "new")}
    )
    user = {"username": "u"} if name == "password" else {}
    with ElasticsearchServer(**demanded) as server:
        path.write_text("old\n")
        sink = ElasticsearchSink(config(server, **{f"{name}_file": str(path)}, **user))
        with pytest.raises(ParkedError, match="unable to authenticate"):
            sink.open()
        path.write_text("new\n")
        sink.open()
        sink.write(make_batch(["a"]))
        path.unlink()
        with pytest.raises(ParkedError, match=f"{name}_file: cannot read"):
            sink.write(make_batch(["b"]))
        sink.close()


@pytest.mark.parametrize("key", ["kéy", "k\ney", "k\u2028"])
def test_secret_that_no_header_can_carry_is_the_operators_fault(server: ElasticsearchServer, key: str) -> None:
    for name in ("api_key", "bearer_token"):
        sink = ElasticsearchSink(config(server, **{name: key}))
        with pytest.raises(ParkedError, match="no header can carry"):
            sink.open()
        sink.close()


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)


_KEYS = ("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "eu-west-1")


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize(("flavour", "service"), [("opensearch", "es"), ("opensearch_serverless", "aoss")])
@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_every_request_is_signed_for_its_service(flavour: str, service: str, compression: str) -> None:
    """The stand-in computes signatures by itself, from AWS's description."""
    options = {"sigv4": {"region": "eu-west-1", "service": service}, "compression": compression, "retention": ""}
    with ElasticsearchServer(flavour=flavour, sigv4=(*_KEYS, service)) as server:
        server.pipelines.add("a pipeline/ü*")
        written(server, make_batch(["a", "ü"]), pipeline="a pipeline/ü*", **options)
        assert [record.message for record in read(server, options=options, oldest_first=True)] == ["a", "ü"]
        sink = opened(server, **options)
        sink.healthcheck()
        sink.close()


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize(
    ("region", "service", "part"),
    [("us-east-1", "es", "scoped"), ("eu-west-1", "aoss", "scoped"), ("eu-west-1", "es", "token")],
)
def test_signature_that_does_not_fit_parks(
    region: str, service: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if part == "token":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    with ElasticsearchServer(flavour="opensearch", sigv4=(*_KEYS, "es")) as server:
        sink = ElasticsearchSink(config(server, sigv4={"region": region, "service": service}))
        with pytest.raises(ParkedError, match=part):
            sink.open()
        sink.close()


def test_missing_credentials_park(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: ElasticsearchServer) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    sink = ElasticsearchSink(config(server, sigv4={"region": "eu-west-1"}))
    with pytest.raises(ParkedError, match="no AWS credentials found"):
        sink.open()
    sink = ElasticsearchSink(config(server, sigv4={"region": "eu-west-1", "profile": "nobody"}))
    with pytest.raises(ParkedError, match="nobody"):
        sink.open()


def test_missing_package_is_told_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, server: ElasticsearchServer
) -> None:
    monkeypatch.setattr("sinks.elasticsearch.session.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'shipper\[elasticsearch\]'"):
        ElasticsearchSink(config(server, sigv4={"region": "eu-west-1"}))
    ElasticsearchSink(config(server)).close()


def test_botocore_is_not_imported_without_sigv4() -> None:
    import subprocess

    code = (
        "import sys; from sinks.elasticsearch import ElasticsearchConfig, ElasticsearchSink;"
        "ElasticsearchSink(ElasticsearchConfig(type='elasticsearch', endpoint='http://es'));"
        "sys.exit('botocore' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_tls_with_a_certificate_of_ones_own(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key)
    with ElasticsearchServer(tls=context) as server:
        written(server, make_batch(["a"]), ca_file=str(authority.cert))
        assert server.messages() == ["a"]
        sink = ElasticsearchSink(config(server))
        with pytest.raises(ParkedError, match="ca_file"):
            sink.open()
        sink.close()


# Hosts


def test_next_host_takes_over_when_nobody_listens_on_the_first(server: ElasticsearchServer) -> None:
    with FaultProxy(("127.0.0.1", server.port)) as proxy:
        proxy.switch("refuse")
        sink = opened(server, endpoint=[f"http://127.0.0.1:{proxy.port}", server.url])
        sink.write(make_batch(["a"]))
        sink.close()
    assert server.messages() == ["a"]


def test_lost_answer_sends_the_next_try_to_the_next_host(server: ElasticsearchServer) -> None:
    with FaultProxy(("127.0.0.1", server.port)) as proxy:
        sink = opened(server, endpoint=[f"http://127.0.0.1:{proxy.port}", server.url])
        proxy.switch("cut_answer")
        with pytest.raises(RetryableError) as caught:
            sink.write(make_batch(["a"]))
        assert not caught.value.maybe_taken
        sink.open()
        sink.write(make_batch(["a"]))
        sink.close()
    assert server.messages() == ["a"]


def test_gateway_without_a_node_sends_the_next_try_to_the_next_host(server: ElasticsearchServer) -> None:
    with ElasticsearchServer() as other:
        sink = opened(server, endpoint=[server.url, other.url])
        server.script(Reply(503))
        with pytest.raises(RetryableError):
            sink.write(make_batch(["a"]))
        sink.write(make_batch(["a"]))
        sink.close()
        assert (server.messages(), other.messages()) == ([], ["a"])


def test_all_hosts_away_is_retryable_and_each_was_asked_once(server: ElasticsearchServer) -> None:
    with FaultProxy(("127.0.0.1", server.port)) as one, FaultProxy(("127.0.0.1", server.port)) as two:
        sink = ElasticsearchSink(config(server, endpoint=[f"http://127.0.0.1:{proxy.port}" for proxy in (one, two)]))
        one.switch("refuse")
        two.switch("refuse")
        with pytest.raises(RetryableError, match="cannot connect"):
            sink.open()
        one.switch("pass")
        two.switch("pass")
        sink.write(make_batch(["a"]))
        sink.close()
    assert server.messages() == ["a"]


def test_redirect_is_not_followed_with_credentials() -> None:
    with ElasticsearchServer() as thief, ElasticsearchServer(basic=("u", "p")) as server:
        sink = opened(server, username="u", password="p")
        server.script(Reply(307, headers={"Location": thief.url + "/_bulk"}))
        with pytest.raises(ParkedError, match="307"):
            sink.write(make_batch(["a"]))
        sink.close()
        assert thief.requests == []


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, ParkedError), (401, ParkedError), (405, ParkedError), (429, RetryableError), (502, RetryableError)],
)
def test_server_that_does_not_say_what_it_is_is_asked_again(
    server: ElasticsearchServer, status: int, error: type[SinkError]
) -> None:
    server.script(Reply(status))
    sink = ElasticsearchSink(config(server))
    with pytest.raises(error) as caught:
        sink.open()
    assert type(caught.value) is error
    sink.open()
    sink.write(make_batch(["a"]))
    sink.close()
    assert server.messages() == ["a"]


def test_something_else_that_answers_parks(server: ElasticsearchServer) -> None:
    for reply in (Reply(200, b"<html>"), Reply(200, b"{}"), Reply(200, b"[]")):
        server.script(reply)
        sink = ElasticsearchSink(config(server))
        with pytest.raises(ParkedError, match="not as Elasticsearch"):
            sink.open()
        sink.close()


# Template


@pytest.mark.parametrize("flavour", ["elasticsearch", "elasticsearch_serverless", "opensearch"])
def test_template_is_made_once_and_again_when_the_section_changes(flavour: str) -> None:
    with ElasticsearchServer(flavour=flavour) as server:
        puts: Callable[[], int] = lambda: sum(request.method == "PUT" for request in server.requests)  # noqa: E731
        written(server, make_batch(["a"]))
        written(server, make_batch(["b"]))
        assert puts() == 1
        [(name, there)] = server.templates.items()
        assert name == "shipper-logs-shipper-dated"
        assert there["index_patterns"] == ["logs-shipper-*"]
        assert there["priority"] > 100
        assert there["template"]["mappings"]["dynamic"] is False
        there["_meta"]["digest"] = "of an older version"
        written(server, make_batch(["c"]))
        assert puts() == 2


def test_template_that_somebody_else_made_is_left_alone(server: ElasticsearchServer) -> None:
    own = {"index_patterns": ["logs-shipper-*"], "priority": 500, "template": {"mappings": {"dynamic": False}}}
    server.templates["shipper-logs-shipper-dated"] = own
    written(server, make_batch(["a"]))
    assert server.templates == {"shipper-logs-shipper-dated": own}


def test_templates_of_a_stream_and_of_dated_indices_do_not_clash(server: ElasticsearchServer) -> None:
    for index in ("logs-shipper-%Y.%m.%d", "logs-shipper-default", "logs-shipper-%Y", "logs-shipper-a-%Y"):
        written(server, make_batch(["a"]), index=index)
    assert list(server.streams) == ["logs-shipper-default"]


def test_right_to_make_a_template_that_is_missing_parks_with_the_way_out() -> None:
    with ElasticsearchServer(refuse=["/_index_template"]) as server:
        sink = ElasticsearchSink(config(server))
        with pytest.raises(ParkedError, match="create_template: false"):
            sink.open()
        sink.close()
        written(server, make_batch(["a"]), create_template=False)
        assert server.messages() == ["a"]


def test_account_that_may_only_write_is_enough_and_the_family_is_known_all_the_same() -> None:
    """GET / needs the right to monitor; Elasticsearch names itself in a header even so."""
    with ElasticsearchServer(refuse=["/", "/_index_template", "/_nodes"]) as server:
        written(server, make_batch(["a"]), create_template=False)
        assert [record.message for record in read(server, options={"create_template": False})] == ["a"]
        assert len(asked(server, "/_pit")) == 2


@pytest.mark.parametrize(("version", "kind"), [("2.19.1", "object"), ("3.0.0", "flat_object")])
def test_attributes_in_opensearch_are_searchable_where_it_is_safe(version: str, kind: str) -> None:
    with ElasticsearchServer(flavour="opensearch", version=version) as server:
        written(server, make_batch(["a"]))
        [there] = server.templates.values()
        assert there["template"]["mappings"]["properties"]["attributes"]["type"] == kind
        assert "settings" not in there["template"]


def test_retention_of_a_stream_and_of_dated_indices_in_elasticsearch(server: ElasticsearchServer) -> None:
    written(server, make_batch(["a"]), retention="30d")
    assert server.policies == {
        "shipper-logs-shipper-dated": {
            "policy": {
                "_meta": {"managed_by": "shipper"},
                "phases": {"delete": {"min_age": "30d", "actions": {"delete": {}}}},
            }
        }
    }
    settings = server.templates["shipper-logs-shipper-dated"]["template"]["settings"]
    assert settings["index"]["lifecycle"] == {"name": "shipper-logs-shipper-dated"}
    written(server, make_batch(["a"]), index="logs-shipper-default", retention="36h")
    stream = server.templates["shipper-logs-shipper-default"]["template"]
    assert stream["lifecycle"] == {"data_retention": "36h"}
    written(server, make_batch(["a"]), index="logs-shipper-default", retention="90s")
    assert server.lifecycles == {"logs-shipper-default": {"data_retention": "90s"}}


def test_retention_that_could_not_be_set_is_tried_again(server: ElasticsearchServer) -> None:
    index = "logs-shipper-default"
    written(server, make_batch(["a"]), index=index)
    server.refuse = (f"/_data_stream/{index}",)
    sink = ElasticsearchSink(config(server, index=index, retention="1d"))
    for _ in range(2):
        with pytest.raises(ParkedError, match="cannot set the retention"):
            sink.open()
    server.refuse = ()
    sink.open()
    sink.close()
    assert server.lifecycles == {index: {"data_retention": "1d"}}


def test_stream_that_somebody_else_made_keeps_its_retention(server: ElasticsearchServer) -> None:
    """Another shipper's template made it; our retention would delete its data."""
    index = "logs-shipper-default"
    own = {"index_patterns": ["logs-*"], "priority": 1, "data_stream": {}, "template": {"mappings": {}}}
    server.templates["theirs"] = own
    written(server, make_batch(["theirs"]), index=index, create_template=False)
    written(server, make_batch(["a"], start_ns=START_NS + 10**9), index=index, retention="1d")
    assert server.lifecycles == {}


@pytest.mark.parametrize("flavour", ["elasticsearch", "opensearch"])
def test_policy_that_somebody_else_made_is_never_replaced(flavour: str) -> None:
    with ElasticsearchServer(flavour=flavour) as server:
        theirs: dict[str, Any] = {"policy": {"phases": {}, "description": "theirs"}}
        server.policies["shipper-logs-shipper-dated"] = theirs
        sink = ElasticsearchSink(config(server, retention="30d"))
        with pytest.raises(ParkedError, match="that shipper did not make"):
            sink.open()
        sink.close()
        assert server.policies == {"shipper-logs-shipper-dated": theirs}


def test_looking_makes_no_template_and_writes_no_canary_for_it(server: ElasticsearchServer) -> None:
    findings = list(examine(config(server), clock=SystemClock()))
    assert [finding.verdict for finding in findings if finding.what == "write"] == ["ok"]
    assert "no canary was written, because that would first make: PUT /_index_template/" in findings[-1].evidence
    assert {request.method for request in server.requests} <= {"GET", "POST"}
    assert (server.templates, server.messages()) == ({}, [])
    sink = ElasticsearchSink(config(server))
    sink.prepare()
    assert list(sink.changes()) == []
    sink.close()
    assert "write" in [finding.what for finding in examine(config(server), clock=SystemClock())]
    assert len(server.messages()) == 1


def test_retention_in_opensearch_and_its_change() -> None:
    with ElasticsearchServer(flavour="opensearch") as server:
        written(server, make_batch(["a"]), retention="30d")
        written(server, make_batch(["a"]), retention="10m")
        [policy] = server.policies.values()
        assert policy["policy"]["ism_template"][0]["index_patterns"] == ["logs-shipper-*"]
        assert policy["policy"]["states"][0]["transitions"][0]["conditions"] == {"min_index_age": "10m"}
        assert policy["policy"]["states"][0]["actions"] == []
        written(server, make_batch(["a"]), index="logs-shipper-default", retention="1w")
        stream = server.policies["shipper-logs-shipper-default"]["policy"]["states"][0]
        assert stream["actions"] == [{"rollover": {"min_index_age": "1d"}}]


def test_retention_of_dated_indices_is_not_to_be_had_serverless() -> None:
    with ElasticsearchServer(flavour="elasticsearch_serverless") as server:
        sink = ElasticsearchSink(config(server, retention="30d"))
        with pytest.raises(ParkedError, match="serverless"):
            sink.open()
        sink.close()
        written(server, make_batch(["a"]), retention="30d", index="logs-shipper-default")


def test_server_away_while_preparing_is_retryable(server: ElasticsearchServer) -> None:
    sink = ElasticsearchSink(config(server))
    server.script(Reply(503))
    with pytest.raises(RetryableError):
        sink.open()
    sink.open()
    sink = ElasticsearchSink(config(server, retention="1d"))
    sink._session.product()
    server.script(Reply(200, b"not json"))
    with pytest.raises(ParkedError, match="cannot be read"):
        sink.open()
    server.script(Reply(429, b""))
    with pytest.raises(RetryableError) as caught:
        sink.open()
    assert not isinstance(caught.value, ParkedError)
    sink.close()


def test_mapping_is_the_same_in_every_family_but_for_its_types() -> None:
    assert index_template.mapping(ELASTIC)["properties"].keys() == index_template.mapping(OPEN)["properties"].keys()
    assert index_template.mapping(ELASTIC)["properties"]["attributes"] == {"type": "flattened"}


# Reading


def _random(server: ElasticsearchServer) -> list[Record]:
    rng = random.Random(7)
    batches = [random_batch(rng, 50, start_ns=START_NS + index * 60 * 10**9) for index in range(6)]
    for batch in batches:
        assert batch.attributes is not None
        for row, attributes in enumerate(batch.attributes):
            attributes |= {"user_id": str(row % 5), "status": 200 + row % 3 * 100, "tags": ["a", row % 2]}
            if row % 7 == 0:
                attributes[""] = "unindexed"
            if row % 11 == 0:
                attributes["container.id"] = "shadowed"
    written(server, *batches)
    return [record for batch in batches for record in batch.records()]


_QUERIES = [
    "", "level:error", "level>=warn", "level:info", "level!=error", "service:service-1", "service:(service-1 service-2)",
    "-service:service-1", "user_id:3", "user_id:(1 2)", "status:200", "status>=300", 'tags:"[\\"a\\",1]"', "tags:a",
    "container.id:shadowed", "container.name:service-0-1", "container.label.tier:web", "stream:stdout", "host:host-1",
    "source:docker", "source:none", "login", '"größe"', "user_id:3 level:error", "user_id:3 OR level:error", "user_id:*",
    "user_id:3*", "user_id:/[12]/", "nothing:here", 'user_id:""', "message:login", "id:none", "key.0:true", "key.1:v",
    "key.0.k:v", "logger:x",
]  # fmt: skip


@pytest.mark.parametrize(
    ("flavour", "options"),
    [
        ("elasticsearch", {}),
        ("elasticsearch", {"create_template": False, "index": "app-logs", "mode": "index"}),
        ("elasticsearch", {"create_template": False, "index": "logs-app-default"}),
        ("opensearch", {}),
    ],
)
def test_answer_is_the_same_as_without_a_search(flavour: str, options: dict[str, Any]) -> None:
    """Also where the server guessed the types: then less is searched for there."""
    with ElasticsearchServer(flavour=flavour) as server:
        if options:  # a mapping that is guessed takes no attributes of mixed types
            batch = random_batch(random.Random(7), 200, start_ns=START_NS)
            batch.attributes = [{"user_id": str(row % 5), "status": 200 + row % 3 * 100} for row in range(200)]
            written(server, batch, **options)
            records = list(batch.records())
        else:
            records = _random(server)
        for text in _QUERIES:
            condition = compile_condition(text)
            wanted = [record.id for record in records if condition.matches(record)]
            found = [record.id for record in read(server, options=options, condition=condition, oldest_first=True)]
            assert found == wanted, text


@pytest.mark.parametrize(
    ("text", "clause"),
    [
        ("level:error", {"terms": {"log.level": ["error"]}}),
        ("service:api", {"terms": {"service.name": ["api"]}}),
        ("id:x", {"terms": {"event.id": ["x"]}}),
        ("level:info", None),
        ("words", None),
        ("user_id>5", None),
        ("tags:[1", None),
        ("service:" + "x" * 2000, None),
    ],
)
def test_what_is_searched_for_on_the_server(server: ElasticsearchServer, text: str, clause: dict[str, Any]) -> None:
    written(server, make_batch(["a"]))
    read(server, condition=compile_condition(text))
    [request] = asked(server, "/_search")
    assert msgspec.json.decode(request.body)["query"]["bool"]["filter"][1:] == ([clause] if clause else [])


def test_attribute_is_searched_for_where_it_is_indexed(server: ElasticsearchServer) -> None:
    written(server, make_batch(["a", "b"], attributes=[{"user_id": 42}, {"user_id": 43}]))
    assert [record.message for record in read(server, condition=compile_condition("user_id:42"))] == ["a"]
    [request] = asked(server, "/_search")
    shoulds = msgspec.json.decode(request.body)["query"]["bool"]["filter"][1]["bool"]["should"]
    assert {"terms": {"attributes.user_id": ["42"]}} in shoulds
    assert {"term": {"shipper.unindexed": True}} in shoulds


def test_bounds_of_time_are_exact_to_the_nanosecond(server: ElasticsearchServer) -> None:
    batch = make_batch([str(index) for index in range(20)], step_ns=1)
    written(server, batch)
    found = read(server, since=START_NS + 3, until=START_NS + 7)
    assert [record.message for record in found] == ["6", "5", "4", "3"]
    assert read(server, since=START_NS + 20) == []
    assert read(server, since=-5, until=0) == []


def test_index_that_keeps_milliseconds_is_read_in_order_and_exactly(server: ElasticsearchServer) -> None:
    """What the built-in template of logs-*-* makes of the time."""
    options = {"index": "logs-app-default", "create_template": False}
    batch = make_batch([str(index) for index in range(3000)], step_ns=700)
    written(server, batch, **options)
    assert [record.message for record in read(server, options=options, oldest_first=True)] == batch.messages
    found = read(server, options=options, since=batch.times[1000], until=batch.times[1010], limit=5)
    assert [record.message for record in found] == ["1009", "1008", "1007", "1006", "1005"]


@pytest.mark.parametrize("limit", [0, 1, 199, 200, 201, 1200, 1201, 2500, None])
@pytest.mark.parametrize("oldest_first", [True, False])
def test_limit_and_order_over_page_boundaries(
    server: ElasticsearchServer, limit: int | None, oldest_first: bool
) -> None:
    batch = make_batch([str(index) for index in range(2500)])
    written(server, batch)
    messages = [record.message for record in read(server, limit=limit, oldest_first=oldest_first)]
    # No page is asked for that nobody needs.
    assert len(asked(server, "/_search")) <= {0: 0, 1: 1, 199: 1, 200: 2, 1200: 3}.get(
        2500 if limit is None else limit, 4
    )
    wanted = batch.messages if oldest_first else (batch.messages or [])[::-1]
    assert wanted is not None
    assert messages == wanted[:limit]


@pytest.mark.parametrize("flavour", ["elasticsearch", "opensearch"])
def test_point_in_time_that_expired_is_opened_anew_and_nothing_is_missed(flavour: str) -> None:
    batch = make_batch([str(index) for index in range(2500)])
    with ElasticsearchServer(flavour=flavour) as server:
        written(server, batch)
        reader = ElasticsearchReader(config(server))
        found = []
        for record in reader.read(Query(oldest_first=True)):
            found.append(record.message)
            if len(found) % 500 == 0:
                server.search.expire()
        assert found == batch.messages
        assert server.search.open_points == 0
        reader.close()


@pytest.mark.parametrize("flavour", ["elasticsearch", "opensearch"])
def test_point_in_time_is_closed_also_when_the_reader_stops_early(flavour: str) -> None:
    with ElasticsearchServer(flavour=flavour) as server:
        written(server, make_batch([str(index) for index in range(500)]))
        reader = ElasticsearchReader(config(server))
        records = reader.read(Query())
        next(records)
        assert server.search.open_points == 1
        records.close()  # type: ignore[attr-defined]
        reader.close()
        assert server.search.open_points == 0


def test_point_in_time_is_followed_under_its_newest_id(server: ElasticsearchServer) -> None:
    written(server, make_batch([str(index) for index in range(1500)]))
    read(server)
    pits = [msgspec.json.decode(request.body)["pit"]["id"] for request in asked(server, "/_search")]
    assert len(set(pits)) == len(pits) == 3


def test_records_that_come_while_reading_are_not_mixed_in(server: ElasticsearchServer) -> None:
    written(server, make_batch([str(index) for index in range(300)]))
    reader = ElasticsearchReader(config(server))
    records = reader.read(Query(oldest_first=True))
    first = next(records)
    written(server, make_batch(["late"], start_ns=START_NS + 10**12))
    assert [first.message, *(record.message for record in records)] == [str(index) for index in range(300)]
    reader.close()


def test_shards_that_do_not_answer_are_an_error_not_a_shorter_answer(server: ElasticsearchServer) -> None:
    written(server, make_batch(["a"]))
    server.search.failed_shards = 1
    with pytest.raises(RetryableError, match="records would be missing"):
        read(server)


@pytest.mark.parametrize("flavour", ["elasticsearch", "opensearch"])
@pytest.mark.parametrize("index", ["logs-shipper-%Y.%m.%d", "logs-shipper-default"])
def test_nothing_was_written_yet(flavour: str, index: str) -> None:
    with ElasticsearchServer(flavour=flavour) as server:
        assert read(server, options={"index": index}) == []


def test_documents_of_others_are_left_out(server: ElasticsearchServer) -> None:
    written(server, make_batch(["ours"]))
    body = b'{"create":{}}\n{"@timestamp":"2026-01-02T03:04:05Z","message":"theirs"}\n'
    from urllib.request import Request, urlopen

    for index in ("logs-shipper-2026.01.02", "logs-shipper-theirs"):
        server.templates.clear()
        headers = {"Content-Type": "application/x-ndjson"}
        with urlopen(Request(f"{server.url}/{index}/_bulk", body, headers)) as answer:
            assert b'"errors":false' in answer.read()
    for text in ("", "level:error OR service:api", "service:api"):
        assert [record.message for record in read(server, condition=compile_condition(text))] == ["ours"]


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply(401, b""), ParkedError),
        (Reply(403, b'{"error":{"type":"security_exception","reason":"no"},"status":403}'), ParkedError),
        (Reply(503, b""), RetryableError),
        (Reply(200, b"<html>"), RetryableError),
    ],
)
def test_reader_raises_what_happened(server: ElasticsearchServer, reply: Reply, error: type[SinkError]) -> None:
    written(server, make_batch(["a"]))
    server.script(reply)
    with pytest.raises(error) as caught:
        read(server)
    assert type(caught.value) is error


def test_index_that_cannot_be_paged_says_so(server: ElasticsearchServer) -> None:
    server.templates["mine"] = {
        "index_patterns": ["logs-shipper-*"],
        "priority": 900,
        "template": {"mappings": {"dynamic": False, "properties": {"@timestamp": {"type": "date"}}}},
    }
    written(server, make_batch(["a"]))
    with pytest.raises(ParkedError, match=r"event\.id is not a keyword"):
        read(server)


# Findings


def _found(server: ElasticsearchServer, **options: Any) -> dict[str, Finding]:
    sink = ElasticsearchSink(config(server, **options))
    findings = {finding.what: finding for finding in sink.examine()}
    sink.close()
    assert all(finding.fix for finding in findings.values() if finding.verdict != "ok")
    return findings


@pytest.mark.parametrize(
    "flavour", ["elasticsearch", "elasticsearch_serverless", "opensearch", "opensearch_serverless"]
)
def test_healthy_cluster_is_found_healthy_and_stays_as_it_is(flavour: str) -> None:
    with ElasticsearchServer(flavour=flavour) as server:
        found = _found(server)
        assert {what: finding.verdict for what, finding in found.items() if finding.verdict != "ok"} == {"tls": "warn"}
        assert {"reachable", "login", "clock", "version", "template"} <= found.keys()
        assert ("rights" in found) == server.elastic
        assert ("limits" in found) != server.serverless
        assert (server.templates, server.indices) == ({}, {})


def test_what_is_wrong_is_found_with_its_fix(server: ElasticsearchServer) -> None:
    with FaultProxy(("127.0.0.1", server.port)) as proxy:
        proxy.switch("refuse")
        assert _found(server, endpoint=f"http://127.0.0.1:{proxy.port}")["reachable"].verdict == "fail"
    with ElasticsearchServer(basic=("u", "p")) as guarded:
        assert _found(guarded, username="u", password="x")["login"].verdict == "fail"
    with ElasticsearchServer(max_content=1 << 20) as small:
        assert _found(small)["limits"].verdict == "warn"
    with ElasticsearchServer(version="7.17.0") as old:
        assert _found(old)["version"].verdict == "warn"
    with ElasticsearchServer(refuse=["/_index_template"]) as narrow:
        found = _found(narrow)
        assert (found["rights"].verdict, found["template"].verdict) == ("warn", "fail")
        assert _found(narrow, create_template=False)["template"].verdict == "ok"
    with ElasticsearchServer() as bare:
        assert _found(bare, create_template=False)["template"].verdict == "warn"


def test_rights_that_are_missing_are_named(server: ElasticsearchServer) -> None:
    answer = {"index": {"logs-shipper-*": {"create_doc": False, "auto_configure": True}}, "cluster": {}}
    server.script(Reply(400), Reply(200, b'{"version":{"number":"9.0.0"}}'), Reply(200, msgspec.json.encode(answer)))
    finding = _found(server)["rights"]
    assert finding.verdict == "fail"
    assert "create_doc" in finding.evidence


def test_answers_that_make_no_sense_are_findings_not_faults(server: ElasticsearchServer) -> None:
    server.script(Reply(400), Reply(200, b'{"version":{"number":"9.0.0"}}'), Reply(200, b"<html>"))
    assert _found(server)["reachable"].verdict == "fail"


def test_healthcheck_tells_a_wrong_password_and_an_absent_server(server: ElasticsearchServer) -> None:
    sink = opened(server)
    sink.healthcheck()
    server.script(Reply(401, b""))
    with pytest.raises(ParkedError):
        sink.healthcheck()
    server.script(Reply(503, b""))
    with pytest.raises(RetryableError):
        sink.healthcheck()
    sink.close()
    assert server.count == 0


# Through a delivery


@pytest.fixture
def make_rig(tmp_path: Path) -> Iterator[MakeRig]:
    made: list[Rig] = []

    def make(sink: ElasticsearchSink) -> Rig:
        made.append(Rig(tmp_path, sink))
        return made[-1]

    yield make
    for rig in made:
        rig.close()


def _run(rig: Rig, batch: Batch) -> None:
    rig.put("/x", batch)
    rig.run()


def _value(rig: Rig, name: str, **labels: str) -> float:
    return rig.metrics.value(f"shipper_{name}_total", sink="sink", **labels)


def test_delivery_takes_conflicts_to_the_dead_letters_retries_the_busy_and_counts_the_diverted(
    make_rig: MakeRig,
) -> None:
    with ElasticsearchServer() as server:
        rig = make_rig(ElasticsearchSink(config(server, create_template=False, index="app-logs", mode="index")))
        server.fail('"busy"', 429, "es_rejected_execution_exception", "queue is full", times=2)
        server.fail('"full"', 403, "cluster_block_exception", "FORBIDDEN/12/index read-only", times=1)
        attributes = [{"x": 1}, {"x": 1}, {"x": "text"}, {"x": 3}, {}]
        _run(rig, make_batch(["good", "busy", "conflict", "last", "full"], attributes=attributes))
        assert sorted(server.messages()) == ["busy", "full", "good", "last"]
    [dead] = rig.dead()
    assert (dead.raw, dead.code) == ("conflict", "document_parsing_exception")
    assert _value(rig, "sink_lines_acked") == 4
    assert _value(rig, "dead_letter") == 1
    assert 30.0 in rig.clock.waits


def test_delivery_counts_what_a_failure_store_took(make_rig: MakeRig) -> None:
    with ElasticsearchServer(failure_store=True) as server:
        rig = make_rig(ElasticsearchSink(config(server, create_template=False, index="logs-app-default")))
        _run(rig, make_batch(["a", "b", "c"], attributes=[{"x": 1}, {"x": "text"}, {"x": "3"}]))
        assert server.messages() == ["a", "c"]
    assert _value(rig, "sink_diverted", reason="failure_store") == 1
    assert _value(rig, "sink_lines_acked") == 3
    assert rig.dead() == []
    assert rig.clock.waits == []


def test_delivery_bisects_a_request_that_is_refused_as_a_whole(make_rig: MakeRig) -> None:
    """The stand-in's scripted refusals stand for a proxy that dislikes one line of the body."""
    with ElasticsearchServer() as server:
        own = server.answer

        def picky(request: Any) -> Reply:
            if request.path.endswith("_bulk") and b"poison" in request.content():
                return Reply(400, b'{"error":{"type":"x_content_parse_exception","reason":"no"},"status":400}')
            return own(request)

        server.answer = picky  # type: ignore[method-assign]
        rig = make_rig(ElasticsearchSink(config(server)))
        _run(rig, make_batch(["a", "b", "poison", "c", "d"]))
        assert server.messages() == ["a", "b", "c", "d"]
    assert [dead.raw for dead in rig.dead()] == ["poison"]


def test_delivery_parks_for_the_operator_and_goes_on_when_mended(make_rig: MakeRig) -> None:
    with ElasticsearchServer(auto_create=False) as server:
        sink = ElasticsearchSink(config(server, create_template=False, index="app-logs", mode="index"))
        rig = make_rig(sink)
        wait = rig.clock.wait

        def mend(event: object, seconds: float) -> bool:
            server.auto_create = True
            return wait(event, seconds)

        rig.clock.wait = mend  # type: ignore[method-assign]
        _run(rig, make_batch(["a", "b"]))
        assert server.messages() == ["a", "b"]
    assert _value(rig, "sink_retries", code="index_not_found_exception") == 1
    assert rig.dead() == []


def test_resource_of_any_shape_reads_back(server: ElasticsearchServer) -> None:
    resources = [
        Resource("files", {"host.name": "h", "log.file.path": "/a b/ü.log"}),
        make_resource("x", os_type="linux"),
    ]
    written(server, make_batch(["a", "b"], resource=resources))
    found = read(server, oldest_first=True)
    assert [(one.resource.source, one.resource.attributes) for one in found] == [
        (one.source, one.attributes) for one in resources
    ]
