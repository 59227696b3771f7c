"""A turn in one request: thread, message and run are created together, or not at all."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx
import psutil
import pytest

from arkloop.shared.ids import new_id
from tests.caller import Caller, answered, error_of, script
from tests.system import System
from tests.waiting import eventually

pytestmark = pytest.mark.processes

HANG = script({"hang": 60})


def turn(caller: Caller, body: dict[str, Any], **headers: str) -> httpx.Response:
    return caller.http.post("/v1/runs", json=body, headers=headers)


def left_behind(caller: Caller) -> tuple[int, int]:
    """Return how many threads and runs the org has."""
    return len(caller.get("/v1/threads", limit=200)), len(caller.get("/v1/runs", limit=200))


def test_one_request_makes_a_thread_a_message_and_a_run(user: Caller) -> None:
    """The response names the run and its thread, which has the answer soon after."""
    made = turn(
        user,
        {
            "thread": {"title": "New", "is_private": True, "metadata": {"plan": "pro"}},
            "message": "Hi",
            "persona_id": "plain",
            "end_user_id": "ada",
            "metadata": {"ticket": "7"},
        },
    )

    assert 201 == made.status_code
    assert {"run_id", "thread_id", "trace_id"} == set(made.json())
    assert f"/v1/runs/{made.json()['run_id']}" == made.headers["Location"]
    run = user.ended(made.json()["run_id"])
    thread = user.get(f"/v1/threads/{run['thread_id']}")
    assert made.json()["thread_id"] == thread["id"]
    assert ("New", True, "ada", {"plan": "pro"}) == tuple(
        thread[name] for name in ("title", "is_private", "end_user_id", "metadata")
    )
    assert ("completed", "ada", {"ticket": "7"}) == tuple(
        run[name] for name in ("status", "end_user_id", "metadata")
    )
    said = [("user", "Hi", False), ("assistant", run["output"], False)]
    assert said == user.messages(thread["id"])


@pytest.mark.parametrize("names_thread", [True, False])
def test_one_request_continues_a_thread(user: Caller, names_thread: bool) -> None:
    """A thread is named in the body or in the path; a message may have metadata."""
    thread_id = user.thread()
    for number in range(2):
        body: dict[str, Any] = {
            "message": {"content": f"Turn {number}", "metadata": {"n": str(number)}}
        }
        path = "/v1/runs" if names_thread else f"/v1/threads/{thread_id}/runs"
        created = user.made(path, {**body, "thread_id": thread_id} if names_thread else body)
        assert ("thread_id" in created) == names_thread
        user.ended(created["run_id"])

    messages = user.get(f"/v1/threads/{thread_id}/messages")
    assert ["user", "assistant"] * 2 == [message["role"] for message in messages]
    assert [{"n": "0"}, {}, {"n": "1"}, {}] == [message["metadata"] for message in messages]


def test_turns_share_the_thread_of_an_external_id(user: Caller) -> None:
    """The first one creates it; the next one is refused while that runs, then continues it."""
    body = {"thread": {"external_id": "ticket 7", "title": "Ticket"}, "persona_id": "plain"}
    first = turn(user, {**body, "message": HANG}).json()
    refused = turn(user, {**body, "message": "Too early"})
    user.cancel(first["run_id"])
    user.ended(first["run_id"])
    second = turn(user, {**body, "message": "Next"}, **{"Idempotency-Key": "second"}).json()
    user.ended(second["run_id"])
    third = turn(user, {**body, "message": "Last"}).json()
    user.ended(third["run_id"])

    assert (409, "runs.thread_busy") == error_of(refused)
    assert first["thread_id"] == second["thread_id"] == third["thread_id"]
    said = [content for role, content, _ in user.messages(first["thread_id"]) if role == "user"]
    assert [HANG, "Next", "Last"] == said


def test_a_refused_turn_leaves_no_thread_of_an_external_id(user: Caller) -> None:
    """A turn whose message refers to a file that does not exist leaves none either."""
    content = [{"type": "image", "file_id": str(new_id())}]
    body = {"thread": {"external_id": "gone"}, "message": {"content": content}}

    answers = [turn(user, body), turn(user, body, **{"Idempotency-Key": "gone"})]

    assert [(422, "validation.error")] * 2 == [error_of(answer) for answer in answers]
    assert {"message.content.0.file_id"} == answers[0].json()["details"].keys()
    assert 201 == user.http.post("/v1/threads", json={"external_id": "gone"}).status_code


def test_a_thread_in_the_body_needs_no_message(user: Caller) -> None:
    """The run then answers what is in the thread."""
    made = user.made("/v1/runs", {"thread_id": user.thread("Hi"), "persona_id": "plain"})

    assert "completed" == user.ended(made["run_id"])["status"]


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, ["message"]),
        ({"thread": {"title": "x"}}, ["message"]),
        ({"message": ""}, ["message.content"]),
        ({"message": {"content": "Hi", "role": "assistant"}}, ["message.role"]),
        ({"message": ["Hi"]}, ["message"]),
        ({"message": "Hi", "thread": {"title": ""}}, ["thread.title"]),
        ({"message": "Hi", "thread": {"id": "x"}}, ["thread.id"]),
        ({"message": "Hi", "thread_id": str(new_id()), "thread": {}}, ["thread"]),
        ({"message": "Hi", "persona_id": "nobody"}, ["persona_id"]),
        ({"message": "Hi", "route_id": "nowhere"}, ["route_id"]),
        ({"message": "Hi", "limits": {"max_steps": 1000}}, ["limits.max_steps"]),
        ({"message": "Hi", "metadata": {"a b": "c"}}, ["metadata.a b"]),
    ],
)
def test_a_turn_that_is_not_valid_leaves_nothing(
    user: Caller, body: dict[str, Any], fields: list[str]
) -> None:
    """422 names the field; there is no thread, and no run."""
    before = left_behind(user)

    answer = turn(user, body)

    assert 422 == answer.status_code
    assert fields == list(answer.json()["details"])
    assert before == left_behind(user)


def test_a_turn_in_a_busy_thread_leaves_no_message(user: Caller) -> None:
    """409 names the active run; the same request succeeds when it has ended."""
    thread_id = user.thread(HANG)
    run_id = user.start(thread_id)
    body = {"thread_id": thread_id, "message": "Next"}

    refused = turn(user, body)

    assert (409, "runs.thread_busy") == error_of(refused)
    assert {"active_run_id": run_id} == refused.json()["details"]
    assert [("user", HANG, False)] == user.messages(thread_id)
    user.cancel(run_id)
    user.ended(run_id)
    assert 201 == turn(user, body).status_code


def test_a_turn_without_money_leaves_nothing(system: System) -> None:
    """Neither the thread nor the message of a run that no budget pays for."""
    user = system.caller()
    thread_id = user.thread()
    budget = {"max_cost_usd_per_month": 0}
    user.put("/v1/budget", budget)
    before = left_behind(user)

    answers = [turn(user, {"message": "Hi", **named}) for named in ({}, {"thread_id": thread_id})]

    assert [(429, "budget.exhausted")] * 2 == [error_of(answer) for answer in answers]
    assert before == left_behind(user)
    assert [] == user.messages(thread_id)


def test_a_key_without_the_scope_writes_no_message(user: Caller) -> None:
    """A run alone requires `data.runs.write`; with a message it requires `data.threads.write`."""
    _, secret = user.api_key(scopes=["data.runs.write"])
    limited = user.at(token=secret)
    thread_id = user.thread("Hi")

    assert (403, "auth.forbidden") == error_of(turn(limited, {"message": "Hi"}))
    path = f"/v1/threads/{thread_id}/runs"
    assert (403, "auth.forbidden") == error_of(limited.http.post(path, json={"message": "x"}))
    assert 201 == turn(limited, {"thread_id": thread_id}).status_code


def test_a_thread_of_another_org_is_not_found(system: System, user: Caller) -> None:
    """Every other request with its id gets the same error."""
    thread_id = system.caller().thread("Hi")

    answer = turn(user, {"thread_id": thread_id, "message": "Hi"})

    assert (404, "threads.not_found") == error_of(answer)


def test_of_many_turns_at_once_one_is_accepted(system: System, user: Caller) -> None:
    """Two servers and eight clients get one 201, and no message of the seven others is stored."""
    thread_id = user.thread()
    callers = [user, user.at(system.web[1].url)] * 4

    def ask(number: int) -> httpx.Response:
        content = script({"say": str(number)}, {"hang": 60})
        body = {"thread_id": thread_id, "message": content}
        return answered(lambda: turn(callers[number], body))

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))

    [winner] = [number for number, answer in enumerate(answers) if answer.status_code == 201]
    losers = [answer for number, answer in enumerate(answers) if number != winner]
    run_id = answers[winner].json()["run_id"]
    assert {(409, run_id)} == {
        (answer.status_code, answer.json()["details"]["active_run_id"]) for answer in losers
    }
    user.cancel(run_id)
    [said] = [content for role, content, _ in user.messages(thread_id) if role == "user"]
    assert script({"say": str(winner)}, {"hang": 60}) == said


def test_a_repeated_turn_is_made_once(system: System, user: Caller) -> None:
    """The idempotency key gives one thread, one message, one run, and the same response."""
    before = left_behind(user)
    callers = [user, user.at(system.web[1].url)] * 3

    with ThreadPoolExecutor(6) as pool:
        headers = {"Idempotency-Key": "a turn"}
        answers = list(
            pool.map(lambda c: answered(lambda: turn(c, {"message": "Hi"}, **headers)), callers)
        )

    assert {201} == {answer.status_code for answer in answers}
    assert 1 == len({answer.text for answer in answers})
    assert 5 == sum(answer.headers.get("Idempotency-Replayed") == "true" for answer in answers)
    assert (before[0] + 1, before[1] + 1) == left_behind(user)
    made = answers[0].json()
    user.ended(made["run_id"])
    assert 2 == len(user.messages(made["thread_id"]))


def test_a_killed_server_leaves_whole_turns(system: System) -> None:
    """Its processes die in the middle of many creates: each thread has one message and one run,
    and a client that repeats its request with the same key gets the turn that was made.
    """
    user = system.caller()
    responses: dict[int, dict[str, Any]] = {}

    def ask(number: int, caller: Caller) -> None:
        body = {"message": f"Turn {number}", "persona_id": "plain"}
        with suppress(httpx.TransportError):
            made = answered(lambda: turn(caller, body, **{"Idempotency-Key": str(number)}))
            if made.status_code == 201:
                responses[number] = made.json()

    with system.one_more_web_server() as server, ThreadPoolExecutor(16) as pool:
        doomed, processes = user.at(server.url), psutil.Process(server.pid).children()
        asked = [pool.submit(ask, number, doomed) for number in range(120)]
        eventually(lambda: len(responses) > 20)
        for process in processes:
            process.kill()
        for one in asked:
            one.result()
    survived = dict(responses)
    assert 20 < len(survived) < 120
    whole_turns(user)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: ask(number, user), range(120)))

    assert survived == {number: responses[number] for number in survived}
    assert 120 == len(responses) == whole_turns(user)


def whole_turns(user: Caller) -> int:
    """Check that each thread of the org has one message of the user and one run; count them."""
    threads = walked(user, "/v1/threads")
    runs = walked(user, "/v1/runs")
    assert Counter(thread["id"] for thread in threads) == Counter(run["thread_id"] for run in runs)
    for thread in threads:
        said = [content for role, content, _ in user.messages(thread["id"]) if role == "user"]
        assert 1 == len(said)
    return len(threads)


def walked(user: Caller, path: str) -> list[dict[str, Any]]:
    """Return all pages of a list."""
    rows: list[dict[str, Any]] = []
    params = {"limit": "200"}
    while True:
        answer = user.http.get(path, params=params)
        rows += answer.json()
        if "X-Next-Cursor" not in answer.headers:
            return rows
        params["before"] = answer.headers["X-Next-Cursor"]
