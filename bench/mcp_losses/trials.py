"""Trials: runs that call server-everything while it, the sidecar or the worker is killed."""

import json
import os
import shutil
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Self

import httpx
import psutil

from arkloop.cli.dev.embedded_server import free_port
from bench import points
from bench.service import ROOT, Service

WORKER_POINTS = ("worker.tool_begun", "worker.tool_returned", "worker.step_finished")
SERVER_POINTS = ("server.before", "server.after")
POINTS = (
    *SERVER_POINTS,
    "server.between_calls",
    "server.before_discovery",
    "sidecar.in_call",
    "sidecar.between_calls",
    *WORKER_POINTS,
    "worker.in_call",
)
#: Runs that are in progress when a process is killed, and the calls of each.
RUNS, CALLS = 8, 4
SECONDS = 180.0
TRANSPORTS = ("http", "stdio")
#: The reports of a call whose outcome is not known.
UNKNOWN = (
    "The outcome of this call is unknown",
    "the outcome of the call is unknown",
    "The call may have taken effect",
)
_EVERYTHING = ROOT / ".cache/peers/node_modules/@modelcontextprotocol/server-everything"
_PRELOAD = Path(__file__).with_name("preload.cjs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A run; `outputs` are the results by call, `effects` how often the server has read each."""

    point: str
    status: str
    outputs: Mapping[str, Sequence[str]]
    effects: Mapping[str, int]
    calls: int = CALLS

    @property
    def unknown(self) -> int:
        """The number of calls whose outcome is reported as unknown."""
        return sum(_is_unknown(output) for outputs in self.outputs.values() for output in outputs)

    @property
    def faults(self) -> list[str]:
        faults = []
        if self.status != "completed":
            faults.append(f"the run is {self.status}")
        if len(self.outputs) != self.calls:
            faults.append(f"{len(self.outputs)} of {self.calls} calls have a result")
        for call_id, outputs in self.outputs.items():
            effects = self.effects.get(call_id, 0)
            is_done = outputs[0].startswith(("Echo: ", "Long running"))
            if len(outputs) != 1:
                faults.append(f"{len(outputs)} results of {call_id}")
            if effects > 1:
                faults.append(f"{effects} effects under one key")
            if is_done and not effects:
                faults.append("a result without an effect")
            if effects and not is_done and not _is_unknown(outputs[0]):
                faults.append(f"an effect that the model does not know of: {outputs[0]}")
        return faults


def _is_unknown(output: str) -> bool:
    return any(text in output for text in UNKNOWN)


class Server:
    """server-everything, with a journal of its calls; over HTTP it is a process of the bench."""

    def __init__(self, folder: Path, transport: str) -> None:
        self.transport, self._effects = transport, folder / f"{transport}.effects"
        self._death = Path(f"{self._effects}.death")
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        name = "streamableHttp" if transport == "http" else "stdio"
        script = str(_EVERYTHING / "dist" / "index.js")
        node = shutil.which("node")
        assert node is not None and Path(script).exists(), "run scripts/install-peers"
        self.command = [node, "--require", str(_PRELOAD), script, name]
        self.command.append(f"--effects={self._effects}")

    def __enter__(self) -> Self:
        if self.transport == "http":
            self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    @property
    def config(self) -> dict[str, Any]:
        """The body that adds it to the org."""
        if self.transport == "stdio":
            return {"name": "everything", "transport": "stdio", "command": self.command}
        url = f"http://127.0.0.1:{self._port}/mcp"
        return {"name": "everything", "transport": "streamable_http", "url": url}

    def start(self) -> None:
        self._process = subprocess.Popen(
            self.command,
            env={**os.environ, "PORT": str(self._port)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 1):
                return
            time.sleep(0.02)
        raise TimeoutError("server-everything does not listen")

    def doom(self, moment: str, nth: int) -> None:
        """Let it die before or after the nth call is written down."""
        self._death.write_text(f"{moment}:{nth}")

    def wait_for_death(self, point: str) -> None:
        """Wait until it has died where it is doomed to. Raises: TimeoutError."""
        points.wait_for(point, lambda: not self._death.exists(), SECONDS)

    def kill(self) -> bool:
        """Kill it, whether the bench or a sidecar has started it; False if there is none."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            return True
        return _kill_all(lambda process: bool(process.info["cmdline"] == self.command))

    def restart(self) -> None:
        """Start it again if the sidecar does not."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self.start()

    def effects(self) -> Counter[str]:
        """Return how often it has read each call, by its idempotency key."""
        text = self._effects.read_text() if self._effects.exists() else ""
        return Counter(line.split()[0] for line in text.splitlines())


class Bench:
    """An org with the server, and the client that runs its trials."""

    def __init__(self, service: Service, server: Server) -> None:
        self._service, self._server = service, server
        self._http = httpx.Client(
            base_url=service.urls[0],
            headers={"Authorization": f"Bearer {service.api_key}"},
            timeout=60,
        )
        self._config = self._post("/v1/mcp-configs", server.config)["id"]
        self._wait_for_discovery()
        persona = {"key": "caller", "mcp": ["everything"], "max_steps": 256}
        self._post("/v1/personas", {**persona, "max_equal_turns": 256})

    def round(self, point: str, seed: int) -> list[Trial]:
        """Start `RUNS` runs and kill a process while they are in progress; one run comes after."""
        chance = Random(f"{point} {seed}")
        doomed = None
        where, _, moment = point.partition(".")
        if point in WORKER_POINTS:
            self._service.end("worker")
            armed = {"ARKLOOP_FAULT_POINT": f"{point}:{chance.randint(1, RUNS * 2)}:KILL"}
            doomed = self._service.start("worker", armed)
        elif point in SERVER_POINTS:
            # Of this process: what it has read before counts, too.
            self._server.restart()
            self._server.doom(moment, chance.randint(1, RUNS * 2))
        elif moment == "before_discovery":
            self._server.kill()
            self._post(f"/v1/mcp-configs/{self._config}:discover", {})
        run_ids = [self._run(in_call=moment == "in_call") for _ in range(RUNS)]
        self._disturb(point, moment, doomed, chance)
        if where == "worker":
            self._service.end("worker")
            self._service.start("worker")
        elif where == "server":
            self._server.restart()
        ended = [self._ended(run_id) for run_id in run_ids]
        afterwards = self._after(point)
        effects = self._server.effects()
        return [self._trial(point, run, effects) for run in ended] + [
            self._trial(point, afterwards, effects, calls=1)
        ]

    def _disturb(self, point: str, moment: str, doomed: int | None, chance: Random) -> None:
        if doomed is not None:
            points.wait_for_death(point, doomed, SECONDS)
        elif point in SERVER_POINTS:
            self._server.wait_for_death(point)
        elif moment == "before_discovery":
            time.sleep(chance.uniform(0.5, 2))
        elif moment == "in_call":
            time.sleep(chance.uniform(1, 2))
        else:
            time.sleep(chance.uniform(0.2, 1))
        if point.startswith("sidecar"):
            points.wait_for(point, self._kill_sidecars, SECONDS)
        elif point == "server.between_calls":
            points.wait_for(point, self._server.kill, SECONDS)

    def _kill_sidecars(self) -> bool:
        workers = self._service.serving("worker")
        return _kill_all(lambda process: _is_sidecar(process, workers))

    def _after(self, point: str) -> dict[str, Any]:
        """Run one call after the loss, when the org's sidecar may be started again."""
        deadline = time.monotonic() + SECONDS
        while True:
            run = self._ended(self._run(calls=1))
            outputs = [output for each in run["outputs"].values() for output in each]
            if any(output.startswith("Echo: ") for output in outputs):
                return run
            if time.monotonic() > deadline:
                return {**run, "status": f"{run['status']}, and no call succeeds after {point}"}
            time.sleep(0.2)

    def _run(self, *, in_call: bool = False, calls: int = CALLS) -> str:
        echo = {"tool": "echo", "args": {"message": "x"}}
        long = {"tool": "trigger-long-running-operation", "args": {"duration": 3, "steps": 3}}
        steps = [echo, long, *[echo] * (calls - 2)] if in_call else [echo] * calls
        body = {
            "message": json.dumps({"script": [*steps, {"say": "done"}]}),
            "persona_id": "caller",
        }
        return str(self._post("/v1/runs", {**body, "route_id": "scripted"})["run_id"])

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        response = self._http.post(path, json=body)
        assert response.is_success, response.text
        return dict(response.json())

    def _wait_for_discovery(self) -> None:
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            found = self._http.get(f"/v1/mcp-configs/{self._config}").json()
            if found["discovered_at"] is not None:
                return
            time.sleep(0.1)
        raise TimeoutError(f"the tools are not listed: {found}")

    def _ended(self, run_id: str) -> dict[str, Any]:
        deadline = time.monotonic() + SECONDS
        while True:
            run: dict[str, Any] = self._http.get(f"/v1/runs/{run_id}").json()
            if run["status"] in ("completed", "failed", "cancelled"):
                break
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        text = self._http.get(f"/v1/runs/{run_id}/events", params={"follow": "false"}).text
        lines = [line.removeprefix("data: ") for line in text.splitlines()]
        outputs: dict[str, list[str]] = {}
        for event in (json.loads(line) for line in lines if line.startswith("{")):
            if event["type"] == "tool.result":
                found = event["data"]
                outputs.setdefault(found["tool_call_id"], []).append(found["output"])
        return {**run, "outputs": outputs}

    def _trial(
        self, point: str, run: Mapping[str, Any], effects: Mapping[str, int], calls: int = CALLS
    ) -> Trial:
        outputs = run["outputs"]
        own = {call_id: effects[f"{run['run_id']}:{call_id}"] for call_id in outputs}
        return Trial(point=point, status=run["status"], outputs=outputs, effects=own, calls=calls)


def _kill_all(is_doomed: Callable[[psutil.Process], bool]) -> bool:
    """Kill these processes; False if there is none."""
    doomed = [process for process in psutil.process_iter(["cmdline"]) if is_doomed(process)]
    for process in doomed:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    return bool(doomed)


def _is_sidecar(process: psutil.Process, workers: Sequence[int]) -> bool:
    """Return whether the process is a sidecar of one of these workers: a fork of their forker."""
    if "arkloop.worker.mcp.forker" not in (process.info["cmdline"] or ()):
        return False
    with suppress(psutil.NoSuchProcess):
        return any(parent.pid in workers for parent in process.parents()[1:])
    return False
