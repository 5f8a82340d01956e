"""The command line: what starts, and what becomes of errors.

Start-up is a promise: a command's module is imported when that command runs, and nothing here imports more than
click. The exit codes are those of `EXIT_CODES`; a command returns its own or raises one of our errors.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from shipper import __version__
from shipper.commands import COMPLETE
from shipper.errors import ConfigError, ParkedError, ShipperError, SinkError, SourceError, StateError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

#: What an exit code says. Anything else is a failure too.
EXIT_CODES = {
    0: "done",
    1: "the answer is no: nothing matched under -q, a check found a fault",
    2: "the command line is wrong",
    3: "done in part: something is left or could not be read",
    69: "a backend or a source is not available",
    70: "a bug; a crash file was written",
    75: "try again later: the state directory is locked or full",
    77: "permission or login denied",
    78: "the configuration is wrong",
    130: "interrupted",
}


class CommandEntry(NamedTuple):
    """A command in the table: its module in ``shipper.commands`` and its line in the help."""

    module: str
    summary: str


COMMANDS = {
    "run": CommandEntry("run", "Ship logs until stopped, or once with --once."),
    "check": CommandEntry("check", "Check a configuration, without running it."),
    "prepare": CommandEntry("prepare", "Make what sinks need at their destination, after asking."),
    "query": CommandEntry("query", "Read logs back from a sink."),
    "status": CommandEntry("status", "Show how the running daemon stands."),
    "doctor": CommandEntry("doctor", "Look at what keeps logs from arriving, with the fix of each."),
    "healthcheck": CommandEntry("healthcheck", "Ask the running daemon whether it is alive."),
    "dead-letters": CommandEntry("dead_letters", "List, show or send again what a sink refused."),
    "spill": CommandEntry("spill", "Show or drop what waits on disk for a sink."),
    "test-parse": CommandEntry("test_parse", "Show what each line of a file becomes."),
    "demo": CommandEntry("demo", "Ship sample logs into a database and show them."),
    "schema": CommandEntry("schema", "Print the JSON Schema of the configuration."),
    "completion": CommandEntry("completion", "Print the completion script of a shell."),
}

_HELP = """Ships Docker and application logs to databases and log services: nothing lost, nothing doubled.

\b
Examples:
  shipper demo                                       see it work in a minute
  shipper run --config shipper.yaml                  ship logs until stopped
  shipper query 'level>=error' --since 2h            read them back
"""

_EPILOG = (
    "Exit codes: 0 done, 1 no, 2 usage, 3 partial, 69 unavailable, 75 try later, 77 denied, 78 config, 130 interrupted."
)


class _LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        listed = COMMANDS.get(cmd_name)
        if listed is None:
            return None
        command = import_module(f"shipper.commands.{listed.module}").command
        assert isinstance(command, click.Command)
        _add_verbose_option(command)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Offer the commands from the table: no module is imported while somebody types."""
        from click.shell_completion import CompletionItem

        found = [
            CompletionItem(name, help=listed.summary)
            for name, listed in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return found + click.Command.shell_complete(self, ctx, incomplete)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            import difflib

            close = difflib.get_close_matches(name, COMMANDS, n=1)
            advice = f"did you mean '{close[0]}'?" if close else f"commands are {', '.join(COMMANDS)}"
            raise click.UsageError(f"unknown command '{name}'; {advice}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, listed.summary) for name, listed in COMMANDS.items()])


def _add_verbose_option(command: click.Command) -> None:
    """Let ``-v`` stand after the command's name too, and in the commands of a group."""
    if any("--verbose" in parameter.opts for parameter in command.params):
        return
    command.params.append(_verbose_option())
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            _add_verbose_option(inner)


def _verbose_option() -> click.Option:
    def note(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        if value:
            ctx.find_root().ensure_object(dict)["verbose"] = True

    return click.Option(
        ["-v", "--verbose"], is_flag=True, expose_value=False, callback=note, help="Show tracebacks of errors."
    )


def _print_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from shipper.native import FORM

        click.echo(f"shipper {__version__} ({FORM})")
        ctx.exit()


@click.group(
    cls=_LazyGroup,
    help=_HELP,
    epilog=_EPILOG,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    params=[_verbose_option()],
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show the version and its form, then exit.",
)
@click.pass_context
def command(ctx: click.Context) -> int:
    """Print the help when no command was given."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
        return 2
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and give the exit code; `EXIT_CODES` says what it means."""
    if arguments is None and (instruction := os.environ.get(COMPLETE)):
        from click.shell_completion import shell_complete

        return shell_complete(command, {}, "shipper", COMPLETE, instruction)
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    context: dict[str, Any] = {}
    try:
        # Not `command.main`: it has its own opinion on interrupts and closed pipes.
        with command.make_context("shipper", arguments, obj=context) as ctx:
            result = command.invoke(ctx)
        sys.stdout.flush()
    except click.exceptions.Exit as asked:
        return asked.exit_code
    except click.UsageError as error:
        error.show()
        return 2
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return 130
    except BrokenPipeError:
        # The reader of our output has seen enough. Python would complain once more while flushing at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001 - the last place that can turn it into a text
        return _report(error, arguments, verbose=bool(context.get("verbose")))
    # A group that ran without a subcommand gives its own code, a command that returns nothing is done.
    return result if isinstance(result, int) else 0


def _report(error: Exception, arguments: Sequence[str], *, verbose: bool) -> int:
    """Say what went wrong in one clear text on standard error, without secrets; give the exit code."""
    if isinstance(error, ConfigError) and not verbose:
        for problem in error.problems:
            _print_error(problem)
        return 78
    from shipper.telemetry.crash import Crash

    crash = Crash(error, arguments)
    if verbose:
        click.echo(crash.trace(), err=True, nl=False)
    if isinstance(error, ConfigError):
        for problem in error.problems:
            _print_error(problem)
        return 78
    if isinstance(error, ShipperError):
        _print_error(crash.message())
        if isinstance(error, ParkedError) or isinstance(error.__cause__, PermissionError):
            return 77
        if isinstance(error, StateError):
            return 75
        return 69 if isinstance(error, SinkError | SourceError) else 1
    if isinstance(error, OSError) and error.filename is not None:
        _print_error(f"{os.fsdecode(error.filename)}: {error.strerror}")
        return 77 if isinstance(error, PermissionError) else 1
    if verbose:
        return 70
    path = crash.write()
    where = f"; what we know is in {path}" if path else "; run it again with -v to see where"
    _print_error(f"this is a bug: {type(error).__name__}: {crash.message()}{where}. Please report it.")
    return 70


def _print_error(text: str) -> None:
    from shipper.visible import one_line

    # Further lines are indented, so that none can pass for another error.
    click.echo("\n  ".join(map(one_line, f"shipper: {text}".split("\n"))), err=True)


if __name__ == "__main__":
    sys.exit(main())
