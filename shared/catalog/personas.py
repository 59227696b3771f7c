"""Personas: the system prompt of a run's model, its tools, and its limits.

Built-ins are files of `persona_files/`; an org's own are in `published_personas.py`.
Both have the same fields, read and checked here.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache
from importlib import resources
from typing import Any

import yaml

from arkloop.shared import plugins
from arkloop.shared.catalog import client_tools, model_settings, output_schema
from arkloop.shared.catalog.client_tools import ClientTool
from arkloop.shared.catalog.field_readers import (
    AMOUNT,
    FLAG,
    FieldReader,
    list_of,
    of_form,
    one_of,
    seconds,
    utf8,
    whole,
)
from arkloop.shared.catalog.model_settings import InvalidModelSettings
from arkloop.shared.errors import PersonaNotFound
from arkloop.shared.events.types import DELEGATE
from arkloop.shared.plugins import PersonaFile

DEFAULT_PERSONA = "assistant"
_ID = "[A-Za-z0-9][A-Za-z0-9._:-]{0,63}"
KEY = re.compile(_ID)
PERSONA_ID = re.compile(f"{_ID}(@{_ID})?")
#: Tools that every org may give its personas besides those of plugins; modules of `worker/tools`.
BUILTIN_TOOLS = ("ask_user", "calculator", "current_time", "http_fetch")
#: The names of tools that every agent may have besides those of personas.
RESERVED_NAMES = ("append_line", "delegate", "read_result", "search_tools", "sleep", "final_answer")
#: What a persona may let its runs override; see `shared/runs/overrides.py`.
OVERRIDES = ("instructions", "variables", "model_settings", "tools", "output_schema", "limits")
#: In `require_approval`: every tool.
EVERY_TOOL = "*"

#: Limits are raised, never lowered, and fields and tools stay: what is published is read with them.
MAX_PROMPT_BYTES = 65_536
MAX_FALLBACKS = 8
MAX_MCP = 16
MAX_TOOLS = 128
MAX_APPROVALS = 256
MAX_DELEGATES = 32
MAX_DEPTH = 5
MAX_ACTIVE_CHILDREN = 8
MAX_STEPS = 256
MAX_OUTPUT_TOKENS = 1_000_000
LEAST_RESULT_TOKENS = 256
MAX_TIMEOUT_SECONDS = 86_400
MAX_INPUT_EXPIRES_SECONDS = 30 * 86_400

_TOOL_NAME = re.compile("[A-Za-z0-9_-]{1,64}")
_MCP_NAME = re.compile("[a-z0-9_-]{1,32}")
AGENT_NAME = re.compile("[A-Za-z0-9_-]{1,64}")
#: What only the built-in loop heeds: an error in a persona that has an `agent`.
LOOP_FIELDS = (
    "fallback_route_ids",
    "tools",
    "client_tools",
    "mcp",
    "mcp_tool_search",
    "tool_workers",
    "require_approval",
    "max_equal_turns",
    "max_output_tokens",
    "max_result_tokens",
    "compaction",
    "stream_tool_arguments",
)


class InvalidPersona(ValueError):
    """`problems` says what is wrong: field → why."""

    def __init__(self, problems: Mapping[str, list[str]]) -> None:
        super().__init__("; ".join(f"{name}: {', '.join(why)}" for name, why in problems.items()))
        self.problems = problems


@dataclass(frozen=True, slots=True, kw_only=True)
class Persona:
    """Immutable once published; `key@version` is its id."""

    key: str
    version: str
    agent: str | None = None  # the custom agent that carries out its runs; None: the built-in loop
    system_prompt: str = ""
    route_id: str | None = None
    fallback_route_ids: tuple[str, ...] = ()  # tried in this order when the route stays broken
    tools: tuple[str, ...] = ()  # built-in ones, and the org's own
    client_tools: tuple[ClientTool, ...] = field(default=(), hash=False)
    mcp: tuple[str, ...] = ()  # names of the org's MCP servers, of which it has all tools
    tool_workers: tuple[str, ...] = ()  # pools of the org's tool workers, of which it has all tools
    mcp_tool_search: bool = False  # the model searches them, instead of reading them all
    require_approval: frozenset[str] = frozenset()  # names of tools; `*` is every tool
    approved_by: str = "anyone"  # end users included; or `org`: without end users
    delegates: tuple[str, ...] = ()  # keys or ids of personas whose runs its runs may start
    max_depth: int = MAX_DEPTH  # levels of sub-runs below its runs
    max_active_children: int = MAX_ACTIVE_CHILDREN  # of one run at the same time
    max_steps: int = 32
    max_equal_turns: int = 6  # with the same calls and results in a row; then the run ends
    max_output_tokens: int | None = None  # of one model call
    model_settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    max_result_tokens: int = 16_000  # of one tool result, as the model sees it
    compaction: str = "truncate"  # of a long thread; or `summary`: what is omitted is summarized
    max_cost_usd: Decimal | None = None  # of one run
    max_cost_usd_per_month: Decimal | None = None  # of runs with any version of it that has a limit
    timeout_seconds: float = 900.0  # waiting for a person does not count
    input_expires_seconds: float = 86_400.0
    stream_tool_arguments: bool = False  # show them while the model writes them
    output_schema: Mapping[str, Any] | None = field(default=None, hash=False)  # of its runs' output
    on_input_expired: str = "fail"  # or `continue`: the model reads that there was no answer
    overrides: tuple[str, ...] = ()  # what a run may change of all this
    on_limit: str = "answer"  # one last call without tools; or `fail`

    @property
    def id(self) -> str:
        return f"{self.key}@{self.version}"


# ---- reading a definition ------------------------------------------------------------


def read(key: str, version: str, definition: Mapping[str, Any]) -> Persona:
    """Read the persona of this definition: the fields of `Persona` as JSON or YAML has them.

    Null is as good as left out.

    Raises:
        InvalidPersona: unknown fields, wrong types, or beyond the limits; all at once.
    """
    persona, problems = understood(key, version, definition)
    if persona.output_schema is not None:
        try:
            output_schema.check(persona.output_schema)
        except ValueError as error:
            problems = {**problems, "output_schema": [str(error)]}
    try:
        client_tools.check(persona.client_tools)
    except ValueError as error:
        problems = {**problems, "client_tools": [str(error)]}
    if problems:
        raise InvalidPersona(problems)
    return persona


def understood(
    key: str, version: str, definition: Mapping[str, Any]
) -> tuple[Persona, Mapping[str, list[str]]]:
    """Read the persona's valid fields; returns it and the problems of the others.

    What is published was right for the release that took it, which may be a later one.
    """
    problems: dict[str, list[str]] = {}
    values: dict[str, Any] = {}
    for name, value in definition.items():
        reader = FIELDS.get(name)
        if reader is None:
            problems[str(name)] = ["unknown field"]
        elif value is not None:
            try:
                values[name] = reader.read(value)
            except InvalidModelSettings as error:
                problems |= {f"{name}.{setting}": why for setting, why in error.problems.items()}
            except ValueError as error:
                problems[name] = [str(error)]
    if values.get("agent") is not None:
        problems |= {
            name: ["must be left out with `agent`: only the built-in loop uses it"]
            for name in LOOP_FIELDS
            if name in values
        }
    declared = values.get("client_tools", ())
    if taken := client_tools.collisions(declared, reserved_for(values.get("tools", ()))):
        problems["client_tools"] = [f"the name {name!r} is in use" for name in taken]
    own = {*values.get("tools", ()), *([DELEGATE] if values.get("delegates") else ())}
    known = {*own, *(tool.name for tool in declared), EVERY_TOOL}
    unknown = values.get("require_approval", frozenset()) - known
    others = ("mcp", "tool_workers")  # which have tools that are not known here
    has_others = any(values.get(name) for name in others)
    if unknown and not has_others and not problems.keys() & {"tools", "client_tools", *others}:
        problems["require_approval"] = [
            f"{name!r} is not a tool of this persona" for name in sorted(unknown)
        ]
    return Persona(key=key, version=version, **values), problems


def reserved_for(tools: Iterable[str]) -> set[str]:
    """Return the names that client tools of a persona with these tools cannot have."""
    return {*tools, *tools_of_server(), *RESERVED_NAMES}


def read_field(name: str, value: Any) -> Any:
    """Read the value of one field. Raises: ValueError: the field cannot have it."""
    return FIELDS[name].read(value)


def to_stored(definition: Mapping[str, Any]) -> dict[str, Any]:
    """Return the definition as it is stored."""
    stored = dict(definition)
    if (schema := stored.get("output_schema")) is not None:
        stored["output_schema"] = output_schema.to_text(schema)
    if (tools := stored.get("client_tools")) is not None:
        stored["client_tools"] = client_tools.to_text(tools)
    return stored


def from_stored(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored definition as it was given."""
    definition = dict(stored)
    if (schema := definition.get("output_schema")) is not None:
        definition["output_schema"] = output_schema.from_text(schema)
    if (tools := definition.get("client_tools")) is not None:
        definition["client_tools"] = client_tools.from_text(tools)
    return definition


_TOOL_OR_EVERY = re.compile(f"{re.escape(EVERY_TOOL)}|{_TOOL_NAME.pattern}")
_APPROVALS = list_of(of_form(_TOOL_OR_EVERY), MAX_APPROVALS)

#: Every field of a definition.
FIELDS: Mapping[str, FieldReader] = {
    "agent": of_form(AGENT_NAME),
    "system_prompt": utf8(MAX_PROMPT_BYTES),
    "route_id": of_form(KEY),
    "fallback_route_ids": list_of(of_form(KEY), MAX_FALLBACKS),
    "tools": list_of(of_form(_TOOL_NAME), MAX_TOOLS),
    "client_tools": client_tools.FIELD,
    "mcp": list_of(of_form(_MCP_NAME), MAX_MCP),
    "tool_workers": list_of(of_form(_MCP_NAME), MAX_MCP),
    "mcp_tool_search": FLAG,
    "require_approval": FieldReader(
        lambda value: frozenset(_APPROVALS.read(value)), _APPROVALS.json_schema
    ),
    "approved_by": one_of("anyone", "org"),
    "delegates": list_of(of_form(PERSONA_ID), MAX_DELEGATES),
    "max_depth": whole(MAX_DEPTH),
    "max_active_children": whole(MAX_ACTIVE_CHILDREN),
    "max_steps": whole(MAX_STEPS),
    "max_equal_turns": whole(MAX_STEPS, least=2),
    "max_output_tokens": whole(MAX_OUTPUT_TOKENS),
    "compaction": one_of("truncate", "summary"),
    "max_result_tokens": whole(MAX_OUTPUT_TOKENS, least=LEAST_RESULT_TOKENS),
    "model_settings": model_settings.FIELD,
    "max_cost_usd": AMOUNT,
    "max_cost_usd_per_month": AMOUNT,
    "timeout_seconds": seconds(MAX_TIMEOUT_SECONDS),
    "stream_tool_arguments": FLAG,
    "output_schema": output_schema.FIELD,
    "input_expires_seconds": seconds(MAX_INPUT_EXPIRES_SECONDS),
    "on_input_expired": one_of("fail", "continue"),
    "overrides": list_of(one_of(*OVERRIDES), len(OVERRIDES)),
    "on_limit": one_of("answer", "fail"),
}


# ---- those that come with the code ---------------------------------------------------


def tools_of_server() -> tuple[str, ...]:
    """Return the names of the tools that every org may give its personas."""
    return (*BUILTIN_TOOLS, *plugins.names("tools"))


def builtin() -> Mapping[str, Persona]:
    """Load the personas that come with the code and with plugins, by id; once in a process.

    Raises:
        InvalidPersona: a file is wrong; it names file and field.
    """
    return _of_files(plugins.persona_files())


@cache
def _of_files(of_plugins: tuple[PersonaFile, ...]) -> Mapping[str, Persona]:
    folder = resources.files("arkloop.shared.catalog").joinpath("persona_files")
    files = [PersonaFile(f.name, f.name, f.read_text("utf-8")) for f in folder.iterdir()]
    found: dict[str, Persona] = {}
    for file in (*files, *of_plugins):
        persona = from_file(file.name, file.text, file.where)
        if persona.id in found:
            raise InvalidPersona({file.where: [f"there is another persona {persona.id}"]})
        found[persona.id] = persona
    return dict(sorted(found.items()))


def from_file(file_name: str, text: str, where: str = "") -> Persona:
    """Read the persona of a file `<key>@<version>.yaml`; `where` is its path in messages.

    Raises:
        InvalidPersona: its fields are prefixed with the name of the file.
    """
    id_, name = file_name.removesuffix(".yaml"), where or file_name
    if id_ == file_name or "@" not in id_ or not PERSONA_ID.fullmatch(id_):
        raise InvalidPersona({name: ["must be named <key>@<version>.yaml"]})
    try:
        definition = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidPersona({name: [str(error)]}) from error
    if not isinstance(definition, dict):
        raise InvalidPersona({name: ["must be a mapping of fields"]})
    key, _, version = id_.partition("@")
    try:
        persona = read(key, version, definition)
        if unknown := sorted({*persona.tools} - {*tools_of_server()}):
            raise InvalidPersona({"tools": [f"unknown tool {unknown[0]!r}"]})
        return persona
    except InvalidPersona as error:
        problems = {f"{name}: {field}": why for field, why in error.problems.items()}
        raise InvalidPersona(problems) from None


def not_found(persona_id: str | None) -> PersonaNotFound:
    """Build the error for this id."""
    return PersonaNotFound(persona_id=[f"Persona {persona_id!r} not found."])


def newest(versions: Iterable[str]) -> str:
    """Return the highest version as a number; others sort before all numbers, by their text."""
    return max(versions, key=lambda version: (int(version) if version.isdecimal() else -1, version))
