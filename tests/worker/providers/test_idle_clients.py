"""HTTP clients between two runs: whose connection the next one uses, and which are closed."""

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.security.egress import Policy
from arkloop.worker import providers
from arkloop.worker.contract.messages import TextDelta
from arkloop.worker.contract.outcomes import CancelRequested, ProviderError
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.providers import abortable_http
from arkloop.worker.providers.idle_clients import (
    IDLE_SECONDS,
    MAX_AGE_SECONDS,
    MAX_CLIENTS,
    IdleClients,
)
from tests.worker.providers import anthropic_answers
from tests.worker.providers.fake_vendor import (
    REQUEST,
    anthropic_stream,
    delta,
    openai_stream,
    read_request,
    route_to,
)

CHAT = openai_stream(delta(content="Hi"), delta(finish="stop"))
MESSAGES = anthropic_stream(
    anthropic_answers.start(input_tokens=1),
    *anthropic_answers.text(0, "Hi"),
    anthropic_answers.finish("end_turn", output_tokens=1),
)
BODIES = {"openai": CHAT, "anthropic": MESSAGES}
END = b"0\r\n\r\n"


def chunked(body: bytes) -> bytes:
    """Return a response but for its end."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked"
    head += b"\r\nSet-Cookie: session=of-one-run"
    return b"%s\r\n\r\n%x\r\n%s\r\n" % (head, len(body), body)


class KeepingVendor:
    """A server that keeps connections open; it counts them, and the requests of each."""

    def __init__(
        self,
        body: bytes,
        end_after: float = 0,
        hang_up_after: float = 60,
        ends: Sequence[bytes] = (END,),
    ) -> None:
        self.requests: list[int] = []
        self.hung_up = threading.Event()
        self._body = chunked(body)
        self._end_after, self._hang_up_after, self._ends = end_after, hang_up_after, ends
        self.heads: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.requests.append(0)
                values = (client, len(self.requests) - 1)
                threading.Thread(target=self._serve, args=values, daemon=True).start()

    def _serve(self, client: socket.socket, number: int) -> None:
        with client, suppress(OSError):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while True:
                # Of its first request, a client may be slow to send the first byte.
                client.settimeout(self._hang_up_after if self.requests[number] else 60)
                if not client.recv(1, socket.MSG_PEEK):
                    break
                self.heads.append(read_request(client)[0])
                self.requests[number] += 1
                if not self._end_after and len(self._ends) == 1:
                    client.sendall(self._body + self._ends[0])
                    continue
                client.sendall(self._body)
                time.sleep(self._end_after)
                for part in self._ends:
                    client.sendall(part)
                    time.sleep(0.02 * (len(self._ends) > 1))
        self.hung_up.set()


@contextmanager
def keeping(*args: Any, **options: Any) -> Iterator[KeepingVendor]:
    started = KeepingVendor(*args, **options)
    try:
        yield started
    finally:
        started.close()


def run(route: Route, calls: int = 1, policy: Policy | None = None) -> None:
    """Make a run's calls with a provider of its own."""
    provider = providers.load(route, faults=False, egress=policy)
    for _ in range(calls):
        assert TextDelta("Hi") in list(provider.stream(REQUEST, StopSignal()))
    provider.close()


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_all_calls_of_runs_in_turn_use_one_connection(provider: str) -> None:
    """A connection is used by one run after the other."""
    with keeping(BODIES[provider]) as fake:
        route = route_to(provider, fake.url)
        run(route, calls=3)
        run(replace(route), calls=2)
        assert [5] == fake.requests


def test_runs_at_the_same_time_have_a_connection_each() -> None:
    with keeping(CHAT) as fake:
        route = route_to("openai", fake.url)
        both = [providers.load(route, faults=False) for _ in range(2)]
        calls = [provider.stream(REQUEST, StopSignal()) for provider in both]
        for call in calls:
            next(call)
        for call in calls:
            list(call)
        for provider in both:
            provider.close()
        assert [1, 1] == fake.requests
        run(route)
        run(route)
        assert 4 == sum(fake.requests) and 2 == len(fake.requests)


LOOPBACK = Policy.of(["127.0.0.0/8"])


@pytest.mark.parametrize(
    ("change", "policy"),
    [
        ({"api_key": "sk-other"}, LOOPBACK),
        ({"id": "other"}, LOOPBACK),
        ({}, Policy.of(["127.0.0.1/32"])),
    ],
)
def test_another_route_key_or_policy_has_a_connection_of_its_own(
    change: dict[str, Any], policy: Policy
) -> None:
    """What one org has opened serves no other org, and none after a change of the key."""
    with keeping(CHAT) as fake:
        route = route_to("openai", fake.url, is_of_org=True)
        run(route, policy=LOOPBACK)
        run(replace(route, **change), policy=policy)
        run(route, policy=LOOPBACK)
        assert [2, 1] == fake.requests


def test_a_call_that_was_cut_leaves_no_connection() -> None:
    """A response that was not read to its end keeps its connection from the next run."""
    with keeping(CHAT, end_after=5) as fake:
        route = route_to("openai", fake.url)
        stop = StopSignal()
        provider = providers.load(route, faults=False)
        call = provider.stream(REQUEST, stop)
        next(call)
        provider.close()  # during the call, as when its run is stopped
        stop.set(CancelRequested())
        with pytest.raises((CancelRequested, ProviderError)):
            list(call)
        fake._end_after = 0
        run(route)
        assert [1, 1] == fake.requests


def test_a_late_end_of_a_response_is_not_waited_for() -> None:
    """The answer is there as soon as the vendor says so; its connection is given up."""
    with keeping(CHAT, end_after=60) as fake:
        route = route_to("openai", fake.url)
        began = time.monotonic()
        run(route)
        assert time.monotonic() - began < 50
        fake._end_after = 0
        run(route)
        assert [1, 1] == fake.requests


def test_what_a_server_says_after_the_end_is_not_waited_for() -> None:
    """A server that sends one comment after the other holds up no answer."""
    with keeping(CHAT, ends=[b"4\r\n: \n\n\r\n"] * 5000) as fake:
        route = route_to("openai", fake.url)
        began = time.monotonic()
        run(route)
        assert time.monotonic() - began < 80
        run(route)
        assert [1, 1] == fake.requests


def test_a_second_response_is_nobodys_answer() -> None:
    """A server, or a proxy before it, that sends one too many has its connection closed."""
    with keeping(CHAT, ends=[END + chunked(CHAT.replace(b"Hi", b"No")) + END]) as fake:
        route = route_to("openai", fake.url)
        run(route)
        run(route)
        assert [1, 1] == fake.requests


def test_a_run_sends_no_cookie_of_another_run() -> None:
    with keeping(CHAT) as fake:
        route = route_to("openai", fake.url)
        run(route)
        run(route)
        assert [2] == fake.requests
        assert [] == [head for head in fake.heads if "cookie" in head.lower()]


def test_a_client_that_was_cut_or_closed_twice_is_no_other_runs() -> None:
    """The cut concerns its connections for good, also those that are idle."""
    with keeping(CHAT) as fake:
        route = route_to("openai", fake.url)
        provider = providers.load(route, faults=False)
        list(provider.stream(REQUEST, StopSignal()))
        provider._client._connections.abort()  # type: ignore[attr-defined]  # of OpenAI's alone
        provider.close()
        run(route)
        assert [1, 1] == fake.requests

        provider = providers.load(route, faults=False)
        list(provider.stream(REQUEST, StopSignal()))
        client = provider._client._connections  # type: ignore[attr-defined]  # of OpenAI's alone
        provider.close()
        client.abort()  # after it was left to others
        run(route)
        assert [1, 2, 1] == fake.requests

        client = abortable_http.AbortableClient.of_run(route, None)
        client.close()
        client.close()
        assert abortable_http._idle.take(route, None) in (client, None)
        assert abortable_http._idle.take(route, None) is None


def test_a_connection_that_the_server_has_closed_fails_no_run() -> None:
    """Servers close silent connections, some of them after a few seconds."""
    with keeping(CHAT, hang_up_after=0.1) as fake:
        route = route_to("openai", fake.url)
        run(route)
        assert fake.hung_up.wait(60)
        run(route)
        assert [1, 1] == fake.requests


def test_a_client_that_is_not_of_a_run_is_closed() -> None:
    with keeping(CHAT) as fake:
        client = abortable_http.AbortableClient(route_to("openai", fake.url))
        client.post(f"{fake.url}/x", json={}).read()
        client.close()
        assert fake.hung_up.wait(60)


# ---- how many, and for how long -------------------------------------------------------


@dataclass(eq=False)
class Made:
    """A client without connections."""

    route: Route
    policy: Policy | None = None
    made_at: float = 0.0
    hung_up: list["Made"] = field(default_factory=list)

    def hang_up(self) -> None:
        self.hung_up.append(self)


@pytest.fixture
def now() -> list[float]:
    return [0.0]


@pytest.fixture
def idle(now: list[float]) -> IdleClients[Made]:
    return IdleClients(lambda: now[0])


@pytest.fixture
def made() -> Callable[..., Made]:
    """Call it for a client on the route of this id; all note in one list who is closed."""
    hung_up: list[Made] = []

    def new(route_id: str = "a", made_at: float = 0.0) -> Made:
        return Made(route_to("openai", None, id=route_id), None, made_at, hung_up)

    return new


def test_the_one_that_became_idle_last_is_taken_first(
    idle: IdleClients[Made], made: Callable[..., Made]
) -> None:
    first, other, last = made(), made("b"), made()
    for client in (first, other, last):
        idle.keep(client)
    taken = [idle.take(first.route, None) for _ in range(3)]
    assert [last, first, None] == taken
    assert other is idle.take(other.route, None)


def test_clients_are_closed_when_they_are_too_old(
    idle: IdleClients[Made], made: Callable[..., Made], now: list[float]
) -> None:
    """After the time for which they may be idle, and some time after they were made."""
    silent, aged = made(), made("b")
    idle.keep(silent)
    now[0] = IDLE_SECONDS
    assert idle.take(silent.route, None) is None
    assert not idle.close_old()
    now[0] = MAX_AGE_SECONDS - 1
    idle.keep(aged)
    assert idle.close_old()
    now[0] = MAX_AGE_SECONDS
    assert not idle.close_old()
    assert [silent, aged] == silent.hung_up


def test_too_many_clients_are_not_kept(idle: IdleClients[Made], made: Callable[..., Made]) -> None:
    """The oldest are closed, whatever route they are for."""
    clients = [made(str(number)) for number in range(MAX_CLIENTS + 2)]
    for client in clients:
        idle.keep(client)
    assert clients[:2] == clients[0].hung_up
    assert clients[2] is idle.take(clients[2].route, None)
