"""The console's lists in a real Chromium, where they are longer than what a page shows."""

import json
import re

import pytest
from playwright.sync_api import BrowserContext, Page, Request, Response, Route, expect

from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_losses import hold
from tests.acceptance.test_console_settings import go, press, signed_in, until_held
from tests.caller import Caller
from tests.system import System

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]
PIECE = {"type": "message.delta", "data": {"content": "x"}}
END = {"type": "run.cancelled", "data": {}}


def shorten(page: Page, rows: int) -> None:
    """Make the pages of lists of runs so short that few runs have several of them."""

    def ask(route: Route) -> None:
        route.continue_(url=re.sub(r"limit=\d+", f"limit={rows}", route.request.url))

    page.route("**/v1/runs?**", ask)


def renew(page: Page) -> list[str]:
    """Do what the timers do; return the addresses that were asked for, once all have responded."""
    asked: list[Request] = []

    def note(request: Request) -> None:
        asked.append(request)

    def is_counted(response: Response) -> bool:
        """Return whether the number beside *Inbox* was renewed, too, and not by a timer before."""
        return response.request in asked and "status=waiting_for_input" in response.url

    page.on("request", note)
    with page.expect_response(is_counted):
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.remove_listener("request", note)
    for request in asked:  # the inbox and the number beside it ask for the same
        request.response()
    return [request.url for request in asked]


def asking(user: Caller, question: str) -> str:
    run_id = user.run({"tool": "ask_user", "args": {"question": question}}, {"say": "Thanks."})
    user.until(run_id, "phase", "waiting")
    return run_id


def test_the_inbox_keeps_older_runs_and_what_was_typed_there(
    context: BrowserContext, user: Caller
) -> None:
    """New runs appear above them, and those that were answered elsewhere go."""
    for question in ("First?", "Second?", "Third?"):
        asking(user, question)
    page = signed_in(context, user, "/keys")
    shorten(page, 1)
    page.goto(f"{user.url}/console#/inbox")
    items = page.locator(".inbox-item")
    for number in (2, 3):
        press(page, "More")
        expect(items).to_have_count(number)
    draft = items.filter(has_text="Second?").get_by_role("textbox")
    draft.fill("A half-written")

    newest = asking(user, "Fourth?")
    renew(page)
    expect(items.first).to_contain_text("Fourth?")
    expect(items).to_have_count(4)
    expect(draft).to_have_value("A half-written")
    assert 200 == user.answer(newest, "Yes").status_code
    user.ended(newest)
    renew(page)
    expect(items.filter(has_text="Fourth?")).to_have_count(0)
    expect(items).to_have_count(3)
    expect(draft).to_have_value("A half-written")


def test_a_run_that_was_replied_to_does_not_come_back(
    context: BrowserContext, user: Caller
) -> None:
    """The list that is read meanwhile still has it, and shows it as if the reply had been lost."""
    run_id = asking(user, "Fifth?")
    page = signed_in(context, user, "/keys")
    page.goto(f"{user.url}/console#/inbox")
    item = page.locator(".inbox-item", has_text="Fifth?")
    expect(item).to_be_visible()
    held: list[Route] = []

    def keep(route: Route) -> None:
        if len(held) < 2:  # one of them is for the number beside *Inbox*
            held.append(route)
        else:
            route.continue_()

    page.route("**/v1/runs?*status=waiting_for_input*", keep)
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    until_held(page, held, 2)
    late = [(route, route.fetch()) for route in held]
    item.get_by_role("textbox").fill("Yes")
    press(item, "Answer")
    expect(item).to_have_count(0)
    for route, response in late:
        route.fulfill(response=response)
    page.wait_for_timeout(500)

    # At once: the timer would read the list again.
    assert 0 == item.count()
    user.ended(run_id)


def test_a_list_of_runs_keeps_older_ones_until_the_filters_change(
    context: BrowserContext, user: Caller
) -> None:
    """A page may be short: the timer leaves the list alone as soon as it has a second one."""
    thread = user.thread()
    for _ in range(3):
        user.ended(user.start(thread, message="Hello", route_id="scripted"))
    page = signed_in(context, user, "/keys")
    shorten(page, 1)
    page.goto(f"{user.url}/console#/runs?thread_id={thread}")
    rows = page.get_by_role("region", name="Runs").locator("tbody tr")
    expect(rows).to_have_count(1)
    assert reads(renew(page), thread)
    press(page, "Older runs")
    expect(rows).to_have_count(2)
    assert not reads(renew(page), thread)
    expect(rows).to_have_count(2)

    press(page, "completed")
    expect(rows).to_have_count(1)
    assert reads(renew(page), thread)


def reads(asked: list[str], thread: str) -> bool:
    """Return whether the list of this thread's runs was read."""
    return any(f"thread_id={thread}" in url for url in asked)


def test_deleted_threads_leave_a_list_with_older_pages(
    context: BrowserContext, system: System
) -> None:
    """One of the first page that another client deletes, and one below it that is deleted here."""
    user = system.caller()
    ids = [
        user.made("/v1/threads", {"title": f"Thread {number} of them"})["id"]
        for number in range(45)
    ]
    page = signed_in(context, user, "/threads")
    rows = page.locator(".thread-list li")
    expect(rows).to_have_count(40)
    press(page, "Older threads")
    expect(rows).to_have_count(45)
    assert 204 == user.http.delete(f"/v1/threads/{ids[44]}").status_code
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(rows).to_have_count(44)

    page.get_by_role("link", name="Thread 0 of them").click()
    press(page, "Delete thread")
    press(page.get_by_role("dialog"), "Delete")
    expect(rows).to_have_count(43)
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.get_by_role("heading", name="No thread selected")).to_be_visible()
    expect(rows).to_have_count(43)
    expect(rows.last).to_contain_text("Thread 1 of them")


def test_a_run_with_more_events_than_its_page_shows_ends(
    context: BrowserContext, user: Caller
) -> None:
    """The page of a run with over 20,000 events learns of its end."""
    run_id = user.run({"hang": 600})
    stream = f"**/v1/runs/{run_id}/events*"
    held, page = hold(context, stream), signed_in(context, user, "/keys")
    with page.expect_request(stream):
        go(page, f"/runs/{run_id}")
    until_held(page, held, 1)
    badge = page.locator(".head .badge")
    expect(badge).to_have_text("executing")
    user.cancel(run_id)
    ended_at = user.ended(run_id)["cancelled_at"]
    frames = [
        f"id: {seq}\ndata: {json.dumps(event | {'seq': seq, 'created_at': ended_at})}\n\n"
        for seq, event in enumerate([PIECE] * 20_000 + [END], 1)
    ]
    held[0].fulfill(content_type="text/event-stream", body="".join(frames))

    expect(badge).to_have_text("cancelled")
    expect(page.get_by_role("heading", name="Events, the first 20,000 of 20,001")).to_be_visible()


def test_usage_is_left_by_the_browsers_back(context: BrowserContext, user: Caller) -> None:
    """A field that has the focus changes no address when its page goes."""
    page = signed_in(context, user, "/keys")
    page.evaluate("location.hash = '/usage'")
    key = page.get_by_label("Key", exact=True)
    key.fill("team")
    key.press("Enter")
    expect(page).to_have_url(re.compile("key=team"))
    key.fill("tier")
    page.go_back()

    expect(page.get_by_role("heading", name="API keys", exact=True)).to_be_visible()
    expect(page).to_have_url(re.compile("#/keys$"))
    page.go_forward()
    expect(page).to_have_url(re.compile("#/usage.key=team"))


def test_a_filter_of_metadata_without_a_value_shows_no_runs(
    context: BrowserContext, user: Caller
) -> None:
    """A key, a comma or `=` alone is no filter: the field says so, until it is one."""
    made = user.made(
        "/v1/runs", {"thread": {}, "message": "Hello", "metadata": {"team": "only-this"}}
    )
    page = signed_in(context, user, "/keys")
    asked: list[str] = []
    page.on("request", lambda r: asked.append(r.url) if "/v1/runs?limit" in r.url else None)
    page.goto(f"{user.url}/console#/runs?metadata=nosuchkey")
    field = page.get_by_label("Metadata")
    for text in ("nosuchkey", "team=only-this, =x", "team="):
        field.fill(text)
        expect(page.get_by_role("alert")).to_have_text("Write key=value")
        page.wait_for_timeout(400)  # longer than the page waits for the next key
        expect(page.locator(".runs-table, .empty, .loading")).to_have_count(0)
    assert [] == asked
    field.fill("team=only-this, ")

    expect(page.get_by_role("alert")).to_have_count(0)
    rows = page.get_by_role("region", name="Runs").locator("tbody tr")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text(made["run_id"][-8:])


def test_threads_that_were_made_during_a_pause_are_all_shown(
    context: BrowserContext, system: System
) -> None:
    """More than a page of them are between what was shown and what is read then."""
    user = system.caller()

    def make(*numbers: int) -> None:
        for number in numbers:
            user.made("/v1/threads", {"title": f"Thread {number} of them"})

    make(*range(50))
    page = signed_in(context, user, "/threads")
    rows = page.locator(".thread-list li")
    expect(rows).to_have_count(40)
    press(page, "Older threads")
    expect(rows).to_have_count(50)
    make(50)
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(rows).to_have_count(51)
    expect(rows.first).to_contain_text("Thread 50 of them")

    lists = "**/v1/threads?*"
    held = hold(context, lists)  # the page's timer would find a part of them
    make(*range(51, 95))
    context.unroute(lists)
    for route in held:
        route.continue_()
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(rows.first).to_contain_text("Thread 94 of them")
    for number in (80, 95):
        press(page, "Older threads")
        expect(rows).to_have_count(number)
    titles = [f"Thread {number} of them" for number in reversed(range(95))]
    expect(page.locator(".thread-title bdi")).to_have_text(titles)


def test_runs_of_other_filters_are_not_shown_with_a_refused_one(
    context: BrowserContext, user: Caller
) -> None:
    """An id that is none is refused: what fitted the filters before would seem to fit it."""
    user.ended(user.run({"say": "Well."}))
    page = signed_in(context, user, "/runs?status=completed")
    rows = page.locator(".runs-table tbody tr")
    expect(rows.first).to_be_visible()
    press(page, "Filters")
    page.get_by_label("Thread id").fill("abc")
    expect(page.get_by_role("alert")).to_contain_text("must be a lower-case UUIDv7")

    expect(rows).to_have_count(0)
    page.get_by_label("Thread id").fill("")
    expect(rows.first).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)


def test_filters_without_a_field_are_shown_and_removed(
    context: BrowserContext, user: Caller
) -> None:
    """The link to the sub-runs of a run, and one by API key, name what the list is narrowed to."""
    key_id, key = user.api_key()
    by_key = user.at(token=key).run({"say": "By key."})
    run_id = user.run({"say": "Well."})
    user.ended(run_id)
    page = signed_in(context, user, f"/runs/{run_id}")
    page.get_by_role("link", name="Show", exact=True).click()
    expect(page.get_by_role("heading", name="No run fits the filters")).to_be_visible()
    expect(page.get_by_label("Persona")).to_have_count(0)
    press(page, f"Sub-runs of …{run_id[-8:]}: remove this filter")
    rows = page.locator(".runs-table tbody tr")
    expect(rows.filter(has_text=run_id[-8:])).to_be_visible()
    expect(page).to_have_url(re.compile("#/runs$"))

    go(page, f"/runs?api_key_id={key_id}")
    expect(page.get_by_text(f"By API key …{key_id[-8:]}")).to_be_visible()
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text(by_key[-8:])


@pytest.mark.parametrize(
    ("label", "text", "why"),
    [
        ("Persona", "assistant@", "Write key or key@version"),
        ("Duration from, s", "40000000", "must be at most 31,622,400 s"),
        ("Cost from, USD", "1e30", "must be between 0 and 1,000,000 USD"),
        ("Metadata", "team=" + "x" * 600, "must be"),
    ],
)
def test_a_refused_filter_says_so_at_its_field(
    context: BrowserContext, user: Caller, label: str, text: str, why: str
) -> None:
    """Its reason is in the words and the unit of the page, until the field is corrected."""
    user.ended(user.run({"say": "Well."}))
    page = signed_in(context, user, "/runs")
    press(page, "Filters")
    field = page.get_by_label(label)
    field.fill(text)
    expect(field).to_have_attribute("aria-invalid", "true")
    alert = page.get_by_role("alert")
    expect(alert).to_have_count(1)
    expect(alert).to_contain_text(why)
    expect(field).to_have_accessible_description(re.compile(re.escape(why)))
    press(page, "Filters")
    expect(alert).to_be_visible()
    field.fill("")

    expect(alert).to_have_count(0)
    expect(page.locator(".runs-table tbody tr").first).to_be_visible()
    expect(field).to_be_focused()


def test_a_corrected_filter_is_not_marked_while_another_cannot_be_read(
    context: BrowserContext, user: Caller
) -> None:
    """The list is not asked for then, and no response says that the field is right."""
    page = signed_in(context, user, "/runs")
    press(page, "Filters")
    page.get_by_label("Persona").fill("assistant@")
    expect(page.get_by_role("alert")).to_have_text("Write key or key@version")
    page.get_by_label("Metadata").fill("team")
    page.get_by_label("Persona").fill("assistant")

    expect(page.get_by_role("alert")).to_have_text("Write key=value")


def test_a_late_reading_of_threads_is_not_shown_under_another_end_user(
    context: BrowserContext, user: Caller
) -> None:
    """The list of all threads was opened while those of one end user were read."""
    user.made("/v1/threads", {"title": "Of the late one", "end_user_id": "late"})
    user.made("/v1/threads", {"title": "Of another one", "end_user_id": "early"})
    page = signed_in(context, user, "/keys")
    held = hold(context, "**/v1/threads?*end_user_id=late*")
    page.evaluate("location.hash = '/threads?end_user_id=late'")
    until_held(page, held, 1)
    page.evaluate("location.hash = '/threads'")
    another = page.locator(".thread-list").get_by_text("Of another one")
    expect(another).to_be_visible()
    for late in held:
        late.continue_()
    page.wait_for_timeout(500)

    # At once: the timer would read the whole list again.
    assert another.is_visible()
