"""The context size that is remembered for all workers after a refusal."""

from dataclasses import replace
from typing import Any

import pytest

from arkloop.worker.agent.route_chain import RouteChain
from arkloop.worker.contract.messages import AssistantMessage, Message, ModelRequest, UserMessage
from arkloop.worker.contract.outcomes import ProviderError
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.providers import size_errors
from tests.worker.agent.looping_models import Model, after, agent_for, run
from tests.worker.recorded_run import ROUTE, RecordedRun


class RefusingOnce(Model):
    """Refuses the first request with this error, and accepts a smaller one."""

    def __init__(self, message: str, body: Any, status: int) -> None:
        super().__init__()
        self._refusal = message, body, status

    def stream(self, request: ModelRequest, stop: StopSignal) -> Any:
        chunks = super().stream(request, stop)
        if len(self.requests) == 1:
            message, body, status = self._refusal
            too_large = size_errors.read(message, body, status)
            raise ProviderError("invalid_request", message, too_large=too_large)
        return chunks


@pytest.mark.parametrize(
    ("message", "code", "status", "is_remembered"),
    [
        ("Request Entity Too Large", None, 413, False),
        ("Invalid 'tools': array too long.", "array_above_max_length", 400, False),
        ("Invalid 'tools[0]': string too long.", "string_above_max_length", 400, False),
        ("Request exceeds the maximum size", "request_too_large", 413, False),
        ("Your input exceeds the context window of this model.", None, 400, True),
        ("Payload too large: 9000 tokens > 8192", None, 413, True),
    ],
)
def test_a_refusal_that_may_not_be_of_the_context_is_not_remembered(
    message: str, code: str | None, status: int, is_remembered: bool
) -> None:
    """The run sends less; later runs have a smaller context only if the vendor has named it."""
    model = RefusingOnce(message, {"code": code}, status)
    learned: list[int] = []
    route = replace(ROUTE, context_tokens=None)
    chain = RouteChain([route], lambda _: model, learned=lambda _, tokens: learned.append(tokens))
    earlier: list[Message] = [UserMessage("word " * 400), AssistantMessage("Yes.")]
    agent = replace(after(agent_for({"say": "ok"}), *earlier * 5), chain=chain)

    answer = run(agent, RecordedRun())

    first, second = model.requests
    assert "ok" == answer.content
    assert len(second.messages) < len(first.messages)
    assert is_remembered == bool(learned)
