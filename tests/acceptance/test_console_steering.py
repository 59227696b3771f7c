"""Messages that the console gives to a running agent, in a real Chromium."""

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_losses import CREATES, TIMELINE, box, hold, say
from tests.acceptance.test_console_settings import press, signed_in, until_held
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


def test_a_message_that_arrives_takes_no_focus(context: BrowserContext, user: Caller) -> None:
    """What is typed meanwhile stays in its field; after a click on *Send* the box has the focus."""
    ask = {"tool": "ask_user", "args": {"question": "Which city?"}}
    run_id = user.run(ask, {"say": "Thank you."}, route_id="scripted")
    page = signed_in(context, user, f"/threads/{user.get_run(run_id)['thread_id']}")
    answer = page.get_by_label("Your answer")
    expect(answer).to_be_visible()
    held = hold(context, CREATES)
    box(page).fill("And a hotel.")
    box(page).press("Enter")
    until_held(page, held, 1)
    answer.focus()
    page.keyboard.type("Rome, ")
    with page.expect_response(TIMELINE):
        held.pop().continue_()
    expect(page.locator("article.said")).to_have_count(2)
    page.wait_for_timeout(300)
    page.keyboard.type("not Paris")
    expect(answer).to_have_value("Rome, not Paris")

    box(page).fill("And a car.")
    press(page, "Send")
    until_held(page, held, 1)
    expect(box(page)).not_to_be_focused()
    held.pop().continue_()
    expect(box(page)).to_be_focused()
    user.cancel(run_id)


def give(page: Page, text: str, how: str = "steer") -> None:
    """Send a message to the running agent, or in its place."""
    page.get_by_label("When to send").select_option(how)
    say(page, text)


def test_an_interrupted_answer_stays_in_sight(context: BrowserContext, user: Caller) -> None:
    """What the agent has said, and its calls, are part of the thread in every tab."""
    said = {"say": "Let me see. "}
    thread_id = user.thread(script(said, CALL, {"say": "The first half"}, {"hang": 600}))
    tabs = [signed_in(context, user, f"/threads/{thread_id}"), context.new_page()]
    tabs[1].goto(tabs[0].url)
    user.start(thread_id, route_id="scripted")
    for page in tabs:
        expect(page.get_by_text("The first half", exact=True)).to_be_visible()
    give(tabs[0], "Something else.", "interrupt")

    for page in tabs:
        expect(page.locator(ENTRIES)).to_have_count(4)
        expect(page.locator(ENTRIES).last).to_contain_text("You said: Something else.")
        for is_reloaded in (False, True):
            if is_reloaded:
                page.reload()
            for part in ("Let me see.", "calculator", "The first half", "Cancelled"):
                expect(page.locator(ENTRIES).nth(1)).to_contain_text(part)


def test_a_replaced_answer_disappears_without_another_run(
    context: BrowserContext, user: Caller
) -> None:
    """The run that has replaced it was cancelled before it began: no frame names the two."""
    thread_id = user.thread(script({"say": "The first half"}, {"hang": 600}))
    page = signed_in(context, user, f"/threads/{thread_id}")
    run_id = user.start(thread_id, route_id="scripted")
    expect(page.get_by_text("The first half", exact=True)).to_be_visible()
    body = {"route_id": "scripted", "on_busy": "rollback"}
    path = f"/v1/threads/{thread_id}/runs"
    user.cancel(user.made(path, body)["run_id"])
    user.ended(run_id)

    expect(page.locator("article.run")).to_have_count(0)
