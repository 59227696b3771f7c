"""The messages to and from a model, the same for every provider."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from arkloop.shared import portable_schema
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.events.types import ProviderState
from arkloop.shared.events.usage import Usage
from arkloop.worker.contract.attachments import Attachment, Part

#: Of the state that a vendor requires back with a turn: more than a step's reasoning has, also
#: encrypted (OpenAI refuses function calls without it; some models reason for 128,000 tokens).
MAX_STATE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ToolCall:
    """`arguments` is an object, or the model's text where that was not a JSON object.

    `text` is what the model wrote as the arguments of the final tool; empty for other tools.
    """

    id: str
    name: str
    arguments: Any
    text: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class UserMessage:
    """A person's message; `parts`, if there are any, are what `content` describes."""

    content: str
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True, slots=True)
class Steered:
    """A message of a user that has reached a run while it was active; `seq` is its event's."""

    seq: int
    message_id: str
    message: UserMessage


@dataclass(frozen=True, slots=True)
class AssistantMessage:
    """An assistant's message; its provider requires `state`, with `calls` of `tool_calls`, back."""

    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    state: ProviderState | None = None


@dataclass(frozen=True, slots=True)
class ToolMessage:
    """The result of one call, in the order of the calls; `parts` are the images in it.

    `seq` is that of its event, `characters` what the whole output has if `content` is cut.
    """

    tool_call_id: str
    name: str
    content: str
    parts: tuple[Part, ...] = ()
    seq: int = field(default=0, compare=False)
    characters: int | None = field(default=None, compare=False)


Message = UserMessage | AssistantMessage | ToolMessage


def attachments_of(message: Message) -> list[Attachment]:
    """Return the images and files of a message."""
    if isinstance(message, AssistantMessage):
        return []
    return [part for part in message.parts if isinstance(part, Attachment)]


def has_state(messages: Iterable[Message]) -> bool:
    """Return whether any message carries state for its vendor."""
    return any(isinstance(m, AssistantMessage) and m.state is not None for m in messages)


def strip_provider_state(
    messages: Iterable[Message], *, keep_for: Route | None = None
) -> list[Message]:
    """Strip the state that a model would reject because another one signed it."""
    return [
        replace(message, state=None)
        if isinstance(message, AssistantMessage)
        and message.state is not None
        and (keep_for is None or not _is_of(message.state, keep_for))
        else message
        for message in messages
    ]


def _is_of(state: ProviderState, route: Route) -> bool:
    given = (state.provider, state.model, state.server)
    return given == (route.provider, route.model, route.server)


def state_text(state: ProviderState | None) -> str:
    """Render about what is sent of the state, for counting; empty without a state."""
    if state is None:
        return ""
    return json.dumps([state.turn, *state.calls], ensure_ascii=False)


@dataclass(frozen=True)
class ToolSpec:
    """The description of a tool for the model; `parameters` is a JSON Schema of an object."""

    name: str
    description: str
    parameters: Mapping[str, Any]

    @cached_property
    def portable(self) -> "ToolSpec":
        """The description that every vendor accepts, for the model alone; kept, as `text` is."""
        parameters = portable_schema.portable(self.parameters)
        return self if parameters is self.parameters else replace(self, parameters=parameters)

    @cached_property
    def text(self) -> str:
        """About what is sent of it, for counting; kept, since each request is counted."""
        return self.name + self.description + json.dumps(dict(self.parameters))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """The request of one model call.

    `turn` counts the assistant turns already in this run, `attempt` the run's
    claims, `try_number` the tries of this call, both from 1. `remaining_tokens` is
    about what the model's context leaves for the answer; None: nobody knows.
    `settings` are those of `shared/catalog/model_settings.py`.
    `taken_call_ids` are those of the run's earlier turns. `stream_arguments`:
    the arguments of calls are shown while the model writes them.
    `answer_only`: the model must not call `tools`; the last message asks for its answer, or, with
    `is_summary`, for a summary of the messages before it.
    `may_cache`: the vendor may be asked to cache the prompt, which costs more once. A vendor has
    counted at most `counted_tokens` for everything up to the first `counted_messages` messages.
    `on_send`, if there is one, is called with each body that is sent, before it is.
    """

    model: str
    system_prompt: str
    messages: Sequence[Message]
    tools: Sequence[ToolSpec] = ()
    max_output_tokens: int | None = None
    remaining_tokens: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    turn: int = 0
    taken_call_ids: frozenset[str] = frozenset()
    stream_arguments: bool = False
    attempt: int = 1
    try_number: int = 1
    answer_only: bool = False
    is_summary: bool = False
    may_cache: bool = True
    counted_tokens: int = 0
    counted_messages: int = 0
    on_send: Callable[[bytes], None] | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class TextDelta:
    text: str


@dataclass(frozen=True, slots=True)
class ThinkingDelta:
    text: str


@dataclass(frozen=True, slots=True)
class CallDelta:
    """A piece of a tool call's arguments; empty where only the call's id or name has arrived.

    `position` counts the turn's calls from 0; None: the call is not one of `TurnEnd`. `id` and
    `name` are what has arrived of them.
    """

    text: str
    position: int | None = None
    id: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class UsageUpdate:
    """The call's usage as reported by the provider until now, replacing earlier reports.

    A call that breaks off is counted by it.
    """

    usage: Usage


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """The last chunk of a stream; `usage` is None where the provider reported none, or not all.

    `state` and `call_states`, one for each call or none at all, are what the provider requires back
    with the turn: see `ProviderState`. `is_context_full`: `length`, of the context and not of the
    output. `final_answer`: the part of the text that the provider marks as the answer, if it marks
    any.
    """

    stop_reason: str
    tool_calls: tuple[ToolCall, ...] = ()
    usage: Usage | None = None
    state: Any = None
    call_states: tuple[Any, ...] = ()
    is_context_full: bool = False
    final_answer: str = ""


Chunk = TextDelta | ThinkingDelta | CallDelta | UsageUpdate | TurnEnd
