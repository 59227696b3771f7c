"""JSON-RPC messages of servers, parsed only if that cannot cost much memory.

A message of 4 MiB can hold two million values, of 100 bytes and more each once they are parsed.
"""

import re
from contextvars import ContextVar
from typing import Any

import httpx2
from mcp.client import streamable_http
from mcp_types import (
    PARSE_ERROR,
    ErrorData,
    JSONRPCError,
    JSONRPCMessage,
    JSONRPCNotification,
    JSONRPCRequest,
    JSONRPCResponse,
    jsonrpc_message_adapter,
)
from pydantic import ValidationError
from pydantic_core import from_json

from arkloop.shared.json_text import has_more_values
from arkloop.worker.mcp import progress
from arkloop.worker.mcp.results import MAX_ERROR_CHARACTERS, reduce
from arkloop.worker.mcp.tool_lists import put_in_order

MAX_BYTES = 4 * 1024 * 1024
#: Values in one message, members and items alike.
MAX_VALUES = 20_000
#: How `CheckedClient` decodes events: a character for each byte. One character beyond the Basic
#: Multilingual Plane would have Python store all the others in four bytes too, in every copy.
EVENT_ENCODING = "latin-1"
#: The key in the `_meta` of a call by which its response is recognized, and what a server asks
#: during it.
REQUEST_ID = "arkloop/request"
#: The id of the call whose stream is being read, by the task that reads it.
STREAM_OF: ContextVar[str | None] = ContextVar("STREAM_OF", default=None)
#: Escapes of surrogates after all the backslashes before them, a pair as one.
_SURROGATES = re.compile(
    rb"(?<!\\)(\\+)u[dD](?:[89abAB]X{2}(\\u[dD][c-fC-F]X{2})?|[c-fC-F]X{2})".replace(
        b"X", b"[0-9a-fA-F]"
    )
)
_REPLACEMENT = rb"\ufffd"


class TooLarge(httpx2.StreamError):
    """A server sends more than is read of it."""


def parse(data: bytes) -> JSONRPCMessage:
    """Parse a message, and leave of it what is used.

    Raises:
        TooLarge: it has more than `MAX_BYTES` bytes or `MAX_VALUES` values.
        ValueError: it is not a message.
    """
    _check_size(data)
    message = jsonrpc_message_adapter.validate_json(_paired(data), by_name=False)
    # Now, for the SDK formats and keeps messages.
    match message:
        case JSONRPCResponse():
            put_in_order(message.result)
            reduce(message.result)
        case JSONRPCRequest():
            params = message.params or {}
            message.params = {**params, "_meta": {REQUEST_ID: STREAM_OF.get()}}
        case JSONRPCNotification(method="notifications/progress"):
            progress.reduce(message.params)
        case JSONRPCError():
            message.error.message = message.error.message[: MAX_ERROR_CHARACTERS + 1]
    return message


def refusal_of(data: bytes) -> JSONRPCError | None:
    """Return an error for the request whose response `parse` has refused; it would wait for one.

    None if the data is no response.
    """
    try:
        [found] = objects_in(data)
    except ValueError:
        return None
    if "jsonrpc" not in found or "method" in found:
        return None
    error = ErrorData(code=PARSE_ERROR, message="The response is not valid.")
    try:
        return JSONRPCError(jsonrpc="2.0", id=found.get("id"), error=error)
    except ValidationError:
        return None


def objects_in(data: bytes) -> list[dict[str, Any]]:
    """Return the object that is in JSON, or those in an array, whether they are messages or not.

    Raises:
        TooLarge: it has more than `MAX_BYTES` bytes or `MAX_VALUES` values.
        ValueError: it is not JSON.
    """
    _check_size(data)
    found = from_json(_paired(data))
    items = found if isinstance(found, list) else [found]
    return [item for item in items if isinstance(item, dict)]


def _check_size(data: bytes) -> None:
    if len(data) > MAX_BYTES:
        raise TooLarge(f"more than {MAX_BYTES:,} bytes")
    if has_more_values(data, MAX_VALUES):
        raise TooLarge(f"more than {MAX_VALUES:,} values")


def _paired(data: bytes) -> bytes | bytearray:
    """Replace surrogates without their other half, with which JavaScript ends a text that it cut.

    They cannot be decoded, and the message with them; `clean` would replace them later in any case.
    """
    if rb"\ud" not in data and rb"\uD" not in data:
        return data
    paired = bytearray(data)  # changed in place: `sub` would keep a piece for each
    for escape in _SURROGATES.finditer(data):
        backslashes, low = escape.groups()
        is_escaped = len(backslashes) % 2 == 0  # what follows only looks like an escape
        if is_escaped == (low is not None):
            paired[escape.end() - len(_REPLACEMENT) : escape.end()] = _REPLACEMENT
    return paired


class _Adapter:
    """Stands in for the SDK's adapter, which parses whatever it is given."""

    def validate_json(self, data: bytes | str, **_: Any) -> JSONRPCMessage:
        return parse(data.encode(EVENT_ENCODING) if isinstance(data, str) else data)


# The SDK has no hook before it parses. Its version is pinned, and a test sends what is too large.
streamable_http.jsonrpc_message_adapter = _Adapter()  # type: ignore[attr-defined, assignment]  # patched
