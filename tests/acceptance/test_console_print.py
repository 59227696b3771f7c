"""The console on paper, by a real Chromium: all of a page, in light colours."""

import re

import pytest
from playwright.sync_api import BrowserContext, Page, PdfMargins, expect

from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_settings import press, signed_in
from tests.caller import Caller

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]
#: The parts of a page that lie within a part that cuts them off, or lets them be scrolled to.
CUT_OFF = """[...document.querySelectorAll("main, main *")].filter(one => {
  const { overflowY } = getComputedStyle(one)
  return overflowY !== "visible" && one.scrollHeight > one.clientHeight + 1 && one.clientHeight > 1
}).map(one => one.className)"""


#: The width, in pixels, of A4 within the margins of a print dialog.
PAPER = 718
MARGIN: PdfMargins = {"top": "0.4in", "right": "0.4in", "bottom": "0.4in", "left": "0.4in"}


@pytest.fixture
def page(context: BrowserContext, user: Caller) -> Page:
    return signed_in(context, user, "/keys")


def pages(page: Page) -> int:
    """Return the number of pages that are printed."""
    return len(re.findall(rb"/Type\s*/Page\b", page.pdf(format="A4", margin=MARGIN)))


def lay_on_paper(page: Page) -> None:
    """Show the page as it is printed."""
    page.set_viewport_size({"width": PAPER, "height": 1_000})
    page.emulate_media(media="print")


def test_all_events_of_a_run_are_printed(page: Page, user: Caller) -> None:
    """The page of the run is as long as its list; an event that is open has all of its data."""
    calls = [{"tool": "calculator", "args": {"expression": f"{one}+1"}} for one in range(40)]
    run_id = user.run({"tools": calls}, {"say": "\n".join(str(one) for one in range(400))})
    assert "completed" == user.ended(run_id)["status"]
    page.goto(f"{user.url}/console#/runs/{run_id}")
    expect(page.locator(".event", has_text="run.completed")).to_be_visible()
    page.locator(".event", has_text="message.completed").last.click()
    height = page.locator("main").evaluate("main => main.scrollHeight")

    assert height / 1_500 <= pages(page)
    lay_on_paper(page)
    assert [] == page.evaluate(CUT_OFF)


def test_a_conversation_is_printed_without_what_is_operated(page: Page, user: Caller) -> None:
    """All messages are on paper, and neither the navigation nor the box to write in."""
    lines = "\n".join(f"line {number}" for number in range(60))
    thread_id = user.thread(*[lines] * 6, end_user_id="Ada")
    page.goto(f"{user.url}/console#/threads/{thread_id}")
    expect(page.locator(".said")).to_have_count(6)

    assert 5 <= pages(page)
    lay_on_paper(page)
    assert [] == page.evaluate(CUT_OFF)
    for hidden in ("navigation", "textbox"):
        expect(page.get_by_role(hidden)).to_have_count(0)
    expect(page.locator(".split-list")).to_be_hidden()
    expect(page.get_by_label("Back")).to_be_hidden()
    expect(page.get_by_title("End user")).to_be_visible()


def test_the_list_of_runs_is_printed_with_all_columns(page: Page, user: Caller) -> None:
    """Paper is as narrow as the windows for which the list leaves some of them out."""
    user.ended(user.run({"say": "Done."}))
    page.goto(f"{user.url}/console#/runs")
    expect(page.locator(".runs-table")).to_be_visible()
    headers = page.get_by_role("columnheader")
    columns = headers.all_inner_texts()
    assert "End user" in columns
    lay_on_paper(page)

    expect(headers).to_have_text(columns)


def test_a_report_of_usage_is_printed_with_its_period(page: Page, user: Caller) -> None:
    """The choice that was made is on paper, without the others and what to do for more numbers."""
    user.ended(user.run({"say": "Done."}))
    page.goto(f"{user.url}/console#/usage?days=90")
    expect(page.get_by_role("heading", name="By metadata")).to_be_visible()
    lay_on_paper(page)

    expect(page.get_by_role("group", name="Period")).to_have_text("90 days", use_inner_text=True)
    expect(page.get_by_role("group", name="Measure")).to_have_text("Cost", use_inner_text=True)
    for hint in ("Point at a day", "Enter a key"):
        expect(page.get_by_text(hint)).to_be_hidden()


def test_a_dialog_is_printed_with_all_of_its_fields(page: Page, user: Caller) -> None:
    """A field that is scrolled is as high as its text, and the dialog as both."""
    page.goto(f"{user.url}/console#/tools")
    press(page, "Add tool")
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Description").fill("\n".join(str(line) for line in range(200)))

    assert 3 <= pages(page)
    lay_on_paper(page)
    assert [] == page.evaluate(CUT_OFF)
    assert 0 <= dialog.evaluate("dialog => dialog.getBoundingClientRect().top")


def test_paper_is_light(page: Page) -> None:
    """The dark theme stays on the screen."""
    press(page, "Theme: system. Change to light")
    press(page, "Theme: light. Change to dark")
    colour = "main => getComputedStyle(main).backgroundColor"
    assert "rgb(255, 255, 255)" != page.locator("main").evaluate(colour)
    page.emulate_media(media="print")

    assert "rgb(255, 255, 255)" == page.locator("main").evaluate(colour)
