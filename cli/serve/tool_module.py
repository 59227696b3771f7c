"""The tools of a Python module or file, as `arkloop tools serve` finds them."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import click

from arkloop.worker.tools import Tool


def load(name: str) -> dict[str, Tool]:
    """Import the module, or the file if the name ends in `.py`; return its tools by their names.

    Raises:
        click.ClickException: it cannot be imported, or has no tools, or two of one name.
    """
    module = _imported(name)
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


def _imported(name: str) -> ModuleType:
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        if not name.endswith(".py"):
            return importlib.import_module(name)
        path = Path(name).resolve()
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{name} is no Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
        return module
    except Exception as error:
        raise click.ClickException(f"{name}: {type(error).__name__}: {error}") from error
