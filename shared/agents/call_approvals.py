"""Approvals of calls that a custom agent is about to make: when to ask, what the replies mean."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from arkloop.shared.agents import approvals
from arkloop.shared.agents.agent_run import Call
from arkloop.shared.agents.approvals import ApprovalReply
from arkloop.shared.agents.transcript import Transcript
from arkloop.shared.errors import InvalidRequest

KIND = "tool_confirmation"
OPTIONS = ("approve", "deny", "edit")
#: A reply that is still unclear then denies the call.
MAX_ASKED = 3


class CallApprovals:
    """The approvals of one run, each bound to its call: to a name, arguments and an id.

    `replies` are people's to the requests to approve a call, by its id. `asked` are the arguments
    that they were asked about, where the transcript has those that a person gave in their place.
    """

    def __init__(
        self,
        transcript: Transcript,
        replies: Mapping[str, Sequence[str]],
        asked: Mapping[str, Any] | None = None,
    ) -> None:
        self._transcript, self._replies, self._asked = transcript, replies, asked or {}

    def is_recorded(self, given: Call) -> bool:
        """Return whether the call is recorded, perhaps with arguments that a person has edited.

        Raises:
            ValueError: the id is that of another call.
        """
        call_id = given["id"]
        recorded = self._transcript.call_with(call_id)
        if recorded is None:
            return False
        reply = self._reply(call_id)
        edited = None if reply is None else reply.arguments
        known = [recorded["arguments"], *([] if edited is None else [edited])]
        if call_id in self._asked:
            known.append(self._asked[call_id])
        if given["name"] != recorded["name"] or given["arguments"] not in known:
            raise ValueError(
                f"The id {call_id!r} is that of a call with another name or other arguments: an"
                " id, as an approval, is valid for one call."
            )
        return True

    def new_of(self, delegated: Iterable[Call]) -> list[Call]:
        """Return those of the calls of `delegate` that are not recorded yet.

        Raises:
            ValueError: the id is that of another call, or a person has replaced its task.
        """
        calls = list(delegated)
        new = [call for call in calls if not self.is_recorded(call)]
        for call in calls:
            if self._transcript.output_of(call["id"]) is None:
                self._check_task(call)
        return new

    def _check_task(self, given: Call) -> None:
        """Check that a task which is given out now is the one that a person gave, if any did."""
        reply = self._reply(given["id"])
        edited = None if reply is None else reply.arguments
        if edited is not None and given["arguments"] != edited:
            raise ValueError(
                f"A person has edited the call {given['id']!r}: delegate the persona and the task"
                " of the reply's `arguments`."
            )

    def denied_of(self, delegated: Iterable[Call]) -> list[tuple[str, str]]:
        """Return the ids of recorded calls that were denied, with their results.

        Raises:
            ValueError: a person was asked about one of them, and there is no clear reply yet.
        """
        found = []
        for call in delegated:
            call_id = call["id"]
            if self._transcript.is_unbegun(call_id):
                denied = self.denial(call_id)
                found += [] if denied is None else [(call_id, denied)]
        return found

    def reply_to(self, given: Call) -> ApprovalReply | None:
        """Return the reply that counts; None if a person is to be asked.

        Raises:
            ValueError: the id is that of another call.
        """
        call_id = given["id"]
        reply = self._reply(call_id)
        if not self.is_recorded(given):
            return reply
        if self._transcript.output_of(call_id) is not None:
            return reply or ApprovalReply(approved=True)  # nothing is called any more
        if reply is None:
            self._transcript.await_approval(call_id)
        return reply

    def prompt(self, name: str, call_id: str) -> str:
        """Return the question to a person."""
        asked = f"Allow the call of {name}?"
        return f"The reply was neither yes nor no. {asked}" if self._replies.get(call_id) else asked

    def denial(self, call_id: str) -> str | None:
        """Return the result of a call that was denied; None: it may be made, or needs no approval.

        Raises:
            ValueError: there is no clear reply yet.
        """
        if call_id not in self._replies:
            return None
        reply = self._reply(call_id)
        if reply is None:
            raise ValueError(f"The call {call_id!r} has not been approved: call `approve` first.")
        return None if reply.approved else denial(reply)

    def _reply(self, call_id: str) -> ApprovalReply | None:
        return last_reply(self._replies.get(call_id, ()))


def reserved_for(kind: str, approved_by: str) -> str | None:
    """Return `org` if end users may not reply to this kind of request, else None.

    `approved_by` is that of the persona.
    """
    return "org" if kind == KIND and approved_by == "org" else None


def denial(reply: ApprovalReply) -> str:
    """Return the result of a call that was denied."""
    return f"The call was denied: {reply.reason}".removesuffix(": ")


def last_reply(contents: Sequence[str]) -> ApprovalReply | None:
    """Return the reply that counts of those to a call; None if a person is to be asked again."""
    if not contents:
        return None
    reply = _read(contents[-1])
    return reply if reply.is_clear or len(contents) >= MAX_ASKED else None


def edited(content: str) -> dict[str, Any] | None:
    """Return the arguments that a reply gives in place of the call's own; None without any."""
    return _read(content).arguments


def _read(content: str) -> ApprovalReply:
    try:
        return approvals.read(content)
    except InvalidRequest:
        return ApprovalReply(approved=False, reason=content, is_clear=False)
