"""Pages of the console, in a real Chromium, about something that somebody else has deleted."""

from typing import Any

import pytest
from playwright.sync_api import APIResponse, BrowserContext, Route, expect

from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_fresh_lists import TICK, delivery
from tests.acceptance.test_console_losses import not_found
from tests.acceptance.test_console_settings import press, signed_in, until_held
from tests.caller import Caller

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]
ENDPOINT = {"url": "https://shop.example.com/hooks", "event_types": ["run.completed"]}
SERVER = {"name": "archive", "url": "https://mcp.example.com/mcp"}
KINDS = pytest.mark.parametrize(
    ("collection", "body", "address", "what", "act"),
    [
        ("webhook-endpoints", ENDPOINT, "/webhooks", "endpoint", "Send test"),
        ("mcp-configs", SERVER, "/mcp", "server", "Discover again"),
    ],
    ids=["endpoint", "server"],
)


@KINDS
def test_what_is_gone_already_is_deleted(
    context: BrowserContext,
    owner: Caller,
    collection: str,
    body: dict[str, Any],
    address: str,
    what: str,
    act: str,
) -> None:
    """Its page leads to the list. A proxy that does not know the path has deleted nothing."""
    made = owner.made(f"/v1/{collection}", body)
    path = f"/v1/{collection}/{made['id']}"
    page = signed_in(context, owner, f"{address}/{made['id']}")
    expect(page.get_by_role("button", name=act)).to_be_enabled()
    page.get_by_role("button", name="Delete").click()
    dialog = page.get_by_role("dialog")
    context.route(f"**{path}", not_found)
    press(dialog, f"Delete {what}")
    expect(dialog.get_by_role("alert")).to_contain_text("No such endpoint.")
    context.unroute(f"**{path}")
    assert owner.http.delete(path).is_success
    press(dialog, f"Delete {what}")

    expect(page.get_by_role("button", name=f"Add {what}")).to_be_visible()
    expect(page.get_by_role("dialog").or_(page.get_by_role("alert"))).to_have_count(0)


@KINDS
@pytest.mark.parametrize("opened", ["Edit", "Delete"])
def test_no_timer_closes_an_open_dialog(
    context: BrowserContext,
    owner: Caller,
    collection: str,
    body: dict[str, Any],
    address: str,
    what: str,
    act: str,
    opened: str,
) -> None:
    """What somebody types stays, and what was deleted is reported as deleted, though the page would
    be read again before the response arrives.
    """
    made = owner.made(f"/v1/{collection}", body)
    path = f"/v1/{collection}/{made['id']}"
    deletions: list[Route] = []
    responses: list[APIResponse] = []

    def handle(route: Route) -> None:
        response = route.fetch()
        if route.request.method == "DELETE":
            responses.append(response)
            deletions.append(route)
        elif response.ok:
            route.fulfill(json=response.json() | {"tried_at": None})
        else:
            route.fulfill(response=response)

    context.route(f"**{path}", handle)
    context.route("**/deliveries?*", lambda route: route.fulfill(json=[delivery(1)]))
    page = signed_in(context, owner, f"{address}/{made['id']}")
    expect(page.get_by_role("button", name=act)).to_be_enabled()
    expect(page.locator("#main .badge.live")).to_be_visible()
    page.get_by_role("button", name=opened).click()
    dialog = page.get_by_role("dialog")
    page.wait_for_timeout(500)  # for a reading that began before
    if opened == "Edit":
        dialog.get_by_label("Address").fill("https://other.example.com/")
        assert owner.http.delete(path).is_success
    else:
        press(dialog, f"Delete {what}")
        until_held(page, deletions, 1)
    page.evaluate(TICK)
    page.wait_for_timeout(500)
    expect(dialog).to_be_visible()
    if opened == "Edit":
        expect(dialog.get_by_label("Address")).to_have_value("https://other.example.com/")
        press(dialog, "Cancel")
        expect(page.get_by_role("alert")).to_contain_text("not found")
    else:
        deletions[0].fulfill(response=responses[0])
        expect(page.get_by_role("button", name=f"Add {what}")).to_be_visible()
        expect(page.get_by_role("alert")).to_have_count(0)


@KINDS
@pytest.mark.parametrize("by", ["button", "dialog"])
def test_what_is_gone_is_not_shown_any_more(
    context: BrowserContext,
    owner: Caller,
    collection: str,
    body: dict[str, Any],
    address: str,
    what: str,
    act: str,
    by: str,
) -> None:
    """Another change of it is refused; the page, with its status, would seem to be the present."""
    made = owner.made(f"/v1/{collection}", body)
    page = signed_in(context, owner, f"{address}/{made['id']}")
    expect(page.get_by_role("button", name=act)).to_be_enabled()
    assert owner.http.delete(f"/v1/{collection}/{made['id']}").is_success
    if by == "button":
        press(page, act)
    else:
        press(page, "Edit")
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("Address").fill("https://other.example.com/")
        press(dialog, "Save")
        expect(dialog.get_by_role("alert")).to_contain_text("not found")
        press(dialog, "Cancel")

    expect(page.get_by_role("button", name=act)).to_have_count(0)
    expect(page.locator("#main .badge")).to_have_count(0)
    expect(page.get_by_role("alert")).to_contain_text("not found")


@pytest.mark.parametrize("change", ["Delete", "Save"])
def test_a_thread_that_is_gone_leaves_the_list(
    context: BrowserContext, owner: Caller, change: str
) -> None:
    """It need not be deleted again; that it cannot be renamed is reported in its place."""
    thread_id = owner.thread(title="Old")
    page = signed_in(context, owner, f"/threads/{thread_id}")
    listed = page.get_by_role("region", name="Threads").get_by_text("Old")
    expect(listed).to_be_visible()
    press(page, "Rename" if change == "Save" else "Delete thread")
    assert owner.http.delete(f"/v1/threads/{thread_id}").is_success
    press(page.get_by_role("dialog"), change)

    expect(listed).to_have_count(0, timeout=5_000)  # the timer would read them later
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.get_by_role("alert")).to_have_count(1 if change == "Save" else 0)
