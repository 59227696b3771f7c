"""The client tools of a run, as tools whose results a client sends."""

from collections.abc import Iterable, Mapping
from typing import Any

from arkloop.shared.catalog.client_tools import ClientTool
from arkloop.shared.runs.states import ResultSource
from arkloop.worker.contract.context import ToolContext
from arkloop.worker.contract.messages import ToolSpec
from arkloop.worker.tools import CallInfo, ResultPending, Tool


def tools_of(declared: Iterable[ClientTool]) -> dict[str, Tool]:
    """Return the tools by name; their arguments are checked here, before the client gets them."""
    return {
        tool.name: Tool(
            spec=ToolSpec(tool.name, tool.description, tool.parameters),
            function=_leave_to_client,
            idempotent=True,  # the client gets the same call again, under the same id
            result_from=ResultSource.CLIENT,
        )
        for tool in declared
    }


def _leave_to_client(_context: ToolContext, _info: CallInfo, _arguments: Mapping[str, Any]) -> str:
    raise ResultPending
