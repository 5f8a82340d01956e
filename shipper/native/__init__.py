"""Compiled forms of the loops that cost most, where they could be built.

Every function of theirs has a twin in Python, which decides what is right; see ``native.h``.
"""

from __future__ import annotations

import os
from importlib import import_module
from types import ModuleType
from typing import Final

from shipper import __version__


def _load() -> ModuleType | None:
    if os.environ.get("SHIPPER_PURE"):
        return None
    try:
        module = import_module("shipper.native._native")
    except ImportError:
        return None
    # One that an older checkout has left behind would do what this version does no more.
    return module if __version__ == module.VERSION else None


#: The extension module; ``None`` where none was built, or SHIPPER_PURE is set.
compiled: Final[ModuleType | None] = _load()
