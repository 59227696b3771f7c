"""The clients that guides show, while a server behind a proxy restarts."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from arkloop_client import Arkloop
from flask import Flask, Response, request
from playwright.sync_api import Browser, Page

from tests.acceptance.test_browser import needs_chromium
from tests.caller import Caller, data_of
from tests.restarting_proxy import RestartingProxy, restarting_proxy
from tests.silencing_proxy import SilencingProxy, silencing_proxy
from tests.tool_receiver import Reply, ToolReceiver
from tests.waiting import eventually

GUIDES = Path(__file__).parents[2] / "docs" / "how-to"
COUNT = {"count": 60, "delay_ms": 20}


def sample(guide: str, language: str, part: str) -> str:
    """Return the block of the guide in this language that has this part."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", (GUIDES / guide).read_text(), re.M | re.S)
    [found] = [block for block in blocks if part in block]
    return str(found)


@pytest.fixture
def proxy(user: Caller) -> Iterator[RestartingProxy]:
    with restarting_proxy(int(user.url.rpartition(":")[2])) as proxy:
        yield proxy


@pytest.fixture
def page(browser: Browser, proxy: RestartingProxy) -> Iterator[Page]:
    """A page of the same origin, which may know where it is."""
    place: Any = {"latitude": 41.9, "longitude": 12.5}
    context = browser.new_context(geolocation=place, permissions=["geolocation"])
    page = context.new_page()
    page.goto(f"{proxy.url}/page")
    yield page
    context.close()


def test_a_client_in_python_gets_every_event_once(user: Caller, proxy: RestartingProxy) -> None:
    """It connects again after a broken stream and after each 502."""
    run_id = user.run(COUNT)
    names: dict[str, Any] = {}
    exec(sample("follow-a-run.md", "python", "def events("), names)
    with httpx.Client(base_url=proxy.url, headers=user.http.headers, timeout=60) as client:
        seen = list(names["events"](client, run_id))

    assert (True, 0) == (proxy.has_cut, proxy.refused)
    assert user.events(run_id) == seen


@pytest.mark.parametrize("status", [429, 503])
def test_a_client_in_python_waits_until_it_may_come(user: Caller, status: int) -> None:
    """After a broken stream it is refused with a date, and then with seconds, which it waits."""
    run_id = user.run(COUNT)
    names: dict[str, Any] = {}
    exec(sample("follow-a-run.md", "python", "def events("), names)
    port = int(user.url.rpartition(":")[2])
    with (
        restarting_proxy(port, status=status, retry_after=2, has_date=True) as proxy,
        httpx.Client(base_url=proxy.url, headers=user.http.headers, timeout=60) as client,
    ):
        seen = list(names["events"](client, run_id))

    assert (True, 0, 0) == (proxy.has_cut, proxy.refused, proxy.early)
    assert user.events(run_id) == seen


def test_a_relay_continues_after_the_last_event(user: Caller) -> None:
    """An EventSource that comes again through a Flask view gets what it has not seen."""
    run_id = user.run(COUNT)
    stored = user.events(run_id)
    app = Flask(__name__)
    with Arkloop(user.url, user.token) as arkloop:
        names = {"arkloop": arkloop, "app": app, "json": json}
        names |= {"Response": Response, "request": request}
        exec(sample("client-libraries.md", "python", "def relayed("), names)
        texts = [
            app.test_client().get(f"/runs/{run_id}/events", headers=headers).text
            for headers in ({}, {"Last-Event-ID": "5"})
        ]

    frames = [re.findall(r"^data: (.+)\nid: (\d+)\n\n", text, re.M) for text in texts]
    whole = [(event, str(event["seq"])) for event in stored]
    assert [whole, whole[5:]] == [[(json.loads(data), seq) for data, seq in one] for one in frames]


def run_in(page: Page, code: str, **given: str) -> None:
    """Run a sample as a script of the page, with these names."""
    page.evaluate("(given) => Object.assign(window, given)", given)
    page.add_script_tag(content=code)
    assert "[native code]" in page.evaluate("String(open)")  # links of the page still need it


@pytest.mark.browser
@needs_chromium
def test_a_page_gets_every_event_once(user: Caller, proxy: RestartingProxy, page: Page) -> None:
    """The browser's own source gives up at a 502, and the page opens another one."""
    run_id = user.run(COUNT)
    follow = sample("follow-a-run.md", "js", "new EventSource(")
    page.evaluate("() => { window.shown = []; window.show = (event) => shown.push(event) }")
    run_in(page, follow, runId=run_id, ticket=user.ticket(run_id))
    page.wait_for_function("shown.at(-1)?.type === 'run.completed'", timeout=60_000)

    assert (True, 0) == (proxy.has_cut, proxy.refused)
    assert user.events(run_id) == page.evaluate("shown")


@pytest.mark.browser
@needs_chromium
def test_a_page_executes_its_tools(user: Caller, proxy: RestartingProxy, page: Page) -> None:
    """It gets a call that came after the 502s, and sends its result again after another one."""
    parameters = {"type": "object", "properties": {"exact": {"type": "boolean"}}}
    tool = {"name": "get_location", "description": "Return the place.", "client": True}
    call = {"tool": "get_location", "args": {"exact": True}}
    run_id = user.run(COUNT, call, {"say": "ok"}, tools=[{**tool, "parameters": parameters}])
    ticket = user.made(f"/v1/runs/{run_id}/stream-ticket", {"tool_results": True})["ticket"]
    execute = sample("client-tools.md", "js", "new EventSource(")
    run_in(page, execute, base="", runId=run_id, ticket=ticket)
    user.ended(run_id)

    assert (True, 0, 0) == (proxy.has_cut, proxy.refused, proxy.refused_posts)
    [result] = data_of(user.events(run_id), "tool.result")
    assert '{"latitude":41.9,"longitude":12.5}' == result["output"]


@pytest.mark.browser
@needs_chromium
def test_a_page_sends_a_result_again_after_a_limit(
    user: Caller, proxy: RestartingProxy, page: Page
) -> None:
    """It gets 429 for its result, and sends it again when it may."""
    proxy.retry_after, proxy.length, proxy.refused = 2, 1_000_000, 0
    call = {"tool": "get_location", "args": {"exact": True}}
    tool = {"name": "get_location", "description": "Return the place.", "client": True}
    run_id = user.run(call, {"say": "ok"}, tools=[{**tool, "parameters": {"type": "object"}}])
    ticket = user.made(f"/v1/runs/{run_id}/stream-ticket", {"tool_results": True})["ticket"]
    execute = sample("client-tools.md", "js", "new EventSource(")
    run_in(page, execute, base="", runId=run_id, ticket=ticket)

    assert "completed" == user.ended(run_id)["status"]
    assert (0, 0) == (proxy.refused_posts, proxy.early)


@pytest.fixture
def silencing(user: Caller) -> Iterator[SilencingProxy]:
    with silencing_proxy(int(user.url.rpartition(":")[2])) as proxy:
        yield proxy


@pytest.fixture
def behind(browser: Browser, silencing: SilencingProxy) -> Iterator[Page]:
    """A page of the origin whose connections fall silent."""
    context = browser.new_context(bypass_csp=True)
    page = context.new_page()
    page.goto(f"{silencing.url}/page")
    yield page
    context.close()


#: Milliseconds of silence: those of the guides, and fewer.
PATIENCE = ("60_000", "1_500")


def impatient(code: str, change: tuple[str, str]) -> str:
    """Return a sample of which one part is another one."""
    assert 1 == code.count(change[0])
    return code.replace(*change)


@pytest.mark.browser
@needs_chromium
def test_a_page_leaves_the_calls_of_http_tools_alone(user: Caller, page: Page) -> None:
    """It executes its own call only, and the tool of the org sends the result of the other one."""
    parameters = {"type": "object", "properties": {}}
    locate = {"name": "get_location", "description": "Return the place.", "client": True}
    with ToolReceiver(lambda _: Reply(status=202)) as receiver:
        refund = {"name": "refund", "description": "Refund.", "url": receiver.url}
        user.made("/v1/tools", {**refund, "parameters": parameters})
        mine = [{**locate, "parameters": parameters}]
        user.made("/v1/personas", {"key": "clerk", "tools": ["refund"], "client_tools": mine})
        calls = [{"tool": name, "args": {}} for name in ("refund", "get_location")]
        run_id = user.run({"tools": calls}, {"say": "ok"}, persona_id="clerk")
        ticket = user.made(f"/v1/runs/{run_id}/stream-ticket", {"tool_results": True})["ticket"]
        execute = sample("client-tools.md", "js", "new EventSource(")
        run_in(page, execute, base="", runId=run_id, ticket=ticket)
        user.until(run_id, "status", "waiting_for_input")
        eventually(lambda: len(user.get_run(run_id)["pending_input"]["calls"]) == 1)

        assert ["call_1_2"] == page.evaluate("[...started]")
        sent = [{"tool_call_id": "call_1_1", "output": "refunded"}]
        assert 200 == user.http.post(f"/v1/runs/{run_id}/tool-results", json=sent).status_code
        assert "completed" == user.ended(run_id)["status"]


@pytest.mark.browser
@needs_chromium
def test_a_page_leaves_a_connection_that_has_fallen_silent(
    user: Caller, silencing: SilencingProxy, behind: Page
) -> None:
    """It gets every event once, though its connection never breaks."""
    run_id = user.run(COUNT, {"hang": 4}, {"say": "end"})
    behind.evaluate("() => { window.shown = []; window.show = (event) => shown.push(event) }")
    follow = sample("follow-a-run.md", "js", "new EventSource(")
    run_in(behind, impatient(follow, PATIENCE), runId=run_id, ticket=user.ticket(run_id))
    behind.wait_for_function("shown.length > 5", timeout=60_000)
    silencing.silence()
    behind.wait_for_function("shown.at(-1)?.type === 'run.completed'", timeout=60_000)

    assert user.events(run_id) == behind.evaluate("shown")


@pytest.mark.browser
@needs_chromium
def test_a_page_executes_its_tools_after_a_silence(
    user: Caller, silencing: SilencingProxy, behind: Page
) -> None:
    """It gets a call by another connection than the one that has fallen silent."""
    tool = {"name": "get_title", "description": "Return the title.", "client": True}
    declared = [{**tool, "parameters": {"type": "object"}}]
    run_id = user.run(COUNT, {"tool": "get_title"}, {"say": "ok"}, tools=declared)
    ticket = user.made(f"/v1/runs/{run_id}/stream-ticket", {"tool_results": True})["ticket"]
    execute = sample("client-tools.md", "js", "new EventSource(")
    execute = impatient(execute, ("const tools = {", "const tools = { get_title: () => 'Home',"))
    passed = silencing.passed
    run_in(behind, impatient(execute, PATIENCE), base="", runId=run_id, ticket=ticket)
    eventually(lambda: silencing.passed > passed + 1_000)
    silencing.silence()
    user.ended(run_id)

    [result] = data_of(user.events(run_id), "tool.result")
    assert "Home" == result["output"]


@pytest.mark.browser
@needs_chromium
@pytest.mark.parametrize(
    ("status", "requests"), [(200, 1), (500, 1), (429, 60), (502, 60), (None, 60), (0, 60)]
)
def test_a_result_is_sent_again_only_while_the_server_is_down(
    page: Page, status: int | None, requests: int
) -> None:
    """Other errors stay, and a server that stays down is given up. None: it is not reached; 0: it
    does not respond.
    """
    page.evaluate(
        """(status) => {
            window.EventSource = class {}
            // The pauses alone: an event source that is silent is replaced after a minute.
            window.setTimeout = (call, ms) => ms > 1000 || queueMicrotask(call)
            window.requests = 0
            window.fetch = async (address, { signal }) => {
                requests += 1
                const headers = new Headers()
                if (requests > 100) return { status: 200, headers }
                if (status === null) throw new TypeError("Failed to fetch")
                if (status === 0) {
                    await new Promise((_, lost) => signal.addEventListener("abort", lost))
                }
                return { status, headers }
            }
        }""",
        status,
    )
    sent = impatient(sample("client-tools.md", "js", "new EventSource("), ("30_000", "10"))
    run_in(page, sent, base="", runId="run", ticket="ticket")
    page.evaluate("execute({ tool_call_id: 'c', name: 'missing', arguments: {} })")

    assert requests == page.evaluate("requests")
