"""``shipper status``: how the daemon stands, on one screen that ends with what to do next."""

from __future__ import annotations

import os
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shipper.commands.options import config_option, url_option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shipper.telemetry.endpoint import Endpoint
    from shipper.telemetry.status import SinkStatus, Status, Verdict, Waiting

_HELP = """Show how the running daemon stands: a verdict, its sources and sinks, and the command to run next.

The verdict is OK, STARTING, DEGRADED (something needs you), FAILED (a restart could help) or DOWN (nobody answers: then
what the state directory alone tells is shown, and the exit code is 69). With --check the exit code is 1 unless the
verdict is OK.

\b
Examples:
  shipper status
  shipper status --check || mail -s 'logs are not shipped' ops@example.org
  shipper status --json | jq .sinks
"""
_UNAVAILABLE = 69


@click.command("status", help=_HELP)
@config_option("The configuration that says where the daemon listens and keeps its state.")
@url_option
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
@click.option("--check", "brief", is_flag=True, help="Print one line; exit 1 unless the verdict is OK. For cron.")
def command(*, path: Path, url: str | None, as_json: bool, brief: bool) -> int:
    """Ask, show, and give the exit code."""
    from shipper.commands.marks import say, say_json
    from shipper.errors import ConfigError
    from shipper.telemetry.endpoint import Endpoint, SilentError
    from shipper.telemetry.status import judge

    endpoint: Endpoint | None = None
    try:
        endpoint = Endpoint.of_url(url) if url else Endpoint.of_file(path, os.environ)
        status = ask(endpoint)
    except ConfigError as error:
        if url:
            raise click.UsageError(str(error)) from error
        return _print_unreachable(path, str(error), as_json=as_json, brief=brief)
    except SilentError as error:
        return _print_unreachable(path, str(error), as_json=as_json, brief=brief)
    verdict = judge(status)
    if as_json:
        import msgspec

        say_json({**_verdict(verdict), **msgspec.to_builtins(status)}, indent=2)
    elif brief:
        say(_one_line(verdict))
    else:
        _show(status, verdict)
    return 1 if brief and verdict.word != "OK" else 0


def ask(endpoint: Endpoint) -> Status:
    """Ask a daemon how it stands. Raises SilentError."""
    import msgspec

    from shipper.telemetry.endpoint import SilentError
    from shipper.telemetry.status import Status

    answer = endpoint.ask("/status")
    try:
        return msgspec.convert(answer.body, Status)
    except msgspec.ValidationError as error:
        raise SilentError(f"the daemon at {endpoint} is of another version: {error}") from error


def _show(status: Status, verdict: Verdict) -> None:
    from shipper.commands.marks import painted, say, say_painted
    from shipper.units import counted, format_duration, format_size
    from shipper.visible import one_line

    config = status.config
    state = "ok" if config.valid else "REFUSED"
    config_text = f"config {state} (loaded {format_duration(config.loaded_seconds)} ago, hash {config.hash[:8] or '-'})"
    tone = {"OK": "ok", "STARTING": "warn", "DEGRADED": "warn"}.get(verdict.word, "fail")
    head = one_line(f"shipper {status.version}  up {format_duration(status.uptime)}  {config_text}  VERDICT:")
    say_painted(f"{head} {painted(verdict.word, tone)}")
    for fault in status.faults:
        say(fault, "fail")
    for component, text in status.troubles.items():
        say(f"{component} {text}", "warn")
    if not config.valid:
        say(config.detail, "warn")
    width = max(map(len, (*status.sources, *status.sinks)), default=0)
    for name, source in status.sources.items():
        behind = f" ({format_duration(source.lag_seconds)})" if source.lag_bytes else ""
        unreadable = f", {source.files_unreadable} unreadable" if source.files_unreadable else ""
        well = source.state in {"ok", "starting"} and not source.files_unreadable
        say(
            f"source {name:<{width}}  {source.state:<9}"
            f"  {counted(source.files_open, 'file')}{unreadable}  lag {format_size(source.lag_bytes)}{behind}"
            f"  {counted(source.lines, 'line')} read",
            "ok" if well else "warn",
        )
        if source.detail:
            say(f"    {source.detail}")
    for name, sink in status.sinks.items():
        letters = status.waiting[name].dead_letters if name in status.waiting else 0
        limit = f" of {format_size(sink.dead_letter_limit)}" if sink.dead_letter_limit else ""
        kept = f" ({format_size(sink.dead_letter_bytes)}{limit})" if letters else ""
        say(
            f"sink   {name:<{width}}  {sink.state:<9}  {sink.role}"
            f"  lag {format_duration(sink.oldest_seconds)}  backlog {format_size(sink.backlog_bytes)}"
            f"  spill {format_size(sink.spill_bytes)} of {format_size(sink.spill_limit)}"
            f"  {counted(sink.lines, 'line')} taken  {counted(letters, 'dead letter')}{kept}",
            _color(sink, letters),
        )
        for reason, records in sink.given_up.items():
            say(f"    {counted(records, 'line')} never given to it, since the state was begun ({reason})")
        for line in _sink_details(sink):
            say(f"    {line}")
    for line in _unconfigured_sinks({name: item for name, item in status.waiting.items() if name not in status.sinks}):
        say(line, "warn")
    for cause, size in status.lost_bytes.items():
        say(f"lost since the start: {format_size(size)} ({cause})", "fail")
    for cause, lines in status.dropped_lines.items():
        say(f"given up since the start: {counted(lines, 'line')} ({cause})", "fail")
    say(f"next: {verdict.next}")


def _color(sink: SinkStatus, letters: int) -> str:
    if sink.state in {"ok", "starting"}:
        return "warn" if letters else "ok"
    return "fail" if sink.state in {"parked", "failed"} else "warn"


def _sink_details(sink: SinkStatus) -> Iterator[str]:
    """Say what is wrong with a sink, or, when it is well again, what was."""
    from shipper.units import format_duration

    if sink.state == "ok":
        if sink.error and sink.error_seconds is not None:
            yield f"last error {format_duration(sink.error_seconds)} ago: {sink.error}"
        return
    if sink.attempts:
        soon = "" if sink.next_try is None else f", next try in {format_duration(sink.next_try)}"
        yield f"{sink.detail}: ×{sink.attempts} in {format_duration(sink.since)}{soon}"  # noqa: RUF001 - meant: times
    elif sink.detail:
        yield sink.detail


def _unconfigured_sinks(waiting: dict[str, Waiting]) -> Iterator[str]:
    """Say what waits on disk for sinks that nothing delivers to."""
    from shipper.units import counted, format_size

    for name, item in waiting.items():
        spill = f"spill {format_size(item.spill_bytes)}, at most {counted(item.spill_records, 'record')}"
        yield f"{name}: {spill}; {counted(item.dead_letters, 'dead letter')}"


def _print_unreachable(path: Path, reason: str, *, as_json: bool, brief: bool) -> int:
    """Say that nobody answers, and what the state directory alone tells."""
    from shipper.commands.marks import painted, say, say_json, say_painted
    from shipper.config.loader import load
    from shipper.delivery.survey import StateSurvey
    from shipper.errors import ConfigError, StateError
    from shipper.state.checkpoint import holder
    from shipper.telemetry.status import Verdict

    waiting: dict[str, Waiting] = {}
    state_dir, trouble, next_step = None, "", f"shipper check --config {shlex.quote(str(path))}"
    try:
        state_dir = load(path, os.environ).state_dir
        next_step = f"shipper run --config {shlex.quote(str(path))}"
        waiting = StateSurvey(state_dir).waiting(time.time())
    except ConfigError as error:
        trouble = str(error)
    except (OSError, StateError) as error:
        trouble = f"the state in {state_dir} cannot be looked at: {getattr(error, 'strerror', None) or error}"
    held = None if state_dir is None else holder(state_dir)
    if held is not None:
        who = f"process {held}" if held else "a process of another container"
        trouble = f"{who} holds {state_dir}, so a daemon runs, but it does not answer"
        next_step = "shipper doctor"
    verdict = Verdict("DOWN", list(filter(None, (reason, trouble))), next_step)
    if as_json:
        import msgspec

        where = str(state_dir or "")
        say_json({**_verdict(verdict), "state_dir": where, "waiting": msgspec.to_builtins(waiting)}, indent=2)
    elif brief:
        say(_one_line(verdict))
    else:
        say_painted(f"VERDICT: {painted('DOWN', 'fail')}")
        for text in verdict.reasons:
            for line in text.split("\n"):
                say(line, "fail")
        if state_dir is not None and not trouble:
            say(f"  state {state_dir}: {'' if waiting else 'nothing waits for any sink'}".rstrip())
        for line in _unconfigured_sinks(waiting):
            say(f"  {line}")
        say(f"next: {verdict.next}")
    return _UNAVAILABLE


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {"verdict": verdict.word, "reasons": verdict.reasons, "next": verdict.next}


def _one_line(verdict: Verdict) -> str:
    reasons = " ".join("; ".join(verdict.reasons).split())
    return f"{verdict.word}: {reasons}" if reasons else "OK"
