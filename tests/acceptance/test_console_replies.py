"""Replies that people write for runs in the console, in a real Chromium."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect

from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_losses import TIMELINE, hold
from tests.acceptance.test_console_settings import go, press, signed_in, until, until_held
from tests.caller import Caller
from tests.system import System
from tests.waiting import eventually

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]


def asking_for_results(user: Caller) -> dict[str, Any]:
    """Return a run that waits for the results of two client tools, `look` and `listen`."""
    declared = [
        {"name": name, "description": "Do it.", "client": True, "parameters": {"type": "object"}}
        for name in ("look", "listen")
    ]
    fields = {"key": "sensing", "route_id": "scripted", "client_tools": declared}
    user.http.post("/v1/personas", json=fields)
    tools = {"tools": [{"tool": "look"}, {"tool": "listen"}]}
    return user.until(user.run(tools, {"say": "End."}, persona_id="sensing"), "phase", "waiting")


def test_a_result_that_was_taken_is_not_asked_for_again(
    context: BrowserContext, user: Caller
) -> None:
    """The run's stream has no event of one result: its thread reads what is still missing."""
    run = asking_for_results(user)
    page = signed_in(context, user, f"/threads/{run['thread_id']}")
    look, listen = page.get_by_label("Result of look"), page.get_by_label("Result of listen")
    look.fill("A lake.")
    press(page, "Send results")
    expect(look).to_have_count(0)
    listen.fill("Waves.")
    press(page, "Send results")

    expect(page.locator(".run .markdown").last).to_have_text("End.")


def test_a_result_that_is_written_while_another_one_is_sent_stays(
    context: BrowserContext, user: Caller
) -> None:
    run = asking_for_results(user)
    page = signed_in(context, user, f"/threads/{run['thread_id']}")
    look, listen = page.get_by_label("Result of look"), page.get_by_label("Result of listen")
    look.fill("A lake.")
    held = hold(context, "**/tool-results")
    press(page, "Send results")
    until_held(page, held, 1)
    listen.fill("Waves.")
    held[0].continue_()
    expect(look).to_have_count(0)

    expect(listen).to_have_value("Waves.")
    user.cancel(run["run_id"])


@pytest.mark.parametrize("place", ["threads", "runs", "inbox"])
def test_a_result_that_came_from_elsewhere_is_named(
    context: BrowserContext, user: Caller, place: str
) -> None:
    """The others are refused together with it, stay in the box and are sent again."""
    run = asking_for_results(user)
    addresses = {"threads": f"/threads/{run['thread_id']}", "runs": f"/runs/{run['run_id']}"}
    page = signed_in(context, user, addresses.get(place, "/inbox"))
    box = page.locator(".ask").first
    look, listen = box.get_by_label("Result of look"), box.get_by_label("Result of listen")
    look.fill("A lake.")
    listen.fill("Waves.")
    asked = {call["name"]: call["tool_call_id"] for call in run["pending_input"]["calls"]}
    results = [{"tool_call_id": asked["look"], "output": "A river."}]
    sent = user.http.post(f"/v1/runs/{run['run_id']}/tool-results", json=results)
    assert sent.is_success
    press(box, "Send results")
    expect(box.get_by_role("alert")).to_contain_text("look already has another result")
    expect(look).to_have_count(0)
    expect(listen).to_have_value("Waves.")
    page.wait_for_timeout(1_500)  # a box that has moved takes no click for a second
    press(box, "Send results")

    assert "completed" == user.ended(run["run_id"])["status"]


def add_forms(user: Caller, log: Path) -> None:
    """Add the MCP server that asks for forms, and the persona `host` that uses it."""
    server = str(Path(__file__).parents[1] / "form_mcp_server.py")
    fields = {"name": "forms", "transport": "stdio", "command": [sys.executable, server, str(log)]}
    path = f"/v1/mcp-configs/{user.made('/v1/mcp-configs', fields)['id']}"
    eventually(lambda: user.get(path)["discovered_at"] is not None)
    user.made("/v1/personas", {"key": "host", "route_id": "scripted", "mcp": ["forms"]})


def asking(user: Caller, label: str, log: Path) -> dict[str, Any]:
    """Return a run that waits for a reply with a field of this label."""
    if label == "Result of look":
        return asking_for_results(user)
    if label == "Answer, as JSON":
        add_forms(user, log)
        call, key = {"tool": "book", "args": {"table": "4"}}, "host"
    elif label == "Your answer":
        call, key = {"tool": "ask_user", "args": {"question": "Which city?"}}, "assistant"
    else:
        persona = {"key": "careful", "route_id": "scripted", "tools": ["calculator"]}
        user.http.post("/v1/personas", json=persona | {"require_approval": ["calculator"]})
        call, key = {"tool": "calculator", "args": {"expression": "6*7"}}, "careful"
    run_id = user.run(call, {"say": "End."}, persona_id=key, route_id="scripted")
    return user.until(run_id, "phase", "waiting")


#: Whether the tab keeps something that was written for a run.
KEPT = "Object.keys(sessionStorage).some((name) => name.includes('.reply.'))"


@pytest.mark.parametrize(
    ("label", "opener", "text", "action"),
    [
        ("Your answer", None, "Rome, because", "Answer"),
        ("Reason for the model", "Deny …", "Not today", "Deny the call"),
        ("Arguments, as JSON", "Edit …", '{"expression": "6*9"}', "Call with these arguments"),
        ("Answer, as JSON", None, '{"seats": 2}', "Send"),
        ("Result of look", None, "A lake.", "Send results"),
    ],
)
def test_a_reply_that_is_being_written_stays(
    context: BrowserContext,
    user: Caller,
    tmp_path: Path,
    label: str,
    opener: str | None,
    text: str,
    action: str,
) -> None:
    """It is there after a look at another thread, after a reload and in the inbox."""
    run = asking(user, label, tmp_path / "log")
    other, address = user.thread(title="Another thread"), f"/threads/{run['thread_id']}"
    page = signed_in(context, user, address)
    box = page.locator(".ask").first
    if opener is not None:
        press(box, opener)
    box.get_by_label(label).fill(text)
    go(page, f"/threads/{other}")
    expect(page.get_by_role("heading", name="Another thread")).to_be_visible()
    expect(box).to_have_count(0)
    go(page, address)
    expect(box.get_by_label(label)).to_have_value(text)
    page.reload()
    expect(box.get_by_label(label)).to_have_value(text)
    go(page, "/inbox")
    expect(page.get_by_role("heading", name="Inbox")).to_be_visible()
    expect(box.get_by_label(label)).to_have_value(text)
    go(page, f"/runs/{run['run_id']}")
    expect(page.get_by_role("heading", name="Run ")).to_be_visible()
    expect(box.get_by_label(label)).to_have_value(text)
    press(box, action)

    until(page, f"!{KEPT}")
    user.cancel(run["run_id"])


#: Fills what the tab may keep, up to the last byte.
FILL = """
() => {
  for (let size = 2 ** 20, part = 0; size >= 1; part++) {
    try { sessionStorage.setItem(`part ${part}`, "x".repeat(size)) }
    catch { size = Math.floor(size / 2) }
  }
}
"""


def test_a_reply_that_cannot_be_kept_leaves_no_older_one(
    context: BrowserContext, user: Caller, tmp_path: Path
) -> None:
    """After a reload the box is empty, rather than with what the person has changed since."""
    run = asking(user, "Your answer", tmp_path / "log")
    page = signed_in(context, user, f"/threads/{run['thread_id']}")
    answer = page.get_by_label("Your answer")
    answer.fill("Rome")
    until(page, KEPT)
    page.evaluate(FILL)
    answer.fill("Paris, since Rome is closed")
    page.reload()

    expect(answer).to_have_value("")
    user.cancel(run["run_id"])


@pytest.mark.parametrize("place", ["threads", "runs"])
def test_a_reply_is_forgotten_once_another_one_has_come(
    context: BrowserContext, user: Caller, tmp_path: Path, place: str
) -> None:
    """Nothing of it is left in the tab when the box goes without it."""
    run = asking(user, "Your answer", tmp_path / "log")
    addresses = {"threads": f"/threads/{run['thread_id']}", "runs": f"/runs/{run['run_id']}"}
    page = signed_in(context, user, addresses[place])
    page.get_by_label("Your answer").fill("Rome, because")
    until(page, KEPT)
    reply = {"content": "Paris", "request_id": run["pending_input"]["request_id"]}
    assert user.http.post(f"/v1/runs/{run['run_id']}/input", json=reply).is_success

    until(page, f"!{KEPT}")
    assert "completed" == user.ended(run["run_id"])["status"]


def test_fields_of_a_form_are_sent_only_if_somebody_filled_them_in(
    context: BrowserContext, system: System, tmp_path: Path
) -> None:
    """Required ones are asked for, those with a default have it, and the others are named."""
    user = system.caller()
    add_forms(user, tmp_path / "log")
    run_id = user.run({"tool": "visit"}, {"say": "End."}, persona_id="host")
    user.until(run_id, "phase", "waiting")
    page = signed_in(context, user, f"/runs/{run_id}")
    box = page.locator(".ask")
    field = box.get_by_label("Answer, as JSON")
    # Postgres keeps the fields of a schema by the lengths of their names.
    empty = {"name": None, "guests": None, "language": "en"}
    expect(field).to_have_value(json.dumps(empty, indent=2))
    expect(box.locator(".hint")).to_have_text(re.compile(r": room, newsletter, discount_percent$"))
    page.wait_for_timeout(1_500)  # a box that has moved takes no click for a second
    press(box, "Send")
    expect(box.get_by_role("alert")).to_have_text("Required, and not filled in yet: name, guests")
    filled = {"guests": 4, "name": "", "language": "en"}
    field.fill(json.dumps(filled))
    press(box, "Send")

    user.ended(run_id)
    [result] = [event["data"] for event in user.events(run_id) if event["type"] == "tool.result"]
    assert filled == json.loads(result["output"])


def refuse_streams(route: Route) -> None:
    error = {"code": "limits.streams", "message": "Too many streams.", "details": {}}
    route.fulfill(status=429, headers={"Retry-After": "600"}, json=error)


def without_stream(context: BrowserContext, user: Caller) -> tuple[str, Page]:
    """Open the thread of a run that asks a question, and that no stream brings news of."""
    context.route("**/v1/threads/*/events*", refuse_streams)
    question = {"question": "Which colour?", "options": ["red", "blue"]}
    run_id = user.run({"tool": "ask_user", "args": question}, {"say": "Thanks."})
    user.until(run_id, "phase", "waiting")
    page = signed_in(context, user, f"/threads/{user.get_run(run_id)['thread_id']}")
    expect(page.get_by_text("What happens meanwhile is shown later.")).to_be_visible()
    return run_id, page


def test_a_reply_that_no_stream_reports_closes_its_box(
    context: BrowserContext, user: Caller
) -> None:
    """The thread is read again; until then the box says so, and takes no second reply."""
    run_id, page = without_stream(context, user)
    held = hold(context, TIMELINE)
    ask = page.locator(".ask")
    press(ask, "blue")
    until_held(page, held, 1)
    expect(ask.get_by_role("status")).to_have_text("Your reply was sent.")
    for button in ask.get_by_role("button").all():
        expect(button).to_be_disabled()
    user.ended(run_id)
    held[0].continue_()

    expect(ask).to_have_count(0)
    expect(page.locator(".run .markdown")).to_have_text(["Thanks."])


def test_a_late_reply_closes_its_box(context: BrowserContext, user: Caller) -> None:
    """Somebody else has answered, of which no stream has said anything."""
    run_id, page = without_stream(context, user)
    assert user.answer(run_id, "red").is_success
    user.ended(run_id)
    press(page.locator(".ask"), "blue")

    expect(page.locator(".run .markdown")).to_have_text(["Thanks."])
    expect(page.locator(".ask")).to_have_count(0)
    expect(page.get_by_role("alert")).to_have_count(0)


@pytest.mark.parametrize("end", ["none", "refusal"])
def test_a_reply_closes_its_box_while_the_stream_is_opened_again(
    context: BrowserContext, user: Caller, end: str
) -> None:
    """The page calls a stream live that has just ended: it reads the thread once that is not
    opened, and otherwise a few seconds after the reply.
    """
    streams: list[Route] = []

    def serve(route: Route) -> None:
        streams.append(route)
        if len(streams) == 1:
            route.fulfill(status=200, content_type="text/event-stream", body=": ping\n\n")
        elif len(streams) > 2:
            refuse_streams(route)

    context.route("**/v1/threads/*/events*", serve)
    question = {"question": "Which colour?", "options": ["red", "blue"]}
    run_id = user.run({"tool": "ask_user", "args": question}, {"say": "Thanks."})
    user.until(run_id, "phase", "waiting")
    page = signed_in(context, user, f"/threads/{user.get_run(run_id)['thread_id']}")
    until_held(page, streams, 2)
    page.wait_for_timeout(1_500)  # a box that has moved takes no click for a second
    ask = page.locator(".ask")
    press(ask, "blue")
    expect(ask.get_by_role("status")).to_have_text("Your reply was sent.")
    if end == "refusal":
        refuse_streams(streams[1])

    expect(ask).to_have_count(0, timeout=2_000 if end == "refusal" else 10_000)
    user.ended(run_id)
