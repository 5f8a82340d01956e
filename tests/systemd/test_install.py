"""``make install`` and ``make uninstall`` into a directory, as somebody who builds a package would."""

from __future__ import annotations

import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: ``python -m venv DIR`` copies it to DIR/bin/python.
PYTHON = """#!/bin/sh
case "$1 $2" in
"-m venv")
    mkdir -p "$3/bin" "$3/lib" && cp "$0" "$3/bin/python"
    echo "command = venv $3" >"$3/pyvenv.cfg";;
"-m pip")
    echo "$@"
    echo "#!$0" >"${0%/*}/shipper";;
"-m compileall" | "-m shipper") echo "$@";;
esac
"""
Make = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["make", "-C", str(ROOT), "--no-print-directory", f"DESTDIR={tmp_path}", *arguments],
            check=check, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60,
        )  # fmt: skip

    return make


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir() or path.is_symlink())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stands in for Python, venv and pip, which the tests of the service use in earnest: makes what they would."""
    path = tmp_path_factory.mktemp("python") / "python"
    path.write_text(PYTHON)
    path.chmod(0o755)
    return path


def test_a_package_holds_no_word_of_where_it_was_made_and_uninstall_takes_all_of_it(
    make: Make, tmp_path: Path, python: Path
) -> None:
    made = make("install", "PREFIX=/usr", f"PYTHON={python}", "EXTRAS=mysql,cloudwatch").stdout
    program = tmp_path / "usr/lib/shipper"
    assert f"{ROOT}[mysql,cloudwatch]" in made
    assert "-m shipper --version" in made
    assert f"compileall -q -s {program}.new -p /usr/lib/shipper {program}.new/lib" in made
    assert (tmp_path / "usr/bin/shipper").readlink() == Path("../lib/shipper/bin/shipper")
    assert (tmp_path / "usr/bin/shipper").read_text() == "#!/usr/lib/shipper/bin/python\n"
    assert (program / "pyvenv.cfg").read_text() == "command = venv /usr/lib/shipper\n"
    unit = (tmp_path / "usr/lib/systemd/system/shipper.service").read_text()
    assert "ExecStart=/usr/bin/shipper run" in unit
    assert "ExecReload=/usr/bin/shipper check" in unit
    assert "/usr/local" not in unit
    assert mode(tmp_path / "etc/shipper/credentials") == 0o700
    config = tmp_path / "etc/shipper/shipper.yaml"
    assert config.read_text() == (ROOT / "config/shipper.yaml").read_text()

    config.write_text("mine\n")
    make("install", "PREFIX=/usr", f"PYTHON={python}")
    assert config.read_text() == "mine\n"
    make("uninstall", "PREFIX=/usr")
    assert files(tmp_path) == ["etc/shipper/shipper.yaml"], "what was changed since stays"


def test_another_prefix_has_its_unit_where_systemd_looks(make: Make, tmp_path: Path, python: Path) -> None:
    make("install", "PREFIX=/opt/x", f"PYTHON={python}")
    assert "ExecStart=/opt/x/bin/shipper run" in (tmp_path / "etc/systemd/system/shipper.service").read_text()
    make("uninstall", "PREFIX=/opt/x")
    assert files(tmp_path) == []
    assert not (tmp_path / "opt/x").exists()


def test_an_upgrade_that_fails_leaves_what_was_there(make: Make, tmp_path: Path, python: Path) -> None:
    make("install", f"PYTHON={python}")
    before = files(tmp_path)
    python.write_text(python.read_text().replace('"-m pip")', '"-m pip") exit 1;;\n"-m nothing")'))
    assert make("install", f"PYTHON={python}", check=False).returncode != 0
    assert files(tmp_path) == before


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
