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

from arkloop.shared import fault_points
from arkloop.shared.agents.agent_run import UNKNOWN_OUTCOME
from bench import points
from bench.service import Service

POINTS = (
    "worker.claimed",
    "worker.committed",
    "worker.tool_begun",
    "worker.tool_returned",
    "worker.step_finished",
    "worker.before_park",
    "worker.parked",
    "worker.before_end",
    "worker.any_moment",
)
#: Runs that are in progress when their worker is killed, and the steps of each.
RUNS, STEPS = 8, 6
SECONDS = 180.0
#: The results of the tasks that each run gives out.
SUB_RESULTS = ("sub 0", "sub 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A run; `results` are the outputs by step, `effects` the times that each step was made.

    `checkpoints` are the steps that the agent had stored, and from which it went on, in order, each
    with the attempt.
    """

    point: str
    status: str
    output: str | None
    results: Mapping[int, Sequence[str]]
    effects: Mapping[int, int]
    checkpoints: Sequence[tuple[str, int, int]] = ()
    seqs: Sequence[int] = ()
    last_type: str = "run.completed"
    sub_runs: int = len(SUB_RESULTS)
    sub_results: Sequence[str] = SUB_RESULTS

    @property
    def unknown(self) -> int:
        """The number of steps whose outcome is reported as unknown."""
        return sum(UNKNOWN_OUTCOME in outputs for outputs in self.results.values())

    @property
    def was_lost(self) -> bool:
        """True if a lost worker was succeeded by another one."""
        return any(attempt > 1 for _, _, attempt in self.checkpoints)

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
        if self.sub_runs != len(SUB_RESULTS):
            faults.append(f"{self.sub_runs} sub-runs")
        if tuple(self.sub_results) != SUB_RESULTS:
            faults.append(f"other results of sub-runs: {self.sub_results}")
        faults += self._faults_of_events()
        expected = [outputs[0] for _, outputs in sorted(self.results.items()) if outputs]
        if self.status == "completed" and self.output != json.dumps(expected):
            faults.append(f"another answer than the results: {self.output}")
        return faults

    def _faults_of_events(self) -> list[str]:
        faults, stored, newest = [], 0, 1
        for what, number, attempt in self.checkpoints:
            # A frozen worker that wakes may begin with what it got before; it writes nothing.
            is_late = attempt < newest
            if what == "from" and number < stored and not is_late:
                faults.append(f"continued from {number}, although {stored} steps were stored")
            stored, newest = max(stored, number), max(newest, attempt)
        if list(self.seqs) != list(range(1, len(self.seqs) + 1)):
            faults.append(f"the numbers of its events are {self.seqs}")
        if self.status == "completed" and self.last_type != "run.completed":
            faults.append(f"its last event is {self.last_type}")
        return faults


class Bench:
    """An org with an agent, and the client that runs its trials."""

    def __init__(self, service: Service, folder: Path, agent: str = "steps") -> None:
        self.service, self._file, self._agent = service, folder / f"effects of {agent}", agent
        self._http = httpx.Client(
            base_url=service.urls[0],
            headers={"Authorization": f"Bearer {service.api_key}"},
            timeout=60,
        )
        definition = {"key": agent, "agent": agent, "max_steps": 256, "delegates": ["plain"]}
        self._made("/v1/personas", definition)

    def round(self, point: str, seed: int) -> list[Trial]:
        """Start `RUNS` runs and kill their worker at the point while they are in progress."""
        chance = Random(f"{point} {seed}")
        doomed = None
        if point != "worker.any_moment":
            if point not in fault_points.POINTS:
                raise ValueError(f"A worker does not start with {point}.")
            self.service.end("worker")
            armed = {"ARKLOOP_FAULT_POINT": f"{point}:{chance.randint(1, RUNS)}:KILL"}
            doomed = self.service.start("worker", armed)
        run_ids = self.start_runs()
        if doomed is None:
            time.sleep(chance.uniform(0, 0.3))
        else:
            points.wait_for_death(point, doomed, SECONDS)
        self.service.end("worker")
        self.service.start("worker")
        self.wait_for(run_ids)
        return self.trials(point, run_ids)

    def start_runs(self) -> list[str]:
        """Start the runs of a round."""
        task = {"steps": STEPS, "file": str(self._file)}
        return [self._start(task) for _ in range(RUNS)]

    def wait_for_step(self, point: str, run_ids: Sequence[str]) -> None:
        """Wait until one of the runs has made a step. Raises: TimeoutError."""

        def is_made() -> bool:
            return self._file.exists() and any(id_ in self._file.read_text() for id_ in run_ids)

        points.wait_for(point, is_made, SECONDS)

    def wait_for(self, run_ids: Sequence[str]) -> None:
        """Wait for the ends of the runs; those that do not end are trials with a fault."""
        for run_id in run_ids:
            self._ended(run_id)

    def trials(self, point: str, run_ids: Sequence[str]) -> list[Trial]:
        """Return the runs as they are now."""
        lines = [line.split() for line in self._file.read_text().splitlines()]
        return [self._trial(point, run_id, lines) for run_id in run_ids]

    def _trial(self, point: str, run_id: str, lines: Sequence[Sequence[str]]) -> Trial:
        run: dict[str, Any] = self._http.get(f"/v1/runs/{run_id}").json()
        own = [line[1:] for line in lines if line[0] == run_id]
        effects = Counter(line[0] for line in own)
        events = self._events(run_id)
        results: dict[int, list[str]] = {}
        sub_results: list[str] = []
        for event in events:
            if event["type"] != "tool.result":
                continue
            if event["data"]["name"] == "delegate":
                sub_results.append(event["data"]["output"])
            else:
                number = int(event["data"]["tool_call_id"].removeprefix("step-"))
                results.setdefault(number, []).append(event["data"]["output"])
        return Trial(
            point=point,
            status=run["status"],
            output=run["output"],
            results=results,
            effects={number: effects[str(number)] for number in range(STEPS)},
            checkpoints=[(line[0], int(line[1]), int(line[2])) for line in own if len(line) == 3],
            seqs=[event["seq"] for event in events],
            last_type=events[-1]["type"] if events else "",
            sub_runs=len(self._http.get("/v1/runs", params={"parent_run_id": run_id}).json()),
            sub_results=sub_results,
        )

    def milliseconds(self) -> dict[str, list[float]]:
        """Return the times of the agent's calls."""
        run = self._ended(self._start({"timed": True}))
        return dict(json.loads(run["output"]))

    def _start(self, task: Mapping[str, Any]) -> str:
        body = {"message": json.dumps(task), "persona_id": self._agent}
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

    def _events(self, run_id: str) -> list[dict[str, Any]]:
        text = self._http.get(f"/v1/runs/{run_id}/events", params={"follow": "false"}).text
        lines = [line.removeprefix("data: ") for line in text.splitlines()]
        return [json.loads(line) for line in lines if line.startswith("{")]


def wait_for_status(pid: int, status: str) -> bool:
    """Wait until the process has this status of psutil; False if it never has."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == status:
                return True
        except psutil.NoSuchProcess:
            return bool(status == psutil.STATUS_ZOMBIE)
        time.sleep(0.02)
    return False
