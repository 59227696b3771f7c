"""A tool call that requires approval: approved, denied or with other arguments."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from arkloop.shared.events.types import ToolCallRequested
from arkloop.worker.agent.conversation import Turn
from arkloop.worker.agent.permitted_calls import UNKNOWN_OUTCOME
from arkloop.worker.contract.messages import (
    AssistantMessage,
    Chunk,
    ModelRequest,
    ToolCall,
    TurnEnd,
)
from arkloop.worker.contract.outcomes import WaitForInput
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.providers.scripted_provider import ScriptedProvider
from arkloop.worker.tools import load
from tests.worker.agent.looping_models import agent_for, results, run
from tests.worker.recorded_run import RecordedRun, chain_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CALL = ToolCall("c1", "calculator", {"expression": "6*7"})


def turn(answer: Any = None) -> Turn:
    said = answer if answer is None or isinstance(answer, str) else json.dumps(answer)
    return Turn("m", "", [CALL], answers={} if said is None else {"c1": said})


def careful(**changes: Any) -> Any:
    return agent_for({"tool": "x"}, {"say": "ok"}, persona="careful@1", **changes)


def test_the_question_shows_the_exact_call() -> None:
    """The user sees what would be done, not only the tool's name."""
    with pytest.raises(WaitForInput) as asked:
        run(careful(), RecordedRun(), [turn()])

    expected = {"tool_name": "calculator", "arguments": {"expression": "6*7"}}
    assert expected == asked.value.shown(NOW)
    assert ["approve", "deny", "edit"] == asked.value.options


def test_arguments_that_no_list_should_carry_are_left_out() -> None:
    """Arguments too long for a list are omitted from it; the call's event has them."""
    wait = WaitForInput(
        persona=careful().persona,
        kind="tool_confirmation",
        prompt="?",
        tool_call_id="c",
        tool_name="t",
        arguments={"x": "y" * 10_000},
    )

    assert {"tool_name": "t"} == wait.shown(NOW)


@pytest.mark.parametrize(
    ("answer", "output", "is_error"),
    [
        ({"decision": "approve"}, "42", False),
        ({"decision": "deny"}, "The call was denied", True),
        ({"decision": "deny", "reason": "not today"}, "The call was denied: not today", True),
        ({"decision": "edit", "arguments": {"expression": "1+1"}}, "2", False),
        # Accepted by the API of another release.
        ('{"decision": "maybe"}', 'The call was denied: {"decision": "maybe"}', True),
    ],
)
def test_a_reply_can_be_given_in_full(answer: Any, output: str, is_error: bool) -> None:
    """A reply can be given in full as JSON text."""
    context = RecordedRun()

    run(careful(), context, [turn(answer)])

    assert [("c1", output, is_error)] == results(context)


def test_an_unclear_reply_is_asked_again_and_the_third_denies() -> None:
    """A person who asks back has neither allowed nor denied the call."""
    unclear = "What would it do?"
    for asked in (1, 2):
        with pytest.raises(WaitForInput) as again:
            run(careful(), RecordedRun(), [replace(turn(unclear), asked=Counter(c1=asked))])
        assert again.value.prompt.startswith("The reply was neither yes nor no.")
        assert {"tool_name": "calculator", "arguments": CALL.arguments} == again.value.shown(NOW)

    context = RecordedRun()
    run(careful(), context, [replace(turn(unclear), asked=Counter(c1=3))])

    assert [("c1", f"The call was denied: {unclear}", True)] == results(context)


def test_the_model_sees_the_arguments_that_were_used() -> None:
    """It sees them in this run and in later ones, which read the same events."""
    agent = careful()
    edited = turn({"decision": "edit", "arguments": {"expression": "1+1"}})

    run(agent, RecordedRun(), [edited])

    calls = [m.tool_calls for m in agent.chain.provider.saw() if isinstance(m, AssistantMessage)]
    assert [(ToolCall("c1", "calculator", {"expression": "1+1"}),)] == calls


def test_arguments_that_do_not_fit_are_asked_for_again() -> None:
    """The person's slip does not become the model's failure."""
    asked_again = turn({"decision": "edit", "arguments": {"expresion": "1+1"}})

    with pytest.raises(WaitForInput) as asked:
        run(careful(), RecordedRun(), [asked_again])

    assert "Invalid arguments" in asked.value.prompt
    assert "expresion" in asked.value.prompt


def test_an_approval_is_for_this_call_alone() -> None:
    """The same call in the next turn is asked about again."""
    agent = agent_for(
        {"tool": "x"},
        {"tool": "calculator", "args": {"expression": "6*7"}},
        {"say": "ok"},
        persona="careful@1",
    )

    with pytest.raises(WaitForInput) as asked:
        run(agent, RecordedRun(), [turn("yes")])

    assert "c1" != asked.value.tool_call_id


@pytest.mark.parametrize("answer", ["yes", {"decision": "edit", "arguments": {"n": 1, "no": 2}}])
@pytest.mark.parametrize(
    "asked_of",
    [
        {"config_id": "a", "hash": "of another description"},
        {"config_id": "another", "hash": "h"},
        None,  # a built-in tool, or a question of a release that did not say
    ],
)
def test_an_approval_is_for_the_tool_that_was_asked_about(
    asked_of: dict[str, str] | None, answer: Any
) -> None:
    """An approval does not apply to a tool that got the name, or another description, in the
    meantime.
    """
    now = {"config_id": "a", "hash": "h"}
    agent = careful()
    tool = replace(agent.tools["calculator"], mcp_tool=now)
    agent = replace(agent, tools={"calculator": tool})
    context, asked = RecordedRun(), turn(answer)
    asked.asked_of["c1"] = asked_of

    run(agent, context, [asked])

    [(call_id, output, is_error)] = results(context)
    assert ("c1", True) == (call_id, is_error)
    assert "has changed since it was approved" in output

    later = RecordedRun(attempt=2, begun=["c1"])
    run(agent, later, [replace(asked, results={})])
    assert [("c1", UNKNOWN_OUTCOME, True)] == results(later)

    unanswered, approved = turn(), turn("yes")
    with pytest.raises(WaitForInput) as question:
        run(agent, RecordedRun(), [unanswered])
    approved.asked_of["c1"] = question.value.request("r", NOW)["mcp_tool"]
    context = RecordedRun()
    run(agent, context, [approved])
    assert [("c1", "42", False)] == results(context)


@pytest.mark.parametrize("field", ["worker_tool", "http_tool"])
def test_an_approval_of_before_is_valid_for_the_name(field: str) -> None:
    """The release before did not say which pool's or which HTTP tool it asked about."""
    agent = careful()
    tool = replace(agent.tools["calculator"], **{field: {"name": "x"}})
    context, approved = RecordedRun(), turn("yes")
    approved.asked_of["c1"] = None

    run(replace(agent, tools={"calculator": tool}), context, [approved])

    assert [("c1", "42", False)] == results(context)


@pytest.mark.parametrize("field", ["mcp_tool", "worker_tool"])
@pytest.mark.parametrize(
    ("names", "result"),
    [
        (["shop_calculator"], ("c1", "42", False)),
        ([], ("c1", "Not executed: tool 'calculator' is no longer available.", True)),
    ],
)
def test_an_approval_follows_a_tool_to_its_new_name(
    names: list[str], result: tuple[str, str, bool], field: str
) -> None:
    """The name of a tool depends on the tools of other MCP servers and pools."""
    asked_of, agent = {"config_id": "a", "hash": "h"}, careful()
    calculator = agent.tools["calculator"]
    tools = {name: replace(calculator, **{field: asked_of}) for name in names}
    if names:
        other: dict[str, Any] = {field: {"config_id": "b", "hash": "h"}}
        tools["calculator"] = replace(calculator, **other)
    context, approved = RecordedRun(), turn("yes")
    approved.asked_of["c1"] = asked_of

    run(replace(agent, tools=tools), context, [approved])

    assert [result] == results(context)


def test_a_persona_can_require_approval_of_every_tool() -> None:
    """A persona can require approval of every tool, also of unknown name, except `ask_user`."""
    agent = agent_for({"tool": "x"}, {"say": "ok"}, require_approval=frozenset({"*"}))
    question = Turn("m", "", [ToolCall("q", "ask_user", {"question": "?"})], answers={"q": "no"})
    context = RecordedRun()

    run(agent, context, [question])
    assert [("q", "no", False)] == results(context)

    with pytest.raises(WaitForInput):
        run(agent, context, [turn()])


def test_reading_the_rest_of_a_result_needs_no_approval() -> None:
    """It shows the model what an approved call has returned, and nothing else."""
    agent = agent_for({"tool": "x"}, {"say": "ok"}, require_approval=frozenset({"*"}))
    agent = replace(agent, tools={**agent.tools, **load(["read_result"])})
    arguments = {"id": "other", "offset": 0, "limit": 10}
    reading = Turn("m", "", [ToolCall("r", "read_result", arguments)])
    context = RecordedRun()

    run(agent, context, [reading])
    assert ["r"] == [call_id for call_id, _, _ in results(context)]


def test_an_approval_is_not_for_another_call_of_the_same_id() -> None:
    """Ids are what a server says: those that we make are not among them, nor any twice."""
    calls = [ToolCall(id_, "calculator", {"expression": "1"}) for id_ in ("call_1_2", "", "x", "x")]
    context = RecordedRun()

    class Model(ScriptedProvider):
        def stream(self, request: ModelRequest, stop: StopSignal) -> Iterator[Chunk]:
            yield TurnEnd("tool_calls", tuple(calls))

    with pytest.raises(WaitForInput):
        run(replace(careful(), chain=chain_of(Model())), context)

    made = [event.tool_call_id for event in context.events if isinstance(event, ToolCallRequested)]
    assert ["call_1_2", "call_1_3", "x", "call_1_4"] == made


def test_an_id_that_no_ledger_can_hold_is_replaced() -> None:
    """Postgres would refuse it for ever, and the run would wait for Postgres."""
    endless = ToolCall("x" * 100_000, "calculator", {"expression": "6*7"})
    context = RecordedRun()

    class Model(ScriptedProvider):
        def stream(self, request: ModelRequest, stop: StopSignal) -> Iterator[Chunk]:
            yield TurnEnd("stop", () if request.turn else (endless,))

    run(replace(agent_for(), chain=chain_of(Model())), context)

    assert [("call_1_1", "42", False)] == results(context)
