"""EventSource in a real Chromium: by stream ticket, over cut connections, to the end of the run."""

import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page

from tests.acceptance.streamed_runs import LONG
from tests.app_page import app_page
from tests.caller import Caller, data_of
from tests.cutting_proxy import cutting_proxy
from tests.system import System
from tests.web_server import WebServer

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None and os.environ.get("NEED_BROWSER") != "1",
    reason="Chromium is not installed: make test-browser",
)
pytestmark = [pytest.mark.browser, needs_chromium]

ARGUMENTS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


@pytest.fixture(scope="module")
def origin() -> Iterator[str]:
    """The origin of the app's page."""
    with app_page() as url:
        yield url


@pytest.fixture(scope="module")
def api(system: System, origin: str) -> Iterator[WebServer]:
    """A server of the system that the app's origin may call."""
    with system.one_more_web_server(ARKLOOP_CORS_ORIGINS=origin) as server:
        yield server


@pytest.fixture
def page(browser: Browser, origin: str) -> Iterator[Page]:
    page = browser.new_page()
    page.goto(origin)
    yield page
    page.close()


def follow(page: Page, user: Caller, run_id: str, base: str, kind: str = "message") -> None:
    """Open an EventSource with a ticket alone."""
    named = "&named=true" if kind != "message" else ""
    url = f"{base}/v1/runs/{run_id}/events?ticket={user.ticket(run_id)}{named}"
    page.evaluate("([url, kind]) => follow(url, kind)", [url, kind])


def seen_at_the_end(page: Page) -> list[list[str]]:
    """Return (id, data) of all events, once the browser has stopped reconnecting."""
    page.wait_for_function("source.readyState === EventSource.CLOSED", timeout=100_000)
    seen: list[list[str]] = page.evaluate("seen")
    return seen


def sent(user: Caller, run_id: str) -> list[list[str]]:
    """Return what the browser must have seen: the ids and the data lines of the stream."""
    frames = [frame.split("\n") for frame in user.raw(run_id).decode().split("\n\n")[:-1]]
    return [[frame[-1].removeprefix("id: "), frame[-2].removeprefix("data: ")] for frame in frames]


def test_a_browser_sees_every_event_and_stops_at_the_end(
    page: Page, api: WebServer, user: Caller
) -> None:
    """`onmessage` sees all of a live run; the reconnect after its end is answered by 204."""
    run_id = user.run({"count": 20, "delay_ms": 20}, {"say": "\u2028 data: x\r\nid: 999\n\n"})

    follow(page, user, run_id, api.url)

    assert sent(user, run_id) == seen_at_the_end(page)
    assert page.evaluate("errors") >= 1


def test_a_browser_resumes_after_cut_connections(page: Page, api: WebServer, user: Caller) -> None:
    """Four cuts at any byte, orderly ones and resets: each event exactly once, in order."""
    run_id = user.run(LONG)
    with cutting_proxy(api.settings.port, cuts=4, longest=4000, seed=5) as proxy:
        follow(page, user, run_id, proxy.url)
        seen = seen_at_the_end(page)

    assert 0 == proxy.cuts_left
    assert sent(user, run_id) == seen


def test_a_browser_can_listen_for_one_type(page: Page, api: WebServer, user: Caller) -> None:
    """With `named=true` an event is found by `addEventListener` of its type."""
    run_id = user.run({"say": "one two"})
    user.ended(run_id)

    follow(page, user, run_id, api.url, "run.completed")

    assert sent(user, run_id)[-1:] == seen_at_the_end(page)


def test_a_browser_is_refused_without_its_ticket(page: Page, api: WebServer, user: Caller) -> None:
    """401 ends the EventSource: it does not ask for ever."""
    run_id = user.run("Hi")
    page.evaluate("url => follow(url, 'message')", f"{api.url}/v1/runs/{run_id}/events?ticket=none")

    assert [] == seen_at_the_end(page)


EXECUTE_CALLS = """([base, runId, ticket]) => new Promise(resolve => {
  const source = new EventSource(`${base}/v1/runs/${runId}/events?ticket=${ticket}`)
  source.onmessage = async ({ data }) => {
    const event = JSON.parse(data)
    if (event.type !== "run.waiting_for_input") return
    source.close()
    const results = event.data.calls.map(call => ({
      tool_call_id: call.tool_call_id, output: { title: document.title, ...call.arguments },
    }))
    const response = await fetch(`${base}/v1/runs/${runId}/tool-results?ticket=${ticket}`, {
      method: "POST", headers: { "Content-Type": "application/json" },
      body: JSON.stringify(results),
    })
    resolve(response.status)
  }
})"""


def test_a_browser_executes_client_tools(page: Page, api: WebServer, user: Caller) -> None:
    """A page of another origin, with a ticket alone, gets the call and sends its result."""
    tool = {"name": "read_title", "description": "Read the title.", "client": True}
    declared = [{**tool, "parameters": {"type": "object"}}]
    calls = {"tool": "read_title", "args": {"n": 1}}
    run_id = user.run(calls, {"say": "ok"}, tools=declared)
    ticket = user.made(f"/v1/runs/{run_id}/stream-ticket", {"tool_results": True})["ticket"]

    status = page.evaluate(EXECUTE_CALLS, [api.url, run_id, ticket])

    assert 200 == status
    [result] = data_of(user.events(run_id), "tool.result")
    assert '{"title":"An app of somebody else","n":1}' == result["output"]


#: A page talks to an agent with a client token alone: create, stream by fetch, read the headers.
TALK = """async ([base, token]) => {
  const headers = {
    "Authorization": `Bearer ${token}`, "Content-Type": "application/json",
    "Accept": "text/event-stream", "X-Stainless-Lang": "js",
  }
  const body = JSON.stringify({ message: "Hi" })
  const created = await fetch(`${base}/v1/runs`, { method: "POST", headers, body })
  const text = await created.text()
  const location = created.headers.get("Location")
  const run = await (await fetch(base + location, { headers })).json()
  const refused = await fetch(`${base}/v1/me`, { headers })
  return [
    created.status, text.includes("run.completed"), run.status, refused.status,
    (await refused.json()).code, created.headers.get("X-Trace-Id").length,
  ]
}"""


def test_a_page_talks_to_an_agent_with_a_client_token(
    page: Page, api: WebServer, user: Caller
) -> None:
    """A page of another origin gets preflights, a stream by fetch, headers, and errors that it may
    read.
    """
    scopes = ["data.runs.read", "data.runs.write", "data.threads.write"]
    token = user.made("/v1/client-tokens", {"end_user_id": "ann", "scopes": scopes})["token"]

    talked = page.evaluate(TALK, [api.url, token])

    assert [201, True, "completed", 403, "auth.forbidden", 32] == talked


def test_a_page_of_an_origin_that_is_not_listed_reads_nothing(
    browser: Browser, api: WebServer, user: Caller
) -> None:
    """The browser refuses the page the response, and sends no request that needs a preflight."""
    token = user.made("/v1/client-tokens", {"end_user_id": "ann", "scopes": ["data.runs.write"]})
    with app_page() as other:
        page = browser.new_page()
        page.goto(other)
        for call in (
            "([base]) => fetch(`${base}/healthz`).catch(error => error.name)",
            "([base, token]) => fetch(`${base}/v1/runs`, { method: 'POST', body: '{}',"
            " headers: { Authorization: `Bearer ${token}` } }).catch(error => error.name)",
        ):
            assert "TypeError" == page.evaluate(call, [api.url, token["token"]])
        page.close()
    assert [] == user.get("/v1/runs", end_user_id="ann", status="running")
