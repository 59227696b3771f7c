"""The time of one tool call, by where the tool runs: from `tool.call` to `tool.result` at a client.

Each run makes its calls one after the other and is followed live. The limit beside each figure is a
tool in the worker's own process, in the same run of the benchmark.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from bench.figure import Figure, Limit, percentile
from bench.hostile_mcp_server import HostileMcpServer
from bench.http_tools.trials import Receiver
from bench.service import Service

CALLS, SHORT_CALLS = 200, 10
#: Of one run: fewer than `max_steps`.
CALLS_PER_RUN = 50
WARM_UP = 5
SECONDS = 60.0
POOL = "warehouse"
ENVIRON = {"ARKLOOP_ALLOWED_NETWORKS": "127.0.0.0/8", "ARKLOOP_ENCRYPTION_KEY": "0" * 64}

WORKER_MODULE = '''
from arkloop.worker.contract.context import ToolContext
from arkloop.worker.tools import tool


@tool(idempotent=True)
def stock(context: ToolContext, n: int) -> str:
    """Return the number of lamps in stock."""
    return str(n)
'''
NUMBERED = {"type": "object", "properties": {"n": {"type": "integer"}}}
CLIENT_TOOL = {
    "name": "locate",
    "description": "Return the place of the browser.",
    "parameters": NUMBERED,
    "client": True,
}
#: Kind → the tool that the model calls.
TOOLS = {
    "HTTP": "fast",
    "tool worker": "stock",
    "MCP over HTTP": "go",
    "client": "locate",
    "sub-run": "delegate",
}


def measure(*, short: bool = False) -> Iterator[Figure]:
    """Measure one web process and one worker, one call at a time."""
    calls = SHORT_CALLS if short else CALLS
    with (
        tempfile.TemporaryDirectory(prefix="arkloop-tool-calls-") as name,
        HostileMcpServer() as mcp,
        Service(environ=ENVIRON) as service,
        Receiver(Path(name), service) as receiver,
    ):
        bench = _Bench(service)
        bench.prepare(f"http://127.0.0.1:{receiver.port}/fast", f"{mcp.url}/quick")
        with _tool_worker(bench, Path(name)):
            own = bench.milliseconds("calculator", calls)
            limit = Limit(name="a tool in the worker", of="p50", value=percentile(own, 0.5))
            yield _figure("in the worker", own, None)
            for kind, tool in TOOLS.items():
                yield _figure(kind, bench.milliseconds(tool, calls), limit)


def _figure(kind: str, times: list[float], limit: Limit | None) -> Figure:
    return Figure(
        name=f"tool call: {kind}",
        unit="ms",
        numbers={"p50": percentile(times, 0.5), "p99": percentile(times, 0.99)},
        count=len(times),
        limit=limit,
        note="1 web process, 1 worker",
    )


class _Bench:
    """An org with one tool of each kind."""

    def __init__(self, service: Service) -> None:
        self.url = service.urls[0]
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {service.api_key}"},
            timeout=SECONDS,
        )

    def prepare(self, tool_url: str, mcp_url: str) -> None:
        """Create the tools, and the persona that has all of them."""
        self.post(
            "/v1/tools",
            {
                "name": "fast",
                "description": "Do it.",
                "url": tool_url,
                "parameters": NUMBERED,
                "idempotent": True,
            },
        )
        server = {"name": "quick", "transport": "streamable_http", "url": mcp_url}
        path = f"/v1/mcp-configs/{self.post('/v1/mcp-configs', server)['id']}"
        _until(lambda: self.get(path)["discovered_at"] is not None)
        self.post("/v1/personas", {"key": "child"})
        self.post(
            "/v1/personas",
            {
                "key": "all",
                "tools": ["calculator", "fast"],
                "mcp": ["quick"],
                "tool_workers": [POOL],
                "client_tools": [CLIENT_TOOL],
                "delegates": ["child"],
                "max_steps": 256,
                "max_equal_turns": 256,
            },
        )

    def milliseconds(self, tool: str, calls: int) -> list[float]:
        """Make calls of the tool, and return the time of each."""
        times: list[float] = []
        while len(times) < calls:
            count = min(calls - len(times), CALLS_PER_RUN)
            times += self._of_one_run(tool, count + WARM_UP)[WARM_UP:]
        return times

    def _of_one_run(self, tool: str, calls: int) -> list[float]:
        steps = [{"tool": tool, "args": _arguments(tool, n)} for n in range(calls)]
        message = json.dumps({"script": [*steps, {"say": "done"}]})
        run_id = self.post("/v1/runs", {"persona_id": "all", "message": message})["run_id"]
        began, times = 0.0, list[float]()
        with self._http.stream("GET", f"/v1/runs/{run_id}/events") as stream:
            for line in stream.iter_lines():
                if not line.startswith("data: "):
                    continue
                at, event = time.perf_counter(), json.loads(line[6:])
                match event["type"]:
                    case "tool.call":
                        began = at
                    case "tool.result":
                        assert not event["data"]["is_error"], event
                        times.append((at - began) * 1000)
                    case "run.waiting_for_input":
                        results = [
                            {"tool_call_id": call["tool_call_id"], "output": "Berlin"}
                            for call in event["data"]["calls"]
                        ]
                        self.post(f"/v1/runs/{run_id}/tool-results", results)
        assert calls == len(times), event
        return times

    def get(self, path: str) -> Any:
        response = self._http.get(path)
        response.raise_for_status()
        return response.json()

    def post(self, path: str, body: Any) -> Any:
        response = self._http.post(path, json=body)
        assert response.is_success, response.text
        return response.json() if response.content else None


def _arguments(tool: str, number: int) -> dict[str, Any]:
    match tool:
        case "calculator":
            return {"expression": f"{number}+1"}
        case "delegate":
            return {"persona": "child", "task": json.dumps({"script": [{"say": str(number)}]})}
        case "go":
            return {}
    return {"n": number}


@contextlib.contextmanager
def _tool_worker(bench: _Bench, folder: Path) -> Iterator[None]:
    module = folder / "stock_tools.py"
    module.write_text(WORKER_MODULE)
    key = bench.post("/v1/api-keys", {"name": "worker", "scopes": ["tools.work"]})["key"]
    arkloop = str(Path(sys.executable).with_name("arkloop"))
    worker = subprocess.Popen(
        [arkloop, "tools", "serve", str(module), "--pool", POOL],
        env={"ARKLOOP_URL": bench.url, "ARKLOOP_API_KEY": key, "PATH": "/usr/bin:/bin"},
        stderr=subprocess.DEVNULL,
    )
    try:
        _until(lambda: bench.get(f"/v1/tool-workers/{POOL}/tools") != [])
        yield
    finally:
        worker.terminate()
        worker.wait(SECONDS)


def _until(is_so: Callable[[], object]) -> None:
    deadline, pause = time.monotonic() + SECONDS, threading.Event()
    while not is_so():
        assert time.monotonic() < deadline, "not in time"
        pause.wait(0.05)
