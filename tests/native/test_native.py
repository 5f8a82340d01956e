"""Which form runs: the compiled module where it fits this code, else the Python twins, with the reason."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shipper import __version__, native

#: A module in place of the compiled one, which need not be there: `of` is its version, None is no module at all.
_START = """
import sys, types
of, place = {of!r}, {place!r}
module = None
if of is not None:
    module = types.ModuleType("shipper.native._native")
    module.VERSION, module.__file__ = of, place
sys.modules["shipper.native._native"] = module
from shipper import native
from shipper.telemetry.metrics import Metrics
assert native.compiled is (None if native.WHY_PURE else module)
(form,) = [name for name in ("compiled", "pure") if Metrics().value("shipper_build_info", version={now!r}, form=name)]
print(form, "|", native.FORM)
"""


def form(place: Path, of: str | None = __version__, **environment: str) -> str:
    code = _START.format(of=of, place=str(place), now=__version__)
    clean = {name: value for name, value in os.environ.items() if name != "SHIPPER_PURE"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=clean | environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def module(tmp_path: Path) -> Path:
    """The file of a compiled module, beside its sources as in a checkout, and newer."""
    place = tmp_path / "_native.so"
    for path, when in ((tmp_path / "lines.c", 1_000), (tmp_path / "native.h", 1_000), (place, 2_000)):
        path.touch()
        os.utime(path, (when, when))
    return place


@pytest.mark.parametrize("off", ["", "0"])
def test_a_module_that_fits_is_used(module: Path, off: str) -> None:
    assert form(module, SHIPPER_PURE=off) == "compiled | compiled"


def test_a_module_without_its_sources_is_used(module: Path) -> None:
    """As installed from a wheel, where other files may be newer."""
    for name in ("lines.c", "native.h"):
        module.with_name(name).unlink()
    module.with_name("__init__.py").touch()
    assert form(module) == "compiled | compiled"


def test_the_environment_chooses_the_pure_form(module: Path) -> None:
    assert form(module, SHIPPER_PURE="1") == "pure | pure Python: SHIPPER_PURE is set"


def test_no_module_is_the_pure_form(module: Path) -> None:
    assert form(module, None) == "pure | pure Python: the compiled module is not there"


def test_a_module_of_another_version_is_left_alone(module: Path) -> None:
    assert form(module, "0.0.9") == "pure | pure Python: the compiled module belongs to shipper 0.0.9"


@pytest.mark.parametrize("name", ["lines.c", "native.h"])
def test_a_module_older_than_its_source_is_left_alone(module: Path, name: str) -> None:
    os.utime(module.with_name(name), (3_000, 3_000))
    assert form(module) == "pure | pure Python: the compiled module is older than its source"


def test_a_module_that_cannot_be_loaded_is_left_alone(tmp_path: Path) -> None:
    """Such as one that was built for another C library."""
    shutil.copy(native.__file__, tmp_path)
    (tmp_path / "_native.abi3.so").write_bytes(b"not ELF")
    code = (
        "import importlib.util as u, sys;"
        f"spec = u.spec_from_file_location('shipper.native', {str(tmp_path / '__init__.py')!r});"
        "sys.modules['shipper.native'] = module = u.module_from_spec(spec); spec.loader.exec_module(module);"
        "print(module.FORM)"
    )
    clean = {name: value for name, value in os.environ.items() if name != "SHIPPER_PURE"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=clean)
    assert done.stdout.startswith("pure Python: the compiled module cannot be loaded: ")
