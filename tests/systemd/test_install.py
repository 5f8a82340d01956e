"""``make install`` and ``make uninstall`` into a directory, as somebody who builds a package would."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shipper.testing.machine import TREE

ROOT = Path(__file__).parents[2]
Make = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make(*arguments: str, check: bool = True, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["make", "-C", str(ROOT), "--no-print-directory", f"DESTDIR={tmp_path}", *arguments],
            check=check, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=240,
            env={**os.environ, **environ},
        )  # fmt: skip

    return make


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir() or path.is_symlink())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.slow
def test_a_package_holds_no_word_of_where_it_was_made_and_uninstall_takes_all_of_it(
    make: Make, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    environ: dict[str, str] = {}
    if sys.version_info[:2] == (3, 11) and os.access(TREE.parent, os.W_OK):
        environ = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(request.getfixturevalue("wheels"))}
    make("install", "PREFIX=/usr", f"PYTHON={sys.executable}", "EXTRAS=", **environ)
    program = tmp_path / "usr/lib/shipper"
    assert (tmp_path / "usr/bin/shipper").is_symlink()
    assert (tmp_path / "usr/bin/shipper").resolve() == (program / "bin/shipper").resolve()
    assert (program / "bin/shipper").read_text().startswith("#!/usr/lib/shipper/bin/python")
    assert str(tmp_path) not in (program / "pyvenv.cfg").read_text()
    for path in (program / "bin").iterdir():
        assert path.is_symlink() or str(tmp_path) not in path.read_text(), path
    assert list(program.rglob("shipper/__pycache__/daemon.*.pyc")), "the service cannot write there"
    unit = (tmp_path / "usr/lib/systemd/system/shipper.service").read_text()
    assert "ExecStart=/usr/bin/shipper run" in unit
    assert "/usr/local" not in unit
    assert mode(tmp_path / "etc/shipper/credentials") == 0o700
    config = tmp_path / "etc/shipper/shipper.yaml"
    assert config.read_text() == (ROOT / "config/shipper.yaml").read_text()
    assert subprocess.run([program / "bin/python", "-m", "shipper", "--version"], check=False).returncode == 0

    config.write_text("mine\n")
    make("uninstall", "PREFIX=/usr")
    assert files(tmp_path) == ["etc/shipper/shipper.yaml"], "what was changed since stays"


def test_uninstall_takes_an_untouched_configuration_and_keeps_credentials(make: Make, tmp_path: Path) -> None:
    share, etc = tmp_path / "opt/x/share/shipper", tmp_path / "etc/shipper"
    share.mkdir(parents=True)
    (etc / "credentials").mkdir(parents=True)
    for directory in (share, etc):
        (directory / "shipper.yaml").write_text("as it came\n")
    secret = etc / "credentials/logs_db"
    secret.write_text("secret")
    done = make("uninstall", "PREFIX=/opt/x")
    assert files(tmp_path) == ["etc/shipper/credentials/logs_db"]
    assert str(etc) in done.stdout
    assert not (tmp_path / "opt/x").exists()
    secret.unlink()
    make("uninstall", "PREFIX=/opt/x")
    assert list((tmp_path / "etc").iterdir()) == []


def test_a_python_that_is_too_old_is_refused_and_nothing_is_changed(make: Make, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = make("install", f"PYTHON={old}", check=False)
    assert done.returncode != 0
    assert "name one: make install PYTHON=" in done.stderr
    assert files(tmp_path) == ["old"]
