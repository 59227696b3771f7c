"""Trials: runs of a custom agent whose worker is killed between and within their steps."""

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import httpx
import psutil

from arkloop.shared.agents.agent_run import UNKNOWN_OUTCOME
from bench.service import Service

POINTS = (
    "worker.claimed",
    "worker.committed",
    "worker.tool_begun",
    "worker.tool_returned",
    "worker.step_finished",
    "worker.before_end",
    "worker.any_moment",
)
#: Runs that are in progress when their worker is killed, and the steps of each.
RUNS, STEPS = 8, 6
SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A run; `results` are the outputs by step, `effects` the times that each step was made."""

    point: str
    status: str
    output: str | None
    results: Mapping[int, Sequence[str]]
    effects: Mapping[int, int]

    @property
    def unknown(self) -> int:
        """The number of steps whose outcome is reported as unknown."""
        return sum(UNKNOWN_OUTCOME in outputs for outputs in self.results.values())

    @property
    def faults(self) -> list[str]:
        faults = []
        if self.status != "completed":
            faults.append(f"the run is {self.status}")
        for number in range(STEPS):
            outputs, effects = self.results.get(number, ()), self.effects.get(number, 0)
            is_done = list(outputs) == [f"done {number}"]
            if len(outputs) != 1:
                faults.append(f"{len(outputs)} results of step {number}")
            elif not is_done and (number % 2 or outputs[0] != UNKNOWN_OUTCOME):
                faults.append(f"step {number} without its result: {outputs[0]}")
            if effects > 1 and not number % 2:
                faults.append(f"{effects} effects of step {number}")
            if is_done and not effects:
                faults.append(f"a result of step {number} without an effect")
        expected = [outputs[0] for _, outputs in sorted(self.results.items()) if outputs]
        if self.status == "completed" and self.output != json.dumps(expected):
            faults.append(f"another answer than the results: {self.output}")
        return faults


class Bench:
    """An org with the agent, and the client that runs its trials."""

    def __init__(self, service: Service, folder: Path) -> None:
        self._service, self._file = service, folder / "effects"
        self._http = httpx.Client(
            base_url=service.urls[0],
            headers={"Authorization": f"Bearer {service.api_key}"},
            timeout=60,
        )
        self._made("/v1/personas", {"key": "steps", "agent": "steps", "max_steps": 256})

    def round(self, point: str, seed: int) -> list[Trial]:
        """Start `RUNS` runs and kill their worker at the point while they are in progress."""
        chance = Random(f"{point} {seed}")
        doomed = None
        if point != "worker.any_moment":
            self._service.end("worker")
            armed = {"ARKLOOP_FAULT_POINT": f"{point}:{chance.randint(1, RUNS)}:KILL"}
            doomed = self._service.start("worker", armed)
        task = {"steps": STEPS, "file": str(self._file)}
        run_ids = [self._start(task) for _ in range(RUNS)]
        if doomed is None:
            time.sleep(chance.uniform(0, 0.3))
        else:
            _wait_for_end(doomed)
        self._service.end("worker")
        self._service.start("worker")
        ended = [self._ended(run_id) for run_id in run_ids]
        lines = Counter(tuple(line.split()) for line in self._file.read_text().splitlines())
        return [
            Trial(
                point=point,
                status=run["status"],
                output=run["output"],
                results=self._results(run["run_id"]),
                effects={n: lines[run["run_id"], str(n)] for n in range(STEPS)},
            )
            for run in ended
        ]

    def milliseconds(self) -> dict[str, list[float]]:
        """Return the times of the agent's calls."""
        run = self._ended(self._start({"timed": True}))
        return dict(json.loads(run["output"]))

    def _start(self, task: Mapping[str, Any]) -> str:
        body = {"message": json.dumps(task), "persona_id": "steps"}
        return str(self._made("/v1/runs", body)["run_id"])

    def _made(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        response = self._http.post(path, json=body)
        response.raise_for_status()
        return dict(response.json())

    def _ended(self, run_id: str) -> dict[str, Any]:
        deadline = time.monotonic() + SECONDS
        while True:
            run: dict[str, Any] = self._http.get(f"/v1/runs/{run_id}").json()
            if run["status"] in ("completed", "failed", "cancelled"):
                return run
            if time.monotonic() > deadline:
                return run
            time.sleep(0.05)

    def _results(self, run_id: str) -> dict[int, list[str]]:
        text = self._http.get(f"/v1/runs/{run_id}/events", params={"follow": "false"}).text
        lines = [line.removeprefix("data: ") for line in text.splitlines()]
        events = [json.loads(line) for line in lines if line.startswith("{")]
        found: dict[int, list[str]] = {}
        for event in events:
            if event["type"] == "tool.result":
                number = int(event["data"]["tool_call_id"].removeprefix("step-"))
                found.setdefault(number, []).append(event["data"]["output"])
        return found


def _wait_for_end(pid: int) -> None:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return
        except psutil.NoSuchProcess:
            return
        time.sleep(0.02)
