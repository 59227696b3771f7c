"""An MCP server over HTTP that answers calls with whatever a test chooses."""

import json
import queue
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Lying(BaseHTTPRequestHandler):
    """A server that knows the handshake; a call gets whatever the test chooses.

    One that `is_modern` knows `server/discover` instead, of the protocol 2026-07-28.
    """

    protocol_version = "HTTP/1.1"
    on_call: Callable[["Lying"], None]
    more_tools: tuple[Any, ...]
    paths: list[str]
    message: dict[str, Any]
    session_id: str | None = None
    is_modern: bool = False
    let_go: threading.Event
    replies: dict[str, "queue.Queue[dict[str, Any]]"]  # of the client, to what `ask` sends

    def do_POST(self) -> None:
        message = self.message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.paths.append(self.path)
        self.respond(message)

    def respond(self, message: dict[str, Any]) -> None:
        schema = {"type": "object"}
        match message.get("method"):
            case None:
                self.on_reply()
            case "server/discover" if self.is_modern:
                about = {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}}
                self.result(message, about)
            case "initialize":
                version = message["params"]["protocolVersion"]
                about = {"protocolVersion": version, "capabilities": {"tools": {}}}
                self.result(message, {**about, "serverInfo": {"name": "liar", "version": "1"}})
            case "tools/list":
                tools = [{"name": "lie", "inputSchema": schema}, *self.more_tools]
                self.result(message, {"tools": tools})
            case "tools/call":
                self.on_call()
            case "server/discover":
                self.error(message)
            case _:
                self.send(202, b"")

    def do_GET(self) -> None:
        self.paths.append(f"GET {self.path}")
        self.send(405, b"")

    def do_DELETE(self) -> None:
        self.let_go.wait(60)

    def on_reply(self) -> None:
        self.replies[self.message["id"]].put(self.message)
        self.send(202, b"")

    def result(self, message: dict[str, Any], result: dict[str, Any]) -> None:
        if self.is_modern:
            result = {**result, "resultType": "complete", "ttlMs": 0, "cacheScope": "private"}
        self.send_json({"jsonrpc": "2.0", "id": message["id"], "result": result})

    def error(self, message: dict[str, Any], why: str = "Method not found") -> None:
        error = {"code": -32601, "message": why}
        self.send_json({"jsonrpc": "2.0", "id": message["id"], "error": error})

    def ask(self, question: str) -> None:
        """Begin a stream of events, and ask for a form in it."""
        self.begin_stream()
        self.say(self.question(question))

    def begin_stream(self) -> None:
        """Begin a stream of events in place of the response."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()

    def question(self, text: str) -> dict[str, Any]:
        """Return the request for a form with this prompt, which is its id, too."""
        schema = {"type": "object", "properties": {"n": {"type": "string"}}}
        params = {"message": text, "requestedSchema": schema}
        return {"id": text, "method": "elicitation/create", "params": params}

    def say(self, message: dict[str, Any]) -> None:
        """Send a message in the stream."""
        self.wfile.write(b"data: " + json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n\n")
        self.wfile.flush()

    def send_json(self, body: dict[str, Any]) -> None:
        self.send(200, json.dumps(body).encode(), **{"Content-Type": "application/json"})

    def send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        if self.session_id is not None:
            headers["Mcp-Session-Id"] = self.session_id
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Keep silent."""


@contextmanager
def lying(
    on_call: Callable[[Lying], None],
    *more_tools: Any,
    tls: ssl.SSLContext | None = None,
    **more: Any,
) -> Iterator[tuple[str, list[str]]]:
    """Start it; yields its address, and the paths that were requested."""
    paths: list[str] = []
    about = {"on_call": on_call, "paths": paths, "more_tools": more_tools, **more}
    handler = type("Liar", (Lying,), about)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            scheme = "https" if tls else "http"
            yield f"{scheme}://localhost:{server.server_port}/mcp", paths
        finally:
            server.shutdown()
            thread.join()
