"""The console's pages of runs in a real Chromium: what they say of a run's time, and of its end."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect

from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_losses import refused
from tests.acceptance.test_console_settings import go, signed_in, until_held
from tests.caller import Caller, script

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]
BEGAN = datetime(2026, 11, 29, tzinfo=UTC)
THROTTLED = ("run.throttled", {"reason": "provider", "seconds": 0.5})
RETRYING = ("run.retrying", {"code": "provider.overloaded", "seconds": 2})
FALLBACK = ("run.fallback", {"reason": "provider.overloaded"})
TEXT = ("message.delta", {"content": "x"})
COST, FAILED, DONE = ("run.cost", {}), ("run.failed", {}), ("message.completed", {})
#: The seconds of each kind of span, by the module that draws the timeline.
SECONDS = """async ([run, events, now]) => {
  const base = document.querySelector("script[src*=app]").src
  const { spansOf } = await import(new URL("runs/spans.js", base))
  const sums = {}
  for (const { kind, from, to } of spansOf(run, events, now)) {
    sums[kind] = (sums[kind] ?? 0) + (to - from) / 1000
  }
  return sums
}"""


@pytest.fixture
def page(context: BrowserContext, user: Caller) -> Page:
    return signed_in(context, user, "/keys")


def at(seconds: float) -> str:
    return (BEGAN + timedelta(seconds=seconds)).isoformat()


@pytest.mark.parametrize(
    ("events", "model", "throttle"),
    [
        pytest.param([(1, THROTTLED), (9, COST), (9, FAILED)], 1, 8, id="refused-each-time"),
        pytest.param([(1, THROTTLED), (5, TEXT), (7, DONE)], 3, 4, id="let-in"),
        pytest.param([(1, THROTTLED), (30, THROTTLED), (40, TEXT), (42, DONE)], 3, 39, id="long"),
        pytest.param([(1, THROTTLED), (61, TEXT), (62, DONE)], 32, 30, id="not-repeated"),
        pytest.param([(1, THROTTLED)], 1, 9, id="still-throttled"),
        pytest.param([(1, RETRYING), (4, RETRYING), (7, COST), (7, FAILED)], 3, 4, id="repeated"),
        pytest.param([(1, RETRYING), (2, ("run.cancelled", {}))], 1, 1, id="cancelled"),
        pytest.param([(1, RETRYING)], 8, 2, id="called-again"),
        pytest.param([(1, THROTTLED), (2, FALLBACK), (4, TEXT), (5, DONE)], 4, 1, id="fallback"),
    ],
)
def test_time_between_attempts_is_not_the_models(
    page: Page, events: list[tuple[int, tuple[str, Any]]], model: float, throttle: float
) -> None:
    """Each second is either the model's or a pause's, until the end, or until now."""
    all_events = [(0, ("run.started", {})), *events]
    frames = [
        {"type": kind, "data": data, "created_at": at(seconds)}
        for seconds, (kind, data) in all_events
    ]
    ends = {"run.failed": "failed_at", "run.cancelled": "cancelled_at"}
    last, (kind, _) = all_events[-1]
    run = {"created_at": at(0), "model": "m"} | ({ends[kind]: at(last)} if kind in ends else {})
    now = BEGAN.timestamp() * 1_000 + (10_000 if last < 10 and kind not in ends else 1_000 * last)

    found = page.evaluate(SECONDS, [run, frames, now])
    assert (model, throttle) == (found["model"], found["throttle"])


CALLS = [("tool.call", {"tool_call_id": id_, "name": "pay"}) for id_ in ("a", "b")]
RESULTS = [("tool.result", {"tool_call_id": id_, "duration_ms": 2_000}) for id_ in ("a", "b")]
APPROVAL, QUESTION, FORM, PROGRAM = (
    ("run.waiting_for_input", {"kind": kind, "tool_call_id": "a"})
    for kind in ("tool_confirmation", "question", "form", "tool_results")
)
RESUMED, REPLY = ("run.resumed", {}), ("run.input_received", {"request_id": "r", "content": ""})
CALLED = [(0, ("run.started", {})), (1, DONE), *((1, call) for call in CALLS)]
ONE_WAIT = [*CALLED, (1, APPROVAL), (9, RESUMED), (9, REPLY)]
TWO_WAITS = [*ONE_WAIT, (9, APPROVAL)]


@pytest.mark.parametrize(
    ("events", "model", "tool", "wait"),
    [
        pytest.param([*CALLED, (1, APPROVAL)], 1, 0, 19, id="approval"),
        pytest.param([*CALLED, (1, QUESTION)], 1, 0, 19, id="question"),
        pytest.param(TWO_WAITS, 1, 0, 19, id="second-approval"),
        pytest.param([*TWO_WAITS, (20, ("run.cancelled", {}))], 1, 0, 19, id="cancelled"),
        pytest.param(ONE_WAIT, 1, 2 * 11, 8, id="approved"),
        pytest.param(
            [*ONE_WAIT, *((11, result) for result in RESULTS), (12, DONE)], 2, 2 * 2, 8, id="called"
        ),
        pytest.param([*CALLED, (5, FORM)], 1, 4 + 19, 15, id="form-within-a-call"),
        pytest.param(
            [*CALLED, (5, FORM), (9, RESUMED), (9, REPLY), *((11, one) for one in RESULTS)],
            *(1 + 9, 4 + 2 + 2, 4),
            id="call-made-again",
        ),
        pytest.param([*CALLED, (1, PROGRAM)], 1, 2 * 19, 19, id="client-tools"),
    ],
)
def test_waiting_for_people_is_no_time_of_the_model_or_of_tools(
    page: Page, events: list[tuple[int, tuple[str, Any]]], model: float, tool: float, wait: float
) -> None:
    """Calls that are asked about have not begun, or have ended, and no model is called."""
    frames = [
        {"type": kind, "data": data, "created_at": at(seconds)} for seconds, (kind, data) in events
    ]
    run = {"created_at": at(0), "model": "m"}
    found = page.evaluate(SECONDS, [run, frames, BEGAN.timestamp() * 1_000 + 20_000])

    assert (model, tool, wait) == (found["model"], found.get("tool", 0), found["wait"])


def test_the_wait_of_a_run_is_counted_on(page: Page, user: Caller) -> None:
    """The figure grows without another event, for as long as the run waits."""
    run_id = user.run({"tool": "ask_user", "args": {"question": "Which?"}}, route_id="scripted")
    user.until(run_id, "status", "waiting_for_input")
    page.goto(f"{user.url}/console#/runs/{run_id}")
    waited = page.locator(".figures div", has_text="Waited").locator("dd")

    expect(waited).to_have_text(re.compile(r"\d"))
    expect(waited).not_to_have_text(waited.inner_text())
    user.cancel(run_id)


def test_a_run_that_begins_to_wait_for_its_sub_runs_is_read_again(page: Page, user: Caller) -> None:
    """Its page, which is open before, says that it waits, and counts the time on."""
    fields = {"key": "boss", "route_id": "scripted", "delegates": ["assistant"]}
    user.made("/v1/personas", {**fields, "tools": ["ask_user"]})
    ask = {"tool": "ask_user", "args": {"question": "Now?"}}
    task = {"persona": "assistant", "task": script({"hang": 600})}
    run_id = user.run(ask, {"hang": 3}, {"tool": "delegate", "args": task}, persona_id="boss")
    page.goto(f"{user.url}/console#/runs/{run_id}")
    badge = page.locator(".head .badge")
    expect(badge).to_have_text("waiting for input")
    user.answer(run_id, "Yes")
    user.seen(run_id, "run.suspended")

    expect(badge).to_have_text("waiting")
    waited = page.locator(".figures div", has_text="Waited").locator("dd")
    expect(waited).not_to_have_text(waited.inner_text())
    user.cancel(run_id)


#: The phase of an entry of a thread after one more event.
PHASE = """async event => {
  const base = document.querySelector("script[src*=app]").src
  const { fold } = await import(new URL("chat/fold.js", base))
  return fold({ seq: 1, phase: "executing", turns: [] }, event).phase
}"""


def test_a_run_of_a_thread_waits_for_its_sub_runs(page: Page) -> None:
    """The stream of an open thread makes of it what its timeline has."""
    event = {"seq": 2, "type": "run.suspended", "data": {"tool_call_ids": ["a"]}}
    assert "waiting" == page.evaluate(PHASE, event)


#: The words for milliseconds.
DURATIONS = """async times => {
  const base = document.querySelector("script[src*=app]").src
  const { duration } = await import(new URL("lib/format.js", base))
  return times.map(duration)
}"""


def test_no_duration_has_sixty_seconds_or_minutes(page: Page) -> None:
    """What is left of a minute or an hour is rounded with the whole."""
    times = {
        999: "999 ms",
        9_960: "10 s",
        59_600: "1 min 0 s",
        119_700: "2 min 0 s",
        3_599_700: "1 h 0 min",
        7_199_000: "2 h 0 min",
        172_799_000: "2 days",
    }

    assert list(times.values()) == page.evaluate(DURATIONS, list(times))


#: The words for times, by the milliseconds until them.
MOMENTS = """async times => {
  const base = document.querySelector("script[src*=app]").src
  const { when } = await import(new URL("lib/format.js", base))
  const now = Date.now()
  Date.now = () => now
  return times.map(ms => when(new Date(now + ms).toISOString()))
}"""


def test_no_time_to_come_is_in_sixty_seconds_or_minutes(page: Page) -> None:
    """What is left of a minute or an hour is named by the longer unit; the past is cut, not
    rounded.
    """
    times = {
        58_500: "in 59 s",
        59_500: "in 1 min",
        3_569_000: "in 59 min",
        3_571_000: "in 1 h",
        3_600_000: "in 1 h",
        -3_599_000: "59 min ago",
    }

    assert list(times.values()) == page.evaluate(MOMENTS, list(times))


def test_a_run_that_could_not_be_read_at_its_end_is_read_again(page: Page, user: Caller) -> None:
    """Its events come by another request, and none comes after the last one."""
    run_id = user.run({"hang": 60})
    page.goto(f"{user.url}/console#/runs/{run_id}")
    badge = page.locator(".head .badge")
    expect(badge).to_have_text("executing")
    details = f"**/v1/runs/{run_id}"
    with page.expect_response(details):
        page.route(details, refused(503))
        user.cancel(run_id)
        user.ended(run_id)
    expect(page.locator(".event-type", has_text="run.cancelled")).to_be_visible()
    page.unroute(details)

    expect(badge).to_have_text("cancelled")


def test_a_run_whose_events_are_not_there_is_not_drawn(page: Page, user: Caller) -> None:
    """Without them it would have been queued until its end, and have no event."""
    run_id = user.run({"say": "Done."})
    user.ended(run_id)
    events = f"**/v1/runs/{run_id}/events"
    page.route(events, refused(429))
    page.goto(f"{user.url}/console#/runs/{run_id}")
    expect(page.get_by_text("The page continues by itself.")).to_be_visible()
    expect(page.get_by_role("heading", name="Events")).to_have_text("Events")
    timeline = page.get_by_role("img", name="Timeline of")
    expect(timeline).to_have_count(0)
    page.unroute(events)

    expect(timeline).to_be_visible()
    expect(page.get_by_role("heading", name="Events")).to_have_text(re.compile(r"^Events [1-9]"))


def test_a_run_of_which_some_events_are_there_is_drawn_until_the_last(
    page: Page, user: Caller
) -> None:
    """Its model would have been called until its end, and its events would be fewer."""
    run_id = user.run({"say": "Done.", "delay_ms": 50})
    user.ended(run_id)
    stream = user.http.get(
        f"/v1/runs/{run_id}/events", headers={"Accept": "text/event-stream"}
    ).text
    first, began, _ = stream.partition("run.started")
    begun = first + began + stream[len(first + began) :].partition("\n\n")[0] + "\n\n"
    events = re.compile(rf"/v1/runs/{run_id}/events")
    page.route(events, refused(429))
    page.route(
        events, lambda route: route.fulfill(content_type="text/event-stream", body=begun), times=1
    )
    page.goto(f"{user.url}/console#/runs/{run_id}")
    expect(page.locator(".event")).to_have_count(1)
    expect(page.get_by_text("The page continues by itself.")).to_be_visible()
    timeline = page.get_by_role("img", name="Timeline of")
    expect(timeline).to_have_accessible_name(re.compile("Model 0 ms"))
    expect(page.get_by_role("heading", name="Events")).to_have_text("Events")
    page.unroute(events)

    expect(timeline).to_have_accessible_name(re.compile("Model [1-9]"))
    expect(page.get_by_role("heading", name="Events")).to_have_text(re.compile(r"^Events [1-9]"))


def test_a_queued_run_has_its_time_in_the_queue(page: Page, user: Caller) -> None:
    """It has no event before it begins."""
    thread_id = user.thread(script({"hang": 60}))
    executing = user.start(thread_id)
    behind = {"message": "And?", "on_busy": "enqueue"}
    queued = user.made(f"/v1/threads/{thread_id}/runs", behind)["run_id"]
    page.goto(f"{user.url}/console#/runs/{queued}")

    expect(page.get_by_role("img", name="Timeline of")).to_contain_text("Queued · ")
    expect(page.get_by_role("heading", name="Events")).to_have_text("Events 0")
    for run_id in (queued, executing):
        user.cancel(run_id)


@pytest.mark.parametrize("minutes", [-3, 3])
def test_times_are_those_of_the_service(
    context: BrowserContext, user: Caller, minutes: int
) -> None:
    """The clock of a browser that is wrong makes nothing earlier or later than it was."""
    context.clock.install(time=datetime.now(UTC) + timedelta(minutes=minutes))
    page = signed_in(context, user, "/runs")
    run_id = user.run({"tool": "ask_user", "args": {"question": "Which?"}})
    user.until(run_id, "status", "waiting_for_input")
    page.get_by_role("button", name="Reload").click()
    row = page.locator("tr", has=page.locator(f"a[href$='{run_id}']"))
    expect(row.locator("time")).to_have_text("just now")
    row.get_by_role("link").first.click()

    timeline = page.get_by_role("img", name="Waiting for people")
    expect(timeline).to_have_accessible_name(re.compile(r"Timeline of \d+(\.\d+)? m?s:"))
    user.cancel(run_id)
    expires_at = (datetime.now(UTC) + timedelta(minutes=2)).isoformat()
    name = f"Key {minutes}"
    user.api_key(name=name, scopes=["data.runs.read"], expires_at=expires_at)
    go(page, "/keys")
    key = page.get_by_role("row", name=name)
    expect(key).to_contain_text("active")
    expect(key.get_by_role("button", name="Revoke")).to_be_visible()


def test_a_response_that_is_late_moves_no_times(context: BrowserContext, user: Caller) -> None:
    """The clock of the browser is corrected without the minutes that the request has taken."""
    run_id = user.run({"say": "Done."})
    user.ended(run_id)
    context.clock.install(time=datetime.now(UTC))
    page = signed_in(context, user, "/keys")
    expect(page.get_by_role("heading", name="API keys")).to_be_visible()
    held: list[Route] = []
    page.route("**/v1/**", lambda _: None)
    page.route(re.compile(r"/v1/runs\?"), lambda route: held.append(route))
    context.clock.set_system_time(datetime.now(UTC) - timedelta(minutes=13))
    go(page, "/runs")
    until_held(page, held, 1)
    context.clock.set_system_time(datetime.now(UTC) - timedelta(minutes=3))
    held[0].continue_()

    row = page.locator("tr", has=page.locator(f"a[href$='{run_id}']"))
    expect(row.locator("time")).to_have_text("just now")


def test_causes_of_a_failure_are_words(page: Page, user: Caller) -> None:
    """A space divides the time of each from what happened."""
    run_id = user.run({"error": "overloaded", "times": 9})
    user.ended(run_id)
    page.goto(f"{user.url}/console#/runs/{run_id}")

    expect(page.locator(".causes li").first).to_have_text(
        re.compile(r"^\+\d+(\.\d+)? m?s run: retrying: provider\.overloaded$")
    )


def test_a_run_for_later_is_scheduled_in_the_list_and_on_its_page(page: Page, user: Caller) -> None:
    """Another thread has a run that is executing, and one that waits for it."""
    later = (datetime.now(UTC) + timedelta(hours=3)).isoformat()
    scheduled = user.made("/v1/runs", {"message": "Later", "not_before": later})["run_id"]
    thread_id = user.thread(script({"hang": 60}))
    executing = user.start(thread_id)
    behind = {"message": "And?", "on_busy": "enqueue"}
    queued = user.made(f"/v1/threads/{thread_id}/runs", behind)["run_id"]
    user.until(executing, "phase", "executing")

    page.goto(f"{user.url}/console#/runs")
    for run_id, state in ((scheduled, "scheduled"), (executing, "executing"), (queued, "queued")):
        row = page.locator("tr", has=page.locator(f"a[href$='{run_id}']"))
        expect(row.locator(".badge")).to_have_text(state)
    for run_id in (queued, executing):
        user.cancel(run_id)
    page.locator(f"a[href$='{scheduled}']").click()
    expect(page.locator(".head .badge")).to_have_text("scheduled")
    user.cancel(scheduled)


def test_rows_of_an_earlier_release_show_their_status(page: Page, user: Caller) -> None:
    """During a deployment its web processes send no phase."""
    ended = user.run({"say": "x"})
    user.ended(ended)
    thread_id = user.thread(script({"hang": 60}))
    running = user.start(thread_id)
    behind = {"message": "And?", "on_busy": "enqueue"}
    queued = user.made(f"/v1/threads/{thread_id}/runs", behind)["run_id"]

    def without_phase(route: Route) -> None:
        response = route.fetch()
        rows = response.json()
        for row in rows:
            del row["phase"]
        route.fulfill(response=response, json=rows)

    page.route("**/v1/runs?*", without_phase)
    page.goto(f"{user.url}/console#/runs")
    for run_id, state in ((ended, "completed"), (running, "running"), (queued, "queued")):
        row = page.locator("tr", has=page.locator(f"a[href$='{run_id}']"))
        expect(row.locator(".badge")).to_have_text(state)
    for run_id in (queued, running):
        user.cancel(run_id)
