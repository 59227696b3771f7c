"""The console in a real Chromium: filters that are none, and errors of the filters before."""

import re

import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect

from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_fresh_lists import TICK
from tests.acceptance.test_console_losses import hold
from tests.acceptance.test_console_settings import go, press, signed_in, until_held
from tests.caller import Caller

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]


@pytest.mark.parametrize("name", ["constructor", "abc"])
def test_a_status_or_period_that_is_none_is_no_filter(
    context: BrowserContext, user: Caller, name: str
) -> None:
    """An address that somebody has written shows all runs, as the buttons say."""
    user.ended(user.run({"say": "Well."}))
    page = signed_in(context, user, f"/runs?status={name}&period={name}")
    expect(page.locator(".runs-table tbody tr").first).to_be_visible()

    expect(page.get_by_role("button", name="all")).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_label("Created")).to_have_value("")
    expect(page.get_by_role("alert")).to_have_count(0)


@pytest.mark.parametrize("name", ["parent_run_id", "api_key_id"])
def test_an_id_of_a_link_that_is_none_says_so_beside_its_button(
    context: BrowserContext, user: Caller, name: str
) -> None:
    """It has no field that would have to be opened, and goes with its filter."""
    page = signed_in(context, user, f"/runs?{name}=abc")
    alert = page.get_by_role("region", name="Filters").get_by_role("alert")
    expect(alert).to_contain_text("must be a lower-case UUIDv7")
    expect(page.get_by_role("alert")).to_have_count(1)
    expect(page.get_by_label("Persona")).to_have_count(0)
    page.get_by_role("button", name="remove this filter").click()

    expect(page.get_by_role("alert")).to_have_count(0)


#: The path of a list, its address with a filter, and the button that reads more of it.
LISTS = {
    "runs": ("/runs?status=completed", "Older runs"),
    "threads": ("/threads?end_user_id=ada", "Older threads"),
    "audit-logs": ("/audit?action=api_key.created", "Show more"),
}


def open_list(context: BrowserContext, user: Caller, name: str) -> Page:
    """Open a list with a filter, and with pages of one row."""

    def shorten(route: Route) -> None:
        route.continue_(url=re.sub(r"limit=\d+", "limit=1", route.request.url))

    for _ in range(2):
        thread_id = user.thread("Hello", end_user_id="ada")
        user.ended(user.start(thread_id, route_id="scripted"))
        user.api_key()
    page = signed_in(context, user, "/keys")
    context.route(f"**/v1/{name}?*", shorten)
    go(page, LISTS[name][0])
    return page


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("is_late", [False, True], ids=["early", "late"])
def test_an_error_of_more_rows_goes_with_their_filter(
    context: BrowserContext, user: Caller, name: str, is_late: bool
) -> None:
    """Without the filter nothing has failed, nor when the response arrives later."""
    address, button = LISTS[name]
    page = open_list(context, user, name)
    held = hold(context, f"**/v1/{name}?*before=*")
    press(page, button)
    until_held(page, held, 1)
    if not is_late:
        held[0].abort()
        expect(page.get_by_role("alert")).to_be_visible()
    with page.expect_response(re.compile(rf"/v1/{name}\?limit=\d+$")):
        go(page, address.partition("?")[0])
    expect(page.get_by_role("button", name=button)).to_be_visible()
    if is_late:
        held[0].fulfill(status=500, json={"message": "It failed."})
        page.wait_for_timeout(500)

    expect(page.get_by_role("alert")).to_have_count(0)


@pytest.mark.parametrize("name", ["runs", "threads"])
def test_an_error_of_more_rows_stays_while_the_timer_reads(
    context: BrowserContext, user: Caller, name: str
) -> None:
    """The filter is the same, and so is the list."""
    page = open_list(context, user, name)
    alert = page.get_by_role("alert")
    context.route(f"**/v1/{name}?*before=*", lambda route: route.abort())
    press(page, LISTS[name][1])
    expect(alert).to_be_visible()
    with page.expect_response(f"**/v1/{name}?*"):
        page.evaluate(TICK)
    page.wait_for_timeout(500)

    expect(alert).to_be_visible()


def test_the_button_for_more_threads_is_busy_until_its_response(
    context: BrowserContext, user: Caller
) -> None:
    """The timer reads the first page meanwhile; a second click would ask for the same threads."""
    page = open_list(context, user, "threads")
    held = hold(context, "**/v1/threads?*before=*")
    press(page, "Older threads")
    until_held(page, held, 1)
    with page.expect_response("**/v1/threads?*"):
        page.evaluate(TICK)
    page.wait_for_timeout(500)

    expect(page.get_by_role("button", name="Older threads")).to_be_disabled()
