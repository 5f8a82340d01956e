"""The configurations of the phases: one text, and the line that says ``active``."""

from __future__ import annotations

from difflib import ndiff
from pathlib import Path

import pytest

from shipper import registry
from shipper.config import loader

CONFIG = Path(__file__).parents[2] / "config"
FILES = sorted(CONFIG.glob("*.yaml"))
PHASES = {
    "phase1-mysql": "mysql",
    "phase2-loki": "loki",
    "phase3-cloudwatch": "cloudwatch",
    "phase3-azure": "azure",
    "elk": "elasticsearch",
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_phase_loads_and_uses_its_sink(path: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    names = ("LOGS_DB_PASSWORD_FILE", "APPLICATIONINSIGHTS_CONNECTION_STRING_FILE", "ELASTICSEARCH_PASSWORD_FILE")
    environ = dict.fromkeys(names, str(secret))
    config = loader.load(path, environ)
    assert config.active == (PHASES.get(path.stem, "local"),)


def test_the_first_file_loads_without_any_secret() -> None:
    assert loader.load(CONFIG / "shipper.yaml", {}).active == ("local",)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_phase_differs_by_the_active_line_alone(path: Path) -> None:
    lines = ndiff((CONFIG / "shipper.yaml").read_text().splitlines(), path.read_text().splitlines())
    changed = [line for line in lines if line.startswith(("- ", "+ "))]
    assert changed == ([] if path.stem == "shipper" else ["- active: local", f"+ active: {PHASES[path.stem]}"])


def test_every_phase_has_its_file_and_its_sink() -> None:
    assert {path.stem for path in FILES} == {"shipper", *PHASES}
    sinks = loader.load(CONFIG / "shipper.yaml", {}).sinks
    assert set(PHASES.values()) <= set(sinks)
    assert all(section.type in registry.names(registry.SINKS) for section in sinks.values())
