"""The turns of a custom agent's run: which events follow from what the agent does.

A turn is text, or text with the calls that follow it, as one of the built-in loop: a call ends the
text before it, and calls up to the first result belong to one turn.
"""

import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from arkloop.shared import ids
from arkloop.shared.agents.agent_run import UNKNOWN_OUTCOME, Call, DelegatedTask, SubRunResult
from arkloop.shared.events import types
from arkloop.shared.events.plain import clean, is_too_deep
from arkloop.shared.events.types import DELEGATE, Event, MessageCompleted, ToolResult
from arkloop.shared.events.usage import Usage

log = logging.getLogger(__name__)

#: The result of a call that has not begun, where the agent goes another way.
NOT_MADE = "Not executed: the agent continued without this call."
#: The result of a call that no step has made, as a handoff within a framework, at the run's end.
NO_RESULT = "The agent ended without a result of this call."
#: The results of calls that are open when the run lands at a limit: of one that has not begun, and
#: of any other, whose agent is abandoned.
NOT_MADE_AT_LIMIT = "Not executed: the run reached its limit."
CUT_OFF = "The run reached its limit during this call; it may or may not have taken effect."
CALL_ID = re.compile("[!-~]{1,128}")
#: NUL as JSON text has it; after an odd number of further backslashes it is no escape.
_ESCAPED_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")
#: DEL, too, as `json.dumps` escapes it.
_NOT_ASCII = re.compile(r"[^\x00-~]+")
MAX_NAME_CHARACTERS = 128
#: Of the text of an output that agent workers may send.
MAX_OUTPUT_BYTES = 1024 * 1024
MAX_TASK_CHARACTERS = 100_000
#: Of one call of `delegate_all`.
MAX_TASKS = 64


ReadOutputs = Callable[[Sequence[str]], Mapping[str, str]]


class RecordedCall(NamedTuple):
    """A call of an earlier execution, with its output if it has one.

    With `is_unbegun` no execution has begun it: a person was asked about the call, or the execution
    that recorded it ended in order before its step. With `is_cut` the output is a part.
    """

    call: Call
    output: str | None = None
    is_error: bool = False
    is_unbegun: bool = False
    is_cut: bool = False


class InvalidCallId(ValueError):
    """An id that is too long, or has other characters than a call's; the text is shown."""


def shown(error: BaseException) -> str:
    """Return the class of an agent's exception, and of InvalidCallId the text: others' may hold
    secrets.
    """
    name = f"{type(error).__name__}."
    return f"{name} {error}" if isinstance(error, InvalidCallId) else name


class Transcript:
    """The calls of a run and its open turn; its methods return the events to be written."""

    def __init__(self, calls: Iterable[RecordedCall] = ()) -> None:
        """Start with the calls of earlier executions."""
        earlier = list(calls)
        self._calls = {one.call["id"]: one.call for one in earlier}
        self._outputs = {one.call["id"]: one.output for one in earlier if one.output is not None}
        self._failed = {one.call["id"] for one in earlier if one.is_error}
        self._cut = {one.call["id"] for one in earlier if one.is_cut}
        self._unbegun = {one.call["id"]: one.call for one in earlier if one.is_unbegun}
        self._unsettled = [one.call for one in earlier if one.output is None and not one.is_unbegun]
        self._begun: set[str] = set()  # by this execution
        self._asked: set[str] = set()
        #: Whether a recorded call that no step has begun has not begun: the agent makes its calls
        #: by steps. If it makes them by hand, nobody else knows which ones have begun.
        self._makes_steps = bool(self._unbegun)
        self._began: dict[str, float] = {}
        self._usage = Usage()
        self._takes_calls = bool(self._unbegun)  # a later turn would have settled them

    @property
    def pending(self) -> Sequence[Call]:
        """Calls of earlier executions whose outcome is not known."""
        return tuple(self._unsettled)

    def has_call(self, call_id: str) -> bool:
        return call_id in self._calls

    def is_lost(self, call_id: str) -> bool:
        """Return whether an earlier execution began the call, and its outcome is not known."""
        return any(call["id"] == call_id for call in self._unsettled)

    def call_with(self, call_id: str) -> Call | None:
        """Return the call with this id; None if none is recorded."""
        return self._calls.get(call_id)

    def await_approval(self, call_id: str) -> None:
        """Note that a person decides about the call, and that no execution has begun it."""
        self._asked.add(call_id)
        if call_id not in self._outputs:
            self._unbegun[call_id] = self._calls[call_id]
            self._unsettled = [call for call in self._unsettled if call["id"] != call_id]
            self._takes_calls = True

    def is_unbegun(self, call_id: str) -> bool:
        """Return whether the call is of an earlier execution, and is known not to have begun."""
        return call_id in self._unbegun

    def begin(self, call_id: str, *, is_step: bool = True) -> None:
        """Note that a recorded call is made now.

        A further call does not settle it, if it is made once more: it has a result of its own.
        """
        self._makes_steps |= is_step
        self._unbegun.pop(call_id, None)
        self._unsettled = [call for call in self._unsettled if call["id"] != call_id]
        self._begun.add(call_id)
        self._began[call_id] = time.monotonic()

    def interrupt(self, call_ids: Iterable[str]) -> None:
        """Note that these calls have asked, and that the next execution makes them once more.

        One that has asked for its own approval had begun, too: the reply alone does not undo that.
        """
        asking = set(call_ids)
        self._begun -= asking
        self._asked -= asking

    def left_unbegun(self, *, waits: bool) -> list[str]:
        """Return the calls that the next execution can begin, if this one ends in order.

        Without those that a person is asked about: they begin by the reply. An agent that makes its
        calls by hand may be within one of them, except where it has the run wait: then there are
        none.
        """
        if not waits and not self._makes_steps:
            return []
        made = self._outputs.keys() | self._begun | self._asked
        made |= {call["id"] for call in self._unsettled}
        return [call_id for call_id in self._calls if call_id not in made]

    def output_of(self, call_id: str) -> str | None:
        """Return the output that is recorded for the call; None without one."""
        return self._outputs.get(call_id)

    def sub_run_results(
        self, delegated: Iterable[Call], read: ReadOutputs = lambda _: {}
    ) -> list[SubRunResult] | None:
        """Return the results of calls of `delegate`; None if some have none yet.

        `read` returns outputs of which the record has a part, whole, as far as there is room.
        """
        ids_ = [call["id"] for call in delegated]
        if any(id_ not in self._outputs for id_ in ids_):
            return None
        cut = [id_ for id_ in ids_ if id_ in self._cut]
        outputs = {**self._outputs, **(whole := read(cut) if cut else {})}
        return [
            SubRunResult(outputs[id_], id_ in self._failed, id_ in cut and id_ not in whole)
            for id_ in ids_
        ]

    def add_usage(self, usage: Usage) -> None:
        """Count a model call: the next turn has its usage."""
        self._usage += usage

    def turn(self, text: str) -> MessageCompleted:
        """Finish the turn whose text this is."""
        usage, self._usage, self._takes_calls = self._usage, Usage(), False
        return MessageCompleted(str(ids.new_id()), clean(text), usage)

    def begins_turn(self, text: str) -> bool:
        """Return whether a call after this text belongs to a new turn."""
        return bool(text) or not self._takes_calls

    def call(self, call: Call, text: str) -> list[Event]:
        """Begin a call after the open turn's text."""
        events: list[Event] = []
        if self.begins_turn(text):
            events.append(self.turn(text))
        self._takes_calls = True
        self._calls[call["id"]] = call
        self._began[call["id"]] = time.monotonic()
        return [*events, types.ToolCallRequested(call["id"], call["name"], call["arguments"])]

    def result(
        self, call_id: str, output: str, *, is_error: bool, characters: int | None = None
    ) -> list[Event]:
        """End a call; a second result of a call is dropped.

        `characters` is the length of the whole output if this is a part of it.

        Raises:
            ValueError: there is no such call.
        """
        if call_id not in self._calls:
            raise ValueError(f"There is no call {call_id!r}: tool_call comes first.")
        if call_id in self._outputs:
            return []
        began = self._began.get(call_id)
        duration_ms = 0 if began is None else round((time.monotonic() - began) * 1000)
        name = self._calls[call_id]["name"]
        ended = ToolResult(call_id, name, output, is_error, duration_ms, None, characters)
        self.end(ended)
        return [ended]

    def end(self, ended: ToolResult) -> None:
        """Note that the call has this result."""
        call_id = ended.tool_call_id
        self._outputs[call_id] = ended.output
        if ended.characters is not None:
            self._cut.add(call_id)
        if ended.is_error:
            self._failed.add(call_id)
        self._unbegun.pop(call_id, None)
        self._takes_calls = bool(self._unbegun)
        self._unsettled = [call for call in self._unsettled if call["id"] != call_id]
        self._began.pop(call_id, None)

    def settle(self, *, is_turn_over: bool = True) -> list[Event]:
        """End the calls whose outcome is not known: a new turn or a further call begins.

        If the turn is over, calls that have not begun are not made any more.
        """
        ended = [(call["id"], UNKNOWN_OUTCOME) for call in self.pending]
        if is_turn_over:
            ended += [(call_id, NOT_MADE) for call_id in self._unbegun]
        return [
            event
            for call_id, output in ended
            for event in self.result(call_id, output, is_error=True)
        ]

    def close(self) -> list[Event]:
        """End all calls without a result but for those in progress: the run ends.

        At a new turn it would be too early: calls that are recorded may still be made.
        """
        left = [id_ for id_ in self._began if id_ not in self._begun | self._unbegun.keys()]
        results = [self.result(call_id, NO_RESULT, is_error=True) for call_id in left]
        return [*self.settle(), *(event for events in results for event in events)]

    def cut_off(self) -> list[Event]:
        """End all calls without a result, in their order: the run lands at a limit."""
        unbegun = {*self._unbegun, *self.left_unbegun(waits=False)}
        lost = {call["id"] for call in self._unsettled}
        ended: list[Event] = []
        for call_id in [id_ for id_ in self._calls if id_ not in self._outputs]:
            output = NOT_MADE_AT_LIMIT if call_id in unbegun else CUT_OFF
            output = UNKNOWN_OUTCOME if call_id in lost else output
            ended += self.result(call_id, output, is_error=True)
        return ended


def call_of(name: Any, arguments: Any, call_id: str | None) -> Call:
    """Check a call of an agent; without an id it gets one.

    Raises:
        ValueError: InvalidCallId among them.
    """
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME_CHARACTERS:
        raise ValueError(f"The name of a tool has 1 to {MAX_NAME_CHARACTERS} characters.")
    if call_id is None:
        call_id = f"call_{ids.new_id().hex}"
    elif not isinstance(call_id, str) or not CALL_ID.fullmatch(call_id):
        raise InvalidCallId("The id of a call has 1 to 128 printable ASCII characters.")
    return Call(id=call_id, name=clean(name), arguments=json.loads(json_of(arguments)))


def delegated_calls(tasks: Sequence[DelegatedTask]) -> list[Call]:
    """Return the calls of `delegate` by which an agent gives out these tasks.

    Raises:
        ValueError: a task or an id has another form, or an id is given twice.
    """
    if not 1 <= len(tasks) <= MAX_TASKS:
        raise ValueError(f"Give out 1 to {MAX_TASKS} tasks at once.")
    calls = []
    for one in tasks:
        persona, task = one["persona"], one["task"]
        if not isinstance(persona, str) or not isinstance(task, str):
            raise ValueError("A persona and a task are strings.")
        if not 1 <= len(task) <= MAX_TASK_CHARACTERS:
            raise ValueError(f"A task has 1 to {MAX_TASK_CHARACTERS:,} characters.")
        arguments = {"persona": persona, "task": task}
        calls.append(call_of(DELEGATE, arguments, one["tool_call_id"]))
    if len({call["id"] for call in calls}) < len(calls):
        raise ValueError("Each task has a tool_call_id of its own.")
    return calls


def json_of(value: Any) -> str:
    """Return the value as JSON text that Postgres can store, with U+FFFD where it cannot.

    Raises:
        ValueError: it is not JSON, or nested too deep.
    """
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"Not JSON: {error}") from None
    if is_too_deep(value):
        raise ValueError("Nested too deep.")
    return storable_json(text)


def output_json(returned: Any, said: str) -> str:
    """Return the JSON text of an object that an agent has returned, as it has `said` it, if it has.

    Agents stream it with spaces, as Python writes it, or without, as models do, and with other
    characters than ASCII as they are or escaped. Values that JSON does not have, such as NaN, are
    written as Python writes them, and the nesting may be of any depth: the reader of the text
    reports the property that is not JSON.

    Raises:
        ValueError: it cannot be written as JSON.
    """
    try:
        spaced = json.dumps(returned, ensure_ascii=False, default=_refuse)
        dense = (",", ":")
        compact = json.dumps(returned, ensure_ascii=False, default=_refuse, separators=dense)
    except _NotJSON as error:
        raise _no_output(returned, f"Object of type {error} is not JSON serializable") from error
    except MemoryError:  # of the worker: another one may have enough
        raise
    except Exception as error:
        # Its text may hold secrets, as a class of the agent may have raised it: it is for the log.
        log.exception("what the agent returned cannot be written as JSON")
        raise _no_output(returned, type(error).__name__) from error
    spaced, compact = storable_json(spaced), storable_json(compact)
    spellings = [spaced, compact, _escaped(spaced), _escaped(compact)]
    fitting = [text for text in spellings if len(text.encode()) <= MAX_OUTPUT_BYTES] or spellings
    return next((text for text in fitting if text.startswith(said)), fitting[0])


class _NotJSON(Exception):
    """A value that JSON does not have; the text is the name of its type."""


def _refuse(value: Any) -> None:
    raise _NotJSON(type(value).__name__)


def _no_output(returned: Any, why: str) -> ValueError:
    what = (
        "an object that is not JSON"
        if isinstance(returned, dict)
        else f"no object, which its output schema requires, but {type(returned).__name__}"
    )
    return ValueError(f"The agent returned {what}: {why}.")


def _escaped(text: str) -> str:
    """Return JSON text with escapes of the characters that are not ASCII."""
    # Of the text, not of the value: what cannot be stored has been replaced in it.
    return _NOT_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], text)


def storable_json(text: str) -> str:
    """Return JSON text with U+FFFD for what Postgres cannot store, NUL as an escape, too."""
    return _ESCAPED_NUL.sub("\\1\ufffd", clean(text))
