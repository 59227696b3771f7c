"""Access to runs, to see and to change them: orgs, private threads, roles, scopes, tokens."""

from typing import Any

import httpx
import pytest

from arkloop.shared.ids import new_id
from tests.caller import Caller, client, error_of
from tests.system import System

pytestmark = pytest.mark.processes


def requests_for(thread_id: str, run_id: str) -> list[tuple[str, str, Any]]:
    """List every way to reach a run: method, path, body."""
    return [
        ("GET", f"/v1/threads/{thread_id}/runs", None),
        ("GET", f"/v1/runs/{run_id}", None),
        ("GET", f"/v1/runs/{run_id}/events", None),
        ("HEAD", f"/v1/runs/{run_id}/events", None),
        ("POST", f"/v1/runs/{run_id}/stream-ticket", None),
        *writes_for(thread_id, run_id),
    ]


def writes_for(thread_id: str, run_id: str) -> list[tuple[str, str, Any]]:
    return [
        ("POST", f"/v1/threads/{thread_id}/runs", {}),
        ("POST", f"/v1/threads/{thread_id}:retry", None),
        ("POST", f"/v1/runs/{run_id}:cancel", None),
        ("POST", f"/v1/runs/{run_id}/input", {"content": "yes"}),
    ]


def without_trace(answer: httpx.Response) -> dict[str, Any]:
    return {name: value for name, value in answer.json().items() if name != "trace_id"}


def waiting_run(user: Caller, **fields: Any) -> tuple[str, str]:
    """Start a run that waits for a person; returns its thread and its id."""
    thread_id = user.thread(
        '{"script": [{"tool": "ask_user", "args": {"question": "?"}}]}', **fields
    )
    run_id = user.start(thread_id)
    user.until(run_id, "status", "waiting_for_input")
    return thread_id, run_id


def assert_hidden(stranger: Caller, thread_id: str, run_id: str) -> None:
    """Check that every response is that for ids that do not exist, and that no list has the run."""
    for real, imagined in zip(
        requests_for(thread_id, run_id),
        requests_for(str(new_id()), str(new_id())),
        strict=True,
    ):
        answer = stranger.http.request(real[0], real[1], json=real[2])
        expected = stranger.http.request(imagined[0], imagined[1], json=imagined[2])
        assert 404 == answer.status_code, real
        assert expected.status_code == answer.status_code
        if real[0] != "HEAD":
            assert without_trace(expected) == without_trace(answer), real
    assert run_id not in [row["run_id"] for row in stranger.get("/v1/runs", limit=200)]


def test_another_org_sees_nothing(system: System, user: Caller) -> None:
    """404 everywhere, as for a run that does not exist; nothing about the run changes."""
    thread_id, run_id = waiting_run(user)
    before = user.get_run(run_id)

    assert_hidden(system.caller(), thread_id, run_id)

    after = user.get_run(run_id)
    assert before | {"waiting_ms": 0} == after | {"waiting_ms": 0}


def test_a_private_threads_runs_are_seen_by_their_creator_alone(
    system: System, user: Caller
) -> None:
    """A private thread's runs are visible to its creator, and not even to an admin of the org."""
    member = system.colleague(user)
    thread_id, run_id = waiting_run(member, is_private=True)

    assert_hidden(system.colleague(user, "admin"), thread_id, run_id)
    assert_hidden(user, thread_id, run_id)

    assert run_id in [row["run_id"] for row in member.get("/v1/runs")]
    assert 200 == member.answer(run_id, "yes").status_code


def test_a_deleted_threads_runs_are_gone(user: Caller) -> None:
    """404 as for a run that does not exist."""
    thread_id = user.thread("Hi")
    run_id = user.start(thread_id)
    user.ended(run_id)
    assert 204 == user.http.delete(f"/v1/threads/{thread_id}").status_code

    assert_hidden(user, thread_id, run_id)


def test_a_member_reads_others_runs_and_may_not_change_them(system: System, user: Caller) -> None:
    """Reads are 200, writes 403; owners and admins write all that they see."""
    thread_id, run_id = waiting_run(user)
    member = system.colleague(user)

    assert user.id == member.get_run(run_id)["created_by_user_id"]
    assert "run.waiting_for_input" == member.events_so_far(run_id)[-1]["type"]
    assert run_id == member.get(f"/v1/threads/{thread_id}/runs")[0]["run_id"]
    for method, path, body in writes_for(thread_id, run_id):
        answer = member.http.request(method, path, json=body)
        assert (403, "auth.forbidden") == error_of(answer), path

    assert 200 == system.colleague(user, "admin").answer(run_id, "yes").status_code


def test_a_key_does_what_its_scopes_say(user: Caller) -> None:
    """Reading and writing runs are scopes of their own."""
    thread_id, run_id = waiting_run(user)
    reader = user.at(token=user.api_key(scopes=["data.runs.read"])[1])
    writer = user.at(token=user.api_key(scopes=["data.runs.write"])[1])

    assert run_id == reader.get_run(run_id)["run_id"]
    for method, path, body in writes_for(thread_id, run_id):
        assert (403, "auth.forbidden") == error_of(reader.http.request(method, path, json=body))
    for path in (f"/v1/runs/{run_id}", f"/v1/runs/{run_id}/events", "/v1/runs"):
        assert (403, "auth.forbidden") == error_of(writer.http.get(path))
    assert 200 == writer.answer(run_id, "yes").status_code


def test_a_key_without_admin_writes_its_creators_own_alone(system: System, user: Caller) -> None:
    """The role of an owner or admin gives a key no right that its scopes do not name."""
    thread_id, run_id = waiting_run(system.colleague(user))
    scopes = ["data.threads.read", "data.threads.write", "data.runs.read", "data.runs.write"]
    for creator in (user, system.colleague(user, "admin")):
        key = creator.at(token=creator.api_key(scopes=scopes)[1])
        for method, path, body in [
            *writes_for(thread_id, run_id),
            ("PATCH", f"/v1/threads/{thread_id}", {"title": "mine"}),
            ("DELETE", f"/v1/threads/{thread_id}", None),
            ("POST", f"/v1/threads/{thread_id}/messages", {"content": "yes"}),
        ]:
            answer = key.http.request(method, path, json=body)
            assert (403, "auth.forbidden") == error_of(answer), path
        assert "waiting_for_input" == key.get_run(run_id)["status"]
        own = waiting_run(creator)[1]
        assert 200 == key.answer(own, "yes").status_code

    full = user.at(token=user.api_key()[1])
    assert 200 == full.answer(run_id, "yes").status_code


@pytest.mark.parametrize("header", [None, "Bearer", "Bearer nonsense", "Basic dTpw", "Bearer al_x"])
def test_without_a_valid_token_there_is_nothing(system: System, header: str | None) -> None:
    """401 with `WWW-Authenticate: Bearer`, before anything else is looked at."""
    stranger = client(system.web[0].url)
    for method, path, body in [
        *requests_for(str(new_id()), str(new_id())),
        ("GET", "/v1/runs", None),
        ("GET", "/v1/runs/none", None),
    ]:
        answer = stranger.request(
            method, path, json=body, headers={"Authorization": header} if header else {}
        )
        assert 401 == answer.status_code, path
        assert "Bearer" == answer.headers["WWW-Authenticate"]
        if method != "HEAD":
            assert (401, "auth.unauthorized") == error_of(answer)
