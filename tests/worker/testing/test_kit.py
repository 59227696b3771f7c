"""The test kit that authors of plugins import."""

import base64
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field

from arkloop.providers import Chunk, ModelRequest, ProviderError, StopSignal
from arkloop.testing import call, play
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
