"""The console in a real Chromium: what members are offered in threads and runs of others."""

import re

import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect

from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_access import change_role
from tests.acceptance.test_console_settings import go, press, signed_in
from tests.caller import Caller, script
from tests.system import System
from tests.waiting import eventually

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]


def asking(user: Caller, question: str) -> str:
    """Return a run that waits for an answer."""
    run_id = user.run({"tool": "ask_user", "args": {"question": question}}, {"say": "Thanks."})
    user.until(run_id, "phase", "waiting")
    return run_id


@pytest.fixture
def member(system: System, owner: Caller) -> Caller:
    return system.colleague(owner)


def expect_count(page: Page, count: int) -> None:
    """Wait until *Inbox* has this number beside it."""
    expect(page.get_by_role("navigation").locator(".count")).to_have_text(f"{count} waiting")


def test_the_inbox_offers_members_their_own_runs_alone(
    context: BrowserContext, owner: Caller, member: Caller
) -> None:
    """The prompt of another's run says who can answer, and the number leaves it out."""
    theirs, mine = asking(owner, "Which size?"), asking(member, "Which colour?")
    page = signed_in(context, member, "/inbox")
    other = page.locator(".inbox-item", has_text="Which size?")
    expect(other).to_contain_text(f"Only {owner.login} or an admin can answer")
    expect(other.get_by_role("button")).to_have_count(0)
    expect(other.get_by_role("textbox")).to_have_count(0)
    expect_count(page, 1)
    own = page.locator(".inbox-item", has_text="Which colour?")
    own.get_by_role("textbox").fill("Blue")
    press(own, "Answer")

    expect(own).to_have_count(0)
    assert "completed" == member.ended(mine)["status"]
    expect(page.get_by_role("navigation").locator(".count")).to_have_count(0)
    owner.cancel(theirs)


def test_the_number_has_a_members_own_run_behind_newer_ones(
    context: BrowserContext, owner: Caller, member: Caller
) -> None:
    """More runs of others wait than a page of the list has: here, one run in place of 50."""
    runs = [asking(member, "Which colour?"), asking(owner, "Which size?")]

    def shorten(route: Route) -> None:
        url = re.sub(
            r"limit=(\d+)", lambda found: f"limit={int(found[1]) // 50}", route.request.url
        )
        route.continue_(url=url)

    context.route("**/v1/runs?*status=waiting_for_input*", shorten)
    page = signed_in(context, member, "/keys")

    expect_count(page, 1)
    for user, run_id in zip((member, owner), runs, strict=True):
        user.cancel(run_id)


def test_the_inbox_offers_an_admin_all_runs(
    context: BrowserContext, system: System, owner: Caller, member: Caller
) -> None:
    """Admins answer what the runs of members ask, and the number counts them."""
    run_id = asking(member, "Which colour?")
    page = signed_in(context, system.colleague(owner, "admin"), "/inbox")
    expect_count(page, 1)
    item = page.locator(".inbox-item")
    item.get_by_role("textbox").fill("Blue")
    press(item, "Answer")

    assert "completed" == member.ended(run_id)["status"]


def test_an_owners_key_without_admin_is_offered_its_owners_runs_alone(
    context: BrowserContext, owner: Caller, member: Caller
) -> None:
    """The role alone gives a key no right that its scopes do not name."""
    asking(member, "Which colour?")
    asking(owner, "Which size?")
    _, key = owner.api_key(scopes=["data.runs.read", "data.runs.write", "data.threads.read"])
    page = context.new_page()
    page.goto(f"{owner.url}/console#/sign-in?with=key")
    page.get_by_label("API key").fill(key)
    press(page, "Sign in")
    go(page, "/inbox")

    own, other = (page.locator(".inbox-item", has_text=one) for one in ("size", "colour"))
    expect(own.get_by_role("textbox")).to_be_visible()
    expect(other).to_contain_text(f"Only {member.login} or an admin can answer")
    expect_count(page, 1)


def test_a_thread_of_somebody_else_offers_no_changes(
    context: BrowserContext, owner: Caller, member: Caller
) -> None:
    """Its conversation is followed, and its runs are listed, without what would be refused."""
    thread_id = owner.thread(script({"say": "Hello"}))
    owner.ended(owner.start(thread_id))
    page = signed_in(context, member, f"/threads/{thread_id}")
    expect(page.locator(".run .markdown")).to_have_text("Hello")
    head = page.locator(".chat .head")
    expect(head.get_by_role("link", name="Runs")).to_be_visible()
    asked = owner.made(
        f"/v1/threads/{thread_id}/runs",
        {"message": script({"tool": "ask_user", "args": {"question": "Which size?"}})},
    )["run_id"]
    queued = {"message": "And then?", "on_busy": "enqueue"}
    waiting = owner.made(f"/v1/threads/{thread_id}/runs", queued)["run_id"]
    expect(page.locator(".ask")).to_contain_text("or an admin, can answer")
    page.reload()
    expect(page.locator(".queued")).to_contain_text("Waits for the answer before")
    expect(page.locator(".ask")).to_contain_text("or an admin, can answer")
    expect(head.get_by_role("link", name="Runs")).to_be_visible()

    for name in ("Rename", "Delete thread", "Retry", "Cancel", "Send", "Stop", "Answer"):
        expect(page.get_by_role("button", name=name, exact=True)).to_have_count(0)
    expect(page.get_by_role("textbox")).to_have_count(0)
    for run_id in (waiting, asked):
        owner.cancel(run_id)
    expect(page.locator(".ending").last).to_have_text("Cancelled")
    expect(page.get_by_role("button", name="Retry")).to_have_count(0)


def test_a_thread_of_ones_own_offers_all_but_the_run_of_somebody_else(
    context: BrowserContext, owner: Caller, member: Caller
) -> None:
    """An owner's run there is neither answered nor stopped; the next message waits for it."""
    thread_id = member.thread(script({"tool": "ask_user", "args": {"question": "Which size?"}}))
    run_id = owner.start(thread_id)
    owner.until(run_id, "phase", "waiting")
    page = signed_in(context, member, f"/threads/{thread_id}")
    expect(page.locator(".ask")).to_contain_text("or an admin, can answer")
    for name in ("Rename", "Delete thread", "Send"):
        expect(page.get_by_role("button", name=name, exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="Stop")).to_have_count(0)
    choices = page.get_by_label("When to send").locator("option")
    expect(choices).to_have_text(["Send after this answer", "Give it to the running agent"])
    owner.cancel(run_id)

    expect(page.get_by_role("button", name="Retry")).to_be_visible()
    page.get_by_role("button", name="Retry").click()
    expect(page.locator(".ask").get_by_role("textbox")).to_be_visible()
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    eventually(lambda: member.get(f"/v1/threads/{thread_id}")["active_run_id"] is not None)


def test_an_open_thread_follows_the_role(
    context: BrowserContext, system: System, owner: Caller
) -> None:
    """A refused answer of an admin who has become a member leaves nothing to press."""
    admin, run_id = system.colleague(owner, "admin"), asking(owner, "Which size?")
    thread_id = owner.get_run(run_id)["thread_id"]
    queued = {"message": "And then?", "on_busy": "enqueue"}
    waiting = owner.made(f"/v1/threads/{thread_id}/runs", queued)["run_id"]
    page = signed_in(context, admin, f"/threads/{thread_id}")
    box = page.locator(".ask")
    cancel = page.locator(".queued").get_by_role("button", name="Cancel")
    box.get_by_role("textbox").fill("Large")
    expect(cancel).to_be_visible()
    change_role(owner, admin, "member")
    press(box, "Answer")

    expect(box).to_contain_text("or an admin, can answer")
    expect(box.get_by_role("textbox")).to_have_count(0)
    expect(cancel).to_have_count(0)
    for one in (waiting, run_id):
        owner.cancel(one)


def test_a_run_of_somebody_else_is_not_cancelled_on_its_page(
    context: BrowserContext, owner: Caller, member: Caller
) -> None:
    """Its page shows the prompt, and leads to its thread."""
    run_id = asking(owner, "Which size?")
    page = signed_in(context, member, f"/runs/{run_id}")
    expect(page.locator(".ask")).to_contain_text("Which size?")
    expect(page.locator(".ask")).to_contain_text("or an admin, can answer")
    expect(page.get_by_role("link", name="Open thread")).to_be_visible()
    expect(page.get_by_role("button", name="Cancel run")).to_have_count(0)
    expect(page.locator(".ask").get_by_role("button")).to_have_count(0)
    mine = asking(member, "Which colour?")
    go(page, f"/runs/{mine}")

    press(page, "Cancel run")
    assert "cancelled" == member.ended(mine)["status"]
    owner.cancel(run_id)
