"""A provider that tests of its endpoints make."""

from typing import Any

from arkloop.shared.ids import new_id
from tests.clients import User

PATH = "/v1/llm-providers"


def made(user: User, path: str = PATH, **fields: Any) -> dict[str, Any]:
    """Create a provider, or a model at the path of a provider's models."""
    body = {"name": str(new_id()), "kind": "openai"} if path == PATH else {"model": str(new_id())}
    response = user.post(path, {**body, **fields})
    assert 201 == response.status_code, response.text
    return dict(response.json or {})
