"""The console in a real Chromium: addresses of runs with filters that are none."""

import pytest
from playwright.sync_api import BrowserContext, expect

from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_settings import signed_in
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
