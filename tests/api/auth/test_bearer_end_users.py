"""Endpoints as end users may call them: every route of the service has a row in a table."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from flask import Flask
from sqlalchemy import func, insert
from werkzeug.test import TestResponse

from arkloop.api.protocols.responses_ids import ResponseId
from arkloop.shared.actors import DATA_PERMISSIONS
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.files import files
from tests.api.auth.test_bearer import AN_ID, NAMES, PUBLIC
from tests.clients import Register, User
from tests.end_users import ANN, BOB, end_user


class Open(NamedTuple):
    """A route that end users may call: its status for what is their own, and how it is called."""

    status: int
    body: Any = None
    query: str = ""
    method: str = ""  # in place of that of the route


SAID = {"role": "user", "parts": [{"type": "text", "text": "Hello"}]}
#: A client of AG-UI whose thread does not exist yet.
AGUI = {"threadId": "chat-1", "runId": "run-1", "messages": []}
#: Method and rule → how an end user calls it; None: 403 as for those of `REFUSED`.
TABLE: dict[str, Open | None] = {
    "GET /v1/threads": Open(200),
    "POST /v1/threads": Open(201, {"title": "A chat"}),
    "GET /v1/threads/<id:thread_id>": Open(200),
    "PATCH /v1/threads/<id:thread_id>": Open(200, {"title": "Another title"}),
    "DELETE /v1/threads/<id:thread_id>": Open(409),
    "GET /v1/threads/<id:thread_id>/messages": Open(200),
    "POST /v1/threads/<id:thread_id>/messages": Open(201, {"content": "Hello"}),
    "GET /v1/threads/<id:thread_id>/timeline": Open(200),
    "GET /v1/threads/<id:thread_id>/events": Open(200, query="?follow=false"),
    "GET /v1/threads/<id:thread_id>/runs": Open(200),
    "POST /v1/threads/<id:thread_id>/runs": Open(409, {"message": "Hello"}),
    "POST /v1/threads/<id:thread_id>:retry": Open(409),
    "GET /v1/runs": Open(200),
    "POST /v1/runs": Open(201, {"message": "Hello"}),
    "GET /v1/runs/<id:run_id>": Open(200),
    "GET /v1/runs/<id:run_id>:explain": Open(200),
    "GET /v1/runs/<id:run_id>/prompts": None,  # they have the instructions of the org
    "PATCH /v1/runs/<id:run_id>": None,  # the org's tools rely on the metadata
    "POST /v1/runs/<id:run_id>:cancel": Open(200),
    "POST /v1/runs/<id:run_id>/input": Open(409, {"content": "yes"}),
    "POST /v1/runs/<id:run_id>/tool-results": Open(409, [{"tool_call_id": "1", "output": "ok"}]),
    "GET /v1/runs/<id:run_id>/events": Open(200, query="?follow=false"),
    "POST /v1/runs/<id:run_id>/stream-ticket": Open(201),
    "GET /v1/ui/chat/<path:chat_id>/stream": Open(200, method="HEAD"),  # it has no end
    "GET /v1/ui/chat/<path:chat_id>/messages": Open(200),
    "POST /v1/ui/chat/<path:chat_id>/stop": Open(200),
    "POST /v1/responses": Open(400),
    "GET /v1/responses/<response:response_id>": Open(200),
    "POST /v1/responses/<response:response_id>/cancel": Open(200),
    "POST /v1/responses/<response:response_id>:cancel": Open(200),
    "POST /v1/files": Open(415),  # no form
    "GET /v1/files/<id:file_id>": Open(200),
    "GET /v1/files/<id:file_id>/content": Open(404),  # the row alone is there
    "DELETE /v1/files/<id:file_id>": Open(204),
    "POST /v1/ui/chat": Open(200, {"id": "new chat", "messages": [SAID]}),
    "POST /v1/agui": Open(200, {**AGUI, "resume": [{"interruptId": "i", "status": "cancelled"}]}),
    "POST /v1/agui/connect": Open(200, AGUI),
}
#: Resources of the org, of which no route is for end users: 403, whatever the scopes are.
REFUSED = (
    *("/v1/agent-workers", "/v1/api-keys", "/v1/audit-logs", "/v1/auth", "/v1/budget"),
    "/v1/client-tokens",
    *("/v1/llm-providers", "/v1/mcp-configs", "/v1/me", "/v1/operator", "/v1/orgs"),
    *("/v1/personas", "/v1/routes", "/v1/tool-workers", "/v1/tools", "/v1/webhook-endpoints"),
)


UNKNOWN = {
    "thread_id": AN_ID,
    "run_id": AN_ID,
    "file_id": AN_ID,
    "chat_id": f"chat-{AN_ID}",
    "response_id": str(ResponseId(UUID(AN_ID), 0)),
}
#: `owned(creator, end_user_id, **fields of the thread)` → ids by their names in paths.
Owned = Callable[..., dict[str, str]]


@pytest.fixture
def owned(connections: Connections, make_run: Callable[..., UUID]) -> Owned:
    """Call it for the ids of a thread with an active run, and of a file, by their name in paths."""

    def make(creator: User, end_user_id: str | None, **fields: Any) -> dict[str, str]:
        chat_id = f"chat-{new_id()}"
        thread_id = creator.thread(end_user_id=end_user_id, external_id=chat_id, **fields)
        creator.say(thread_id)
        file_id = new_id()
        with connections.transaction() as tx:
            tx.sql.execute(
                insert(files).values(
                    id=file_id,
                    org_id=creator.org_id,
                    created_by_user_id=creator.id,
                    end_user_id=end_user_id,
                    name="a.txt",
                    media_type="text/plain",
                    size=1,
                    sha256="0" * 64,
                    stored_at=func.now(),
                )
            )
        run_id = make_run(creator, thread_id, end_user_id=end_user_id)
        return {
            "thread_id": thread_id,
            "chat_id": chat_id,
            "run_id": str(run_id),
            "response_id": str(ResponseId(run_id, 0)),
            "file_id": str(file_id),
        }

    return make


def routes(app: Flask) -> list[str]:
    return sorted(
        f"{method} {rule.rule}"
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        if rule.rule not in PUBLIC
    )


def outcome(response: TestResponse) -> tuple[int, str]:
    """Return status and body, without the trace and the ids that it was asked about."""
    return response.status_code, re.sub(r"[0-9a-f]{32}|[0-9a-f-]{36}", "", response.text)


def is_refused(route: str) -> bool:
    """Return whether the route is one of a resource of `REFUSED`."""
    return re.split("[/:]", route.partition("/v1/")[2])[0] in {
        resource.removeprefix("/v1/") for resource in REFUSED
    }


def call(user: User, route: str, ids: dict[str, str]) -> TestResponse:
    """Call the route as its row says, with these ids in its path."""
    method, _, rule = route.partition(" ")
    row = TABLE.get(route) or Open(403)
    path = re.sub(r"<(?:\w+:)?(\w+)>", lambda name: {**NAMES, **ids}.get(name[1], AN_ID), rule)
    body = {} if row.body is None else {"json": row.body}
    return user.call(row.method or method, path + row.query, **body)


def test_every_route_is_in_the_table(app: Flask) -> None:
    """A new route is in the table, or belongs to a resource that is refused."""
    assert sorted(TABLE) == [route for route in routes(app) if not is_refused(route)]


def test_an_end_user_is_refused_what_is_the_orgs(app: Flask, alice: User) -> None:
    """403 for each route that the table does not open."""
    ann = end_user(alice)
    refused = [route for route in routes(app) if not TABLE.get(route)]

    assert len(refused) > 50
    for route in refused:
        assert 403 == call(ann, route, {}).status_code, route


def test_an_end_user_calls_what_the_table_opens(alice: User, owned: Owned) -> None:
    """Each route has the status of its row for the end user's own thread, run and file."""
    ann = end_user(alice)
    for route, row in TABLE.items():
        if row is not None:
            response = call(ann, route, owned(alice, ANN))
            assert row.status == response.status_code, (route, response.text)


def test_an_end_user_finds_nothing_of_others(alice: User, register: Register, owned: Owned) -> None:
    """What is another end user's, of no end user, private, or of another org, is as if it did not
    exist, and no call changes it.
    """
    ann, stranger = end_user(alice), register()
    others = {
        "of another end user": owned(alice, BOB),
        "of no end user": owned(alice, None),
        "private": owned(alice, ANN, is_private=True),
        "of another org": owned(stranger, ANN),
    }
    for route, row in TABLE.items():
        if row is None or "<" not in route:
            continue
        for whose, ids in others.items():
            if whose == "private" and "file_id" in route:
                continue  # files have no thread
            imagined = outcome(call(ann, route, UNKNOWN))
            assert imagined == outcome(call(ann, route, ids)), (route, whose)
            assert 404 == imagined[0] or "ui/chat" in route, route
    for whose, ids in others.items():
        owner = stranger if whose == "of another org" else alice
        assert "executing" == (owner.get(f"/v1/runs/{ids['run_id']}").json or {})["phase"]


def test_a_token_for_a_thread_opens_no_other(alice: User, owned: Owned) -> None:
    """The end user's own other threads and their runs are as if they did not exist."""
    mine, other = owned(alice, ANN), owned(alice, ANN)
    ann = end_user(alice, thread=mine["thread_id"])
    for route, row in TABLE.items():
        if row is not None and "<" in route and "file_id" not in route:
            assert outcome(call(ann, route, UNKNOWN)) == outcome(call(ann, route, other)), route
            assert row.status == call(ann, route, mine).status_code, route


def test_an_end_user_needs_the_scope_of_each_route(alice: User, owned: Owned) -> None:
    """A token with the scopes for files alone opens files alone, and the other way round."""
    of_files = {scope for scope in DATA_PERMISSIONS if "files" in scope}
    for scopes, opens_files in ((of_files, True), (DATA_PERMISSIONS - of_files, False)):
        ann = end_user(alice, scopes=sorted(scopes))
        for route, row in TABLE.items():
            if row is not None:
                is_open = opens_files == ("/files" in route)
                response = call(ann, route, {})
                assert is_open == (403 != response.status_code), route
