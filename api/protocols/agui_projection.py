"""A run as AG-UI streams it: its events as those of the protocol.

To AG-UI a run ends where it waits for its client, and the next one continues it. So a run of this
service has one run of the protocol, and one more for each time that it has asked its client.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ag_ui.core import (
    BaseEvent,
    MessagesSnapshotEvent,
    ReasoningEndEvent,
    ReasoningMessageContentEvent,
    ReasoningMessageEndEvent,
    ReasoningMessageStartEvent,
    ReasoningStartEvent,
    RunErrorEvent,
    RunFinishedCancelledOutcome,
    RunFinishedEvent,
    RunFinishedInterruptOutcome,
    RunFinishedSuccessOutcome,
    RunStartedEvent,
    TextMessageContentEvent,
    TextMessageEndEvent,
    TextMessageStartEvent,
    TokenUsage,
    ToolCallArgsEvent,
    ToolCallEndEvent,
    ToolCallResultEvent,
    ToolCallStartEvent,
)

from arkloop.api.protocols.agui_facts import AguiFacts
from arkloop.api.protocols.agui_frames import numbered, without_number
from arkloop.api.protocols.agui_interrupts import interrupt_of
from arkloop.api.protocols.agui_messages import NO_IDS, PackedMessages, RunMessages, usage_between
from arkloop.api.protocols.agui_versions import PROTOCOL_VERSION, finished
from arkloop.api.protocols.projection import arguments_text
from arkloop.shared.agents import call_approvals
from arkloop.shared.events import tool_output
from arkloop.shared.events.open_turn import OpenTurn

_OF_APPROVALS = ("run.waiting_for_input", "run.input_received")


class AguiProjection:
    """A fold of a run's events into the stream of one of its runs in AG-UI.

    The protocol takes text back by a snapshot of all messages alone, so those before the run are
    needed: `earlier`.
    """

    def __init__(
        self,
        facts: AguiFacts,
        waits: int = 0,
        *,
        earlier: PackedMessages | None = None,
        connects: bool = False,
        corrects: bool = False,
        after: int = 0,
        lacking: frozenset[str] = NO_IDS,
        given_results: Mapping[str, str] | None = None,
        is_0_0: bool = False,
    ) -> None:
        """Make the projection of what follows the run's `waits`-th wait.

        With `connects` it begins with a snapshot of the messages, and with `corrects`, where the
        client has some that `earlier` lacks. Frames up to number `after` are left out, and from the
        second on, that snapshot. The client has no results of the calls `lacking`, and has sent
        these of `given_results`, perhaps before the run made the calls. `is_0_0`: it speaks 0.0.x.
        """
        self.is_over = False
        #: The event that asks the client at the end.
        self.asked: Mapping[str, Any] | None = None
        self.waits = 0
        self._facts = facts
        self.first = waits
        self._earlier = earlier or PackedMessages()
        self._connects = connects
        self._corrects = corrects
        self._after = after
        self._lacking = lacking
        self._given_results = given_results or {}
        self._is_0_0 = is_0_0
        self._number = 0
        self._has_begun = False
        self._messages = RunMessages()
        self._turn = 0  # number of the model turn that is not finished
        self._thoughts = 0  # of this turn
        self._open_turn = OpenTurn()
        self._text: list[str] | None = None
        self._thought: list[str] | None = None
        self._writing: dict[str, list[str]] = {}  # calls whose arguments are streamed
        self._handed: frozenset[str] = NO_IDS  # calls that the client makes
        self._approved_id = ""  # of the call that the run has asked to approve last
        self._routes: Sequence[Mapping[str, Any]] = ()
        self._routes_before: Sequence[Mapping[str, Any]] = ()

    @property
    def has_begun(self) -> bool:
        """True if the run has waited often enough for this part of it to exist."""
        return self.waits >= self.first

    @property
    def client_call_ids(self) -> frozenset[str]:
        """The ids of all calls of the client's tools so far, as clients know them."""
        return frozenset(self._messages.calls_of(self._facts.client_tools))

    def opening(self) -> list[bytes]:
        """Return the frames before the run's first event."""
        return [] if self.first else self._begin()

    def frames(self, event: Mapping[str, Any]) -> Iterable[bytes]:
        if self.is_over:
            return []
        frames = self._corrected(event) if event["type"] in _OF_APPROVALS else []
        found = [
            self._frame(one) for part in self._open_turn.add(event) for one in self._events(part)
        ]
        frames += [frame for frame in found if frame is not None]
        if not self._has_begun and self.waits == self.first > 0:
            frames += self._begin()
        return frames

    def closing(self) -> Iterable[bytes]:
        return ()

    # ---- the run ----

    def _begin(self) -> list[bytes]:
        self._has_begun = True
        self._routes_before = self._routes
        ids: Any = {"thread_id": self._facts.thread_id, "run_id": self._facts.client_run_id}
        started = self._frame(RunStartedEvent(**ids, protocol_version=PROTOCOL_VERSION))
        frames = [] if started is None else [started]
        if (self._connects or self._corrects) and self._after <= 1:
            # Without a number: it depends on what is in the thread by now.
            frames.append(without_number(self._snapshot()))
        return frames

    def _events(self, event: Mapping[str, Any]) -> Iterator[BaseEvent]:
        data = event["data"]
        match event["type"]:
            case "message.delta":
                yield from self._say(data["content"])
            case "message.thinking":
                yield from self._think(data["content"])
            case "tool.call.delta":
                yield from self._write_arguments(data)
            case "message.reset":
                yield from self._take_back()
            case "message.completed":
                yield from self._finish_turn(data)
            case "tool.call":
                yield from self._call(data)
            case "tool.result":
                yield from self._result(data)
            case "run.cost":
                self._routes = data.get("routes", ())
            case "run.waiting_for_input":
                yield from self._wait(event)
            case "run.completed" | "run.failed" | "run.cancelled":
                yield from self._end(event["type"], data)

    def _wait(self, event: Mapping[str, Any]) -> Iterator[BaseEvent]:
        data = event["data"]
        self.waits += 1
        yield from self._close_turn()
        if data["kind"] == "tool_results":
            calls = self._facts.client_calls(data)
            if not calls:
                return  # for HTTP tools alone, which send their results themselves
            yield from self._hand_over(calls)
            ids = [self._facts.call_id(call["tool_call_id"]) for call in calls]
            missing = self._facts.missing(data["request_id"], ids)
            outcome: Any = RunFinishedSuccessOutcome(pending_tool_call_ids=missing)
        else:
            call_id = self._facts.call_id(data.get("tool_call_id") or "")
            self._approved_id = call_id if data["kind"] == call_approvals.KIND else ""
            name = self._messages.name_of(call_id)
            # The key of a custom agent's question need not be the id of a call.
            shown_id = None if name is None else call_id
            interrupt = interrupt_of(data, shown_id, may_edit=self._facts.may_edit(name))
            outcome = RunFinishedInterruptOutcome(interrupts=[interrupt])
        if self._has_begun:
            self.asked = event
            self.is_over = True
            yield self._finished(outcome)

    def _hand_over(self, calls: list[Mapping[str, Any]]) -> Iterator[BaseEvent]:
        """Note the calls that the client makes; show arguments that a person has edited.

        Results that the client has already are those of the calls as they were before.
        """
        edited: set[str] = set()
        for call in calls:
            call_id = self._facts.call_id(call["tool_call_id"])
            self._handed |= {call_id}
            if self._messages.change_arguments(call_id, arguments_text(call["arguments"])):
                edited.add(call_id)
        if edited and self._has_begun:
            self._earlier = self._earlier.without_results(edited)
            yield self._snapshot()

    def _corrected(self, event: Mapping[str, Any]) -> list[bytes]:
        """Note arguments that a person has given a call of the service; return a snapshot of them.

        If they do not fit, the run asks again about those that it had. The snapshot has no number:
        cursors count the same events as before there was one.
        """
        data, changed = event["data"], False
        if event["type"] == "run.input_received":
            name = self._messages.name_of(self._approved_id)
            given = call_approvals.edited(data["content"])
            is_own = name is not None and name not in self._facts.client_tools  # see `_hand_over`
            if is_own and given is not None:
                changed = self._messages.edit(self._approved_id, arguments_text(given))
        elif data["kind"] == call_approvals.KIND:
            changed = self._messages.propose_again(self._facts.call_id(data["tool_call_id"]))
        is_shown = changed and self._has_begun and self._number >= self._after
        return [without_number(self._snapshot())] if is_shown else []

    def _end(self, kind: str, data: Mapping[str, Any]) -> Iterator[BaseEvent]:
        yield from self._close_turn()
        self.is_over = True
        if kind == "run.failed":
            error = data["error"]
            yield RunErrorEvent(message=error["message"], code=error["code"], usage=self._usage())
        elif kind == "run.cancelled":
            yield self._finished(RunFinishedCancelledOutcome())
        else:
            yield self._finished(RunFinishedSuccessOutcome(), data.get("output"))

    def _finished(self, outcome: Any, result: Any = None) -> RunFinishedEvent:
        ids = {"thread_id": self._facts.thread_id, "run_id": self._facts.client_run_id}
        more = {"result": result, "usage": self._usage()}
        return finished(outcome, is_0_0=self._is_0_0, **ids, **more)

    def _usage(self) -> list[TokenUsage] | None:
        used = usage_between(self._routes_before, self._routes)
        return [TokenUsage(**part) for part in used] or None

    # ---- a model turn ----

    @property
    def _message_id(self) -> str:
        return f"msg_{self._facts.run_id.hex}_{self._turn}"

    @property
    def _thought_id(self) -> str:
        return f"rs_{self._facts.run_id.hex}_{self._turn}_{self._thoughts}"

    def _say(self, text: str) -> Iterator[BaseEvent]:
        yield from self._close_reasoning()
        if self._text is None:
            self._text = []
            yield TextMessageStartEvent(message_id=self._message_id, role="assistant")
        self._text.append(text)
        yield TextMessageContentEvent(message_id=self._message_id, delta=text)

    def _close_message(self) -> Iterator[BaseEvent]:
        text, self._text = self._text, None
        if text is not None:
            self._messages.text(self._message_id, "".join(text))
            yield TextMessageEndEvent(message_id=self._message_id)

    def _think(self, text: str) -> Iterator[BaseEvent]:
        if self._thought is None:
            self._thought = []
            yield ReasoningStartEvent(message_id=self._thought_id)
            yield ReasoningMessageStartEvent(message_id=self._thought_id, role="reasoning")
        self._thought.append(text)
        yield ReasoningMessageContentEvent(message_id=self._thought_id, delta=text)

    def _close_reasoning(self) -> Iterator[BaseEvent]:
        thought, self._thought = self._thought, None
        if thought is not None:
            self._messages.reasoning(self._thought_id, "".join(thought))
            yield ReasoningMessageEndEvent(message_id=self._thought_id)
            yield ReasoningEndEvent(message_id=self._thought_id)
            self._thoughts += 1

    def _write_arguments(self, data: Mapping[str, Any]) -> Iterator[BaseEvent]:
        call_id = self._facts.call_id(data["tool_call_id"])
        if call_id not in self._writing:
            self._writing[call_id] = []
            yield self._call_start(call_id, data["name"])
        self._writing[call_id].append(data["arguments_delta"])
        yield ToolCallArgsEvent(tool_call_id=call_id, delta=data["arguments_delta"])

    def _close_turn(self) -> Iterator[BaseEvent]:
        """End all that is open, also calls whose arguments are not complete and never will be."""
        yield from self._close_reasoning()
        yield from self._close_message()
        for call_id in self._writing:
            yield ToolCallEndEvent(tool_call_id=call_id)
        self._writing.clear()

    def _take_back(self) -> Iterator[BaseEvent]:
        """Take the turn back: the messages are what they were before it.

        Its reasoning stays as an empty message, which the next attempt fills: clients keep
        reasoning that a snapshot without any reasoning lacks.
        """
        yield from self._close_turn()
        self._messages.void(self._message_id)
        while self._thoughts:
            self._thoughts -= 1
            self._messages.reasoning(self._thought_id, "")
        yield self._snapshot()

    def _finish_turn(self, data: Mapping[str, Any]) -> Iterator[BaseEvent]:
        text: str = data["content"]
        if data.get("output_errors"):
            yield from self._take_back()
            return
        if self._text is not None and "".join(self._text) != text:
            yield from self._take_back()
        yield from self._close_reasoning()
        if text and self._text is None:
            yield from self._say(text)
        yield from self._close_message()
        self._turn += 1
        self._thoughts = 0

    # ---- tools ----

    def _call(self, data: Mapping[str, Any]) -> Iterator[BaseEvent]:
        call_id = self._facts.call_id(data["tool_call_id"])
        pieces = self._writing.pop(call_id, None)
        # It comes after the end of its turn.
        message_id = f"msg_{self._facts.run_id.hex}_{self._turn - 1}"
        text = arguments_text(data["arguments"]) if pieces is None else "".join(pieces)
        self._messages.call(message_id, call_id, data["name"], text)
        if pieces is None:
            yield self._call_start(call_id, data["name"], message_id)
            yield ToolCallArgsEvent(tool_call_id=call_id, delta=text)
        yield ToolCallEndEvent(tool_call_id=call_id)

    def _call_start(
        self, call_id: str, name: str, message_id: str | None = None
    ) -> ToolCallStartEvent:
        return ToolCallStartEvent(
            tool_call_id=call_id,
            tool_call_name=name,
            parent_message_id=message_id or self._message_id,
        )

    def _result(self, data: Mapping[str, Any]) -> Iterator[BaseEvent]:
        call_id = self._facts.call_id(data["tool_call_id"])
        message_id = f"{call_id}.result"
        self._messages.result(message_id, call_id, data["output"])
        is_early = call_id not in self._handed and call_id in self._given_results
        if is_early and data["name"] in self._facts.client_tools:
            given, _ = tool_output.cut(self._given_results[call_id])
            if data["is_error"] or given != data["output"]:  # pages show the first result of a call
                self._earlier = self._earlier.without_results({call_id})
                yield self._snapshot()
                return
            if not self._connects:
                self._number += self._has_begun  # of the event that others get
                return
        # A client has what it has sent, unless it connects: its snapshot is that of the wait. The
        # result of another page it may lack.
        if call_id not in self._handed or self._connects or call_id in self._lacking:
            yield ToolCallResultEvent(
                message_id=message_id, tool_call_id=call_id, content=data["output"], role="tool"
            )

    # ---- frames ----

    def _snapshot(self) -> MessagesSnapshotEvent:
        messages: Any = self._messages.after(self._earlier.unpacked())
        return MessagesSnapshotEvent(messages=messages)

    def _frame(self, event: BaseEvent) -> bytes | None:
        """Return the next frame, with its cursor; None if it is left out."""
        if not self._has_begun:
            return None
        if isinstance(event, ToolCallResultEvent) and event.tool_call_id in self._handed:
            return without_number(event)  # cursors count the same events in all streams
        self._number += 1
        if self._number <= self._after:
            return None
        return numbered(event, f"{self._facts.run_id}.{self.first}.{self._number}")
