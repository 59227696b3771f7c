"""A model vendor that answers in one word, and refuses what is too large for its rate limit."""

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import Queue
from pathlib import Path

from bench import noise
from bench.noise import Stop

LARGE_CHARACTERS = 100_000
RETRY_AFTER_SECONDS = 30
READY_SECONDS = 60.0

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
    disable_nagle_algorithm = True  # as servers that stream do

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
        """Keep silent."""


def _serve(stop: Stop, port: "Queue[int]", certificate: Path | None) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port.put(server.server_port)
    stop.wait()


@contextmanager
def refusing_vendor(certificate: Path | None = None) -> Iterator[str]:
    """Run the vendor in a process of its own; yields the `base_url` of a route of `openai`.

    `certificate`: a file with its private key and its certificate, for TLS.
    """
    port = noise.processes.Queue()
    with noise.beside(_serve, port, certificate, gives_way=False):
        scheme = "http" if certificate is None else "https"
        yield f"{scheme}://127.0.0.1:{port.get(timeout=READY_SECONDS)}/v1"
