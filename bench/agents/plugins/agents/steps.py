"""An agent whose steps leave a line in a file each: what is done twice is there twice."""

import json
import os
import time
from collections.abc import Callable
from typing import Any

from arkloop.agents import AgentRun

CALLS = 1000
#: The step after which the agent gives out two tasks.
DELEGATES_AFTER = 2
#: Called in a step, after its effect.
after_effect: list[Callable[[], None]] = []


def steps(run: AgentRun) -> str:
    """Make the steps of the message, with a checkpoint after each second one."""
    task = json.loads(run.messages[0]["content"])
    if "timed" in task:
        return json.dumps(_timed(run))
    done = list(run.checkpoint_data or ())
    _note(task["file"], f"{run.run_id} from {len(done)} {run.attempt}")
    for number in range(len(done), task["steps"]):
        run.text(f"Step {number}. ")
        done.append(_step(run, task["file"], number))
        if number == DELEGATES_AFTER:
            _delegate(run)
        if number % 2:
            run.checkpoint(done)
            _note(task["file"], f"{run.run_id} stored {len(done)} {run.attempt}")
    return json.dumps(done)


def _step(run: AgentRun, path: str, number: int) -> str:
    """Make a step; those with an odd number may be repeated."""

    def append() -> str:
        _note(path, f"{run.run_id} {number}")
        for hook in after_effect:
            hook()
        time.sleep(0.02)
        return f"done {number}"

    is_idempotent = number % 2 == 1
    name = "idempotent" if is_idempotent else "once"
    key = f"step-{number}"
    return run.step(name, {"n": number}, append, tool_call_id=key, idempotent=is_idempotent)


def _delegate(run: AgentRun) -> None:
    """Give out two tasks, which the scripted model plays; their results are in the events."""
    tasks = [json.dumps({"script": [{"say": f"sub {number}"}]}) for number in range(2)]
    run.delegate_all(
        [
            {"persona": "plain", "task": task, "tool_call_id": f"sub-{number}"}
            for number, task in enumerate(tasks)
        ]
    )


def _note(path: str, line: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{line}\n".encode())
    os.close(file)


def _timed(run: AgentRun) -> dict[str, list[float]]:
    """Return the milliseconds that calls of the run take."""
    numbers = iter(range(10**6))
    calls: dict[str, Any] = {
        "check": run.check,
        "text": lambda: run.text("x"),
        "step": lambda: run.step("t", {}, str, tool_call_id=f"timed-{next(numbers)}"),
        "checkpoint": lambda: run.checkpoint(next(numbers)),
    }
    times: dict[str, list[float]] = {}
    for name, call in calls.items():
        for _ in range(CALLS if name in ("check", "text") else 100):
            began = time.perf_counter()
            call()
            times.setdefault(name, []).append((time.perf_counter() - began) * 1000)
    return times
