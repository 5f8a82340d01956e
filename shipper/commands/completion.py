"""``shipper completion``: the script that lets a shell complete our commands, options and file names."""

from __future__ import annotations

import click

from shipper.commands import COMPLETE

_HELP = """Print the completion script of a shell.

\b
Examples:
  shipper completion bash > /etc/bash_completion.d/shipper
  shipper completion zsh > /usr/local/share/zsh/site-functions/_shipper
  shipper completion fish > ~/.config/fish/completions/shipper.fish
"""


@click.command("completion", help=_HELP)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(*, shell: str) -> None:
    """Print it."""
    from click.shell_completion import get_completion_class

    cls = get_completion_class(shell)
    assert cls is not None
    # Not `source()` of bash, which first runs bash to look at its version.
    script = cls(click.get_current_context().find_root().command, {}, "shipper", COMPLETE)
    click.echo(script.source_template % script.source_vars())
