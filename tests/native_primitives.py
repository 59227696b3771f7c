"""The primitives of a process that would stop all its greenlets, found from inside it."""

import _thread
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gevent import monkey

_LOCKS = (type(monkey.get_original("_thread", "allocate_lock")()), _thread.RLock)
#: From Python 3.13 on, `threading.Lock` is a class, and the function is another object.
_SAME = {"threading._allocate_lock": "threading.Lock"}


def write(path: Path) -> None:
    """Write a JSON list of `<where> = <what>` for all modules that are loaded."""
    path.with_suffix(".new").write_text(json.dumps(sorted(set(_found()))))
    path.with_suffix(".new").rename(path)


def _found() -> Iterator[str]:
    originals = {
        id(value): f"{module}.{name}"
        for module, patched in monkey.saved.items()
        if not module.startswith("_")
        for name, value in patched.items()
        if callable(value)
    }
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "gevent":
            continue
        for where, value in _held_by(name, getattr(module, "__dict__", {})):
            if found := originals.get(id(value)):
                yield f"{where} = {_SAME.get(found, found)}"
            elif type(value) in _LOCKS:
                yield f"{where} = a lock"


def _held_by(name: str, module: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the module's names, the attributes of what they stand for, and defaults of
    parameters.
    """
    for attribute, value in list(module.items()):
        where = f"{name}.{attribute}"
        yield where, value
        yield from _defaults(where, value)
        if isinstance(value, types.ModuleType):
            continue
        if isinstance(value, type) and value.__module__ != name:
            continue  # looked at where it is defined
        try:
            attributes = object.__getattribute__(value, "__dict__")
            inside = list(attributes.items())
        except (AttributeError, TypeError, RuntimeError):
            continue
        for inner, held in inside:
            yield f"{where}.{inner}", held
            yield from _defaults(f"{where}.{inner}", held)


def _defaults(where: str, value: object) -> Iterator[tuple[str, Any]]:
    if isinstance(value, types.FunctionType):
        for default in (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()):
            yield f"{where}()", default
