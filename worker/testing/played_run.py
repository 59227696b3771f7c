"""The run that the test kit has played, with its ends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from arkloop.shared import ids, times
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.catalog.prices import Prices
from arkloop.shared.events import types
from arkloop.worker.agent.loop import Answer
from arkloop.worker.contract.outcomes import RunFailure, WaitForInput
from arkloop.worker.testing.memory_run import MemoryRun

#: The route of all runs that are played.
ROUTE = Route(
    id="scripted",
    provider="scripted",
    model="scripted-1",
    prices=Prices(input=Decimal(1), output=Decimal(2)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The result of a tool call, as the model reads it; `files` are its images."""

    tool_name: str
    output: str
    is_error: bool
    files: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayedRun:
    """A run that has been played; `events` are those that its clients would get.

    `status` is `completed`, `failed`, `waiting_for_input`, or `running` where sub-runs are awaited;
    `output` is the text, or for a run with an output schema the object; `error` has the code of a
    failure, and its message. `checkpoint` is the data of the last checkpoint of an agent.
    """

    status: str
    output: Any = None
    error: Mapping[str, Any] | None = None
    events: Sequence[Mapping[str, Any]] = field(repr=False)
    checkpoint: Any = None

    @property
    def results(self) -> list[Result]:
        """The results of the tool calls, in the order of their events."""
        return [
            Result(
                tool_name=data["name"],
                output=data["output"],
                is_error=data["is_error"],
                files=data.get("files") or (),
            )
            for data in self.data_of("tool.result")
        ]

    def data_of(self, event_type: str) -> list[Mapping[str, Any]]:
        """Return the data of each event of this type."""
        return [event["data"] for event in self.events if event["type"] == event_type]


def completed(run: MemoryRun, answer: Answer) -> PlayedRun:
    """End the run with its answer."""
    message_id = answer.message_id if answer.content else None
    sums = (run.totals.usage, run.totals.cost_usd)
    run.emit(
        *answer.closing,
        types.RunCompleted(message_id, *sums, answer.stop_reason, answer.output),
    )
    output = answer.content if answer.output is None else answer.output
    return PlayedRun(status="completed", output=output, events=run.events)


def failed(run: MemoryRun, failure: RunFailure) -> PlayedRun:
    """End the run with its failure."""
    error = failure.as_error()
    run.emit(run.cost(), types.RunFailed(error, run.totals.usage, run.totals.cost_usd))
    shown = {"code": error.code, "message": error.message}
    return PlayedRun(status="failed", error=shown, events=run.events)


def waiting(run: MemoryRun, wait: WaitForInput) -> PlayedRun:
    """Leave the run waiting for a person or a program."""
    request = wait.request(str(ids.new_id()), times.now())
    run.emit(types.RunWaitingForInput(**request))
    return PlayedRun(status="waiting_for_input", events=run.events)
