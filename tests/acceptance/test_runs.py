"""The runs' endpoints over real HTTP: what they answer, and to whom."""

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from arkloop.shared.catalog import personas
from arkloop.shared.ids import new_id
from tests.caller import Caller, answered, error_of
from tests.system import System

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
ASK = {"tool": "ask_user", "args": {"question": "Go on?"}}


@pytest.fixture(scope="module")
def ended_run(user: Caller) -> dict[str, Any]:
    """A run whose model reports its usage, in full."""
    usage = {"input_tokens": 1000, "output_tokens": 500, "cache_read_tokens": 400}
    return user.ended(user.run({"usage": usage}, {"say": "Hi"}, persona_id="plain"))


@pytest.mark.parametrize(
    "body", [None, "", "{}", '{"persona_id": null}', '{"persona_id": "", "route_id": ""}']
)
def test_a_run_can_be_created_without_choosing_anything(user: Caller, body: str | None) -> None:
    """A missing, empty or null body, and empty ids, mean the defaults."""
    answer = user.http.post(
        f"/v1/threads/{user.thread('Hi')}/runs",
        content=body,
        headers={} if body is None else {"Content-Type": "application/json"},
    )

    assert 201 == answer.status_code
    run = user.get_run(answer.json()["run_id"])
    assert ("assistant@1", "scripted") == (run["persona_id"], run["route_id"])


def test_a_run_can_be_created_in_a_thread_without_messages(user: Caller) -> None:
    """The model then has the persona's prompt alone."""
    run = user.ended(user.start(user.thread(), persona_id="plain"))

    assert "completed" == run["status"]
    assert len(personas.builtin()["plain@1"].system_prompt.split()) == run["usage"]["input_tokens"]


def test_the_newest_version_of_a_persona_is_taken_and_shown(user: Caller) -> None:
    """A persona without a version means the newest; the run keeps the exact one."""
    run = user.ended(user.run("Hi", persona_id="careful", route_id="scripted"))

    assert "careful@1" == run["persona_id"]


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        ({"persona_id": "nobody"}, "personas.not_found", "persona_id"),
        ({"persona_id": "assistant@99"}, "personas.not_found", "persona_id"),
        ({"route_id": "nowhere"}, "routes.not_found", "route_id"),
        ({"persona_id": "-x"}, "validation.error", "persona_id"),
        ({"persona_id": "a@"}, "validation.error", "persona_id"),
        ({"persona_id": "x" * 65}, "validation.error", "persona_id"),
        ({"route_id": "a b"}, "validation.error", "route_id"),
        ({"route_id": "a@1"}, "validation.error", "route_id"),
        ({"route_id": 1}, "validation.error", "route_id"),
        ({"model": "gpt"}, "validation.error", "model"),
    ],
)
def test_what_cannot_run_is_refused_at_once(
    user: Caller, body: dict[str, Any], code: str, field: str
) -> None:
    """Unknown personas and routes, malformed ids, unknown fields: 422 that names the field."""
    thread_id = user.thread("Hi")

    answer = user.http.post(f"/v1/threads/{thread_id}/runs", json=body)

    assert (422, code) == error_of(answer)
    assert [field] == list(answer.json()["details"])
    assert [] == user.get(f"/v1/threads/{thread_id}/runs")


def test_a_thread_has_one_active_run(user: Caller) -> None:
    """A waiting run counts: 409 names it, the thread shows it and cannot be deleted."""
    thread_id = user.thread("Hi")
    user.say(thread_id, '{"script": [{"tool": "ask_user", "args": {"question": "?"}}]}')
    run_id = user.start(thread_id)
    user.until(run_id, "status", "waiting_for_input")

    again = user.http.post(f"/v1/threads/{thread_id}/runs")
    deleted = user.http.delete(f"/v1/threads/{thread_id}")

    assert (409, "runs.thread_busy") == error_of(again)
    assert {"active_run_id": run_id} == again.json()["details"]
    assert (409, "runs.thread_busy") == error_of(deleted)
    assert run_id == user.get(f"/v1/threads/{thread_id}")["active_run_id"]
    user.cancel(run_id)
    assert user.get(f"/v1/threads/{thread_id}")["active_run_id"] is None
    assert user.start(thread_id)


def test_of_many_runs_started_at_once_one_is_accepted(system: System, user: Caller) -> None:
    """Two servers and eight clients: one 201, and seven 409 that name the winner."""
    thread_id = user.thread('{"script": [{"hang": 60}]}')
    callers = [user, user.at(system.web[1].url)] * 4

    def start(caller: Caller) -> httpx.Response:
        return answered(lambda: caller.http.post(f"/v1/threads/{thread_id}/runs"))

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(start, callers))

    winners = [answer.json()["run_id"] for answer in answers if answer.status_code == 201]
    assert 1 == len(winners)
    losers = [answer for answer in answers if answer.status_code == 409]
    assert 7 == len(losers)
    assert {winners[0]} == {answer.json()["details"]["active_run_id"] for answer in losers}
    user.cancel(winners[0])


def test_a_run_shows_every_field_of_the_contract(user: Caller, ended_run: dict[str, Any]) -> None:
    """`GET /v1/runs/{id}` has the seed's fields and those of the contract, with exact values."""
    run = dict(ended_run)
    for name in ("created_at", "started_at", "completed_at"):
        assert TIME.fullmatch(run.pop(name)), name
    rows = user.get(f"/v1/threads/{run.pop('thread_id')}/runs")
    assert [run.pop("run_id")] == [row["run_id"] for row in rows]
    assert re.fullmatch("[0-9a-f]{32}", run.pop("trace_id"))
    assert 0 <= run.pop("queue_ms") < 100_000
    [_, answer] = user.get(f"/v1/threads/{ended_run['thread_id']}/messages")
    assert answer["id"] == run.pop("message_id")

    assert {
        "org_id": user.org_id,
        "created_by_user_id": user.id,
        "status": "completed",
        "phase": "finished",
        "model": "scripted-1",
        "persona_id": "plain@1",
        "route_id": "scripted",
        "overrides": None,
        "end_user_id": None,
        "metadata": {},
        "attempt": 1,
        "last_seq": 5,
        "failed_at": None,
        "parent_run_id": None,
        "queue": None,
        "not_before": None,
        "superseded_by": None,
        "stop_reason": "stop",
        "cancelled_at": None,
        "waiting_ms": 0,
        "pending_input": None,
        "usage": {
            "input_tokens": 1000,
            "output_tokens": 500,
            "cache_read_tokens": 400,
            "source": "reported",
        },
        "steps": 1,
        "cost_usd": 0.00164,
        "tree_cost_usd": 0.00164,
        "output": "Hi",
        "error": None,
    } == run


def test_a_run_counts_its_finished_model_turns(user: Caller) -> None:
    """Turns before and after an answer count; a run that waits has its count already."""
    calculation = {"tool": "calculator", "args": {"expression": "6*7"}}
    run_id = user.run(calculation, calculation, ASK, {"say": "Done"})

    waiting = user.until(run_id, "status", "waiting_for_input")
    user.answer(run_id, "Yes")
    ended = user.ended(run_id)

    assert (3, None) == (waiting["steps"], waiting["output"])
    assert (4, "Done", "stop") == tuple(ended[n] for n in ("steps", "output", "stop_reason"))


def test_a_cancelled_run_has_no_output(user: Caller) -> None:
    """What it had said is a partial message of the thread, and named by its id alone."""
    run_id = user.run({"say": "Half of it"}, {"hang": 60})
    user.seen(run_id, "message.delta")
    user.cancel(run_id)
    run = user.ended(run_id)

    [_, partial] = user.get(f"/v1/threads/{run['thread_id']}/messages")
    assert (partial["id"], None, 0) == (run["message_id"], run["output"], run["steps"])
    assert partial["partial"]


def test_the_list_shows_the_row_of_the_seed(user: Caller, ended_run: dict[str, Any]) -> None:
    """`GET /v1/runs`: every field of the seed's row; cost, cache hits and credits are exact."""
    rows = {row["run_id"]: row for row in user.get("/v1/runs", limit=200)}
    row = rows[ended_run["run_id"]]
    duration_ms = row.pop("duration_ms")

    assert 0 <= duration_ms < 100_000
    assert {
        "run_id": ended_run["run_id"],
        "org_id": user.org_id,
        "thread_id": ended_run["thread_id"],
        "status": "completed",
        "phase": "finished",
        "model": "scripted-1",
        "persona_id": "plain@1",
        "end_user_id": None,
        "metadata": {},
        "total_input_tokens": 1000,
        "total_output_tokens": 500,
        # 600 fresh at 1, 400 from the cache at 0.1, 500 out at 2 USD per million.
        "total_cost_usd": 0.00164,
        "cache_hit_rate": 0.4,
        "credits_used": 2,
        "created_at": ended_run["created_at"],
        "completed_at": ended_run["completed_at"],
        "failed_at": None,
        "parent_run_id": None,
        "queue": None,
        "stop_reason": "stop",
        "error": None,
        "created_by_user_id": user.id,
        "created_by_user_name": user.login,
        "created_by_email": f"{user.login}@example.com",
    } == row


def test_a_walk_over_pages_sees_every_run_once(system: System) -> None:
    """Newest first; runs that are created meanwhile do not shift the pages."""
    user = system.caller()
    thread_ids = [user.thread("Hi") for _ in range(7)]
    created = [user.start(thread_id) for thread_id in thread_ids]

    seen: list[str] = []
    params: dict[str, Any] = {"limit": 3}
    while True:
        answer = user.http.get("/v1/runs", params=params)
        seen += [row["run_id"] for row in answer.json()]
        if "X-Next-Cursor" not in answer.headers:
            break
        params["before"] = answer.headers["X-Next-Cursor"]
        assert params["before"] in answer.headers["Link"]
        user.run("newer")

    assert list(reversed(created)) == seen
    assert 9 == len(user.get("/v1/runs"))


def test_a_threads_runs_are_listed_newest_first(user: Caller) -> None:
    """Rows of the seed's three fields and the client's data, page by page."""
    thread_id = user.thread("Hi")
    created = []
    for _ in range(3):
        created.append(user.start(thread_id))
        user.ended(created[-1])

    answer = user.http.get(f"/v1/threads/{thread_id}/runs", params={"limit": 2})
    rest = user.get(
        f"/v1/threads/{thread_id}/runs", limit=2, before=answer.headers["X-Next-Cursor"]
    )

    assert created[::-1] == [row["run_id"] for row in answer.json() + rest]
    fields = {"run_id", "status", "phase", "queue", "created_at", "end_user_id", "metadata"}
    assert fields == set(answer.json()[0])
    assert {"completed"} == {row["status"] for row in answer.json() + rest}
    assert TIME.fullmatch(answer.json()[0]["created_at"])


def test_the_list_can_be_filtered_by_status(system: System) -> None:
    """Each of the five statuses of the wire is accepted, and no other."""
    user = system.caller()
    made = {
        "running": user.run({"hang": 60}),
        "waiting_for_input": user.run(ASK),
        "completed": user.run("Hi"),
        "failed": user.run({"error": "invalid_request"}),
        "cancelled": user.run({"hang": 60}),
    }
    user.cancel(made["cancelled"])
    for status, run_id in made.items():
        user.until(run_id, "status", status)

    listed = {status: user.get("/v1/runs", status=status) for status in made}

    assert {status: [run_id] for status, run_id in made.items()} == {
        status: [row["run_id"] for row in rows] for status, rows in listed.items()
    }
    for path in ("/v1/runs?status=queued", "/v1/runs?status=", "/v1/runs?order=asc"):
        assert (422, "validation.error") == error_of(user.http.get(path))
    user.cancel(made["running"])


@pytest.mark.parametrize("query", ["limit=0", "limit=201", "limit=x", "limit=-1", "before=zzz"])
def test_bad_paging_is_refused(user: Caller, query: str) -> None:
    """`limit` is 1 to 200, `before` a cursor of this very list: else 422 that names it."""
    for path in ("/v1/runs", f"/v1/threads/{user.thread()}/runs"):
        answer = user.http.get(f"{path}?{query}")
        assert (422, "validation.error") == error_of(answer)
        assert [query.partition("=")[0]] == list(answer.json()["details"])


def test_a_create_with_an_idempotency_key_makes_one_run(system: System, user: Caller) -> None:
    """The first answer comes again, also while the thread is busy; another body is a conflict."""
    thread_id = user.thread('{"script": [{"hang": 60}]}')
    path = f"/v1/threads/{thread_id}/runs"
    headers = {"Idempotency-Key": "one"}

    def create(caller: Caller) -> Any:
        body = {"persona_id": "plain"}
        return answered(lambda: caller.http.post(path, json=body, headers=headers))

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(create, [user, user.at(system.web[1].url)] * 3))

    assert {201} == {answer.status_code for answer in answers}
    assert 1 == len({answer.text for answer in answers})
    assert 1 == len({answer.headers["Location"] for answer in answers})
    assert 5 == sum(answer.headers.get("Idempotency-Replayed") == "true" for answer in answers)
    other = user.http.post(path, json={}, headers=headers)
    assert (409, "idempotency.conflict") == error_of(other)
    user.cancel(answers[0].json()["run_id"])


def test_an_answer_that_is_no_success_is_not_kept(user: Caller) -> None:
    """The key of a refused request can be used again once the thread is free."""
    thread_id = user.thread('{"script": [{"hang": 60}]}')
    run_id = user.start(thread_id)
    path, headers = f"/v1/threads/{thread_id}/runs", {"Idempotency-Key": "two"}
    assert (409, "runs.thread_busy") == error_of(user.http.post(path, headers=headers))
    user.cancel(run_id)
    user.ended(run_id)

    answer = user.http.post(path, headers=headers)

    assert 201 == answer.status_code
    assert "Idempotency-Replayed" not in answer.headers
    user.cancel(answer.json()["run_id"])


def test_a_create_says_the_trace_id_of_the_run(user: Caller) -> None:
    """The same 32 hex digits in the create's answer and in the run."""
    created = user.http.post(f"/v1/threads/{user.thread('Hi')}/runs").json()

    assert re.fullmatch("[0-9a-f]{32}", created["trace_id"])
    assert created["trace_id"] == user.get_run(created["run_id"])["trace_id"]


@pytest.mark.parametrize("text", ["1", "0190C9A0-0000-7000-8000-000000000000", "x" * 36])
def test_an_id_of_another_form_is_refused(user: Caller, text: str) -> None:
    """Ids are UUIDv7 in lower case with dashes: everything else is 422."""
    for method, path in (
        ("GET", f"/v1/runs/{text}"),
        ("GET", f"/v1/runs/{text}/events"),
        ("POST", f"/v1/runs/{text}:cancel"),
        ("POST", f"/v1/runs/{text}/input"),
        ("POST", f"/v1/threads/{text}:retry"),
        ("GET", f"/v1/threads/{text}/runs"),
    ):
        answer = user.http.request(method, path)
        assert (422, "validation.error") == error_of(answer), (method, path)


def test_a_run_that_does_not_exist_is_not_found(user: Caller) -> None:
    """404 with the code of the thing that is missing."""
    run_id = thread_id = new_id()
    for method, path, code in (
        ("GET", f"/v1/runs/{run_id}", "runs.not_found"),
        ("GET", f"/v1/runs/{run_id}/events", "runs.not_found"),
        ("POST", f"/v1/runs/{run_id}:cancel", "runs.not_found"),
        ("POST", f"/v1/runs/{run_id}/stream-ticket", "runs.not_found"),
        ("POST", f"/v1/threads/{thread_id}/runs", "threads.not_found"),
        ("GET", f"/v1/threads/{thread_id}/runs", "threads.not_found"),
        ("POST", f"/v1/threads/{thread_id}:retry", "threads.not_found"),
        ("POST", f"/v1/runs/{run_id}:explode", "http.not_found"),
    ):
        assert (404, code) == error_of(user.http.request(method, path)), (method, path)
    answer = user.answer(str(run_id), "yes")
    assert (404, "runs.not_found") == error_of(answer)


def test_a_wrong_method_names_the_right_ones(user: Caller, ended_run: dict[str, Any]) -> None:
    """A wrong method gets 405 with `Allow`."""
    answer = user.http.delete(f"/v1/runs/{ended_run['run_id']}")

    assert (405, "http.method_not_allowed") == error_of(answer)
    assert {"GET", "HEAD", "OPTIONS", "PATCH"} == set(answer.headers["Allow"].split(", "))
