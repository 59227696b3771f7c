"""The text that a model reads of a result with resources."""

import base64
import json
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


PHOTO = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(30)).decode()
IMAGE = {"type": "image", "mimeType": "image/png", "data": PHOTO}
LINK = {"type": "resource_link", "uri": URI, "name": "n"}
TOTAL = '{"total": 42}'


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([IMAGE], f"[image 1]\n{TOTAL}"),
        ([LINK], f"[resource omitted: {URI}]\n{TOTAL}"),
        ([{"type": "text", "text": ""}, resource(text="")], f"[resource: {URI}]\n\n{TOTAL}"),
        ([{"type": "text", "text": ""}], TOTAL),
        ([{"type": "text", "text": "42"}, IMAGE], "42\n[image 1]"),
        ([resource(text="42")], f"[resource: {URI}]\n42"),
    ],
)
def test_structured_content_is_read_where_no_part_has_text(content: list[Any], text: str) -> None:
    """A note in place of an image or a link is no text; servers repeat the content in one."""
    result: dict[str, Any] = {"content": content, "structuredContent": {"total": 42}}

    results.reduce(result)

    assert text == result["content"][0]["text"]
    assert "structuredContent" not in result


NULLS = {"annotations": None, "_meta": None}
SOUND = {"type": "audio", "mimeType": "audio/wav", "data": "UklGRg=="}
BLOB = resource(blob="AAAA")
IN_CONTENT = '"[omitted: the content has it]"'


@pytest.mark.parametrize(
    ("content", "structured", "added"),
    [
        ([IMAGE], {**IMAGE, **NULLS}, ""),
        ([IMAGE], {"result": {**IMAGE, **NULLS}}, ""),
        ([IMAGE, SOUND], {"result": [{**IMAGE, **NULLS}, {**SOUND, **NULLS}]}, ""),
        ([LINK, LINK], {"result": [{**LINK, "size": None}, {**LINK, "size": None}]}, ""),
        ([BLOB], {**BLOB, **NULLS}, ""),
        ([IMAGE], {}, ""),
        ([IMAGE, SOUND], {"total": 1, "a": [PHOTO]}, f'{{"total": 1, "a": [{IN_CONTENT}]}}'),
        ([BLOB], {"a": "data:image/png;base64,AAAA"}, f'{{"a": {IN_CONTENT}}}'),
        (
            [LINK],
            {"result": [LINK, {"uri": "b"}]},
            f'{{"result": [{json.dumps(LINK)}, {{"uri": "b"}}]}}',
        ),
    ],
)
def test_structured_content_does_not_repeat_the_parts(
    content: list[Any], structured: dict[str, Any], added: str
) -> None:
    """A model does not read images as text: the official SDK for Python v1 writes them twice."""
    notes: dict[str, Any] = {"content": content}
    results.reduce(notes)
    result: dict[str, Any] = {"content": content, "structuredContent": structured}

    results.reduce(result)

    expected = "\n".join(filter(None, [notes["content"][0]["text"], added]))
    assert [{"type": "text", "text": expected}, *notes["content"][1:]] == result["content"]


def test_images_of_an_error_have_a_note() -> None:
    """A failure that the model reads is text, so that it reads that an image is missing."""
    result: dict[str, Any] = {"content": [{"type": "text", "text": "No."}, IMAGE], "isError": True}

    results.reduce(result)

    text = "No.\n[image omitted: image/png, about 39 bytes]"
    assert [{"type": "text", "text": text}] == result["content"]


def test_a_long_resource_is_cut_as_any_text() -> None:
    """The limit is that of the whole result."""
    result: dict[str, Any] = {"content": [resource(text="é" * results.MAX_TEXT_BYTES)]}

    results.reduce(result)

    text = result["content"][0]["text"]
    assert text.startswith(f"[resource: {URI}]\né")
    assert text.endswith("[truncated: the response is larger than 1 MiB]")
    assert len(text.encode()) <= 1024 * 1024
