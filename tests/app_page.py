"""The page of an app on another origin, which follows runs by EventSource."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_PAGE = b"""<!doctype html><title>An app of somebody else</title><script>
function follow(url, type) {
  window.seen = []
  window.errors = 0
  window.source = new EventSource(url)
  source.addEventListener(type, e => seen.push([e.lastEventId, e.data]))
  source.onerror = () => errors++
}
</script>"""


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(_PAGE)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def app_page() -> Iterator[str]:
    """Serve the page for the length of the block; yields its origin."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
