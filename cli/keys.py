"""`arkloop keys`: API keys by the API, and the encryption key in the database."""

from importlib import import_module

import click

from arkloop.cli.client.keys import keys as api_keys

_OPERATORS = {
    "rotate-encryption": "rotate_encryption",
    "erase-encryption": "erase_encryption",
}


class Keys(click.Group):
    """The commands for API keys, and two for operators, which are loaded when called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*api_keys.list_commands(ctx), *_OPERATORS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _OPERATORS:
            return api_keys.get_command(ctx, cmd_name)
        module = import_module("arkloop.cli.operator.encryption")
        command: click.Command = getattr(module, _OPERATORS[cmd_name])
        return command


@click.command(cls=Keys)
def keys() -> None:
    """Create, list and revoke API keys; rotate the encryption key."""
