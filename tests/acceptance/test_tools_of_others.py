"""Tools that reach outside the service: an MCP server's, and the web; and a thread too long."""

import json
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from llmock.pytest_plugin import LLMock

from arkloop.worker.attempt.execution import LINGER_SECONDS
from tests.caller import Caller, script, types
from tests.system import System
from tests.waiting import eventually

# The worker starts the MCP servers.
pytestmark = pytest.mark.processes

TIME_SERVER = [str(Path(sys.executable).with_name("mcp-server-time"))]
ODD_SERVER = Path(__file__).parents[1] / "worker" / "mcp" / "odd_mcp_server.py"
CALLER_SERVER = [sys.executable, str(Path(__file__).parents[1] / "caller_mcp_server.py")]


@pytest.fixture(scope="module")
def owner(system: System) -> Caller:
    """The owner of an org of the module's own."""
    return system.caller()


@pytest.fixture(scope="module")
def page() -> Iterator[str]:
    """The address of a web page on this machine."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"<h1>Hello from the page</h1>"
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def results(owner: Caller, run_id: str) -> list[dict[str, Any]]:
    return [event["data"] for event in owner.events(run_id) if event["type"] == "tool.result"]


def asked(owner: Caller, run_id: str, kind: str) -> dict[str, Any]:
    """Wait until the run waits for an input of this kind, and return the request."""
    waiting: dict[str, Any] = {}

    def is_there() -> bool:
        waiting.update(owner.get_run(run_id)["pending_input"] or {})
        return waiting.get("kind") == kind

    eventually(is_there)
    return waiting


def test_a_persona_uses_the_tools_of_an_mcp_server(owner: Caller) -> None:
    """Tools that others wrote are discovered, pinned and, once a user has approved it, called."""
    config = owner.made(
        "/v1/mcp-configs", {"name": "clock", "transport": "stdio", "command": TIME_SERVER}
    )
    path = f"/v1/mcp-configs/{config['id']}"
    eventually(lambda: owner.get(path)["discovered_at"] is not None)
    offered = {tool["name"]: tool for tool in owner.get(f"{path}/tools")}
    assert {"get_current_time", "convert_time"} == set(offered)
    assert all(tool["is_approved"] for tool in offered.values())
    owner.made(
        "/v1/personas",
        {"key": "clerk", "mcp": ["clock"], "require_approval": ["clock_convert_time"]},
    )
    now = {"tool": "get_current_time", "args": {"timezone": "Europe/Paris"}}
    nowhere = {"tool": "get_current_time", "args": {"timezone": "Nowhere/At_all"}}
    wrong = {"tool": "get_current_time", "args": {"zone": "UTC"}}
    asked = {
        "tool": "convert_time",
        "args": {"source_timezone": "UTC", "time": "12:00", "target_timezone": "Asia/Tokyo"},
    }

    thread_id = owner.thread(script({"tools": [now, nowhere, wrong]}, asked, {"say": "ok"}))
    run_id = owner.start(thread_id, persona_id="clerk")
    pending = owner.until(run_id, "status", "waiting_for_input")["pending_input"]
    assert "convert_time" == pending["tool_name"]
    owner.answer(run_id, "yes")

    right, bad_zone, bad_arguments, converted = results(owner, run_id)
    assert (False, True, True, False) == tuple(
        result["is_error"] for result in (right, bad_zone, bad_arguments, converted)
    )
    assert "Europe/Paris" in right["output"]
    assert "timezone" in bad_arguments["output"]
    assert "21:00" in converted["output"]


def test_an_mcp_server_knows_for_whom_it_works_and_shows_its_progress(owner: Caller) -> None:
    """Each call carries its identity and trace context in `_meta`; what the server reports during a
    call is an event of the run, before the call's result. The model has found the tool by words.
    """
    config = owner.made(
        "/v1/mcp-configs", {"name": "caller", "transport": "stdio", "command": CALLER_SERVER}
    )
    path = f"/v1/mcp-configs/{config['id']}"
    eventually(lambda: owner.get(path)["discovered_at"] is not None)
    owner.made("/v1/personas", {"key": "asking", "mcp": ["caller"], "mcp_tool_search": True})

    search = {"tool": "search_tools", "args": {"query": "metadata"}}
    steps = script(search, {"tool": "whoami"}, {"say": "ok"})
    thread_id = owner.thread(steps, end_user_id="end-user-7")
    run_id = owner.start(thread_id, persona_id="asking", metadata={"order": "31"})
    events = owner.events(run_id)

    kinds = [kind for kind in types(events) if kind.startswith("tool.")]
    assert ["tool.call", "tool.result", "tool.call", "tool.progress", "tool.result"] == kinds
    [reported] = [event["data"] for event in events if event["type"] == "tool.progress"]
    expected = {"tool_call_id": "call_2_1", "progress": 1, "total": 2, "message": "half of it"}
    assert expected == reported
    found, result = results(owner, run_id)
    assert "whoami" == json.loads(found["output"])["tools"][0]["name"]
    meta = json.loads(result["output"])
    trace_id = owner.get_run(run_id)["trace_id"]
    assert meta["traceparent"].startswith(f"00-{trace_id}-")
    assert {
        "run_id": run_id,
        "thread_id": thread_id,
        "org_id": owner.org_id,
        "end_user_id": "end-user-7",
        "metadata": {"order": "31"},
        "tool_call_id": "call_2_1",
        "idempotency_key": f"{run_id}:call_2_1",
        "traceparent": meta["traceparent"],
    } == meta["arkloop/call"]


def test_a_call_of_an_mcp_server_waits_for_a_form_and_a_page(owner: Caller, tmp_path: Path) -> None:
    """The run waits without a worker for each reply; one that does not fit is refused, and the call
    is then made again with the replies and the server's own state, and has its effect once.
    """
    log = tmp_path / "log"
    command = [sys.executable, str(Path(__file__).parents[1] / "form_mcp_server.py"), str(log)]
    config = owner.made(
        "/v1/mcp-configs", {"name": "forms", "transport": "stdio", "command": command}
    )
    path = f"/v1/mcp-configs/{config['id']}"
    eventually(lambda: owner.get(path)["discovered_at"] is not None)
    owner.made("/v1/personas", {"key": "host", "mcp": ["forms"]})
    book = {"tool": "book", "args": {"table": "4"}}
    run_id = owner.start(owner.thread(script(book, {"say": "ok"})), persona_id="host")

    form = asked(owner, run_id, "form")
    assert ("form", "How many?", "book") == (form["kind"], form["prompt"], form["tool_name"])
    assert {"type": "integer", "minimum": 1, "maximum": 9} == form["schema"]["properties"]["seats"]
    for wrong in ("yes", '{"action": "accept"}', '{"action": "accept", "content": {"seats": 10}}'):
        refused = owner.answer(run_id, wrong)
        assert (422, "content") == (refused.status_code, *refused.json()["details"])
    owner.answer(run_id, json.dumps({"action": "accept", "content": {"seats": 3}}))
    assert "https://pay.example/7" == asked(owner, run_id, "authorization")["url"]
    owner.answer(run_id, "accept")

    [result] = results(owner, run_id)
    assert "booked: seats;paid 3;" == result["output"]
    assert "4 seats;paid 3;\n" == log.read_text()


@pytest.fixture(scope="module")
def older(owner: Caller, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a server of the protocol of 2025-11-25, whose tools the persona `older` has."""
    folder = tmp_path_factory.mktemp("older")
    command = [sys.executable, str(ODD_SERVER), str(folder)]
    config = owner.made(
        "/v1/mcp-configs", {"name": "older", "transport": "stdio", "command": command}
    )
    path = f"/v1/mcp-configs/{config['id']}"
    eventually(lambda: owner.get(path)["discovered_at"] is not None)
    owner.made("/v1/personas", {"key": "older", "mcp": ["older"], "input_expires_seconds": 3600})
    return folder


def test_a_server_of_an_older_protocol_asks_during_its_call(owner: Caller, older: Path) -> None:
    """The run waits without a worker, and its reply continues the call; the request expires sooner
    than others, and then the server gets `cancel`.
    """
    ask = script({"tool": "ask", "args": {"n": 1}}, {"say": "ok"})
    run_id = owner.start(owner.thread(ask), persona_id="older")
    form = asked(owner, run_id, "form")
    assert (True, "continue") == (form["is_held"], form["on_expiry"])
    seconds = datetime.fromisoformat(form["expires_at"]) - datetime.now(UTC)
    assert 500 < seconds.total_seconds() <= 600
    # Longer than the process that parked the run listens for a reply to it.
    threading.Event().wait(LINGER_SECONDS + 0.5)
    owner.answer(run_id, json.dumps({"action": "accept", "content": {"seats": 3}}))

    [result] = results(owner, run_id)
    assert [{"action": "accept", "content": {"seats": 3}}] == json.loads(result["output"])
    log = [json.loads(line) for line in (older / "log").read_text().splitlines()]
    assert 1 == sum(entry.get("method") == "tools/call" for entry in log)


def test_cancelling_a_run_cancels_the_call_that_asks(owner: Caller, older: Path) -> None:
    """The server learns it within seconds, though no worker holds the run."""
    ask = script({"tool": "ask", "args": {"n": 1}}, {"say": "ok"})
    run_id = owner.start(owner.thread(ask), persona_id="older")
    asked(owner, run_id, "form")

    owner.cancel(run_id)

    assert "cancelled" == owner.get_run(run_id)["status"]
    eventually(lambda: "notifications/cancelled" in (older / "log").read_text())


def test_a_page_is_fetched_and_a_forbidden_address_is_not(owner: Caller, page: str) -> None:
    """The model reads why; the run continues."""
    owner.made("/v1/personas", {"key": "reader", "tools": ["http_fetch"]})
    calls = [
        {"tool": "http_fetch", "args": {"url": url}}
        for url in (page, "http://169.254.169.254/latest/meta-data/", "file:///etc/passwd")
    ]

    run_id = owner.start(owner.thread(script({"tools": calls}, {"say": "ok"})), persona_id="reader")

    found, *refused = results(owner, run_id)
    assert "Hello from the page" in found["output"]
    assert [True, True] == [result["is_error"] for result in refused]
    assert "ARKLOOP_FETCH_ALLOWED_NETWORKS" in refused[0]["output"]
    assert "root:" not in str(refused)


def test_a_thread_too_long_for_the_model_is_cut(owner: Caller, llmock: LLMock) -> None:
    """The oldest turns are omitted, and an event has the number of messages."""
    provider = owner.made(
        "/v1/llm-providers",
        {
            "name": "small",
            "kind": "openai",
            "base_url": llmock.base_url("openai"),
            "models": [{"model": "m", "context_tokens": 2000, "max_output_tokens": 100}],
        },
    )
    route_id = provider["models"][0]["route_id"]
    thread_id = owner.thread(*[f"{i}: " + "word " * 400 for i in range(8)])
    llmock.reply("Short.")

    events = owner.events(owner.start(thread_id, route_id=route_id, persona_id="plain"))

    assert ["run.started", "context.truncated"] == types(events)[:2]
    assert events[1]["data"]["dropped_messages"] in range(5, 8)
    assert "run.completed" == events[-1]["type"]
