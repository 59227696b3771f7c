"""The messages that are omitted when a thread is longer than the model's context."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.agent.context_window import LEAST_RESULT_TOKENS, Fitted, fit, tokens_of, tokens_of_frame
from worker.contract.messages import (
    AssistantMessage,
    Message,
    ToolCall,
    ToolMessage,
    ToolSpec,
    UserMessage,
)

CALLED = AssistantMessage("let me see", (ToolCall("c1", "t", {"x": 1}),))
RESULT = ToolMessage("c1", "t", "out " * 50)
THREAD = [
    UserMessage("first " * 100),
    CALLED,
    RESULT,
    AssistantMessage("one"),
    UserMessage("second"),
    AssistantMessage("two"),
    UserMessage("third"),
]
ALL = sum(map(tokens_of, THREAD))


def test_what_fits_is_sent_as_it_is() -> None:
    """A conversation that fits is sent unchanged."""
    assert Fitted(THREAD) == fit(THREAD, [], ALL)


def test_the_oldest_turn_goes_as_a_whole() -> None:
    """A person's message with its answer, its calls and their results."""
    assert Fitted(THREAD[4:], 4) == fit(THREAD, [], ALL - 1)


def test_the_last_question_stays() -> None:
    """The last question is kept even if it does not fit, so that the provider reports that."""
    assert Fitted(THREAD[6:], 6) == fit(THREAD, [], 0)


def test_a_long_run_forgets_its_first_turns() -> None:
    """After everything that was said before it; its last turn stays."""
    turns: list[list[Message]] = [[CALLED, ToolMessage("c1", "t", str(i) * 300)] for i in range(5)]
    room = tokens_of(THREAD[6]) + sum(tokens_of(m) for turn in turns[-2:] for m in turn)

    found = fit(THREAD, turns, room)

    assert [THREAD[6], *turns[3], *turns[4]] == found.messages
    assert (6 + 6, 0) == (found.dropped, found.shortened)


def test_prompt_and_tools_take_room_too() -> None:
    """The prompt and the tools take room as well, since they are sent with every call."""
    tool = ToolSpec("t", "d" * 300, {"type": "object", "properties": {}})

    assert 100 == tokens_of_frame("p" * 300, [])
    assert tokens_of_frame("p" * 300, [tool]) > 200


def test_text_of_many_bytes_has_many_tokens() -> None:
    """Counted in bytes: a character of Chinese is about a token."""
    assert tokens_of(UserMessage("漢" * 30)) >= 30


_answers = st.lists(
    st.sampled_from([[AssistantMessage("a")], [CALLED, RESULT], [CALLED, RESULT, CALLED, RESULT]]),
    max_size=3,
)
_threads = st.lists(st.tuples(st.text(max_size=30), _answers), max_size=8)


@given(_threads, st.lists(st.just([CALLED, RESULT]), max_size=6), st.integers(0, 2000))
def test_no_result_ever_lacks_its_call(
    said: list[tuple[str, list[list[Message]]]], own: list[list[Message]], room: int
) -> None:
    """Every result has its call, and the rest is a tail of the conversation in its order, whatever
    the room.
    """
    history: list[Message] = []
    for text, answers in said:
        history += [UserMessage(text), *(message for answer in answers for message in answer)]

    found = fit(history, own, room)
    messages, dropped = found.messages, found.dropped

    assert len(history) + 2 * len(own) == len(messages) + dropped
    for before, message in zip([None, *messages], messages, strict=False):
        if isinstance(message, ToolMessage):
            assert isinstance(before, AssistantMessage) and before.tool_calls
    if history and not own and isinstance(history[-1], UserMessage):
        assert history[dropped:] == messages


def test_answers_to_the_last_question_may_go_and_the_question_stays() -> None:
    """A run that failed has left its turns behind it, and another one tries again."""
    called = [CALLED, ToolMessage("c1", "t", "x" * 30_000)]
    history = [UserMessage("old"), UserMessage("question"), *called, *called, *THREAD[1:3]]

    found = fit(history, [], 500)

    assert [UserMessage("question"), *THREAD[1:3]] == found.messages
    assert 5 == found.dropped


def test_results_that_do_not_fit_are_cut_in_what_is_sent() -> None:
    """The large ones; each says so, and what was stored is not touched."""
    large = ToolMessage("c2", "t", "word " * 10_000)
    turn = [CALLED, RESULT, large]

    found = fit([UserMessage("question")], [[CALLED, large], turn], 1000)

    question, called, small, cut = found.messages
    assert [UserMessage("question"), CALLED, RESULT] == [question, called, small]
    assert cut.content.startswith("word word ")
    assert cut.content.endswith("of 50000 characters; the rest does not fit in the context]")
    assert sum(map(tokens_of, found.messages)) <= 1000
    assert (2, 1) == (found.dropped, found.shortened)
    assert 50_000 == len(large.content)


@pytest.mark.parametrize(
    "content", ["7" * 20_000, "word " * 100 + "7" * 20_000, "7" * 900 + "世" * 9000]
)
@pytest.mark.parametrize("room", [-1000, 0, 100, 700, 5000])
def test_a_cut_result_has_the_size_that_it_may_have(content: str, room: int) -> None:
    """A cut result fits its size whatever its text, and never becomes empty."""
    [_, _, cut] = fit(
        [UserMessage("q")], [[CALLED, ToolMessage("c1", "t", content)]], room
    ).messages

    assert LEAST_RESULT_TOKENS // 2 < tokens_of(cut) <= max(room, 200)


@pytest.mark.parametrize(
    ("text", "most_bytes_per_token"), [("8675309 " * 100, 1.4), ("deadbeef42 " * 100, 2.4)]
)
def test_digits_are_counted_one_by_one(text: str, most_bytes_per_token: float) -> None:
    """Digits are counted one by one, as the least efficient tokenizers do."""
    assert tokens_of(UserMessage(text)) >= len(text) / most_bytes_per_token
