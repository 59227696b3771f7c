"""The console in a real Chromium with texts in Hebrew and Arabic, which are read from the right."""

import pytest
from playwright.sync_api import BrowserContext, Locator, Page, expect

from tests.acceptance.test_browser import needs_chromium
from tests.acceptance.test_console_losses import say
from tests.acceptance.test_console_settings import press, signed_in
from tests.caller import Caller, script

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]
HEBREW = "הגרסה החדשה של PostgreSQL מהירה יותר מ-MySQL."
ARABIC = "استخدم Python ثم شغّل الأمر `-k` الآن."
ENGLISH = "Install Docker, then Redis."
#: Returns where each of these words begins on the screen, from the left.
LEFTS = """(element, words) => words.map((word) => {
  const nodes = document.createTreeWalker(element, NodeFilter.SHOW_TEXT)
  while (nodes.nextNode()) {
    const at = nodes.currentNode.data.indexOf(word)
    if (at < 0) continue
    const range = document.createRange()
    range.setStart(nodes.currentNode, at)
    range.setEnd(nodes.currentNode, at + word.length)
    return range.getBoundingClientRect().left
  }
})"""


def order(element: Locator, *words: str) -> list[str]:
    """Return the words as they stand on the screen, from the left."""
    lefts = element.evaluate(LEFTS, list(words))
    return [word for _, word in sorted(zip(lefts, words, strict=True))]


def starts_at_the_right(element: Locator, word: str) -> bool:
    """Return whether a text begins in the right half of its box."""
    [left] = element.evaluate(LEFTS, [word])
    box = element.bounding_box()
    assert box is not None
    return bool(left > box["x"] + box["width"] / 2)


@pytest.fixture
def thread(context: BrowserContext, user: Caller) -> Page:
    return signed_in(context, user, f"/threads/{user.thread()}")


def test_an_answer_has_the_order_of_its_language(thread: Page) -> None:
    """Each paragraph, item, heading and cell has its own; code is read from the left."""
    table = f"| {HEBREW} | {ENGLISH} |\n| --- | --- |\n| {HEBREW} | {ENGLISH} |"
    code = f"```\n{HEBREW}\n```"
    blocks = [f"## {HEBREW}", HEBREW, ARABIC, ENGLISH, f"- {HEBREW}\n- {ENGLISH}", table, code]
    say(thread, script({"say": "\n\n".join(blocks)}))
    expect(thread.locator(".run .markdown table")).to_be_visible()
    answer = thread.locator(".run .markdown")
    paragraphs, items = answer.locator("> p"), answer.locator("li")

    words = ("הגרסה", "PostgreSQL", "MySQL")
    of_hebrew = (answer.locator(".heading"), paragraphs.nth(0), items.nth(0))
    cells = (answer.locator("th").first, answer.locator("td").first)
    for element in (*of_hebrew, *cells):
        assert [*reversed(words)] == order(element, *words)
    for element in of_hebrew:
        assert starts_at_the_right(element, "הגרסה")
    assert ["k", "Python", "استخدم"] == order(paragraphs.nth(1), "استخدم", "Python", "k")
    assert ["-", "k"] == order(paragraphs.nth(1), "k", "-")
    for element in (paragraphs.nth(2), items.nth(1), answer.locator("td").nth(1)):
        assert ["Install", "Docker", "Redis"] == order(element, "Redis", "Docker", "Install")
        assert not starts_at_the_right(element, "Install")
    assert ["PostgreSQL", "MySQL"] == order(answer.locator("pre"), "MySQL", "PostgreSQL")


DIRECTION = "element => getComputedStyle(element).direction"


def test_lists_and_quotations_are_read_from_the_side_of_their_language(thread: Page) -> None:
    """Their markers stand where their texts begin, and code within them is read from the left."""
    of_hebrew = f"- {HEBREW}\n\n  ```\n  pip -k\n  ```\n\n1. {HEBREW}\n\n> {HEBREW}"
    of_english = f"- {ENGLISH}\n\n1. {ENGLISH}\n\n> {ENGLISH}"
    say(thread, script({"say": f"{of_hebrew}\n\n---\n\n{of_english}\n\n---\n\n> - {HEBREW}"}))
    answer = thread.locator(".run .markdown")
    expect(thread.get_by_role("button", name="Retry")).to_be_visible()  # the answer is drawn anew
    expect(answer.locator("blockquote")).to_have_count(3)
    blocks, items = answer.locator("> :is(ul, ol, blockquote)"), answer.locator("li")

    directions = ["rtl"] * 3 + ["ltr"] * 3 + ["rtl"]
    assert directions == [block.evaluate(DIRECTION) for block in blocks.all()]
    assert ["rtl", "rtl", "ltr", "ltr", "rtl"] == [one.evaluate(DIRECTION) for one in items.all()]
    assert "ltr" == answer.locator("pre").evaluate(DIRECTION)
    quotation = answer.locator("blockquote").first
    assert "3px" == quotation.evaluate("element => getComputedStyle(element).borderRightWidth")
    assert "0px" == quotation.evaluate("element => getComputedStyle(element).borderLeftWidth")
    item = items.first
    box, list_box = item.bounding_box(), blocks.first.bounding_box()
    assert box is not None
    assert list_box is not None
    assert list_box["x"] + list_box["width"] >= box["x"] + box["width"] + 20, "room of the marker"


def test_what_people_write_has_the_order_of_its_language(thread: Page) -> None:
    """A message has it in the box, and when it was sent."""
    box = thread.get_by_label("Message", exact=True)
    box.fill(HEBREW)
    assert "plaintext" == box.evaluate("box => getComputedStyle(box).unicodeBidi")
    press(thread, "Send")

    said = thread.locator(".said-text")
    expect(thread.get_by_text("Sending …")).to_have_count(0)
    expect(said).to_have_count(1)
    assert ["MySQL", "PostgreSQL", "הגרסה"] == order(said, "הגרסה", "PostgreSQL", "MySQL")


@pytest.mark.parametrize("kind", ["reasoning", "long text"])
def test_other_texts_of_a_model_have_the_order_of_their_language(thread: Page, kind: str) -> None:
    """Its reasoning is no Markdown, nor is an answer that is too long to be laid out."""
    if kind == "reasoning":
        say(thread, script({"think": HEBREW}, {"say": "Done."}))
        press(thread, "Reasoning")
        text = thread.locator(".folded-text")
    else:
        say(thread, script({"say": f"{HEBREW}\n\n", "repeat": 2_500}))
        text = thread.locator(".run .long-text")
    expect(text).to_contain_text("MySQL")

    assert ["MySQL", "PostgreSQL", "הגרסה"] == order(text, "הגרסה", "PostgreSQL", "MySQL")
