"""The requests that a run makes when there is little money left."""

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal

import pytest

from arkloop.worker.agent.affordable import affordable, shortest_of
from arkloop.worker.contract.messages import (
    AssistantMessage,
    Message,
    ModelRequest,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from arkloop.worker.providers import token_counts
from tests.worker.recorded_run import request

NOTE = "\n[The rest is omitted: it cannot be paid any more.]"


def cost(of: ModelRequest) -> Decimal:
    """Return the cost at 1 USD a token, 2 for one that may be cached."""
    used = token_counts.worst_case(of, writes_cache=of.may_cache)
    return Decimal(used.input_tokens + used.cache_write_tokens + used.output_tokens)


def turn(number: int, size: int) -> list[Message]:
    call = ToolCall(f"c{number}", "t", {})
    return [AssistantMessage("", (call,)), ToolMessage(call.id, "t", str(number) * size)]


STEP = request("?", max_output_tokens=4000)
INPUT = int(cost(STEP)) - 4000  # half of it, if it is not cached
CONVERSATION: Sequence[Message] = [
    UserMessage("a" * 5000),
    AssistantMessage("b" * 5000),
    UserMessage("?" * 100),
    *turn(1, 5000),
    *turn(2, 5000),
]
LAST = request(
    *CONVERSATION,
    UserMessage("now"),
    max_output_tokens=4000,
    answer_only=True,
    may_cache=False,
)


@pytest.mark.parametrize(
    ("most", "output", "may_cache"),
    [
        (INPUT + 4000, 4000, True),
        (INPUT + 3000, 2999, True),
        (INPUT + 512, 512, True),
        (INPUT + 511, INPUT // 2 + 510, False),
        (INPUT // 2 + 512, 512, False),
        (INPUT // 2 + 511, None, None),
        (-1, None, None),
    ],
)
def test_a_step_has_less_output_then_no_cache(
    most: int, output: int | None, may_cache: bool | None
) -> None:
    """It keeps its whole conversation and output enough for a call; else there is no step."""
    found = affordable(STEP, cost, Decimal(most))

    if output is None:
        assert found is None
        return
    assert found is not None
    assert cost(found) <= most
    assert (output, may_cache) == (found.max_output_tokens, found.may_cache)
    assert STEP.messages == found.messages


def shown(found: ModelRequest | None) -> str:
    """Return the first character and the length of each text, results by their number."""
    assert found is not None
    texts = [(m.content.removesuffix(NOTE) or "-") for m in found.messages]
    return " ".join(f"{text[0]}{len(text)}" for text in texts)


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (30_000, "a5000 b5000 ?100 -1 15000 -1 25000 n3"),
        (22_000, "a5000 b5000 ?100 -1 15000 -1 25000 n3"),
        (21_100, "a5000 b5000 ?100 -1 15000 -1 24096 n3"),
        (17_000, "a5000 b5000 ?100 -1 15000 -1 2256 n3"),
        (12_000, "?100 -1 15000 -1 2256 n3"),
        (2_000, "?100 -1 2256 n3"),
        (900, "?100 -1 2256 n3"),
    ],
)
def test_a_last_call_has_less_of_the_conversation(most: int, expected: str) -> None:
    """First less of the newest results, then none of the oldest messages; the question stays."""
    found = affordable(LAST, cost, Decimal(most))

    assert expected == shown(found)
    assert found is not None
    assert cost(found) <= most


@pytest.mark.parametrize(("turns", "expected"), [(2, "?100 -1 2256 F10 n3"), (0, "F10 n3")])
def test_a_message_that_steers_the_run_is_not_its_question(turns: int, expected: str) -> None:
    """The last call keeps what its turns are about; a message in front of them is a question."""
    steered = [*CONVERSATION, UserMessage("F" * 10), UserMessage("now")]
    last = replace(LAST, messages=steered, turn=turns)

    assert expected == shown(affordable(last, cost, Decimal(900)))
    assert ("?100 n3" if turns else "F10 n3") == shown(shortest_of(last))


def test_there_is_a_last_call_for_a_token() -> None:
    """There is none only if not even one token can be paid."""
    least = affordable(LAST, cost, Decimal(2000))
    assert least is not None
    tokens = cost(least) - (least.max_output_tokens or 0)

    one = affordable(LAST, cost, tokens + 1)

    assert one is not None
    assert 1 == one.max_output_tokens
    assert affordable(LAST, cost, tokens) is None


def test_the_shortest_last_call_has_the_question_alone() -> None:
    """That is what must be set aside for it at least."""
    assert "?100 n3" == shown(shortest_of(LAST))
    nothing_said = request(UserMessage("now"), answer_only=True)
    assert "n3" == shown(shortest_of(nothing_said))


def test_what_a_vendor_has_counted_is_not_counted_by_bytes() -> None:
    """Its count holds for the messages that it has seen, and not for fewer of them."""
    counted = request(
        *CONVERSATION,
        UserMessage("now"),
        max_output_tokens=4000,
        answer_only=True,
        may_cache=False,
        counted_tokens=3000,
        counted_messages=5,
    )

    assert "a5000 b5000 ?100 -1 15000 -1 25000 n3" == shown(
        affordable(counted, cost, Decimal(10_000))
    )
    assert "a5000 b5000 ?100 -1 15000 -1 2256 n3" == shown(affordable(counted, cost, Decimal(4600)))
    shorter = affordable(counted, cost, Decimal(3000))
    assert shorter is not None
    assert 0 == shorter.counted_messages
