"""Refusals in the console, in a real Chromium: what it says, and who can change it."""

import pytest
from playwright.sync_api import BrowserContext, expect

from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_losses import say
from tests.acceptance.test_console_settings import signed_in
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
