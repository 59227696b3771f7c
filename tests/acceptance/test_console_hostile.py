"""Hostile texts on the console's newest pages, in a real Chromium: they stay text, and fit."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from playwright.sync_api import BrowserContext, Page, expect
from sqlalchemy import text

from arkloop.shared.accounts import operators
from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console import FORBIDDEN, PHONE
from tests.acceptance.test_console_settings import IS_WHOLE, signed_in
from tests.caller import Caller, script
from tests.hostile_texts import ALL, FOREIGN
from tests.system import System
from tests.tool_receiver import Reply, ToolReceiver
from tests.waiting import eventually
from tests.worker.providers.fake_vendor import status, vendor

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]
WORD = "w" * 10_000
EVERYTHING = "\n\n".join([*ALL, WORD])
#: For a name: an element, an image of elsewhere, and text that is turned around.
NAME = f"<img src=https://{FOREIGN}/n.png onerror=alert(1)> \u202egnp.exe"
PRINTABLE = f"<img src=https://{FOREIGN}/n.png onerror=alert(1)>"
ODD = Path(__file__).parents[1] / "worker" / "mcp" / "odd_mcp_server.py"
#: Attributes that people see or hear, with a character that turns text around.
TURNED = """[...document.querySelectorAll("*")].filter((element) =>
  ["title", "aria-label", "alt", "placeholder"].some((name) =>
    /[\\u202A-\\u202E\\u2066-\\u2069]/.test(element.getAttribute(name) ?? ""))
).map((element) => element.outerHTML.slice(0, 200))"""

#: What is wider than the page, and is not in a box of its own that scrolls.
WIDE = """[...document.querySelectorAll("body *")].filter((element) => {
  const { right } = element.getBoundingClientRect()
  if (right <= document.documentElement.clientWidth + 1) return false
  for (let box = element.parentElement; box; box = box.parentElement)
    if (getComputedStyle(box).overflowX !== "visible" && box.tagName !== "MAIN") return false
  return !element.matches(".sr, .sr *, svg *")
}).map((element) => element.outerHTML.slice(0, 200))"""


class Watch:
    """A watch over the pages of a context: what they do that no text may make them do."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.happened: list[str] = []
        self._url = url
        own = (url, "data:")
        context.on(
            "request", lambda r: None if r.url.startswith(own) else self.happened.append(r.url)
        )
        context.on("dialog", lambda dialog: (self.happened.append("dialog"), dialog.dismiss()))

    def open(self, page: Page, address: str, *presses: str) -> None:
        """Open an address, press what the selectors find, and look at the page."""
        page.goto(f"{self._url}/console#{address}")
        expect(page.locator("main h1").first).to_be_visible()
        expect(page.locator(".loading")).to_have_count(0)
        for selector in presses:
            for button in page.locator(selector).all()[:20]:
                button.click()
            expect(page.locator(".loading")).to_have_count(0)
        self.look(page, address)

    def look(self, page: Page, name: str) -> None:
        assert [] == page.evaluate("violations"), name
        assert [] == page.evaluate(FORBIDDEN), name
        assert [] == page.evaluate(TURNED), name
        assert "\u202e" not in page.locator("body").inner_text(), name
        for size in (PHONE, {"width": 1280, "height": 800}):
            page.set_viewport_size(size)  # type: ignore[arg-type]  # Playwright's
            for _ in range(300):  # charts follow the page's width a moment later
                if page.evaluate(IS_WHOLE):
                    break
                page.wait_for_timeout(100)
            assert page.evaluate(IS_WHOLE), (name, size, page.evaluate(WIDE)[:5])
        assert [] == self.happened, name


@pytest.fixture(scope="module")
def owner(system: System) -> Caller:
    """The owner of an org with a hostile name, who operates the service, too."""
    caller = system.caller()
    with system.connections.transaction() as tx:
        operators.add(tx, UUID(str(caller.id)))
        rename = text("UPDATE orgs SET name = :name WHERE id = :id")
        tx.sql.execute(rename, {"id": caller.org_id, "name": NAME})
    persona = {"key": "loud", "route_id": "scripted", "tools": ["calculator"]}
    caller.made("/v1/personas", {**persona, "system_prompt": EVERYTHING[:30_000]})
    return caller


@pytest.fixture(scope="module")
def receiver() -> Iterator[ToolReceiver]:
    reply = Reply(EVERYTHING, status=500, content_type="text/html")
    with ToolReceiver(lambda _: reply) as made:
        yield made


def test_prompts_events_and_errors_are_text(
    context: BrowserContext, system: System, owner: Caller
) -> None:
    """What was sent, in parts and as it was; a replay; a file's name; a vendor's words."""
    watch = Watch(context, owner.url)
    steps = [
        {"think": EVERYTHING},
        {"say": EVERYTHING},
        {"tool": "calculator", "args": {"expression": WORD, NAME: EVERYTHING}},
        {"say": EVERYTHING},
    ]
    run_id = owner.run(script(*steps), persona_id="loud", metadata={"x": NAME, "y": "y" * 500})
    file = {"file": (f"{PRINTABLE}.txt".replace("/", "_"), b"text of a file")}
    file_id = owner.http.post("/v1/files", files=file).json()["id"]
    thread = owner.thread(title=NAME, end_user_id=PRINTABLE)
    parts = [{"type": "text", "text": EVERYTHING}, {"type": "file", "file_id": file_id}]
    owner.made(f"/v1/threads/{thread}/messages", {"content": parts})
    attached = owner.start(thread, persona_id="loud")
    with vendor(*[status("400 Bad Request", message=EVERYTHING)] * 9) as fake:
        models = [{"model": PRINTABLE}]
        body = {"name": PRINTABLE, "kind": "openai", "base_url": fake.url, "models": models}
        route = owner.made("/v1/llm-providers", body)["models"][0]["id"]
        failed = owner.run("Hello", route_id=route)
        assert "failed" == owner.ended(failed)["status"], owner.get_run(failed)
    for one in (run_id, attached):
        assert "completed" == owner.ended(one)["status"]

    page = signed_in(context, owner, "/runs")
    for one in (run_id, attached, failed):
        watch.open(page, f"/runs/{one}", ".event")
        page.get_by_role("button", name="Step 1").first.click()
        prompt = page.locator(".prompt")
        expect(prompt).to_contain_text("Hello" if one == failed else ALL[0])
        watch.look(page, f"prompt of {one}")
        prompt.get_by_role("button", name="Show the body as sent").click()
        [sent] = owner.get(f"/v1/runs/{one}/prompts", number=1)
        shown = prompt.locator("code").inner_text()
        assert shown.startswith(sent["body"][:500].partition("\u202e")[0])
        watch.look(page, f"body of {one}")
    page.goto(f"{owner.url}/console#/runs/{run_id}")
    page.get_by_role("button", name="Replay").click()
    page.get_by_role("slider", name="Moment of the run").press("End")
    watch.look(page, "replay")
    watch.open(page, f"/threads/{thread}")
    expect(page.locator(".said")).to_contain_text("_foreign.example")
    for address in ("/threads", "/runs", "/providers", "/usage"):
        watch.open(page, address)


def test_what_servers_of_others_say_is_text(
    context: BrowserContext, owner: Caller, receiver: ToolReceiver, tmp_path: Path
) -> None:
    """An MCP server's tools, a webhook's response, an HTTP tool; names, in lists and dialogs."""
    watch = Watch(context, owner.url)
    schema = {"type": "object", "title": NAME}
    described = [{"name": "look", "description": EVERYTHING, "inputSchema": schema}]
    (tmp_path / "descriptions.json").write_text(json.dumps(described))
    command = [sys.executable, str(ODD), str(tmp_path)]
    config = {"name": "odd", "transport": "stdio", "command": command}
    server = owner.made("/v1/mcp-configs", config)["id"]
    eventually(lambda: "look" in owner.http.get(f"/v1/mcp-configs/{server}/tools").text)
    hook = owner.made("/v1/webhook-endpoints", {"url": receiver.url, "description": NAME})["id"]
    owner.made(f"/v1/webhook-endpoints/{hook}:test")
    path = f"/v1/webhook-endpoints/{hook}/deliveries"
    eventually(lambda: owner.get(path)[0]["response_status"] == 500)
    tool = {"name": "look", "description": EVERYTHING[:1_000], "url": receiver.url}
    owner.made("/v1/tools", tool)
    owner.api_key(name=NAME)
    owner.made(f"/v1/orgs/{owner.org_id}/invitations", {"name": NAME, "role": "member"})

    page = signed_in(context, owner, "/keys")
    watch.open(page, f"/mcp/{server}")
    page.get_by_role("row").filter(has_text="look").get_by_role("button").click()
    expect(page.get_by_role("dialog")).to_contain_text("onerror")
    watch.look(page, "a tool of a server")
    watch.open(page, f"/webhooks/{hook}")
    page.get_by_role("table", name="Deliveries").get_by_role("button").first.click()
    expect(page.get_by_role("dialog")).to_contain_text("500")
    watch.look(page, "a delivery")
    for address in ("/mcp", "/webhooks", "/tools", "/keys", "/members", "/audit", "/sessions"):
        watch.open(page, address)
    for address in ("/personas", "/personas/loud", "/personas/loud?publish=1", "/limits"):
        watch.open(page, address)


def test_operators_see_text(context: BrowserContext, system: System, owner: Caller) -> None:
    """The name of an org in queues, leases and stuck runs, and why one of its runs is stuck."""
    watch = Watch(context, owner.url)
    busy = owner.run({"count": 2_000, "delay_ms": 50}, persona_id="loud")
    owner.until(busy, "phase", "executing")
    page = signed_in(context, owner, "/queues")
    watch.open(page, "/queues")
    orgs = page.get_by_role("table", name="Queue by organization")
    expect(orgs).to_contain_text(PRINTABLE)
    for address in ("/workers", "/leases"):
        watch.open(page, address)
        expect(page.get_by_role("table")).to_have_count(1)
    owner.cancel(busy)
    owner.ended(busy)
    with system.without_worker():
        queued = owner.run("Hello", persona_id="loud")
        with system.connections.transaction() as tx:
            old = text("UPDATE runs SET queued_at = now() - interval '5 minutes' WHERE id = :id")
            tx.sql.execute(old, {"id": queued})
        watch.open(page, "/stuck")
        expect(page.get_by_role("table")).to_contain_text(PRINTABLE)
        page.get_by_role("button", name="Why is run").first.click()
        expect(page.get_by_role("dialog")).to_contain_text("Queued since")
        watch.look(page, "why a run is stuck")
    owner.ended(queued)  # the worker is back, for the tests that come next
