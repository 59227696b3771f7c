"""Scripted replies, and calls of models that give them."""

from collections.abc import Iterator, Sequence

from arkloop.shared.events.types import RunCost
from arkloop.worker.agent.model_call import (
    Reply,
    call_model,
)
from arkloop.worker.contract.messages import (
    Chunk,
    ModelRequest,
)
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.providers import Provider
from arkloop.worker.providers.scripted_provider import ScriptedProvider
from tests.worker.recorded_run import RecordedRun, chain_of, request


class Replies(ScriptedProvider):
    """Says these chunks, one list a try; an exception among them is raised."""

    def __init__(self, *tries: Sequence[Chunk | BaseException]) -> None:
        super().__init__()
        self._tries = iter(tries)

    def stream(self, request: ModelRequest, stop: StopSignal) -> Iterator[Chunk]:
        for chunk in next(self._tries):
            if isinstance(chunk, BaseException):
                raise chunk
            yield chunk


def called(run: RecordedRun, *providers: Provider, say: str = "x") -> Reply:
    return call_model(chain_of(*providers), lambda route: request(say), run, run.stop)


def costs(run: RecordedRun) -> list[RunCost]:
    return [event for event in run.events if isinstance(event, RunCost)]
