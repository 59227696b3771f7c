"""Pages of the console in a real Chromium that people leave for their identity provider."""

import re

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_settings import go, press, signed_in
from tests.acceptance.test_console_sign_in import choose, enter, join, link
from tests.caller import Caller
from tests.identity_provider import IdentityProvider
from tests.system import System

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]


def at_provider(page: Page, org_id: str) -> None:
    """Sign in at the identity provider of an org."""
    press(page, "Sign in with your identity provider")
    page.get_by_label("Organization id").fill(org_id)
    press(page, "Continue")


def test_a_link_is_open_after_signing_in_at_a_provider(
    context: BrowserContext, system: System, home: str
) -> None:
    """A run that a colleague has sent the link of, and not the threads; once, in that tab."""
    owner = system.caller().at(home)
    person = system.colleague(owner)
    run_id = owner.run({"say": "Done."})
    with IdentityProvider() as provider:
        choose(provider, owner, person, context)
        page = context.new_page()
        page.goto(f"{home}/console#/runs/{run_id}?from=mail")
        at_provider(page, owner.org_id)
        expect(page.get_by_role("navigation")).to_contain_text("member ·")

        expect(page).to_have_url(f"{home}/console#/runs/{run_id}?from=mail")
        expect(page.get_by_role("heading", name=f"Run …{run_id[-8:]}")).to_be_visible()
        page.goto("about:blank")
        page.goto(f"{home}/console")
        expect(page).to_have_url(re.compile("#/threads$"))


def test_a_link_is_open_after_a_refusal_of_the_provider(
    context: BrowserContext, system: System, home: str
) -> None:
    """The sign-in page keeps the address, for the password or another attempt."""
    owner = system.caller().at(home)
    person = system.colleague(owner).at(home)
    person.api_key()
    run_id = owner.run({"say": "Done."})
    with IdentityProvider() as provider:
        choose(provider, owner, person, context)
        page = context.new_page()
        page.goto(f"{home}/console#/runs/{run_id}")
        at_provider(page, owner.org_id)
        expect(page.get_by_role("status")).to_contain_text("sign in with the password")
        enter(page, person.login)
        expect(page.get_by_role("navigation")).to_contain_text("member ·")

        expect(page).to_have_url(f"{home}/console#/runs/{run_id}")


def test_a_page_of_one_org_is_not_opened_in_another(
    context: BrowserContext, system: System, home: str
) -> None:
    """Its address names what the org has that is left by the provider of the other one."""
    user, owner = (system.caller().at(home) for _ in range(2))
    join(user, owner)
    with IdentityProvider() as provider:
        choose(provider, owner, user, context)
        link(provider, owner, user)
        page = signed_in(context, user, f"/threads/{user.thread('Hello')}")
        press(page, "Change organization")
        dialog = page.get_by_role("dialog", name="Change organization")
        press(dialog, "Sign in with your identity provider")
        press(dialog, "Continue")
        expect(page.get_by_role("navigation")).to_contain_text("member ·")

        expect(page).to_have_url(re.compile("#/threads$"))


def test_a_page_is_not_opened_in_another_org_after_signing_out(
    context: BrowserContext, system: System, home: str
) -> None:
    """The sign-in page has the address of the org before until a link of another one is opened."""
    user, owner = (system.caller().at(home) for _ in range(2))
    person = system.colleague(owner)
    run_id = user.run({"say": "Done."})
    thread = f"/threads/{user.thread('Hello')}"
    with IdentityProvider() as provider:
        choose(provider, owner, person, context)
        page = signed_in(context, user, thread)
        press(page, "Sign out")
        at_provider(page, owner.org_id)
        expect(page.get_by_role("navigation")).to_contain_text("member ·")
        expect(page).to_have_url(re.compile("#/threads$"))
    go(page, f"/threads/{owner.thread('Hello')}")
    press(page, "Sign out")
    enter(page, user.login)
    expect(page.get_by_role("navigation")).to_contain_text("owner ·")
    expect(page).to_have_url(re.compile("#/threads$"))
    expect(page.get_by_text("No thread selected")).to_be_visible()
    go(page, thread)
    press(page, "Sign out")
    go(page, f"/runs/{run_id}")
    enter(page, user.login)

    expect(page.get_by_role("heading", name=f"Run …{run_id[-8:]}")).to_be_visible()


def test_a_page_is_not_opened_in_another_org_by_an_api_key(
    context: BrowserContext, user: Caller, owner: Caller
) -> None:
    """Another tab in which somebody has signed out has the list of the new org, too."""
    thread = f"/threads/{user.thread('Hello')}"
    page, other = signed_in(context, user, thread), context.new_page()
    other.goto(f"{user.url}/console#{thread}")
    expect(other.get_by_text("Hello")).to_be_visible()
    press(page, "Sign out")
    expect(other.get_by_text("You signed out in another tab.")).to_be_visible()
    press(page, "Sign in with an API key")
    page.get_by_label("API key").fill(owner.api_key()[1])
    press(page, "Sign in")
    expect(page).to_have_url(re.compile("#/threads$"))
    press(page, "Sign out")
    enter(page, owner.login)

    expect(other).to_have_url(re.compile("#/threads$"))
