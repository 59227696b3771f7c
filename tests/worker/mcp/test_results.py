"""The text that a model reads of a result with resources."""

from typing import Any

import pytest

from arkloop.worker.mcp import results

URI = "file:///notes.txt"


def resource(**fields: Any) -> dict[str, Any]:
    return {"type": "resource", "resource": {"uri": URI, **fields}}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([resource(text="Buy tea.", mimeType="text/plain")], f"[resource: {URI}]\nBuy tea."),
        ([resource(text="")], f"[resource: {URI}]\n"),
        (
            [{"type": "text", "text": "Found:"}, resource(text="a"), resource(text="b")],
            f"Found:\n[resource: {URI}]\na\n[resource: {URI}]\nb",
        ),
        ([resource(blob="AAAA")], f"[resource omitted: {URI}]"),
        ([resource(text=3)], f"[resource omitted: {URI}]"),
        ([{"type": "resource_link", "uri": URI, "name": "n"}], f"[resource omitted: {URI}]"),
    ],
)
def test_the_text_of_an_embedded_resource_is_read(content: list[Any], text: str) -> None:
    """It may be the whole result; a link and other content have a note in their place."""
    result = {"content": content}

    results.reduce(result)

    assert [{"type": "text", "text": text}] == result["content"]


def test_a_long_resource_is_cut_as_any_text() -> None:
    """The limit is that of the whole result."""
    result: dict[str, Any] = {"content": [resource(text="é" * results.MAX_TEXT_BYTES)]}

    results.reduce(result)

    text = result["content"][0]["text"]
    assert text.startswith(f"[resource: {URI}]\né")
    assert text.endswith("[truncated: the response is larger than 1 MiB]")
    assert len(text.encode()) <= 1024 * 1024
