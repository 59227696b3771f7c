"""Approvals of what a custom agent is about to do."""

from typing import Any

import pytest

from arkloop.shared.agents.agent_run import Call
from arkloop.shared.agents.approvals import ApprovalReply
from arkloop.shared.agents.call_approvals import CallApprovals
from arkloop.shared.agents.transcript import RecordedCall, Transcript

PAY = Call(id="a", name="pay", arguments={"amount": 5})


def asked(*replies: str) -> CallApprovals:
    """Return the approvals of a run that was asked about PAY, and got these replies."""
    return CallApprovals(Transcript([RecordedCall(PAY, is_unbegun=True)]), {"a": replies})


@pytest.mark.parametrize(
    ("answer", "reply"),
    [
        ("yes", ApprovalReply(approved=True)),
        ("no, later", ApprovalReply(approved=False, reason="no, later")),
        ('{"decision": "deny", "reason": "r"}', ApprovalReply(approved=False, reason="r")),
        (
            '{"decision": "edit", "arguments": {"amount": 4}}',
            ApprovalReply(approved=True, arguments={"amount": 4}),
        ),
    ],
)
def test_a_reply_is_read_as_one_to_the_loop(answer: str, reply: ApprovalReply) -> None:
    """Words and JSON mean what they mean for a call of the built-in loop."""
    assert reply == asked(answer).reply_to(PAY)


def test_an_unclear_reply_is_asked_about_twice_and_then_denies() -> None:
    """A person gets another chance to say yes or no; what says neither is never a yes."""
    assert asked("maybe").reply_to(PAY) is None
    assert asked("maybe").prompt("pay", "a").startswith("The reply was neither yes nor no.")

    reply = asked("maybe", "hm", "perhaps").reply_to(PAY)

    assert ApprovalReply(approved=False, reason="perhaps", is_clear=False) == reply


@pytest.mark.parametrize(
    "other", [{"arguments": {"amount": 5000}}, {"name": "refund"}, {"arguments": None}]
)
def test_an_approval_is_valid_for_one_call(other: dict[str, Any]) -> None:
    """Another call under the same id is not made by the approval of the first."""
    with pytest.raises(ValueError, match="valid for one call"):
        asked("yes").reply_to(Call(**{**PAY, **other}))


def test_an_edited_call_may_be_asked_about_by_its_new_arguments() -> None:
    """An agent that continues by its conversation reads the arguments that a person gave."""
    approvals = asked('{"decision": "edit", "arguments": {"amount": 4}}')

    reply = approvals.reply_to(Call(id="a", name="pay", arguments={"amount": 4}))

    assert reply is not None
    assert {"amount": 4} == reply.arguments


@pytest.mark.parametrize("recorded", [PAY, {**PAY, "arguments": {"amount": 4}}])
def test_an_edited_call_is_known_by_both_arguments(recorded: Call) -> None:
    """A worker reads the new arguments of a call that has begun, and the agent may give either."""
    transcript = Transcript([RecordedCall(recorded, "paid")])
    replies = {"a": ['{"decision": "edit", "arguments": {"amount": 4}}']}
    approvals = CallApprovals(transcript, replies, {"a": PAY["arguments"]})

    for amount in (5, 4):
        call = Call(id="a", name="pay", arguments={"amount": amount})
        reply = approvals.reply_to(call)
        assert approvals.is_recorded(call)
        assert reply is not None
        assert reply.approved
    with pytest.raises(ValueError, match="valid for one call"):
        approvals.is_recorded(Call(id="a", name="pay", arguments={"amount": 3}))


def test_a_call_is_not_begun_before_it_is_approved() -> None:
    """A step that comes before its approval raises, and a denied one has its result."""
    with pytest.raises(ValueError, match="has not been approved"):
        asked("maybe").denial("a")

    assert "The call was denied: no" == asked("no").denial("a")
    assert asked("yes").denial("a") is None


def test_a_task_that_was_denied_is_not_given_out() -> None:
    """It has its result, and one without a clear reply raises, as in a step."""
    with pytest.raises(ValueError, match="has not been approved"):
        asked("maybe").denied_of([PAY])

    assert [("a", "The call was denied: no")] == asked("no").denied_of([PAY])
    assert [] == asked("yes").denied_of([PAY])


@pytest.mark.parametrize("recorded", [PAY, {**PAY, "arguments": {"amount": 4}}])
def test_a_task_that_a_person_has_replaced_is_not_given_out(recorded: Call) -> None:
    """The task of the reply is, and once it has a result the agent may come to it with either."""
    replies = {"a": ['{"decision": "edit", "arguments": {"amount": 4}}']}
    first, later = (
        CallApprovals(Transcript([one]), replies, {"a": PAY["arguments"]})
        for one in (RecordedCall(recorded, is_unbegun=True), RecordedCall(recorded, "paid"))
    )

    with pytest.raises(ValueError, match="A person has edited the call 'a'"):
        first.new_of([PAY])

    edited = Call(id="a", name="pay", arguments={"amount": 4})
    assert [] == first.new_of([edited]) == later.new_of([PAY]) == later.new_of([edited])
