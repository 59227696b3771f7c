"""A reasoning model of OpenAI's with the default persona, through the whole service."""

import json
import os
import signal
import threading
from collections.abc import Mapping
from typing import Any

import pytest

from tests.caller import data_of, text_of, types
from tests.system import System
from tests.worker.providers.openai_vendor import (
    STEPS,
    Items,
    OpenAIVendor,
    counting,
    message,
    reasoning,
)

CITY = {
    "type": "object",
    "properties": {"name": {"type": "string"}},
    "required": ["name"],
    "additionalProperties": False,
}
ROME = {"name": "Rome"}
COMMENTARY = "I answer from memory."


@pytest.mark.processes
def test_a_run_of_many_steps_survives_a_killed_worker(system: System) -> None:
    """Tools, reasoning and parallel calls over 24 steps, and a later run of the thread: the vendor
    refuses nothing, and the steps before the loss are not repeated.
    """
    reached, killed = threading.Event(), threading.Event()

    def turn(body: Mapping[str, Any]) -> Items:
        if sum(item["type"] == "reasoning" for item in body["input"]) == STEPS // 2:
            reached.set()
            killed.wait(60)
        return counting(body)

    owner = system.caller()
    with OpenAIVendor(turn) as vendor:
        model = {"model": "gpt-6-sol", "api": "responses", "is_default": True}
        owner.made(
            "/v1/llm-providers",
            {"name": "o", "kind": "openai", "base_url": vendor.url, "models": [model]},
        )
        thread = owner.thread("Count")
        run_id = owner.start(thread)
        assert reached.wait(150)
        os.kill(system.worker.pid, signal.SIGKILL)
        killed.set()
        run = owner.ended(run_id)
        events = owner.events(run_id)
        owner.say(thread, "Again")
        later = owner.ended(owner.start(thread))

    assert ("completed", "stop") == (run["status"], run["stop_reason"])
    assert "completed" == later["status"]
    assert [] == vendor.refused
    assert f"{STEPS} steps." in text_of(events)
    assert (1, STEPS + 1) == tuple(
        types(events).count(kind) for kind in ("run.resumed", "message.completed")
    )
    calls = [event["data"]["tool_call_id"] for event in events if event["type"] == "tool.call"]
    assert len(set(calls)) == len(calls) > STEPS


@pytest.mark.parametrize("tools", [[], ["calculator"]])
def test_the_output_of_a_model_that_comments_is_its_final_answer(
    system: System, tools: list[str]
) -> None:
    """One call is enough, whatever the way to the output; the commentary that was streamed before
    is void, and no later run reads it.
    """
    owner = system.caller()
    schema = {"key": "city", "output_schema": CITY, "tools": tools}
    persona = owner.made("/v1/personas", schema)["id"]

    def turn(_: Mapping[str, Any]) -> Items:
        said = message("1", COMMENTARY, phase="commentary")
        return [reasoning("1"), said, message("2", json.dumps(ROME), phase="final_answer")]

    with OpenAIVendor(turn) as vendor:
        model = {"model": "gpt-6-astra", "api": "responses", "is_default": True}
        owner.made(
            "/v1/llm-providers",
            {"name": "o", "kind": "openai", "base_url": vendor.url, "models": [model]},
        )
        thread = owner.thread("Which city?")
        run_id = owner.start(thread, persona_id=persona)
        run = owner.ended(run_id)
        events = owner.events(run_id)

    assert ("completed", ROME, 1) == (run["status"], run["output"], len(vendor.bodies))
    assert ["output"] == [reset["reason"] for reset in data_of(events, "message.reset")]
    assert json.dumps(ROME) == text_of(events)
    assert ("assistant", json.dumps(ROME), False) == owner.messages(thread)[-1]


def test_commentary_and_answer_are_two_paragraphs(system: System) -> None:
    """The text of the thread's message is the text that was streamed."""
    owner = system.caller()
    said = message("1", COMMENTARY, phase="commentary")
    with OpenAIVendor(lambda _: [said, message("2", "Rome.", phase="final_answer")]) as vendor:
        model = {"model": "gpt-6-astra", "api": "responses", "is_default": True}
        owner.made(
            "/v1/llm-providers",
            {"name": "o", "kind": "openai", "base_url": vendor.url, "models": [model]},
        )
        thread = owner.thread("Which city?")
        run_id = owner.start(thread)
        owner.ended(run_id)
        events = owner.events(run_id)

    assert f"{COMMENTARY}\n\nRome." == text_of(events)
    assert ("assistant", text_of(events), False) == owner.messages(thread)[-1]
