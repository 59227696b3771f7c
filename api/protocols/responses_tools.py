"""The tools that a request for a response names: functions of its own, and what SDKs repeat."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from arkloop.api.protocols.responses_output import SERVER_LABEL
from arkloop.shared.catalog import client_tools
from arkloop.shared.catalog.personas import Persona
from arkloop.shared.errors import InvalidRequest

#: The place of a tool, with which a reason begins.
_PLACE = re.compile(r"^\[([0-9]+)\]")
#: Functions of the persona and of the run, and declarations of its server.
_MAX_TOOLS = 3 * client_tools.MAX_TOOLS
#: Fields that SDKs send in the declaration of an MCP server.
_SERVER_FIELDS = ("type", "server_label", "server_url", "server_description", "require_approval")


def added(persona: Persona, tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the tools that the persona does not declare for its clients itself.

    SDKs name its own, too, so that they can execute their calls.

    Raises:
        InvalidRequest: one of its own is named twice.
    """
    declared = _declared(persona)
    own = Counter(tool["name"] for tool in tools if _is_among(declared, tool))
    if repeated := [name for name, count in own.items() if count > 1]:
        raise InvalidRequest(tools=[f"duplicate tool {repeated[0]!r}"])
    return [tool for tool in tools if not _is_among(declared, tool)]


def _declared(persona: Persona) -> frozenset[str]:
    return frozenset(tool.name for tool in persona.client_tools)


def _is_among(names: Collection[str], tool: Mapping[str, Any]) -> bool:
    name = tool.get("name")
    return isinstance(name, str) and name in names


def at_their_places(reasons: Sequence[str], tools: Sequence[Any], persona: Persona) -> list[str]:
    """Return the reasons with the places that functions have among all tools of the request."""
    declared = _declared(persona)
    places = [
        place
        for place, tool in enumerate(tools)
        if tool["type"] == "function" and not _is_among(declared, tool)
    ]
    return [_PLACE.sub(lambda at: f"[{places[int(at[1])]}]", reason) for reason in reasons]


def read(value: Any) -> list[dict[str, Any]]:
    """Return the functions of the field `tools`, as definitions of client tools.

    Raises:
        InvalidRequest: it is no list of functions and declarations of the persona's server.
    """
    if value is None:
        return []
    if not isinstance(value, list):
        raise InvalidRequest(tools=["must be a list"])
    if len(value) > _MAX_TOOLS:
        raise InvalidRequest(tools=[f"must be a list of at most {_MAX_TOOLS} tools"])
    named = [(f"tools[{place}]", tool) for place, tool in enumerate(value)]
    return [_tool(name, tool) for name, tool in named if not _declares_server(name, tool)]


def _declares_server(name: str, tool: Any) -> bool:
    """Return whether the tool declares the server under whose label the persona's own tools are
    shown.

    The OpenAI Agents SDK requires that it is declared, with an address, before it gives approvals.
    """
    if not isinstance(tool, dict) or tool.get("type") != "mcp":
        return False
    if tool.get("server_label") != SERVER_LABEL:
        why = f"must be {SERVER_LABEL}: other servers are the persona's"
        raise InvalidRequest(**{f"{name}.server_label": [why]})
    given = {field: value for field, value in tool.items() if value is not None}
    refuse_unknown(name, given, *_SERVER_FIELDS)
    if tool.get("require_approval") not in (None, "always"):
        why = "must be always: the persona decides which calls require approval"
        raise InvalidRequest(**{f"{name}.require_approval": [why]})
    return True


def _tool(name: str, tool: Any) -> dict[str, Any]:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        raise InvalidRequest(
            **{f"{name}.type": ["must be function: other tools are the persona's"]}
        )
    refuse_unknown(name, tool, "type", "name", "description", "parameters", "strict")
    schema = tool.get("parameters")
    return {
        "name": tool.get("name"),
        # Models are better with one, so ours must have one; theirs need not.
        "description": tool.get("description") or tool.get("name"),
        "parameters": {"type": "object", "properties": {}} if schema is None else schema,
        "client": True,
    }


def refuse_unknown(name: str, value: Mapping[str, Any], *known: str) -> None:
    """Raise InvalidRequest if the object of this name has a field that is not supported."""
    if unknown := [field for field in value if field not in known]:
        raise InvalidRequest(**{f"{name}.{unknown[0]}": ["is not supported"]})
