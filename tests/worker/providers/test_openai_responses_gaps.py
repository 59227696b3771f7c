"""Responses of gateways that leave out events of OpenAI's Responses API."""

import json
from collections.abc import Mapping
from itertools import chain
from typing import Any

import pytest

from arkloop.worker.contract.messages import (
    CallDelta,
    Chunk,
    TextDelta,
    ThinkingDelta,
    ToolCall,
    TurnEnd,
)
from tests.worker.providers.fake_vendor import written
from tests.worker.providers.openai_responses_calls import answered
from tests.worker.providers.openai_vendor import function_call, message, reasoning

PARIS = {"city": "Paris"}
WHOLE = json.dumps(PARIS)
CALL = function_call("1", "weather", PARIS)
BARE = {**CALL, "arguments": ""}
EMPTY = {**CALL, "arguments": "{}"}
MESSAGE = message("1", "Hi")
THOUGHT = {**reasoning("1", "Hm."), "encrypted_content": None}
MADE = TurnEnd("tool_calls", (ToolCall("call_1", "weather", PARIS),))


def completed(*output: Mapping[str, Any]) -> dict[str, Any]:
    final = {"status": "completed", "output": list(output)}
    return {"type": "response.completed", "response": final}


def of_item(kind: str, place: int, **fields: Any) -> dict[str, Any]:
    return {"type": f"response.{kind}", "output_index": place, **fields}


def added(item: Mapping[str, Any], place: int = 0) -> dict[str, Any]:
    return of_item("output_item.added", place, item=item)


def done(item: Mapping[str, Any], place: int = 0) -> dict[str, Any]:
    return of_item("output_item.done", place, item=item)


def piece(text: str, place: int = 0) -> dict[str, Any]:
    return of_item("function_call_arguments.delta", place, item_id="fc_1", delta=text)


def arguments(place: int = 0, text: str = WHOLE) -> dict[str, Any]:
    return of_item("function_call_arguments.done", place, item_id="fc_1", arguments=text)


@pytest.mark.parametrize(
    "events",
    [
        [added(BARE), arguments(), completed()],
        [added(BARE), arguments(), done(BARE), completed(BARE)],
        [added(BARE), piece(WHOLE[:5]), arguments(), completed()],
        [added(BARE), completed(CALL)],
        [added(BARE), done(BARE), completed(CALL)],
        [added(EMPTY), completed(CALL)],
        [added(BARE), piece(WHOLE), arguments(text="{}"), completed()],
        [added(BARE), piece(WHOLE), arguments(text="{ }"), done(EMPTY), completed(EMPTY)],
        [added(BARE), piece(WHOLE), done(EMPTY), completed(CALL)],
        [added(BARE), arguments(text="{}"), done(EMPTY), completed(CALL)],
        [added(BARE), done(EMPTY), completed({**CALL, "id": "new"})],
        [added(BARE), piece(WHOLE[:5]), completed(CALL)],
        [added(BARE), piece(WHOLE[:5]), piece(WHOLE[5:]), arguments(), done(CALL), completed(CALL)],
    ],
    ids=[
        "done",
        "empty item",
        "half",
        "final",
        "final after an empty item",
        "final after {}",
        "{} after all",
        "{} in each event after all",
        "{} in the item after all",
        "final after two {}",
        "final with a new id after {}",
        "half and final",
        "all",
    ],
)
def test_arguments_are_whole_whichever_event_has_them(events: list[dict[str, Any]]) -> None:
    """A tool must not run with `{}` or a half of them; the pieces that are passed on join to it."""
    chunks = answered(*events)

    assert MADE == chunks[-1]
    assert [ToolCall("call_1", "weather", WHOLE)] == written(chunks)


@pytest.mark.parametrize("ends", [[], [arguments(text="{}")], [done(EMPTY)]])
def test_half_of_the_arguments_stays_half(ends: list[dict[str, Any]]) -> None:
    """A final `{}` does not replace it: the call is refused, and the model repeats it."""
    last = answered(added(BARE), piece('{"cit'), *ends, completed(EMPTY))[-1]

    assert TurnEnd("tool_calls", (ToolCall("call_1", "weather", '{"cit'),)) == last


@pytest.mark.parametrize("call", [BARE, EMPTY])
def test_a_call_may_have_no_arguments(call: dict[str, Any]) -> None:
    """It is made with `{}` if no event has others."""
    for ends in ([], [done(call)]):
        last = answered(added(BARE), *ends, completed(call))[-1]
        assert TurnEnd("tool_calls", (ToolCall("call_1", "weather", {}),)) == last


def test_arguments_of_a_call_that_never_began_are_kept() -> None:
    """The final response names the call, and an event before it has its arguments."""
    assert MADE == answered(arguments(), completed(BARE))[-1]


@pytest.mark.parametrize(("first", "then"), [(None, None), (0, None), (None, 0)])
@pytest.mark.parametrize("ends", [[piece(WHOLE)], [piece(WHOLE[:5]), arguments()], [done(CALL)]])
def test_an_event_may_have_the_id_alone(
    first: int | None, then: int | None, ends: list[dict[str, Any]]
) -> None:
    """An item is found by its id if the event that began it, or a later one, has no number."""
    later = [{**event, "output_index": then} for event in ends]

    chunks = answered({**added(BARE), "output_index": first}, *later, completed())

    assert MADE == chunks[-1]
    assert [ToolCall("call_1", "weather", WHOLE)] == written(chunks)


def test_text_of_the_final_response_is_read() -> None:
    """A message that began and had no pieces is not an empty success."""
    empty = {**MESSAGE, "content": []}

    for ends in ([], [done(empty)]):
        chunks = answered(added(empty), *ends, completed(MESSAGE))
        assert [TextDelta("Hi"), TurnEnd("stop")] == chunks


@pytest.mark.parametrize("ends", [[], [done(MESSAGE)]])
def test_text_of_the_event_that_ends_it_is_read_once(ends: list[dict[str, Any]]) -> None:
    """It may have come in pieces before, or come again with its item."""
    whole = of_item("output_text.done", 0, text="Hi")
    begun_empty = added({**MESSAGE, "content": []})

    for pieces in ([], [of_item("output_text.delta", 0, delta=text) for text in "Hi"]):
        chunks = answered(begun_empty, *pieces, whole, *ends, completed())
        assert "Hi" == "".join(one.text for one in chunks if isinstance(one, TextDelta))


def text_of(chunks: list[Chunk]) -> str:
    return "".join(one.text for one in chunks if isinstance(one, TextDelta))


def test_the_rest_of_a_text_is_read_from_the_event_that_ends_it() -> None:
    """Another text is not: what was streamed cannot be taken back."""
    for whole, read in (("Hi there", "Hi there"), ("Hello", "Hi"), ("", "Hi")):
        chunks = answered(
            added({**MESSAGE, "content": []}),
            of_item("output_text.delta", 0, delta="Hi"),
            of_item("output_text.done", 0, text=whole),
            completed(),
        )
        assert read == text_of(chunks)


def test_a_message_without_pieces_may_follow_one_with_them() -> None:
    """Its text is in the event that ends it; that of a message that never began may be known."""
    streamed = (
        added({**MESSAGE, "content": []}),
        of_item("output_text.delta", 0, delta="Hi"),
        of_item("output_text.done", 0, text="Hi"),
    )
    whole = of_item("output_text.done", 1, text="There")

    assert "Hi\n\nThere" == text_of(
        answered(*streamed, added(message("2", ""), 1), whole, completed())
    )
    assert "Hi" == text_of(answered(*streamed, whole, completed()))


def test_parts_of_a_message_may_each_be_without_pieces() -> None:
    """Each has an event that ends it; one beside a part with pieces may have been among them."""
    parts = [
        of_item("output_text.done", 0, content_index=place, text=text)
        for place, text in enumerate(["Hi", " there"])
    ]
    begun_empty = added({**MESSAGE, "content": []})
    piece = of_item("output_text.delta", 0, content_index=1, delta="Hi there")

    assert "Hi there" == text_of(answered(begun_empty, *parts, completed()))
    assert "Hi there" == text_of(answered(begun_empty, piece, *parts, completed()))


@pytest.mark.parametrize("pieces", [[], ["N"], ["N", "o"]])
def test_a_refusal_of_the_event_that_ends_it_is_read(pieces: list[str]) -> None:
    """It is no empty success."""
    chunks = answered(
        added({**MESSAGE, "content": []}),
        *[of_item("refusal.delta", 0, delta=piece) for piece in pieces],
        of_item("refusal.done", 0, refusal="No"),
        completed(),
    )

    assert "No" == text_of(chunks)
    assert TurnEnd("content_filter") == chunks[-1]


def test_a_call_in_the_final_response_alone_is_made() -> None:
    """The text before it had been streamed, under another number."""
    chunks = answered(of_item("output_text.delta", 5, delta="Hi"), completed(MESSAGE, CALL))

    assert [TextDelta("Hi"), MADE] == chunks


def test_calls_that_share_their_names_stay_apart() -> None:
    """Some servers call each `call_0`, under one number or two."""
    first = {**CALL, "id": None, "call_id": "call_0"}
    second = {**first, "arguments": '{"city": "Rome"}'}

    for place in (0, 1):
        for ends in ([], [done(first)]), ([done(second, place)], [done(first)]):
            last = answered(
                added({**first, "arguments": ""}),
                *ends[1],
                added({**second, "arguments": ""}, place),
                *ends[0],
                completed(first, second),
            )[-1]
            assert isinstance(last, TurnEnd)
            assert [PARIS, {"city": "Rome"}] == [made.arguments for made in last.tool_calls]


ROME = {**function_call("2", "weather", {"city": "Rome"})}
OTHER_CALL, OTHER_ROME = (
    {**CALL, "id": "x1", "call_id": "n1"},
    {**ROME, "id": "x2", "call_id": "n2"},
)


def begun(call: Mapping[str, Any], place: int, *, is_done: bool = True) -> list[dict[str, Any]]:
    return [added({**call, "arguments": ""}, place), *[done(call, place)] * is_done]


@pytest.mark.parametrize(
    ("streamed", "output", "cities"),
    [
        (begun(ROME, 1), [OTHER_CALL, OTHER_ROME], ["Rome", "Paris"]),
        (begun(ROME, 1), [{**OTHER_CALL, "id": "fc_2"}, OTHER_ROME], ["Rome", "Paris"]),
        ([*begun(CALL, 0), *begun(ROME, 0)], [OTHER_CALL, OTHER_ROME], ["Paris", "Rome"]),
        ([done(CALL), done(ROME)], [OTHER_ROME, OTHER_CALL], ["Paris", "Rome"]),
        (begun(CALL, 0), [OTHER_ROME], ["Paris"]),
        (begun(CALL, 0), [{**OTHER_CALL, "arguments": '{"city":"Paris"}'}], ["Paris"]),
        (begun(CALL, 0), [{**OTHER_CALL, "arguments": ""}], ["Paris"]),
        ([*begun(CALL, 0), *begun(ROME, 1, is_done=False)], [OTHER_ROME], ["Paris", "Rome"]),
    ],
    ids=["one streamed", "numbered anew", "one place", "no beginnings", "in doubt", "spaces",
         "without arguments", "without the first"],
)  # fmt: skip
def test_each_call_is_made_once(
    streamed: list[dict[str, Any]], output: list[dict[str, Any]], cities: list[str]
) -> None:
    """The final response may have new ids and places; other arguments are another call."""
    last = answered(*streamed, completed(*output))[-1]

    assert isinstance(last, TurnEnd)
    assert [{"city": city} for city in cities] == [made.arguments for made in last.tool_calls]


NEW_IDS = [{**item, "id": f"new_{place}"} for place, item in enumerate([THOUGHT, MESSAGE, CALL])]


@pytest.mark.parametrize(
    "output",
    [[THOUGHT, MESSAGE, CALL], [MESSAGE, CALL], NEW_IDS, NEW_IDS[1:], [MESSAGE], []],
    ids=["same", "shifted", "new ids", "shifted, new ids", "without the call", "nothing"],
)
@pytest.mark.parametrize("is_done", [True, False])
def test_nothing_that_was_streamed_comes_twice(output: list[dict[str, Any]], is_done: bool) -> None:
    """Gateways number the items of the final response anew, and give them other ids."""
    streamed = [
        [added({**THOUGHT, "summary": []}), of_item("reasoning_text.delta", 0, delta="Hm.")],
        [added({**MESSAGE, "content": []}, 1), of_item("output_text.delta", 1, delta="Hi")],
        [added(BARE, 2), piece(WHOLE, 2), arguments(2)],
    ]
    ends = [done(item, place) for place, item in enumerate([THOUGHT, MESSAGE, CALL])]

    chunks = answered(*chain(*streamed), *(ends if is_done else ()), completed(*output))

    texts = [one.text for one in chunks if isinstance(one, TextDelta | ThinkingDelta | CallDelta)]
    assert ["Hm.", "Hi", "", WHOLE] == texts
    assert MADE == chunks[-1]


def test_an_empty_part_of_the_final_response_is_passed_over() -> None:
    """What was streamed counts, whatever the final response makes of it."""
    empty = {**MESSAGE, "id": "msg_2", "content": None}
    streamed = (added(BARE), piece(WHOLE), done(CALL))

    assert (
        MADE
        == answered(
            *streamed,
            completed(empty),
        )[-1]
    )
    final = {"status": "completed", "output": [None, CALL]}
    assert MADE == answered(*streamed, {"type": "response.completed", "response": final})[-1]


@pytest.mark.parametrize("name", ["rs_1", "rs_2"])
def test_reasoning_may_be_encrypted_in_the_final_response_alone(name: str) -> None:
    """As in some deployments of Azure; that of another item is not mixed with it."""
    thought, whole = {**THOUGHT, "id": name}, reasoning("1", "Hm.")

    last = answered(done(thought), done(CALL, 1), completed(whole, CALL))[-1]

    assert isinstance(last, TurnEnd)
    kept = {name: whole[name] for name in ("type", "id", "summary", "encrypted_content")}
    assert ([(0, kept)] if name == "rs_1" else None) == last.state


@pytest.mark.parametrize("named", [{}, {"id": None}, {"id": ""}])
def test_reasoning_without_an_id_goes_back_without_one(named: dict[str, Any]) -> None:
    """It is no reason to fail, and OpenAI refuses an empty id."""
    thought = {"type": "reasoning", "summary": [], "encrypted_content": "gAAAA"}

    last = answered(done({**thought, **named}), done(CALL, 1), completed())[-1]

    assert isinstance(last, TurnEnd)
    assert [(0, thought)] == last.state


def test_reasoning_in_the_final_response_alone_is_before_its_call() -> None:
    """It goes back to the vendor in this order."""
    thought = {**reasoning("1", "Hm."), "encrypted_content": "gAAAA"}

    last = answered(added(BARE, 1), done(CALL, 1), completed(thought, CALL))[-1]

    assert isinstance(last, TurnEnd) and last.state is not None
    assert [(0, "rs_1")] == [(number, item["id"]) for number, item in last.state]
