"""Checks of the configuration file, its secrets, and the daemon that runs it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from shipper.config.loader import fingerprint
from shipper.doctor.host import present
from shipper.doctor.result import CheckResult, fail, ok, several, warn
from shipper.secret import is_secret, is_secret_stem, secret_values
from shipper.units import counted, format_duration

if TYPE_CHECKING:
    from shipper.config.document import Node
    from shipper.config.types import Config
    from shipper.doctor.host import Host
    from shipper.errors import ConfigError

#: Where engines mount secrets for the one container; nobody else sees them, though their mode says so.
_MOUNTED_SECRETS = "/run/secrets/"
#: Shorter ones are found in everything.
_SHORTEST = 4


def refused(error: ConfigError) -> Iterator[CheckResult]:
    """Give a row for every problem of a file that cannot be loaded."""
    for problem in error.problems:
        yield fail("D01", problem, "correct it, then: shipper check")


def results(config: Config, host: Host) -> Iterator[CheckResult]:
    """Check what can be said about a file that loads, and about the daemon."""
    parts = f"{counted(len(config.sources), 'source')}, {counted(len(config.sinks), 'sink')}"
    yield ok("D01", f"{config.path}: {parts}, active: {', '.join(config.active)}")
    yield _secrets(config)
    yield _daemon(config, host)
    if host.status is not None:
        yield _reload(config, host)


def _secrets(config: Config) -> CheckResult:
    open_files = []
    path = config.path
    if path is not None and path.is_file() and path.stat().st_mode & 0o004 and _has_literal_secret(config, path):
        open_files.append(str(path))
    for section in (*config.sinks.values(), *config.sources.values(), *config.transforms.values()):
        for field in msgspec.structs.fields(type(section)):
            value = str(getattr(section, field.name) or "")
            if not field.name.endswith("_file") or not is_secret_stem(section, field.name[:-5]) or not value:
                continue
            found = Path(value)
            if not value.startswith(_MOUNTED_SECRETS) and found.is_file() and found.stat().st_mode & 0o004:
                open_files.append(value)
    if open_files:
        text = f"everyone on this machine can read the secrets in {several(open_files)}"
        return warn("D02", text, f"chmod o= {' '.join(open_files)}")
    return ok("D02", "nobody else can read them")


def _has_literal_secret(config: Config, path: Path) -> bool:
    """Tell whether the file itself holds a secret, and not only the name of a variable or of a file."""
    from shipper.config.document import Problems, parse  # noqa: PLC0415 - only for files that everyone can read

    secrets = [value for value in secret_values(config) if len(value) >= _SHORTEST]

    def is_literal_secret(node: Node) -> bool:
        if isinstance(node.value, list):
            return any(map(is_literal_secret, node.value))
        if isinstance(node.value, dict):
            return any(
                is_literal_secret(child) or (is_secret(key) and isinstance(child.value, str) and child.source is None)
                for key, child in node.value.items()
            )
        text = str(node.value) if node.source is None else node.source
        return any(secret in text for secret in secrets)

    root = parse(path.read_text(encoding="utf-8-sig"), os.environ, Problems(str(path)))
    return root is not None and is_literal_secret(root)


def _daemon(config: Config, host: Host) -> CheckResult:
    if host.status is not None:
        status = host.status
        if status.faults:
            return fail("D03", "; ".join(status.faults), "restart the daemon, and report what its log says")
        return ok("D03", f"shipper {status.version} runs as process {status.pid}, up {format_duration(status.uptime)}")
    if host.holder is not None:
        who = f"process {host.holder}" if host.holder else "a process of another container"
        text = f"{who} holds the state directory but does not answer: {host.silence}"
        return warn("D03", text, "set http.enabled to true and http.listen to a free address, then restart it")
    if present(config.state_dir / "state.db"):
        start = f"shipper run --config {config.path}   (systemctl start shipper, or docker compose up -d shipper)"
        return warn("D03", f"none runs, though one did: {host.silence}", f"start it: {start}")
    return ok("D03", "none has run yet")


def _reload(config: Config, host: Host) -> CheckResult:
    assert host.status is not None
    running, reload = host.status.config, f"kill -HUP {host.status.pid}"
    if not running.valid:
        return fail("D04", running.detail, f"correct the file, look with shipper check, then reload: {reload}")
    if "\0" in running.path or os.path.realpath(running.path) != os.path.realpath(config.path or ""):
        return warn("D04", f"it runs {running.path}, not {config.path}", f"name its file: --config {running.path}")
    if running.hash != fingerprint(config.path):
        ago = format_duration(running.loaded_seconds)
        return warn("D04", f"{config.path} has changed since it was loaded {ago} ago", f"reload: {reload}")
    return ok("D04", f"{running.path} is what runs")
