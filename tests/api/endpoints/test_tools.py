"""`/v1/tools`: what an org's tools are made of, who may manage them, and what is never shown."""

import base64
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text

from arkloop.shared.catalog import http_tools
from arkloop.shared.config import Settings
from arkloop.shared.ids import new_id
from arkloop.shared.sealing import org_keys
from arkloop.shared.storage.connections import Connections
from tests.clients import Register, User, details_of, error_of

pytestmark = pytest.mark.own_database

PATH = "/v1/tools"
BODY = {"name": "refund", "description": "Refund an order.", "url": "https://shop.example/refund"}
SCHEMA = {"type": "object", "properties": {"z": {"type": "integer"}, "a": {"type": "string"}}}


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    return replace(settings, allowed_networks=("10.1.0.0/16",))


def make(user: User, **fields: Any) -> dict[str, Any]:
    response = user.post(PATH, {**BODY, **fields})
    assert 201 == response.status_code, response.text
    return dict(response.json or {})


def test_a_tool_is_made_shown_changed_and_deleted(alice: User) -> None:
    """All of a tool is shown, but for what its headers say; its secret is shown once."""
    response = alice.post(PATH, {**BODY, "parameters": SCHEMA, "headers": {"X-Key": "canary"}})

    made = dict(response.json or {})
    secret = made.pop("signing_secret")
    assert f"{PATH}/{made['id']}" == response.headers["Location"]
    assert secret.startswith("whsec_") and 32 == len(base64.b64decode(secret[6:]))
    expected = {
        **BODY,
        "id": made["id"],
        "org_id": str(alice.org_id),
        "parameters": SCHEMA,
        "idempotent": False,
        "timeout_seconds": 60.0,
        "header_names": ["X-Key"],
        "former_secret_until": None,
        "created_at": made["created_at"],
        "updated_at": made["updated_at"],
    }
    assert expected == made
    assert ["z", "a"] == list(made["parameters"]["properties"])
    one = f"{PATH}/{made['id']}"
    assert [made] == alice.get(PATH).json and made == alice.get(one).json
    changes = {"timeout_seconds": 5, "idempotent": True, "headers": None, "description": "New."}
    changed = alice.patch(one, changes).json
    assert changed is not None
    del changes["headers"]
    assert {**made, **changes, "header_names": [], "updated_at": changed["updated_at"]} == changed
    assert 204 == alice.delete(one).status_code
    assert (404, "tools.not_found") == error_of(alice.get(one))
    assert [] == alice.get(PATH).json


def test_a_list_is_paged(alice: User) -> None:
    """Tools are listed newest first, in pages."""
    ids = [make(alice, name=f"n{number}")["id"] for number in range(3)]

    first = alice.get(f"{PATH}?limit=2")
    second = alice.get(f"{PATH}?limit=2&before={first.headers['X-Next-Cursor']}")

    assert ids[::-1] == [row["id"] for row in [*first.json, *second.json]]


def test_secrets_are_stored_encrypted(connections: Connections, alice: User) -> None:
    """Neither the signing secret nor a header's value is in any table; workers get both."""
    key = {"Idempotency-Key": "k"}
    body = {**BODY, "name": "secret", "headers": {"X-Key": "canary"}}
    made = alice.post(PATH, body, headers=key).json
    assert made is not None

    with connections.reading() as sql:
        tables = sql.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"))
        dump = "".join(
            row
            for table in list(tables)
            for row in sql.scalars(text(f"SELECT t::text FROM {table} t"))
        )
        [row] = http_tools.of_names(sql, alice.org_id, ["secret"])

    assert made["id"] in dump
    hidden = ("canary", b"canary".hex(), made["signing_secret"][6:])
    assert [] == [found for found in hidden if found in dump]
    assert {"X-Key": "canary"} == http_tools.headers_of(connections.settings, row)
    assert [made["signing_secret"]] == http_tools.secrets_of(connections.settings, row)
    replayed = alice.post(PATH, body, headers=key).json
    del made["signing_secret"]
    assert made == replayed


def test_a_secret_is_replaced(connections: Connections, alice: User) -> None:
    """The response has the new secret, and says how long the former one is valid, too."""
    made = make(alice)

    rotated = alice.post(f"{PATH}/{made['id']}:rotate-secret", {"overlap_seconds": 60}).json

    assert rotated is not None and rotated["former_secret_until"] is not None
    secrets = [rotated["signing_secret"], made["signing_secret"]]
    with connections.reading() as sql:
        [row] = http_tools.of_names(sql, alice.org_id, ["refund"])
    assert secrets == http_tools.secrets_of(connections.settings, row)
    at_once = alice.post(f"{PATH}/{made['id']}:rotate-secret", {"overlap_seconds": 0}).json
    assert at_once is not None
    with connections.reading() as sql:
        [row] = http_tools.of_names(sql, alice.org_id, ["refund"])
    assert [at_once["signing_secret"]] == http_tools.secrets_of(connections.settings, row)
    assert 200 == alice.post(f"{PATH}/{made['id']}:rotate-secret").status_code


def test_a_new_secret_is_valid_after_the_org_s_key_was_erased(
    connections: Connections, alice: User
) -> None:
    """The former secret, which nobody can decrypt, is left out while it would still be valid."""
    made = make(alice)
    with connections.transaction() as tx:
        org_keys.erase(tx, alice.org_id)

    rotated = alice.post(f"{PATH}/{made['id']}:rotate-secret", {"overlap_seconds": 60}).json

    assert rotated is not None
    with connections.reading() as sql:
        [row] = http_tools.of_names(sql, alice.org_id, ["refund"])
    assert [rotated["signing_secret"]] == http_tools.secrets_of(connections.settings, row)


@pytest.mark.parametrize("overlap", [-1, 604_801, True, "60"])
def test_an_overlap_has_bounds(alice: User, overlap: Any) -> None:
    """A former secret is valid for a week at most."""
    one = f"{PATH}/{make(alice)['id']}:rotate-secret"

    assert ["overlap_seconds"] == list(details_of(alice.post(one, {"overlap_seconds": overlap})))


def test_without_a_key_no_tool_is_taken(connections: Connections, alice: User) -> None:
    """A server that cannot encrypt a secret says so."""
    known = connections.settings
    connections.settings = replace(known, encryption_key=None)
    try:
        response = alice.post(PATH, BODY)
    finally:
        connections.settings = known

    expected = ["ARKLOOP_ENCRYPTION_KEY is not set on this server"]
    assert expected == details_of(response)["signing_secret"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": None}, "name"),
        ({"name": "a b"}, "name"),
        ({"name": "a" * 65}, "name"),
        ({"name": "calculator"}, "name"),
        ({"name": "read_result"}, "name"),
        ({"description": None}, "description"),
        ({"description": "é" * 2049}, "description"),
        ({"url": None}, "url"),
        ({"url": "http://127.0.0.1:8000/"}, "url"),
        ({"url": "https://user:pass@shop.example/"}, "url"),
        ({"url": "https://shop.example/#f"}, "url"),
        ({"parameters": {"type": "array"}}, "parameters"),
        ({"parameters": {"type": "object", "properties": 1}}, "parameters"),
        ({"parameters": {"type": "object", "required": "to"}}, "parameters"),
        ({"parameters": {"type": "object", "properties": {"to": {"type": "text"}}}}, "parameters"),
        ({"parameters": {"type": "object", "$defs": {"to": {"type": "text"}}}}, "parameters"),
        ({"parameters": {"type": "object", "description": "x" * 16_384}}, "parameters"),
        ({"parameters": []}, "parameters"),
        ({"idempotent": 1}, "idempotent"),
        ({"timeout_seconds": 0}, "timeout_seconds"),
        ({"timeout_seconds": 601}, "timeout_seconds"),
        ({"timeout_seconds": "5"}, "timeout_seconds"),
        ({"headers": {"Webhook-Id": "1"}}, "headers"),
        ({"headers": {"Arkloop_Run_Id": "1"}}, "headers"),
        ({"headers": {"Content-Type": "1"}}, "headers"),
        ({"signing_secret": "whsec_x"}, "signing_secret"),
    ],
)
def test_what_makes_no_tool_is_refused(alice: User, body: dict[str, Any], field: str) -> None:
    """A request that describes no valid tool is refused with the field's name."""
    given = {name: value for name, value in {**BODY, **body}.items() if value is not None}

    assert [field] == list(details_of(alice.post(PATH, given)))


def test_a_change_is_checked_as_a_new_tool_is(alice: User) -> None:
    """A change cannot evade the rules, and stored headers go only where they were given for."""
    one = f"{PATH}/{make(alice, headers={'X-Key': 'v'})['id']}"
    there = {"url": "https://other.example/"}

    assert ["url"] == list(details_of(alice.patch(one, {"url": "http://localhost/"})))
    assert ["name"] == list(details_of(alice.patch(one, {"name": "ask_user"})))
    assert ["headers"] == list(details_of(alice.patch(one, there)))
    assert 200 == alice.patch(one, {**there, "headers": {"X-Key": "w"}}).status_code
    assert 200 == alice.patch(one, {"url": "http://10.1.2.3:9/", "headers": None}).status_code


def test_names_are_unique_in_an_org(alice: User, register: Register) -> None:
    """Personas and models know a tool by its name, which another org may use as well."""
    make(alice)
    other = make(alice, name="other")

    assert (409, "names.taken") == error_of(alice.post(PATH, BODY))
    assert (409, "names.taken") == error_of(
        alice.patch(f"{PATH}/{other['id']}", {"name": "refund"})
    )
    assert make(register())["name"] == "refund"


def test_only_admins_of_the_org_see_tools(alice: User, register: Register) -> None:
    """Members and narrow keys are refused, and other orgs do not find the tool."""
    one = f"{PATH}/{make(alice)['id']}"
    member = register(org_of=alice, role="member")

    for user in (member, alice.api_key("data.runs.write")):
        assert 403 == user.get(PATH).status_code == user.get(one).status_code
        assert 403 == user.post(PATH, BODY).status_code == user.delete(one).status_code
    stranger = register()
    for response in (
        stranger.get(one),
        stranger.patch(one, {"idempotent": True}),
        stranger.post(f"{one}:rotate-secret"),
        stranger.delete(one),
        alice.get(f"{PATH}/{new_id()}"),
    ):
        assert (404, "tools.not_found") == error_of(response)


def test_an_org_has_a_limited_number_of_tools(alice: User, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of an org's tools is limited, and the response names the limit."""
    monkeypatch.setattr(http_tools, "MAX_TOOLS", 1)
    make(alice)

    why = details_of(alice.post(PATH, {**BODY, "name": "other"}))["name"]

    assert ["limit reached: 1 tools per organization"] == why


def test_a_persona_names_the_tools_of_its_org(alice: User, register: Register) -> None:
    """A persona is published with the org's own tools, and refused with unknown ones."""
    make(alice)
    persona = {"key": "clerk", "tools": ["refund", "calculator"], "require_approval": ["refund"]}

    assert ["refund", "calculator"] == (alice.post("/v1/personas", persona).json or {})["tools"]
    unknown = details_of(register().post("/v1/personas", persona))
    assert {"tools": ["unknown tool 'refund'"]} == unknown
