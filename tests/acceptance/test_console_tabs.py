"""The console in many tabs of a real Chromium, which keeps six connections for all of them."""

import pytest
from playwright.sync_api import BrowserContext, Page, Request, expect

from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_losses import box, say
from tests.acceptance.test_console_settings import signed_in
from tests.caller import Caller, script
from tests.waiting import eventually

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]
#: A headless browser has no tab that is hidden by another one.
HIDE = """() => {
  Object.defineProperty(document, "visibilityState", { configurable: true, get: () => "hidden" })
  document.dispatchEvent(new Event("visibilitychange"))
}"""
SHOW = """() => {
  delete document.visibilityState
  document.dispatchEvent(new Event("visibilitychange"))
}"""


def is_stream(request: Request) -> bool:
    return "/events" in request.url and request.method == "GET"


def stream_requests(page: Page) -> list[Request]:
    """Return a list to which the page's requests for streams are added."""
    made: list[Request] = []
    page.on("request", lambda one: made.append(one) if is_stream(one) else None)
    return made


def hide(page: Page) -> None:
    """Hide the tab until it has closed its stream."""
    with page.expect_event("requestfailed", is_stream):
        page.evaluate(HIDE)


def test_a_seventh_tab_opens_while_the_others_are_hidden(
    context: BrowserContext, user: Caller
) -> None:
    """It and the others send messages, and tabs read their threads again while they are hidden."""
    thread_id = user.thread()
    address = f"/threads/{thread_id}"
    pages = [signed_in(context, user, address)]
    for _ in range(5):
        expect(box(pages[-1])).to_be_visible()
        pages[-1].evaluate(HIDE)
        pages.append(context.new_page())
        pages[-1].goto(f"{user.url}/console#{address}")
    expect(box(pages[-1])).to_be_visible()
    pages[-1].evaluate(HIDE)
    seventh = context.new_page()
    seventh.goto(f"{user.url}/console#{address}", wait_until="commit")

    expect(box(seventh)).to_be_visible()
    say(seventh, script({"say": "Heard the seventh."}))
    expect(seventh.locator(".run .markdown")).to_have_text(["Heard the seventh."])
    eventually(lambda: len(user.kept(thread_id)) == 2)
    seventh.evaluate(HIDE)
    pages[0].evaluate(SHOW)
    say(pages[0], script({"say": "Heard the first."}))
    for page in (*pages, seventh):
        page.evaluate(SHOW)
        answers = page.locator(".run .markdown")
        expect(answers).to_have_text(["Heard the seventh.", "Heard the first."])
        expect(page.locator(".said")).to_have_count(2)
        page.evaluate(HIDE)
    assert 4 == len(user.kept(thread_id))


def test_a_tab_that_was_hidden_continues_where_it_was(
    context: BrowserContext, user: Caller
) -> None:
    """Events that came meanwhile, of the run that it showed and of the next one, are there once."""
    run_id = user.run({"count": 200, "delay_ms": 50}, route_id="scripted")
    thread_id = user.get_run(run_id)["thread_id"]
    page = signed_in(context, user, f"/threads/{thread_id}")
    answers = page.locator(".run .markdown")
    expect(answers).to_contain_text("2:")
    requests = stream_requests(page)
    hide(page)
    user.ended(run_id)
    user.ended(user.start(thread_id, message=script({"say": "The next answer."})))
    assert ([], 1) == (requests, answers.count())
    page.evaluate(SHOW)

    [_, (_, first, _), *_] = user.kept(thread_id)
    expect(answers).to_have_text([first, "The next answer."])
    expect(page.locator(".said")).to_have_count(2)
    expect(page.get_by_text("No connection")).to_have_count(0)
    assert 1 == len(requests)


def test_a_page_of_a_run_that_was_hidden_continues_where_it_was(
    context: BrowserContext, user: Caller
) -> None:
    """Its list has each event once."""
    run_id = user.run({"count": 200, "delay_ms": 50})
    page = signed_in(context, user, f"/runs/{run_id}")
    expect(page.locator(".event-seq").first).to_have_text("1")
    hide(page)
    count = len(user.events(run_id))
    page.evaluate(SHOW)

    expect(page.get_by_text("run.completed", exact=True)).to_be_visible()
    expect(page.get_by_role("heading", name=f"Events {count}", exact=True)).to_be_visible()


def test_a_tab_that_is_hidden_for_a_moment_keeps_its_stream(
    context: BrowserContext, user: Caller
) -> None:
    """A look at another tab costs no request."""
    page = signed_in(context, user, f"/threads/{user.thread('Hello')}")
    expect(page.locator(".said")).to_have_text("Hello")
    requests = stream_requests(page)
    for _ in range(8):
        page.evaluate(HIDE)
        page.wait_for_timeout(1_000)
        page.evaluate(SHOW)

    assert [] == requests
