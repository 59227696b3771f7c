"""Plugins: the tools, providers, personas and agents that are no part of this repository.

They are found by their names alone, in the metadata of installed packages and in the folders of
`ARKLOOP_PLUGINS`. Web processes check names and import none of them; workers import all of them
when they start. `docs/how-to/plugins.md` shows how to write one.
"""

import inspect
import itertools
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

#: Each is a folder of a plugin folder, and with `arkloop.` before it a group of entry points.
GROUPS = ("tools", "providers", "personas", "agents")
_NAME = re.compile("[A-Za-z0-9_-]{1,64}")
_WORKER = Path(__file__).parents[1] / "worker"
_SUFFIXES = {"tools": ".py", "providers": "_provider.py"}
#: The names that this repository has itself. Web processes never import the modules of the
#: worker's: the files are the list.
BUILTIN: Mapping[str, tuple[str, ...]] = {
    group: tuple(
        sorted(
            file.name.removesuffix(suffix)
            for file in _WORKER.joinpath(group).glob(f"*{suffix}")
            if not file.name.startswith("_")
        )
    )
    for group, suffix in _SUFFIXES.items()
}
#: Names that tools of the service have without a module of their own in `worker/tools`; see
#: `worker/attempt/delegating.py` and `worker/providers/output_modes.py`.
_RESERVED = {"tools": ("delegate", "final_answer")}


class InvalidPlugin(Exception):
    """Some plugins cannot be used; the message names each file or entry point, one a line."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """A plugin that was found; `where` is its file or entry point, for messages.

    `attribute` is the name in the module; the module is imported by `load` alone.
    """

    name: str
    where: str
    module: str
    attribute: str


@dataclass(frozen=True, slots=True)
class PersonaFile:
    """A persona of a plugin, as YAML; `where` is its path."""

    name: str
    where: str
    text: str


@dataclass
class _Found:
    plugins: dict[str, dict[str, Plugin]] = field(
        default_factory=lambda: {group: {} for group in GROUPS}
    )
    personas: list[PersonaFile] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, group: str, plugin: Plugin) -> None:
        name, there = plugin.name, self.plugins[group]
        if not _NAME.fullmatch(name):
            self.problems.append(f"{plugin.where}: the name {name!r} must match {_NAME.pattern}")
        elif name in (*BUILTIN.get(group, ()), *_RESERVED.get(group, ())):
            self.problems.append(f"{plugin.where}: the name {name!r} belongs to the service itself")
        elif name in there:
            self.problems.append(f"{plugin.where}: {there[name].where} has the same name")
        else:
            there[name] = plugin

    def add_personas(self, folder: Path) -> None:
        for file in sorted(folder.iterdir()):
            if file.suffix == ".yml":
                self.problems.append(f"{file}: the name must end with .yaml")
            elif file.suffix == ".yaml":
                try:
                    text = file.read_text("utf-8")
                except (OSError, UnicodeDecodeError) as error:
                    self.problems.append(f"{file}: {error}")
                else:
                    self.personas.append(PersonaFile(file.name, str(file), text))


#: The arguments of agents and providers: as a person reads them, and their number and names.
_ARGUMENTS = {
    "agents": ("(run)", 1, ()),
    "providers": ("(route, *, faults, egress)", 1, ("faults", "egress")),
}

_found = _Found()
_persona_files: tuple[PersonaFile, ...] = ()
_loaded: dict[str, Mapping[str, Any]] = {}
_numbers = itertools.count(1)


def use(folders: Iterable[str]) -> None:
    """Find the plugins of this process: those of installed packages, and those of the folders.

    Nothing is imported. It replaces what an earlier call has found.

    Raises:
        InvalidPlugin: with every problem at once.
    """
    global _found, _persona_files
    found = _Found()
    installed = entry_points()  # one look at all packages
    for group in GROUPS:
        for entry_point in installed.select(group=f"arkloop.{group}"):
            _add_entry_point(found, group, entry_point)
    for folder in folders:
        _add_folder(found, Path(folder))
    if found.problems:
        raise InvalidPlugin("\n".join(found.problems))
    _found, _persona_files = found, tuple(found.personas)
    _loaded.clear()


def names(group: str) -> tuple[str, ...]:
    """Return the names of the plugins of a group, without importing one."""
    return tuple(_found.plugins[group])


def persona_files() -> tuple[PersonaFile, ...]:
    """Return the personas of all plugins, in the order in which they were found."""
    return _persona_files


def load(group: str) -> Mapping[str, Any]:
    """Import the plugins of a group, each once in a process; returns them by name.

    A tool or an agent is the object of its name, a provider its module's `build`.

    Raises:
        InvalidPlugin: a module cannot be imported, lacks the object, or has one that no run can
            call.
    """
    if group not in _loaded:
        plugins = _found.plugins[group].values()
        _loaded[group] = {plugin.name: _usable(group, plugin) for plugin in plugins}
    return _loaded[group]


def where(group: str, name: str) -> str:
    """Return the file or entry point of a plugin, for a message about it."""
    return _found.plugins[group][name].where


def _usable(group: str, plugin: Plugin) -> Any:
    found = _imported(plugin)
    if (problem := problem_of(group, found)) is not None:
        raise InvalidPlugin(f"{plugin.where}: {plugin.attribute!r} {problem}")
    return found


def problem_of(group: str, found: Any) -> str | None:
    """Return why runs cannot call the object as one of this group, None if they can."""
    if group not in _ARGUMENTS:
        return None
    shown, positional, named = _ARGUMENTS[group]
    if not callable(found):
        return f"must be a function, and is of the type {type(found).__name__}"
    if group == "agents" and inspect.isclass(found):
        return "must be a function, and is a class"
    called = (found, found.__call__)
    if any(inspect.isgeneratorfunction(one) or inspect.isasyncgenfunction(one) for one in called):
        return "must not be a generator function: what it yields would be lost"
    try:
        # A decorator may call the function with more arguments than its own caller has.
        signature = inspect.signature(found, follow_wrapped=False)
    except ValueError:
        return None  # of some functions in C nothing is known
    try:
        signature.bind(*[None] * positional, **dict.fromkeys(named))
    except TypeError as error:
        return f"must accept the arguments {shown}: {error}"
    return None


def _imported(plugin: Plugin) -> Any:
    try:
        found: Any = import_module(plugin.module)
        for part in plugin.attribute.split("."):
            found = getattr(found, part, None)
    except (Exception, SystemExit) as error:
        raise InvalidPlugin(f"{plugin.where}: {type(error).__name__}: {error}") from error
    if found is None:
        raise InvalidPlugin(f"{plugin.where}: the module has no {plugin.attribute!r}")
    return found


def _attribute(group: str, name: str) -> str:
    return "build" if group == "providers" else name


def _add_entry_point(found: _Found, group: str, entry_point: EntryPoint) -> None:
    package = f" of {entry_point.dist.name}" if entry_point.dist else ""
    where = f"entry point {entry_point.group}: {entry_point.name} = {entry_point.value}{package}"
    parts = EntryPoint.pattern.match(entry_point.value)
    if parts is None:
        found.problems.append(f"{where}: the value must be a module, or module:attribute")
        return
    module = parts["module"]
    if group == "personas":
        _add_package_of_personas(found, where, module)
        return
    attribute = parts["attr"] or _attribute(group, entry_point.name)
    found.add(group, Plugin(entry_point.name, where, module, attribute))


def _add_package_of_personas(found: _Found, where: str, package: str) -> None:
    """Add the YAML files of a package; its parent is located, and never imported."""
    top, *rest = package.split(".")
    spec = find_spec(top)
    roots = (spec.submodule_search_locations if spec else None) or ()
    folders = [folder for root in roots if (folder := Path(root, *rest)).is_dir()]
    if not folders:
        found.problems.append(f"{where}: there is no such package")
    for folder in folders:
        found.add_personas(folder)


def _add_folder(found: _Found, folder: Path) -> None:
    if not folder.is_dir():
        found.problems.append(f"ARKLOOP_PLUGINS: {folder}: there is no such folder")
        return
    if not any(folder.joinpath(group).is_dir() for group in GROUPS):
        found.problems.append(
            f"ARKLOOP_PLUGINS: {folder}: it has none of the folders {', '.join(GROUPS)}"
        )
        return
    package = _package_of(folder)
    for group in GROUPS:
        if (within := folder / group).is_dir():
            if group == "personas":
                found.add_personas(within)
                continue
            for file in _modules(within):
                module, attribute = f"{package}.{group}.{file.stem}", _attribute(group, file.stem)
                found.add(group, Plugin(file.stem, str(file), module, attribute))


def _modules(folder: Path) -> Iterator[Path]:
    """Yield the modules of a folder; those whose names begin with `_` are parts of others."""
    for file in sorted(folder.iterdir()):
        if file.suffix == ".py" and not file.name.startswith("_"):
            yield file


def _package_of(folder: Path) -> str:
    """Make a package of the folder, so that its modules can import each other by `from . import`.

    The name is its own in this process: two folders may have files of the same name.
    """
    name = f"arkloop_plugins_{next(_numbers)}"
    package = ModuleType(name)
    package.__path__ = [str(folder.absolute())]
    package.__spec__ = ModuleSpec(name, None, is_package=True)
    package.__spec__.submodule_search_locations = package.__path__
    sys.modules[name] = package
    return name
