"""Retry: the last round again, with what it leaves and what it takes away."""

from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select

from arkloop.shared.storage.tables.threads import messages
from tests.caller import Caller, error_of, script
from tests.system import System

CALCULATE = {"tool": "calculator", "args": {"expression": "1+1"}}


def retried(user: Caller, thread_id: str) -> dict[str, Any]:
    """Retry; returns the new run when it has ended."""
    answer = user.retry(thread_id)
    assert 201 == answer.status_code, answer.text
    assert {"run_id", "trace_id"} == set(answer.json())
    assert f"/v1/runs/{answer.json()['run_id']}" == answer.headers["Location"]
    return user.ended(answer.json()["run_id"])


def first_run(user: Caller, *contents: str, **choice: str) -> tuple[str, dict[str, Any]]:
    """Make a thread; returns it and its first run, which has ended."""
    thread_id = user.thread(*contents)
    return thread_id, user.ended(user.start(thread_id, **choice))


def test_the_last_answer_is_replaced(system: System, user: Caller) -> None:
    """The assistant's turn disappears from the thread and stays in the database."""
    thread_id, first = first_run(user, "Hi")
    old = user.get(f"/v1/threads/{thread_id}/messages")[-1]

    second = retried(user, thread_id)

    assert first["run_id"] != second["run_id"]
    assert "completed" == second["status"]
    assert [("user", "Hi", False), ("assistant", "You said: Hi", False)] == user.messages(thread_id)
    new = user.get(f"/v1/threads/{thread_id}/messages")[-1]
    assert [first["run_id"], second["run_id"]] == [old["run_id"], new["run_id"]]
    with system.connections.reading() as sql:
        superseded = select(messages.c.superseded_at).where(messages.c.id == UUID(old["id"]))
        assert sql.scalar(superseded) is not None


def test_a_message_of_the_user_stays(user: Caller) -> None:
    """The last message is the user's: nothing disappears, the thread simply runs again."""
    thread_id, _ = first_run(user, "one")
    user.say(thread_id, "two")

    retried(user, thread_id)

    assert ["one", "You said: one", "two", "You said: two"] == [
        content for _, content, _ in user.messages(thread_id)
    ]


def test_a_thread_that_never_ran_is_run(user: Caller) -> None:
    """A message and no run yet: the defaults."""
    thread_id = user.thread("Hi")

    run = retried(user, thread_id)

    assert ("assistant@1", "scripted") == (run["persona_id"], run["route_id"])
    assert "You said: Hi" == user.messages(thread_id)[-1][1]


def test_an_empty_thread_has_nothing_to_retry(user: Caller) -> None:
    """400 `runs.invalid_state`, and no run."""
    thread_id = user.thread()

    assert (400, "runs.invalid_state") == error_of(user.retry(thread_id))
    assert [] == user.get(f"/v1/threads/{thread_id}/runs")


def test_an_active_run_is_not_retried(user: Caller) -> None:
    """409 names it; the thread stays as it is."""
    thread_id, _ = first_run(user, "Hi")
    user.say(thread_id, script({"hang": 100}))
    run_id = user.start(thread_id)

    answer = user.retry(thread_id)

    assert (409, "runs.thread_busy") == error_of(answer)
    assert {"active_run_id": run_id} == answer.json()["details"]
    assert 3 == len(user.messages(thread_id))
    user.cancel(run_id)


def test_route_and_persona_are_kept(user: Caller) -> None:
    """The new run has those of the last one, in its exact version."""
    thread_id, _ = first_run(user, "Hi", persona_id="plain", route_id="scripted")

    run = retried(user, thread_id)

    assert ("plain@1", "scripted") == (run["persona_id"], run["route_id"])


def test_a_failed_run_can_be_retried(user: Caller) -> None:
    """The message that it failed at is there once, and the model sees it once."""
    message = script({"say": "a part"}, {"error": "invalid_request", "times": 1})
    thread_id, first = first_run(user, message)

    second = retried(user, thread_id)

    assert ["failed"] * 2 == [first["status"], second["status"]]
    assert [("user", message, False)] == user.messages(thread_id)


def test_a_retry_removes_the_partial_message_of_a_cancelled_run(user: Caller) -> None:
    """A retry deletes the partial message of a cancelled run, as it deletes a whole one."""
    thread_id = user.thread(script({"say": "a part"}, {"hang": 100}))
    run_id = user.start(thread_id)
    user.seen(run_id, "message.delta")
    user.cancel(run_id)
    user.ended(run_id)
    assert ("assistant", "a part", True) == user.messages(thread_id)[-1]

    again = user.retry(thread_id).json()["run_id"]

    assert ["user"] == [role for role, _, _ in user.messages(thread_id)]
    user.cancel(again)


@pytest.mark.parametrize("last", [{"say": "two"}, {"error": "invalid_request"}])
def test_tool_turns_of_a_retried_run_are_not_seen_again(user: Caller, last: dict[str, Any]) -> None:
    """The model's input is to the word what it was the first time; of a failed run too."""
    thread_id, first = first_run(user, "Hi")
    user.say(thread_id, script(CALCULATE, CALCULATE, last))
    second = user.ended(user.start(thread_id))

    third = retried(user, thread_id)
    fourth = retried(user, thread_id)

    assert second["usage"]["input_tokens"] > first["usage"]["input_tokens"]
    assert second["usage"] == third["usage"] == fourth["usage"]


def test_a_retry_twice_at_once_makes_one_run(user: Caller) -> None:
    """An `Idempotency-Key` gives the first answer again, though the thread is busy."""
    thread_id = user.thread(script({"hang": 100}))
    path, headers = f"/v1/threads/{thread_id}:retry", {"Idempotency-Key": "again"}

    first = user.http.post(path, headers=headers)
    second = user.http.post(path, headers=headers)

    assert [201, 201] == [first.status_code, second.status_code]
    assert first.json() == second.json()
    assert "true" == second.headers["Idempotency-Replayed"]
    user.cancel(first.json()["run_id"])


def test_a_retry_takes_no_body(user: Caller) -> None:
    """None and an empty object are the same; a field is unknown."""
    thread_id = user.thread("Hi")
    answer = user.http.post(f"/v1/threads/{thread_id}:retry", json={"route_id": "scripted"})

    assert (422, "validation.error") == error_of(answer)
    assert 201 == user.http.post(f"/v1/threads/{thread_id}:retry", json={}).status_code


def test_earlier_rounds_keep_their_tool_turns(user: Caller) -> None:
    """A retry repeats the last round alone, also when no message of a user stands between two
    rounds.
    """
    thread_id, _first = first_run(user, script(CALCULATE, {"say": "two"}))
    second = user.ended(user.start(thread_id))

    third = retried(user, thread_id)

    assert [second["usage"]["input_tokens"]] == [third["usage"]["input_tokens"]]
    assert 3 == len(user.messages(thread_id))
