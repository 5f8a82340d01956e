"""What is made from the config types: examples that load, the schema, the reference pages; and the check command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shipper import registry
from shipper.config.convert import description
from shipper.config.loader import load
from shipper.config.schema import schema
from shipper.config.types import Config, HttpConfig, LogConfig, RouteConfig
from shipper.docgen import reference

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "config").rglob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_example_loads(path: Path, tmp_path: Path) -> None:
    """With nothing in the environment but the places of secrets."""
    secret = tmp_path / "password"
    secret.write_text("secret")
    names = ("LOGS_DB_PASSWORD_FILE", "APPLICATIONINSIGHTS_CONNECTION_STRING_FILE", "ELASTICSEARCH_PASSWORD_FILE")
    assert load(path, dict.fromkeys(names, str(secret))).active


def test_every_built_in_sink_has_an_example() -> None:
    assert set(registry.names(registry.SINKS, plugins=False)) <= {path.stem for path in EXAMPLES}


def sections() -> list[type[Any]]:
    kinds = (registry.SOURCES, registry.SINKS, registry.TRANSFORMS)
    found = [registry.load(kind, name).config for kind in kinds for name in registry.names(kind, plugins=False)]
    return [*found, RouteConfig, HttpConfig, LogConfig, Config]


def test_every_field_says_what_it_does() -> None:
    silent = [
        f"{cls.__name__}.{field.name}"
        for cls in sections()
        for field in msgspec.structs.fields(cls)
        if not description(field.type) and (cls, field.name) != (Config, "path")
    ]
    assert silent == []


def references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if "$ref" in node else []
        return own + [found for child in node.values() for found in references(child)]
    return [found for child in node for found in references(child)] if isinstance(node, list) else []


def test_the_schema_is_json_and_whole() -> None:
    made = json.loads(json.dumps(schema()))
    assert all(name.removeprefix("#/$defs/") in made["$defs"] for name in references(made))
    assert made["additionalProperties"] is False
    assert set(made["properties"]) == {field.name for field in msgspec.structs.fields(Config)} - {"path"}
    assert "vault" in made["properties"]["sinks"]["additionalProperties"]["properties"]["type"]["enum"]


def test_the_schema_lets_a_variable_stand_for_a_number() -> None:
    port = schema()["$defs"]["sink.vault.VaultConfig"]["properties"]["port"]
    assert {"type": "string", "pattern": r"\$\{"} in port["anyOf"]
    assert {"type": "integer", "minimum": 1, "maximum": 65535} in port["anyOf"]


def test_the_schema_lists_choices() -> None:
    assert schema()["$defs"]["LogConfig"]["properties"]["level"]["enum"] == ["debug", "info", "warn", "error"]


def test_the_reference_is_in_step_with_the_code() -> None:
    assert reference.write(ROOT / "docs/reference", check=True) == [], "run make docs"


def test_a_page_out_of_step_is_named_and_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reference.main([str(tmp_path)]) == 0
    (tmp_path / "metrics.md").write_text("old")
    assert reference.main([str(tmp_path), "--check"]) == 1
    assert "metrics.md is out of step" in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "metrics.md").read_text() == "old"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-m", "shipper", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environ)


def test_check_says_in_one_line_what_goes_where() -> None:
    path = ROOT / "config/examples/stdout.yaml"
    done = run("check", "--config", str(path))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{path}: fine: docker -> screen\n", "")
    assert run("check", "--quiet", "--config", str(path)).stdout == ""


def test_check_tells_every_problem_and_exits_with_78(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("sources: 1\nsinks: 2\nlog: {level: x}\n")
    done = run("check", "--config", str(path))
    assert (done.returncode, done.stdout) == (78, "")
    assert [line.split()[2] for line in done.stderr.splitlines()] == [f"{path}:1:10", f"{path}:2:8", f"{path}:3:14"]


def test_the_schema_command_prints_json() -> None:
    assert json.loads(run("schema").stdout)["title"] == "Configuration of shipper"
