"""Metadata and end users of threads and runs, over real HTTP."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.caller import Caller, error_of

METADATA = {"team": "red", "ticket.id": "T-1", "note": ""}


def shown(of: dict[str, Any]) -> tuple[Any, Any]:
    return of["end_user_id"], of["metadata"]


def test_client_data_is_in_every_representation(user: Caller) -> None:
    """What was given at creation is returned by each endpoint, and by the first event."""
    given = {"end_user_id": "user 7", "metadata": METADATA}
    thread = user.made("/v1/threads", given)
    made = user.made(f"/v1/threads/{thread['id']}/runs", {"metadata": {"run": "é \"'\\ ☂"}})
    events = user.events(made["run_id"])
    by_path = {
        row["id" if "threads?" in path else "run_id"]: shown(row)
        for path in ("/v1/threads?limit=1", "/v1/runs?limit=1", f"/v1/threads/{thread['id']}/runs")
        for row in user.get(path)
    }

    of_thread, of_run = ("user 7", METADATA), ("user 7", {"run": "é \"'\\ ☂"})
    assert of_thread == shown(thread) == shown(user.get(f"/v1/threads/{thread['id']}"))
    assert {thread["id"]: of_thread, made["run_id"]: of_run} == by_path
    assert of_run == shown(user.get_run(made["run_id"]))
    assert of_run[1] == events[0]["data"]["metadata"]


def test_a_runs_own_end_user_comes_before_its_threads(user: Caller) -> None:
    """A run inherits the end user of its thread unless it names its own; metadata is its own."""
    thread_id = user.thread("Hi", end_user_id="a", metadata={"of": "thread"})
    runs = []
    for body in ({"end_user_id": "b"}, {"end_user_id": None}, {}):
        runs.append(user.made(f"/v1/threads/{thread_id}/runs", body)["run_id"])
        user.ended(runs[-1])

    assert [("b", {}), ("a", {}), ("a", {})] == [shown(user.get_run(run_id)) for run_id in runs]


def test_a_retry_keeps_the_runs_client_data(user: Caller) -> None:
    """The new run of a retry has the metadata and the end user of the run before."""
    thread_id = user.thread("Hi")
    body = {"end_user_id": "b", "metadata": METADATA}
    user.ended(user.made(f"/v1/threads/{thread_id}/runs", body)["run_id"])

    retried = user.retry(thread_id).json()["run_id"]

    assert ("b", METADATA) == shown(user.ended(retried))


def test_of_many_posts_at_once_with_an_external_id_one_creates(user: Caller) -> None:
    """40 concurrent posts, half of them with the same key, make one thread."""

    def post(number: int) -> tuple[int, str]:
        answer = user.http.post(
            "/v1/threads",
            json={"external_id": "at once"},
            headers={"Idempotency-Key": f"key {number}"} if number % 2 else {},
        )
        return answer.status_code, answer.json()["id"]

    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(post, range(40)))

    assert {201: 1, 200: 39} == Counter(status for status, _ in answers)
    assert 1 == len({thread_id for _, thread_id in answers})


def test_the_metadata_of_a_run_changes_in_every_state(user: Caller) -> None:
    """While it waits and after its end; other fields cannot be changed."""
    run_id = user.run({"tool": "ask_user", "args": {"question": "?"}}, metadata={"a": "1", "b": ""})
    path = f"/v1/runs/{run_id}"
    user.until(run_id, "phase", "waiting")
    waiting = user.http.patch(path, json={"metadata": {"a": None, "c": "3"}})
    user.answer(run_id, "go on")
    user.ended(run_id)
    ended = user.http.patch(path, json={"metadata": {"c": "4"}})

    assert {"b": "", "c": "3"} == waiting.json()["metadata"]
    assert {"b": "", "c": "4"} == ended.json()["metadata"]
    assert user.get_run(run_id) == ended.json()
    assert (422, "validation.error") == error_of(user.http.patch(path, json={"end_user_id": "x"}))
    too_many = {"metadata": {f"k{i}": "" for i in range(31)}}
    assert (422, "validation.error") == error_of(user.http.patch(path, json=too_many))
