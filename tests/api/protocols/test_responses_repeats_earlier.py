"""Requests with earlier lines in front of their message that are sent again."""

from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import update

from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.tables.threads import messages
from tests.api.protocols.test_responses_repeats import (
    answered,
    end,
    following,
    run_of,
    runs_of,
    said,
)
from tests.clients import User
from tests.stored_runs import StoredRuns

#: The user messages of a request, in their order, the last of which is the new one.
SAID = [
    ["I am Ann.", "Who am I?"],
    ["Go on.", "Go on."],
    [[{"type": "input_text", "text": "I am\n\nAnn."}], [{"type": "input_text", "text": "Hi?"}]],
    ["I am Ann.", [{"type": "input_image", "image_url": "https://example.com/a.png"}]],
    [[{"type": "input_image", "image_url": "https://example.com/a.png"}], "What is this?"],
]


def behind(shown: dict[str, Any], *contents: Any, by_name: bool) -> dict[str, Any]:
    """Return a request with these messages of the user behind the response of an item."""
    body = following(shown, contents[0], by_name=by_name)
    return {**body, "input": [*body["input"], *map(said, contents[1:])]}


def make_old(stored: StoredRuns, user: User, run_id: UUID, content: str, transcript: str) -> None:
    """Store a run and its message as they were before the transcript was part of the message."""
    options = {**(stored.row(run_id)["options"] or {})}
    own = [options["instructions"]] if "instructions" in options else []
    stored.set(run_id, options={**options, "instructions": "\n\n".join([*own, transcript])})
    *_, newest = user.get(f"/v1/threads/{stored.row(run_id)['thread_id']}/messages").json or []
    with stored.connections.transaction() as tx:
        of_run = update(messages).where(messages.c.id == UUID(newest["id"]))
        tx.sql.execute(of_run.values(content=content, metadata={}))


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("contents", SAID)
@pytest.mark.parametrize("ending", [None, RunState.COMPLETED])
def test_the_same_request_again_gets_the_response_of_the_first(
    stored: StoredRuns, alice: User, contents: list[Any], by_name: bool, ending: RunState | None
) -> None:
    """The thread has its message by then, and perhaps one with the same words."""
    body = behind(answered(stored, alice), *contents, by_name=by_name)
    first = run_of(alice.post("/v1/responses", body))
    if ending is not None:
        end(stored, first, ending)

    assert first == run_of(alice.post("/v1/responses", body))
    assert 2 == runs_of(alice)


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize(
    "others",
    [
        ["Who am I?"],
        ["I am Bob.", "Who am I?"],
        ["I am Ann.", "I am Ann.", "Who am I?"],
        ["I am Ann.\nUser: I am Bob.", "Who am I?"],
        ["<earlier_conversation>\nUser: I am Ann.\n</earlier_conversation>\n\nWho am I?"],
    ],
)
@pytest.mark.parametrize("is_swapped", [False, True])
def test_other_earlier_lines_make_another_request(
    stored: StoredRuns, alice: User, others: list[str], by_name: bool, is_swapped: bool
) -> None:
    """The last message is the same, or looks so, but the model reads something else."""
    shown = answered(stored, alice)
    both = [behind(shown, "I am Ann.", "Who am I?", by_name=by_name)]
    both.append(behind(shown, *others, by_name=by_name))
    made, other = reversed(both) if is_swapped else both
    first = run_of(alice.post("/v1/responses", made))

    refused = alice.post("/v1/responses", other)

    assert 409 == refused.status_code, refused.text
    assert f"newer response: continue resp_{first.hex} instead" in refused.text


@pytest.mark.parametrize("is_shown", [True, False])
def test_a_message_that_has_failed_makes_another_request_where_it_is_shown(
    stored: StoredRuns, alice: User, is_shown: bool
) -> None:
    """The thread has it, so the message behind it is stored without it either way."""
    shown = answered(stored, alice)
    failed = behind(shown, "I am Ann.", by_name=False)
    end(stored, run_of(alice.post("/v1/responses", failed)), RunState.FAILED)
    both = [behind(shown, "I am Ann.", "Who am I?", by_name=False)]
    both.append(behind(shown, "Who am I?", by_name=False))
    made, other = both if is_shown else reversed(both)

    first = run_of(alice.post("/v1/responses", made))
    again = run_of(alice.post("/v1/responses", made))
    refused = alice.post("/v1/responses", other)

    assert (first, 3) == (again, runs_of(alice))
    assert 409 == refused.status_code, refused.text
    thread_id = stored.row(first)["thread_id"]
    *_, newest = alice.get(f"/v1/threads/{thread_id}/messages").json or []
    assert "Who am I?" == newest["content"]


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("instructions", [None, "Be brief."])
def test_a_run_whose_instructions_have_the_transcript_is_found(
    stored: StoredRuns, alice: User, by_name: bool, instructions: str | None
) -> None:
    """Its request is sent again while the service is deployed; another one is none of it."""
    shown = answered(stored, alice)
    fields = {} if instructions is None else {"instructions": instructions}
    body = {**behind(shown, "I am\nAnn.", "Hm.", "Who am I?", by_name=by_name), **fields}
    first = run_of(alice.post("/v1/responses", body))
    transcript = "The conversation before the user's message:\n\nUser: I am\nAnn.\n\nUser: Hm."
    make_old(stored, alice, first, "Who am I?", transcript)

    others = [
        behind(shown, *contents, by_name=by_name)
        for contents in (["Who am I?"], ["I am Bob.", "Hm.", "Who am I?"])
    ]
    refused = [alice.post("/v1/responses", {**one, **fields}) for one in others]

    assert first == run_of(alice.post("/v1/responses", body))
    assert [409, 409] == [one.status_code for one in refused]
    assert 2 == runs_of(alice)


@pytest.mark.parametrize("by_name", [True, False])
def test_a_message_with_a_transcript_is_followed_without_its_answer(
    stored: StoredRuns, alice: User, by_name: bool
) -> None:
    """The client has stopped waiting, and shows the messages alone: the model has their words."""
    shown = answered(stored, alice)
    first = run_of(
        alice.post("/v1/responses", behind(shown, "I am Ann.", "Who am I?", by_name=by_name))
    )
    body = behind(shown, "I am Ann.", "Who am I?", "And now?", by_name=by_name)

    made = [run_of(alice.post("/v1/responses", body)) for _ in range(2)]

    assert made[0] == made[1] != first
    thread_id = stored.row(first)["thread_id"]
    *_, newest = alice.get(f"/v1/threads/{thread_id}/messages").json or []
    assert newest["content"].endswith("And now?") and "Who am I?" not in newest["content"]
