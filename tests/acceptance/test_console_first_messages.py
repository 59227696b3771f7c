"""First messages of threads in the console, in a real Chromium: how they come back and arrive."""

from datetime import datetime, timedelta

import pytest
from playwright.sync_api import BrowserContext, expect

from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_losses import (
    BEGINS,
    CREATES,
    Loss,
    box,
    hold,
    killed,
    lose,
    refused,
    say,
    unreachable,
)
from tests.acceptance.test_console_settings import go, press, signed_in, until
from tests.caller import Caller, script

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]

#: A press of Send before anything but the page's own drawing.
SENDS_AT_ONCE = """
new MutationObserver((_, observer) => {
  const button = document.querySelector(".composer button[type=submit]:enabled")
  if (button === null || button.ariaDisabled === "true") return
  observer.disconnect()
  button.click()
}).observe(document, {attributes: true, childList: true, subtree: true})
"""


@pytest.mark.parametrize(
    ("title", "first", "hours", "then"),
    [
        pytest.param("A title", unreachable, 0, refused(422), id="refused"),
        pytest.param("", unreachable, 13, None, id="old"),
        pytest.param("", killed, 0, refused(429), id="arrived"),
    ],
)
def test_a_first_message_comes_back_whole(
    context: BrowserContext, user: Caller, title: str, first: Loss, hours: int, then: Loss | None
) -> None:
    """Its persona, route and title are there after a reload, and one thread begins with it."""
    page, said = signed_in(context, user, "/threads/new"), script({"say": "Heard."})
    known = {thread["id"] for thread in user.get("/v1/threads")}
    fields = {"Title": title, "Persona": "careful", "Route": "scripted"}
    page.get_by_label("Title").fill(title)
    for name in ("Persona", "Route"):
        page.get_by_label(name, exact=True).select_option(fields[name])
    lose(context, BEGINS, first, *[unreachable] * 100)
    with page.expect_event("requestfailed", lambda request: request.url.endswith("/v1/runs")):
        say(page, said)
    address = page.url
    page.goto("about:blank")  # it would send the message again before all is set
    context.unroute(BEGINS)
    lose(context, BEGINS, *([then] if then else []))
    page.clock.set_fixed_time(datetime.now().astimezone() + timedelta(hours=hours))
    page.goto(address)
    expect(box(page)).to_have_value(said)
    for name, value in fields.items():
        expect(page.get_by_label(name, exact=True)).to_have_value(value)
    press(page, "Send")

    expect(page.locator(".run .markdown")).to_have_text(["Heard."])
    [begun] = [thread for thread in user.get("/v1/threads") if thread["id"] not in known]
    assert begun["title"].startswith(title or '{"script"')
    [run] = user.get(f"/v1/threads/{begun['id']}/runs")
    made = user.get_run(run["run_id"])
    assert ("careful@1", "scripted") == (made["persona_id"], made["route_id"])


def test_a_route_that_is_gone_is_shown_where_it_was_chosen(
    context: BrowserContext, user: Caller
) -> None:
    """The message is refused with it, so the field shows it, and another one can be chosen."""
    body = {"name": "Going", "kind": "openai", "models": [{"model": "gone"}]}
    provider = user.made("/v1/llm-providers", {**body, "api_key": "sk-" + 24 * "g"})
    [model] = provider["models"]
    page = signed_in(context, user, "/threads/new")
    route = page.get_by_label("Route", exact=True)
    route.select_option(model["route_id"])
    box(page).fill(script({"say": "Heard."}))
    assert 204 == user.http.delete(f"/v1/llm-providers/{provider['id']}").status_code
    page.reload()
    expect(route.locator("option", has_text="scripted").first).to_be_attached()
    expect(route).to_have_value(model["route_id"])
    press(page, "Send")
    expect(page.get_by_role("alert")).to_be_visible()
    route.select_option("scripted")
    press(page, "Send")

    expect(page.locator(".run .markdown")).to_have_text(["Heard."])


def test_what_was_chosen_after_a_refusal_stays(context: BrowserContext, user: Caller) -> None:
    """A persona and a title that were changed are not those of the refused message again."""
    page = signed_in(context, user, "/threads/new")
    lose(context, BEGINS, refused(422))
    page.get_by_label("Title").fill("Complaint")
    page.get_by_label("Persona", exact=True).select_option("careful")
    with page.expect_response(BEGINS):
        say(page, "Hello")
    expect(box(page)).to_have_value("Hello")
    page.get_by_label("Title").fill("")
    page.get_by_label("Persona", exact=True).select_option("plain")
    go(page, "/keys")
    go(page, "/threads/new")

    expect(box(page)).to_have_value("Hello")
    expect(page.get_by_label("Title")).to_have_value("")
    expect(page.get_by_label("Persona", exact=True)).to_have_value("plain")


def test_a_first_message_leads_nobody_away(context: BrowserContext, user: Caller) -> None:
    """Where its page was left, a form on another page stays, and the thread is in the list."""
    page, held = signed_in(context, user, "/threads/new"), hold(context, BEGINS)
    page.get_by_label("Title").fill("Begun meanwhile")
    with page.expect_request(BEGINS):
        say(page, script({"say": "Heard."}))
    go(page, "/keys")
    press(page, "Create key")
    name = page.get_by_role("dialog").get_by_label("Name")
    name.fill("Billing")
    with page.expect_response("**/v1/threads?*"):  # the list is read again once it has arrived
        held[0].continue_()
    assert "#/keys" == page.evaluate("location.hash")
    expect(name).to_have_value("Billing")
    go(page, "/threads")

    page.get_by_role("link", name="Begun meanwhile").click()
    expect(page.locator(".run .markdown")).to_have_text(["Heard."])


#: Lets a first message wait on its way, and then arrive right after its page was left.
HOLD = """() => {
  const others = window.fetch
  window.fetch = (url, options) => {
    if (options?.method !== "POST" || !String(url).endsWith("/v1/runs")) return others(url, options)
    return new Promise((resolve) => {
      window.arrive = () => resolve(new Response('{"thread_id": "made"}', { status: 201 }))
    })
  }
}"""
LEAVE = """() => new Promise((resolve) => {
  addEventListener("hashchange", () => {
    window.arrive()
    setTimeout(resolve, 300)
  }, { once: true })
  location.hash = "/keys"
})"""


def test_a_first_message_that_arrives_at_once_leads_nobody_away(
    context: BrowserContext, user: Caller
) -> None:
    """The page that was left is gone before the browser has drawn the next one."""
    page = signed_in(context, user, "/threads/new")
    page.evaluate(HOLD)
    say(page, "Hello")
    until(page, "window.arrive !== undefined")
    page.evaluate(LEAVE)

    assert "#/keys" == page.evaluate("location.hash")


def test_a_message_left_by_a_reload_is_not_replaced(context: BrowserContext, user: Caller) -> None:
    """A draft that is sent in the moment in which its box is there again leaves it as it is."""
    page = signed_in(context, user, f"/threads/{user.thread()}")
    lose(context, CREATES, *[unreachable] * 100)
    with page.expect_event("requestfailed"):
        say(page, script({"say": "One."}))
    box(page).fill(script({"say": "Two."}))
    address = page.url
    page.goto("about:blank")  # it would send the message again before all is set
    context.unroute(CREATES)
    context.add_init_script(SENDS_AT_ONCE)
    page.goto(address)

    one, two = (page.locator(".run .markdown").filter(has_text=text) for text in ("One.", "Two."))
    expect(one).to_have_count(1)
    refusal = page.get_by_role("alert").filter(has_text="The thread has an active run")
    expect(two.or_(refusal)).to_have_count(1)
    if refusal.count():  # the page did not know yet that the first message is being answered
        page.get_by_role("button", name="Send", exact=True).click()
    expect(two).to_have_count(1)


def test_a_title_ends_with_a_whole_character(context: BrowserContext, user: Caller) -> None:
    """A message without spaces has an emoji where its beginning, the title, is cut."""
    page = signed_in(context, user, "/threads/new")
    page.get_by_label("Route", exact=True).select_option("scripted")
    say(page, "x" * 59 + "\N{GRINNING FACE}" * 2)

    title = "x" * 59 + "\N{GRINNING FACE} …"
    expect(page.get_by_role("heading", name=title, exact=True)).to_be_visible()
