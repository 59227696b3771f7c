"""The console's dialogs in a real Chromium, and what the key Esc does to them."""

from datetime import datetime, timedelta

import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect

from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_settings import go, press, row, signed_in, until
from tests.caller import Caller
from tests.clients import PASSWORD

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]
#: Browsers of before 2025 do not know the attribute.
FORGET_CLOSEDBY = "document.querySelector('dialog').removeAttribute('closedby')"
IS_MODAL = "document.querySelector('dialog')?.matches(':modal') ?? false"


def press_escape(page: Page, *, knows_closedby: bool) -> None:
    """Send Esc more often than a page may prevent that it closes a dialog."""
    for _ in range(4):
        if not knows_closedby:
            page.evaluate(FORGET_CLOSEDBY)
        page.keyboard.press("Escape")
        page.wait_for_timeout(50)
        until(page, IS_MODAL)


def create_key(page: Page, name: str) -> str:
    """Fill and send the form; return the key that the page shows."""
    press(page, "Create key")
    form = page.get_by_role("dialog", name="Create an API key")
    form.get_by_label("Name").fill(name)
    press(form, "Create key")
    return page.get_by_label("API key", exact=True).inner_text()


@pytest.mark.parametrize("knows_closedby", [True, False])
def test_esc_closes_no_dialog_with_a_secret(
    context: BrowserContext, user: Caller, knows_closedby: bool
) -> None:
    """It is shown once, until *Done* is pressed; so is the next one."""
    page = signed_in(context, user, "/keys")
    keys = set()
    for name in ("First", "Second"):
        key = create_key(page, f"{name} {knows_closedby}")
        press_escape(page, knows_closedby=knows_closedby)
        expect(page.get_by_label("API key", exact=True)).to_have_text(key)
        keys.add(key)
        press(page, "Done")
        expect(page.get_by_role("dialog")).to_have_count(0)
        expect(row(page, f"{name} {knows_closedby}")).to_be_visible()

    assert 2 == len(keys)


@pytest.mark.parametrize("knows_closedby", [True, False])
def test_esc_closes_no_dialog_of_an_ended_session(
    context: BrowserContext, user: Caller, knows_closedby: bool
) -> None:
    """What is behind it cannot be used before somebody has signed in."""
    page = signed_in(context, user, "/keys")
    context.clear_cookies()
    page.clock.set_fixed_time(datetime.now().astimezone() + timedelta(minutes=16))
    go(page, "/members")
    dialog = page.get_by_role("dialog", name="Your session has ended")
    expect(dialog).to_be_visible()
    press_escape(page, knows_closedby=knows_closedby)

    expect(dialog).to_be_visible()


def end_session(context: BrowserContext, page: Page) -> None:
    """Let the next request find that the log-in has ended."""
    context.clear_cookies()
    page.clock.set_fixed_time(datetime.now().astimezone() + timedelta(minutes=16))


def sign_in_again(page: Page) -> None:
    dialog = page.get_by_role("dialog", name="Your session has ended")
    dialog.get_by_label("Password").fill(PASSWORD)
    press(dialog, "Sign in")
    expect(dialog).to_have_count(0)


@pytest.mark.parametrize(
    ("address", "name"),
    [("/members", "Members"), ("/sessions", "Log-ins"), ("/threads", "Threads")],
)
def test_a_page_continues_once_somebody_has_signed_in_again(
    context: BrowserContext, user: Caller, address: str, name: str
) -> None:
    """It reads what the end of the session has kept from it, without *Try again*."""
    user.thread(title="Known before")
    page = signed_in(context, user, "/keys")
    end_session(context, page)
    go(page, address)
    sign_in_again(page)

    own = user.login if address == "/members" else "This browser"
    text = "Known before" if address == "/threads" else own
    shown = page.get_by_label(name, exact=True).get_by_text(text, exact=True).first
    expect(shown).to_be_visible(timeout=5_000)  # the timer of the threads would read them later
    expect(page.get_by_role("alert")).to_have_count(0)


def test_the_inbox_is_read_again_once_somebody_has_signed_in_again(
    context: BrowserContext, user: Caller
) -> None:
    """It is not left to its timer, which would leave the error for up to 8 s."""
    page = signed_in(context, user, "/keys")
    end_session(context, page)
    page.evaluate("window.setInterval = () => 0")
    go(page, "/inbox")
    expect(page.locator("main").get_by_role("alert")).to_contain_text("Your session has ended")
    sign_in_again(page)

    expect(page.get_by_text("Nothing waits for you")).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)


def test_older_runs_are_read_again_once_somebody_has_signed_in_again(
    context: BrowserContext, user: Caller
) -> None:
    """No timer reads them: their error would stay until *Try again* is pressed."""
    run_id = user.run({"say": "Heard."})
    user.ended(run_id)
    [row] = user.get("/v1/runs")

    def serve(route: Route) -> None:
        is_first = "before=" not in route.request.url
        shown = row if is_first else {**row, "run_id": "older"}
        route.fulfill(json=[shown], headers={"X-Next-Cursor": "more"} if is_first else {})

    context.route("**/v1/runs?*", serve)
    page = signed_in(context, user, "/runs")
    press(page, "Older runs")
    expect(page.locator("tbody tr")).to_have_count(2)
    end_session(context, page)
    press(page, "Reload")
    sign_in_again(page)

    expect(page.get_by_role("alert")).to_have_count(0)
    expect(page.locator("tbody tr")).to_have_count(1)


def test_more_rows_can_be_shown_once_somebody_has_signed_in_again(
    context: BrowserContext, user: Caller
) -> None:
    """The error of the first attempt, which asks to sign in, goes with the session that ended."""
    for name in ("First", "Second"):
        user.made("/v1/api-keys", {"name": name, "scopes": ["data.runs.read"]})

    def serve_one(route: Route) -> None:
        route.continue_(url=route.request.url.replace("limit=50", "limit=1"))

    context.route("**/v1/audit-logs?*", serve_one)
    page = signed_in(context, user, "/audit")
    rows, button = page.locator("tbody tr"), page.get_by_role("button", name="Show more")
    expect(rows).to_have_count(1)
    end_session(context, page)
    button.click()
    sign_in_again(page)
    expect(page.get_by_role("alert")).to_have_count(0)
    button.click()

    expect(rows).to_have_count(2)


def test_esc_closes_any_other_dialog(context: BrowserContext, user: Caller) -> None:
    """It can be opened again."""
    page = signed_in(context, user, "/keys")
    for _ in range(3):
        press(page, "Create key")
        expect(page.get_by_role("dialog")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)


@pytest.mark.parametrize("way", ["Esc", "Cancel"])
def test_a_closed_dialog_returns_the_focus(context: BrowserContext, user: Caller, way: str) -> None:
    """The keyboard continues at the button that opened it."""
    page = signed_in(context, user, "/keys")
    button = page.get_by_role("button", name="Create key", exact=True)
    button.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog").get_by_label("Name")).to_be_focused()
    if way == "Esc":
        page.keyboard.press("Escape")
    else:
        press(page.get_by_role("dialog"), "Cancel")

    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(button).to_be_focused()


def test_the_focus_goes_to_the_page_where_the_button_is_gone(
    context: BrowserContext, user: Caller
) -> None:
    """A key that is revoked has no button *Revoke*."""
    user.api_key(name="Gone")
    page = signed_in(context, user, "/keys")
    press(row(page, "Gone"), "Revoke Gone")
    press(page.get_by_role("dialog"), "Revoke key")

    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.locator("#main")).to_be_focused()


def test_leaving_an_organization_says_what_ends(context: BrowserContext, user: Caller) -> None:
    """Runs in private threads do, which nobody else could stop."""
    page = signed_in(context, user, "/members")
    press(page, "Leave the organization")
    dialog = page.get_by_role("dialog", name="Leave the organization?")

    expect(dialog).to_contain_text("all runs in their private threads are cancelled")
    expect(dialog).to_contain_text("Their threads, ended runs and files stay")
    press(dialog, "Cancel")


def test_each_of_two_dialogs_has_its_own_name(context: BrowserContext, user: Caller) -> None:
    """A session that ends while a form is open is announced as such."""
    page = signed_in(context, user, "/keys")
    press(page, "Create key")
    form = page.get_by_role("dialog")
    form.get_by_label("Name").fill("Late")
    context.clear_cookies()
    page.clock.set_fixed_time(datetime.now().astimezone() + timedelta(minutes=16))
    press(form, "Create key")

    expect(page.get_by_role("dialog", name="Your session has ended")).to_be_visible()
    labels = "one => document.getElementById(one.getAttribute('aria-labelledby')).innerText"
    names = f"[...document.querySelectorAll('dialog')].map({labels})"
    assert ["Create an API key", "Your session has ended"] == page.evaluate(names)


def test_the_keyboard_begins_in_the_field_of_a_dialog(
    context: BrowserContext, user: Caller
) -> None:
    """The button that closes it has the focus in none of them: Enter would press it."""
    thread = user.made("/v1/threads", {"title": "Before"})["id"]
    page = signed_in(context, user, f"/threads/{thread}")
    press(page, "Rename")
    expect(page.get_by_role("dialog").get_by_label("Title")).to_be_focused()
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("After")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_have_count(0)

    assert "After" == user.get(f"/v1/threads/{thread}")["title"]
