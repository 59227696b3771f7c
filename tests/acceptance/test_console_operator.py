"""The console in a real Chromium: what operators see of all orgs, and runs played again."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import pytest
from playwright.sync_api import BrowserContext, Response, Route, expect
from sqlalchemy import text

from arkloop.shared.accounts import operators, suspensions
from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console import AXE, PHONE, violations
from tests.acceptance.test_console_settings import go, signed_in, until, until_held
from tests.acceptance.test_explanations import explained
from tests.caller import Caller, client
from tests.clients import PASSWORD
from tests.system import System
from tests.waiting import eventually

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]
PAGES = ("queues", "workers", "leases", "stuck")
expect.set_options(timeout=20_000)


@pytest.fixture(scope="module")
def operator(system: System) -> Caller:
    """An operator of the service, in an org of their own."""
    caller = system.caller()
    with system.connections.transaction() as tx:
        operators.add(tx, UUID(str(caller.id)))
    return caller


def run_of(user: Caller) -> str:
    """Return a run that has streamed, called a tool and ended."""
    run_id = user.run(
        {"say": "Let me look.", "delay_ms": 30},
        {"tool": "calculator", "args": {"expression": "6*7"}},
        {"say": "It is 42, as you know.", "delay_ms": 30},
        route_id="scripted",
    )
    assert "completed" == user.ended(run_id)["status"]
    return run_id


def test_an_operator_queues_and_cancels_runs_of_others(
    context: BrowserContext, system: System, user: Caller, operator: Caller
) -> None:
    """A queued run that no worker takes is stuck: why, a requeue, and a cancel with a question."""
    with system.without_worker():
        run_id = user.run("Hello", route_id="scripted")
        with system.connections.transaction() as tx:
            old = text("UPDATE runs SET queued_at = now() - interval '5 minutes' WHERE id = :id")
            tx.sql.execute(old, {"id": run_id})
        explained(user, run_id, "queue.no_worker")  # a killed worker counts for some seconds
        page = signed_in(context, operator, "/stuck")
        row = page.get_by_role("row").filter(has_text=run_id)
        expect(row).to_contain_text("No worker has taken it.")
        row.get_by_role("button", name="Why is run").click()
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text("no worker of the service is alive")
        dialog.get_by_role("button", name="Close").click()
        row.get_by_role("button", name="Requeue run").click()
        expect(page.get_by_text("is queued; workers were notified.")).to_be_visible()
        row.get_by_role("button", name="Cancel run").click()
        dialog.get_by_role("button", name="Cancel run").click()
        expect(row).to_have_count(0)

    assert "cancelled" == user.get_run(run_id)["status"]
    actions = [entry["action"] for entry in user.get("/v1/audit-logs", limit=2)]
    assert ["run.cancelled", "run.requeued"] == actions


def test_pages_of_operators_are_theirs_alone(
    context: BrowserContext, user: Caller, operator: Caller
) -> None:
    """An owner has no link to them, and reads nothing at their addresses."""
    page = signed_in(context, user, "/threads")
    links = page.get_by_role("navigation").get_by_role("link")
    expect(links.filter(has_text="Threads")).to_have_count(1)
    for name in ("Queues", "Workers", "Leases", "Stuck runs"):
        expect(links.filter(has_text=name)).to_have_count(0)
    for name in PAGES:
        page.goto(f"{user.url}/console#/{name}")
        expect(page.get_by_text("You may not see this")).to_be_visible()
    page.close()
    context.clear_cookies()

    page = signed_in(context, operator, "/workers")
    expect(page.get_by_role("table", name="Workers")).to_contain_text("alive")
    expect(page.get_by_role("navigation").get_by_role("link", name="Leases")).to_be_visible()


def test_a_page_that_refreshes_waits_for_a_slow_response(
    context: BrowserContext, operator: Caller
) -> None:
    """It asks again after 30 s without one, and says that the service is away until it is not."""
    page = signed_in(context, operator, "/threads")
    held: list[Route] = []
    context.route("**/v1/operator/workers", lambda route: held.append(route))
    page.clock.install()
    go(page, "/workers")
    until_held(page, held, 1)
    for _ in range(3):
        page.clock.fast_forward(6_000)  # longer than the pause between two refreshes
    assert 1 == len(held)
    page.clock.fast_forward(14_000)
    until_held(page, held, 2)
    held[1].continue_()

    expect(page.get_by_role("table", name="Workers")).to_be_visible()


def asked_with(sent: dict[str, str]) -> Callable[[Response], bool]:
    """Return what recognizes the response to a list of runs with these filters."""
    wanted = {name: [value] for name, value in sent.items()}

    def is_it(response: Response) -> bool:
        url = urlsplit(response.url)
        query = parse_qs(url.query)
        return url.path == "/v1/runs" and wanted == {name: query.get(name) for name in sent}

    return is_it


def test_runs_are_filtered_by_cost_and_duration(context: BrowserContext, user: Caller) -> None:
    """Numbers in every form that the browser accepts reach the API in the one that it reads."""
    page = signed_in(context, user, "/runs?min_cost=.5&min_seconds=.0015")
    for field, typed, sent in (
        (None, None, {"min_cost_usd": "0.50000000", "min_duration_ms": "2"}),
        ("Cost from, USD", "1e-2", {"min_cost_usd": "0.01000000", "min_duration_ms": "2"}),
        ("Duration from, s", "2.5e2", {"min_cost_usd": "0.01000000", "min_duration_ms": "250000"}),
    ):
        # By its query: the list may just be renewed with the filters before.
        with page.expect_response(asked_with(sent)) as response:
            if field is None:
                page.reload()
            else:
                page.get_by_label(field).fill(str(typed))
        assert 200 == response.value.status
    expect(page.get_by_text("No run fits the filters")).to_be_visible()


def test_a_run_is_played_again(context: BrowserContext, user: Caller) -> None:
    """The keyboard moves from its beginning to any moment, up to what it has become."""
    page = signed_in(context, user, f"/runs/{run_of(user)}")
    page.get_by_role("button", name="Replay").click()
    scene = page.get_by_role("group", name="The run at this moment")
    expect(scene).to_contain_text("It is 42, as you know.")
    expect(scene).to_contain_text("completed")
    slider = page.get_by_role("slider", name="Moment of the run")
    slider.press("Home")
    expect(scene).not_to_contain_text("It is 42")
    expect(page.get_by_text(re.compile("Event [0-9]+ of [0-9]+"))).to_be_visible()
    slider.press("End")
    expect(scene).to_contain_text("It is 42, as you know.")
    page.get_by_role("button", name="Play again").click()
    expect(page.get_by_role("button", name="Play again")).to_be_visible()
    page.get_by_role("button", name="End the replay").click()
    expect(scene).to_have_count(0)
    expect(page.get_by_role("heading", name="Output")).to_be_visible()


def test_prompts_are_shown_as_they_were_sent(context: BrowserContext, user: Caller) -> None:
    """Instructions with what the run has added, the thread, the run's own turns, and the body."""
    fields = {"system_prompt": "Answer {{whom}}.", "overrides": ["instructions", "variables"]}
    user.made("/v1/personas", {"key": "greet", "route_id": "scripted", **fields})
    thread_id = user.thread("The first question.")
    user.ended(user.start(thread_id, route_id="scripted"))
    steps = [{"tool": "calculator", "args": {"expression": "6*7"}}, {"say": "Done."}]
    message = json.dumps({"script": steps})
    options = {"instructions": "Be brief.", "variables": {"whom": "Ada"}}
    body = {"message": message, "persona_id": "assistant", "route_id": "scripted"}
    run_id = user.made(f"/v1/threads/{thread_id}/runs", body)["run_id"]
    user.ended(run_id)
    other = user.made("/v1/runs", {"message": "Hello", "persona_id": "greet", **options})["run_id"]
    user.ended(other)
    page = signed_in(context, user, f"/runs/{run_id}")
    page.get_by_role("button", name="Step 2").click()
    prompt = page.locator(".prompt")
    for wanted in ("The first question.", "You said: The first question.", "6*7", "42"):
        expect(prompt).to_contain_text(wanted)
    expect(prompt.get_by_text("Done.", exact=True)).to_have_count(0)

    page.goto(f"{user.url}/console#/runs/{other}")
    page.get_by_role("button", name="Step 1").click()
    expect(prompt).to_contain_text("Answer Ada.")
    expect(prompt).to_contain_text("Be brief.")
    [sent] = user.get(f"/v1/runs/{other}/prompts", number=1)
    prompt.get_by_role("button", name="Show the body as sent").click()
    expect(prompt.locator("code")).to_have_text(sent["body"])


def test_a_file_is_sent_with_a_message(
    context: BrowserContext, user: Caller, tmp_path: Path
) -> None:
    """A refused file says why and can be removed; the conversation shows the other's name."""
    good, bad = tmp_path / "notes.txt", tmp_path / "tool.bin"
    good.write_text("The meeting is at noon.")
    bad.write_bytes(b"\x00\x01\x02")
    page = signed_in(context, user, "/threads/new")
    page.get_by_label("Files", exact=True).set_input_files([good, bad])
    attached = page.get_by_role("list", name="Attached files")
    expect(attached.get_by_role("alert")).to_be_visible()
    attached.get_by_role("button", name="Remove tool.bin").click()
    page.get_by_label("Route").select_option("scripted")
    page.get_by_label("Message", exact=True).fill("When is it?")
    page.get_by_role("button", name="Send").click()

    page.wait_for_url(re.compile("#/threads/[0-9a-f]"))
    expect(page.locator(".said")).to_contain_text("notes.txt")
    with page.expect_download() as download:
        page.locator(".said").get_by_role("button", name="notes.txt").click()
    assert "The meeting is at noon." == Path(download.value.path()).read_text()


def test_a_password_is_changed(context: BrowserContext, system: System) -> None:
    """A wrong one is said at its field; this log-in stays, and others need the new password."""
    person = system.newcomer()
    page = signed_in(context, person, "/sessions")
    page.get_by_role("link", name="Change password").click()

    def change(current: str, again: str) -> None:
        page.get_by_label("Current password").fill(current)
        page.get_by_label("New password", exact=True).fill("a quite new password")
        page.get_by_label("New password, again").fill(again)
        page.get_by_role("button", name="Change password").click()

    change("wrong password", "a quite new password")
    expect(page.get_by_role("alert")).to_contain_text("is not your current password")
    change(PASSWORD, "another password")
    expect(page.get_by_role("alert")).to_contain_text("is not the same")
    change(PASSWORD, "a quite new password")
    expect(page.get_by_text("Your password is changed.")).to_be_visible()
    body = {"login": person.login, "password": "a quite new password"}
    assert 200 == client(person.url).post("/v1/auth/login", json=body).status_code
    page.get_by_role("link", name="See your log-ins").click()
    expect(page.get_by_text("This browser")).to_be_visible()


@pytest.mark.front_ends
@pytest.mark.skipif(
    not AXE.exists() and os.environ.get("NEED_FRONT_ENDS") != "1",
    reason="scripts/install-front-ends has not run",
)
def test_pages_of_operators_are_accessible(context: BrowserContext, operator: Caller) -> None:
    """axe finds nothing in light and dark, and nothing is wider than a phone, with rows in each."""
    context.add_init_script(AXE.read_text())
    busy = operator.run({"count": 2_000, "delay_ms": 50}, route_id="scripted")
    operator.until(busy, "phase", "executing")
    page = signed_in(context, operator, "/queues")
    own = operator.run({"say": "Hello."}, route_id="scripted")
    operator.ended(own)
    found: dict[str, list[str]] = {}
    for address in (*PAGES, "password", f"runs/{own}"):
        page.goto(f"{operator.url}/console#/{address}")
        expect(page.locator("main h1").first).to_be_visible()
        expect(page.locator(".loading")).to_have_count(0)
        if address.startswith("runs/"):
            page.get_by_role("button", name="Replay").click()
            page.get_by_role("button", name="Step 1").click()
        found[address] = violations(page)
        page.set_viewport_size(PHONE)
        # Charts follow the page's width a moment later.
        until(page, f"document.documentElement.scrollWidth <= {PHONE['width']}")
        page.set_viewport_size({"width": 1280, "height": 800})
    operator.cancel(busy)

    assert {address: [] for address in found} == found


def test_an_org_is_suspended_and_resumed(
    context: BrowserContext, system: System, operator: Caller
) -> None:
    """With a reason, after a question, and found again though nothing is executed for it; the
    operator's own org offers no button.
    """
    user = system.caller()
    busy, own = (
        caller.run({"count": 2_000, "delay_ms": 50}, route_id="scripted")
        for caller in (user, operator)
    )
    page = signed_in(context, operator, "/queues")
    row, own_row = (
        page.get_by_role("row").filter(has_text=f"…{str(caller.org_id)[-8:]}")
        for caller in (user, operator)
    )
    row.get_by_role("button", name="Suspend").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("button", name="Suspend")).to_be_disabled()
    dialog.get_by_label("Reason").fill("Unpaid bills")
    dialog.get_by_role("button", name="Suspend").click()
    expect(page.get_by_text("is suspended.")).to_be_visible()
    eventually(lambda: 401 == user.http.get("/v1/me").status_code)
    expect(row).to_contain_text("suspended")
    expect(row.get_by_role("cell").nth(4)).to_have_text("0")  # its run is cancelled
    expect(own_row).to_have_count(1)
    expect(own_row.get_by_role("button")).to_have_count(0)

    row.get_by_role("button", name="Resume").click()
    dialog.get_by_role("button", name="Resume").click()
    expect(page.get_by_text("is resumed; its queued runs start.")).to_be_visible()
    eventually(lambda: 200 == user.http.get("/v1/me").status_code)
    expect(row).to_have_count(0)  # it has no run any more
    assert "cancelled" == user.get_run(busy)["status"]
    actions = [entry["action"] for entry in user.get("/v1/audit-logs", limit=3)]
    assert {"org.suspended", "org.resumed"} <= {*actions}
    operator.cancel(own)


def test_the_key_of_a_suspended_org_is_kept(context: BrowserContext, system: System) -> None:
    """The page says why it is refused, and after the org is resumed a reload uses it again."""
    user = system.caller()
    _, key = user.api_key()
    by_key = user.at(token=key)
    page = context.new_page()
    page.goto(f"{user.url}/console")
    page.get_by_role("button", name="Sign in with an API key").click()
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Sign in", exact=True).click()
    expect(page.get_by_role("navigation")).to_be_visible()
    with system.connections.transaction() as tx:
        suspensions.suspend(tx, user.org_id, "Unpaid bills")
    eventually(lambda: 401 == by_key.http.get("/v1/me").status_code)

    page.reload()
    expect(page.get_by_text("This organization is suspended")).to_be_visible()

    with system.connections.transaction() as tx:
        suspensions.resume(tx, user.org_id)
    eventually(lambda: 200 == by_key.http.get("/v1/me").status_code)
    page.reload()
    expect(page.get_by_text("API key ·")).to_be_visible()


#: Sets a store after a component was rendered with it, and before the browser's next frame.
SET_BEFORE_THE_NEXT_FRAME = """async () => {
    const app = document.querySelector("script[type=module]").src
    const { html, render } = await import(new URL("lib/html.js", app))
    const { store, useStore } = await import(new URL("lib/store.js", app))
    const followed = store("before"), root = document.createElement("p")
    const Shown = () => html`${useStore(followed)}`
    render(html`<${Shown} />`, root)
    followed.set("after")
    for (let left = 1_000; left > 0 && root.textContent === "before"; left -= 1) {
      await new Promise((resolve) => setTimeout(resolve, 10))
    }
    return root.textContent
}"""


def test_a_change_before_the_next_frame_is_shown(context: BrowserContext, user: Caller) -> None:
    """A response may come before it: the page said "Loading …" for ever then."""
    page = context.new_page()
    page.goto(f"{user.url}/console")

    assert "after" == page.evaluate(SET_BEFORE_THE_NEXT_FRAME)
