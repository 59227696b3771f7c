"""MCP servers: their tools, as tools of a run.

The official SDK is asyncio, the worker is threads; so the SDK runs in processes of its
own, one for each org, and nothing else does:

    worker: tools, discovery → client → org_sidecar ──socket──▶ sidecar → sessions → stdio | http

`client` has them started when they are needed first, by `forker`. Both sides share `server`
and `descriptions`; a sidecar imports nothing that knows a database.
"""

from collections.abc import Mapping
from typing import Any

#: The key in the `_meta` of a call whose value is the call's identity.
CALL_META = "arkloop/call"
#: That of its trace context, and the HTTP header: MCP reserves the name without a prefix.
TRACEPARENT = "traceparent"
#: Added to the failure of a call that a server may have read before it was lost.
MAY_BE_DONE = " The call may have taken effect."


class McpFailed(Exception):
    """A failed request to a server; the message may be shown to the model.

    `cause` is the system's error behind it, which is for the operator alone.
    """

    def __init__(self, message: str | None, *, cause: str | None = None) -> None:
        super().__init__(message)
        self.cause = cause


class ToolChanged(McpFailed):
    """The server describes the tool otherwise than it was approved; the call was not made."""


class SessionLost(McpFailed):
    """The server rejected a request unread, because it does not know the session (any more).

    `problem` is the lack of access that it may have rejected the request for instead.
    """

    def __init__(self, reason: str, problem: McpFailed | None = None) -> None:
        super().__init__(reason)
        self.problem = problem


class AuthorizationRequired(McpFailed):
    """The lack of somebody's access; `made` is the request for it, whose page is to be visited."""

    def __init__(self, made: Mapping[str, Any]) -> None:
        super().__init__("Access to the server has to be authorized.")
        self.made = made


class Cancelled(McpFailed):
    """The cancellation of a request by its caller."""
