"""The console's settings in a real Chromium: an administrator's story, and hostile names."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright

from tests.acceptance.test_browser import ARGUMENTS, CHROMIUM
from tests.acceptance.test_console import AXE, FORBIDDEN, NOTE_VIOLATIONS, PHONE, violations
from tests.caller import Caller, client
from tests.clients import PASSWORD
from tests.system import System

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: make test-browser"),
]
HOSTILE = ["<img src=x onerror=alert(1)>", "invoice \u202egnp.exe", "Long name " * 19 + "of 200!"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert CHROMIUM is not None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=Path(CHROMIUM), args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context()
    context.add_init_script(NOTE_VIOLATIONS)
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext, user: Caller) -> Page:
    return signed_in(context, user, "/keys")


def signed_in(context: BrowserContext, user: Caller, address: str) -> Page:
    """Open an address of the console, and sign in with the password."""
    page = context.new_page()
    page.goto(f"{user.url}/console#{address}")
    page.get_by_label("User name or email").fill(user.login)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in", exact=True).click()
    expect(page.get_by_role("navigation")).to_be_visible()
    return page


def go(page: Page, address: str) -> None:
    page.evaluate("address => location.hash = address", address)


def press(within: Page | Locator, name: str) -> None:
    within.get_by_role("button", name=name, exact=True).click()


def row(page: Page, text: str) -> Locator:
    return page.get_by_role("row").filter(has_text=text)


def test_a_key_is_shown_once_and_revoked(page: Page, user: Caller) -> None:
    """A wrong field is named at the field; the key works until it is revoked."""
    press(page, "Create key")
    form = page.get_by_role("dialog")
    form.get_by_label("Name").fill("Billing")
    form.get_by_label("Limit the cost of its runs").check()
    form.get_by_label("USD per run").fill("-1")
    press(form, "Create key")
    expect(form.get_by_label("USD per run")).to_be_focused()
    expect(form.get_by_role("alert")).to_contain_text("0")
    form.get_by_label("USD per run").fill("0.25")
    press(form, "Create key")
    key = page.get_by_label("API key", exact=True).inner_text()
    press(page, "Done")

    expect(row(page, "Billing")).to_contain_text("$0.250 / run")
    assert 200 == client(user.url, key).get("/v1/threads").status_code
    page.reload()
    expect(row(page, "Billing")).to_be_visible()
    expect(page.get_by_text(key)).to_have_count(0)
    press(row(page, "Billing"), "Revoke Billing")
    press(page.get_by_role("dialog"), "Revoke key")
    expect(row(page, "Billing")).to_contain_text("revoked")
    [listed] = [one for one in user.get("/v1/api-keys") if one["name"] == "Billing"]
    assert listed["revoked_at"] is not None


def test_an_invitation_is_accepted_and_the_member_administered(
    page: Page, browser: Browser, user: Caller
) -> None:
    """The link opens in another browser; the new member may not change anything, then leaves."""
    go(page, "/members")
    press(page, "Invite")
    page.get_by_role("dialog").get_by_label("Name").fill("Bob")
    press(page.get_by_role("dialog"), "Create invitation")
    link = page.get_by_label("Invitation link", exact=True).inner_text()
    press(page, "Done")
    expect(page.get_by_role("table", name="Open invitations")).to_contain_text("Bob")

    other = browser.new_page()
    other.goto(link)
    login = f"bob-{user.login}"
    other.get_by_label("User name").fill(user.login)
    other.get_by_label("Email").fill(f"{login}@example.com")
    other.get_by_label("Password").fill(PASSWORD)
    press(other, "Create account and join")
    expect(other.get_by_role("alert")).to_contain_text("in use")
    other.get_by_label("User name").fill(login)
    press(other, "Create account and join")
    expect(other.get_by_role("navigation")).to_be_visible()
    go(other, "/members")
    expect(row(other, login)).to_contain_text("(you)")
    expect(other.get_by_role("button", name="Invite")).to_have_count(0)

    page.reload()
    page.get_by_label(f"Role of {login}").select_option("admin")
    press(page.get_by_role("dialog"), "Change role")
    expect(page.get_by_role("dialog")).to_have_count(0)
    roles = {one["login"]: one["role"] for one in user.get(f"/v1/orgs/{user.org_id}/members")}
    assert "admin" == roles[login]
    press(page, f"Remove {login}")
    press(page.get_by_role("dialog"), "Remove member")
    expect(row(page, login)).to_have_count(0)
    other.context.close()


def test_a_log_in_is_ended(page: Page, user: Caller) -> None:
    """Another log-in is ended; this browser's own is marked."""
    go(page, "/sessions")
    rows = page.get_by_role("table", name="Log-ins").get_by_role("row")
    expect(rows.filter(has_text="This browser")).to_have_count(1)
    before = len(user.get("/v1/auth/sessions")["items"])
    client(user.url).post("/v1/auth/login", json={"login": user.login, "password": PASSWORD})
    page.reload()
    expect(rows).to_have_count(1 + before + 1)
    page.get_by_role("button", name="End", exact=True).first.click()
    press(page.get_by_role("dialog"), "End log-in")
    expect(rows).to_have_count(1 + before)


@pytest.fixture(scope="module")
def addresses(user: Caller, system: System) -> dict[str, str]:
    """Pages with hostile names, by name."""
    for name in HOSTILE:
        user.api_key(name=name)
        user.made(f"/v1/orgs/{user.org_id}/invitations", {"name": name, "role": "member"})
    return {"keys": "/keys", "members": "/members", "sessions": "/sessions"}


@pytest.mark.front_ends
@pytest.mark.skipif(
    not AXE.exists() and os.environ.get("NEED_FRONT_ENDS") != "1",
    reason="scripts/install-front-ends has not run",
)
def test_every_page_is_accessible_with_hostile_names(
    context: BrowserContext, user: Caller, addresses: dict[str, str]
) -> None:
    """axe finds nothing in light and dark; names stay text, and no page is wider than a phone."""
    context.add_init_script(AXE.read_text())
    page = signed_in(context, user, "/keys")
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    found: dict[str, Any] = {}
    for name, address in addresses.items():
        go(page, address)
        expect(page.locator("main h1").first).to_be_visible()
        expect(page.locator(".loading")).to_have_count(0)
        found[name] = violations(page)
        page.set_viewport_size(PHONE)
        assert PHONE["width"] >= page.evaluate("document.documentElement.scrollWidth"), name
        page.set_viewport_size({"width": 1280, "height": 800})
        assert [] == page.evaluate(FORBIDDEN), name
        assert "\u202e" not in page.locator("main").inner_text(), name
        assert [] == page.evaluate("violations"), name
    assert [] == dialogs
    assert {} == {name: what for name, what in found.items() if what}
