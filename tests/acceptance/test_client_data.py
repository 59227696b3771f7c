"""Metadata and end users of threads and runs, over real HTTP."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.caller import Caller, answered, error_of

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
    in_timeline = user.get(f"/v1/threads/{thread['id']}/timeline")[-1]

    of_thread, of_run = ("user 7", METADATA), ("user 7", {"run": "é \"'\\ ☂"})
    assert of_thread == shown(thread) == shown(user.get(f"/v1/threads/{thread['id']}"))
    assert {thread["id"]: of_thread, made["run_id"]: of_run} == by_path
    assert of_run == shown(user.get_run(made["run_id"])) == shown(in_timeline)
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
    """16 concurrent posts, half of them with the same key, make one thread."""

    def post(number: int) -> tuple[int, str]:
        headers = {"Idempotency-Key": f"key {number}"} if number % 2 else {}
        body = {"external_id": "at once"}
        answer = answered(lambda: user.http.post("/v1/threads", json=body, headers=headers))
        return answer.status_code, answer.json()["id"]

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(post, range(16)))

    assert {201: 1, 200: 15} == Counter(status for status, _ in answers)
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


def test_lists_are_filtered_by_client_data(user: Caller) -> None:
    """End user and up to four pairs of metadata filter together, and with pages."""
    runs = []
    for number in range(4):
        body = {
            "end_user_id": f"e{number % 2}",
            "metadata": {"a": "1", "b": str(number), "c": "é="},
        }
        thread = user.made("/v1/threads", {**body, "external_id": f"filter {number}"})
        runs.append((thread["id"], user.made(f"/v1/threads/{thread['id']}/runs", body)["run_id"]))

    def found(**query: str) -> list[tuple[str, str]]:
        pairs = [("/v1/threads", "id", 0), ("/v1/runs", "run_id", 1)]
        ids = [[row[name] for row in user.get(path, **query)] for path, name, _ in pairs]
        assert ids[0] == [thread for thread, run in runs[::-1] if run in ids[1]]
        return [one for one in runs if one[1] in ids[1]]

    assert runs == found(**{"metadata.a": "1", "metadata.c": "é="})
    assert runs[2:3] == found(**{"metadata.a": "1", "metadata.b": "2", "metadata.c": "é="})
    assert runs[1::2] == found(**{"metadata.a": "1", "end_user_id": "e1"})
    assert [] == found(**{"metadata.a": "2"})
    [thread] = user.get("/v1/threads", external_id="filter 3")
    assert (runs[3][0], runs[3:]) == (thread["id"], found(**{"metadata.b": "3"}))
    path = f"/v1/threads/{runs[0][0]}/runs"
    assert runs[0][1] == user.get(path, **{"metadata.b": "0"})[0]["run_id"]
    assert [] == user.get(path, **{"metadata.b": "1"})
    first = user.http.get("/v1/runs", params={"limit": 3, "metadata.c": "é="})
    rest = user.http.get(first.links["next"]["url"])
    assert [run for _, run in runs[::-1]] == [r["run_id"] for r in first.json() + rest.json()]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"metadata": "a"}, "metadata"),
        ({"metadata.": "a"}, "metadata."),
        ({"metadata.a b": "a"}, "metadata.a b"),
        ({"metadata.a": "v" * 513}, "metadata.a"),
        ({f"metadata.k{number}": "" for number in range(5)}, "metadata"),
        ({"end_user_id": ""}, "end_user_id"),
    ],
)
def test_bad_filters_are_refused(user: Caller, query: dict[str, str], field: str) -> None:
    """422 names the filter, in each list."""
    for path in ("/v1/threads", "/v1/runs"):
        answer = user.http.get(path, params=query)
        assert (422, [field]) == (answer.status_code, list(answer.json()["details"]))


def test_runs_are_filtered_by_what_they_are(user: Caller) -> None:
    """Thread, persona, route, key, error and time of creation are filters; rows show the error."""
    key_id, key = user.api_key()
    error = {"error": "invalid_request", "times": 9}
    failed = user.ended(user.at(token=key).run(error, persona_id="plain"))
    other = user.ended(user.run("Hi", persona_id="careful"))

    def found(**query: str) -> list[str]:
        ids = [row["run_id"] for row in user.get("/v1/runs", limit="200", **query)]
        return [run["run_id"] for run in (failed, other) if run["run_id"] in ids]

    both, [one, two] = [failed["run_id"], other["run_id"]], [[failed["run_id"]], [other["run_id"]]]
    assert one == found(thread_id=failed["thread_id"])
    assert one == found(persona="plain") == found(persona="plain@1")
    assert [] == found(persona="plain@2")
    assert both == found(route_id="scripted")
    assert [] == found(route_id="none")
    assert one == found(api_key_id=key_id)
    assert one == found(error_code="provider.invalid_request")
    assert one == found(error_code="provider.invalid_request", api_key_id=key_id, status="failed")
    assert two == found(created_after=other["created_at"])
    assert one == found(created_before=other["created_at"], created_after=failed["created_at"])
    [row] = user.get("/v1/runs", thread_id=failed["thread_id"])
    assert failed["error"] == row["error"]
    for query in (
        {"created_after": "yesterday"},
        {"created_after": "2026-02-01", "created_before": "2026-02-01"},
        {"persona": ""},
        {"route_id": "a b"},
        {"thread_id": "x"},
        {"api_key_id": "x"},
        {"error_code": ""},
    ):
        assert 422 == user.http.get("/v1/runs", params=query).status_code, query
