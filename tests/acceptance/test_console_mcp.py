"""MCP servers in the console, in a real Chromium: what is approved."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_settings import press, row, signed_in
from tests.caller import Caller
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
