"""Stream tickets: one run, read-only, again and again, and in no log."""

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import httpx
import pytest
from sqlalchemy import func, update

from arkloop.shared.storage.tables.runs import runs
from tests.acceptance.streamed_runs import BROKEN_OFF_SECONDS
from tests.caller import Caller, client, error_of, types, until_broken_off
from tests.clients import PASSWORD
from tests.system import System


@pytest.fixture
def waiting_run(user: Caller) -> str:
    run_id = user.run({"tool": "ask_user", "args": {"question": "?"}})
    user.until(run_id, "status", "waiting_for_input")
    return run_id


def again(system: System, user: Caller) -> Caller:
    """Return the same user by another login."""
    body = {"login": user.login, "password": PASSWORD}
    answer = client(system.web[0].url).post("/v1/auth/login", json=body)
    return user.at(token=answer.json()["access_token"])


def opened(system: System, run_id: str, ticket: str, server: int = 0) -> httpx.Response:
    """Return what a browser gets that has nothing but the ticket."""
    return client(system.web[server].url).get(
        f"/v1/runs/{run_id}/events", params={"ticket": ticket, "follow": "false"}
    )


def test_a_ticket_opens_the_stream_of_its_run(system: System, user: Caller) -> None:
    """A ticket opens its run's stream repeatedly, on every server, with the bytes that the token's
    owner gets.
    """
    run_id = user.run("Hi")
    user.ended(run_id)
    ticket = user.ticket(run_id)

    for server in (0, 1, 0):
        answer = opened(system, run_id, ticket, server)
        assert (200, user.raw(run_id)) == (answer.status_code, answer.content)


def test_a_ticket_lasts_to_ten_minutes_after_the_runs_end(
    system: System, user: Caller, waiting_run: str
) -> None:
    """A ticket is valid for 24 hours at most, and until ten minutes after the run's end."""
    made = user.made(f"/v1/runs/{waiting_run}/stream-ticket")
    in_a_day = datetime.now(UTC) + timedelta(hours=24)
    assert {"ticket", "expires_at"} == set(made)
    assert abs(datetime.fromisoformat(made["expires_at"]) - in_a_day) < timedelta(minutes=1)

    user.cancel(waiting_run)
    ended = datetime.fromisoformat(user.get_run(waiting_run)["cancelled_at"])
    again = user.made(f"/v1/runs/{waiting_run}/stream-ticket")
    assert ended + timedelta(minutes=10) == datetime.fromisoformat(again["expires_at"])

    assert 200 == opened(system, waiting_run, made["ticket"]).status_code
    with system.connections.transaction() as tx:
        eleven_minutes_ago = func.now() - timedelta(minutes=11)
        tx.sql.execute(
            update(runs).where(runs.c.id == UUID(waiting_run)).values(ended_at=eleven_minutes_ago)
        )
    assert (401, "auth.unauthorized") == error_of(opened(system, waiting_run, made["ticket"]))


def test_a_ticket_opens_nothing_else(system: System, user: Caller, waiting_run: str) -> None:
    """Another run, another endpoint, as a bearer token: 401."""
    ticket = user.ticket(waiting_run)
    stranger = client(system.web[0].url)

    assert (401, "auth.unauthorized") == error_of(opened(system, user.run("Hi"), ticket))
    for method, path in (
        ("GET", f"/v1/runs/{waiting_run}"),
        ("POST", f"/v1/runs/{waiting_run}:cancel"),
        ("POST", f"/v1/runs/{waiting_run}/input"),
        ("GET", f"/v1/runs/{waiting_run}/events"),
    ):
        for answer in (
            stranger.request(method, path, headers={"Authorization": f"Bearer {ticket}"}),
            stranger.request(method, path, params={"ticket": ticket})
            if "events" not in path
            else stranger.request(method, path, params={"ticket": user.token}),
        ):
            assert (401, "auth.unauthorized") == error_of(answer), path


def test_a_ticket_for_results_sends_those_of_its_run(system: System, user: Caller) -> None:
    """It also opens the stream, and nothing else; a plain ticket sends no results."""
    tool = {"name": "locate", "description": "Where?", "client": True}
    tool["parameters"] = {"type": "object"}
    run_id = user.run({"tool": "locate", "args": {}}, {"say": "ok"}, tools=[tool])
    user.until(run_id, "status", "waiting_for_input")
    ticket = user.made(f"/v1/runs/{run_id}/stream-ticket", {"tool_results": True})["ticket"]
    browser = client(system.web[1].url)

    def send(ticket: str, to: str) -> httpx.Response:
        body = [{"tool_call_id": "call_1_1", "output": "here"}]
        return browser.post(f"/v1/runs/{to}/tool-results", json=body, params={"ticket": ticket})

    assert (403, "auth.forbidden") == error_of(send(user.ticket(run_id), run_id))
    assert (401, "auth.unauthorized") == error_of(send(ticket, user.run("Hi")))
    assert (401, "auth.unauthorized") == error_of(send("x", run_id))
    for method, path in (("GET", ""), ("POST", ":cancel"), ("POST", "/input")):
        refused = browser.request(method, f"/v1/runs/{run_id}{path}", params={"ticket": ticket})
        assert (401, "auth.unauthorized") == error_of(refused)
    assert 200 == opened(system, run_id, ticket).status_code
    assert 200 == send(ticket, run_id).status_code
    assert "completed" == user.ended(run_id)["status"]


def test_a_ticket_for_results_requires_the_right_to_write(system: System, user: Caller) -> None:
    """A key that only reads gets none, nor does a member for the run of somebody else."""
    run_id = user.run({"hang": 100})
    path, body = f"/v1/runs/{run_id}/stream-ticket", {"tool_results": True}
    reader = user.at(token=user.api_key(scopes=["data.runs.read"])[1])

    for caller in (reader, system.colleague(user)):
        assert (403, "auth.forbidden") == error_of(caller.http.post(path, json=body))
    assert (422, "validation.error") == error_of(user.http.post(path, json={"tool_results": 1}))
    key_id, key = user.api_key()
    ticket = user.at(token=key).made(path, body)["ticket"]
    assert 204 == user.http.delete(f"/v1/api-keys/{key_id}").status_code
    browser = client(system.web[0].url)
    results = [{"tool_call_id": "call_1_1", "output": "here"}]
    late = browser.post(f"/v1/runs/{run_id}/tool-results", json=results, params={"ticket": ticket})
    assert (401, "auth.unauthorized") == error_of(late)
    user.cancel(run_id)


@pytest.mark.parametrize("ticket", ["", "x", "a.b.c", "x" * 5000])
def test_a_ticket_that_is_none_is_refused(
    system: System, user: Caller, waiting_run: str, ticket: str
) -> None:
    """Nonsense, and a real one with another signature, get 401."""
    assert (401, "auth.unauthorized") == error_of(opened(system, waiting_run, ticket))
    forged = user.ticket(waiting_run)[:-6] + "AAAAAA"
    assert (401, "auth.unauthorized") == error_of(opened(system, waiting_run, forged))


def test_a_ticket_ends_with_the_key_it_was_made_with(
    system: System, user: Caller, waiting_run: str
) -> None:
    """A revoked key breaks the open stream off within 5 s, and the ticket is worth nothing."""
    key_id, key = user.api_key()
    ticket = user.at(token=key).ticket(waiting_run)
    browser = client(system.web[0].url)
    path = f"/v1/runs/{waiting_run}/events"
    with browser.stream("GET", path, params={"ticket": ticket}) as answer:
        assert 204 == user.http.delete(f"/v1/api-keys/{key_id}").status_code
        revoked = time.monotonic()
        assert ["run.started"] == types(until_broken_off(answer))[:1]

    assert time.monotonic() - revoked < BROKEN_OFF_SECONDS
    assert (401, "auth.unauthorized") == error_of(opened(system, waiting_run, ticket))


@pytest.mark.parametrize("path", ["/v1/auth/logout", "/v1/auth/password"])
def test_a_ticket_ends_with_the_login_it_was_made_with(
    system: System, user: Caller, waiting_run: str, path: str
) -> None:
    """A logout, and a password that is changed elsewhere, end the open stream within 5 s."""
    colleague = system.colleague(user)
    elsewhere = again(system, colleague)
    ticket = colleague.ticket(waiting_run)
    browser = client(system.web[0].url)
    events = f"/v1/runs/{waiting_run}/events"
    with browser.stream("GET", events, params={"ticket": ticket}) as answer:
        if path.endswith("logout"):
            ended = colleague.http.post(path)
        else:
            ended = elsewhere.http.post(path, json={"current": PASSWORD, "new": "battery staple"})
        assert 200 == ended.status_code, ended.text
        began = time.monotonic()
        assert ["run.started"] == types(until_broken_off(answer))[:1]

    assert time.monotonic() - began < BROKEN_OFF_SECONDS
    assert (401, "auth.unauthorized") == error_of(opened(system, waiting_run, ticket))
    if path.endswith("password"):
        kept = elsewhere.ticket(waiting_run)
        assert 200 == opened(system, waiting_run, kept).status_code


def test_a_ticket_is_in_no_log(system: System, user: Caller, waiting_run: str) -> None:
    """No log contains a ticket that opened a stream, or one that was refused."""
    ticket = user.ticket(waiting_run)
    address = f"/v1/runs/{waiting_run}/events?ticket={ticket}"
    browser = client(system.web[0].url)
    assert 200 == browser.get(f"{address}&follow=false").status_code
    assert 422 == browser.get(f"{address}&nonsense=1").status_code
    assert 401 == browser.get(address.replace(waiting_run, user.run("Hi"))).status_code
    for broken in ("Content-Length: x", "X" * 100_000):
        with system.web[0].connect() as connection:
            connection.sendall(f"GET {address} HTTP/1.1\r\n{broken}\r\n\r\n".encode())
            assert connection.recv(12) == b"HTTP/1.1 400"

    logs: list[Path] = [*system.folder.glob("*.log"), *(server.log for server in system.web)]
    assert len(logs) > 2
    signature = ticket.rpartition(".")[2]
    assert [] == [log for log in logs if signature in log.read_text(errors="replace")]
