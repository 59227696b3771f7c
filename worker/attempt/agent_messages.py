"""The conversation as a custom agent reads it: plain dictionaries, as they are sent as JSON."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from arkloop.shared.agents.agent_run import UNKNOWN_OUTCOME, Call
from arkloop.shared.agents.agent_run import Message as AgentMessage
from arkloop.shared.agents.transcript import RecordedCall
from arkloop.worker.agent.conversation import Turn
from arkloop.worker.contract.attachments import Attachment, Part
from arkloop.worker.contract.messages import AssistantMessage, Message, ToolMessage


def shown(messages: Iterable[Message]) -> list[AgentMessage]:
    """Return the messages without what only a vendor can read."""
    return [_shown(message) for message in messages]


def turns_shown(turns: Sequence[Turn], unbegun: Collection[str] = ()) -> list[AgentMessage]:
    """Return the finished turns; calls without a result have an unknown outcome.

    Those that are `unbegun` have none.
    """
    found: list[Message] = []
    failed: set[str] = set()
    for turn in turns:
        failed |= turn.failed
        for call in turn.calls:
            if call.id not in turn.results:
                unknown = ToolMessage(call.id, call.name, UNKNOWN_OUTCOME)
                turn.results[call.id] = unknown
                failed.add(call.id)
        found.extend(turn.messages())
    open_calls = {call_id for turn in turns for call_id in turn.results if call_id in unbegun}
    messages = [one for one in shown(found) if one.get("tool_call_id") not in open_calls]
    for message in messages:
        if message.get("tool_call_id") in failed:
            message["is_error"] = True
    return messages


def calls_of(turns: Iterable[Turn], unbegun: Collection[str] = ()) -> list[RecordedCall]:
    """Return the calls of the turns; `unbegun` are those that have not begun."""
    return [
        RecordedCall(
            Call(id=call.id, name=call.name, arguments=call.arguments),
            turn.results[call.id].content if call.id in turn.results else None,
            call.id in turn.failed,
            call.id in unbegun and call.id not in turn.results,
            call.id in turn.results and turn.results[call.id].characters is not None,
        )
        for turn in turns
        for call in turn.calls
    ]


def _shown(message: Message) -> AgentMessage:
    if isinstance(message, AssistantMessage):
        one = AgentMessage(role="assistant", content=message.content)
        if message.tool_calls:
            one["tool_calls"] = [
                Call(id=call.id, name=call.name, arguments=call.arguments)
                for call in message.tool_calls
            ]
        return one
    if isinstance(message, ToolMessage):
        one = AgentMessage(role="tool", content=message.content)
        one["tool_call_id"], one["name"] = message.tool_call_id, message.name
    else:
        one = AgentMessage(role="user", content=message.content)
    if files := _files(message.parts):
        one["files"] = files
    return one


def _files(parts: Iterable[Part]) -> list[dict[str, Any]]:
    names = ("kind", "file_id", "url", "name", "media_type", "size")
    return [
        {name: value for name in names if (value := getattr(part, name))}
        for part in parts
        if isinstance(part, Attachment)
    ]
