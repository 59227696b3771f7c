"""The tools of a run that its client executes."""

from contextlib import suppress

from sqlalchemy import Connection, RowMapping

from arkloop.api.http.current import catalog
from arkloop.shared.errors import PersonaNotFound
from arkloop.shared.runs import overrides

#: One object for all streams of runs without any.
_NONE: frozenset[str] = frozenset()


def client_tool_names(run: RowMapping, sql: Connection | None = None) -> frozenset[str]:
    """Return the names of the client tools of the run and of its persona."""
    given = overrides.given(run["options"]) or {}
    names = {tool["name"] for tool in given.get("tools", ())}
    with suppress(PersonaNotFound):  # of a release before or after this one
        persona = catalog().persona(run["org_id"], run["persona_id"], sql=sql)
        names |= {tool.name for tool in persona.client_tools}
    return frozenset(names) if names else _NONE
