"""Compiled forms of the loops that cost most, where they could be built and fit this code.

Every function of theirs has a twin in Python, which decides what is right; see ``native.h``. One that gives less than 3 %
of every job is not kept. What a whole job (`shipper run --once`) takes more CPU without each, in percent, as
``benchmarks/native.py`` tells it (2026-11-30, Python 3.11, on one processor; the machine was busy, so those with a tilde
are good to a third, the others to a tenth):

====================  =======  ======  =======  ====  ====================================================
without               nothing  SQLite  MariaDB  Loki  other sinks
====================  =======  ======  =======  ====  ====================================================
`docker_lines`            ~61     ~37      ~14   ~36
the hash in it            ~15     ~10       ~2    ~9  XXH3 by the package ``xxhash``, a call a line
`parse`                   ~65     ~35      ~52
`levels`                                         ~34
`make_ids`                        6.0      8.2  14.7  OTLP 10.3, Elasticsearch 9.0, CloudWatch 12.1, Azure 7.7
`render`                          9.2     23.3  28.2  Elasticsearch 32.6, CloudWatch 39.7, Azure 46.6
`divide`                           ~8      ~28
`span`                            0.5      0.4   3.6  Elasticsearch 1.5, CloudWatch 1.8, Azure 0.7
`lengths`                                  2.9   3.3
`pick`                            1.5      2.3  ~4.7  Loki by samples of whole runs; timed call by call it is 1.9
`wide`                                                Azure 6.1
`flattened_suspects`                                  Elasticsearch 19.0
`otlp_records`                                        OTLP ~154
`keep_memory`             ~13      ~-8      ~5    ~9
====================  =======  ======  =======  ====  ====================================================
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
