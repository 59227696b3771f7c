"""Runs in the console, in a real Chromium, that an operator queues again far down a list."""

import re
from typing import Any
from uuid import UUID

import pytest
from playwright.sync_api import BrowserContext, Locator, Page, Route, expect

from arkloop.shared.accounts import operators
from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_fresh_lists import TICK, lease
from tests.acceptance.test_console_losses import hold, refused
from tests.acceptance.test_console_settings import press, signed_in, until_held
from tests.caller import Caller
from tests.system import System

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]
REQUEUE = "**/v1/operator/runs/*:requeue"
HELD = "was left alone: a worker holds it"


def stuck(number: int) -> dict[str, Any]:
    names = {"org_name": "shop", "problem": "silent", "since": "2026-11-27T06:10:02.113Z"}
    return {**lease(number), **names}


@pytest.fixture(params=["leases", "stuck"])
def rows(
    request: pytest.FixtureRequest, context: BrowserContext, system: System, owner: Caller
) -> Locator:
    """The rows of a list of 80 runs, of which the last are far below the window."""
    listed: list[dict[str, Any]] = [stuck(number) for number in range(80)]

    def serve(route: Route) -> None:
        route.fulfill(json=listed if request.param == "leases" else {"items": listed})

    with system.connections.transaction() as tx:
        operators.add(tx, UUID(str(owner.id)))
    context.route(re.compile("/v1/operator/(leases|stuck-runs)"), serve)
    context.route(REQUEUE, lambda route: route.fulfill(json={"outcome": "held"}))
    context.route(re.compile(":cancel$"), lambda route: (listed.pop(), route.fulfill(json={})))
    page = signed_in(context, owner, f"/{request.param}")
    rows = page.get_by_role("table").locator("tbody tr")
    expect(rows).to_have_count(80)
    return rows


def requeue(row: Locator) -> None:
    row.get_by_role("button", name="Requeue").click()


def assert_seen(page: Page, part: Locator, text: str) -> None:
    """Assert that it says this where the button was pressed, and nothing is said elsewhere."""
    expect(part).to_contain_text(text)
    expect(part).to_be_in_viewport()
    expect(page.locator("main").locator(".note, .problem")).to_have_count(1)


def test_what_came_of_a_requeue_is_in_its_row(rows: Locator) -> None:
    """It goes when another run is queued or cancelled; only what the list has no row for any more
    is above it.
    """
    page = rows.page
    for number in (78, 79):
        requeue(rows.nth(number))
        assert_seen(page, rows.nth(number).get_by_role("status"), HELD)
    rows.nth(79).get_by_role("button", name="Cancel run").click()
    expect(page.get_by_text(HELD)).to_have_count(0)
    press(page.get_by_role("dialog"), "Cancel run")

    expect(rows).to_have_count(79)
    expect(page.locator(".page > [role=status]")).to_have_text("Run …run-79 is cancelled.")


def test_a_refused_requeue_is_reported_in_its_row(context: BrowserContext, rows: Locator) -> None:
    """No button of another run is busy meanwhile."""
    page = rows.page
    held = hold(context, REQUEUE)
    requeue(rows.nth(79))
    until_held(page, held, 1)
    expect(page.locator("main [aria-busy=true]")).to_have_count(1)
    refused(409)(held[0])

    assert_seen(page, rows.nth(79).get_by_role("alert"), "Come back later.")


@pytest.mark.parametrize("is_refused", [False, True])
def test_what_came_of_a_requeue_is_reported_though_its_row_is_gone(
    context: BrowserContext, rows: Locator, is_refused: bool
) -> None:
    """A run that is queued leaves the lists, which may be read again before the response comes; the
    next requeue clears what is said.
    """
    page = rows.page
    held = hold(context, REQUEUE)
    requeue(rows.nth(79))
    until_held(page, held, 1)
    lists = re.compile("/v1/operator/(leases|stuck-runs)")
    left = [stuck(0)]
    json: Any = left if "/leases" in page.url else {"items": left}
    context.route(lists, lambda route: route.fulfill(json=json))
    page.evaluate(TICK)
    expect(rows).to_have_count(1)
    if is_refused:
        refused(409)(held[0])
        reported = page.locator(".page > [role=alert]")
        expect(reported).to_contain_text("Come back later.")
    else:
        held[0].fulfill(json={"outcome": "queued"})
        reported = page.locator(".page > [role=status]").filter(has_text="Run …run-79 is queued")
        expect(reported).to_be_visible()
    requeue(rows.first)

    expect(reported).to_have_count(0)
