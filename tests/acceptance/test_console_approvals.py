"""Approvals in the console, in a real Chromium, where a reply does not settle the call."""

import json
import re
import sys
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Locator, Page, expect

from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_lists import PIECE, renew
from tests.acceptance.test_console_losses import CREATES, TIMELINE, hold, say
from tests.acceptance.test_console_settings import press, signed_in, until, until_held
from tests.caller import Caller, script
from tests.waiting import eventually

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]


def test_a_refused_edit_of_a_call_has_its_reason(context: BrowserContext, user: Caller) -> None:
    """It counts as edited, not as approved; another call of the turn waits until it is settled."""
    fields = {"tools": ["calculator"], "require_approval": ["calculator"]}
    user.made("/v1/personas", {"key": "asking", "route_id": "scripted", **fields})
    calls = [{"tool": "calculator", "args": {"expression": text}} for text in ("1+1", "2+2")]
    run_id = user.run({"tools": calls}, {"say": "It is done."}, persona_id="asking")
    thread = user.get_run(run_id)["thread_id"]
    page, inbox = signed_in(context, user, "/keys"), context.new_page()
    page.goto(f"{user.url}/console#/threads/{thread}")
    inbox.goto(f"{user.url}/console#/inbox")
    expect(page.locator(".call .badge")).to_have_text(["waits for approval", "waits its turn"])
    press(page, "Edit …")
    page.get_by_label("Arguments, as JSON").fill('{"expression": 3}')
    press(page, "Call with these arguments")

    for box in (page.locator(".ask"), inbox.locator(".inbox-item", has_text=run_id[-8:])):
        expect(box.get_by_role("note")).to_have_text(
            "Invalid arguments: The argument 'expression' must be of type string."
        )
    expect(page.locator(".answered b")).to_have_text(["Edited"])
    press(page, "Edit …")
    page.get_by_label("Arguments, as JSON").fill('{"expression": "3"}')
    press(page, "Call with these arguments")
    expect(page.locator(".call .badge")).to_have_text(["waits its turn", "waits for approval"])
    expect(page.locator(".answered b")).to_have_text(["Edited", "Approved with other arguments"])
    expect(page.locator(".ask").get_by_role("note")).to_have_count(0)


def test_a_call_that_is_made_waits_for_no_other(
    context: BrowserContext, user: Caller, tmp_path: Path
) -> None:
    """A form is asked for within a call, while others of the turn are made."""
    server = str(Path(__file__).parents[1] / "form_mcp_server.py")
    command = [sys.executable, server, str(tmp_path / "log")]
    fields = {"name": "forms", "transport": "stdio", "command": command}
    path = f"/v1/mcp-configs/{user.made('/v1/mcp-configs', fields)['id']}"
    eventually(lambda: user.get(path)["discovered_at"] is not None)
    read = {"name": "read_title", "description": "Read the title.", "client": True}
    declared = [{**read, "parameters": {"type": "object"}}]
    tools = {"mcp": ["forms"], "client_tools": declared}
    user.made("/v1/personas", {"key": "host", "route_id": "scripted", **tools})
    calls = [{"tool": "book", "args": {"table": "4"}}, {"tool": "read_title"}]
    run_id = user.run({"tools": calls}, persona_id="host")
    page = signed_in(context, user, f"/threads/{user.get_run(run_id)['thread_id']}")

    expect(page.locator(".call .badge")).to_have_text(["waits for an answer", "running"])
    user.cancel(run_id)


def calling(user: Caller, *expressions: str) -> str:
    """Begin a run that waits until a person approves its first call; return its id."""
    fields = {"tools": ["calculator"], "require_approval": ["calculator"]}
    user.http.post("/v1/personas", json={"key": "calling", "route_id": "scripted", **fields})
    calls = [{"tool": "calculator", "args": {"expression": text}} for text in expressions]
    run_id = user.run({"tools": calls}, {"say": "It is done."}, persona_id="calling")
    user.until(run_id, "phase", "waiting")
    return run_id


@pytest.mark.parametrize("is_late", [False, True])
def test_long_arguments_are_approved_on_the_page_of_their_run(
    context: BrowserContext, user: Caller, is_late: bool
) -> None:
    """The inbox, which has none over 8 KiB, leads there; the call may come after the 20,000 events
    that are shown.
    """
    run_id = calling(user, "1+" * 5_000 + "1")
    page = signed_in(context, user, "/inbox")
    item = page.locator(".inbox-item", has_text=run_id[-8:])
    expect(item.get_by_role("button", name="Approve", exact=True)).to_be_disabled()
    stream = f"**/v1/runs/{run_id}/events*"
    held = hold(context, stream)
    item.get_by_role("link", name=re.compile("^Run ")).click()
    until_held(page, held, 1)
    expect(page.locator(".ask")).to_contain_text("The arguments are not loaded yet.")
    own = user.events_so_far(run_id)
    earlier = [PIECE | {"created_at": own[0]["created_at"]}] * (20_000 if is_late else 0)
    frames = [
        f"id: {seq}\ndata: {json.dumps({**event, 'seq': seq})}\n\n"
        for seq, event in enumerate([*earlier, *own], 1)
    ]
    held[0].fulfill(content_type="text/event-stream", body="".join(frames))
    ask = page.locator(".ask")
    expect(ask.locator(".tree")).to_contain_text("1+1+1+1")
    expect(ask).not_to_contain_text("not loaded")
    press(ask, "Approve")

    assert "completed" == user.ended(run_id)["status"]


def test_long_arguments_of_client_tools_are_shown_with_their_run(
    context: BrowserContext, user: Caller
) -> None:
    """The inbox says that it has none of them; nothing else is shown in their place."""
    send = {"name": "send_text", "description": "Send the text.", "client": True}
    declared = [{**send, "parameters": {"type": "object"}}]
    fields = {"key": "sender", "route_id": "scripted", "client_tools": declared}
    user.made("/v1/personas", fields)
    call = {"tool": "send_text", "args": {"text": "long " * 2_000}}
    run_id = user.run(call, persona_id="sender")
    user.until(run_id, "phase", "waiting")
    page = signed_in(context, user, "/inbox")
    item = page.locator(".inbox-item", has_text=run_id[-8:])
    expect(item).to_contain_text("open the run to see them")
    expect(item.locator(".code")).to_have_count(0)

    for address in (f"/runs/{run_id}", f"/threads/{user.get_run(run_id)['thread_id']}"):
        page.goto(f"{user.url}/console#{address}")
        expect(page.locator(".ask .tree")).to_contain_text("long long long")
    user.cancel(run_id)


def test_the_box_of_an_open_thread_says_what_happens_without_an_answer(
    context: BrowserContext, user: Caller
) -> None:
    """Its event does not; what was typed meanwhile stays when the thread has been read again."""
    fields = {"tools": ["calculator"], "require_approval": ["calculator"]}
    fields |= {"key": "lasting", "route_id": "scripted", "on_input_expired": "continue"}
    user.made("/v1/personas", fields)
    thread_id = user.thread(script({"tool": "calculator", "args": {"expression": "1+1"}}))
    page = signed_in(context, user, f"/threads/{thread_id}")
    expect(page.locator(".said")).to_be_visible()
    held = hold(context, TIMELINE)
    run_id = user.start(thread_id, persona_id="lasting")
    until_held(page, held, 1)
    ends = page.locator(".ask-until")
    expect(ends).to_contain_text("The time to answer ends")
    press(page, "Deny …")
    page.get_by_label("Reason").fill("Not today")
    for route in held:
        route.continue_()

    expect(ends).to_contain_text("Without an answer the run continues")
    expect(page.get_by_label("Reason")).to_have_value("Not today")
    user.cancel(run_id)


def middle_of(button: Locator) -> tuple[float, float]:
    box = button.bounding_box()
    assert box is not None
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


#: Clicks at a place, or on the first button, as soon as there are a number of them and a box with a
#: text. The tests would click some time after they have seen these: boxes take it after a second.
CLICK_AT_ONCE = """([count, text, x, y]) => {
  new MutationObserver((_, observer) => {
    const all = [...document.querySelectorAll("button")]
    const named = all.filter(one => one.innerText === "Approve")
    const boxes = [...document.querySelectorAll(".ask")]
    if (named.length < count || !boxes.some(one => one.innerText.includes(text))) return
    observer.disconnect()
    setTimeout(() => {
      const there = x === undefined ? named[0] : document.elementFromPoint(x, y)
      window.clicked = there.innerText
      there.dispatchEvent(new MouseEvent("click", { bubbles: true, cancelable: true, detail: 1 }))
    }, 20)
  }).observe(document.body, { childList: true, characterData: true, subtree: true })
}"""


def test_a_click_approves_no_call_that_has_taken_the_place_of_another(
    context: BrowserContext, user: Caller
) -> None:
    """A run that begins to wait is put above the one that a person is about to approve."""
    page = signed_in(context, user, "/keys")
    seen = calling(user, "1+1")
    page.goto(f"{user.url}/console#/inbox")
    approve = page.get_by_role("button", name="Approve", exact=True)
    approve.first.click(trial=True)
    count, place = approve.count(), middle_of(approve.first)
    page.evaluate(CLICK_AT_ONCE, [count + 1, "666*666", *place])
    new = calling(user, "666*666")
    renew(page)
    until(page, "window.clicked === 'Approve'")
    approve.first.click(trial=True)

    assert "waiting" == user.get_run(new)["phase"]
    approve.nth(1).click()
    assert "completed" == user.ended(seen)["status"]
    user.cancel(new)


#: Notes when an element begins to take no clicks.
WATCH = """element => {
  window.guarded = 0
  const note = () => (window.guarded += element.ariaDisabled === "true")
  new MutationObserver(note).observe(element, { attributeFilter: ["aria-disabled"] })
}"""


def test_a_box_takes_no_click_after_one_above_has_changed(
    context: BrowserContext, user: Caller
) -> None:
    """The run above asks for something else, which may have another height."""
    page = signed_in(context, user, "/keys")
    seen, above = calling(user, "1+1"), calling(user, "2+2", "3+3")
    page.goto(f"{user.url}/console#/inbox")
    box = page.locator(".inbox-item", has_text=seen[-8:])
    box.get_by_role("button", name="Approve", exact=True).click(trial=True)
    box.get_by_role("group", name="Reply").evaluate(WATCH)
    renew(page)
    assert 0 == page.evaluate("window.guarded")
    lists = "**/v1/runs?*"
    held = hold(context, lists)  # the page's timer would find the run above gone
    assert 202 >= user.answer(above, "approve").status_code
    eventually(lambda: "3+3" in str(user.get_run(above)["pending_input"]))
    context.unroute(lists)
    for route in held:
        route.continue_()
    renew(page)

    expect(page.locator(".inbox-item", has_text=above[-8:])).to_contain_text("3+3")
    assert 1 == page.evaluate("window.guarded")
    for run_id in (seen, above):
        user.cancel(run_id)


def test_a_box_takes_no_click_after_an_error_above_has_come_or_gone(
    context: BrowserContext, user: Caller
) -> None:
    """A lost connection has no code, and its message moves the boxes as any other one."""
    page = signed_in(context, user, "/keys")
    run_id = calling(user, "1+1")
    page.goto(f"{user.url}/console#/inbox")
    box = page.locator(".inbox-item", has_text=run_id[-8:])
    box.get_by_role("button", name="Approve", exact=True).click(trial=True)
    box.get_by_role("group", name="Reply").evaluate(WATCH)

    page.route(re.compile("/v1/runs"), lambda route: route.abort())
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.get_by_role("alert")).to_contain_text("The service cannot be reached.")
    until(page, "window.guarded === 1")
    expect(box.get_by_role("group", name="Reply")).not_to_have_attribute("aria-disabled", "true")
    page.unroute_all()
    renew(page)

    expect(page.get_by_role("alert")).to_have_count(0)
    until(page, "window.guarded === 2")
    user.cancel(run_id)


@pytest.mark.parametrize("shown", ["runs", "threads"])
def test_a_box_takes_no_click_after_something_beside_it_has_come_or_gone(
    context: BrowserContext, user: Caller, shown: str
) -> None:
    """A notice, an explanation or a message moves it on the pages of a run and of a thread."""
    run_id = calling(user, "1+1")
    key = "run_id" if shown == "runs" else "thread_id"
    page = signed_in(context, user, f"/{shown}/{user.get_run(run_id)[key]}")
    ask = page.locator(".ask")
    if shown == "runs":
        expect(page.locator(".explanation")).to_be_visible()
    ask.get_by_role("button", name="Approve", exact=True).click(trial=True)
    ask.get_by_role("group", name="Reply").evaluate(WATCH)

    def moves(count: int) -> None:
        until(page, f"window.guarded === {count}")
        expect(ask.locator("[aria-disabled]")).to_have_count(0)

    context.set_offline(True)
    expect(page.get_by_text("No connection")).to_be_visible()
    moves(1)
    context.set_offline(False)
    expect(page.get_by_text("No connection")).to_have_count(0)
    moves(2)
    if shown == "runs":
        explained = {"sentence": "It waits for somebody else now.", "next": None}
        page.route("**/v1/runs/*:explain", lambda route: route.fulfill(json=explained))
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        expect(page.locator(".explanation")).to_contain_text(explained["sentence"])
    else:
        held = hold(context, CREATES)
        say(page, "One more thing.")
        until_held(page, held, 1)
    moves(3)
    user.cancel(run_id)


@pytest.mark.parametrize("shown", ["runs", "threads"])
def test_a_second_click_does_not_approve_the_next_call(
    context: BrowserContext, user: Caller, shown: str
) -> None:
    """The next approval comes in the place of the first, and takes clicks after a second."""
    page = signed_in(context, user, "/keys")
    run_id = calling(user, "1+1", "666*666")
    key = "run_id" if shown == "runs" else "thread_id"
    page.goto(f"{user.url}/console#/{shown}/{user.get_run(run_id)[key]}")
    ask = page.locator(".ask")
    approve = ask.get_by_role("button", name="Approve", exact=True)
    approve.click(trial=True)
    page.evaluate(CLICK_AT_ONCE, [1, "666*666"])
    approve.click()
    until(page, "window.clicked === 'Approve'")
    approve.click(trial=True)

    assert "waiting" == user.get_run(run_id)["phase"]
    approve.click()
    assert "completed" == user.ended(run_id)["status"]


def click_again(page: Page, button: Locator) -> None:
    """Send the second click of a double click to a button that the first one has brought."""
    page.mouse.move(*middle_of(button))
    page.mouse.down(click_count=2)
    page.mouse.up(click_count=2)


def test_a_double_click_sends_no_reply_that_it_opens(context: BrowserContext, user: Caller) -> None:
    """What the first click brings under the pointer takes no second one, but single ones."""
    page = signed_in(context, user, "/keys")
    run_id = calling(user, "1+1")
    page.goto(f"{user.url}/console#/runs/{run_id}")
    ask = page.locator(".ask")
    for opens, sends in (("Edit …", "Call with these arguments"), ("Deny …", "Deny the call")):
        press(ask, opens)
        click_again(page, ask.get_by_role("button", name=sends))
        page.wait_for_timeout(300)
        assert "waiting" == user.get_run(run_id)["phase"]
        press(ask, "Back")

    press(ask, "Deny …")
    press(ask, "Deny the call")
    user.ended(run_id)
    assert "deny" in str(user.events(run_id))


def test_a_double_click_closes_no_secret(context: BrowserContext, user: Caller) -> None:
    """The key is shown once, and the button that closes it may come where that of the form was."""
    page = signed_in(context, user, "/keys")
    press(page, "Create key")
    form = page.get_by_role("dialog")
    form.get_by_label("Name").fill("Double")
    press(form, "Create key")
    shown = page.get_by_label("API key", exact=True)
    expect(shown).to_be_visible()
    click_again(page, page.get_by_role("button", name="Done"))
    page.wait_for_timeout(300)

    expect(shown).to_be_visible()
    press(page, "Done")
    expect(shown).to_have_count(0)


def test_the_keyboard_goes_through_an_approval(context: BrowserContext, user: Caller) -> None:
    """The focus is in the field that a button opens, and back at that button after *Back*."""
    page = signed_in(context, user, "/keys")
    run_id = calling(user, "1+1")
    page.goto(f"{user.url}/console#/runs/{run_id}")
    ask = page.locator(".ask")
    for name, field in (("Edit …", "Arguments, as JSON"), ("Deny …", "Reason for the model")):
        button = ask.get_by_role("button", name=name)
        button.focus()
        page.keyboard.press("Enter")
        expect(ask.get_by_label(field)).to_be_focused()
        ask.get_by_role("button", name="Back").focus()
        page.keyboard.press("Enter")
        expect(button).to_be_focused()
    user.cancel(run_id)
