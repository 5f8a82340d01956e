"""The stand-ins for Azure refuse what Azure refuses, and cut in silence what Azure cuts."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import urllib3

from shipper.testing.http_server import Reply
from support import azure_app_insights_server
from support.azure_app_insights_server import KEY, AppInsightsServer
from support.azure_logs_server import RULE, STREAM, AzureLogsServer
from support.azure_server import ASSERTION, CLIENT, QUERY_AUDIENCE, SECRET, TENANT, WORKSPACE, AzureServer
from support.process import serving

NOW = 1_767_323_045.0
TIME = "2026-01-02T03:04:05.0000000Z"
TOKEN = f"/{TENANT}/oauth2/v2.0/token"
MONITOR = "https://monitor.azure.com/.default"


@pytest.fixture
def insights() -> Iterator[AppInsightsServer]:
    with AppInsightsServer(now=lambda: NOW) as server:
        yield server


@pytest.fixture
def logs() -> Iterator[AzureLogsServer]:
    with AzureLogsServer(now=lambda: NOW) as server:
        yield server


def _call(server: AzureServer, method: str, path: str, **options: Any) -> tuple[int, Any]:
    with urllib3.PoolManager() as pool:
        answer = pool.request(method, server.url + path, redirect=False, retries=False, **options)
        try:
            return answer.status, json.loads(answer.data)
        except ValueError:
            return answer.status, answer.data


def _token(server: AzureServer, scope: str = MONITOR) -> str:
    form = {"grant_type": "client_credentials", "client_id": CLIENT, "client_secret": SECRET, "scope": scope}
    status, told = _call(server, "POST", TOKEN, fields=form, encode_multipart=False)
    assert status == 200
    return str(told["access_token"])


# Application Insights


def _envelope(message: Any = "hello", *, time: str = TIME, key: str = KEY, **properties: Any) -> dict[str, Any]:
    data = {"ver": 2, "message": message, "severityLevel": 1, "properties": {"id": "i", "time_ns": "5", **properties}}
    return {"name": "m", "time": time, "iKey": key, "data": {"baseType": "MessageData", "baseData": data}}


def _track(server: AppInsightsServer, *items: Any, **options: Any) -> tuple[int, Any]:
    return _call(server, "POST", "/v2.1/track", body=json.dumps(items).encode(), **options)


def _one(server: AppInsightsServer, item: Any) -> str:
    """What the one item of a request was refused for."""
    status, told = _track(server, item)
    assert status == 400
    assert (told["itemsReceived"], told["itemsAccepted"], len(told["errors"])) == (1, 0, 1)
    return str(told["errors"][0]["message"])


def test_insights_takes_arrays_lines_and_gzip(insights: AppInsightsServer) -> None:
    assert _track(insights, _envelope("a"), _envelope("b")) == (
        200, {"itemsReceived": 2, "itemsAccepted": 2, "appId": "app", "errors": []},
    )  # fmt: skip
    lines = b"\n".join(json.dumps(_envelope(text)).encode() for text in "cd")
    headers = {"Content-Type": "application/x-json-stream", "Content-Encoding": "gzip"}
    assert _call(insights, "POST", "/v2.1/track", body=gzip.compress(lines), headers=headers)[0] == 200
    assert insights.messages() == ["a", "b", "c", "d"]
    assert (insights.ids(), insights.count) == (["i"] * 4, 4)
    assert _track(insights)[0] == 200
    assert _call(insights, "GET", "/v2.1/track")[0] == 404
    assert _call(insights, "POST", "/v2/other", body=b"[]")[0] == 404


def test_insights_tells_the_index_of_each_refused_item(insights: AppInsightsServer) -> None:
    insights.sampled = lambda item: item["data"]["baseData"]["message"] == "sampled"
    insights.verdict = lambda item: (429, "slow down") if item["data"]["baseData"]["message"] == "busy" else None
    items = [_envelope("a"), _envelope(""), _envelope("busy"), _envelope("b"), _envelope("sampled"), "nonsense"]
    status, told = _track(insights, *items)
    assert status == 206
    assert (told["itemsReceived"], told["itemsAccepted"]) == (6, 2)
    assert [(each["index"], each["statusCode"]) for each in told["errors"]] == [(1, 400), (2, 429), (4, 500), (5, 400)]
    assert told["errors"][2]["message"] == "Telemetry sampled out."
    assert insights.messages() == ["a", "b"]


def test_insights_holds_64_kilobytes_an_item(insights: AppInsightsServer) -> None:
    spare = 65_536 - len(json.dumps(_envelope("")))
    assert _track(insights, _envelope("m" * spare))[0] == 200
    assert "65537 bytes" in _one(insights, _envelope("m" * (spare + 1)))


def test_insights_holds_64_000_items(insights: AppInsightsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert azure_app_insights_server.ITEMS == 64_000
    monkeypatch.setattr(azure_app_insights_server, "ITEMS", 3)
    assert _track(insights, *[_envelope()] * 3)[0] == 200
    assert _track(insights, *[_envelope()] * 4)[0] == 413


@pytest.mark.parametrize(("time", "taken"), [(2 * 86_400, True), (2 * 86_400 + 1, False), (-86_400, True)])
def test_insights_takes_48_hours(insights: AppInsightsServer, time: int, taken: bool) -> None:
    moment = f"{datetime.fromtimestamp(NOW - time, UTC):%Y-%m-%dT%H:%M:%S}.0000000Z"
    if taken:
        assert _track(insights, _envelope(time=moment))[0] == 200
    else:
        assert _one(insights, _envelope(time=moment)) == (
            "103: Field 'time' on type 'Envelope' is older than the allowed min date. Expected: now - 172800000ms,"
            " Actual: now - 172801000ms"
        )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"iKey": "0" * 36}, "Invalid instrumentation key"),
        ({"time": "yesterday"}, "102: Field 'time'"),
        ({"time": "2026-01-02T03:04:05.123456789Z"}, "102: Field 'time'"),
        ({"data": {}}, "106: Field 'data'"),
        ({"data": {"baseType": "Other", "baseData": {}}}, "106: Field 'data'"),
        ({"data": {"baseType": "MessageData", "baseData": {"message": " "}}}, "'message' on type 'MessageData'"),
        ({"data": {"baseType": "EventData", "baseData": {"name": ""}}}, "'name' on type 'EventData'"),
        ({"data": {"baseType": "ExceptionData", "baseData": {"exceptions": []}}}, "'exceptions'"),
        ({"data": {"baseType": "ExceptionData", "baseData": {"exceptions": [{"typeName": "E"}]}}}, "'exceptions'"),
        ({"data": {"baseType": "MessageData", "baseData": {"message": "m", "properties": {"n": 1}}}}, "'properties'"),
        ({"data": {"baseType": "MessageData", "baseData": {"message": "m", "severityLevel": 5}}}, "'severityLevel'"),
    ],
)
def test_insights_refuses_items_that_lack_something(
    insights: AppInsightsServer, change: dict[str, Any], words: str
) -> None:
    assert words in _one(insights, {**_envelope(), **change})


def test_insights_cuts_in_silence(insights: AppInsightsServer) -> None:
    item = _envelope("\U0001f600" * 16_385, value="v" * 8_193, fits="f" * 8_192, **{"k" * 150: "1", "k" * 151: "2"})
    assert _track(insights, item)[0] == 400  # as ASCII JSON it is larger than an item may be
    body = json.dumps([item], ensure_ascii=False).encode()
    assert _call(insights, "POST", "/v2.1/track", body=body)[0] == 400
    del item["data"]["baseData"]["properties"]["fits"]
    item["data"]["baseData"]["message"] = "é" * 20_000 + "m" * 12_769
    body = json.dumps([item], ensure_ascii=False).encode()
    assert _call(insights, "POST", "/v2.1/track", body=body)[0] == 200
    (row,) = insights.rows
    assert row["Message"] == "é" * 20_000 + "m" * 12_768
    assert row["Properties"]["value"] == "v" * 8_192
    assert "k" * 150 in row["Properties"]
    assert "k" * 151 not in row["Properties"]


def test_insights_quota_redirect_entra_and_scripts(insights: AppInsightsServer) -> None:
    for quota in (402, 439):
        insights.quota = quota
        assert _track(insights, _envelope())[0] == quota
    insights.quota = 0
    insights.moved_to = "http://elsewhere/v2.1/track"
    assert _track(insights, _envelope())[0] == 307
    insights.moved_to = ""
    insights.entra = True
    assert _track(insights, _envelope())[0] == 401
    for scope, status in ((MONITOR, 200), ("https://monitor.azure.com//.default", 200), ("https://x/.default", 401)):
        headers = {"Authorization": f"Bearer {_token(insights, scope)}"}
        assert _track(insights, _envelope(), headers=headers)[0] == status
    insights.script(Reply(429, b"", {"Retry-After": "2"}))
    assert _track(insights, _envelope())[0] == 429
    assert insights.count == 2
    assert _call(insights, "POST", "/v2.1/track", body=b"{")[0] == 401
    insights.entra = False
    assert _call(insights, "POST", "/v2.1/track", body=b"{")[0] == 400


# Logs Ingestion


PATH = f"/dataCollectionRules/{RULE}/streams/{STREAM}?api-version=2023-01-01"


def _send(server: AzureLogsServer, body: bytes, path: str = PATH, **headers: str) -> tuple[int, Any]:
    given = {"Authorization": f"Bearer {_token(server)}", "Content-Type": "application/json"}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    return _call(server, "POST", path, body=body, headers=given)


def _line(**values: Any) -> dict[str, Any]:
    return {"TimeGenerated": TIME, "EventTime": TIME, "TimeNs": "5", "RecordId": "i", "Message": "m", **values}


def _store(server: AzureLogsServer, **values: Any) -> dict[str, Any]:
    body = json.dumps([_line(**values)], ensure_ascii=False).encode()
    assert _send(server, body)[0] == 204
    return server.rows[-1]


def test_ingestion_takes_arrays_and_gzip(logs: AzureLogsServer) -> None:
    assert _send(logs, b"[]") == (204, b"")
    body = gzip.compress(json.dumps([_line(Message="a"), _line(Message="b")]).encode())
    assert _send(logs, body, Content_Encoding="gzip")[0] == 204
    assert (logs.messages(), logs.ids(), logs.count) == (["a", "b"], ["i", "i"], 2)


@pytest.mark.parametrize("status", [413, 404])
@pytest.mark.parametrize("packed", [False, True])
def test_ingestion_holds_a_megabyte_unpacked(logs: AzureLogsServer, status: int, packed: bool) -> None:
    logs.too_large = status
    empty = len(json.dumps([_line(Message="")]))
    for size, wanted in ((1_048_576, 204), (1_048_577, status)):
        body = json.dumps([_line(Message="m" * (size - empty))]).encode()
        assert len(body) == size
        if packed:
            assert _send(logs, gzip.compress(body), Content_Encoding="gzip")[0] == wanted
        else:
            assert _send(logs, body)[0] == wanted


def test_ingestion_refuses(logs: AzureLogsServer) -> None:
    body = json.dumps([_line()]).encode()
    assert _send(logs, body, Authorization="Bearer forged")[0] == 401
    assert _send(logs, body, Authorization=f"Bearer {_token(logs, 'https://management.azure.com/.default')}")[0] == 401
    assert _send(logs, body, path=PATH.replace(RULE, "dcr-other"))[0] == 404
    assert _send(logs, body, path=PATH.replace(STREAM, "Custom-Other"))[1]["error"]["code"] == "InvalidStream"
    assert _send(logs, body, path=PATH.partition("?")[0])[1]["error"]["code"] == "MissingApiVersionParameter"
    assert _send(logs, body, path="/elsewhere")[0] == 404
    assert _send(logs, body, Content_Type="text/plain")[0] == 415
    for bad in (b"{}", b"[1]", b"[", b"\xff"):
        assert _send(logs, bad)[0] == 400
    assert _send(logs, b"not gzip", Content_Encoding="gzip")[0] == 400
    logs.granted = False
    assert _send(logs, body)[0] == 403
    assert logs.count == 0


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("m" * 32_768, "m" * 32_768), ("m" * 32_769, "m" * 32_768),  # UTF-16
        ("日" * 21_845, "日" * 21_845), ("日" * 21_846, "日" * 21_845),  # UTF-8
    ],
    ids=["below 16", "above 16", "below 8", "above 8"],
)  # fmt: skip
def test_ingestion_cuts_fields_in_silence(logs: AzureLogsServer, text: str, stored: str) -> None:
    row = _store(logs, Message=text, Attributes={"a": text})
    assert row["Message"] == stored
    assert row["Attributes"] != {"a": text} or len(text) < 21_846


def test_ingestion_loses_what_does_not_fit_its_columns(logs: AzureLogsServer) -> None:
    row = _store(logs, Unknown="x", Severity="high", Part=1 << 31, EventTime="soon", Level=5, Attributes={"n": 2**64})
    assert "Unknown" not in row
    assert (row["Severity"], row["Part"], row["EventTime"], row["Level"]) == (None, None, None, "5")
    assert row["Attributes"] == {"n": float(2**64)}
    assert (row["Service"], row["Resource"]) == ("", None)


@pytest.mark.parametrize(("hours", "kept"), [(0, True), (48, True), (49, False), (-24, True), (-25, False)])
def test_ingestion_replaces_times_far_from_now(logs: AzureLogsServer, hours: int, kept: bool) -> None:
    moment = f"{datetime.fromtimestamp(NOW - hours * 3_600, UTC):%Y-%m-%dT%H:%M:%S}.0000000Z"
    row = _store(logs, TimeGenerated=moment, EventTime=moment)
    assert row["EventTime"] == moment
    assert row["TimeGenerated"] == (moment if kept else TIME)


# Tokens and queries


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({}, 200), ({"client_secret": "x"}, 401), ({"client_id": "x"}, 400), ({"grant_type": "password"}, 400),
        ({"scope": "https://x"}, 400), ({"client_assertion": ASSERTION}, 401),
        ({"client_assertion": "x", "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"}, 401),
        ({"client_assertion": ASSERTION,
          "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"}, 200),
    ],
)  # fmt: skip
def test_tokens_need_the_right_credential(logs: AzureLogsServer, change: dict[str, str], status: int) -> None:
    form = {"grant_type": "client_credentials", "client_id": CLIENT, "client_secret": SECRET, "scope": MONITOR}
    assert _call(logs, "POST", TOKEN, fields=form | change, encode_multipart=False)[0] == status
    assert _call(logs, "POST", "/other/oauth2/v2.0/token", fields=form, encode_multipart=False)[0] == 400
    assert logs.requests == []


def test_metadata_service_needs_its_header_version_and_identity(logs: AzureLogsServer) -> None:
    path = "/metadata/identity/oauth2/token?resource=https://monitor.azure.com"
    headers = {"Metadata": "true"}
    status, told = _call(logs, "GET", f"{path}&api-version=2018-02-01", headers=headers)
    assert (status, told["expires_in"]) == (200, "3599")
    assert _call(logs, "GET", f"{path}&api-version=2018-02-01")[0] == 400
    assert _call(logs, "GET", path, headers=headers)[0] == 400
    assert _call(logs, "GET", f"{path}&api-version=2018-02-01&client_id=x", headers=headers)[0] == 400


def test_tokens_end(logs: AzureLogsServer) -> None:
    headers = {"Authorization": f"Bearer {_token(logs)}", "Content-Type": "application/json"}
    assert _call(logs, "POST", PATH, body=b"[]", headers=headers)[0] == 204
    logs.now = lambda: NOW + 3_599
    assert _call(logs, "POST", PATH, body=b"[]", headers=headers)[0] == 401


def _query(server: AzureServer, kql: str, workspace: str = WORKSPACE, scope: str = "") -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {_token(server, scope or QUERY_AUDIENCE + '/.default')}"}
    body = json.dumps({"query": kql}).encode()
    return _call(server, "POST", f"/v1/workspaces/{workspace}/query", body=body, headers=headers)


def test_queries_need_the_workspace_and_a_token_for_the_api(logs: AzureLogsServer) -> None:
    kql = (
        "Shipper_CL\n| extend Ns = tolong(TimeNs)\n| where isnotempty(RecordId) and isnotnull(Ns)\n| project Ns, Level"
    )
    _store(logs, Level="info")
    status, told = _query(logs, kql)
    assert status == 200
    assert told["tables"][0]["rows"] == [[5, "info"]]
    assert told["tables"][0]["columns"][0] == {"name": "Ns", "type": "long"}
    assert _query(logs, kql, workspace="other")[0] == 404
    assert _query(logs, kql, scope=MONITOR)[0] == 401


@pytest.mark.parametrize(
    "line",
    [
        "where Level == 'info'", "where Ns > 5", "order by Ns desc", "take many", "limit 5", 'where X has "y"',
        'where Ns < 5 or (Ns == 6 and strcmp(RecordId, "a") < 0)', "project Ns\n| take 5",
    ],
)  # fmt: skip
def test_queries_of_any_other_form_are_syntax_errors(logs: AzureLogsServer, line: str) -> None:
    start = "Shipper_CL\n| extend Ns = tolong(TimeNs)\n| where isnotempty(RecordId) and isnotnull(Ns)\n| "
    status, told = _query(logs, f"{start}{line}\n| project Ns")
    assert (status, told["error"]["code"]) == (400, "BadArgumentError")


@pytest.mark.parametrize("kql", ["Other_CL\n| project Ns", "Shipper_CL\n| take 5", ""])
def test_queries_must_begin_as_ours_do(logs: AzureLogsServer, kql: str) -> None:
    assert _query(logs, kql)[0] == 400


@pytest.mark.parametrize("module", ["azure_app_insights_server", "azure_logs_server"])
def test_stand_in_runs_as_a_process_of_its_own(module: str) -> None:
    with serving(module, "--discard") as url, urllib3.PoolManager() as pool:
        assert pool.request("POST", f"{url}/nothing", retries=False).status == 404


def test_what_is_discarded_is_counted() -> None:
    with AzureLogsServer(now=lambda: NOW, keep=False) as server:
        assert _send(server, json.dumps([_line(), _line(Part=1), _line(Part=2)]).encode())[0] == 204
        assert (server.count, server.rows, server.requests) == (2, [], [])
