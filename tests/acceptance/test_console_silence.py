"""The console in a real Chromium on connections that have fallen silent, as those of a train do."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from playwright.sync_api import BrowserContext, Locator, Page, Route, expect

from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_losses import CREATES, hold, lose, say, unreachable
from tests.acceptance.test_console_settings import go, press, signed_in, until_held
from tests.acceptance.test_files import upload
from tests.caller import Caller, script
from tests.clients import PASSWORD
from tests.silencing_proxy import SilencingProxy, silencing_proxy
from tests.system import System

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]
#: Longer than the page waits for a response.
SILENCE_MS = 31_000
#: The most connections that a browser keeps to a server: each of them may be silent.
CONNECTIONS = 6
UNSURE = "The password may have been changed: try to sign in with the new one."
NEW_PASSWORD = "another-long-password"


@pytest.fixture
def proxy(user: Caller) -> Iterator[SilencingProxy]:
    with silencing_proxy(int(user.url.rpartition(":")[2])) as made:
        yield made


def opened(context: BrowserContext, user: Caller, proxy: SilencingProxy, address: str) -> Page:
    """Open an address of the console behind the proxy, with a clock that the test moves."""
    context.clock.install()
    return signed_in(context, replace(user, url=proxy.url), address)


def assert_comes(page: Page, locator: Locator) -> None:
    """Assert that it is there once the page has given up the silent connections."""
    for _ in range(CONNECTIONS):
        page.clock.fast_forward(SILENCE_MS)
        # A request is sent again after a pause, which the clock of the test does not skip.
        page.wait_for_timeout(1_500)
        if locator.count() > 0:
            break
    expect(locator).to_be_visible()


def test_a_message_is_sent_again(
    context: BrowserContext, user: Caller, proxy: SilencingProxy
) -> None:
    """It is there once, and answered."""
    thread_id = user.thread()
    page = opened(context, user, proxy, f"/threads/{thread_id}")
    expect(page.get_by_text("Nothing said yet")).to_be_visible()
    proxy.silence()
    with page.expect_request("**/v1/threads/*/runs"):
        say(page, script({"say": "Heard."}))

    assert_comes(page, page.locator(".run .markdown").get_by_text("Heard."))
    expect(page.locator(".said")).to_have_count(1)
    expect(page.get_by_text("Sending …")).to_have_count(0)
    assert 2 == len(user.kept(thread_id))


def test_a_long_message_has_the_time_that_a_slow_connection_takes(
    context: BrowserContext, user: Caller
) -> None:
    """A request is given up after 30 s and the time that its bytes take at 8 KB/s."""
    context.clock.install()
    thread_id = user.thread()
    page = signed_in(context, user, f"/threads/{thread_id}")
    expect(page.get_by_text("Nothing said yet")).to_be_visible()
    held = hold(context, CREATES)
    failed: list[str] = []
    page.on("requestfailed", lambda one: failed.append(one.url))
    say(page, "é" * 120_000)
    until_held(page, held, 1)
    page.clock.fast_forward(55_000)
    page.wait_for_timeout(1_000)
    assert [] == [url for url in failed if url.endswith("/runs")]
    page.clock.fast_forward(10_000)
    until_held(page, held, 2)
    held[1].continue_()

    expect(page.locator(".run")).to_contain_text("You said: é")
    expect(page.locator(".said")).to_have_count(1)
    assert 1 == len(user.get(f"/v1/threads/{thread_id}/runs"))


def test_a_thread_is_opened(context: BrowserContext, user: Caller, proxy: SilencingProxy) -> None:
    """The page loads it again by itself."""
    thread_id = user.thread("Are you there?", title="A quiet thread")
    page = opened(context, user, proxy, "/threads")
    link = page.get_by_role("link", name="A quiet thread")
    expect(link).to_be_visible()
    proxy.silence()
    with page.expect_request(f"**/{thread_id}/timeline*"):
        link.click()

    assert_comes(page, page.locator(".said").get_by_text("Are you there?"))
    expect(page.get_by_role("alert")).to_have_count(0)


@pytest.mark.parametrize("kind", ["approval", "question"])
def test_a_reply_is_sent_again(
    context: BrowserContext, user: Caller, proxy: SilencingProxy, kind: str
) -> None:
    """The run continues with it, and the box goes."""
    if kind == "approval":
        fields = {"tools": ["calculator"], "require_approval": ["calculator"]}
        user.made("/v1/personas", {"key": "silent", "route_id": "scripted", **fields})
        step = {"tool": "calculator", "args": {"expression": "6 * 7"}}
        run_id = user.run(step, {"say": "Done."}, persona_id="silent")
    else:
        step = {"tool": "ask_user", "args": {"question": "Which?"}}
        run_id = user.run(step, {"say": "Done."})
    user.until(run_id, "phase", "waiting")
    page = opened(context, user, proxy, f"/threads/{user.get_run(run_id)['thread_id']}")
    expect(page.get_by_role("group", name="Reply")).not_to_have_attribute("aria-disabled", "true")
    if kind == "question":
        page.get_by_label("Your answer").fill("blue")
    proxy.silence()
    with page.expect_request("**/v1/runs/*/input"):
        name = "Approve" if kind == "approval" else "Answer"
        page.get_by_role("button", name=name, exact=True).click()

    assert_comes(page, page.locator(".run .markdown").get_by_text("Done."))
    expect(page.locator(".ask")).to_have_count(0)
    assert "completed" == user.ended(run_id)["status"]


def test_a_thread_is_loaded_again_whose_first_half_came(
    context: BrowserContext, user: Caller, proxy: SilencingProxy
) -> None:
    """A connection that falls silent within a long response is given up, too."""
    user.thread(*["long " * 50_000] * 2, title="A long thread")
    page = opened(context, user, proxy, "/threads")
    link = page.get_by_role("link", name="A long thread")
    expect(link).to_be_visible()
    proxy.silence_after(200_000)
    with page.expect_response("**/timeline*"):
        link.click()

    assert_comes(page, page.locator(".said").nth(1))
    assert 1 == proxy.silences


@pytest.fixture
def member(system: System) -> Caller:
    """A user whose password a test changes."""
    return system.caller()


def carried_out(context: BrowserContext, pattern: str) -> list[int]:
    """Have the service carry out requests whose responses never arrive; return their statuses."""
    statuses: list[int] = []
    context.route(pattern, lambda route: statuses.append(route.fetch().status))
    return statuses


def held(context: BrowserContext, pattern: str) -> list[Route]:
    """Hold requests on their way: they never arrive."""
    routes: list[Route] = []
    context.route(pattern, lambda route: routes.append(route))
    return routes


def test_a_new_password_may_have_been_set(context: BrowserContext, member: Caller) -> None:
    """The page says so where the response does not come, and the new password is in force."""
    context.clock.install()
    page = signed_in(context, member, "/password")
    statuses = carried_out(context, "**/v1/auth/password")
    page.get_by_label("Current password").fill(PASSWORD)
    page.get_by_label("New password", exact=True).fill(NEW_PASSWORD)
    page.get_by_label("New password, again").fill(NEW_PASSWORD)
    press(page, "Change password")
    assert_comes(page, page.get_by_role("alert").filter(has_text=UNSURE))

    assert [200] == statuses
    login = {"login": member.login, "password": NEW_PASSWORD}
    assert member.http.post("/v1/auth/login", json=login).is_success


def test_a_password_of_a_link_may_have_been_set(context: BrowserContext, user: Caller) -> None:
    """A person with the link of an admin reads it, too, and can press the button again."""
    context.clock.install()
    routes = held(context, "**/v1/auth/password-reset")
    page = context.new_page()
    page.goto(f"{user.url}/console#/reset/a-token")
    page.get_by_label("New password").fill(NEW_PASSWORD)
    press(page, "Change password")
    until_held(page, routes, 1)

    assert_comes(page, page.get_by_role("alert").filter(has_text=UNSURE))
    expect(page.get_by_role("button", name="Change password")).to_be_enabled()


def test_a_link_to_a_provider_is_offered_again(context: BrowserContext, user: Caller) -> None:
    """Nothing is linked before the person comes back from the provider."""
    context.clock.install()
    page = signed_in(context, user, "/identity-provider")
    routes = held(context, "**/v1/auth/oidc/link")
    page.get_by_label("Your password").fill(PASSWORD)
    press(page, "Continue")
    until_held(page, routes, 1)

    assert_comes(page, page.get_by_role("alert").filter(has_text="Nothing is linked yet"))


def test_a_key_is_given_up(context: BrowserContext, user: Caller) -> None:
    """A person who signs in with one can press the button again."""
    context.clock.install()
    routes = held(context, "**/v1/me")
    page = context.new_page()
    page.goto(f"{user.url}/console#/sign-in?with=key")
    page.get_by_label("API key").fill("al_key")
    press(page, "Sign in")
    until_held(page, routes, 1)

    assert_comes(page, page.get_by_role("alert").filter(has_text="The service cannot be reached."))
    expect(page.get_by_role("button", name="Sign in", exact=True)).to_be_enabled()


def test_a_file_whose_first_half_came_is_given_up(
    context: BrowserContext, user: Caller, proxy: SilencingProxy
) -> None:
    """The page says what it says of every lost connection."""
    part = {"type": "file", "file_id": upload(user, b"Long lines\n" * 90_000, "long.txt")}
    page = opened(context, user, proxy, f"/threads/{user.thread([part])}")
    link = page.get_by_role("button", name="long.txt")
    expect(link).to_be_visible()
    proxy.silence_after(200_000)
    with page.expect_response("**/content"):
        link.click()

    assert_comes(page, page.get_by_role("alert").filter(has_text="The service cannot be reached."))


@pytest.mark.parametrize(
    ("address", "pattern"),
    [
        ("/usage?key=team", "**/v1/me/usage/by-metadata*"),
        ("/personas?publish=1", "**/v1/routes"),
        ("/audit", "**/v1/orgs/*/members*"),
    ],
)
def test_a_read_that_was_lost_is_offered_again(
    context: BrowserContext, user: Caller, address: str, pattern: str
) -> None:
    """Where a part of a page is missing, the page says so, and reads it again on request."""
    page = signed_in(context, user, "/keys")
    lose(context, pattern, unreachable)
    go(page, address)
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("The service cannot be reached.")
    with page.expect_response(pattern):
        press(alert, "Try again")

    expect(alert).to_have_count(0)
