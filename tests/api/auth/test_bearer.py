"""Access to endpoints: tokens in the header, permissions, revocation."""

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from flask import Flask
from sqlalchemy import delete, text, update

from arkloop.api.auth import access_tokens, bearer
from arkloop.api.auth.bearer import Authenticator
from arkloop.shared.accounts import api_keys, operators
from arkloop.shared.actors import Actor
from arkloop.shared.config import Settings
from arkloop.shared.errors import Unauthorized, Unavailable
from arkloop.shared.storage.connections import Connections, connect
from arkloop.shared.storage.tables.accounts import api_keys as api_keys_table
from arkloop.shared.storage.tables.accounts import memberships
from tests.clients import Register, User, details_of, error_of
from tests.closed_port import closed_port
from tests.waiting import eventually, in_parallel

#: What everybody may call: what spec 1 says, and where a browser returns from a page of OAuth
#: or of an identity provider.
PUBLIC = {
    "/healthz",
    "/readyz",
    "/openapi.json",
    "/console",
    "/console/<version>/<path:file>",
    "/console/0/app.js",
    "/docs",
    "/docs/start.js",
    "/docs/swagger-ui-bundle.js",
    "/docs/swagger-ui.css",
    "/v1/auth/register",
    "/v1/auth/login",
    "/v1/auth/refresh",
    "/v1/auth/password-reset",
    "/v1/auth/oidc/begin",
    "/v1/auth/oidc/callback",
    "/v1/mcp-oauth/callback",
}
AN_ID = "01a20e5a-2b91-76ef-b381-d919c4ad9778"
#: What stands in a path that is no UUID.
NAMES = {
    "chat_id": "chat",
    "file": "app.js",
    "name": "shop",
    "persona_id": "assistant@1",
    "response_id": "resp_of_nothing",
    "tool": "echo",
    "version": "0",
}


def endpoints(app: Flask) -> list[tuple[str, str]]:
    """List method and path of all that is routed; ids are valid ones of nothing."""
    return [
        (method, rule.build({name: NAMES.get(name, AN_ID) for name in rule.arguments})[1])
        for rule in app.url_map.iter_rules()
        for method in sorted((rule.methods or set()) - {"OPTIONS"})
    ]


@pytest.fixture
def expire_cache(app: Flask) -> Callable[[], None]:
    """Call it for what `CACHE_SECONDS` do to what the process believes."""
    return app.extensions["arkloop.auth"].forget


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Basic YWxpY2U6c2VjcmV0",
        "al_",
        "Bearer x",
        "Bearer al_",
        f"Bearer {'al_' + 'a' * 36}",
        "unknown",
        "revoked",
        "expired",
    ],
)
def test_every_endpoint_wants_a_valid_token(
    app: Flask, alice: User, connections: Connections, header: str | None
) -> None:
    """Each route and method but the public ones has 401 with its challenge, before all else."""
    if header == "unknown":
        header = f"Bearer {api_keys.make()}"
    elif header in ("revoked", "expired"):
        key = alice.api_key().token
        column = {"revoked": "revoked_at", "expired": "expires_at"}[header]
        with connections.transaction() as tx:
            tx.sql.execute(
                update(api_keys_table)
                .where(api_keys_table.c.key_hash == api_keys.hash_of(key))
                .values({column: datetime.now(UTC) - timedelta(seconds=1)})
            )
        header = f"Bearer {key}"
    client = app.test_client()
    checked = 0
    for method, path in endpoints(app):
        if path not in PUBLIC:
            response = client.open(
                path, method=method, headers={"Authorization": header} if header else {}
            )
            assert 401 == response.status_code, (method, path)
            assert "Bearer" == response.headers["WWW-Authenticate"]
            checked += 1
    assert checked > 10


def test_public_endpoints_want_none(app: Flask) -> None:
    """A public endpoint never responds with 401, whatever else is wrong with the request."""
    client = app.test_client()
    for method, path in endpoints(app):
        if path in PUBLIC and path != "/v1/auth/refresh":
            assert 401 != client.open(path, method=method).status_code, (method, path)


def test_every_endpoint_refuses_unknown_parameters(
    app: Flask, alice: User, connections: Connections
) -> None:
    """A misspelled parameter is a 422 everywhere, never ignored; a 400 as in OpenAI's API."""
    with connections.transaction() as tx:
        operators.add(tx, alice.id)
    for method, path in endpoints(app):
        response = alice.call(method, f"{path}?unknown=1")
        is_openai = path.startswith("/v1/responses")
        assert (400 if is_openai else 422) == response.status_code, (method, path)


#: Columns of rows that clients see, and may never set.
OURS = ("org_id", "created_by_user_id", "state", "fence", "owner", "cost_usd", "is_operator")


def test_nobody_sets_what_is_the_services_own(app: Flask, alice: User) -> None:
    """Mass assignment: no endpoint with a body takes such a field; most of them name it."""
    body = dict.fromkeys(OURS, AN_ID)
    named = 0
    for rule in app.url_map.iter_rules():
        built = rule.build({name: NAMES.get(name, AN_ID) for name in rule.arguments})
        assert built is not None
        for method in {"POST", "PUT", "PATCH"} & (rule.methods or set()):
            if rule.rule in PUBLIC:
                continue
            response = alice.call(method, built[1], json=body)
            # 404 and 403 for ids of nothing; files are another media type; 400 as in OpenAI's API.
            assert response.status_code in (400, 403, 404, 415, 422), (method, rule.rule)
            named += "fence" in (response.json or {}).get("details", {})
    assert named > 20


def test_an_id_that_is_none_is_refused_everywhere(app: Flask, alice: User) -> None:
    """422 names the part of the path."""
    for method, path in endpoints(app):
        if AN_ID in path:
            response = alice.call(method, path.replace(AN_ID, AN_ID.upper()))
            assert 422 == response.status_code, (method, path)
            if method != "HEAD":
                assert response.json is not None
                assert next(iter(response.json["details"])).endswith("_id")


def test_a_name_with_a_nul_is_refused_everywhere(app: Flask, alice: User) -> None:
    """422 names the part of the path: Postgres has no text with this character."""
    checked = 0
    for rule in app.url_map.iter_rules():
        for part in NAMES.keys() & rule.arguments:
            if part == "response_id":
                continue  # no such route: its ids begin with `resp_`
            values = {name: NAMES.get(name, AN_ID) for name in rule.arguments}
            path = rule.build({**values, part: "a\0b"})[1]
            for method in sorted((rule.methods or set()) - {"OPTIONS", "HEAD"}):
                assert [part] == list(details_of(alice.call(method, path))), (method, path)
                checked += 1
    assert checked > 5


@pytest.mark.parametrize(
    "spelling",
    [
        AN_ID.replace("-", ""),
        f"%7B{AN_ID}%7D",
        f"{AN_ID}%00",
        f"%20{AN_ID}",
        AN_ID.replace("-7", "-4"),
        AN_ID.replace("1", "١"),
        "..%2e",
        "0" * 5_000,
        "x",
    ],
)
def test_an_id_has_one_spelling(alice: User, spelling: str) -> None:
    """Its canonical one: whatever a reader could take for the same is refused."""
    assert ["thread_id"] == list(details_of(alice.get(f"/v1/threads/{spelling}")))


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_has_no_case(alice: User, scheme: str) -> None:
    """The scheme of Authorization is case-insensitive (RFC 9110, 11.1)."""
    response = alice.client.get("/v1/me", headers={"Authorization": f"{scheme} {alice.token}"})

    assert 200 == response.status_code


def test_a_key_does_what_its_scopes_allow(alice: User) -> None:
    """A key gets 403 for everything that its scopes do not allow."""
    reader = alice.api_key("data.threads.read")

    assert 200 == reader.get("/v1/threads").status_code
    assert (403, "auth.forbidden") == error_of(reader.post("/v1/threads"))


@pytest.mark.parametrize(
    ("scope", "method", "path"),
    [
        ("data.threads.read", "GET", "/v1/threads"),
        ("data.threads.read", "GET", f"/v1/threads/{AN_ID}"),
        ("data.threads.read", "GET", f"/v1/threads/{AN_ID}/messages"),
        ("data.threads.write", "POST", "/v1/threads"),
        ("data.threads.write", "DELETE", f"/v1/threads/{AN_ID}"),
        ("data.threads.write", "POST", f"/v1/threads/{AN_ID}/messages"),
    ],
)
def test_each_endpoint_wants_exactly_one_scope(
    alice: User, scope: str, method: str, path: str
) -> None:
    """An endpoint accepts a key with its scope alone, and refuses one with all other scopes."""
    others = {"data.threads.read", "data.threads.write", "data.runs.read", "data.runs.write"}

    assert 403 != alice.api_key(scope).call(method, path, json={}).status_code
    without = alice.api_key("admin", *(others - {scope}))
    assert 403 == without.call(method, path, json={}).status_code


def test_a_keys_permissions_end_with_its_users(
    register: Register, alice: User, connections: Connections, expire_cache: Callable[[], None]
) -> None:
    """An admin who becomes a member takes the keys along; one who leaves has none."""
    admin = register(org_of=alice, role="admin")
    key = admin.api_key("admin", "data.threads.read")
    assert ["admin", "data.threads.read"] == key.get("/v1/me").json["permissions"]

    with connections.transaction() as tx:
        mine = memberships.c.user_id == admin.id
        tx.sql.execute(update(memberships).where(mine).values(role="member"))
    expire_cache()
    assert ["data.threads.read"] == key.get("/v1/me").json["permissions"]

    with connections.transaction() as tx:
        tx.sql.execute(delete(memberships).where(mine))
    expire_cache()
    assert [401, 401] == [who.get("/v1/me").status_code for who in (key, admin)]


def test_a_revoked_key_stops_within_5_seconds_elsewhere(
    app: Flask, alice: User, connections: Connections
) -> None:
    """A process that has just seen the key alive notices, for calls and for open streams."""
    key = alice.api_key().token
    elsewhere = Authenticator(connections)
    actor = elsewhere.identify(key)
    assert elsewhere.still_valid(actor)

    alice.delete(f"/v1/api-keys/{actor.api_key_id}")

    eventually(lambda: not elsewhere.still_valid(actor), seconds=5)
    with app.app_context():
        assert not bearer.authenticator().still_valid(actor)
    assert 401 == alice.with_token(key).get("/v1/me").status_code


def test_a_stream_ends_with_its_token(app: Flask, alice: User) -> None:
    """A stream ends when its token does, whatever is cached."""
    with app.app_context():
        actor = bearer.authenticator().identify(alice.token)
        assert bearer.authenticator().still_valid(actor)

        assert not bearer.authenticator().still_valid(replace(actor, expires_at=datetime.now(UTC)))


def test_streams_outlive_an_absence_of_postgres(alice: User, settings: Settings) -> None:
    """What cannot be checked is not ended; new calls get 503."""
    nowhere = f"postgresql+psycopg://nobody@127.0.0.1:{closed_port()}/nothing"
    away = Authenticator(connect(replace(settings, database_url=nowhere), application="tests"))
    claims = access_tokens.verify(settings, alice.token)
    actor = Actor(
        org_id=claims.org_id,
        user_id=claims.user_id,
        role="owner",
        permissions=frozenset(),
        expires_at=claims.expires_at,
    )

    assert away.still_valid(actor)
    with pytest.raises(Unavailable):
        away.identify(alice.token)


def test_requests_with_one_token_do_not_wait_in_turn(alice: User, settings: Settings) -> None:
    """While no connection is free, all of them fail as soon as the first has waited for one."""
    busy = connect(replace(settings, database_pool_size=1), application="tests")
    authenticator = Authenticator(busy)

    def identify(_: int) -> float:
        began = time.monotonic()
        with pytest.raises(Unavailable):
            authenticator.identify(alice.token)
        return time.monotonic() - began

    with busy.reading():
        assert max(in_parallel(100, identify)) < 15  # in turn it would take 20 s or more
    assert alice.id == authenticator.identify(alice.token).user_id
    busy.close()


def test_a_key_with_a_wrong_checksum_is_refused_without_the_database(settings: Settings) -> None:
    """A typo or a guess costs no query."""
    nowhere = f"postgresql+psycopg://nobody@127.0.0.1:{closed_port()}/nothing"
    away = Authenticator(connect(replace(settings, database_url=nowhere), application="tests"))
    key = api_keys.make()
    with pytest.raises(Unauthorized):
        away.identify(key[:-1] + ("0" if key[-1] != "0" else "1"))
    with pytest.raises(Unavailable):
        away.identify(key)


def test_the_last_use_of_a_key_is_known_to_the_minute(
    alice: User, connections: Connections, expire_cache: Callable[[], None]
) -> None:
    """Set by the first call, left alone by the next ones, set again after a minute."""
    key = alice.api_key()
    listed = [key_.get("/v1/api-keys").json[0]["last_used_at"] for key_ in (key, key)]
    expire_cache()
    again = key.get("/v1/api-keys").json[0]["last_used_at"]
    assert listed == [again, again]

    with connections.transaction() as tx:
        tx.sql.execute(
            text("UPDATE api_keys SET last_used_at = now() - interval '61 s' WHERE user_id = :id"),
            {"id": alice.id},
        )
    expire_cache()
    key.get("/v1/me")
    assert again < key.get("/v1/api-keys").json[0]["last_used_at"]
