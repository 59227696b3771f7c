"""`/v1/tool-workers`: the requests of workers, without a run that waits."""

import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from unittest.mock import create_autospec
from uuid import UUID

import pytest
from flask import Flask
from sqlalchemy import text, update

from arkloop.api.streaming.long_polls import LongPoll
from arkloop.shared.catalog import worker_tools
from arkloop.shared.runs import worker_calls
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables import catalog as tables
from tests.clients import Register, User, details_of, error_of
from tests.tool_worker import ECHO, PAY
from tests.waiting import eventually

POLL = {"worker_id": "w", "wait_seconds": 0}
NOBODY = "01a20e81-4bd5-70da-88f9-366c61169856"


@pytest.fixture
def worker(alice: User) -> User:
    return alice.api_key("tools.work")


@pytest.fixture
def call(alice: User, make_run: Callable[..., UUID]) -> worker_calls.Call:
    """A call of `pay` in the pool `shop`, of a run whose service worker is away."""
    owner = UUID(NOBODY)
    run_id = make_run(alice, alice.thread(), RunState.EXECUTING, fence=1, owner=owner)
    return worker_calls.Call(
        run_id=run_id,
        tool_call_id="c",
        org_id=alice.org_id,
        pool="shop",
        tool="pay",
        request={"arguments": {"text": "\0"}},
        idempotent=False,
        timeout_seconds=60,
    )


@pytest.fixture
def queued(connections: Connections, call: worker_calls.Call) -> UUID:
    """The call, which waits in the pool."""
    with connections.statement() as tx:
        return worker_calls.add(tx, call, fence=1)


def post(user: User, verb: str, **body: Any) -> Any:
    return user.post(f"/v1/tool-workers/shop:{verb}", json=body)


def test_tools_stay_known_without_a_worker(alice: User, worker: User) -> None:
    """What was registered last counts, and an admin removes what no worker has any more."""
    post(worker, "poll", **POLL, tools=[ECHO, PAY])
    post(worker, "poll", **POLL, tools=[{**ECHO, "description": "Another one."}])

    path = "/v1/tool-workers/shop/tools"
    known = {tool["name"]: tool["description"] for tool in alice.get(path).json or ()}
    assert {"echo": "Another one.", "pay": PAY["description"]} == known
    assert 204 == alice.delete(f"{path}/pay").status_code
    assert (404, "tool_workers.tool_not_found") == error_of(alice.delete(f"{path}/pay"))


def test_a_worker_that_starts_registers_its_tools_at_once(alice: User, worker: User) -> None:
    """Others have registered the same before: a release that was rolled back, a deleted tool."""
    path = "/v1/tool-workers/shop/tools"
    newer = {**PAY, "description": "Pay in euros."}

    def started(worker_id: str, tool: dict[str, Any]) -> dict[str, str]:
        post(worker, "poll", worker_id=worker_id, wait_seconds=0, tools=[tool])
        return {tool["name"]: tool["description"] for tool in alice.get(path).json or ()}

    registered = [started("first", PAY), started("newer", newer), started("rolled_back", PAY)]
    expected = [PAY["description"], newer["description"], PAY["description"]]
    assert [{"pay": description} for description in expected] == registered
    assert 204 == alice.delete(f"{path}/pay").status_code
    assert {"pay": PAY["description"]} == started("later", PAY)


def test_tools_that_are_registered_already_are_not_written(alice: User, worker: User) -> None:
    """Many workers that start together with the same tools change nothing."""
    stored = []
    for worker_id in ("first", "second"):
        post(worker, "poll", worker_id=worker_id, wait_seconds=0, tools=[PAY])
        stored.append(alice.get("/v1/tool-workers/shop/tools").json)

    assert stored[0] == stored[1] != []


def test_a_hash_stands_for_the_tools(worker: User) -> None:
    """A worker need not repeat its definitions; one whose hash is unknown sends them again."""
    hash_ = post(worker, "poll", **POLL, tools=[PAY]).json["tools_hash"]

    assert [] == post(worker, "poll", **POLL, tools_hash=hash_).json["calls"]
    unknown = post(worker, "poll", **POLL, tools_hash="0" * 64)
    assert (409, "tool_workers.tools_unknown") == error_of(unknown)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"tools": []}, "tools"),
        ({"tools": [ECHO, PAY, PAY]}, "tools.2.name"),
        ({"tools": [{**PAY, "name": "a b"}]}, "tools.0.name"),
        ({"tools": [{**PAY, "parameters": {"type": 1}}]}, "tools.0.parameters"),
        ({"tools": [ECHO, {**PAY, "parameters": {"type": "array"}}]}, "tools.1.parameters"),
        ({"tools": [{**PAY, "parameters": {"type": ["object", "null"]}}]}, "tools.0.parameters"),
        ({"tools": [{**PAY, "parameters": {"required": 1}}]}, "tools.0.parameters"),
        (
            {"tools": [{**PAY, "parameters": {"$defs": {"x": {"type": "text"}}}}]},
            "tools.0.parameters",
        ),
        ({"tools": [{**PAY, "timeout_seconds": 0}]}, "tools.0.timeout_seconds"),
        ({"tools": [{**PAY, "timeout_seconds": "60"}]}, "tools.0.timeout_seconds"),
        ({"tools": [PAY], "tools_hash": "0" * 64}, "tools"),
        ({}, "tools"),
        ({"tools": [PAY], "worker_id": "a b"}, "worker_id"),
        ({"tools": [PAY], "wait_seconds": 31}, "wait_seconds"),
        ({"tools": [PAY], "lease_seconds": 0}, "lease_seconds"),
        ({"tools": [PAY], "max_calls": 0}, "max_calls"),
    ],
)
def test_a_malformed_poll_is_refused(worker: User, change: dict[str, Any], field: str) -> None:
    """The response names the field that is wrong."""
    assert field in details_of(post(worker, "poll", **{**POLL, **change}))


@pytest.mark.parametrize(
    "part",
    [{"anyOf": [{"type": "string"}] * 25}, {"pattern": "(?i)" + r"\p{Any}" * 31}, {"type": 1}],
)
def test_the_schemas_of_a_poll_have_a_size_together(worker: User, part: dict[str, Any]) -> None:
    """A web process compiles them all, and serves nothing meanwhile."""
    either = {"allOf": [{"$ref": "#/$defs/x"}] * (80 if "anyOf" in part else 1)}
    schema = {"type": "object", "properties": {"a": either}, "$defs": {"x": part}}
    tools = [{**PAY, "name": f"pay_{number:03}", "parameters": schema} for number in range(40)]

    details = details_of(post(worker, "poll", **POLL, tools=tools))

    what = "5 patterns count as" if "pattern" in part else "more than 50,000 nodes"
    assert f"The schemas are too large together: {what}" in str(details)
    assert len(details) < 15
    few = [PAY] if "type" in part else tools[:5]
    assert 200 == post(worker, "poll", **POLL, tools=few).status_code


NAMED: dict[str, Any] = {f"{number:x}": {} for number in range(100)}
MEMBER = {"$ref": "#/definitions/e", "anyOf": [{"$ref": "#/definitions/x"}] * 60}
MERGED = {"allOf": [MEMBER], "definitions": {"e": {}, "x": {"properties": NAMED}}}
COPIES = {"items": [{"$ref": "#/definitions/x" + "/not" * number} for number in range(3)]}
COPIED = {"definitions": {"x": {"not": {"not": {"title": "x" * 21_000}}}}, "$defs": {"y": COPIES}}


@pytest.mark.parametrize("hidden", [MERGED, COPIED], ids=["merged", "copied"])
def test_the_form_of_a_schema_for_models_counts(worker: User, hidden: dict[str, Any]) -> None:
    """It may have much more than what draft 7 reads of the schema."""
    schema = {"$schema": "http://json-schema.org/draft-07/schema#", "type": "object", **hidden}
    tools = [{**PAY, "name": f"pay_{number:03}", "parameters": schema} for number in range(22)]
    details = details_of(post(worker, "poll", **POLL, tools=tools))

    assert "The schemas are too large together: " in str(details)
    assert 200 == post(worker, "poll", **POLL, tools=tools[:5]).status_code


def test_as_many_tools_as_a_worker_may_have_register_at_once(worker: User) -> None:
    """Schemas of 3 KB as Pydantic and Zod make them, with the patterns of ids and of times."""
    time = r"^\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])T(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\dZ$"
    id_ = "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[1-8][0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-f]{12}$"
    text = {"anyOf": [{"type": "string", "pattern": id_}, {"type": "null"}], "title": "T" * 1_200}
    patterns = [f"^{letter}{one[1:]}" for letter in "abcd" for one in (id_, time)]
    fields = [{"type": "string"}] * 12 + [{"type": "string", "pattern": one} for one in patterns]
    part = {"type": "object", "properties": {f"field_{n}": one for n, one in enumerate(fields)}}
    schema = {"type": "object", "properties": {"a": text, "b": part}, "required": ["a"]}
    tools = [{**PAY, "name": f"pay_{number:03}", "parameters": schema} for number in range(128)]

    assert 200 == post(worker, "poll", **POLL, tools=tools).status_code


def test_a_definition_that_an_earlier_release_took_stays_registered(
    worker: User, connections: Connections
) -> None:
    """Its worker may send it again; it is checked once the worker has changed it."""
    post(worker, "poll", **POLL, tools=[PAY])
    loose = {**PAY, "parameters": {"$defs": {"x": {"type": "text"}}}}
    with connections.statement() as tx:
        tx.sql.execute(
            update(tables.worker_tools)
            .where(tables.worker_tools.c.org_id == worker.org_id)
            .values(parameters=loose["parameters"], hash=worker_tools.Definition(**loose).hash)
        )

    assert 200 == post(worker, "poll", **POLL, tools=[ECHO, loose]).status_code
    changed = {**loose, "description": "Another one."}
    field = "tools.0.parameters"
    assert [field] == list(details_of(post(worker, "poll", **POLL, tools=[changed])))


def test_a_worker_gets_calls_of_its_own_tools(worker: User, queued: UUID) -> None:
    """During a deploy an older worker is not given a call of a tool that it lacks."""
    assert [] == post(worker, "poll", **POLL, tools=[ECHO]).json["calls"]

    (call,) = post(worker, "poll", **POLL, tools=[PAY]).json["calls"]
    assert (str(queued), 1, {"text": "\0"}) == (call["call_id"], call["fence"], call["arguments"])


def test_a_call_is_handed_out_once(worker: User, queued: UUID) -> None:
    """One of several polls gets the call, and its result is stored once."""
    calls = [post(worker, "poll", **POLL, tools=[PAY]).json["calls"] for _ in range(2)]
    assert [1, 0] == [len(found) for found in calls]
    result = {"worker_id": "w", "call_id": str(queued), "fence": 1}

    assert 200 == post(worker, "complete", **result, output="1").status_code
    older = post(worker, "fail", **{**result, "fence": 2}, error="no")
    assert (409, "tool_workers.stale_call") == error_of(older)
    other = post(worker, "complete", **{**result, "call_id": NOBODY}, output="1")
    assert (404, "tool_workers.call_not_found") == error_of(other)


def test_a_heartbeat_that_waits_reports_what_a_later_one_has_lost(
    app: Flask, alice: User, worker: User, queued: UUID, connections: Connections
) -> None:
    """Both named the call, and the connection of the later one was closed."""
    post(worker, "poll", **POLL, tools=[PAY])
    named, reported = [{"call_id": str(queued), "fence": 1}], list[list[str]]()

    def beat(wait_seconds: int) -> None:
        body = {"calls": named, "lease_seconds": 60, "wait_seconds": wait_seconds}
        reported.append(post(worker, "heartbeat", worker_id="w", **body).json["lost"])

    beat(1)  # each looks once more when its process begins to listen
    waiting = threading.Thread(target=beat, args=[30], daemon=True)
    waiting.start()
    hub, topic = app.extensions["arkloop.polls"], worker_calls.worker_topic(alice.org_id, "shop")
    eventually(lambda: topic in hub._waiting and hub._is_listening)
    with connections.statement() as tx:
        mine = worker_calls.Worker(alice.org_id, "shop", "w")
        broken_off = worker_calls.extend(tx, mine, {queued: 1}, lease_seconds=60)

    with connections.transaction() as tx:
        worker_calls.lose(tx, broken_off)
    waiting.join(60)

    assert [[], [str(queued)]] == reported


def test_a_poll_that_ends_while_postgres_is_unavailable_responds_without_calls(
    app: Flask, alice: User, worker: User, connections: Connections
) -> None:
    """Its status is sent: no call is known to be cancelled, and the next poll gets the 503."""
    found: list[Any] = []

    def poll() -> None:
        found.append(post(worker, "poll", worker_id="w", wait_seconds=1, tools=[PAY]).json)

    waiting = threading.Thread(target=poll, daemon=True)
    waiting.start()
    hub, topic = app.extensions["arkloop.polls"], worker_calls.calls_topic(alice.org_id, "shop")
    eventually(lambda: topic in hub._waiting)
    with connections.transaction() as tx:
        tx.sql.execute(text("LOCK TABLE worker_calls IN ACCESS EXCLUSIVE MODE"))
        waiting.join(20)
    [response] = found

    assert ([], []) == (response["calls"], response["cancelled"])


def test_a_lost_heartbeat_takes_no_calls_while_postgres_is_unavailable(
    app: Flask, alice: User, worker: User, queued: UUID, connections: Connections
) -> None:
    """The calls are lost when their leases end, and nothing is logged as a bug."""
    post(worker, "poll", **POLL, tools=[PAY])
    named, found = [{"call_id": str(queued), "fence": 1}], list[Any]()
    ours, theirs = socket.socketpair()

    def beat() -> None:
        body = {"worker_id": "w", "calls": named, "lease_seconds": 60, "wait_seconds": 30}
        path, environ = "/v1/tool-workers/shop:heartbeat", {"gunicorn.socket": ours}
        found.append(worker.post(path, json=body, environ_overrides=environ).json)

    waiting = threading.Thread(target=beat, daemon=True)
    waiting.start()
    hub, topic = app.extensions["arkloop.polls"], worker_calls.worker_topic(alice.org_id, "shop")
    eventually(lambda: topic in hub._waiting)
    with ours, theirs, connections.transaction() as tx:
        tx.sql.execute(text("LOCK TABLE worker_calls IN ACCESS EXCLUSIVE MODE"))
        theirs.close()
        waiting.join(20)

    assert [{"cancelled": [], "lost": []}] == found


@pytest.mark.parametrize("loss", ["revoked", "of a member now"])
def test_a_poll_whose_key_has_lost_its_rights_leaves_calls_to_others(
    alice: User,
    register: Register,
    worker: User,
    call: worker_calls.Call,
    connections: Connections,
    monkeypatch: pytest.MonkeyPatch,
    loss: str,
) -> None:
    """It ends when it is woken, and another poll of the pool is woken at once."""
    wait = create_autospec(LongPoll.wait, side_effect=LongPoll.wait)  # called after a look
    monkeypatch.setattr(LongPoll, "wait", wait)
    admin = register(org_of=alice, role="admin")
    key: Any = admin.post("/v1/api-keys", json={"name": "old", "scopes": ["tools.work"]}).json
    users = {"former": admin.with_token(key["key"]), "other": worker}
    polls: dict[str, Future[Any]] = {}
    with ThreadPoolExecutor() as threads:
        for name, user in users.items():
            body = {"worker_id": name, "wait_seconds": 20, "tools": [PAY]}
            polls[name] = threads.submit(post, user, "poll", **body)
            eventually(lambda: wait.call_count == len(polls))
        if loss == "revoked":
            assert 204 == alice.delete(f"/v1/api-keys/{key['id']}").status_code
        else:
            path = f"/v1/orgs/{alice.org_id}/members/{admin.id}"
            assert 200 == alice.patch(path, {"role": "member"}).status_code
        with connections.statement() as tx:
            worker_calls.add(tx, call, fence=1)

    calls = {name: len(poll.result().json["calls"]) for name, poll in polls.items()}
    assert {"former": 0, "other": 1} == calls


RESULTS: list[tuple[str, dict[str, Any]]] = [
    ("complete", {"output": "1"}),
    ("complete", {"output": "ü", "images": ["YQ==", "Yg=="]}),
    ("complete", {"output": "ü", "images": ["Yg=="]}),
    ("fail", {"error": "1"}),
]


@pytest.mark.parametrize(("verb", "sent"), RESULTS)
def test_only_the_same_result_can_be_sent_again(
    worker: User, queued: UUID, verb: str, sent: dict[str, Any]
) -> None:
    """A worker whose result differs from the stored one reads that it was not stored."""
    post(worker, "poll", **POLL, tools=[PAY])
    call = {"worker_id": "w", "call_id": str(queued), "fence": 1}

    same = [post(worker, verb, **call, **sent).json for _ in range(2)]
    others = [
        post(worker, other, **call, **fields)
        for other, fields in RESULTS
        if (other, fields) != (verb, sent)
    ]

    assert [{"ok": True, "cancelled": []}] * 2 == same
    assert [(409, "tool_workers.stale_call")] * 3 == [error_of(one) for one in others]
    assert {"fence": 1, "state": "done"} == others[0].json["details"]


def test_a_call_of_a_cancelled_run_is_not_handed_out(
    alice: User, worker: User, queued: UUID, connections: Connections
) -> None:
    """A call of a cancelled run is executed by nobody, even if its process is away."""
    with connections.reading() as sql:
        found = text("SELECT run_id FROM worker_calls WHERE id = :id")
        run_id = sql.scalar(found, {"id": queued})
    alice.post(f"/v1/runs/{run_id}:cancel")

    assert [] == post(worker, "poll", **POLL, tools=[PAY]).json["calls"]


def test_a_key_of_a_worker_does_nothing_else(alice: User, worker: User) -> None:
    """A key that leaks from a customer's machine reads no run and starts none."""
    paths = ("me", "api-keys", "threads", "runs", "personas", "tool-workers/shop/tools")
    refused = [worker.get(f"/v1/{path}") for path in paths]
    refused.append(worker.post("/v1/runs", json={"message": "Hello"}))

    assert {(403, "auth.forbidden")} == {error_of(response) for response in refused}
    other = alice.api_key("data.runs.write")
    assert (403, "auth.forbidden") == error_of(post(other, "poll", **POLL, tools=[PAY]))


def test_another_org_gets_nothing(register: Register, queued: UUID) -> None:
    """Pools of the same name in two orgs have nothing in common."""
    stranger = register().api_key("tools.work")

    assert [] == post(stranger, "poll", **POLL, tools=[PAY]).json["calls"]
    result = {"worker_id": "w", "call_id": str(queued), "fence": 1, "output": "mine"}
    assert (404, "tool_workers.call_not_found") == error_of(post(stranger, "complete", **result))


def test_a_pool_has_a_plain_name(worker: User) -> None:
    """A name stands before the names of tools, so models have to accept it."""
    answer = worker.post("/v1/tool-workers/My shop:poll", json={**POLL, "tools": [PAY]})

    assert ["name"] == list(details_of(answer))
