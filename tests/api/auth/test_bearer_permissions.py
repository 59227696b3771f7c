"""The messages of 403: which permission is missing, and of what."""

from collections.abc import Callable
from uuid import UUID

import pytest
from flask import Flask
from sqlalchemy import text
from werkzeug.test import TestResponse

from arkloop.shared.accounts import members
from arkloop.shared.actors import Actor
from arkloop.shared.errors import Forbidden
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections
from tests.api.auth.test_bearer import AN_ID
from tests.clients import Register, User
from tests.end_users import end_user


def refusal(response: TestResponse) -> str:
    """Return the message of a response, which is 403."""
    assert response.json is not None
    assert (403, "auth.forbidden") == (response.status_code, response.json["code"])
    return str(response.json["message"])


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/v1/threads", "Your key lacks the scope `data.threads.write`."),
        ("/v1/tool-workers/shop:poll", "Your key lacks the scope `tools.work`."),
        (
            "/v1/responses",
            "Your key lacks the scopes `data.runs.write` and `data.threads.write`.",
        ),
        (f"/v1/runs/{AN_ID}/tool-results", "Your key lacks the scope `data.runs.write`."),
    ],
)
def test_a_key_gets_the_scopes_that_it_lacks(alice: User, path: str, message: str) -> None:
    """The scopes that it has are not among them."""
    response = alice.api_key("data.runs.read").post(path)
    if path == "/v1/responses":
        assert message == (response.json or {})["error"]["message"]
    else:
        assert message == refusal(response)


def test_a_role_is_named_where_no_scope_would_help(register: Register, alice: User) -> None:
    """A member's key cannot have the scope either, so that the role is what has to change. Where a
    login would do, it is the key that lacks the scope.
    """
    member = register(org_of=alice, role="member")
    path = f"/v1/orgs/{alice.org_id}/members"

    for who in (member, member.api_key()):
        assert "Your role, member, lacks the permission `admin`." == refusal(
            who.get("/v1/audit-logs")
        )
    assert 200 == member.get(path).status_code
    assert "An API key needs the scope `admin` to list members." == refusal(
        member.api_key().get(path)
    )


def test_an_operator_needs_more_than_a_role(alice: User) -> None:
    """No role has it, so that another role is no remedy."""
    for who in (alice, alice.api_key()):
        assert (
            "Only operators of the service have the permission `operator`, and those of their API"
            " keys that name it as a scope."
        ) == refusal(who.get("/v1/operator/queues"))


def test_a_client_token_learns_of_its_own_scopes_alone(alice: User) -> None:
    """It may also be its issuer that has lost the scope. Of endpoints that no client token may
    use, it learns no permission.
    """
    reader = end_user(alice, scopes=["data.threads.read"])

    assert (
        "This client token, or the key or login that issued it, lacks the scope"
        " `data.threads.write`."
    ) == refusal(reader.post("/v1/threads"))
    assert "Client tokens cannot be used for this endpoint." == refusal(
        reader.get("/v1/audit-logs")
    )


def test_a_workers_key_is_for_workers_alone(alice: User) -> None:
    """Endpoints that require no permission refuse it."""
    message = "A key whose scopes are for workers alone cannot be used for this endpoint."

    assert message == refusal(alice.api_key("tools.work").get("/v1/me"))


def test_changing_what_somebody_else_has_created_takes_an_admin(
    register: Register, alice: User
) -> None:
    """The scope for writing is not what is missing."""
    member = register(org_of=alice, role="member")
    message = "Another user has created the thread; changing it takes the permission `admin`."

    assert message == refusal(member.delete(f"/v1/threads/{alice.thread()}"))


def test_what_may_not_be_changed_is_named(
    register: Register, alice: User, make_run: Callable[[User, str], UUID]
) -> None:
    """In the caller's own thread, it is the run of somebody else that may not be ended."""
    member = register(org_of=alice, role="member")
    thread_id = member.thread()
    make_run(alice, thread_id)
    message = "Another user has created the active run; changing it takes the permission `admin`."

    for on_busy in ("interrupt", "rollback"):
        body = {"message": "Stop", "on_busy": on_busy}
        assert message == refusal(member.post(f"/v1/threads/{thread_id}/runs", body))


def test_an_end_user_learns_of_the_issuer(register: Register, alice: User) -> None:
    """It may be her own chat, so that nobody else has created it, and she cannot get `admin`."""
    thread_id = end_user(alice).thread()
    by_member = end_user(register(org_of=alice, role="member"))

    assert (
        "This client token may not change the thread: it was created with a token or key of"
        " another issuer."
    ) == refusal(by_member.post(f"/v1/threads/{thread_id}/messages", {"content": "Hello"}))


def test_a_sender_of_results_learns_of_the_scope_for_those_of_http_tools(
    register: Register, alice: User, make_run: Callable[[User, str], UUID]
) -> None:
    """A server that executes HTTP tools should not get `admin`; one with the scope has it."""
    member = register(org_of=alice, role="member")
    path = f"/v1/runs/{make_run(member, member.thread())}/tool-results"
    results = [{"tool_call_id": "call", "output": "done"}]
    message = "Another user has created the run; changing it takes the permission `admin`."

    assert f"{message} For results of HTTP tools alone, `tools.work` is enough." == refusal(
        alice.api_key("data.runs.write").post(path, results)
    )
    worker = alice.api_key("data.runs.write", "tools.work")
    assert message == refusal(worker.post(path, results))


def test_a_ticket_for_events_sends_no_results(
    alice: User, make_run: Callable[[User, str], UUID]
) -> None:
    """The key or login behind it may have the scope; the ticket was not requested for it."""
    path = f"/v1/runs/{make_run(alice, alice.thread())}"
    ticket = (alice.post(f"{path}/stream-ticket").json or {})["ticket"]
    sent = alice.client.post(f"{path}/tool-results?ticket={ticket}", json=[])

    assert "This ticket is for events alone: request one with `tool_results`." == refusal(sent)


def test_a_ticket_for_results_is_not_what_is_wrong_once_its_key_has_lost_the_scope(
    app: Flask, alice: User, make_run: Callable[[User, str], UUID], connections: Connections
) -> None:
    """Another ticket of that key would not help."""
    key = alice.api_key("data.runs.read", "data.runs.write")
    path = f"/v1/runs/{make_run(alice, alice.thread())}"
    body = {"tool_results": True}
    ticket = (key.post(f"{path}/stream-ticket", body).json or {})["ticket"]
    narrowed = text("UPDATE api_keys SET scopes = '{data.runs.read}' WHERE user_id = :id")
    with connections.transaction() as tx:
        tx.sql.execute(narrowed, {"id": alice.id})
    app.extensions["arkloop.auth"].forget()
    sent = alice.client.post(f"{path}/tool-results?ticket={ticket}", json=[])

    assert "Your key lacks the scope `data.runs.write`." == refusal(sent)


def test_scopes_that_cannot_be_given_are_named(alice: User) -> None:
    """The scopes that the key has are not among them."""
    key = alice.api_key("data.runs.read")
    scopes = ["data.runs.write", "data.runs.read", "data.files.read"]
    named = "`data.files.read`, `data.runs.write`"

    assert f"An API key cannot have scopes its creator lacks: {named}." == refusal(
        alice.api_key("admin", "data.runs.read").post(
            "/v1/api-keys", {"name": "wide", "scopes": scopes}
        )
    )
    body = {"end_user_id": "ann", "scopes": scopes}
    assert f"A client token cannot have scopes its issuer lacks: {named}." == refusal(
        key.post("/v1/client-tokens", body)
    )


def test_who_was_removed_meanwhile_learns_that(alice: User, connections: Connections) -> None:
    """The process that checked the token may not know it yet."""
    removed = Actor(
        org_id=alice.org_id, user_id=new_id(), role="owner", permissions=frozenset({"admin"})
    )
    refused = pytest.raises(Forbidden, match=r"^You are not a member of this organization any more")
    with refused, connections.transaction() as tx:
        members.lock(tx, removed)
