"""`/v1/mcp-configs`: who may manage servers, what is refused, and what is never shown."""

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text

from arkloop.shared.catalog import mcp_configs, mcp_secrets
from arkloop.shared.config import Settings
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections
from tests.api.endpoints.described_mcp import HASH, PATH, URL, Described, Found, make
from tests.clients import Register, User, details_of, error_of

pytestmark = pytest.mark.own_database

SECRET = "Bearer canary-5f1b0c"


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    return replace(settings, encryption_key="k" * 32, allowed_networks=("10.1.0.0/16",))


def test_a_server_is_named_shown_changed_and_forgotten(alice: User) -> None:
    """All that is known of it is shown, but for what its headers say."""
    response = alice.post(
        PATH, {"name": "files", "url": URL, "headers": {"Authorization": SECRET, "X-Team": "a"}}
    )

    made = response.json
    assert made is not None
    assert 201 == response.status_code
    assert f"{PATH}/{made['id']}" == response.headers["Location"]
    expected = {
        "id": made["id"],
        "org_id": str(alice.org_id),
        "name": "files",
        "transport": "streamable_http",
        "url": URL,
        "command": None,
        "header_names": ["Authorization", "X-Team"],
        "oauth": None,
        "tool_count": 0,
        "tried_at": None,
        "discovered_at": None,
        "discovery_error": None,
        "created_at": made["created_at"],
        "updated_at": made["updated_at"],
    }
    assert expected == made
    assert [made] == alice.get(PATH).json
    one = f"{PATH}/{made['id']}"
    assert made == alice.get(one).json
    changed = alice.patch(one, {"name": "drive", "headers": None}).json
    assert changed is not None
    assert {**made, "name": "drive", "header_names": [], "updated_at": changed["updated_at"]} == (
        changed
    )
    assert 204 == alice.delete(one).status_code
    assert (404, "mcp_configs.not_found") == error_of(alice.get(one))
    assert [] == alice.get(PATH).json


def test_a_list_is_paged(alice: User) -> None:
    """Servers are listed newest first, in pages."""
    ids = [make(alice, name=f"n{number}")["id"] for number in range(3)]

    first = alice.get(f"{PATH}?limit=2")
    second = alice.get(f"{PATH}?limit=2&before={first.headers['X-Next-Cursor']}")

    assert ids[::-1] == [row["id"] for row in [*first.json, *second.json]]


def test_header_names_may_have_underscores_and_dots(alice: User) -> None:
    """Header names may contain what RFC 9110 allows, such as underscores and dots."""
    config = make(alice, name="odd", headers={"X_API_KEY": "1", "x.team": "2"})

    assert ["X_API_KEY", "x.team"] == config["header_names"]


def test_headers_are_stored_encrypted(connections: Connections, alice: User) -> None:
    """The secret is in no table, and the worker gets it."""
    config = make(alice, name="secret", headers={"Authorization": SECRET})

    with connections.reading() as sql:
        tables = sql.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"))
        dump = "".join(
            row
            for table in list(tables)
            for row in sql.scalars(text(f"SELECT t::text FROM {table} t"))
        )
        [row] = mcp_configs.of_names(sql, alice.org_id, ["secret"])

    assert config["id"] in dump
    assert "canary" not in dump and b"canary".hex() not in dump
    assert {"Authorization": SECRET} == mcp_secrets.headers_of(connections.settings, row)


def test_without_a_key_no_headers_are_taken(connections: Connections, alice: User) -> None:
    """A server that cannot encrypt them says so."""
    connections.settings, known = (
        replace(connections.settings, encryption_key=None),
        (connections.settings),
    )
    try:
        response = alice.post(PATH, {"name": "a", "url": URL, "headers": {"X-Key": "v"}})
    finally:
        connections.settings = known

    assert ["ARKLOOP_ENCRYPTION_KEY is not set on this server"] == details_of(response)["headers"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": "Files"}, "name"),
        ({"name": "a" * 33}, "name"),
        ({"name": "a b"}, "name"),
        ({"name": None}, "name"),
        ({"url": None}, "url"),
        ({"url": "ftp://example.com/"}, "url"),
        ({"url": "http://127.0.0.1:8000/mcp"}, "url"),
        ({"url": "http://169.254.169.254/mcp"}, "url"),
        ({"url": "https://user:pass@example.com/"}, "url"),
        ({"url": "https://example.com/" + "a" * 2000}, "url"),
        ({"url": "https://example.com/mcp#f"}, "url"),
        ({"url": "https://example.com/mcp#"}, "url"),
        ({"transport": "sse"}, "transport"),
        ({"transport": "stdio", "command": ["ls"]}, "transport"),
        ({"command": ["ls"]}, "command"),
        ({"headers": {"Host": "a"}}, "headers"),
        ({"headers": {"content-length": "1"}}, "headers"),
        ({"headers": {"Mcp-Session-Id": "1"}}, "headers"),
        ({"headers": {"Mcp_Session.Id": "1"}}, "headers"),
        ({"headers": {"transfer_encoding": "1"}}, "headers"),
        ({"headers": {"a b": "1"}}, "headers.a b.key"),
        ({"headers": {"a:b": "1"}}, "headers.a:b.key"),
        ({"headers": {"a" * 65: "1"}}, f"headers.{'a' * 65}.key"),
        ({"headers": {"A": "1\r\nB: 2"}}, "headers.A.value"),
        ({"headers": {"A": "é"}}, "headers.A.value"),
        ({"headers": {"A": ""}}, "headers.A.value"),
        ({"headers": {"A": "1", "a": "2"}}, "headers"),
        ({"headers": {f"A{n}": "1" for n in range(17)}}, "headers"),
        ({"org_id": "1"}, "org_id"),
    ],
)
def test_what_makes_no_server_is_refused(alice: User, body: dict[str, Any], field: str) -> None:
    """A request that describes no valid server is refused with the field's name."""
    given = {"name": "files", "url": URL, **body}
    given = {name: value for name, value in given.items() if value is not None}

    assert [field] == list(details_of(alice.post(PATH, given)))


def test_an_address_in_an_allowed_network_is_taken(alice: User) -> None:
    """The operator has named it."""
    assert "http://10.1.2.3:9/mcp" == make(alice, url="http://10.1.2.3:9/mcp")["url"]


def test_programs_are_taken_where_the_operator_allows_them(
    connections: Connections, alice: User
) -> None:
    """A program is given as a list, since no shell reads it, and only where the operator allows
    programs.
    """
    body = {"name": "local", "transport": "stdio", "command": ["/usr/bin/mcp", "--all"]}
    connections.settings, known = (
        replace(connections.settings, mcp_stdio=True),
        (connections.settings),
    )
    try:
        made = alice.post(PATH, body).json
        refused = [
            alice.post(PATH, {**body, "name": "a", "headers": {"X": "y"}}),
            alice.post(PATH, {**body, "name": "a", "url": URL}),
            alice.post(PATH, {**body, "name": "a", "command": "ls -l"}),
            alice.post(PATH, {**body, "name": "a", "command": []}),
        ]
    finally:
        connections.settings = known

    assert made is not None
    assert (None, ["/usr/bin/mcp", "--all"]) == (made["url"], made["command"])
    assert ["headers", "url", "command", "command"] == [next(iter(details_of(r))) for r in refused]
    # Now that it is forbidden, an old one cannot be changed either.
    why = "stdio is not allowed here; see ARKLOOP_MCP_STDIO"
    assert {"transport": [why]} == details_of(alice.patch(f"{PATH}/{made['id']}", {"name": "b"}))


def test_a_change_is_checked_as_a_new_one_is(alice: User) -> None:
    """A change cannot evade the rules for a new object."""
    one = f"{PATH}/{make(alice)['id']}"

    assert ["url"] == list(details_of(alice.patch(one, {"url": "http://localhost/"})))
    assert ["command"] == list(details_of(alice.patch(one, {"command": ["ls"]})))
    assert ["transport"] == list(details_of(alice.patch(one, {"transport": "stdio"})))


def test_headers_go_only_where_they_were_given_for(alice: User) -> None:
    """Stored headers are not sent to a changed address, which could be a server of the user who
    changed it.
    """
    one = f"{PATH}/{make(alice, headers={'Authorization': SECRET})['id']}"
    there = {"url": "https://mcp.example.com/other"}

    assert ["headers"] == list(details_of(alice.patch(one, there)))
    assert URL == alice.get(one).json["url"]
    assert 200 == alice.patch(one, {"url": URL, "name": "drive"}).status_code
    assert 200 == alice.patch(one, {**there, "headers": {"X-Key": "other"}}).status_code
    assert 200 == alice.patch(one, {"url": URL, "headers": None}).status_code
    assert 200 == alice.patch(one, there).status_code


def test_names_are_unique_in_an_org(alice: User, register: Register) -> None:
    """Names, which prefix the names of tools, are unique in an org, not across orgs."""
    make(alice)
    other = make(alice, name="other")
    make(register())

    assert (409, "names.taken") == error_of(alice.post(PATH, {"name": "files", "url": URL}))
    answer = alice.patch(f"{PATH}/{other['id']}", {"name": "files"})
    assert (409, "names.taken") == error_of(answer)


def test_a_request_that_is_sent_again_makes_one_server(alice: User) -> None:
    """A repeated request with the same idempotency key creates one server."""
    key = {"Idempotency-Key": "once"}
    first, again = (alice.post(PATH, {"name": "a", "url": URL}, headers=key) for _ in range(2))

    assert first.json == again.json
    assert 1 == len(alice.get(PATH).json or ())


def _every_call(config_id: str) -> list[tuple[str, str, Any]]:
    one = f"{PATH}/{config_id}"
    return [
        ("GET", one, None),
        ("PATCH", one, {"name": "stolen"}),
        ("DELETE", one, None),
        ("POST", f"{one}:discover", None),
        ("GET", f"{one}/tools", None),
        ("POST", f"{one}/tools/read:approve", {"hash": HASH}),
        ("POST", f"{one}/tools:approve", {"tools": [{"name": "read", "hash": HASH}]}),
    ]


def test_another_orgs_server_is_unknown(alice: User, register: Register, found: Found) -> None:
    """Every request for another org's server gets the 404 of a server that does not exist."""
    config = make(alice)
    found(config, Described("read", HASH))
    mallory = register()

    for of_alice, of_nobody in zip(
        _every_call(config["id"]), _every_call(str(new_id())), strict=True
    ):
        method, path, body = of_alice
        answer = mallory.call(method, path, json=body) if body else mallory.call(method, path)
        unknown = mallory.call(method, of_nobody[1], **({"json": body} if body else {}))
        assert (404, "mcp_configs.not_found") == error_of(answer), of_alice
        assert error_of(unknown) == error_of(answer)
    assert config["name"] == alice.get(f"{PATH}/{config['id']}").json["name"]


def test_only_admins_manage_servers(alice: User, register: Register) -> None:
    """Members, and keys without the scope, cannot manage servers."""
    config = make(alice)
    member = register(org_of=alice, role="member")
    narrow = alice.api_key("data.runs.read", "data.runs.write")
    calls = [
        ("GET", PATH, None),
        ("POST", PATH, {"name": "b", "url": URL}),
        *_every_call(config["id"]),
    ]

    for user in (member, narrow):
        for method, path, body in calls:
            answer = user.call(method, path, **({"json": body} if body else {}))
            assert (403, "auth.forbidden") == error_of(answer), (method, path)
    assert 200 == register(org_of=alice, role="admin").get(PATH).status_code
