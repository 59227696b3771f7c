"""The providers' HTTP client: another thread can cut its connections, before the first byte too.

For what an org has entered it also keeps to the addresses that it may reach.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import httpx2

from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.security import egress
from arkloop.shared.security.checked_http import CheckedBackend, ssl_context
from arkloop.worker.providers.bounded_response import BoundedTransport
from arkloop.worker.providers.idle_clients import IDLE_SECONDS, IdleClients

CONNECT_SECONDS = 5.0
WRITE_SECONDS = 30.0
#: How long a server may take to end a response whose last event it has sent.
END_SECONDS = 5.0
#: How long for the end that follows at once, which only the connection's next use needs.
DRAIN_SECONDS = 0.05

#: What goes to a server that an org has named, besides credentials. The SDKs take more from the
#: worker's environment: the operator's organization, and headers with who knows what in them.
SENT_HEADERS = frozenset(
    {
        "accept",
        "accept-encoding",
        "anthropic-version",
        "connection",
        "content-length",
        "content-type",
        "host",
        "transfer-encoding",
        "user-agent",
    }
)
#: Of a request that an SDK has signed.
_SIGNATURE = frozenset({"authorization", "x-amz-date", "x-amz-security-token"})


class AbortableClient(httpx2.Client):
    """A client for one run at a time; it uses no proxy or other setting of the environment, and
    follows no redirect.

    A read times out after the route's `first_byte_seconds`, and within a body that has begun after
    its `idle_seconds`. With a `policy` it connects to the addresses that this allows, else
    `egress.Refused` is raised. `events`: answers are streams of server-sent events, else of lines.
    `frames`: they are streams of Amazon's frames. With a policy, the headers in `credentials` take
    the place of any other ones, however they were set; None: those of a signed request stay.
    """

    def __init__(
        self,
        route: Route,
        policy: egress.Policy | None = None,
        *,
        events: bool = True,
        frames: bool = False,
        credentials: Mapping[str, str] | None = MappingProxyType({}),
    ) -> None:
        def keep_to_what_is_ours(request: httpx2.Request) -> None:
            sent = SENT_HEADERS if credentials is not None else SENT_HEADERS | _SIGNATURE
            for name in set(request.headers) - sent:
                del request.headers[name]
            request.headers.update(self.credentials)

        self.credentials = dict(credentials or {})
        self.route, self.policy, self.made_at = route, policy, time.monotonic()
        self._outlives_run = False
        self._backend = CheckedBackend(policy)
        self._most_seconds = float("inf")  # for a read within a body
        self._on_send: Callable[[bytes], None] | None = None
        transport = BoundedTransport(
            events=events,
            frames=frames,
            on_data=self._expect_more,
            verify=ssl_context(),
            trust_env=False,
            limits=httpx2.Limits(keepalive_expiry=IDLE_SECONDS),
        )
        # Private attributes: the version is pinned, and tests abort a silent server and count
        # connections.
        transport._pool._network_backend = self._backend
        self._pool = transport._pool
        super().__init__(
            transport=transport,
            trust_env=False,
            timeout=httpx2.Timeout(
                CONNECT_SECONDS, read=route.first_byte_seconds, write=WRITE_SECONDS
            ),
            event_hooks={"request": [keep_to_what_is_ours] if policy is not None else []},
        )

    @classmethod
    def of_run(
        cls, route: Route, policy: egress.Policy | None, **options: Any
    ) -> "AbortableClient":
        """Return the client of an earlier run on the route, with its connection, else a new one.

        `close` leaves it to a later run; `options` are those of `__init__`, and follow from the
        route alone.
        """
        while (client := _idle.take(route, policy)) is not None:
            if client._is_idle():
                client.cookies.clear()  # they are the last run's, and perhaps another org's
                break
            client.hang_up()
        client = client or cls(route, policy, **options)
        client._outlives_run = True
        return client

    def close(self) -> None:
        """Close connections, unless a later run may use one."""
        if self._outlives_run and self._is_idle():
            self._outlives_run = False  # until a run takes it
            _idle.keep(self)
        else:
            self.hang_up()

    def hang_up(self) -> None:
        """Close connections for good."""
        self._outlives_run = False
        super().close()

    def _is_idle(self) -> bool:
        """Return whether it has an open connection, and none on which a response is unread."""
        found = self._pool.connections
        if self._backend.is_cut or not found:
            return False
        return all(one.is_idle() and _is_read(one) for one in found)

    def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        self._most_seconds = float("inf")
        self._backend.read_seconds = self.route.first_byte_seconds
        if self._on_send is not None:
            self._on_send(request.read())
        return super().send(request, **options)

    @contextmanager
    def reporting(self, on_send: Callable[[bytes], None] | None) -> Iterator[None]:
        """Call `on_send` with the body of each request of the block, before it is sent.

        Nothing of it is kept after the block: it knows what is sent, with the content of files.
        """
        self._on_send = on_send
        try:
            yield
        finally:
            self._on_send = None

    def expect_end(self, *, is_near: bool) -> None:
        """Wait only for `END_SECONDS` from now on if the response has nothing to add."""
        self._most_seconds = END_SECONDS if is_near else float("inf")
        self._expect_more()

    def drain(self, parts: Iterable[bytes]) -> None:
        """Read the rest of a body, so that its connection can be used again; not if it is late."""
        self._most_seconds = DRAIN_SECONDS
        self._expect_more()
        deadline = time.monotonic() + DRAIN_SECONDS
        with contextlib.suppress(httpx2.TransportError):
            for _ in parts:
                if time.monotonic() > deadline:
                    break

    def _expect_more(self) -> None:
        self._backend.read_seconds = min(self.route.idle_seconds, self._most_seconds)

    def abort(self) -> None:
        """Cut all connections for good; reads and writes in other threads fail at once."""
        self._backend.cut()


def _is_read(connection: Any) -> bool:
    """Return whether nothing has come behind the last response, which the next run would take for
    its own.
    """
    # Private attributes: the version is pinned, and a test sends a second response.
    return bool(connection._connection._h11_state.trailing_data == (b"", False))


_idle = IdleClients[AbortableClient]()
