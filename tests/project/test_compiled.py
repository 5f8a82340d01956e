"""Building: with a compiler a wheel for one platform, without one a pure wheel that does the same; and both run."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shipper import __version__, native

ROOT = Path(__file__).parents[2]
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
MODULE = f"shipper/native/_native{SUFFIX}"
SOURCES = [path for path in (ROOT / "shipper/native").iterdir() if path.suffix in {".c", ".h", ".py"}]
#: What the C files must compile without. The last three are how CPython's own tables are written.
WARNINGS = "-Wall -Wextra -Werror -Wno-unused-parameter -Wno-missing-field-initializers -Wno-cast-function-type"
Build = Callable[..., "subprocess.CompletedProcess[str]"]


def why_no_compiler() -> str:
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        return f"there is no {compiler}"
    headers = Path(sysconfig.get_path("include"), "Python.h")
    return "" if headers.exists() else f"there is no {headers}"


#: In CI a missing compiler would hide a fault.
needs_compiler = pytest.mark.skipif(bool(why_no_compiler()) and not os.environ.get("CI"), reason=why_no_compiler())


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The builder's variables, none of which is set."""
    for name in ("SHIPPER_PURE", "SHIPPER_REQUIRE_COMPILED", "CC", "CFLAGS"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what a wheel is made of, with a module beside its source that does not belong into one."""
    tree = tmp_path / "tree"
    ignore = shutil.ignore_patterns("__pycache__", "*.so", "testing")
    for name in ("shipper", "sinks", "man"):
        shutil.copytree(ROOT / name, tree / name, ignore=ignore)
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    (tree / "shipper/native/_native.cpython-399-stray.so").touch()
    return tree


@pytest.fixture
def build(tree: Path, environment: pytest.MonkeyPatch) -> Build:
    """Build a wheel into the tree's ``dist`` as pip does, without a network."""

    def build(**variables: str) -> subprocess.CompletedProcess[str]:
        options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
        return subprocess.run(
            [sys.executable, "-m", "pip", "wheel", "--verbose", *options, "-w", str(tree / "dist"), str(tree)],
            capture_output=True, text=True, check=False, cwd=tree, env=os.environ | variables,
        )  # fmt: skip

    return build


def unpacked(tree: Path) -> tuple[str, list[str]]:
    """Unpack the wheel; its name, and the compiled modules and sources in it."""
    (wheel,) = (tree / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tree / "unpacked")
        return wheel.name, [name for name in archive.namelist() if name.endswith((".so", ".c", ".h"))]


def runs_as(tree: Path) -> str:
    """Start what was unpacked, with this environment's packages but without its shipper."""
    code = f"import sys; sys.path.insert(0, {str(tree / 'unpacked')!r}); from shipper.__main__ import main; main()"
    code = code.replace("main()", "main(['--version'])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tree)
    return done.stdout.strip()


@needs_compiler
def test_with_a_compiler_the_wheel_holds_the_module_and_is_for_this_platform(tree: Path, build: Build) -> None:
    done = build()
    assert done.returncode == 0, done.stderr
    name, compiled = unpacked(tree)
    tag = "cp{}{}".format(*sys.version_info)
    assert re.fullmatch(rf"shipper-{re.escape(__version__)}-{tag}-{tag}\w*-linux_\w+\.whl", name)
    assert compiled == [MODULE]
    assert runs_as(tree) == f"shipper {__version__} (compiled)"
    assert not (tree / MODULE).exists(), "a wheel is built without a trace in the tree"


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"CC": "false"}, r"pure Python form is built.*: false failed: .*gcc python3-dev"),
        (
            {"CC": "/no/such/cc"},
            r"pure Python form is built.*: /no/such/cc: No such file or directory.*gcc python3-dev",
        ),
        ({"SHIPPER_PURE": "1"}, r"SHIPPER_PURE is set, so the pure Python form is built"),
    ],
)
def test_without_a_compiler_the_wheel_is_pure_says_so_and_works(
    tree: Path, build: Build, variables: dict[str, str], said: str
) -> None:
    done = build(**variables)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in (done.stdout + done.stderr).splitlines() if "the pure Python form" in line]
    assert re.search(said, line)
    name, compiled = unpacked(tree)
    assert name == f"shipper-{__version__}-py3-none-any.whl"
    assert compiled == []
    assert runs_as(tree) == f"shipper {__version__} (pure Python: the compiled module is not there)"


def test_a_compiled_form_that_is_required_and_fails_is_an_error(tree: Path, build: Build) -> None:
    done = build(CC="false", SHIPPER_REQUIRE_COMPILED="1")
    assert done.returncode != 0
    assert "false failed: " in done.stdout + done.stderr
    assert not list(tree.glob("dist/*.whl"))


def test_the_source_distribution_holds_what_the_module_is_built_of(tree: Path) -> None:
    code = "import sys; from hatchling.build import build_sdist; print(build_sdist(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(tree / "dist")], check=True, capture_output=True, cwd=tree)
    (archive,) = (tree / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as found:
        names = {name.partition("/")[2] for name in found.getnames()}
    assert names >= {"hatch_build.py", *(str(path.relative_to(ROOT)) for path in SOURCES)}
    assert not [name for name in names if name.endswith(".so")]


@pytest.fixture
def install_editable(tree: Path, environment: pytest.MonkeyPatch) -> Callable[[], None]:
    """Run the hook as an editable installation does."""
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    hatch_build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hatch_build)

    def install() -> None:
        metadata: Any = SimpleNamespace(version=__version__)
        data: dict[str, Any] = {"force_include": {}}
        hatch_build.Native(str(tree), {}, None, metadata, "", "wheel").initialize("editable", data)
        assert data == {"force_include": {}}

    return install


@needs_compiler
def test_an_editable_installation_has_its_module_beside_the_source(
    tree: Path, install_editable: Callable[[], None], environment: pytest.MonkeyPatch
) -> None:
    install_editable()
    first = (tree / MODULE).stat()
    assert first.st_mtime >= max(path.stat().st_mtime for path in tree.glob("shipper/native/*.[ch]"))
    # Replaced, not written to: a daemon that runs has the old one mapped.
    with (tree / MODULE).open("rb") as old:
        install_editable()
        assert os.fstat(old.fileno()).st_nlink == 0
    assert {path.name for path in (tree / "shipper/native").iterdir()} == {
        *(path.name for path in SOURCES), "_native.cpython-399-stray.so", Path(MODULE).name,
    }  # fmt: skip
    # One that is not wanted or fails leaves none behind, and with it no module that is of another source.
    environment.setenv("CC", "false")
    install_editable()
    assert not (tree / MODULE).exists()
    environment.delenv("CC")
    install_editable()
    environment.setenv("SHIPPER_PURE", "1")
    install_editable()
    assert not (tree / MODULE).exists()


@needs_compiler
def test_the_c_files_compile_without_a_warning(
    tree: Path, install_editable: Callable[[], None], environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("CFLAGS", WARNINGS)
    environment.setenv("SHIPPER_REQUIRE_COMPILED", "1")
    install_editable()
    # The check itself works: what nobody uses is warned of.
    source = tree / "shipper/native/module.c"
    source.write_text(source.read_text() + "\nstatic int unused(void) { return 1; }\n")
    with pytest.raises(Exception, match="unused"):
        install_editable()


def test_of_all_options_those_of_the_environment_come_last(
    tmp_path: Path, tree: Path, install_editable: Callable[[], None], environment: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text('#!/bin/sh\necho "$@" >"$0.said"\nexit 1\n')
    compiler.chmod(0o755)
    environment.setenv("CC", str(compiler))
    environment.setenv("CFLAGS", "-O0 -g3")
    # As Debian has it.
    environment.setitem(sysconfig.get_config_vars(), "LDSHARED", "some-gcc -shared -Wl,-O1 -g -O3")
    install_editable()
    said = compiler.with_name("cc.said").read_text().split()
    assert [option for option in said if re.match("-[Og]|-shared", option)][-7:] == [
        "-shared", "-g", "-O3", "-O2", "-g0", "-O0", "-g3",
    ]  # fmt: skip
    assert "some-gcc" not in said


@needs_compiler
def test_these_tests_run_on_the_compiled_form() -> None:
    """Unless the other one was asked for, they would say nothing of it otherwise."""
    assert native.WHY_PURE in {"", native.CHOSEN}


def test_one_module_alone_imports_the_compiled_one() -> None:
    """It is where what does not fit is left alone."""
    code = [path for name in ("shipper", "sinks") for path in (ROOT / name).rglob("*.py")]
    assert [path for path in code if "_native" in path.read_text()] == [ROOT / "shipper/native/__init__.py"]


def compiler(path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Prepare the machine for compiling, with a search path that knows no packages and no compiler."""
    for name in ("id", "sh"):
        found = shutil.which(name)
        assert found is not None
        (path / name).symlink_to(found)
    return subprocess.run(
        ["sh", str(ROOT / "tests/setup.sh"), "compiler", sys.executable],
        capture_output=True, text=True, check=False, env={"PATH": str(path), "CC": "false", **environment},
    )  # fmt: skip


def test_a_machine_that_gets_no_compiler_goes_on_and_says_so(tmp_path: Path) -> None:
    done = compiler(tmp_path)
    assert done.returncode == 0
    assert "missing on this machine: gcc libc6-dev" in done.stderr
    assert done.stderr.endswith("shipper is built in its pure Python form, which does the same and is slower\n")


def test_whoever_wants_the_pure_form_is_asked_for_no_compiler(tmp_path: Path) -> None:
    done = compiler(tmp_path, SHIPPER_PURE="1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_compiler
def test_a_machine_with_a_compiler_is_left_as_it_is(tmp_path: Path) -> None:
    done = compiler(tmp_path, CC=shutil.which(sysconfig.get_config_var("CC").split()[0]) or "", PATH=os.environ["PATH"])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def other_pythons(path: Path, *versions: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Ask for tests with other Pythons, of somebody who is not root, with a search path that has none."""
    (path / "id").write_text("#!/bin/sh\necho 1000\n")
    (path / "id").chmod(0o755)
    found = shutil.which("sh")
    assert found is not None
    (path / "sh").symlink_to(found)
    return subprocess.run(
        ["sh", str(ROOT / "tests/pythons.sh"), sys.executable, *versions],
        capture_output=True, text=True, check=False, env={"PATH": str(path), **environment}, cwd=ROOT,
    )  # fmt: skip


def test_a_python_that_is_not_to_be_had_is_passed_over_and_told(tmp_path: Path) -> None:
    done = other_pythons(tmp_path, "3.99")
    assert done.returncode == 0
    assert "there is no python3.99 here; as root on Debian, " in done.stderr
    assert done.stderr.endswith("tests/native is not run with Python 3.99: the lines above say why\n")


def test_in_ci_a_python_that_is_not_to_be_had_is_an_error(tmp_path: Path) -> None:
    done = other_pythons(tmp_path, "3.99", CI="true")
    assert done.returncode != 0
    assert "there is no python3.99 here" in done.stderr


def test_the_python_of_all_tests_needs_no_run_of_its_own(tmp_path: Path) -> None:
    done = other_pythons(tmp_path, "{}.{}".format(*sys.version_info), CI="true")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., str]:
    """What make would do where everything has been installed."""
    (tmp_path / "bin").mkdir()
    for name in ("bin/python", ".installed", ".installed-for-development"):
        (tmp_path / name).touch()

    def make(*arguments: str) -> str:
        command = ["make", "-C", str(ROOT), "--no-print-directory", "--dry-run", f"VENV={tmp_path}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    return make


@pytest.mark.parametrize("changed", ["shipper/native/lines.c", "shipper/native/native.h", "hatch_build.py"])
@pytest.mark.parametrize("target", ["demo", "test"])
def test_a_change_of_what_is_compiled_is_installed(make: Callable[..., str], target: str, changed: str) -> None:
    assert "--editable" not in make(target)
    assert "--editable" in make(target, "--what-if", changed)


def test_the_suite_ends_with_the_python_twins_unless_it_is_narrowed(make: Callable[..., str]) -> None:
    last = make("test").splitlines()[-1]
    assert last.startswith("SHIPPER_PURE=1 ")
    assert "tests/parse tests/sources tests/sinks" in last
    assert "SHIPPER_PURE" not in make("test", "ARGS=-k rotation")


def test_the_compiled_form_is_tested_with_the_oldest_and_the_newest_python(make: Callable[..., str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    told = [name.rpartition(" ")[2] for name in project["classifiers"] if "Python :: 3." in name]
    assert project["requires-python"] == f">={told[0]}"
    (line,) = [line for line in make("test").splitlines() if "tests/pythons.sh" in line]
    assert line.split()[-2:] == [told[0], told[-1]]
    assert "pythons.sh" not in make("test", "ARGS=-k rotation")
