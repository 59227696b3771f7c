"""Tools as runs are offered them, for tests."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.tools import CallInfo, Tool
from tests.worker.recorded_run import RUN

ODD = Path(__file__).with_name("odd_mcp_server.py")
INFO = CallInfo.of(RUN, "call")
#: `named(name, *tools)` → the config's id; the server has `tools` besides those of the odd one.
Named = Callable[..., UUID]


def says(folder: Path, *tools: dict[str, Any]) -> None:
    schema = {"type": "object"}
    described = [{"description": "A tool.", "inputSchema": schema, **tool} for tool in tools]
    (folder / "descriptions.json").write_text(json.dumps(described))


def call(tool: Tool, **arguments: Any) -> str:
    tool.check(arguments)
    return tool(StopSignal(), INFO, arguments)
