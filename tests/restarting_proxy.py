"""A proxy whose server restarts: streams are cut, and the requests after it are refused."""

import http.client
import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

_DATE = "Tue, 01 Dec 2026 03:00:00 GMT"
_PAGE = b"<!doctype html><title>A page of the same origin</title>"


@dataclass
class RestartingProxy:
    """The first stream breaks after `length` bytes; then the server is gone for `refused` requests.

    It is also gone for the first `refused_posts`. With `ends_posts`, it is the first stream of a
    POST that breaks, and it ends in order, as if it were complete. Requests get 502, or with
    `retry_after` the `status` and these seconds, the first one a date instead if `has_date`;
    `early` are those that came again before the seconds were over.
    """

    target_port: int
    length: int = 1500
    refused: int = 2
    refused_posts: int = 1
    ends_posts: bool = False
    status: int = 429
    retry_after: int | None = None
    has_date: bool = False
    early: int = 0
    expected_at: float = 0.0
    has_cut: bool = False
    begun: int = 0  # responses of the server
    url: str = ""

    def refuses(self, *, is_post: bool) -> bool:
        """Return whether the server is gone as this request comes."""
        self.early += time.monotonic() < self.expected_at
        if is_post:
            self.refused_posts -= (is_gone := self.refused_posts > 0)
        else:
            self.refused -= (is_gone := self.has_cut and self.refused > 0)
        return is_gone

    def retry_after_header(self) -> str:
        """Return what a refused request gets, and expect the next one no earlier than that."""
        if self.has_date:
            self.has_date = False
            return _DATE
        self.expected_at = time.monotonic() + (self.retry_after or 0)
        return str(self.retry_after)


class _Handler(http.server.BaseHTTPRequestHandler):
    proxy: RestartingProxy

    def do_GET(self) -> None:
        if self.path == "/page":
            self._answer(200, _PAGE, "text/html")
        else:
            self._pass_on(None)

    def do_POST(self) -> None:
        self._pass_on(self.rfile.read(int(self.headers["Content-Length"])))

    def _pass_on(self, body: bytes | None) -> None:
        if self.proxy.refuses(is_post=body is not None):
            if self.proxy.retry_after is None:
                self._answer(502, b"Refused", "text/html")
            else:
                named = self.proxy.retry_after_header()
                self._answer(self.proxy.status, b"Refused", "text/html", named)
            return
        server = http.client.HTTPConnection("127.0.0.1", self.proxy.target_port)
        names = ("Authorization", "Accept", "Cache-Control", "Content-Type", "Last-Event-ID")
        headers = {name: self.headers[name] for name in names if name in self.headers}
        server.request(self.command, self.path, body, headers)
        response = server.getresponse()
        self.proxy.begun += 1
        self.send_response(response.status)
        self.send_header("Content-Type", response.headers["Content-Type"] or "text/plain")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        sent = 0
        may_cut = self.proxy.ends_posts == (body is not None)
        # In small pieces, or by lines: on a busy machine the whole stream may be there at once. One
        # that ends in order is cut between frames.
        ends = self.proxy.ends_posts
        while piece := response.readline() if ends else response.read1(512):
            self.wfile.write(b"%X\r\n%b\r\n" % (len(piece), piece))
            sent += len(piece)
            is_long = sent > self.proxy.length and (not ends or piece == b"\n")
            if may_cut and not self.proxy.has_cut and is_long:
                self.proxy.has_cut = True
                break
        if not piece or ends:  # without the last chunk, the connection has broken
            self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True
        server.close()

    def _answer(
        self, status: int, body: bytes, content_type: str, retry_after: str | None = None
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        if retry_after is not None:
            self.send_header("Retry-After", retry_after)
        self.end_headers()
        self.wfile.write(body)

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def restarting_proxy(target_port: int, **how: Any) -> Iterator[RestartingProxy]:
    """Run a proxy for the length of the block."""
    proxy = RestartingProxy(target_port, **how)
    handler = type("_Of", (_Handler,), {"proxy": proxy})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        proxy.url = f"http://127.0.0.1:{server.server_port}"
        yield proxy
        server.shutdown()
