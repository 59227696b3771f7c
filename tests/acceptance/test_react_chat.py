"""The React example in a real Chromium: one conversation on two tabs and a phone."""

import os
import re
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect

from arkloop.cli.dev.embedded_server import free_port
from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_settings import until_held
from tests.ai_sdk_chat import needs_front_ends
from tests.ai_sdk_pages import ROOT
from tests.caller import Caller, script
from tests.silencing_proxy import silencing_proxy
from tests.system import System
from tests.waiting import eventually

MODULES = ROOT / ".cache" / "react_chat" / "node_modules"

pytestmark = [
    *needs_front_ends,
    pytest.mark.browser,
    pytest.mark.skipif(
        not MODULES.exists() and os.environ.get("NEED_FRONT_ENDS") != "1",
        reason="scripts/install-front-ends has not run",
    ),
    needs_chromium,
]

EXAMPLE = ROOT / "examples" / "react-chat"
PHONE = {"width": 390, "height": 844}
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def page_url(
    system: System, user: Caller, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The example, built and served by its own backend, for a persona that asks before it acts."""
    folder = tmp_path_factory.mktemp("react_chat")
    esbuild = next((MODULES / "@esbuild").glob("*/bin/esbuild"))
    options = ["--bundle", "--minify", "--jsx=automatic", f"--outdir={folder}"]
    subprocess.run(
        [str(esbuild), "src/main.jsx", *options, "--log-level=warning"],
        cwd=EXAMPLE,
        env={**os.environ, "NODE_PATH": str(MODULES)},
        check=True,
    )
    fields = {"tools": ["calculator", "ask_user"], "require_approval": ["calculator"]}
    user.made("/v1/personas", {"key": "careful", "route_id": "scripted", **fields})
    (folder / "key").write_text(user.api_key()[1])
    port = free_port()
    origin = f"http://127.0.0.1:{port}"
    with system.one_more_web_server(ARKLOOP_CORS_ORIGINS=origin) as server:
        arguments = ["--port", str(port), "--service", server.url, "--persona", "careful"]
        backend = subprocess.Popen(
            [
                *(sys.executable, str(EXAMPLE / "server.py"), *arguments),
                *("--api-key-file", str(folder / "key"), "--dist", str(folder)),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert backend.stdout is not None
        assert f"{origin}/\n" == backend.stdout.readline()
        yield origin
        backend.kill()
        backend.communicate()


@pytest.fixture
def open_page(browser: Browser, page_url: str) -> Iterator[Open]:
    """Call it for a page with this test's conversation, each in a browser of its own."""
    chat_id = secrets.token_urlsafe(16)
    opened: list[BrowserContext] = []

    def open_(**options: object) -> Page:
        context = browser.new_context(**options)  # type: ignore[arg-type]  # Playwright's
        opened.append(context)
        page = context.new_page()
        page.goto(f"{page_url}/?chat={chat_id}")
        expect(page.get_by_label("Message")).to_be_visible()
        return page

    yield open_
    for context in opened:
        context.close()


@contextmanager
def without_money(user: Caller) -> Iterator[None]:
    """Leave the end user of the page no budget for new messages in the block."""

    def limit(**limits: float) -> None:
        of_page = {"end_user_id": "customer-1", **limits}
        user.put("/v1/budget/end-users", of_page)

    limit(max_cost_usd_per_month=0)
    try:
        yield
    finally:
        limit()


def say(page: Page, *steps: dict[str, object]) -> None:
    """Send a message for which the scripted model plays these steps."""
    page.get_by_label("Message", exact=True).fill(script(*steps))
    page.get_by_role("button", name="Send", exact=True).click()


def answers(page: Page) -> list[str]:
    return page.locator(".message.assistant").all_inner_texts()


def expect_answers(page: Page, *texts: str) -> None:
    """Wait until the assistant's messages contain these texts, one each."""
    expect(page.locator(".message.assistant")).to_have_text(
        [re.compile(re.escape(text)) for text in texts]
    )


#: A machine that runs three tests at once needs some seconds to start a browser's tab.
expect.set_options(timeout=30_000)

SLOW = {"say": "one two three four five six seven eight nine ten", "delay_ms": 250}


def test_two_tabs_and_a_phone_show_one_conversation(open_page: Open) -> None:
    """Messages that are sent while the agent is busy wait; a reload in the middle loses nothing."""
    tab, other, phone = open_page(), open_page(), open_page(viewport=PHONE, is_mobile=True)
    say(tab, SLOW | {"delay_ms": 1_500})  # the second message is to wait for it
    expect(other.locator(".message.assistant")).to_contain_text("one two")
    say(tab, {"say": "The second answer."})
    expect(tab.locator(".queued")).to_be_visible()
    other.reload()
    expect(other.locator(".message.assistant").first).to_contain_text("one two")

    for page in (tab, other, phone):
        expect_answers(page, str(SLOW["say"]), "The second answer.")
        assert 2 == page.locator(".message.user").count()
    assert answers(tab) == answers(other) == answers(phone)
    width = phone.evaluate("document.documentElement.scrollWidth")
    assert PHONE["width"] >= width


def test_messages_wait_at_the_service_and_not_in_the_tab(open_page: Open) -> None:
    """Every tab shows what waits, also after a reload; each message is answered in its turn."""
    tab, other = open_page(), open_page()
    say(tab, {"say": "one two"}, {"hang": 600_000})
    expect(tab.locator(".message.assistant")).to_contain_text("one two")
    for number in (2, 3):
        say(tab, {"say": f"Answer {number}."})
        # Until then it may be on its way, which a reload ends.
        expect(tab.get_by_text("Waits for the answer")).to_have_count(number - 1)
    for page in (tab, other):
        page.reload()
        expect(page.locator(".queued")).to_have_count(2)
        expect(page.locator(".message.assistant")).to_contain_text("one two")

    tab.get_by_role("button", name="Stop").click()

    for page in (tab, other):
        expect_answers(page, "one two", "Answer 2.", "Answer 3.")
        expect(page.locator(".queued")).to_have_count(0)
        assert 3 == page.locator(".message.user").count()


def test_an_approval_in_one_tab_is_seen_in_the_other(open_page: Open) -> None:
    """All pages ask; what one approves is done once, and all of them show it."""
    tab, other, phone = open_page(), open_page(), open_page(viewport=PHONE, is_mobile=True)
    say(tab, {"tool": "calculator", "args": {"expression": "6*7"}}, {"say": "It is done."})
    for page in (tab, other, phone):
        expect(page.get_by_role("button", name="Approve")).to_be_visible()

    other.get_by_role("button", name="Approve").click()

    for page in (tab, other, phone):
        expect_answers(page, "It is done.")
        expect(page.get_by_role("button", name="Approve")).to_have_count(0)
        expect(page.locator(".tool .state")).to_have_text("done")


def test_a_question_is_answered_in_the_page(open_page: Open) -> None:
    """The reply goes to the run, which continues with it."""
    page = open_page()
    say(page, {"tool": "ask_user", "args": {"question": "Which one?"}}, {"say": "Thanks."})
    page.get_by_label("Your answer").fill("The blue one")
    page.get_by_role("button", name="Answer").click()

    expect_answers(page, "Thanks.")
    expect(page.locator(".reply")).to_have_text("The blue one")


def test_stop_ends_the_run(open_page: Open, user: Caller) -> None:
    """The run is cancelled, its partial text stays, and the next message is answered."""
    page = open_page()
    say(page, {"count": 1000, "delay_ms": 50})
    expect(page.locator(".message.assistant")).to_contain_text("3:")
    page.get_by_role("button", name="Stop").click()

    eventually(lambda: [] == user.get("/v1/runs", status="running"))
    expect(page.get_by_text("Stopped")).to_be_visible()
    say(page, {"say": "Next."})
    expect(page.locator(".message.assistant").last).to_contain_text("Next.")


def test_stop_ends_a_message_that_has_not_arrived(open_page: Open) -> None:
    """No sync sends it: the person sends it again, or takes it back."""
    page, address = open_page(), "**/v1/ui/chat?*"
    for choice in ("Take back", "Send again"):
        page.route(address, lambda route: None, times=1)  # it hangs
        with page.expect_request(address):
            say(page, {"say": "You have sent it again."})
        page.get_by_role("button", name="Stop").click()
        expect(page.locator(".refused .failure")).to_have_text("Not sent: Stopped.")
        with page.expect_response("**/messages?limit=*"):  # of the next sync
            expect(page.locator(".message.user")).to_have_count(0)
        expect(page.locator(".refused")).to_have_count(1)
        page.get_by_role("button", name=choice).click()
        expect(page.locator(".refused")).to_have_count(0)

    expect_answers(page, "You have sent it again.")
    assert 1 == page.locator(".message.user").count()


def test_a_stop_that_was_lost_is_sent_later(open_page: Open, user: Caller) -> None:
    """The page says that the answer is not stopped yet, and stops it before it sends anything."""
    page = open_page()
    say(page, {"count": 1000, "delay_ms": 50})
    expect(page.locator(".message.assistant")).to_contain_text("3:")
    page.route("**/runs/*:cancel", lambda route: route.abort())
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("Not stopped yet")).to_be_visible()
    expect(page.get_by_text("No connection")).to_have_count(0)  # everything else arrives
    say(page, {"say": "Next."})
    assert 1 == len(user.get("/v1/runs", status="running"))
    page.unroute("**/runs/*:cancel")

    expect(page.get_by_text("Stopped", exact=True)).to_be_visible()
    expect(page.get_by_text("Not stopped yet")).to_have_count(0)
    expect(page.locator(".message.assistant").last).to_contain_text("Next.")
    ended = {"cancelled", "completed"}
    eventually(lambda: ended == {run["status"] for run in user.get("/v1/runs", limit=2)})


def test_a_stop_that_was_lost_does_not_stop_the_next_answer(open_page: Open, user: Caller) -> None:
    """The answer has ended by itself meanwhile, and the message that waited for it is answered."""
    page = open_page()
    say(page, SLOW | {"delay_ms": 800})
    expect(page.locator(".message.assistant")).to_contain_text("one two")
    say(page, {"say": "Here I am.", "delay_ms": 2_000})
    expect(page.get_by_text("Waits for the answer")).to_be_visible()
    page.context.set_offline(True)
    page.get_by_role("button", name="Stop").click()
    first = user.get("/v1/runs", status="running")[-1]["run_id"]
    assert "completed" == user.ended(first)["status"]
    page.context.set_offline(False)

    expect_answers(page, str(SLOW["say"]), "Here I am.")
    eventually(lambda: {"completed"} == {run["status"] for run in user.get("/v1/runs", limit=2)})


def test_a_late_stop_does_not_stop_the_next_answer(open_page: Open, user: Caller) -> None:
    """It names the run, which has ended by itself before."""
    page = open_page()
    say(page, SLOW)
    expect(page.locator(".message.assistant")).to_contain_text("one two")
    say(page, {"say": "Here I am.", "delay_ms": 2_000})
    expect(page.get_by_text("Waits for the answer")).to_be_visible()
    held: list[Route] = []
    page.route(re.compile("stop$|cancel$"), lambda route: held.append(route), times=1)
    page.get_by_role("button", name="Stop").click()
    user.until(user.get("/v1/runs", limit=1)[0]["run_id"], "phase", "executing")
    until_held(page, held, 1)
    held[0].continue_()

    expect_answers(page, str(SLOW["say"]), "Here I am.")
    eventually(lambda: {"completed"} == {run["status"] for run in user.get("/v1/runs", limit=2)})


def test_a_run_without_text_shows_why_it_ended(open_page: Open) -> None:
    """A failure and a stop are shown, also in another tab and after a reload; what follows them is
    answered in its place.
    """
    tab, other = open_page(), open_page()
    say(tab, {"error": "invalid_request"})
    for page in (tab, other):
        expect(page.get_by_text("The script says: invalid_request.")).to_be_visible()
    say(tab, {"hang": 600_000})
    expect(other.locator(".message.user")).to_have_count(2)
    tab.get_by_role("button", name="Stop").click()
    for page in (tab, other):
        expect_answers(page, "invalid_request", "Stopped")
    tab.reload()
    say(tab, {"say": "Next."})

    for page in (tab, other):
        expect_answers(page, "invalid_request", "Stopped", "Next.")
        kinds = page.locator(".message").evaluate_all("all => all.map((one) => one.classList[1])")
        assert ["user", "assistant"] * 3 == kinds


def test_a_refused_message_does_not_stop_the_page(open_page: Open, user: Caller) -> None:
    """The page shows why, and everything else continues; the person sends it again, or not."""
    page = open_page()
    say(page, SLOW)
    expect(page.locator(".message.assistant")).to_contain_text("one two")
    with without_money(user):
        for text in ("The second answer.", "Never mind."):
            say(page, {"say": text})
        expect(page.locator(".refused")).to_have_count(2)
        expect(page.locator(".refused .failure").first).to_contain_text("A budget or the credits")
        expect_answers(page, str(SLOW["say"]))
        expect(page.get_by_text("No connection")).to_have_count(0)
    page.get_by_role("button", name="Take back").last.click()
    page.get_by_role("button", name="Send again").click()

    expect_answers(page, str(SLOW["say"]), "The second answer.")
    expect(page.locator(".refused")).to_have_count(0)


def test_a_message_that_could_not_be_sent_is_sent_later(open_page: Open) -> None:
    """It stays on the page; those after it keep their order."""
    page = open_page()
    page.context.set_offline(True)
    for number in (1, 2):
        say(page, {"say": f"Answer {number}."})
        expect(page.get_by_text("No connection")).to_be_visible()
        expect(page.locator(".message.user")).to_have_count(number)
    page.context.set_offline(False)

    expect_answers(page, "Answer 1.", "Answer 2.")
    expect(page.locator(".queued")).to_have_count(0)
    assert 2 == page.locator(".message.user").count()


def test_a_message_that_is_refused_is_kept(open_page: Open, user: Caller) -> None:
    """The first message of a chat, too, is shown with the reason, and can be sent again."""
    page = open_page()
    with without_money(user):
        say(page, {"say": "Here I am."})
        expect(page.locator(".refused .failure")).to_contain_text("A budget or the credits")
        assert 0 == page.locator(".message.user").count()
    page.get_by_role("button", name="Send again").click()

    expect_answers(page, "Here I am.")
    expect(page.locator(".refused")).to_have_count(0)


def test_a_cut_network_loses_nothing(open_page: Open) -> None:
    """The page says that there is no connection. When there is one, it shows the whole answer, and
    what another page has sent meanwhile.
    """
    tab, phone = open_page(), open_page(viewport=PHONE, is_mobile=True)
    say(tab, SLOW)
    expect(phone.locator(".message.assistant")).to_contain_text("one two")
    phone.context.set_offline(True)
    expect(phone.get_by_text("No connection")).to_be_visible()
    say(tab, {"say": "The second answer."})
    expect_answers(tab, str(SLOW["say"]), "The second answer.")
    phone.context.set_offline(False)

    expect_answers(phone, str(SLOW["say"]), "The second answer.")
    expect(phone.get_by_text("No connection")).to_have_count(0)
    assert answers(tab) == answers(phone)


#: Gives the page another address of the service.
MOVE = """
const real = window.fetch;
window.fetch = async (address, options) => {
  const response = await real(address, options);
  return address === "/token" ? Response.json({ ...(await response.json()), url: "%s" }) : response;
};
"""


def test_connections_that_fall_silent_are_given_up(open_page: Open) -> None:
    """After 30 s: that of an answer, and that of a page which only looks whether there is one."""
    phone, idle, tab = open_page(), open_page(), open_page()
    address, _, _ = tab.url.partition("?")
    given = phone.evaluate("fetch('/token', { method: 'POST' }).then((one) => one.json())")
    with silencing_proxy(int(given["url"].rpartition(":")[2])) as proxy:
        for page, chat in ((idle, idle.url), (tab, f"{address}?chat={secrets.token_urlsafe(16)}")):
            page.add_init_script(MOVE % proxy.url)
            page.goto(chat)
        say(tab, SLOW)
        expect(tab.locator(".message.assistant")).to_contain_text("one two")
        proxy.silence()
        say(phone, {"say": "Here I am."})

        for page, text in ((tab, str(SLOW["say"])), (idle, "Here I am.")):
            expect(page.locator(".message.assistant")).to_contain_text(text, timeout=90_000)
