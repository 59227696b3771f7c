"""Model settings of a run: merged for each route, and dropped where a route lacks them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from arkloop.shared.events.types import Event, RunSettingsDropped
from arkloop.worker.agent.agent import Agent
from arkloop.worker.agent.route_chain import RouteChain
from arkloop.worker.contract.messages import ModelRequest
from arkloop.worker.contract.outcomes import ProviderError
from arkloop.worker.contract.stop_signal import StopSignal
from tests.worker.agent.looping_models import Model, agent_for, results, run
from tests.worker.recorded_run import ROUTE, RecordedRun

CALL = {"tool": "calculator", "args": {"expression": "1+1"}}


class Vendor(Model):
    """A model whose API has only some settings, and which refuses some of these."""

    settings = frozenset({"temperature", "top_p", "tool_choice", "extra_body"})

    def __init__(self, *refused: str) -> None:
        super().__init__()
        self.refused = refused

    def stream(self, request: ModelRequest, stop: StopSignal) -> Any:
        for name in self.refused:
            if name in request.settings or _has_field(request.settings, name):
                raise ProviderError("invalid_request", "no", refused_setting=name)
        yield from super().stream(request, stop)


def _has_field(settings: Mapping[str, Any], name: str) -> bool:
    return name.removeprefix("extra_body.") in settings.get("extra_body", {})


def at(agent: Agent, vendor: Model, **route: Any) -> Agent:
    dropped = route.pop("dropped", {})
    chain = RouteChain([replace(ROUTE, **route)], lambda _: vendor, dropped)
    return replace(agent, chain=chain)


def dropped(context: RecordedRun) -> list[Event]:
    return [event for event in context.events if isinstance(event, RunSettingsDropped)]


def test_the_personas_setting_counts_before_the_routes() -> None:
    """This is decided for each setting by itself."""
    vendor = Vendor()
    agent = agent_for({"say": "x"}, model_settings={"temperature": 0.5})

    run(at(agent, vendor, model_settings={"temperature": 1.0, "top_p": 0.1}), RecordedRun())

    assert {"temperature": 0.5, "top_p": 0.1} == vendor.requests[0].settings


def test_a_setting_that_the_api_lacks_is_reported_once() -> None:
    """The calls of all steps are made without it."""
    vendor, context = Vendor(), RecordedRun()
    agent = agent_for(CALL, CALL, model_settings={"seed": 1, "stop": ["x"], "top_p": 0.5})

    answer = run(at(agent, vendor), context)

    assert "done" == answer.content
    assert [{"top_p": 0.5}] * 3 == [request.settings for request in vendor.requests]
    assert [RunSettingsDropped("scripted", ["seed", "stop"])] == dropped(context)


def test_a_refused_setting_is_dropped_for_the_rest_of_the_run() -> None:
    """Each costs one refused request; a refused field takes nothing else of `extra_body` along."""
    vendor, context = Vendor("temperature", "extra_body.b"), RecordedRun()
    settings = {"temperature": 1.0, "extra_body": {"a": 1, "b": 2}}

    run(at(agent_for(CALL), vendor, model_settings=settings), context)

    assert [{"extra_body": {"a": 1}}] * 2 == [request.settings for request in vendor.requests]
    assert [
        RunSettingsDropped("scripted", ["temperature"]),
        RunSettingsDropped("scripted", ["extra_body.b"]),
    ] == dropped(context)
    assert [] == context.voided + context.paused


def test_a_resumed_run_reports_nothing_again() -> None:
    """It does not ask the vendor once more either."""
    vendor, context = Vendor("temperature"), RecordedRun(attempt=2)
    agent = agent_for({"say": "x"}, model_settings={"temperature": 1.0, "seed": 1})

    run(at(agent, vendor, dropped={"scripted": {"temperature", "seed"}}), context)

    assert [{}] == [request.settings for request in vendor.requests]
    assert [] == dropped(context)


@pytest.mark.parametrize(
    ("choice", "later"),
    [("required", {}), ({"name": "calculator"}, {}), ("none", {"tool_choice": "none"})],
)
def test_only_the_first_call_is_forced(choice: Any, later: dict[str, Any]) -> None:
    """A model that had to call a tool each time could never give its answer."""
    vendor = Vendor()

    run(at(agent_for(CALL, model_settings={"tool_choice": choice}), vendor), RecordedRun())

    assert [{"tool_choice": choice}, later] == [request.settings for request in vendor.requests]


@pytest.mark.parametrize("lacks", [True, False])
def test_where_no_call_can_be_forbidden_no_tool_is_offered(lacks: bool) -> None:
    """The API lacks `tool_choice`, or the server refuses it. A call that the model makes all the
    same fails; some vendors then require its tool.
    """
    vendor, context = Vendor("tool_choice"), RecordedRun()
    if lacks:
        vendor.settings = frozenset({"top_p"})
    agent = agent_for(CALL, model_settings={"tool_choice": "none", "top_p": 0.5})

    answer = run(at(agent, vendor), context)

    assert [{"top_p": 0.5}] * 2 == [one.settings for one in vendor.requests]
    offered = [[tool.name for tool in one.tools] for one in vendor.requests]
    assert [[], ["calculator"]] == offered
    assert [RunSettingsDropped("scripted", ["tool_choice"])] == dropped(context)
    [(_, output, is_error)] = results(context)
    assert ("Not executed: `tool_choice` is `none`.", True) == (output, is_error)
    assert "done" == answer.content


def test_a_last_answer_keeps_its_tools_where_calls_cannot_be_forbidden() -> None:
    """Some vendors require the tools that the conversation calls; no call of it is made."""
    vendor = Vendor("tool_choice")

    run(at(agent_for(CALL, CALL, max_steps=1), vendor), RecordedRun())

    assert [{}, {}] == [one.settings for one in vendor.requests]
    assert vendor.requests[0].tools == vendor.requests[1].tools != []


@pytest.mark.parametrize("is_of_org", [True, False])
def test_a_personas_extra_fields_are_for_the_orgs_own_routes(is_of_org: bool) -> None:
    """On a route of the server they could order what its prices do not cover."""
    vendor, context = Vendor(), RecordedRun()
    agent = agent_for(CALL, model_settings={"extra_body": {"service_tier": "priority"}})
    route = {"model_settings": {"extra_body": {"top_k": 5}}, "is_of_org": is_of_org}

    run(at(agent, vendor, **route), context)

    expected = {"service_tier": "priority"} if is_of_org else {"top_k": 5}
    assert [{"extra_body": expected}] * 2 == [request.settings for request in vendor.requests]
    reports = [] if is_of_org else [RunSettingsDropped("scripted", ["persona.extra_body"])]
    assert reports == dropped(context)
