"""Responses to requests that create a run: its event stream, or the run when it is at rest."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import httpx
import pytest

from tests.caller import Caller, answered, asking, error_of, parsed, script, types, until_broken_off
from tests.system import System
from tests.waiting import eventually

pytestmark = pytest.mark.processes

STREAM = {"Accept": "text/event-stream"}
ASK = script({"tool": "ask_user", "args": {"question": "Go on?"}}, {"say": "Done"})
SLOW = script({"say": "Half"}, {"hang": 90})


@contextmanager
def streamed(caller: Caller, body: dict[str, Any], **headers: str) -> Iterator[httpx.Response]:
    headers = {**STREAM, **headers}
    with caller.http.stream("POST", "/v1/runs", json=body, headers=headers) as answer:
        yield answer


def waited(caller: Caller, body: dict[str, Any], seconds: object, **headers: str) -> httpx.Response:
    headers = {"Prefer": f"wait={seconds}", **headers}
    return caller.http.post("/v1/runs", json=body, headers=headers)


def run_of(answer: httpx.Response) -> str:
    """Return the id of the run that the response's address names."""
    return answer.headers["Location"].removeprefix("/v1/runs/")


# ---- the stream ----------------------------------------------------------------------


def newest_run(caller: Caller) -> str | None:
    """Return the id of the caller's newest run; earlier runs may still change otherwise."""
    return next((run["run_id"] for run in caller.get("/v1/runs", limit=1)), None)


def test_a_create_responds_with_the_stream_of_its_run(user: Caller) -> None:
    """201 with the run's address, and exactly the events that its own stream has."""
    with streamed(user, {"message": "Hi"}) as answer:
        events = list(parsed(answer))

    assert (201, "text/event-stream") == (answer.status_code, answer.headers["Content-Type"])
    assert ("run.started", "run.completed") == (types(events)[0], types(events)[-1])
    assert events == user.events(run_of(answer))


def test_the_stream_is_live(user: Caller) -> None:
    """Text arrives while the run still executes."""
    with streamed(user, {"message": SLOW}) as answer:
        seen = next(event for event in parsed(answer) if event["type"] == "message.delta")
        assert "executing" == user.get_run(run_of(answer))["phase"]

    assert "Half" == seen["data"]["content"]
    user.cancel(run_of(answer))


def test_a_refused_create_responds_with_an_error(user: Caller) -> None:
    """The error has the one shape of errors, whatever the client accepts."""
    thread_id = user.thread(SLOW)
    run_id = user.start(thread_id)

    for body, status in (({"thread_id": thread_id, "message": "x"}, 409), ({}, 422)):
        refused = user.http.post("/v1/runs", json=body, headers=STREAM)
        assert status == error_of(refused)[0]
        assert "application/json" == refused.headers["Content-Type"]
    user.cancel(run_id)


@pytest.mark.parametrize("accept", ["*/*", "application/json, text/event-stream", "text/html"])
def test_other_clients_get_json(user: Caller, accept: str) -> None:
    """Only a client that prefers events gets them."""
    answer = user.http.post("/v1/runs", json={"message": "Hi"}, headers={"Accept": accept})

    assert (201, "application/json") == (answer.status_code, answer.headers["Content-Type"])


def test_a_repeated_create_streams_the_same_run_from_its_start(user: Caller) -> None:
    """The idempotency key counts when the run has ended, too, and for a client without a stream."""
    key = {"Idempotency-Key": "streamed"}
    body = {"message": "Hi"}
    with streamed(user, body, **key) as first:
        events = list(parsed(first))

    with streamed(user, body, **key) as again:
        assert events == list(parsed(again))
    plain = user.http.post("/v1/runs", json=body, headers=key)

    assert run_of(first) == run_of(again) == plain.json()["run_id"]
    assert "Idempotency-Replayed" not in first.headers
    assert "true" == again.headers["Idempotency-Replayed"] == plain.headers["Idempotency-Replayed"]


def test_a_client_that_leaves_does_not_stop_the_run(user: Caller) -> None:
    """The answer is in the thread all the same."""
    body = {"message": script({"say": "one two three four five", "delay_ms": 500})}
    with streamed(user, body) as answer:
        next(answer.iter_bytes())

    assert "completed" == user.ended(run_of(answer))["status"]


@pytest.mark.parametrize("waits", [False, True])
def test_a_client_that_leaves_can_cancel_the_run(user: Caller, waits: bool) -> None:
    """`on_disconnect: cancel` works for a stream and for a client that waits."""
    body = {"message": SLOW, "on_disconnect": "cancel", "metadata": {"waits": str(waits)}}
    if waits:
        before = newest_run(user)
        json_headers = {"Content-Type": "application/json", "Prefer": "wait=60"}
        with asking(user, "/v1/runs", body, **json_headers):
            eventually(lambda: newest_run(user) != before)
        run_id = str(newest_run(user))
    else:
        with streamed(user, body) as answer:
            next(answer.iter_bytes())
        run_id = run_of(answer)

    run = user.ended(run_id)
    assert ("cancelled", {"waits": str(waits)}) == (run["status"], run["metadata"])


def test_a_server_that_stops_does_not_cancel_the_run(system: System, user: Caller) -> None:
    """Its client has not left: it follows the run at another server."""
    body = {"message": SLOW, "on_disconnect": "cancel"}
    with system.one_more_web_server() as server:
        with streamed(user.at(server.url), body) as answer:
            user.seen(run_of(answer), "message.delta")
            os.kill(server.pid, signal.SIGTERM)
            until_broken_off(answer)
        eventually(lambda: not server.answers())

    assert "executing" == user.get_run(run_of(answer))["phase"]
    user.cancel(run_of(answer))


def test_leaving_requires_something_to_leave(user: Caller) -> None:
    """422 names the field, and nothing is created."""
    before = newest_run(user)

    answer = user.http.post("/v1/runs", json={"message": "Hi", "on_disconnect": "cancel"})

    assert (422, "validation.error") == error_of(answer)
    assert ["on_disconnect"] == list(answer.json()["details"])
    assert before == newest_run(user)


@pytest.mark.parametrize("headers", [STREAM, {"Prefer": "wait=1"}])
def test_a_key_that_may_not_read_creates_nothing(user: Caller, headers: dict[str, str]) -> None:
    """A response with more than the run's id requires `data.runs.read`."""
    _, secret = user.api_key(scopes=["data.runs.write", "data.threads.write"])
    before = newest_run(user)

    answer = user.at(token=secret).http.post("/v1/runs", json={"message": "Hi"}, headers=headers)

    assert (403, "auth.forbidden") == error_of(answer)
    assert before == newest_run(user)


# ---- the run at rest -----------------------------------------------------------------


def test_a_client_can_wait_for_the_answer(user: Caller) -> None:
    """The response is the run as `GET` shows it, and says how long it would have waited."""
    answer = waited(user, {"message": "Hi", "persona_id": "plain"}, 90)

    assert (201, "wait=60") == (answer.status_code, answer.headers["Preference-Applied"])
    run = answer.json()
    assert ("completed", 1) == (run["status"], run["steps"])
    assert user.get_run(run["run_id"]) == run
    assert [("user", "Hi", False), ("assistant", run["output"], False)] == user.messages(
        run["thread_id"]
    )


def test_a_wait_ends_when_the_run_needs_input(user: Caller) -> None:
    """The response has the question; a retry of the thread can be waited for as well."""
    run = waited(user, {"message": ASK}, 30).json()

    assert ("waiting_for_input", "Go on?") == (run["status"], run["pending_input"]["prompt"])
    user.answer(run["run_id"], "Yes")
    assert "Done" == user.ended(run["run_id"])["output"]
    path = f"/v1/threads/{run['thread_id']}:retry"
    retried = user.http.post(path, headers={"Prefer": "wait=30"}).json()
    assert "waiting_for_input" == retried["status"]
    user.cancel(retried["run_id"])


def test_a_wait_that_is_over_shows_the_run_as_it_is(user: Caller) -> None:
    """201 as well: the run was created. A replay waits for the same run again."""
    key = {"Idempotency-Key": "waited"}
    body = {"message": SLOW}
    began = time.monotonic()
    first = waited(user, body, 1, **key)
    length = time.monotonic() - began
    again = waited(user, body, 0, **key)
    user.cancel(run_of(first))
    last = waited(user, body, 30, **key)

    assert 1 <= length < 50
    assert [(201, "running"), (201, "running"), (201, "cancelled")] == [
        (answer.status_code, answer.json()["status"]) for answer in (first, again, last)
    ]
    assert 1 == len({run_of(answer) for answer in (first, again, last)})


@pytest.mark.parametrize("prefer", ["wait=x", "wait=-1", "wait", "respond-async"])
def test_a_preference_of_another_form_is_ignored(user: Caller, prefer: str) -> None:
    """RFC 7240 demands it; the response does not claim to have applied it."""
    body = {"message": "Hi"}

    answer = user.http.post("/v1/runs", json=body, headers={"Prefer": prefer})

    assert {"run_id", "thread_id", "trace_id"} == set(answer.json())
    assert "Preference-Applied" not in answer.headers


def test_clients_that_wait_hold_no_connection_to_the_database(system: System, user: Caller) -> None:
    """Twenty wait at a server with two connections, which keeps serving until the runs end."""
    body = {"message": SLOW, "metadata": {"crowd": "1"}}

    def crowd() -> list[str]:
        rows = user.get("/v1/runs", limit=200)
        return [row["run_id"] for row in rows if row["metadata"] == body["metadata"]]

    with system.one_more_web_server(ARKLOOP_DATABASE_POOL_SIZE="2") as server:
        caller = user.at(server.url)
        with ThreadPoolExecutor(20) as pool:
            ask = partial(answered, partial(waited, caller, body, 60))
            waits = [pool.submit(ask) for _ in range(20)]
            eventually(lambda: len(crowd()) == 20)
            served = [answered(lambda: caller.http.get("/v1/me")) for _ in range(10)]
            was_waiting = not any(wait.done() for wait in waits)
            for run_id in crowd():
                user.cancel(run_id)
            answers = [wait.result() for wait in waits]

    assert was_waiting
    assert [200] * 10 == [one.status_code for one in served]
    assert {(201, "cancelled")} == {(one.status_code, one.json()["status"]) for one in answers}


def test_a_server_that_stops_answers_those_who_wait(system: System, user: Caller) -> None:
    """They get the run as it is, so that no client loses the id of a run that was created."""
    with ThreadPoolExecutor(1) as pool:
        with system.one_more_web_server() as server:
            waiting = pool.submit(waited, user.at(server.url), {"message": SLOW}, 60)
            eventually(lambda: user.get("/v1/runs", limit=1, status="running") != [])
            run_id = user.get("/v1/runs", limit=1)[0]["run_id"]
            user.seen(run_id, "message.delta")
            os.kill(server.pid, signal.SIGTERM)
            answer = waiting.result(45)

    assert (201, "running", run_id) == (
        *(answer.status_code, answer.json()["status"]),
        answer.json()["run_id"],
    )
    user.cancel(run_id)
