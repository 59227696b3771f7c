"""The backend of the example: it serves the page, and gets a client token for its end user.

    python server.py --service http://127.0.0.1:8080 --api-key-file ../../.arkloop/api-key

A real backend takes the end user from its session; this one has a single one.
"""

import argparse
import http.server
import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/dist/main.js": ("main.js", "text/javascript; charset=utf-8"),
    "/dist/main.css": ("main.css", "text/css; charset=utf-8"),
}
SCOPES = [
    *("data.files.read", "data.runs.read", "data.runs.write"),
    *("data.threads.read", "data.threads.write"),
]


class Backend(http.server.ThreadingHTTPServer):
    """A server with the settings of its command line."""

    daemon_threads = True

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(("127.0.0.1", args.port), _Handler)
        self.dist: Path = args.dist
        self.service: str = args.service
        self.api_key = args.api_key_file.read_text().strip()
        self.wanted = {
            "end_user_id": args.end_user,
            "persona_id": args.persona,
            "scopes": SCOPES,
        }

    def token(self) -> dict[str, Any]:
        """Return a new client token, and where the page sends it."""
        request = urllib.request.Request(  # noqa: S310 - the operator's own address
            f"{self.service}/v1/client-tokens",
            data=json.dumps(self.wanted).encode(),
            headers={
                "Authorization": f"Bearer {self.api_key}",
                "Content-Type": "application/json",
            },
        )
        with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310 - as above
            return {"url": self.service, **json.load(response)}


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Backend

    def do_GET(self) -> None:
        name, media_type = FILES.get(self.path.partition("?")[0], ("", ""))
        if name:
            folder = FOLDER if name == "index.html" else self.server.dist
            self._send(200, (folder / name).read_bytes(), media_type)
        else:
            self._send(404, b"", "text/plain")

    def do_POST(self) -> None:
        # Only the page itself: another one could not read the token, but have it issued.
        if self.path != "/token" or self.headers.get("Sec-Fetch-Site") != "same-origin":
            self._send(404, b"", "text/plain")
            return
        self._send(200, json.dumps(self.server.token()).encode(), "application/json")

    def _send(self, status: int, body: bytes, media_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve the page of the example.")
    parser.add_argument("--service", default="http://127.0.0.1:8080")
    parser.add_argument("--api-key-file", type=Path, default=Path(".arkloop/api-key"))
    parser.add_argument("--end-user", default="customer-1")
    parser.add_argument("--persona", default="assistant")
    parser.add_argument("--port", type=int, default=5173)
    parser.add_argument("--dist", type=Path, default=FOLDER / "dist")
    args = parser.parse_args()
    backend = Backend(args)
    sys.stdout.write(f"http://127.0.0.1:{args.port}/\n")
    sys.stdout.flush()
    backend.serve_forever()


if __name__ == "__main__":
    main()
