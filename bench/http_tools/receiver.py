"""A customer's server with tools, which dies on request and keeps its effects in a file.

    python -m bench.http_tools.receiver PORT FILE API_URL [POINT:NTH]

`/idempotent` takes effect once for each key. `/once` takes effect with each request: two requests
with one key would be two effects. `/later` is idempotent, accepts calls with 202, and sends each
result over the API, with the key in `BENCH_API_KEY`, until it is taken. `/fast` has no effect and
takes no time.
"""

import contextlib
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

import httpx

#: Where the process may be killed, in the order of a request.
POINTS = ("receiver.read", "receiver.effect", "receiver.mid_response")
#: The statuses by which the service says that it takes no result of this call any more.
OVER = (404, 409, 422)
WORK_SECONDS = 0.05

_TABLE = """
CREATE TABLE IF NOT EXISTS effects
    (key TEXT, path TEXT, output TEXT, run_id TEXT, call_id TEXT, is_sent BOOLEAN)
"""


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
            found = sql.execute(query, (key,)).fetchone() if path != "/once" else None
            if found is not None:
                return str(found[0])
            made = (key, path, output, data["run_id"], data["tool_call_id"], path != "/later")
            sql.execute("INSERT INTO effects VALUES (?, ?, ?, ?, ?, ?)", made)
        self._death.reach("receiver.effect")
        return output

    def send_results(self, api_url: str) -> None:
        """Send the results of accepted calls, again and again, as long as the process lives."""
        key = os.environ["BENCH_API_KEY"]
        http = httpx.Client(base_url=api_url, headers={"Authorization": f"Bearer {key}"})
        query = "SELECT key, run_id, call_id, output FROM effects WHERE NOT is_sent"
        while True:
            time.sleep(0.05)
            with self._lock, closing(_opened(self._file)) as sql:
                unsent = list(sql.execute(query))
            for key, run_id, call_id, output in unsent:
                results = [{"tool_call_id": call_id, "output": output}]
                with contextlib.suppress(httpx.HTTPError):
                    response = http.post(f"/v1/runs/{run_id}/tool-results", json=results)
                    if response.status_code == 200 or response.status_code in OVER:
                        with self._lock, closing(_opened(self._file)) as sql:
                            sql.execute("UPDATE effects SET is_sent = true WHERE key = ?", (key,))


class _Server(ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore connections that a killed worker has left."""


def serve(port: int, file: Path, api_url: str, death: _Death) -> None:
    """Serve until the process is killed."""
    tools = _Tools(file, death)
    threading.Thread(target=tools.send_results, args=(api_url,), daemon=True).start()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            output = tools.call(self.path, json.loads(body)["data"])
            answer = json.dumps({"output": output}).encode()
            self.send_response(202 if self.path == "/later" else 200)
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
    port, file, api_url, *rest = sys.argv[1:]
    point, _, nth = (rest[0] if rest else "never:0").partition(":")
    serve(int(port), Path(file), api_url, _Death(point, int(nth)))


if __name__ == "__main__":
    main()
