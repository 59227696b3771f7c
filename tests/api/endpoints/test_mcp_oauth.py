"""OAuth of MCP servers: what a config takes and shows, and what the callback refuses."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from flask import g, has_request_context
from flask.testing import FlaskClient
from sqlalchemy import event

from arkloop.shared.accounts import suspensions
from arkloop.shared.catalog import mcp_access, mcp_configs, mcp_secrets
from arkloop.shared.config import Settings
from arkloop.shared.ids import new_id
from arkloop.shared.runs import commands
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage import org_urls
from arkloop.shared.storage.connections import Connections
from arkloop.shared.times import rfc3339
from tests.clients import User, details_of, error_of
from tests.worker.mcp.oauth_servers import Internet, Process

PATH, CALLBACK = "/v1/mcp-configs", "/v1/mcp-oauth/callback"
URL = "https://mcp.example.com/mcp"
OWN = {"client_id": "ours", "client_secret": "canary-5f1b0c"}


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    return replace(settings, public_url="https://runs.example.com", path_prefix="/arkloop")


@contextmanager
def without(connections: Connections, setting: str) -> Iterator[None]:
    known = connections.settings
    connections.settings = replace(known, **{setting: None})
    try:
        yield
    finally:
        connections.settings = known


@pytest.fixture
def waiting(
    connections: Connections, alice: User, make_run: Callable[..., UUID]
) -> Callable[[UUID, str], UUID]:
    """Call it for a run that waits until this end user has authorized access to a server."""

    def wait(config_id: UUID, end_user: str) -> UUID:
        state = str(new_id())
        url = f"https://login.example.com/?state={state}"
        expires_at = datetime.now(UTC) + timedelta(hours=1)
        pending = {"request_id": state, "kind": "authorization", "prompt": "Authorize.", "url": url}
        pending |= {"expires_at": rfc3339(expires_at)}
        ends = {"pending_input": pending, "input_expires_at": expires_at}
        run_id = make_run(alice, alice.thread(end_user_id=end_user), RunState.WAITING, **ends)
        owner, request = f"end_user:{end_user}", {"url": url, "state": state}
        with connections.transaction() as tx:
            mcp_access.request(tx, alice.org_id, config_id, owner, run_id, request)
        return run_id

    return wait


def made(user: User, oauth: Any, name: str = "vault") -> dict[str, Any]:
    response = user.post(PATH, {"name": name, "url": URL, "oauth": oauth})
    assert 201 == response.status_code, response.text
    return dict(response.json or {})


def asked(connections: Connections, user: User, config_id: str, state: str) -> None:
    """Store a request of a discovery, as a worker does."""
    request = {"url": f"https://login.example.com/?state={state}", "state": state, "client": None}
    with connections.transaction() as tx:
        mcp_access.request(tx, user.org_id, UUID(config_id), mcp_access.OPERATOR, None, request)


def test_the_secret_of_a_client_is_not_shown(connections: Connections, alice: User) -> None:
    """The worker gets it, with the address that people are sent back to."""
    config = made(alice, OWN)

    assert {"client_id": "ours", "has_client_secret": True, "authorization_url": None} == (
        config["oauth"]
    )
    with connections.reading() as sql:
        row = mcp_configs.of_id(sql, UUID(config["id"]))
    assert row is not None
    redirect_uri = "https://runs.example.com/arkloop/v1/mcp-oauth/callback"
    assert {**OWN, "redirect_uri": redirect_uri} == mcp_secrets.oauth_of(connections.settings, row)
    assert "canary" not in str(alice.get(PATH).json)


def test_people_come_back_to_the_public_url_of_their_org(
    connections: Connections, alice: User
) -> None:
    """The worker names it in pages, whatever the installation's own is, or without one."""
    config = made(alice, {})
    with connections.transaction() as tx:
        org_urls.change(tx, alice.org_id, "https://acme.runs.example.com")
        row = mcp_configs.of_id(tx.sql, UUID(config["id"]))
    assert row is not None

    found = mcp_secrets.oauth_of(connections.settings, row) or {}
    assert "https://acme.runs.example.com/arkloop/v1/mcp-oauth/callback" == found["redirect_uri"]
    with without(connections, "public_url"):
        made(alice, {}, name="second")


@pytest.mark.parametrize("public_url", ["https://acme.example.com:443", "https://[2001:0db8::1]"])
def test_an_admin_is_shown_a_page_that_the_session_has_made(
    connections: Connections, alice: User, public_url: str
) -> None:
    """The SDK writes the redirect URI as browsers do, however the operator has set its origin."""
    config = made(alice, {})
    with connections.transaction() as tx:
        org_urls.change(tx, alice.org_id, public_url)
        row = mcp_configs.of_id(tx.sql, UUID(config["id"]))
    assert row is not None
    oauth = mcp_secrets.oauth_of(connections.settings, row) or {}
    process = Process(Internet(), {}, redirect_uri=str(oauth["redirect_uri"]))
    page = {**asyncio.run(process.asked()), "server_url": URL}
    with connections.transaction() as tx:
        mcp_access.request(tx, alice.org_id, row.id, mcp_access.OPERATOR, None, page)

    shown = alice.get(f"{PATH}/{config['id']}").json or {}
    assert page["url"] == shown["oauth"]["authorization_url"]


def test_another_address_gets_neither_the_secret_nor_the_access(
    connections: Connections, alice: User
) -> None:
    """The secret is given again with it, and what was asked before is not valid any more."""
    config = made(alice, OWN)
    one = f"{PATH}/{config['id']}"
    asked(connections, alice, config["id"], "before")
    page = "https://login.example.com/?state=before"
    assert page == (alice.get(one).json or {})["oauth"]["authorization_url"]

    elsewhere = {"url": "https://other.example.com/mcp"}
    assert ["oauth"] == list(details_of(alice.patch(one, elsewhere)))
    changed = alice.patch(one, {**elsewhere, "oauth": {}}).json or {}

    assert {"client_id": None, "has_client_secret": False, "authorization_url": None} == (
        changed["oauth"]
    )
    refused = alice.get(f"{CALLBACK}?state=before&code=c")
    assert (400, "mcp_oauth.state_invalid") == error_of(refused)
    assert None is (alice.patch(one, {"oauth": None}).json or {})["oauth"]


def test_a_page_with_two_queries_is_replaced(connections: Connections, alice: User) -> None:
    """Earlier releases have stored it for a server whose endpoint has a query of its own; it is
    valid for a day, and the authorization server refuses it.
    """
    config_id = UUID(made(alice, {})["id"])
    page = "https://login.example.com/authorize?prompt=select_account"
    former, new = (
        {"url": f"{page}{mark}response_type=code&state={state}", "state": state}
        for mark, state in (("?", "1"), ("&", "2"))
    )
    operator = (alice.org_id, config_id, mcp_access.OPERATOR, None)
    with connections.transaction() as tx:
        assert former["url"] == mcp_access.request(tx, *operator, former)
        assert new["url"] == mcp_access.request(tx, *operator, new)
        assert new["url"] == mcp_access.request(tx, *operator, {**new, "state": "3"})


@pytest.mark.parametrize(
    ("oauth", "field"),
    [
        ({"client_secret": "s"}, "oauth.client_id"),
        ({"client_id": ""}, "oauth.client_id"),
        ({"client_id": "c" * 1001}, "oauth.client_id"),
        ({"scope": "all"}, "oauth.scope"),
        (True, "oauth"),
    ],
)
def test_what_is_no_oauth_is_refused(alice: User, oauth: Any, field: str) -> None:
    """The field is named."""
    response = alice.post(PATH, {"name": "vault", "url": URL, "oauth": oauth})
    assert [field] == list(details_of(response))


@pytest.mark.parametrize("setting", ["public_url", "encryption_key"])
def test_without_a_setting_no_oauth_is_taken(
    connections: Connections, alice: User, setting: str
) -> None:
    """A server to which nobody could come back, or that could keep no token, says so."""
    with without(connections, setting):
        response = alice.post(PATH, {"name": "vault", "url": URL, "oauth": {}})
    assert [f"ARKLOOP_{setting.upper()} is not set on this server"] == details_of(response)["oauth"]


def test_the_callback_takes_a_reply_once(
    connections: Connections, alice: User, client: FlaskClient
) -> None:
    """It needs no token, and ignores what it does not know."""
    config = made(alice, {})
    asked(connections, alice, config["id"], "taken-once")

    reply = f"{CALLBACK}?state=taken-once&code=c&session_state=1"
    answer = client.get(reply)
    assert (200, True) == (answer.status_code, "Access was granted." in answer.text)
    assert (400, "mcp_oauth.state_invalid") == error_of(client.get(reply))
    of_run = (alice.org_id, UUID(config["id"]), mcp_access.OPERATOR, None)
    with connections.transaction() as tx:
        taken = mcp_access.take_answered(tx, *of_run)
        assert ("c", None) == (taken and taken["code"], mcp_access.take_answered(tx, *of_run))


def test_a_visit_after_the_end_of_its_run_grants_nothing(
    alice: User, waiting: Callable[[UUID, str], UUID]
) -> None:
    """The person learns that they will be asked again."""
    run = f"/v1/runs/{waiting(UUID(made(alice, {})['id']), 'a')}"
    query = (alice.get(run).json or {})["pending_input"]["url"].partition("?")[2]
    alice.post(f"{run}:cancel")

    assert "no access was granted" in alice.client.get(f"{CALLBACK}?{query}&code=c").text


def test_a_reply_to_a_suspended_org_is_not_taken(
    connections: Connections, alice: User, client: FlaskClient
) -> None:
    """No code is kept, and the page is as good as before once the org is resumed."""
    config_id = UUID(made(alice, {})["id"])
    asked(connections, alice, str(config_id), "closed")
    with connections.transaction() as tx:
        suspensions.suspend(tx, alice.org_id, "Unpaid bills")

    for reply in ("code=c", "error=access_denied"):
        refused = client.get(f"{CALLBACK}?state=closed&{reply}")
        assert (401, "org.suspended") == error_of(refused)
    with connections.transaction() as tx:
        assert None is mcp_access.take_answered(
            tx, alice.org_id, config_id, mcp_access.OPERATOR, None
        )
        suspensions.resume(tx, alice.org_id)

    assert 200 == client.get(f"{CALLBACK}?state=closed&code=c").status_code


def test_a_browser_gets_errors_as_pages(
    connections: Connections, alice: User, client: FlaskClient
) -> None:
    """A reload after the reply was taken says so in words; other clients get JSON."""
    asked(connections, alice, made(alice, {})["id"], "visited")
    url = f"{CALLBACK}?state=visited&code=c"
    browser = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}

    pages = [client.get(url, headers=browser) for _ in range(2)]

    assert [200, 400] == [page.status_code for page in pages]
    assert {"text/html; charset=utf-8"} == {page.content_type for page in pages}
    assert "<p>This authorization is unknown, has expired or was completed" in pages[1].text
    for accept in ("*/*", "application/json"):
        refused = client.get(url, headers={"Accept": accept})
        assert (400, "mcp_oauth.state_invalid") == error_of(refused)


def test_an_admin_deletes_what_one_person_has_granted(
    connections: Connections, alice: User
) -> None:
    """The person is an end user or a user; what others have granted stays."""
    config_id = UUID(made(alice, {})["id"])
    users = f"user:{alice.id}"
    for owner in ("end_user:a", "end_user:b", users):
        with connections.transaction() as tx:
            grant = {"id": owner, "obtained_at": 1.0}
            mcp_access.expect_grant(tx, alice.org_id, config_id, owner)
            mcp_access.store_grant(tx, alice.org_id, config_id, owner, grant)

    path = f"{PATH}/{config_id}/grants"
    assert 204 == alice.delete(f"{path}?end_user_id=a").status_code
    assert 204 == alice.delete(f"{path}?user_id={alice.id}").status_code
    for query in ("", f"?end_user_id=a&user_id={alice.id}"):
        assert ["end_user_id"] == list(details_of(alice.delete(path + query)))

    with connections.reading() as sql:
        of = (sql, connections.settings, alice.org_id, config_id)
        left = [mcp_access.grant_of(*of, owner) for owner in ("end_user:a", "end_user:b", users)]
    assert [None, {"id": "end_user:b", "obtained_at": 1.0}, None] == left


@pytest.mark.parametrize(
    ("method", "path", "body", "resumed"),
    [
        ("PATCH", "", {"url": "https://other.example.com/mcp"}, "ab"),
        ("PATCH", "", {"oauth": None}, "ab"),
        ("PATCH", "", {"name": "safe"}, ""),
        ("DELETE", "", None, "ab"),
        ("DELETE", "/grants?end_user_id=a", None, "a"),
    ],
)
def test_runs_whose_pages_an_admin_closes_make_their_calls_again(
    connections: Connections,
    alice: User,
    waiting: Callable[[UUID, str], UUID],
    method: str,
    path: str,
    body: Any,
    resumed: str,
) -> None:
    """They are queued as after a visit, and ask for another one if it is still necessary."""
    config_id = UUID(made(alice, {})["id"])
    run_ids = {end_user: waiting(config_id, end_user) for end_user in "ab"}

    changed = alice.call(method, f"{PATH}/{config_id}{path}", json=body)

    assert changed.status_code in (200, 204), changed.text
    shown = {name: alice.get(f"/v1/runs/{run_id}").json for name, run_id in run_ids.items()}
    assert list(resumed) == [name for name, run in shown.items() if run["pending_input"] is None]


@contextmanager
def statements(connections: Connections) -> Iterator[list[str]]:
    """Record what requests send to Postgres, but for how they find out who calls, which is known
    for a moment; statements with many rows count once.
    """
    sent: list[str] = []

    def note(*details: Any) -> None:
        if has_request_context() and "actor" in g:
            sent.append(details[2])

    event.listen(connections.engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(connections.engine, "before_cursor_execute", note)


def test_a_server_that_thousands_of_runs_wait_for_is_deleted_in_time(
    connections: Connections,
    alice: User,
    waiting: Callable[[UUID, str], UUID],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All of them are queued by a few statements; one for each run would take too long."""
    few, many, crowd = (UUID(made(alice, {}, name)["id"]) for name in ("few", "many", "crowd"))
    waiting(few, "a")
    run_ids = [waiting(many, f"b{number}") for number in range(12)]
    run_ids += [waiting(crowd, f"c{number}") for number in range(5)]
    counts = []
    for config_id in (few, many):
        with statements(connections) as sent:
            assert 204 == alice.delete(f"{PATH}/{config_id}").status_code
        counts.append(len(sent))
    monkeypatch.setattr(commands, "VISITS_AT_ONCE", 2)
    assert 204 == alice.delete(f"{PATH}/{crowd}").status_code

    assert counts[0] == counts[1]
    shown = {(alice.get(f"/v1/runs/{run_id}").json or {})["status"] for run_id in run_ids}
    assert {"running"} == shown


def test_a_server_is_deleted_without_a_key(
    connections: Connections, alice: User, waiting: Callable[[UUID, str], UUID]
) -> None:
    """The pages of waiting runs are recognised without being decrypted."""
    config_id = UUID(made(alice, {})["id"])
    run_id = waiting(config_id, "a")

    with without(connections, "encryption_key"):
        assert 204 == alice.delete(f"{PATH}/{config_id}").status_code

    assert "running" == (alice.get(f"/v1/runs/{run_id}").json or {})["status"]


def test_a_look_at_the_headers_takes_no_reply(connections: Connections, alice: User) -> None:
    """Scanners of links send HEAD first: the code is still there for the browser."""
    asked(connections, alice, made(alice, {})["id"], "state")
    reply = f"{CALLBACK}?state=state&code=c"

    looked = alice.client.head(reply)
    assert (200, "text/html; charset=utf-8") == (looked.status_code, looked.content_type)
    assert 200 == alice.client.get(reply).status_code
    assert (400, "mcp_oauth.state_invalid") == error_of(alice.client.get(reply))


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("", "state"),
        ("?state=s", "code"),
        ("?state=s&code=c&error=access_denied", "code"),
        ("?state=s&code=", "code"),
        ("?state=s&state=t&code=c", "state"),
        (f"?state={'s' * 513}&code=c", "state"),
        ("?state=%00&code=c", "state"),
    ],
)
def test_what_is_no_reply_is_refused(client: FlaskClient, query: str, field: str) -> None:
    """A browser may be sent here by anybody."""
    assert [field] == list(details_of(client.get(CALLBACK + query)))
