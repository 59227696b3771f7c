"""The console's settings in a real Chromium: an administrator's story, and hostile names."""

import os
import sys
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Request, Route, expect
from standardwebhooks import Webhook

from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console import AXE, FORBIDDEN, PHONE, violations
from tests.caller import Caller, client
from tests.clients import PASSWORD
from tests.system import System
from tests.tool_receiver import Reply, ToolReceiver
from tests.waiting import eventually

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]
#: Nothing of the page is wider than its frame.
IS_WHOLE = """(main => main.scrollWidth <= main.clientWidth
  && document.documentElement.scrollWidth <= innerWidth)(document.querySelector("main"))"""
HOSTILE = ["<img src=x onerror=alert(1)>", "invoice \u202egnp.exe", "Long name " * 19 + "of 200!"]


@pytest.fixture
def page(context: BrowserContext, user: Caller) -> Page:
    return signed_in(context, user, "/keys")


@pytest.fixture(scope="module")
def receiver() -> Iterator[ToolReceiver]:
    with ToolReceiver(lambda _: Reply()) as made:
        yield made


def signed_in(context: BrowserContext, user: Caller, address: str) -> Page:
    """Open an address of the console, and sign in with the password."""
    page = context.new_page()
    page.goto(f"{user.url}/console#{address}")
    page.get_by_label("User name or email").fill(user.login)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in", exact=True).click()
    expect(page.get_by_role("navigation")).to_be_visible()
    return page


def go(page: Page, address: str) -> None:
    page.evaluate("address => location.hash = address", address)


def press(within: Page | Locator, name: str) -> None:
    within.get_by_role("button", name=name, exact=True).click()


def until_held(page: Page, held: list[Route], count: int) -> None:
    """Wait for this number of requests: one is seen a moment before it comes to be held."""
    end = time.monotonic() + 60
    while len(held) < count:
        assert time.monotonic() < end, f"{len(held)} of {count} requests came"
        page.wait_for_timeout(20)


def until(page: Page, expression: str) -> None:
    """Wait until it holds; the page's policy does not let Playwright ask for it again by itself."""
    eventually(lambda: bool(page.evaluate(expression)))


def row(page: Page, text: str) -> Locator:
    return page.get_by_role("row").filter(has_text=text)


def test_a_key_is_shown_once_and_revoked(page: Page, user: Caller) -> None:
    """A wrong field is named at the field; the key works until it is revoked."""
    press(page, "Create key")
    form = page.get_by_role("dialog")
    form.get_by_label("Name").fill("Billing")
    form.get_by_label("Limit the cost of its runs").check()
    form.get_by_label("USD per run").fill("-1")
    press(form, "Create key")
    expect(form.get_by_label("USD per run")).to_be_focused()
    expect(form.get_by_role("alert")).to_contain_text("0")
    form.get_by_label("USD per run").fill("0.25")
    press(form, "Create key")
    key = page.get_by_label("API key", exact=True).inner_text()
    press(page, "Done")

    expect(row(page, "Billing")).to_contain_text("$0.25 / run")
    assert 200 == client(user.url, key).get("/v1/threads").status_code
    page.reload()
    expect(row(page, "Billing")).to_be_visible()
    expect(page.get_by_text(key)).to_have_count(0)
    press(row(page, "Billing"), "Revoke Billing")
    press(page.get_by_role("dialog"), "Revoke key")
    expect(row(page, "Billing")).to_contain_text("revoked")
    [listed] = [one for one in user.get("/v1/api-keys") if one["name"] == "Billing"]
    assert listed["revoked_at"] is not None


def test_an_invitation_is_accepted_and_the_member_administered(
    page: Page, browser: Browser, user: Caller
) -> None:
    """The link opens in another browser; the new member may not change anything, then leaves."""
    go(page, "/members")
    press(page, "Invite")
    page.get_by_role("dialog").get_by_label("Name").fill("Bob")
    press(page.get_by_role("dialog"), "Create invitation")
    link = page.get_by_label("Invitation link", exact=True).inner_text()
    press(page, "Done")
    expect(page.get_by_role("table", name="Open invitations")).to_contain_text("Bob")

    other = browser.new_page()
    other.goto(link)
    login = f"bob-{user.login}"
    other.get_by_label("User name").fill(user.login)
    other.get_by_label("Email").fill(f"{login}@example.com")
    other.get_by_label("Password").fill(PASSWORD)
    press(other, "Create account and join")
    expect(other.get_by_role("alert")).to_contain_text("in use")
    other.get_by_label("User name").fill(login)
    press(other, "Create account and join")
    expect(other.get_by_role("navigation")).to_be_visible()
    go(other, "/members")
    expect(row(other, login)).to_contain_text("(you)")
    expect(other.get_by_role("button", name="Invite")).to_have_count(0)

    page.reload()
    page.get_by_label(f"Role of {login}").select_option("admin")
    press(page.get_by_role("dialog"), "Change role")
    expect(page.get_by_role("dialog")).to_have_count(0)
    roles = {one["login"]: one["role"] for one in user.get(f"/v1/orgs/{user.org_id}/members")}
    assert "admin" == roles[login]
    press(page, f"Remove {login}")
    press(page.get_by_role("dialog"), "Remove member")
    expect(row(page, login)).to_have_count(0)
    other.context.close()


def test_a_log_in_is_ended(page: Page, user: Caller) -> None:
    """Another log-in is ended; this browser's own is marked."""
    go(page, "/sessions")
    rows = page.get_by_role("table", name="Log-ins").get_by_role("row")
    expect(rows.filter(has_text="This browser")).to_have_count(1)
    before = len(user.get("/v1/auth/sessions")["items"])
    client(user.url).post("/v1/auth/login", json={"login": user.login, "password": PASSWORD})
    page.reload()
    expect(rows).to_have_count(1 + before + 1)
    page.get_by_role("button", name="End", exact=True).first.click()
    press(page.get_by_role("dialog"), "End log-in")
    expect(rows).to_have_count(1 + before)


def test_a_second_version_of_a_persona_and_its_difference(page: Page, user: Caller) -> None:
    """The form begins with the newest version; what has changed is shown line by line."""
    user.made("/v1/personas", {"key": "finder", "system_prompt": "Find it.\n\nBe brief."})
    go(page, "/personas/finder")
    page.get_by_role("link", name="New version").click()
    page.get_by_label("Instructions").fill("Find it.\n\nBe brief.\nCite your sources.")
    page.get_by_label("Tools", exact=True).fill("calculator\nno_such_tool")
    page.get_by_label("Approved by").select_option("org")
    press(page, "Publish")
    expect(page.get_by_role("alert")).to_contain_text("no_such_tool")
    page.get_by_label("Tools", exact=True).fill("calculator")
    press(page, "Publish")

    expect(page.get_by_role("heading", name="Changes from version 1 to 2")).to_be_visible()
    prompt = page.get_by_role("region", name="Changes of system_prompt")
    expect(prompt.locator(".added")).to_have_text(["+added: Cite your sources."])
    expect(prompt.locator(".removed")).to_have_count(0)
    expect(page.get_by_role("region", name="Changes of tools")).to_contain_text("calculator")
    assert ["calculator"] == user.get("/v1/personas/finder@2")["tools"]
    assert 32 == user.get("/v1/personas/finder@2")["max_steps"]
    assert "org" == user.get("/v1/personas/finder@2")["approved_by"]


def test_a_webhook_is_added_tested_and_delivered_again(
    page: Page, user: Caller, receiver: ToolReceiver
) -> None:
    """The secret is shown once; a delivery shows its attempts and the last response."""
    receiver.answer = lambda _: Reply(status=500)
    go(page, "/webhooks")
    press(page, "Add endpoint")
    form = page.get_by_role("dialog")
    form.get_by_label("Address").fill("ftp://shop.example.com")
    press(form, "Add endpoint")
    expect(form.get_by_label("Address")).to_have_attribute("aria-invalid", "true")
    form.get_by_label("Address").fill(receiver.url)
    press(form, "Add endpoint")
    secret = page.get_by_label("Signing secret", exact=True).inner_text()
    press(page, "Done")
    press(page, "Send test")
    expect(row(page, "webhook.test")).to_contain_text("500")

    receiver.answer = lambda _: Reply()
    press(row(page, "webhook.test"), "webhook.test")
    expect(page.get_by_role("dialog")).to_contain_text("Message id")
    press(page.get_by_role("dialog"), "Close")
    row(page, "webhook.test").get_by_role("button", name="Redeliver").click()
    expect(row(page, "webhook.test")).to_contain_text("delivered")
    sent = receiver.received[-1]
    Webhook(secret).verify(sent.body, dict(sent.headers))


def test_a_provider_and_what_a_member_may_not_do(
    page: Page, context: BrowserContext, user: Caller, system: System
) -> None:
    """A model becomes the default route; a member sees no settings of the org, and reads why."""
    go(page, "/providers")
    press(page, "Add provider")
    form = page.get_by_role("dialog")
    form.get_by_label("Name").fill("Ours")
    form.get_by_label("Address").fill("http://127.0.0.1:9/v1")
    form.get_by_label("Models").fill("small\nlarge")
    press(form, "Add provider")
    press(row(page, "small"), "Make default: small")
    expect(page.get_by_role("button", name="Unset default: small")).to_be_visible()
    routes = {one["model"]: one["is_default"] for one in user.get("/v1/routes")}
    assert (True, False) == (routes["small"], routes["large"])
    go(page, "/audit?action=llm_model.changed")
    expect(row(page, "llm_model.changed")).to_have_count(1)
    page.close()

    context.clear_cookies()
    member = signed_in(context, system.colleague(user), "/audit")
    expect(member.get_by_text("requires the permission admin")).to_be_visible()
    names = member.get_by_role("navigation").get_by_role("link")
    expect(names.filter(has_text="API keys")).to_have_count(1)
    for name in ("Audit log", "Webhooks", "Tools", "MCP servers", "Models"):
        expect(names.filter(has_text=name)).to_have_count(0)
    go(member, "/personas")
    expect(member.get_by_role("link", name="assistant", exact=True)).to_be_visible()
    expect(member.get_by_role("link", name="New persona")).to_have_count(0)


def test_saving_a_model_sets_only_what_was_entered(page: Page, user: Caller) -> None:
    """Its context and API follow its name and its provider, until somebody sets them."""
    models = [{"model": "gpt-4o-mini"}]
    body = {"name": "Derived", "kind": "openai", "models": models}
    provider = user.made("/v1/llm-providers", body)
    path = f"/v1/llm-providers/{provider['id']}"

    def save(name: str, **fields: str) -> dict[str, Any]:
        press(row(page, name), f"Edit {name}")
        form = page.get_by_role("dialog")
        form.get_by_text("Limits and other fields").click()
        for label, value in fields.items():
            form.get_by_label(label, exact=True).fill(value)
        press(form, "Save")
        expect(form).to_have_count(0)
        [model] = user.get(path)["models"]
        return dict(model)

    go(page, "/providers")
    of_old = save("gpt-4o-mini", **{"Priority as a fallback": "5"})
    of_new = save("gpt-4o-mini", Model="gpt-4.1")
    assert (5, 5) == (of_old["priority"], of_new["priority"])
    assert (128_000, 1_000_000) == (of_old["context_tokens"], of_new["context_tokens"])
    # The number that the library has for the name before, but typed: it counts, and is kept.
    typed = save("gpt-4.1", Model="fine-tuned", **{"Context, tokens": "1000000"})
    kept = save("fine-tuned", **{"Requests per minute": "9"})
    assert (1_000_000, 1_000_000) == (typed["context_tokens"], kept["context_tokens"])

    assert "responses" == user.get(path)["models"][0]["api"]
    patched = user.http.patch(path, json={"base_url": "http://127.0.0.1:9/v1"})
    assert "chat" == patched.json()["models"][0]["api"]
    assert 200 == user.http.patch(path, json={"kind": "anthropic"}).status_code


@pytest.fixture(scope="module")
def addresses(user: Caller, receiver: ToolReceiver) -> dict[str, str]:
    """Pages with hostile names, by name."""
    for version, name in enumerate(HOSTILE):
        user.api_key(name=name)
        user.made(f"/v1/orgs/{user.org_id}/invitations", {"name": name, "role": "member"})
        user.made("/v1/personas", {"key": "hostile", "system_prompt": f"{version}\n{name}"})
        hook = user.made(
            "/v1/webhook-endpoints", {"url": f"{receiver.url}/{'x' * 150}", "description": name}
        )["id"]
        user.made(f"/v1/webhook-endpoints/{hook}:test")
        user.made(
            "/v1/tools",
            {
                "name": f"{'t' * 63}{version}",
                "description": name,
                "url": f"{receiver.url}/{version}",
            },
        )
        if name.isprintable():
            models = [{"model": name}]
            user.made(
                "/v1/llm-providers",
                {"name": name, "kind": "openai", "base_url": receiver.url, "models": models},
            )
    command = [str(Path(sys.executable).with_name("mcp-server-time"))]
    server = user.made(
        "/v1/mcp-configs", {"name": "clock", "transport": "stdio", "command": command}
    )["id"]
    user.put("/v1/budget", {"max_cost_usd_per_month": 100})
    return {
        "keys": "/keys", "members": "/members", "sessions": "/sessions", "personas": "/personas",
        "persona": "/personas/hostile", "versions": "/personas/hostile?version=3&to=2",
        "new version": "/personas/plain?publish=1", "webhooks": "/webhooks",
        "webhook": f"/webhooks/{hook}", "models": "/providers", "tools": "/tools", "mcp": "/mcp",
        "mcp server": f"/mcp/{server}", "limits": "/limits", "audit": "/audit",
    }  # fmt: skip


@pytest.mark.front_ends
@pytest.mark.skipif(
    not AXE.exists() and os.environ.get("NEED_FRONT_ENDS") != "1",
    reason="scripts/install-front-ends has not run",
)
def test_every_page_is_accessible_with_hostile_names(
    context: BrowserContext, user: Caller, addresses: dict[str, str]
) -> None:
    """axe finds nothing in light and dark; names stay text, and no page is wider than a phone."""
    context.add_init_script(AXE.read_text())
    page = signed_in(context, user, "/keys")
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    found: dict[str, Any] = {}
    for name, address in addresses.items():
        go(page, address)
        expect(page.locator("main h1").first).to_be_visible()
        expect(page.locator(".loading")).to_have_count(0)
        found[name] = violations(page)
        assert page.evaluate(IS_WHOLE), name
        page.set_viewport_size(PHONE)
        assert page.evaluate(IS_WHOLE), f"{name} on a phone"
        page.set_viewport_size({"width": 1280, "height": 800})
        assert [] == page.evaluate(FORBIDDEN), name
        assert "\u202e" not in page.locator("main").inner_text(), name
        assert [] == page.evaluate("violations"), name
    assert [] == dialogs
    assert {} == {name: what for name, what in found.items() if what}


def test_reports_are_read_one_after_the_other(page: Page) -> None:
    """An organization has one report at a time; several would wait, and may be refused."""
    running: set[str] = set()
    most: list[int] = []

    def begin(request: Request) -> None:
        if "/me/usage" in request.url:
            running.add(request.url)
            most.append(len(running))

    page.on("request", begin)
    page.on("response", lambda response: running.discard(response.url))
    go(page, "/usage")
    expect(page.get_by_role("heading", name="By end user")).to_be_visible()

    assert {1} == {*most}
    assert 4 <= len(most)  # more where a busy service lets one of them wait


def test_a_report_that_has_to_wait_is_repeated_alone(page: Page) -> None:
    """What was read before it stays, and the page says that it waits."""
    asked: list[str] = []

    def refuse_first(route: Route) -> None:
        name = route.request.url.split("/me/")[1].split("?")[0]
        asked.append(name)
        if name != "usage/by-model" or asked.count(name) > 1:
            route.continue_()
            return
        error = {"code": "rate_limit.exceeded", "message": "Later.", "details": {"limit": "org"}}
        route.fulfill(status=429, json=error, headers={"Retry-After": "8"})

    page.route("**/v1/me/usage**", refuse_first)
    go(page, "/usage")
    expect(page.get_by_text("have to wait for 8 s")).to_be_visible()
    expect(page.get_by_role("heading", name="By day")).to_be_visible()
    expect(page.get_by_role("heading", name="By end user")).to_be_visible()
    expect(page.get_by_text("have to wait")).to_have_count(0)
    expect(page.locator(".loading")).to_have_count(0)

    assert 2 <= asked.count("usage/by-model")
    # A busy service lets others wait, too, which are repeated in their place.
    once = [name for name, _ in groupby(asked)]
    assert ["usage", "usage/daily", "usage/by-model", "usage/by-end-user"] == once


def test_a_day_of_the_usage_shows_its_numbers(page: Page) -> None:
    """The line above the columns has cost, runs and tokens of the day that is pointed at."""
    go(page, "/usage")
    page.locator(".chart .hit").first.hover()

    expect(page.locator(".chart-at")).to_contain_text("0 runs · 0 tokens")
