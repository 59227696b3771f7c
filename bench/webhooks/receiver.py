"""An org's server that receives webhooks, in a process of its own: each path misbehaves otherwise.

    python -m bench.webhooks.receiver PORT DOWN_PORT CONFIG ARRIVALS

Until the time `heal_at` in the file CONFIG, /hanging does not respond, /500, /302 and /410 respond
with this status, /flood sends a gibibyte with status 500, and nobody listens on DOWN_PORT, where
/down is. /healthy works all the time. What arrives is written to ARRIVALS, one JSON object a line.
"""

import json
import sys
import threading
import time
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from standardwebhooks import Webhook, WebhookVerificationError

HEALTHY, DOWN, GONE = "healthy", "down", "410"
KINDS = (HEALTHY, DOWN, "hanging", "500", "302", GONE, "flood")
GIBIBYTE = 1 << 30
HANG_SECONDS = 120.0


class _Journal:
    def __init__(self, config: Path, arrivals: Path) -> None:
        read = json.loads(config.read_text())
        self.heal_at: float = read["heal_at"]
        self._secrets: dict[str, str] = read["secrets"]
        self._file = arrivals.open("a", buffering=1)
        self._lock = threading.Lock()

    def is_healed(self, kind: str) -> bool:
        return kind == HEALTHY or time.time() >= self.heal_at

    def write(self, kind: str, headers: Message, body: bytes, at: float, *, ok: bool) -> None:
        """Write what has arrived, and whether it is confirmed."""
        try:
            message = Webhook(self._secrets[kind]).verify(body, dict(headers))
        except WebhookVerificationError:
            message = None
        data = {} if message is None else message["data"]
        arrival = {
            "kind": kind,
            "id": headers["webhook-id"],
            "is_genuine": message is not None,
            "run_id": data.get("run_id"),
            "seq": data.get("seq"),
            "sent_for": None if message is None else message["timestamp"],
            "at": at,
            "is_confirmed": ok,
        }
        with self._lock:
            self._file.write(json.dumps(arrival) + "\n")


def _handler(journal: _Journal) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            at = time.time()
            body = self.rfile.read(int(self.headers["Content-Length"]))
            kind = self.path.strip("/")
            ok = journal.is_healed(kind)
            # Before the response: a sender that dies now does not know that it has arrived.
            journal.write(kind, self.headers, body, at, ok=ok)
            if ok:
                self.send_response(204)
                self.end_headers()
            elif kind == "hanging":
                self.connection.settimeout(HANG_SECONDS)
                self.connection.recv(1)
            elif kind == "flood":
                self._flood()
            else:
                self.send_response(int(kind))
                self.send_header("Location", "/healthy")
                self.send_header("Content-Length", "0")
                self.end_headers()

        def _flood(self) -> None:
            self.send_response(500)
            self.send_header("Content-Length", str(GIBIBYTE))
            self.end_headers()
            piece = b"x" * 65_536
            for _ in range(GIBIBYTE // len(piece)):
                self.wfile.write(piece)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


class _Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore connections that killed workers have left, and those that end a flood."""


def main() -> None:
    """Serve until the process is killed."""
    port, down_port, config, arrivals = sys.argv[1:]
    journal = _Journal(Path(config), Path(arrivals))
    handler = _handler(journal)
    threading.Thread(target=_Server(("127.0.0.1", int(port)), handler).serve_forever).start()
    time.sleep(max(0.0, journal.heal_at - time.time()))
    _Server(("127.0.0.1", int(down_port)), handler).serve_forever()


if __name__ == "__main__":
    main()
