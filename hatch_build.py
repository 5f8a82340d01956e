"""Builds `shipper.native` where there is a C compiler. Without one the package is pure Python, and says so.

One module needs one command: setuptools would be a second build system for it. What it obeys, from the environment:
SHIPPER_PURE=1 compiles nothing, SHIPPER_REQUIRE_COMPILED=1 makes an error of what else is told and gone on from, CC and
CFLAGS are the compiler and its last options.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PLACE = "shipper/native"


class CompileError(Exception):
    """Why there is no module: one line, and behind it what the compiler said."""


class Native(BuildHookInterface):  # type: ignore[type-arg] # any configuration of a builder
    """Puts the compiled module into the wheel, or beside its sources when the checkout itself is installed."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and tell the builder that its wheel is for one platform."""
        name = f"{PLACE}/_native{sysconfig.get_config_var('EXT_SUFFIX')}"
        beside = Path(self.root, name)
        if version == "editable":
            # Whatever comes of this build, the module of an earlier one is not its result.
            beside.unlink(missing_ok=True)
        if is_set("SHIPPER_PURE"):
            self.app.display_info("shipper: SHIPPER_PURE is set, so the pure Python form is built")
            return
        try:
            if version == "editable":
                compile_module(Path(self.root), beside, self.metadata.version)
                return
            # Gone when this hook is, which outlives the making of the wheel.
            self._directory = tempfile.TemporaryDirectory(prefix="shipper-build-")
            built = Path(self._directory.name, beside.name)
            compile_module(Path(self.root), built, self.metadata.version)
        except CompileError as error:
            if is_set("SHIPPER_REQUIRE_COMPILED"):
                raise
            why = str(error).splitlines()[0]
            self.app.display_warning(
                f"shipper: the pure Python form is built, which does the same and is slower: {why}. For the compiled form "
                "install a C compiler and Python's headers (Debian: gcc python3-dev) and build again."
            )
            return
        build_data["force_include"][str(built)] = name
        build_data["pure_python"] = False
        build_data["infer_tag"] = True


def is_set(variable: str) -> bool:
    """Tell whether a switch in the environment is on."""
    return os.environ.get(variable, "") not in {"", "0"}


def compile_module(root: Path, built: Path, version: str) -> None:
    """Make ``built`` of the sources, with the compiler and the options that this Python was made with."""
    compiler = shlex.split(os.environ.get("CC") or _told("CC"))
    headers = sysconfig.get_path("include")
    if not compiler:
        raise CompileError("this Python names no C compiler")
    if not Path(headers, "Python.h").exists():
        raise CompileError(f"Python's headers are not installed: there is no {headers}/Python.h")
    # LDSHARED begins with the compiler, which CC may have replaced.
    linking = shlex.split(_told("LDSHARED"))
    while linking and not linking[0].startswith("-"):
        del linking[0]
    # A process may have the old file mapped: it is replaced, never written to.
    new = built.with_name(f"{built.name}.{os.getpid()}")
    command = [
        *compiler,
        *shlex.split(_told("CFLAGS")),
        *shlex.split(_told("CCSHARED")),
        # Before ours: Debian's have -g and -O2 among them, and of two the last counts.
        *linking,
        "-O2",
        "-g0",
        "-fvisibility=hidden",
        *shlex.split(os.environ.get("CFLAGS", "")),
        f'-DSHIPPER_VERSION="{version}"',
        f"-I{headers}",
        *sorted(str(path.relative_to(root)) for path in (root / PLACE).glob("*.c")),
        "-o",
        str(new),
    ]
    try:
        done = subprocess.run(
            command,
            cwd=root,
            env=os.environ | {"LC_ALL": "C"},
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode != 0:
            said = f"{done.stdout}{done.stderr}".strip()
            first = next((line for line in said.splitlines() if "error" in line), "it said nothing of an error")
            raise CompileError(f"{compiler[0]} failed: {first}\n{shlex.join(command)}\n{said}")
        new.replace(built)
    except OSError as error:
        raise CompileError(f"{error.filename}: {error.strerror}") from error
    finally:
        new.unlink(missing_ok=True)


def _told(name: str) -> str:
    """Give a variable of the build of this Python; other implementations lack them."""
    return sysconfig.get_config_var(name) or ""
