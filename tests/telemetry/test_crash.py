"""What a bug leaves behind tells no secret: not of the file, not of the configuration, not of what a driver quotes."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from shipper.secret import MASK
from shipper.telemetry.crash import Crash

PLUGIN = '''
from typing import Annotated

import msgspec
from msgspec import Meta

from shipper.reader import Reader
from shipper.secret import Secret
from shipper.sink import Sink, SinkConfig


class Tenant(msgspec.Struct, frozen=True, kw_only=True):
    name: str = ""
    pass_phrase: Annotated[Secret | None, Meta(description="Secret by its type.")] = None


class LeakyConfig(SinkConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A sink with a secret that its type alone tells, and one that its name does."""

    handle: Annotated[Secret, Meta(description="Secret by its type.")] = ""
    webhook: str = ""
    several: Annotated[list[Secret], Meta(description="Secret one and all.")] = []
    named: dict[str, Secret] = {}
    tenants: list[Tenant] = []
    extras: dict[str, str] = {}
    url: str = ""


class Leaky(Sink):
    config = LeakyConfig

    def __init__(self, config): ...
    def open(self): ...
    def write(self, batch): ...
    def close(self): ...


class LeakyReader(Reader):
    def __init__(self, config):
        self._config = config

    def read(self, query):
        secret = self._config.handle
        try:
            raise OSError(f"driver says: cannot log in with {self._config.webhook!r}")
        except OSError as error:
            raise RuntimeError(f"bug with {secret} and Authorization: Basic {'dXNlcjp' + 'wYXNz'}") from error

    def close(self): ...


SINK, READER = Leaky, LeakyReader
'''

#: Every secret below begins so.
SECRET = "S3CRET"
CONFIG = """
sources: {{app: {{type: file, include: [{top}/app.log]}}}}
transforms:
  m: {{type: redact, rules: [email], mode: hash, salt: S3CRETsalt}}
sinks:
  my:
    type: mysql
    host: db.internal
    database: x
    user: u
    password: |-
      S3CRETblock
      S3CRETsecondline
    maintenance_user: m
    maintenance_password:
      S3CRETnextline
  es:
    type: elasticsearch
    endpoint: http://h:9200
    api_key: >-
      S3CRETfolded
  az: {{type: azure_app_insights, connection_string: "InstrumentationKey=11111111-2222-3333-4444-555555555555;IngestionEndpoint=http://127.0.0.1:9/;x=S3CRETcs"}}
  ot: {{type: otlp, headers: {{Cookie: S3CRETcookie, X-Scope: "S3CRETscope", Content-Type: application/json}}}}
  leaky: {{type: leaky, handle: S3CRET'q"uoted, webhook: S3CREThook, extras: {{apiKey: S3CRETcamel}}, several: [S3CRETone, S3CRETtwo],
    named: {{first: S3CRETfirst}}, tenants: [{{name: acme, pass_phrase: S3CRETphrase}}], url: "${{URL}}"}}
active: leaky
log: {{loki_url: "http://127.0.0.1:9/loki?apikey=S3CRETquery&tenant=one"}}
state_dir: {top}/state
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    plugin = tmp_path / "plugin"
    info = plugin / "leaky-1.dist-info"
    info.mkdir(parents=True)
    (plugin / "leaky_sink.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: leaky\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[shipper.sinks]\nleaky = leaky_sink\n")
    monkeypatch.syspath_prepend(str(plugin))
    monkeypatch.setenv("PYTHONPATH", f"{plugin}{os.pathsep}{Path(__file__).parents[2]}")
    monkeypatch.setenv("URL", "http://h/S3CRETpath")
    (tmp_path / "state").mkdir()
    path = tmp_path / "shipper.yaml"
    path.write_text(CONFIG.format(top=tmp_path))
    return path


def written(path: Path, error: BaseException) -> str:
    crash = Crash(error, ["run", "--config", str(path)]).write()
    assert crash is not None
    return crash.read_text()


def raised(text: str) -> BaseException:
    secret = text  # a local variable, which a careless traceback would show
    with pytest.raises(RuntimeError) as found:
        _drive(secret)
    return found.value


def _drive(secret: str) -> None:
    raise RuntimeError(f"a driver quotes {secret}")


@pytest.mark.parametrize("umask", [0, 0o777])
def test_a_crash_file_has_the_configuration_without_its_secrets_and_is_private(config: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        crash = Crash(raised("S3CRETblock\nS3CRETsecondline"), ["run", "-c", str(config)]).write()
    finally:
        os.umask(before)
    assert crash is not None
    assert crash.parent == config.parent / "state"
    assert crash.stat().st_mode & 0o7777 == 0o600
    text = crash.read_text()
    assert SECRET not in text
    assert "11111111-2222" not in text
    for shown in (
        "db.internal",
        '"Content-Type": "application/json"',
        "tenant=one",
        "acme",
        "RuntimeError: a driver quotes",
        "in _drive",
    ):
        assert shown in text


@pytest.mark.parametrize(
    "quoted",
    [
        "S3CRETsalt",
        "S3CRETnextline",
        "S3CRETcookie",
        "'S3CRET\\'q\"uoted'",
        "S3CRET'q\\\"uoted",
        "S3CRET%27q%22uoted",
        "mysql://u:S3CRETelse@h/x",
        "GET /x?sig=S3CRETelse&a=1",
        "Cookie: a=S3CRETelse; b=S3CRETelse",
        "http://h/S3CRETpath",
        "S3CREThook",
        "S3CRETcamel",
        "S3CRETtwo",
        "S3CRETfirst",
        "S3CRETphrase",
        "InstrumentationKey=11111111-2222-3333-4444-555555555555",
    ],
)
def test_a_text_that_quotes_a_secret_is_masked_whatever_its_form(config: Path, quoted: str) -> None:
    crash = Crash(raised(quoted), ["run", f"--config={config}"])
    for text in (crash.message(), crash.trace(), written(config, raised(quoted))):
        assert SECRET not in text
        assert "11111111-2222" not in text
        assert MASK in text


@pytest.mark.parametrize(
    "spoiled",
    ["nonsense: [\n", "state_dir: 3\n", "\tx\n", "a: " + "{a: " * 800 + "1" + "}" * 800 + "\n"],
    ids=["broken YAML", "mistake", "tab", "deep"],
)
def test_of_a_file_that_cannot_be_loaded_nothing_is_shown(config: Path, spoiled: str) -> None:
    config.write_text(config.read_text().replace("state_dir", "x-s") + spoiled)
    text = written(config, raised("S3CRETblock"))
    assert SECRET not in text
    assert "db.internal" not in text
    assert "could not be loaded" in text
    assert "in _drive" in text  # where it happened is always told
    with pytest.raises(AssertionError):  # the test's own reading of it: the text would be there
        assert SECRET not in "".join(traceback.format_exception(raised("S3CRETblock")))


def test_a_command_that_has_no_configuration_tells_its_error_whole(tmp_path: Path) -> None:
    crash = Crash(raised("all is told"), ["run", "--config", str(tmp_path / "none.yaml")])
    assert crash.message() == "a driver quotes all is told"


@pytest.mark.parametrize("more", [(), ("-v",)])
def test_neither_the_terminal_nor_the_file_shows_what_a_driver_quotes(config: Path, more: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "shipper", "query", "--config", str(config), *more],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 70
    assert SECRET not in done.stdout + done.stderr
    assert "dXNlcjpwYXNz" not in done.stderr
    if more:
        assert "cannot log in with" in done.stderr
        return
    assert "this is a bug: RuntimeError: bug with ***" in done.stderr
    (crash,) = (config.parent / "state").glob("crash-*.txt")
    text = crash.read_text()
    assert SECRET not in text
    assert "cannot log in with" in text
