"""Whatever a configuration file holds, a running daemon runs on, and the same file at the start is a mistake, no bug."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import shipper.daemon.daemon as daemon_module
from shipper.config.loader import load
from shipper.daemon.parts import Parts
from shipper.daemon.pipeline import Pipeline
from support.daemon import Daemon, eventually


def config(tmp_path: Path, **more: object) -> dict[str, object]:
    return {
        "sources": {"app": {"type": "file", "include": [str(tmp_path / "app.log")]}},
        "sinks": {"hole": {"type": "blackhole"}},
        "state_dir": str(tmp_path / "state"),
        **more,
    }


BOMB = 'x-0: &a0 ["lol","lol","lol","lol","lol","lol","lol","lol","lol"]\n' + "".join(
    f"x-{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)
#: What is appended to a good file, or, as bytes, put in its place.
HOSTILE: dict[str, str | bytes] = {
    "NUL in a path": 'transforms: {m: {type: redact, rules: [email], mode: hash, salt_file: "/tmp/\\0x"}}\n',
    "deep flow mappings": "transforms: " + "{a: " * 800 + "1" + "}" * 800 + "\n",
    "alias bomb": BOMB,
    "object of Python": "x-a: !!python/object/apply:os._exit [1]\n",
    "huge number": "shutdown_timeout: 0x" + "f" * 9_000 + "\n",
    "deep condition": "routes: [{to: hole, match: '" + "(" * 9_000 + "'}]\n",
    "no text": b"\xff\xfe\x00",
    "empty": b"",
}


def test_no_reload_ends_a_running_daemon_or_makes_it_large(tmp_path: Path) -> None:
    with Daemon(tmp_path, config(tmp_path)) as daemon:
        good = daemon.path.read_bytes()
        daemon.wait_ready()
        before = daemon.rss()
        for count, (name, more) in enumerate(HOSTILE.items(), 1):
            daemon.path.write_bytes(more if isinstance(more, bytes) else good + more.encode())
            daemon.signal(signal.SIGHUP)
            assert eventually(lambda n=count: daemon.metric("shipper_reloads_total", result="refused") == n), name
            assert daemon.running, name
            assert daemon.metric("shipper_config_valid") == 0, name
            assert daemon.get("/healthz")[0] == 200, name
        assert daemon.peak_rss() - before < 60 << 20
        with (tmp_path / "app.log").open("a") as file:
            file.write("one\n")
        assert eventually(lambda: daemon.metric("shipper_sink_lines_acked_total", sink="hole") == 1)
        assert "Traceback" not in daemon.log
        daemon.path.write_bytes(good + b"shutdown_timeout: 7s\n")
        daemon.signal(signal.SIGHUP)
        assert eventually(lambda: daemon.metric("shipper_config_valid") == 1)
        assert daemon.term() == 0


@pytest.mark.parametrize("name", HOSTILE)
def test_the_same_file_at_the_start_exits_with_78_and_is_no_bug(name: str, tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, config(tmp_path))
    more = HOSTILE[name]
    daemon.path.write_bytes(more if isinstance(more, bytes) else daemon.path.read_bytes() + more.encode())
    daemon.start(wait=False)
    assert daemon.wait() == 78
    assert "E-CFG-" in daemon.log
    assert "bug" not in daemon.log
    assert not list(tmp_path.glob("**/crash-*"))


RUDE = '''
from pathlib import Path
from shipper.errors import SinkError
from shipper.sink import Sink, SinkConfig


class RudeConfig(SinkConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A sink that breaks its contract where it is told to."""

    misdeed: str = ""
    api_token: str = ""


class Rude(Sink):
    config = RudeConfig

    def __init__(self, config):
        self._config = config
        if config.misdeed == "build":
            raise AttributeError(f"no attribute for {config.api_token}")

    def open(self):
        if self._config.misdeed == "open":
            raise MemoryError(f"no memory for {self._config.api_token}")

    def write(self, batch):
        if self._config.misdeed == "write":
            raise RecursionError(f"too deep for {self._config.api_token}")

    def close(self): ...
'''


@pytest.fixture
def rude(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    info = tmp_path / "plugin" / "rude-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rude\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[shipper.sinks]\nrude = shipper_rude_sink:Rude\n")
    (tmp_path / "plugin" / "shipper_rude_sink.py").write_text(RUDE)
    monkeypatch.syspath_prepend(str(tmp_path / "plugin"))
    monkeypatch.delitem(sys.modules, "shipper_rude_sink", raising=False)
    return {"PYTHONPATH": f"{tmp_path / 'plugin'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}


@pytest.mark.parametrize("misdeed", ["build", "open", "write"])
def test_a_sink_that_breaks_its_contract_refuses_the_reload_and_its_secret_is_not_told(
    misdeed: str, tmp_path: Path, rude: dict[str, str]
) -> None:
    with Daemon(tmp_path, config(tmp_path), environ=rude) as daemon:
        section = {"type": "rude", "misdeed": misdeed, "api_token": "S3CRETtoken"}
        daemon.reload(config(tmp_path, sinks={"new": section}))
        assert eventually(lambda: daemon.metric("shipper_reloads_total", result="refused") == 1)
        assert daemon.running
        (tmp_path / "app.log").write_text("one\n")
        assert eventually(lambda: daemon.metric("shipper_sink_lines_acked_total", sink="hole") == 1)
        for text in (
            daemon.log,
            daemon.get("/status")[1],
            daemon.command("status").stdout,
            daemon.command("doctor").stdout,
        ):
            assert "S3CRET" not in text
        assert daemon.term() == 0


def test_a_sink_that_cannot_be_built_at_the_start_exits_with_78(tmp_path: Path, rude: dict[str, str]) -> None:
    section = {"type": "rude", "misdeed": "build", "api_token": "S3CRETtoken"}
    daemon = Daemon(tmp_path, config(tmp_path, sinks={"new": section}), environ=rude)
    daemon.start(wait=False)
    assert daemon.wait() == 78
    assert "this configuration cannot be used: AttributeError: no attribute for ***" in daemon.log


@pytest.mark.parametrize("fault", [RecursionError("too deep"), MemoryError(), ValueError("embedded null byte")])
def test_a_pipeline_that_cannot_start_for_whatever_reason_leaves_the_old_one_running(
    fault: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "shipper.yaml"
    path.write_text(yaml.safe_dump(config(tmp_path)))
    running = daemon_module.Daemon(load(path, {}))
    pipeline = running._start(Parts.build(load(path, {})))
    starts: list[Parts] = []

    def refusing(parts: Parts, **options: Any) -> Pipeline:
        starts.append(parts)
        if len(starts) == 1:
            raise fault
        return Pipeline(parts, **options)

    monkeypatch.setattr(daemon_module, "Pipeline", refusing)
    running._parts = Parts.build(load(path, {}))
    kept = running._reload(pipeline)
    try:
        assert len(starts) == 2
        assert running._metrics.value("shipper_reloads_total", result="refused") == 1
        assert running._metrics.value("shipper_config_valid") == 0
    finally:
        kept.stop(5)
