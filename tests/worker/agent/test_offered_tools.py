"""The tools that a model is offered where it searches those of its servers."""

from dataclasses import replace
from typing import Any

from arkloop.worker import tools
from arkloop.worker.agent.agent import Agent
from arkloop.worker.agent.context_window import tokens_of_frame
from arkloop.worker.agent.conversation import Turn
from arkloop.worker.contract.messages import ModelRequest, ToolSpec
from arkloop.worker.tools import AUTOMATIC_TOOLS, Tool
from tests.worker.agent.looping_models import CALCULATE, Model, agent_for, results, run
from tests.worker.recorded_run import RecordedRun


def tools_of_servers(count: int) -> dict[str, Tool]:
    """Return tools with descriptions and schemas of a common size; every tenth is about mail."""
    made = {}
    for n in range(count):
        topic = "mail" if n % 10 == 0 else "record"
        fields = {
            f"{topic}_{field}": {"type": "string", "description": f"The {field} of the {topic}."}
            for field in ("id", "title", "owner", "folder", "status")
        }
        parameters = {"type": "object", "properties": fields, "required": [f"{topic}_id"]}
        text = f"Change a {topic} in the folder of its owner, and return it as it is now."
        spec = ToolSpec(f"change_{topic}_{n}", text, parameters)
        made[spec.name] = Tool(spec=spec, function=lambda *_: "changed", idempotent=False)
    return made


def searching(*steps: Any, count: int = 30) -> Agent:
    """Build an agent that searches the tools of its servers."""
    others = tools_of_servers(count)
    agent = agent_for(*steps, extra={**tools.load(AUTOMATIC_TOOLS), **others})
    return replace(agent, searchable={name: tool.spec for name, tool in others.items()})


def offered(agent: Agent) -> list[list[str]]:
    """Return the names of the tools in each request that the model got."""
    model = agent.chain.provider
    assert isinstance(model, Model)
    return [[spec.name for spec in request.tools] for request in model.requests]


SEARCH = {"tool": "search_tools", "args": {"query": "mail", "limit": 2}}
MAIL = {"tool": "change_mail_10", "args": {"mail_id": "1"}}


def test_found_tools_are_offered_from_the_next_call_on() -> None:
    """They come after all others, in the order in which the run found or called them, and stay."""
    rare = {"tool": "change_record_29", "args": {"record_id": "1"}}
    agent = searching({"tools": [SEARCH, CALCULATE]}, MAIL, rare, {"say": "ok"})
    context = RecordedRun()

    run(agent, context)

    first, second, third, last = offered(agent)
    assert "search_tools" in first
    assert not {"read_result", *agent.searchable} & set(first)
    assert [*first, "change_mail_0", "change_mail_10"] == second == third
    assert [*second, "change_record_29"] == last
    assert [False] * 4 == [is_error for _, _, is_error in results(context)]


def test_a_resumed_run_is_offered_the_same_tools() -> None:
    """What a run has found follows from its own events."""
    agent, turns = searching(SEARCH, MAIL, {"say": "ok"}), list[Turn]()
    run(agent, RecordedRun(), turns)
    resumed = searching(SEARCH, MAIL, {"say": "ok"})

    run(resumed, RecordedRun(attempt=2), turns[:2])

    assert offered(agent)[2:] == offered(resumed)


def test_without_tools_to_search_there_is_no_search() -> None:
    """A persona without the setting is offered all tools, and no tool that searches them."""
    agent = replace(searching({"say": "ok"}), searchable={})

    run(agent, RecordedRun())

    [names] = offered(agent)
    assert "search_tools" not in names
    assert "change_mail_0" in names


def test_schemas_are_offered_in_the_form_that_every_vendor_accepts() -> None:
    """Tools found by a search are, too; calls are checked against the schemas as given."""
    either = {"anyOf": [{"required": ["mail_title"]}, {"required": ["mail_owner"]}]}
    for searches in (False, True):
        agent = searching(SEARCH, MAIL, {"say": "ok"})
        given = {name: tool.spec.parameters for name, tool in agent.tools.items()}
        mail = agent.tools["change_mail_10"]
        parameters = {**mail.spec.parameters, **either}
        changed = replace(mail, spec=replace(mail.spec, parameters=parameters))
        searchable = {**agent.searchable, "change_mail_10": changed.spec} if searches else {}
        agent = replace(
            agent, tools={**agent.tools, "change_mail_10": changed}, searchable=searchable
        )
        context = RecordedRun()

        run(agent, context)

        sent = {spec.name: spec.parameters for spec in _requests(agent)[-1].tools}
        assert given["change_mail_10"] == sent["change_mail_10"]
        assert sent["change_mail_0"] is given["change_mail_0"]
        _, (_, output, is_error) = results(context)
        assert is_error and "not valid under any" in output


def test_search_saves_nearly_all_tokens_of_500_tools() -> None:
    """A request has less than 1% of the tokens that its tools take without search, and less than
    3% after one.
    """
    every_tool = replace(searching({"say": "ok"}, count=500), searchable={})
    search = {"tool": "search_tools", "args": {"query": "mail"}}
    agent = searching(search, {"say": "ok"}, count=500)

    run(every_tool, RecordedRun())
    run(agent, RecordedRun())

    [listed] = map(_tokens, _requests(every_tool))
    before, after = map(_tokens, _requests(agent))
    assert 40_000 < listed
    assert before < 0.01 * listed
    assert after < 0.03 * listed


def _requests(agent: Agent) -> list[ModelRequest]:
    model = agent.chain.provider
    assert isinstance(model, Model)
    return model.requests


def _tokens(request: ModelRequest) -> int:
    return tokens_of_frame("", request.tools)
