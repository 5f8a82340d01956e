"""What ships, and what stays here."""

from __future__ import annotations

import ast
import zipfile
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUPPORT = ROOT / "tests" / "support"
KIT = {
    "__init__", "batches", "chaos", "clock", "fault_contract", "filesystem", "hostile", "http_server", "positions", "proxy", "rig",
    "sink_contract", "source_contract",
}  # fmt: skip


def imported(path: Path, package: str) -> set[str]:
    """The modules of a package that a file imports anywhere in it, for types alone too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} imports relatively"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
            found.add(node.module)
    prefix = f"{package}."
    return {name.removeprefix(prefix).partition(".")[0] for name in found if name.startswith(prefix)}


def test_the_wheel_has_the_kit_of_authors_and_nothing_of_our_own_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    kit = {name for name in names if name.startswith("shipper/testing/")}
    assert kit == {f"shipper/testing/{name}.py" for name in KIT}
    version = wheel.name.split("-")[1]
    places = {f"shipper-{version}.dist-info", f"shipper-{version}.data", "shipper", "sinks"}
    assert {name.partition("/")[0] for name in names} == places
    ours = {path.name for path in (ROOT / "tests").rglob("*.py")} - {"__init__.py"}
    both = {"daemon.py"}  # the daemon itself, and the one that tests drive
    assert {name for name in names if Path(name).name in ours - both} == set()
    assert [name for name in names if Path(name).name.endswith(("_server.py", "_engine.py"))] == [
        "shipper/testing/http_server.py"  # the base of stand-ins, which the contract for HTTP sinks scripts
    ]


@pytest.mark.parametrize("path", sorted((ROOT / "shipper" / "testing").glob("*.py")), ids=lambda path: path.stem)
def test_the_kit_stands_without_our_support(path: Path) -> None:
    text = path.read_text()
    assert imported(path, "support") == set()
    assert "import support" not in text
    assert imported(path, "sinks") == set()


def test_the_modules_of_support_import_each_other_in_no_circle() -> None:
    known = {path.stem for path in SUPPORT.glob("*.py")}
    graph = {name: imported(SUPPORT / f"{name}.py", "support") & known for name in known}
    assert graph["elasticsearch_search"] == {"elasticsearch_cluster", "elasticsearch_index"}, "the graph is not empty"
    assert set(TopologicalSorter(graph).static_order()) == known


def test_every_module_of_support_is_used() -> None:
    files = [path for name in ("tests", "benchmarks") for path in (ROOT / name).rglob("*.py")]
    used = {name for path in files for name in imported(path, "support")}
    assert {path.stem for path in SUPPORT.glob("*.py")} <= used
