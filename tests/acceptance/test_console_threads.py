"""Threads in the console, in a real Chromium: their texts, their titles, and how they open."""

import re
from pathlib import Path
from uuid import UUID

import pytest
from playwright.sync_api import BrowserContext, Route, expect

from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_losses import (
    CREATES,
    TIMELINE,
    Loss,
    box,
    hold,
    lose,
    refused,
    say,
    unreachable,
)
from tests.acceptance.test_console_settings import go, press, signed_in, until_held
from tests.caller import Caller, script

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]

UPLOADS = "**/v1/files"
CROWDED = "Too many uploads of the organization at the same time; try again shortly."


def crowded(seconds: int) -> Loss:
    """Refuse an upload as an org does that has as many as it may."""
    body = {"code": "rate_limit.exceeded", "message": CROWDED, "details": {"limit": "org"}}

    def refuse(route: Route) -> None:
        route.fulfill(status=429, json=body, headers={"Retry-After": str(seconds)})

    return refuse


def test_a_task_has_one_box(context: BrowserContext, user: Caller) -> None:
    """Neither a tight nor a loose list shows the source of the box as well."""
    tasks = "- [ ] pack it\n- [x] send it\n\nLater:\n\n1. [ ] call\n\n2. [x] wait [x]\n"
    run_id = user.run({"say": tasks}, route_id="scripted")
    thread = user.ended(run_id)["thread_id"]
    page = signed_in(context, user, f"/threads/{thread}")

    expect(page.locator(".run .markdown li")).to_have_text(
        ["☐ pack it", "☑ send it", "☐ call", "☑ wait [x]"]
    )


def test_a_message_stands_once_as_soon_as_its_run_begins(
    context: BrowserContext, user: Caller
) -> None:
    """The stream has it before the timeline is read again, which takes long on a slow network."""
    page = signed_in(context, user, f"/threads/{user.thread()}")
    expect(page.get_by_text("Nothing said yet")).to_be_visible()
    held = hold(context, TIMELINE)
    say(page, "Where is it?")
    expect(page.locator("article.run")).to_contain_text("You said: Where is it?")
    until_held(page, held, 1)

    expect(page.locator("article.said")).to_have_count(1)
    expect(page.locator("article.said.sending")).to_have_count(0)
    held.pop().continue_()
    context.unroute(TIMELINE)
    expect(page.locator("article.said")).to_have_count(1)


def test_a_thread_is_not_read_again_when_its_run_waits_for_a_program(
    context: BrowserContext, user: Caller
) -> None:
    """A run calls client tools many times; the event has all that its box shows."""
    look = {"name": "look", "description": "Look.", "client": True}
    declared = [{**look, "parameters": {"type": "object"}}]
    fields = {"key": "looking", "route_id": "scripted", "client_tools": declared}
    user.made("/v1/personas", fields)
    thread_id = user.thread(script({"tool": "look"}, {"tool": "look"}))
    page = signed_in(context, user, f"/threads/{thread_id}")
    expect(page.locator("article.said")).to_be_visible()
    held = hold(context, TIMELINE)
    run_id = user.start(thread_id, persona_id="looking")
    for number in (1, 2):
        expect(page.locator(".call")).to_have_count(number)
        expect(page.locator(".ask-until")).to_contain_text("The time to answer ends")
        asked = user.until(run_id, "status", "waiting_for_input")["pending_input"]["calls"]
        results = [{"tool_call_id": call["tool_call_id"], "output": "Seen."} for call in asked]
        assert user.http.post(f"/v1/runs/{run_id}/tool-results", json=results).is_success
    expect(page.locator(".ask")).to_have_count(0)
    user.ended(run_id)

    assert [] == held


#: What Safari reports of the Enter that confirms a word of Japanese: its composition is over.
CONFIRMS = """element => element.dispatchEvent(new KeyboardEvent("keydown",
  {key: "Enter", keyCode: 229, bubbles: true, cancelable: true}))"""


def test_the_enter_that_confirms_a_word_sends_nothing(
    context: BrowserContext, user: Caller
) -> None:
    """The next Enter sends the whole message."""
    page = signed_in(context, user, f"/threads/{user.thread()}")
    expect(page.get_by_text("Nothing said yet")).to_be_visible()
    box(page).fill("日本")
    is_left_alone = box(page).evaluate(CONFIRMS)
    box(page).press("End")
    page.keyboard.type("の首都")
    box(page).press("Enter")

    assert is_left_alone
    expect(page.locator("article.said")).to_have_text(["日本の首都"])


def test_a_tab_has_the_title_of_its_page(context: BrowserContext, user: Caller) -> None:
    """Within a section, too: a thread's own, and that of the list behind it."""
    thread = user.made("/v1/threads", {"title": "Order 4821"})["id"]
    run_id = user.run({"say": "Well."}, route_id="scripted")
    page = signed_in(context, user, "/keys")
    for address, title in (
        (f"/threads/{thread}", "Order 4821"),
        ("/threads/new", "New thread"),
        (f"/threads/{thread}", "Order 4821"),
        ("/threads", "Threads"),
        (f"/runs/{run_id}", "Run"),
        ("/runs", "Runs"),
        ("/threads/new", "New thread"),
    ):
        go(page, address)
        expect(page).to_have_title(f"{title} · Arkloop Runs")


def test_an_earlier_conversation_is_apart_from_the_message_behind_it(
    context: BrowserContext, user: Caller
) -> None:
    """A client of Responses has sent it along, and the person has written the message alone."""
    said = ["I am Ann.\nFrom Oslo.", "Who am I?"]
    items = [{"role": "user", "content": text} for text in said]
    made = user.http.post("/v1/responses", json={"model": "scripted", "input": items}).json()
    run = user.get_run(str(UUID(made["id"].removeprefix("resp_"))))
    page = signed_in(context, user, f"/threads/{run['thread_id']}")
    message = page.locator("article.said")

    expect(message.locator(".said-text")).to_have_text("Who am I?")
    expect(message).not_to_contain_text("Ann")
    message.get_by_role("button", name="Earlier conversation").click()
    expect(message.locator(".folded-text")).to_have_text("User: I am Ann. From Oslo.")
    expect(message).not_to_contain_text("earlier_conversation")


def test_a_thread_that_was_opened_without_the_service_comes(
    context: BrowserContext, user: Caller
) -> None:
    """It appears by itself once the service is back."""
    run_id = user.run({"say": "Here it is."}, route_id="scripted")
    thread = user.ended(run_id)["thread_id"]
    page = signed_in(context, user, "/keys")
    lose(context, f"**/v1/threads/{thread}", *[unreachable] * 2)
    lose(context, TIMELINE, unreachable)
    go(page, f"/threads/{thread}")
    expect(page.get_by_text("The service cannot be reached.").first).to_be_visible()

    expect(page.locator(".run .markdown")).to_have_text(["Here it is."])
    expect(page.get_by_text("The service cannot be reached.")).to_have_count(0)


def written(folder: Path, *names: str) -> list[Path]:
    """Write text files, for a message to have."""
    files = [folder / name for name in names]
    for file in files:
        file.write_text("The meeting is at noon.")
    return files


def test_files_that_are_dropped_together_are_uploaded_one_after_the_other(
    context: BrowserContext, user: Caller, tmp_path: Path
) -> None:
    """An org has few uploads at a time: of many at once, some would be refused."""
    files = written(tmp_path, "0.txt", "1.txt", "2.txt")
    held = hold(context, UPLOADS)
    page = signed_in(context, user, "/threads/new")
    page.get_by_label("Files", exact=True).set_input_files(files)
    uploading = page.get_by_text("uploading …")

    for number in range(3):
        expect(uploading).to_have_count(3 - number)
        until_held(page, held, number + 1)
        page.wait_for_timeout(300)  # for one more, were there any
        assert number + 1 == len(held)
        held[number].continue_()

    expect(uploading).to_have_count(0)
    expect(page.get_by_role("list", name="Attached files").get_by_role("alert")).to_have_count(0)


def test_an_upload_is_repeated_while_the_org_has_too_many(
    context: BrowserContext, user: Caller, tmp_path: Path
) -> None:
    """Other members and tabs upload at the same time; where that takes long, the page says so."""
    lose(context, UPLOADS, crowded(1), None, crowded(60))
    page = signed_in(context, user, "/threads/new")
    attached = page.get_by_role("list", name="Attached files").get_by_role("listitem")

    page.get_by_label("Files", exact=True).set_input_files(
        written(tmp_path, "notes.txt", "more.txt")
    )

    why = f"{CROWDED} Try again in 60 s."
    expect(attached).to_have_text(["notes.txt", re.compile(rf"^more\.txt {re.escape(why)}")])


def test_a_removed_file_holds_up_no_other(
    context: BrowserContext, user: Caller, tmp_path: Path
) -> None:
    """Its upload ends, and one that waits for it is never begun if its file is removed, too."""
    files = written(tmp_path, "0.txt", "1.txt", "2.txt")
    held = hold(context, UPLOADS)
    page = signed_in(context, user, "/threads/new")
    page.get_by_label("Files", exact=True).set_input_files(files)
    expect(page.get_by_text("uploading …")).to_have_count(3)

    page.get_by_role("button", name="Remove 1.txt").click()
    with page.expect_request(UPLOADS):
        page.get_by_role("button", name="Remove 0.txt").click()
    until_held(page, held, 2)
    with page.expect_response(UPLOADS) as response:
        held[-1].continue_()

    assert "2.txt" == response.value.json()["name"]
    assert 2 == len(held)
    attached = page.get_by_role("list", name="Attached files").get_by_role("listitem")
    expect(attached).to_have_text(["2.txt"])
    expect(page.get_by_role("button", name="Send")).to_be_enabled()


def test_relative_times_stay_true_while_a_page_is_open(
    context: BrowserContext, user: Caller
) -> None:
    """How long ago something was, and how soon a run that waits for a person ends."""
    fields = {"tools": ["ask_user"], "input_expires_seconds": 1_800, "route_id": "scripted"}
    user.made("/v1/personas", {"key": "hurried", **fields})
    asks = {"tool": "ask_user", "args": {"question": "Which one?"}}
    run_id = user.run(asks, persona_id="hurried")
    user.until(run_id, "phase", "waiting")
    context.clock.install()
    page = signed_in(context, user, f"/threads/{user.get_run(run_id)['thread_id']}")
    until = page.locator(".ask-until time")
    expect(until).to_have_text(re.compile("^in (29|30) min$"))
    context.set_offline(True)  # responses have the time of the service, which stays
    context.clock.fast_forward("10:00")

    expect(until).to_have_text(re.compile("^in (19|20) min$"))
    user.cancel(run_id)


def test_a_waiting_run_that_is_cancelled_on_its_page_waits_in_no_tab(
    context: BrowserContext, user: Caller
) -> None:
    """Its thread has no event of it: the page of the run lets the other tabs read it again."""
    thread_id = user.thread(script({"hang": 600}))
    run_id = user.start(thread_id, route_id="scripted")
    user.until(run_id, "phase", "executing")
    page = signed_in(context, user, f"/threads/{thread_id}")
    waits = page.get_by_text("Waits for the answer before")
    expect(page.locator("article.run")).to_have_count(1)
    say(page, "Next.")
    expect(waits).to_be_visible()
    found = [run["run_id"] for run in user.get(f"/v1/threads/{thread_id}/runs")]
    [waiting] = [one for one in found if one != run_id]
    other = context.new_page()
    other.goto(f"{user.url}/console#/runs/{waiting}")
    press(other, "Cancel run")

    expect(waits).to_have_count(0)
    expect(page.locator("article.said")).to_have_count(1)
    assert "cancelled" == user.ended(waiting)["status"]
    user.cancel(run_id)


def test_a_message_that_has_arrived_stays_while_its_thread_cannot_be_read(
    context: BrowserContext, user: Caller
) -> None:
    """It is shown as sent, with those sent after it, until the thread brings them."""
    thread_id = user.thread(script({"hang": 600}))
    run_id = user.start(thread_id, route_id="scripted")
    user.until(run_id, "phase", "executing")
    page = signed_in(context, user, f"/threads/{thread_id}")
    expect(page.locator("article.run")).to_have_count(1)
    context.route(TIMELINE, crowded(2))
    sending = page.locator("article.said.sending")
    for number, text in enumerate(("Book a hotel.", "And a table."), 1):
        say(page, text)
        expect(page.get_by_role("alert")).to_contain_text(CROWDED)
        expect(sending.nth(number - 1)).to_have_text(f"{text}Sent")
        expect(sending).to_have_count(number)
        expect(box(page)).to_have_value("")
    context.unroute(TIMELINE)

    expect(sending).to_have_count(0)
    expect(page.get_by_role("alert")).to_have_count(0)
    said = ["Book a hotel.", "And a table."]
    expect(page.locator("article.said").filter(has_not_text="hang")).to_have_text(said)
    for one in user.get(f"/v1/threads/{thread_id}/runs"):
        user.cancel(one["run_id"])


def test_a_message_that_was_refused_is_in_the_box_alone(
    context: BrowserContext, user: Caller
) -> None:
    """It is not shown as sent, and one that has arrived before it still is."""
    thread_id = user.thread(script({"hang": 600}))
    run_id = user.start(thread_id, route_id="scripted")
    user.until(run_id, "phase", "executing")
    page = signed_in(context, user, f"/threads/{thread_id}")
    expect(page.locator("article.run")).to_have_count(1)
    context.route(TIMELINE, crowded(2))
    say(page, "Book a hotel.")
    expect(page.locator("article.said.sending")).to_have_text(["Book a hotel.Sent"])
    lose(context, CREATES, refused(422))
    say(page, "And a table.")

    expect(box(page)).to_have_value("And a table.")
    expect(page.locator("article.said.sending")).to_have_text(["Book a hotel.Sent"])
    context.unroute(TIMELINE)
    expect(page.locator("article.said.sending")).to_have_count(0)
    for one in user.get(f"/v1/threads/{thread_id}/runs"):
        user.cancel(one["run_id"])
