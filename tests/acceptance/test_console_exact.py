"""Values that JavaScript confuses with others, in the console and a real Chromium.

All digits of integers beyond 2^53 are shown and sent.
"""

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_settings import press, signed_in
from tests.acceptance.test_console_timelines import DONE, SAID, STARTED, replace_events
from tests.caller import Caller, script
from tests.system import System
from tests.tool_receiver import Reply, ToolReceiver

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]
#: JavaScript rounds it to 9007199254740992.
LARGE = 2**53 + 1
ARGUMENTS = {"order": LARGE, "others": [-LARGE, 2**63 - 1, 0.5]}
PARAMETERS = {"type": "object", "properties": {"order": {"type": "integer", "default": LARGE}}}


@pytest.fixture(scope="module")
def receiver() -> Iterator[ToolReceiver]:
    with ToolReceiver(lambda _: Reply({"output": "refunded"})) as made:
        yield made


@pytest.fixture(scope="module")
def clerk(user: Caller, receiver: ToolReceiver) -> str:
    """A persona with a tool whose calls people approve, and with large integers in its fields."""
    tool = {"name": "refund", "description": "Refund.", "url": receiver.url}
    user.made("/v1/tools", {**tool, "parameters": PARAMETERS})
    look = {"name": "look", "description": "Look.", "parameters": PARAMETERS, "client": True}
    fields = {"tools": ["refund"], "require_approval": ["refund"], "client_tools": [look]}
    user.made("/v1/personas", {"key": "clerk", "route_id": "scripted", **fields})
    return "clerk"


def asking(context: BrowserContext, user: Caller, persona: str) -> Page:
    """Open a thread, and start a run in it that asks for an approval."""
    thread_id = user.thread(script({"tool": "refund", "args": ARGUMENTS}, {"say": "Done."}))
    page = signed_in(context, user, f"/threads/{thread_id}")
    expect(page.locator(".said")).to_be_visible()
    user.start(thread_id, persona_id=persona)
    expect(page.locator(".ask")).to_be_visible()
    return page


def test_a_person_approves_the_integers_that_the_tool_gets(
    context: BrowserContext, user: Caller, clerk: str, receiver: ToolReceiver
) -> None:
    """The call shows all digits, and sends them if something else was edited."""
    page = asking(context, user, clerk)
    expect(page.locator(".ask")).to_contain_text(str(LARGE))
    page.reload()  # the stream had it; now the timeline has it
    expect(page.locator(".ask")).to_contain_text(str(LARGE))
    press(page, "Edit …")
    text = page.get_by_label("Arguments, as JSON")
    assert str(2**63 - 1) in text.input_value()
    text.fill(text.input_value().replace("0.5", "0.25"))
    press(page, "Call with these arguments")

    expect(page.locator(".run")).to_contain_text("Done.")
    expect(page.locator(".answered")).to_contain_text(str(LARGE))
    [request] = receiver.received
    others = [-LARGE, 2**63 - 1, 0.25]
    assert {"order": LARGE, "others": others} == request.data["arguments"]


def test_an_older_browser_edits_no_integer_that_it_rounds(
    context: BrowserContext, user: Caller, clerk: str
) -> None:
    """It says that what it shows may be rounded; the call can be approved and denied."""
    context.add_init_script("delete JSON.rawJSON")
    page = asking(context, user, clerk)

    expect(page.get_by_role("alert")).to_contain_text("This browser rounds integers")
    expect(page.get_by_role("button", name="Edit …")).to_be_disabled()
    press(page, "Deny …")
    press(page, "Deny the call")
    expect(page.locator(".run")).to_contain_text("Done.")


def test_the_next_version_of_a_persona_has_the_same_integers(
    context: BrowserContext, user: Caller, clerk: str
) -> None:
    """The form is filled with all digits, and publishes them."""
    page = signed_in(context, user, f"/personas/{clerk}?publish=1")
    expect(page.get_by_label("Other fields, as JSON")).to_have_value(re.compile(str(LARGE)))
    press(page, "Publish")

    expect(page.get_by_role("heading", name="Changes from version 1 to 2")).to_be_visible()
    first, second = (user.get(f"/v1/personas/{clerk}@{n}")["client_tools"] for n in (1, 2))
    assert first == second
    assert LARGE == second[0]["parameters"]["properties"]["order"]["default"]


def test_arguments_that_are_null_are_shown_as_null(
    context: BrowserContext, system: System, user: Caller
) -> None:
    """An agent records what its model has written; an empty object would be another value."""
    run_id = user.run({"say": "x"})
    thread_id = user.ended(run_id)["thread_id"]
    call = ("tool.call", {"tool_call_id": "a", "name": "pay", "arguments": None})
    replace_events(system, user, run_id, [(1, STARTED), (2, SAID), (3, call), (4, DONE)])
    page = signed_in(context, user, f"/threads/{thread_id}")

    page.locator(".call-head").click()

    expect(page.locator(".call-body pre")).to_have_text("null")
