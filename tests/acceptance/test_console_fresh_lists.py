"""Lists in the console, in a real Chromium, that are read again by themselves."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from playwright.sync_api import BrowserContext, Locator, Route, expect

from arkloop.shared.accounts import operators
from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_answering import provider
from tests.acceptance.test_console_losses import hold, refused
from tests.acceptance.test_console_settings import press, signed_in, until_held
from tests.caller import Caller, client
from tests.clients import PASSWORD
from tests.system import System

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]
#: What the browser reports when somebody looks at the page again: its timers read at once.
TICK = "document.dispatchEvent(new Event('visibilitychange'))"
HOUR = timedelta(hours=1)
ZERO = re.compile(r"^0$|\b0 alive")
EMPTY_QUEUES = {"orgs": [], "classes": [], "measured_at": "2026-11-27T06:10:02.113Z"}


def lease(number: int) -> dict[str, Any]:
    names = {"run_id": f"run-{number}", "persona_id": "assistant@1", "route_id": "scripted"}
    times = {"lease_expires_at": "2026-11-27T06:10:02.113Z", "last_event": None}
    worker = {"agent": None, "hostname": "first", "pid": 1, "phase": "executing"}
    return {**names, **times, **worker, "is_held": True, "attempt": 1, "crashes": 0}


def delivery(number: int) -> dict[str, Any]:
    state = {"state": "pending", "response_status": None, "error": None, "attempts": 1}
    at = "2026-11-27T06:10:02.113Z"
    times = {"created_at": at, "next_attempt_at": datetime.now(UTC).isoformat()}
    return {"id": f"delivery-{number}", "type": "test", "run_id": None, **state, **times}


def serve_pages(context: BrowserContext, pattern: str, rows: list[dict[str, Any]]) -> None:
    """Let a list have these rows, in two pages."""

    def serve_page(route: Route) -> None:
        is_first = "before=" not in route.request.url
        shown, headers = (rows[:50], {"X-Next-Cursor": "more"}) if is_first else (rows[50:], {})
        route.fulfill(json=shown, headers=headers)

    context.route(pattern, serve_page)


def opened(context: BrowserContext, system: System, user: Caller, name: str) -> Locator:
    """Open a list that changes by itself, and return the rows of its table."""
    if name == "Leases":
        with system.connections.transaction() as tx:
            operators.add(tx, UUID(str(user.id)))
        page = signed_in(context, user, "/leases")
    else:
        body = {"url": "https://shop.example.com/hooks", "event_types": ["run.completed"]}
        made = user.made("/v1/webhook-endpoints", body)
        page = signed_in(context, user, f"/webhooks/{made['id']}")
    return page.get_by_role("table", name=name).locator("tbody tr")


@pytest.mark.parametrize(
    ("name", "pattern", "row", "column", "later"),
    [
        ("Leases", "**/v1/operator/leases*", lease, "hostname", "second"),
        ("Deliveries", "**/deliveries?*", delivery, "state", "delivered"),
    ],
    ids=["leases", "deliveries"],
)
def test_a_list_of_more_than_a_page_is_kept_fresh(
    context: BrowserContext,
    system: System,
    user: Caller,
    name: str,
    pattern: str,
    row: Callable[[int], dict[str, Any]],
    column: str,
    later: str,
) -> None:
    """The rows of its second page, too: they stay, and change."""
    rows = [row(number) for number in range(60)]
    serve_pages(context, pattern, rows)
    shown = opened(context, system, user, name)
    expect(shown).to_have_count(50)
    press(shown.page, "Show more")
    expect(shown).to_have_count(60)
    for one in rows:
        one[column] = later

    expect(shown.last).to_contain_text(later, timeout=15_000)
    expect(shown).to_have_count(60)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["before", "after"])
def test_more_rows_stay_whenever_a_reading_of_the_timer_ends(
    context: BrowserContext, system: System, user: Caller, order: tuple[int, int]
) -> None:
    """It has asked for the first page before somebody asked for more, and found a newer lease."""
    known = [lease(number) for number in range(60)]
    serve_pages(context, "**/v1/operator/leases*", known)
    rows = opened(context, system, user, "Leases")
    page = rows.page
    expect(rows).to_have_count(50)
    held = hold(context, "**/v1/operator/leases?*")
    page.evaluate(TICK)
    until_held(page, held, 1)
    press(page, "Show more")
    until_held(page, held, 2)
    ends = [
        lambda: held[0].fulfill(json=[lease(60), *known[:49]], headers={"X-Next-Cursor": "other"}),
        lambda: held[1].fallback(),
    ]
    for which in order:
        ends[which]()
        page.wait_for_timeout(500)

    # At once: the timer reads all of them again.
    assert 60 == rows.count()


def test_a_late_reading_of_the_timer_undoes_no_redelivery(
    context: BrowserContext, system: System, user: Caller
) -> None:
    """It was asked for before, and found a dead delivery; the timer still reads the new one."""
    dead = {**delivery(1), "state": "dead"}
    serve_pages(context, "**/deliveries?*", [delivery(0), dead])
    context.route(re.compile(":replay$"), lambda route: route.fulfill(json={}))
    rows = opened(context, system, user, "Deliveries")
    page = rows.page
    expect(rows).to_have_count(2)
    held = hold(context, "**/deliveries?*")
    page.evaluate(TICK)
    until_held(page, held, 1)
    rows.last.get_by_role("button", name="Redeliver").click()
    until_held(page, held, 2)
    delivered = {**delivery(0), "state": "delivered"}
    held[1].fulfill(json=[delivered, delivery(1)])
    expect(rows.last).to_contain_text("pending")
    held[0].fulfill(json=[delivered, dead])
    page.wait_for_timeout(500)

    expect(rows.last).to_contain_text("pending")
    until_held(page, held, 3)


def test_an_error_of_more_rows_stays_while_the_timer_reads(
    context: BrowserContext, system: System, user: Caller
) -> None:
    """Its rows are new objects each time, but the error is about the same list."""
    serve_pages(context, "**/v1/operator/leases*", [lease(number) for number in range(60)])
    rows = opened(context, system, user, "Leases")
    page, alert = rows.page, rows.page.get_by_role("alert")
    expect(rows).to_have_count(50)
    context.route("**/v1/operator/leases?*before=*", lambda route: route.abort())
    press(page, "Show more")
    expect(alert).to_be_visible()
    with page.expect_response("**/v1/operator/leases?*"):
        page.evaluate(TICK)
    page.wait_for_timeout(500)

    expect(alert).to_be_visible()


def test_an_outage_is_not_shown_as_an_empty_list(
    context: BrowserContext, system: System, user: Caller
) -> None:
    """That no run is executed was known before: while it lasts, its error is all that is shown."""
    context.route("**/v1/operator/leases*", lambda route: route.fulfill(json=[]))
    page, outage = opened(context, system, user, "Leases").page, refused(503)
    empty = page.get_by_role("heading", name="No run is executed")
    expect(empty).to_be_visible()
    context.route("**/v1/operator/leases*", outage)
    page.evaluate(TICK)
    expect(page.get_by_role("alert")).to_contain_text("Come back later.")
    expect(empty).to_have_count(0)
    context.unroute("**/v1/operator/leases*", outage)
    press(page, "Try again")

    expect(empty).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)


@pytest.mark.parametrize(
    ("address", "pattern", "body", "title"),
    [
        ("/stuck", "**/v1/operator/stuck-runs*", {"items": []}, "Nothing is stuck"),
        ("/workers", "**/v1/operator/workers*", {"items": []}, "No worker is known"),
        ("/queues", "**/v1/operator/queues*", EMPTY_QUEUES, "Nothing is going on"),
        ("/inbox", "**/v1/runs?*", [], "Nothing waits for you"),
        ("/runs", "**/v1/runs?*", [], "No runs yet"),
    ],
    ids=["stuck", "workers", "queues", "inbox", "runs"],
)
def test_an_outage_is_not_shown_as_a_page_without_rows(
    context: BrowserContext,
    system: System,
    user: Caller,
    address: str,
    pattern: str,
    body: Any,
    title: str,
) -> None:
    """Neither are its zeros: the error is all that is shown until the page could be read again."""
    with system.connections.transaction() as tx:
        operators.add(tx, UUID(str(user.id)))
    context.route(pattern, lambda route: route.fulfill(json=body))
    page, outage = signed_in(context, user, address), refused(503)
    empty, zero = page.get_by_role("heading", name=title), page.get_by_text(ZERO)
    expect(empty).to_be_visible()
    context.route(pattern, outage)
    page.evaluate(TICK)
    expect(page.get_by_role("alert")).to_contain_text("Come back later.")
    expect(empty.or_(zero)).to_have_count(0)
    context.unroute(pattern, outage)
    press(page, "Try again")

    expect(empty).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)


def test_a_late_error_is_not_shown_over_newer_threads(
    context: BrowserContext, owner: Caller
) -> None:
    """A request that began after it has read the list already."""
    page = signed_in(context, owner, "/threads")
    listed = page.get_by_role("region", name="Threads")
    expect(listed.get_by_text("No threads yet")).to_be_visible()
    held = hold(context, "**/v1/threads?*")
    page.evaluate(TICK)
    until_held(page, held, 1)
    owner.thread(title="Newer")
    page.evaluate(TICK)
    until_held(page, held, 2)
    held[1].continue_()
    expect(listed.get_by_text("Newer")).to_be_visible()
    held[0].abort()
    page.wait_for_timeout(500)

    expect(listed.get_by_role("alert")).to_have_count(0)
    expect(listed.get_by_text("Newer")).to_be_visible()


@pytest.mark.parametrize("count", [0, 1])
def test_an_outage_is_reported_in_the_list_of_threads(
    context: BrowserContext, owner: Caller, count: int
) -> None:
    """Threads that are known stay below the error; that there are none does not."""
    for _ in range(count):
        owner.thread(title="Known before")
    page = signed_in(context, owner, "/threads")
    listed = page.get_by_role("region", name="Threads")
    known = listed.get_by_text("Known before" if count else "No threads yet")
    expect(known).to_be_visible()
    context.route("**/v1/threads?*", refused(503))
    page.evaluate(TICK)
    expect(listed.get_by_role("alert")).to_contain_text("Come back later.")
    expect(known).to_have_count(count)
    context.unroute("**/v1/threads?*")
    press(listed, "Try again")

    expect(known).to_be_visible()
    expect(listed.get_by_role("alert")).to_have_count(0)


def test_a_list_of_providers_that_cannot_be_read_again_is_reported(
    context: BrowserContext, owner: Caller
) -> None:
    """The change was made; the list shows it once it is read."""
    provider(owner, "vendor-model")
    page = signed_in(context, owner, "/providers")
    expect(page.get_by_role("button", name="Make default: vendor-model")).to_be_visible()
    context.route("**/v1/llm-providers?*", refused(429))
    press(page, "Make default: vendor-model")
    expect(page.get_by_role("alert")).to_contain_text("Come back later.")
    context.unroute("**/v1/llm-providers?*")
    press(page, "Try again")

    expect(page.get_by_role("button", name="Unset default: vendor-model")).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)


@pytest.mark.parametrize("change", ["role", "removal"])
def test_a_member_who_is_gone_leaves_the_list(
    context: BrowserContext, system: System, owner: Caller, change: str
) -> None:
    """Somebody else removed them, which the error in the dialog reports."""
    colleague = system.colleague(owner)
    page = signed_in(context, owner, "/members")
    name = page.get_by_role("table", name="Members").get_by_text(colleague.login, exact=True)
    if change == "role":
        page.get_by_label(f"Role of {colleague.login}").select_option("admin")
    else:
        press(page, f"Remove {colleague.login}")
    path = f"/v1/orgs/{owner.org_id}/members/{colleague.id}"
    assert owner.http.delete(path).is_success
    dialog = page.get_by_role("dialog")
    press(dialog, "Change role" if change == "role" else "Remove member")
    expect(dialog.get_by_role("alert")).to_contain_text("not found")
    expect(name).to_have_count(0)
    press(dialog, "Cancel")

    expect(page.get_by_role("alert")).to_have_count(0)


@pytest.mark.parametrize("kind", ["tool", "model"])
def test_an_item_that_is_gone_leaves_the_list(
    context: BrowserContext, owner: Caller, kind: str
) -> None:
    """Somebody else deleted it, which the error in the dialog reports."""
    if kind == "tool":
        url = "https://shop.example.com/orders"
        body = {"name": "vendor-tool", "description": "Look it up.", "url": url}
        path = f"/v1/tools/{owner.made('/v1/tools', body)['id']}"
    else:
        of, _ = provider(owner, "vendor-model")
        [model] = owner.get(of)["models"]
        path = f"{of}/models/{model['id']}"
    page = signed_in(context, owner, "/tools" if kind == "tool" else "/providers")
    row = page.get_by_role("row").filter(has_text=f"vendor-{kind}")
    row.get_by_role("button", name="Delete").click()
    assert owner.http.delete(path).is_success
    dialog = page.get_by_role("dialog")
    press(dialog, "Delete tool" if kind == "tool" else "Delete")
    expect(dialog.get_by_role("alert")).to_contain_text("not found")
    expect(row).to_have_count(0)
    press(dialog, "Cancel")

    expect(page.get_by_role("alert")).to_have_count(0)


def test_a_log_in_that_is_gone_leaves_the_list(context: BrowserContext, owner: Caller) -> None:
    """Its browser signed out meanwhile."""
    body = {"login": owner.login, "password": PASSWORD}
    token = client(owner.url).post("/v1/auth/login", json=body).json()["access_token"]
    page = signed_in(context, owner, "/sessions")
    rows = page.get_by_role("table", name="Log-ins").locator("tbody tr")
    expect(rows).to_have_count(3)  # that of the test, the other one, and the page's
    rows.nth(1).get_by_role("button", name="End").click()
    assert client(owner.url, token).post("/v1/auth/logout").is_success
    dialog = page.get_by_role("dialog")
    press(dialog, "End log-in")
    expect(dialog.get_by_role("alert")).to_contain_text("not found")
    expect(rows).to_have_count(2)
    press(dialog, "Cancel")

    expect(page.get_by_role("alert")).to_have_count(0)


def test_a_role_that_is_not_given_is_not_shown(
    context: BrowserContext, system: System, owner: Caller
) -> None:
    """The list keeps the role that a member has when the question is answered with *Cancel*."""
    colleague = system.colleague(owner)
    page = signed_in(context, owner, "/members")
    role = page.get_by_label(f"Role of {colleague.login}")
    role.select_option("admin")
    press(page.get_by_role("dialog"), "Cancel")

    expect(role).to_have_value("member")


def test_deliveries_are_read_seldom_while_none_is_attempted(
    context: BrowserContext, system: System, owner: Caller
) -> None:
    """The next attempt may be hours away, or wait for an earlier delivery; near it they are read
    every three seconds.
    """
    context.clock.install()
    now = datetime.now(UTC)
    later = {**delivery(0), "next_attempt_at": (now + HOUR).isoformat()}
    blocked = {**delivery(1), "next_attempt_at": (now - HOUR).isoformat()}
    rows = opened(context, system, owner, "Deliveries")
    page = rows.page
    expect(page.get_by_role("heading", name="No deliveries")).to_be_visible()
    serve_pages(context, "**/deliveries?*", [blocked, later])
    press(page, "Send test")
    expect(rows).to_have_count(2)
    read = hold(context, "**/deliveries?*")
    page.clock.fast_forward(20_000)
    page.wait_for_timeout(500)
    assert not read
    later["next_attempt_at"] = datetime.now(UTC).isoformat()
    page.clock.fast_forward(15_000)
    until_held(page, read, 1)
    read[0].fallback()
    page.wait_for_timeout(500)
    page.clock.fast_forward(3_000)

    until_held(page, read, 2)
