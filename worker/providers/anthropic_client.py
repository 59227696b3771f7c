"""The clients of Anthropic's SDK: for its own servers, and for platforms that sell its models."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import anthropic
import httpx2

from arkloop.shared.catalog import platforms
from arkloop.shared.catalog.model_routes import Route
from arkloop.worker.contract.outcomes import ProviderError
from arkloop.worker.providers import google_tokens
from arkloop.worker.providers.abortable_http import SENT_HEADERS, AbortableClient
from arkloop.worker.providers.bounded_response import MAX_EVENT_BYTES
from arkloop.worker.providers.not_events import only_events
from arkloop.worker.providers.sdk_client import with_encoded_body

#: The length of a frame of Amazon's event streams, at its beginning.
_LENGTH_BYTES = 4


class _EncodedBody:
    # A private method: the version is pinned, and a test measures its memory.
    def _build_request(self, options: Any, **retries: Any) -> Any:
        return super()._build_request(with_encoded_body(options), **retries)  # type: ignore[misc]  # of a mixin


class _CheckedEvents(_EncodedBody):
    # A private method: the version is pinned, and a test sends what is no event.
    def _make_sse_decoder(self) -> Any:
        return _Decoder(super()._make_sse_decoder(), only_events)  # type: ignore[misc]  # of a mixin


class _Anthropic(_CheckedEvents, anthropic.Anthropic):
    """Sends the key as `Authorization`, since the API's version 2026-10-21."""


class _Foundry(_CheckedEvents, anthropic.AnthropicFoundry):
    pass


class _Vertex(_CheckedEvents, anthropic.AnthropicVertex):
    pass


class _Bedrock(_EncodedBody, anthropic.AnthropicBedrock):
    def _prepare_request(self, request: httpx2.Request) -> None:
        # All headers are signed: none may be removed or changed afterwards.
        for name in set(request.headers) - SENT_HEADERS:
            del request.headers[name]
        request.headers["Accept-Encoding"] = "identity"
        super()._prepare_request(request)

    def _make_sse_decoder(self) -> Any:
        # The SDK's decoder of Amazon's event streams would keep 24 MB of a frame.
        return _Decoder(super()._make_sse_decoder(), bounded_frames)


class _Decoder:
    """The SDK's decoder, with its input checked."""

    def __init__(self, decoder: Any, checked: Callable[[Iterable[bytes]], Iterator[bytes]]) -> None:
        self._decoder = decoder
        self._checked = checked

    def iter_bytes(self, parts: Iterator[bytes]) -> Iterator[Any]:
        return iter(self._decoder.iter_bytes(self._checked(parts)))


def bounded_frames(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the parts of a stream of frames. Raises: ValueError: a frame is too long."""
    head, left = b"", 0
    for part in parts:
        place = 0
        while place < len(part):
            if left:
                taken = min(left, len(part) - place)
                left -= taken
            else:
                taken = min(_LENGTH_BYTES - len(head), len(part) - place)
                head += part[place : place + taken]
                if len(head) == _LENGTH_BYTES:
                    left, head = int.from_bytes(head, "big") - _LENGTH_BYTES, b""
                    if not 0 < left <= MAX_EVENT_BYTES:
                        raise ValueError("a frame of the stream is too long")
            place += taken
        yield part


def connect(route: Route, base_url: str, http: AbortableClient) -> Any:
    """Return the SDK's client of the route, which sends the route's credentials and no others."""
    options: dict[str, Any] = {
        "base_url": base_url,
        "http_client": http,
        "max_retries": 0,  # retries are ours, so that events and usage stay right
        "open_telemetry": False,
    }
    key = route.api_key or "none"
    match route.platform:
        case "bedrock":
            client = _Bedrock(aws_region=route.region, api_key=key, **options)
            if credentials := platforms.credentials_of(route.api_key):
                # Set afterwards: with them, the constructor reads a key of the environment.
                client.api_key = None
                client.aws_access_key = credentials["aws_access_key_id"]
                client.aws_secret_key = credentials["aws_secret_access_key"]
                client.aws_session_token = credentials.get("aws_session_token")
            return client
        case "vertex":
            assert route.region is not None and route.project_id is not None
            return _Vertex(
                region=route.region, project_id=route.project_id, access_token="", **options
            )
        case "foundry":
            return _Foundry(api_key=key, **options)
    return _Anthropic(api_key=key, **options)


def headers(route: Route) -> dict[str, str] | None:
    """Return the headers with the route's credentials; None: the SDK signs each request."""
    key = route.api_key or "none"
    if route.platform == "foundry":
        return {"x-api-key": key, "api-key": key}
    if route.platform == "bedrock" and platforms.credentials_of(route.api_key):
        return None
    return {} if route.platform == "vertex" else {"authorization": f"Bearer {key}"}


def authorize(route: Route, client: Any, http: AbortableClient) -> None:
    """Get the token that Vertex AI requires; others need none.

    Raises:
        ProviderError: Google refuses the service account.
    """
    if route.platform != "vertex":
        return
    credentials = platforms.credentials_of(route.api_key)
    if not credentials:
        raise ProviderError("auth", "The route has no key of a service account.")
    http.credentials.clear()  # the request for a token has none
    client.access_token = google_tokens.token(credentials, http)
    http.credentials["authorization"] = f"Bearer {client.access_token}"
