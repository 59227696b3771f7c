"""The console in a real Chromium: where a page is scrolled to when people come to it."""

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_settings import go, signed_in, until
from tests.caller import Caller

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]
IS_LONG_AND_AT_END = """box => box && box.scrollHeight > 2000
  && box.scrollHeight - box.scrollTop - box.clientHeight < 120"""


def top(page: Page) -> int:
    return int(page.locator("#main").evaluate("main => Math.round(main.scrollTop)"))


def test_a_persona_opens_at_its_beginning_and_the_list_where_it_was(
    context: BrowserContext, owner: Caller
) -> None:
    """A link leads to the beginning of a page, the browser's *Back* to the place in the list."""
    prompt = "\n".join(f"line {number}" for number in range(90))
    for number in range(40):
        key = f"persona-{number:02d}"
        owner.made("/v1/personas", {"key": key, "route_id": "scripted", "system_prompt": prompt})
    page = signed_in(context, owner, "/personas")
    link = page.get_by_role("link", name="persona-00", exact=True)
    link.scroll_into_view_if_needed()
    before = top(page)
    assert 500 < before
    link.click()
    expect(page.get_by_role("heading", name="persona-00")).to_be_visible()
    assert 0 == top(page)
    page.locator("#main").evaluate("main => { main.scrollTop = 300 }")
    until(page, "document.querySelector('#main').scrollTop === 300")
    page.go_back()
    expect(link).to_be_in_viewport()
    assert before == top(page)
    page.go_forward()
    expect(page.get_by_role("heading", name="persona-00")).to_be_attached()
    assert 300 == top(page)

    page.get_by_role("link", name="New version").click()
    expect(page.get_by_role("button", name="Publish")).to_be_attached()
    go(page, "/personas")
    expect(link).to_be_attached()
    assert 0 == top(page)


def test_parameters_of_an_address_scroll_no_page(context: BrowserContext, owner: Caller) -> None:
    """The choice of another version stays where it was made."""
    prompt = "\n".join(f"line {number}" for number in range(90))
    for version in ("1", "2"):
        fields = {"key": "own", "version": version, "route_id": "scripted"}
        owner.made("/v1/personas", fields | {"system_prompt": f"{prompt}\n{version}"})
    page = signed_in(context, owner, "/personas/own")
    expect(page.get_by_role("heading", name="own", exact=True)).to_be_visible()
    page.locator("#main").evaluate("main => { main.scrollTop = 200 }")
    go(page, "/personas/own?version=1")
    expect(page.get_by_text("line 89").first).to_be_attached()
    page.wait_for_timeout(300)

    assert 200 == top(page)


def test_a_thread_opens_at_its_end(context: BrowserContext, owner: Caller) -> None:
    """Its conversation has a scrolling of its own, also after *Back*."""
    lines = "\n".join(f"line {number}" for number in range(60))
    first, second = (owner.thread(*[lines] * 4) for _ in range(2))
    page = signed_in(context, owner, f"/threads/{first}")
    at_end = f"({IS_LONG_AND_AT_END})(document.querySelector('.scroll'))"
    until(page, at_end)
    go(page, f"/threads/{second}")
    until(page, at_end)
    page.go_back()
    expect(page.locator(".said")).to_have_count(4)

    until(page, at_end)
    assert 0 == top(page)
