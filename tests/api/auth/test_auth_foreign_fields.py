"""Ids of another org's objects in bodies, queries and headers: each field that can have one.

As in paths (`test_auth_foreign_objects.py`), the response and the statements behind it are those
for an id of nothing. A field with the format of an id that has no row fails the suite.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from urllib.parse import parse_qs
from uuid import UUID

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from arkloop.api.description import document
from arkloop.api.protocols.responses_ids import ResponseId
from arkloop.shared.ids import new_id
from arkloop.shared.runs import worker_calls
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.connections import Connections
from tests.api.auth.test_auth_foreign_objects import Ids, compared, ids, made, shown
from tests.api.auth.test_bearer import AN_ID
from tests.clients import PASSWORD, Register, User

__all__ = ["ids"]


class Sent(NamedTuple):
    """A request, and its status; `{name}` is an id of another org, `{my_…}` one of the caller's."""

    route: str
    status: int
    body: Any = None
    headers: dict[str, str] | None = None


HELD: dict[str, Any] = {"run_id": "{run_id}", "fence": 1}
CALL: dict[str, Any] = {"call_id": "{call_id}", "fence": 1}
BY_WORKER: dict[str, Any] = {"worker_id": AN_ID, "wait_seconds": 0}
RUNS, MESSAGES = ("/v1/threads/{my_thread_id}/" + part for part in ("runs", "messages"))
FILE = [{"type": "file", "file_id": "{file_id}"}]
ANN: dict[str, Any] = {"end_user_id": "ann", "scopes": ["data.runs.read"]}
SHOP = "/v1/tool-workers/shop"
AGENT = "/v1/agent-workers/shop"
ROWS = [
    Sent("GET /v1/me/usage?api_key_id={key_id}", 200),
    Sent("GET /v1/me/usage/daily?api_key_id={key_id}", 200),
    Sent("GET /v1/me/usage/by-model?api_key_id={key_id}", 200),
    Sent("GET /v1/me/usage/by-end-user?api_key_id={key_id}", 200),
    Sent("GET /v1/me/usage/by-metadata?key=a&api_key_id={key_id}", 200),
    Sent("GET /v1/audit-logs?actor_user_id={user_id}", 200),
    Sent("GET /v1/threads?parent_run_id={run_id}", 200),
    Sent("GET /v1/threads?external_id={chat_id}", 200),
    Sent("GET /v1/runs?thread_id={thread_id}", 200),
    Sent("GET /v1/runs?parent_run_id={run_id}", 200),
    Sent("GET /v1/runs?api_key_id={key_id}", 200),
    Sent("GET /v1/runs?persona={persona_id}", 200),
    Sent(f"GET {RUNS}?api_key_id={{key_id}}", 200),
    Sent("GET /v1/threads/{my_thread_id}/events?after={run_id}:1", 422),
    Sent("GET /v1/threads/{my_thread_id}/events?lastEventId={run_id}:1", 422),
    Sent("GET /v1/threads/{my_thread_id}/events", 422, headers={"Last-Event-ID": "{run_id}:1"}),
    Sent("GET /v1/threads/{thread_id}/events", 404, headers={"Last-Event-ID": "{run_id}:1"}),
    Sent("GET /v1/runs/{run_id}/events", 404, headers={"Last-Event-ID": "1"}),
    Sent("POST /v1/client-tokens", 422, {**ANN, "thread": "{thread_id}"}),
    Sent("POST /v1/client-tokens", 422, {**ANN, "persona_id": "{persona_id}"}),
    Sent(f"POST {MESSAGES}", 422, {"content": FILE}),
    Sent(f"POST {RUNS}", 422, {"message": {"content": FILE}}),
    Sent(f"POST {RUNS}", 422, {"persona_id": "{persona_id}"}),
    Sent(f"POST {RUNS}", 422, {"route_id": "{model_id}"}),
    Sent("POST /v1/runs", 422, {"message": {"content": FILE}}),
    Sent("POST /v1/runs", 422, {"message": "mine", "persona_id": "{persona_id}"}),
    Sent("POST /v1/runs", 404, {"message": "mine", "thread_id": "{thread_id}"}),
    Sent("POST /v1/runs/{my_run_id}/input", 409, {"content": "yes", "request_id": "{request_id}"}),
    Sent("DELETE /v1/mcp-configs/{my_config_id}/grants?user_id={user_id}", 204),
    Sent("POST /v1/webhook-endpoints/{my_endpoint_id}:replay", 404, {"delivery_ids": ["{run_id}"]}),
    Sent(
        "POST /v1/auth/login",
        403,
        {"login": "{my_login}", "password": PASSWORD, "org_id": "{org_id}"},
    ),
    Sent(f"POST {SHOP}:heartbeat", 200, {**BY_WORKER, "lease_seconds": 5, "calls": [CALL]}),
    Sent(f"POST {SHOP}:complete", 404, {**CALL, "worker_id": "w", "output": "mine"}),
    Sent(f"POST {SHOP}:fail", 404, {**CALL, "worker_id": "w", "error": "mine"}),
    Sent(f"POST {AGENT}:poll", 200, {**BY_WORKER, "max_runs": 0, "held": ["{run_id}"]}),
    Sent(f"POST {AGENT}:heartbeat", 200, {**BY_WORKER, "runs": [HELD]}),
    Sent(f"POST {AGENT}:append", 404, {**HELD, "checkpoint": 1}),
    Sent(f"POST {AGENT}:checkpoint", 404, {**HELD, "checkpoint": 1}),
    Sent(f"POST {AGENT}:ask", 404, {**HELD, "seq": 1, "question": "mine?"}),
    Sent(
        f"POST {AGENT}:delegate",
        404,
        {**HELD, "seq": 1, "tasks": [{"tool_call_id": "1", "persona": "a", "task": "mine"}]},
    ),
    Sent(f"POST {AGENT}:reserve", 404, {**HELD, "usd": 1}),
    Sent(f"POST {AGENT}:complete", 404, {**HELD, "seq": 1, "content": "mine"}),
    Sent(f"POST {AGENT}:fail", 404, {**HELD, "seq": 1, "message": "mine"}),
    Sent(f"POST {AGENT}:release", 404, {**HELD, "seq": 1}),
    Sent(
        "POST /v1/responses",
        400,
        {"model": "assistant", "input": "a", "previous_response_id": "{response_id}"},
    ),
    Sent(
        "POST /v1/responses",
        400,
        {
            "model": "assistant",
            "input": [
                {"type": "item_reference", "id": "{item_id}"},
                {"type": "function_call_output", "call_id": "1", "output": "mine"},
            ],
        },
    ),
    Sent("GET /v1/ui/chat/{thread_id}/messages", 200),
    Sent("GET /v1/ui/chat/{thread_id}/stream", 204),
    Sent("POST /v1/ui/chat/{thread_id}/stop", 200),
    Sent("GET /v1/ui/chat/{chat_id}/messages", 200),
    Sent("GET /v1/ui/chat/{chat_id}/stream", 204),
    Sent("POST /v1/ui/chat/{chat_id}/stop", 200),
    Sent(
        "POST /v1/agui/connect",
        404,
        {"threadId": "{chat_id}", "runId": "r", "messages": []},
        {"Last-Event-ID": "{run_id}.0.1"},
    ),
    Sent("POST /v1/agui/connect", 200, {"threadId": "{chat_id}", "runId": "r", "messages": []}),
]
#: Fields with ids that are not objects of an org: a worker's own name, and the pages of a log-in,
#: which anybody may open for any org.
NO_OBJECTS = {
    *(f"{AGENT.replace('shop', '{name}')}:{verb} worker_id" for verb in ("poll", "heartbeat")),
    "/v1/auth/oidc/begin org_id",
}


def fields_with_ids(app: Flask) -> Iterator[str]:
    """List path and name of each field of a query or a body whose format is that of an id."""
    described = document.build(app)
    schemas = described["components"]["schemas"]

    def names(schema: Any, name: str, seen: tuple[str, ...] = ()) -> Iterator[str]:
        reference = str(schema.get("$ref", "")).rpartition("/")[2]
        if reference and reference not in seen:
            yield from names(schemas[reference], name, (*seen, reference))
        if schema.get("format") == "uuid":
            yield name
        for inner, of in schema.get("properties", {}).items():
            yield from names(of, inner, seen)
        within = [of for key in ("anyOf", "oneOf", "allOf") for of in schema.get(key, ())]
        for of in [*within, *([schema["items"]] if "items" in schema else ())]:
            yield from names(of, name, seen)

    for path, operations in described["paths"].items():
        for operation in operations.values():
            queries = [one for one in operation.get("parameters", ()) if one.get("in") == "query"]
            bodies = operation.get("requestBody", {}).get("content", {}).values()
            found = [name for one in queries for name in names(one["schema"], one["name"])]
            found += [name for one in bodies for name in names(one["schema"], "")]
            if not path.startswith("/v1/operator/"):
                yield from (f"{path} {name}" for name in found)


def fields_of(app: Flask, row: Sent) -> set[str]:
    """Return path and name of all fields that the row has."""
    method, target = row.route.split(" ")
    path, _, query = re.sub("{.*?}", AN_ID, target).partition("?")
    matched, _arguments = app.url_map.bind("").match(path, method, return_rule=True)
    described = re.sub("<(?:[a-z]+:)?(.*?)>", r"{\1}", matched.rule)
    names = [*re.findall('"([a-z_]+)":', json.dumps(row.body)), *parse_qs(query)]
    return {f"{described} {name}" for name in names}


def test_every_field_with_an_id_has_a_row(app: Flask) -> None:
    """Each is in a query or a body of the table."""
    found = set(fields_with_ids(app)) - NO_OBJECTS
    tried = set[str]().union(*(fields_of(app, row) for row in ROWS))

    assert len(found) > 25
    assert [] == sorted(found - tried)


@pytest.fixture
def foreign(connections: Connections, alice: User, ids: Ids, make_run: Callable[..., UUID]) -> Ids:
    """The ids of an org, also of what is in no path: a call, a request and an item."""
    owner = UUID(int=7)
    run_id = make_run(alice, alice.thread(), RunState.EXECUTING, fence=1, owner=owner)
    question = {"request_id": str(new_id()), "kind": "question", "prompt": "?"}
    make_run(alice, alice.thread(), RunState.WAITING, pending_input=question)
    call = worker_calls.Call(
        run_id=run_id,
        tool_call_id="c",
        org_id=alice.org_id,
        pool="shop",
        tool="pay",
        request={"arguments": {}},
        idempotent=False,
        timeout_seconds=60,
    )
    with connections.statement() as tx:
        call_id = worker_calls.add(tx, call, fence=1)
    return {
        **ids,
        "run_id": str(run_id),
        "response_id": str(ResponseId(run_id, 0)),
        "item_id": f"msg_{run_id.hex}_1",
        "call_id": str(call_id),
        "request_id": question["request_id"],
        "chat_id": "chat",
    }


@pytest.fixture
def mine(register: Register, make_run: Callable[..., UUID]) -> tuple[User, Ids]:
    """A user of another org, and ids of what is theirs."""
    user = register()
    thread_id = user.thread()
    hook = {"url": "https://shop.example/hook"}
    question = {"request_id": str(new_id()), "kind": "question", "prompt": "?"}
    server = {"name": "ours", "url": "https://mcp.example/mcp"}
    return user, {
        "my_thread_id": thread_id,
        "my_run_id": str(make_run(user, user.thread(), RunState.WAITING, pending_input=question)),
        "my_config_id": made(user, "/v1/mcp-configs", **server),
        "my_endpoint_id": made(user, "/v1/webhook-endpoints", **hook),
        "my_login": user.login,
    }


def test_an_id_of_another_org_is_one_of_nothing(
    app: Flask,
    connections: Connections,
    alice: User,
    ids: Ids,
    foreign: Ids,
    mine: tuple[User, Ids],
) -> None:
    """The answer and the statements are those for an id of nothing, and nothing changes."""
    user, own = mine
    before = shown(app, alice, ids)
    run_id = new_id()
    unknown = {name: str(new_id()) for name in foreign} | {
        "response_id": str(ResponseId(run_id, 0)),
        "item_id": f"msg_{run_id.hex}_1",
        "persona_id": "nobody@1",
        "chat_id": "nobody",
    }
    for row in ROWS:

        def ask(these: Ids, row: Sent = row) -> TestResponse:
            text = json.dumps([row.route, row.headers, row.body])
            for name, value in {**these, **own}.items():
                text = text.replace(f"{{{name}}}", value)
            route, headers, body = json.loads(text)
            return user.call(*route.split(" "), headers, json=body)

        for_foreign, for_unknown = compared(ask, foreign, unknown)
        assert row.status == for_foreign.status, (row.route, for_foreign.text)
        assert for_unknown == for_foreign, row.route

    assert before == shown(app, alice, ids)
