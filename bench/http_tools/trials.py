"""Trials: runs that call an HTTP tool while the worker or the tool's server is killed."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from random import Random
from typing import Any, Self

import httpx

from arkloop.cli.dev.embedded_server import free_port
from bench import points
from bench.http_tools import receiver
from bench.service import ROOT, Service

WORKER_POINTS = (
    "worker.tool_begun",
    "worker.in_tool",
    "worker.tool_returned",
    "worker.before_park",
    "worker.parked",
    "worker.committed",
    "worker.step_finished",
)
POINTS = (*WORKER_POINTS, "worker.any_moment", *receiver.POINTS)
#: Runs that are in progress when a process is killed.
RUNS = 9
SECONDS = 60.0
TOOLS = ("idempotent", "once", "later", "fast")

UNKNOWN = "The outcome of this call is unknown"
MAY_BE_DONE = "The call may have taken effect."


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A run with one call, and what the tool's server has done; `outputs` are of `tool.result`."""

    point: str
    path: str
    status: str
    number: int
    outputs: tuple[str, ...]
    effects: int

    @property
    def is_unknown(self) -> bool:
        """True if the model has read that it does not know what has happened."""
        return any(UNKNOWN in output or MAY_BE_DONE in output for output in self.outputs)

    @property
    def faults(self) -> list[str]:
        faults = []
        if self.status != "completed":
            faults.append(f"the run is {self.status}")
        if len(self.outputs) != 1:
            faults.append(f"{len(self.outputs)} results of one call")
        if self.effects > 1:
            faults.append(f"{self.effects} effects under one key")
        is_done = set(self.outputs) == {f"done {self.number}"}
        if self.effects and not is_done and not self.is_unknown:
            faults.append(f"an effect that the model does not know of: {self.outputs}")
        if is_done and not self.effects:
            faults.append("a result without an effect")
        if self.path != "/once" and not is_done:
            faults.append(f"an idempotent call without its result: {self.outputs}")
        return faults


class Receiver:
    """The tool's server, in a process of its own that is started again after its death."""

    def __init__(self, folder: Path, service: Service) -> None:
        self.file, self.port = folder / "effects.sqlite", free_port()
        self._api_url, self._api_key = service.urls[0], service.api_key
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def start(self, death: str | None = None) -> None:
        """Start it; `death` is `POINT:NTH`."""
        command = [sys.executable, "-m", "bench.http_tools.receiver", str(self.port)]
        given = [self._api_url] if death is None else [self._api_url, death]
        environ = {**os.environ, "BENCH_API_KEY": self._api_key}
        self._process = subprocess.Popen([*command, str(self.file), *given], cwd=ROOT, env=environ)

    def wait_for_death(self, point: str, seconds: float) -> None:
        """Wait until it has died at the point. Raises: TimeoutError."""
        assert self._process is not None
        points.wait_for_death(point, self._process.pid, seconds)
        self._process.wait()

    def end(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()


class Bench:
    """An org with the tools, and the client that runs its trials."""

    def __init__(self, service: Service, server: Receiver) -> None:
        self._service, self._server = service, server
        self._http = httpx.Client(
            base_url=service.urls[0],
            headers={"Authorization": f"Bearer {service.api_key}"},
            timeout=60,
        )
        for name in TOOLS:
            self._made(
                "/v1/tools",
                {
                    "name": name,
                    "description": "Do it.",
                    "url": f"http://127.0.0.1:{server.port}/{name}",
                    "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}},
                    "idempotent": name != "once",
                },
            )
        self._made(
            "/v1/personas", {"key": "worker", "tools": [*TOOLS, "calculator"], "max_steps": 256}
        )

    def round(self, point: str, seed: int) -> list[Trial]:
        """Start `RUNS` runs and kill a process at the point while they are in progress."""
        chance = Random(f"{point} {seed}")
        nth = chance.randint(1, RUNS // 3)
        doomed = None
        if point in WORKER_POINTS:
            self._service.end("worker")
            armed = {"ARKLOOP_FAULT_POINT": f"{point}:{nth}:KILL"}
            doomed = self._service.start("worker", armed)
        elif point in receiver.POINTS:
            self._server.end()
            self._server.start(f"{point}:{nth}")
        paths = [f"/{TOOLS[number % 3]}" for number in range(RUNS)]
        runs = [self._start(path, number) for number, path in enumerate(paths)]
        if point == "worker.any_moment":
            time.sleep(chance.uniform(0, 0.2))
            self._service.end("worker")
        elif doomed is not None:
            points.wait_for_death(point, doomed, SECONDS)
            self._service.end("worker")
        if point.startswith("worker."):
            self._service.start("worker")
        else:
            self._server.wait_for_death(point, SECONDS)
            self._server.start()
        ended = [self._ended(run_id) for run_id in runs]
        found = Counter(key.partition(":")[0] for key, _ in receiver.effects(self._server.file))
        return [
            Trial(
                point=point,
                path=path,
                status=status,
                number=number,
                outputs=outputs,
                effects=found[run_id],
            )
            for number, (run_id, path, (status, outputs)) in enumerate(
                zip(runs, paths, ended, strict=True)
            )
        ]

    def milliseconds(self, tool: str, args: dict[str, Any], calls: int) -> list[float]:
        """Return the times from `tool.call` to `tool.result` of a run with these calls."""
        steps = [{"tool": tool, "args": args}] * calls
        run_id = self._run([*steps, {"say": "done"}])
        self._ended(run_id)
        events = self._events(run_id)
        at = {kind: [_time(e) for e in events if e["type"] == kind] for kind in _CALL_TYPES}
        pairs = zip(at["tool.call"], at["tool.result"], strict=True)
        return [(ended - began) * 1000 for began, ended in pairs]

    def _start(self, path: str, number: int) -> str:
        return self._run([{"tool": path[1:], "args": {"n": number}}, {"say": "done"}])

    def _run(self, script: list[dict[str, Any]]) -> str:
        body = {"message": json.dumps({"script": script}), "persona_id": "worker"}
        return str(self._made("/v1/runs", body)["run_id"])

    def _made(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        response = self._http.post(path, json=body)
        response.raise_for_status()
        return dict(response.json())

    def _ended(self, run_id: str) -> tuple[str, tuple[str, ...]]:
        """Wait for the run's end; return its status and the outputs of its calls."""
        deadline = time.monotonic() + SECONDS
        while (run := self._http.get(f"/v1/runs/{run_id}").json())["completed_at"] is None:
            if run["status"] == "failed" or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        results = [e["data"] for e in self._events(run_id) if e["type"] == "tool.result"]
        return run["status"], tuple(result["output"] for result in results)

    def _events(self, run_id: str) -> list[dict[str, Any]]:
        text = self._http.get(f"/v1/runs/{run_id}/events", params={"follow": "false"}).text
        lines = [line.removeprefix("data: ") for line in text.splitlines()]
        return [json.loads(line) for line in lines if line.startswith("{")]


_CALL_TYPES = ("tool.call", "tool.result")


def _time(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["created_at"]).timestamp()
