"""Tools: one module per tool, one `@tool` function in it; the schema is its signature.

The function takes the run's context first, then the model's arguments, and
returns text, or a `ToolOutput` with images. It raises `ToolFailed` to tell the
model that it could not. If it has a parameter `info`, it gets its `CallInfo` there.
"""

import inspect
import pkgutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property, wraps
from importlib import import_module
from typing import Any, ParamSpec, Self, TypeVar, get_type_hints
from urllib.parse import quote

from pydantic import ConfigDict, ValidationError, create_model
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from arkloop.shared import plugins
from arkloop.shared.agents.agent_run import ToolFailed
from arkloop.shared.json_schema import InvalidSchema
from arkloop.shared.runs.states import ResultSource
from arkloop.shared.security.egress import Policy
from arkloop.worker.contract.argument_schema import ArgumentSchema
from arkloop.worker.contract.attachments import ToolOutput
from arkloop.worker.contract.context import ToolContext
from arkloop.worker.contract.cpu_slices import cpu_slice
from arkloop.worker.contract.identity import RunIdentity, idempotency_key, traceparent
from arkloop.worker.contract.input_requests import Replies
from arkloop.worker.contract.messages import ToolSpec

__all__ = [
    "AUTOMATIC_TOOLS",
    "FAULT_TOOLS",
    "CallInfo",
    "InvalidSchema",
    "InvalidTool",
    "ResultPending",
    "Tool",
    "ToolFailed",
    "ToolOutput",
    "UnknownTool",
    "as_output",
    "load",
    "names",
    "tool",
]


P = ParamSpec("P")
R = TypeVar("R")

_IDEMPOTENT_MISSING = (
    "Write `@tool(idempotent=True)` if running the tool twice does no harm: it is then called again"
    " after a crash during the call. Otherwise write `@tool(idempotent=False)`."
)

#: Seconds that one call may take, where the tool does not say otherwise.
TIMEOUT_SECONDS = 60.0


class ResultPending(Exception):
    """A call that is accepted elsewhere; its result comes from the tool's `result_from`."""


class UnknownTool(LookupError):
    """A tool whose module does not exist."""


class InvalidTool(Exception):
    """The file of a tool is not as it has to be; the message names it and says why."""


def _no_progress(progress: float, total: float | None = None, message: str | None = None) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class CallInfo:
    """The facts about a call that a tool may use besides the arguments.

    `metadata` is that of the run when the attempt began.
    """

    run_id: str
    thread_id: str
    org_id: str
    end_user_id: str | None = None  #: the customer's customer on whose behalf it is made
    metadata: Mapping[str, str] = field(default_factory=dict)
    tool_call_id: str
    idempotency_key: str  #: the same whenever the call is repeated
    traceparent: str  #: W3C trace context, in which the call is a span of the run's trace
    egress: Policy = field(default_factory=Policy)  #: where the tool may connect to
    result_tokens: int = 16_000  #: how long a result may be without being cut for the model
    replies: Replies | None = None  #: of people, to what the call has raised `InputRequired` for
    searchable: Collection[ToolSpec] = ()  #: the tools that `search_tools` finds
    #: Call it with `progress, total?, message?` while the call takes its time.
    report_progress: Callable[..., None] = _no_progress

    @classmethod
    def of(cls, run: RunIdentity, tool_call_id: str, **more: Any) -> Self:
        """Build the info of a call of this run; `more` are the fields besides the identity."""
        key = idempotency_key(run.run_id, tool_call_id)
        return cls(
            run_id=run.run_id,
            thread_id=run.thread_id,
            org_id=run.org_id,
            end_user_id=run.end_user_id,
            metadata=run.metadata,
            tool_call_id=tool_call_id,
            idempotency_key=key,
            traceparent=traceparent(run.trace_id, key),
            **more,
        )

    def wire(self) -> dict[str, Any]:
        """Return the identity as it is part of a JSON body or of MCP's `_meta`."""
        return {name: getattr(self, name) for name in _WIRE_NAMES} | {
            "metadata": dict(self.metadata)
        }

    def headers(self) -> dict[str, str]:
        """Return the identity as HTTP headers; values that are not ASCII are percent-encoded.

        Without `metadata`, which may be longer than servers accept, and without what is null.
        """
        values = {name: quote(text, safe=_IN_HEADERS) for name, text in self._texts()}
        return {_HEADER_NAMES[name]: value for name, value in values.items()}

    def _texts(self) -> Iterator[tuple[str, str]]:
        for name in _HEADER_NAMES:
            if (text := getattr(self, name)) is not None:
                yield name, text


#: The fields of the identity, which have the same names wherever a call leads.
_WIRE_NAMES = (
    *("run_id", "thread_id", "org_id", "end_user_id", "metadata"),
    *("tool_call_id", "idempotency_key", "traceparent"),
)
#: Underscores would be lost: many servers drop headers that contain them.
_HEADER_NAMES = {
    "run_id": "Arkloop-Run-Id",
    "thread_id": "Arkloop-Thread-Id",
    "org_id": "Arkloop-Org-Id",
    "end_user_id": "Arkloop-End-User-Id",
    "tool_call_id": "Arkloop-Tool-Call-Id",
    "idempotency_key": "Idempotency-Key",
    "traceparent": "traceparent",
}
#: Printable characters that stand in headers as they are.
_IN_HEADERS = "!#$&'()*+,-./:;<=>?@[]^_`{|}~"


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A tool of whatever origin; `@tool` makes one of a Python function.

    `function` takes the arguments as one mapping, by whatever names a foreign
    schema has. `idempotent`: running it twice does no harm, so it is called again
    after a crash during the call. `timeout_seconds`: a call that takes longer is
    abandoned, and its result is an error. `mcp_tool`, `worker_tool`, `http_tool`:
    which tool of which server or pool this is, or which HTTP tool, all None for
    ours. `result_from`: where results come from if the function may raise
    `ResultPending`. `is_async`: `function` returns a coroutine, which only
    `arkloop tools serve` and `arkloop.testing` can await.
    """

    spec: ToolSpec
    function: Callable[[ToolContext, CallInfo, Mapping[str, Any]], str | ToolOutput]
    idempotent: bool
    timeout_seconds: float = TIMEOUT_SECONDS
    mcp_tool: Mapping[str, str] | None = None
    worker_tool: Mapping[str, str] | None = None
    http_tool: Mapping[str, str] | None = None
    result_from: ResultSource | None = None
    is_async: bool = False

    @property
    def bound_to(self) -> Mapping[str, str] | None:
        """The tool that people are asked about, as their approval is bound to it; None for ours."""
        return self.mcp_tool or self.worker_tool or self.http_tool

    @cached_property
    def schema(self) -> ArgumentSchema:
        """The schema of `spec.parameters`, compiled at the first use: up to 20 ms.

        Raises:
            InvalidSchema: nothing can be checked against them.
        """
        return ArgumentSchema(self.spec.parameters)

    def check(self, arguments: Any) -> None:
        """Check the arguments. Raises: ToolFailed: they do not fit the schema, and why."""
        if not isinstance(arguments, dict):
            raise ToolFailed("The arguments must be a JSON object.")
        time.sleep(0)  # a long turn is many checks: between them other runs go on
        if "schema" not in self.__dict__:
            try:
                # A run may have hundreds of tools of others, and calls few of them.
                with cpu_slice():
                    _ = self.schema
            except InvalidSchema as error:
                why = f"The tool's parameters are not a usable schema: {error}"
                raise ToolFailed(why) from None
        errors = self.schema.errors(arguments)
        if errors:
            raise ToolFailed(" ".join(errors))

    def __call__(
        self, context: ToolContext, info: CallInfo, arguments: Mapping[str, Any]
    ) -> str | ToolOutput:
        return self.function(context, info, arguments)


def as_output(returned: Any) -> str | ToolOutput:
    """Return what a tool has returned. Raises: TypeError: it is neither text nor a `ToolOutput`."""
    if not isinstance(returned, str | ToolOutput):
        raise TypeError(f"the tool returned {type(returned).__name__}, not str or ToolOutput")
    return returned


def _explained(decorator: Callable[P, R]) -> Callable[P, R]:
    """Replace what Python says of a bare `@tool`: nothing about what is missing."""

    @wraps(decorator)
    def explained(*args: P.args, **options: P.kwargs) -> R:
        if args or "idempotent" not in options:
            raise TypeError(_IDEMPOTENT_MISSING)
        return decorator(*args, **options)

    return explained


@_explained
def tool(
    *, idempotent: bool, timeout_seconds: float = TIMEOUT_SECONDS
) -> Callable[[Callable[..., Any]], Tool]:
    """Make a tool of a function; its name and docstring are what the model reads.

    An argument may be of any type that Pydantic writes as JSON Schema; `Annotated` with a
    `pydantic.Field` describes and limits it.

    Raises:
        TypeError: `idempotent` is missing; or the function has no docstring, no `context`, or a
            parameter without a type, or is a generator function.
        pydantic.PydanticUserError: a type has no JSON Schema.
    """

    def make(function: Callable[..., Any]) -> Tool:
        if not function.__doc__:
            raise TypeError(
                "The function has no docstring, which is the description that the model reads."
            )
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError("The function is a generator function, and a tool returns its text.")
        signature = inspect.signature(function).parameters
        if next(iter(signature), None) != "context":
            raise TypeError("The function's first parameter must be `context: ToolContext`.")
        hints = get_type_hints(function, include_extras=True)
        fields: dict[str, Any] = {}
        for name, parameter in list(signature.items())[1:]:
            if name == "info":
                continue
            if name not in hints:
                raise TypeError(f"The parameter {name!r} has no type.")
            is_required = parameter.default is inspect.Parameter.empty
            fields[name] = (hints[name], ... if is_required else parameter.default)
        model = create_model(function.__name__, __config__=ConfigDict(extra="forbid"), **fields)
        parameters = {"required": [], **model.model_json_schema(schema_generator=_ArgumentsSchema)}
        del parameters["title"]

        def call(context: ToolContext, info: CallInfo, arguments: Mapping[str, Any]) -> Any:
            try:
                typed = dict(model.model_validate(arguments))
            except ValidationError as error:  # of what JSON Schema cannot say
                places = [".".join(map(str, problem["loc"])) for problem in error.errors()]
                raise ToolFailed(f"These arguments are not valid: {', '.join(places)}.") from None
            extra = {"info": info} if "info" in signature else {}
            return function(context, **typed, **extra)

        description = inspect.cleandoc(function.__doc__)
        spec = ToolSpec(function.__name__, description, parameters)
        made = Tool(
            spec=spec,
            function=call,
            idempotent=idempotent,
            timeout_seconds=timeout_seconds,
            is_async=inspect.iscoroutinefunction(function),
        )
        _ = made.schema  # at once: a worker does not start with one that is wrong
        return made

    return make


class _ArgumentsSchema(GenerateJsonSchema):
    """Pydantic's JSON Schema, without titles and defaults, and with null as one more type.

    Some models do not understand `anyOf`, which Pydantic writes for null.
    """

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> dict[str, Any]:
        return self.generate_inner(schema["schema"])

    def nullable_schema(self, schema: core_schema.NullableSchema) -> dict[str, Any]:
        # Models write null for what they leave out.
        nullable = self.generate_inner(schema["schema"])
        if not isinstance(nullable.get("type"), str):
            return super().nullable_schema(schema)
        nullable["type"] = [nullable["type"], "null"]
        if "const" in nullable:  # a literal of one value
            nullable["enum"] = [nullable.pop("const")]
        if "enum" in nullable:
            nullable["enum"] = [*nullable["enum"], None]
        return nullable


#: Tools that every agent has; the model is offered them where it needs them.
AUTOMATIC_TOOLS = ("read_result", "search_tools")
#: Tools of the fault tests, for every persona, under ARKLOOP_FAULTS=1.
FAULT_TOOLS = ("sleep", "append_line")


@cache
def names() -> tuple[str, ...]:
    """Return the names of the built-in tools, which are the modules of this package."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def load(wanted: Iterable[str]) -> dict[str, Tool]:
    """Load the tools of these names; each is in the module of its name, as a function of that name,
    or a plugin's.

    Raises:
        UnknownTool: there is no module of that name.
        InvalidTool: the module cannot be imported, or holds no such tool.
        InvalidPlugin: likewise of a plugin.
    """
    tools: dict[str, Tool] = {}
    of_plugins = plugins.load("tools")
    for name in wanted:
        if name in of_plugins:
            tools[name] = _checked(name, plugins.where("tools", name), of_plugins[name])
            continue
        if name not in names():
            available = ", ".join((*names(), *of_plugins))
            raise UnknownTool(f"Unknown tool {name!r}; available: {available}.")
        tools[name] = _loaded(name)
    return tools


def _loaded(name: str) -> Tool:
    file = f"worker/tools/{name}.py"
    try:
        found = getattr(import_module(f"arkloop.worker.tools.{name}"), name, None)
    except Exception as error:
        raise InvalidTool(f"{file}: {type(error).__name__}: {error}") from error
    if found is None:
        raise InvalidTool(
            f"{file}: there is no function {name!r}; the function must have the file's name."
        )
    return _checked(name, file, found)


def _checked(name: str, where: str, found: Any) -> Tool:
    if not isinstance(found, Tool):
        raise InvalidTool(
            f"{where}: the function {name!r} is not a tool; decorate it with @tool(…)."
        )
    if found.is_async:
        raise InvalidTool(f"{where}: {name!r} is a coroutine function; tools here are threads.")
    if found.spec.name != name:
        raise InvalidTool(f"{where}: the function of {name!r} is named {found.spec.name!r}.")
    return found
