"""The console's timeline of a run in a real Chromium, where the run has more than it can draw."""

import json
import re
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from playwright.sync_api import BrowserContext, Page, expect
from sqlalchemy import text

from arkloop.shared.times import rfc3339
from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_settings import press, signed_in
from tests.caller import Caller
from tests.system import System

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]
USED = {"input_tokens": 1, "output_tokens": 1, "cache_read_tokens": 0, "source": "reported"}
STARTED = ("run.started", {"persona_id": "assistant@1", "route_id": "scripted", "model": "m"})
PIECE = ("message.delta", {"content": "x "})
SAID = ("message.completed", {"message_id": "m", "content": "x", "usage": USED})
DONE = ("run.completed", {"message_id": "m", "usage": USED, "cost_usd": 0.1})
ASKED = (
    "run.waiting_for_input",
    {"request_id": "r", "kind": "question", "prompt": "?", "expires_at": "2027-01-01T00:00:00Z"},
)


def call(number: int) -> tuple[str, Any]:
    return "tool.call", {"tool_call_id": f"c{number}", "name": "pay", "arguments": {}}


def result(number: int) -> tuple[str, Any]:
    return "tool.result", {
        "tool_call_id": f"c{number}",
        "name": "pay",
        "output": "",
        "is_error": False,
    }


def replace_events(
    system: System, user: Caller, run_id: str, events: list[tuple[float, tuple[str, Any]]]
) -> None:
    """Give an ended run these events, each at a number of seconds after its creation."""
    created = datetime.fromisoformat(user.get_run(run_id)["created_at"])
    rows = []
    for seq, (seconds, (kind, data)) in enumerate(events, 1):
        created_at = rfc3339(created + timedelta(seconds=seconds))
        event = {"seq": seq, "type": kind, "data": data, "created_at": created_at}
        rows.append({"run_id": run_id, "seq": seq, "type": kind, "payload": json.dumps(event)})
    ended = {"run_id": run_id, "seconds": events[-1][0]}
    with system.connections.transaction() as tx:
        tx.sql.execute(text("DELETE FROM run_events WHERE run_id = :run_id"), ended)
        tx.sql.execute(
            text(
                "INSERT INTO run_events (run_id, seq, type, payload)"
                " VALUES (:run_id, :seq, :type, :payload)"
            ),
            rows,
        )
        tx.sql.execute(
            text(
                "UPDATE runs SET ended_at = created_at + make_interval(secs => :seconds)"
                " WHERE id = :run_id"
            ),
            ended,
        )
    # The live copy has the events before; what has ended is read from Postgres without it.
    system.connections.redis.delete(system.connections.keys.events(UUID(run_id)))


def opened(
    context: BrowserContext,
    system: System,
    user: Caller,
    events: list[tuple[float, tuple[str, Any]]],
) -> Page:
    """Open the page of a run that has ended with these events."""
    run_id = user.run({"say": "x"})
    user.ended(run_id)
    replace_events(system, user, run_id, events)
    return signed_in(context, user, f"/runs/{run_id}")


def test_what_is_open_at_the_last_event_that_is_shown_is_not_drawn_further(
    context: BrowserContext, system: System, user: Caller
) -> None:
    """The picture ends where the events end that are shown, and the heading has their numbers."""
    pieces = [(1 + number * 0.02, PIECE) for number in range(19_997)]
    rest = [(402, SAID), (403, call(1)), (420, result(1)), (421, ASKED)]
    later = [(7_000, PIECE)] * 995
    events = [(1, STARTED), *pieces, *rest, *later, (7_200, DONE)]
    page = opened(context, system, user, events)
    heading = page.get_by_role("heading", name="Events")
    expect(heading).to_have_text("Events, the first 20,000 of 20,998", timeout=60_000)
    timeline = page.get_by_role("img", name="Timeline of")

    expect(timeline).to_have_accessible_name(
        re.compile(r"^Timeline of 6 min 43 s: Queue .*, Model 6 min 41 s$")
    )
    expect(page.get_by_text("The timeline ends with event 20,000.")).to_be_visible()
    press(page, "Replay")
    expect(heading).to_have_text(re.compile(r"^Events [\d,]+$"))
    expect(page.get_by_text("The timeline ends")).to_have_count(0)
    press(page, "End the replay")
    expect(heading).to_have_text("Events, the first 20,000 of 20,998")
    expect(timeline).to_have_accessible_name(re.compile("^Timeline of 6 min 43 s"))


def test_many_parallel_calls_hide_no_other_lane(
    context: BrowserContext, system: System, user: Caller
) -> None:
    """The page has the number of the calls that do not fit; they count in the sums."""
    calls = [(2 + number / 100, call(number)) for number in range(60)]
    results = [(10 + number / 100, result(number)) for number in range(60)]
    waits = [(20, SAID), (20, ASKED), (50, ("run.resumed", {}))]
    events = [(1, STARTED), (2, SAID), *calls, *results, *waits, (55, SAID), (56, DONE)]
    page = opened(context, system, user, events)
    timeline = page.get_by_role("img", name="Timeline of")

    expect(timeline.get_by_text("Waiting", exact=True)).to_be_visible()
    expect(timeline.locator(".span-label.wait")).to_have_text("question · 30 s")
    expect(timeline.locator(".span.tool")).to_have_count(40)
    expect(timeline).to_have_accessible_name(re.compile("Tools 8 min 0 s"))
    expect(page.get_by_text("20 more tool calls are not shown.")).to_be_visible()
