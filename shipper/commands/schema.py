"""``shipper schema``: the JSON Schema of the configuration, for editors."""

from __future__ import annotations

import click


@click.command(name="schema")
def command() -> int:
    r"""Print the JSON Schema of the configuration.

    Save it and name it in the first line of the config, and an editor with a YAML language server completes and
    checks while you type:

    \b
      shipper schema > shipper.schema.json
      # yaml-language-server: $schema=shipper.schema.json
    """
    import msgspec

    from shipper.config.schema import schema

    click.echo(msgspec.json.format(msgspec.json.encode(schema()), indent=2).decode())
    return 0
