"""Signing out of the console in a real Chromium: the log-in ends, or the page says otherwise."""

import base64
import json
from datetime import datetime, timedelta

import pytest
from playwright.sync_api import BrowserContext, Locator, Page, Route, expect

from arkloop.api.auth import access_tokens, bearer, signed_tokens
from arkloop.shared.accounts import suspensions
from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_settings import go, press, signed_in
from tests.caller import Caller
from tests.clients import PASSWORD
from tests.system import System

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]
LOGOUT = "**/v1/auth/logout"
REFRESH = "**/v1/auth/refresh"
BEGINS = "**/v1/runs"
#: At once, so that no other request of the page renews the token before.
SEND_LATER = """button => {
  const now = Date.now
  Date.now = () => now() + 16 * 60_000
  button.click()
}"""
UNAUTHORIZED = {"code": "auth.unauthorized", "message": "Log in again.", "details": {}}


def sign_in_page(page: Page) -> Locator:
    return page.get_by_role("heading", name="Sign in to Arkloop Runs")


def expired(headers: dict[str, str], system: System) -> str:
    """Make the token of these headers as it would be 16 minutes later."""
    payload = headers["authorization"].split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    past = {name: claims[name] - 16 * 60 for name in ("iat", "exp")}
    return signed_tokens.sign(system.connections.settings, access_tokens.TYPE, {**claims, **past})


def test_an_expired_access_token_is_renewed_to_sign_out(
    context: BrowserContext, user: Caller, system: System
) -> None:
    """The service refuses the token of 16 minutes ago; a reload still finds no log-in."""
    page = signed_in(context, user, "/keys")
    renewed: list[str] = []
    context.on("response", lambda r: renewed.append(r.url) if r.url.endswith("/refresh") else None)

    def age(route: Route) -> None:
        sent = route.request.headers
        token = sent["authorization"] if renewed else f"Bearer {expired(sent, system)}"
        route.continue_(headers={**sent, "authorization": token})

    context.route(LOGOUT, age)
    page.clock.set_fixed_time(datetime.now().astimezone() + timedelta(minutes=16))
    press(page, "Sign out")
    expect(sign_in_page(page)).to_be_visible()
    page.reload()
    expect(sign_in_page(page)).to_be_visible()


def test_a_log_in_that_does_not_end_stays_and_the_page_says_so(
    context: BrowserContext, user: Caller
) -> None:
    """Without a network, or while the service is down, no tab shows that it has signed out."""
    page, other = signed_in(context, user, "/keys"), context.new_page()
    other.goto(f"{user.url}/console#/keys")
    dialog = page.get_by_role("dialog", name="You are still signed in")
    context.route(LOGOUT, lambda route: route.abort())
    press(page, "Sign out")
    expect(dialog).to_contain_text("cannot be reached")
    context.unroute(LOGOUT)
    down = {"code": "http.unavailable", "message": "Come back later.", "details": {}}
    context.route(LOGOUT, lambda route: route.fulfill(status=503, json=down))
    press(dialog, "Sign out")
    expect(dialog).to_contain_text("Come back later.")
    press(dialog, "Stay signed in")
    for tab in (page, other):
        expect(tab.get_by_role("heading", name="API keys", exact=True)).to_be_visible()

    context.unroute(LOGOUT)
    press(page, "Sign out")
    for tab in (page, other):
        expect(sign_in_page(tab)).to_be_visible()
    page.reload()
    expect(sign_in_page(page)).to_be_visible()


@pytest.mark.parametrize("minutes", [0, 16])
def test_a_person_of_a_suspended_org_signs_out(
    context: BrowserContext, system: System, minutes: int
) -> None:
    """Neither with an access token in force nor with one that cannot be renewed any more does the
    log-in return when the organization is resumed.
    """
    user = system.caller()
    page, other = signed_in(context, user, "/keys"), context.new_page()
    other.goto(f"{user.url}/console#/keys")
    expect(other.get_by_role("navigation")).to_be_visible()
    with system.connections.transaction() as tx:
        suspensions.suspend(tx, user.org_id, "Unpaid bills")
    page.wait_for_timeout(1_000 * bearer.CACHE_SECONDS)  # then all processes know it
    page.clock.set_fixed_time(datetime.now().astimezone() + timedelta(minutes=minutes))
    press(page, "Sign out")
    for tab in (page, other):
        expect(sign_in_page(tab)).to_be_visible()

    with system.connections.transaction() as tx:
        suspensions.resume(tx, user.org_id)
    page.wait_for_timeout(1_000 * bearer.CACHE_SECONDS)
    page.reload()
    expect(sign_in_page(page)).to_be_visible()


@pytest.mark.parametrize("means", ["password", "key"])
def test_a_person_of_a_suspended_org_signs_out_after_a_reload(
    context: BrowserContext, system: System, means: str
) -> None:
    """The sign-in page offers it: the log-in, or the key, would return with the organization."""
    user = system.caller()
    if means == "key":
        page = context.new_page()
        page.goto(f"{user.url}/console#/sign-in?with=key")
        page.get_by_label("API key").fill(user.api_key(scopes=["data.threads.read"])[1])
        press(page, "Sign in")
        expect(page.get_by_role("navigation")).to_be_visible()
    else:
        page = signed_in(context, user, "/keys")
    with system.connections.transaction() as tx:
        suspensions.suspend(tx, user.org_id, "Unpaid bills")
    page.wait_for_timeout(1_000 * bearer.CACHE_SECONDS)  # then all processes know it
    page.reload()
    expect(page.get_by_role("status")).to_contain_text("suspended")
    press(page, "Sign out")
    expect(page.get_by_role("button", name="Sign out")).to_have_count(0)
    expect(sign_in_page(page)).to_be_visible()

    with system.connections.transaction() as tx:
        suspensions.resume(tx, user.org_id)
    page.wait_for_timeout(1_000 * bearer.CACHE_SECONDS)
    page.reload()
    expect(sign_in_page(page)).to_be_visible()


def test_a_service_that_cannot_end_the_log_in_of_a_suspended_org(
    context: BrowserContext, system: System
) -> None:
    """During a deploy the release before refuses it: the page stays signed in, and says why."""
    user = system.caller()
    page = signed_in(context, user, "/keys")
    refused = {"code": "org.suspended", "message": "This organization is suspended.", "details": {}}
    for address in (LOGOUT, REFRESH):
        context.route(address, lambda route: route.fulfill(status=401, json=refused))
    press(page, "Sign out")
    dialog = page.get_by_role("dialog", name="You are still signed in")
    expect(dialog).to_contain_text("is suspended")
    page.clock.set_fixed_time(datetime.now().astimezone() + timedelta(minutes=16))
    press(dialog, "Stay signed in")

    go(page, "/members")
    expect(page.get_by_role("alert").first).to_contain_text("is suspended")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_signing_out_after_the_session_has_ended_asks_the_service(
    context: BrowserContext, user: Caller
) -> None:
    """The cookie may be in force all the same, where something in between has refused it."""
    page = signed_in(context, user, "/keys")
    context.route(REFRESH, lambda route: route.fulfill(status=401, json=UNAUTHORIZED))
    page.clock.set_fixed_time(datetime.now().astimezone() + timedelta(minutes=16))
    go(page, "/members")
    dialog = page.get_by_role("dialog", name="Your session has ended")
    press(dialog, "Sign out")
    expect(sign_in_page(page)).to_be_visible()

    context.unroute(REFRESH)
    page.reload()
    expect(sign_in_page(page)).to_be_visible()


def test_an_ended_session_is_looked_for_once(context: BrowserContext, user: Caller) -> None:
    """Requests that wait for a token take that there is none: signing in again waits for none."""
    page = signed_in(context, user, "/keys")
    asked: list[str] = []

    def refuse(route: Route) -> None:
        asked.append(route.request.url)
        route.fulfill(status=401, json=UNAUTHORIZED)

    context.route(REFRESH, refuse)
    page.clock.set_fixed_time(datetime.now().astimezone() + timedelta(minutes=16))
    page.evaluate(
        "for (let n = 0; n < 5; n += 1) document.dispatchEvent(new Event('visibilitychange'))"
    )
    expect(page.get_by_role("dialog", name="Your session has ended")).to_be_visible()
    page.wait_for_timeout(500)  # for the others, were there any

    assert 1 == len(asked)


def test_a_clock_that_is_set_back_keeps_no_expired_token(
    context: BrowserContext, user: Caller, system: System
) -> None:
    """The service refuses the token that the page takes for new, and the page renews it."""
    page = signed_in(context, user, "/keys")
    renewed: list[str] = []
    context.on("response", lambda r: renewed.append(r.url) if r.url.endswith("/refresh") else None)

    def age(route: Route) -> None:
        sent = route.request.headers
        token = sent["authorization"] if renewed else f"Bearer {expired(sent, system)}"
        route.continue_(headers={**sent, "authorization": token})

    context.route("**/v1/orgs/**", age)
    page.clock.set_fixed_time(datetime.now().astimezone() - timedelta(hours=1))
    go(page, "/members")

    expect(page.get_by_role("row").filter(has_text="(you)")).to_have_count(1)


@pytest.mark.parametrize("ending", ["sign out", "reload", "another tab"])
def test_nobody_else_sees_what_was_not_sent(
    context: BrowserContext, user: Caller, system: System, ending: str
) -> None:
    """In the same tab, after a sign-out, a session that has ended, or a log-in of another tab."""
    page = signed_in(context, user, "/threads/new")
    page.get_by_label("Message", exact=True).fill("A secret")
    other = system.colleague(user)
    if ending == "sign out":
        press(page, "Sign out")
        expect(sign_in_page(page)).to_be_visible()
    else:
        context.clear_cookies()
    if ending == "another tab":
        signed_in(context, other, "/keys")
    else:
        page.reload()
        page.get_by_label("User name or email").fill(other.login)
        page.get_by_label("Password").fill(PASSWORD)
        press(page, "Sign in")

    expect(page.get_by_role("navigation")).to_contain_text("member ·")
    expect(page.get_by_label("Message", exact=True)).to_have_value("")
    if ending != "reload":
        assert [] == page.evaluate("Object.keys(sessionStorage)")


def holding(context: BrowserContext) -> list[Route]:
    """Let first messages wait on their way; returns their requests as they come."""
    held: list[Route] = []

    def keep(route: Route) -> None:
        held.append(route)

    context.route(BEGINS, keep)
    return held


def say(page: Page, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    press(page, "Send")


@pytest.mark.parametrize(
    ("status", "by_key"), [(502, False), (503, False), (401, False), (401, True)]
)
def test_a_message_that_is_on_its_way_is_sent_in_nobody_elses_name(
    context: BrowserContext, user: Caller, system: System, status: int, by_key: bool
) -> None:
    """The request of a person who has signed out fails when another one is signed in."""
    page, other = signed_in(context, user, "/threads/new"), system.caller()
    held = holding(context)
    with page.expect_request(BEGINS):
        say(page, "A secret")
    press(page, "Sign out")
    expect(sign_in_page(page)).to_be_visible()
    if by_key:
        page.get_by_role("button", name="Sign in with an API key").click()
        page.get_by_label("API key").fill(other.api_key(name="console")[1])
    else:
        page.get_by_label("User name or email").fill(other.login)
        page.get_by_label("Password").fill(PASSWORD)
    press(page, "Sign in")
    expect(page.get_by_role("navigation")).to_be_visible()
    with page.expect_response(BEGINS):
        held[0].fulfill(status=status, json=UNAUTHORIZED)
    page.wait_for_timeout(1_500)  # the first repetition would come after half a second

    assert 1 == len(held)
    expect(page.get_by_role("navigation")).to_be_visible()


def test_a_token_of_somebody_else_sends_no_message(
    context: BrowserContext, user: Caller, system: System
) -> None:
    """The cookie is another person's by now: the page is loaded anew, and sends nothing."""
    page, other = signed_in(context, user, "/threads/new"), system.colleague(user)
    held = holding(context)
    body = {"login": other.login, "password": PASSWORD}
    assert context.request.post(f"{user.url}/v1/auth/login", data=body).ok
    page.get_by_label("Message", exact=True).fill("A secret")
    page.get_by_role("button", name="Send").evaluate(SEND_LATER)
    expect(page.get_by_role("navigation")).to_contain_text("member ·")
    expect(page.get_by_label("Message", exact=True)).to_have_value("")

    assert [] == held
