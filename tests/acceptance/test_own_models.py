"""An org's own models and personas, in runs that real workers execute."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from shared.catalog import CACHE_SECONDS
from tests.caller import Caller
from tests.system import System
from tests.waiting import eventually
from tests.worker.fake_vendor import FakeVendor, delta, openai_stream, raw, vendor

USAGE = {"prompt_tokens": 1_000, "completion_tokens": 10, "total_tokens": 1_010}
HELLO = raw(openai_stream(delta(content="Hello."), {**delta("stop"), "usage": USAGE}))


@pytest.fixture
def owner(system: System) -> Caller:
    """Of an org of the test's own."""
    return system.caller()


@pytest.fixture
def hello() -> Iterator[FakeVendor]:
    """A server that answers `Hello.` to everything."""
    with vendor(*[HELLO] * 200) as fake:
        yield fake


def provider_at(owner: Caller, fake: FakeVendor, **model: Any) -> dict[str, Any]:
    """A provider with the key `sk-first` and one model of the name `m`."""
    body = {"name": "ours", "kind": "openai", "base_url": fake.url, "api_key": "sk-first"}
    return owner.made("/v1/llm-providers", {**body, "models": [{"model": "m", **model}]})


def test_an_orgs_model_answers_its_runs(owner: Caller, hello: FakeVendor) -> None:
    """By default, with the org's key and prompt; the cost is by its prices."""
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
    """With a code that says so; it does not hang."""
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
        # So long a worker may believe what it has read before.
        threading.Event().wait(CACHE_SECONDS)
        owner.answer(run_id, "that one")

        run = owner.ended(run_id)

    assert ("failed", "provider.invalid_request") == (run["status"], run["error"]["code"])
    assert 1 == len(fake.heads)
