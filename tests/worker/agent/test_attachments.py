"""The attachments of a request."""

import base64
from collections.abc import Iterator
from typing import Any

import pytest

from arkloop.shared.events.types import RunSettingsDropped
from arkloop.worker.agent import attachments
from arkloop.worker.agent.attachments import attached
from arkloop.worker.agent.model_call import call_model
from arkloop.worker.contract.attachments import Attachment, TextPart
from arkloop.worker.contract.messages import (
    AssistantMessage,
    Chunk,
    Message,
    ModelRequest,
    ToolMessage,
    TurnEnd,
    UserMessage,
    attachments_of,
)
from arkloop.worker.contract.outcomes import ProviderError
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.providers.scripted_provider import ScriptedProvider
from tests.worker.recorded_run import RecordedRun, chain_of, request


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


class Choosy(ScriptedProvider):
    """Refuses requests with one of these files, or with more than `most`, which its refusals name;
    keeps the files of each request.
    """

    def __init__(self, *refused: str, most: int | None = None) -> None:
        super().__init__()
        self.refused = set(refused)
        self.most = most
        self.sent: list[list[str]] = []

    def stream(self, request: ModelRequest, stop: StopSignal) -> Iterator[Chunk]:
        parts = [part for message in request.messages for part in attachments_of(message)]
        self.sent.append([str(part.file_id) for part in parts])
        is_refused = self.refused & set(self.sent[-1])
        if is_refused or (self.most is not None and len(parts) > self.most):
            raise ProviderError(
                "invalid_request", "no", refuses_attachments=True, most_images=self.most
            )
        yield TurnEnd("stop")


def test_refused_attachments_are_left_out() -> None:
    """The attachments before the last question, then all; the run's later calls lack them too."""
    run, model = RecordedRun(), Choosy("1")
    run.contents = dict.fromkeys("1234", b"x")
    chain = chain_of(model)
    said: list[Message] = [asked(image("1")), AssistantMessage("Hm"), asked(image("2"))]

    def call() -> None:
        call_model(chain, lambda _: request(*said), run, run.stop)

    call()
    said.append(ToolMessage("call_1", "camera", "ok", (image("3"),)))
    call()
    model.refused = {"3"}
    call()
    said.append(asked(image("4")))
    call()

    assert [["1", "2"], ["2"], ["2", "3"], ["2", "3"], [], ["4"]] == model.sent
    assert [RunSettingsDropped("scripted", ["attachments"])] == run.events


def test_of_many_images_the_newest_are_sent_after_a_refusal() -> None:
    """Anthropic refuses large ones in requests with more than twenty; new ones have room."""
    run, model = RecordedRun(), Choosy("0")
    run.contents = {str(n): b"x" for n in range(22)}
    chain = chain_of(model)
    images = [image(str(n)) for n in range(21)]

    for said in (images, [*images, image("21")]):
        call_model(chain, lambda _, said=said: request(asked(*said)), run, run.stop)

    everything = [str(n) for n in range(22)]
    assert [everything[:21], everything[11:21], everything[11:]] == model.sent


@pytest.mark.parametrize(("count", "most"), [(11, 10), (3, 1), (3, 0)])
def test_a_model_gets_as_many_images_as_it_accepts(count: int, most: int) -> None:
    """The newest of one message, instead of none; each one more takes the place of the oldest."""
    run, model = RecordedRun(), Choosy(most=most)
    everything = [str(n) for n in range(count + 1)]
    run.contents = dict.fromkeys(everything, b"x")
    chain = chain_of(model)
    images = [image(name) for name in everything]

    for said in (images[:count], images):
        call_model(chain, lambda _, said=said: request(asked(*said)), run, run.stop)

    first, second = everything[:count], everything[count - most :]
    kept, new = first[count - most :], second[len(second) - most :]
    assert [first, kept, second, new] == model.sent


def test_a_refusal_of_fewer_images_than_its_maximum_leaves_out_more() -> None:
    """Its maximum is that of something else then: the attachments go as after other refusals."""
    run, model = RecordedRun(), Choosy("2", most=2)
    run.contents = dict.fromkeys("123", b"x")

    call_model(chain_of(model), lambda _: request(asked(*map(image, "123"))), run, run.stop)

    assert [["1", "2", "3"], ["2", "3"], []] == model.sent


def test_many_images_may_be_the_same_one() -> None:
    """None is older than the newest then: the attachments before the last question go."""
    run, model = RecordedRun(), Choosy("0")
    run.contents = {"0": b"x"}
    said: list[Message] = [
        message for _ in range(21) for message in (asked(image("0")), AssistantMessage("Hm"))
    ]
    said.append(asked())

    call_model(chain_of(model), lambda _: request(*said), run, run.stop)

    assert [["0"] * 21, []] == model.sent
