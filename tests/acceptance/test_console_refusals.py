"""Refusals in the console, in a real Chromium: what it says, and who can change it."""

import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect

from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_fresh_lists import delivery, serve_pages
from tests.acceptance.test_console_losses import Loss, bad_gateway, hold, lose, refused, say
from tests.acceptance.test_console_settings import IS_WHOLE, go, press, signed_in, until_held
from tests.caller import Caller
from tests.clients import PASSWORD
from tests.system import System

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]
#: Keeps what the page says while it waits, which may be short.
NOTE_SAID = """
window.said = new Set()
new MutationObserver(() => {
  for (const { textContent } of document.querySelectorAll("[role=status]")) said.add(textContent)
}).observe(document, { childList: true, characterData: true, subtree: true })
"""
#: Of requests to the service itself.
REQUESTS = "The organization's limit of 12 requests per minute is reached."


def limited(seconds: int) -> Loss:
    """Refuse a request by the org's limit on requests."""
    details = {"limit": "org", "per_minute": 12}
    body = {"code": "rate_limit.exceeded", "message": "See `details`.", "details": details}
    return lambda route: _refuse(route, body, seconds)


def crowded(route: Route) -> None:
    """Refuse a stream while the org has as many as it may."""
    details = {"scope": "org", "most": 3}
    body = {"code": "streams.limit_exceeded", "message": "See `details`.", "details": details}
    _refuse(route, body, 1)


def _refuse(route: Route, body: dict[str, object], seconds: int) -> None:
    route.fulfill(status=429, json=body, headers={"Retry-After": str(seconds)})


def test_an_org_without_credits_or_budget(context: BrowserContext, system: System) -> None:
    """The page says what is used up: the operator grants credits, an admin raises a budget."""
    without_credits, without_budget = system.newcomer(), system.caller()
    limits = {"max_cost_usd_per_month": 0}
    without_budget.put("/v1/budget", limits)
    for user, text in (
        (without_credits, "The organization has no credits left; the operator grants them."),
        (
            without_budget,
            "The monthly budget of the organization is used up; an admin can raise it.",
        ),
    ):
        page = signed_in(context, user, "/threads/new")
        page.get_by_label("Route", exact=True).select_option("scripted")
        say(page, "Hello")
        expect(page.get_by_role("alert")).to_have_text(text)
        context.clear_cookies()
        page.close()


def test_a_persona_names_the_permission_that_it_requires(
    context: BrowserContext, user: Caller
) -> None:
    """It is that of the list of personas."""
    page = context.new_page()
    page.goto(f"{user.url}/console#/sign-in?with=key")
    page.get_by_label("API key").fill(user.api_key(scopes=["data.threads.read"])[1])
    page.get_by_role("button", name="Sign in", exact=True).click()
    expect(page.get_by_role("navigation")).to_be_visible()
    for address in ("/personas", "/personas/assistant"):
        go(page, address)
        expect(page.get_by_role("heading", level=1)).to_have_text("Personas")
        expect(page.locator(".empty")).to_contain_text("the scope data.runs.read:")


def test_a_page_names_the_permission_that_it_requires(
    context: BrowserContext, system: System, user: Caller
) -> None:
    """Owners and admins give those of the org, the operator of the service their own."""
    page = signed_in(context, system.colleague(user), "/keys")
    for address in ("/webhooks", "/audit"):
        go(page, address)
        expect(page.locator(".empty")).to_contain_text("permission admin. An owner or admin of")
    for address in ("/queues", "/workers", "/leases", "/stuck"):
        go(page, address)
        expect(page.locator(".empty")).to_contain_text("permission operator. Ask the operator")


def test_a_key_as_the_list_shows_it_is_not_valid(context: BrowserContext, user: Caller) -> None:
    """It ends with a character that a browser sends in no header."""
    page = context.new_page()
    page.goto(f"{user.url}/console#/sign-in?with=key")
    for key in ("al_44lVpD…", "al_44lVpD"):
        page.get_by_label("API key").fill(key)
        press(page, "Sign in")
        expect(page.get_by_role("alert")).to_have_text("This API key is not valid.")
        page.reload()


def test_a_page_that_no_key_may_use_names_both_kinds_of_log_in(
    context: BrowserContext, user: Caller
) -> None:
    """A log-in by an identity provider may do what one with a password may."""
    page = context.new_page()
    page.goto(f"{user.url}/console#/sign-in?with=key")
    page.get_by_label("API key").fill(user.api_key()[1])
    press(page, "Sign in")
    expect(page.get_by_role("navigation")).to_be_visible()
    for address in ("/members", "/sessions"):
        go(page, address)
        expect(page.get_by_text("with a password or your identity provider to")).to_be_visible()


def test_a_wrong_field_that_is_folded_is_opened(context: BrowserContext, user: Caller) -> None:
    """The field has the focus, and the reason below it."""
    page = signed_in(context, user, "/tools")
    press(page, "Add tool")
    form = page.get_by_role("dialog")
    form.get_by_label("Name").fill("order_status")
    form.get_by_label("Description").fill("Look up an order.")
    form.get_by_label("Address").fill("https://shop.example.com/order")
    summary = form.get_by_text("Timeout and headers")
    summary.click()
    form.get_by_label("Headers").fill("no colon")
    summary.click()
    expect(form.get_by_label("Headers")).to_be_hidden()
    press(form, "Add tool")

    expect(form.get_by_label("Headers")).to_be_focused()
    expect(form.get_by_role("alert")).to_contain_text("one header a line")


def join(page: Page, user: Caller, name: str) -> None:
    """Accept an invitation to the org of a user with a new account."""
    path = f"/v1/orgs/{user.org_id}/invitations"
    token = user.made(path, {"name": name, "role": "member"})["token"]
    page.goto(f"{user.url}/console#/join/{token}")
    page.get_by_label("User name").fill(name)
    page.get_by_label("Email").fill(f"{name}@example.com")
    page.get_by_label("Password").fill(PASSWORD)
    press(page, "Create account and join")


def sign_in(page: Page, user: Caller, name: str) -> None:
    page.goto(f"{user.url}/console")
    page.get_by_label("User name or email").fill(name)
    page.get_by_label("Password").fill(PASSWORD)
    press(page, "Sign in")


@pytest.mark.parametrize("status", [429, 503])
def test_a_log_in_counts_before_the_service_says_whose_it_is(
    context: BrowserContext, system: System, status: int
) -> None:
    """An invitation is accepted once, and a log-in made once; the page says why it waits."""
    user = system.caller()
    loss = limited(2) if status == 429 else refused(status)
    why = f"{REQUESTS} Trying again in 2 s." if status == 429 else "Come back later. Trying again …"
    name, page = f"joiner-{status}-{user.login}", context.new_page()
    page.add_init_script(NOTE_SAID)
    sent: list[str] = []
    page.on("request", lambda r: sent.append(r.url) if "/auth/" in r.url else None)
    for enter in (join, sign_in):
        lose(context, "**/v1/me", loss)
        enter(page, user, name)
        expect(page.get_by_role("navigation")).to_contain_text("member ·")
        assert why in page.evaluate("[...said]")
        context.unroute("**/v1/me")
        lose(context, "**/v1/me", loss)
        page.reload()
        expect(page.get_by_role("navigation")).to_contain_text("member ·")
        assert why in page.evaluate("[...said]")
        context.unroute("**/v1/me")
        press(page, "Sign out")
        expect(page.get_by_label("User name or email")).to_be_visible()

    ways = [url.rpartition("/")[2] for url in sent]
    assert ["register", "login"] == [way for way in ways if way in ("register", "login")]


def test_a_limit_is_no_lost_network(context: BrowserContext, user: Caller) -> None:
    """A thread and the page of a run name it, and follow on when there is room."""
    run_id = user.run({"say": "one two three four five", "delay_ms": 500})
    is_crowded = [True]

    def stream(route: Route) -> None:
        crowded(route) if is_crowded[0] else route.continue_()

    for pattern in ("**/v1/threads/*/events*", "**/v1/runs/*/events*"):
        context.route(pattern, stream)
    text = "The organization's limit of 3 open streams is reached."
    page = signed_in(context, user, f"/threads/{user.get_run(run_id)['thread_id']}")
    for shown in (".run .markdown", ".events"):
        expect(page.locator("[role=status]").filter(has_text=text)).to_be_visible()
        expect(page.get_by_text("No connection")).to_have_count(0)
        is_crowded[0] = False
        expect(page.locator("[role=status]").filter(has_text=text)).to_have_count(0)
        expect(page.locator(shown)).to_contain_text("three")
        is_crowded[0] = True
        go(page, f"/runs/{run_id}")


@pytest.mark.parametrize("trace", ["4bf92f3577b34da6a3ce929d0e0e4736", ""])
def test_a_service_that_fails_is_no_lost_network(
    context: BrowserContext, user: Caller, trace: str
) -> None:
    """A thread and the page of a run name the trace of a stream that fails, if there is one."""
    run_id = user.run({"say": "one two three four five", "delay_ms": 500})
    is_failing = [True]
    error = {"code": "internal.error", "message": "Internal error.", "trace_id": trace}

    def stream(route: Route) -> None:
        route.fulfill(status=500, json=error) if is_failing[0] else route.continue_()

    for pattern in ("**/v1/threads/*/events*", "**/v1/runs/*/events*"):
        context.route(pattern, stream)
    text = f"The service fails (HTTP 500{f', trace {trace}' if trace else ''})."
    page = signed_in(context, user, f"/threads/{user.get_run(run_id)['thread_id']}")
    for shown in (".run .markdown", ".events"):
        expect(page.locator("[role=status]").filter(has_text=text)).to_be_visible()
        expect(page.get_by_text("No connection")).to_have_count(0)
        is_failing[0] = False
        expect(page.locator("[role=status]").filter(has_text=text)).to_have_count(0)
        expect(page.locator(shown)).to_contain_text("three")
        is_failing[0] = True
        go(page, f"/runs/{run_id}")


def test_reports_name_the_limit_on_requests(context: BrowserContext, user: Caller) -> None:
    """The reports are not what has to wait then."""
    lose(context, "**/v1/me/usage?*", limited(8))
    page = signed_in(context, user, "/keys")
    go(page, "/usage")
    expect(page.get_by_text(f"{REQUESTS} The page continues in 8 s.")).to_be_visible()
    expect(page.get_by_text("have to wait")).to_have_count(0)

    expect(page.get_by_role("heading", name="By end user")).to_be_visible()


@pytest.mark.parametrize("token", ["i" * 201, "bad%00token"])
@pytest.mark.parametrize("kind", ["join", "reset"])
def test_a_link_that_is_none_says_so(
    context: BrowserContext, user: Caller, kind: str, token: str
) -> None:
    """The service refuses a field that the form does not have."""
    page = context.new_page()
    page.goto(f"{user.url}/console#/{kind}/{token}")
    if kind == "join":
        page.get_by_label("User name").fill("newcomer")
        page.get_by_label("Email").fill("newcomer@example.com")
    page.get_by_label("assword").fill("abcdefghij")
    press(page, "Create account and join" if kind == "join" else "Change password")

    expect(page.get_by_role("alert")).to_have_text(
        "This link is not valid. Open it as it was sent, or ask for a new one."
    )


@pytest.mark.parametrize("days", ["99999999999", "1000", "-3", "abc", "1e400"])
def test_a_period_of_usage_that_is_none_is_the_usual_one(
    context: BrowserContext, user: Caller, days: str
) -> None:
    """An address that somebody has written shows a report, not a failure."""
    page = signed_in(context, user, f"/usage?days={days}")
    period = page.get_by_role("group", name="Period")

    expect(period.get_by_role("button", name="30 days")).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("heading", name="By day")).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)


def test_a_measure_of_usage_that_is_none_is_the_cost(context: BrowserContext, user: Caller) -> None:
    """An address that somebody has written draws no bars of another measure."""
    page = signed_in(context, user, "/usage?measure=abc")
    measure = page.get_by_role("group", name="Measure")

    expect(measure.get_by_role("button", name="Cost")).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("img", name="By day")).to_be_visible()
    expect(page.get_by_text("NaN")).to_have_count(0)


def test_a_refused_redelivery_is_reported_in_its_row(context: BrowserContext, user: Caller) -> None:
    """Its button alone is busy, and the error is where the person looks, far down the list."""
    body = {"url": "https://shop.example.com/hooks", "event_types": ["run.completed"]}
    made = user.made("/v1/webhook-endpoints", body)
    dead = [{**delivery(number), "state": "dead"} for number in range(50)]
    serve_pages(context, "**/deliveries?*", dead)
    held = hold(context, "**/v1/webhook-endpoints/*:replay")
    page = signed_in(context, user, f"/webhooks/{made['id']}")
    row = page.get_by_role("table", name="Deliveries").locator("tbody tr").nth(45)
    press(row, f"Redeliver test {'delivery-45'[-8:]}")
    until_held(page, held, 1)
    expect(page.locator("#main [aria-busy]")).to_have_count(1)
    expect(row.locator("[aria-busy]")).to_be_visible()
    bad_gateway(held[0])
    expect(row.get_by_role("status")).to_contain_text("it is sent again")
    assert page.evaluate(IS_WHOLE)
    until_held(page, held, 2)
    refused(409)(held[1])

    expect(row.get_by_role("alert")).to_be_in_viewport()
    expect(page.get_by_role("alert")).to_have_text("Come back later.")
