"""Every route with ids of another org's objects, and of each kind of object there is.

The response is that for an id of nothing. So is the work behind it, whose duration a caller can
measure: the same statements go to Postgres, in the same order. Ids in bodies, queries and headers
are in `test_auth_foreign_fields.py`.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from flask import Flask, g, has_request_context, request
from sqlalchemy import Engine, event, insert
from werkzeug.routing import Rule
from werkzeug.test import TestResponse

from arkloop.api.protocols.responses_ids import ResponseId
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.accounts import identity_providers
from tests.api.auth.test_auth_by_caller import routes_of
from tests.api.auth.test_bearer import NAMES, PUBLIC
from tests.clients import Register, User
from tests.contents import png

#: Valid bodies, so that a refusal is about the object.
BODIES: dict[str, Any] = {
    "PATCH /v1/api-keys/<id:key_id>": {"max_cost_usd": 1},
    "PATCH /v1/orgs/<id:org_id>/members/<id:user_id>": {"role": "member"},
    "POST /v1/orgs/<id:org_id>/invitations": {"name": "mine", "role": "owner"},
    "PATCH /v1/threads/<id:thread_id>": {"title": "mine"},
    "POST /v1/threads/<id:thread_id>/messages": {"content": "mine"},
    "PATCH /v1/runs/<id:run_id>": {"metadata": {"a": "mine"}},
    "POST /v1/runs/<id:run_id>/input": {"content": "mine"},
    "POST /v1/runs/<id:run_id>/tool-results": [{"tool_call_id": "1", "output": "mine"}],
    "PATCH /v1/llm-providers/<id:provider_id>": {"name": "mine"},
    "POST /v1/llm-providers/<id:provider_id>/models": {"model": "mine"},
    "PATCH /v1/llm-providers/<id:provider_id>/models/<id:model_id>": {"is_default": True},
    "PATCH /v1/mcp-configs/<id:config_id>": {"name": "mine"},
    "POST /v1/mcp-configs/<id:config_id>/tools/<name>:approve": {"hash": "0" * 64},
    "POST /v1/mcp-configs/<id:config_id>/tools:approve": {
        "tools": [{"name": "echo", "hash": "0" * 64}]
    },
    "PATCH /v1/tools/<id:tool_id>": {"description": "mine"},
    "PATCH /v1/webhook-endpoints/<id:endpoint_id>": {"description": "mine"},
}
#: Routes that need what only this test would have: the queries of a grant and of a run's claim.
QUERIES = {
    "DELETE /v1/mcp-configs/<id:config_id>/grants": "?end_user_id=ann",
    "GET /v1/agent-workers/<name>/runs/<id:run_id>/files/<id:file_id>": "?fence=1",
}


def made(user: User, path: str, **body: Any) -> str:
    response = user.post(path, body)
    assert 201 == response.status_code, response.text
    return str((response.json or {})["id"])


@pytest.fixture
def ids(alice: User, make_run: Callable[..., UUID], connections: Connections) -> dict[str, str]:
    """The ids of an object of each kind in an org, by the names that they have in paths."""
    thread_id = alice.thread(external_id="chat")
    run_id = make_run(alice, thread_id)
    form = {"file": (BytesIO(png()), "a.png")}
    file = alice.call("POST", "/v1/files", data=form, content_type="multipart/form-data")
    assert 201 == file.status_code, file.text
    provider_id = made(alice, "/v1/llm-providers", name="ours", kind="openai")
    [session] = (alice.get("/v1/auth/sessions").json or {})["items"]
    tool = {"name": "refund", "description": "Refund.", "url": "https://shop.example/refund"}
    made(alice, "/v1/personas", key="ours")
    insert_identity_provider(connections, alice.org_id)
    invitations = f"/v1/orgs/{alice.org_id}/invitations"
    return {
        "org_id": str(alice.org_id),
        "user_id": str(alice.id),
        "invitation_id": made(alice, invitations, name="ours", role="member"),
        "thread_id": thread_id,
        "run_id": str(run_id),
        "response_id": str(ResponseId(run_id, 0)),
        "file_id": (file.json or {})["id"],
        "key_id": made(alice, "/v1/api-keys", name="ours", scopes=["data.runs.read"]),
        "session_id": session["id"],
        "provider_id": provider_id,
        "model_id": made(alice, f"/v1/llm-providers/{provider_id}/models", model="m"),
        "persona_id": "ours@1",
        "config_id": made(alice, "/v1/mcp-configs", name="ours", url="https://mcp.example/mcp"),
        "tool_id": made(alice, "/v1/tools", **tool),
        "endpoint_id": made(alice, "/v1/webhook-endpoints", url="https://shop.example/hook"),
        "delivery_id": str(new_id()),  # its endpoint is not found before it
    }


def insert_identity_provider(connections: Connections, org_id: UUID) -> None:
    """Store one without asking it."""
    values: dict[str, Any] = {"issuer": "https://login.example.com", "client_id": "ours"}
    values |= {"signing_algorithm": "RS256", "email_domains": [], "joining_role": "member"}
    values |= {"assumes_verified_email": False, "session_hours": 12}
    with connections.transaction() as tx:
        row = insert(identity_providers).values(id=new_id(), org_id=org_id, **values)
        tx.sql.execute(row)


def rules_of_orgs(app: Flask) -> list[Rule]:
    """Return all rules but those of operators, who see every org, and nobody else any."""
    rules = app.url_map.iter_rules()
    return [rule for rule in rules if not rule.rule.startswith("/v1/operator/")]


class Answer(NamedTuple):
    """An answer to compare: status, body without the ids, and the work behind it."""

    status: int
    text: str
    statements: list[str]


Ids = dict[str, str]


def compared(ask: Callable[[Ids], TestResponse], *choices: Ids) -> list[Answer]:
    """Return the answers for these ids, once what the process keeps of the caller is fresh."""
    answers = [answer_for(ask, ids) for ids in choices]
    if any(answer != answers[0] for answer in answers):
        answers = [answer_for(ask, ids) for ids in choices]
    return answers


def answer_for(ask: Callable[[Ids], TestResponse], ids: Ids) -> Answer:
    with statements_of() as statements:
        response = ask(ids)
        status, text = said(response, ids)
    return Answer(status, text, statements)


@contextmanager
def statements_of() -> Iterator[list[str]]:
    """Record what requests send to Postgres, except how they find out who calls."""
    sent: list[str] = []

    def note(*details: Any) -> None:
        if not has_request_context() or "actor" in g or request.path in PUBLIC:
            sent.append(details[2])

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def test_objects_of_another_org_do_not_exist(
    app: Flask,
    alice: User,
    register: Register,
    ids: dict[str, str],
) -> None:
    """Each route that names one answers as for one that does not exist, with the same statements,
    and changes nothing.
    """
    stranger, unknown = register(), {name: str(new_id()) for name in ids}
    unknown |= {"response_id": str(ResponseId(new_id(), 0)), "persona_id": "nobody@1"}
    before = shown(app, alice, ids)
    tried: set[str] = set()
    for rule in rules_of_orgs(app):
        named = set(rule.arguments) & set(ids)
        tried |= named
        for route in sorted(routes_of(rule)) if named else ():

            def ask(these: dict[str, str], route: str = route, rule: Rule = rule) -> TestResponse:
                method, path = route.split(" ")[0], path_of(rule, these) + QUERIES.get(route, "")
                return stranger.call(method, path, json=BODIES.get(route))

            for_foreign, for_unknown = compared(ask, ids, unknown)
            assert 404 == for_foreign.status, (route, for_foreign.text)
            assert for_unknown == for_foreign, route

    assert set(ids) == tried
    assert before == shown(app, alice, ids)


def path_of(rule: Any, ids: dict[str, str]) -> str:
    return str(rule.build({name: ids.get(name, NAMES.get(name)) for name in rule.arguments})[1])


def said(response: TestResponse, ids: dict[str, str]) -> tuple[int, str]:
    """Return status and body, without what may differ: the trace, and the ids that were sent."""
    text = re.sub('"trace_id":"[0-9a-f]{32}"', "", response.text)
    for name, value in ids.items():
        text = text.replace(value, name)
    return response.status_code, text


def shown(app: Flask, user: User, ids: dict[str, str]) -> dict[str, bytes]:
    """Return what the org itself sees of its objects."""
    found = {}
    for rule in rules_of_orgs(app):
        is_shown = set(rule.arguments) <= {*ids} - {"delivery_id"} and "GET" in (rule.methods or ())
        if rule.arguments and is_shown and not rule.rule.endswith("/events"):
            response = user.get(path_of(rule, ids))
            assert 200 == response.status_code, rule.rule
            found[rule.rule] = response.data
    return found
