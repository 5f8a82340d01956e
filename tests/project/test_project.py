from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from shipper.telemetry.metrics import METRICS

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path for path in ROOT.rglob("*.md") if not {".venv", ".git", "node_modules"} & set(path.relative_to(ROOT).parts)
)
CODE = sorted(path for name in ("shipper", "sinks", "tests/support") for path in (ROOT / name).rglob("*.py"))
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_is_longer_than_600_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 600


def test_no_sink_uses_the_sqlite_of_the_state() -> None:
    """Two SQLite libraries in one process on one file undo each other's locks (docs/decisions/0011)."""
    found = [path for path in CODE if re.search(r"^\s*(import|from) sqlite3\b", path.read_text(), re.MULTILINE)]
    assert ROOT / "shipper/state/checkpoint.py" in found
    assert [path for path in found if {"sinks", "testing", "support"} & set(path.parts)] == []


@pytest.mark.parametrize("name", ["config", "systemd", "docs", "benchmarks", "tests"])
def test_what_is_no_package_has_no_init(name: str) -> None:
    assert [str(path) for path in (ROOT / name).rglob("__init__.py")] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_of_the_docs_resolves(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in LINK.findall(text):
        if re.match(r"[a-z]+://", target):
            continue
        name, _, anchor = target.partition("#")
        found = (page.parent / name).resolve() if name else page
        assert found.exists(), f"{page.relative_to(ROOT)} links to {target}"
        assert not anchor or anchor in anchors(found), f"{page.relative_to(ROOT)} links to {target}"


def test_every_page_is_reached_from_the_readme() -> None:
    seen: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in seen:
            continue
        seen.add(page)
        for target in LINK.findall(page.read_text()):
            found = (page.parent / target.partition("#")[0]).resolve()
            if found.suffix == ".md" and found.exists():
                waiting.append(found)
    assert {page for page in PAGES if "docs" in page.relative_to(ROOT).parts} <= seen


def test_the_readme_names_the_two_commands_and_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    assert "make demo" in text
    assert "make test" in text
    assert len(text.splitlines()) <= 200


def test_every_alert_rests_on_metrics_that_exist() -> None:
    known = {metric.name for metric in METRICS}
    for page in ("docs/how-to/operate.md", "docs/explanation/guarantees.md"):
        named = set(re.findall(r"\bshipper_[a-z_]+[a-z]\b", (ROOT / page).read_text()))
        assert named <= known


def test_make_without_arguments_lists_the_commands() -> None:
    done = subprocess.run(["make", "-C", str(ROOT), "--no-print-directory"], check=True, capture_output=True, text=True)
    for name in ("demo", "test", "check", "bench", "docs", "clean"):
        assert f"make {name}" in done.stdout


@pytest.mark.slow
def test_the_wheel_holds_what_it_should_and_runs_in_an_environment_of_its_own(tmp_path: Path) -> None:
    """Built, installed beside nothing of this tree, and the demo runs from another directory."""
    wheels = tmp_path / "wheels"
    pip = ["-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([sys.executable, *pip, "wheel", "--no-deps", "-w", str(wheels), str(ROOT)], check=True)
    (wheel,) = wheels.glob("shipper-*.whl")
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    subprocess.run([python, *pip, "install", str(wheel)], check=True)
    clean = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    code = "import shipper, sinks; print(shipper.__file__, sinks.__file__)"
    where = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path, env=clean)
    assert str(ROOT) not in where.stdout
    for typed in ("shipper/py.typed", "sinks/py.typed"):
        assert list(environment.glob(f"lib/python3*/site-packages/{typed}"))
    assert (environment / "share/man/man1/shipper.1").exists()
    done = subprocess.run(
        [environment / "bin" / "shipper", "demo", "--dir", str(tmp_path / "demo")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=clean,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "demo" / "logs.db").exists()
