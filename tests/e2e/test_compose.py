"""The compose files, as Docker's own program reads them: references, extends and variables, which no schema resolves."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"
FILES = sorted(path for path in DEPLOY.glob("compose.*.yaml") if path.name != "compose.common.yaml")
#: Put there by tests/setup.sh where Docker has none.
PROGRAM = Path("/var/cache/shipper-tests/docker-compose")


@pytest.fixture(scope="module")
def compose() -> list[str]:
    for command in (["docker", "compose"], [str(PROGRAM)]):
        try:
            subprocess.run([*command, "version"], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return command
    text = "docker compose is not installed; tests/setup.sh gets it"
    if os.environ.get("CI") or os.geteuid() == 0:
        pytest.fail(text)
    pytest.skip(text)


def test_there_is_a_file_for_every_phase() -> None:
    assert len(FILES) == 5


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_docker_compose_takes_the_file(compose: list[str], path: Path) -> None:
    done = subprocess.run(
        [*compose, "-f", str(path), "--profile", "app", "config", "--format", "json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert '"shipper"' in done.stdout


def test_a_mistake_is_refused(compose: list[str], tmp_path: Path) -> None:
    wrong = tmp_path / "compose.yaml"
    wrong.write_text("services: {app: {image: x, extends: {file: missing.yaml, service: app}}}\n")
    assert subprocess.run([*compose, "-f", str(wrong), "config"], capture_output=True, check=False).returncode != 0
