"""The check of the program itself: compiled, or pure Python."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shipper.doctor.result import CheckResult, ok, warn
from shipper.native import CHOSEN

if TYPE_CHECKING:
    from shipper.doctor.host import Host

_FIX = (
    "install a C compiler and Python's headers (Debian: gcc python3-dev), then install shipper anew "
    "(pip install -v --force-reinstall --no-deps . tells what fails); or set SHIPPER_PURE=1, and it stays as it is"
)


def result(host: Host) -> CheckResult:
    """Tell which form this installation has. Pure Python costs time alone, and whoever chose it needs no advice."""
    if not host.why_pure:
        return ok("D05", "compiled")
    if host.why_pure == CHOSEN:
        return ok("D05", f"pure Python: {CHOSEN}")
    return warn("D05", f"pure Python, which does the same and is slower: {host.why_pure}", _FIX)
