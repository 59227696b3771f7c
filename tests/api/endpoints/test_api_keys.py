"""`/v1/api-keys`."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import select

from arkloop.shared.accounts import api_keys
from arkloop.shared.actors import DATA_PERMISSIONS, SCOPES
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.accounts import api_keys as api_keys_table
from tests.clients import Register, User, details_of, error_of


def test_a_new_key_works_and_is_shown_once(alice: User) -> None:
    """Every field of the contract; the list has all but the key."""
    response = alice.post("/v1/api-keys", {"name": "ci"})
    made = dict(response.json or {})
    key = made.pop("key")

    expected = {
        "id": made["id"],
        "org_id": str(alice.org_id),
        "user_id": str(alice.id),
        "name": "ci",
        "key_prefix": key[:9],
        "scopes": sorted(SCOPES),
        "max_cost_usd": None,
        "max_cost_usd_per_month": None,
        "revoked_at": None,
        "last_used_at": None,
        "expires_at": None,
        "created_at": made["created_at"],
    }
    assert (201, expected) == (response.status_code, made)
    assert f"/v1/api-keys/{made['id']}" == response.headers["Location"]
    assert [expected] == alice.get("/v1/api-keys").json
    assert 200 == alice.with_token(key).get("/v1/me").status_code


def test_without_scopes_a_key_may_what_its_creator_may(alice: User, register: Register) -> None:
    """A key without scopes has its creator's permissions, so a member's key is no admin's."""
    member = register(org_of=alice, role="member")

    assert sorted(DATA_PERMISSIONS) == member.api_key().get("/v1/me").json["permissions"]


def test_nobody_gives_away_what_they_lack(alice: User, register: Register) -> None:
    """A scope beyond the creator's own is refused with 403."""
    member = register(org_of=alice, role="member")
    narrow = alice.api_key("admin", "data.runs.read")
    body = {"name": "a", "scopes": ["admin"]}
    wide = {"name": "a", "scopes": ["data.runs.write"]}

    assert (403, "auth.forbidden") == error_of(member.post("/v1/api-keys", body))
    assert (403, "auth.forbidden") == error_of(narrow.post("/v1/api-keys", wide))
    assert 201 == narrow.post("/v1/api-keys", body).status_code


def test_only_a_key_with_admin_manages_keys(alice: User) -> None:
    """A stolen narrow key makes no others, and revokes none."""
    key = alice.api_key("data.threads.read", "data.threads.write")

    answers = [
        key.post("/v1/api-keys", {"name": "a"}),
        key.get("/v1/api-keys"),
        key.delete(f"/v1/api-keys/{new_id()}"),
    ]
    assert {(403, "auth.forbidden")} == {error_of(answer) for answer in answers}


def test_a_key_may_have_an_end(alice: User) -> None:
    """It is shown, in UTC to the millisecond, whatever its zone was."""
    moment = (datetime.now(UTC) + timedelta(hours=1)).replace(microsecond=123000)
    given = moment.astimezone(datetime.now().astimezone().tzinfo).isoformat()

    key = alice.post("/v1/api-keys", {"name": "a", "expires_at": given}).json

    assert key is not None
    assert moment.strftime("%Y-%m-%dT%H:%M:%S.123Z") == key["expires_at"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "n" * 201}, "name"),
        ({"name": 1}, "name"),
        ({"name": "a", "scopes": ["everything"]}, "scopes.0"),
        ({"name": "a", "scopes": "admin"}, "scopes"),
        ({"name": "a", "scopes": None}, "scopes"),
        ({"name": "a", "scopes": []}, "scopes"),
        ({"name": "a", "scopes": [1]}, "scopes.0"),
        ({"name": "a", "scopes": ["admin"] * 11}, "scopes"),
        ({"name": "a", "expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"name": "a", "expires_at": "2999-01-01T00:00:00"}, "expires_at"),
        ({"name": "a", "expires_at": "0001-01-01T00:00:00+23:59"}, "expires_at"),
        ({"name": "a", "expires_at": "9999-01-01T00:00:00Z"}, "expires_at"),
        ({"name": "a", "expires_at": "9999-12-31T23:59:59-23:59"}, "expires_at"),
        ({"name": "a", "expires_at": "tomorrow"}, "expires_at"),
        ({"name": "a", "expires_at": 4102444800}, "expires_at"),
        ({"name": "a", "key": "al_x"}, "key"),
        ({"name": "a", "user_id": str(new_id())}, "user_id"),
    ],
)
def test_a_bad_key_is_refused(alice: User, body: dict[str, object], field: str) -> None:
    """A key with a bad field gets 422 with the field's name."""
    assert [field] == list(details_of(alice.post("/v1/api-keys", body)))


@pytest.mark.parametrize("moment", ["2999-01-01", "2999-01-01T00:00:00", "tomorrow"])
def test_an_end_has_the_form_of_a_time(alice: User, moment: str) -> None:
    """A date, or a time without an offset, gets 422 with the form that is expected."""
    refused = alice.post("/v1/api-keys", {"name": "a", "expires_at": moment})

    why = "must be an RFC 3339 time with an offset, such as 2026-11-29T12:00:00Z"
    assert {"expires_at": [why]} == details_of(refused)


def test_a_revoked_key_stops_and_stays_listed(alice: User) -> None:
    """204, again and again; the list says since when."""
    key = alice.api_key()
    path = f"/v1/api-keys/{_newest(alice)['id']}"

    assert [204, 204] == [alice.delete(path).status_code for _ in range(2)]
    assert 401 == key.get("/v1/me").status_code
    assert _newest(alice)["revoked_at"] is not None


def test_a_key_may_revoke_itself(alice: User) -> None:
    """A key with the scope admin may revoke itself, as its last request."""
    key = alice.api_key()

    assert 204 == key.delete(f"/v1/api-keys/{_newest(alice)['id']}").status_code
    assert 401 == key.get("/v1/me").status_code


def test_members_see_and_revoke_their_own_keys_alone(alice: User, register: Register) -> None:
    """Owners and admins see all of the org's; other orgs none. A hidden key is a 404."""
    member = register(org_of=alice, role="member")
    admin = register(org_of=alice, role="admin")
    stranger = register()
    for user in (alice, member):
        user.api_key()
    hers, theirs = _newest(alice, of=alice), _newest(member)

    seen = [len(user.get("/v1/api-keys").json or []) for user in (alice, admin, member, stranger)]
    assert [2, 2, 1, 0] == seen
    refused = [
        member.delete(f"/v1/api-keys/{hers['id']}"),
        stranger.delete(f"/v1/api-keys/{hers['id']}"),
        member.delete(f"/v1/api-keys/{new_id()}"),
    ]
    assert {(404, "api_keys.not_found")} == {error_of(answer) for answer in refused}
    assert 204 == admin.delete(f"/v1/api-keys/{theirs['id']}").status_code


def test_only_a_hash_of_the_key_is_stored(alice: User, connections: Connections) -> None:
    """SHA-256, and the few characters that are shown."""
    key = alice.api_key().token
    with connections.reading() as sql:
        query = select(api_keys_table).where(api_keys_table.c.user_id == alice.id)
        row = sql.execute(query).one()

    assert (api_keys.hash_of(key), key[:9]) == (row.key_hash, row.key_prefix)
    assert key[9:] not in str(row)


def _newest(user: User, of: User | None = None) -> dict[str, str]:
    rows = user.get("/v1/api-keys").json or []
    return next(dict(row) for row in rows if of is None or UUID(row["user_id"]) == of.id)
