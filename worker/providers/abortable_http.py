"""The providers' HTTP client: another thread can cut its connections, before the first byte too.

For what an org has entered it also keeps to the addresses that it may reach.
"""

import httpx2

from shared import egress
from worker.checked_http import CheckedBackend, ssl_context
from worker.providers.bounded_response import BoundedTransport

#: No byte from the provider for so long is a time-out.
IDLE_SECONDS = 30.0
CONNECT_SECONDS = 5.0

#: What goes to a server that an org has named. The SDKs take more from the worker's environment:
#: the operator's organisation, and headers with who knows what in them.
_SENT_HEADERS = frozenset(
    {
        "accept",
        "accept-encoding",
        "anthropic-version",
        "authorization",
        "connection",
        "content-length",
        "content-type",
        "host",
        "transfer-encoding",
        "user-agent",
        "x-api-key",
    }
)


class AbortableClient(httpx2.Client):
    """For one run; no proxy and no other setting of the environment is used, no redirect followed.

    With a `policy` it connects to the addresses that this allows, else `egress.Refused` is raised.
    `events`: answers are streams of server-sent events, else of lines. With a policy, `bearer` is
    the key that takes the place of any other one, whoever has set it.
    """

    def __init__(
        self,
        policy: egress.Policy | None = None,
        *,
        events: bool = True,
        bearer: str | None = None,
    ) -> None:
        def keep_to_what_is_ours(request: httpx2.Request) -> None:
            for name in set(request.headers) - _SENT_HEADERS:
                del request.headers[name]
            if bearer is not None:
                request.headers.pop("x-api-key", None)
                request.headers["authorization"] = f"Bearer {bearer}"

        self._backend = CheckedBackend(policy)
        transport = BoundedTransport(events=events, verify=ssl_context(), trust_env=False)
        # A private attribute: the version is pinned, and a test aborts a silent server.
        transport._pool._network_backend = self._backend
        super().__init__(
            transport=transport,
            trust_env=False,
            timeout=httpx2.Timeout(IDLE_SECONDS, connect=CONNECT_SECONDS),
            event_hooks={"request": [keep_to_what_is_ours] if policy is not None else []},
        )

    def abort(self) -> None:
        """Cut all connections for good; reads and writes in other threads fail at once."""
        self._backend.cut()
