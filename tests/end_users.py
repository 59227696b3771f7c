"""End users of an org, as tests see them: the client tokens that an org's user or key issues."""

from typing import Any

from arkloop.shared.actors import DATA_PERMISSIONS
from tests.clients import User

ANN, BOB = "ann", "bob"


def end_user(issuer: User, end_user_id: str = ANN, **fields: Any) -> User:
    """Return the issuer with a client token for this end user, by default with every scope."""
    body = {"end_user_id": end_user_id, "scopes": sorted(DATA_PERMISSIONS), **fields}
    response = issuer.post("/v1/client-tokens", body)
    assert 201 == response.status_code, response.text
    assert response.json is not None
    return issuer.with_token(response.json["token"])
