"""MCP servers that tests of their endpoints describe."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.clients import User

PATH = "/v1/mcp-configs"
URL = "https://mcp.example.com/mcp"
HASH = "0" * 64


@dataclass(frozen=True)
class Described:
    """A tool that a worker has found."""

    name: str
    hash: str
    description: str = "A tool."
    parameters: Any = None
    problem: str | None = None


#: `found(config_id, *tools)`: as if a worker had asked the server.
Found = Callable[..., None]


def make(user: User, **fields: Any) -> dict[str, Any]:
    response = user.post(PATH, {"name": "files", "url": URL, **fields})
    assert 201 == response.status_code, response.text
    return dict(response.json or {})
