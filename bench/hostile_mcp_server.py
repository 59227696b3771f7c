"""An MCP server that answers by its path: at once, with 4 MiB, or never; a process of its own."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from bench import noise

_ROOT = Path(__file__).parents[1]
_FILL = 4 * 1024 * 1024 - 300
#: One character that makes Python store each of the others in four bytes.
_WIDE = json.dumps({"type": "text", "text": "😀" + "x" * (_FILL - 100)}, ensure_ascii=False)
_MANY = ",".join(["{}"] * (_FILL // 3))
#: Results of calls, by the beginning of the path.
_RESULTS = {
    "/quick": b'{"content":[{"type":"text","text":"done"}]}',
    "/wide": b'{"content":[' + _WIDE.encode() + b"]}",
    "/many": b'{"content":[],"structuredContent":{"a":[' + _MANY.encode() + b"]}}",
}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.startswith("/silent"):
            threading.Event().wait()
        if "id" not in message:
            self._send(202, b"")
            return
        result = _result(message, self.path)
        number = json.dumps(message["id"]).encode()
        kind = b'"result"' if result else b'"error"'
        content = result or b'{"code":-32601,"message":"Method not found"}'
        self._send(200, b'{"jsonrpc":"2.0","id":' + number + b"," + kind + b":" + content + b"}")

    def do_GET(self) -> None:
        self._send(405, b"")

    def do_DELETE(self) -> None:
        self._send(200, b"")

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep silent."""


def _result(message: dict[str, Any], path: str) -> bytes | None:
    match message["method"]:
        case "initialize":
            about = {
                "protocolVersion": message["params"]["protocolVersion"],
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "hostile", "version": "1"},
            }
            return json.dumps(about).encode()
        case "tools/list":
            return b'{"tools":[{"name":"go","inputSchema":{"type":"object"}}]}'
        case "tools/call":
            return next(body for start, body in _RESULTS.items() if path.startswith(start))
    return None


class HostileMcpServer:
    """A server in a process of its own: `url` goes before the path, `way` is how it gives way."""

    def __init__(self, *, gives_way: bool = False) -> None:
        """Create it; it `gives_way` to all others where only the noisy org waits for it."""
        self._arguments = ["gives_way"] if gives_way else []

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "bench.hostile_mcp_server", *self._arguments]
        self.process = subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        self.url, _, self.way = self.process.stdout.readline().decode().rstrip("\n").partition("\t")
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def _main() -> None:
    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *_: object) -> None:
            """Ignore clients that have disconnected."""

    way = noise.give_way() if sys.argv[1:] else ""
    with Server(("127.0.0.1", 0), _Handler) as server:
        print(f"http://127.0.0.1:{server.server_port}", way, sep="\t", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    _main()
