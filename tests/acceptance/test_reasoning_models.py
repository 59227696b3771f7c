"""A reasoning model of OpenAI's with the default persona, through the whole service."""

import os
import signal
import threading
from collections.abc import Mapping
from typing import Any

import pytest

from tests.caller import text_of, types
from tests.system import System
from tests.worker.providers.openai_vendor import STEPS, Items, OpenAIVendor, counting


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
