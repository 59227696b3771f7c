"""Files that the console could not upload, in a real Chromium: no message goes without them."""

from datetime import datetime, timedelta
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Locator, Page, expect

from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_losses import CREATES, box, hold, lose, refused, unreachable
from tests.acceptance.test_console_settings import go, press, signed_in, until_held
from tests.acceptance.test_console_threads import UPLOADS, written
from tests.caller import Caller
from tests.clients import PASSWORD

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]


def attach(page: Page, folder: Path, *names: str) -> Locator:
    """Attach text files; returns the list of what is attached."""
    page.get_by_label("Files", exact=True).set_input_files(written(folder, *names))
    return attached(page)


def attached(page: Page) -> Locator:
    return page.get_by_role("list", name="Attached files").get_by_role("listitem")


def send(page: Page) -> Locator:
    return page.get_by_role("button", name="Send")


def test_a_message_waits_for_a_file_whose_upload_has_failed(
    context: BrowserContext, user: Caller, tmp_path: Path
) -> None:
    """Neither Enter nor *Send* sends it before the file is uploaded, with its key, or removed."""
    lose(context, UPLOADS, unreachable, None, refused(500))
    thread_id = user.thread()
    page = signed_in(context, user, f"/threads/{thread_id}")
    sent: list[str] = []
    page.on("request", lambda one: sent.append(one.url) if one.method == "POST" else None)
    keys: list[str] = []
    page.on("request", lambda one: keys.append(one.headers.get("idempotency-key", "")))
    box(page).fill("When is it?")
    files = attach(page, tmp_path, "notes.txt", "more.txt", "last.txt")
    expect(files.get_by_role("alert")).to_have_text(
        ["The service cannot be reached.", "Come back later."]
    )
    box(page).press("Enter")
    expect(send(page)).to_be_disabled()
    expect(box(page)).to_have_value("When is it?")
    assert 0 == len([url for url in sent if url.endswith("/runs")])

    with page.expect_response(UPLOADS):
        press(page, "Try again: notes.txt")
    expect(files.get_by_role("alert")).to_have_count(1)
    uploads = [key for key in keys if key]
    assert (4, 3) == (len(uploads), len({*uploads}))
    expect(send(page)).to_be_disabled()
    press(page, "Remove last.txt")
    expect(page.get_by_text("that were not uploaded")).to_have_count(0)
    with page.expect_request(CREATES) as request:
        send(page).click()

    parts = request.value.post_data_json["message"]["content"]
    assert ["text", "file", "file"] == [part["type"] for part in parts]
    assert ["notes.txt", "more.txt"] == [
        user.get(f"/v1/files/{part['file_id']}")["name"] for part in parts[1:]
    ]


def test_an_upload_that_a_session_has_ended_says_so(
    context: BrowserContext, user: Caller, tmp_path: Path
) -> None:
    """It is tried again once the person has signed in again."""
    page = signed_in(context, user, "/threads/new")
    context.clear_cookies()
    page.clock.set_fixed_time(datetime.now().astimezone() + timedelta(minutes=16))
    files = attach(page, tmp_path, "notes.txt")
    expect(files).to_contain_text("notes.txt Your session has ended. Sign in again.")
    page.get_by_role("dialog").get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in", exact=True).click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    press(page, "Try again: notes.txt")

    expect(files).to_have_text(["notes.txt"])
    expect(send(page)).to_be_enabled()


def test_a_file_that_was_not_uploaded_is_named_after_a_reload(
    context: BrowserContext, user: Caller, tmp_path: Path
) -> None:
    """Its content is gone with the page, and the message waits until the file is removed."""
    page = signed_in(context, user, f"/threads/{user.thread()}")
    box(page).fill("When is it?")
    held = hold(context, UPLOADS)
    attach(page, tmp_path, "notes.txt", "more.txt")
    until_held(page, held, 1)
    held[0].continue_()
    until_held(page, held, 2)
    page.reload()

    expect(attached(page)).to_have_text(["notes.txt", "more.txt was not uploaded"])
    expect(box(page)).to_have_value("When is it?")
    expect(send(page)).to_be_disabled()
    press(page, "Remove more.txt")
    with page.expect_request(CREATES) as request:
        send(page).click()
    parts = request.value.post_data_json["message"]["content"]
    assert ["text", "file"] == [part["type"] for part in parts]


def test_an_upload_goes_through_while_its_thread_is_left(
    context: BrowserContext, user: Caller, tmp_path: Path
) -> None:
    """The files that were uploaded meanwhile are attached on return, and the others still are."""
    thread = f"/threads/{user.thread()}"
    page = signed_in(context, user, thread)
    held = hold(context, UPLOADS)
    attach(page, tmp_path, "notes.txt", "more.txt", "last.txt")
    until_held(page, held, 1)
    go(page, "/threads")
    held[0].continue_()
    until_held(page, held, 2)
    go(page, thread)

    shown = ["notes.txt", "more.txt uploading …", "last.txt uploading …"]
    expect(attached(page)).to_have_text(shown)
    expect(send(page)).to_be_disabled()
    go(page, "/threads")
    refused(500)(held[1])
    until_held(page, held, 3)
    go(page, thread)
    held[2].continue_()
    shown = ["notes.txt", "more.txt Come back later.", "last.txt"]
    expect(attached(page).locator(".attached-name")).to_have_text(shown)
    press(page, "Try again: more.txt")
    until_held(page, held, 4)
    held[3].continue_()
    expect(attached(page)).to_have_text(["notes.txt", "more.txt", "last.txt"])
    keys = [route.request.headers["idempotency-key"] for route in held]
    assert (keys[1], 3) == (keys[3], len({*keys}))
    with page.expect_request(CREATES) as request:
        send(page).click()
    assert 3 == len(request.value.post_data_json["message"]["content"])


#: Writes cells as Excel does, with a picture of them, or the picture alone.
COPY = """async (hasText) => {
  const canvas = new OffscreenCanvas(40, 20)
  canvas.getContext("2d").fillRect(0, 0, 9, 9)
  const parts = { "image/png": await canvas.convertToBlob({ type: "image/png" }) }
  if (hasText) {
    parts["text/plain"] = new Blob(["SKU\\tQty\\nA-17\\t4"], { type: "text/plain" })
    const table = "<table><tr><td>SKU<td>Qty<tr><td>A-17<td>4</table>"
    parts["text/html"] = new Blob([table], { type: "text/html" })
  }
  await navigator.clipboard.write([new ClipboardItem(parts)])
}"""


@pytest.mark.parametrize("has_text", [True, False])
def test_cells_are_pasted_as_text_and_a_picture_alone_is_attached(
    context: BrowserContext, user: Caller, has_text: bool
) -> None:
    """Office puts a picture of what was copied beside its text; a screenshot has none."""
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = signed_in(context, user, "/threads/new")
    box(page).click()
    page.evaluate(COPY, has_text)
    page.keyboard.press("ControlOrMeta+V")

    if has_text:
        expect(box(page)).to_have_value("SKU\tQty\nA-17\t4")
    expect(attached(page)).to_have_text([] if has_text else ["image.png"])
    if not has_text:
        expect(box(page)).to_have_value("")


#: Pastes what a page cannot write to the clipboard; returns whether the browser is to insert text.
PASTE = """([texts, type]) => {
  const data = new DataTransfer()
  for (const [kind, text] of Object.entries(texts)) data.setData(kind, text)
  data.items.add(new File(["x"], "plan.bin", { type }))
  const options = { clipboardData: data, bubbles: true, cancelable: true }
  return document.querySelector(".composer textarea").dispatchEvent(
    new ClipboardEvent("paste", options))
}"""


@pytest.mark.parametrize(
    ("texts", "media_type", "is_text"),
    [
        pytest.param({"text/plain": "plan.bin"}, "image/png", False, id="Finder"),
        pytest.param({"text/html": "<img>"}, "image/png", False, id="a page's picture"),
        pytest.param({"text/plain": "A", "text/rtf": "{}"}, "image/png", True, id="Word"),
        pytest.param(
            {"text/plain": " ", "text/html": "<img>", "text/rtf": "{}"},
            "image/png",
            False,
            id="Word's picture",
        ),
        pytest.param({"text/plain": "A", "text/html": "A"}, "text/csv", False, id="a text file"),
    ],
)
def test_a_paste_is_text_where_a_picture_is_one_of_text(
    context: BrowserContext, user: Caller, texts: dict[str, str], media_type: str, is_text: bool
) -> None:
    """Names that file managers put beside files, and pictures without text, are not pasted."""
    page = signed_in(context, user, "/threads/new")
    expect(box(page)).to_be_visible()

    assert is_text == page.evaluate(PASTE, [texts, media_type])
    expect(attached(page)).to_have_count(0 if is_text else 1)
