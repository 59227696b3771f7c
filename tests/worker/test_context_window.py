"""What is left out when a thread is longer than the model's context."""

from hypothesis import given
from hypothesis import strategies as st

from worker.context_window import fit, tokens_of, tokens_of_frame
from worker.messages import (
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
    """Nothing is left out without need."""
    assert (THREAD, 0) == fit(THREAD, [], ALL)


def test_the_oldest_turn_goes_as_a_whole() -> None:
    """A person's message with its answer, its calls and their results."""
    assert (THREAD[4:], 4) == fit(THREAD, [], ALL - 1)


def test_the_last_question_stays() -> None:
    """Even where it does not fit: the provider says that then."""
    assert (THREAD[6:], 6) == fit(THREAD, [], 0)


def test_a_long_run_forgets_its_first_turns() -> None:
    """After everything that was said before it; its last turn stays."""
    turns: list[list[Message]] = [[CALLED, ToolMessage("c1", "t", str(i) * 300)] for i in range(5)]
    room = tokens_of(THREAD[6]) + sum(tokens_of(m) for turn in turns[-2:] for m in turn)

    messages, dropped = fit(THREAD, turns, room)

    assert [THREAD[6], *turns[3], *turns[4]] == messages
    assert 6 + 6 == dropped


def test_prompt_and_tools_take_room_too() -> None:
    """They are sent with every call."""
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
    """Whatever the room; the rest is a tail of the conversation, in its order."""
    history: list[Message] = []
    for text, answers in said:
        history += [UserMessage(text), *(message for answer in answers for message in answer)]

    messages, dropped = fit(history, own, room)

    assert len(history) + 2 * len(own) == len(messages) + dropped
    for before, message in zip([None, *messages], messages, strict=False):
        if isinstance(message, ToolMessage):
            assert isinstance(before, AssistantMessage) and before.tool_calls
    if history and not own:
        assert history[dropped:] == messages
