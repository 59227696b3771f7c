"""Every error that a caller may meet, with its stable code.

ArkloopError
├── InvalidRequest              validation.error
│   ├── PersonaNotFound         personas.not_found
│   └── RouteNotFound           routes.not_found
├── InvalidState                runs.invalid_state
├── Unauthorized                auth.unauthorized
├── Forbidden                   auth.forbidden
├── NotFound                    http.not_found
│   ├── ThreadNotFound          threads.not_found
│   ├── RunNotFound             runs.not_found
│   ├── ApiKeyNotFound          api_keys.not_found
│   ├── ProviderNotFound        llm_providers.not_found
│   ├── ModelNotFound           llm_providers.model_not_found
│   ├── McpConfigNotFound       mcp_configs.not_found
│   └── McpToolNotFound         mcp_configs.tool_not_found
├── BadRequest                  http.bad_request
├── MethodNotAllowed            http.method_not_allowed
├── RequestTimeout              http.request_timeout
├── UnsupportedMediaType        http.unsupported_media_type
├── BodyTooLarge                http.body_too_large
├── UriTooLong                  http.uri_too_long
├── HeadersTooLarge             http.headers_too_large
├── UnknownTransferCoding       http.unknown_transfer_coding
├── Conflict
│   ├── ThreadBusy              runs.thread_busy
│   ├── NotWaiting              runs.not_waiting
│   ├── NotActive               runs.not_active
│   ├── StaleInput              input.stale
│   ├── LoginTaken              accounts.taken
│   ├── NameTaken               names.taken
│   ├── PersonaPublished        personas.published
│   ├── McpToolChanged          mcp_configs.tool_changed
│   ├── IdempotencyConflict     idempotency.conflict
│   └── IdempotencyInProgress   idempotency.in_progress
├── EventsLost                  runs.events_lost
├── BudgetExhausted             budget.exhausted
└── Unavailable                 service.unavailable

LeaseLost (BaseException)       a worker's claim is over; never reaches a caller

None of them knows HTTP: `api/errors.py` has the table from class to status.
What ends a run is in `worker/outcomes.py`.
"""

from collections.abc import Mapping
from typing import Any, ClassVar


class ArkloopError(Exception):
    """Something the caller can act on; `details` is part of the answer."""

    code: ClassVar[str]
    message: ClassVar[str] = "The request could not be carried out."

    # Positional only: a detail is named by the caller's own field, `message` or `self` too.
    def __init__(self, message: str | None = None, /, **details: Any) -> None:
        super().__init__(message or self.message)
        self.details: Mapping[str, Any] = details


class InvalidRequest(ArkloopError):
    """Details name each wrong field with its reasons: `{"field": ["why", …]}`."""

    code = "validation.error"
    message = "The request is not valid; details name what is wrong."


class PersonaNotFound(InvalidRequest):
    code = "personas.not_found"
    message = "There is no such persona; GET /v1/personas lists them."


class RouteNotFound(InvalidRequest):
    code = "routes.not_found"
    message = "There is no such route; GET /v1/routes lists them."


class InvalidState(ArkloopError):
    code = "runs.invalid_state"
    message = "The thread has no message yet: there is nothing to retry."


class Unauthorized(ArkloopError):
    code = "auth.unauthorized"
    message = "A valid access token or API key is needed: Authorization: Bearer <token>."


class Forbidden(ArkloopError):
    code = "auth.forbidden"
    message = "Your role or the scopes of your key do not allow this."


class NotFound(ArkloopError):
    code = "http.not_found"
    message = "There is nothing at this address."


class ThreadNotFound(NotFound):
    code = "threads.not_found"
    message = "There is no such thread."


class RunNotFound(NotFound):
    code = "runs.not_found"
    message = "There is no such run."


class EventsLost(ArkloopError):
    code = "runs.events_lost"
    message = "The database has lost the run's next events; later ones can be read with after_seq."


class ApiKeyNotFound(NotFound):
    code = "api_keys.not_found"
    message = "There is no such API key."


class ProviderNotFound(NotFound):
    code = "llm_providers.not_found"
    message = "There is no such provider."


class ModelNotFound(NotFound):
    code = "llm_providers.model_not_found"
    message = "The provider has no such model."


class McpConfigNotFound(NotFound):
    code = "mcp_configs.not_found"
    message = "There is no such MCP server."


class McpToolNotFound(NotFound):
    code = "mcp_configs.tool_not_found"
    message = "The MCP server has no such tool."


class BadRequest(ArkloopError):
    code = "http.bad_request"
    message = "The request is not valid HTTP."


class MethodNotAllowed(ArkloopError):
    code = "http.method_not_allowed"
    message = "This address does not answer to this method; Allow lists those it does."


class RequestTimeout(ArkloopError):
    code = "http.request_timeout"
    message = "The body did not arrive within 10 seconds."


class UnsupportedMediaType(ArkloopError):
    code = "http.unsupported_media_type"
    message = "Send the body as application/json in UTF-8, without a content encoding."


class BodyTooLarge(ArkloopError):
    code = "http.body_too_large"
    message = "The body is larger than 1 MiB."


class UriTooLong(ArkloopError):
    code = "http.uri_too_long"
    message = "The request line is longer than 8,190 bytes."


class HeadersTooLarge(ArkloopError):
    code = "http.headers_too_large"
    message = "The request has more than 100 headers, or one that is longer than 8,190 bytes."


class UnknownTransferCoding(ArkloopError):
    code = "http.unknown_transfer_coding"
    message = "The request has a transfer coding that this server does not support."


class Conflict(ArkloopError):
    """The object's state does not allow the request now."""

    code = "http.conflict"


class ThreadBusy(Conflict):
    code = "runs.thread_busy"
    message = "The thread has an active run; cancel it or wait for its end."


class NotWaiting(Conflict):
    code = "runs.not_waiting"
    message = "The run is not waiting for input."


class NotActive(Conflict):
    code = "runs.not_active"
    message = "The run has ended."


class StaleInput(Conflict):
    code = "input.stale"
    message = "This input request is not open, or was answered with another content."


class LoginTaken(Conflict):
    code = "accounts.taken"
    message = "The login or the email is taken."


class NameTaken(Conflict):
    """Details name the field."""

    code = "names.taken"
    message = "The org has one of this name already."


class PersonaPublished(Conflict):
    code = "personas.published"
    message = "This version is published already, and a published version never changes."


class McpToolChanged(Conflict):
    """Details name the tool and the hash that it has now."""

    code = "mcp_configs.tool_changed"
    message = "The server describes the tool otherwise by now: read it again before approving."


class IdempotencyConflict(Conflict):
    code = "idempotency.conflict"
    message = "This Idempotency-Key was used with another body."


class IdempotencyInProgress(Conflict):
    code = "idempotency.in_progress"
    message = "A request with this Idempotency-Key is still being carried out."


class BudgetExhausted(ArkloopError):
    """`retry_after` is in seconds, where waiting helps."""

    code = "budget.exhausted"
    message = "A budget or the credits are exhausted; details name which. An admin can raise it."

    def __init__(
        self, message: str | None = None, /, *, retry_after: int | None = None, **details: Any
    ) -> None:
        super().__init__(message, **details)
        self.retry_after = retry_after


class Unavailable(ArkloopError):
    code = "service.unavailable"
    message = "The database is out of reach; try again shortly."


class LeaseLost(BaseException):
    """The run is not this claim's any more: stop at once, write nothing.

    Not an Exception, so that a tool's `except Exception` cannot swallow it.
    """
