"""The attachments of a request, loaded for as long as it is sent.

The newest are sent, as far as a vendor accepts them in one request; in place of every other, and
of a file that is gone, the model reads a note. Text files are sent as text, which every model
reads.
"""

import base64
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from arkloop.shared.catalog.model_routes import ATTACHMENTS
from arkloop.worker.contract.attachments import IMAGE, Attachment, Part, TextPart
from arkloop.worker.contract.context import Files
from arkloop.worker.contract.messages import (
    AssistantMessage,
    Message,
    ModelRequest,
    UserMessage,
    attachments_of,
)

#: Vendors refuse requests of more than 32 MB, in which base64 makes four bytes of three.
MAX_BYTES = 20 * 1024 * 1024
MAX_ATTACHMENTS = 100
#: How `run.settings_dropped` names attachments that a route's calls leave out.
DROPPED_ATTACHMENTS = "attachments"
#: In a request with more than 20 images Anthropic refuses each that has more than 2,000 pixels in a
#: row or column; see https://platform.claude.com/docs/en/build-with-claude/vision. Half of them
#: leaves room for new ones.
FEWER_IMAGES = 10

Notes = Mapping[int, str]


@contextmanager
def attached(
    request: ModelRequest,
    files: Files,
    accepts: Collection[str] = ATTACHMENTS,
    *,
    refused: Collection[Attachment] = (),
) -> Iterator[ModelRequest]:
    """Yield the request with the content of its attachments; waits, visibly, for their memory.

    Those of a kind that the model does not accept, text files excepted, and those with which it has
    `refused` a request are replaced by a note.
    """
    found = [part for message in request.messages for part in attachments_of(message)]
    if not found:
        yield request
        return
    accepted = [part for part in found if part.is_text or part.kind in accepts]
    sent = _newest([part for part in accepted if part not in refused])
    with files.loaded([part for part in sent if part.file_id is not None]) as contents:
        notes = {id(part): _note(part, sent, contents, accepts, refused) for part in found}
        messages = [_with_content(message, contents, notes) for message in request.messages]
        yield replace(request, messages=messages)


def droppable(
    messages: Sequence[Message], dropped: Collection[Attachment], most_images: int | None = None
) -> set[Attachment]:
    """Return what to leave out next of a refused request, of which any attachment may be the cause.

    These are all images but the newest, if there are more than `most_images`, which the refusal
    named, or many; then the attachments before the last question; then all others.
    """
    images = [
        part
        for message in messages
        for part in attachments_of(message)
        if part.kind == IMAGE and part not in dropped
    ]
    many, kept = 2 * FEWER_IMAGES, FEWER_IMAGES
    if most_images is not None and most_images < len(images):
        many = kept = most_images
    first = len(images) - kept
    # The same image may be among both.
    if len(images) > many and (older := {*images[:first]} - {*images[first:]}):
        return older
    questions = [i for i, message in enumerate(messages) if isinstance(message, UserMessage)]
    last = questions[-1] if questions else 0
    newest = _droppable(messages[last:], dropped)
    return (_droppable(messages[:last], dropped) - newest) or newest


def _droppable(messages: Iterable[Message], dropped: Collection[Attachment]) -> set[Attachment]:
    found = {part for message in messages for part in attachments_of(message) if not part.is_text}
    return found - set(dropped)


def _newest(found: list[Attachment]) -> list[Attachment]:
    sent: list[Attachment] = []
    left = MAX_BYTES
    for part in reversed(found[-MAX_ATTACHMENTS:]):
        left -= part.size
        if left < 0:
            break
        sent.append(part)
    return sent


def _note(
    part: Attachment,
    sent: list[Attachment],
    contents: Mapping[str, bytes],
    accepts: Collection[str],
    refused: Collection[Attachment],
) -> str:
    """Return what the model reads in place of the attachment; empty if it gets it."""
    if not part.is_text and part.kind not in accepts:
        return f"[{part.label} omitted: you do not accept {part.kind}s]"
    if part in refused:
        return f"[{part.label} omitted: a request with it was refused]"
    if not any(part is one for one in sent):
        return f"[{part.label} omitted: the conversation has too many attachments]"
    if part.file_id is not None and part.file_id not in contents:
        return f"[{part.label}: the file was deleted]"
    return ""


def _with_content(message: Message, contents: Mapping[str, bytes], notes: Notes) -> Message:
    if isinstance(message, AssistantMessage) or not message.parts:
        return message
    return replace(message, parts=tuple(_sent(part, contents, notes) for part in message.parts))


def _sent(part: Part, contents: Mapping[str, bytes], notes: Notes) -> Part:
    if isinstance(part, TextPart):
        return part
    if note := notes[id(part)]:
        return TextPart(note)
    if part.file_id is None:
        return part
    content = contents[part.file_id]
    if part.is_text:
        text = content.decode("utf-8", "replace")
        return TextPart(f'<file name="{part.name}">\n{text}\n</file>', part.file_id)
    return replace(part, data=base64.b64encode(content).decode())
