"""`/v1/audit-logs`."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from arkloop.shared.ids import new_id
from tests.clients import PASSWORD, Register, User, details_of, error_of

HOW_TO = Path(__file__).parents[3] / "docs/how-to/audit-log.md"


def entries(user: User, **filters: Any) -> list[dict[str, Any]]:
    return list(user.get("/v1/audit-logs", query_string=filters).json or [])


def test_an_entry_says_who_did_what_from_where(alice: User) -> None:
    """Every field of the contract, for a key that is created by another key."""
    key = alice.api_key()
    made = key.post(
        "/v1/api-keys",
        {"name": "ci", "scopes": ["data.runs.read"]},
        headers={"User-Agent": "curl/8"},
    ).json

    entry, before = entries(alice)[:2]

    by_key = alice.get("/v1/api-keys").json[1]["id"]
    assert entry == {
        "org_id": str(alice.org_id),
        "seq": before["seq"] + 1,
        "created_at": entry["created_at"],
        "action": "api_key.created",
        "actor": {
            "type": "api_key",
            "user_id": str(alice.id),
            "api_key_id": by_key,
            "end_user_id": None,
        },
        "target": {"type": "api_key", "id": made["id"]},
        "details": {"key_prefix": made["key_prefix"], "scopes": ["data.runs.read"]},
        "ip": "127.0.0.1",
        "user_agent": "curl/8",
        "prev_hash": before["hash"],
        "hash": entry["hash"],
    }


def test_the_hash_is_that_of_the_canonical_json(alice: User) -> None:
    """SHA-256 of the entry as it is shown, without `hash`: sorted keys, no spaces, UTF-8."""
    alice.post("/v1/api-keys", {"name": "ü"}, headers={"User-Agent": 'ü"\\/\x7f'})

    entry = entries(alice)[0]
    hash_ = entry.pop("hash")

    text = json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert hashlib.sha256(text.encode()).hexdigest() == hash_
    assert {"org_id": entry["org_id"], "seq": entry["seq"], "hash": hash_} == alice.get(
        "/v1/audit-logs/head"
    ).json


def test_the_life_of_a_key_and_of_a_login_is_recorded(
    alice: User, client: FlaskClient, connections: Any
) -> None:
    """Each action has its entry; a password that is wrong, or a secret, is in none."""
    credentials = {"login": alice.login, "password": PASSWORD}
    key = alice.post("/v1/api-keys", {"name": "ci"}).json
    alice.patch(f"/v1/api-keys/{key['id']}", {"max_cost_usd": 1.5})
    alice.delete(f"/v1/api-keys/{key['id']}")
    client.post("/v1/auth/login", json={**credentials, "password": "wrong horse"})
    client.post("/v1/auth/login", json={"login": "nobody at all", "password": "wrong horse"})
    token = client.post("/v1/auth/login", json=credentials).json["access_token"]
    bob = alice.with_token(token)
    bob.post("/v1/auth/password", {"current": PASSWORD, "new": PASSWORD + "2"})
    bob.post("/v1/auth/logout")

    fresh = alice.with_token(
        client.post("/v1/auth/login", json={"login": alice.login, "password": PASSWORD + "2"}).json[
            "access_token"
        ]
    )
    found = entries(fresh)

    assert [
        "api_key.created",
        "api_key.changed",
        "api_key.revoked",
        "auth.login_failed",
        "auth.logged_in",
        "auth.password_changed",
        "auth.logged_out",
        "auth.logged_in",
    ] == [entry["action"] for entry in reversed(found)]
    assert "unknown" == found[4]["actor"]["type"]
    assert {"type": "user", "id": str(alice.id)} == found[4]["target"]
    assert {"max_cost_usd": "1.5"} == found[6]["details"]
    assert not re.search(rf"horse|{key['key']}", json.dumps(found))


def test_a_failed_login_is_recorded_whatever_org_it_names(
    alice: User, client: FlaskClient, register: Register
) -> None:
    """The entry is in the named org, if the user is a member, else in the user's first one."""
    wrong = {"login": alice.login, "password": "wrong horse"}
    for org_id in (register().org_id, new_id(), alice.org_id):
        assert 401 == client.post("/v1/auth/login", json={**wrong, "org_id": org_id}).status_code

    assert 3 == len(entries(alice, action="auth.login_failed"))


def test_an_end_of_another_login_is_recorded(alice: User, client: FlaskClient) -> None:
    """A login that its user ends from another one is named."""
    client.post("/v1/auth/login", json={"login": alice.login, "password": PASSWORD})
    other = alice.get("/v1/auth/sessions").json["items"][0]["id"]

    assert 204 == alice.delete(f"/v1/auth/sessions/{other}").status_code

    entry = entries(alice)[0]
    assert ("auth.session_ended", {"type": "session", "id": other}) == (
        entry["action"],
        entry["target"],
    )


def test_pages_and_filters(alice: User, register: Register) -> None:
    """Newest first, each entry on one page; by action and by user."""
    colleague = register(org_of=alice, role="admin")
    for user in (alice, colleague, alice):
        made = user.post("/v1/api-keys", {"name": "a"}).json
        user.delete(f"/v1/api-keys/{made['id']}")

    first = alice.get("/v1/audit-logs?limit=4")
    rest = alice.get(f"/v1/audit-logs?limit=9&before={first.headers['X-Next-Cursor']}")

    found = [entry["seq"] for entry in first.json + rest.json]
    assert [6, 5, 4, 3, 2, 1] == found
    assert "X-Next-Cursor" not in rest.headers
    both = {"action": "api_key.created", "actor_user_id": str(alice.id)}
    assert [5, 1] == [entry["seq"] for entry in entries(alice, **both)]
    of_colleague = [e["action"] for e in entries(alice, actor_user_id=str(colleague.id))]
    assert ["api_key.revoked", "api_key.created"] == of_colleague


@pytest.mark.parametrize(
    ("query", "field"),
    [("action=x", "action"), ("actor_user_id=x", "actor_user_id"), ("before=x", "before")],
)
def test_filters_that_mean_nothing_are_refused(alice: User, query: str, field: str) -> None:
    """422 names the parameter."""
    assert [field] == list(details_of(alice.get(f"/v1/audit-logs?{query}")))


def test_only_owners_and_admins_read_it(alice: User, register: Register) -> None:
    """Members get 403, and no org sees another one's entries or head."""
    alice.api_key()
    member = register(org_of=alice, role="member")
    narrow = alice.api_key("data.runs.read", "data.threads.write")
    stranger = register()
    stranger.api_key()

    for path in ("/v1/audit-logs", "/v1/audit-logs/head"):
        for user in (member, narrow):
            assert (403, "auth.forbidden") == error_of(user.get(path))
    assert 2 == len(entries(register(org_of=alice, role="admin"), action="api_key.created"))
    assert ["api_key.created"] == [entry["action"] for entry in entries(stranger)]
    assert 1 == stranger.get("/v1/audit-logs/head").json["seq"]


def checker() -> dict[str, Any]:
    """Load the program of the how-to."""
    (program,) = re.findall(r"<<'EOF'\n(.*?)^EOF$", HOW_TO.read_text(), re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {"__name__": "check_audit_log"}
    exec(program, names)
    return names


def test_the_program_of_the_how_to_finds_what_was_changed(alice: User) -> None:
    """Somebody else's check of the API's entries agrees with ours."""
    for _ in range(4):
        alice.api_key()
    check, head = checker()["check"], alice.get("/v1/audit-logs/head").json
    kept = (head["seq"], head["hash"])
    assert 4 == head["seq"]
    alice.api_key()

    assert None is check(entries(alice), kept)

    for field, value in [("ip", "192.0.2.1"), ("created_at", "2026-01-01T00:00:00.000Z")]:
        changed = entries(alice)
        changed[2][field] = value
        assert "entry 3 was changed" == check(changed, kept)
    without = [entry for entry in entries(alice) if entry["seq"] != 3]
    assert "entry 4 does not follow entry 2" == check(without, kept)
    assert "no entry 4 with the hash that was kept" == check(entries(alice)[2:], kept)
    assert "no entry 4 with the hash that was kept" == check(entries(alice), (4, "0" * 64))
