"""Client tokens against the whole service: one end user's page creates, follows and answers."""

from datetime import datetime

from arkloop.shared.actors import DATA_PERMISSIONS
from tests.caller import Caller, client, error_of, text_of, types, until_broken_off
from tests.system import System


def page_of(issuer: Caller, end_user_id: str, **fields: object) -> Caller:
    """Return what a browser page of this end user is to the service."""
    body = {"end_user_id": end_user_id, "scopes": sorted(DATA_PERMISSIONS), **fields}
    return issuer.at(token=issuer.made("/v1/client-tokens", body)["token"])


def asking(page: Caller) -> str:
    """Start a run that waits for a person; returns its id."""
    run_id = page.run({"tool": "ask_user", "args": {"question": "?"}}, {"say": "Thanks."})
    page.until(run_id, "status", "waiting_for_input")
    return run_id


def test_a_page_talks_to_an_agent(system: System, user: Caller) -> None:
    """The token alone opens thread, run, stream, reply and cancel, on every server."""
    ann = page_of(user, "ann").at(url=system.web[1].url)
    run_id = asking(ann)

    assert 200 == ann.answer(run_id, "yes").status_code
    assert "Thanks." == text_of(ann.events(run_id))
    second = asking(ann)
    ann.cancel(second)
    assert "run.cancelled" == types(ann.events(second))[-1]


def test_a_page_of_another_end_user_is_refused_elsewhere(system: System, user: Caller) -> None:
    """404 for the run's stream, its tickets and its answers, on every server."""
    run_id = asking(page_of(user, "ann"))
    for server in system.web:
        bob = page_of(user, "bob").at(url=server.url)
        for method, path, body in (
            ("GET", f"/v1/runs/{run_id}/events", None),
            ("POST", f"/v1/runs/{run_id}/stream-ticket", None),
            ("POST", f"/v1/runs/{run_id}/input", {"content": "yes"}),
            ("POST", f"/v1/runs/{run_id}:cancel", None),
        ):
            answer = bob.http.request(method, path, json=body)
            assert (404, "runs.not_found") == error_of(answer), path
        assert (403, "auth.forbidden") == error_of(bob.http.get("/v1/me"))


def test_open_streams_end_with_the_issuing_key(system: System, user: Caller) -> None:
    """Revoking the key breaks off its pages' streams within 5 seconds."""
    key_id, key = user.api_key(scopes=["admin", *sorted(DATA_PERMISSIONS)])
    ann = page_of(user.at(token=key), "ann")
    run_id = asking(page_of(user, "ann"))
    with ann.stream(run_id) as answer:
        assert 200 == answer.status_code
        assert 204 == user.http.delete(f"/v1/api-keys/{key_id}").status_code
        until_broken_off(answer)
    assert (401, "auth.unauthorized") == error_of(ann.http.get(f"/v1/runs/{run_id}"))


def test_open_streams_end_when_the_thread_is_given_away(user: Caller) -> None:
    """The stream of a page is broken off when its thread gets another end user."""
    ann = page_of(user, "ann")
    run_id = asking(ann)
    thread_id = ann.get_run(run_id)["thread_id"]
    with ann.stream(run_id) as answer:
        assert 200 == answer.status_code
        changed = user.http.patch(f"/v1/threads/{thread_id}", json={"end_user_id": "bob"})
        assert 200 == changed.status_code
        until_broken_off(answer)
    assert (404, "runs.not_found") == error_of(ann.http.get(f"/v1/runs/{run_id}"))


def test_a_ticket_of_a_page_ends_with_its_token(user: Caller) -> None:
    """A ticket that was made with a client token is valid no longer than that, for its thread."""
    ann = page_of(user, "ann", lifetime_seconds=60)
    run_id = asking(ann)
    made = ann.made(f"/v1/runs/{run_id}/stream-ticket", {"tool_results": True})

    left = datetime.fromisoformat(made["expires_at"]).timestamp() - datetime.now().timestamp()
    assert 0 < left <= 60
    with client(user.url) as nobody:
        path = f"/v1/runs/{run_id}/events?follow=false&ticket={made['ticket']}"
        assert 200 == nobody.get(path).status_code
        thread_id = ann.get_run(run_id)["thread_id"]
        user.http.patch(f"/v1/threads/{thread_id}", json={"end_user_id": "bob"})
        assert 404 == nobody.get(path).status_code
