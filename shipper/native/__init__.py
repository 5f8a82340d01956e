"""Compiled forms of the loops that cost most, where they could be built and fit this code.

Every function of theirs has a twin in Python, which decides what is right; see ``native.h``.
"""

from __future__ import annotations

import os
from importlib import import_module
from types import ModuleType
from typing import Final

from shipper import __version__

#: The reason for the pure form that is the user's own.
CHOSEN: Final = "SHIPPER_PURE is set"


def _load() -> tuple[ModuleType | None, str]:
    if os.environ.get("SHIPPER_PURE", "") not in {"", "0"}:
        return None, CHOSEN
    try:
        module = import_module("shipper.native._native")
    except ModuleNotFoundError:
        return None, "the compiled module is not there"
    except ImportError as error:
        return None, f"the compiled module cannot be loaded: {error}"
    # One that an older checkout has left behind would do what this version does no more.
    if __version__ != module.VERSION:
        return None, f"the compiled module belongs to shipper {module.VERSION}"
    if _is_older_than_its_source(str(module.__file__)):
        return None, "the compiled module is older than its source"
    return module, ""


def _is_older_than_its_source(module: str) -> bool:
    """Tell whether a C file has changed since; they lie beside the module only where somebody works on them."""
    built = os.stat(module).st_mtime_ns  # noqa: PTH116 - this is in the way of every start
    with os.scandir(os.path.dirname(module)) as entries:  # noqa: PTH120
        return any(entry.stat().st_mtime_ns > built for entry in entries if entry.name.endswith((".c", ".h")))


_loaded = _load()
#: The extension module; ``None`` where none was built or fits, or SHIPPER_PURE is set.
compiled: Final[ModuleType | None] = _loaded[0]
#: Why there is none; empty where there is.
WHY_PURE: Final = _loaded[1]
#: Which form runs, for people.
FORM: Final = f"pure Python: {WHY_PURE}" if compiled is None else "compiled"
