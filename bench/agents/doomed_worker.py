"""`arkloop agents serve` for the trials: it serves their agent, and dies at a named point.

    python -m bench.agents.doomed_worker [POINT:NTH:KILL|STOP]

At the point the process sends itself SIGKILL or SIGSTOP when it gets there for the nth time.
"""

import itertools
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from arkloop.cli.serve import modules
from arkloop.cli.serve.agents import agents
from arkloop.cli.serve.service import Service

AGENT = "served-steps"
#: Each commit of a run, before the service has the request and after the worker has the response.
POINTS = (
    "agent.polled",
    "agent.call_unsent",
    "agent.call_stored",
    "agent.in_step",
    "agent.result_unsent",
    "agent.result_stored",
    "agent.checkpoint_unsent",
    "agent.checkpoint_stored",
    "agent.tasks_unsent",
    "agent.tasks_stored",
    "agent.before_end",
    "agent.ended",
)
_STEPS = Path(__file__).parent / "plugins" / "agents" / "steps.py"


def _points_of(verb: str, body: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the points before and after a request; None if it commits nothing of a run."""
    kinds = {event["type"] for event in body.get("events", ())}
    if verb == "complete":
        return "agent.before_end", "agent.ended"
    if verb == "delegate":
        return "agent.tasks_unsent", "agent.tasks_stored"
    if "checkpoint" in body:
        return "agent.checkpoint_unsent", "agent.checkpoint_stored"
    if "tool.result" in kinds:
        return "agent.result_unsent", "agent.result_stored"
    if "tool.call" in kinds:
        return "agent.call_unsent", "agent.call_stored"
    return None


class _Watched:
    """The worker's requests, as they were, between two points each."""

    def __init__(self, reach: Callable[[str], None]) -> None:
        self._reach, self._post = reach, Service.post

    def post(self, service: Service, verb: str, body: Mapping[str, Any], **options: Any) -> Any:
        points = _points_of(verb, body)
        if points is not None:
            self._reach(points[0])
        answer = self._post(service, verb, body, **options)
        if points is not None:
            self._reach(points[1])
        elif verb == "poll" and answer["runs"]:
            self._reach("agent.polled")
        return answer


def main() -> None:
    death = sys.argv[1] if len(sys.argv) > 1 else "nowhere:1:KILL"
    point, nth, how = death.split(":")
    reached = itertools.count(1)

    def reach(name: str) -> None:
        if name == point and next(reached) == int(nth):
            os.kill(os.getpid(), signal.Signals[f"SIG{how}"])

    watched = _Watched(reach)
    Service.post = lambda *args, **options: watched.post(*args, **options)  # type: ignore[method-assign]  # to kill
    steps = modules.imported(str(_STEPS))
    steps.after_effect.append(lambda: reach("agent.in_step"))
    agents.main(["serve", f"{_STEPS.stem}:steps", "--agent", AGENT, "--concurrency", "16"])


if __name__ == "__main__":
    main()
