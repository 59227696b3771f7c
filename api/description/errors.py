"""The errors of each operation, and their responses."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from arkloop.api.description.json_types import JsonSchema
from arkloop.api.http.errors import INTERNAL_CODE, INTERNAL_MESSAGE, status_of
from arkloop.shared import errors
from arkloop.shared.errors import ArkloopError, NotFound

#: An id of this name in a path leads to an object that may not exist.
NOT_FOUND: Mapping[str, type[ArkloopError]] = {
    "thread_id": errors.ThreadNotFound,
    "run_id": errors.RunNotFound,
    "file_id": errors.FileMissing,
    "key_id": errors.ApiKeyNotFound,
    "provider_id": errors.ProviderNotFound,
    "model_id": errors.ModelNotFound,
    "config_id": errors.McpConfigNotFound,
    "tool_id": errors.ToolNotFound,
    "endpoint_id": errors.WebhookEndpointNotFound,
    "response_id": errors.ResponseNotFound,
    "org_id": errors.OrgNotFound,
    "user_id": errors.MemberNotFound,
    "invitation_id": errors.InvitationNotFound,
    "delivery_id": errors.WebhookDeliveryNotFound,
}
#: Of every request: what the server refuses before an endpoint is called, and what may fail.
ALWAYS = (
    errors.BadRequest,
    errors.Forbidden,
    errors.InvalidRequest,
    errors.UriTooLong,
    errors.HeadersTooLarge,
    errors.UnknownTransferCoding,
    errors.Unavailable,
)
OF_A_TOKEN = (errors.Unauthorized, errors.OrgSuspended, errors.RateLimitExceeded)
OF_A_BODY = (errors.RequestTimeout, errors.BodyTooLarge, errors.UnsupportedMediaType)
OF_A_KEY = (errors.IdempotencyConflict, errors.IdempotencyInProgress)
#: A segment with a slash or a colon leads to no endpoint.
OF_A_PATH = (errors.NotFound,)

_HEADERS = {
    401: ("WWW-Authenticate",),
    405: ("Allow",),
    429: ("Retry-After", "RateLimit", "RateLimit-Policy"),
}
_HEADERS[503] = ("Retry-After",)

ERROR: JsonSchema = {
    "type": "object",
    "description": "The one shape of all errors.",
    "properties": {
        "code": {"type": "string", "description": "It never changes; programs compare it."},
        "message": {"type": "string", "description": "For people; it may change."},
        "details": {
            "type": "object",
            "description": "For `validation.error`, a list of reasons for each wrong field.",
        },
        "trace_id": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
    },
    "required": ["code", "message", "details", "trace_id"],
}


OURS: JsonSchema = {"$ref": "#/components/schemas/Error"}


class ErrorResponses:
    """Makes the responses of errors; each combination of codes is one of `components`."""

    def __init__(self) -> None:
        self.components: dict[str, Any] = {}

    def of(
        self, raised: Iterable[type[ArkloopError]], shape: JsonSchema, statuses: Mapping[int, int]
    ) -> dict[str, Any]:
        """Return a response for each status of these errors and of a fault of the service."""
        by_status: dict[int, dict[str, str]] = defaultdict(dict)
        for error in raised:
            status = status_of(error)
            by_status[statuses.get(status, status)][error.code] = error.message
        by_status[500][INTERNAL_CODE] = INTERNAL_MESSAGE
        return {
            str(status): self._response(status, by_status[status], shape)
            for status in sorted(by_status)
        }

    def _response(
        self, status: int, messages: Mapping[str, str], shape: JsonSchema
    ) -> dict[str, Any]:
        name = "-".join(sorted(messages))
        schema = shape
        if shape == OURS:
            schema = {"allOf": [shape, {"properties": {"code": {"enum": sorted(messages)}}}]}
        else:
            name = f"{shape['$ref'].rpartition('/')[2]}-{name}"
            if NotFound.code in messages:  # of a path that leads to no endpoint
                schema = {"anyOf": [shape, OURS]}
        headers = ["X-Trace-Id", *_HEADERS.get(status, ())]
        self.components[name] = {
            "description": "\n".join(f"- `{code}`: {messages[code]}" for code in sorted(messages)),
            "headers": {header: header_ref(header) for header in headers},
            "content": {"application/json": {"schema": schema}},
        }
        return {"$ref": f"#/components/responses/{name}"}


def header_ref(name: str) -> dict[str, str]:
    """Return a reference to the header of responses."""
    return {"$ref": f"#/components/headers/{name}"}
