"""Arguments that people give calls in place of the proposed ones, in UI message streams."""

import json
from typing import Any

import pytest

from arkloop.api.protocols.ai_sdk_dialects import DEFAULT, NEWEST, Dialect
from arkloop.api.protocols.ai_sdk_messages import UIMessageFold, assistant_message
from arkloop.api.protocols.ai_sdk_projection import AiSdkProjection
from arkloop.shared.events.stored_events import StoredEvent
from tests.api.protocols.recorded_runs import RUN_ID, events_of

#: `ai` 5, and pages with a client token, where the persona reserves approvals for the org.
OUTSIDE = [
    Dialect(finish_reasons=False, approvals=False),
    *(one._replace(org_approvals=False) for one in (DEFAULT, NEWEST)),
]
ALL = [*OUTSIDE, DEFAULT, NEWEST]
PROPOSED, EDITED = {"expression": "6*7"}, {"expression": "1+1"}
#: The request about the first call and its reply, in the recorded run.
ASKED, REPLY = 5, 7


def edited_events(arguments: Any = EDITED) -> list[dict[str, Any]]:
    """Return a recorded run whose first call of two a person has edited."""
    events = events_of("approvals")
    for event in events:
        if event["type"] == "run.waiting_for_input":
            event["data"]["approved_by"] = "org"
    reply = {"decision": "edit", "arguments": arguments}
    events[REPLY]["data"]["content"] = json.dumps(reply)
    return events


def asked_again() -> list[dict[str, Any]]:
    """Return a run that asks about its first call again, as the edited arguments do not fit."""
    events = edited_events({"expression": 5})
    asked, resumed, reply = events[ASKED : REPLY + 1]
    again = {**asked, "data": {**asked["data"], "request_id": "again"}}
    approval = {**reply, "data": {"request_id": "again", "content": "yes"}}
    events[REPLY + 1 : REPLY + 1] = [again, resumed, approval]
    return [{**event, "seq": seq} for seq, event in enumerate(events, 1)]


def chunks_of(events: list[dict[str, Any]], dialect: Dialect) -> list[dict[str, Any]]:
    """Return the chunks of the run up to its end, whatever it waits for."""
    projection = AiSdkProjection(RUN_ID, dialect, until=None)
    return [chunk for event in events for chunk in projection.chunks(event)]


def first_call(events: list[dict[str, Any]], dialect: Dialect) -> dict[str, Any]:
    """Return the part of the first call in the message that a page loads after these events."""
    stored = [StoredEvent(event["seq"], event["type"], json.dumps(event)) for event in events]
    parts = assistant_message(RUN_ID, stored, dialect)["parts"]
    first, *others = [part for part in parts if "toolCallId" in part]
    assert len(others) == 1
    return dict(first)


def inputs_of_first(chunks: list[dict[str, Any]]) -> list[Any]:
    return [
        chunk["input"]
        for chunk in chunks
        if chunk["type"] == "tool-input-available" and chunk["toolCallId"].endswith("call_1_1")
    ]


@pytest.mark.parametrize("dialect", ALL)
def test_a_call_is_shown_with_the_arguments_that_it_was_made_with(dialect: Dialect) -> None:
    """Wherever the person has replied, the page and each reload show what the output belongs to."""
    events = edited_events()
    assert [PROPOSED, EDITED] == inputs_of_first(chunks_of(events, dialect))

    replied, ended = first_call(events[: REPLY + 1], dialect), first_call(events, dialect)
    assert EDITED == replied["input"]
    assert ("output-available", EDITED, "42") == (ended["state"], ended["input"], ended["output"])


@pytest.mark.parametrize("dialect", OUTSIDE)
def test_a_reply_outside_of_the_chat_is_no_approval_in_it(dialect: Dialect) -> None:
    """A client fails at a response to a request that it does not know."""
    chunks = chunks_of(edited_events(), dialect)

    assert [] == [c["type"] for c in chunks if "approval" in c["type"] or "denied" in c["type"]]


@pytest.mark.parametrize("dialect", ALL)
def test_the_proposed_arguments_are_shown_where_the_run_asks_about_them_again(
    dialect: Dialect,
) -> None:
    """The edited ones do not fit the tool; an approval is one of the proposed ones."""
    events = asked_again()
    again = ASKED + 4
    shown = [first_call(events[:end], dialect)["input"] for end in (again - 1, again, None)]

    assert [{"expression": 5}, PROPOSED, PROPOSED] == shown
    assert [PROPOSED, {"expression": 5}, PROPOSED] == inputs_of_first(chunks_of(events, dialect))


@pytest.mark.parametrize("dialect", OUTSIDE)
def test_a_call_of_a_client_tool_has_no_input_before_the_page_may_make_it(
    dialect: Dialect,
) -> None:
    """The request has the arguments that it is about; the result comes with those of the reply."""
    events = asked_again()
    events[2]["data"]["result_from"] = "client"
    asked = [c["data"] for c in chunks_of(events, dialect) if c["type"] == "data-arkloop-input"]
    assert [PROPOSED, PROPOSED] == [data["arguments"] for data in asked if "arguments" in data]
    assert [PROPOSED] == inputs_of_first(chunks_of(events, dialect))

    events = edited_events()
    events[2]["data"]["result_from"] = "client"
    *before, result = chunks_of(events[:12], dialect)
    assert "tool-output-available" == result["type"]
    assert EDITED == before[-1]["input"]
    assert [EDITED] == inputs_of_first(before)


@pytest.mark.parametrize("dialect", ALL)
def test_a_call_of_an_earlier_step_is_not_shown_as_another_call(dialect: Dialect) -> None:
    """A custom agent may ask about a call once it has begun the next turn, and so another step.

    Clients look for the call of an input in the current step, and would begin one that stays open.
    """
    events = edited_events()
    events[ASKED - 1] = {"seq": 5, "type": "message.delta", "data": {"content": "Let me see."}}
    message = UIMessageFold(str(RUN_ID))
    for chunk in chunks_of(events, dialect):
        message.add(chunk)

    calls = [part["state"] for part in message.shown()["parts"] if "toolCallId" in part]
    assert 2 == len(calls)
    assert not [state for state in calls if state.startswith("input")]
