"""A worker of the customer in plain HTTP, as any language would write it."""

import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.caller import Caller, client

ECHO = {
    "name": "echo",
    "description": "Return the text.",
    "parameters": {
        "type": "object",
        "properties": {"text": {"type": "string"}},
        "required": ["text"],
    },
    "idempotent": True,
}
PAY = {**ECHO, "name": "pay", "description": "Pay an amount.", "idempotent": False}


@dataclass
class ToolWorker:
    """Polls for the calls of a pool; each method is one request."""

    url: str
    key: str
    pool: str
    tools: Sequence[Mapping[str, Any]] = (ECHO, PAY)
    id: str = field(default_factory=lambda: f"w-{secrets.token_hex(4)}")

    @staticmethod
    def of(caller: Caller, pool: str, **fields: Any) -> "ToolWorker":
        """Return a worker of the caller's org, with a key of its own that can do nothing else."""
        return ToolWorker(caller.url, caller.api_key(scopes=["tools.work"])[1], pool, **fields)

    def poll(self, **body: Any) -> dict[str, Any]:
        answer = self.post("poll", tools=list(self.tools), **{"wait_seconds": 20, **body})
        assert 200 == answer.status_code, answer.text
        return dict(answer.json())

    def take(self, **body: Any) -> dict[str, Any]:
        """Wait for a call, and return it."""
        (call,) = self.poll(**body)["calls"]
        return dict(call)

    def heartbeat(self, *calls: Mapping[str, Any], **body: Any) -> dict[str, Any]:
        answer = self.post("heartbeat", calls=[held(call) for call in calls], **body)
        assert 200 == answer.status_code, answer.text
        return dict(answer.json())

    def complete(self, call: Mapping[str, Any], output: str) -> httpx.Response:
        return self.post("complete", **held(call), output=output)

    def fail(self, call: Mapping[str, Any], error: str) -> httpx.Response:
        return self.post("fail", **held(call), error=error)

    def leave(self, call: Mapping[str, Any], **body: Any) -> None:
        """Close the connection of a heartbeat that waits, as the end of the process would."""
        with suppress(httpx.ReadTimeout):
            self.post("heartbeat", 0.5, calls=[held(call)], wait_seconds=30, **body)

    def post(self, verb: str, timeout: float = 30, /, **body: Any) -> httpx.Response:
        with client(self.url, self.key) as http:
            path = f"/v1/tool-workers/{self.pool}:{verb}"
            return http.post(path, json={"worker_id": self.id, **body}, timeout=timeout)


def held(call: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a request names a call."""
    return {"call_id": call["call_id"], "fence": call["fence"]}
