"""The wheel as it would be published, in its pure form, which takes a second to build."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(directory)],
        check=True,
        capture_output=True,
        cwd=ROOT,
        env=os.environ | {"SHIPPER_PURE": "1"},
    )
    (built,) = directory.glob("shipper-*.whl")
    return built
