"""The facts about a run that AG-UI needs and that its events do not have."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import RowMapping

from arkloop.api.http.current import actor
from arkloop.api.protocols import call_ids
from arkloop.api.protocols.agui_messages import NO_IDS
from arkloop.api.protocols.agui_requests import RUN_ID
from arkloop.api.protocols.client_tool_names import client_tool_names
from arkloop.shared.runs import pending_calls


@dataclass(frozen=True, slots=True, kw_only=True)
class AguiFacts:
    """The facts about a run that its events do not have: the client's ids, and its tools."""

    run_id: UUID
    thread_id: str
    client_run_id: str
    client_tools: frozenset[str] = frozenset()
    is_for_end_user: bool = False
    #: The request that the run waits with, and the ids of its calls that have no result yet.
    awaits: tuple[str, frozenset[str]] = ("", NO_IDS)

    def call_id(self, tool_call_id: str) -> str:
        """Return the id of a call for clients, who take it for unique in the thread."""
        return call_ids.shown(self.run_id, tool_call_id)

    def client_calls(self, data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Return the calls whose results a request has the client send."""
        return [call for call in data.get("calls") or () if call["name"] in self.client_tools]

    def client_call_ids(self, data: Mapping[str, Any]) -> frozenset[str]:
        """Return the ids of the calls of `client_calls`, as clients know them."""
        return frozenset(self.call_id(call["tool_call_id"]) for call in self.client_calls(data))

    def asks_client(self, data: Mapping[str, Any]) -> bool:
        """Return whether a request is for the client, and not for HTTP tools alone."""
        return data["kind"] != pending_calls.KIND or bool(self.client_calls(data))

    def may_edit(self, name: str | None) -> bool:
        """Return whether the reader may edit arguments of a tool's calls that they may approve."""
        return not self.is_for_end_user or name in self.client_tools

    def missing(self, request_id: str, ids: list[str]) -> list[str]:
        """Return those of a request's calls that have no result; all if that is not known."""
        awaited_id, awaited = self.awaits
        return [id_ for id_ in ids if awaited_id == request_id and id_ in awaited] or ids


def facts_of(run: RowMapping, thread_id: str, client_run_id: str | None = None) -> AguiFacts:
    """Return the facts about a run of the thread with this id of the client."""
    pending: Mapping[str, Any] = run["pending_input"] or {}
    awaited = (call_ids.shown(run["id"], c["tool_call_id"]) for c in pending.get("calls", ()))
    return AguiFacts(
        run_id=run["id"],
        thread_id=thread_id,
        client_run_id=client_run_id or run["metadata"].get(RUN_ID) or str(run["id"]),
        client_tools=client_tool_names(run),
        is_for_end_user=actor().end_user_id is not None,
        awaits=(pending.get("request_id", ""), frozenset(awaited)),
    )
