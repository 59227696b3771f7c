"""The console in a real Chromium while requests and responses are lost on their way."""

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Locator, Page, Route, expect

from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_settings import go, signed_in, until, until_held
from tests.caller import Caller, script
from tests.clients import PASSWORD
from tests.system import System

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]
Loss = Callable[[Route], None]
CREATES = "**/v1/threads/*/runs"
BEGINS = "**/v1/runs"
TIMELINE = "**/v1/threads/*/timeline*"


def not_found(route: Route) -> None:
    """Respond as a web process of another release does to the address of a file."""
    body = {"code": "http.not_found", "message": "No such endpoint.", "details": {}}
    route.fulfill(status=404, json=body)


def bad_gateway(route: Route) -> None:
    """Respond as nginx does while no web process is there."""
    page = "<html><h1>502 Bad Gateway</h1></html>"
    route.fulfill(status=502, content_type="text/html", body=page)


def killed(route: Route) -> None:
    """Let the service carry the request out, and lose its response."""
    assert route.fetch().ok
    bad_gateway(route)


def cut(route: Route) -> None:
    """End the body of a successful response early."""
    response = route.fetch()
    assert response.ok
    body = response.text()[:-9]
    route.fulfill(status=response.status, content_type="application/json", body=body)


def in_progress(route: Route) -> None:
    code = "idempotency.in_progress"
    route.fulfill(status=409, json={"code": code, "message": "In progress.", "details": {}})


def unreachable(route: Route) -> None:
    route.abort()


def refused(status: int) -> Loss:
    body = {"code": "http.unavailable", "message": "Come back later.", "details": {}}
    return lambda route: route.fulfill(status=status, json=body)


def lose(context: BrowserContext, pattern: str, *losses: Loss | None) -> None:
    """Treat the first requests to an address in these ways, and pass the others on."""
    left = list(losses)

    def handle(route: Route) -> None:
        loss = left.pop(0) if left else None
        if loss is None:
            route.continue_()
        else:
            loss(route)

    context.route(pattern, handle)


def hold(context: BrowserContext, pattern: str) -> list[Route]:
    """Let the requests to an address wait; returns them as they come."""
    held: list[Route] = []

    def keep(route: Route) -> None:
        held.append(route)

    context.route(pattern, keep)
    return held


def box(page: Page) -> Locator:
    return page.get_by_label("Message", exact=True)


def say(page: Page, text: str) -> None:
    box(page).fill(text)
    page.get_by_role("button", name="Send").click()


def titled(user: Caller, title: str) -> list[str]:
    """Return the ids of the threads with a title."""
    return [thread["id"] for thread in user.get("/v1/threads") if thread["title"] == title]


@pytest.mark.parametrize(
    "losses",
    [
        pytest.param((killed, bad_gateway), id="502"),
        pytest.param((killed, refused(524)), id="524"),
        pytest.param((cut,), id="cut"),
        pytest.param((killed, in_progress), id="in progress"),
    ],
)
def test_a_message_whose_response_is_lost_is_there_once(
    context: BrowserContext, user: Caller, losses: tuple[Loss, ...]
) -> None:
    """It is sent again with the same key until the service says that it has it."""
    thread_id = user.thread()
    page = signed_in(context, user, f"/threads/{thread_id}")
    lose(context, CREATES, *losses)
    say(page, script({"say": "Heard."}))

    expect(page.locator(".run .markdown")).to_have_text(["Heard."])
    expect(page.locator(".said")).to_have_count(1)
    expect(box(page)).to_have_value("")
    assert 2 == len(user.kept(thread_id))


def test_a_page_whose_files_are_of_another_version_says_so(
    context: BrowserContext, user: Caller
) -> None:
    """A person who loads it during a deploy reads why it is empty, until the files are there."""
    lose(context, "**/console/*/app.js", not_found)
    page = context.new_page()
    late = page.get_by_text("a new version is being deployed")

    page.goto(f"{user.url}/console")
    expect(late).to_be_visible()

    page.reload()
    expect(page.get_by_role("heading").first).to_be_visible()
    expect(late).to_have_count(0)


@pytest.mark.parametrize("status", [500, 502, 521])
def test_a_failure_of_the_service_ends_no_view(
    context: BrowserContext, user: Caller, status: int
) -> None:
    """A thread and the page of a run follow on when the service, or that of a proxy, is back."""
    run_id = user.run({"say": "one two three four five", "delay_ms": 500})
    loss = bad_gateway if status == 502 else refused(status)
    lose(context, "**/v1/threads/*/events*", loss, loss)
    lose(context, TIMELINE, None, loss)
    lose(context, "**/v1/runs/*/events*", loss)
    thread = signed_in(context, user, f"/threads/{user.get_run(run_id)['thread_id']}")
    run = context.new_page()
    run.goto(f"{user.url}/console#/runs/{run_id}")

    expect(thread.locator(".run .markdown")).to_have_text(["one two three four five"])
    expect(run.locator(".events")).to_contain_text("run.completed")
    expect(run.get_by_role("alert")).to_have_count(0)


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_thread_is_loaded_again(context: BrowserContext, user: Caller, status: int) -> None:
    """A thread that the service cannot show yet appears by itself."""
    run_id = user.run({"say": "Here."})
    lose(context, TIMELINE, bad_gateway if status == 502 else refused(status))
    page = signed_in(context, user, f"/threads/{user.get_run(run_id)['thread_id']}")

    expect(page.locator(".run .markdown")).to_have_text(["Here."])


@pytest.mark.parametrize("first", [killed, unreachable])
def test_a_message_that_is_being_sent_survives_a_reload(
    context: BrowserContext, user: Caller, first: Loss
) -> None:
    """The page that is loaded sends it again; it is there once, whether it had arrived or not."""
    thread_id = user.thread()
    page = signed_in(context, user, f"/threads/{thread_id}")
    lose(context, CREATES, first, *[unreachable] * 100)
    say(page, script({"say": "Heard."}))
    expect(page.get_by_text("it is sent again")).to_be_visible()
    box(page).fill("A draft")
    page.reload()
    expect(page.get_by_text("it is sent again")).to_be_visible()
    context.unroute(CREATES)

    expect(page.locator(".run .markdown")).to_have_text(["Heard."])
    expect(page.locator(".said")).to_have_count(1)
    expect(box(page)).to_have_value("A draft")
    page.reload()
    expect(page.locator(".run .markdown")).to_have_text(["Heard."])
    assert 2 == len(user.kept(thread_id))


@pytest.mark.parametrize("first", [killed, unreachable])
def test_a_first_message_survives_a_reload(
    context: BrowserContext, user: Caller, first: Loss
) -> None:
    """One thread begins with it, and the page that was reloaded shows it."""
    page, title = signed_in(context, user, "/threads/new"), f"Begun {first.__name__}"
    lose(context, BEGINS, first, *[unreachable] * 100)
    page.get_by_label("Title").fill(title)
    with page.expect_event("requestfailed", lambda request: request.url.endswith("/v1/runs")):
        say(page, script({"say": "Heard."}))
    page.reload()
    expect(page.get_by_role("button", name="Send")).to_have_attribute("aria-busy", "true")
    context.unroute(BEGINS)

    expect(page.locator(".run .markdown")).to_have_text(["Heard."])
    [thread_id] = titled(user, title)
    assert 2 == len(user.kept(thread_id))


def test_a_first_message_is_sent_in_no_other_org(
    context: BrowserContext, user: Caller, system: System
) -> None:
    """A page that was left while it sent one opens in another org of the person, without it."""
    page, owner = signed_in(context, user, "/threads/new"), system.caller()
    held = hold(context, BEGINS)
    with page.expect_request(BEGINS):
        say(page, "A secret of the first org")
    address = page.url
    page.goto("about:blank")
    held.clear()
    made = owner.made(f"/v1/orgs/{owner.org_id}/invitations", {"name": "x", "role": "member"})
    body = {"login": user.login, "password": PASSWORD, "invitation": made["token"]}
    assert context.request.post(f"{user.url}/v1/auth/login", data=body).ok
    page.goto(address)
    expect(page.get_by_role("navigation")).to_contain_text("member ·")
    expect(box(page)).to_have_value("")
    with page.expect_request(BEGINS):
        say(page, "Hello")
    until_held(page, held, 1)

    assert ["Hello"] == [route.request.post_data_json["message"] for route in held]


def test_a_refusal_that_is_not_seen_leaves_a_draft(context: BrowserContext, user: Caller) -> None:
    """The message is in the box of its thread when the page is there again."""
    thread_id, other = user.thread(), user.thread(title="Another thread")
    page = signed_in(context, user, f"/threads/{thread_id}")
    held = hold(context, CREATES)
    with page.expect_request(CREATES):
        say(page, "Do you hear me?")
    go(page, f"/threads/{other}")
    expect(page.get_by_role("heading", name="Another thread")).to_be_visible()
    expect(box(page)).to_have_value("")
    with page.expect_response(CREATES):
        refused(422)(held[0])
    go(page, f"/threads/{thread_id}")

    expect(box(page)).to_have_value("Do you hear me?")


@pytest.mark.parametrize("is_lost", [True, False])
def test_files_come_back_with_their_message(
    context: BrowserContext, user: Caller, tmp_path: Path, is_lost: bool
) -> None:
    """They are in the box of the thread that was left, also after a reload, and are sent once."""
    thread_id, notes = user.thread(), tmp_path / "notes.txt"
    notes.write_text("The meeting is at noon.")
    page = signed_in(context, user, f"/threads/{thread_id}")
    page.get_by_label("Files", exact=True).set_input_files([notes])
    attached = page.get_by_role("list", name="Attached files").get_by_role("listitem")
    expect(page.get_by_role("button", name="Send")).to_be_enabled()
    lose(context, CREATES, *([killed] if is_lost else []), refused(429))
    with page.expect_response(lambda response: response.status == 429):
        page.get_by_role("button", name="Send").click()
        go(page, "/threads/new")
    expect(page.get_by_role("heading", name="New thread")).to_be_visible()
    expect(attached).to_have_count(0)
    go(page, f"/threads/{thread_id}")
    expect(attached).to_contain_text("notes.txt")
    page.reload()
    expect(attached).to_contain_text("notes.txt")
    with page.expect_response(CREATES) as response:
        page.get_by_role("button", name="Send").click()

    assert response.value.ok
    expect(attached).to_have_count(0)
    assert 1 == [role for role, *_ in user.messages(thread_id)].count("user")
    page.reload()
    expect(page.locator(".said")).to_have_count(1)
    expect(attached).to_have_count(0)


def test_a_thread_that_is_opened_again_takes_part_in_the_request(
    context: BrowserContext, user: Caller
) -> None:
    """The message is shown as on its way, and sent by one request."""
    thread_id, other = user.thread(), user.thread(title="Another thread")
    page = signed_in(context, user, f"/threads/{thread_id}")
    held = hold(context, CREATES)
    with page.expect_request(CREATES):
        say(page, script({"say": "Heard."}))
    go(page, f"/threads/{other}")
    expect(page.get_by_role("heading", name="Another thread")).to_be_visible()
    go(page, f"/threads/{thread_id}")
    expect(page.get_by_text("Sending …")).to_be_visible()
    [request] = held
    request.continue_()

    expect(page.locator(".run .markdown")).to_have_text(["Heard."])
    expect(page.get_by_text("Sending …")).to_have_count(0)
    expect(box(page)).to_have_value("")


def test_stop_leaves_a_message_on_its_way(context: BrowserContext, user: Caller) -> None:
    """No other one is sent before it has arrived, and a refusal of *Stop* is shown beside it."""
    thread_id = user.get_run(user.run({"hang": 600}))["thread_id"]
    page = signed_in(context, user, f"/threads/{thread_id}")
    held, stop = hold(context, CREATES), page.get_by_role("button", name="Stop")
    with page.expect_request(CREATES):
        say(page, "The first")
    lose(context, "**/v1/runs/*:cancel", refused(429))
    stop.click()
    expect(page.get_by_role("alert")).to_contain_text("Come back later.")
    stop.click()
    expect(stop).to_have_count(0)
    expect(page.get_by_role("alert")).to_have_count(0)
    box(page).fill("The second")
    box(page).press("Enter")
    expect(page.get_by_role("button", name="Send")).to_have_attribute("aria-busy", "true")
    expect(box(page)).to_have_value("The second")
    page.reload()

    expect(page.locator(".said").last).to_contain_text("The first")
    expect(box(page)).to_have_value("The second")
    assert all("The first" == route.request.post_data_json["message"] for route in held)


@pytest.mark.parametrize("status", [408, 429])
def test_a_message_that_may_have_arrived_keeps_its_key(
    context: BrowserContext, user: Caller, status: int
) -> None:
    """Sent again by the person it is there once; words that were deleted are a new message."""
    thread_id, said = user.thread(), script({"say": "Heard."})
    page = signed_in(context, user, f"/threads/{thread_id}")
    lose(context, CREATES, killed, refused(status), None, killed, refused(status))
    say(page, said)
    expect(page.get_by_role("alert")).to_contain_text("Come back later.")
    expect(box(page)).to_have_value(said)
    with page.expect_response(CREATES):
        page.get_by_role("button", name="Send").click()
    expect(page.locator(".run .markdown")).to_have_text(["Heard."])
    expect(box(page)).to_have_value("")
    assert 2 == len(user.kept(thread_id))

    say(page, said)
    expect(box(page)).to_have_value(said)
    box(page).fill("")
    until(page, f"!Object.keys(sessionStorage).some((name) => name.includes('{thread_id}'))")
    say(page, said)
    expect(page.locator(".run .markdown")).to_have_text(["Heard."] * 3)


def test_a_message_that_is_refused_twice_keeps_its_key(
    context: BrowserContext, user: Caller
) -> None:
    """Neither another refusal nor one before the next frame makes it another message."""
    thread_id, said = user.thread(), script({"say": "Heard."})
    page = signed_in(context, user, f"/threads/{thread_id}")
    lose(context, CREATES, killed, *[refused(429)] * 3)
    alert, send = page.get_by_role("alert"), page.get_by_role("button", name="Send")
    say(page, said)
    expect(alert).to_contain_text("Come back later.")
    page.clock.install()
    for minutes in (1, 2):
        page.clock.pause_at(datetime.now().astimezone() + timedelta(minutes=minutes))
        with page.expect_response(CREATES):
            send.click()
        page.clock.resume()
        expect(alert).to_contain_text("Come back later.")
        expect(box(page)).to_have_value(said)
    with page.expect_response(CREATES) as response:
        send.click()

    assert response.value.ok
    expect(box(page)).to_have_value("")
    assert 2 == len(user.kept(thread_id))


@pytest.mark.parametrize("is_reloaded", [True, False])
def test_a_message_of_yesterday_is_a_draft(
    context: BrowserContext, user: Caller, is_reloaded: bool
) -> None:
    """The service no longer knows its key: the person decides whether it is sent."""
    thread_id = user.thread()
    page = signed_in(context, user, f"/threads/{thread_id}")
    lose(context, CREATES, *[unreachable] * 100)
    say(page, "Do you hear me?")
    expect(page.get_by_text("it is sent again")).to_be_visible()
    page.clock.set_fixed_time(datetime.now().astimezone() + timedelta(hours=13))
    if is_reloaded:
        page.reload()

    expect(box(page)).to_have_value("Do you hear me?")
    expect(page.locator(".said")).to_have_count(0)
