"""Trials: runs with client tools while the worker or the web server is killed."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import httpx
import psutil

from bench import points
from bench.service import Service

WORKER_POINTS = (
    "worker.tool_begun",
    "worker.in_tool",
    "worker.before_park",
    "worker.parked",
    "worker.claimed",
    "worker.committed",
    "worker.step_finished",
)
WEB_POINTS = ("api.results_stored",)
POINTS = (*WORKER_POINTS, "worker.any_moment", *WEB_POINTS, "web.any_moment")
#: Runs that are in progress when a process is killed.
RUNS = 8
SECONDS = 60.0
UNKNOWN = "The outcome of this call is unknown"
ENDED = ("completed", "failed", "cancelled")
TOOL = {
    "name": "ask_client",
    "description": "Ask the client.",
    "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}},
    "client": True,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A run of two equal turns, each with a call of the server's between two of the client's.

    `accepted` are the outputs that the API has confirmed, by call; `results` those of
    `tool.result`, in order; `effects` what the server's own calls have done, by turn.
    """

    point: str
    status: str
    accepted: dict[str, str]
    results: tuple[tuple[str, str], ...]
    effects: dict[str, int]

    @property
    def is_unknown(self) -> bool:
        """True if the model has read that the outcome of a call of the server's is unknown."""
        return any(UNKNOWN in output for _, output in self.results)

    @property
    def faults(self) -> list[str]:
        faults = []
        if self.status != "completed":
            faults.append(f"the run is {self.status}")
        found = dict(self.results)
        if [id_ for id_, _ in self.results] != [f"call_{t}_{c}" for t in (1, 2) for c in (1, 2, 3)]:
            faults.append(f"the results are those of {[id_ for id_, _ in self.results]}")
        for id_, output in self.accepted.items():
            if found.get(id_) != output:
                faults.append(f"an accepted result of {id_} is lost: {found.get(id_)}")
        for turn in ("1", "2"):
            output, effects = found.get(f"call_{turn}_2", ""), self.effects.get(turn, 0)
            if effects > 1:
                faults.append(f"{effects} effects of call_{turn}_2")
            if not effects and output == "appended":
                faults.append(f"call_{turn}_2 has a result without an effect")
            if effects and output != "appended" and UNKNOWN not in output:
                faults.append(f"the model does not know of the effect of call_{turn}_2")
        return faults


class Bench:
    """A persona with a client tool, and the client that executes its calls."""

    def __init__(self, service: Service, folder: Path) -> None:
        self._service, self._folder = service, folder
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {service.api_key}"},
            timeout=10,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        )
        persona = {"key": "asks", "tools": ["calculator"], "client_tools": [TOOL]}
        self._made("/v1/personas", {**persona, "max_steps": 256, "max_equal_turns": 256})

    def round(self, point: str, seed: int) -> list[Trial]:
        """Start `RUNS` runs and kill a process at the point while they are in progress."""
        chance = Random(f"{point} {seed}")
        nth = chance.randint(1, RUNS)
        armed = {"ARKLOOP_FAULT_POINT": f"{point}:{nth}:KILL"}
        urls = self._service.urls
        doomed: int | None = None  # the process that dies at the point
        master: int | None = None  # of the web server that dies there
        if point in WORKER_POINTS:
            self._service.end("worker")
            doomed = self._service.start("worker", armed)
        elif point in WEB_POINTS:
            master = self._service.start("web", armed)
            self._wait_for(urls[-1])
            [doomed] = [child.pid for child in psutil.Process(master).children()]
        else:
            self._service.start("web")  # the one to be killed, if it is a web server's turn
            self._wait_for(urls[-1])
        sends_to = urls[-1] if len(urls) > 1 else urls[0]
        files = [self._folder / f"{point}.{seed}.{number}" for number in range(RUNS)]
        runs = [self._start(file) for file in files]
        with ThreadPoolExecutor(RUNS + 1) as pool:
            clients = [
                pool.submit(self._execute_calls, run_id, sends_to, Random(f"{seed} {n}"))
                for n, run_id in enumerate(runs)
            ]
            if point == "worker.any_moment":
                time.sleep(chance.uniform(0, 0.5))
                self._service.end("worker")
            elif point == "web.any_moment":
                time.sleep(chance.uniform(0, 0.5))
            elif doomed is not None:
                points.wait_for_death(point, doomed, SECONDS)
            if master is not None and doomed is not None:
                # By then its master logs how it died.
                is_replaced = partial(_has_other_child, master, doomed)
                points.wait_for(point, is_replaced, SECONDS)
            if point in WORKER_POINTS:
                self._service.end("worker")
            if point.startswith("worker."):
                self._service.start("worker")
            if len(urls) > 1:
                self._end_last_web()
            accepted = [client.result(timeout=2 * SECONDS) for client in clients]
        return [
            Trial(
                point=point,
                status=self._get(f"/v1/runs/{run_id}")["status"],
                accepted=confirmed,
                results=tuple(
                    (event["data"]["tool_call_id"], event["data"]["output"])
                    for event in self._events(run_id)
                    if event["type"] == "tool.result"
                ),
                effects=Counter(file.read_text().split()) if file.exists() else Counter(),
            )
            for run_id, file, confirmed in zip(runs, files, accepted, strict=True)
        ]

    def overhead(self, calls: int) -> dict[str, list[float]]:
        """Return milliseconds to the end of the next model call, by kind of tool, of one run.

        Of the client's tool from the response to its result on, of the tool in the worker from its
        `tool.call` on. The scripted model responds at once.
        """
        own = {"tool": "calculator", "args": {"expression": "6*7"}}
        steps = [own, {"tool": "ask_client", "args": {"n": 1}}] * calls
        run_id = self._run([*steps, {"say": "done"}])
        sent: list[float] = []
        events: list[dict[str, Any]] = []
        for event in self._stream(run_id):
            events.append(event)
            if event["type"] == "run.waiting_for_input":
                id_ = event["data"]["calls"][0]["tool_call_id"]
                self._send(self._service.urls[0], run_id, {id_: "done"})
                sent.append(time.time())
        turns = [_time(e) for e in events if e["type"] == "message.completed"]
        called = [_time(e) for e in events if e["type"] == "tool.call"]
        return {
            "calculator": [(turns[i + 1] - called[i]) * 1000 for i in range(0, 2 * calls, 2)],
            "client tool": [(turns[2 * i + 2] - moment) * 1000 for i, moment in enumerate(sent)],
        }

    # ---- the client ----------------------------------------------------------------------

    def _execute_calls(self, run_id: str, sends_to: str, chance: Random) -> dict[str, str]:
        """Send the results of all calls, in any order; return those that were confirmed."""
        confirmed: dict[str, str] = {}
        deadline = time.monotonic() + SECONDS
        while (run := self._get(f"/v1/runs/{run_id}"))["status"] not in ENDED:
            if time.monotonic() > deadline:
                return confirmed
            if run["status"] != "waiting_for_input":
                time.sleep(0.02)
                continue
            calls = [call["tool_call_id"] for call in run["pending_input"]["calls"]]
            chance.shuffle(calls)
            some = calls[: chance.randint(1, len(calls))]
            # The same call has the same result, however often it is sent.
            results = {id_: f"{run_id} {id_} " + "x" * 10 for id_ in some}
            for url in (sends_to, self._service.urls[0]):
                if self._send(url, run_id, results):
                    confirmed |= results
                    break
        return confirmed

    def _send(self, url: str, run_id: str, results: dict[str, str]) -> bool:
        """Send results; False if the server does not say that it has them."""
        body = [{"tool_call_id": id_, "output": output} for id_, output in results.items()]
        try:
            response = self._http.post(f"{url}/v1/runs/{run_id}/tool-results", json=body)
        except httpx.HTTPError:
            return False
        return response.status_code == 200

    # ---- pieces --------------------------------------------------------------------------

    def _end_last_web(self) -> None:
        pid = self._service.pids["web"].pop()
        self._service.urls.pop()
        for process in (*psutil.Process(pid).children(), psutil.Process(pid)):
            process.kill()

    def _wait_for(self, url: str) -> None:
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            try:
                if self._http.get(f"{url}/healthz").status_code == 200:
                    return
            except httpx.HTTPError:
                time.sleep(0.05)
        raise TimeoutError(f"{url} is not ready")

    def _start(self, file: Path) -> str:
        def turn(number: int) -> dict[str, Any]:
            line = {"path": str(file), "line": str(number)}
            calls = [{"tool": "ask_client", "args": {"n": n}} for n in (1, 3)]
            calls.insert(1, {"tool": "append_line", "args": line})
            return {"tools": calls}

        return self._run([turn(1), turn(2), {"say": "done"}])

    def _run(self, script: list[dict[str, Any]]) -> str:
        body = {"message": json.dumps({"script": script}), "persona_id": "asks"}
        return str(self._made("/v1/runs", body)["run_id"])

    def _made(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        response = self._http.post(self._service.urls[0] + path, json=body)
        response.raise_for_status()
        return dict(response.json())

    def _get(self, path: str) -> dict[str, Any]:
        response = self._http.get(self._service.urls[0] + path)
        response.raise_for_status()
        return dict(response.json())

    def _events(self, run_id: str) -> list[dict[str, Any]]:
        return list(self._stream(run_id, follow="false"))

    def _stream(self, run_id: str, **params: str) -> Iterator[dict[str, Any]]:
        url = f"{self._service.urls[0]}/v1/runs/{run_id}/events"
        with self._http.stream("GET", url, params=params) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    yield json.loads(line.removeprefix("data: "))


def _has_other_child(master: int, pid: int) -> bool:
    return any(child.pid != pid for child in psutil.Process(master).children())


def _time(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["created_at"]).timestamp()
