"""Lists in the console, in a real Chromium, of which a page of the service has a part."""

import re
from uuid import UUID

import pytest
from playwright.sync_api import BrowserContext, Locator, Page, Route, expect

from arkloop.shared.accounts import operators
from tests.acceptance.served_later import serve, serve_budgets
from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_losses import hold
from tests.acceptance.test_console_settings import go, press, signed_in, until_held
from tests.caller import Caller, client
from tests.clients import PASSWORD
from tests.system import System

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]


def shorten(page: Page, pattern: str) -> None:
    """Let each page of a list have one row."""

    def ask(route: Route) -> None:
        route.continue_(url=re.sub(r"limit=\d+", "limit=1", route.request.url))

    page.route(pattern, ask)


def member(user: Caller, name: str) -> tuple[str, str]:
    """Add a member to the org; return login and token."""
    invited = {"name": name, "role": "member"}
    invitation = user.made(f"/v1/orgs/{user.org_id}/invitations", invited)["token"]
    login = f"{name}-{user.login}"
    body = {"login": login, "email": f"{login}@example.com", "password": PASSWORD}
    made = client(user.url).post("/v1/auth/register", json={**body, "invitation": invitation})
    assert 201 == made.status_code, made.text
    return login, made.json()["access_token"]


def test_a_new_thread_offers_all_personas(context: BrowserContext, user: Caller) -> None:
    """Versions of one persona do not hide the personas that come after it."""
    for number in range(51):
        user.made("/v1/personas", {"key": "billing", "version": str(number + 1)})
    user.made("/v1/personas", {"key": "support"})
    page = signed_in(context, user, "/threads/new")

    expect(page.get_by_label("Persona").locator("option", has_text="billing")).to_have_count(1)
    expect(page.get_by_label("Persona").locator("option", has_text="support")).to_have_count(1)


def test_a_new_thread_reads_one_version_of_each_persona(
    context: BrowserContext, user: Caller
) -> None:
    """A process of the release before, which reads all of them, is asked for these."""
    for number in range(3):
        user.made("/v1/personas", {"key": "prolific", "version": str(number + 1)})
    page = signed_in(context, user, "/keys")
    option = page.get_by_label("Persona").locator("option", has_text="prolific")
    with page.expect_response("**/v1/personas?*") as read:
        go(page, "/threads/new")
    expect(option).to_have_count(1)
    assert 1 == [one["key"] for one in read.value.json()].count("prolific")

    error = {"code": "validation.error", "message": "Invalid.", "details": {}}
    page.route("**/v1/personas?newest=*", lambda route: route.fulfill(status=422, json=error))
    page.reload()
    expect(option).to_have_count(1)
    expect(page.get_by_role("alert")).to_have_count(0)


def test_the_audit_log_offers_all_members(context: BrowserContext, user: Caller) -> None:
    """The members are read page by page."""
    login, _ = member(user, "audited")
    page = signed_in(context, user, "/keys")
    shorten(page, "**/members?*")
    go(page, "/audit")

    expect(page.get_by_label("Member").locator("option", has_text=login)).to_have_count(1)
    expect(
        page.get_by_label("Member").get_by_role("option", name=user.login, exact=True)
    ).to_have_count(1)


def test_queues_of_some_orgs_are_not_called_those_of_all(
    context: BrowserContext, system: System, user: Caller
) -> None:
    """Where the service lists as many as it can, the sums are of these."""
    org = {"name": "acme", "slug": None, "weight": 1, "suspended_at": None, "queued": 1}
    rest = {"queued_for_agents": 0, "executing": 0, "waiting": 0, "not_yet_due": 0}
    orgs = [
        {**org, **rest, "org_id": str(number), "oldest_queued_at": None} for number in range(200)
    ]
    body = {"measured_at": "2026-11-27T06:10:02.113Z", "classes": [], "orgs": orgs}
    context.route("**/v1/operator/queues", lambda route: route.fulfill(json=body))
    with system.connections.transaction() as tx:
        operators.add(tx, UUID(str(user.id)))
    page = signed_in(context, user, "/queues")

    expect(page.locator(".lead")).to_contain_text("of the 200 organizations below")
    body["orgs"] = orgs[:199]
    expect(page.locator(".lead")).to_contain_text("of all organizations", timeout=15_000)


def figure(page: Page, name: str) -> Locator:
    """Return the number with this name at the top of a page."""
    return page.locator(".figures > div", has=page.get_by_text(name, exact=True)).locator("dd")


def test_runs_of_suspended_orgs_are_not_in_the_queue(
    context: BrowserContext, system: System, user: Caller
) -> None:
    """No worker takes them; what is executed for the org, or waits for people, still counts."""
    at = "2026-11-01T00:00:00.000Z"
    org = {"slug": None, "weight": 1, "executing": 1, "waiting": 2, "not_yet_due": 3}
    closed = {"suspended_at": at, "oldest_queued_at": at, "queued": 40, "queued_for_agents": 40}
    live = {"suspended_at": None, "oldest_queued_at": None, "queued": 2, "queued_for_agents": 2}
    orgs = [
        {**org, **closed, "org_id": "1", "name": "Closed"},
        {**org, **live, "org_id": "2", "name": "Live"},
    ]
    body = {"measured_at": at, "classes": [], "orgs": orgs}
    context.route("**/v1/operator/queues", lambda route: route.fulfill(json=body))
    with system.connections.transaction() as tx:
        operators.add(tx, UUID(str(user.id)))
    page = signed_in(context, user, "/queues")

    for name in ("Queued", "For agent workers"):
        expect(figure(page, name)).to_have_text("2")
    expect(figure(page, "Oldest")).to_have_text("–")
    for name, total in (("Executing", "2"), ("Waiting", "4"), ("Not yet due", "6")):
        expect(figure(page, name)).to_have_text(total)


def test_workers_and_stuck_runs_say_that_there_may_be_more(
    context: BrowserContext, system: System, user: Caller
) -> None:
    """The service lists the first 200, without pages."""
    at = "2026-11-27T06:10:02.113Z"
    times = {"seen_at": at, "lease_expires_at": at, "started_at": at, "since": at}
    worker = {"agent": None, "org_id": None, "hostname": "host", "pid": 1, "runs": 0}
    run = {"problem": "queued", "org_name": "acme", "persona_id": "assistant@1", "attempt": 1}
    row = {**times, **worker, **run, "route_id": "scripted", "is_alive": True}
    rows = [{**row, "id": f"id-{number}", "run_id": f"run-{number}"} for number in range(200)]
    body = {"items": rows}
    for pattern in ("**/v1/operator/workers", "**/v1/operator/stuck-runs?*"):
        context.route(pattern, lambda route: route.fulfill(json=body))
    with system.connections.transaction() as tx:
        operators.add(tx, UUID(str(user.id)))
    page = signed_in(context, user, "/workers")

    expect(page.locator(".lead")).to_contain_text("first 200 worker processes")
    go(page, "/stuck")
    expect(page.locator(".lead")).to_contain_text("200 of maybe more")
    body["items"] = rows[:199]
    expect(page.locator(".lead")).not_to_contain_text("200", timeout=15_000)
    go(page, "/workers")
    expect(page.locator(".lead")).to_contain_text("Worker processes that were heard")


def test_usage_says_that_there_are_cheaper_end_users(context: BrowserContext, user: Caller) -> None:
    """The service returns the most expensive ones, which the page sorts by another measure."""
    row = {"runs": 1, "input_tokens": 1, "output_tokens": 1, "cost_usd": 0.5}
    rows = [{**row, "end_user_id": f"customer-{number}"} for number in range(20)]
    context.route("**/v1/me/usage/by-end-user*", lambda route: route.fulfill(json=rows))
    page = signed_in(context, user, "/usage?measure=runs")

    expect(page.get_by_text("The 20 most expensive.")).to_be_visible(timeout=30_000)


def test_usage_names_its_month_and_its_zone(context: BrowserContext, user: Caller) -> None:
    """The month, like the days, is one of UTC; in a tab that stays open it may have ended."""
    total = {"runs": 1, "input_tokens": 1, "output_tokens": 1, "cache_read_tokens": 0}
    body = {**total, "cost_usd": 0.5, "this_month": {"month": "2026-11", "cost_usd": 12.5}}
    context.route("**/v1/me/usage?*", lambda route: route.fulfill(json=body))
    page = signed_in(context, user, "/usage")
    cost = page.locator(".figures div").filter(has_text="$12.50")

    expect(cost.locator("dt")).to_have_text("Cost in 2026-11")
    expect(page.get_by_role("heading", name="By day (UTC)", exact=True)).to_be_visible()


def test_values_of_another_key_of_metadata_are_not_shown(
    context: BrowserContext, user: Caller
) -> None:
    """The report may have to wait for others, and those of the key before would seem to be its."""
    row = {"runs": 1, "input_tokens": 1, "output_tokens": 1, "cost_usd": 0.5, "value": "red"}
    context.route("**/v1/me/usage/by-metadata*", lambda route: route.fulfill(json=[row]))
    page = signed_in(context, user, "/usage?key=team")
    expect(page.get_by_text("red", exact=True)).to_be_visible(timeout=30_000)
    held = hold(context, "**/v1/me/usage/by-metadata*key=tier*")
    page.get_by_label("Key", exact=True).fill("tier")
    page.get_by_label("Key", exact=True).press("Enter")
    until_held(page, held, 1)

    expect(page.get_by_text("red", exact=True)).to_have_count(0)
    held.pop().fulfill(json=[{**row, "value": "gold"}])
    expect(page.get_by_text("gold", exact=True)).to_be_visible()
    expect(page.get_by_label("Key", exact=True)).to_be_focused()


def test_a_member_far_down_stays_in_the_list(context: BrowserContext, user: Caller) -> None:
    """Changing their role reads all rows again that are shown."""
    for name in ("first", "second"):
        login, _ = member(user, name)
    page = signed_in(context, user, "/keys")
    shorten(page, "**/members?*")
    go(page, "/members")
    role = page.get_by_label(f"Role of {login}")
    rows = page.get_by_role("table", name="Members").locator("tbody tr")
    total = len(user.get(f"/v1/orgs/{user.org_id}/members"))
    for number in range(1, total):
        expect(rows).to_have_count(number)
        press(page, "Show more")
    expect(rows).to_have_count(total)
    role.select_option("admin")
    press(page.get_by_role("dialog"), "Change role")
    expect(page.get_by_role("dialog")).to_have_count(0)

    expect(role).to_have_value("admin")
    expect(rows).to_have_count(total)


@pytest.mark.parametrize("change", ["role", "removal"])
def test_invitations_go_with_the_role_of_their_sender(
    context: BrowserContext, system: System, owner: Caller, change: str
) -> None:
    """The service revokes them: they are not offered to be revoked once more."""
    admin = system.colleague(owner, "admin")
    invited = {"name": "Ada", "role": "member"}
    admin.made(f"/v1/orgs/{owner.org_id}/invitations", invited)
    page = signed_in(context, owner, "/members")
    invitation = page.get_by_role("table", name="Open invitations").locator("tbody tr")
    expect(invitation).to_have_count(1)
    if change == "role":
        page.get_by_label(f"Role of {admin.login}").select_option("member")
        press(page.get_by_role("dialog"), "Change role")
    else:
        press(page, f"Remove {admin.login}")
        press(page.get_by_role("dialog"), "Remove member")
    expect(page.get_by_role("dialog")).to_have_count(0)

    expect(invitation).to_have_count(0)


def test_an_invitation_that_is_gone_leaves_the_list(context: BrowserContext, owner: Caller) -> None:
    """It was accepted or revoked meanwhile, which the attempt to revoke it says."""
    invited = {"name": "Ada", "role": "member"}
    path = f"/v1/orgs/{owner.org_id}/invitations"
    made = owner.made(path, invited)
    page = signed_in(context, owner, "/members")
    press(page, "Revoke the invitation for Ada")
    assert owner.http.delete(f"{path}/{made['id']}").is_success
    dialog = page.get_by_role("dialog")
    press(dialog, "Revoke invitation")
    expect(dialog.get_by_role("alert")).to_contain_text("Invitation not found.")
    press(dialog, "Cancel")

    expect(page.get_by_text("No open invitations")).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)


def test_a_late_reading_of_runs_is_not_shown_under_other_filters(
    context: BrowserContext, user: Caller
) -> None:
    """The timer has asked for all runs before a person chose those that have failed."""
    run_id = user.run({"say": "Well."})
    assert "completed" == user.ended(run_id)["status"]
    page = signed_in(context, user, "/runs")
    rows = page.locator(".runs-table tbody tr")
    expect(rows.first).to_be_visible()
    held = hold(context, "**/v1/runs?limit=50")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.get_by_role("button", name="failed", exact=True).click()
    expect(page.get_by_text("No run fits the filters")).to_be_visible()
    until_held(page, held, 1)  # more if the timer has asked as well
    for late in held:
        late.fulfill(json=[one for one in user.get("/v1/runs") if one["run_id"] == run_id])
    page.wait_for_timeout(500)

    # At once: the timer would read those that have failed again.
    assert 0 == rows.count()


def test_an_end_user_is_looked_for_again(context: BrowserContext, user: Caller) -> None:
    """After a refusal, a second click asks the service again."""
    refusals = [1]

    def refuse(route: Route) -> None:
        if not refusals:
            serve(route)
            return
        refusals.pop()
        error = {"code": "rate_limit.exceeded", "message": "Slow down.", "details": {}}
        route.fulfill(status=429, headers={"Retry-After": "1"}, json=error)

    serve_budgets(context)
    context.route("**/v1/budget/end-users?*", refuse)
    page = signed_in(context, user, "/limits")
    page.get_by_label("End user").fill("customer-7")
    press(page, "Show budget")
    expect(page.get_by_role("alert")).to_contain_text("Try again in 1 s.")
    press(page, "Show budget")

    expect(page.get_by_role("heading", name="customer-7")).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)


def test_rows_of_other_filters_are_not_waited_for(context: BrowserContext, user: Caller) -> None:
    """A filter that changes while more rows are read leaves no error, and none of these rows."""
    user.api_key()
    page = signed_in(context, user, "/keys")
    shorten(page, "**/v1/audit-logs?*")
    go(page, "/audit")
    press(page, "Show more")
    rows = page.get_by_role("table", name="Audit log").get_by_role("row")
    expect(rows).to_have_count(3)
    held = hold(context, "**/v1/audit-logs?*before=*")
    page.unroute("**/v1/audit-logs?*")
    press(page, "Show more")
    until_held(page, held, 1)
    page.get_by_label("Action").select_option("api_key.created")
    expect(rows.filter(has_text="user.created")).to_have_count(0)
    expect(rows.filter(has_text="api_key.created").first).to_be_visible()
    page.wait_for_timeout(300)

    expect(page.get_by_role("alert")).to_have_count(0)


def test_a_member_who_leaves_is_signed_out(context: BrowserContext, user: Caller) -> None:
    """Nobody asks them to sign in again to an org that refuses them."""
    login, _ = member(user, "leaving")
    page = context.new_page()
    page.goto(f"{user.url}/console#/members")
    page.get_by_label("User name or email").fill(login)
    page.get_by_label("Password").fill(PASSWORD)
    press(page, "Sign in")
    press(page, "Leave the organization")
    press(page.get_by_role("dialog"), "Leave")

    expect(page.get_by_text("You have left the organization.")).to_be_visible()
    expect(page.get_by_role("dialog")).to_have_count(0)
