"""Every error that a caller may meet, with its stable code.

The bases are `InvalidRequest`, `NotFound`, `Conflict` and `Unavailable`, and for the rest
`ArkloopError` itself. `LeaseLost`, a worker's claim that is over, never reaches a caller.

None of them knows HTTP: `api/http/errors.py` has the table from class to status.
What ends a run is in `worker/contract/outcomes.py`.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Self


class ArkloopError(Exception):
    """An error that the caller can act on; `details` is part of the response."""

    code: ClassVar[str]
    message: ClassVar[str] = "The request could not be processed."
    retry_after: int | None = None  # seconds, where waiting helps

    # Positional only: a detail is named by the caller's own field, `message` or `self` too.
    def __init__(self, message: str | None = None, /, **details: Any) -> None:
        super().__init__(message or self.message)
        self.details: Mapping[str, Any] = details

    def after(self, seconds: int | None) -> Self:
        """Set after how many seconds the caller should try again."""
        self.retry_after = seconds
        return self


class InvalidRequest(ArkloopError):
    """Details name each wrong field with its reasons: `{"field": ["why", …]}`."""

    code = "validation.error"
    message = "The request is not valid; see `details`."


class PersonaNotFound(InvalidRequest):
    code = "personas.not_found"
    message = "Persona not found; GET /v1/personas lists all personas."


class RouteNotFound(InvalidRequest):
    code = "routes.not_found"
    message = "Route not found; GET /v1/routes lists all routes."


class InvalidState(ArkloopError):
    code = "runs.invalid_state"
    message = "The thread has no messages, so there is nothing to retry."


class Unauthorized(ArkloopError):
    code = "auth.unauthorized"
    message = "A valid access token or API key is required: Authorization: Bearer <token>."


class OrgSuspended(Unauthorized):
    code = "org.suspended"
    message = "This organization is suspended; ask the operator of the service."


class Forbidden(ArkloopError):
    code = "auth.forbidden"
    message = "Your role or the scopes of your key do not allow this."


class NotFound(ArkloopError):
    code = "http.not_found"
    message = "No such endpoint."


class ThreadNotFound(NotFound):
    code = "threads.not_found"
    message = "Thread not found."


class RunNotFound(NotFound):
    code = "runs.not_found"
    message = "Run not found."


class ResponseNotFound(NotFound):
    code = "responses.not_found"
    message = "Response not found."


class FileMissing(NotFound):
    code = "files.not_found"
    message = "File not found."


class EventsLost(ArkloopError):
    code = "runs.events_lost"
    message = "Some events are lost; a larger `after_seq` of /v1/runs/{run_id}/events skips them."


class SessionNotFound(NotFound):
    code = "sessions.not_found"
    message = "Session not found."


class ApiKeyNotFound(NotFound):
    code = "api_keys.not_found"
    message = "API key not found."


class OrgNotFound(NotFound):
    code = "orgs.not_found"
    message = "Organization not found."


class MemberNotFound(NotFound):
    code = "members.not_found"
    message = "Member not found."


class InvitationNotFound(NotFound):
    code = "invitations.not_found"
    message = "Invitation not found."


class ProviderNotFound(NotFound):
    code = "llm_providers.not_found"
    message = "Provider not found."


class ModelNotFound(NotFound):
    code = "llm_providers.model_not_found"
    message = "Model not found."


class McpConfigNotFound(NotFound):
    code = "mcp_configs.not_found"
    message = "MCP server not found."


class McpToolNotFound(NotFound):
    code = "mcp_configs.tool_not_found"
    message = "MCP tool not found."


class ToolNotFound(NotFound):
    code = "tools.not_found"
    message = "Tool not found."


class WorkerCallNotFound(NotFound):
    code = "tool_workers.call_not_found"
    message = "This pool has no such call."


class WorkerToolNotFound(NotFound):
    code = "tool_workers.tool_not_found"
    message = "No worker of this pool has registered such a tool."


class WebhookEndpointNotFound(NotFound):
    code = "webhook_endpoints.not_found"
    message = "Webhook endpoint not found."


class WebhookDeliveryNotFound(NotFound):
    code = "webhook_endpoints.delivery_not_found"
    message = "Webhook delivery not found."


class BadRequest(ArkloopError):
    code = "http.bad_request"
    message = "The request is not valid HTTP."


class McpStateInvalid(ArkloopError):
    code = "mcp_oauth.state_invalid"
    message = (
        "This authorization is unknown, has expired or was completed before; start again from"
        " where you found the link."
    )


class InvitationInvalid(ArkloopError):
    code = "invitations.invalid"
    message = "This invitation is unknown, has expired, or was accepted or revoked before."


class PasswordResetInvalid(ArkloopError):
    code = "password_resets.invalid"
    message = "This password reset is unknown, has expired, or was used or replaced before."


class MethodNotAllowed(ArkloopError):
    code = "http.method_not_allowed"
    message = "Method not allowed for this endpoint; see the `Allow` header."


class RequestTimeout(ArkloopError):
    code = "http.request_timeout"
    message = "The body did not arrive within 10 seconds."


class UnsupportedMediaType(ArkloopError):
    code = "http.unsupported_media_type"
    message = "Send the body as application/json in UTF-8; Content-Encoding is not supported."


class BodyTooLarge(ArkloopError):
    code = "http.body_too_large"
    message = "The body is larger than 1 MiB."


class UriTooLong(ArkloopError):
    code = "http.uri_too_long"
    message = "The request line is longer than 8,190 bytes."


class HeadersTooLarge(ArkloopError):
    code = "http.headers_too_large"
    message = "The request has more than 100 headers, or a header line longer than 8,188 bytes."


class UnknownTransferCoding(ArkloopError):
    code = "http.unknown_transfer_coding"
    message = "The request has a transfer coding that this server does not support."


class Conflict(ArkloopError):
    """The object's state does not allow the request now."""

    code = "http.conflict"


class ThreadBusy(Conflict):
    code = "runs.thread_busy"
    message = "The thread has an active run; cancel it or wait for its end."


class NotNewestResponse(Conflict):
    code = "responses.not_newest"
    message = "The conversation has a newer response; only the newest one can be continued."


class NotWaiting(Conflict):
    code = "runs.not_waiting"
    message = "The run is not waiting for input."


class NotActive(Conflict):
    code = "runs.not_active"
    message = "The run has ended."


class StaleInput(Conflict):
    code = "input.stale"
    message = "This input request is closed, or was already answered with different content."


class ToolResultConflict(Conflict):
    """Details name the calls."""

    code = "tool_results.conflict"
    message = "These tool calls already have a different result; see `details`."


class LoginTaken(Conflict):
    code = "accounts.taken"
    message = "The login or the email is already in use."


class LastOwner(Conflict):
    code = "members.last_owner"
    message = "The organization would have no owner; make somebody else an owner first."


class AlreadyMember(Conflict):
    code = "members.already_member"
    message = "You are a member of this organization already."


class NameTaken(Conflict):
    """Details name the field."""

    code = "names.taken"
    message = "This name is already in use in your organization."


class PersonaPublished(Conflict):
    code = "personas.published"
    message = "This version is already published; a published version cannot be changed."


class McpToolChanged(Conflict):
    """Details name the tool and the hash that it has now."""

    code = "mcp_configs.tool_changed"
    message = (
        "The tool's description has changed since you fetched it; review the new"
        " description before approving."
    )


class OutdatedFence(Conflict):
    """Details have the state of the run."""

    code = "agent_workers.outdated_fence"
    message = "This worker does not hold the run any more; stop working on it."


class SequenceConflict(Conflict):
    """Details have the number that comes next."""

    code = "agent_workers.sequence_conflict"
    message = "`seq` is neither the number of the run's next event nor that of this write."


class StaleCall(Conflict):
    """Details have the call's current fence and state."""

    code = "tool_workers.stale_call"
    message = (
        "You no longer hold this call: its lease has expired, the service has given it up, or it"
        " has another result. This result was not stored."
    )


class WorkerToolsUnknown(Conflict):
    code = "tool_workers.tools_unknown"
    message = "This server does not know the tools with this hash; send `tools` again."


class WebhookEndpointDisabled(Conflict):
    code = "webhook_endpoints.disabled"
    message = "The webhook endpoint is disabled; enable it first."


class IdempotencyConflict(Conflict):
    code = "idempotency.conflict"
    message = "This Idempotency-Key was already used with a different request body."


class IdempotencyInProgress(Conflict):
    code = "idempotency.in_progress"
    message = "A request with this Idempotency-Key is still in progress."


class QueueFull(ArkloopError):
    code = "threads.queue_full"
    message = "The queue of the thread is full; wait for one of its runs to end, or cancel one."


class RunLimitExceeded(ArkloopError):
    """Details name the limit, and whether it is that of the `org` or of the `key`."""

    code = "runs.limit_exceeded"
    message = "The limit on running and waiting runs is reached; see `details`."


class StreamLimitExceeded(ArkloopError):
    """Details have the limit, and whether it is that of the `org` or of the `key`."""

    code = "streams.limit_exceeded"
    message = (
        "The limit on open streams is reached; see `details`. Close a stream, or follow all runs of"
        " a thread with one stream: /v1/threads/{thread_id}/events."
    )


class BudgetExhausted(ArkloopError):
    code = "budget.exhausted"
    message = "A budget or the credits are exhausted; see `details`. An admin can raise the limit."


class TooManyAttempts(ArkloopError):
    code = "auth.too_many_attempts"
    message = "Too many attempts with this login; try again later."


class RateLimitExceeded(ArkloopError):
    """Details name the limit: that of the `org` or of the `key`."""

    code = "rate_limit.exceeded"
    message = "Too many requests; see `Retry-After` and `details`."


class Unavailable(ArkloopError):
    code = "service.unavailable"
    message = "The database is unavailable; try again shortly."


class StorageUnavailable(Unavailable):
    code = "files.storage_unavailable"
    message = "The file storage is unavailable; try again shortly."


class LeaseLost(BaseException):
    """The run is not this claim's any more: stop at once, write nothing.

    Not an Exception, so that a tool's `except Exception` cannot swallow it.
    """
