"""The HTTP client of the providers: cut from another thread, and kept to allowed addresses."""

import gzip
import socket
import ssl
import threading
import time
from contextlib import suppress

import httpx2
import pytest
import trustme

from arkloop.shared.security.egress import Policy
from arkloop.worker import providers
from arkloop.worker.contract.messages import TextDelta
from arkloop.worker.contract.outcomes import CancelRequested, ProviderError
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.providers import abortable_http
from arkloop.worker.providers.bounded_response import MAX_ERROR_BYTES, MAX_EVENT_BYTES
from tests.worker.providers.fake_vendor import (
    REQUEST,
    STREAM_HEAD,
    Answer,
    ask,
    delta,
    head,
    openai_stream,
    raw,
    refusal,
    route_to,
    vendor,
)

LOOPBACK = Policy.of(["127.0.0.0/8"])
HELLO = raw(openai_stream(delta(content="Hi"), delta(finish="stop")))


@pytest.fixture
def tls(monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """The certificate of a server, for its address and for `localhost`, that the clients trust."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    monkeypatch.setattr(abortable_http, "ssl_context", lambda: trusting)
    return context


# ---- cutting -------------------------------------------------------------------------


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
@pytest.mark.parametrize("over_tls", [False, True])
@pytest.mark.parametrize("before", [b"", STREAM_HEAD])
def test_a_silent_provider_is_cut_off_at_once(
    provider: str, before: bytes, over_tls: bool, tls: ssl.SSLContext
) -> None:
    """A stop signal ends the call before the first byte and between two of them."""
    asked = threading.Event()

    def fall_silent(client: socket.socket) -> None:
        client.sendall(before)
        asked.set()
        with suppress(OSError):
            client.recv(1)  # returns when the other side is gone

    stop = StopSignal()
    stopped_at: list[float] = []

    def cancel() -> None:
        asked.wait(60)
        stopped_at.append(time.monotonic())
        stop.set(CancelRequested())

    with vendor(fall_silent, tls=tls if over_tls else None) as fake:
        threading.Thread(target=cancel).start()
        with pytest.raises(CancelRequested):
            ask(provider, fake.url, stop=stop)

    assert time.monotonic() - stopped_at[0] < 15


def test_a_connection_that_comes_after_the_cut_is_cut_too() -> None:
    """A stop that arrives while the provider's address is looked up is not forgotten."""
    with vendor(lambda client: None) as fake:
        client = abortable_http.AbortableClient(route_to("openai", fake.url))
        client.abort()

        with pytest.raises(httpx2.TransportError):
            client.post(f"{fake.url}/x", json={})
        client.close()


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_a_certificate_that_nobody_trusts_is_told(provider: str) -> None:
    """Another reason than a server that is away, for the operator who has to repair it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    with vendor(HELLO, tls=context) as fake:
        with pytest.raises(ProviderError, match="certificate is not trusted") as caught:
            ask(provider, fake.url)
        assert [] == fake.heads
    assert ("provider.connection", True) == (caught.value.code, caught.value.retryable)


# ---- lengths -------------------------------------------------------------------------


def _endlessly(start: bytes, part: bytes) -> tuple[Answer, list[int]]:
    """Respond until the client hangs up; returns the number of bytes sent."""
    sent = [0]

    def answer(client: socket.socket) -> None:
        client.sendall(start)
        with suppress(OSError):
            while sent[0] < 10**9:
                client.sendall(part)
                sent[0] += len(part)

    return answer, sent


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
@pytest.mark.parametrize(
    ("start", "part"),
    [
        (STREAM_HEAD + b"data: ", b"x" * 65536),
        (STREAM_HEAD, b"data: xxxxxxxx\n" * 4096),  # lines enough, but never an end of the event
        (head("200 OK", "application/json"), b"x" * 65536),
        (head("200 OK", "application/json"), b"data: x\n" * 8192),  # an event all the same
        (head("400 Bad Request", "application/json"), b"x" * 65536),
        (head("302 Found", "text/html"), b"x\n" * 32768),
    ],
    ids=["line", "event", "page", "event of another type", "error", "redirect"],
)
def test_an_answer_without_an_end_is_broken_off(provider: str, start: bytes, part: bytes) -> None:
    """The SDKs would keep all of it until the memory is full."""
    answer, sent = _endlessly(start, part)
    began = time.monotonic()

    error = refusal(provider, answer)

    assert "provider.connection" == error.code
    most = MAX_EVENT_BYTES if b"200" in start else MAX_ERROR_BYTES
    assert sent[0] < most + 16 * 1024 * 1024  # and what the sockets hold
    assert time.monotonic() - began < 60


def test_a_long_answer_of_short_events_is_fine() -> None:
    """The limit of an event begins anew with each, wherever the network cuts."""
    event = openai_stream(delta(content="x" * 900_000), done=False)
    parts = [event[:-1], event[-1:] + event, event, *[event] * 8]
    end = openai_stream(delta(finish="stop"))

    with vendor(raw(*parts, end)) as fake:
        chunks = ask("openai", fake.url)

    assert 11 * 900_000 == sum(len(c.text) for c in chunks if isinstance(c, TextDelta))


def test_a_compressed_answer_is_not_unpacked() -> None:
    """A kilobyte can be a megabyte then; nobody asked for it."""
    packed = gzip.compress(openai_stream(delta(content="Hi"), delta(finish="stop")))
    start = head("200 OK", "text/event-stream", "Content-Encoding: gzip")

    with vendor(lambda client: client.sendall(start + packed)) as fake:
        with pytest.raises(ProviderError) as caught:
            ask("openai", fake.url)
        assert "accept-encoding: identity" in fake.heads[0].lower()
    assert "provider.connection" == caught.value.code


# ---- addresses -----------------------------------------------------------------------


def of_org(provider: str, url: str, policy: Policy | None) -> list[object]:
    """Call through the route of an org."""
    loaded = providers.load(route_to(provider, url, is_of_org=True), faults=False, egress=policy)
    try:
        return list(loaded.stream(REQUEST, StopSignal()))
    finally:
        loaded.close()


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
@pytest.mark.parametrize("policy", [None, Policy(), Policy.of(["10.0.0.0/8"])])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]"])
def test_the_route_of_an_org_does_not_reach_into_the_network(
    provider: str, policy: Policy | None, host: str
) -> None:
    """Refused before a connection is made; it would not help to try again."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        url = f"http://{host}:{listener.getsockname()[1]}/v1"

        with pytest.raises(ProviderError, match="address is not allowed") as caught:
            of_org(provider, url, policy)

        with pytest.raises(BlockingIOError):
            listener.accept()
    assert ("provider.invalid_request", False) == (caught.value.code, caught.value.retryable)


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "http://user:pw@example.com/v1", "http://2130706433/v1", "x"]
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    """A malformed address is refused before SDK or HTTP client interpret it."""
    with pytest.raises(ProviderError, match="address is not allowed"):
        of_org("openai", url, Policy())


def test_a_name_is_resolved_once_and_the_checked_address_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A name whose second answer is another one (DNS rebinding) leads where the first was."""
    asked: list[str] = []
    genuine = socket.getaddrinfo

    def rebinding(host: str, port: int, *args: object, **kwargs: object) -> object:
        if host == "rebinding.example.com":
            asked.append(host)
            host = "127.0.0.1" if len(asked) == 1 else "127.0.0.2"
        return genuine(host, port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    with vendor(HELLO) as fake:
        chunks = of_org("openai", f"http://rebinding.example.com:{fake.port}/v1", LOOPBACK)
        [sent] = fake.heads

    assert TextDelta("Hi") in chunks
    assert ["rebinding.example.com"] == asked
    assert f"host: rebinding.example.com:{fake.port}" in sent.lower()


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_a_name_with_one_bad_address_is_refused(
    provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host name with one forbidden address is refused, even if another one is allowed."""

    def both(host: str, port: int, *args: object, **kwargs: object) -> object:
        kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*kind, (address, port)) for address in ("93.184.215.14", "169.254.169.254")]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    with pytest.raises(ProviderError, match="address is not allowed"):
        of_org(provider, "https://both.example.com/v1", Policy())


def test_a_name_that_leads_nowhere_may_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver's failure is no refusal."""

    def failing(*args: object, **kwargs: object) -> object:
        raise socket.gaierror(socket.EAI_AGAIN, "try again")

    monkeypatch.setattr(socket, "getaddrinfo", failing)
    with pytest.raises(ProviderError) as caught:
        of_org("openai", "https://nowhere.example.com/v1", Policy())

    assert ("provider.connection", True) == (caught.value.code, caught.value.retryable)


def test_the_next_address_is_tried_where_the_first_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If the first address does not respond, the next one is tried, as without a policy."""
    with vendor(HELLO) as fake:

        def two(host: str, port: int, *args: object, **kwargs: object) -> object:
            kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
            return [(*kind, (address, port)) for address in ("127.0.0.9", "127.0.0.1")]

        genuine = socket.getaddrinfo
        monkeypatch.setattr(
            socket,
            "getaddrinfo",
            lambda host, *args, **kwargs: (two if host == "two.example.com" else genuine)(
                host, *args, **kwargs
            ),
        )
        chunks = of_org("openai", f"http://two.example.com:{fake.port}/v1", LOOPBACK)

    assert TextDelta("Hi") in chunks


def test_tls_is_for_the_name_not_the_address(tls: ssl.SSLContext) -> None:
    """The certificate is checked against what the org wrote, and SNI has it."""
    names: list[str | None] = []
    tls.sni_callback = lambda connection, name, context: names.append(name)
    with vendor(HELLO, tls=tls) as fake:
        chunks = of_org("openai", f"https://localhost:{fake.port}/v1", LOOPBACK)

    assert TextDelta("Hi") in chunks
    assert ["localhost"] == names


def credentials(sent: str) -> list[str]:
    """Return the headers of a request that identify its sender."""
    lines = sent.lower().split("\r\n")
    return [line for line in lines if line.startswith(("authorization", "x-api-key", "cookie"))]


def test_the_workers_environment_does_not_go_to_the_server_of_an_org(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The SDKs read addresses, organizations and headers of the operator's from it."""
    monkeypatch.setenv("OPENAI_ORG_ID", "org-secret")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-secret")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "key-secret")
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", "token-secret")
    monkeypatch.setenv("OPENAI_API_KEY", "key-secret")
    names = ("X-Gateway", "Authorization", "authorization", "X-API-Key", "x-Api-key")
    headers = "\n".join(f"{name}: Bearer header-secret" for name in names)
    for sdk in ("openai", "anthropic"):
        monkeypatch.setenv(f"{sdk.upper()}_CUSTOM_HEADERS", headers)
        monkeypatch.setenv(f"{sdk.upper()}_BASE_URL", "http://127.0.0.1:1/base-secret")
        with vendor(raw(b"")) as fake:
            with pytest.raises(ProviderError):
                of_org(sdk, fake.url, LOOPBACK)
            [sent] = fake.heads
        assert "secret" not in sent
        assert ["authorization: bearer sk-test-key"] == credentials(sent)


def test_a_key_of_the_routes_is_the_only_one_that_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the route's key is sent, also on the operator's routes, where the SDK would use a token
    of the environment.
    """
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", "token-secret")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "key-secret")
    for key in ("sk-test-key", None):
        with vendor(raw(b"")) as fake:
            loaded = providers.load(route_to("anthropic", fake.url, api_key=key), faults=False)
            with pytest.raises(ProviderError, match="ended before"):
                list(loaded.stream(REQUEST, StopSignal()))
            loaded.close()
            [sent] = fake.heads
        assert [f"authorization: bearer {key or 'none'}"] == credentials(sent)


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_the_route_of_the_operator_may_be_anywhere(provider: str) -> None:
    """Settings are trusted: a policy does not concern them."""
    with vendor(raw(b"")) as fake:
        loaded = providers.load(route_to(provider, fake.url), faults=False, egress=Policy())
        with pytest.raises(ProviderError, match="ended before"):
            list(loaded.stream(REQUEST, StopSignal()))
        loaded.close()
        assert 1 == len(fake.bodies)


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_a_server_that_demands_a_certificate_has_refused_tls(
    provider: str, tls: ssl.SSLContext
) -> None:
    """With TLS 1.3 its alert comes with the first read: no stream has broken."""
    tls.verify_mode = ssl.CERT_REQUIRED
    with vendor(HELLO, tls=tls) as fake, pytest.raises(ProviderError) as refused:
        ask(provider, fake.url)

    assert "TLS error at the provider: handshake failed." == str(refused.value)
