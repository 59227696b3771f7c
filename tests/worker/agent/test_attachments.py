"""The attachments of a request."""

import base64
from typing import Any

from arkloop.worker.agent import attachments
from arkloop.worker.agent.attachments import attached
from arkloop.worker.contract.attachments import Attachment, TextPart
from arkloop.worker.contract.messages import AssistantMessage, Message, ToolMessage, UserMessage
from tests.worker.recorded_run import RecordedRun, request


def image(file_id: str = "1", **fields: Any) -> Attachment:
    values = {"name": f"{file_id}.png", "media_type": "image/png", "size": 3, **fields}
    return Attachment(kind="image", file_id=file_id, **values)


def asked(*parts: Attachment | TextPart) -> UserMessage:
    return UserMessage("described", parts)


def parts_sent(run: RecordedRun, *messages: Message) -> list[Any]:
    with attached(request(*messages), run) as sent:
        return [
            part
            for message in sent.messages
            if not isinstance(message, AssistantMessage)
            for part in message.parts
        ]


def test_a_request_without_attachments_is_sent_as_it_is() -> None:
    """Nothing is copied or loaded for it."""
    asks = request("Hello", AssistantMessage("Hi"))

    with attached(asks, RecordedRun()) as sent:
        assert asks is sent


def test_content_is_loaded_for_the_request_alone() -> None:
    """It is in base64 in what is sent, and not in the conversation, which is kept."""
    run, part = RecordedRun(), image()
    run.contents = {"1": b"abc"}

    [text, sent] = parts_sent(run, asked(TextPart("look"), part))

    assert TextPart("look") == text
    assert base64.b64encode(b"abc").decode() == sent.data
    assert part.data is None


def test_images_of_tools_are_loaded_too() -> None:
    """A result has parts like a message of a person."""
    run = RecordedRun()
    run.contents = {"1": b"abc"}

    [sent] = parts_sent(run, ToolMessage("call_1", "camera", "ok", (image(),)))

    assert "YWJj" == sent.data


def test_a_deleted_file_leaves_a_note() -> None:
    """The model reads that there was one, and which."""
    assert [TextPart("[image 1.png: the file was deleted]")] == parts_sent(
        RecordedRun(), asked(image())
    )


def test_text_files_are_sent_as_text() -> None:
    """Every model reads them."""
    run = RecordedRun()
    run.contents = {"1": "Grüße".encode()}
    file = Attachment(kind="file", file_id="1", name="a.txt", media_type="text/plain", size=7)

    assert [TextPart('<file name="a.txt">\nGrüße\n</file>', "1")] == parts_sent(run, asked(file))


def test_a_model_without_eyes_reads_a_note() -> None:
    """What its route does not accept is named instead; text files are text, and stay."""
    run = RecordedRun()
    run.contents = {"1": b"1", "2": b"text"}
    file = Attachment(kind="file", file_id="2", name="a.txt", media_type="text/plain", size=4)

    with attached(request(asked(image(), file)), run, accepts=()) as sent:
        [said] = sent.messages

    assert isinstance(said, UserMessage)
    assert [
        "[image 1.png omitted: you do not accept images]",
        '<file name="a.txt">\ntext\n</file>',
    ] == [part.text for part in said.parts if isinstance(part, TextPart)]


def test_a_url_is_left_to_the_vendor() -> None:
    """Nothing is fetched here."""
    part = Attachment(kind="image", url="https://example.com/a.png")

    assert [part] == parts_sent(RecordedRun(), asked(part))


def test_the_newest_are_sent_where_all_are_too_many() -> None:
    """Beyond 20 MiB of files, or 100 of them, the oldest are replaced by a note."""
    run = RecordedRun()
    half = attachments.MAX_BYTES // 2
    run.contents = {"1": b"1", "2": b"2", "3": b"3"}
    large = [asked(image(str(n), size=half)) for n in (1, 2, 3)]

    note, *sent = parts_sent(run, *large)

    assert "[image 1.png omitted: the conversation has too many attachments]" == note.text
    assert ["2", "3"] == [part.file_id for part in sent]
    many = parts_sent(run, *[asked(image()) for _ in range(attachments.MAX_ATTACHMENTS + 1)])
    assert [TextPart, Attachment, Attachment] == [type(part) for part in many][:3]
