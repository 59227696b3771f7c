"""Tools: one module per tool, one `@tool` function in it; the schema is its signature.

The function takes the run's context first, then the model's arguments, and
returns text. It raises `ToolFailed` to tell the model that it could not.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, get_type_hints

from worker.context import RunContext
from worker.messages import ToolSpec


class ToolFailed(Exception):
    """Shown to the model as the call's result; the run goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallInfo:
    """What a tool may know of its call; the key is the same whenever the call is repeated."""

    idempotency_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """`repeatable`: running it twice does no harm, so a crash in it may repeat it."""

    spec: ToolSpec
    function: Callable[..., str]
    repeatable: bool

    def check(self, arguments: Any) -> None:
        """Raises: ToolFailed: the arguments do not fit the schema."""
        parameters = self.spec.parameters
        if not isinstance(arguments, dict):
            raise ToolFailed("The arguments must be a JSON object.")
        for name in parameters["required"]:
            if name not in arguments:
                raise ToolFailed(f"The argument {name!r} is missing.")
        for name, value in arguments.items():
            if name not in parameters["properties"]:
                raise ToolFailed(f"There is no argument {name!r}.")
            expected = parameters["properties"][name]["type"]
            if not _fits(value, expected):
                raise ToolFailed(f"The argument {name!r} must be of type {expected}.")

    def __call__(self, context: RunContext, info: CallInfo, arguments: Mapping[str, Any]) -> str:
        if "info" in inspect.signature(self.function).parameters:
            return self.function(context, info=info, **arguments)
        return self.function(context, **arguments)


_JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}


def tool(*, repeatable: bool) -> Callable[[Callable[..., str]], Tool]:
    """Make a tool of a function; its name and docstring are what the model reads."""

    def make(function: Callable[..., str]) -> Tool:
        hints = get_type_hints(function)
        properties: dict[str, Any] = {}
        required: list[str] = []
        for name, parameter in list(inspect.signature(function).parameters.items())[1:]:
            if name == "info":
                continue
            properties[name] = _schema(hints[name])
            if parameter.default is inspect.Parameter.empty:
                required.append(name)
        parameters = {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": False,
        }
        description = inspect.cleandoc(function.__doc__ or "")
        spec = ToolSpec(function.__name__, description, parameters)
        return Tool(spec=spec, function=function, repeatable=repeatable)

    return make


def _schema(hint: Any) -> dict[str, Any]:
    if hint in _JSON_TYPES:
        return {"type": _JSON_TYPES[hint]}
    return {"type": "array", "items": {"type": "string"}}


def _fits(value: Any, expected: str) -> bool:
    if isinstance(value, bool):
        return expected == "boolean"
    match expected:
        case "string":
            return isinstance(value, str)
        case "integer":
            return isinstance(value, int)
        case "number":
            return isinstance(value, int | float)
        case "array":
            return isinstance(value, list) and all(isinstance(item, str) for item in value)
    return False


#: Tools of the fault tests, for every persona, under ARKLOOP_FAULTS=1.
FAULT_TOOLS = ("sleep", "append_line")


def load(names: Iterable[str]) -> dict[str, Tool]:
    """The tools of these names; each is in the module of its name, as a function of that name."""
    tools: dict[str, Tool] = {}
    for name in names:
        tools[name] = getattr(import_module(f"worker.tools.{name}"), name)
    return tools
