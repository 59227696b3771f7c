"""Requests that are sent again, or continued, whose run has got further messages meanwhile."""

from typing import Any
from uuid import UUID

import pytest

from arkloop.shared.claim import Claim
from arkloop.shared.events.types import MessageDelta, RunSteered
from arkloop.shared.ids import new_id
from arkloop.shared.runs import offered_messages
from arkloop.shared.runs.states import RunState
from tests.api.protocols.said import message_of
from tests.api.protocols.test_ai_sdk_retries import forget
from tests.api.protocols.test_responses_repeats import (
    FAILED,
    IMAGE,
    answered,
    following,
    item_of,
    run_of,
    runs_of,
    said,
)
from tests.api.protocols.test_responses_steering import MESSAGE, Together
from tests.clients import User
from tests.stored_runs import StoredRuns

FRENCH = "In French, please."


def add(stored: StoredRuns, user: User, run_id: UUID, text: str, on_busy: str) -> None:
    """Send a message to the thread of a run, as another front end does."""
    thread_id = stored.row(run_id)["thread_id"]
    body = {"message": text, "on_busy": on_busy, "route_id": "scripted"}
    made = user.post(f"/v1/threads/{thread_id}/runs", body)
    assert 201 == made.status_code, made.text
    assert str(run_id) == (made.json or {})["run_id"]


def deliver(stored: StoredRuns, run_id: UUID) -> Claim:
    """Claim a run, and deliver what is offered to it, as its worker does."""
    claim = stored.held(run_id)
    with stored.connections.reading() as sql:
        found = offered_messages.find(sql, run_id)
    for row in found:
        stored.write(claim, RunSteered(str(row.id), row.content))
    with stored.connections.transaction() as tx:
        offered_messages.settle(tx, claim, [row.id for row in found])
    return claim


@pytest.mark.parametrize("by_name", [True, False])
def test_a_request_whose_run_was_steered_gets_the_response_of_the_first(
    stored: StoredRuns, alice: User, by_name: bool
) -> None:
    """The run comes behind the other message once it has ended; its own one is still known."""
    shown = answered(stored, alice)
    body = following(shown, "Which city?", by_name=by_name)
    run_id = run_of(alice.post("/v1/responses", body))
    add(stored, alice, run_id, FRENCH, "steer")
    made = [alice.post("/v1/responses", body)]
    claim = deliver(stored, run_id)
    made.append(alice.post("/v1/responses", body))
    stored.write(claim, MessageDelta("Paris."))
    stored.finish(claim, with_followers=True)
    made.append(alice.post("/v1/responses", body))
    other = alice.post("/v1/responses", following(shown, FRENCH, by_name=by_name))
    further = {**body, "input": [*body["input"], said("And now?")]}
    more = alice.post("/v1/responses", further)

    assert [run_id] * 3 == list(map(run_of, made))
    assert (409, "And now?") == (other.status_code, message_of(alice, more)), other.text
    assert 3 == runs_of(alice)


def test_a_request_whose_waiting_run_got_another_message_gets_the_response_of_the_first(
    stored: StoredRuns, alice: User
) -> None:
    """One run answers both messages, also once it has started; a message before it is no part."""
    body = following(answered(stored, alice), "Which city?", by_name=False)
    busy = run_of(alice.post("/v1/responses", body))
    more = {**body, "input": [*body["input"], said("And then?")]}
    waiting = run_of(alice.post("/v1/responses", more))
    add(stored, alice, waiting, "Quick!", "merge")

    again = [run_of(alice.post("/v1/responses", more))]
    stored.finish(stored.held(busy), RunState.FAILED, error=FAILED, with_followers=True)
    assert "queued" == stored.state(waiting)
    again.append(run_of(alice.post("/v1/responses", more)))
    first = alice.post("/v1/responses", body)

    assert [waiting] * 2 == again
    assert 409 == first.status_code, first.text


def test_a_message_that_is_offered_to_another_run_is_not_that_of_a_waiting_one(
    stored: StoredRuns, alice: User
) -> None:
    """The waiting run has a message of its own, which the client has to show."""
    body = following(answered(stored, alice), "Which city?", by_name=False)
    active = run_of(alice.post("/v1/responses", body))
    stored.held(active)
    add(stored, alice, active, FRENCH, "steer")
    thread_id = stored.row(active)["thread_id"]
    waiting = {"message": "Quick!", "on_busy": "enqueue", "route_id": "scripted"}
    made = alice.post(f"/v1/threads/{thread_id}/runs", waiting)

    items = [*body["input"], said(FRENCH), said("And now?")]
    refused = alice.post("/v1/responses", {**body, "input": items})

    assert 409 == refused.status_code, refused.text
    assert f"resp_{UUID((made.json or {})['run_id']).hex} instead" in refused.text, refused.text


def test_the_message_of_a_deleted_run_is_not_that_of_the_next_one(
    stored: StoredRuns, alice: User
) -> None:
    """The thread keeps the message with its answer, which the client has not seen."""
    shown = answered(stored, alice)
    body = following(shown, "yes", by_name=False)
    deleted = run_of(alice.post("/v1/responses", body))
    claim = stored.held(deleted)
    stored.write(claim, MessageDelta("Booked."))
    stored.finish(claim, message=(new_id(), "Booked."))
    later = following(item_of(alice, deleted), "Go on.", by_name=False)
    newest = run_of(alice.post("/v1/responses", later))
    forget(stored.connections, deleted)

    refused = alice.post("/v1/responses", body)

    assert (409, 2) == (refused.status_code, runs_of(alice)), refused.text
    assert f"resp_{newest.hex} instead" in refused.text


NOTED = "<earlier_conversation>\nUser: Look:\n  [image]\n</earlier_conversation>\n\nHello?"


LOOK = [{"type": "input_text", "text": "Look:"}, IMAGE]


@pytest.mark.parametrize(
    ("content", "is_named", "stored_as"),
    [("And now?", False, "Hello?"), ("And now?", True, "Hello?"), (LOOK, False, NOTED)],
)
def test_a_message_that_its_run_was_steered_with_is_not_sent_again(
    stored: StoredRuns, alice: User, content: Any, is_named: bool, stored_as: str
) -> None:
    """The thread has it, with its image, though in front of the run that has failed."""
    together = Together(stored, alice, is_named=is_named)
    message = {**MESSAGE, "content": content}
    together.send(message)
    claim = together.deliver()
    stored.finish(claim, RunState.FAILED, error=FAILED, with_followers=True)

    made = together.send(message, said("Hello?"))

    assert 200 == made.status_code, made.text
    thread_id = stored.row(together.run_id)["thread_id"]
    *_, newest = alice.get(f"/v1/threads/{thread_id}/messages").json or []
    assert stored_as == newest["content"]


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("has_ended", [True, False])
def test_what_a_run_was_steered_with_before_its_answer_may_be_said_again(
    stored: StoredRuns, alice: User, by_name: bool, has_ended: bool
) -> None:
    """A person may answer "yes" twice: the messages behind the shown answer are other ones."""
    body = following(answered(stored, alice), "Which city?", by_name=by_name)
    run_id = run_of(alice.post("/v1/responses", body))
    add(stored, alice, run_id, "yes", "steer")
    claim = deliver(stored, run_id)
    stored.write(claim, MessageDelta("Paris. Shall I book?"))
    if has_ended:
        stored.finish(claim)
    shown = item_of(alice, run_id)
    more = [said(LOOK), said("yes"), said("Hello?")]
    body = following(shown, "", by_name=by_name)

    made = alice.post("/v1/responses", {**body, "input": [*body["input"][:-1], *more]})

    assert 200 == made.status_code, made.text
    thread_id = stored.row(run_id)["thread_id"]
    *_, newest = alice.get(f"/v1/threads/{thread_id}/messages").json or []
    image, text = newest["content"]
    noted = f"User: Look:\n  [image: {image['file_id']}]"
    earlier = f"<earlier_conversation>\n{noted}\nUser: yes\n</earlier_conversation>"
    assert f"{earlier}\n\nHello?" == text["text"]


@pytest.mark.parametrize("content", ["And now?", LOOK])
def test_an_item_whose_number_no_event_can_have_is_unknown(
    stored: StoredRuns, alice: User, content: Any
) -> None:
    """Postgres has no such numbers, and is not asked for what the run was steered with since."""
    body = following(answered(stored, alice), "Which city?", by_name=False)
    run_id = run_of(alice.post("/v1/responses", body))
    add(stored, alice, run_id, FRENCH, "steer")
    stored.finish(deliver(stored, run_id))
    last = {"role": "assistant", "content": "Paris.", "id": f"msg_{run_id.hex}_{2**63}"}
    items = [*body["input"], last, said("More?"), said(content)]

    refused = alice.post("/v1/responses", {**body, "input": items})

    assert (400, "input[3].id") == (refused.status_code, (refused.json or {})["error"]["param"])
