"""`/v1/me`."""

import re

from arkloop.shared.actors import DATA_PERMISSIONS, SCOPES
from tests.clients import Register, User


def test_me_is_the_user_in_their_org(alice: User) -> None:
    """It has every field of the contract, and no other."""
    me = alice.get("/v1/me").json
    assert me is not None
    created_at = me.pop("created_at")

    expected = {
        "id": str(alice.id),
        "username": alice.login,
        "email": f"{alice.login}@example.com",
        "org_id": str(alice.org_id),
        "org_name": alice.login,
        "orgs": [{"id": str(alice.org_id), "name": alice.login, "role": "owner"}],
        "role": "owner",
        "permissions": sorted(SCOPES),
        "limits": [],
        "weight": 1,
    }
    assert expected == me
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", created_at)


def test_permissions_are_those_of_the_role(register: Register, alice: User) -> None:
    """A member is no admin."""
    member = register(org_of=alice, role="member").get("/v1/me").json
    assert member is not None

    assert ("member", sorted(DATA_PERMISSIONS)) == (member["role"], member["permissions"])


def test_permissions_are_narrowed_by_the_key(alice: User) -> None:
    """A key shows what it may do, not what its user may."""
    me = alice.api_key("data.runs.read").get("/v1/me").json
    assert me is not None

    assert ("owner", ["data.runs.read"]) == (me["role"], me["permissions"])
