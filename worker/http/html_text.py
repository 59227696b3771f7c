"""The text of an HTML page, for a model: words, line breaks, links.

It passes over the page once and looks at no place twice, whatever the page is:
a page written in bad faith costs no more than another one.
"""

import re
from html import unescape

#: What nobody reads on a page, up to its closing tag.
_HIDDEN = ("noscript", "script", "style", "svg", "template", "textarea")
_CLOSING = {name: re.compile(f"</{name}", re.IGNORECASE) for name in _HIDDEN}
_BREAKS = frozenset(
    (
        *("address", "article", "aside", "blockquote", "br", "dd", "div", "dl", "dt", "fieldset"),
        *("figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "li"),
        *("main", "nav", "ol", "option", "p", "pre", "section", "table", "title", "tr", "ul"),
    )
)
_OPENING = {"h1": "# ", "h2": "## ", "h3": "### ", "h4": "#### ", "li": "- "}
_TAG = re.compile(r"<(?:(?P<comment>!--)|(?P<slash>/?)(?P<name>[a-zA-Z][a-zA-Z0-9]{0,20})|[/!?])")
_HREF = re.compile(
    r"""\shref\s{0,9}=\s{0,9}(?:"([^"]{0,999})"|'([^']{0,999})'|([^\s"'>]{1,999}))"""
)
_MAX_TAG_CHARACTERS = 2_000
#: Some tenths of a second; a page of a mebibyte has a third of them.
_MAX_TAGS = 100_000


def html_text(page: str) -> str:
    """Convert to text, with headings, lists and links as in Markdown; other tags are dropped."""
    text = _Text()
    at = 0
    for _ in range(_MAX_TAGS):
        tag = _TAG.search(page, at)
        if tag is None:
            text.add(page[at:])
            break
        text.add(page[at : tag.start()])
        name = (tag["name"] or "").lower()
        mark = "-->" if tag["comment"] else ">"
        end = page.find(mark, tag.end())
        if name and tag["slash"]:
            text.close(name)
        elif name in _HIDDEN:
            closing = _CLOSING[name].search(page, tag.end())
            end = page.find(mark, closing.end()) if closing else -1
        elif name:
            text.open(name, page[tag.end() : min(end, tag.end() + _MAX_TAG_CHARACTERS)])
        if end < 0:  # never closed: nothing after it is text
            break
        at = end + len(mark)
    return text.whole()


class _Text:
    """Lines of words, gathered piece by piece."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._line: list[str] = []
        self._links: list[str] = []
        self._is_preformatted = False

    def add(self, piece: str) -> None:
        """Add the text between two tags."""
        if not piece:
            return
        piece = unescape(piece)
        if self._is_preformatted:
            first, *others = piece.split("\n")
            self._line.append(first)
            for line in others:
                self._end_line()
                self._line.append(line)
            return
        words = " ".join(piece.split())
        if self._line and piece[0].isspace():
            self._line.append(" ")
        self._line.append(words)
        if words and piece[-1].isspace():
            self._line.append(" ")

    def open(self, name: str, attributes: str) -> None:
        if name in _BREAKS:
            self._end_line()
            self._line.extend(_OPENING.get(name, ""))
        elif name in ("td", "th"):
            self._line.append(" | " if self._line else "")
        elif name == "a":
            href = _HREF.search(attributes)
            link = unescape(href[1] or href[2] or href[3] or "").strip() if href else ""
            if link.lower().startswith(("#", "data:", "javascript:")):
                link = ""
            self._links.append(link)
            self._line.append("[" if link else "")
        self._is_preformatted = self._is_preformatted or name == "pre"

    def close(self, name: str) -> None:
        if name in _BREAKS:
            self._end_line()
            self._is_preformatted = self._is_preformatted and name != "pre"
        elif name == "a" and self._links:
            link = self._links.pop()
            if link:
                self._line.append(f"]({link})")

    def whole(self) -> str:
        self._end_line()
        return "\n".join(self._lines)

    def _end_line(self) -> None:
        line = "".join(self._line)
        line = line.rstrip() if self._is_preformatted else " ".join(line.split())
        if line and line not in ("-", "#", "##", "###", "####"):
            self._lines.append(line)
        self._line = []
