"""`/v1/personas`."""

import json
from typing import Any

import pytest
from sqlalchemy import insert

from arkloop.shared.catalog import personas
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.catalog import mcp_configs
from arkloop.shared.storage.tables.catalog import personas as table
from tests.api.endpoints.published_personas import DEFAULTS, PATH, published
from tests.clients import Register, User, details_of, error_of

#: What a definition that says nothing means.
CLIENT_TOOL = {
    "name": "get_location",
    "description": "Returns where the user is.",
    "parameters": {"type": "object", "properties": {"z": {}, "a": {}}},
    "client": True,
    "timeout_seconds": 60,
    "idempotent": True,
}
LOOSE = {"type": "object", "$defs": {"x": {"type": "text"}}}


SCHEMA = {"type": "object", "properties": {"z": {"type": "string"}, "a": {}}, "required": ["z"]}


def test_a_persona_is_published(alice: User, connections: Connections) -> None:
    """A published persona is shown with every field of the contract, always the same."""
    with connections.transaction() as tx:
        values = {"id": new_id(), "org_id": alice.org_id, "name": "time", "transport": "stdio"}
        tx.sql.execute(insert(mcp_configs).values(values))
    definition = {
        "agent": None,
        "system_prompt": "Help.",
        "route_id": "scripted",
        "fallback_route_ids": ["scripted"],
        "tools": ["http_fetch", "calculator"],
        "client_tools": [CLIENT_TOOL],
        "mcp": ["time"],
        "mcp_tool_search": True,
        "tool_workers": ["shop"],
        "require_approval": ["http_fetch", "convert_time"],
        "approved_by": "org",
        "delegates": ["plain", "assistant@1"],
        "max_depth": 2,
        "max_active_children": 3,
        "max_steps": 5,
        "max_equal_turns": 6,
        "max_output_tokens": 100,
        "model_settings": {"reasoning_effort": "high"},
        "max_result_tokens": 4_000,
        "compaction": "summary",
        "max_cost_usd": 0.00000001,
        "max_cost_usd_per_month": 999_999.99999999,
        "timeout_seconds": 1.5,
        "input_expires_seconds": 60,
        "on_input_expired": "continue",
        "stream_tool_arguments": True,
        "output_schema": SCHEMA,
        "overrides": ["variables", "limits"],
        "on_limit": "fail",
    }
    assert DEFAULTS.keys() == definition.keys()
    response = alice.post(PATH, {"key": "helper", **definition})

    expected = {
        "id": "helper@1",
        "key": "helper",
        "version": "1",
        "source": "org",
        **definition,
        "require_approval": ["convert_time", "http_fetch"],
        "created_by_user_id": str(alice.id),
    }
    made = dict(response.json or {})
    moment = made.pop("created_at")
    assert (201, expected) == (response.status_code, made)
    assert f"{PATH}/helper@1" == response.headers["Location"]
    shown = {**expected, "created_at": moment}
    assert shown == alice.get(f"{PATH}/helper@1").json == alice.get(f"{PATH}/helper").json
    assert shown in (alice.get(PATH).json or [])
    # Models write properties in the order of the schema.
    assert json.dumps(SCHEMA) == json.dumps(shown["output_schema"])
    assert json.dumps(SCHEMA) == json.dumps(alice.get(f"{PATH}/helper").json["output_schema"])


def test_what_is_left_out_has_its_default(alice: User) -> None:
    """A field that is missing or null gets its default."""
    for key, fields in (("a", {}), ("b", dict.fromkeys(DEFAULTS))):
        made = published(alice, key=key, version=None, **fields)
        assert DEFAULTS == {name: made[name] for name in DEFAULTS}


def test_the_built_in_ones_are_listed(alice: User) -> None:
    """Built-in personas are listed with the same fields, and without a creator."""
    listed = {persona["id"]: persona for persona in alice.get(PATH).json or []}

    assert set(personas.builtin()) == set(listed)
    assert (
        {
            **DEFAULTS,
            "id": "plain@1",
            "key": "plain",
            "version": "1",
            "source": "builtin",
            "system_prompt": personas.builtin()["plain@1"].system_prompt,
            "overrides": list(personas.builtin()["plain@1"].overrides),
            "created_by_user_id": None,
            "created_at": None,
        }
        == listed["plain@1"]
        == alice.get(f"{PATH}/plain@1").json
    )


def test_a_new_version_is_the_newest_at_once(alice: User) -> None:
    """A run that names the key alone gets it, and shows which it was."""
    published(alice, key="assistant", system_prompt="Ours.")

    def persona_of_a_run(**body: str) -> str:
        run = alice.post(f"/v1/threads/{alice.thread()}/runs", body)
        assert run.json is not None, run.text
        return str(alice.get(f"/v1/runs/{run.json['run_id']}").json["persona_id"])

    assert "assistant@2" == persona_of_a_run()
    assert "assistant@2" == persona_of_a_run(persona_id="assistant")
    assert "assistant@1" == persona_of_a_run(persona_id="assistant@1")
    assert "assistant@2" == (alice.get(f"{PATH}/assistant").json or {})["id"]


def test_a_published_version_never_changes(alice: User) -> None:
    """409 for the same id, also with the same content; there is nothing else to try."""
    published(alice, key="helper", version="1.0", system_prompt="first")

    for body in (
        {"key": "helper", "version": "1.0", "system_prompt": "second"},
        {"key": "helper", "version": "1.0", "system_prompt": "first"},
        {"key": "assistant", "version": "1"},
    ):
        assert (409, "personas.published") == error_of(alice.post(PATH, body))
    for method in ("PATCH", "PUT", "DELETE"):
        answer = alice.call(method, f"{PATH}/helper@1.0", json={})
        assert (405, "http.method_not_allowed") == error_of(answer)
    assert "first" == (alice.get(f"{PATH}/helper@1.0").json or {})["system_prompt"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"key": None}, "key"),
        ({"key": ""}, "key"),
        ({"key": "a@1"}, "key"),
        ({"key": "a b"}, "key"),
        ({"key": "k" * 65}, "key"),
        ({"version": ""}, "version"),
        ({"version": 1}, "version"),
        ({"version": "v" * 65}, "version"),
        ({"id": "a@1"}, "id"),
        ({"source": "builtin"}, "source"),
        ({"org_id": str(new_id())}, "org_id"),
        ({"system_prompt": "é" * 32_769}, "system_prompt"),
        ({"stream_tool_arguments": "yes"}, "stream_tool_arguments"),
        ({"output_schema": '{"type": "object"}'}, "output_schema"),
        ({"output_schema": {"type": "string"}}, "output_schema"),
        ({"output_schema": {"type": "object", "required": 1}}, "output_schema"),
        ({"output_schema": LOOSE}, "output_schema"),
        ({"output_schema": {"type": "object", "$ref": "https://example.com/a"}}, "output_schema"),
        ({"tools": ["append_line"]}, "tools"),
        ({"client_tools": CLIENT_TOOL}, "client_tools"),
        ({"client_tools": [{**CLIENT_TOOL, "client": False}]}, "client_tools"),
        ({"client_tools": [{**CLIENT_TOOL, "timeout": 5}]}, "client_tools"),
        ({"client_tools": [{**CLIENT_TOOL, "parameters": {"type": 1}}]}, "client_tools"),
        ({"client_tools": [{**CLIENT_TOOL, "parameters": LOOSE}]}, "client_tools"),
        ({"client_tools": [CLIENT_TOOL, CLIENT_TOOL]}, "client_tools"),
        ({"client_tools": [{**CLIENT_TOOL, "name": "ask_user"}]}, "client_tools"),
        ({"client_tools": [{**CLIENT_TOOL, "name": "read_result"}]}, "client_tools"),
        ({"mcp": ["space"]}, "mcp"),
        ({"require_approval": ["calculator"]}, "require_approval"),
        ({"max_steps": 1000}, "max_steps"),
        ({"max_cost_usd": "0.5"}, "max_cost_usd"),
        ({"max_cost_usd_per_month": -1}, "max_cost_usd_per_month"),
        ({"timeout_seconds": 0}, "timeout_seconds"),
        ({"on_input_expired": "wait"}, "on_input_expired"),
        ({"approved_by": "staff"}, "approved_by"),
    ],
)
def test_a_bad_persona_is_refused(alice: User, body: dict[str, Any], field: str) -> None:
    """422 names the field, and nothing is published."""
    assert [field] == list(details_of(alice.post(PATH, {"key": "bad", **body})))
    assert {"builtin"} == {persona["source"] for persona in alice.get(PATH).json or []}


def test_its_routes_must_be_there(alice: User, register: Register) -> None:
    """The server's and the org's own; another org's is none."""
    path = "/v1/llm-providers"
    body = {"name": "a", "kind": "openai", "models": [{"model": "m"}]}
    own, theirs = (
        (user.post(path, body).json or {})["models"][0]["id"] for user in (alice, register())
    )

    published(alice, key="fine", route_id=own, fallback_route_ids=["scripted"])
    for fields, names in (
        ({"route_id": theirs}, {"route_id"}),
        ({"fallback_route_ids": ["scripted", theirs]}, {"fallback_route_ids"}),
        ({"route_id": "x", "fallback_route_ids": ["y"]}, {"route_id", "fallback_route_ids"}),
    ):
        answer = alice.post(PATH, {"key": "bad", **fields})
        assert (422, "routes.not_found") == error_of(answer)
        assert answer.json is not None
        assert names == set(answer.json["details"])


def test_when_its_route_is_gone_its_runs_are_refused(alice: User) -> None:
    """422 at creation; with a route of its own the run is accepted."""
    body = {"name": "a", "kind": "openai", "models": [{"model": "m"}]}
    provider = alice.post("/v1/llm-providers", body).json or {}
    published(alice, key="mine", route_id=provider["models"][0]["id"])
    alice.delete(f"/v1/llm-providers/{provider['id']}")
    path = f"/v1/threads/{alice.thread()}/runs"

    assert (422, "routes.not_found") == error_of(alice.post(path, {"persona_id": "mine"}))
    answer = alice.post(path, {"persona_id": "mine", "route_id": "scripted"})
    assert 201 == answer.status_code


def test_only_admins_publish_and_all_may_read(alice: User, register: Register) -> None:
    """A member, and a key without the scope, read."""
    published(alice, key="mine")
    member = register(org_of=alice, role="member")
    reader = alice.api_key("data.runs.read")

    for user in (member, reader):
        assert (403, "auth.forbidden") == error_of(user.post(PATH, {"key": "a"}))
        assert "mine@1" in [persona["id"] for persona in user.get(PATH).json or []]
        assert 200 == user.get(f"{PATH}/mine").status_code
    blind = alice.api_key("data.threads.read")
    assert (403, "auth.forbidden") == error_of(blind.get(PATH))
    assert (403, "auth.forbidden") == error_of(blind.get(f"{PATH}/mine"))


def test_another_orgs_persona_is_not_there(alice: User, register: Register) -> None:
    """404 as for one that does not exist; runs cannot take it."""
    published(alice, key="secret", system_prompt="Our recipe.")
    stranger = register()

    for id_ in ("secret", "secret@1", "nobody", "nobody@1"):
        assert (404, "http.not_found") == error_of(stranger.get(f"{PATH}/{id_}"))
    assert "secret@1" not in stranger.get(PATH).text
    path = f"/v1/threads/{stranger.thread()}/runs"
    assert (422, "personas.not_found") == error_of(stranger.post(path, {"persona_id": "secret"}))


@pytest.mark.parametrize("id_", ["a@", "@1", "a@1@2", "a%20b", "%00", "x" * 65])
def test_an_id_that_is_none_is_refused(alice: User, id_: str) -> None:
    """422, not 404: it cannot be that of any persona."""
    assert ["persona_id"] == list(details_of(alice.get(f"{PATH}/{id_}")))


def test_the_list_goes_on_page_by_page(alice: User) -> None:
    """The org's come among the built-in ones, each once, by key and version."""
    own = [published(alice, key=key)["id"] for key in ("zebra", "assistant", "b", "b", "Big")]
    walked: list[str] = []
    path: str | None = f"{PATH}?limit=2"
    while path:
        answer = alice.get(path)
        walked += [persona["id"] for persona in answer.json or []]
        cursor = answer.headers.get("X-Next-Cursor")
        path = cursor and f"{PATH}?limit=2&before={cursor}"

    everything = [*own, *personas.builtin()]
    assert sorted(everything, key=lambda id_: tuple(id_.split("@"))) == walked


def test_the_newest_version_of_each_key_is_listed_alone(alice: User, register: Register) -> None:
    """Numbers count as numbers, and a built-in one is the newest until the org has a higher one."""
    key, version = min(personas.builtin().values(), key=lambda one: one.key).id.split("@")
    for own in ("9", "10", "beta"):
        published(alice, key="many", version=own)
    published(alice, key=key, version="beta")
    published(register(), key="foreign")

    def listed(path: str) -> list[str]:
        walked: list[str] = []
        before: str | None = ""
        while before is not None:
            answer = alice.get(f"{path}&before={before}" if before else path)
            walked += [persona["id"] for persona in answer.json or []]
            before = answer.headers.get("X-Next-Cursor")
        return walked

    others = [one.id for one in personas.builtin().values() if one.key != key]
    newest = sorted([f"{key}@{version}", "many@10", *others])
    assert newest == listed(f"{PATH}?newest=true") == listed(f"{PATH}?newest=true&limit=1")
    published(alice, key=key, version=str(int(version) + 1))
    assert f"{key}@{int(version) + 1}" == listed(f"{PATH}?newest=true")[0]
    assert ["newest"] == list(details_of(alice.get(f"{PATH}?newest=1")))


def test_the_same_request_again_publishes_nothing_twice(alice: User) -> None:
    """A repeated request with its key publishes one version, though without a version it would be a
    new one.
    """
    headers = {"Idempotency-Key": "once"}
    first, second = (alice.post(PATH, {"key": "mine"}, headers=headers) for _ in range(2))

    assert first.json == second.json
    assert "true" == second.headers["Idempotency-Replayed"]
    assert (404, "http.not_found") == error_of(alice.get(f"{PATH}/mine@2"))


def test_a_definition_with_thousands_of_unknown_fields_gets_a_short_response(alice: User) -> None:
    """What is echoed of a definition is bounded as for any other body."""
    refused = alice.post(PATH, {"key": "many", **{f"{i:0100}": 1 for i in range(9_000)}})

    assert 50 == len(details_of(refused))
    assert len(refused.data) < 10_000


def test_one_that_another_release_has_published_is_shown_with_its_problems(
    alice: User, connections: Connections
) -> None:
    """A persona of another release is shown with its problems, and breaks neither lists nor
    requests for runs.
    """
    published(alice, key="known")
    with connections.transaction() as tx:
        row = {"org_id": alice.org_id, "key": "later", "version": "7"}
        definition = {"system_prompt": "Hi.", "tools": [{"name": "of_later"}], "mood": "good"}
        row |= {"definition": definition, "created_by_user_id": alice.id}
        tx.sql.execute(insert(table).values(row))

    listed = {shown["id"]: shown for shown in alice.get(PATH).json or []}
    [one] = [alice.get(f"{PATH}/later@7").json]
    newest = alice.get(f"{PATH}/later")
    thread_id = alice.thread()
    run = alice.post(f"/v1/threads/{thread_id}/runs", {"persona_id": "later@7"})

    assert one == listed["later@7"]
    assert {"tools", "mood"} == one["problems"].keys()
    assert ("Hi.", []) == (one["system_prompt"], one["tools"])
    assert "problems" not in listed["known@1"]
    assert (404, "http.not_found") == error_of(newest)
    assert (422, "personas.not_found") == error_of(run)
    for refused in (newest, run):
        assert "tools: must be a string" in refused.text
