"""Messages that the console gives to a running agent, in a real Chromium."""

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_losses import (
    CREATES,
    TIMELINE,
    Loss,
    box,
    hold,
    killed,
    lose,
    refused,
    say,
    unreachable,
)
from tests.acceptance.test_console_settings import press, signed_in, until_held
from tests.caller import Caller, script
from tests.system import System

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
    # Not before the page knows the agents: until then nothing is sent.
    expect(page.get_by_role("button", name="Send")).to_be_enabled()
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


#: Text that arrives with an Enter within a frame, as from a fast writer on a busy machine.
TYPE_AND_ENTER = """(element, text) => {
  element.focus()
  element.value = text
  element.dispatchEvent(new InputEvent("input", { bubbles: true }))
  const enter = { key: "Enter", bubbles: true, cancelable: true }
  element.dispatchEvent(new KeyboardEvent("keydown", enter))
}"""


@pytest.mark.parametrize("begin", ["", "A part and "])
def test_enter_sends_what_was_typed_just_before_it(
    context: BrowserContext, user: Caller, begin: str
) -> None:
    """No character is lost between a key and the next frame of the page."""
    page = signed_in(context, user, f"/threads/{user.thread('hello')}")
    box(page).fill(begin)
    box(page).evaluate(TYPE_AND_ENTER, f"{begin}the rest.")
    expect(page.locator("article.said").last).to_have_text(f"{begin}the rest.")
    expect(box(page)).to_have_value("")


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
    context: BrowserContext, system: System, user: Caller
) -> None:
    """The run that has replaced it was cancelled before it began: no frame names the two."""
    thread_id = user.thread(script({"say": "The first half"}, {"hang": 600}))
    page = signed_in(context, user, f"/threads/{thread_id}")
    run_id = user.start(thread_id, route_id="scripted")
    expect(page.get_by_text("The first half", exact=True)).to_be_visible()
    body = {"route_id": "scripted", "on_busy": "rollback"}
    path = f"/v1/threads/{thread_id}/runs"
    with system.with_frozen_worker():  # the run would begin as soon as the first one has ended
        user.cancel(user.made(path, body)["run_id"])
    user.ended(run_id)

    expect(page.locator("article.run")).to_have_count(0)


@pytest.mark.parametrize("earlier", ["enqueue", "steer"])
@pytest.mark.parametrize("first", [killed, unreachable])
def test_a_message_that_came_back_stops_the_agent_once_that_is_chosen(
    context: BrowserContext, user: Caller, first: Loss, earlier: str
) -> None:
    """It is there once, and answered, even if it had arrived with the choice before."""
    thread_id = user.thread(script({"hang": 600}))
    run_id = user.start(thread_id, route_id="scripted")
    user.until(run_id, "phase", "executing")
    page = signed_in(context, user, f"/threads/{thread_id}")
    lose(context, CREATES, first, refused(429))
    give(page, "Something else.", earlier)
    expect(page.get_by_role("alert")).to_contain_text("Come back later.")
    expect(box(page)).to_have_value("Something else.")
    page.get_by_label("When to send").select_option("interrupt")
    press(page, "Send")

    expect(page.locator("article.run").last).to_contain_text("You said: Something else.")
    expect(page.locator("article.said", has_text="Something else.")).to_have_count(1)
    expect(page.get_by_role("alert")).to_have_count(0)
    assert "cancelled" == user.ended(run_id)["status"]
    assert 2 == [role for role, *_ in user.messages(thread_id)].count("user")


def test_a_message_that_the_agent_has_read_is_answered_once_the_agent_is_stopped(
    context: BrowserContext, user: Caller
) -> None:
    """It came back from the service before, and no run would have it as its own."""
    thread_id = user.thread(script({"hang": 8}, CALL, {"hang": 600}))
    run_id = user.start(thread_id, route_id="scripted")
    user.until(run_id, "phase", "executing")
    page = signed_in(context, user, f"/threads/{thread_id}")
    lose(context, CREATES, killed, refused(429))
    text = script({"say": "Heard."}, {"hang": 600})
    give(page, text)
    expect(page.get_by_role("alert")).to_contain_text("Come back later.")
    expect(box(page)).to_have_value(text)
    user.seen(run_id, "run.steered")
    page.get_by_label("When to send").select_option("interrupt")
    press(page, "Send")

    answer = page.locator("article.run").last
    expect(answer).not_to_have_attribute("data-run", run_id)
    expect(answer).to_contain_text("Heard.")
    expect(page.locator("article.said")).to_have_count(2)
    expect(page.get_by_role("alert")).to_have_count(0)
    assert "cancelled" == user.ended(run_id)["status"]
    user.cancel(str(answer.get_attribute("data-run")))


def test_a_message_that_came_back_stops_no_agent_once_that_is_not_chosen(
    context: BrowserContext, user: Caller
) -> None:
    """It had not arrived when it was to stop the agent, and waits for its turn."""
    thread_id = user.thread(script({"hang": 600}))
    run_id = user.start(thread_id, route_id="scripted")
    user.until(run_id, "phase", "executing")
    page = signed_in(context, user, f"/threads/{thread_id}")
    lose(context, CREATES, unreachable, refused(429))
    give(page, "Something else.", "interrupt")
    expect(page.get_by_role("alert")).to_contain_text("Come back later.")
    page.get_by_label("When to send").select_option("enqueue")
    press(page, "Send")

    expect(page.get_by_text("Waits for the answer before")).to_be_visible()
    assert "executing" == user.get_run(run_id)["phase"]
    user.cancel(run_id)
