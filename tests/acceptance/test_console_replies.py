"""Replies that people write for runs in the console, in a real Chromium."""

from typing import Any

import pytest
from playwright.sync_api import BrowserContext, expect

from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_settings import press, signed_in
from tests.caller import Caller

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


@pytest.mark.parametrize("place", ["threads", "runs", "inbox"])
def test_a_result_that_came_from_elsewhere_is_named(
    context: BrowserContext, user: Caller, place: str
) -> None:
    """One is refused together with the others, which stay in the box and are sent again."""
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
    press(box, "Send results")

    assert "completed" == user.ended(run["run_id"])["status"]
