"""The official SDK's client, shared by both of OpenAI's APIs."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import openai
from openai._streaming import ServerSentEvent, SSEDecoder

from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.security.egress import Policy
from arkloop.worker.contract.messages import ModelRequest
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.providers.abortable_http import AbortableClient
from arkloop.worker.providers.not_events import only_events
from arkloop.worker.providers.sdk_client import address, read_to_end, with_encoded_body
from arkloop.worker.providers.sdk_errors import provider_errors

T = TypeVar("T")


class _Decoder:
    def __init__(self, connections: AbortableClient) -> None:
        self._connections = connections

    def iter_bytes(self, iterator: Iterator[bytes]) -> Iterator[ServerSentEvent]:
        for event in SSEDecoder().iter_bytes(only_events(iterator)):
            if event.data.startswith("[DONE]"):
                # The SDK stops reading here, and what is unread would close the connection.
                self._connections.drain(iterator)
            # The SDK takes a lone `retry:`, and any comment after an `id:`, for one without data.
            if event.data:
                yield event


class _OpenAI(openai.OpenAI):
    # A private method: the version is pinned, and a test measures its memory.
    def _build_request(self, options: Any, **retries: Any) -> Any:
        return super()._build_request(with_encoded_body(options), **retries)

    # A private method: the version is pinned, and a test sends such events.
    def _make_sse_decoder(self) -> Any:
        assert isinstance(self._client, AbortableClient)
        return _Decoder(self._client)


# Azure builds requests in a method of its own, which calls ours: both have the same name.
class _AzureOpenAI(openai.AzureOpenAI, _OpenAI):  # type: ignore[misc]  # both have it
    """Azure's part reads the model in the body first, and puts it into the path."""


class Client:
    """The client of one run, which a stop signal can cut off; `sdk` is the SDK's own."""

    def __init__(self, route: Route, egress: Policy | None) -> None:
        """Create the client. Raises: ProviderError: the route has no address that may be called."""
        self._route_key = route.api_key
        key = route.api_key or "none"
        is_azure = route.platform == "azure" and route.api_version is not None
        credentials = {"api-key": key} if is_azure else {"authorization": f"Bearer {key}"}
        base_url = address(route, egress)
        if route.platform == "azure":  # whose portal shows an address with the path of its v1 API
            base_url = base_url.rstrip("/").removesuffix("/openai/v1")
        self._connections = AbortableClient.of_run(route, egress, credentials=credentials)
        options: dict[str, Any] = {
            "api_key": key,
            "http_client": self._connections,
            "max_retries": 0,  # retries are ours, so that events and usage stay right
        }
        self.sdk: openai.OpenAI
        if is_azure:
            self.sdk = _AzureOpenAI(
                azure_endpoint=base_url, api_version=route.api_version, **options
            )
        else:
            if route.platform == "azure":
                base_url += "/openai/v1/"
            self.sdk = _OpenAI(base_url=base_url, **options)

    def close(self) -> None:
        """End the use of the connections."""
        self.sdk.close()

    @contextlib.contextmanager
    def calling(self, stop: StopSignal, request: ModelRequest) -> Iterator[None]:
        """Wrap a call: `stop` cuts its connection, and failures are raised as `ProviderError`."""
        failures = provider_errors(openai, self._route_key, request.settings)
        reporting = self._connections.reporting(request.on_send)
        with stop.aborting(self._connections.abort), failures, reporting:
            yield

    def open(self, path: str, body: Mapping[str, Any]) -> openai.Stream[Any]:
        """Post a request and return its stream of plain JSON objects.

        The SDK's own `create` methods compare each message with the types that it may have (0.2 ms,
        and the worker's other runs wait meanwhile), make an object of its types of each chunk
        (0.1 ms), and hide that a field is missing.
        """
        return self.sdk.post(
            path, cast_to=object, body=body, stream=True, stream_cls=openai.Stream[Any]
        )

    def read(self, chunks: Iterable[T], is_last: Callable[[T], bool | None]) -> Iterator[T]:
        """Yield the chunks; ignore a failure that comes after the last one that matters.

        At most the usage is missing then.
        """
        return read_to_end(chunks, is_last, self._connections, openai)
