"""An org's own models as routes of its runs, through the whole service, at a server of others."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from llmock.pytest_plugin import LLMock

from arkloop.shared.catalog.catalog import CACHE_SECONDS
from tests.caller import Caller, text_of, types
from tests.system import System
from tests.waiting import eventually
from tests.worker.providers.fake_vendor import FakeVendor, delta, openai_stream, raw, vendor

USAGE = {"prompt_tokens": 1_000, "completion_tokens": 10, "total_tokens": 1_010}
HELLO = raw(openai_stream(delta(content="Hello."), {**delta("stop"), "usage": USAGE}))


def model_of(owner: Caller, llmock: LLMock, kind: str = "openai", **fields: Any) -> str:
    """Add a model at llmock that costs 1 USD per million tokens in, 2 out; returns its route id."""
    provider = owner.made(
        "/v1/llm-providers",
        {
            "name": f"llmock {kind}",
            "kind": kind,
            "base_url": llmock.base_url(kind),
            "api_key": "sk-secret-1234",
            # Of unknown size it would be asked for, and llmock counts that as a call.
            "models": [
                {
                    "model": "m",
                    "context_tokens": 128_000,
                    "prices": {"input": 1, "output": 2},
                    **fields,
                }
            ],
        },
    )
    assert "1234" == provider["api_key_last_four"]
    assert "sk-secret-1234" not in str(provider)
    return str(provider["models"][0]["route_id"])


def routes_of(owner: Caller, llmock: LLMock, *models: dict[str, Any]) -> dict[str, str]:
    """Add models at llmock; returns their route ids by name."""
    provider = owner.made(
        "/v1/llm-providers",
        {
            "name": "llmock",
            "kind": "openai",
            "base_url": llmock.base_url("openai"),
            "models": [{"context_tokens": 128_000, **model} for model in models],
        },
    )
    return {model["model"]: model["route_id"] for model in provider["models"]}


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
    """The run completes on the persona's next route, and each route has its part of the cost."""
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


def test_a_newcomer_has_the_orgs_own_models_alone(system: System, llmock: LLMock) -> None:
    """The org's own models need no credits, and without credits no server route is usable."""
    newcomer = system.newcomer()
    route_id = model_of(newcomer, llmock)
    llmock.reply("Mine.")
    own = newcomer.ended(newcomer.run("Hi", route_id=route_id, persona_id="plain"))
    thread = newcomer.thread("Hi")
    refused = newcomer.http.post(f"/v1/threads/{thread}/runs", json={"route_id": "scripted"})
    llmock.fail(500, times=None)
    persona_id = persona_of(newcomer, route_id=route_id, fallback_route_ids=["scripted"])
    detour = newcomer.ended(newcomer.run("Hi", persona_id=persona_id))

    assert ("completed", route_id) == (own["status"], own["route_id"])
    assert own["cost_usd"] > 0
    assert (429, "budget.exhausted") == (refused.status_code, refused.json()["code"])
    assert ("completed", "budget") == (detour["status"], detour["stop_reason"])
    assert [] == newcomer.http.get("/v1/me/credits").json()["entries"]


def test_the_orgs_models_take_over_by_priority(owner: Caller, llmock: LLMock) -> None:
    """The org's models by priority replace a broken default if the persona names none; null is
    never a fallback.
    """
    by_model = routes_of(
        *(owner, llmock),
        {"model": "first", "is_default": True, "priority": 3},
        {"model": "never"},
        {"model": "third", "priority": 2},
        {"model": "second", "priority": 1},
    )
    llmock.fail(401, times=2).reply("At last.")

    events = owner.events(owner.run("Hi", persona_id="plain"))

    chosen = [event["data"]["to_route_id"] for event in events if event["type"] == "run.fallback"]
    assert [by_model["second"], by_model["third"]] == chosen
    assert "At last." == text_of(events)


PRICES = {"input": 1, "output": 2}


def test_a_fallback_route_without_prices_is_passed_over_under_a_budget(
    owner: Caller, llmock: LLMock
) -> None:
    """Runs complete on the next route that has prices, and take no slot of the other's."""
    by_model = routes_of(
        *(owner, llmock),
        {"model": "first", "is_default": True, "prices": PRICES},
        {"model": "second", "priority": 1, "requests_per_minute": 1},
        {"model": "third", "priority": 2, "prices": PRICES},
    )
    owner.put("/v1/budget", {"max_cost_usd": 1})

    for _ in range(2):
        llmock.fail(401, times=1).reply("At last.")
        events = owner.events(owner.run("Hi", persona_id="plain"))

        fallbacks = [event["data"] for event in events if event["type"] == "run.fallback"]
        assert [(by_model["third"], "provider.auth")] == [
            (fallback["to_route_id"], fallback["reason"]) for fallback in fallbacks
        ]
        assert ("At last.", "run.completed") == (text_of(events), events[-1]["type"])
        assert "run.throttled" not in types(events)
    assert ["first", "third"] * 2 == [request.model for request in llmock.requests]


def test_a_route_with_no_other_that_a_budget_can_pay_is_waited_for(
    owner: Caller, llmock: LLMock
) -> None:
    """A 429 is waited for as on a last route, and another error is the run's."""
    by_model = routes_of(owner, llmock, {"model": "first", "prices": PRICES}, {"model": "second"})
    chain = {"route_id": by_model["first"], "fallback_route_ids": [by_model["second"]]}
    persona_id = persona_of(owner, **chain)
    owner.put("/v1/budget", {"max_cost_usd": 1})

    llmock.rate_limit(times=1, retry_after=6).reply("At last.")
    waited = owner.ended(owner.run("Hi", persona_id=persona_id))
    llmock.fail(401, times=1)
    failed = owner.ended(owner.run("Hi", persona_id=persona_id))

    assert ("completed", None) == (waited["status"], waited["error"])
    assert ("failed", "provider.auth") == (failed["status"], failed["error"]["code"])
    assert ["first"] * 3 == [request.model for request in llmock.requests]


def test_a_run_whose_own_route_has_no_prices_fails_under_a_budget(
    owner: Caller, llmock: LLMock
) -> None:
    """The error names the route, for somebody to set its prices; no fallback hides that."""
    by_model = routes_of(
        *(owner, llmock),
        {"model": "first", "is_default": True},
        {"model": "second", "priority": 1, "prices": PRICES},
    )
    owner.put("/v1/budget", {"max_cost_usd": 1})

    run = owner.ended(owner.run("Hi", persona_id="plain"))

    assert ("failed", "budget.exhausted") == (run["status"], run["error"]["code"])
    assert by_model["first"] in run["error"]["message"]
    assert [] == llmock.requests


def test_a_run_leaves_a_route_without_prices_once_a_budget_applies(
    owner: Caller, llmock: LLMock
) -> None:
    """The run fell back to it before there was a limit, and waits for an approval meanwhile."""
    from llmock.scenarios import Reply, ToolCall

    by_model = routes_of(
        *(owner, llmock),
        {"model": "first", "prices": PRICES},
        {"model": "second"},
        {"model": "third", "prices": PRICES},
    )
    first, second, third = (by_model[name] for name in ("first", "second", "third"))
    chain = {"route_id": first, "fallback_route_ids": [second, third]}
    persona_id = persona_of(owner, require_approval=["*"], **chain)
    count = ToolCall(name="calculator", arguments={"expression": "6*7"})
    llmock.fail(401, times=1).add(Reply(tool_calls=[count]), Reply(text="42."))
    run_id = owner.run("Count", persona_id=persona_id)
    owner.until(run_id, "status", "waiting_for_input")

    owner.put("/v1/budget", {"max_cost_usd": 1})
    owner.answer(run_id, "yes")

    events = owner.events(run_id)
    assert ("42.", "run.completed") == (text_of(events), events[-1]["type"])
    fallbacks = [event["data"] for event in events if event["type"] == "run.fallback"]
    assert [(second, "provider.auth"), (third, "budget.exhausted")] == [
        (fallback["to_route_id"], fallback["reason"]) for fallback in fallbacks
    ]
    assert ["first", "second", "third"] == [request.model for request in llmock.requests]


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
    """A 429 is waited for as long as it says, and a little longer; the run says so and
    completes.
    """
    route_id = model_of(owner, llmock)
    llmock.rate_limit(times=1, retry_after=1).reply("Now.")

    events = owner.events(owner.run("Hi", route_id=route_id, persona_id="plain"))

    [throttled] = [event["data"] for event in events if event["type"] == "run.throttled"]
    assert "provider" == throttled["reason"]
    assert 1 <= throttled["seconds"] <= 2
    assert ("Now.", "run.completed") == (text_of(events), events[-1]["type"])
    llmock.assert_resilient(strict=True)


@pytest.mark.processes
def test_a_loopback_provider_is_refused_where_the_operator_does_not_allow_it(
    owner: Caller, system: System
) -> None:
    """A provider on loopback is refused by its literal address, and again when its name resolves to
    it.
    """
    with system.one_more_web_server(ARKLOOP_ALLOWED_NETWORKS="") as strict:
        answer = owner.at(strict.url).http.post(
            "/v1/llm-providers",
            json={"name": "x", "kind": "openai", "base_url": "http://127.0.0.1:9/v1"},
        )
    assert (422, ["base_url"]) == (answer.status_code, list(answer.json()["details"]))


# ---- as the vendor sees it ----------------------------------------------------------------


@pytest.fixture
def hello() -> Iterator[FakeVendor]:
    """A server that answers `Hello.` to everything."""
    with vendor(*[HELLO] * 200) as fake:
        yield fake


def provider_at(owner: Caller, fake: FakeVendor, **model: Any) -> dict[str, Any]:
    """Add a provider with the key `sk-first` and one model of the name `m`."""
    body = {"name": "ours", "kind": "openai", "base_url": fake.url, "api_key": "sk-first"}
    return owner.made("/v1/llm-providers", {**body, "models": [{"model": "m", **model}]})


def test_an_orgs_model_answers_its_runs(owner: Caller, hello: FakeVendor) -> None:
    """A run uses the org's default model with its key and prompt, and costs by the model's
    prices.
    """
    prices = {"input": 2, "output": 30}
    provider = provider_at(owner, hello, is_default=True, prices=prices)
    owner.made("/v1/personas", {"key": "plain", "system_prompt": "Our prompt."})

    run = owner.ended(owner.run("Hi", persona_id="plain"))

    assert ("completed", "plain@2", "m") == (run["status"], run["persona_id"], run["model"])
    assert provider["models"][0]["route_id"] == run["route_id"]
    assert (1_000, 10) == (run["usage"]["input_tokens"], run["usage"]["output_tokens"])
    assert 0.0023 == run["cost_usd"]
    assert ("user", "Hi", False) == owner.messages(run["thread_id"])[0]
    assert ("assistant", "Hello.", False) == owner.messages(run["thread_id"])[1]
    assert "authorization: bearer sk-first" in hello.heads[0].lower()
    assert {"role": "system", "content": "Our prompt."} == hello.bodies[0]["messages"][0]


def test_a_new_key_is_used_by_every_worker_soon(
    system: System, owner: Caller, hello: FakeVendor
) -> None:
    """It was set through another process; the old one is not used any more after that."""
    provider = provider_at(owner, hello, is_default=True)
    owner.ended(owner.run("Hi"))
    changed = owner.at(system.web[1].url).http.patch(
        f"/v1/llm-providers/{provider['id']}", json={"api_key": "sk-second"}
    )
    assert 200 == changed.status_code

    def is_used() -> bool:
        owner.ended(owner.run("Hi"))
        return "sk-second" in hello.heads[-1]

    assert "sk-first" in hello.heads[0]
    eventually(is_used, seconds=CACHE_SECONDS + 3)
    assert is_used()


def test_a_run_that_waited_while_its_model_was_deleted_fails(owner: Caller) -> None:
    """The run fails with the code of a deleted model, and does not hang."""
    call = {
        "index": 0,
        "id": "call_1",
        "type": "function",
        "function": {"name": "ask_user", "arguments": '{"question": "Which?"}'},
    }
    ask = raw(openai_stream({**delta("tool_calls", tool_calls=[call]), "usage": USAGE}))
    with vendor(ask) as fake:
        provider = provider_at(owner, fake)
        run_id = owner.run("Hi", route_id=provider["models"][0]["route_id"])
        owner.until(run_id, "status", "waiting_for_input")
        path = f"/v1/llm-providers/{provider['id']}"
        assert 204 == owner.http.delete(path).status_code
        # A worker may use what it has read before for this time.
        threading.Event().wait(CACHE_SECONDS)
        owner.answer(run_id, "that one")

        run = owner.ended(run_id)

    assert ("failed", "provider.invalid_request") == (run["status"], run["error"]["code"])
    assert 1 == len(fake.heads)
