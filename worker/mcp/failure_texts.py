"""Descriptions of what the SDK raises, for people and models, without any content of a response."""

from mcp import MCPError
from mcp_types import PARSE_ERROR

from arkloop.shared.events.plain import clean
from arkloop.shared.security.checked_http import root_cause
from arkloop.worker.mcp import McpFailed, failed_requests
from arkloop.worker.mcp.checked_http import CheckedClient
from arkloop.worker.mcp.failed_requests import LOST, NOT_VALID
from arkloop.worker.mcp.results import MAX_ERROR_CHARACTERS, cut

#: The SDK's message for a 404 without an error of JSON-RPC, outside of a session with an id.
NOT_FOUND = "Not Found"
#: The beginning of what the SDK says of a response that the server has not finished.
_STREAM_ENDED = "SSE stream ended"


def of_connection(error: BaseException, http: CheckedClient | None) -> str:
    """Describe why a connection failed."""
    error = _first(error)
    match error:
        case McpFailed():
            return str(error)
        case MCPError():
            return of_error(error, http)
        case FileNotFoundError():
            return "Program not found on this machine."
    if isinstance(error, failed_requests.FAILURES):
        return failed_requests.reason_of(error)
    return "The server does not support MCP."


def cause_of_connection(error: BaseException) -> str | None:
    """Return the system's error behind a connection that failed; None if it is another failure."""
    error = _first(error)
    if isinstance(error, McpFailed):
        return error.cause
    return root_cause(error) if isinstance(error, failed_requests.FAILURES) else None


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def of_error(error: MCPError, http: CheckedClient | None) -> str:
    """Describe an error that is the response to a request."""
    if error.code == PARSE_ERROR:
        return NOT_VALID
    text = cut(clean(error.message), MAX_ERROR_CHARACTERS, "…")
    status = http.refused_with if http is not None else None
    if error.message in ("Server returned an error response", NOT_FOUND) and status is not None:
        return f"The server responded with HTTP status {status}."
    if http is not None and error.message.startswith(_STREAM_ENDED):
        return LOST
    return f"The server responded with an error: {text}"
