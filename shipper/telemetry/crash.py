"""What is kept of a bug: a file with the traceback and the configuration without its secrets."""

from __future__ import annotations

import os
import platform
import re
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from shipper import __version__
from shipper.native import FORM

_SECRET = re.compile(r"(?im)^(\s*[\w.-]*(?:pass|secret|token|key|credential|dsn|auth)[\w.-]*\s*:[ \t]*)(?!\s*$).+$")
_INLINE = re.compile(
    r"(?i)(\b[\w.-]*(?:pass|secret|token|key|credential|dsn|auth)[\w.-]*\s*:[ \t]*)(?:\"[^\"]*\"|'[^']*'|[^,}\s]+)"
)
_LOGIN = re.compile(r"//[^/\s@\"']+@")


def redact(text: str) -> str:
    """Mask what may be a secret in the text of a configuration; rather too much than too little."""
    return _LOGIN.sub("//***@", _INLINE.sub(r"\1***", _SECRET.sub(r"\1***", text)))


def write_crash_file(error: BaseException, arguments: Sequence[str]) -> Path | None:
    """Write ``crash-<time>-<pid>.txt``, mode 0600, in the first directory that takes it; ``None`` if none does."""
    config = _config_text(arguments)
    parts = [
        f"shipper {__version__} ({FORM}), Python {platform.python_version()}, {platform.platform()}",
        f"arguments: {redact(' '.join(arguments))}",
        redact("".join(traceback.format_exception(error))),
        f"configuration, secrets masked:\n{redact(config)}" if config else "no configuration was read",
    ]
    name = f"crash-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{os.getpid()}.txt"
    for directory in _directories(config):
        try:
            file = os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError:
            continue
        with open(file, "w", encoding="utf-8", errors="backslashreplace") as crash:  # noqa: PTH123 - a descriptor
            crash.write("\n\n".join(parts) + "\n")
        return directory / name
    return None


def _config_text(arguments: Sequence[str]) -> str:
    for place, argument in enumerate(arguments):
        flag, _, value = argument.partition("=")
        if flag in {"--config", "-c"}:
            path = value or (arguments[place + 1] if place + 1 < len(arguments) else "")
            try:
                return Path(path).read_text(encoding="utf-8", errors="replace")
            except OSError:
                return ""
    return ""


def _directories(config: str) -> Iterator[Path]:
    named = re.search(r"(?m)^state_dir:\s*[\"']?([^\s\"'#]+)", config)
    if named:
        yield Path(named[1])
    if given := os.environ.get("STATE_DIRECTORY"):
        yield Path(given.split(":", maxsplit=1)[0])
    yield Path("/var/lib/shipper")
    yield Path(tempfile.gettempdir())
