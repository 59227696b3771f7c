"""The test kit that authors of plugins import."""

import asyncio
import base64
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field

from arkloop.providers import Chunk, ModelRequest, ProviderError, StopSignal
from arkloop.testing import Result, call, play
from arkloop.tools import CallInfo, ToolContext, ToolFailed, ToolOutput, tool
from arkloop.worker.providers.scripted_provider import ScriptedProvider

pytestmark = pytest.mark.processes

PAGE = Path(__file__).parents[3] / "docs/how-to/plugins.md"
PIXEL = base64.b64encode(b"pixel").decode()


class Item(BaseModel):
    """An item of an order."""

    sku: str
    count: Annotated[int, Field(ge=1)] = 1


@tool(idempotent=False, timeout_seconds=1)
def order(context: ToolContext, items: list[Item], info: CallInfo) -> str | ToolOutput:
    """Order items."""
    [item] = items
    match item.sku:
        case "none":
            raise ToolFailed("There is none.")
        case "secret":
            raise ConnectionError("a password")
        case "slow":
            time.sleep(5)
        case "picture":
            return ToolOutput("a picture", [PIXEL])
        case "long":
            return "x" * 70_000
    return f"{item.count} {item.sku} for {info.end_user_id} {dict(info.metadata)}"


@tool(idempotent=False, timeout_seconds=1)
async def ship(context: ToolContext, sku: str, info: CallInfo) -> str:
    """Send an article."""
    await asyncio.sleep(5 if sku == "slow" else 0)
    if sku == "none":
        raise ToolFailed("There is none.")
    return f"{sku} for {info.end_user_id}"


@pytest.mark.parametrize(
    ("item", "output", "is_error"),
    [
        ({"sku": "tea", "count": 2}, "2 tea for anna {'cart': '7'}", False),
        ({"sku": "tea", "count": 0}, "The argument 'items[0].count': the value is less than", True),
        ({"sku": "none"}, "There is none.", True),
        ({"sku": "secret"}, "The tool failed: ConnectionError.", True),
        ({"sku": "slow"}, "The tool did not return within 1 s;", True),
        ({"sku": "picture"}, "a picture", False),
        ({"sku": "long"}, "xxx", False),
    ],
)
def test_a_tool_is_called_as_a_worker_does(
    item: dict[str, Any], output: str, is_error: bool
) -> None:
    """Arguments are checked, errors are results, time and length are limited."""
    result = call(order, {"items": [item]}, end_user_id="anna", metadata={"cart": "7"})

    assert result.output.startswith(output)
    assert (is_error, "order") == (result.is_error, result.tool_name)
    assert ("[truncated:" in result.output) == (item["sku"] == "long")
    assert [5] * (item["sku"] == "picture") == [file["size"] for file in result.files]


@pytest.mark.parametrize(
    ("sku", "output", "is_error"),
    [
        ("tea", "tea for anna", False),
        ("none", "There is none.", True),
        ("slow", "The tool did not return within 1 s", True),
    ],
)
def test_a_coroutine_is_awaited(sku: str, output: str, is_error: bool) -> None:
    """A tool worker serves such tools; a test that is a coroutine itself may call them, too."""

    async def in_a_loop() -> Result:
        return call(ship, {"sku": sku}, end_user_id="anna")

    for result in (call(ship, {"sku": sku}, end_user_id="anna"), asyncio.run(in_a_loop())):
        assert result.output.startswith(output)
        assert is_error == result.is_error


def test_calls_of_a_turn_await_their_coroutines_side_by_side() -> None:
    """Both are awaited in one event loop."""
    calls = [{"tool": "ship", "args": {"sku": sku}} for sku in ("tea", "hat")]

    run = play([{"tools": calls}, {"say": "Done."}], tools=[ship], end_user_id="anna")

    assert ["tea for anna", "hat for anna"] == [result.output for result in run.results]


def test_calls_share_an_event_loop_that_outlives_them() -> None:
    """A client of a module is bound to it; a call that exits ends alone."""
    loops = []

    @tool(idempotent=True)
    async def client(context: ToolContext) -> str:
        """Use a client."""
        loops.append(asyncio.get_running_loop())
        return variable.get()

    @tool(idempotent=True)
    async def leave(context: ToolContext) -> str:
        """Exit."""
        sys.exit(1)

    variable = ContextVar[str]("variable")
    variable.set("of the test")

    outputs = [call(each, {}).output for each in (client, leave, client)]

    assert ["of the test", "The tool failed: SystemExit.", "of the test"] == outputs
    assert [loops[0]] * 2 == loops and not loops[0].is_closed()


def test_a_coroutine_that_takes_too_long_is_cancelled() -> None:
    """It has no effect after its call, as in a tool worker."""
    cancelled = threading.Event()

    @tool(idempotent=True, timeout_seconds=0.1)
    async def hang(context: ToolContext) -> str:
        """Wait."""
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return "late"

    assert call(hang, {}).is_error
    assert cancelled.wait(30)


def test_a_run_is_played_with_its_events() -> None:
    """The events have the form and the order of those that clients get."""
    run = play(
        [
            {"say": "Let me see."},
            {"tool": "order", "args": {"items": [{"sku": "tea"}]}},
            {"say": "It is ordered."},
        ],
        tools=[order],
        metadata={"cart": "7"},
    )

    assert ("completed", "It is ordered.", None) == (run.status, run.output, run.error)
    assert [
        "run.started",
        "message.delta",
        "message.completed",
        "tool.call",
        "run.cost",
        "tool.result",
        "message.delta",
        "message.completed",
        "run.cost",
        "run.completed",
    ] == [event["type"] for event in run.events]
    assert list(range(1, 11)) == [event["seq"] for event in run.events]
    assert ["Let me see.", "It is ordered."] == [
        data["content"] for data in run.data_of("message.delta")
    ]
    assert [{"cart": "7"}] == [data["metadata"] for data in run.data_of("run.started")]


def test_a_run_heeds_the_fields_of_its_persona() -> None:
    """A run that needs approval waits; one that reaches its limit fails, where it is to."""
    ordering = {"tool": "order", "args": {"items": [{"sku": "tea"}]}}

    careful = play([ordering], tools=[order], persona={"require_approval": ["*"]})
    limited = play([ordering], tools=[order], persona={"max_steps": 1, "on_limit": "fail"})
    shaped = play("Hi.", persona={"output_schema": {"type": "object"}})

    assert ("waiting_for_input", []) == (careful.status, careful.results)
    assert ["tool_confirmation"] == [d["kind"] for d in careful.data_of("run.waiting_for_input")]
    assert ("failed", "run.max_steps") == (limited.status, (limited.error or {})["code"])
    assert ("completed", {}) == (shaped.status, shaped.output)


@pytest.mark.parametrize("named", [{}, {"tools": ["order", "calculator"]}, {"tools": None}])
def test_a_persona_names_the_tools_that_are_given(named: dict[str, Any]) -> None:
    """It may require approval of one of them, and have it in its list beside built-in tools."""
    ordering = {"tool": "order", "args": {"items": [{"sku": "tea"}]}}
    persona = {"require_approval": ["order"], **named}

    careful = play([ordering], tools=[order], persona=persona)

    assert ("waiting_for_input", []) == (careful.status, careful.results)
    assert ["tool_confirmation"] == [d["kind"] for d in careful.data_of("run.waiting_for_input")]


def test_more_tools_can_be_given_than_a_persona_can_name() -> None:
    """Only those that the persona requires approval of count among its own."""
    many = [replace(order, spec=replace(order.spec, name=f"order_{i}")) for i in range(129)]
    ordering = {"tool": "order_128", "args": {"items": [{"sku": "tea"}]}}

    run = play([ordering], tools=many, persona={"require_approval": ["order_1"]})

    assert ("completed", "1 tea for None {}") == (run.status, run.results[0].output)


def test_a_long_result_is_read_in_parts() -> None:
    """The tool `read_result` works as in a worker."""
    run = play(
        [
            {"tool": "order", "args": {"items": [{"sku": "long"}]}},
            {"tool": "read_result", "args": {"id": "1.5", "offset": 69_990, "limit": 100}},
        ],
        tools=[order],
    )

    assert "[characters 69990 to 70000 of 70000]\n" + "x" * 10 == run.results[1].output


def test_a_refused_address_names_the_setting_of_the_service() -> None:
    """An operator who allows the network there lets the tool reach it in the service, too."""
    fetching = {"tool": "http_fetch", "args": {"url": "http://127.0.0.1:9000/"}}

    run = play([fetching], persona={"tools": ["http_fetch"]})

    assert run.results[0].is_error
    assert "with ARKLOOP_FETCH_ALLOWED_NETWORKS." in run.results[0].output


def test_a_provider_of_the_author_is_called() -> None:
    """A run can be played with another provider than the scripted model."""

    class Broken(ScriptedProvider):
        def stream(self, request: ModelRequest, stop: StopSignal) -> Iterator[Chunk]:
            raise ProviderError("invalid_request", f"not {request.messages[-1].content}")

    run = play("tea", provider=Broken())

    assert ("failed", {"code": "provider.invalid_request", "message": "not tea"}) == (
        run.status,
        run.error,
    )


def test_the_example_of_the_guide_passes(tmp_path: Path) -> None:
    """The tool and the test that `docs/how-to/plugins.md` shows are run by pytest as they stand."""
    plugin, *tests = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    files = {"plugins/tools/price.py": plugin, "test_price.py": "".join(tests)}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_price.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )

    assert 0 == done.returncode, done.stdout
    assert "3 passed" in done.stdout
