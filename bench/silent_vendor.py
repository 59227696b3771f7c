"""A model vendor that begins an answer and never ends it, and notes when its client is gone."""

import contextlib
import json
import select
import socket
import threading
import time
from collections.abc import Mapping
from queue import SimpleQueue
from typing import Self

#: How far an answer gets, by the first part of the request's path.
PHASES = ("unanswered", "headers", "streaming")
DELTA_SECONDS = 0.02

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
_OPENAI_DELTA = {"choices": [{"index": 0, "delta": {"content": "word "}, "finish_reason": None}]}
_RESPONSES_DELTA = {"type": "response.output_text.delta", "item_id": "m", "delta": "word "}
_ANTHROPIC_START = {
    "type": "message_start",
    "message": {"type": "message", "role": "assistant", "content": [], "usage": None},
}
_ANTHROPIC_BLOCK = {
    "type": "content_block_start",
    "index": 0,
    "content_block": {"type": "text", "text": ""},
}
_ANTHROPIC_DELTA = {
    "type": "content_block_delta",
    "index": 0,
    "delta": {"type": "text_delta", "text": "word "},
}


class SilentVendor:
    """`reached` gets the phase of each request that is there, `gone` when its socket was closed.

    It speaks OpenAI's way and Anthropic's; `url` and a phase are a `base_url`.
    """

    def __init__(self) -> None:
        self.reached: SimpleQueue[str] = SimpleQueue()
        self.gone: SimpleQueue[float] = SimpleQueue()  # time.perf_counter()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        # A close alone would leave the thread in accept, where it could take what comes to
        # another server with the same descriptor.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            path = _read_request(client)
            phase = path.split("/")[1]
            if phase != "unanswered":
                client.sendall(_HEAD)
            is_anthropic = path.endswith("/messages")
            if phase == "streaming" and is_anthropic:
                client.sendall(_event(_ANTHROPIC_START) + _event(_ANTHROPIC_BLOCK))
            delta = _event(
                _ANTHROPIC_DELTA
                if is_anthropic
                else _RESPONSES_DELTA
                if path.endswith("/responses")
                else _OPENAI_DELTA
            )
            self.reached.put(phase)
            while not select.select([client], [], [], DELTA_SECONDS)[0]:
                if phase == "streaming":
                    with contextlib.suppress(OSError):
                        client.sendall(delta)
            at = time.perf_counter()
            with contextlib.suppress(ConnectionResetError):
                rest = client.recv(1)
                assert rest == b"", "nothing follows a request but its end"
            self.gone.put(at)


def _read_request(client: socket.socket) -> str:
    """Read a request to its end and return its path."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += client.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while len(body) < length:
        body += client.recv(65536)
    return head.decode().split()[1]


def _event(data: Mapping[str, object]) -> bytes:
    text = f"data: {json.dumps(data)}\n\n"
    return (f"event: {data['type']}\n{text}" if "type" in data else text).encode()
