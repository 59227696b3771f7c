"""MCP servers: their tools, as tools of a run.

The official SDK is asyncio, the worker is threads; so the SDK runs in a process of
its own, one for each worker process, and nothing else does:

    worker: tools, discovery → client ──socket──▶ sidecar → sessions → stdio | http

`client` starts it when it is needed first. Both sides share `server` and
`descriptions`; the sidecar imports nothing that knows a database.
"""


class McpFailed(Exception):
    """What was asked of a server did not succeed; the message may be shown to the model."""


class ToolChanged(McpFailed):
    """The server describes the tool otherwise than it was approved; the call was not made."""


class SessionLost(McpFailed):
    """The server rejected a request unread, because it does not know the session (any more)."""


class Cancelled(McpFailed):
    """Whoever asked does not want to know any more."""
