"""Requests of chat UIs of the AI SDK, as its transports send them."""

import secrets
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from werkzeug.test import TestResponse

from arkloop.api.protocols.ai_sdk_chunks import Chunk
from arkloop.api.protocols.ai_sdk_projection import AiSdkProjection
from arkloop.shared.storage.connections import Connections
from tests.clients import User


def new_id() -> str:
    return secrets.token_urlsafe(9)


def message(text: str = "Hello", **fields: Any) -> dict[str, Any]:
    parts = [{"type": "text", "text": text}]
    return {"id": new_id(), "role": "user", "parts": parts, **fields}


def post(user: User, *messages: Any, chat: str = "", **fields: Any) -> TestResponse:
    """Send a chat request; its stream is not read."""
    body = {"id": chat or new_id(), "messages": list(messages), **fields}
    return user.post("/v1/ui/chat", json=body, buffered=False)


def run_of(response: TestResponse) -> str:
    assert 200 == response.status_code, response.text
    response.close()
    return str(response.headers["x-workflow-run-id"])


def shown(user: User, chat: str) -> list[dict[str, Any]]:
    found = user.get(f"/v1/ui/chat/{chat}/messages").json
    assert isinstance(found, list)
    return found


def lent_while_folding(monkeypatch: pytest.MonkeyPatch, connections: Connections) -> list[int]:
    """Return a list that gets the number of lent connections at each event that is folded."""
    lent: list[int] = []
    pool: Any = connections.engine.pool
    fold = AiSdkProjection.chunks

    def chunks(projection: AiSdkProjection, event: Mapping[str, Any]) -> Iterator[Chunk]:
        lent.append(pool.checkedout())
        return fold(projection, event)

    monkeypatch.setattr(AiSdkProjection, "chunks", chunks)
    return lent
