"""Access tokens that log-ins and refreshes return, tried out."""

from flask.testing import FlaskClient
from werkzeug.test import TestResponse


def me(client: FlaskClient, response: TestResponse) -> int:
    """Return the status that the response's access token gets."""
    assert response.json is not None
    token = response.json["access_token"]
    return client.get("/v1/me", headers={"Authorization": f"Bearer {token}"}).status_code
