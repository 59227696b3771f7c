"""The console in a real Chromium while access is refused, and once it is there again."""

from datetime import datetime, timedelta
from uuid import UUID

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from arkloop.shared.accounts import suspensions
from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_fresh_lists import delivery
from tests.acceptance.test_console_settings import go, press, signed_in
from tests.caller import Caller, script
from tests.clients import PASSWORD
from tests.system import System
from tests.waiting import eventually

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]
#: A page that is refused tries again within this time, after pauses of up to 15 s.
AGAIN_MS = 40_000


def asking(user: Caller) -> str:
    """Return a run that waits for an answer."""
    run_id = user.run({"tool": "ask_user", "args": {"question": "Which?"}}, {"say": "Thanks."})
    user.until(run_id, "phase", "waiting")
    return run_id


def opened(context: BrowserContext, user: Caller, run_id: str) -> tuple[Page, Page]:
    """Open the thread and the page of a run that waits for an answer."""
    thread = signed_in(context, user, f"/threads/{user.get_run(run_id)['thread_id']}")
    run = context.new_page()
    run.goto(f"{user.url}/console#/runs/{run_id}")
    for page in (thread, run):
        expect(page.locator(".ask")).to_be_visible()
    expect(run.locator(".events")).to_contain_text("run.waiting_for_input")
    return thread, run


def assert_follow(thread: Page, run: Page) -> None:
    """Assert that both pages show the end of the run, without a reload."""
    expect(thread.locator(".run .markdown")).to_have_text(["Thanks."], timeout=AGAIN_MS)
    expect(run.locator(".events")).to_contain_text("run.completed", timeout=AGAIN_MS)
    expect(run.locator(".badge").first).to_contain_text("completed", ignore_case=True)
    for page in (thread, run):
        expect(page.locator(".ask")).to_have_count(0)
        expect(page.get_by_role("alert")).to_have_count(0)
        expect(page.get_by_text("suspended")).to_have_count(0)


def test_pages_continue_once_their_org_is_resumed(context: BrowserContext, system: System) -> None:
    """Both pages say why they stand still meanwhile, and then show what happened since."""
    user = system.caller()
    run_id = asking(user)
    pages = opened(context, user, run_id)
    with system.connections.transaction() as tx:
        suspensions.suspend(tx, UUID(user.org_id), "Unpaid bills")
    for page in pages:
        status = page.locator("[role=status]").filter(has_text="This organization is suspended")
        # A request that was on its way may say so in an alert as well, which goes with it.
        expect(status).to_be_visible(timeout=AGAIN_MS)
    with system.connections.transaction() as tx:
        suspensions.resume(tx, UUID(user.org_id))
    eventually(lambda: 200 == user.answer(run_id, "blue").status_code)
    user.ended(run_id)

    assert_follow(*pages)


def is_refused(page: Page, address: str) -> bool:
    """Open an address, and return whether access to it is refused: a token counts for 5 s more."""
    go(page, "/keys")
    expect(page.get_by_role("button", name="Create key")).to_be_visible()
    go(page, address)
    expect(page.get_by_role("button", name="Create key")).to_have_count(0)
    refusal = page.locator("main").get_by_text("This organization is suspended")
    expect(refusal.or_(page.locator(".ask")).first).to_be_visible()
    return page.locator(".ask").count() == 0


@pytest.mark.parametrize("kind", ["thread", "run"])
def test_a_page_opened_meanwhile_comes_once_the_org_is_resumed(
    context: BrowserContext, system: System, kind: str
) -> None:
    """A thread or run that was chosen during the suspension is loaded without a reload."""
    user = system.caller()
    run_id = asking(user)
    address = (
        f"/threads/{user.get_run(run_id)['thread_id']}" if kind == "thread" else f"/runs/{run_id}"
    )
    page = signed_in(context, user, "/keys")
    with system.connections.transaction() as tx:
        suspensions.suspend(tx, UUID(user.org_id), "Unpaid bills")
    eventually(lambda: is_refused(page, address))
    with system.connections.transaction() as tx:
        suspensions.resume(tx, UUID(user.org_id))

    expect(page.locator(".ask")).to_be_visible(timeout=AGAIN_MS)
    expect(page.get_by_text("suspended")).to_have_count(0, timeout=AGAIN_MS)
    user.cancel(run_id)


def test_pages_continue_after_signing_in_again(context: BrowserContext, system: System) -> None:
    """Pages whose log-in ended just after it had begun ask for it, and follow their run."""
    user = system.caller()
    run_id = asking(user)
    # The token stays new.
    context.clock.set_fixed_time(datetime.now().astimezone())
    thread, run = opened(context, user, run_id)
    for session in user.get("/v1/auth/sessions")["items"]:
        if not session["is_current"]:
            user.http.delete(f"/v1/auth/sessions/{session['id']}")
    for page in (thread, run):
        status = page.locator("[role=status]").filter(has_text="Your session has ended")
        expect(status).to_be_visible(timeout=AGAIN_MS)
        expect(page.get_by_text("Bearer")).to_have_count(0)
    later = datetime.now().astimezone() + timedelta(minutes=1)
    context.clock.set_fixed_time(later)
    dialog = thread.get_by_role("dialog", name="Your session has ended")
    expect(dialog).to_be_visible(timeout=AGAIN_MS)
    dialog.get_by_label("User name or email").fill(user.login)
    dialog.get_by_label("Password").fill(PASSWORD)
    press(dialog, "Sign in")
    expect(dialog).to_have_count(0)
    assert user.answer(run_id, "blue").is_success
    user.ended(run_id)

    assert_follow(thread, run)


def change_role(owner: Caller, user: Caller, role: str) -> None:
    """Change it, and wait until the service has noticed."""
    path = f"/v1/orgs/{owner.org_id}/members/{user.id}"
    assert owner.http.patch(path, json={"role": role}).is_success
    status = 200 if role == "admin" else 403
    eventually(lambda: status == user.http.get("/v1/llm-providers").status_code)


def expect_role(page: Page, role: str) -> None:
    """Wait for the role below the navigation, and the links that it has."""
    expect(page.locator(".account")).to_contain_text(f"{role} ·")
    links = page.get_by_role("navigation").get_by_role("link")
    expect(links.filter(has_text="Threads")).to_have_count(1)
    for name in ("Models", "Webhooks"):
        expect(links.filter(has_text=name)).to_have_count(1 if role == "admin" else 0)


def test_an_open_page_learns_of_another_role_by_a_refusal(
    context: BrowserContext, system: System
) -> None:
    """Navigation and role follow without a reload, and back again at a page that was denied."""
    owner = system.caller()
    user = system.colleague(owner, "admin")
    page = signed_in(context, user, "/providers")
    expect_role(page, "admin")
    change_role(owner, user, "member")
    go(page, "/tools")
    expect(page.get_by_text("You may not see this")).to_be_visible()
    expect_role(page, "member")
    change_role(owner, user, "admin")
    go(page, "/mcp")

    expect(page.get_by_role("button", name="Add server")).to_be_visible()
    expect_role(page, "admin")


def test_an_open_page_learns_of_another_role_with_its_next_token(
    context: BrowserContext, system: System
) -> None:
    """A page that the role does not allow any more says so, though none of its requests failed."""
    owner = system.caller()
    user = system.colleague(owner, "admin")
    context.clock.set_fixed_time(datetime.now().astimezone())
    page = signed_in(context, user, "/providers")
    expect(page.get_by_role("button", name="Add provider")).to_be_visible()
    change_role(owner, user, "member")
    expect_role(page, "admin")
    context.clock.set_fixed_time(datetime.now().astimezone() + timedelta(hours=1))
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")

    expect(page.get_by_text("You may not see this")).to_be_visible()
    expect_role(page, "member")


@pytest.mark.parametrize("role", ["owner", "member"])
def test_a_key_of_data_alone_is_offered_no_page_that_refuses_it(
    context: BrowserContext, system: System, role: str
) -> None:
    """An address says which scope the key lacks, and where a login lacks it, too, whom to ask."""
    owner = system.caller()
    person = owner if role == "owner" else system.colleague(owner)
    page = context.new_page()
    page.goto(f"{owner.url}/console#/sign-in?with=key")
    page.get_by_label("API key").fill(person.api_key(scopes=["data.runs.read"])[1])
    press(page, "Sign in")
    links = page.get_by_role("navigation").get_by_role("link")
    expect(links.filter(has_text="Runs")).to_have_count(2)  # one is the name of the console
    for name in ("API keys", "Members", "Models", "Threads"):
        expect(links.filter(has_text=name)).to_have_count(0)

    asked: list[str] = []
    page.on("request", lambda one: asked.append(one.url))
    sign_in = "sign in with a password or your identity provider, or with a key that has it."
    admins = f"An owner or admin of {person.get('/v1/me')['org_name']} can give it to you."
    by_admin = f": {sign_in}" if role == "owner" else f", and so does your role. {admins}"
    pages = (
        ("/keys", "admin", by_admin),
        ("/members", "admin", by_admin),
        ("/threads", "data.threads.read", f": {sign_in}"),
        ("/queues", "operator", ". Ask the operator of the service for it."),
    )
    for address, scope, way in pages:
        go(page, address)
        expect(page.locator("main")).to_contain_text(f"This key lacks the scope {scope}{way}")
        expect(page.locator("main")).not_to_contain_text("your own keys")
    assert not [url for url in asked if "/v1/api-keys" in url or "/members" in url]


def with_key(context: BrowserContext, user: Caller, *scopes: str) -> Page:
    """Open the console, and sign in with a new key."""
    page = context.new_page()
    page.goto(f"{user.url}/console#/sign-in?with=key")
    page.get_by_label("API key").fill(user.api_key(scopes=[*scopes])[1])
    press(page, "Sign in")
    expect(page.get_by_role("navigation")).to_be_visible()
    return page


def test_a_key_of_admin_alone_is_offered_no_page_that_refuses_it(
    context: BrowserContext, owner: Caller
) -> None:
    """Its pages ask for nothing that the service would refuse, and enter in the audit log."""
    refused: list[str] = []
    context.on("response", lambda one: refused.append(one.url) if one.status == 403 else None)
    page = with_key(context, owner, "admin")
    links = page.get_by_role("navigation").locator("a:not(.brand)")
    assert "Models" in links.all_inner_texts()
    for link in links.all():
        link.click()
        page.reload(wait_until="networkidle")
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        expect(page.get_by_role("alert")).to_have_count(0)

    assert not refused


def test_the_first_page_is_one_that_a_key_may_see(context: BrowserContext, user: Caller) -> None:
    """Signing in leads there, and so do the name of the console and an address without a page."""
    page = with_key(context, user, "data.runs.read")
    expect(page.get_by_role("heading", level=1)).to_have_text("Inbox")
    go(page, "/usage")
    expect(page.get_by_role("heading", level=1)).to_have_text("Usage")
    page.get_by_role("link", name="Arkloop Runs").first.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Inbox")
    go(page, "/nowhere")
    page.get_by_role("link", name="Go to the first page").click()

    expect(page.get_by_role("heading", level=1)).to_have_text("Inbox")


def test_a_key_that_writes_no_threads_is_offered_no_message(
    context: BrowserContext, user: Caller
) -> None:
    """The service refuses a run with a message; the last run can be repeated, and stopped."""
    thread_id = user.thread(script({"count": 2_000, "delay_ms": 50}))
    user.cancel(user.start(thread_id, route_id="scripted"))
    page = with_key(context, user, "data.threads.read", "data.runs.read", "data.runs.write")
    expect(page.get_by_text("No thread selected")).to_be_visible()
    expect(page.locator(".thread-list")).to_be_visible()
    expect(page.get_by_role("link", name="New", exact=True)).to_have_count(0)
    go(page, f"/threads/{thread_id}")
    expect(page.get_by_text("Cancelled")).to_be_visible()
    expect(page.get_by_label("Message", exact=True)).to_have_count(0)
    press(page, "Retry")
    press(page, "Stop")

    expect(page.get_by_role("button", name="Retry")).to_be_visible()
    runs = user.get(f"/v1/threads/{thread_id}/runs")
    assert ["cancelled"] * 2 == [run["status"] for run in runs]
    expect(page.get_by_role("button", name="Stop")).to_have_count(0)
    expect(page.get_by_role("alert")).to_have_count(0)


def test_a_first_message_names_the_scope_that_it_requires(
    context: BrowserContext, owner: Caller
) -> None:
    """An address leads to the form; its text would be refused once it is written."""
    page = with_key(context, owner, "data.threads.read", "data.runs.read", "data.runs.write")
    go(page, "/threads/new")

    expect(page.locator("main")).to_contain_text("This key lacks the scope data.threads.write:")
    expect(page.get_by_label("Message", exact=True)).to_have_count(0)
    page.set_viewport_size({"width": 390, "height": 700})
    page.get_by_role("link", name="Back").click()
    expect(page.get_by_text("No threads yet")).to_be_visible()


def test_a_thread_names_both_scopes_that_it_requires(context: BrowserContext, user: Caller) -> None:
    """Its conversation has the runs; the list of threads has not."""
    thread_id = user.thread("Hello")
    page = with_key(context, user, "data.threads.read")
    expect(page.locator(".thread-list")).to_be_visible()
    go(page, f"/threads/{thread_id}")

    expect(page.locator("main")).to_contain_text("This key lacks the scope data.runs.read:")


#: Sends requests that are refused, one after the other, for some seconds.
REFUSED = """async seconds => {
  const base = document.querySelector("script[src*=app]").src
  const { get } = await import(new URL("lib/api.js", base))
  let count = 0
  for (const end = Date.now() + 1_000 * seconds; Date.now() < end; count += 1) {
    await get("llm-providers").catch(() => {})
  }
  return count
}"""


def test_many_refusals_do_not_read_the_role_each_time(
    context: BrowserContext, system: System
) -> None:
    """The first one has it read; after that it is read at most once in five seconds."""
    user = system.colleague(system.caller())
    page = signed_in(context, user, "/keys")
    reads: list[str] = []
    page.on("request", lambda one: reads.append(one.url) if one.url.endswith("/v1/me") else None)

    assert page.evaluate(REFUSED, 6) > 5
    assert len(reads) in (1, 2)


def test_a_member_publishes_no_persona(
    context: BrowserContext, system: System, owner: Caller
) -> None:
    """A link leads to the form; its text would be refused once it is written."""
    page = signed_in(context, system.colleague(owner), "/personas?publish=1")
    for address in ("/personas?publish=1", "/personas/assistant?publish=1"):
        go(page, address)
        expect(page.locator("main")).to_contain_text("This requires the permission admin.")
        expect(page.get_by_role("button", name="Publish")).to_have_count(0)
    page.get_by_role("link", name="Back").click()

    expect(page.get_by_role("table", name="Personas")).to_be_visible()


def test_a_persona_is_published_by_a_member_who_is_an_admin_now(
    context: BrowserContext, system: System, owner: Caller
) -> None:
    """The form comes without a reload where it was refused before."""
    user = system.colleague(owner)
    page = signed_in(context, user, "/personas?publish=1")
    expect(page.get_by_text("You may not see this")).to_be_visible()
    go(page, "/personas")
    change_role(owner, user, "admin")
    go(page, "/personas?publish=1")

    expect(page.get_by_role("button", name="Publish")).to_be_visible(timeout=AGAIN_MS)


def test_a_key_that_reads_no_threads_has_no_links_to_them(
    context: BrowserContext, owner: Caller
) -> None:
    """The run and the inbox name the thread and the persona all the same."""
    run_id = asking(owner)
    thread_id = owner.get_run(run_id)["thread_id"]
    page = with_key(context, owner, "data.runs.read")
    expect(page.locator(".inbox-item")).to_contain_text("assistant")
    links = page.locator("main a[href*='/threads/']")
    assert 0 == links.count()
    go(page, f"/runs/{run_id}")

    expect(page.locator(".details")).to_contain_text(thread_id)
    assert 0 == links.count()
    owner.cancel(run_id)


def test_a_key_that_reads_no_runs_has_no_links_to_what_requires_it(
    context: BrowserContext, owner: Caller
) -> None:
    """The lists of threads and of deliveries name them all the same."""
    owner.thread(title="Known")
    body = {"url": "https://shop.example.com/hooks", "event_types": ["run.completed"]}
    endpoint = owner.made("/v1/webhook-endpoints", body)
    sent = {**delivery(0), "run_id": "5e0f0000-0000-7000-8000-000000000001"}
    context.route("**/deliveries?*", lambda route: route.fulfill(json=[sent]))
    page = with_key(context, owner, "data.threads.read", "admin")
    links = page.locator("main").locator("a[href*='/threads/'], a[href*='/runs/']")
    go(page, "/threads")
    expect(page.get_by_text("Known")).to_be_visible()
    assert 0 == links.count()
    go(page, f"/webhooks/{endpoint['id']}")

    expect(page.get_by_text("run …00000001")).to_be_visible()
    assert 0 == links.count()
