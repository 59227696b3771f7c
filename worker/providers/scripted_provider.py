"""A deterministic model that plays a script: for demos, tests, benchmarks and chaos runs.

If the last user message is a JSON object with `script`, its steps are played;
otherwise it answers `You said: <message>`. One word is one token.
`docs/reference/scripted-provider.md` lists the steps.
"""

import json
import os
import re
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from arkloop.shared.catalog import model_settings
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.events.usage import TOKEN_FIELDS, Usage
from arkloop.shared.security.egress import Policy
from arkloop.shared.threads import earlier_lines
from arkloop.worker.contract.messages import (
    AssistantMessage,
    CallDelta,
    Chunk,
    Message,
    ModelRequest,
    TextDelta,
    ThinkingDelta,
    ToolCall,
    ToolMessage,
    TurnEnd,
    UserMessage,
    attachments_of,
)
from arkloop.worker.contract.outcomes import ProviderError, TooLarge
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.providers import output_modes, scripted_output, scripted_request
from arkloop.worker.providers.output_modes import REJECTED, OutputMode

Step = dict[str, Any]

_WORD = re.compile(r"\S+\s*|\s+")
_STEPS = (
    *("say", "count", "think", "tool", "tools", "error", "hang", "usage", "exit_worker"),
    *("settings", "describe", "find", "output"),
)
_NUMBERS = {
    "delay_ms": int | float,
    "hang": int | float,
    "repeat": int,
    "count": int,
    "times": int,
    "attempts": int,
    "piece": int,
    "invalid": int,
}
_MAX_NUMBER = 10**9
#: What a script without a last word ends with.
_DONE: Step = {"say": "done"}
_ERRORS = {
    **{kind: kind for kind in ("rate_limited", "overloaded", "timeout", "invalid_request")},
    "disconnect": "connection",
    "too_large": "invalid_request",
}


def build(route: Route, *, faults: bool, egress: Policy | None) -> "ScriptedProvider":
    return ScriptedProvider(faults=faults)


class ScriptedProvider:
    settings = model_settings.NAMES | {output_modes.SETTING}

    def __init__(self, *, faults: bool = False) -> None:
        self._faults = faults

    def output_mode(self, schema: Mapping[str, Any], *, has_tools: bool) -> OutputMode:
        return OutputMode.NATIVE

    def stream(self, request: ModelRequest, stop: StopSignal) -> Iterator[Chunk]:
        if request.on_send is not None:
            request.on_send(_body(request))
        steps = _steps_of_turn(request)
        for step in steps:
            if step.get("error") not in (None, "disconnect"):
                _fail(step, request)
            _refuse_settings(step, request)
        calls: tuple[ToolCall, ...] = ()
        usage: Usage | None = None
        words = 0
        for step in steps:
            stop.check()
            if "tool" in step or "tools" in step:
                calls = _tool_calls(step, request.turn)
                yield from self._write_arguments(calls, step, stop)
                words += _output_words(step, request)
            elif "usage" in step:
                usage = _usage(step["usage"])
            else:
                for chunk in self._play(step, request, stop):
                    words += len(chunk.text.split())
                    yield chunk
        if usage is None:
            usage = Usage(input_tokens=_input_words(request), output_tokens=words)
        if request.answer_only:
            calls = ()
        yield TurnEnd("tool_calls" if calls else "stop", calls, usage)

    def estimate(self, request: ModelRequest, output: str) -> Usage:
        return Usage(
            input_tokens=_input_words(request),
            output_tokens=len(output.split()),
            source="estimated",
        )

    def worst_case(self, request: ModelRequest) -> Usage:
        """Return all the words of the turn, or the last of its `usage` steps if that is more."""
        try:
            steps = _steps_of_turn(request)
            told = [_usage(step["usage"]) for step in steps if "usage" in step][-1:]
        except ProviderError:
            return Usage()  # a wrong script is refused before its first word
        counted = Usage(
            input_tokens=_input_words(request),
            output_tokens=sum(_output_words(step, request) for step in steps),
        )
        most = {
            name: max(getattr(usage, name) for usage in (counted, *told)) for name in TOKEN_FIELDS
        }
        return Usage(**most)

    def close(self) -> None:
        pass

    def _play(
        self, step: Step, request: ModelRequest, stop: StopSignal
    ) -> Iterator[TextDelta | ThinkingDelta]:
        delay = step.get("delay_ms", 0) / 1000
        if "say" in step and "repeat" in step:
            for _ in range(step["repeat"]):
                yield TextDelta(step["say"])
                stop.wait(delay) if delay else stop.check()
        elif "say" in step or "think" in step:
            kind = TextDelta if "say" in step else ThinkingDelta
            for word in _WORD.findall(step["say" if "say" in step else "think"]):
                yield kind(word)
                stop.wait(delay) if delay else stop.check()
        elif "settings" in step:
            yield TextDelta(_settings_text(request))
        elif "describe" in step:
            yield TextDelta(scripted_request.described(request))
        elif "find" in step:
            yield TextDelta(scripted_request.found(request, step["find"]))
        elif "count" in step:
            start = time.monotonic()
            for i in range(step["count"]):
                stop.wait(max(0.0, start + i * delay - time.monotonic()))
                yield TextDelta(f"{i}:{time.time():.4f} ")
        elif "hang" in step:
            stop.wait(step["hang"])
        elif "error" in step:
            _fail(step, request)
        elif "exit_worker" in step:
            self._exit_worker(step, request)

    def _write_arguments(
        self, calls: tuple[ToolCall, ...], step: Step, stop: StopSignal
    ) -> Iterator[CallDelta]:
        for position, call in enumerate(calls if "piece" in step else ()):
            text = json.dumps(call.arguments)
            for start in range(0, len(text), step["piece"]):
                yield CallDelta(text[start : start + step["piece"]], position, call.id, call.name)
                stop.wait(step.get("delay_ms", 0) / 1000)

    def _exit_worker(self, step: Step, request: ModelRequest) -> None:
        if not self._faults:
            raise _bad("`exit_worker` works only with ARKLOOP_FAULTS=1")
        if request.attempt <= step.get("attempts", request.attempt):
            os.kill(os.getpid(), signal.SIGKILL)


def _body(request: ModelRequest) -> bytes:
    """Return what a vendor would have received, about as chat completions have it."""
    body: dict[str, Any] = {
        "model": request.model,
        "messages": [
            {"role": "system", "content": request.system_prompt},
            *map(_as_sent, request.messages),
        ],
    }
    if request.tools:
        body["tools"] = [
            {"name": t.name, "description": t.description, "parameters": dict(t.parameters)}
            for t in request.tools
        ]
    body |= {**request.settings, "max_tokens": request.max_output_tokens}
    # A script may call a tool with what no vendor would send, such as half a character.
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"), default=str)
    return text.encode(errors="replace")


def _as_sent(message: Message) -> dict[str, Any]:
    match message:
        case AssistantMessage(content, calls):
            called = [{"id": c.id, "name": c.name, "arguments": c.arguments} for c in calls]
            return {"role": "assistant", "content": content, "tool_calls": called}
        case ToolMessage(tool_call_id=call_id, content=content):
            shown: dict[str, Any] = {"role": "tool", "tool_call_id": call_id, "content": content}
        case UserMessage(content):
            shown = {"role": "user", "content": content}
    if found := attachments_of(message):
        shown["attachments"] = [part.data or part.url or part.file_id for part in found]
    return shown


def _steps_of_turn(request: ModelRequest) -> list[Step]:
    """Return the steps of this turn, up to and including the next tool step."""
    turns: list[list[Step]] = [[]]
    for step in _script(request):
        turns[-1].append(step)
        if "tool" in step or "tools" in step:
            turns.append([])
    if not turns[-1]:
        turns[-1] = [_DONE]
    steps = turns[min(request.turn, len(turns) - 1)]
    if request.answer_only and all("tool" in step or "tools" in step for step in steps):
        steps = [_DONE]
    has_schema, last = scripted_output.schema_of(request) is not None, _last_of(request)
    if has_schema:
        steps = [{"output": None} if step is _DONE else step for step in steps]
    said = f"You said: {earlier_lines.without(scripted_request.text_of(last))}"
    repairs = request.turn - len(turns) + 1
    return [
        scripted_output.answer(step, request, said, repairs) if "output" in step else step
        for step in steps
    ]


def _last_of(request: ModelRequest) -> UserMessage:
    """Return the last message of the user; some messages are the service's own."""
    messages = request.messages[:-1] if request.answer_only else request.messages
    spoken = [m for m in messages if isinstance(m, UserMessage)]
    return [UserMessage(""), *(m for m in spoken if not m.content.startswith(REJECTED))][-1]


def _script(request: ModelRequest) -> list[Step]:
    if request.is_summary:
        spoken = [m for m in request.messages if isinstance(m, UserMessage)]
        return [{"say": "\n".join(_remembered(spoken)) or "Nothing to remember."}]
    message = _last_of(request)
    last = earlier_lines.without(scripted_request.text_of(message))
    try:
        document = json.loads(last)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or "script" not in document:
        if scripted_output.schema_of(request) is not None:
            return [_DONE]
        attached = map(scripted_request.shown, attachments_of(message))
        return [{"say": " ".join([f"You said: {last}", *attached])}]
    script = document["script"]
    if not isinstance(script, list):
        raise _bad("`script` must be a list of steps")
    for number, step in enumerate(script, 1):
        _check(step, number)
    return script


def _remembered(spoken: Sequence[UserMessage]) -> list[str]:
    """Return what the messages say that a summary must say, and what an earlier one says."""
    texts: list[str] = []
    for message in spoken:
        kept = re.findall(r'"remember": ?"([^"]*)"|^remember: (.*)$', message.content, re.MULTILINE)
        texts += [f"remember: {in_script or in_summary}" for in_script, in_summary in kept]
    return texts


def _check(step: Any, number: int) -> None:
    kinds = [kind for kind in _STEPS if isinstance(step, dict) and kind in step]
    if len(kinds) != 1:
        raise _bad(f"step {number} must be an object with one of {', '.join(_STEPS)}")
    for name, kind in _NUMBERS.items():
        value = step.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, kind) or not 0 <= value <= _MAX_NUMBER:
            raise _bad(f"step {number}: `{name}` must be a number from 0 to {_MAX_NUMBER}")
    texts = [step[name] for name in ("say", "think", "tool", "find") if name in step]
    if not all(isinstance(text, str) for text in texts):
        raise _bad(f"step {number}: `{kinds[0]}` must be a string")
    if "repeat" in step and step.get("say") == "":
        # Nothing would ever be written, and nothing else done meanwhile.
        raise _bad(f"step {number}: a repeated `say` must not be empty")
    if step.get("piece") == 0:
        raise _bad(f"step {number}: `piece` must be at least 1")
    if "error" in step and step["error"] not in _ERRORS:
        raise _bad(f"step {number}: `error` must be one of {', '.join(_ERRORS)}")
    refused = step.get("unsupported", [])
    if not isinstance(refused, list) or not all(isinstance(name, str) for name in refused):
        raise _bad(f"step {number}: `unsupported` must be a list of names")
    calls = step.get("tools", [])
    if not isinstance(calls, list):
        raise _bad(f"step {number}: `tools` must be a list")
    for call in calls:
        if not isinstance(call, dict) or not isinstance(call.get("tool"), str):
            raise _bad(f"step {number}: each of `tools` requires a `tool`")


def _bad(message: str) -> ProviderError:
    return ProviderError("invalid_request", f"Invalid script: {message}.")


def _fail(step: Step, request: ModelRequest) -> None:
    if request.try_number <= step.get("times", 1):
        name = step["error"]
        raise ProviderError(
            _ERRORS[name],
            f"The script says: {name}.",
            retry_after=0.05 if name == "rate_limited" else None,
            too_large=TooLarge(is_per_minute=True) if name == "too_large" else None,
        )


def _settings_text(request: ModelRequest) -> str:
    return json.dumps(dict(request.settings), sort_keys=True)


def _refuse_settings(step: Step, request: ModelRequest) -> None:
    """Refuse the first of the settings that the step does not support."""
    for name in step.get("unsupported", ()):
        if name in request.settings:
            why = f"The script says: {name} is not supported."
            raise ProviderError("invalid_request", why, refused_setting=name)


def _tool_calls(step: Step, turn: int) -> tuple[ToolCall, ...]:
    calls = step.get("tools", [step])
    return tuple(
        ToolCall(f"call_{turn + 1}_{i}", call["tool"], call.get("args", {}))
        for i, call in enumerate(calls, 1)
    )


def _usage(step: Any) -> Usage:
    if not isinstance(step, dict) or not all(
        type(step.get(name, 0)) is int and step.get(name, 0) >= 0 for name in TOKEN_FIELDS
    ):
        raise _bad(f"`usage` has {', '.join(TOKEN_FIELDS)}")
    return Usage(**{name: step.get(name, 0) for name in TOKEN_FIELDS})


def _output_words(step: Step, request: ModelRequest) -> int:
    if "settings" in step:
        return len(_settings_text(request).split())
    if "describe" in step:
        return len(scripted_request.described(request).split())
    if "find" in step:
        return len(scripted_request.found(request, step["find"]).split())
    if "count" in step:
        return int(step["count"])
    if "piece" in step and ("tool" in step or "tools" in step):
        return sum(len(json.dumps(call.arguments).split()) for call in _tool_calls(step, 0))
    words = len((step.get("say") or step.get("think") or "").split())
    return words * int(step.get("repeat", 1)) if "say" in step else words


def _input_words(request: ModelRequest) -> int:
    texts = [request.system_prompt]
    for message in request.messages:
        match message:
            case UserMessage(content) | AssistantMessage(content) | ToolMessage(content=content):
                texts.append(content)
    return sum(len(text.split()) for text in texts)
