"""The SDK's way to servers over HTTP: checked addresses only, no redirects, bounded answers."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from typing import Any

import anyio
import anyio.to_thread
import httpcore2
import httpx2
from anyio.abc import SocketStream
from httpcore2._backends.anyio import AnyIOStream  # its own module alone has it, as for SyncStream
from mcp.client.auth import OAuthClientProvider

from arkloop.shared.security import egress
from arkloop.shared.security.checked_http import CheckedBackend, ssl_context
from arkloop.worker.mcp import TRACEPARENT, failed_requests
from arkloop.worker.mcp.bounded_messages import (
    EVENT_ENCODING,
    MAX_BYTES,
    REQUEST_ID,
    STREAM_OF,
    TooLarge,
)
from arkloop.worker.mcp.open_calls import MAX_OPEN_SECONDS
from arkloop.worker.mcp.stream_pauses import StreamPauses

CONNECT_SECONDS = 5.0
#: A silent stream of events is cut after this; calls have deadlines of their own, and those that
#: wait for people, behind other questions of their turn, are silent for `MAX_OPEN_SECONDS`.
IDLE_SECONDS = MAX_OPEN_SECONDS + 300.0
#: Of a stream that many messages go through: an answer, and the notifications before it.
MAX_STREAM_BYTES = 64 * 1024 * 1024
#: httpx counts the requests of an authorization as redirects. So real ones are followed, too, where
#: they stay within their origin: the SDK follows no others.
MAX_AUTH_REQUESTS = 32
#: After which a reply to a request of the server is sent again.
REPEAT_SECONDS = 1.0
#: For the response to a notification or a reply, before the next message is sent.
BRIEF_SECONDS = 1.0
#: For a notification in all.
NOTIFY_SECONDS = 20.0
#: The protocol asks for 404 where a session is not known; servers answer 400 and others too. These
#: are about something else.
_NOT_ABOUT_SESSIONS = frozenset({402, 407, 408, 413, 429})
#: With these, and with those from 500, some servers say so, too; most have other reasons for them.
_SELDOM_ABOUT_SESSIONS = frozenset({401, 403})
#: With these a stream of notifications is refused until there is another token, or until the server
#: has noticed that the last one is broken.
_STREAM_REFUSED = frozenset({401, 403, 408, 409, 429})


class CheckedClient(httpx2.AsyncClient):
    """A client for one server. Its headers are for that server alone: no redirect is followed."""

    def __init__(
        self,
        headers: Mapping[str, str],
        policy: egress.Policy,
        auth: OAuthClientProvider | None = None,
        on_reply: Callable[[str | int, str | None], None] = lambda asked_id, why: None,
    ) -> None:
        """Call `on_reply` with the id of the server's request, and why it has no reply, if so."""
        self._on_reply = on_reply
        self._left: set[asyncio.Task[None]] = set()  # what `_begin` does not wait for any more
        self._pauses = StreamPauses(auth)
        self.transport = _Transport(policy, self._pauses.has_posted.set)
        super().__init__(
            # Whatever is compressed may be a bomb.
            headers={"User-Agent": "arkloop", **headers, "Accept-Encoding": "identity"},
            transport=self.transport,
            auth=auth,
            trust_env=False,
            default_encoding=EVENT_ENCODING,
            timeout=httpx2.Timeout(IDLE_SECONDS, connect=CONNECT_SECONDS),
            max_redirects=0 if auth is None else MAX_AUTH_REQUESTS,
        )

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send a request; a POST that gets no response gets one that says so."""
        message = failed_requests.message_of(request)
        asked_id = failed_requests.replied_to(message)
        try:
            if asked_id is not None:
                return await self._begin(request, self._send_reply(request, asked_id, **options))
            if failed_requests.is_notification(message):
                return await self._begin(request, self._notify(request, **options))
            # The stream of a call is opened again by the task that sent the call.
            if request.method == "GET" and self.transport.has_stream and STREAM_OF.get() is None:
                return await self._reopen(request, **options)
            return await super().send(request, **options)
        except failed_requests.FAILURES as error:
            # The SDK expects exceptions of a GET and a DELETE, but of no message in a session.
            if request.method != "POST":
                raise
            if failed_requests.is_of_handshake(request):
                raise failed_requests.failure_of(request, error) from error
            return failed_requests.response_to(request, error)

    async def _begin(
        self, request: httpx2.Request, sending: Coroutine[Any, Any, httpx2.Response]
    ) -> httpx2.Response:
        """Send a notification or a reply, and wait for its response for a moment only.

        The SDK sends nothing else of the session until it has one, of which it makes no use.
        """
        task = asyncio.create_task(sending)
        try:
            done, _ = await asyncio.wait({task}, timeout=BRIEF_SECONDS)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if done:
            return task.result()
        left = asyncio.create_task(_finish(task))
        self._left.add(left)
        left.add_done_callback(self._left.discard)
        return httpx2.Response(202, request=request)

    async def __aexit__(self, *error: Any) -> None:
        for left in self._left:
            left.cancel()
        await super().__aexit__(*error)

    async def _notify(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        async with asyncio.timeout(NOTIFY_SECONDS):
            return await super().send(request, **options)

    async def _reopen(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Open the stream of notifications once more; where that fails, return an empty one.

        The SDK opens one that has ended again and again, but gives up after two failures.
        """
        await self._pauses.wait()
        with contextlib.suppress(*failed_requests.UNDELIVERED):
            response = await super().send(request, **options)
            if response.status_code in _STREAM_REFUSED:
                self._pauses.lengthen()
            elif response.status_code < 500:
                self._pauses.reset()
                return response
            await response.aclose()
        headers = {"Content-Type": "text/event-stream"}
        return httpx2.Response(200, headers=headers, content=b"", request=request)

    async def _send_reply(
        self, request: httpx2.Request, asked_id: str | int, **options: Any
    ) -> httpx2.Response:
        """Send a reply to a request of the server, once more if that fails or is refused.

        The SDK ignores what becomes of it. A server that has read the first one ignores the second:
        no request of its own with this id is open any more.
        """
        with contextlib.suppress(*failed_requests.UNDELIVERED):
            response = await super().send(request, **options)
            if response.status_code < 400:
                self._on_reply(asked_id, None)
                return response
            await response.aclose()
        await anyio.sleep(REPEAT_SECONDS)
        try:
            response = await super().send(request, **options)
        except failed_requests.UNDELIVERED as error:
            self._on_reply(asked_id, str(failed_requests.failure_of(request, error)))
            raise
        is_refused = response.status_code >= 400
        why = f"The server responded with HTTP status {response.status_code}."
        self._on_reply(asked_id, why if is_refused else None)
        return response

    @property
    def refused_with(self) -> int | None:
        """The status of the last request that was answered by an error."""
        return self.transport.refused_with

    def has_rejected(self, call_id: str | None) -> bool:
        """Return whether the server rejected this request unread, with a 4xx.

        A request without an id of its own counts if any such request was rejected.
        """
        return call_id in self.transport.rejected

    def doubted_with(self, call_id: str | None) -> int | None:
        """Return the status of a failed request of a session that may be lost.

        None if it is about something else, or is about the session: see `has_rejected`.
        """
        return self.transport.doubted.get(call_id)

    def forget(self, call_id: str) -> None:
        """Drop what was noted of a request that has ended."""
        self.transport.doubted.pop(call_id, None)
        self.transport.rejected.discard(call_id)

    @property
    def connections_made(self) -> int:
        """The number of connections for POSTs; behind each the server may be another process."""
        return self.transport.backend.connections_made

    @property
    def is_connected(self) -> bool:
        """True if the next request needs no new connection."""
        return self.transport.is_connected


class _Transport(httpx2.AsyncHTTPTransport):
    def __init__(self, policy: egress.Policy, on_post: Callable[[], None]) -> None:
        self._on_post = on_post
        # A call waits before it is made, so that all else that a session sends never has to.
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=4)
        super().__init__(verify=ssl_context(), trust_env=False, limits=limits)
        self.backend = _CheckedBackend(policy)
        # A private attribute: the version is pinned, and a test sees forbidden addresses refused.
        self._pool._network_backend = self.backend
        # A stream of notifications ends the connection that it breaks on: no call's, which would
        # have the tools listed first.
        self._gets = httpx2.AsyncHTTPTransport(verify=ssl_context(), trust_env=False, limits=limits)
        self._gets._pool._network_backend = _CheckedBackend(policy)
        self.refused_with: int | None = None
        self.has_stream = False  # a GET has opened one
        self.rejected: set[str | None] = set()
        self.doubted: dict[str | None, int] = {}

    @property
    def is_connected(self) -> bool:
        # One that the server has closed, or that was idle for too long, has expired.
        return any(one.is_idle() and not one.has_expired() for one in self._pool.connections)

    async def __aexit__(self, *error: Any) -> None:
        await self._gets.aclose()
        await super().__aexit__(*error)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.method == "POST" and TRACEPARENT.encode() in request.content:
            # Proxies and servers' frameworks read the header.
            request.headers.update(_trace_context(request))
        if request.method == "POST":
            self._on_post()
            # The task that sends a request reads its response, too.
            STREAM_OF.set(call_id_of(request))
        is_get = request.method == "GET"
        send = self._gets.handle_async_request if is_get else super().handle_async_request
        response = await send(request)
        if response.headers.get("content-encoding", "identity") != "identity":
            await response.aclose()
            raise httpx2.DecodingError(
                "unexpected Content-Encoding in the response", request=request
            )
        kind = response.headers.get("content-type", "").lower()
        is_stream = kind.startswith("text/event-stream")
        most = MAX_STREAM_BYTES if is_stream and response.is_success else MAX_BYTES
        headers = response.headers.copy()
        if is_stream:
            headers["Content-Type"] = "text/event-stream"  # with no charset but the client's
        self.has_stream |= is_get and is_stream and response.is_success
        is_of_session = is_get and is_stream and STREAM_OF.get() is None
        bounded = httpx2.Response(
            status_code=response.status_code,
            headers=headers,
            stream=_Bounded(response.stream, most, ends_where_it_breaks=is_of_session),
            extensions=response.extensions,
        )
        # A GET is for a stream of notifications, which many servers do not have.
        if request.method == "POST":
            # The SDK would read JSON whole as well, but not expect that this can fail. Errors of
            # tools may have any type.
            is_doubtful = response.is_client_error and "mcp-session-id" not in request.headers
            is_doubtful = is_doubtful and failed_requests.relies_on_handshake(request)
            if is_read := is_doubtful or kind.startswith("application/json"):
                await _read(bounded)
            self._note(request, bounded.status_code, bounded.content if is_read else b"")
        return bounded

    def _note(self, request: httpx2.Request, status: int, body: bytes) -> None:
        call_id = call_id_of(request)
        self.doubted.pop(call_id, None)  # by OAuth a request may be sent again
        if status < 400:
            return
        self.refused_with = status
        # Without an id, too, a server of another version may not know what was agreed on.
        has_id = "mcp-session-id" in request.headers
        if status >= 500 or status in _SELDOM_ABOUT_SESSIONS:
            if has_id:
                self.doubted[call_id] = status
        elif status not in _NOT_ABOUT_SESSIONS and (
            has_id or failed_requests.is_rejected_unread(request, body)
        ):
            self.rejected.add(call_id)


def call_id_of(request: httpx2.Request) -> str | None:
    """Return the id that `Session.call` gave a POST, None for one without."""
    call_id: str | None = _meta_of(request).get(REQUEST_ID)
    return call_id


def _trace_context(request: httpx2.Request) -> dict[str, str]:
    context = _meta_of(request).get(TRACEPARENT)
    return {TRACEPARENT: context} if isinstance(context, str) else {}


def _meta_of(request: httpx2.Request) -> dict[str, Any]:
    if request.headers.get("content-type") != "application/json":
        return {}  # a form, with which OAuth asks for tokens
    params = json.loads(request.content).get("params") or {}
    return params.get("_meta") or {}


async def _finish(sending: asyncio.Task[httpx2.Response]) -> None:
    with contextlib.suppress(*failed_requests.FAILURES):
        await (await sending).aclose()


async def _read(response: httpx2.Response) -> None:
    try:
        await response.aread()
    finally:
        await response.aclose()


class _Bounded(httpx2.AsyncByteStream):
    def __init__(self, stream: Any, most: int, *, ends_where_it_breaks: bool) -> None:
        self._stream = stream
        self._left = most
        self._ends_where_it_breaks = ends_where_it_breaks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._stream:
                self._left -= len(chunk)
                if self._left < 0:
                    raise TooLarge("the response is too large")
                yield chunk
        except httpx2.TransportError:
            # The SDK opens a stream of notifications again where it ends, but gives up after two
            # breaks, however long it was open in between. A message that arrived in part is lost.
            if not self._ends_where_it_breaks:
                raise

    async def aclose(self) -> None:
        await self._stream.aclose()


class _CheckedBackend(httpcore2.AsyncNetworkBackend):
    """Connects as `CheckedBackend` does, in a thread; once cancelled, that one gives up at once."""

    def __init__(self, policy: egress.Policy) -> None:
        self._policy = policy
        self.connections_made = 0

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        backend = CheckedBackend(self._policy)
        try:
            made = await anyio.to_thread.run_sync(
                backend.connect_tcp, host, port, timeout, abandon_on_cancel=True
            )
        except anyio.get_cancelled_exc_class():
            backend.cut()
            raise
        self.connections_made += 1
        return AnyIOStream(await SocketStream.from_socket(made.get_extra_info("socket")))
