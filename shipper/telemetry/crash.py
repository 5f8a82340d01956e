"""What is kept of a bug: a file with the traceback and the configuration that was loaded, both without secrets.

The text of the configuration's file is never copied: what is secret in it only its types tell. Exceptions may quote
anything, a driver the whole of its connection string; so the secrets that the configuration holds are masked in their
texts, and where it cannot be loaded every value of the file is, since nobody can say which of them are secret.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shipper import __version__
from shipper.native import FORM
from shipper.secret import Masker, masked, secret_values
from shipper.visible import json_text, visible

if TYPE_CHECKING:
    from shipper.config.document import Node
    from shipper.config.types import Config

_DEFAULT = "/etc/shipper/shipper.yaml"
#: Exceptions of one chain that are told, and characters of the text of each.
_CHAIN, _TEXT = 10, 4_000
_MOST_CONFIG = 1 << 20


class Crash:
    """One error that ends a command, and what is known of the configuration that the command was given."""

    def __init__(self, error: BaseException, arguments: Sequence[str]) -> None:
        """Look for the configuration and its secrets. Never raises."""
        self._error = error
        self._arguments = arguments
        self._path = _config_path(arguments)
        self._config: Config | None = None
        self._state_dir: Path | None = None
        self._is_known = True
        self._fault = ""
        self._mask = Masker()
        try:
            self._look()
        except Exception as fault:  # noqa: BLE001 - this may be the very bug that ended the command
            self._fault = type(fault).__name__

    def message(self) -> str:
        """Give the text of the error without secrets."""
        return self._text(self._error)

    def trace(self) -> str:
        """Give the traceback, of causes too, without secrets. Local variables are not in it."""
        chain: list[tuple[BaseException, str]] = []
        error: BaseException | None = self._error
        joint = ""
        while error is not None and len(chain) < _CHAIN and all(error is not known for known, _ in chain):
            chain.append((error, joint))
            cause = error.__cause__
            joint = "The above was the cause of:" if cause is not None else "While that was handled:"
            error = cause if cause is not None or error.__suppress_context__ else error.__context__
        parts = []
        for error, joint in reversed(chain):
            frames = "".join(traceback.format_tb(error.__traceback__))
            parts.append(f"Traceback (most recent call last):\n{frames}{type(error).__name__}: {self._text(error)}\n")
            parts += [f"\n{joint}\n\n"] if joint else []
        return visible("".join(parts))

    def write(self) -> Path | None:
        """Write ``crash-<time>-<pid>.txt``, mode 0600, in the first directory that takes it; ``None`` if none does."""
        text = "\n\n".join(
            (
                f"shipper {__version__} ({FORM}), Python {platform.python_version()}, {platform.platform()}",
                f"arguments: {visible(self._mask(' '.join(self._arguments)))}",
                self.trace(),
                self._configuration(),
            )
        )
        now = time.time_ns() // 1_000_000
        stamp = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(now // 1000))}.{now % 1000:03d}Z"
        name = f"crash-{stamp}-{os.getpid()}.txt"
        for directory in self._directories():
            try:
                file = os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except OSError:
                continue
            with open(file, "w", encoding="utf-8", errors="backslashreplace") as crash:  # noqa: PTH123 - a descriptor
                os.fchmod(file, 0o600)  # whatever the umask
                crash.write(text + "\n")
            return directory / name
        return None

    def _look(self) -> None:
        from shipper.config.document import Problems, TooManyProblems, parse  # noqa: PLC0415 - only on the way out
        from shipper.config.loader import load  # noqa: PLC0415
        from shipper.errors import ConfigError  # noqa: PLC0415

        if self._path is None:
            return
        self._fault = "ConfigError"
        with self._path.open("rb") as file:
            data = file.read(_MOST_CONFIG)
        # From here on there may be secrets, and until they are known no text is shown.
        self._is_known = False
        text = data.decode("utf-8-sig")
        try:
            root = parse(text, os.environ, Problems(str(self._path)))
        except TooManyProblems:
            return
        if root is not None:
            self._mask.add(_values(root, everything=False))
            named = root.value.get("state_dir") if isinstance(root.value, dict) else None
            self._state_dir = Path(named.value) if named is not None and isinstance(named.value, str) else None
        # What came from the environment is nobody's to show, and what is in a file that cannot be loaded is not either.
        try:
            config = load(self._path, os.environ, secrets=False)
        except BaseException as error:
            if root is not None:
                self._mask.add(_values(root, everything=True))
                self._is_known = True
            if isinstance(error, ConfigError):
                return
            raise
        self._mask.add(secret_values(config))
        self._config, self._state_dir, self._is_known = config, config.state_dir, True

    def _text(self, error: BaseException) -> str:
        if not self._is_known:
            return "(its text is left out: the configuration cannot be read, so nobody knows what in it is secret)"
        try:
            text = str(error)
            notes = "".join(f"\n{note}" for note in getattr(error, "__notes__", ()))
        except Exception:  # noqa: BLE001 - somebody else's class
            return "(it has no text)"
        text = self._mask.exactly(text + notes)[: 2 * _TEXT]
        return self._mask(text)[:_TEXT]

    def _configuration(self) -> str:
        if self._path is None:
            return "no configuration was read"
        if self._config is None:
            return f"the configuration {self._path} could not be loaded ({self._fault}), so nothing of it is shown"
        shown = self._mask.within(masked(self._config))
        return f"configuration as it was loaded, secrets masked:\n{json_text(shown, indent=2)}"

    def _directories(self) -> Iterator[Path]:
        if self._state_dir is not None:
            yield self._state_dir
        if given := os.environ.get("STATE_DIRECTORY"):
            yield Path(given.split(":", maxsplit=1)[0])
        yield Path("/var/lib/shipper")
        yield Path(tempfile.gettempdir())


def _config_path(arguments: Sequence[str]) -> Path | None:
    for place, argument in enumerate(arguments):
        flag, sign, value = argument.partition("=")
        if flag in {"--config", "-c"}:
            following = arguments[place + 1] if place + 1 < len(arguments) else ""
            return Path(value if sign else following)
        if argument.startswith("-c") and not argument.startswith("--"):
            return Path(argument[2:])
    if given := os.environ.get("SHIPPER_CONFIG"):
        return Path(given)
    # Unlike Path.is_file: false, too, where we may not look.
    return Path(_DEFAULT) if os.path.isfile(_DEFAULT) else None  # noqa: PTH113


def _values(node: Node, *, everything: bool) -> Iterator[str]:
    """Give the values that variables filled in, or all."""
    if isinstance(node.value, dict):
        for child in node.value.values():
            yield from _values(child, everything=everything)
    elif isinstance(node.value, list):
        for child in node.value:
            yield from _values(child, everything=everything)
    elif (everything or node.source is not None) and node.value is not None and not isinstance(node.value, bool):
        yield str(node.value)
