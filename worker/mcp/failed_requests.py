"""Requests over HTTP that get no response: such a request fails alone, and the session continues.

An exception would end the SDK's transport, and with it all calls that are in progress. So it gets
a response that is made here, an error of JSON-RPC.
"""

import json
import re
import secrets
import socket
from collections.abc import Mapping
from typing import Any

import httpx2
from mcp_types import UNSUPPORTED_PROTOCOL_VERSION

from arkloop.shared import machine
from arkloop.shared.addresses import host_and_port
from arkloop.shared.security import egress
from arkloop.shared.security.checked_http import root_cause, tls_failure
from arkloop.worker.mcp import McpFailed
from arkloop.worker.mcp.bounded_messages import TooLarge, objects_in

LOST = "The connection to the server was lost."
NOT_CONNECTED = "Connecting to the server failed."
NO_HOST = "The server's host name is not known."
NOT_VALID = "The server's response is not valid MCP, or too large."
COMPRESSED = "The server's response is compressed although `identity` was requested."
NOT_AUTHORIZED = "The server that authorizes access is not available; try again later."
#: What is raised for a request that gets no response.
FAILURES = (httpx2.HTTPError, httpx2.StreamError, egress.Refused, OSError)
#: What is raised where a server may not have got a request; with others it has responded.
UNDELIVERED = (httpx2.TransportError, egress.Refused, OSError)
#: With these a server has read nothing.
_NOT_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, egress.Refused)
#: They begin a session: without them there is none to continue, nor any call in progress.
_HANDSHAKE = frozenset({"initialize", "notifications/initialized", "server/discover"})
#: Marks an error as made here; servers never see it.
_MARK = secrets.token_hex(16)


def is_of_handshake(request: httpx2.Request) -> bool:
    """Return whether the POST is one of those that begin a session."""
    return json.loads(request.content).get("method") in _HANDSHAKE


def relies_on_handshake(request: httpx2.Request) -> bool:
    """Return whether the POST is a request by the protocol that a handshake has agreed on."""
    if request.headers.get("content-type") != "application/json":
        return False  # a form of OAuth, which registers clients in JSON
    message = json.loads(request.content)
    is_request = "jsonrpc" in message and "method" in message and "id" in message
    return is_request and message["method"] not in _HANDSHAKE


def is_rejected_unread(request: httpx2.Request, body: bytes) -> bool:
    """Return whether a 4xx with this body may be about what the handshake has agreed on.

    By the protocol 2026-07-28 errors that tools raise have such a status, too, with the id of the
    request. Servers that do not know the session or its protocol send none, but for the code. A
    tool may have run wherever the id may be that of the request, even if the message is not valid.
    """
    if not relies_on_handshake(request):
        return False
    request_id = json.loads(request.content)["id"]
    try:
        objects = objects_in(body)
    except TooLarge:
        return False
    except ValueError:
        return re.search(rf'"id"\s*:\s*"?{request_id}\b'.encode(), body) is None
    found = [one for one in objects if one.get("id") in (request_id, str(request_id))]
    errors = [one.get("error") for one in found]
    return all(
        isinstance(error, dict) and error.get("code") == UNSUPPORTED_PROTOCOL_VERSION
        for error in errors
    )


def message_of(request: httpx2.Request) -> Mapping[str, Any]:
    """Return the message that a POST sends, an empty one for other requests."""
    message: Mapping[str, Any] = json.loads(request.content) if request.method == "POST" else {}
    return message


def replied_to(message: Mapping[str, Any]) -> str | int | None:
    """Return the id of the server's request that this one replies to, None if it is no reply."""
    asked: str | int | None = None if "method" in message else message.get("id")
    return asked


def is_notification(message: Mapping[str, Any]) -> bool:
    """Return whether the message is a notification within a session."""
    return "method" in message and "id" not in message and message["method"] not in _HANDSHAKE


def response_to(request: httpx2.Request, error: Exception) -> httpx2.Response:
    """Return the response to a POST that failed, in place of the exception."""
    failure = failure_of(request, error)
    is_of_server = _failed(request, error) is request
    may_be_done = is_of_server and not isinstance(error, (*_NOT_SENT, TooLarge))
    made = {
        "code": -32000,
        "message": str(failure),
        "data": {"mark": _MARK, "may_be_done": may_be_done, "cause": failure.cause},
    }
    body = {"jsonrpc": "2.0", "id": None, "error": made}
    return httpx2.Response(503, json=body, request=request)


def failure_of(request: httpx2.Request, error: Exception) -> McpFailed:
    """Return what is said of a POST that failed: another server may be the one to blame."""
    failed = _failed(request, error)
    if failed is request:
        return McpFailed(reason_of(error), cause=root_cause(error))
    # The server has chosen the host; the rest of the address may contain anything.
    host, port = host_and_port(str(failed.url))
    return McpFailed(NOT_AUTHORIZED, cause=f"{root_cause(error)} at {host}:{port}")


def _failed(request: httpx2.Request, error: Exception) -> httpx2.Request:
    """Return the request that failed: this one, or one of its authorization around a 401."""
    return getattr(error, "_request", None) or request


def may_be_done(data: Any) -> bool | None:
    """Return whether the server may have carried out a failed request, by its error's `data`.

    None if the error is not one of `response_to`.
    """
    if isinstance(data, dict) and data.get("mark") == _MARK:
        return bool(data["may_be_done"])
    return None


def reason_of(error: BaseException) -> str:
    """Describe a failure, without any content of a response."""
    match error:
        case egress.Refused():
            return str(error)
        case TooLarge():
            return NOT_VALID
        case httpx2.DecodingError():
            return COMPRESSED
        case TimeoutError() | httpx2.TimeoutException():
            return "The server did not respond in time."
        case httpx2.ConnectError():
            if tls := tls_failure(error):
                return f"TLS error at the server: {tls}."
            return NO_HOST if _is_of_name(error) else NOT_CONNECTED
    return LOST


def _is_of_name(error: BaseException) -> bool:
    """Return whether a name has no host, which is no failure of the resolver.

    Nothing private is revealed: a name that leads to a forbidden address is refused as such.
    """
    return machine.shortage_behind(error) is None and any(
        isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_NONAME
        for cause in machine.causes_of(error)
    )
