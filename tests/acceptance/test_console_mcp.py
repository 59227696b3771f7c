"""MCP servers in the console, in a real Chromium: what is approved, and what a discovery finds."""

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect

from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_settings import press, row, signed_in, until_held
from tests.caller import Caller
from tests.closed_port import closed_port
from tests.system import System
from tests.tool_receiver import Received, Reply, ToolReceiver

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]


def answer(request: Received) -> Reply:
    """Respond as an MCP server with one tool."""
    asked = request.message
    if "id" not in asked:
        return Reply(status=202)
    result = {"tools": [{"name": "find", "description": "Find it.", "inputSchema": {}}]}
    if asked["method"] == "initialize":
        server = {"name": "archive", "version": "1"}
        version = asked["params"]["protocolVersion"]
        result = {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": server}
    return Reply({"jsonrpc": "2.0", "id": asked["id"], "result": result})


@pytest.fixture
def server() -> Iterator[ToolReceiver]:
    with ToolReceiver(answer) as made:
        yield made


@pytest.fixture
def user(system: System) -> Caller:
    """The owner of an org without servers."""
    return system.caller()


def add(page: Page, url: str) -> None:
    press(page, "Add server")
    form = page.get_by_role("dialog")
    form.get_by_label("Name").fill("archive")
    form.get_by_label("Address").fill(url)
    press(form, "Add server")


def test_the_first_tools_are_approved_with_their_server(
    context: BrowserContext, user: Caller, server: ToolReceiver
) -> None:
    """The pages say so before somebody adds one, and beside its tools."""
    page = signed_in(context, user, "/mcp")
    expect(page.locator(".lead")).to_contain_text("are approved with it")
    press(page, "Add server")
    form = page.get_by_role("dialog")
    expect(form).to_contain_text("are approved with it")
    press(form, "Cancel")
    add(page, server.url)

    expect(row(page, "find")).to_contain_text("approved")
    expect(page.get_by_text("The first ones are approved with the server.")).to_be_visible()


def test_a_server_whose_address_is_corrected_is_shown_as_connected(
    context: BrowserContext, user: Caller, server: ToolReceiver
) -> None:
    """The page follows the discovery that a change asks for, and so that of *Discover again*. A
    server that has never been reached is not said to have no tools.
    """
    page = signed_in(context, user, "/mcp")
    add(page, f"http://127.0.0.1:{closed_port()}/tool")
    badge = page.locator(".head .badge")
    expect(badge).to_have_text("unreachable", timeout=30_000)
    expect(page.locator(".empty")).to_contain_text("Its tools have not been read yet.")
    press(page, "Edit")
    form = page.get_by_role("dialog")
    form.get_by_label("Address").fill(server.url)
    press(form, "Save")
    expect(badge).to_have_text("connected", timeout=30_000)
    expect(row(page, "find")).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)

    server.answer = lambda _: Reply(status=503)
    press(page, "Discover again")
    expect(badge).to_have_text("unreachable", timeout=30_000)
    expect(page.get_by_role("alert")).to_contain_text("503")
    server.answer = answer
    press(page, "Discover again")
    expect(badge).to_have_text("connected", timeout=30_000)
    expect(page.get_by_role("alert")).to_have_count(0)


def test_an_outcome_that_takes_its_time_is_awaited(
    context: BrowserContext, user: Caller, server: ToolReceiver
) -> None:
    """The page says that a worker asks the server, and shows no error of before meanwhile."""
    server.answer = lambda _: Reply(status=503)
    page = signed_in(context, user, "/mcp")
    add(page, server.url)
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("503", timeout=30_000)
    [config] = user.get("/v1/mcp-configs")
    shown = {**config, "tried_at": None}

    def await_it(route: Route) -> None:
        route.fulfill(json=shown)

    page.route(f"**/v1/mcp-configs/{config['id']}", await_it)
    press(page, "Discover again")
    expect(page.get_by_text("A worker is asking the server for its tools.")).to_be_visible()
    expect(page.locator(".head .badge")).to_have_text("being discovered")
    expect(alert).to_have_count(0)
    shown["tried_at"] = config["tried_at"]
    expect(alert).to_contain_text("503")


def test_tools_that_arrive_while_a_dialog_is_open_are_not_approved_by_it(
    context: BrowserContext, user: Caller, server: ToolReceiver
) -> None:
    """The service gets the tools and hashes that were shown when the dialog was opened, though the
    response of a request that was sent before arrives meanwhile.
    """
    config = user.made("/v1/mcp-configs", {"name": "archive", "url": server.url})
    path = f"**/v1/mcp-configs/{config['id']}"
    shown = {**config, "discovery_error": None, "tried_at": None}
    about = {"description": "Do it.", "parameters": {}, "is_approved": False, "is_present": True}
    about |= {"problem": None, "changed": False, "seen_at": config["created_at"]}
    tools = [{**about, "name": name, "hash": f"{name} 1"} for name in ("copy", "move")]
    held: list[Route] = []
    sent: list[Any] = []

    def hold_one(route: Route) -> None:
        if shown["tried_at"] and not held:
            held.append(route)
        else:
            route.fulfill(json=tools)

    def approve(route: Route) -> None:
        sent.append(route.request.post_data_json)
        route.fulfill(json=[])

    context.route(path, lambda route: route.fulfill(json=shown))
    context.route(f"{path}/tools?*", hold_one)
    context.route(f"{path}/tools:approve", approve)
    page = signed_in(context, user, f"/mcp/{config['id']}")
    expect(page.get_by_role("button", name="Approve all 2")).to_be_visible()
    shown["tried_at"] = config["created_at"]
    until_held(page, held, 1)
    press(page, "Approve all 2")
    tools[1]["hash"] = "move 2"
    tools.append({**about, "name": "wipe", "hash": "wipe 1"})
    held[0].fulfill(json=tools)
    expect(page.locator("tr", has_text="wipe")).to_be_visible()
    dialog = page.get_by_role("dialog", name="Approve 2 tools?")
    press(dialog, "Approve all")
    expect(page.get_by_role("dialog")).to_have_count(0)

    read = [{"name": name, "hash": f"{name} 1"} for name in ("copy", "move")]
    assert [{"tools": read}] == sent
