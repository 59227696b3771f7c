"""The attachments of a request, loaded for as long as it is sent.

The newest are sent, as far as a vendor accepts them in one request; in place of every other, and
of a file that is gone, the model reads a note. Text files are sent as text, which every model
reads.
"""

import base64
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from arkloop.shared.catalog.model_routes import ATTACHMENTS
from arkloop.worker.contract.attachments import Attachment, Part, TextPart
from arkloop.worker.contract.context import Files
from arkloop.worker.contract.messages import AssistantMessage, Message, ModelRequest, attachments_of

#: Vendors refuse requests of more than 32 MB, in which base64 makes four bytes of three.
MAX_BYTES = 20 * 1024 * 1024
MAX_ATTACHMENTS = 100

Notes = Mapping[int, str]


@contextmanager
def attached(
    request: ModelRequest, files: Files, accepts: Collection[str] = ATTACHMENTS
) -> Iterator[ModelRequest]:
    """Yield the request with the content of its attachments; waits, visibly, for their memory.

    Those of a kind that the model does not accept are replaced by a note, text files excepted.
    """
    found = [part for message in request.messages for part in attachments_of(message)]
    if not found:
        yield request
        return
    sent = _newest([part for part in found if part.is_text or part.kind in accepts])
    with files.loaded([part for part in sent if part.file_id is not None]) as contents:
        notes = {id(part): _note(part, sent, contents, accepts) for part in found}
        messages = [_with_content(message, contents, notes) for message in request.messages]
        yield replace(request, messages=messages)


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
) -> str:
    """Return what the model reads in place of the attachment; empty if it gets it."""
    if not part.is_text and part.kind not in accepts:
        return f"[{part.label} omitted: you do not accept {part.kind}s]"
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
