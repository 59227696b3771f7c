"""The provider state in a run's requests, after its vendor has refused some of it."""

from dataclasses import replace
from typing import Any

from arkloop.worker.agent.route_chain import RouteChain
from arkloop.worker.contract.messages import AssistantMessage, Message, ModelRequest, has_state
from arkloop.worker.contract.outcomes import ProviderError
from arkloop.worker.contract.stop_signal import StopSignal
from tests.worker.agent.looping_models import CALCULATE, Model, agent_for, run
from tests.worker.recorded_run import ROUTE, RecordedRun


class Binding(Model):
    """Accepts its state only after the tools and messages to which it has replied with it.

    From the request of the third step on it gets other tools.
    """

    def stream(self, request: ModelRequest, stop: StopSignal) -> Any:
        tools = request.turn >= 2
        messages = list(request.messages)
        chunks = list(super().stream(request, stop))
        for i, message in enumerate(messages):
            state = message.state if isinstance(message, AssistantMessage) else None
            if state is not None and state.turn != self._bound_to(tools, messages[:i]):
                why = "The block is bound to a different conversation."
                raise ProviderError("invalid_request", why)
        *others, end = chunks
        yield from others
        yield replace(end, state=self._bound_to(tools, messages))

    @staticmethod
    def _bound_to(tools: bool, messages: list[Message]) -> str:
        return str(hash((tools, repr(messages))))


def test_refused_state_is_not_sent_again() -> None:
    """Only the step at which the tools change is refused; later turns are sent with their state."""
    model, context = Binding(), RecordedRun()
    agent = agent_for(*[CALCULATE] * 5, {"say": "ok"})
    agent = replace(agent, chain=RouteChain([ROUTE], lambda _: model))

    assert "ok" == run(agent, context).content

    sent = [
        [has_state([m]) for m in request.messages if isinstance(m, AssistantMessage)]
        for request in model.requests
    ]
    assert [
        [],
        [True],
        [True, True],
        [False, False],
        [False, False, True],
        [False, False, True, True],
        [False, False, True, True, True],
    ] == sent
