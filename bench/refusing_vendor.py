"""A model vendor that answers in one word, and refuses what is too large for its rate limit."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

LARGE_CHARACTERS = 100_000
RETRY_AFTER_SECONDS = 30

_CHUNKS = (
    {"choices": [{"index": 0, "delta": {"content": "Yes."}, "finish_reason": None}]},
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
)
_REFUSAL = {
    "message": "Request too large for m on tokens per min (TPM): Limit 10000, Requested 25000.",
    "type": "tokens",
    "code": "rate_limit_exceeded",
}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        self.rfile.read(length)
        if length >= LARGE_CHARACTERS:
            self._answer(429, "application/json", json.dumps({"error": _REFUSAL}).encode())
            return
        lines = [*map(json.dumps, _CHUNKS), "[DONE]"]
        stream = "".join(f"data: {line}\n\n" for line in lines).encode()
        self._answer(200, "text/event-stream", stream)

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if status == 429:
            self.send_header("Retry-After", str(RETRY_AFTER_SECONDS))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class RefusingVendor:
    """`url` is the `base_url` of a route of the provider `openai`."""

    def __init__(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
