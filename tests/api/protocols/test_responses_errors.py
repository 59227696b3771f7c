"""The errors of `/v1/responses`, which have nothing but a message to explain themselves."""

import time
from typing import Any
from uuid import UUID

import pytest

from arkloop.api.auth.request_limits import _reset
from arkloop.shared.accounts import org_settings
from arkloop.shared.storage.connections import Connections
from tests.api.protocols import late_calls
from tests.api.protocols.late_calls import LATE, OPEN
from tests.clients import Register, User
from tests.stored_runs import StoredRuns

ASK = {"model": "scripted", "input": "Hello", "background": True}
TOOL = {"type": "function", "name": "locate", "parameters": {"type": "object"}}


def message_of(error: Any) -> tuple[str, str]:
    """Return the code and the message of an error that names no parameter."""
    assert error["param"] is None
    return error["code"], error["message"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("post", "chat/completions"),
        ("post", "completions"),
        ("post", "conversations"),
        ("get", "conversations/conv_1/items"),
        ("post", "embeddings"),
        ("get", "models"),
        ("get", "models/gpt-5"),
    ],
)
def test_endpoints_of_openai_that_are_not_served_say_so(
    alice: User, method: str, path: str
) -> None:
    """OpenAI's SDKs show no text of the service's own errors; people look for a wrong model."""
    refused = getattr(alice, method)(f"/v1/{path}")

    message = "Of OpenAI's API, this service has the Responses API alone: POST /v1/responses."
    assert ("http.not_found", message) == message_of((refused.json or {})["error"])
    assert (404, "false") == (refused.status_code, refused.headers["X-Should-Retry"])


def test_the_message_of_a_limit_has_its_details(
    connections: Connections, register: Register
) -> None:
    """They are no parameters of the request."""
    user = register()
    while _reset(user.org_id, time.time()) < 50:  # its minute for requests ends after the test
        user = register()
    limits = {"org_concurrent_runs": 1, "org_requests_per_minute": 3}
    with connections.transaction() as tx:  # before a process has read the limits
        org_settings.change(tx, user.org_id, limits)
    refused = [(user.post("/v1/responses", ASK).json or {}).get("error") for _ in range(4)]

    limit = "The limit on running and waiting runs is reached"
    assert ("runs.limit_exceeded", f"{limit} (limit: concurrent_runs, scope: org, most: 1).") == (
        message_of(refused[1])
    )
    message = "Too many requests (limit: org, per_minute: 3); see `Retry-After`."
    assert ("rate_limit.exceeded", message) == message_of(refused[3])


def test_a_budget_that_is_used_up_is_not_tried_again(alice: User) -> None:
    """OpenAI's SDKs repeat every 429 unless the response says that it lasts."""
    assert 200 == alice.call("PUT", "/v1/budget", json={"max_cost_usd_per_month": 0}).status_code
    refused = alice.post("/v1/responses", ASK)

    assert (429, "budget.exhausted") == (refused.status_code, (refused.json or {})["error"]["code"])
    retrying = [refused.headers.get(name) for name in ("Retry-After", "X-Should-Retry")]
    assert [None, "false"] == retrying


def test_a_limit_that_passes_is_tried_again(alice: User, connections: Connections) -> None:
    """Its response says when, and nothing against it."""
    with connections.transaction() as tx:  # before a process has read the limits
        org_settings.change(tx, alice.org_id, {"org_concurrent_runs": 1})
    first, refused = [alice.post("/v1/responses", ASK) for _ in range(2)]

    assert [200, 429] == [first.status_code, refused.status_code]
    assert int(refused.headers["Retry-After"]) > 0
    assert "X-Should-Retry" not in refused.headers


def test_a_call_with_another_output_is_named_as_clients_know_it(
    stored: StoredRuns, alice: User
) -> None:
    """The run's own ids of its calls are not in the items of a response."""
    made = alice.post("/v1/responses", {**ASK, "tools": [TOOL]}).json or {}
    run_id = UUID(made["id"].removeprefix("resp_"))
    late_calls.wait_for(stored, run_id)
    calls = [
        item["call_id"]
        for item in (alice.get(f"/v1/responses/{made['id']}").json or {})["output"]
        if item["type"] == "function_call"
    ]

    def send(output: str) -> Any:
        items = [
            {"type": "function_call_output", "call_id": id_, "output": output}
            for id_ in (LATE, OPEN)
        ]
        body = {**ASK, "previous_response_id": made["id"], "input": items}
        return alice.post("/v1/responses", body)

    assert 200 == send("Rome").status_code
    refused = send("Paris")

    message = "These tool calls already have a different result"
    assert 409 == refused.status_code
    assert ("tool_results.conflict", f"{message} (call_ids: {calls[1]}).") == (
        message_of((refused.json or {})["error"])
    )
