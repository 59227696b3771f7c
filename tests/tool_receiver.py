"""A customer's server with tools: it checks signatures by itself and answers as a test says."""

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

#: Tolerance of the specification's own libraries.
MAX_AGE_SECONDS = 300


@dataclass
class Received:
    """A request, with the time when its last byte was read."""

    path: str
    headers: Message
    body: bytes
    hung_up: threading.Event = field(default_factory=threading.Event)

    @property
    def message(self) -> dict[str, Any]:
        return dict(json.loads(self.body))

    @property
    def data(self) -> dict[str, Any]:
        return dict(self.message["data"])

    def is_signed_by(self, secret: str) -> bool:
        """Verify as the Standard Webhooks specification says, without the product's code."""
        kind, _, encoded = secret.partition("_")
        assert "whsec" == kind
        id_, sent_at = self.headers["webhook-id"], self.headers["webhook-timestamp"]
        if abs(time.time() - int(sent_at)) > MAX_AGE_SECONDS:
            return False
        content = id_.encode() + b"." + sent_at.encode() + b"." + self.body
        digest = hmac.digest(base64.b64decode(encoded), content, hashlib.sha256)
        signatures = self.headers["webhook-signature"].split(" ")
        return f"v1,{base64.b64encode(digest).decode()}" in signatures


@dataclass(frozen=True)
class Reply:
    """A response; the body of `None` closes the connection without one."""

    body: Any = None
    status: int = 200
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def content(self) -> bytes:
        if isinstance(self.body, bytes):
            return self.body
        is_text = isinstance(self.body, str) and self.content_type != "application/json"
        return (self.body if is_text else json.dumps(self.body)).encode()


#: What a request gets: a response, or None for a connection that is closed without one.
Answer = Callable[[Received], Reply | None]


class ToolReceiver:
    """The server, on a port of 127.0.0.1; `answer` can be replaced at any time."""

    def __init__(self, answer: Answer, port: int = 0) -> None:
        self.answer = answer
        self.received: list[Received] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                request = Received(self.path, self.headers, self.rfile.read(length))
                receiver.received.append(request)
                threading.Thread(target=self._watch, args=(request,), daemon=True).start()
                reply = receiver.answer(request)
                self.close_connection = True
                if reply is None:
                    return
                self.send_response(reply.status)
                self.send_header("Content-Type", reply.content_type)
                self.send_header("Content-Length", str(len(reply.content)))
                for name, value in reply.headers:
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(reply.content)

            def _watch(self, request: Received) -> None:
                try:
                    ended = self.connection.recv(1) == b""
                except OSError:
                    ended = True
                if ended:
                    request.hung_up.set()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}/tool"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
