"""The request that Anthropic's Messages receive."""

import re
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any

from arkloop.worker.contract.attachments import IMAGE, Attachment, Part, TextPart
from arkloop.worker.contract.messages import (
    AssistantMessage,
    Message,
    ModelRequest,
    ToolCall,
    ToolMessage,
    ToolSpec,
    UserMessage,
)
from arkloop.worker.contract.outcomes import ProviderError
from arkloop.worker.providers import output_modes
from arkloop.worker.providers.partial_calls import portable_arguments, portable_name
from arkloop.worker.providers.property_names import with_accepted_names
from arkloop.worker.providers.sdk_client import with_extra
from arkloop.worker.providers.unique_call_ids import with_unique_ids

#: The API demands a limit. Where neither persona nor route has one it is the model's own, by the
#: beginning of its name; the first that fits. Since Claude 4.6 all models have the same:
#: https://platform.claude.com/docs/en/about-claude/models/overview.
_MOST_OUTPUT_TOKENS = (
    ("claude-3-5-", 8_192),
    ("claude-3-7-", 64_000),
    ("claude-3-", 4_096),
    ("claude-opus-4-0", 32_000),
    ("claude-opus-4-1", 32_000),
    ("claude-opus-4-2025", 32_000),
    ("claude-4-opus", 32_000),  # gateways put the version first
    ("claude-4.1-opus", 32_000),
    ("claude-4", 64_000),
    ("claude-2", 4_096),
    ("claude-instant-", 4_096),
    ("claude-", 128_000),
    ("", 4_096),
)
#: The most of other models before Claude 4.6. At Bedrock it is enough for all: it deducts the limit
#: from the account's tokens per minute until the response ends, and others count what was written.
_MOST_OF_OLDER = 64_000
_AT_BEDROCK = "anthropic.claude-"
#: Even where our count says that less is left of the context: it counts rather too much.
_LEAST_OUTPUT_TOKENS = 1_024
#: Models that think with a budget of tokens; all others do so with an effort.
_BY_BUDGET = re.compile(r"(?:.*[./])?claude-(?:3|(?:opus|sonnet|haiku)-4(?:$|:|[-.@](?:0|1|5|20)))")
#: Models that do not think where a tool must be called: those with a budget, and the first with an
#: effort. Later ones do both, or refuse the choice of the tool itself.
_NEVER_BOTH = re.compile(rf"{_BY_BUDGET.pattern}|(?:.*[./])?claude-(?:opus|sonnet)-4[-.][67]")
_LEAST_BUDGET = 1_024
#: The part of `max_tokens` that is the budget of an effort, as OpenRouter has it.
_SHARES = {"minimal": 0.1, "low": 0.2, "medium": 0.5, "high": 0.8, "xhigh": 0.95, "max": 0.95}
_TOOL_CHOICES = {"required": "any"}
_CACHED = {"cache_control": {"type": "ephemeral"}}
#: The API requires a user's message first and last, and no empty one.
_NOTHING_SAID = "(nothing)"
_GO_ON = "(go on)"
_NOT_FOR_USE = "No longer available."


def max_tokens(request: ModelRequest) -> int:
    """Return the limit that is sent: the request's, else the model's own."""
    if request.max_output_tokens is not None:
        return request.max_output_tokens
    name = request.model[max(request.model.find("claude-"), 0) :]  # platforms put more before it
    known = next(most for start, most in _MOST_OUTPUT_TOKENS if name.startswith(start))
    if _BY_BUDGET.match(name) or _AT_BEDROCK in request.model:
        known = min(known, _MOST_OF_OLDER)
    if request.remaining_tokens is None:
        return known
    # Older models refuse a limit that does not fit into their context beside the input.
    return min(known, max(request.remaining_tokens, _LEAST_OUTPUT_TOKENS))


def arguments(request: ModelRequest) -> dict[str, Any]:
    """Return the arguments of `messages.create`."""
    sent: dict[str, Any] = {
        "model": request.model,
        "messages": _messages(request.messages),
        "max_tokens": max_tokens(request),
        "stream": True,
    }
    if request.system_prompt.strip():
        sent["system"] = request.system_prompt
    if tools := tools_of(request):
        sent["tools"] = [
            {
                "name": tool.name,
                "description": tool.description,
                "input_schema": dict(tool.parameters),
            }
            for tool in map(with_accepted_names, tools)
        ]
    extra = request.settings.get("extra_body", {})
    if may_cache(request):
        _cache(sent, has_own_mark="cache_control" in extra)
    elif tools and not request.tools:
        sent["tool_choice"] = {"type": "none"}
    choice = _tool_choice(request)
    is_forced = choice.get("tool_choice", {}).get("type") in ("any", "tool")
    never_thinks = is_forced and _NEVER_BOTH.match(request.model) is not None
    thinking = _thinking(request, never_thinks=never_thinks)
    settings = {**_sampling(request), **choice, **thinking}
    if _is_of_another_type(settings.get("thinking"), extra.get("thinking")):
        del settings["thinking"]
    if (schema := request.settings.get(output_modes.SETTING)) is not None:
        undated = output_modes.without_draft(schema)
        output = {"format": {"type": "json_schema", "schema": undated}}
        settings = with_extra(settings, {"output_config": output})
    body = sent["extra_body"] = with_extra(settings, extra)
    if never_thinks and _type_of(body.get("thinking")) == "adaptive":
        del body["thinking"]  # the effort counts all the same, and later calls think
    return sent


def _sampling(request: ModelRequest) -> dict[str, Any]:
    """Return the settings that the SDK has no argument for, since newer models have none of them.

    Those refuse it with "`temperature` is deprecated for this model.", which leaves it out.
    """
    names = {"temperature": "temperature", "top_p": "top_p", "stop": "stop_sequences"}
    return {names[name]: value for name, value in request.settings.items() if name in names}


def _tool_choice(request: ModelRequest) -> dict[str, Any]:
    if not request.tools:
        return {}
    match request.settings.get("tool_choice"):
        case {"name": name}:
            choice: dict[str, Any] = {"type": "tool", "name": portable_name(name)}
        case str(kind):
            choice = {"type": _TOOL_CHOICES.get(kind, kind)}
        case _:
            choice = {"type": "auto"}
    is_parallel = request.settings.get("parallel_tool_calls")
    if is_parallel is not None and choice["type"] != "none":
        choice["disable_parallel_tool_use"] = not is_parallel
    return {} if choice == {"type": "auto"} else {"tool_choice": choice}


def _thinking(request: ModelRequest, *, never_thinks: bool) -> dict[str, Any]:
    """Return how much the model thinks, in the form that its generation accepts.

    Models since Claude 4.6 decide themselves, by an effort; from Opus 4.7 on they refuse a budget.
    Earlier ones accept a budget alone: at least 1,024 tokens, and less than `max_tokens`.
    Source: `ThinkingConfigParam` and `OutputConfigParam` of the SDK, and
    https://platform.claude.com/docs/en/build-with-claude/thinking.

    `never_thinks`: the model refuses to do so in this call, since a tool is forced.

    Raises:
        ProviderError: the output limit leaves no room for a budget, or no later call could think
            either: with a budget each turn begins with a thought, and the final tool is forced in
            every call.
    """
    effort = request.settings.get("reasoning_effort")
    if effort is None:
        return {}
    if effort == "none":
        return {"thinking": {"type": "disabled"}}
    has_budget = _BY_BUDGET.match(request.model) is not None
    if never_thinks and (has_budget or _forces_final(request)):
        why = "The model does not think where a tool must be called."
        raise ProviderError("invalid_request", why, refused_setting="reasoning_effort")
    if not has_budget:
        effort = "low" if effort == "minimal" else effort
        return {
            # From Opus 4.7 on the thinking is omitted by default, and paid for all the same.
            "thinking": {"type": "adaptive", "display": "summarized"},
            "output_config": {"effort": effort},
        }
    most = max_tokens(request)
    budget = max(_LEAST_BUDGET, int(most * _SHARES[effort]))
    if budget >= most:
        why = f"An output limit of {most} tokens leaves no room to think."
        raise ProviderError("invalid_request", why, refused_setting="reasoning_effort")
    return {"thinking": {"type": "enabled", "budget_tokens": budget}}


def _forces_final(request: ModelRequest) -> bool:
    return bool(request.settings.get("tool_choice") == {"name": output_modes.FINAL_TOOL})


def _type_of(thinking: Any) -> Any:
    return thinking.get("type") if isinstance(thinking, dict) else None


def _is_of_another_type(ours: Any, extra: Any) -> bool:
    """Return whether `extra_body` has another type of thinking: each has fields of its own."""
    if not isinstance(ours, dict) or not isinstance(extra, dict):
        return False
    return bool(extra.get("type", ours["type"]) != ours["type"])


def may_cache(request: ModelRequest) -> bool:
    """Return whether the vendor is asked to cache what is sent: only steps are sent again."""
    return bool(request.tools) and request.may_cache


def tools_of(request: ModelRequest) -> Sequence[ToolSpec]:
    """Return the request's tools, else those that the conversation calls: the API requires them."""
    if request.tools:
        return request.tools
    turns = [message for message in request.messages if isinstance(message, AssistantMessage)]
    names = dict.fromkeys(portable_name(call.name) for turn in turns for call in turn.tool_calls)
    return [ToolSpec(name, _NOT_FOR_USE, {"type": "object"}) for name in names]


def _cache(arguments: dict[str, Any], *, has_own_mark: bool) -> None:
    """Have the vendor cache what is sent: with tools, the next step likely sends it again.

    From each mark the vendor looks back about 20 blocks for what it has, and a step with ten calls
    adds that many. So the end of the step before is marked as well. Four marks are allowed, one of
    which may be that of an `extra_body`.
    """
    arguments["tools"][-1] |= _CACHED
    if "system" in arguments:
        arguments["system"] = [{"type": "text", "text": arguments["system"], **_CACHED}]
    # The turns alternate, and a request ends with one of the user's.
    for message in arguments["messages"][::-2][: 1 if has_own_mark else 2]:
        message["content"][-1] |= _CACHED


def _messages(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """Convert messages to turns without empty blocks, with the user first and last."""
    merged: list[dict[str, Any]] = []
    for message in with_unique_ids(messages):
        role = "assistant" if isinstance(message, AssistantMessage) else "user"
        blocks = _blocks(message)
        if not blocks:
            continue
        if not merged and role == "assistant":
            merged.append({"role": "user", "content": [_text(_NOTHING_SAID)]})
        if merged and merged[-1]["role"] == role:
            merged[-1]["content"] += blocks
        else:
            merged.append({"role": role, "content": blocks})
    if merged and merged[-1]["role"] == "assistant":
        merged.append({"role": "user", "content": [_text(_GO_ON)]})
    return merged or [{"role": "user", "content": [_text(_NOTHING_SAID)]}]


def _blocks(message: Message) -> list[dict[str, Any]]:
    match message:
        case UserMessage(content, parts):
            return list(map(_block, filter(_is_filled, parts or (TextPart(content),))))
        case AssistantMessage(content, calls, state):
            blocks: list[dict[str, Any]] = []
            for part in [*((state and state.turn) or ()), len(content)]:
                if isinstance(part, int):
                    said, content = content[:part], content[part:]
                    blocks += [_text(said)] if said.strip() else []
                else:
                    blocks.append(part)
            for call, thoughts in zip_longest(calls, (state and state.calls) or ()):
                blocks += [*(thoughts or ()), _tool_use(call)]
            return blocks
        case ToolMessage(tool_call_id=call_id, content=content, parts=parts):
            result: dict[str, Any] = {"type": "tool_result", "tool_use_id": call_id}
            if parts:
                filled = filter(_is_filled, (TextPart(content), *parts))
                return [{**result, "content": list(map(_block, filled))}]
            return [{**result, "content": content} if content else result]


def _is_filled(part: Part) -> bool:
    return isinstance(part, Attachment) or bool(part.text.strip())


def _block(part: Part) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return _text(part.text)
    source = (
        {"type": "base64", "media_type": part.media_type, "data": part.data}
        if part.url is None
        else {"type": "url", "url": part.url}
    )
    return {"type": "image" if part.kind == IMAGE else "document", "source": source}


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _tool_use(call: ToolCall) -> dict[str, Any]:
    return {
        "type": "tool_use",
        "id": call.id,
        "name": portable_name(call.name),
        "input": portable_arguments(call.arguments),
    }
