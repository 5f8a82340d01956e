"""A sink of a third party, registered by its entry point, that can be read back and refuses what begins with ``bad``."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PLUGIN = """
from pathlib import Path
import msgspec
from shipper.errors import PermanentError
from shipper.record import Record
from shipper.sink import Sink, SinkConfig
from shipper.reader import Reader

class RowsConfig(SinkConfig, frozen=True, kw_only=True):
    path: str

class Rows(Sink):
    config = RowsConfig
    def __init__(self, config): self._path = Path(config.path)
    def open(self): pass
    def close(self): pass
    def write(self, batch):
        if any(raw.startswith("bad") for raw in batch.raws) and not self._path.with_suffix(".mended").exists():
            raise PermanentError("value too bad", code="1366")
        with self._path.open("ab") as file:
            file.writelines(msgspec.json.encode(record) + b"\\n" for record in batch.records())

class RowsReader(Reader):
    def __init__(self, config): self._path = Path(config.path)
    def close(self): pass
    def read(self, query):
        rows = [msgspec.json.decode(line, type=Record) for line in self._path.read_bytes().splitlines()]
        yield from sorted(rows, key=lambda row: (row.time_ns, row.id), reverse=not query.oldest_first)

SINK, READER = Rows, RowsReader
"""


@pytest.fixture
def rows_sink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install the plug-in, write ``shipper.yaml`` for it; gives the directory of both."""
    plugin = tmp_path / "plugin"
    info = plugin / "rows_sink-1.dist-info"
    info.mkdir(parents=True)
    (plugin / "rows_sink.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rows-sink\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[shipper.sinks]\nrows = rows_sink\n")
    monkeypatch.setenv("PYTHONPATH", f"{plugin}{os.pathsep}{Path(__file__).parents[2]}")
    (tmp_path / "shipper.yaml").write_text(
        f"""
sources: {{app: {{type: file, include: [{tmp_path}/app.log]}}}}
sinks:
  rows: {{type: rows, path: {tmp_path}/rows.jsonl}}
  out: {{type: stdout}}
active: rows
state_dir: {tmp_path}/state
"""
    )
    return tmp_path


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run ``python -m shipper`` with these arguments; gives the finished process."""

    def start(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "shipper", *map(str, arguments)],
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=60,
            check=False,
            env={**os.environ, "SHIPPER_CONFIG": str(tmp_path / "shipper.yaml"), **environment},
        )

    return start
