"""The common parts of the SDKs' providers: addresses, bodies, ends, and the budget of the state."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import httpx2

from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.security import egress
from arkloop.worker.contract.messages import MAX_STATE_BYTES
from arkloop.worker.contract.outcomes import ProviderError
from arkloop.worker.providers.abortable_http import AbortableClient
from arkloop.worker.providers.sdk_errors import address_refused

T = TypeVar("T")


def address(route: Route, policy: egress.Policy | None) -> str:
    """Return the server's address, always: without it the SDKs take one from the environment.

    Raises:
        ProviderError: there is none, or the policy refuses it.
    """
    base_url = route.address
    if base_url is None:
        message = f"A route of the provider {route.provider!r} needs a `base_url`."
        raise ProviderError("invalid_request", message)
    if policy is None:
        return base_url
    try:
        return egress.check_url(base_url, policy).text
    except egress.Refused as error:
        raise address_refused(error) from error


def read_to_end(
    events: Iterable[T],
    is_last: Callable[[T], bool | None],
    connections: AbortableClient,
    sdk: Any,
) -> Iterator[T]:
    """Yield a response's events; ignore a failure that comes after the last one that matters.

    The rest of the body is not waited for long, and a retry would be paid for twice. `is_last` is
    False for an event after which the response is not whole, also if an earlier one seemed to be
    the last, and None for one that changes nothing. `sdk` is the module of the SDK that reads the
    events.
    """
    is_whole = False
    coming = iter(events)
    while True:
        try:
            event = next(coming)
        except StopIteration:
            return
        except (httpx2.TransportError, sdk.APIError, ValueError):
            if is_whole:
                return
            raise
        is_end = is_last(event)
        if is_end is not None and is_end != is_whole:
            is_whole = is_end
            connections.expect_end(is_near=is_whole)
        yield event


def with_encoded_body(options: Any) -> Any:
    """Return an SDK's options for a request with their body encoded, text by text.

    The SDKs make one string of it first. A single emoji in a long conversation makes each of its
    characters take four bytes of memory.
    """
    body = {**(options.json_data or {}), **(options.extra_json or {})}
    return options.model_copy(
        update={"json_data": None, "extra_json": None, "content": json_bytes(body)}
    )


def with_extra(body: dict[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Add the fields of `extra` to a body; where both have an object, the fields of both remain."""
    for name, value in extra.items():
        before = body.get(name)
        if isinstance(before, dict) and isinstance(value, dict):
            value = {**before, **value}
        body[name] = value
    return body


def json_bytes(value: object) -> bytes:
    """Return compact JSON in UTF-8."""
    encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return b"".join(piece.encode() for piece in encoder.iterencode(value))


class StateBudget:
    """The budget of one turn's state; nothing longer than `MAX_STATE_BYTES` is gathered."""

    def __init__(self) -> None:
        self._left = MAX_STATE_BYTES

    @property
    def is_over(self) -> bool:
        return self._left < 0

    def take(self, value: Any) -> bool:
        """Return whether there is room for the value in addition to all before it."""
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        self._left -= len(text)
        return not self.is_over
