"""The names that the author of a tool needs; `docs/how-to/plugins.md` shows their use."""

from arkloop.worker.contract.attachments import ToolOutput
from arkloop.worker.contract.context import ToolContext
from arkloop.worker.contract.cpu_slices import cpu_slice
from arkloop.worker.tools import CallInfo, Tool, ToolFailed, tool

__all__ = ["CallInfo", "Tool", "ToolContext", "ToolFailed", "ToolOutput", "cpu_slice", "tool"]
