"""Tools: one module per tool, one `@tool` function in it; the schema is its signature.

The function takes the run's context first, then the model's arguments, and
returns text. It raises `ToolFailed` to tell the model that it could not. If it
has a parameter `info`, it gets its `CallInfo` there.
"""

import inspect
import pkgutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import import_module
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from shared.egress import Policy
from worker import long_work
from worker.argument_schema import ArgumentSchema, InvalidSchema
from worker.context import RunContext
from worker.messages import ToolSpec

__all__ = [
    "FAULT_TOOLS",
    "CallInfo",
    "InvalidSchema",
    "InvalidTool",
    "Tool",
    "ToolFailed",
    "UnknownTool",
    "load",
    "names",
    "tool",
]


#: Seconds that one call may take, where the tool does not say otherwise.
TIMEOUT_SECONDS = 60.0


class ToolFailed(Exception):
    """Shown to the model as the call's result; the run goes on."""


class UnknownTool(LookupError):
    """No module has this name."""


class InvalidTool(Exception):
    """The file of a tool is not as it has to be; the message names it and says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallInfo:
    """What a tool may know of its call besides the arguments."""

    idempotency_key: str  #: the same whenever the call is repeated
    egress: Policy = field(default_factory=Policy)  #: where the tool may connect to


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A tool of whatever origin; `@tool` makes one of a Python function.

    `function` takes the arguments as one mapping, by whatever names a foreign
    schema has. `repeatable`: running it twice does no harm, so a crash in it
    may repeat it. `timeout_seconds`: a call that takes longer is abandoned, and
    its result is an error. `mcp_tool`: which tool of which server this is, None for ours:
    another one of the same name is not what a person has confirmed.
    """

    spec: ToolSpec
    function: Callable[[RunContext, CallInfo, Mapping[str, Any]], str]
    repeatable: bool
    timeout_seconds: float = TIMEOUT_SECONDS
    mcp_tool: Mapping[str, str] | None = None

    @cached_property
    def schema(self) -> ArgumentSchema:
        """What `spec.parameters` say, compiled when it is needed first: up to 20 ms.

        Raises:
            InvalidSchema: nothing can be checked against them.
        """
        return ArgumentSchema(self.spec.parameters)

    def check(self, arguments: Any) -> None:
        """Raises: ToolFailed: the arguments do not fit the schema; says which and why."""
        if not isinstance(arguments, dict):
            raise ToolFailed("The arguments must be a JSON object.")
        time.sleep(0)  # a long turn is many checks: between them other runs go on
        if "schema" not in self.__dict__:
            try:
                # A run may have hundreds of tools of others, and calls few of them.
                with long_work.piece():
                    _ = self.schema
            except InvalidSchema as error:
                why = f"The tool's parameters are not a usable schema: {error}"
                raise ToolFailed(why) from None
        errors = self.schema.errors(arguments)
        if errors:
            raise ToolFailed(" ".join(errors))

    def __call__(self, context: RunContext, info: CallInfo, arguments: Mapping[str, Any]) -> str:
        return self.function(context, info, arguments)


def tool(
    *, repeatable: bool, timeout_seconds: float = TIMEOUT_SECONDS
) -> Callable[[Callable[..., str]], Tool]:
    """Make a tool of a function; its name and docstring are what the model reads.

    Types of arguments: `str`, `int`, `float`, `bool`, `Literal`, lists of
    these, each with `| None`. In an `Annotated` a text describes the argument,
    and a mapping has more keywords of JSON Schema.

    Raises:
        TypeError: the function is of a form that no tool has.
    """

    def make(function: Callable[..., str]) -> Tool:
        hints = get_type_hints(function, include_extras=True)
        signature = inspect.signature(function).parameters
        properties: dict[str, Any] = {}
        required: list[str] = []
        if not function.__doc__:
            raise TypeError("The function has no docstring: it is what the model reads.")
        if next(iter(signature), None) != "context":
            raise TypeError("The function's first parameter must be `context: RunContext`.")
        for name, parameter in list(signature.items())[1:]:
            if name == "info":
                continue
            if name not in hints:
                raise TypeError(f"The parameter {name!r} has no type.")
            properties[name] = _schema(hints[name])
            if parameter.default is inspect.Parameter.empty:
                required.append(name)
        parameters = {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": False,
        }

        def call(context: RunContext, info: CallInfo, arguments: Mapping[str, Any]) -> str:
            typed = {name: _typed(properties[name], value) for name, value in arguments.items()}
            extra = {"info": info} if "info" in signature else {}
            return function(context, **typed, **extra)

        description = inspect.cleandoc(function.__doc__)
        spec = ToolSpec(function.__name__, description, parameters)
        made = Tool(
            spec=spec, function=call, repeatable=repeatable, timeout_seconds=timeout_seconds
        )
        _ = made.schema  # at once: a worker does not start with one that is wrong
        return made

    return make


_JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", NoneType: "null"}


def _schema(hint: Any) -> dict[str, Any]:
    origin, parts = get_origin(hint), get_args(hint)
    # Its notes need not be hashable.
    if origin is None and hint in _JSON_TYPES:
        return {"type": _JSON_TYPES[hint]}
    if origin is Annotated:
        schema = _schema(parts[0])
        for note in parts[1:]:
            schema.update({"description": note} if isinstance(note, str) else note)
        return schema
    if origin is Literal:
        return {"type": _JSON_TYPES[type(parts[0])], "enum": list(parts)}
    if origin is list:
        return {"type": "array", "items": _schema(parts[0])}
    if origin in (Union, UnionType) and len(parts) == 2 and parts[1] is NoneType:
        # Models write null for what they leave out.
        schema = _schema(parts[0])
        schema["type"] = [schema["type"], "null"]
        if "enum" in schema:
            schema["enum"] = [*schema["enum"], None]
        return schema
    raise TypeError(f"A tool's argument cannot be of type {hint}.")


def _typed(schema: Mapping[str, Any], value: Any) -> Any:
    """To JSON Schema 2.0 is an integer; to Python it is not."""
    if isinstance(value, list):
        return [_typed(schema["items"], item) for item in value]
    return int(value) if isinstance(value, float) and "integer" in schema["type"] else value


#: Tools of the fault tests, for every persona, under ARKLOOP_FAULTS=1.
FAULT_TOOLS = ("sleep", "append_line")


@cache
def names() -> tuple[str, ...]:
    """Every tool there is, those of the fault tests included: the modules beside this one."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def load(wanted: Iterable[str]) -> dict[str, Tool]:
    """The tools of these names; each is in the module of its name, as a function of that name.

    Raises:
        UnknownTool: there is no module of that name.
        InvalidTool: the module cannot be imported, or holds no such tool.
    """
    tools: dict[str, Tool] = {}
    for name in wanted:
        if name not in names():
            raise UnknownTool(f"There is no tool {name!r}; there are {', '.join(names())}.")
        tools[name] = _loaded(name)
    return tools


def _loaded(name: str) -> Tool:
    file = f"worker/tools/{name}.py"
    try:
        found = getattr(import_module(f"worker.tools.{name}"), name, None)
    except Exception as error:
        raise InvalidTool(f"{file}: {type(error).__name__}: {error}") from error
    if found is None:
        raise InvalidTool(f"{file}: there is no function {name!r}; it is named like its file.")
    if not isinstance(found, Tool):
        raise InvalidTool(f"{file}: the function {name!r} is no tool; write @tool(…) above it.")
    if found.spec.name != name:
        raise InvalidTool(f"{file}: the function of {name!r} is named {found.spec.name!r}.")
    return found
