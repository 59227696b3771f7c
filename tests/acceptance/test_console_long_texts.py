"""Long texts of models in the console, in a real Chromium: they do not keep the page busy."""

import pytest
from playwright.sync_api import BrowserContext, CDPSession, Locator, expect

from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_settings import go, press, signed_in
from tests.caller import Caller, data_of, script

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]
#: Of the processor: the page takes 0.1 to 0.3, and without the bounds of the lexer more than five.
MOST_SECONDS = 2


def busy_seconds(devtools: CDPSession) -> float:
    """Return the processor time of the page's main thread, which a busy machine leaves as it is."""
    metrics = devtools.send("Performance.getMetrics")["metrics"]
    return float(next(one["value"] for one in metrics if one["name"] == "TaskDuration"))


@pytest.mark.parametrize(
    ("piece", "repeat"),
    [
        pytest.param("*a_", 10_000, id="emphasis"),
        pytest.param("a\n-\n", 24_000, id="dashes"),
        pytest.param("!", 95_000, id="images"),
        pytest.param("> - a\nb\n", 12_000, id="quotes with a list"),
        pytest.param("> ```\nb\n", 12_000, id="quotes with code"),
        pytest.param("> - a\nb\n\t> c\n", 7_000, id="quotes with tabs"),
        pytest.param("> - a\n\u00a0b\n", 10_000, id="quotes with other spaces"),
        pytest.param("-" * 30_000 + " end", 1, id="a line of dashes that is none"),
    ],
)
def test_a_text_that_takes_long_to_parse_is_shown_as_it_is(
    context: BrowserContext, user: Caller, piece: str, repeat: int
) -> None:
    """Searches that read a text over and over end early; the page of the run stays in use."""
    run_id = user.run({"say": piece, "repeat": repeat})
    assert "completed" == user.ended(run_id)["status"]
    page = signed_in(context, user, "/keys")
    devtools = context.new_cdp_session(page)
    devtools.send("Performance.enable", {"timeDomain": "threadTicks"})
    before = busy_seconds(devtools)

    go(page, f"/runs/{run_id}")
    output = page.get_by_role("heading", name="Output").locator("xpath=..")
    expect(output).to_contain_text(piece.strip(), timeout=60_000)
    assert busy_seconds(devtools) - before < MOST_SECONDS


def test_a_long_ordinary_text_is_laid_out(context: BrowserContext, user: Caller) -> None:
    """Its tables, lists and emphasis are elements, however many there are."""
    rows = "| **cell** _one_ | **cell** `two` |\n" * 400
    items = "- **Bold** and _other_ text of an item\n" * 400
    prose = "**Lorem** ipsum _dolor_ sit `amet` " * 200
    quotes = "> an old line of a mail\nan answer to it\n" * 400
    changes = (
        "## Version 1.2.3\n- A change of the service that people notice\n- Another one\n" * 400
    )
    code = "```\n" + "> someFunction(1, 2)\n3.14159\n" * 500 + "```\n"
    table = f"| a | b |\n|---|---|\n{rows}"
    text = "\n\n".join((table, "Title\n---", items, prose, code, changes, quotes))
    run_id = user.run({"say": text})
    assert "completed" == user.ended(run_id)["status"]
    page = signed_in(context, user, f"/runs/{run_id}")

    markdown = page.locator(".markdown")
    expect(markdown.locator("td strong")).to_have_count(800)
    expect(markdown.locator("li em")).to_have_count(400)
    expect(markdown.locator("p em")).to_have_count(200)
    expect(markdown.locator("pre code")).to_have_count(1)
    expect(markdown.locator("li")).to_have_count(1_200)
    expect(markdown.locator("blockquote").first).to_be_visible()


def test_the_last_words_before_a_silence_are_laid_out(
    context: BrowserContext, user: Caller
) -> None:
    """They come while the page still pauses after the layout of the words before them."""
    thread_id = user.thread(
        script(
            {"say": "- **Bold** and _other_ text of an item\n", "repeat": 2_000},
            {"say": "\n\nThe last words."},
            {"hang": 600},
        )
    )
    page = signed_in(context, user, f"/threads/{thread_id}")
    run_id = user.start(thread_id, route_id="scripted")

    expect(page.get_by_text("The last words.", exact=True)).to_be_visible()
    user.cancel(run_id)


def copied(code: Locator) -> str:
    """Return what the clipboard has after the button of a block that copies it."""
    press(code, "Copy")
    expect(code.get_by_role("button", name="Copied")).to_be_visible()
    text: str = code.page.evaluate("navigator.clipboard.readText()")
    return text


def test_all_of_a_long_text_is_copied(context: BrowserContext, user: Caller) -> None:
    """A result of a tool and a request to a model are shown in part; the service has cut the first,
    which the page says.
    """
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    tool = {"name": "look", "description": "Look.", "parameters": {"type": "object"}}
    calls = ({"tool": "look", "args": {}}, {"say": "ok"})
    run_id = user.run(*calls, tools=[{**tool, "client": True}], route_id="scripted")
    user.until(run_id, "phase", "waiting")
    result = {"tool_call_id": "call_1_1", "output": "0123456789" * 10_000}
    assert user.http.post(f"/v1/runs/{run_id}/tool-results", json=[result]).is_success
    thread_id = user.ended(run_id)["thread_id"]
    [stored] = data_of(user.events(run_id), "tool.result")
    body = user.get(f"/v1/runs/{run_id}/prompts", number=2)[0]["body"]
    page = signed_in(context, user, f"/threads/{thread_id}")
    page.locator(".call-head").click()
    call = page.locator(".call-body")

    assert stored["output"] == copied(call.locator(".code", has_text="Result"))
    assert "Show all 65,536 characters" == call.get_by_role("button").last.inner_text()
    cut = "Truncated: the result contained 100,000 characters; the middle is not shown."
    expect(call.locator("p", has_text="characters")).to_have_text(cut)
    go(page, f"/runs/{run_id}")
    page.locator(".calls .fold").last.click()
    press(page, "Show the body as sent")
    assert body == copied(page.locator(".prompt .code"))
