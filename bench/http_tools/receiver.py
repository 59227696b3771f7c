"""A customer's server with three tools, which dies on request and keeps its effects in a file.

    python -m bench.http_tools.receiver PORT FILE [POINT:NTH]

`/idempotent` takes effect once for each key. `/once` takes effect with each request: two requests
with one key would be two effects. `/fast` has none and takes no time.
"""

import json
import os
import signal
import sqlite3
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

#: Where the process may be killed, in the order of a request.
POINTS = ("receiver.read", "receiver.effect", "receiver.mid_response")
WORK_SECONDS = 0.05

_TABLE = "CREATE TABLE IF NOT EXISTS effects (key TEXT, path TEXT, output TEXT)"


def effects(file: Path) -> list[tuple[str, str]]:
    """Return the key and the path of every effect."""
    with closing(_opened(file)) as sql:
        return list(sql.execute("SELECT key, path FROM effects"))


def _opened(file: Path) -> sqlite3.Connection:
    sql = sqlite3.connect(file, timeout=30, isolation_level=None)
    sql.execute("PRAGMA synchronous = FULL")
    sql.execute(_TABLE)
    return sql


class _Death:
    """The place at which the process dies, when it is reached for the nth time."""

    def __init__(self, point: str, nth: int) -> None:
        self._point, self._nth = point, nth
        self._reached: Counter[str] = Counter()
        self._lock = threading.Lock()

    def reach(self, point: str) -> None:
        with self._lock:
            self._reached[point] += 1
            if point == self._point and self._reached[point] == self._nth:
                os.kill(os.getpid(), signal.SIGKILL)


class _Tools:
    def __init__(self, file: Path, death: _Death) -> None:
        self._file, self._death = file, death
        self._lock = threading.Lock()

    def call(self, path: str, data: Mapping[str, Any]) -> str:
        """Take effect, where the path says so, and return the output."""
        if path == "/fast":
            return "done"
        self._death.reach("receiver.read")
        time.sleep(WORK_SECONDS)
        key, output = data["idempotency_key"], f"done {data['arguments']['n']}"
        with self._lock, closing(_opened(self._file)) as sql:
            query = "SELECT output FROM effects WHERE key = ?"
            found = sql.execute(query, (key,)).fetchone() if path == "/idempotent" else None
            if found is not None:
                return str(found[0])
            sql.execute("INSERT INTO effects VALUES (?, ?, ?)", (key, path, output))
        self._death.reach("receiver.effect")
        return output


class _Server(ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore connections that a killed worker has left."""


def serve(port: int, file: Path, death: _Death) -> None:
    """Serve until the process is killed."""
    tools = _Tools(file, death)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            output = tools.call(self.path, json.loads(body)["data"])
            answer = json.dumps({"output": output}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer[:5])
            self.wfile.flush()
            death.reach("receiver.mid_response")
            self.wfile.write(answer[5:])

        def log_message(self, *_: Any) -> None:
            pass

    _Server(("127.0.0.1", port), Handler).serve_forever()


def main() -> None:
    port, file, *rest = sys.argv[1:]
    point, _, nth = (rest[0] if rest else "never:0").partition(":")
    serve(int(port), Path(file), _Death(point, int(nth)))


if __name__ == "__main__":
    main()
