"""Approvals of what a custom agent is about to do."""

from typing import Any, cast

import pytest

from arkloop.shared.agents.agent_run import AgentRun
from arkloop.shared.agents.approvals import ApprovalReply
from arkloop.shared.runs.agent_approvals import MAX_SHOWN_CHARACTERS, approve


class Asked:
    """The part of an `AgentRun` that asks; a person has answered."""

    def __init__(self, answer: str) -> None:
        self.answer = answer
        self.question = ""

    def ask(self, question: str, options: Any, *, key: str) -> str:
        self.question = question
        return self.answer


@pytest.mark.parametrize(
    ("answer", "reply"),
    [
        ("yes", ApprovalReply(approved=True)),
        ("no, later", ApprovalReply(approved=False, reason="no, later")),
        ('{"decision": "deny", "reason": "r"}', ApprovalReply(approved=False, reason="r")),
    ],
)
def test_a_reply_is_read_as_one_to_the_loop(answer: str, reply: ApprovalReply) -> None:
    """Words and JSON mean what they mean for a call of the built-in loop."""
    assert reply == approve(cast(AgentRun, Asked(answer)), "t", {}, tool_call_id="a")


@pytest.mark.parametrize("answer", ["maybe", '{"decision": 1}'])
def test_an_unclear_reply_denies_the_call(answer: str) -> None:
    """What neither allows nor denies a call is its reason."""
    reply = approve(cast(AgentRun, Asked(answer)), "t", {}, tool_call_id="a")

    assert (False, False, answer) == (reply.approved, reply.is_clear, reply.reason)


def test_long_arguments_are_cut_in_the_question() -> None:
    """A question is short enough to be stored, whatever the arguments are."""
    asked = Asked("no")

    approve(cast(AgentRun, asked), "t", "x" * 100_000, tool_call_id="a")

    assert len(asked.question) < MAX_SHOWN_CHARACTERS + 100
