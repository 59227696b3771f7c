"""Images and files in the messages of chat completions."""

from dataclasses import replace

from arkloop.worker.contract.attachments import Attachment, TextPart
from arkloop.worker.contract.messages import (
    AssistantMessage,
    Message,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from arkloop.worker.providers.chat_parts import content_of, images_after, users_joined

PNG = Attachment(kind="image", file_id="1", name="a.png", media_type="image/png", data="AAAA")
PDF = Attachment(kind="file", file_id="2", name="a.pdf", media_type="application/pdf", data="BBBB")
PNG_URL = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def test_attachments_are_sent_as_the_api_takes_them() -> None:
    """Stored ones as data, images also by their URL."""
    assert [
        {"type": "text", "text": "Look"},
        PNG_URL,
        {
            "type": "file",
            "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,BBBB"},
        },
        {"type": "image_url", "image_url": {"url": "https://e.com/i"}},
    ] == content_of([TextPart("Look"), PNG, PDF, replace(PNG, url="https://e.com/i")], "auto")


def test_a_note_stands_for_a_file_by_its_url() -> None:
    """The other attachments are sent, and the thread can be continued."""
    by_url = replace(PDF, url="https://e.com/f")

    [note, image] = content_of([by_url, PNG], "auto")

    expected = {"type": "text", "text": f"[{by_url.label} omitted: it was not uploaded]"}
    assert (expected, "image_url") == (note, image["type"])


def test_images_of_results_follow_the_last_result() -> None:
    """Results must stand together after their calls, and can only be text."""
    calls = AssistantMessage("", (ToolCall("1", "camera", {}), ToolCall("2", "camera", {})))
    results = [ToolMessage("1", "camera", "one", (PNG,)), ToolMessage("2", "camera", "two", (PNG,))]
    messages: list[Message] = [UserMessage("Look"), calls, *results, AssistantMessage("Seen")]

    *before, images, last = images_after(messages, "auto")

    assert messages[:4] == before
    assert AssistantMessage("Seen") == last
    assert isinstance(images, dict)
    assert ("user", [PNG_URL, PNG_URL]) == (images["role"], images["content"][1:])


def test_results_without_images_are_followed_by_nothing() -> None:
    """Conversations without images are sent as before."""
    messages: list[Message] = [UserMessage("a"), ToolMessage("1", "clock", "noon")]

    assert messages == list(images_after(messages, "auto"))


def test_neighbouring_messages_of_the_user_are_one() -> None:
    """Chat templates that demand alternating roles refuse two; all other messages stay apart."""
    text, parts = {"role": "user", "content": "a"}, {"role": "user", "content": [PNG_URL]}
    result, said = {"role": "tool", "content": "1"}, {"role": "assistant", "content": "Yes"}

    joined = list(users_joined([text, text, said, text, parts, text, said, said, result, result]))

    parted = {"type": "text", "text": "a"}
    assert [
        {"role": "user", "content": "a\n\na"},
        said,
        {"role": "user", "content": [parted, PNG_URL, parted]},
        said,
        said,
        result,
        result,
    ] == joined
