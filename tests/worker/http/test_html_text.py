"""The text of a page, and what a page may cost."""

import pytest

from arkloop.worker.http.html_text import html_text
from tests.processor_time import is_within

PAGE = """<!DOCTYPE html>
<html><head><title>A &amp; B</title><style>p { color: red }</style>
<script>if (a < b) x("</p>")</script>
</head><body><!-- <p>not this</p> --><h1>Head
line</h1><p>one  <b>two</b>
three&nbsp;<a class="x" href="/q?a=1&amp;b=2">link</a>, <a href='#x'>no link</a><br>
1 < 2<3 <unknown>?
<UL><LI>a<li>b</UL><pre>
x = 1
  y = 2</pre><table><tr><th>n<th>m<tr><td>1<td>2</table><noscript>none</noscript> end <p"""


def test_a_page_becomes_what_one_reads_on_it() -> None:
    """Headings, lists, links, tables, code; no scripts, no styles, no comments."""
    assert [
        "A & B",
        "# Head line",
        "one two three [link](/q?a=1&b=2), no link",
        "1 < 2<3 ?",
        "- a",
        "- b",
        "x = 1",
        "  y = 2",
        "n | m",
        "1 | 2",
        "end",
    ] == html_text(PAGE).split("\n")


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("", ""),
        ("plain", "plain"),
        ("<", "<"),
        ("a<b", "a"),
        ("</", ""),
        ("<p>a</p", "a"),
        ("<script>a</script>b", "b"),
        ("<script>a</SCRIPT >b", "b"),
        ("<script>a", ""),
        ("a<!--b", "a"),
        ("<!-->a-->b", "b"),
        ("</a></a>x", "x"),
        ("<a href=javascript:x>y</a>", "y"),
        ("<a href=/x>y", "[y"),
        ("<p>&lt;script&gt;", "<script>"),
        ("<p>&#0;&#xD800;&bogus;", "\ufffd\ufffd&bogus;"),
    ],
)
def test_a_page_that_is_not_well_made_is_read_all_the_same(page: str, text: str) -> None:
    """A malformed page is read without an error."""
    assert text == html_text(page)


@pytest.mark.parametrize(
    "piece",
    [
        *(
            "<",
            "<a>",
            "<a href=x>",
            '<a href="',
            "<!--",
            "<script>",
            "<script></script>",
            "&",
            "&#",
        ),
        *(" ", "<pre>\n", "<li>x", "</a>", "<a ", "<p\n", "&amp;", "<a href = ", "<!", "<style"),
    ],
)
def test_no_page_takes_long(piece: str) -> None:
    """A mebibyte of anything: the time grows with its length, and has a bound."""
    page = piece * (1_048_576 // len(piece))
    assert is_within(1, lambda: html_text(page))
