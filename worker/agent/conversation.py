"""The conversion of stored events to the model's messages, and to the state of a resumed run."""

import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from arkloop.shared.agents import approvals, call_approvals
from arkloop.shared.agents.approvals import ApprovalReply
from arkloop.shared.errors import InvalidRequest
from arkloop.shared.events import types
from arkloop.shared.events.stored_events import StoredEvent
from arkloop.shared.events.turns import still_open
from arkloop.shared.events.types import ProviderState
from arkloop.shared.runs import form_replies
from arkloop.worker.agent import structured_output
from arkloop.worker.agent.attachments import DROPPED_ATTACHMENTS
from arkloop.worker.contract.attachments import images_of, parts_of
from arkloop.worker.contract.input_requests import InputRequest
from arkloop.worker.contract.messages import (
    AssistantMessage,
    Message,
    Steered,
    ToolCall,
    ToolMessage,
    UserMessage,
    state_text,
)
from arkloop.worker.contract.outcomes import BOUND_TO

#: The types that matter here; deltas count only for what a crash left open.
TURN_TYPES = (
    types.ContextCompacted.type,
    types.MessageCompleted.type,
    types.RunFallback.type,
    types.RunLimitReached.type,
    types.RunSettingsDropped.type,
    types.ToolCallRequested.type,
    types.ToolResult.type,
    types.RunWaitingForInput.type,
    types.RunInputReceived.type,
    types.RunSteered.type,
)


@dataclass(frozen=True, slots=True)
class Entry:
    """A message of a user, or a model's turn with its results, at its place in the thread.

    `position` is that of the message or the run, `seq` the turn's first event; 1 for messages. A
    conversation is never cut within an entry.
    """

    position: int
    seq: int
    messages: Sequence[Message]

    @property
    def place(self) -> tuple[int, int]:
        return self.position, self.seq

    @property
    def is_of_user(self) -> bool:
        return isinstance(self.messages[0], UserMessage)


@dataclass(frozen=True, slots=True)
class Counted:
    """A vendor's token count of a request: everything sent before the turn at `place`."""

    input_tokens: int
    place: tuple[int, int]
    route: tuple[str, str]  # its id, and its model at that time


@dataclass(frozen=True, slots=True)
class History:
    """The conversation up to a run, from the earliest of the `contexts` that its routes have.

    `contexts` are the thread's truncation points, by the model's context in tokens. `unread`
    messages come before the entries; with `is_cut` there are some after the truncation point.
    """

    entries: Sequence[Entry] = ()
    contexts: Mapping[int, types.ContextCompacted] = field(default_factory=dict)
    unread: int = 0
    is_cut: bool = False
    #: Of the newest request that a vendor has counted, if it was made as this run's are.
    counted: Counted | None = None

    @property
    def messages(self) -> list[Message]:
        return [message for entry in self.entries for message in entry.messages]

    @property
    def size(self) -> int:
        """Bytes of memory that its texts take, about."""
        return sum(map(_size_of, self.messages))


def _size_of(message: Message) -> int:
    size = sys.getsizeof(message.content)
    if isinstance(message, AssistantMessage):
        size += len(state_text(message.state))
        size += sum(len(json.dumps(call.arguments)) for call in message.tool_calls)
    return size


@dataclass(slots=True)
class Turn:
    """An assistant turn with the results of its calls, by tool_call_id."""

    message_id: str
    content: str
    calls: list[ToolCall] = field(default_factory=list)
    results: dict[str, ToolMessage] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)  # calls whose result is an error
    #: Results in the ledger of a lost attempt, which could not write their events any more.
    ledger_results: dict[str, types.ToolResult] = field(default_factory=dict)
    #: Results of client tools that a page has sent before their calls: output and `is_error`.
    early_results: dict[str, tuple[str, bool]] = field(default_factory=dict)
    #: Calls that this attempt has begun, or is about to.
    begun: set[str] = field(default_factory=set)
    #: Calls that were accepted elsewhere, without a result so far.
    accepted: set[str] = field(default_factory=set)
    answers: dict[str, str] = field(default_factory=dict)  # of users, to questions and approvals
    #: Calls that are made again with the replies of people, and all the replies of each.
    input_requests: dict[str, InputRequest] = field(default_factory=dict)
    replies: dict[str, list[str]] = field(default_factory=dict)
    #: Replies to another call that count for this one, too, until it is made. They have no events
    #: of its own, so the next attempt does not find them among `replies`.
    shared_replies: dict[str, list[str]] = field(default_factory=dict)
    #: How often a person was asked about a call.
    asked: Counter[str] = field(default_factory=Counter)
    #: The tool that each was about, as `Tool.bound_to` says.
    asked_of: dict[str, Mapping[str, str] | None] = field(default_factory=dict)
    state: ProviderState | None = None
    seq: int = 0  #: of its `message.completed`
    #: The vendor's count of its request, if the next requests begin as that one and it left out
    #: nothing that they have; and the id and model of its route, None for the run's own.
    input_tokens: int | None = None
    route: tuple[str, str] | None = None
    #: Why its text is not the run's output.
    output_errors: Sequence[str] = ()

    @property
    def is_open(self) -> bool:
        """True if some call has no result yet."""
        return len(self.results) < len(self.calls)

    def approval_reply(self, call: ToolCall) -> ApprovalReply | None:
        """Return the user's reply to the request to approve the call, None if there is none yet."""
        if (answer := self.answers.get(call.id)) is None:
            return None
        try:
            return approvals.read(answer)
        except InvalidRequest:
            return ApprovalReply(approved=False, reason=answer)

    def replies_to(self, call_id: str) -> list[str]:
        """Return the replies with which the call is made again, those to other calls last."""
        return [*self.replies.get(call_id, ()), *self.shared_replies.get(call_id, ())]

    def as_made(self, call: ToolCall) -> ToolCall:
        """Return the call with the arguments that a user gave in place of the model's."""
        reply = None if call.name == "ask_user" else self.approval_reply(call)
        if reply is None or reply.arguments is None:
            return call
        return replace(call, arguments=reply.arguments)

    def messages(self) -> list[Message]:
        """Return the turn as the model sees it, without calls that have no result."""
        places = [i for i, call in enumerate(self.calls) if call.id in self.results]
        done = [self.as_made(self.calls[i]) for i in places]
        turn: list[Message] = []
        if self.content or done:
            turn.append(AssistantMessage(self.content, tuple(done), self._state_of(places)))
        turn.extend(self.results[call.id] for call in done)
        if self.output_errors:
            turn.append(UserMessage(structured_output.repair_request(self.output_errors)))
        return turn

    def _state_of(self, places: Sequence[int]) -> ProviderState | None:
        """Return the state with these calls alone; a turn without calls needs none."""
        if self.state is None or not places:
            return None
        if not self.state.calls:
            return self.state
        return replace(self.state, calls=tuple(self.state.calls[i] for i in places))


def turns_of(stored: Iterable[StoredEvent]) -> list[Turn]:
    """Read the finished model turns of one run, in order.

    A custom agent may have begun another turn before a call of the last one had its result.
    """
    turns: list[Turn] = []
    of_call: dict[str, Turn] = {}  # the newest turn with a call of this id
    requests: dict[str, dict[str, Any]] = {}
    route: tuple[str, str] | None = None
    is_whole = True
    for event in stored:
        if event.type not in TURN_TYPES:
            continue
        data: dict[str, Any] = json.loads(event.payload)["data"]
        match event.type:
            case types.ContextCompacted.type:
                for turn in turns:
                    turn.input_tokens = None
            case types.RunFallback.type:
                route = data["to_route_id"], data["model"]
            case types.RunLimitReached.type:
                is_whole = False  # the last call may have less of the conversation
            case types.RunSettingsDropped.type:
                is_whole = is_whole and DROPPED_ATTACHMENTS not in data["settings"]
            case types.MessageCompleted.type:
                turn = Turn(data["message_id"], data["content"], seq=event.seq)
                turn.state = _state(data.get("provider_state"))
                turn.input_tokens = _reported_input(data["usage"]) if is_whole else None
                turn.route = route
                turn.output_errors = data.get("output_errors") or ()
                turns.append(turn)
            case types.ToolCallRequested.type:
                call = ToolCall(data["tool_call_id"], data["name"], data["arguments"])
                turns[-1].calls.append(call)
                of_call[call.id] = turns[-1]
            case types.ToolResult.type:
                result = ToolMessage(
                    data["tool_call_id"],
                    data["name"],
                    data["output"],
                    images_of(data.get("files")),
                    seq=event.seq,
                    characters=data.get("characters"),
                )
                turn = of_call.get(result.tool_call_id, turns[-1])
                turn.results[result.tool_call_id] = result
                if data["is_error"]:
                    turn.failed.add(result.tool_call_id)
            case types.RunWaitingForInput.type:
                requests[data["request_id"]] = data
            case types.RunInputReceived.type:
                request = requests[data["request_id"]]
                if not turns:
                    continue  # a custom agent asked first
                tool_call_id = request.get("tool_call_id", "")
                if request["kind"] in form_replies.KINDS:
                    turns[-1].replies.setdefault(tool_call_id, []).append(data["content"])
                    continue
                turns[-1].answers[tool_call_id] = data["content"]
                turns[-1].asked[tool_call_id] += 1
                found = (request[name] for name in BOUND_TO if name in request)
                turns[-1].asked_of[tool_call_id] = next(found, None)
    return turns


def steered_by(seq: int, event: types.RunSteered) -> Steered:
    """Return the message of the event with this number."""
    return Steered(seq, event.message_id, UserMessage(event.content, parts_of(event.parts)))


def steered_of(stored: Iterable[StoredEvent]) -> list[Steered]:
    """Read the messages that have reached one run, in order."""
    return [
        steered_by(event.seq, types.RunSteered(**json.loads(event.payload)["data"]))
        for event in stored
        if event.type == types.RunSteered.type
    ]


def _reported_input(usage: dict[str, Any]) -> int | None:
    return usage.get("input_tokens") or None if usage.get("source") == "reported" else None


def _state(stored: dict[str, Any] | None) -> ProviderState | None:
    if stored is None:
        return None
    return ProviderState(
        stored["provider"],
        stored["model"],
        stored["turn"],
        tuple(stored["calls"]),
        stored["server"],
    )


def entries_of(
    position: int, turns: Iterable[Turn], steered: Iterable[Steered] = ()
) -> list[Entry]:
    """Return the turns of the run at this position, without those that the model does not see,
    and the messages that have reached it between them.
    """
    found: list[tuple[int, Sequence[Message]]] = [(turn.seq, turn.messages()) for turn in turns]
    said = [(one.seq, [one.message]) for one in steered]
    if said:
        found = sorted([*found, *said], key=lambda entry: entry[0])
    return [Entry(position, seq, messages) for seq, messages in found if messages]


def counted_of(position: int, turns: Sequence[Turn], route: tuple[str, str]) -> Counted | None:
    """Return the newest count of a request of the run at this position, whose own is `route`."""
    for turn in reversed(turns):
        if turn.input_tokens is not None:
            return Counted(turn.input_tokens, (position, turn.seq), turn.route or route)
    return None


@dataclass(frozen=True, slots=True)
class ResumeState:
    """The point from which a resumed run continues.

    `lost` are the events of output that was streamed and not finished; with `is_counted` their
    call is in the run's costs already. `route_id` is the route that an earlier attempt fell back
    to. `dropped_settings` are the reported ones, by route. `limit_reached` is the `stop_reason` of
    a run that lands.
    """

    turns: list[Turn] = field(default_factory=list)
    steered: list[Steered] = field(default_factory=list)
    lost: Sequence[StoredEvent] = ()
    is_counted: bool = False
    route_id: str | None = None
    dropped_settings: Mapping[str, set[str]] = field(default_factory=dict)
    limit_reached: str | None = None
    compacted: Sequence[types.ContextCompacted] = ()  # what its attempts have done to the thread
    #: What people answered to questions, by the call and the question.
    answers: Mapping[tuple[str | None, str], str] = field(default_factory=dict)
    #: What they answered to requests for approval, by the call.
    approvals: Mapping[str, Sequence[str]] = field(default_factory=dict)


def resume_state_from(stored: Sequence[StoredEvent]) -> ResumeState:
    """Read from all of a run's events where it continues."""
    lost = still_open(stored)  # a lost attempt streamed it and did not finish
    costs = [event.seq for event in stored if event.type == types.RunCost.type]
    return ResumeState(
        turns_of(stored),
        steered_of(stored),
        lost,
        bool(lost) and max(costs, default=0) > lost[0].seq,
        _last(stored, types.RunFallback.type).get("to_route_id"),
        _dropped_settings(stored),
        _last(stored, types.RunLimitReached.type).get("stop_reason"),
        [
            types.ContextCompacted(**json.loads(event.payload)["data"])
            for event in stored
            if event.type == types.ContextCompacted.type
        ],
        *_answers(stored),
    )


def _answers(
    stored: Iterable[StoredEvent],
) -> tuple[dict[tuple[str | None, str], str], dict[str, list[str]]]:
    asked: dict[str, dict[str, Any]] = {}
    answers: dict[tuple[str | None, str], str] = {}
    approvals_: dict[str, list[str]] = {}
    for event in stored:
        if event.type == types.RunWaitingForInput.type:
            data = json.loads(event.payload)["data"]
            asked[data["request_id"]] = data
        elif event.type == types.RunInputReceived.type:
            data = json.loads(event.payload)["data"]
            request = asked[data["request_id"]]
            if request["kind"] == call_approvals.KIND:
                approvals_.setdefault(request["tool_call_id"], []).append(data["content"])
            else:
                answers[request.get("tool_call_id"), request["prompt"]] = data["content"]
    return answers, approvals_


def _last(stored: Sequence[StoredEvent], type_: str) -> dict[str, Any]:
    """Return the data of the last event of a type; empty without any."""
    found = [event.payload for event in stored if event.type == type_]
    return json.loads(found[-1])["data"] if found else {}


def _dropped_settings(stored: Iterable[StoredEvent]) -> dict[str, set[str]]:
    dropped: dict[str, set[str]] = {}
    for event in stored:
        if event.type == types.RunSettingsDropped.type:
            data = json.loads(event.payload)["data"]
            dropped.setdefault(data["route_id"], set()).update(data["settings"])
    return dropped
