"""An installation without any route to a model, as a fresh one is."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from arkloop.api.app import create_app
from arkloop.shared.errors import RouteNotFound
from arkloop.shared.storage.connections import Connections
from tests.clients import User, error_of
from tests.end_users import end_user

MESSAGE = "No route is configured; see `details`."
NO_ROUTE = "No route is configured on this server."
ADVICE = (
    f"{NO_ROUTE} Set OPENAI_API_KEY, ANTHROPIC_API_KEY or ARKLOOP_ROUTES, or add a provider with"
    " a default model by POST /v1/llm-providers."
)
NO_DEFAULT = "No route is the default: name one, or set `is_default` of a model."
SAID = {"id": "1", "role": "user", "content": "Hello"}
AGUI: dict[str, Any] = {"threadId": "chat", "runId": "run", "messages": [SAID]}


@pytest.fixture(scope="module")
def bare(connections: Connections) -> Iterator[Flask]:
    """An app whose settings name no vendor's key and no route."""
    changed = replace(connections.settings, scripted=False)
    app = create_app(connections=replace(connections, settings=changed))
    yield app
    for name in ("hub", "polls", "reports", "stream_slots"):
        app.extensions[f"arkloop.{name}"].close()


def refusal(response: TestResponse) -> tuple[str, list[str]]:
    """Return the message of a response that no route is found for, and the reasons."""
    assert (422, "routes.not_found") == error_of(response)
    assert response.json is not None
    return response.json["message"], response.json["details"]["route_id"]


def test_a_first_run_says_how_to_get_a_route(bare: Flask, alice: User) -> None:
    """Where the list of routes is empty, it is no help."""
    caller = replace(alice, client=bare.test_client())

    assert [] == caller.get("/v1/routes").json
    assert (MESSAGE, [ADVICE]) == refusal(caller.post("/v1/runs", {"message": "Hello"}))
    assert (MESSAGE, [ADVICE]) == refusal(caller.post("/v1/agui", AGUI))
    refused = caller.post("/v1/responses", {"model": "assistant", "input": "Hello"}).json
    assert refused is not None
    assert f"model: {ADVICE}" == refused["error"]["message"]


def test_a_retry_says_it_too(bare: Flask, alice: User) -> None:
    """A thread that has had no run gets one of the default persona."""
    caller = replace(alice, client=bare.test_client())
    thread_id = caller.thread()
    caller.say(thread_id)

    assert (MESSAGE, [ADVICE]) == refusal(caller.post(f"/v1/threads/{thread_id}:retry"))


def test_an_org_whose_routes_are_no_default_may_name_one(bare: Flask, alice: User) -> None:
    """It needs no other provider."""
    caller = replace(alice, client=bare.test_client())
    model = {"model": "qwen3", "prices": {"input": 0, "output": 0}}
    provider = {"name": "here", "kind": "openai", "api_key": "sk-test", "models": [model]}
    made = caller.post("/v1/llm-providers", provider)
    assert 201 == made.status_code, made.text
    [listed] = caller.get("/v1/routes").json or []

    for who in (caller, replace(end_user(alice), client=bare.test_client())):
        response = who.post("/v1/runs", {"message": "Hello"})
        assert (RouteNotFound.message, [NO_DEFAULT]) == refusal(response)
    named = {"message": "Hello", "route_id": listed["id"]}
    assert 201 == caller.post("/v1/runs", named).status_code


def test_an_end_user_reads_nothing_about_settings(bare: Flask, alice: User) -> None:
    """The advice is for who runs the service, or an org of it."""
    ann = replace(end_user(alice), client=bare.test_client())

    assert (MESSAGE, [NO_ROUTE]) == refusal(ann.post("/v1/runs", {"message": "Hello"}))
    assert (MESSAGE, [NO_ROUTE]) == refusal(ann.post("/v1/agui", AGUI))


def test_a_route_that_does_not_exist_is_still_named(bare: Flask, alice: User) -> None:
    """The list of routes is the help there."""
    caller = replace(alice, client=bare.test_client())
    response = caller.post("/v1/runs", {"message": "Hello", "route_id": "typo"})

    assert (RouteNotFound.message, ["Route 'typo' not found."]) == refusal(response)
