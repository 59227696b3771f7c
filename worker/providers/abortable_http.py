"""The providers' HTTP client: another thread can cut its connections, before the first byte too.

For what an org has entered it also keeps to the addresses that it may reach.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import httpx2

from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.security import egress
from arkloop.shared.security.checked_http import CheckedBackend, ssl_context
from arkloop.worker.providers.bounded_response import BoundedTransport

CONNECT_SECONDS = 5.0
WRITE_SECONDS = 30.0
#: How long a server may take to end a response whose last event it has sent.
END_SECONDS = 5.0

#: What goes to a server that an org has named, besides credentials. The SDKs take more from the
#: worker's environment: the operator's organisation, and headers with who knows what in them.
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
    """A client for one run; it uses no proxy or other setting of the environment, and follows no
    redirect.

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
        self._route = route
        self._backend = CheckedBackend(policy)
        self._is_ending = False
        self._on_send: Callable[[bytes], None] | None = None
        transport = BoundedTransport(
            events=events,
            frames=frames,
            on_data=self._expect_more,
            verify=ssl_context(),
            trust_env=False,
        )
        # A private attribute: the version is pinned, and a test aborts a silent server.
        transport._pool._network_backend = self._backend
        super().__init__(
            transport=transport,
            trust_env=False,
            timeout=httpx2.Timeout(
                CONNECT_SECONDS, read=route.first_byte_seconds, write=WRITE_SECONDS
            ),
            event_hooks={"request": [keep_to_what_is_ours] if policy is not None else []},
        )

    def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        self._is_ending = False
        self._backend.read_seconds = self._route.first_byte_seconds
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

    def expect_end(self) -> None:
        """Wait only for `END_SECONDS` from now on: the response has nothing to add."""
        self._is_ending = True
        self._expect_more()

    def _expect_more(self) -> None:
        seconds = self._route.idle_seconds
        self._backend.read_seconds = min(seconds, END_SECONDS) if self._is_ending else seconds

    def abort(self) -> None:
        """Cut all connections for good; reads and writes in other threads fail at once."""
        self._backend.cut()
