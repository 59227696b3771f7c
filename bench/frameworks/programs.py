"""Programs that carry out the same agent: their processes are killed, their runs are cancelled."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import httpx

from arkloop.cli.dev.embedded_server import free_port
from bench.frameworks import dev_server
from bench.frameworks.same_events import Shown, shown
from bench.service import ROOT, Service

#: A run that has not ended by this time after its process was replaced is taken for lost.
END_SECONDS = 60.0
MESSAGE = "Cancel order A1."
FRAMEWORKS = ROOT / ".cache" / "agents"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The run after the scene: `status` is None if the program does not know it any more.

    `seen` is what a client had of the stream before the fault, `replayed` what it gets of the
    whole stream afterwards; both are numbers of events.
    """

    status: str | None
    answer: str
    seen: int
    replayed: int
    events: list[Shown] = field(default_factory=list)


class Program(Protocol):
    """A program; `begin` starts a run, and the other methods are about that run."""

    name: str

    def begin(self) -> None: ...
    def kill(self) -> None:
        """Kill the process that carries out the run."""

    def replace(self) -> None:
        """Start a process in its place."""

    def cancel(self) -> None: ...
    def outcome(self) -> Outcome:
        """Wait for the run's end."""

    def close(self) -> None: ...


class InService:
    """An agent of a persona of the service: the built-in loop's, or one behind an agent worker."""

    def __init__(self, service: Service, environ: Mapping[str, str], agent: str | None) -> None:
        self.name = agent or "built-in loop"
        self._service, self._environ, self._agent = service, environ, agent
        self._http = httpx.Client(
            base_url=service.urls[0],
            headers={"Authorization": f"Bearer {service.api_key}"},
            timeout=30,
        )
        tools = {"tools": ["find_order", "delivery_date", "cancel_order"]}
        own: dict[str, Any] = tools if agent is None else {"agent": agent}
        persona = {"key": agent or "builtin", "system_prompt": "Help.", "route_id": "shop", **own}
        self._http.post("/v1/personas", json=persona).raise_for_status()
        self._process: subprocess.Popen[bytes] | None = None
        self._run_id, self._seen = "", 0
        if agent is not None:
            self.replace()

    def begin(self) -> None:
        body = {"message": MESSAGE, "persona_id": self._agent or "builtin"}
        response = self._http.post("/v1/runs", json=body)
        response.raise_for_status()
        self._run_id, self._seen = response.json()["run_id"], 0

    def kill(self) -> None:
        self._seen = len(self._events())
        if self._process is None:
            self._service.end("worker")
        else:
            self._process.kill()
            self._process.wait()

    def replace(self) -> None:
        if self._agent is None:
            self._service.start("worker")
            return
        command = ["agents", "serve", f"bench.frameworks.served:{self._agent}"]
        server = {"ARKLOOP_URL": self._service.urls[0], "ARKLOOP_API_KEY": self._service.api_key}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "arkloop.cli", *command],
            cwd=ROOT,
            env={**os.environ, **self._environ, **server, "FRAMEWORKS": str(FRAMEWORKS)},
            stderr=subprocess.DEVNULL,
        )

    def cancel(self) -> None:
        self._seen = len(self._events())
        self._http.post(f"/v1/runs/{self._run_id}:cancel").raise_for_status()

    def outcome(self) -> Outcome:
        deadline = time.monotonic() + END_SECONDS
        while True:
            run = self._http.get(f"/v1/runs/{self._run_id}").json()
            if run["status"] in ("completed", "failed", "cancelled"):
                break
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        events = self._events()
        return Outcome(
            status=run["status"],
            answer=run["output"] or "",
            seen=self._seen,
            replayed=len(events),
            events=shown(events),
        )

    def _events(self) -> list[dict[str, Any]]:
        path = f"/v1/runs/{self._run_id}/events"
        lines = self._http.get(path, params={"follow": "false"}).text.splitlines()
        found = [line.removeprefix("data: ") for line in lines]
        return [json.loads(line) for line in found if line.startswith("{")]

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


class LangGraphServer:
    """The agent as a graph of LangGraph's own development server (`langgraph dev`)."""

    name = "langgraph dev"

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self._folder, self._environ = folder, environ
        self._port = free_port()
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{self._port}", timeout=30)
        self._run, self._seen = "", list[str]()
        self.replace()

    def begin(self) -> None:
        thread_id = self._http.post("/threads", json={}).json()["thread_id"]
        body = {
            "assistant_id": "shop",
            "input": {"messages": [{"role": "user", "content": MESSAGE}]},
            "stream_mode": ["messages-tuple", "updates"],
            "stream_resumable": True,
            "durability": "sync",
        }
        response = self._http.post(f"/threads/{thread_id}/runs", json=body)
        response.raise_for_status()
        self._run = f"/threads/{thread_id}/runs/{response.json()['run_id']}"
        self._seen = []
        threading.Thread(target=self._follow, args=(self._seen,), daemon=True).start()

    def kill(self) -> None:
        dev_server.end(self._process)

    def replace(self) -> None:
        graphs = {"shop": f"{ROOT}/bench/frameworks/graph.py:graph"}
        self._process = dev_server.start(self._folder, self._port, graphs, self._environ)

    def cancel(self) -> None:
        self._http.post(f"{self._run}/cancel", params={"wait": "false"}).raise_for_status()

    def outcome(self) -> Outcome:
        seen, status, deadline = len(self._seen), None, time.monotonic() + END_SECONDS
        while time.monotonic() < deadline:
            response = self._http.get(self._run)
            status = response.json()["status"] if response.is_success else None
            if status not in ("pending", "running"):
                break
            time.sleep(0.1)
        replayed: list[str] = []
        if status is not None:
            self._follow(replayed)
        state = self._http.get(f"{self._run.rpartition('/runs/')[0]}/state")
        messages = state.json()["values"].get("messages", []) if state.is_success else []
        return Outcome(
            status=status,
            answer=messages[-1]["content"] if messages and messages[-1]["type"] == "ai" else "",
            seen=seen,
            replayed=len(replayed),
        )

    def _follow(self, found: list[str]) -> None:
        """Read the stream of the run from its beginning."""
        with (
            suppress(httpx.HTTPError),
            httpx.stream(
                "GET",
                f"http://127.0.0.1:{self._port}{self._run}/stream",
                headers={"Last-Event-ID": "-1"},
                timeout=dev_server.READY_SECONDS,
            ) as stream,
        ):
            found += (line for line in stream.iter_lines() if line.startswith("event:"))

    def close(self) -> None:
        with suppress(ProcessLookupError):
            self.kill()
