"""The part of a conversation that is sent: what follows the truncation point."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arkloop.shared.events.types import ContextCompacted
from arkloop.worker.agent.context_window import (
    LEAST_RESULT_TOKENS,
    cut_results,
    entries_from,
    in_force,
    start_of,
    tokens_of,
    tokens_of_frame,
)
from arkloop.worker.agent.conversation import Entry
from arkloop.worker.contract.messages import (
    AssistantMessage,
    ToolCall,
    ToolMessage,
    ToolSpec,
    UserMessage,
)
from tests.worker.recorded_run import history_of

CALLED = AssistantMessage("let me see", (ToolCall("c1", "t", {"x": 1}),))
RESULT = ToolMessage("c1", "t", "out " * 50)
THREAD = history_of(
    UserMessage("first"),
    CALLED,
    RESULT,
    AssistantMessage("one"),
    UserMessage("second"),
    AssistantMessage("two"),
    UserMessage("third"),
).entries


def point(window: int, position: int, seq: int = 0, results: int | None = None) -> ContextCompacted:
    return ContextCompacted(
        window_tokens=window, upto_position=position, upto_seq=seq, result_tokens=results
    )


def kept(position: int, seq: int = 0) -> list[int]:
    """Return the positions of what is kept after this point."""
    context = point(0, position, seq)
    return [e.position for e in entries_from(THREAD, start_of(THREAD, context))]


def test_what_follows_the_point_is_kept() -> None:
    """All of it without a point; with one in the middle of an answer the question comes first."""
    assert [1, 2, 3, 4, 5, 6] == kept(0)
    assert [4, 5, 6] == kept(4)
    assert [4, 5, 6] == kept(5)
    assert [1, 3, 4, 5, 6] == kept(2, 1)
    assert [6] == kept(6) == kept(6, 1) == kept(900)


def test_a_point_is_for_one_size_of_a_context_and_smaller_ones() -> None:
    """The furthest of those that cut off no more than a larger model has room for."""
    contexts = {0: point(0, 9), 4_000: point(4_000, 30, 2, 7), 128_000: point(128_000, 20, 1, 8)}

    assert point(1_000_000, 9) == in_force(contexts, 1_000_000)
    assert contexts[128_000] == in_force(contexts, 128_000)
    assert point(64_000, 20, 1) == in_force(contexts, 64_000)
    assert contexts[4_000] == in_force(contexts, 4_000)
    assert point(2_000, 30, 2) == in_force(contexts, 2_000)
    assert contexts[0] == in_force(contexts, 0)
    assert point(5, 0) == in_force({}, 5)


def test_prompt_and_tools_take_room_too() -> None:
    """The prompt and the tools take room as well, since they are sent with every call."""
    tool = ToolSpec("t", "d" * 300, {"type": "object", "properties": {}})

    assert 100 == tokens_of_frame("p" * 300, [])
    assert tokens_of_frame("p" * 300, [tool]) > 200


def test_text_of_many_bytes_has_many_tokens() -> None:
    """Counted in bytes: a character of Chinese is about a token."""
    assert tokens_of(UserMessage("漢" * 30)) >= 30


_results = st.lists(st.integers(0, 3_000), min_size=1, max_size=6)


@given(_results, st.integers(0, 3_000), st.integers(0, 5_000))
def test_the_results_of_a_turn_fit_together(sizes: list[int], each: int, together: int) -> None:
    """Small ones stay whole, the others share what is left, and keep their beginning and end."""
    turn = [CALLED, *(ToolMessage(str(i), "t", "word " * n) for i, n in enumerate(sizes))]

    called, *results = cut_results(Entry(3, 2, turn), each, together)

    assert called == CALLED
    least = len(sizes) * 2 * (LEAST_RESULT_TOKENS + 64)
    assert sum(map(tokens_of, results)) <= max(together, least)
    for before, after in zip(turn[1:], results, strict=True):
        assert isinstance(after, ToolMessage)
        assert before == after or (
            after.content.startswith("word ")
            and after.content.endswith("word ")
            and f"of {len(before.content)} characters are omitted" in after.content
        )
    assert results == cut_results(Entry(3, 2, turn), each, together)[1:]


@pytest.mark.parametrize(
    "content", ["7" * 20_000, "word " * 100 + "7" * 20_000, "7" * 900 + "世" * 9000]
)
@pytest.mark.parametrize("room", [-1000, 0, 100, 700, 5000])
def test_a_cut_result_has_the_size_that_it_may_have(content: str, room: int) -> None:
    """A cut result fits its size whatever its text, and never becomes empty."""
    entry = Entry(3, 2, [CALLED, ToolMessage("c1", "t", content)])
    [_, cut] = cut_results(entry, 10_000, room)

    assert LEAST_RESULT_TOKENS // 2 < tokens_of(cut) <= max(room, 200)


@pytest.mark.parametrize(
    ("text", "most_bytes_per_token"), [("8675309 " * 100, 1.4), ("deadbeef42 " * 100, 2.4)]
)
def test_digits_are_counted_one_by_one(text: str, most_bytes_per_token: float) -> None:
    """Digits are counted one by one, as the least efficient tokenizers do."""
    assert tokens_of(UserMessage(text)) >= len(text) / most_bytes_per_token


@pytest.mark.parametrize("characters", [None, 900_000])
def test_a_cut_result_says_how_to_read_the_rest(characters: int | None) -> None:
    """The note has the place of its event, and counts what was cut from the event, too."""
    result = ToolMessage("c1", "t", "word " * 2_000, seq=34, characters=characters)

    [_, cut] = cut_results(Entry(12, 30, [CALLED, result]), 1_000, 5_000)
    [_, small] = cut_results(Entry(12, 30, [CALLED, RESULT]), 1_000, 5_000)

    omitted = (characters or 10_000) - cut.content.count("word") * 5
    note = f"{omitted} of {characters or 10_000} characters are omitted here; read_result with the"
    head, found, tail = re.split(r"\n\[(.*?)\]\n", cut.content)
    assert abs(omitted - int(found.split()[0])) < 10
    assert note.partition(" of ")[2] in found
    assert found.endswith('with the id "12.34" returns them')
    assert 2 * len(tail) < len(head) < 4 * len(tail)
    assert RESULT == small
