"""Model settings from the API to the vendor, through the whole service."""

import json
from functools import partial
from typing import Any

import pytest

from tests.caller import Caller, script, text_of
from tests.system import System
from tests.worker.providers.fake_vendor import delta, openai_stream, raw, status, vendor
from tests.worker.providers.openai_vendor import OpenAIVendor, counting

HELLO = raw(openai_stream(delta(content="Hello."), delta("stop")))


def persona_of(owner: Caller, **settings: Any) -> str:
    body = {"key": "own", "tools": ["calculator"], "model_settings": settings}
    return str(owner.made("/v1/personas", body)["id"])


def test_settings_of_model_and_persona_reach_the_vendor(system: System) -> None:
    """What the vendor refuses is dropped, reported once, and the run completes."""
    owner = system.caller()
    refusal = status("400 Bad Request", message="Unsupported parameter: 'top_p' is not supported.")
    with vendor(refusal, HELLO) as fake:
        settings = {"temperature": 1, "top_p": 0.5, "extra_body": {"top_k": 3}}
        model = {"model": "m", "is_default": True, "model_settings": settings}
        owner.made(
            "/v1/llm-providers",
            {"name": "o", "kind": "openai", "base_url": fake.url, "models": [model]},
        )
        events = owner.events(owner.run("Hi", persona_id=persona_of(owner, temperature=0.25)))
        first, second = fake.bodies

    assert "Hello." == text_of(events)
    assert (0.25, 0.5, 3) == (first["temperature"], first["top_p"], first["top_k"])
    assert (0.25, 3) == (second["temperature"], second["top_k"])
    assert "top_p" not in second
    [dropped] = [e["data"]["settings"] for e in events if e["type"] == "run.settings_dropped"]
    assert ["top_p"] == dropped


def test_a_reasoning_model_drops_what_it_does_not_have(system: System) -> None:
    """The vendor refuses one call for each such setting; tools and reasoning stay."""
    owner = system.caller()
    settings = {"temperature": 0.2, "top_p": 0.9, "seed": 1, "reasoning_effort": "max"}
    body = {"key": "own", "tools": ["calculator"], "model_settings": settings}
    persona_id = owner.made("/v1/personas", {**body, "max_steps": 40})["id"]
    with OpenAIVendor(partial(counting, steps=3)) as openai:
        model = {"model": "gpt-6", "api": "responses", "is_default": True}
        owner.made(
            "/v1/llm-providers",
            {"name": "o", "kind": "openai", "base_url": openai.url, "models": [model]},
        )
        events = owner.events(owner.run("Count", persona_id=persona_id))
        refused = [error["param"] for error in openai.refused]
        calls = len(openai.bodies)

    dropped = [e["data"]["settings"] for e in events if e["type"] == "run.settings_dropped"]
    assert "3 steps." in text_of(events)
    assert [["seed"], ["reasoning_effort"], ["temperature"], ["top_p"]] == dropped
    assert (["reasoning.effort", "temperature", "top_p"], 4 + 3) == (refused, calls)


def test_a_runs_settings_count_before_the_personas(system: System) -> None:
    """The persona decides whether runs may have any."""
    owner = system.caller()
    body = {"key": "open", "model_settings": {"temperature": 0.5, "seed": 1}}
    persona_id = owner.made("/v1/personas", {**body, "overrides": ["model_settings"]})["id"]
    thread = owner.thread(script({"settings": True}))
    choice = {"persona_id": persona_id, "route_id": "scripted"}
    path = f"/v1/threads/{thread}/runs"

    wrong = owner.http.post(path, json={**choice, "model_settings": {"top_k": 1}})
    run = owner.made(path, {**choice, "model_settings": {"temperature": 0, "seed": None}})

    assert (422, ["model_settings.top_k"]) == (wrong.status_code, list(wrong.json()["details"]))
    assert {"temperature": 0.0} == json.loads(text_of(owner.events(run["run_id"])))


@pytest.mark.processes
def test_a_lost_worker_reports_no_setting_again(system: System) -> None:
    """The run's events tell the next worker what the route does not support."""
    owner = system.caller()
    persona_id = persona_of(owner, seed=7, temperature=0.5)
    settings = {"settings": True, "unsupported": ["seed"]}
    call = {"tool": "calculator", "args": {"expression": "1+1"}}
    steps = [settings, call, {"exit_worker": True, "attempts": 1}, settings]

    events = owner.events(owner.run(script(*steps), persona_id=persona_id, route_id="scripted"))

    types = [event["type"] for event in events]
    assert [json.dumps({"temperature": 0.5})] * 2 == [
        event["data"]["content"] for event in events if event["type"] == "message.completed"
    ]
    assert (1, 1) == (types.count("run.settings_dropped"), types.count("run.resumed"))
    assert types.index("run.settings_dropped") < types.index("run.resumed")
