"""The keyboard's focus in the console, in a real Chromium, while things change around it."""

import pytest
from playwright.sync_api import BrowserContext, Locator, Route, expect

from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_approvals import calling
from tests.acceptance.test_console_fresh_lists import delivery, serve_pages
from tests.acceptance.test_console_losses import hold, refused
from tests.acceptance.test_console_settings import press, signed_in, until_held
from tests.caller import Caller

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]


def press_by_keyboard(button: Locator) -> None:
    button.focus()
    button.press("Enter")


def test_a_refused_form_takes_what_is_typed_next(context: BrowserContext, user: Caller) -> None:
    """It was refused as a whole, so that no field of it is to be corrected."""
    page = signed_in(context, user, "/keys")
    context.route("**/v1/api-keys", refused(409))
    press(page, "Create key")
    dialog = page.get_by_role("dialog")
    name = dialog.get_by_label("Name")
    name.fill("n")
    name.press("Enter")
    expect(dialog.get_by_role("alert")).to_contain_text("Come back later.")
    expect(name).to_be_focused()
    page.keyboard.type("ew")

    expect(name).to_have_value("new")


@pytest.mark.parametrize("pressed", ["field", "button"])
def test_a_form_that_is_sent_keeps_the_focus(
    context: BrowserContext, user: Caller, pressed: str
) -> None:
    """Enter does not send it a second time, in a field or on its button."""
    page = context.new_page()
    page.goto(f"{user.url}/console")
    page.get_by_label("User name or email").fill(user.login)
    password = page.get_by_label("Password")
    password.fill("wrong password")
    button = page.get_by_role("button", name="Sign in", exact=True)
    begun = password if pressed == "field" else button
    held = hold(context, "**/v1/auth/login")
    press_by_keyboard(begun)
    until_held(page, held, 1)
    expect(button).to_have_attribute("aria-busy", "true")
    for element in (password, button, begun):
        press_by_keyboard(element)
    page.wait_for_timeout(300)
    assert 1 == len(held)
    held[0].continue_()
    expect(page.get_by_role("alert")).to_be_visible()

    expect(begun).to_be_focused()


def test_a_refused_button_keeps_the_focus(context: BrowserContext, user: Caller) -> None:
    """It can be pressed again; the list that has more rows continues from it, too."""
    body = {"url": "https://shop.example.com/hooks", "event_types": ["run.completed"]}
    made = user.made("/v1/webhook-endpoints", body)
    delivered = [{**delivery(number), "state": "delivered"} for number in range(60)]
    serve_pages(context, "**/deliveries?*", delivered)
    context.route("**/v1/webhook-endpoints/*:test", refused(409))
    context.route("**/deliveries?*before=*", refused(409))
    context.route(f"**/v1/webhook-endpoints/{made['id']}", refuse_deletions)
    page = signed_in(context, user, f"/webhooks/{made['id']}")
    alert = page.get_by_role("alert")
    for number, name in enumerate(["Send test", "Show more"], 1):
        button = page.get_by_role("button", name=name)
        press_by_keyboard(button)
        expect(alert).to_have_count(number)
        expect(button).to_be_focused()
    press(page, "Delete endpoint")
    button = page.get_by_role("dialog").get_by_role("button", name="Delete endpoint")
    press_by_keyboard(button)
    expect(page.get_by_role("dialog").get_by_role("alert")).to_be_visible()

    expect(button).to_be_focused()


def refuse_deletions(route: Route) -> None:
    if route.request.method == "DELETE":
        refused(409)(route)
    else:
        route.fallback()


def test_the_keyboard_continues_where_a_button_was(context: BrowserContext, user: Caller) -> None:
    """*Try again*, *Redeliver* and *Show more* go with what they were there for."""
    body = {"url": "https://shop.example.com/hooks", "event_types": ["run.completed"]}
    made = user.made("/v1/webhook-endpoints", body)
    dead = [{**delivery(number), "state": "dead"} for number in range(60)]

    def redeliver(route: Route) -> None:
        (gone,) = route.request.post_data_json["delivery_ids"]
        dead[:] = [one for one in dead if one["id"] != gone]
        route.fulfill(json={})

    serve_pages(context, "**/deliveries?*", dead)
    context.route("**/v1/webhook-endpoints/*:replay", redeliver)
    unreachable = refused(503)
    context.route("**/deliveries?*", unreachable)
    page = signed_in(context, user, f"/webhooks/{made['id']}?state=dead")
    again = page.get_by_role("button", name="Try again")
    expect(again).to_be_visible()
    context.unroute("**/deliveries?*", unreachable)
    shown = page.get_by_role("button", name="test", exact=True)
    for button, following in (
        (again, shown.first),
        (page.get_by_role("button", name="Redeliver test ivery-25"), shown.nth(25)),
        (page.get_by_role("button", name="Show more"), page.get_by_role("button", name="Rotate")),
    ):
        press_by_keyboard(button)
        expect(button).to_have_count(0)
        page.keyboard.press("Tab")
        expect(following).to_be_focused()


def test_the_keyboard_continues_with_the_next_file(context: BrowserContext, user: Caller) -> None:
    """Files are removed one after the other; after the last one comes the message."""
    page = signed_in(context, user, f"/threads/{user.thread()}")
    files = [{"name": name, "mimeType": "text/plain", "buffer": b"x"} for name in ("a", "b")]
    page.locator("input[type=file]").set_input_files(files)
    removes = page.get_by_role("button", name="Remove")
    expect(removes).to_have_count(2)
    message = page.get_by_label("Message", exact=True)
    for left, following in ((1, removes), (0, message)):
        press_by_keyboard(removes.first)
        expect(removes).to_have_count(left)
        page.keyboard.press("Tab")
        expect(following).to_be_focused()


def test_the_focus_of_an_answered_request_is_in_the_next_one(
    context: BrowserContext, owner: Caller
) -> None:
    """Its button has no focus, which would approve what was not read; after the last request, the
    keyboard continues in its place.
    """
    runs = [calling(owner, text) for text in ("1+1", "2+2", "3+3")]
    page = signed_in(context, owner, "/inbox")
    boxes = page.locator(".ask")
    expect(boxes).to_have_count(3)
    press_by_keyboard(boxes.nth(1).get_by_role("button", name="Approve", exact=True))
    expect(boxes).to_have_count(2)
    expect(page.locator(".inbox-item", has_text=runs[0][-8:]).locator(".ask")).to_be_focused()
    page.keyboard.press("Enter")
    press_by_keyboard(boxes.last.get_by_role("button", name="Approve", exact=True))
    expect(boxes).to_have_count(1)
    expect(boxes).to_be_focused()

    thread_id = owner.get_run(calling(owner, "4+4"))["thread_id"]
    page.goto(f"{owner.url}/console#/threads/{thread_id}")
    press_by_keyboard(boxes.get_by_role("button", name="Approve", exact=True))
    expect(boxes).to_have_count(0)
    page.keyboard.press("Tab")
    expect(page.locator(".chat :focus")).to_have_count(1)


def test_a_refused_answer_keeps_the_focus(context: BrowserContext, user: Caller) -> None:
    """All options of a question are off while one of them is sent."""
    question = {"question": "Which colour?", "options": ["red", "blue"]}
    run_id = user.run({"tool": "ask_user", "args": question})
    user.until(run_id, "phase", "waiting")
    page = signed_in(context, user, f"/runs/{run_id}")
    held = hold(context, "**/v1/runs/*/input")
    option = page.get_by_role("button", name="blue")
    press_by_keyboard(option)
    until_held(page, held, 1)
    expect(option).to_be_disabled()
    refused(409)(held[0])
    expect(page.get_by_role("alert")).to_contain_text("Come back later.")

    expect(option).to_be_focused()
    user.cancel(run_id)


def test_an_open_navigation_keeps_the_focus(context: BrowserContext, user: Caller) -> None:
    """In a narrow window it covers the page: Tab leads to nothing below it, and Esc back to its
    button; once the window is wide, nothing of the page is covered.
    """
    page = signed_in(context, user, "/keys")
    page.set_viewport_size({"width": 360, "height": 740})
    button = page.get_by_role("button", name="Open navigation")
    press_by_keyboard(button)
    expect(page.locator(".scrim")).to_be_visible()
    page.get_by_role("button", name="Sign out").focus()
    for _ in range(3):
        page.keyboard.press("Tab")
        assert not page.locator("main :focus").count()
    page.get_by_role("link", name="Threads").focus()
    page.keyboard.press("Escape")
    expect(button).to_be_focused()

    press_by_keyboard(button)
    page.set_viewport_size({"width": 1280, "height": 800})
    expect(page.locator(".scrim")).to_have_count(0)
    create = page.get_by_role("button", name="Create key")
    create.focus()
    expect(create).to_be_focused()
