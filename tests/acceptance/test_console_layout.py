"""The console in narrow windows of a real Chromium: nothing that people press lies outside."""

from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Locator, Page, expect

from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_settings import IS_WHOLE, go, press, signed_in, until
from tests.acceptance.test_files import upload
from tests.caller import Caller, script

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]

#: The newest words are in view; 120 px are near enough to follow them.
IS_AT_END = "box => box.scrollHeight - box.scrollTop - box.clientHeight < 120"


def assert_within(page: Page, buttons: Locator) -> None:
    """Assert that each of them is wholly in the window."""
    for button in buttons.all():
        box, size = button.bounding_box(), page.viewport_size
        assert box is not None
        assert size is not None
        assert 0 <= box["x"], button.inner_text()
        assert size["width"] >= box["x"] + box["width"], button.inner_text()
        assert size["height"] >= box["y"] + box["height"], button.inner_text()


def scroll_down(page: Page) -> None:
    """Turn the wheel over what is lowest in the window, until nothing moves any more."""
    size = page.viewport_size
    assert size is not None
    page.mouse.move(size["width"] - 60, size["height"] - 24)
    for _ in range(4):
        page.mouse.wheel(0, 2_000)
        page.wait_for_timeout(300)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Files with names like those of a phone's pictures."""
    made = [tmp_path / f"IMG_20261201_1015{number}.txt" for number in range(10, 26)]
    for file in made:
        file.write_text(file.name)
    return made


@pytest.mark.parametrize("address", ["/threads/new", "thread"])
@pytest.mark.parametrize("content", ["nothing", "files", "lines"])
@pytest.mark.parametrize(("width", "height"), [(640, 360), (844, 390), (390, 664)])
def test_a_message_can_be_sent_in_a_low_window(
    context: BrowserContext,
    user: Caller,
    files: list[Path],
    address: str,
    content: str,
    width: int,
    height: int,
) -> None:
    """*Send* is in the window, or is scrolled to, with many files, lines and open choices."""
    page = signed_in(context, user, "/keys")
    page.set_viewport_size({"width": width, "height": height})
    if address == "thread":
        part = {"type": "file", "file_id": upload(user, b"Hello", "hello.txt")}
        address = f"/threads/{user.thread([part] * 16)}"
    go(page, address)
    box, send = page.get_by_label("Message", exact=True), page.get_by_role("button", name="Send")
    expect(box).to_be_attached()
    if content == "files":
        page.get_by_label("Files", exact=True).set_input_files(files)
        expect(page.get_by_text("IMG_")).to_have_count(len(files))
        expect(page.get_by_text("uploading …")).to_have_count(0, timeout=60_000)
    if content == "lines":
        box.fill("\n".join(str(number) for number in range(12)))
    if content == "lines" and address != "/threads/new":
        press(page, "Change")
    scroll_down(page)

    assert_within(page, send)
    place = send.bounding_box()
    assert place is not None
    assert height <= place["y"] + place["height"] + 40, "there is nothing below it"


@pytest.mark.parametrize(("width", "height"), [(844, 390), (390, 664), (1280, 800)])
def test_the_newest_words_stay_in_a_low_window(
    context: BrowserContext, user: Caller, files: list[Path], width: int, height: int
) -> None:
    """Files that are attached, and the keyboard of a phone, leave some lines of the answer."""
    page = signed_in(context, user, "/keys")
    page.set_viewport_size({"width": width, "height": height})
    go(page, f"/threads/{user.thread()}")
    page.get_by_label("Message", exact=True).fill(script({"count": 600, "delay_ms": 10}))
    press(page, "Send")
    page.get_by_label("Files", exact=True).set_input_files(files)
    for low in (height, max(300, height - 330)):
        page.set_viewport_size({"width": width, "height": low})
        page.get_by_label("Message", exact=True).focus()
        lines = page.locator(".scroll").evaluate("box => box.scrollHeight")
        expect(page.locator(".turn.writing")).to_be_visible()
        until(page, f"document.querySelector('.scroll').scrollHeight > {lines + 100}")
        shown = page.locator(".scroll").bounding_box()
        assert shown is not None
        assert 100 <= shown["height"]
        assert low >= shown["y"] + 100
        assert page.locator(".scroll").evaluate(IS_AT_END)
    page.get_by_role("button", name="Stop").click()


#: The box shrinks after the page has scrolled, and before the browser says so.
SHRINK = """box => {
  box.scrollTop -= 1
  box.scrollTop = box.scrollHeight
  document.querySelector(".composer").style.paddingTop = "300px"
}"""


def test_the_newest_words_are_followed_while_the_composer_grows(
    context: BrowserContext, user: Caller
) -> None:
    """Room that something else takes does not count as scrolling away from the end."""
    page = signed_in(context, user, f"/threads/{user.thread()}")
    page.get_by_label("Message", exact=True).fill(script({"count": 900, "delay_ms": 10}))
    press(page, "Send")
    until(page, "document.querySelector('.scroll')?.scrollTop > 200")
    page.locator(".scroll").evaluate(SHRINK)
    lines = page.locator(".scroll").evaluate("box => box.scrollHeight")
    until(page, f"document.querySelector('.scroll').scrollHeight > {lines + 100}")

    assert page.locator(".scroll").evaluate(IS_AT_END)
    page.get_by_role("button", name="Stop").click()


@pytest.fixture
def long_thread(context: BrowserContext, user: Caller) -> Page:
    """A thread that nobody answers, at its end, with eight lines in the box to write in."""
    lines = "\n".join(f"line {number}" for number in range(60))
    page = signed_in(context, user, f"/threads/{user.thread(*[lines] * 6)}")
    expect(page.locator(".said")).to_have_count(6)
    until(page, f"({IS_AT_END})(document.querySelector('.scroll'))")
    page.wait_for_timeout(300)
    box = page.locator(".scroll")
    before = box.evaluate("box => box.clientHeight")
    page.get_by_label("Message", exact=True).fill("\n".join("abcdefgh"))
    until(page, f"document.querySelector('.scroll').clientHeight < {before - 120}")
    page.wait_for_timeout(300)
    return page


def test_the_newest_words_stay_in_view_while_a_message_grows(long_thread: Page) -> None:
    """The lines that people write leave the end where it was, and offer no way to it."""
    box = long_thread.locator(".scroll")
    assert box.evaluate("box => box.scrollHeight - box.scrollTop - box.clientHeight < 2")
    assert not long_thread.locator(".to-end.is-shown").count()


def test_people_scroll_up_after_a_message_grew(long_thread: Page) -> None:
    """The first turn of the wheel counts, and *Home* leads to the first message."""
    box = long_thread.locator(".scroll")
    place = box.bounding_box()
    assert place is not None
    long_thread.mouse.move(place["x"] + 100, place["y"] + 60)
    end = box.evaluate("box => box.scrollTop")
    long_thread.mouse.wheel(0, -600)
    long_thread.wait_for_timeout(700)
    assert end - 600 == pytest.approx(box.evaluate("box => box.scrollTop"), abs=2)
    expect(long_thread.get_by_role("button", name="Latest")).to_be_visible()
    long_thread.get_by_role("button", name="Latest").click()
    until(long_thread, f"({IS_AT_END})(document.querySelector('.scroll'))")
    long_thread.wait_for_timeout(300)
    box.evaluate("box => box.focus({preventScroll: true})")
    long_thread.keyboard.press("Home")

    until(long_thread, "document.querySelector('.scroll').scrollTop === 0")


def test_a_place_further_up_stays_while_a_message_shrinks(long_thread: Page) -> None:
    """The room that it returns moves nothing that is read."""
    box = long_thread.locator(".scroll")
    box.evaluate("box => { box.scrollTop = 900 }")
    expect(long_thread.get_by_role("button", name="Latest")).to_be_visible()
    long_thread.get_by_label("Message", exact=True).fill("")
    long_thread.wait_for_timeout(300)

    assert 900 == box.evaluate("box => box.scrollTop")


@pytest.mark.parametrize("width", [360, 761, 850, 950, 1200])
def test_a_busy_thread_has_its_buttons(context: BrowserContext, user: Caller, width: int) -> None:
    """*Stop* and *Send* are in the window beside the choice of when to send."""
    run_id = user.run({"hang": 60}, route_id="scripted")
    page = signed_in(context, user, "/keys")
    page.set_viewport_size({"width": width, "height": 740})
    page.goto(f"{user.url}/console#/threads/{user.get_run(run_id)['thread_id']}")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()

    assert_within(page, page.locator(".composer-foot").locator("button, select"))
    user.cancel(run_id)
    user.ended(run_id)
    expect(page.get_by_role("button", name="Stop")).to_have_count(0)
    assert_within(page, page.locator(".composer-foot button"))


@pytest.mark.parametrize(
    ("address", "name"), [("thread", "Threads"), ("/runs", "Runs"), ("/personas/own", "Personas")]
)
def test_the_navigation_of_a_phone_closes_at_a_click(
    context: BrowserContext, user: Caller, address: str, name: str
) -> None:
    """A link within the section that was open already closes it, too, or to the same page."""
    page = signed_in(context, user, "/keys")
    page.set_viewport_size({"width": 390, "height": 740})
    go(page, f"/threads/{user.thread()}" if address == "thread" else address)
    page.get_by_role("button", name="Open navigation").click()
    page.get_by_role("navigation").get_by_role("link", name=name, exact=True).click()

    expect(page.get_by_role("button", name="Open navigation")).to_be_visible()
    expect(page.locator(".scrim")).to_have_count(0)
    expect(page.locator("#main")).to_be_focused()


@pytest.mark.parametrize("address", ["thread", "inbox"])
def test_long_options_of_a_question_are_whole(
    context: BrowserContext, user: Caller, address: str
) -> None:
    """On a phone they are wrapped, with and without spaces."""
    options = ["Send it back " * 15, "x" * 200]
    run_id = user.run({"tool": "ask_user", "args": {"question": "How?", "options": options}})
    user.until(run_id, "phase", "waiting")
    page = signed_in(context, user, "/keys")
    page.set_viewport_size({"width": 360, "height": 740})
    thread = f"/threads/{user.get_run(run_id)['thread_id']}"
    page.goto(f"{user.url}/console#{thread if address == 'thread' else '/inbox'}")
    button = page.locator(".ask-actions button")
    expect(button.first).to_be_visible()

    for one in button.all():
        one.scroll_into_view_if_needed()
        box = one.bounding_box()
        assert box is not None
        assert 360 >= box["x"] + box["width"]
        assert one.evaluate("button => button.scrollWidth <= button.clientWidth")
    user.cancel(run_id)


def test_long_versions_of_a_persona_are_no_wider_than_a_phone(
    context: BrowserContext, user: Caller
) -> None:
    """A version has up to 64 characters, as a key has."""
    key, versions = "k" * 64, ["a" * 64, "b" * 64]
    for version in versions:
        user.made("/v1/personas", {"key": key, "version": version, "system_prompt": version})
    page = signed_in(context, user, "/keys")
    page.set_viewport_size({"width": 375, "height": 740})
    of_one = f"/personas/{key}"
    for address in ("/personas", of_one, f"{of_one}?version={versions[0]}&to={versions[1]}"):
        go(page, address)
        expect(page.locator("main").get_by_text(versions[1][:20]).first).to_be_attached()

        assert page.evaluate(IS_WHOLE), address


@pytest.mark.parametrize("width", [360, 640, 900])
def test_the_head_of_a_thread_is_whole(context: BrowserContext, user: Caller, width: int) -> None:
    """On a phone, or at 200 % zoom, its tags and its buttons are below the title."""
    thread = user.thread("Hello", title="A long title " * 8, end_user_id="customer-7")
    page = signed_in(context, user, "/keys")
    page.set_viewport_size({"width": width, "height": 740})
    go(page, f"/threads/{thread}")
    head = page.locator(".chat .head")
    expect(head.get_by_text("customer-7")).to_be_visible()
    expect(head.get_by_role("link", name="Runs")).to_be_visible()
    expect(head.get_by_role("button")).to_have_count(2)

    assert_within(page, head.locator("a:visible, button, h1, .tag"))
    for part in head.locator("h1, .tag").all():
        box = part.bounding_box()
        assert box is not None
        assert 60 < box["width"]
    back = head.get_by_role("link", name="Back").bounding_box() if width < 761 else None
    assert back is None or 34 == back["width"]
    press(head, "Rename")
    expect(page.get_by_role("dialog", name="Rename the thread")).to_be_visible()
