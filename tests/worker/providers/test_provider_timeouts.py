"""Silent providers: how long a route waits for them, what that costs, and what is retried."""

import socket
import ssl
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
import trustme

from arkloop.shared.catalog import model_routes
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.catalog.prices import Prices
from arkloop.shared.config import Settings
from arkloop.shared.events.event_log import data_of
from arkloop.shared.runs.states import RunState
from arkloop.shared.threads import threads
from arkloop.worker import providers
from arkloop.worker.attempt import execution
from arkloop.worker.contract.messages import Chunk, TextDelta, TurnEnd
from arkloop.worker.contract.outcomes import ProviderError
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.process.process import WorkerProcess
from arkloop.worker.providers import abortable_http
from tests.stored_runs import StoredRuns
from tests.waiting import eventually
from tests.worker.providers.fake_vendor import (
    REQUEST,
    STREAM_HEAD,
    Answer,
    FakeVendor,
    anthropic_stream,
    delta,
    openai_stream,
    raw,
    route_to,
    vendor,
)

CHAT = openai_stream(delta(content="Hi"), done=False)
CHAT_END = openai_stream(delta(finish="stop"))
ANTHROPIC = anthropic_stream(
    {"type": "message_start", "message": {"role": "assistant", "usage": None}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
    stop=False,
)
ANTHROPIC_END = anthropic_stream(
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {}}
)
RESPONSES = b'data: {"type": "response.output_text.delta", "item_id": "m", "delta": "Hi"}\n\n'
RESPONSES_END = b'data: {"type": "response.completed", "response": {"status": "completed"}}\n\n'
PRICES = Prices.of(input=Decimal(1), output=Decimal(1))
SPOKEN = {
    "chat": ("openai", CHAT, CHAT_END),
    "responses": ("openai", RESPONSES, RESPONSES_END),
    "anthropic": ("anthropic", ANTHROPIC, ANTHROPIC_END),
}

#: The output limit that is sent where the route has none.
UNLIMITED = {"chat": 0, "responses": 0, "anthropic": 4_096}


@pytest.fixture(params=list(SPOKEN))
def api(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def after(*steps: bytes | float) -> Answer:
    """Send the bytes, and be silent for the seconds between them."""

    def answer(client: socket.socket) -> None:
        with suppress(OSError):
            for step in steps:
                if isinstance(step, bytes):
                    client.sendall(step)
                else:
                    client.settimeout(step)
                    with suppress(TimeoutError):
                        client.recv(1)  # returns when the other side is gone

    return answer


def called(api: str, fake: FakeVendor, **seconds: float) -> list[Chunk]:
    provider = providers.load(route_of(api, fake, **seconds), faults=False)
    try:
        return list(provider.stream(REQUEST, StopSignal()))
    finally:
        provider.close()


def route_of(api: str, fake: FakeVendor, **seconds: float) -> Route:
    name, _, _ = SPOKEN[api]
    """Return a route to the fake vendor that speaks this API."""
    return route_to(
        name,
        fake.url if name == "openai" else fake.url.removesuffix("/v1"),
        api=api if name == "openai" else None,
        prices=PRICES,
        **seconds,
    )


def timed_out(api: str, fake: FakeVendor, **seconds: float) -> tuple[ProviderError, float]:
    """Return the error of a call that times out, and how many seconds it took."""
    began = time.monotonic()
    with pytest.raises(ProviderError) as caught:
        called(api, fake, **seconds)
    assert "provider.timeout" == caught.value.code
    return caught.value, time.monotonic() - began


@pytest.mark.parametrize("head", [b"", STREAM_HEAD], ids=["unanswered", "headers"])
def test_a_silent_provider_has_the_time_to_the_first_byte(api: str, head: bytes) -> None:
    """The headers alone do not count: some servers send them before the model has begun."""
    with vendor(after(head, 200.0)) as fake:
        error, seconds = timed_out(api, fake, first_byte_seconds=0.6, idle_seconds=0.1)

    assert 0.6 <= seconds < 100
    assert "The provider sent no data for 0.6 s." == str(error)
    assert error.was_accepted


@pytest.mark.parametrize("over_tls", [False, True])
def test_a_provider_that_stops_has_the_idle_time(
    api: str, over_tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts from the last byte, with and without TLS."""
    _, some, _ = SPOKEN[api]
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    monkeypatch.setattr(abortable_http, "ssl_context", lambda: trusting)

    with vendor(after(STREAM_HEAD, some, 200.0), tls=context if over_tls else None) as fake:
        error, seconds = timed_out(api, fake, first_byte_seconds=60, idle_seconds=0.3)

    assert 0.3 <= seconds < 100
    assert error.was_accepted


def test_a_slow_start_is_no_failure(api: str) -> None:
    """The time to the first byte is longer than the idle time, and counts anew for each call."""
    _, some, end = SPOKEN[api]
    slow = after(0.3, STREAM_HEAD, 0.3, some + end)
    with vendor(slow, slow) as fake:
        provider = providers.load(
            route_of(api, fake, first_byte_seconds=30, idle_seconds=0.1), faults=False
        )
        for _ in range(2):
            assert TextDelta("Hi") in list(provider.stream(REQUEST, StopSignal()))
        provider.close()


def test_a_comment_shows_that_the_provider_is_alive(api: str) -> None:
    """Vendors send one every few seconds while a model thinks."""
    _, some, end = SPOKEN[api]
    pings = [step for _ in range(35) for step in (0.1, b": ping\n\n")]
    with vendor(after(STREAM_HEAD, some, *pings, end)) as fake:
        assert TextDelta("Hi") in called(api, fake, idle_seconds=3)


def test_a_response_that_does_not_end_is_not_waited_for(
    api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last event has come, and nothing is missing."""
    monkeypatch.setattr(abortable_http, "END_SECONDS", 0.2)
    _, some, end = SPOKEN[api]
    began = time.monotonic()
    with vendor(after(STREAM_HEAD, some + end.removesuffix(b"data: [DONE]\n\n"), 200.0)) as fake:
        assert TextDelta("Hi") in called(api, fake)

    assert time.monotonic() - began < 100


#: Chunks of servers that set a finish reason on each, as some in front of Gemini and Ollama do.
EACH = {
    "text": [delta("stop", content="1")],
    "role": [delta("stop", role="assistant", content=""), delta("stop", content="1")],
    "thinking": [delta("stop", reasoning_content="Hm.")],
    "after another piece": [
        *(delta(reasoning_content="Hm."), delta("stop", content="1"), delta("stop", content="2")),
    ],
    "after reasoning": [delta(reasoning_content="Hm."), delta("stop", content="1")],
    "after the role": [
        *(
            delta(role="assistant", content=""),
            delta("stop", content="1"),
            delta("stop", content=""),
        ),
    ],
    "with empty ones": [delta("stop", content="1"), delta("stop", content="")],
}


@pytest.fixture(params=list(EACH))
def begun(request: pytest.FixtureRequest) -> bytes:
    return openai_stream(*EACH[request.param], done=False)


def test_a_pause_after_a_finish_reason_is_not_the_end(
    begun: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The response is not cut off where it pauses, however the server marks its chunks."""
    monkeypatch.setattr(abortable_http, "END_SECONDS", 0.1)
    rest = openai_stream(delta("stop", content="!"))
    with vendor(after(STREAM_HEAD, begun, 0.7, rest)) as fake:
        assert TextDelta("!") in called("chat", fake, idle_seconds=60)


def test_a_break_after_a_finish_reason_is_not_the_end(begun: bytes) -> None:
    """What had come by then is no success; the call is made again."""

    def answer(client: socket.socket) -> None:
        raw(begun)(client)
        time.sleep(0.3)  # a reset throws away what has not been read
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with vendor(answer) as fake, pytest.raises(ProviderError) as caught:
        called("chat", fake)

    assert "provider.connection" == caught.value.code


@pytest.mark.parametrize(
    "chunks",
    [
        [delta(content="H"), delta("stop", content="i")],
        [delta("stop", content="Hi"), delta() | {"choices": [], "usage": {"prompt_tokens": 1}}],
        [delta(role="assistant", content=""), delta("content_filter")],
    ],
    ids=["pieces without one before it", "usage after it", "no text"],
)
def test_a_finish_reason_can_be_the_end(chunks: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A server need not send `[DONE]` or close the connection then."""
    monkeypatch.setattr(abortable_http, "END_SECONDS", 0.1)
    began = time.monotonic()
    with vendor(after(STREAM_HEAD, openai_stream(*chunks, done=False), 200.0)) as fake:
        *_, last = called("chat", fake)

    assert isinstance(last, TurnEnd)
    assert time.monotonic() - began < 100


def test_a_connection_that_is_not_made_in_time_was_not_accepted(
    api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has its own, short timeout, and costs nothing."""
    monkeypatch.setattr(abortable_http, "CONNECT_SECONDS", 0.2)
    with vendor() as fake, full_listener() as port:
        fake.url = f"http://127.0.0.1:{port}/v1"
        error, seconds = timed_out(api, fake)

    assert seconds < 100
    assert not error.was_accepted


@contextmanager
def full_listener() -> Iterator[int]:
    """Yield the port of a listener whose backlog is full, so that nobody can connect."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        port = int(listener.getsockname()[1])
        clients = [socket.socket() for _ in range(4)]
        for client in clients:
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
        yield port
        for client in clients:
            client.close()


# ---- whole runs ----------------------------------------------------------------------


@pytest.fixture
def settings_at_rest(settings: Settings) -> Settings:
    return replace(settings, sweep_seconds=3600, heartbeat_seconds=0.2)


def run_with(stored: StoredRuns, settings: Settings, *routes: Route) -> UUID:
    """Execute a run on the first of these routes, each of them the fallback of the one before."""
    ranked = {route.id: replace(route, priority=i) for i, route in enumerate(routes)}
    process = WorkerProcess(settings, {**model_routes.load(settings), **ranked})
    try:
        assert process.lease.wait_until_valid(60)
        thread_id = stored.thread()
        with stored.connections.transaction() as tx:
            threads.add_message(tx, stored.actor, thread_id, content="Hi" * 400)
        run_id = stored.create(thread_id, route_id=routes[0].id, model=routes[0].model)
        execution.execute(process, run_id)
        return run_id
    finally:
        process.close()


def costs(stored: StoredRuns, run_id: UUID) -> Iterator[dict[str, Any]]:
    for event in stored.events(run_id):
        if event.type == "run.cost":
            yield data_of(event.payload)


def test_a_call_that_timed_out_is_billed_and_made_once_more(
    stored: StoredRuns, settings_at_rest: Settings, api: str
) -> None:
    """The vendor bills each of them: the input is estimated, and there is no third call."""
    with vendor(*[after(200.0)] * 4) as fake:
        route = route_of(api, fake, first_byte_seconds=0.3)
        run_id = run_with(stored, settings_at_rest, route)
        eventually(lambda: len(fake.bodies) >= 2)  # it may read a request that was given up
        calls = len(fake.bodies)

    row = stored.row(run_id)
    assert (RunState.FAILED, "provider.timeout") == (stored.state(run_id), row["error_code"])
    assert 2 == calls
    first, *_, last = costs(stored, run_id)
    assert "estimated" == first["usage"]["source"] == last["usage"]["source"]
    least = 200 if api != "anthropic" else 800  # that has an output limit always: the worst case
    assert least < first["usage"]["input_tokens"] == last["usage"]["input_tokens"] // 2
    assert 0 < first["cost_usd"] < last["cost_usd"] == float(row["cost_usd"])
    assert 2 * UNLIMITED[api] == last["usage"]["output_tokens"]


def test_a_call_with_an_output_limit_is_billed_at_its_worst_case(
    stored: StoredRuns, settings_at_rest: Settings, api: str
) -> None:
    """The provider may finish it, after we have left: each of the two calls counts in full."""
    with vendor(*[after(200.0)] * 4) as fake:
        route = replace(route_of(api, fake, first_byte_seconds=0.3), max_output_tokens=3_000)
        run_id = run_with(stored, settings_at_rest, route)

    first, *_, last = costs(stored, run_id)
    assert ("estimated", 3_000) == (first["usage"]["source"], first["usage"]["output_tokens"])
    assert first["usage"]["input_tokens"] > 800, "a token for each byte of the message"
    assert 6_000 == last["usage"]["output_tokens"]


def test_the_output_until_the_timeout_is_billed(
    stored: StoredRuns, settings_at_rest: Settings, api: str
) -> None:
    """What was streamed is void, and was not free."""
    _, some, end = SPOKEN[api]
    with vendor(after(STREAM_HEAD, some, 200.0), raw(some + end)) as fake:
        route = route_of(api, fake, idle_seconds=0.3)
        run_id = run_with(stored, settings_at_rest, route)

    assert RunState.COMPLETED == stored.state(run_id)
    assert "message.reset" in stored.types(run_id)
    first, *_ = costs(stored, run_id)
    assert first["usage"]["input_tokens"] > 200
    assert max(1, UNLIMITED[api]) == first["usage"]["output_tokens"]


def test_the_retry_after_a_timeout_is_the_next_routes(
    stored: StoredRuns, settings_at_rest: Settings, api: str
) -> None:
    """A second wait for the same provider is of no use where another one can be asked."""
    _, some, end = SPOKEN[api]
    with vendor(*[after(200.0)] * 2) as silent, vendor(raw(some + end)) as other:
        slow = replace(route_of(api, silent, first_byte_seconds=0.3), id="openai")  # the default
        run_id = run_with(stored, settings_at_rest, slow, replace(route_of(api, other), id="next"))
        eventually(lambda: bool(silent.bodies))
        calls = len(silent.bodies)

    assert (RunState.COMPLETED, 1) == (stored.state(run_id), calls)
    assert "run.fallback" in stored.types(run_id)
    assert 2 == len(list(costs(stored, run_id))[-1]["routes"])
