"""Requests with outputs of function calls and a new message of the user behind them."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import update
from werkzeug.test import TestResponse

from arkloop.api.protocols.responses_steering import REPLY_FIRST
from arkloop.shared.accounts import org_settings
from arkloop.shared.events.types import MessageDelta, RunSteered
from arkloop.shared.runs import commands, offered_messages
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.tables.runs import runs
from tests.api.endpoints.made_providers import PATH, made
from tests.api.protocols.said import message_of
from tests.api.protocols.test_responses_answers import Asking
from tests.api.protocols.test_responses_input import (
    FAILED,
    MODEL,
    calling,
    output,
    runs_of,
    without_ids,
)
from tests.api.protocols.test_responses_repeats import IMAGE
from tests.clients import User
from tests.end_users import end_user
from tests.stored_runs import StoredRuns, ago

MESSAGE = {"role": "user", "content": "And now?"}
#: With and without an image, by whose data the same request is known otherwise.
CONTENTS = ["And now?", [{"type": "input_text", "text": "Look:"}, IMAGE]]


class Together:
    """A run that waits for outputs of two calls, and requests with these and a message."""

    def __init__(self, stored: StoredRuns, user: User, *, is_named: bool = False) -> None:
        self.stored, self.user = stored, user
        self.run_id, calls = calling(stored, user, "a", "b")
        self.calls = without_ids(*calls) if is_named else calls
        named = {"previous_response_id": f"resp_{self.run_id.hex}"} if is_named else {}
        self.body = {**MODEL, **named}

    def send(self, *more: Any, text: str = "!", **fields: Any) -> TestResponse:
        """Send the outputs, which end with this text, and these items."""
        pairs: list[Any] = []
        for call in self.calls:
            given = output(call["call_id"])
            pairs += [call, {**given, "output": f"{call['call_id']}{text}"}]
        return self.user.post("/v1/responses", {**self.body, "input": [*pairs, *more], **fields})

    def offered(self) -> list[tuple[str, str]]:
        """Return the ids and texts of the messages that are offered to the run."""
        with self.stored.connections.reading() as sql:
            found = offered_messages.find(sql, self.run_id)
        return [(str(row.id), row.content) for row in found]

    def deliver(self) -> Any:
        """Claim the run, and deliver what is offered, as its worker does; returns the claim."""
        claim = self.stored.held(self.run_id)
        found = self.offered()
        for message_id, text in found:
            self.stored.write(claim, RunSteered(message_id, text))
        with self.stored.connections.transaction() as tx:
            offered_messages.settle(tx, claim, [UUID(message_id) for message_id, _ in found])
        return claim


def id_of(made: TestResponse) -> str:
    assert 200 == made.status_code, made.text
    return str((made.json or {})["id"])


@pytest.mark.parametrize("is_named", [False, True])
def test_a_message_behind_outputs_steers_the_run(
    stored: StoredRuns, alice: User, is_named: bool
) -> None:
    """The run gets both, and the same request again counts once, whatever the run does."""
    together = Together(stored, alice, is_named=is_named)
    first = f"resp_{together.run_id.hex}_1"

    made = [together.send(MESSAGE), together.send(MESSAGE)]
    [(_, text)] = together.offered()
    assert ("queued", "And now?") == (stored.state(together.run_id), text)
    claim = together.deliver()
    made.append(together.send(MESSAGE))
    stored.write(claim, MessageDelta("It is done."))
    stored.finish(claim)
    made.append(together.send(MESSAGE))

    assert [first] * 4 == [id_of(one) for one in made]
    marks = [one.headers.get("Idempotency-Replayed") for one in made]
    assert [None, "true", "true", "true"] == marks
    assert {together.run_id} == runs_of(alice)


def test_the_same_request_at_the_same_time_counts_once(stored: StoredRuns, alice: User) -> None:
    """The second one waits for the lock of the run, and finds the message then."""
    together = Together(stored, alice)
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: together.send(MESSAGE), range(4)))

    assert {f"resp_{together.run_id.hex}_1"} == {id_of(one) for one in made}
    assert 1 == len(together.offered())


@pytest.mark.parametrize(
    "fields",
    [
        {"text": "?"},
        {"more": [{**MESSAGE, "content": "And then?"}]},
        {"more": [MESSAGE, MESSAGE]},
        {"metadata": {"team": "red"}},
        {"instructions": "Be brief."},
    ],
)
def test_another_request_than_the_one_that_was_taken_is_refused(
    stored: StoredRuns, alice: User, fields: dict[str, Any]
) -> None:
    """All that makes the request counts; the error names the response to continue."""
    together = Together(stored, alice)
    together.send(MESSAGE)
    more = fields.pop("more", [MESSAGE])

    other = together.send(*more, **fields)

    error = (other.json or {})["error"]
    assert (409, "responses.not_newest") == (other.status_code, error["code"]), other.text
    assert f"newest response, resp_{together.run_id.hex}_1, " in error["message"]
    assert 1 == len(together.offered())


def test_a_message_that_somebody_else_has_steered_the_run_with_is_no_repeat(
    stored: StoredRuns, alice: User
) -> None:
    """It has the same words, and the message of the request would be lost."""
    together = Together(stored, alice)
    together.send()
    thread_id = stored.row(together.run_id)["thread_id"]
    body = {"message": "And now?", "on_busy": "steer", "route_id": "scripted"}
    assert 201 == alice.post(f"/v1/threads/{thread_id}/runs", body).status_code

    refused = together.send(MESSAGE)

    assert 409 == refused.status_code, refused.text


def test_without_one_of_the_outputs_the_run_gets_nothing(stored: StoredRuns, alice: User) -> None:
    """The message does not count without them, nor the other output without the message."""
    together = Together(stored, alice)
    together.calls = together.calls[1:]

    refused = together.send(MESSAGE)

    assert (400, "waiting") == (refused.status_code, stored.state(together.run_id)), refused.text
    assert [] == together.offered()


def test_a_run_that_takes_no_messages_gets_the_outputs_alone(
    stored: StoredRuns, alice: User
) -> None:
    """A custom agent cannot be steered, so nothing of the request counts."""
    together = Together(stored, alice)
    of_agent = update(runs).where(runs.c.id == together.run_id).values(agent="own")
    with stored.connections.transaction() as tx:
        tx.sql.execute(of_agent)

    refused = together.send(MESSAGE)

    assert (400, True) == (refused.status_code, REPLY_FIRST in refused.text), refused.text
    assert ("waiting", []) == (stored.state(together.run_id), together.offered())
    assert 200 == together.send().status_code
    assert {together.run_id} == runs_of(alice)


@pytest.mark.parametrize("content", CONTENTS)
def test_a_message_that_its_run_did_not_take_is_the_next_run(
    stored: StoredRuns, alice: User, content: Any
) -> None:
    """The run has failed before; the client that sends all items again finds the next one."""
    together = Together(stored, alice)
    message = {**MESSAGE, "content": content}
    together.send(message)
    claim = stored.held(together.run_id)
    stored.finish(claim, error=FAILED, state=RunState.FAILED, with_followers=True)

    again = [together.send(message), together.send(message)]

    [followed] = runs_of(alice) - {together.run_id}
    assert [f"resp_{followed.hex}"] * 2 == [id_of(one) for one in again]


def test_a_message_behind_outputs_that_came_too_late_is_the_next_run(
    stored: StoredRuns, alice: User
) -> None:
    """The run has answered without them, in a response that the client has not asked for."""
    together = Together(stored, alice)
    stored.set(together.run_id, input_expires_at=ago(seconds=1))
    with stored.connections.transaction() as tx:
        commands.resume_expired(tx, stored.row(together.run_id))
    early = together.send(MESSAGE)
    claim = stored.held(together.run_id)
    stored.write(claim, MessageDelta("It was too late."))
    stored.finish(claim)

    made = [together.send(MESSAGE) for _ in range(2)]

    [followed] = runs_of(alice) - {together.run_id}
    assert 409 == early.status_code, early.text
    assert [f"resp_{followed.hex}"] * 2 == [id_of(one) for one in made]


@pytest.mark.parametrize(
    ("reply", "approves", "is_stored"),
    [
        ('{"decision": "deny"}', True, False),
        ('{"decision": "deny"}', False, True),
        ("yes", True, True),
        ('{"decision":"approve"}', True, True),
    ],
)
def test_a_message_behind_an_approval_that_did_not_count_is_the_next_run(
    stored: StoredRuns, alice: User, reply: str, approves: bool, is_stored: bool
) -> None:
    """Somebody else has replied; where the reply is the same, in whatever form, the message is
    about the response.
    """
    asking = Asking(stored, alice).ask_for_approval()
    request = asking.items()[-1]
    stored.answer(asking.run_id, reply, asking.request_id)
    claim = stored.held(asking.run_id)
    stored.write(claim, MessageDelta("It was denied."))
    stored.finish(claim)

    ours = {"approval_request_id": request["id"], "approve": approves}
    items = [request, {"type": "mcp_approval_response", **ours}, MESSAGE]
    made = alice.post("/v1/responses", {**MODEL, "input": items})

    assert (409 if is_stored else 200) == made.status_code, made.text
    assert (1 if is_stored else 2) == len(runs_of(alice))


@pytest.mark.parametrize("content", CONTENTS)
def test_a_message_whose_run_has_failed_is_tried_again(
    stored: StoredRuns, alice: User, content: Any
) -> None:
    """The run had taken it, perhaps with an image; the next try is the next run, and counts once.

    A response that is named stays the same one.
    """
    together, named = Together(stored, alice), Together(stored, alice, is_named=True)
    message = {**MESSAGE, "content": content}
    for one in (together, named):
        one.send(message)
        stored.finish(one.deliver(), error=FAILED, state=RunState.FAILED, with_followers=True)

    again = [id_of(together.send(message)) for _ in range(2)]

    assert again[0] == again[1] != f"resp_{together.run_id.hex}_1"
    assert f"resp_{named.run_id.hex}_1" == id_of(named.send(message))
    assert 3 == len(runs_of(alice))


def test_a_message_whose_run_is_being_cancelled_is_not_tried_again(
    stored: StoredRuns, alice: User
) -> None:
    """The same request gets its response until the run has ended, and then the next run."""
    together = Together(stored, alice)
    message = {**MESSAGE, "content": CONTENTS[1]}
    first = id_of(together.send(message))
    claim = together.deliver()
    stored.cancel(together.run_id)

    again = id_of(together.send(message))
    stored.finish(claim, state=RunState.CANCELLED, with_followers=True)
    tried = id_of(together.send(message))

    assert first == again != tried
    assert 2 == len(runs_of(alice))


@pytest.mark.parametrize("is_named", [False, True])
def test_several_messages_behind_outputs_are_one_with_a_transcript(
    stored: StoredRuns, alice: User, is_named: bool
) -> None:
    """The run takes one message; the same request is known by all of them."""
    together = Together(stored, alice, is_named=is_named)
    made = [together.send({**MESSAGE, "content": "Hm."}, MESSAGE) for _ in range(2)]

    assert [f"resp_{together.run_id.hex}_1"] * 2 == [id_of(one) for one in made]
    [(_, text)] = together.offered()
    assert "<earlier_conversation>\nUser: Hm.\n</earlier_conversation>\n\nAnd now?" == text
    assert text == message_of(alice, made[0])


def test_outputs_with_an_approval_are_no_outputs_alone(stored: StoredRuns, alice: User) -> None:
    """Nothing of the request counts, as no run asks for both."""
    together = Together(stored, alice)
    request = f"mcpr_{together.run_id.hex}_2"
    approval = {"type": "mcp_approval_response", "approval_request_id": request, "approve": True}

    refused = together.send(approval, MESSAGE)

    assert (400, True) == (refused.status_code, REPLY_FIRST in refused.text), refused.text
    assert ("waiting", []) == (stored.state(together.run_id), together.offered())


def test_at_a_limit_the_run_gets_nothing_and_the_same_request_its_response(
    stored: StoredRuns, alice: User
) -> None:
    """The limit counts the message as a run, which it may become."""
    with stored.connections.transaction() as tx:  # before a process has read the limits
        org_settings.change(tx, alice.org_id, {"org_concurrent_runs": 3})
    together, other = Together(stored, alice), Together(stored, alice)
    together.send(MESSAGE)
    stored.create(), stored.create()  # whatever the limit

    refused, again = other.send(MESSAGE), together.send(MESSAGE)

    assert (429, "waiting") == (refused.status_code, stored.state(other.run_id)), refused.text
    assert f"resp_{together.run_id.hex}_1" == id_of(again)


def test_the_same_request_counts_once_though_its_persona_has_another_route_by_now(
    stored: StoredRuns, alice: User
) -> None:
    """It names the persona alone, whose route an admin has changed."""
    persona = {"key": "mine", "version": "1", "overrides": ["tools"], "route_id": "scripted"}
    assert 201 == alice.post("/v1/personas", persona).status_code
    run_id, calls = calling(stored, alice, "c", model="mine")
    body = {**MODEL, "model": "mine", "input": [*calls, output(calls[0]["call_id"]), MESSAGE]}
    first = id_of(alice.post("/v1/responses", body))

    route_id = made(alice, f"{PATH}/{made(alice)['id']}/models")["route_id"]
    newer = {**persona, "version": "2", "route_id": route_id}
    assert 201 == alice.post("/v1/personas", newer).status_code

    assert f"resp_{run_id.hex}_1" == first == id_of(alice.post("/v1/responses", body))


def test_an_end_user_steers_a_run_of_their_own(stored: StoredRuns, alice: User) -> None:
    """A client token has all the rights that this requires."""
    alice.post("/v1/personas", json={"key": "own", "overrides": ["tools"]})
    ann = end_user(alice, persona_id="own")
    run_id, calls = calling(stored, ann, "c", model="own")
    body = {**MODEL, "model": "own", "input": [*calls, output(calls[0]["call_id"]), MESSAGE]}

    made = [id_of(ann.post("/v1/responses", body)) for _ in range(2)]

    assert [f"resp_{run_id.hex}_1"] * 2 == made
    with stored.connections.reading() as sql:
        assert ["And now?"] == [row.content for row in offered_messages.find(sql, run_id)]
