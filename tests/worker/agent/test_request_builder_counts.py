"""Requests that are bounded by what a vendor has counted for another run of the thread."""

from dataclasses import replace

import pytest

from arkloop.worker.agent.conversation import Counted
from arkloop.worker.contract.messages import AssistantMessage, UserMessage
from tests.worker.agent.looping_models import Model, after, agent_for, run
from tests.worker.recorded_run import ROUTE, RecordedRun, chain_of


@pytest.mark.parametrize(
    ("called", "messages"),
    [((ROUTE.id, ROUTE.model), 1), ((ROUTE.id, "other"), 0), (("other", ROUTE.model), 0)],
    ids=["same", "other_model", "other_route"],
)
def test_the_count_of_another_model_bounds_nothing(called: tuple[str, str], messages: int) -> None:
    """The model of a route has changed since the count, and counts the same text differently."""
    model = Model()
    agent = after(agent_for({"say": "ok"}), UserMessage("word " * 100), AssistantMessage("Yes."))
    history = replace(agent.history, counted=Counted(150, (2, 1), called))
    agent = replace(agent, history=history, chain=chain_of(model))

    run(agent, RecordedRun())

    assert messages == model.requests[0].counted_messages
