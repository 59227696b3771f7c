"""An org's own models as routes of its runs, through the whole service, at a server of others."""

from typing import Any

import pytest
from llmock.pytest_plugin import LLMock

from tests.caller import Caller, text_of, types
from tests.system import System


@pytest.fixture
def owner(system: System) -> Caller:
    """Of an org of the test's own."""
    return system.caller()


def model_of(owner: Caller, llmock: LLMock, kind: str = "openai", **fields: Any) -> str:
    """The route id of a model at llmock that costs 1 USD per million tokens in, 2 out."""
    provider = owner.made(
        "/v1/llm-providers",
        {
            "name": f"llmock {kind}",
            "kind": kind,
            "base_url": llmock.base_url(kind),
            "api_key": "sk-secret-1234",
            "models": [{"model": "m", "prices": {"input": 1, "output": 2}, **fields}],
        },
    )
    assert "1234" == provider["api_key_last_four"]
    assert "sk-secret-1234" not in str(provider)
    return str(provider["models"][0]["route_id"])


def persona_of(owner: Caller, **fields: Any) -> str:
    return str(owner.made("/v1/personas", {"key": "own", "tools": ["calculator"], **fields})["id"])


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
def test_a_run_calls_the_orgs_own_model(owner: Caller, llmock: LLMock, kind: str) -> None:
    """The default one, without being asked for; with the stored key and at the given prices."""
    route_id = model_of(owner, llmock, kind, is_default=True)
    llmock.reply("Hello from afar.")

    run_id = owner.run("Hi", persona_id="plain")
    events = owner.events(run_id)

    run = owner.get_run(run_id)
    assert ("completed", route_id, "m") == (run["status"], run["route_id"], run["model"])
    assert "Hello from afar." == text_of(events)
    usage = run["usage"]
    assert "reported" == usage["source"]
    cost = (usage["input_tokens"] + 2 * usage["output_tokens"]) / 1_000_000
    assert cost == pytest.approx(run["cost_usd"], abs=1e-9)
    assert 1 == len(llmock.requests)


def test_tools_run_side_by_side_for_any_provider(owner: Caller, llmock: LLMock) -> None:
    """Two calls in one turn; their results go back, and the answer comes."""
    from llmock.scenarios import Reply, ToolCall

    route_id = model_of(owner, llmock, "anthropic")
    calls = [ToolCall(name="calculator", arguments={"expression": text}) for text in ("6*7", "1+1")]
    llmock.add(Reply(text="Let me see.", tool_calls=calls), Reply(text="42 and 2."))

    events = owner.events(owner.run("Count", route_id=route_id))

    outputs = [event["data"]["output"] for event in events if event["type"] == "tool.result"]
    assert (["42", "2"], "run.completed") == (outputs, events[-1]["type"])


def test_a_broken_route_falls_back(owner: Caller, llmock: LLMock) -> None:
    """To the persona's next one; the run is completed, and each route has its part of the cost."""
    route_id = model_of(owner, llmock)
    llmock.fail(500, times=None)
    persona_id = persona_of(owner, route_id=route_id, fallback_route_ids=["scripted"])

    run_id = owner.run({"say": "I am here"}, persona_id=persona_id)
    events = owner.events(run_id)

    [fallback] = [event["data"] for event in events if event["type"] == "run.fallback"]
    assert {
        "from_route_id": route_id,
        "to_route_id": "scripted",
        "model": "scripted-1",
        "reason": "provider.overloaded",
    } == fallback
    assert ("I am here", "run.completed") == (text_of(events), events[-1]["type"])
    assert 4 == len(llmock.requests)
    costs = [event["data"] for event in events if event["type"] == "run.cost"]
    assert ["scripted"] == [part["route_id"] for part in costs[-1]["routes"]]


def test_the_orgs_models_take_over_by_priority(owner: Caller, llmock: LLMock) -> None:
    """Where the default breaks and the persona says nothing; null is never a fallback."""
    provider = owner.made(
        "/v1/llm-providers",
        {
            "name": "llmock",
            "kind": "openai",
            "base_url": llmock.base_url("openai"),
            "models": [
                {"model": "first", "is_default": True, "priority": 3},
                {"model": "never"},
                {"model": "third", "priority": 2},
                {"model": "second", "priority": 1},
            ],
        },
    )
    by_model = {model["model"]: model["route_id"] for model in provider["models"]}
    llmock.fail(401, times=2).reply("At last.")

    events = owner.events(owner.run("Hi", persona_id="plain"))

    chosen = [event["data"]["to_route_id"] for event in events if event["type"] == "run.fallback"]
    assert [by_model["second"], by_model["third"]] == chosen
    assert "At last." == text_of(events)


def test_a_route_at_its_limit_makes_runs_wait_visibly(owner: Caller, llmock: LLMock) -> None:
    """It does not fail them; and one that waits can be cancelled at once."""
    route_id = model_of(owner, llmock, requests_per_minute=1)
    llmock.reply("One.")
    assert "completed" == owner.ended(owner.run("Hi", route_id=route_id))["status"]

    run_id = owner.run("Hi", route_id=route_id)
    throttled = owner.seen(run_id, "run.throttled")["data"]
    owner.cancel(run_id)

    assert (route_id, "requests") == (throttled["route_id"], throttled["reason"])
    assert throttled["seconds"] > 0
    events = owner.events(run_id)
    assert ["run.cancel_requested", "run.cost", "run.cancelled"] == types(events)[-3:]
    assert 1 == len(llmock.requests)


def test_a_provider_that_says_429_is_waited_for(owner: Caller, llmock: LLMock) -> None:
    """For as long as it asks; the run says so and is completed."""
    route_id = model_of(owner, llmock)
    llmock.rate_limit(times=1, retry_after=1).reply("Now.")

    events = owner.events(owner.run("Hi", route_id=route_id, persona_id="plain"))

    [throttled] = [event["data"] for event in events if event["type"] == "run.throttled"]
    assert ("provider", 1) == (throttled["reason"], throttled["seconds"])
    assert ("Now.", "run.completed") == (text_of(events), events[-1]["type"])
    llmock.assert_resilient(strict=True)


def test_a_route_that_was_deleted_fails_its_runs_by_name(owner: Caller, llmock: LLMock) -> None:
    """A new one is refused at once."""
    route_id = model_of(owner, llmock)
    run_id = owner.run({"tool": "ask_user", "args": {"question": "?"}}, route_id="scripted")
    provider_id = owner.get("/v1/llm-providers")[0]["id"]

    assert 204 == owner.http.delete(f"/v1/llm-providers/{provider_id}").status_code

    thread_id = owner.thread("Hi")
    refused = owner.http.post(f"/v1/threads/{thread_id}/runs", json={"route_id": route_id})
    assert (422, "routes.not_found") == (refused.status_code, refused.json()["code"])
    owner.cancel(run_id)


def test_a_loopback_provider_is_refused_where_the_operator_does_not_allow_it(
    owner: Caller, system: System
) -> None:
    """By its literal address, and again when a name turns out to lead there."""
    with system.one_more_web_server(ARKLOOP_ALLOWED_NETWORKS="") as strict:
        answer = owner.at(strict.url).http.post(
            "/v1/llm-providers",
            json={"name": "x", "kind": "openai", "base_url": "http://127.0.0.1:9/v1"},
        )
    assert (422, ["base_url"]) == (answer.status_code, list(answer.json()["details"]))
