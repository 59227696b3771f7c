"""A fake server that sends a provider whatever bytes the test chooses."""

import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from arkloop.shared.catalog.model_routes import Route
from arkloop.worker import providers
from arkloop.worker.contract.messages import CallDelta, Chunk, ModelRequest, ToolCall, UserMessage
from arkloop.worker.contract.outcomes import ProviderError
from arkloop.worker.contract.stop_signal import StopSignal

Answer = Callable[[socket.socket], None]

REQUEST = ModelRequest(model="m", system_prompt="Be brief.", messages=[UserMessage("Hi")])


def written(chunks: Iterable[Chunk]) -> list[ToolCall]:
    """Return the calls whose arguments the chunks stream, as a client puts them together."""
    calls: dict[int, ToolCall] = {}
    for chunk in chunks:
        if isinstance(chunk, CallDelta) and chunk.position is not None:
            before = calls.get(chunk.position, ToolCall("", "", ""))
            calls[chunk.position] = ToolCall(chunk.id, chunk.name, before.arguments + chunk.text)
    return [calls[position] for position in sorted(calls)]


class FakeVendor:
    """Answers each request with the next of `answers`; keeps the requests' heads and bodies."""

    def __init__(self, *answers: Answer, tls: ssl.SSLContext | None = None) -> None:
        self.heads: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.sent: list[bytes] = []  # the same, as they arrived
        self._answers = iter(answers)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}/v1"
        self._tls = tls
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        # A close alone would leave the thread in accept, where it could take what comes to
        # another server with the same descriptor.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        for answer in self._answers:
            while True:
                try:
                    client, _ = self._listener.accept()
                except OSError:
                    return
                if self._tls is not None:
                    try:
                        client = self._tls.wrap_socket(client, server_side=True)
                    except OSError:
                        client.close()
                        break
                with client:
                    request = read_request(client)
                    if request[0].startswith("GET "):  # how large a context is: it does not say
                        client.sendall(head("404 Not Found", "text/plain", "Content-Length: 0"))
                        continue
                    self.heads.append(request[0])
                    self.sent.append(request[1])
                    self.bodies.append(dict(json.loads(request[1] or b"{}")))
                    answer(client)
                break


def read_request(client: socket.socket) -> tuple[str, bytes]:
    """Read head and body of one request."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += client.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
    while len(body) < length:
        body += client.recv(65536)
    return head.decode(), body


@contextmanager
def vendor(*answers: Answer, tls: ssl.SSLContext | None = None) -> Iterator[FakeVendor]:
    started = FakeVendor(*answers, tls=tls)
    try:
        yield started
    finally:
        started.close()


# ---- answers -------------------------------------------------------------------------


def head(code: str, kind: str, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {code}", f"Content-Type: {kind}", "Connection: close", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


STREAM_HEAD = head("200 OK", "text/event-stream")


def status(
    code: str,
    *headers: str,
    message: str = "no",
    kind: str = "t",
    error_code: Any = None,
    param: str | None = None,
) -> Answer:
    """Build a refusal, with a body that both vendors' SDKs understand."""

    def answer(client: socket.socket) -> None:
        error = {"message": message, "type": kind, "code": error_code, "param": param}
        body = json.dumps({"type": "error", "error": error}).encode()
        client.sendall(head(code, "application/json", f"Content-Length: {len(body)}", *headers))
        client.sendall(body)

    return answer


def raw(*pieces: bytes) -> Answer:
    """Build a stream of these pieces, each in a TCP segment of its own."""

    def answer(client: socket.socket) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.sendall(STREAM_HEAD)
        for piece in pieces:
            client.sendall(piece)
            threading.Event().wait(0.001)

    return answer


def openai_stream(*chunks: Any, done: bool = True) -> bytes:
    """Build a whole stream; text chunks are sent unchanged."""
    lines = [c if isinstance(c, str) else json.dumps(c, ensure_ascii=False) for c in chunks]
    return "".join(f"data: {line}\n\n" for line in [*lines, *["[DONE]"] * done]).encode()


def anthropic_stream(*events: Any, stop: bool = True) -> bytes:
    """Build a whole stream; text events are sent unchanged."""
    texts = []
    for event in [*events, *[{"type": "message_stop"}] * stop]:
        is_text = isinstance(event, str)
        data = event if is_text else json.dumps(event, ensure_ascii=False)
        texts.append(f"event: {'x' if is_text else event['type']}\ndata: {data}\n\n")
    return "".join(texts).encode()


def delta(finish: str | None = None, **fields: Any) -> dict[str, Any]:
    """Build a chunk of OpenAI's."""
    choice = {"index": 0, "delta": fields, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"} | {
        "choices": [choice]
    }


# ---- calls ---------------------------------------------------------------------------


def route_to(provider: str, url: str | None, **fields: Any) -> Route:
    values = {"id": "r", "model": "m", "api_key": "sk-test-key", **fields}
    return Route(provider=provider, base_url=url, **values)


def ask(
    provider: str, url: str, request: ModelRequest = REQUEST, stop: StopSignal | None = None
) -> list[Chunk]:
    """Make one try of a call."""
    loaded = providers.load(route_to(provider, url), faults=False)
    try:
        return list(loaded.stream(request, stop or StopSignal()))
    finally:
        loaded.close()


def refusal(provider: str, *answers: Answer) -> ProviderError:
    with vendor(*answers) as fake, pytest.raises(ProviderError) as caught:
        ask(provider, fake.url)
    return caught.value
