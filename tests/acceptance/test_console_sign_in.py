"""Signing in to the console in a real Chromium: in which org, and how again."""

import re
from datetime import datetime, timedelta

import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect

from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_settings import go, press, signed_in, until_held
from tests.caller import Caller, client
from tests.clients import PASSWORD
from tests.identity_provider import CLIENT_ID, CLIENT_SECRET, IdentityProvider
from tests.system import System

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]


def join(user: Caller, owner: Caller) -> None:
    """Let a user join the org of another one, besides their own."""
    path = f"/v1/orgs/{owner.org_id}/invitations"
    invitation = owner.made(path, {"name": "x", "role": "member"})["token"]
    body = {"login": user.login, "password": PASSWORD, "invitation": invitation}
    assert client(user.url).post("/v1/auth/login", json=body).is_success


def choose(
    provider: IdentityProvider, owner: Caller, person: Caller, context: BrowserContext
) -> None:
    """Give the owner's org a provider that knows a member, and sends browsers back at once."""

    def come_back(route: Route) -> None:
        query = provider.authorize(route.request.url)
        address = f"{owner.url}/v1/auth/oidc/callback?{query}"
        route.fulfill(status=302, headers={"Location": address})

    provider.claims = {"email": f"{person.login}@example.com"}
    body = {"issuer": provider.url, "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}
    path = f"/v1/orgs/{owner.org_id}/identity-provider"
    assert owner.http.put(path, json=body).is_success
    context.route(f"{provider.url}/**", come_back)


def link(provider: IdentityProvider, owner: Caller, person: Caller) -> None:
    """Link the provider of the owner's org to a member's account, as the console does."""
    browser = client(owner.url)
    body = {"login": person.login, "password": PASSWORD, "org_id": owner.org_id}
    token = browser.post("/v1/auth/login", json=body).json()["access_token"]
    headers = {"Authorization": f"Bearer {token}"}
    asked = {"password": PASSWORD}
    begun = browser.post("/v1/auth/oidc/link", json=asked, headers=headers).json()
    query = provider.authorize(begun["authorization_url"])
    assert browser.get(f"/v1/auth/oidc/callback?{query}").is_success


@pytest.fixture
def both(system: System) -> tuple[Caller, Caller]:
    """A user of two orgs, the owner of the first, and the owner of the second."""
    user, owner = system.caller(), system.caller()
    join(user, owner)
    return user, owner


def enter(page: Page, login: str) -> None:
    """Fill the form for a password, and send it."""
    page.get_by_label("User name or email").fill(login)
    page.get_by_label("Password").fill(PASSWORD)
    press(page, "Sign in")


#: Opens a page as soon as somebody is signed in, before the browser has drawn the first one.
OPEN_AT_ONCE = """() => {
  new MutationObserver((_, observer) => {
    if (document.querySelector("nav") === null) return
    observer.disconnect()
    location.hash = "/keys"
  }).observe(document, { childList: true, subtree: true })
}"""


def test_a_page_that_is_opened_right_after_signing_in_stays(
    context: BrowserContext, user: Caller
) -> None:
    """An address of no page leads to the threads, and so nobody away from another page."""
    page = context.new_page()
    page.goto(f"{user.url}/console")
    expect(page.get_by_label("Password")).to_be_visible()
    page.evaluate(OPEN_AT_ONCE)
    enter(page, user.login)

    expect(page.get_by_role("navigation")).to_be_visible()
    page.wait_for_timeout(200)
    expect(page).to_have_url(re.compile("#/keys$"))
    expect(page.get_by_role("heading", name="API keys", exact=True)).to_be_visible()


def test_a_person_changes_between_orgs(
    context: BrowserContext, both: tuple[Caller, Caller]
) -> None:
    """All tabs are in the chosen org, and show nothing that the address names in the one before."""
    user, _ = both
    page, other = signed_in(context, user, "/keys"), context.new_page()
    other.goto(f"{user.url}/console#/threads/{user.thread('Hello')}")
    expect(other.get_by_text("Hello")).to_be_visible()
    go(page, "/threads/new")
    page.get_by_label("Message", exact=True).fill("A secret of the first org")
    press(page, "Change organization")
    dialog = page.get_by_role("dialog", name="Change organization")
    expect(dialog.get_by_label("Organization").get_by_role("option")).to_have_count(1)
    dialog.get_by_label("Password").fill("wrong")
    press(dialog, "Sign in")
    expect(dialog.get_by_role("alert")).to_have_text("Wrong login or password.")
    dialog.get_by_label("Password").fill(PASSWORD)
    press(dialog, "Sign in")

    for tab in (page, other):
        expect(tab.get_by_role("navigation")).to_contain_text("member ·")
        expect(tab).to_have_url(re.compile("#/threads$"))
    go(page, "/threads/new")
    expect(page.get_by_label("Message", exact=True)).to_have_value("")


@pytest.mark.parametrize(("path", "minutes"), [("auth/refresh", 5), ("me", 0.5)])
def test_a_page_whose_connection_falls_silent_asks_again(
    context: BrowserContext, user: Caller, path: str, minutes: float
) -> None:
    """The request for its token has more time: one that is given up could end the log-in."""
    context.clock.install()
    page = signed_in(context, user, "/keys")
    held: list[Route] = []
    context.route(f"**/v1/{path}", lambda route: held.append(route), times=1)
    page.reload()
    until_held(page, held, 1)
    failed: list[str] = []
    page.on("requestfailed", lambda request: failed.append(request.url))
    page.clock.fast_forward(int(minutes * 60_000) - 5_000)
    page.wait_for_timeout(100)
    assert [] == failed
    page.clock.fast_forward(6_000)

    expect(page.get_by_role("heading", name="API keys", exact=True)).to_be_visible()


def test_a_log_in_whose_connection_falls_silent_gives_its_lock_back(
    context: BrowserContext, user: Caller
) -> None:
    """Other tabs wait for that lock; the form says why nobody is signed in, and nothing else."""
    context.clock.install()
    context.route("**/v1/auth/refresh", lambda route: route.abort(), times=1)
    held: list[Route] = []
    context.route("**/v1/auth/login", lambda route: held.append(route), times=1)
    page = context.new_page()
    page.goto(f"{user.url}/console")
    expect(page.get_by_text("Trying again")).to_be_visible()
    page.clock.fast_forward(1_000)
    expect(page.get_by_label("Password")).to_be_visible()
    expect(page.get_by_text("Trying again")).to_have_count(0)
    enter(page, user.login)
    until_held(page, held, 1)
    page.clock.fast_forward("05:01")

    expect(page.get_by_text("The service cannot be reached.")).to_be_visible()
    enter(page, user.login)
    expect(page.get_by_role("navigation")).to_be_visible()


@pytest.mark.parametrize("means", ["password", "identity provider"])
def test_a_change_of_org_is_called_off_with_its_dialog(
    context: BrowserContext, both: tuple[Caller, Caller], means: str
) -> None:
    """The request ends, and with it what would follow: another org, or a page of a provider."""
    user, _ = both
    page = signed_in(context, user, "/threads/new")
    held: list[Route] = []
    path = "login" if means == "password" else "oidc/begin"
    context.route(f"**/v1/auth/{path}", lambda route: held.append(route))
    press(page, "Change organization")
    dialog = page.get_by_role("dialog", name="Change organization")
    if means == "password":
        dialog.get_by_label("Password").fill(PASSWORD)
        press(dialog, "Sign in")
    else:
        press(dialog, "Sign in with your identity provider")
        press(dialog, "Continue")
    until_held(page, held, 1)

    with page.expect_event("requestfailed", lambda request: request.url.endswith(path)):
        page.keyboard.press("Escape")


def test_the_link_of_an_org_leads_there_with_a_password(
    context: BrowserContext, both: tuple[Caller, Caller]
) -> None:
    """Without it, a log-in is in the org that the person joined first."""
    user, owner = both
    page = context.new_page()
    page.goto(f"{user.url}/console#/sign-in?org={owner.org_id}")
    press(page, "Sign in with a password")
    enter(page, user.login)

    expect(page.get_by_role("navigation")).to_contain_text("member ·")


def test_a_provider_that_refuses_a_change_leaves_the_person_signed_in(
    context: BrowserContext, both: tuple[Caller, Caller], home: str
) -> None:
    """The refusal shows once, in the org from before, and not at the next sign-in."""
    user, owner = (one.at(home) for one in both)
    page = signed_in(context, user, "/keys")
    with IdentityProvider() as provider:
        choose(provider, owner, user, context)
        provider.claims = {"email": "somebody-else@example.com"}
        press(page, "Change organization")
        dialog = page.get_by_role("dialog", name="Change organization")
        press(dialog, "Sign in with your identity provider")
        press(dialog, "Continue")
        refusal = page.get_by_role("dialog", name="Signing in has failed")

        expect(refusal.get_by_role("alert")).to_contain_text("does not let you in")
        expect(page.get_by_role("navigation")).to_contain_text("owner ·")
        assert "?error" not in page.url
        press(refusal.locator(".dialog-actions"), "Close")
        expect(refusal).to_have_count(0)
        press(page, "Sign out")
        expect(page.get_by_role("button", name="Sign in", exact=True)).to_be_visible()
        page.reload()
        expect(page.get_by_role("button", name="Sign in", exact=True)).to_be_visible()
        expect(page.get_by_text("does not let you in")).to_have_count(0)


@pytest.mark.parametrize("how", ["another tab", "no cookie"])
def test_a_login_of_another_tab_or_of_long_ago_leads_back_to_the_console(
    context: BrowserContext, system: System, home: str, how: str
) -> None:
    """The page says why, and the person can try again."""
    owner = system.caller().at(home)
    person = system.colleague(owner)
    with IdentityProvider() as provider:
        choose(provider, owner, person, context)
        context.unroute(f"{provider.url}/**")
        context.route(f"{provider.url}/**", lambda route: route.fulfill(body="Log in here."))
        page = context.new_page()
        page.goto(f"{home}/console#/sign-in?org={owner.org_id}")
        press(page, "Continue")
        expect(page.get_by_text("Log in here.")).to_be_visible()
        query = provider.authorize(page.url)
        if how == "another tab":
            other = context.new_page()
            other.goto(f"{home}/console#/sign-in?org={owner.org_id}")
            press(other, "Continue")
            expect(other.get_by_text("Log in here.")).to_be_visible()
        else:
            context.clear_cookies()
        page.goto(f"{home}/v1/auth/oidc/callback?{query}")

        expect(page.get_by_text("That login has expired")).to_be_visible()
        assert "?error" not in page.url
        choose(provider, owner, person, context)
        press(page, "Sign in with your identity provider")
        press(page, "Continue")
        expect(page.get_by_role("navigation")).to_contain_text("member ·")


def test_an_org_is_entered_by_its_provider(
    context: BrowserContext, both: tuple[Caller, Caller], home: str
) -> None:
    """The dialog says if it has none; else the provider leads back into the chosen org."""
    user, owner = (one.at(home) for one in both)
    page = signed_in(context, user, "/keys")
    press(page, "Change organization")
    dialog = page.get_by_role("dialog", name="Change organization")
    press(dialog, "Sign in with your identity provider")
    press(dialog, "Continue")
    expect(dialog.get_by_role("alert")).to_contain_text("has no identity provider")
    with IdentityProvider() as provider:
        choose(provider, owner, user, context)
        link(provider, owner, user)
        press(dialog, "Continue")

        expect(page.get_by_role("navigation")).to_contain_text("member ·")


def test_an_org_whose_provider_is_not_linked_yet_is_entered_by_the_password_first(
    context: BrowserContext, both: tuple[Caller, Caller], home: str
) -> None:
    """The page of the other org would link the provider of that one; it names its own."""
    user, owner = (one.at(home) for one in both)
    with IdentityProvider() as provider:
        choose(provider, owner, user, context)
        page = signed_in(context, user, "/keys")
        press(page, "Change organization")
        dialog = page.get_by_role("dialog", name="Change organization")
        press(dialog, "Sign in with your identity provider")
        press(dialog, "Continue")
        refusal = page.get_by_role("dialog", name="Signing in has failed")
        expect(refusal).to_contain_text("change to that organization with your password first")
        press(refusal.locator(".dialog-actions"), "Close")
        press(page, "Change organization")
        enter(dialog, user.login)
        expect(page.get_by_role("navigation")).to_contain_text("member ·")
        go(page, "/identity-provider")
        expect(page.get_by_text("Sign in at the identity provider of")).to_be_visible()


def test_a_member_with_a_key_links_the_provider_to_their_account(
    context: BrowserContext, system: System, home: str
) -> None:
    """The sign-in page says that it takes the password; the provider does afterwards, and the key
    stays in force.
    """
    owner = system.caller().at(home)
    person = system.colleague(owner).at(home)
    _, key = person.api_key()
    with IdentityProvider() as provider:
        choose(provider, owner, person, context)
        page = context.new_page()
        page.goto(f"{home}/console#/sign-in?org={owner.org_id}")
        press(page, "Continue")
        expect(page.get_by_role("status")).to_contain_text("sign in with the password")
        enter(page, person.login)
        expect(page.get_by_role("navigation")).to_contain_text("member ·")
        go(page, "/sessions")
        page.get_by_role("link", name="Link identity provider").click()
        page.get_by_label("Your password").fill("wrong")
        press(page, "Continue")
        expect(page.get_by_text("is not your password")).to_be_visible()
        page.get_by_label("Your password").fill(PASSWORD)
        press(page, "Continue")
        # The page before has the same navigation, and signing out there would be cut off.
        page.wait_for_url(re.compile("/console(#/threads)?$"))
        expect(page.get_by_role("navigation")).to_contain_text("member ·")
        press(page, "Sign out")
        press(page, "Sign in with your identity provider")
        press(page, "Continue")
        expect(page.get_by_role("navigation")).to_contain_text("member ·")

        assert person.at(token=key).http.get("/v1/me").is_success
        assert not person.http.get("/v1/me").is_success


def test_a_password_after_a_refusal_leads_to_the_org_whose_provider_is_to_be_linked(
    context: BrowserContext, both: tuple[Caller, Caller], home: str
) -> None:
    """There alone can its provider be linked; a password leads to the first org otherwise."""
    user, owner = (one.at(home) for one in both)
    with IdentityProvider() as provider:
        choose(provider, owner, user, context)
        page = context.new_page()
        page.goto(f"{home}/console#/sign-in?org={owner.org_id}")
        press(page, "Continue")
        expect(page.get_by_role("status")).to_contain_text("sign in with the password")
        enter(page, user.login)

        expect(page.get_by_role("navigation")).to_contain_text("member ·")


def test_a_session_by_a_provider_is_continued_by_it(
    context: BrowserContext, system: System, home: str
) -> None:
    """The provider is in a new tab; the page keeps what was typed. A password does it, too."""
    owner = system.caller().at(home)
    person = system.colleague(owner)
    with IdentityProvider() as provider:
        choose(provider, owner, person, context)
        page = context.new_page()
        page.goto(f"{home}/console#/sign-in?org={owner.org_id}")
        press(page, "Continue")
        expect(page.get_by_role("navigation")).to_contain_text("member ·")
        go(page, "/threads/new")
        page.get_by_label("Message", exact=True).fill("A draft")
        context.clear_cookies()
        page.clock.set_fixed_time(datetime.now().astimezone() + timedelta(minutes=16))
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        dialog = page.get_by_role("dialog", name="Your session has ended")
        press(dialog, "Sign in with a password")
        expect(dialog.get_by_label("Password")).to_be_visible()
        press(dialog, "Sign in with your identity provider")
        with context.expect_page() as opened:
            dialog.get_by_role("link", name="Sign in with your identity provider").click()
        press(opened.value, "Continue")
        expect(opened.value.get_by_role("navigation")).to_contain_text("member ·")

        expect(page.get_by_role("dialog")).to_have_count(0)
        expect(page.get_by_label("Message", exact=True)).to_have_value("A draft")
