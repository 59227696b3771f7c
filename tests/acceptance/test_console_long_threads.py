"""Threads in the console, in a real Chromium, of which one page or frame does not have all."""

import pytest
from playwright.sync_api import BrowserContext, Locator, expect

from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_losses import hold
from tests.acceptance.test_console_settings import press, signed_in, until_held
from tests.caller import Caller

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]


def test_the_first_turns_of_a_long_run_stay(context: BrowserContext, user: Caller) -> None:
    """They were loaded before a message is sent, and the thread is read again."""
    fields = {"tools": ["calculator"], "route_id": "scripted"}
    user.made("/v1/personas", {"key": "long", **fields})
    turns = [
        step
        for number in range(10)
        for step in (
            {"say": f"turn {number} " + "lorem ipsum " * 170, "repeat": 60},
            {"tool": "calculator", "args": {"expression": f"{number}+1"}},
        )
    ]
    run_id = user.run(*turns, {"say": "The end."}, persona_id="long")
    thread = user.ended(run_id, seconds=60)["thread_id"]
    page = signed_in(context, user, f"/threads/{thread}")
    shown = page.locator(f'article[data-run="{run_id}"]').locator(".turn")
    older = page.get_by_role("button", name="Earlier messages")
    expect(page.get_by_text("The end.").first).to_be_visible()
    part = shown.count()
    assert part < 11
    older.click()
    expect(shown).to_have_count(11)
    expect(older).to_have_count(0)
    page.get_by_label("Message", exact=True).fill("Thanks")
    press(page, "Send")

    expect(page.locator(".said").last).to_have_text("Thanks")
    expect(page.locator("article[data-run]")).to_have_count(2)
    expect(shown).to_have_count(11)


def test_messages_that_a_frame_has_no_room_for_are_shown(
    context: BrowserContext, user: Caller
) -> None:
    """Another client has posted them; the frame of the run says that it has not all messages."""
    thread = user.thread()
    page = signed_in(context, user, f"/threads/{thread}")
    expect(page.get_by_text("Nothing said yet")).to_be_visible()
    path = f"/v1/threads/{thread}/messages"
    user.made(path, {"content": "The early one."})
    user.made(path, {"content": f"The long one. {'A' * 70_000}"})
    user.start(thread, route_id="scripted")

    said = page.locator(".said")
    expect(said.filter(has_text="The long one.")).to_be_visible()
    expect(said.filter(has_text="The early one.")).to_be_visible()


@pytest.mark.parametrize("scroll_top", [0, 20])
def test_what_was_read_stays_where_it_is_above_older_messages(
    context: BrowserContext, user: Caller, scroll_top: int
) -> None:
    """Older messages come above the first one that was shown, and do not push it out of sight."""
    thread = user.thread()
    path = f"/v1/threads/{thread}/messages"
    for number in range(60):
        user.made(path, {"content": f"Message {number}. " + "lorem ipsum " * 40})
    page = signed_in(context, user, f"/threads/{thread}")
    older = page.get_by_role("button", name="Earlier messages")
    first = page.locator(".said", has_text="Message 30.")
    older.scroll_into_view_if_needed()
    page.get_by_role("log").evaluate("(element, top) => element.scrollTop = top", scroll_top)
    expect(first).to_be_in_viewport()
    before = first.bounding_box()
    older.click()
    expect(page.locator(".said")).to_have_count(60)
    page.wait_for_timeout(300)

    after = first.bounding_box()
    assert before and after
    assert abs(before["y"] - after["y"]) < 60  # where the button was, which is gone

    grow(page.locator(".said").first)
    grown = first.bounding_box()
    assert grown
    assert abs(grown["y"] - after["y"]) < 5  # by the browser itself


def grow(said: Locator) -> None:
    """Make a message higher, as an image or a late font does."""
    said.evaluate("element => element.style.paddingTop = '400px'")
    said.page.wait_for_timeout(100)


def test_what_is_read_stays_where_it_is_below_one_short_older_message(
    context: BrowserContext, user: Caller
) -> None:
    """The browser keeps the place again when anything above it grows later."""
    thread = user.thread(*(f"Message {number}." for number in range(31)))
    page = signed_in(context, user, f"/threads/{thread}")
    older = page.get_by_role("button", name="Earlier messages")
    read = page.get_by_text("Message 9.")
    older.click()
    expect(page.locator(".said")).to_have_count(31)
    expect(older).to_have_count(0)
    page.get_by_role("log").evaluate("element => element.scrollTop = 300")
    page.wait_for_timeout(300)
    before = read.bounding_box()
    grow(page.locator(".said").first)

    after = read.bounding_box()
    assert before and after
    assert abs(after["y"] - before["y"]) < 5


#: Says in another tab that a thread has changed, as the tab in which somebody writes does.
ANNOUNCE = """id => {
  const channel = new BroadcastChannel("arkloop.threads")
  channel.postMessage({ thread_id: id })
  channel.close()
}"""


def test_no_message_is_missing_after_a_late_page_of_older_ones(
    context: BrowserContext, user: Caller
) -> None:
    """What is shown begins further down by then, as more was said than a page has."""
    thread = user.thread(*(f"Message {number}." for number in range(45)))
    page, other = signed_in(context, user, f"/threads/{thread}"), context.new_page()
    other.goto(f"{user.url}/console")
    said = page.locator(".said")
    older = page.get_by_role("button", name="Earlier messages")
    expect(said.first).to_have_text("Message 15.")
    held = hold(context, "**/timeline?*before=*")
    older.click()
    until_held(page, held, 1)
    for number in range(45, 80):
        user.say(thread, f"Message {number}.")
    other.evaluate(ANNOUNCE, thread)
    expect(said.first).to_have_text("Message 50.")
    held[0].continue_()
    context.unroute("**/timeline?*before=*")
    expect(older).not_to_have_attribute("aria-busy", "true")
    for count in (60, 80):
        older.click()
        expect(said).to_have_count(count)

    expect(said).to_have_text([f"Message {number}." for number in range(80)])
    expect(older).to_have_count(0)
