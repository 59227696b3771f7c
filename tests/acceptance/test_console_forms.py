"""The console's forms in a real Chromium, and the fields that they send."""

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_settings import go, press, signed_in
from tests.caller import Caller

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]


@pytest.fixture
def page(context: BrowserContext, user: Caller) -> Page:
    return signed_in(context, user, "/keys")


def test_a_second_version_of_a_persona_with_an_agent(page: Page, user: Caller) -> None:
    """The form sends no field that only the built-in loop uses, whatever its default is."""
    user.made("/v1/personas", {"key": "crew", "agent": "crew", "max_steps": 5})
    go(page, "/personas/crew")
    page.get_by_role("link", name="New version").click()
    page.get_by_label("Instructions").fill("Work together.")
    press(page, "Publish")

    expect(page.get_by_role("heading", name="Changes from version 1 to 2")).to_be_visible()
    made = user.get("/v1/personas/crew@2")
    assert ("crew", 5, "Work together.") == tuple(
        made[name] for name in ("agent", "max_steps", "system_prompt")
    )
