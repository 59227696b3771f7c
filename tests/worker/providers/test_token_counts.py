"""The most that a call may use: above what is reported, and above what is estimated."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from arkloop.shared.events.types import ProviderState
from arkloop.shared.events.usage import TOKEN_FIELDS, Usage
from arkloop.worker.contract.attachments import Attachment
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
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.providers import token_counts
from arkloop.worker.providers.scripted_provider import ScriptedProvider

TEXTS = st.text(max_size=60)
CALLS = st.builds(ToolCall, TEXTS, TEXTS, st.dictionaries(TEXTS, TEXTS, max_size=3) | TEXTS)
STATES = st.builds(ProviderState, TEXTS, TEXTS, st.dictionaries(TEXTS, TEXTS), st.tuples(TEXTS))
PARTS = st.lists(
    st.builds(
        Attachment,
        kind=st.sampled_from(["image", "file"]),
        url=st.none() | st.just("https://example.com/"),
        media_type=st.sampled_from(["image/png", "application/pdf", "text/plain"]),
        size=st.integers(0, 32 * 1024 * 1024),
    ),
    max_size=3,
).map(tuple)
MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(UserMessage, TEXTS, PARTS),
    st.builds(AssistantMessage, TEXTS, st.lists(CALLS, max_size=2).map(tuple), st.none() | STATES),
    st.builds(ToolMessage, TEXTS, TEXTS, TEXTS, PARTS),
)
TOOLS = st.builds(ToolSpec, TEXTS, TEXTS, st.dictionaries(TEXTS, TEXTS, max_size=3))
REQUESTS = st.builds(
    ModelRequest,
    model=st.just("m"),
    system_prompt=TEXTS,
    messages=st.lists(MESSAGES, max_size=5),
    tools=st.lists(TOOLS, max_size=3),
    max_output_tokens=st.integers(1, 50),
)


@given(request=REQUESTS, output=st.text(max_size=400))
def test_an_estimate_is_never_above_the_worst_case(request: ModelRequest, output: str) -> None:
    """An estimate is never above the worst case, whatever is sent and received."""
    estimate = token_counts.estimate(request, output)
    worst = token_counts.worst_case(request)

    assert "estimated" == estimate.source
    assert estimate.input_tokens <= worst.input_tokens
    assert estimate.output_tokens <= worst.output_tokens == request.max_output_tokens


@given(request=REQUESTS, counted=st.integers(0, 400), count=st.integers(0, 5))
def test_a_vendors_count_bounds_what_it_has_seen(
    request: ModelRequest, counted: int, count: int
) -> None:
    """What came since is counted by bytes, and the estimate stays below that."""
    seen = replace(request, counted_tokens=counted, counted_messages=count)
    added = replace(request, system_prompt="", tools=(), messages=request.messages[count:])

    by_bytes = token_counts.worst_case(request).input_tokens
    bound = token_counts.worst_case(seen).input_tokens
    if count:
        by_bytes = min(by_bytes, counted + token_counts.worst_case(added).input_tokens)
    assert by_bytes == bound
    assert token_counts.estimate(seen, "").input_tokens <= bound


@pytest.mark.parametrize(
    ("writes_cache", "settings", "written", "for_an_hour"),
    [(False, {}, 0, 0), (True, {}, 1, 0), (False, {"extra_body": {"ttl": "1h"}}, 1, 1)],
)
def test_input_is_written_to_a_cache_only_if_the_request_may_say_so(
    writes_cache: bool, settings: dict[str, Any], written: int, for_an_hour: int
) -> None:
    """Writing to a cache costs more than reading the input, above all for an hour."""
    request = ModelRequest(
        model="m", system_prompt="", messages=(), settings=settings, max_output_tokens=1
    )

    worst = token_counts.worst_case(request, writes_cache=writes_cache)

    most = worst.input_tokens
    assert most > 0
    assert (most * written, most * for_an_hour) == (
        worst.cache_write_tokens,
        worst.cache_write_1h_tokens,
    )


@given(request=REQUESTS)
def test_every_byte_that_is_sent_is_in_the_worst_case(request: ModelRequest) -> None:
    """A tokenizer that makes a token of each byte, and some for each part, stays below it."""
    tokens = len(request.system_prompt.encode()) + 4
    for message in request.messages:
        tokens += len(message.content.encode()) + 4
        if isinstance(message, AssistantMessage):
            if message.state is not None:
                parts = json.dumps([message.state.turn, *message.state.calls], ensure_ascii=False)
                tokens += len(parts.encode())
            for call in message.tool_calls:
                tokens += len((call.name + json.dumps(call.arguments)).encode()) + 8
    for tool in request.tools:
        tokens += len((tool.name + tool.description + json.dumps(tool.parameters)).encode()) + 16

    assert tokens <= token_counts.worst_case(request).input_tokens


def test_an_estimate_is_a_quarter_of_the_characters() -> None:
    """An estimate counts what is said and the tools' descriptions."""
    request = ModelRequest(model="m", system_prompt="Be brief.", messages=[UserMessage("Hi")])
    assert Usage(input_tokens=3, output_tokens=2, source="estimated") == token_counts.estimate(
        request, "12345678"
    )

    spec = ToolSpec("name", "description", {"type": "object"})
    with_tool = ModelRequest(model="m", system_prompt="", messages=[], tools=[spec])
    assert 9 == token_counts.estimate(with_tool, "").input_tokens


def test_without_a_limit_of_the_output_there_is_no_worst_case() -> None:
    """A worst case requires a limit of the output, which a reservation has to set."""
    with pytest.raises(ValueError, match="max_output_tokens"):
        token_counts.worst_case(ModelRequest(model="m", system_prompt="", messages=[]))


# ---- the scripted provider -----------------------------------------------------------

WORDS = st.text(alphabet="ab \n\t\x1c\u2003é", max_size=12)
TOLD = st.fixed_dictionaries({}, optional={name: st.integers(0, 99) for name in TOKEN_FIELDS})
STEPS: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.builds(lambda text: {"say": text}, WORDS),
    st.builds(
        lambda text, times: {"say": text, "repeat": times}, WORDS.filter(bool), st.integers(0, 4)
    ),
    st.builds(lambda text: {"think": text}, WORDS),
    st.builds(lambda times: {"count": times}, st.integers(0, 5)),
    st.builds(lambda usage: {"usage": usage}, TOLD),
    st.just({"tool": "t"}),
    st.just({"error": "disconnect"}),
)


@settings(max_examples=300)
@example(
    steps=[
        {"usage": {"input_tokens": 1, "cache_read_tokens": 1}},
        {"usage": {"input_tokens": 19, "cache_write_tokens": 19}},
    ],
    turn=0,
    try_number=1,
)
@given(steps=st.lists(STEPS, max_size=6), turn=st.integers(0, 3), try_number=st.integers(1, 2))
def test_a_script_never_uses_more_than_its_worst_case(
    steps: list[dict[str, Any]], turn: int, try_number: int
) -> None:
    """A script uses at most its worst case, whether its usage is reported or estimated after a
    break.
    """
    provider = ScriptedProvider()
    request = ModelRequest(
        model="m",
        system_prompt="be brief",
        messages=[UserMessage(json.dumps({"script": steps}))],
        turn=turn,
        try_number=try_number,
    )
    worst = provider.worst_case(request)

    streamed = ""
    used = []
    try:
        for chunk in provider.stream(request, StopSignal()):
            if hasattr(chunk, "text"):
                streamed += chunk.text
            else:
                used.append(chunk.usage)
    except ProviderError:
        pass
    used.append(provider.estimate(request, streamed))

    for usage in used:
        assert usage is not None
        assert all(getattr(usage, name) <= getattr(worst, name) for name in TOKEN_FIELDS)


def test_the_worst_case_of_a_script_is_exact() -> None:
    """Its words, repeated as often as it says, and its counting; or what it reports."""
    steps: list[dict[str, Any]] = [{"think": "a b"}, {"say": "c d ", "repeat": 3}, {"count": 4}]
    text = json.dumps({"script": steps})
    request = ModelRequest(model="m", system_prompt="", messages=[UserMessage(text)])

    assert Usage(input_tokens=len(text.split()), output_tokens=12) == ScriptedProvider().worst_case(
        request
    )


def test_a_wrong_script_costs_nothing() -> None:
    """A wrong script is refused before its first word, and costs nothing."""
    text = json.dumps({"script": [{"fly": 1}]})
    request = ModelRequest(model="m", system_prompt="", messages=[UserMessage(text)])

    assert Usage() == ScriptedProvider().worst_case(request)
