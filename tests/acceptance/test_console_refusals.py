"""Refusals in the console, in a real Chromium: what it says, and who can change it."""

import pytest
from playwright.sync_api import BrowserContext, expect

from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_losses import say
from tests.acceptance.test_console_settings import go, press, signed_in
from tests.caller import Caller
from tests.system import System

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]


def test_an_org_without_credits_or_budget(context: BrowserContext, system: System) -> None:
    """The page says what is used up: the operator grants credits, an admin raises a budget."""
    without_credits, without_budget = system.newcomer(), system.caller()
    limits = {"max_cost_usd_per_month": 0}
    assert without_budget.http.put("/v1/budget", json=limits).is_success
    for user, text in (
        (without_credits, "The organization has no credits left; the operator grants them."),
        (
            without_budget,
            "The monthly budget of the organization is used up; an admin can raise it.",
        ),
    ):
        page = signed_in(context, user, "/threads/new")
        page.get_by_label("Route", exact=True).select_option("scripted")
        say(page, "Hello")
        expect(page.get_by_role("alert")).to_have_text(text)
        context.clear_cookies()
        page.close()


def test_a_persona_names_the_permission_that_it_requires(
    context: BrowserContext, user: Caller
) -> None:
    """It is that of the list of personas."""
    page = context.new_page()
    page.goto(f"{user.url}/console#/sign-in?with=key")
    page.get_by_label("API key").fill(user.api_key(scopes=["data.threads.read"])[1])
    page.get_by_role("button", name="Sign in", exact=True).click()
    expect(page.get_by_role("navigation")).to_be_visible()
    for address in ("/personas", "/personas/assistant"):
        go(page, address)
        expect(page.get_by_role("heading", level=1)).to_have_text("Personas")
        expect(page.locator(".empty")).to_contain_text("the permission data.runs.read.")


def test_a_page_names_the_permission_that_it_requires(
    context: BrowserContext, system: System, user: Caller
) -> None:
    """Owners and admins give those of the org, the operator of the service their own."""
    page = signed_in(context, system.colleague(user), "/keys")
    for address in ("/webhooks", "/audit"):
        go(page, address)
        expect(page.locator(".empty")).to_contain_text("permission admin. An owner or admin of")
    for address in ("/queues", "/workers", "/leases", "/stuck"):
        go(page, address)
        expect(page.locator(".empty")).to_contain_text("permission operator. Ask the operator")


def test_a_key_as_the_list_shows_it_is_not_valid(context: BrowserContext, user: Caller) -> None:
    """It ends with a character that a browser sends in no header."""
    page = context.new_page()
    page.goto(f"{user.url}/console#/sign-in?with=key")
    for key in ("al_44lVpD…", "al_44lVpD"):
        page.get_by_label("API key").fill(key)
        press(page, "Sign in")
        expect(page.get_by_role("alert")).to_have_text("This API key is not valid.")
        page.reload()


def test_a_wrong_field_that_is_folded_is_opened(context: BrowserContext, user: Caller) -> None:
    """The field has the focus, and the reason below it."""
    page = signed_in(context, user, "/tools")
    press(page, "Add tool")
    form = page.get_by_role("dialog")
    form.get_by_label("Name").fill("order_status")
    form.get_by_label("Description").fill("Look up an order.")
    form.get_by_label("Address").fill("https://shop.example.com/order")
    summary = form.get_by_text("Timeout and headers")
    summary.click()
    form.get_by_label("Headers").fill("no colon")
    summary.click()
    expect(form.get_by_label("Headers")).to_be_hidden()
    press(form, "Add tool")

    expect(form.get_by_label("Headers")).to_be_focused()
    expect(form.get_by_role("alert")).to_contain_text("one header a line")
