"""The input that a server requests from people during a call: fields to fill in, pages to visit.

By the protocol of 2026-07-28 such a call ends, with a state that only the server understands, and
is made again with the replies. By older protocols the server asks while the call is in progress,
which `open_calls` keeps; or the call fails with the pages to visit, and is made again after that.
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import mcp_types as types
from pydantic import ValidationError

from arkloop.shared.events.plain import clean, is_too_deep, plain
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
#: Begins the key of a page without which a call has failed.
_PAGE = "arkloop/page"


class PagesRequired(McpFailed):
    """The failure of a call that is to be made again once somebody has visited pages."""

    def __init__(self, asked: list[dict[str, Any]]) -> None:
        super().__init__("The tool requires visits to pages.")
        self.asked = asked


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
    return asked(key, request.params)


def asked(key: str, params: types.ElicitRequestParams) -> dict[str, Any]:
    """Return one request as a run asks it.

    Raises:
        McpFailed: no person should get it.
    """
    fields = {"key": key, "prompt": clean(params.message[:MAX_PROMPT_CHARACTERS])}
    if isinstance(params, types.ElicitRequestURLParams):
        if len(params.url) > MAX_URL_CHARACTERS or not is_web_page(params.url):
            raise McpFailed("The tool requests a visit to an address that is no web page.")
        return {**fields, "kind": AUTHORIZATION, "url": params.url}
    schema = params.requested_schema
    try:
        if len(str(schema)) > MAX_SCHEMA_CHARACTERS or is_too_deep(schema):
            raise InvalidSchema("it is too large")
        if plain(schema) != schema:  # it would fail the run, which shows it as JSON in Postgres
            raise InvalidSchema("it has a NUL, half a character or a number that is not finite")
        JsonSchema(schema)
    except InvalidSchema as error:
        raise McpFailed(f"The tool requests input with an unusable schema: {error}") from None
    return {**fields, "kind": FORM, "schema": schema}


def pages_required(data: Any) -> PagesRequired:
    """Return what the error of a call, URL_ELICITATION_REQUIRED, asks for by its `data`.

    Raises:
        McpFailed: it asks for something else.
    """
    found = data.get("elicitations") if isinstance(data, dict) else None
    if not isinstance(found, list) or not 0 < len(found) <= MAX_ASKED:
        raise McpFailed(f"The tool requires visits to no page, or to more than {MAX_ASKED}.")
    try:
        pages = [types.ElicitRequestURLParams.model_validate(one) for one in found]
    except ValidationError:
        raise McpFailed("The server's response is not valid MCP.") from None
    return PagesRequired([asked(f"{_PAGE}/{number}", page) for number, page in enumerate(pages)])


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
    """Return the fields of a call that is made again.

    Raises:
        McpFailed: somebody did not agree to visit a page without which it failed.
    """
    if replies is None:
        return {}
    if any(key.startswith(_PAGE) for key in replies["responses"]):
        if any(reply["action"] != "accept" for reply in replies["responses"].values()):
            raise McpFailed("The user did not agree to visit the page that the tool requires.")
        return {}
    responses = {key: types.ElicitResult(**reply) for key, reply in replies["responses"].items()}
    return {"input_responses": responses, "request_state": replies["state"]}
