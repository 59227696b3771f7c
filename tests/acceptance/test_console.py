"""The console in a real Chromium: stories of the people who use it, over lost networks."""

import os
import re
from collections.abc import Callable

import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect

from arkloop.cli.dev.embedded_server import free_port
from tests.acceptance.test_browser import needs_chromium
from tests.ai_sdk_pages import MODULES
from tests.caller import Caller, script
from tests.clients import PASSWORD
from tests.hostile_texts import ALL, FOREIGN
from tests.identity_provider import CLIENT_ID, CLIENT_SECRET, IdentityProvider
from tests.system import System
from tests.waiting import eventually

AXE = MODULES / "axe-core" / "axe.min.js"
pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]
#: WCAG 2.2 AA, and what axe advises beyond it.
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
PHONE = {"width": 390, "height": 844}
SLOW = {"say": "one two three four five six seven eight nine ten", "delay_ms": 250}
Open = Callable[..., Page]
expect.set_options(timeout=20_000)


@pytest.fixture(scope="module")
def careful(user: Caller) -> str:
    """A persona that asks before it calls the calculator."""
    fields = {"tools": ["calculator", "ask_user"], "require_approval": ["calculator"]}
    user.made("/v1/personas", {"key": "careful", "route_id": "scripted", **fields})
    return "careful"


@pytest.fixture
def sign_in(context: BrowserContext, user: Caller) -> Open:
    """Call it for a page at an address of the console, signed in with the password."""

    def open_(address: str = "/threads") -> Page:
        page = context.new_page()
        page.goto(f"{user.url}/console#{address}")
        name = page.get_by_label("User name or email")
        expect(name.or_(page.get_by_role("navigation"))).to_be_visible()
        if name.is_visible():
            name.fill(user.login)
            page.get_by_label("Password").fill(PASSWORD)
            page.get_by_role("button", name="Sign in", exact=True).click()
        expect(page.get_by_role("navigation")).to_be_visible()
        return page

    return open_


def say(page: Page, *steps: dict[str, object]) -> None:
    """Send a message for which the scripted model plays these steps."""
    page.get_by_label("Message", exact=True).fill(script(*steps))
    page.get_by_role("button", name="Send").click()


def answers(page: Page) -> list[str]:
    """Return the texts of the runs, without what is below them."""
    return page.locator(".run .markdown").all_inner_texts()


def thread_of(page: Page) -> str:
    page.wait_for_url(re.compile("#/threads/[0-9a-f]"))
    return page.url.rpartition("/")[2]


def test_a_conversation_over_reload_and_lost_network(sign_in: Open, user: Caller) -> None:
    """Nothing is lost or doubled, and what is sent without a network is sent once."""
    page = sign_in("/threads/new")
    page.get_by_label("Route").select_option("scripted")
    say(page, SLOW)
    thread_id = thread_of(page)
    expect(page.locator(".run")).to_contain_text("one two")
    page.reload()
    expect(page.locator(".run")).to_contain_text("three")
    page.context.set_offline(True)
    expect(page.get_by_text("No connection")).to_be_visible()
    say(page, {"say": "The second answer."})
    expect(page.get_by_text("it is sent again")).to_be_visible()
    page.context.set_offline(False)

    expect(page.locator(".run .markdown")).to_have_text([str(SLOW["say"]), "The second answer."])
    expect(page.get_by_text("No connection")).to_have_count(0)
    assert 2 == page.locator(".said").count()
    assert 4 == len(user.kept(thread_id))


def test_messages_while_busy_and_stop(sign_in: Open, user: Caller, careful: str) -> None:
    """What is sent meanwhile waits, in every tab; a stop keeps the text, then the next starts."""
    run_id = user.run({"count": 2_000, "delay_ms": 50}, route_id="scripted")
    address = f"/threads/{user.get_run(run_id)['thread_id']}"
    tab, other = sign_in(address), sign_in(address)
    expect(tab.locator(".run")).to_contain_text("2:")
    say(tab, {"say": "Next."})
    for page in (tab, other):
        expect(page.get_by_text("Waits for the answer before")).to_be_visible()
    other.get_by_role("button", name="Stop").click()

    for page in (tab, other):
        expect(page.locator(".run").last).to_contain_text("Next.")
        expect(page.get_by_text("Cancelled")).to_be_visible()
    tab.get_by_role("button", name="Retry").click()
    expect(other.locator(".run")).to_have_count(2)
    expect(other.locator(".run").last).to_contain_text("Next.")
    assert "cancelled" == user.get_run(run_id)["status"]


def test_an_approval_in_one_tab_is_seen_in_the_other(
    sign_in: Open, user: Caller, careful: str
) -> None:
    """The inbox and the thread ask; edited arguments are those of the call, and both show it."""
    call = {"tool": "calculator", "args": {"expression": "6*7"}}
    run_id = user.run(call, {"say": "It is done."}, persona_id=careful)
    thread, inbox = sign_in(f"/threads/{user.get_run(run_id)['thread_id']}"), sign_in("/inbox")
    item = inbox.locator(".inbox-item", has_text=run_id[-8:])
    expect(item).to_contain_text("6*7")
    expect(thread.get_by_text("Approve the call of")).to_be_visible()
    item.get_by_role("button", name="Edit").click()
    item.get_by_label("Arguments, as JSON").fill('{"expression": "6*')
    item.get_by_role("button", name="Call with these arguments").click()
    expect(item.get_by_role("alert")).to_contain_text("not valid JSON")
    item.get_by_label("Arguments, as JSON").fill('{"expression": "6*9"}')
    item.get_by_role("button", name="Call with these arguments").click()

    expect(item).to_have_count(0)
    expect(thread.locator(".run")).to_contain_text("It is done.")
    expect(thread.get_by_text("Approve the call of")).to_have_count(0)
    thread.locator(".call-head").click()
    expect(thread.locator(".call-body")).to_contain_text("54")


def test_nobody_approves_what_is_not_shown(sign_in: Open, user: Caller, careful: str) -> None:
    """The inbox has no arguments over 8 KiB: there the call can be denied, in the run approved."""
    call = {"tool": "calculator", "args": {"expression": "1+" * 5_000 + "1"}}
    run_id = user.run(call, {"say": "It is done."}, persona_id=careful)
    thread, inbox = sign_in(f"/threads/{user.get_run(run_id)['thread_id']}"), sign_in("/inbox")
    item = inbox.locator(".inbox-item", has_text=run_id[-8:])

    expect(item).to_contain_text("open the run to see them")
    expect(item.get_by_role("button", name="Approve")).to_be_disabled()
    expect(item.get_by_role("button", name="Deny")).to_be_enabled()
    thread.get_by_role("button", name="Approve").click()
    expect(item).to_have_count(0)


def test_a_denial_and_an_answer(sign_in: Open, user: Caller, careful: str) -> None:
    """A denied call is not made, and the model reads the reason; a question has its reply."""
    call = {"tool": "calculator", "args": {"expression": "6*7"}}
    ask = {"tool": "ask_user", "args": {"question": "Which one?", "options": ["Red", "Blue"]}}
    run_id = user.run(call, ask, {"say": "Thanks."}, persona_id=careful)
    page = sign_in(f"/threads/{user.get_run(run_id)['thread_id']}")
    page.get_by_role("button", name="Deny").click()
    page.get_by_label("Reason").fill("Not today")
    page.get_by_role("button", name="Deny the call").click()
    page.get_by_role("button", name="Blue", exact=True).click()

    expect(page.locator(".run")).to_contain_text("Thanks.")
    expect(page.locator(".reply")).to_have_text(["Not today", "Blue"])


def test_many_tabs_keep_one_login(sign_in: Open, user: Caller) -> None:
    """Tabs that reload at once never use a refresh token twice; signing out ends all of them."""
    tabs = [sign_in() for _ in range(3)]
    for _ in range(3):
        for tab in tabs:
            tab.evaluate("document.body.id = 'old'; setTimeout(() => location.reload(), 20)")
        for tab in tabs:
            expect(tab.locator("#old")).to_have_count(0)  # a click there would be cut off
            expect(tab.get_by_role("navigation")).to_be_visible()
    tabs[0].get_by_role("button", name="Sign out").click()

    for tab in tabs:
        expect(tab.get_by_role("heading", name="Sign in to Arkloop Runs")).to_be_visible()


def test_a_log_in_to_another_org_is_that_of_all_tabs(
    sign_in: Open, user: Caller, system: System
) -> None:
    """All tabs have one cookie: none shows an org while its requests go to another."""
    tab = sign_in()
    expect(tab.get_by_role("navigation")).to_contain_text("owner ·")
    other = system.caller()
    token = other.made(f"/v1/orgs/{other.org_id}/invitations", {"name": "x", "role": "member"})
    body = {"login": user.login, "password": PASSWORD, "invitation": token["token"]}
    assert tab.context.request.post(f"{user.url}/v1/auth/login", data=body).ok
    later = sign_in()

    for page in (later, tab):
        expect(page.get_by_role("navigation")).to_contain_text("member ·")


def test_an_api_key_signs_in_and_an_ended_session_asks_again(
    context: BrowserContext, sign_in: Open, user: Caller
) -> None:
    """A key survives a reload and is in no cookie; a page whose login ends keeps what was typed."""
    key_id, key = user.api_key()
    page = context.new_page()
    page.goto(f"{user.url}/console")
    page.get_by_role("button", name="Sign in with an API key").click()
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Sign in", exact=True).click()
    expect(page.get_by_role("navigation")).to_be_visible()
    page.reload()
    expect(page.get_by_text("API key ·")).to_be_visible()
    assert [] == context.cookies()
    user.http.delete(f"/v1/api-keys/{key_id}")
    page.close()

    page = sign_in("/threads/new")
    page.get_by_label("Message", exact=True).fill("A draft")
    context.clear_cookies()
    sessions = user.get("/v1/auth/sessions")["items"]
    for session in sessions:
        if not session["is_current"]:
            user.http.delete(f"/v1/auth/sessions/{session['id']}")
    eventually(lambda: _asks_again(page))
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in", exact=True).click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.get_by_label("Message", exact=True)).to_have_value("A draft")


def test_an_identity_provider_signs_in(context: BrowserContext, system: System) -> None:
    """The link of an org leads to its provider and back into the console; a refusal is shown."""
    owner, port = system.caller(), free_port()
    origin = f"http://127.0.0.1:{port}"
    with (
        IdentityProvider() as provider,
        system.one_more_web_server(ARKLOOP_PORT=str(port), ARKLOOP_PUBLIC_URL=origin),
    ):

        def come_back(route: Route) -> None:
            query = provider.authorize(route.request.url)
            address = f"{origin}/v1/auth/oidc/callback?{query}"
            route.fulfill(status=302, headers={"Location": address})

        context.route(f"{provider.url}/**", come_back)
        body = {"issuer": provider.url, "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}
        put = owner.at(origin).http.put
        address = f"/v1/orgs/{owner.org_id}/identity-provider"
        assert 200 == put(address, json=body).status_code
        page = context.new_page()
        page.goto(f"{origin}/console#/sign-in?org={owner.org_id}")
        page.get_by_role("button", name="Continue").click()
        expect(page.get_by_role("status")).to_contain_text("does not let you in")
        assert "error" not in page.url

        assert 200 == put(address, json={**body, "email_domains": [provider.domain]}).status_code
        page.get_by_role("button", name="Sign in with your identity provider").click()
        page.get_by_role("button", name="Continue").click()
        expect(page.get_by_role("heading", name="Threads", exact=True)).to_be_visible()


def _asks_again(page: Page) -> bool:
    """Make the page send a request; return whether it asks for the password."""
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    return page.get_by_role("dialog", name="Your session has ended").is_visible()


@pytest.fixture(scope="module")
def hostile(user: Caller, careful: str) -> dict[str, str]:
    """A thread and runs, each of whose texts is hostile; returns addresses of pages by name."""
    everything = "\n\n".join(ALL)
    short = ALL[2]
    tools = [
        {"name": "look", "description": "Look.", "parameters": {"type": "object"}, "client": True}
    ]
    run_id = user.made(
        "/v1/runs",
        {
            "thread": {"title": f"{short} \u202egnp", "end_user_id": short},
            "message": script(
                {"think": everything},
                {"say": everything},
                {"tool": "look", "args": {"a": everything, short: short}},
                {"say": everything},
            ),
            "route_id": "scripted",
            "metadata": {"x": short},
            "tools": tools,
        },
    )["run_id"]
    user.until(run_id, "phase", "waiting")
    [call] = user.get_run(run_id)["pending_input"]["calls"]
    result = {"tool_call_id": call["tool_call_id"], "output": everything, "is_error": True}
    user.http.post(f"/v1/runs/{run_id}/tool-results", json=[result])
    thread_id = user.ended(run_id)["thread_id"]
    user.ended(user.start(thread_id, message=everything, route_id="scripted"))
    failed = user.start(
        thread_id, message='{"script": [{"<img src=x onerror=alert(1)>": 1}]}', route_id="scripted"
    )
    user.ended(failed)
    asking = user.start(
        thread_id,
        persona_id=careful,
        message=script({"tool": "ask_user", "args": {"question": everything, "options": ALL[:5]}}),
    )
    user.until(asking, "phase", "waiting")
    return {
        "thread": f"/threads/{thread_id}", "run": f"/runs/{run_id}", "failed": f"/runs/{failed}",
        "asking": f"/runs/{asking}", "inbox": "/inbox", "runs": "/runs", "usage": "/usage?key=x",
    }  # fmt: skip


def test_hostile_texts_are_text(
    context: BrowserContext, sign_in: Open, user: Caller, hostile: dict[str, str]
) -> None:
    """No dialog, no request elsewhere, nothing that the policy had to refuse, on any page."""
    dialogs: list[str] = []
    foreign: list[str] = []
    context.on(
        "request",
        lambda r: None if r.url.startswith((user.url, "data:")) else foreign.append(r.url),
    )
    page = sign_in()
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    for name, address in hostile.items():
        page.goto(f"{user.url}/console#{address}")
        expect(page.locator("main")).to_contain_text("onerror")
        for button in page.locator(".call-head, .fold, .event").all()[:40]:
            button.click()
        assert [] == page.evaluate("violations"), name
        assert [] == page.evaluate(FORBIDDEN), name
    links = page.locator("main a[target]")
    page.goto(f"{user.url}/console#{hostile['thread']}")
    expect(links.first).to_be_attached()
    assert {"noopener noreferrer nofollow"} == set(links.evaluate_all("all => all.map(a => a.rel)"))
    assert any(FOREIGN in url for url in links.evaluate_all("all => all.map(a => a.href)"))
    assert ([], []) == (dialogs, foreign)


#: What no text may become: elements that load or execute, handlers, addresses of other kinds.
FORBIDDEN = """[...document.querySelectorAll("main *")].filter((element) =>
  element.matches("img, iframe, script, object, embed, link, style, base, meta, video, audio")
  || element.matches("image, use, template, form[action]")
  || [...element.attributes].some(({name}) => name.startsWith("on"))
  || (element.tagName === "A" && !/^(https?|mailto):/.test(element.href))
).map((element) => element.outerHTML)"""


@pytest.mark.front_ends
@pytest.mark.skipif(
    not AXE.exists() and os.environ.get("NEED_FRONT_ENDS") != "1",
    reason="scripts/install-front-ends has not run",
)
def test_every_page_is_accessible(
    context: BrowserContext, sign_in: Open, user: Caller, hostile: dict[str, str]
) -> None:
    """axe finds nothing, in light and dark; on a phone nothing is wider than it, or cut off."""
    context.add_init_script(AXE.read_text())
    page = context.new_page()
    page.goto(f"{user.url}/console")
    expect(page.get_by_label("Password")).to_be_visible()
    found = {"sign in": violations(page)}
    page.close()
    page = sign_in()
    for name, address in {"threads": "/threads", "new": "/threads/new", **hostile}.items():
        page.goto(f"{user.url}/console#{address}")
        expect(page.locator("main h1").first).to_be_visible()
        expect(page.locator(".loading")).to_have_count(0)
        found[name] = violations(page)
        page.set_viewport_size(PHONE)
        eventually(lambda: page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"])
        assert [] == page.evaluate(CUT_OFF), name
        page.set_viewport_size({"width": 1280, "height": 800})
    assert {name: [] for name in found} == found


#: Numbers on the axes of charts that begin to the left of their chart.
CUT_OFF = """[...document.querySelectorAll("main svg text.tick")].filter((text) =>
  text.getBoundingClientRect().left < text.ownerSVGElement.getBoundingClientRect().left
).map((text) => text.textContent)"""


def violations(page: Page) -> list[str]:
    """Return what axe finds: all in the light theme, and in the dark one what colours change."""
    found = []
    contrast = {"type": "rule", "values": ["color-contrast"]}
    page.emulate_media(reduced_motion="reduce")
    for theme, rules in (("light", RULES), ("dark", contrast)):
        # By the page's own choice, which is made at once: emulated media come when they come.
        page.evaluate("theme => { document.documentElement.dataset.theme = theme }", theme)
        result = page.evaluate(
            "rules => axe.run({runOnly: rules, resultTypes: ['violations']})", rules
        )
        found += [
            f"{theme}: {violation['id']}: {node['html'][:200]} {node['failureSummary'][:200]}"
            for violation in result["violations"]
            for node in violation["nodes"][:3]
        ]
    return found
