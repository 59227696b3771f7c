"""The agents of `examples/`, each in another framework, in the real service with a mock model.

They are in a worker of the service as plugins, and in processes of `arkloop agents serve`.
"""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench.frameworks.chat_server import CACHED, INPUT, OUTPUT, REASONING, ChatServer
from tests.caller import Caller, data_of, parsed, text_of, types
from tests.contents import png
from tests.system import System, running_system
from tests.waiting import eventually
from tests.web_server import ROOT

FRAMEWORKS = ROOT / ".cache" / "agents"
AGENTS = ("langgraph_shop", "openai_shop", "pydantic_ai_shop")
TURNS = ["Let me see. ", "", "It is cancelled."]

pytestmark = [
    pytest.mark.agents,
    pytest.mark.skipif(
        not (FRAMEWORKS / "langgraph").is_dir() and "NEED_AGENTS" not in os.environ,
        reason="no frameworks: `make test-agents` installs them",
    ),
]


@dataclass(frozen=True)
class Shop:
    """The service with the agents of the examples, their model, and the orders they cancel."""

    system: System
    user: Caller
    model: ChatServer
    cancelled: Path


@pytest.fixture(scope="module")
def shop(
    new_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("shop")
    with ChatServer() as model:
        environ = {
            "ARKLOOP_PLUGINS": str(ROOT / "examples"),
            "TEST_FRAMEWORKS": str(FRAMEWORKS),
            "PYTHONPATH": str(ROOT / "tests" / "examples" / "frameworks"),
            "OPENAI_BASE_URL": model.url,
            "OPENAI_API_KEY": "sk-of-nobody",
            "SHOP_CANCELLED": str(folder / "cancelled"),
        }
        with running_system(new_database, folder, web=1, environ=environ) as system:
            user = system.caller()
            for agent in AGENTS:
                user.made("/v1/personas", {"key": agent, "agent": agent, "system_prompt": "Help."})
            yield Shop(system, user, model, folder / "cancelled")


@pytest.fixture(autouse=True)
def nothing_cancelled(shop: Shop) -> None:
    shop.cancelled.unlink(missing_ok=True)


def shown(events: list[dict[str, Any]]) -> list[Any]:
    """Return what a client sees of the turns, whatever the pieces of the text."""
    return [
        (event["type"], event["data"].get("name") or event["data"].get("content"))
        for event in events
        if event["type"] in ("message.completed", "tool.call", "tool.result")
    ]


@pytest.mark.parametrize("agent", AGENTS)
def test_each_framework_writes_the_same_events(shop: Shop, agent: str) -> None:
    """Turns, calls, results and costs are those of the built-in loop, in any framework."""
    run_id = shop.user.run("Cancel order A1.", persona_id=agent)

    events = shop.user.events(run_id)

    assert "run.completed" == events[-1]["type"], shop.system.worker.log.read_text()
    assert [
        ("message.completed", TURNS[0]),
        *(("tool.call", "find_order"), ("tool.call", "delivery_date")),
        *[("tool.result", name) for name in sorted_results(events)],
        ("message.completed", TURNS[1]),
        *(("tool.call", "cancel_order"), ("tool.result", "cancel_order")),
        ("message.completed", TURNS[2]),
    ] == shown(events)
    assert "".join(TURNS) == text_of(events)
    outputs = {result["name"]: result["output"] for result in data_of(events, "tool.result")}
    assert {
        "find_order": "Order A1: one tea.",
        "delivery_date": "2026-12-03",
        "cancel_order": "Order A1 is cancelled.",
    } == outputs
    turns = data_of(events, "message.completed")
    assert [INPUT] * 3 == [turn["usage"]["input_tokens"] for turn in turns]
    usage = shop.user.get_run(run_id)["usage"]
    assert {
        "input_tokens": 3 * INPUT,
        "cache_read_tokens": 3 * CACHED,
        "output_tokens": 3 * OUTPUT,
        "reasoning_tokens": 3 * REASONING,
    } == {name: tokens for name, tokens in usage.items() if name != "source"}
    assert "A1\n" == shop.cancelled.read_text()


@pytest.mark.parametrize("agent", AGENTS)
def test_the_persona_alone_limits_the_turns(shop: Shop, agent: str) -> None:
    """Frameworks have limits of their own, such as 10 turns or 50 requests."""
    persona = {"key": f"patient_{agent}", "agent": agent, "max_steps": 64}
    shop.user.made("/v1/personas", persona)
    text = f"Cancel order A1{50 * ', then B2'}."

    events = shop.user.events(shop.user.run(text, persona_id=persona["key"]))

    assert "run.completed" == events[-1]["type"], shop.system.worker.log.read_text()
    assert TURNS[2] == data_of(events, "message.completed")[-1]["content"]
    assert 53 == len(data_of(events, "message.completed"))
    assert 51 == len(shop.cancelled.read_text().splitlines())


@pytest.mark.parametrize("agent", AGENTS)
def test_a_call_without_a_report_is_estimated(shop: Shop, agent: str) -> None:
    """A call of a server that never reports tokens, and one that a cancelled run breaks off."""
    shop.model.counts_nothing.set()
    silent = shop.user.ended(shop.user.run("Cancel order A1.", persona_id=agent))
    shop.model.counts_nothing.clear()
    shop.model.is_slow.set()
    run_id = shop.user.run("Cancel order A1.", persona_id=agent)
    with shop.user.stream(run_id) as stream:
        assert any(event["data"].get("content") == "It is " for event in parsed(stream))
    shop.user.cancel(run_id)
    broken = shop.user.ended(run_id)
    shop.model.is_slow.clear()

    assert ("completed", "cancelled") == (silent["status"], broken["status"])
    assert silent["usage"]["input_tokens"] > 30
    written = "".join(TURNS) + 3 * '{"order_id": "A1"}'
    assert abs(silent["usage"]["output_tokens"] - len(written) / 4) <= 3
    assert broken["usage"]["input_tokens"] > 2 * INPUT + 10
    assert 2 * OUTPUT + 2 == broken["usage"]["output_tokens"]


def test_langgraph_gets_the_images_of_a_message(shop: Shop) -> None:
    """The model sees a stored image and one behind a URL, and a deleted one is left out."""
    form = {"file": ("a.png", png())}
    kept, deleted = (shop.user.http.post("/v1/files", files=form).json()["id"] for _ in range(2))
    url = "https://example.com/b.png"
    parts = [{"type": "text", "text": "Cancel order A1."}]
    parts += [{"type": "image", "file_id": file_id} for file_id in (kept, deleted)]
    parts += [{"type": "image", "url": url}]
    thread_id = shop.user.thread(parts)
    shop.user.http.delete(f"/v1/files/{deleted}")

    shop.user.ended(shop.user.start(thread_id, persona_id="langgraph_shop"))

    [content] = [
        message["content"]
        for message in shop.model.bodies[-1]["messages"]
        if message["role"] == "user"
    ]
    stored = f"data:image/png;base64,{base64.b64encode(png()).decode()}"
    images = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    assert [stored, url] == images


@pytest.mark.parametrize("agent", AGENTS)
def test_a_framework_begins_a_thread_without_messages(shop: Shop, agent: str) -> None:
    """The model gets the instructions alone, where no call can be open."""
    known = len(shop.model.bodies)
    run_id = shop.user.start(shop.user.thread(), persona_id=agent)

    events = shop.user.events(run_id)

    assert "run.completed" == events[-1]["type"], shop.system.worker.log.read_text()
    assert ["Help."] == [one["content"] for one in shop.model.bodies[known]["messages"]]
    assert "".join(TURNS) == text_of(events)


def sorted_results(events: list[dict[str, Any]]) -> list[str]:
    """Return the two tools of the first turn in the order in which they returned."""
    names = [result["name"] for result in data_of(events, "tool.result")][:2]
    assert {"find_order", "delivery_date"} == set(names)
    return names


@pytest.mark.parametrize("agent", AGENTS)
def test_a_framework_makes_a_call_after_a_persons_answer(shop: Shop, agent: str) -> None:
    """The tool asks within its step, whose call was recorded before: it is made, and once."""
    asking = {"metadata": {"confirm": "yes"}}
    run_id = shop.user.run("Cancel order A1.", persona_id=agent, **asking)
    shop.user.seen(run_id, "run.waiting_for_input", 1)
    eventually(lambda: shop.user.answer(run_id, "yes").status_code == 200)

    events = shop.user.events(run_id)

    assert "run.completed" == events[-1]["type"], shop.system.worker.log.read_text()
    turns = data_of(events, "message.completed")
    assert TURNS == [turn["content"] for turn in turns]
    assert [INPUT] * 3 == [turn["usage"]["input_tokens"] for turn in turns]
    assert "Order A1 is cancelled." == data_of(events, "tool.result")[-1]["output"]
    assert "A1\n" == shop.cancelled.read_text()


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("text", ["Cancel order A1, then B2.", "Cancel orders A1 and B2."])
def test_a_framework_asks_about_each_call(shop: Shop, agent: str, text: str) -> None:
    """An answer is for one call, with its arguments; each order is cancelled once."""
    run_id = shop.user.run(text, persona_id=agent, metadata={"confirm": "yes"})
    for number in (1, 2):
        shop.user.seen(run_id, "run.waiting_for_input", number)
        eventually(lambda: shop.user.answer(run_id, "yes").status_code == 200)

    events = shop.user.events(run_id)

    assert "run.completed" == events[-1]["type"], shop.system.worker.log.read_text()
    assert [f"Shall I call cancel_order with {{'order_id': '{id_}'}}?" for id_ in ("A1", "B2")] == (
        sorted(data["prompt"] for data in data_of(events, "run.waiting_for_input"))
    )
    assert ["A1", "B2"] == sorted(shop.cancelled.read_text().split())


# The OpenAI Agents SDK refuses such a call itself.
@pytest.mark.parametrize("agent", ["langgraph_shop", "pydantic_ai_shop"])
def test_a_framework_tells_calls_of_the_same_id_apart(shop: Shop, agent: str) -> None:
    """Some models' servers count the calls of each turn anew; each order is cancelled all the same,
    and a person is asked about each.
    """
    shop.model.counts_anew.set()
    text, confirm = "Cancel order A1, then B2.", {"confirm": "yes"}
    run_id = shop.user.run(text, persona_id=agent, metadata=confirm)
    for number in (1, 2):
        shop.user.seen(run_id, "run.waiting_for_input", number)
        eventually(lambda: shop.user.answer(run_id, "yes").status_code == 200)
    events = shop.user.events(run_id)
    shop.model.counts_anew.clear()

    assert "run.completed" == events[-1]["type"], shop.system.worker.log.read_text()
    assert "A1\nB2\n" == shop.cancelled.read_text()
    ids = [call["tool_call_id"] for call in data_of(events, "tool.call")]
    assert 4 == len(set(ids)) == len(data_of(events, "tool.result"))


@pytest.mark.parametrize("agent", AGENTS)
def test_a_call_with_bad_arguments_has_a_result(shop: Shop, agent: str) -> None:
    """The model reads what is wrong with them, and the run continues."""
    shop.model.slips.set()
    events = shop.user.events(shop.user.run("Cancel order A1.", persona_id=agent))
    shop.model.slips.clear()

    assert "run.completed" == events[-1]["type"], shop.system.worker.log.read_text()
    results = {result["name"]: result for result in data_of(events, "tool.result")}
    assert {"find_order", "delivery_date", "cancel_order"} == set(results)
    assert results["find_order"]["is_error"]
    said = results["find_order"]["output"]
    assert any(text in said for text in ("valid dictionary", "Invalid JSON", "no JSON object"))


def test_langgraph_reads_line_breaks_that_are_not_escaped(shop: Shop) -> None:
    """LangChain reads them, too: the arguments are an object."""
    shop.model.breaks_lines.set()
    events = shop.user.events(shop.user.run("Cancel order A1.", persona_id="langgraph_shop"))
    shop.model.breaks_lines.clear()

    called = {call["name"]: call["arguments"] for call in data_of(events, "tool.call")}
    assert {"order_id": "A1\n"} == called["find_order"]


@pytest.mark.parametrize("agent", AGENTS)
def test_a_call_that_was_cut_off_is_not_made(shop: Shop, agent: str) -> None:
    """The model meant order A12, and reached its output limit after A1."""
    shop.model.cuts.set()
    events = shop.user.events(shop.user.run("Cancel order A12.", persona_id=agent))
    shop.model.cuts.clear()

    assert "run.completed" == events[-1]["type"], shop.system.worker.log.read_text()
    failed = [result["name"] for result in data_of(events, "tool.result") if result["is_error"]]
    assert ["cancel_order"] == failed
    assert not shop.cancelled.exists()


@pytest.mark.parametrize("agent", AGENTS)
def test_a_long_id_is_recorded_as_a_short_one(shop: Shop, agent: str) -> None:
    """The model gets its own id with the result: it may have a signature that the model checks."""
    shop.model.signs.set()
    run_id = shop.user.run("Cancel order A1.", persona_id=agent, metadata={"confirm": "yes"})
    shop.user.seen(run_id, "run.waiting_for_input", 1)
    sent = [one for one in shop.model.bodies[-1]["messages"] if one["role"] == "tool"]
    eventually(lambda: shop.user.answer(run_id, "yes").status_code == 200)
    events = shop.user.events(run_id)
    shop.model.signs.clear()

    assert "run.completed" == events[-1]["type"], shop.system.worker.log.read_text()
    assert {f"call_{one}{1200 * 'Q'}" for one in "ab"} == {one["tool_call_id"] for one in sent}
    ids = [call["tool_call_id"] for call in data_of(events, "tool.call")]
    assert set(ids) == {result["tool_call_id"] for result in data_of(events, "tool.result")}
    assert 3 == len(set(ids)) and max(map(len, ids)) <= 128
    assert "A1\n" == shop.cancelled.read_text()


def environ_of(shop: Shop) -> dict[str, str]:
    """Return the environment of a process with the frameworks and the shop's model."""
    return {
        **os.environ,
        "TEST_FRAMEWORKS": str(FRAMEWORKS),
        "PYTHONPATH": str(ROOT / "tests" / "examples" / "frameworks"),
        "OPENAI_BASE_URL": shop.model.url,
        "OPENAI_API_KEY": "sk-of-nobody",
        "SHOP_CANCELLED": str(shop.cancelled),
    }


def test_what_a_framework_says_by_exceptions_is_not_swallowed(shop: Shop) -> None:
    """Hints for the model are results, a command of a tool is one as well, and an interrupt, which
    nothing would resume, fails the run.
    """
    status, results = played(shop, "langgraph_shop")
    assert "completed" == status
    assert "order_id: Input should be a valid integer" in results["find_order"][0]
    assert ["Order A1 is cancelled by a command.", False] == results["cancel_order"]

    status, results = played(shop, "pydantic_ai_shop")
    assert "completed" == status
    assert ["Order ids have the form A01, and A1 has not.", True] == results["find_order"]

    status, _ = played(shop, "langgraph_shop_interrupted")
    assert "failed" == status


def played(shop: Shop, agent: str) -> Any:
    """Play a run of the agent with other tools, in a process of its own."""
    command = [sys.executable, "-m", "odd_tools", agent]
    made = subprocess.run(command, cwd=ROOT, env=environ_of(shop), stdout=-1, check=True)
    return json.loads(made.stdout)


@contextmanager
def served(shop: Shop, agent: str) -> Iterator[subprocess.Popen[bytes]]:
    """Serve the agent in a process of the customer, under a name that is no plugin's."""
    environ = {
        **environ_of(shop),
        "ARKLOOP_URL": shop.user.url,
        "ARKLOOP_API_KEY": shop.user.api_key(scopes=["agents.work"])[1],
    }
    command = ["agents", "serve", f"examples.agents.{agent}:{agent}", "--agent", f"served-{agent}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "arkloop.cli", *command], cwd=ROOT, env=environ
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("agent", AGENTS)
def test_a_framework_behind_an_agent_worker_survives_it(shop: Shop, agent: str) -> None:
    """After kill -9 within the answer the next worker continues from the turns, with nothing done
    twice; a cancel reaches the framework while it waits for the model.
    """
    persona = {"key": f"served-{agent}", "agent": f"served-{agent}", "system_prompt": "Help."}
    shop.user.made("/v1/personas", persona)
    shop.model.is_slow.set()
    with served(shop, agent):
        run_id = shop.user.run("Cancel order A1.", persona_id=f"served-{agent}")
        shop.user.seen(run_id, "message.completed", 2)
        shop.user.seen(run_id, "message.delta", 2)
    with served(shop, agent):
        shop.model.is_slow.clear()
        events = shop.user.events(run_id)
        shop.model.is_slow.set()
        cancelled = shop.user.run("Cancel order B2.", persona_id=f"served-{agent}")
        shop.user.seen(cancelled, "message.completed", 2)
        shop.user.cancel(cancelled)
        ended = shop.user.ended(cancelled)
        shop.model.is_slow.clear()

    assert ("run.completed", "cancelled") == (events[-1]["type"], ended["status"])
    assert 1 == types(events).count("run.resumed")
    turns = data_of(events, "message.completed")
    assert TURNS == [turn["content"] for turn in turns]
    assert [INPUT] * 3 == [turn["usage"]["input_tokens"] for turn in turns]
    assert "A1\nA1\n" == shop.cancelled.read_text()
