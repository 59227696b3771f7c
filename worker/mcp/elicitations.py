"""The input that a server requests from people during a call: fields to fill in, pages to visit.

By the protocol of 2026-07-28 such a call ends, with a state that only the server understands, and
is made again with the replies: so the run can wait without a worker. By older protocols the server
asks while the call is in progress, which would have to be kept open; sessions of these do not offer
to ask anybody, and servers see that in the client's capabilities.
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import mcp_types as types
from mcp.client.session import ClientRequestContext, ClientSession
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from arkloop.shared.events.plain import clean, is_too_deep
from arkloop.shared.json_schema import InvalidSchema, JsonSchema
from arkloop.shared.runs.form_replies import AUTHORIZATION, FORM
from arkloop.worker.mcp import McpFailed

#: Of one call at a time.
MAX_ASKED = 8
MAX_KEY_CHARACTERS = 256
MAX_PROMPT_CHARACTERS = 4096
MAX_URL_CHARACTERS = 2048
MAX_SCHEMA_CHARACTERS = 16 * 1024
MAX_STATE_CHARACTERS = 64 * 1024


def asked_by(result: types.InputRequiredResult) -> dict[str, Any]:
    """Return `{asked, state}`: the requests of a result as a run asks them, in their order.

    Raises:
        McpFailed: it requests something else, or more than a person is asked for.
    """
    requests = result.input_requests or {}
    if len(requests) > MAX_ASKED:
        raise McpFailed(f"The tool requests more than {MAX_ASKED} inputs at a time.")
    if result.request_state is not None and len(result.request_state) > MAX_STATE_CHARACTERS:
        raise McpFailed(f"The tool's state is larger than {MAX_STATE_CHARACTERS // 1024} KiB.")
    if not requests:
        raise McpFailed("The tool requests to be called again later, which is not supported.")
    return {
        "asked": [_asked(key, request) for key, request in requests.items()],
        "state": result.request_state,
    }


def _asked(key: str, request: types.InputRequest) -> dict[str, Any]:
    if len(key) > MAX_KEY_CHARACTERS:
        raise McpFailed("The tool's request for input has too long a key.")
    if not isinstance(request, types.ElicitRequest):
        raise McpFailed(f"The tool requests {request.method}, which is not supported.")
    params = request.params
    asked = {"key": key, "prompt": clean(params.message[:MAX_PROMPT_CHARACTERS])}
    if isinstance(params, types.ElicitRequestURLParams):
        if len(params.url) > MAX_URL_CHARACTERS or not is_web_page(params.url):
            raise McpFailed("The tool requests a visit to an address that is no web page.")
        return {**asked, "kind": AUTHORIZATION, "url": params.url}
    schema = params.requested_schema
    try:
        if len(str(schema)) > MAX_SCHEMA_CHARACTERS or is_too_deep(schema):
            raise InvalidSchema("it is too large")
        JsonSchema(schema)
    except InvalidSchema as error:
        raise McpFailed(f"The tool requests input with an unusable schema: {error}") from None
    return {**asked, "kind": FORM, "schema": schema}


def is_web_page(url: str) -> bool:
    """Return whether a browser may be sent to this address."""
    if not url.isascii() or not url.isprintable():
        return False
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("https", "http") and bool(parts.hostname)


def fields_of(replies: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the fields of a call that is made again."""
    if replies is None:
        return {}
    responses = {key: types.ElicitResult(**reply) for key, reply in replies["responses"].items()}
    return {"input_responses": responses, "request_state": replies["state"]}


async def refuse(
    context: ClientRequestContext, params: types.ElicitRequestParams
) -> types.ErrorData:
    """Answer a server that asks during a call, although the client does not offer that."""
    return types.ErrorData(code=types.INVALID_REQUEST, message="Elicitation is not supported.")


_capabilities = ClientSession._build_capabilities


def _build_capabilities(session: ClientSession, version: str) -> types.ClientCapabilities:
    capabilities = _capabilities(session, version)
    if version not in MODERN_PROTOCOL_VERSIONS:
        capabilities.elicitation = None
    return capabilities


# The SDK offers elicitation to all servers or to none. Its version is pinned, and a test asks what
# it offers to an older one.
ClientSession._build_capabilities = _build_capabilities  # type: ignore[assignment, method-assign]  # patched
