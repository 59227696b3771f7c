"""The scripted model: every step of the contract, and where a script resumes."""

import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from arkloop.shared.events.usage import Usage
from arkloop.worker.contract.messages import (
    AssistantMessage,
    Chunk,
    TextDelta,
    ThinkingDelta,
    ToolCall,
    ToolMessage,
    TurnEnd,
)
from arkloop.worker.contract.outcomes import CancelRequested, ProviderError
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.providers.scripted_provider import ScriptedProvider
from tests.web_server import ROOT
from tests.worker.providers.fake_vendor import written
from tests.worker.recorded_run import request

pytestmark = pytest.mark.processes


def play(*steps: Any, stop: StopSignal | None = None, **fields: Any) -> list[Chunk]:
    """Return all chunks of one turn of a script."""
    asked = request(json.dumps({"script": steps}), **fields)
    return list(ScriptedProvider().stream(asked, stop or StopSignal()))


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks if isinstance(chunk, TextDelta))


def end_of(chunks: list[Chunk]) -> TurnEnd:
    assert isinstance(chunks[-1], TurnEnd)
    return chunks[-1]


@pytest.mark.parametrize("message", ["Hello you", '{"a": 1}', "[1]", "{", "", "  two  spaces "])
def test_a_message_that_is_no_script_is_repeated(message: str) -> None:
    """The answer is `You said: …`, one word a delta."""
    chunks = list(ScriptedProvider().stream(request("before", message), StopSignal()))

    assert f"You said: {message}" == text_of(chunks)
    assert all(len(chunk.text.split()) <= 1 for chunk in chunks[:-1])
    assert "stop" == end_of(chunks).stop_reason


def test_without_a_message_there_is_an_answer_too() -> None:
    """The persona's prompt alone is enough."""
    assert "You said: " == text_of(list(ScriptedProvider().stream(request(), StopSignal())))


def test_arguments_may_be_streamed_in_pieces() -> None:
    """`piece` is the number of characters; what is streamed counts as output."""
    calls = [{"tool": "f", "args": {"x": [1, 2]}}, {"tool": "g"}]

    chunks = play({"tools": calls, "piece": 5})

    assert all(len(chunk.text) <= 5 for chunk in chunks[:-1])
    made = end_of(chunks).tool_calls
    assert list(made) == [
        replace(call, arguments=json.loads(call.arguments)) for call in written(chunks)
    ]
    usage = end_of(chunks).usage
    assert usage is not None and 4 == usage.output_tokens  # {"x": and [1, and 2]} and {}
    assert [] == written(play({"tools": calls}))
    with pytest.raises(ProviderError, match="step 1: `piece` must be at least 1"):
        play({"tool": "f", "piece": 0})


def test_say_streams_word_by_word() -> None:
    """Each word with the space after it; nothing is lost between them."""
    chunks = play({"say": " one  two\nthree "})

    assert [" ", "one  ", "two\n", "three "] == [chunk.text for chunk in chunks[:-1]]


def test_say_can_be_repeated() -> None:
    """Each delta is the whole text, as often as requested."""
    assert [TextDelta("a b ")] * 3 == play({"say": "a b ", "repeat": 3})[:-1]


def test_think_streams_reasoning() -> None:
    """The same as reasoning, which is no part of the text."""
    chunks = play({"think": "let me"}, {"say": "ok"})

    assert [ThinkingDelta("let "), ThinkingDelta("me"), TextDelta("ok")] == chunks[:-1]


def test_count_numbers_and_dates_its_deltas() -> None:
    """Each delta is `<i>:<unix time> `, paced by the clock."""
    began = time.time()
    chunks = play({"count": 5, "delay_ms": 20})
    numbers, times = zip(*(word.split(":") for word in text_of(chunks).split()), strict=True)

    assert ["0", "1", "2", "3", "4"] == list(numbers)
    assert all(len(moment.partition(".")[2]) == 4 for moment in times)
    assert 0.07 < float(times[-1]) - began < 30
    assert all(chunk.text.endswith(" ") for chunk in chunks[:-1])


def test_delays_lie_between_the_words() -> None:
    """The model waits `delay_ms` after each of them."""
    began = time.monotonic()
    play({"say": "a b c", "delay_ms": 20})

    assert time.monotonic() - began >= 0.06


def test_a_tool_step_ends_the_turn() -> None:
    """A turn ends with the tool call of a step, whose `args` are optional."""
    chunks = play({"say": "so "}, {"tool": "calculator", "args": {"expression": "1"}}, {"say": "x"})

    assert "so " == text_of(chunks)
    call = ToolCall("call_1_1", "calculator", {"expression": "1"})
    assert ("tool_calls", (call,)) == (end_of(chunks).stop_reason, end_of(chunks).tool_calls)
    assert (ToolCall("call_1_1", "x", {}),) == end_of(play({"tool": "x"})).tool_calls


def test_several_tools_are_called_at_once() -> None:
    """Tools of one step are called in the order of the list, each with an id of its own."""
    calls = end_of(play({"tools": [{"tool": "a"}, {"tool": "b", "args": {"x": 1}}]})).tool_calls

    assert (ToolCall("call_1_1", "a", {}), ToolCall("call_1_2", "b", {"x": 1})) == calls


def test_the_turn_says_where_the_script_goes_on() -> None:
    """The turn decides where a script resumes, and a script that ends with a tool says `done`."""
    steps = ({"say": "a"}, {"tool": "t"}, {"say": "b"}, {"tool": "t"})

    assert ["a", "b", "done", "done"] == [text_of(play(*steps, turn=turn)) for turn in range(4)]
    assert "call_2_1" == end_of(play(*steps, turn=1)).tool_calls[0].id
    assert "done" == text_of(play())


def test_the_last_message_of_the_user_has_the_script() -> None:
    """The script is in the user's last message, whatever followed it in this run."""
    script = json.dumps({"script": [{"tool": "t"}, {"say": "b"}]})
    asked = request(
        "old",
        script,
        AssistantMessage("", (ToolCall("c", "t", {}),)),
        ToolMessage("c", "t", '{"script": []}'),
        turn=1,
    )

    assert "b" == text_of(list(ScriptedProvider().stream(asked, StopSignal())))


def test_one_word_is_one_token() -> None:
    """Input counts words of all messages and the prompt; output counts text and reasoning."""
    asked = request(
        '{"script": [{"say": "a b"}, {"think": "c"}]}',
        AssistantMessage("d e"),
        ToolMessage("id", "tool", "f"),
        system_prompt="be brief",
    )
    chunks = list(ScriptedProvider().stream(asked, StopSignal()))

    assert Usage(input_tokens=2 + 6 + 2 + 1, output_tokens=3) == end_of(chunks).usage


def test_usage_can_be_told() -> None:
    """The step's numbers instead of counted words; what is not given is zero."""
    usage = {"input_tokens": 1000, "output_tokens": 500, "cache_read_tokens": 400}

    told = end_of(play({"usage": usage}, {"say": "a"})).usage
    assert Usage(input_tokens=1000, output_tokens=500, cache_read_tokens=400) == told
    assert Usage(input_tokens=1) == end_of(play({"usage": {"input_tokens": 1}})).usage


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("rate_limited", "provider.rate_limited"),
        ("overloaded", "provider.overloaded"),
        ("timeout", "provider.timeout"),
        ("invalid_request", "provider.invalid_request"),
        ("disconnect", "provider.connection"),
    ],
)
def test_errors_come_for_the_first_tries(name: str, code: str) -> None:
    """The first `times` tries fail, the next one does not."""
    step = {"error": name, "times": 2}
    for number in (1, 2):
        with pytest.raises(ProviderError) as raised:
            play(step, {"say": "ok"}, try_number=number)
        assert code == raised.value.code
    assert "ok" == text_of(play(step, {"say": "ok"}, try_number=3))


@pytest.mark.parametrize(("name", "streamed"), [("disconnect", ["a"]), ("overloaded", [])])
def test_only_a_disconnect_comes_after_the_text_before_it(name: str, streamed: list[str]) -> None:
    """Only a disconnect happens after text; every other failure comes before the first word."""
    asked = request(json.dumps({"script": [{"say": "a"}, {"error": name}]}))
    seen: list[str] = []
    with pytest.raises(ProviderError):
        for chunk in ScriptedProvider().stream(asked, StopSignal()):
            seen.append(chunk.text)

    assert streamed == seen


@pytest.mark.parametrize(
    "step",
    [
        {"hang": 60},
        {"say": "a b c", "delay_ms": 60_000},
        {"count": 3, "delay_ms": 60_000},
        {"say": "x", "repeat": 10**9},
    ],
)
def test_a_stop_is_felt_in_every_step(step: dict[str, Any]) -> None:
    """A stop takes effect at once in every step of a script."""
    stop = StopSignal()
    threading.Timer(0.05, stop.set, [CancelRequested()]).start()
    began = time.monotonic()

    with pytest.raises(CancelRequested):
        for _ in ScriptedProvider().stream(request(json.dumps({"script": [step]})), stop):
            pass

    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    "script",
    [
        5,
        [5],
        [{}],
        [{"fly": 1}],
        [{"say": 1}],
        [{"say": "a", "tool": "b"}],
        [{"say": "a", "delay_ms": -1}],
        [{"say": "a", "repeat": True}],
        [{"count": "x"}],
        [{"error": "bored"}],
        [{"tools": [1]}],
        [{"tools": [{"args": {}}]}],
        [{"tools": 1}],
        [{"usage": {"input_tokens": -1}}],
        [{"usage": {"input_tokens": "1"}}],
        [{"usage": 1}],
        [{"count": 1.5}],
        [{"say": "a", "repeat": 1.5}],
        [{"say": "", "repeat": 1_000_000_000}],
        [{"exit_worker": True, "attempts": "x"}],
        [{"hang": 1e309}],
    ],
)
def test_a_wrong_script_is_a_request_that_cannot_be_carried_out(script: Any) -> None:
    """The error is `provider.invalid_request` with what is wrong, never an internal one."""
    text = json.dumps({"script": script})
    with pytest.raises(ProviderError) as raised:
        list(ScriptedProvider().stream(request(text), StopSignal()))

    assert "provider.invalid_request" == raised.value.code
    assert str(raised.value).startswith("Invalid script: ")


def test_exit_worker_needs_faults() -> None:
    """A script in production cannot end the process."""
    with pytest.raises(ProviderError, match="ARKLOOP_FAULTS"):
        play({"exit_worker": True})


@pytest.mark.parametrize(
    ("step", "attempt", "dies"),
    [
        ({"exit_worker": True}, 9, True),
        ({"exit_worker": True, "attempts": 1}, 1, True),
        ({"exit_worker": True, "attempts": 1}, 2, False),
    ],
)
def test_exit_worker_ends_the_process(step: dict[str, Any], attempt: int, dies: bool) -> None:
    """`exit_worker` ends the process like a crash, for the first attempts or always."""
    program = (
        "import json, sys\n"
        "from tests.worker.recorded_run import request\n"
        "from arkloop.worker.providers.scripted_provider import ScriptedProvider\n"
        "from arkloop.worker.contract.stop_signal import StopSignal\n"
        "asked = request(sys.argv[1], attempt=int(sys.argv[2]))\n"
        "list(ScriptedProvider(faults=True).stream(asked, StopSignal()))\n"
    )
    script = json.dumps({"script": [step]})
    ended = subprocess.run(
        [sys.executable, "-c", program, script, str(attempt)], cwd=ROOT, check=False
    )

    assert (-signal.SIGKILL if dies else 0) == ended.returncode
