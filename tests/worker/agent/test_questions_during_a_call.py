"""Tool calls that ask people, and are made again with their replies."""

import json
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest

from arkloop.shared.runs import form_replies
from arkloop.worker.agent.conversation import Turn
from arkloop.worker.agent.permitted_calls import UNKNOWN_OUTCOME
from arkloop.worker.contract.context import ToolContext
from arkloop.worker.contract.input_requests import InputRequired
from arkloop.worker.contract.outcomes import WaitForInput
from arkloop.worker.tools import CallInfo, Tool, tool
from tests.worker.agent.looping_models import CALCULATE, agent_for, results, run
from tests.worker.recorded_run import RecordedRun

FIELDS = {"type": "object"}
ACCEPT = json.dumps({"action": "accept", "content": {"seats": 3}})
PAGE = {"key": "b", "kind": "authorization", "prompt": "Pay.", "url": "https://pay.example"}


@tool(idempotent=False)
def book(context: ToolContext, info: CallInfo) -> str:
    """Reserve, once two people have replied, and a third one."""
    if info.replies is None:
        form = {"key": "a", "kind": "form", "prompt": "How many?", "schema": FIELDS}
        raise InputRequired([form, PAGE], "first")
    if info.replies.state == "first":
        raise InputRequired([{**PAGE, "key": str(len(info.replies.responses))}], "second")
    return json.dumps([info.replies.state, info.replies.responses])


@tool(idempotent=False)
def pay(context: ToolContext, info: CallInfo, confirm: bool = False) -> str:
    """Return the last replies: to a visit, or with `confirm` to the form after it."""
    if info.replies is None:
        raise InputRequired([{**PAGE, "is_shared": True}], "page")
    if confirm and info.replies.state == "page":
        form = {"key": "c", "kind": "form", "prompt": "How many?", "schema": FIELDS}
        raise InputRequired([form], "form")
    return json.dumps(info.replies.responses)


def never(*given: Any) -> str:
    raise AssertionError


def waits(
    context: RecordedRun,
    turns: list[Turn],
    tools: dict[str, Tool],
    calls: tuple[dict[str, Any], ...] = ({"tool": "book"}, CALCULATE),
) -> WaitForInput:
    steps = ({"tools": [*calls]}, {"say": "ok"})
    with pytest.raises(WaitForInput) as asked:
        run(agent_for(*steps, extra=tools), context, turns)
    return asked.value


def test_a_call_is_made_again_with_the_replies_of_people() -> None:
    """Questions come one at a time, in the order of the request; the results of other calls are
    kept meanwhile, and written in call order.
    """
    context, turns = RecordedRun(), list[Turn]()
    first = waits(context, turns, {"book": book})
    assert ("form", "How many?", FIELDS) == (first.kind, first.prompt, first.schema)
    assert [] == results(context)
    assert ["42"] == [result.output for result in context.done]

    turns[0].replies["call_1_1"] = [ACCEPT]
    assert "https://pay.example" == waits(context, turns, {"book": book}).url
    turns[0].replies["call_1_1"].append("decline")
    assert "authorization" == waits(context, turns, {"book": book}).kind
    turns[0].replies["call_1_1"].append("nonsense of an earlier release")
    run(agent_for({"say": "ok"}, extra={"book": book}), context, turns)

    (_, booked, is_error), (_, calculated, _) = results(context)
    assert ["second", {"2": {"action": "cancel"}}] == json.loads(booked)
    assert (False, "42") == (is_error, calculated)


def test_a_reply_that_two_calls_share_is_no_reply_to_what_one_asks_then() -> None:
    """The second call has no event of the visit: its form is asked once, and has its reply."""
    calls = ({"tool": "pay"}, {"tool": "pay", "args": {"confirm": True}})
    context, turns, replies = RecordedRun(), list[Turn](), dict[str, list[str]]()

    def next_attempt() -> list[Turn]:
        """Return the turn as events and the ledger have it."""
        [turn] = turns
        known = {"calls": turn.calls, "results": turn.results}
        asked = {"input_requests": turn.input_requests, "replies": deepcopy(replies)}
        return [Turn(turn.message_id, turn.content, **known, **asked)]

    assert "call_1_1" == waits(context, turns, {"pay": pay}, calls).tool_call_id
    replies["call_1_1"] = [form_replies.ACCEPTED]
    turns = next_attempt()
    asked = waits(context, turns, {"pay": pay}, calls)
    assert ("call_1_2", "How many?") == (asked.tool_call_id, asked.prompt)

    replies["call_1_2"] = [ACCEPT]
    run(agent_for({"say": "ok"}, extra={"pay": pay}), context, next_attempt())

    visited, confirmed = (json.loads(output) for _, output, _ in results(context))
    assert ({"b": {"action": "accept"}}, {"c": json.loads(ACCEPT)}) == (visited, confirmed)


def test_a_crash_while_the_call_is_made_again_leaves_its_outcome_unknown() -> None:
    """The call is not made a third time."""
    turns = list[Turn]()
    waits(RecordedRun(), turns, {"book": book})
    turns[0].replies["call_1_1"] = [ACCEPT, "accept"]
    resumed = RecordedRun(attempt=2)  # its ledger says that an attempt has begun the call again

    run(agent_for({"say": "ok"}, extra={"book": book}), resumed, turns)

    assert (UNKNOWN_OUTCOME, True) == results(resumed)[0][1:]


def test_another_tool_of_the_same_name_gets_no_replies() -> None:
    """They were given to the tool that asked."""
    context, turns = RecordedRun(), list[Turn]()
    waits(context, turns, {"book": book})
    turns[0].replies["call_1_1"] = [ACCEPT, "accept"]
    other = Tool(
        spec=book.spec, function=book.function, idempotent=False, mcp_tool={"config_id": "other"}
    )

    run(agent_for({"say": "ok"}, extra={"book": other}), context, turns)

    assert "has changed since it asked" in results(context)[0][1]


def test_the_replies_reach_a_tool_that_has_another_name_now() -> None:
    """The name of an MCP tool depends on the tools of other servers."""
    context, turns = RecordedRun(), list[Turn]()
    asking = replace(book, mcp_tool={"config_id": "a", "hash": "h"})
    other = replace(book, function=never, mcp_tool={"config_id": "b", "hash": "h"})
    waits(context, turns, {"book": asking})
    turns[0].replies["call_1_1"] = [ACCEPT, "accept"]

    asked = waits(context, turns, {"book": other, "shop_book": asking})
    assert ("call_1_1", "authorization") == (asked.tool_call_id, asked.kind)


def test_a_tool_that_is_gone_gets_no_replies() -> None:
    """The result says so, and does not mention a crash; after a real one the outcome is unknown."""
    context, turns = RecordedRun(), list[Turn]()
    waits(context, turns, {"book": replace(book, mcp_tool={"config_id": "a", "hash": "h"})})
    turns[0].replies["call_1_1"] = [ACCEPT, "accept"]
    resumed, crashed = (RecordedRun(attempt=2, begun=["call_1_1"]) for _ in range(2))
    resumed.required = context.required

    run(agent_for({"say": "ok"}), resumed, deepcopy(turns))
    run(agent_for({"say": "ok"}), crashed, turns)

    assert "Not completed: tool 'book' is no longer available." == results(resumed)[0][1]
    assert UNKNOWN_OUTCOME == results(crashed)[0][1]
