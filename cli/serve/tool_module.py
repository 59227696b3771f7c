"""The tools of a Python module or file, as `arkloop tools serve` finds them."""

import click

from arkloop.cli.serve import modules
from arkloop.worker.tools import Tool


def load(name: str) -> dict[str, Tool]:
    """Import the module, or the file if the name ends in `.py`; return its tools by their names.

    Raises:
        click.ClickException: it cannot be imported, or has no tools, or two of one name.
    """
    module = modules.imported(name)
    tools: dict[str, Tool] = {}
    for found in vars(module).values():
        if not isinstance(found, Tool) or tools.get(found.spec.name) is found:
            continue
        if found.spec.name in tools:
            raise click.ClickException(f"{name} has two tools named {found.spec.name!r}.")
        tools[found.spec.name] = found
    if not tools:
        raise click.ClickException(f"{name} has no tools: decorate functions with @tool(…).")
    return tools
