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
    folder = Path.cwd()
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    is_file = name.endswith(".py")
    path = Path(name).resolve() if is_file else folder / f"{name}.py"
    try:
        if is_file or (path.is_file() and _is_taken(path)):
            return _loaded(path)
        return importlib.import_module(name)
    except Exception as error:
        raise click.ClickException(f"{name}: {type(error).__name__}: {error}") from error


def _loaded(path: Path) -> ModuleType:
    # What has loaded the module of that name may import it again, and must not get this one.
    name = f"_served_{path.stem}" if _is_taken(path) else path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _is_taken(path: Path) -> bool:
    """Return whether another module that has the file's name is loaded."""
    loaded = sys.modules.get(path.stem)
    if loaded is None:
        return False
    file = getattr(loaded, "__file__", None)
    return file is None or Path(file).resolve() != path.resolve()
