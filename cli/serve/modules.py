"""Modules of the customer, imported by name or from a file."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import click


def imported(name: str) -> ModuleType:
    """Import the module, or the file if the name ends in `.py`.

    Raises:
        click.ClickException
    """
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
