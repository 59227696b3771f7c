"""Readings of the console, in a real Chromium, that end after newer ones of the same list."""

import re

import pytest
from playwright.sync_api import APIResponse, BrowserContext, Locator, Page, Route, expect

from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_fresh_lists import TICK, delivery, serve_pages
from tests.acceptance.test_console_losses import hold, refused
from tests.acceptance.test_console_settings import press, signed_in, until_held
from tests.caller import Caller

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]
WAITING = "**/v1/runs?status=waiting_for_input&limit=50"


def ask(owner: Caller) -> str:
    """Begin a run that asks a person a question; return its id."""
    question = {"tool": "ask_user", "args": {"question": "Ship it?"}}
    run_id = owner.run(question, {"say": "Shipped."}, route_id="scripted")
    owner.until(run_id, "phase", "waiting")
    return run_id


def read_twice(page: Page, pattern: str, shown: Locator, owner: Caller) -> list[Route]:
    """Let a reading of a page be late: a run waits since, which a newer one has shown already."""
    late: list[Route] = []
    is_newer = False
    page.context.route(pattern, lambda route: route.continue_() if is_newer else late.append(route))
    page.evaluate(TICK)
    until_held(page, late, 1)
    ask(owner)
    page.wait_for_timeout(500)
    expect(shown).to_have_count(0)
    is_newer = True
    page.evaluate(TICK)
    expect(shown).to_be_visible()
    return late


def test_a_late_reading_of_the_inbox_removes_no_box(context: BrowserContext, owner: Caller) -> None:
    """Somebody writes there; neither does its error cover what a newer one has read."""
    page = signed_in(context, owner, "/inbox")
    expect(page.get_by_role("heading", name="Nothing waits for you")).to_be_visible()
    number = page.get_by_role("navigation").locator(".count")
    box = page.locator(".ask")
    answer = box.get_by_label("Your answer")
    for ending in ("response", "error"):
        late = read_twice(page, WAITING, box, owner)
        expect(number).to_contain_text("1")
        answer.fill("yes, ")
        for route in late:
            if ending == "error":
                route.abort()
            else:
                route.fulfill(json=[])
        page.wait_for_timeout(500)
        assert 0 == page.get_by_role("alert").count()
        expect(number).to_contain_text("1")
        page.keyboard.type("but carefully")
        expect(answer).to_have_value("yes, but carefully")
        answer.press("Enter")
        expect(box).to_have_count(0)


@pytest.mark.parametrize("ending", ["response", "error"])
def test_a_late_reading_of_the_runs_is_not_shown(
    context: BrowserContext, owner: Caller, ending: str
) -> None:
    """The button reads them at any time, and so does the timer."""
    page = signed_in(context, owner, "/runs")
    expect(page.get_by_role("heading", name="No runs yet")).to_be_visible()
    row = page.get_by_role("region", name="Runs").locator("tbody tr")
    late = read_twice(page, "**/v1/runs?limit=50", row, owner)
    for route in late:
        if ending == "error":
            route.abort()
        else:
            route.fulfill(json=[])
    page.wait_for_timeout(500)

    assert (1, 0) == (row.count(), page.get_by_role("alert").count())


def test_a_late_reading_undoes_no_second_redelivery(context: BrowserContext, owner: Caller) -> None:
    """Each redelivery has the list read again."""
    body = {"url": "https://shop.example.com/hooks", "event_types": ["run.completed"]}
    made = owner.made("/v1/webhook-endpoints", body)
    dead = [{**delivery(number), "state": "dead"} for number in range(2)]
    serve_pages(context, "**/deliveries?*", dead)
    context.route(re.compile(":replay$"), lambda route: route.fulfill(json={}))
    page = signed_in(context, owner, f"/webhooks/{made['id']}")
    rows = page.get_by_role("table", name="Deliveries").locator("tbody tr")
    expect(rows).to_have_count(2)
    held = hold(context, "**/deliveries?*")
    for number in (0, 1):
        rows.nth(number).get_by_role("button", name="Redeliver").click()
        until_held(page, held, number + 1)
    held[1].fulfill(json=[{**one, "state": "delivered"} for one in dead])
    expect(rows.last).to_contain_text("delivered")
    held[0].fulfill(json=[{**dead[0], "state": "delivered"}, dead[1]])
    page.wait_for_timeout(500)

    expect(rows.last).to_contain_text("delivered")


def test_a_late_reading_brings_no_deleted_thread_back(
    context: BrowserContext, owner: Caller
) -> None:
    """The timer has asked for the threads before."""
    page = signed_in(context, owner, f"/threads/{owner.thread(title='Old')}")
    listed = page.get_by_role("region", name="Threads").get_by_text("Old")
    expect(listed).to_be_visible()
    expect(page.get_by_text("Nothing said yet")).to_be_visible()
    late: list[Route] = []
    responses: list[APIResponse] = []
    threads = re.compile(r"/v1/threads\?")

    def keep(route: Route) -> None:
        responses.append(route.fetch())
        late.append(route)

    context.route(threads, keep)
    page.evaluate(TICK)
    until_held(page, late, 1)
    context.route(threads, refused(503))
    press(page, "Delete thread")
    press(page.get_by_role("dialog"), "Delete")
    expect(listed).to_have_count(0)
    for route, response in zip(late, responses, strict=True):
        route.fulfill(response=response)
    page.wait_for_timeout(500)

    expect(listed).to_have_count(0)


def test_older_threads_that_come_late_bring_no_deleted_thread_back(
    context: BrowserContext, owner: Caller
) -> None:
    """They were asked for before one of them was deleted."""
    owner.thread(title="Oldest")
    thread_id = owner.thread(title="Old")
    for number in range(45):
        owner.thread(title=f"Newer {number}")
    page = signed_in(context, owner, f"/threads/{thread_id}")
    region = page.get_by_role("region", name="Threads")
    late: list[Route] = []
    responses: list[APIResponse] = []

    def keep(route: Route) -> None:
        responses.append(route.fetch())
        late.append(route)

    context.route(re.compile(r"/v1/threads\?.*before="), keep)
    press(region, "Older threads")
    until_held(page, late, 1)
    press(page, "Delete thread")
    press(page.get_by_role("dialog"), "Delete")
    expect(page.get_by_role("dialog")).to_have_count(0)
    late[0].fulfill(response=responses[0])

    expect(region.get_by_text("Oldest")).to_be_visible()
    expect(region.get_by_text("Old", exact=True)).to_have_count(0)
