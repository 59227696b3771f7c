"""Everything to which the soaked service connects: an org's receiver of webhooks, its tool, and a
collector of spans, in a process of its own.

    python -m bench.soak.receiver PORT ARRIVALS

/hook takes webhooks, and writes the run and the type of each event to ARRIVALS, one JSON list a
line. /tool is a tool. Any other path is the collector's.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore connections that a stopped service has left."""


def serve(port: int, arrivals: Path) -> None:
    """Serve until the process is killed."""
    written = arrivals.open("a", buffering=1)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # connections are kept, as real receivers do

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            answer = b"{}"
            if self.path == "/hook":
                event = json.loads(body)
                # One write a line: lines of several threads do not mix.
                written.write(json.dumps([event["data"].get("run_id"), event["type"]]) + "\n")
            elif self.path == "/tool":
                answer = b'{"output": "done"}'
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            pass

    _Server(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    serve(int(sys.argv[1]), Path(sys.argv[2]))
