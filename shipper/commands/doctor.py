"""``shipper doctor``: everything that keeps logs from arriving, each with its evidence and its fix."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shipper.commands.options import config_option, url_option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shipper.config.types import Config
    from shipper.doctor.host import Host, Identity
    from shipper.doctor.result import CheckResult

_HELP = """Look at everything that keeps logs from arriving, and say how to mend it.

Each line is a check: its mark (√ fine, ! works but will hurt, x wrong), its id, the evidence, and the fix. Exit 1
when something is wrong. Looked at are the configuration, the files and their permissions, Docker's logging options,
the kernel's limits, the state directory, the clock and every sink in use. Nothing is changed, but for a test record
that is written to each sink.

Permissions are those of the running daemon, or of this user when none runs; --user names another. Run it where the
daemon runs, as root if you can: docker compose exec shipper shipper doctor, or sudo shipper doctor.

\b
Examples:
  shipper doctor
  sudo shipper doctor --user shipper --no-canary
  shipper doctor --json | jq '.rows[] | select(.verdict != "ok")'
"""


@click.command("doctor", help=_HELP)
@config_option("The configuration file.")
@url_option
@click.option("--user", metavar="USER", help="Whose permissions count: a user's name, or uid:gid,gid as numbers.")
@click.option("--offline", is_flag=True, help="Do not look at the sinks.")
@click.option("--no-canary", is_flag=True, help="Write no test record.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
@click.option("-q", "--quiet", is_flag=True, help="Print only what is not fine.")
def command(
    *, path: Path, url: str | None, user: str | None, offline: bool, no_canary: bool, as_json: bool, quiet: bool
) -> int:
    """Look, print, and give the exit code."""
    from shipper.config.loader import load
    from shipper.doctor import configuration
    from shipper.errors import ConfigError

    try:
        identity = _named(user)
        config = load(path, os.environ)
    except ConfigError as error:
        return _print_results(configuration.refused(error), as_json=as_json, quiet=quiet)
    host = _host(config, url, identity)
    return _print_results(examine(config, host, online=not offline, canary=not no_canary), as_json=as_json, quiet=quiet)


def examine(config: Config, host: Host, *, online: bool, canary: bool) -> Iterator[CheckResult]:
    """Give every row, in the order of the checks."""
    from shipper.clock import SystemClock
    from shipper.doctor import clock, configuration, docker, files, form, limits, sinks, state

    seen = docker.containers(config)
    found = files.logs(config, seen)
    yield from configuration.results(config, host)
    yield form.result(host)
    yield from files.results(config, host, seen)
    yield from docker.results(config, seen)
    yield from limits.results(config, host, found)
    yield from state.results(config, host)
    yield from clock.results(host, found)
    if online:
        yield from sinks.results(config, SystemClock(), canary=canary)


def _named(user: str | None) -> Identity | None:
    from shipper.doctor.host import Identity
    from shipper.errors import ConfigError

    if user is None:
        return None
    try:
        return Identity.of_user(user)
    except ConfigError as error:
        raise click.UsageError(str(error)) from error


def _host(config: Config, url: str | None, identity: Identity | None) -> Host:
    """Gather what is known of the machine and of a running daemon."""
    from shipper.commands.status import ask
    from shipper.doctor.host import Host, Identity, files_allowed, is_shipper, kernel_clock
    from shipper.errors import ConfigError
    from shipper.state.checkpoint import holder
    from shipper.telemetry.endpoint import Endpoint, SilentError

    status, silence = None, ""
    try:
        status = ask(Endpoint.of_url(url) if url else Endpoint.of_config(config.http))
    except ConfigError as error:
        if url:
            raise click.UsageError(str(error)) from error
        silence = str(error)
    except SilentError as error:
        silence = str(error)
    held = holder(config.state_dir)
    pid = held or (status.pid if status is not None and is_shipper(status.pid) else os.getpid())
    allowed = files_allowed(pid)
    ours = Identity.of_process(os.getpid())
    if identity is None:
        try:
            identity = Identity.of_process(pid)
        except OSError:
            identity = ours
    if (identity.uid, identity.gids, identity.reads_all) == (ours.uid, ours.gids, ours.reads_all):
        identity = ours
    host = Host(identity=identity, status=status, silence=silence, holder=held, clock=kernel_clock())
    if allowed is not None:
        host.files_allowed = allowed
    return host


def _print_results(results: Iterator[CheckResult], *, as_json: bool, quiet: bool) -> int:
    from shipper.commands.marks import say, say_json
    from shipper.units import counted

    counts = {"ok": 0, "warn": 0, "fail": 0}
    kept = []
    for result in results:
        counts[result.verdict] += 1
        if as_json:
            kept.append(result)
        elif not quiet or result.verdict != "ok":
            say(f"{result.id} {result.what:<12} {result.evidence}", result.verdict)
            if result.fix:
                say(f"                   fix: {result.fix}")
    if as_json:
        import msgspec

        summary = {"problems": counts["fail"], "warnings": counts["warn"], "fine": counts["ok"]}
        say_json({**summary, "rows": msgspec.to_builtins(kept)}, indent=2)
    elif not quiet or counts["fail"] or counts["warn"]:
        say(
            f"{counted(counts['fail'], 'problem')}, {counted(counts['warn'], 'warning')}, {counts['ok']} checks are fine"
        )
    return 1 if counts["fail"] else 0
