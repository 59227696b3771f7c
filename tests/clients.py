"""Users as tests see them: a client, a token, and the calls that carry it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from argon2 import PasswordHasher
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

PASSWORD = "correct horse battery"
#: Of a hundredth of the work that production asks for: the suite makes thousands of users.
PASSWORD_HASH = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1).hash(PASSWORD)


@dataclass(frozen=True)
class User:
    """A registered user; `headers` of a call are added to the token's."""

    client: FlaskClient
    login: str
    id: UUID
    org_id: UUID
    token: str

    def get(self, path: str, **kwargs: Any) -> TestResponse:
        return self.call("GET", path, **kwargs)

    def post(self, path: str, json: Any = None, **kwargs: Any) -> TestResponse:
        return self.call("POST", path, **(kwargs if json is None else {"json": json, **kwargs}))

    def patch(self, path: str, json: Any, **kwargs: Any) -> TestResponse:
        return self.call("PATCH", path, json=json, **kwargs)

    def delete(self, path: str, **kwargs: Any) -> TestResponse:
        return self.call("DELETE", path, **kwargs)

    def call(
        self, method: str, path: str, headers: dict[str, str] | None = None, **kwargs: Any
    ) -> TestResponse:
        every = {"Authorization": f"Bearer {self.token}", **(headers or {})}
        return self.client.open(path, method=method, headers=every, **kwargs)

    def with_token(self, token: str) -> "User":
        """Return the same user by another token, an API key for example."""
        return replace(self, token=token)

    def thread(self, **fields: Any) -> str:
        """Create a thread and return its id."""
        return str(self._made("/v1/threads", fields)["id"])

    def say(self, thread_id: str, content: str = "Hello") -> str:
        """Add a message and return its id."""
        return str(self._made(f"/v1/threads/{thread_id}/messages", {"content": content})["id"])

    def api_key(self, *scopes: str) -> "User":
        """Return the same user by a new API key."""
        narrowed = {"scopes": list(scopes)} if scopes else {}
        key = self._made("/v1/api-keys", {"name": "test", **narrowed})["key"]
        return self.with_token(key)

    def _made(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        response = self.post(path, json=body)
        assert 201 == response.status_code, response.text
        return dict(response.json or {})


#: `register(login="", org_of=None, role="owner")` → a user who is logged in.
Register = Callable[..., User]


def error_of(response: TestResponse) -> tuple[int, str]:
    """Return status and code of an error response."""
    assert response.json is not None, response.text
    return response.status_code, response.json["code"]


def details_of(response: TestResponse) -> dict[str, Any]:
    """Return what a 422 says about the fields."""
    assert (422, "validation.error") == error_of(response), response.text
    return dict(response.json["details"])
