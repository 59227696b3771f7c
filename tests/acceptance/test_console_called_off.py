"""Changes in the console, in a real Chromium, that people call off while the service is away."""

from datetime import datetime, timedelta

import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect

from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_losses import killed, lose, unreachable
from tests.acceptance.test_console_settings import go, press, row, signed_in, until_held
from tests.caller import Caller
from tests.clients import PASSWORD

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]
SENT_AGAIN = "No response: it is sent again"


def is_back(context: BrowserContext, page: Page) -> None:
    """Bring the network back, and wait for longer than a request takes to be sent again."""
    context.set_offline(False)
    page.wait_for_timeout(1_500)


@pytest.mark.parametrize("way", ["Cancel", "Esc", "another page"])
def test_a_key_is_not_revoked_after_the_person_has_left(
    context: BrowserContext, user: Caller, way: str
) -> None:
    """The dialog says that it tries again; what was cancelled is not done once it could be."""
    user.api_key(name=way)
    page = signed_in(context, user, "/keys")
    press(row(page, way), f"Revoke {way}")
    context.set_offline(True)
    press(page.get_by_role("dialog"), "Revoke key")
    expect(page.get_by_role("dialog").get_by_role("status")).to_contain_text(SENT_AGAIN)
    if way == "Cancel":
        press(page.get_by_role("dialog"), "Cancel")
    elif way == "Esc":
        page.keyboard.press("Escape")
    else:
        go(page, "/threads")
    expect(page.get_by_role("dialog")).to_have_count(0)
    is_back(context, page)

    [key] = [one for one in user.get("/v1/api-keys") if one["name"] == way]
    assert key["revoked_at"] is None


def test_a_first_attempt_arrives_though_the_person_leaves(
    context: BrowserContext, user: Caller
) -> None:
    """Nothing said that it would not: a run that somebody cancels does not go on."""
    run_id = user.run({"hang": 60})
    page = signed_in(context, user, f"/runs/{run_id}")
    held: list[Route] = []
    context.route("**/v1/runs/*:cancel", lambda route: held.append(route))
    press(page, "Cancel run")
    expect(page.get_by_role("button", name="Cancel run")).to_be_disabled()
    until_held(page, held, 1)
    go(page, "/threads")
    expect(page.get_by_role("button", name="Cancel run")).to_have_count(0)
    held[0].continue_()
    page.wait_for_timeout(200)

    assert "cancelled" == user.ended(run_id)["status"]


def test_a_persona_is_not_published_after_the_form_was_left(
    context: BrowserContext, user: Caller
) -> None:
    """The page that the person went to stays."""
    page = signed_in(context, user, "/personas?publish=1")
    page.get_by_label("Key").fill("late")
    context.set_offline(True)
    press(page, "Publish")
    expect(page.get_by_role("status").filter(has_text=SENT_AGAIN)).to_be_visible()
    go(page, "/runs")
    # The address changes before the page does, which calls the change off.
    expect(page.get_by_role("button", name="Publish", exact=True)).to_have_count(0)
    is_back(context, page)

    assert page.url.endswith("#/runs")
    assert 404 == user.http.get("/v1/personas/late@1").status_code


def test_what_arrived_before_it_was_called_off_is_shown(
    context: BrowserContext, user: Caller
) -> None:
    """The list is read again, so that the key can be revoked."""
    page = signed_in(context, user, "/keys")
    lose(context, "**/v1/api-keys", killed, *[unreachable] * 50)
    press(page, "Create key")
    form = page.get_by_role("dialog")
    form.get_by_label("Name").fill("Arrived")
    press(form, "Create key")
    expect(form.get_by_role("status")).to_contain_text("may have arrived already")
    press(form, "Cancel")

    expect(row(page, "Arrived")).to_be_visible()
    assert 1 == len([one for one in user.get("/v1/api-keys") if one["name"] == "Arrived"])


def test_a_change_is_not_sent_again_for_ever(context: BrowserContext, user: Caller) -> None:
    """The dialog stays, and says that an attempt may have arrived."""
    user.api_key(name="Kept")
    page = signed_in(context, user, "/keys")
    press(row(page, "Kept"), "Revoke Kept")
    context.set_offline(True)
    press(page.get_by_role("dialog"), "Revoke key")
    expect(page.get_by_role("dialog").get_by_role("status")).to_contain_text(SENT_AGAIN)
    page.clock.set_fixed_time(datetime.now().astimezone() + timedelta(minutes=6))

    alert = page.get_by_role("dialog").get_by_role("alert")
    expect(alert).to_contain_text("An attempt may have arrived", timeout=20_000)
    expect(page.get_by_role("button", name="Revoke key")).to_be_enabled()


def test_joining_is_called_off_with_its_form(context: BrowserContext, user: Caller) -> None:
    """Another way to join does not wait for the one before, which holds the lock of log-ins."""
    invited = {"name": "slow", "role": "member"}
    token = user.made(f"/v1/orgs/{user.org_id}/invitations", invited)["token"]
    page = context.new_page()
    page.goto(f"{user.url}/console#/join/{token}")
    held: list[Route] = []
    context.route("**/v1/auth/register", lambda route: held.append(route))
    page.get_by_label("User name").fill(f"slow-{user.login}")
    page.get_by_label("Email").fill(f"slow-{user.login}@example.com")
    page.get_by_label("Password").fill(PASSWORD)
    press(page, "Create account and join")
    until_held(page, held, 1)

    with page.expect_event("requestfailed", lambda request: request.url.endswith("register")):
        press(page, "I have an account")
    page.get_by_label("User name or email").fill(user.login)
    page.get_by_label("Password").fill(PASSWORD)
    with page.expect_response("**/v1/auth/login"):
        press(page, "Sign in and join")


@pytest.mark.parametrize("newer", [0, 45])
def test_a_thread_that_was_deleted_before_it_was_called_off_leaves_the_list(
    context: BrowserContext, owner: Caller, newer: int
) -> None:
    """The list is read again sooner than by its timer, also below its first page."""
    owner.thread(title="Oldest")
    thread_id = owner.thread(title="Old")
    for number in range(newer):
        owner.thread(title=f"Newer {number}")
    page = signed_in(context, owner, f"/threads/{thread_id}")
    region = page.get_by_role("region", name="Threads")
    if newer:
        press(region, "Older threads")
    listed = region.get_by_text("Old", exact=True)
    expect(listed).to_be_visible()
    held: list[Route] = []
    address = f"**/v1/threads/{thread_id}"
    page.route(address, lambda route: held.append(route))
    press(page, "Delete thread")
    press(page.get_by_role("dialog"), "Delete")
    until_held(page, held, 1)
    press(page.get_by_role("dialog"), "Cancel")
    expect(page.get_by_role("dialog")).to_have_count(0)
    killed(held[0])

    expect(listed).to_have_count(0, timeout=5_000)
    expect(region.get_by_text("Oldest")).to_be_visible()
