"""The thinking of Gemini and Gemma in the content of chat completions, flagged by Google."""

from typing import Any

import pytest

from arkloop.worker.contract.messages import Chunk, TextDelta, ThinkingDelta
from tests.worker.providers.fake_vendor import delta, openai_stream, raw
from tests.worker.providers.openai_chat_stream import answered
from tests.worker.providers.two_routes import HELLO, outcome

FLAG = {"extra_content": {"google": {"thought": True}}}
CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "calculator", "arguments": '{"expression": "6*7"}'},
    "extra_content": {"google": {"thought_signature": "c2ln"}},
}


def thought(text: str) -> dict[str, Any]:
    return delta(content=text, **FLAG)


def texts(chunks: list[Chunk]) -> tuple[str, str]:
    """Return what was thought and what was answered."""
    return (
        "".join(chunk.text for chunk in chunks if isinstance(chunk, ThinkingDelta)),
        "".join(chunk.text for chunk in chunks if isinstance(chunk, TextDelta)),
    )


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        (
            [thought("<thought>Plan"), thought(" more."), delta(content="</thought>Yes.")],
            ("Plan more.", "Yes."),
        ),
        (
            [thought("<thought>Plan"), thought(" more.</thought>"), delta(content="Yes.")],
            ("Plan more.", "Yes."),
        ),
        # One chunk for all, as in a response that is not streamed
        ([thought("<thought>Plan.</thought>Yes.")], ("Plan.", "Yes.")),
        # A word of the thinking
        (
            [
                thought("<thought>The tag"),
                thought(" </thought> ends"),
                delta(content="</thought>It"),
            ],
            ("The tag </thought> ends", "It"),
        ),
        # A flag without tags
        ([thought("Plan "), thought("more."), delta(content="Yes.")], ("Plan more.", "Yes.")),
        # More thinking later
        (
            [
                *(thought("<thought>Plan"), delta(content="</thought>Yes. ")),
                *(thought("<thought>Check"), delta(content="</thought>Blue.")),
            ],
            ("PlanCheck", "Yes. Blue."),
        ),
        # The last piece of the thinking is the first one of the answer.
        ([thought("<thought>Plan"), thought(" more.</thought>Yes.")], ("Plan more.", "Yes.")),
        (
            [
                *(thought("<thought>Plan"), thought(" more.</thought>Yes,"), thought(" it")),
                delta(content=" is."),
            ],
            ("Plan more.", "Yes, it is."),
        ),
        (
            [
                *(thought("<thought>Plan.</thought>Yes. "), thought("<thought>Check")),
                delta(content="</thought>Blue."),
            ],
            ("Plan.Check", "Yes. Blue."),
        ),
        # White space around the tags
        (
            [thought("\n<thought>Plan."), delta(content="\n</thought>Yes.")],
            ("Plan.", "Yes."),
        ),
        ([thought("<thought>Plan.</thought>\n"), delta(content="Yes.")], ("Plan.", "Yes.")),
        # An empty chunk between both
        (
            [thought("<thought>Plan"), delta(content=""), delta(content="</thought>Yes.")],
            ("Plan", "Yes."),
        ),
    ],
)
def test_flagged_content_is_thinking(
    chunks: list[dict[str, Any]], expected: tuple[str, str]
) -> None:
    """The tags that Google puts around it are part of neither."""
    assert expected == texts(answered(*chunks, delta(finish="stop")))


@pytest.mark.parametrize(
    "chunks",
    [
        [delta(content="<thought>is a tag, "), delta(content="</thought> ends it.")],
        [
            *(thought("<thought>Plan"), delta(content="</thought><thought>is a tag, ")),
            delta(content="</thought> ends it."),
        ],
    ],
    ids=["without thinking", "after thinking"],
)
def test_an_answer_may_contain_the_tags(chunks: list[dict[str, Any]]) -> None:
    """Tags without the flag are text, but for the one that ends flagged content."""
    _, said = texts(answered(*chunks, delta(finish="stop")))

    assert "<thought>is a tag, </thought> ends it." == said


@pytest.mark.parametrize("extra", [None, 5, "x", {"google": None}, {"google": {"thought": False}}])
def test_other_extra_content_flags_nothing(extra: Any) -> None:
    """Content is text unless Google's flag is set."""
    chunks = answered(delta(content="Yes.", extra_content=extra), delta(finish="stop"))

    assert ("", "Yes.") == texts(chunks)


def test_an_answer_that_begins_in_a_flagged_piece_is_that_of_the_run() -> None:
    """The text behind the last end tag is the answer, and no thinking."""
    found = outcome(
        [
            raw(
                openai_stream(
                    thought("<thought>Hm"), thought(".</thought>Yes."), delta(finish="stop")
                )
            )
        ]
    )

    assert ("Yes.", ["Hm", "."]) == (found.answer.content, found.context.thoughts)


def test_thinking_is_not_sent_back_as_content() -> None:
    """The turn with its call goes back with the signature, and without the thinking."""
    calling = raw(
        openai_stream(
            thought("<thought>Plan"),
            delta(content="</thought>", tool_calls=[CALL]),
            delta(finish="stop"),
        )
    )
    found = outcome([calling, HELLO])

    assert (["Plan"], ["Hello."]) == (found.context.thoughts, found.context.streamed)
    [turn] = [m for m in found.bodies[1]["messages"] if m["role"] == "assistant"]
    assert turn == {"role": "assistant", "content": None, "tool_calls": [CALL]}
