"""Runs that lose their worker at each step, at servers of every API that we call.

OpenAI's rules are those of our own mock; aimock and llmock are servers that others wrote. The long
versions have 60 steps; `make test-lost-workers` runs them.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from llmock.pytest_plugin import LLMock
from llmock.scenarios import Reply, ToolCall

from arkloop.cli.dev.embedded_server import free_port
from arkloop.shared.actors import SCOPES
from tests.caller import Caller, Event, text_of, types
from tests.peers.conftest import installed, serving
from tests.system import System
from tests.worker.providers.openai_vendor import OpenAIVendor, counting

pytestmark = pytest.mark.peers

#: After a step, in the middle of a model's response, after it, and in the middle of its tools.
POINTS = {
    "step_finished": "worker.step_finished:1:KILL",
    "after_model": "worker.after_model:2:KILL",
}
APIS = {"chat": "openai", "responses": "openai", "messages": "anthropic"}
#: Of a long run: the calls whose stream is cut.
CUT = range(5, 60, 10)


#: Runs of 60 steps take minutes.
LONG = [
    pytest.mark.lost_workers,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(os.environ.get("LOST_WORKERS") != "1", reason="make test-lost-workers"),
]


def variants(names: Iterable[str], *short: str, steps: int = 1) -> list[Any]:
    """Return a long run of each name, and short ones of some: no API is without a short one."""
    return [
        *(pytest.param(name, steps) for name in short),
        *(pytest.param(name, 60, marks=LONG) for name in names),
    ]


def owner_of(system: System) -> Caller:
    """Create an owner with an API key: an access token lives for less than a long run."""
    owner = system.caller()
    _, key = owner.api_key(scopes=sorted(SCOPES))
    return owner.at(token=key)


def run_of(owner: Caller, model: dict[str, Any], **provider: Any) -> str:
    """Start a run with the calculator at this server; returns its id."""
    # Of unknown size it would be asked for, and mocks count that as a call.
    known = {"model": "gpt-6", "is_default": True, "context_tokens": 400_000}
    body = {"name": "server", "models": [{**known, **model}]}
    owner.made("/v1/llm-providers", {**body, **provider})
    persona = {"key": "counter", "tools": ["calculator"], "max_steps": 100, "timeout_seconds": 3600}
    persona_id = owner.made("/v1/personas", persona)["id"]
    return owner.run("Count", persona_id=persona_id)


def check(events: list[Event], steps: int, losses: int) -> None:
    """Check that each step was made once, and that each loss was followed by a resumption."""
    assert "run.completed" == events[-1]["type"], events[-1]
    assert steps + 1 == types(events).count("message.completed")
    calls = [e["data"]["tool_call_id"] for e in events if e["type"] == "tool.call"]
    results = [e["data"]["tool_call_id"] for e in events if e["type"] == "tool.result"]
    assert calls == results
    assert len(set(calls)) == len(calls) >= steps
    assert losses == types(events).count("run.resumed")


@pytest.mark.parametrize(("point", "steps"), variants(POINTS, *POINTS))
def test_a_reasoning_model_of_openai(system: System, steps: int, point: str) -> None:
    """The vendor refuses nothing: each function call goes with its reasoning."""
    owner = owner_of(system)
    with OpenAIVendor(partial(counting, steps=steps)) as vendor:
        with system.dying_workers(POINTS[point]):
            run_id = run_of(owner, {"api": "responses"}, kind="openai", base_url=vendor.url)
            run = owner.ended(run_id, seconds=3600)
        events = owner.events(run_id)

    assert "completed" == run["status"], run
    assert [] == vendor.refused
    assert f"{steps} steps." in text_of(events)
    check(events, steps, steps)
    sent = vendor.bodies[-1]["input"]
    thoughts = [item for item in sent if item["type"] == "reasoning"]
    assert steps == len(thoughts)
    assert all(thought["encrypted_content"] for thought in thoughts)


@pytest.mark.parametrize(("api", "steps"), variants(APIS, "chat"))
def test_llmock(system: System, llmock: LLMock, steps: int, api: str) -> None:
    """The first streams are broken as well, one after the other: their calls are made again."""
    for fault in (llmock.disconnect, llmock.truncate, llmock.corrupt):
        fault(after_chunks=6).reply("This will be cut. " * 20)
    llmock.pace(10)
    for step in range(steps):
        call = ToolCall("calculator", {"expression": f"{step}+1"})
        llmock.add(Reply(text=f"Step {step}.", tool_calls=(call,)))
    llmock.reply(f"{steps} steps.")
    owner = owner_of(system)
    kind = APIS[api]

    with system.dying_workers(POINTS["step_finished"]):
        model = {"api": api} if kind == "openai" else {}
        run_id = run_of(owner, model, kind=kind, base_url=llmock.base_url(kind))
        run = owner.ended(run_id, seconds=3600)
    events = owner.events(run_id)

    assert "completed" == run["status"], run
    assert f"{steps} steps." in text_of(events)
    check(events, steps, steps)
    assert steps + 4 == len(llmock.requests)
    resets = [e["data"]["reason"] for e in events if e["type"] == "message.reset"]
    assert ["provider.connection", "provider.connection", "provider.malformed"] == resets


@contextmanager
def aimock_with(folder: Path, fixtures: list[dict[str, Any]]) -> Iterator[str]:
    """Start an aimock that plays these fixtures; yields its address."""
    file = folder / "fixtures.json"
    file.write_text(json.dumps({"fixtures": fixtures}))
    port = free_port()
    command = ["node", installed("llmock"), "-p", str(port), "-f", file, "--strict"]
    environ = {**os.environ, "AIMOCK_STRICT_TURN_INDEX": "1"}
    url = f"http://127.0.0.1:{port}"
    yield from serving([str(part) for part in command], url, environ=environ)


def counting_fixtures(steps: int, cut: list[int]) -> list[dict[str, Any]]:
    fixtures: list[dict[str, Any]] = []
    for step in range(steps):
        match = {"userMessage": "Count", "turnIndex": step}
        call = {"name": "calculator", "arguments": {"expression": f"{step}+1"}}
        answer = {"match": match, "response": {"toolCalls": [call], "reasoning": "Hm."}}
        if step in cut:
            text = {"content": "This will be cut short before it has ended. " * 9}
            broken = {"match": {**match, "sequenceIndex": 0}, "response": text}
            fixtures.append({**broken, "truncateAfterChunks": 8, "latency": 20})
            answer["match"] = {**match, "sequenceIndex": 1}
        fixtures.append(answer)
    last = {"userMessage": "Count", "turnIndex": steps}
    return [*fixtures, {"match": last, "response": {"content": f"{steps} steps."}}]


@pytest.fixture
def aimock_of(tmp_path: Path) -> Callable[[list[dict[str, Any]]], AbstractContextManager[str]]:
    return partial(aimock_with, tmp_path)


@pytest.mark.parametrize(
    ("api", "steps"),
    variants(APIS, "messages", steps=2),  # fewer repeat nothing
)
def test_aimock(
    system: System,
    aimock_of: Callable[[list[dict[str, Any]]], AbstractContextManager[str]],
    steps: int,
    api: str,
) -> None:
    """Each turn is answered by what the request contains, so none may be missing or doubled."""
    cut = [step for step in CUT if step < steps] or [1]
    owner = owner_of(system)
    kind = APIS[api]
    with aimock_of(counting_fixtures(steps, cut)) as url:
        with system.dying_workers(POINTS["step_finished"]):
            model = {"api": api} if kind == "openai" else {}
            base_url = f"{url}/v1" if kind == "openai" else url
            run_id = run_of(owner, model, kind=kind, base_url=base_url)
            run = owner.ended(run_id, seconds=3600)
        events = owner.events(run_id)

    assert "completed" == run["status"], run
    assert f"{steps} steps." in text_of(events)
    check(events, steps, steps)
    resets = [e["data"]["reason"] for e in events if e["type"] == "message.reset"]
    assert ["provider.connection"] * len(cut) == resets
