"""Stand-ins as processes of their own, for what must not share an interpreter with them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: Where `support` is found; a process that we start does not inherit what pytest added to its path.
_TESTS = str(Path(__file__).resolve().parents[1])


def start_module(name: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start ``python -m support.<name>``; its output is a pipe."""
    path = [_TESTS, *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-m", f"support.{name}", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        **options,
    )


def first_line(process: subprocess.Popen[str]) -> str:
    """Wait for the first line of its output, which of a stand-in is its URL; empty if it ended without one."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


@contextmanager
def serving(name: str, *arguments: str) -> Iterator[str]:
    """Run a stand-in; gives its URL."""
    with start_module(name, *arguments) as process:
        try:
            yield first_line(process)
        finally:
            process.terminate()
