"""A pending call as those who send its result see it."""

from typing import Any, Literal, NotRequired, TypedDict


class PendingCall(TypedDict):
    """A tool call whose result is missing; `pending_input` leaves out arguments that are long."""

    tool_call_id: str
    name: str
    arguments: NotRequired[Any]
    idempotent: bool
    idempotency_key: str
    traceparent: str
    result_from: NotRequired[Literal["http"]]
    expires_at: NotRequired[str]
