"""What a sound file becomes: interpolation, paths, defaults, secrets."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shipper.config.document import interpolate, resolve
from shipper.config.loader import load, loads
from shipper.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from shipper.config.types import Config

SOURCES = "sources: {tape: {type: tape}}\n"


def vault(fields: str, environ: Mapping[str, str] | None = None, more: str = "") -> Any:
    """Load a config with one sink and give that sink's section."""
    text = f"{SOURCES}sinks:\n  vault: {{type: vault, host: a, {fields}}}\n{more}"
    return loads(text, environ or {}).sinks["vault"]


def test_a_variable_becomes_what_its_field_takes() -> None:
    environ = {"PORT": "3307", "CHECK": "false", "NAME": "42", "RATIO": "0.25"}
    made = vault('port: "${PORT}", tls: {verify: "${CHECK}"}, user: "${NAME}", ratio: "${RATIO}"', environ)
    assert (made.port, made.tls.verify, made.user, made.ratio) == (3307, False, "42", 0.25)


def test_a_variable_cannot_change_the_structure_of_the_file() -> None:
    made = vault('user: "${X}"', {"X": "a}\nactive: [b], port: 1 # ${HOME}"})
    assert made.user == "a}\nactive: [b], port: 1 # ${HOME}"


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("${A}", "one"),
        ("x${A}y${A}z", "xoneyonez"),
        ("${A:-two}", "one"),
        ("${NONE:-two}", "two"),
        ("${EMPTY:-two}", "two"),
        ("${EMPTY}", ""),
        ("${NONE:-}", ""),
        ("${NONE:-a:b-c?}", "a:b-c?"),
        ("${A:?missing}", "one"),
        ("$$", "$"),
        ("$${A}", "${A}"),
        ("^a$", "^a$"),
        ("$A", "$A"),
    ],
)
def test_interpolation(text: str, result: str) -> None:
    assert interpolate(text, {"A": "one", "EMPTY": ""}) == result


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("1", 1),
        ("-3", -3),
        ("0x1f", 31),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        ("true", True),
        ("~", None),
        ("no", "no"),
        ("off", "off"),
        ("0640", "0640"),
        ("22:30", "22:30"),
        ("2024-05-01", "2024-05-01"),
        ("1_000", "1_000"),
    ],
)
def test_an_unquoted_scalar_surprises_nobody(text: str, result: object) -> None:
    made = resolve(text)
    assert made == result
    assert type(made) is type(result)


def test_defaults() -> None:
    config = loads(f"{SOURCES}sinks: {{vault: {{type: vault, host: a}}}}\n", {})
    assert config.active == ("vault",)
    assert str(config.state_dir) == "/var/lib/shipper"
    assert config.shutdown_timeout == 30.0
    assert config.http.address == ("127.0.0.1", 8687)


def test_systemd_names_the_state_directory() -> None:
    text = f"{SOURCES}sinks: {{vault: {{type: vault, host: a}}}}\n"
    assert str(loads(text, {"STATE_DIRECTORY": "/var/lib/a:/var/lib/b"}).state_dir) == "/var/lib/a"
    assert str(loads(text + "state_dir: /srv/state\n", {"STATE_DIRECTORY": "/x"}).state_dir) == "/srv/state"


def test_active_and_routes_may_name_several_sinks() -> None:
    config = loads(
        f"{SOURCES}sinks: {{a: {{type: vault, host: a}}, b: {{type: vault, host: b}}}}\nactive: [a, b]\n"
        "routes:\n  - {match: 'level>=error', to: [a, b]}\n  - {match: 'level>=warn', to: b}\n"
        "shutdown_timeout: 1m30s\n",
        {},
    )
    assert config.active == ("a", "b")
    assert [route.sinks for route in config.routes] == [("a", "b"), ("b",)]
    assert config.shutdown_timeout == 90.0


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    path = tmp_path / "shipper.yaml"
    path.write_text(
        "state_dir: state\n"
        "sources: {tape: {type: tape, include: [logs/*.log, /abs/a.log]}}\n"
        "sinks: {vault: {type: vault, host: a, password_file: ./secret}}\n"
    )
    config: Config = load(path, {})
    assert config.state_dir == tmp_path / "state"
    assert config.sources["tape"].include == [f"{tmp_path}/logs/*.log", "/abs/a.log"]  # type: ignore[attr-defined]
    assert config.sinks["vault"].password_file == f"{tmp_path}/secret"  # type: ignore[attr-defined]


def test_globs_of_the_file_source_are_relative_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "shipper.yaml"
    path.write_text(
        "sources: {app: {type: file, include: ['*.log', '**/*.txt'], exclude: ['*.gz', old/*, /a/b]}}\n"
        "sinks: {vault: {type: vault, host: a}}\n"
    )
    made = load(path, {}).sources["app"]
    assert made.include == [f"{tmp_path}/*.log", f"{tmp_path}/**/*.txt"]  # type: ignore[attr-defined]
    assert made.exclude == ["*.gz", f"{tmp_path}/old/*", "/a/b"]  # type: ignore[attr-defined]


def test_a_relative_secret_file_is_first_a_credential_of_the_service(tmp_path: Path) -> None:
    """systemd makes one flat name of a directory's ID and a file in it."""
    loaded, beside = tmp_path / "run", tmp_path / "etc"
    loaded.mkdir()
    (beside / "credentials").mkdir(parents=True)
    for name in ("logs_db", "credentials_logs_db"):
        (loaded / name).write_text("x")
    (beside / "credentials" / "loki").write_text("x")
    (beside / "credentials" / "logs_db").write_text("x")

    def found(given: str, environ: dict[str, str]) -> str:
        text = f"{SOURCES}sinks: {{vault: {{type: vault, host: a, password_file: {given}}}}}\n"
        sink = loads(text, environ, path=beside / "shipper.yaml").sinks["vault"]
        return str(sink.password_file)  # type: ignore[attr-defined]

    service = {"CREDENTIALS_DIRECTORY": str(loaded)}
    assert found("logs_db", service) == f"{loaded}/logs_db"
    assert found("credentials/logs_db", service) == f"{loaded}/credentials_logs_db"
    assert found("./credentials/logs_db", service) == f"{loaded}/credentials_logs_db"
    assert found("credentials/loki", service) == f"{beside}/credentials/loki", "not loaded: beside the configuration"
    assert found(f"{beside}/credentials/logs_db", service) == f"{beside}/credentials/logs_db", "an absolute path is one"
    assert found("credentials/logs_db", {}) == f"{beside}/credentials/logs_db", "no service"


def test_a_sink_of_a_later_phase_may_lack_its_secret() -> None:
    text = (
        f"{SOURCES}sinks: {{a: {{type: vault, host: a}}, b: {{type: vault, host: b, password_file: /none}}}}\n"
        "active: a\n"
    )
    assert loads(text, {}).active == ("a",)
    with pytest.raises(ConfigError, match="cannot read /none"):
        loads(text + "routes: [{match: 'level>=error', to: b}]\n", {})


def test_an_empty_secret_file_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.touch()
    with pytest.raises(ConfigError, match="is empty; write the password into it"):
        vault(f"password_file: {secret}")


def test_anchors_and_merge_keys() -> None:
    config = loads(
        "x-common: &common {type: vault, host: a, port: 1}\n"
        f"{SOURCES}sinks:\n  one: *common\n  two: {{<<: *common, port: 2}}\nactive: one\n",
        {},
    )
    assert config.sinks["two"].port == 2  # type: ignore[attr-defined]
    assert config.sinks["two"].host == "a"  # type: ignore[attr-defined]


SECRET = st.text(
    st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="'\\$"), min_size=4, max_size=30
).map("Zq9~{}".format)


@given(secret=SECRET, where=st.sampled_from(["plain", "variable", "wrong field", "refused", "url", "header"]))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_secret_is_never_shown(secret: str, where: str) -> None:
    """Neither by an error nor by the repr or str of what was loaded."""
    quoted = f"'{secret}'"
    fields = {
        "plain": f"password: {quoted}",
        "variable": "password: '${SECRET}'",
        "wrong field": "port: '${SECRET}'",
        "refused": f"user: root, password: {quoted}",
        "url": "endpoint: 'http://me:" + "".join(c for c in secret if c.isalnum()) + "Zq9Zq9@host/'",
        "header": f"headers: {{Authorization: {quoted}}}",
    }[where]
    hidden = "Zq9Zq9" if where == "url" else secret
    text = f"{SOURCES}sinks:\n  vault: {{type: vault, host: a, {fields}}}\n"
    for more in ("", "oops: 1\n"):
        try:
            config = loads(text + more, {"SECRET": secret})
        except ConfigError as error:
            shown = f"{error} {error!r}"
        else:
            shown = f"{config} {config!r} {config.sinks['vault']!r}"
        assert hidden not in shown


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "there is no such file"),
        (b"a: \xff\n", "not UTF-8 text"),
        (b"#" * (5 << 20), "larger than 1 MiB"),
    ],
)
def test_a_file_that_cannot_be_a_config(tmp_path: Path, content: bytes | None, text: str) -> None:
    path = tmp_path / "a.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=text):
        load(path, {})


def test_a_directory_is_not_a_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="this is a directory"):
        load(tmp_path, {})


def test_loading_imports_no_sdk() -> None:
    code = "import sys, shipper.config.loader; print([m for m in ('pymysql', 'boto3', 'rich', 'click') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_sink_that_is_not_in_use_may_lack_its_package(tmp_path: Path) -> None:
    path = tmp_path / "shipper.yaml"
    text = "sources: {{tape: {{type: tape}}}}\nsinks: {{out: {{type: stdout}}, later: {{type: needy}}}}\nactive: {0}\n"
    path.write_text(text.format("out"))
    assert list(load(path, {}).sinks) == ["out"]
    path.write_text(text.format("later"))
    with pytest.raises(ConfigError, match="needs the package 'an_sdk_that_nobody_has'"):
        load(path, {})
