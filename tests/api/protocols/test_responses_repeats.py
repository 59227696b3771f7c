"""Requests for the next run of a conversation that are sent again, or whose answer was not seen."""

from base64 import b64encode
from typing import Any
from uuid import UUID

import pytest
from werkzeug.test import TestResponse

from arkloop.shared import logs, spans
from arkloop.shared.accounts import org_settings
from arkloop.shared.events.types import MessageDelta, RunError
from arkloop.shared.ids import new_id
from arkloop.shared.runs.states import RunState
from arkloop.shared.spans import Span
from tests.clients import User
from tests.contents import png
from tests.query_plans import noted
from tests.stored_runs import StoredRuns

#: Of every request.
MODEL = {"model": "scripted", "background": True}
FAILED = RunError("worker.crashed", "The worker was lost.", retryable=True)
IMAGE = {"type": "input_image", "image_url": f"data:image/png;base64,{b64encode(png()).decode()}"}


def said(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def answered(stored: StoredRuns, user: User) -> dict[str, Any]:
    """Create a run that says something, and return that item of its response."""
    run_id = stored.create(UUID(user.thread()))
    end(stored, run_id, RunState.COMPLETED)
    return item_of(user, run_id)


def item_of(user: User, run_id: UUID) -> dict[str, Any]:
    """Return the one item of a response's output."""
    [item] = (user.get(f"/v1/responses/resp_{run_id.hex}").json or {})["output"]
    assert isinstance(item, dict)
    return item


def end(stored: StoredRuns, run_id: UUID, state: RunState) -> None:
    claim = stored.held(run_id)
    stored.write(claim, MessageDelta("Hello."))
    stored.finish(claim, state, error=FAILED if state is RunState.FAILED else None)


def run_of(made: TestResponse) -> UUID:
    assert 200 == made.status_code, made.text
    return UUID((made.json or {})["id"].removeprefix("resp_"))


def runs_of(user: User) -> int:
    return len(user.get("/v1/runs").json or [])


def following(shown: dict[str, Any], content: Any, *, by_name: bool) -> dict[str, Any]:
    """Return a request that continues the response of this item by a message."""
    if by_name:
        response = f"resp_{shown['id'].split('_')[1]}"
        return {**MODEL, "previous_response_id": response, "input": [said(content)]}
    return {**MODEL, "input": [said("Hi"), shown, said(content)]}


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("ending", [None, RunState.COMPLETED])
def test_the_same_request_again_gets_the_response_of_the_first(
    stored: StoredRuns, alice: User, by_name: bool, ending: RunState | None
) -> None:
    """A client that has given up waiting repeats it, as the SDKs do, and gets what was paid for."""
    shown = answered(stored, alice)
    body = {
        **following(shown, "Which city?", by_name=by_name),
        "instructions": "Be brief.",
        "tools": [{"type": "function", "name": "t", "parameters": {"type": "object"}}],
        "metadata": {"team": "red"},
        "temperature": 1,
    }

    first = alice.post("/v1/responses", body)
    if ending is not None:
        end(stored, run_of(first), ending)
    again = alice.post("/v1/responses", body)
    stream = alice.post("/v1/responses", {**body, "stream": True})

    assert run_of(first) == run_of(again)
    assert 2 == runs_of(alice)
    marks = [one.headers.get("Idempotency-Replayed") for one in (first, again, stream)]
    assert [None, "true", "true"] == marks
    if ending is not None:
        assert (first.json or {})["id"] in stream.text and "response.completed" in stream.text
    stream.close()


@pytest.mark.parametrize(
    "fields",
    [
        {"metadata": {"team": "blue"}},
        {"instructions": "Be brief."},
        {"model": "plain"},
        {"safety_identifier": "bob"},
        {"input": "What city?"},
    ],
)
def test_another_request_is_refused_and_the_newest_response_named(
    stored: StoredRuns, alice: User, fields: dict[str, Any]
) -> None:
    """All that makes the run counts, and not the message alone."""
    body = following(answered(stored, alice), "Which city?", by_name=True)
    first = run_of(alice.post("/v1/responses", body))

    refused = alice.post("/v1/responses", {**body, **fields})

    error = (refused.json or {})["error"]
    assert (409, "responses.not_newest") == (refused.status_code, error["code"]), refused.text
    assert f"newer response: continue resp_{first.hex} instead" in error["message"]
    assert 2 == runs_of(alice)


def test_a_key_or_another_sender_makes_it_another_request(stored: StoredRuns, alice: User) -> None:
    """No API key gets the response to a request of another one."""
    body = following(answered(stored, alice), "Which city?", by_name=True)
    first = run_of(alice.post("/v1/responses", body))
    other = alice.api_key("data.runs.write", "data.runs.read", "data.threads.write")

    keyed = alice.post("/v1/responses", body, headers={"Idempotency-Key": "k"})
    elsewhere = other.post("/v1/responses", body)

    for refused in (keyed, elsewhere):
        assert 409 == refused.status_code and f"resp_{first.hex} instead" in refused.text, (
            refused.text
        )
    assert 2 == runs_of(alice)


def test_the_same_request_gets_its_response_behind_later_ones(
    stored: StoredRuns, alice: User
) -> None:
    """Two turns may have the same text: each request gets the response of its own."""
    bodies = [following(answered(stored, alice), "Go on.", by_name=True)]
    made = []
    for _ in range(2):
        made.append(run_of(alice.post("/v1/responses", bodies[-1])))
        end(stored, made[-1], RunState.COMPLETED)
        name = f"resp_{made[-1].hex}"
        bodies.append({**bodies[-1], "previous_response_id": name})

    assert made == [run_of(alice.post("/v1/responses", body)) for body in bodies[:2]]


@pytest.mark.parametrize("by_name", [True, False])
def test_the_same_request_after_a_failed_run_is_another_attempt_by_items_alone(
    stored: StoredRuns, alice: User, by_name: bool
) -> None:
    """A client that names the response gets the failed one, which it can continue."""
    body = following(answered(stored, alice), "Which city?", by_name=by_name)
    made = []
    for _ in range(3):
        made += [run_of(alice.post("/v1/responses", body)) for _ in range(2)]
        if stored.state(made[-1]) == RunState.QUEUED:
            end(stored, made[-1], RunState.FAILED)

    assert made[::2] == made[1::2]
    assert (1 if by_name else 3) == len(set(made))


def test_the_same_request_gets_its_response_where_that_reaches_the_limit(
    stored: StoredRuns, alice: User
) -> None:
    """A limit is for new runs."""
    with stored.connections.transaction() as tx:  # before a process has read the limits
        org_settings.change(tx, alice.org_id, {"org_concurrent_runs": 1})
    body = following(answered(stored, alice), "Which city?", by_name=False)

    first, again = (alice.post("/v1/responses", body) for _ in range(2))
    other = alice.post("/v1/responses", following(body["input"][1], "Where?", by_name=False))

    assert run_of(first) == run_of(again)
    assert 429 == other.status_code, other.text


@pytest.mark.parametrize("content", ["Which city?", [IMAGE]])
@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("ending", [None, RunState.COMPLETED])
def test_a_message_follows_one_whose_answer_the_client_has_not_seen(
    stored: StoredRuns, alice: User, by_name: bool, content: Any, ending: RunState | None
) -> None:
    """Somebody has stopped it, or it has timed out, and the client keeps the message alone."""
    shown = answered(stored, alice)
    unanswered = following(shown, content, by_name=by_name)
    stopped = run_of(alice.post("/v1/responses", unanswered))
    if ending is not None:
        end(stored, stopped, ending)
    body = {**unanswered, "input": [*unanswered["input"], said("And then?")]}

    made = [run_of(alice.post("/v1/responses", body)) for _ in range(2)]

    assert made[0] == made[1] != stopped
    assert 3 == runs_of(alice)
    [thread] = {run["thread_id"] for run in alice.get("/v1/runs").json or []}
    *_, newest = alice.get(f"/v1/threads/{thread}/messages").json or []
    # By its items alone a request shows which files the thread has.
    is_attached = by_name and content == [IMAGE]
    assert is_attached == isinstance(newest["content"], list)
    if content == "Which city?":  # the thread has it already
        assert "And then?" == newest["content"]


def test_a_message_does_not_follow_one_whose_run_waits_for_its_client(
    stored: StoredRuns, alice: User
) -> None:
    """It would wait behind a question that its author has not seen; the error names that."""
    unanswered = following(answered(stored, alice), "Which city?", by_name=False)
    stopped = run_of(alice.post("/v1/responses", unanswered))
    claim = stored.held(stopped)
    stored.park(claim, new_id())
    items = unanswered["input"]

    refused = alice.post("/v1/responses", {**MODEL, "input": [*items, said("And then?")]})
    repeated = run_of(alice.post("/v1/responses", unanswered))

    assert 409 == refused.status_code, refused.text
    assert f"resp_{stopped.hex}, waits for a reply" in refused.text
    assert stopped == repeated


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("unseen", [["yes"], ["yes", "And then?"]])
def test_a_message_behind_an_older_response_is_another_one_than_that_of_a_later_turn(
    stored: StoredRuns, alice: User, by_name: bool, unseen: list[str]
) -> None:
    """Its author, in another tab, has not seen the question between them."""
    shown = answered(stored, alice)
    asked = run_of(alice.post("/v1/responses", following(shown, "Shall I?", by_name=by_name)))
    end(stored, asked, RunState.COMPLETED)
    later = following(item_of(alice, asked), "yes", by_name=by_name)
    booked = run_of(alice.post("/v1/responses", later))
    end(stored, booked, RunState.COMPLETED)
    body = following(shown, unseen[0], by_name=by_name)
    body = {**body, "input": [*body["input"], *map(said, unseen[1:])]}

    refused = alice.post("/v1/responses", body)
    again = alice.post("/v1/responses", later)

    assert 409 == refused.status_code and f"resp_{booked.hex} instead" in refused.text, refused.text
    assert (booked, 3) == (run_of(again), runs_of(alice))


def test_each_message_without_an_answer_is_shown_by_one_of_its_own(
    stored: StoredRuns, alice: User
) -> None:
    """Two turns may have the same text, and the client may have seen neither."""
    shown = answered(stored, alice)
    body = following(shown, "Go on.", by_name=True)
    first = run_of(alice.post("/v1/responses", body))
    end(stored, first, RunState.COMPLETED)
    behind = {**body, "previous_response_id": f"resp_{first.hex}"}
    second = run_of(alice.post("/v1/responses", behind))
    stopped = {**body, "input": [said("Go on."), said("Why?")]}

    assert 409 == alice.post("/v1/responses", stopped).status_code
    made = run_of(
        alice.post("/v1/responses", {**body, "input": [said("Go on."), *stopped["input"]]})
    )
    assert made not in (first, second)


def test_a_limit_does_not_give_a_message_the_response_to_another_turn(
    stored: StoredRuns, alice: User
) -> None:
    """The limit refuses it, as it does any other message."""
    with stored.connections.transaction() as tx:  # before a process has read the limits
        org_settings.change(tx, alice.org_id, {"org_concurrent_runs": 1})
    shown = answered(stored, alice)
    asked = run_of(alice.post("/v1/responses", following(shown, "Shall I?", by_name=True)))
    end(stored, asked, RunState.COMPLETED)
    later = following(item_of(alice, asked), "yes", by_name=True)
    booked = run_of(alice.post("/v1/responses", later))

    refused = alice.post("/v1/responses", following(shown, "yes", by_name=True))

    assert 429 == refused.status_code, refused.text
    assert booked == run_of(alice.post("/v1/responses", later))


@pytest.mark.parametrize("content", ["Which city?", [IMAGE]])
def test_the_same_request_is_another_attempt_while_the_first_is_being_cancelled(
    stored: StoredRuns, alice: User, content: Any
) -> None:
    """The response would be the cancelled one as soon as its worker has stopped."""
    body = following(answered(stored, alice), content, by_name=False)
    first = run_of(alice.post("/v1/responses", body))
    stored.claim(first)
    stored.cancel(first)

    made = [run_of(alice.post("/v1/responses", body)) for _ in range(2)]

    assert RunState.EXECUTING == stored.state(first)
    assert made[0] == made[1] != first


@pytest.mark.parametrize("ending", [RunState.FAILED, RunState.COMPLETED])
def test_the_same_request_after_a_retry_gets_the_response_of_the_retry(
    stored: StoredRuns, alice: User, ending: RunState
) -> None:
    """What was retried is no longer in the conversation, and cannot be continued."""
    body = following(answered(stored, alice), "Which city?", by_name=True)
    end(stored, run_of(alice.post("/v1/responses", body)), ending)
    [thread] = {run["thread_id"] for run in alice.get("/v1/runs").json or []}
    retried = alice.post(f"/v1/threads/{thread}:retry").json or {}

    again = alice.post("/v1/responses", body)
    stopped = {**body, "input": [*body["input"], said("And then?")]}

    assert UUID(retried["run_id"]) == run_of(again)
    assert run_of(alice.post("/v1/responses", stopped)) != run_of(again)


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("ending", [None, RunState.COMPLETED])
def test_a_request_behind_a_response_cancelled_before_its_turn_counts_once(
    stored: StoredRuns, alice: User, by_name: bool, ending: RunState | None
) -> None:
    """Its run has no place in the conversation, but the next one has."""
    first = stored.create(UUID(alice.thread()))
    item = {"type": "message", "role": "assistant", "id": f"msg_{first.hex}_1", "content": "Hi"}
    cancelled = run_of(alice.post("/v1/responses", following(item, "Oslo?", by_name=True)))
    stored.cancel(cancelled)
    claim = stored.held(first)
    stored.finish(claim, with_followers=True)
    body = following({**item, "id": f"msg_{cancelled.hex}_1"}, "Rome?", by_name=by_name)

    made = run_of(alice.post("/v1/responses", body))
    if ending is not None:
        end(stored, made, ending)
    again = run_of(alice.post("/v1/responses", body))
    stopped = {**body, "input": [*body["input"], said("And then?")]}

    assert (made, 3) == (again, runs_of(alice))
    assert run_of(alice.post("/v1/responses", stopped)) != made


def test_the_newest_response_is_named_without_a_look_at_all_its_events(
    stored: StoredRuns, alice: User
) -> None:
    """Its run is locked meanwhile, and its stream would stand still."""
    body = following(answered(stored, alice), "Which city?", by_name=True)
    first = run_of(alice.post("/v1/responses", body))
    claim = stored.held(first)

    def named() -> str:
        with noted(stored.connections) as statements:
            refused = alice.post("/v1/responses", {**body, "input": "Which town?"})
        read = [values["run_id_1"] for sql, values in statements if "run_events.seq >" in sql]
        assert 409 == refused.status_code and read and first not in read
        return refused.text.partition("newer response: continue ")[2].partition(" instead")[0]

    assert f"resp_{first.hex}" == named()
    request = new_id()
    stored.park(claim, request)
    assert f"resp_{first.hex}" == named()
    stored.answer(first, "Rome", request)
    end(stored, first, RunState.COMPLETED)
    assert f"resp_{first.hex}_1" == named()


@pytest.mark.parametrize("text", ["Which city?", "Which town?"])
def test_no_log_line_and_no_span_names_a_run_that_was_not_created(
    stored: StoredRuns, alice: User, text: str
) -> None:
    """A request that is sent again is logged with the run of the first one."""
    shown = answered(stored, alice)
    first = run_of(alice.post("/v1/responses", following(shown, "Which city?", by_name=True)))
    recorded: list[Span] = []
    logs.clear()
    spans.record_to(recorded.append)
    try:
        answer = alice.post("/v1/responses", following(shown, text, by_name=True))
    finally:
        spans.record_to(None)

    named = (logs.bound.get() or {}).get("run_id")
    assert named == (str(first) if answer.status_code == 200 else None)
    assert "create run" not in [span.name for span in recorded]
