"""Messages that the console gives to a running agent, in a real Chromium."""

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_settings import signed_in
from tests.caller import Caller, script

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]
CALL = {"tool": "calculator", "args": {"expression": "6*7"}}
#: What was said, and the runs, in the order of the page.
ENTRIES = "article.said, article.run"


@pytest.mark.parametrize("is_delivered", [True, False])
def test_a_message_for_the_running_agent_stays_in_sight(
    context: BrowserContext, user: Caller, is_delivered: bool
) -> None:
    """It stands last in every tab, and before its answer when the run has ended."""
    thread_id = user.thread(script({"hang": 15 if is_delivered else 600}, CALL))
    tabs = [signed_in(context, user, f"/threads/{thread_id}"), context.new_page()]
    tabs[1].goto(tabs[0].url)
    expect(tabs[1].locator(ENTRIES)).to_have_count(1)
    user.start(thread_id, route_id="scripted")
    give(tabs[0], "One more thing.")

    for page in tabs:
        expect(page.locator(ENTRIES)).to_have_count(3)
        expect(page.locator(ENTRIES).last).to_have_text("One more thing.")
    if not is_delivered:
        tabs[1].get_by_role("button", name="Stop").click()
    for page in tabs:
        expect(page.locator(ENTRIES)).to_have_count(3 if is_delivered else 4)
        answer = page.locator(ENTRIES).last
        expect(answer).to_contain_text("You said: One more thing.", timeout=60_000)
        expect(page.locator(ENTRIES).nth(-2)).to_have_text("One more thing.")


def give(page: Page, text: str) -> None:
    """Give the running agent a message."""
    page.get_by_label("When to send").select_option("steer")
    page.get_by_label("Message", exact=True).fill(text)
    page.get_by_role("button", name="Send").click()
