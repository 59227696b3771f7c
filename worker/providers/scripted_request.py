"""Texts, images and files that the scripted model reads of a request."""

import base64
import hashlib

from arkloop.shared.threads import earlier_lines
from arkloop.worker.contract.attachments import Attachment, TextPart
from arkloop.worker.contract.messages import (
    AssistantMessage,
    Message,
    ModelRequest,
    UserMessage,
    attachments_of,
)


def text_of(message: UserMessage) -> str:
    """Return the text of a user's message as it is sent."""
    return "\n".join(_texts(message)) if message.parts else message.content


def found(request: ModelRequest, text: str) -> str:
    """Return the line, from this text on, that is first in what was sent; `nothing` without one."""
    question = max(i for i, m in enumerate(request.messages) if isinstance(m, UserMessage))
    whole = _sent(request.messages[question])
    earlier = whole.removesuffix(earlier_lines.without(whole))
    for sent in (*map(_sent, request.messages[:question]), earlier):
        _before, match, rest = sent.partition(text)
        if match:
            return match + rest.partition("\n")[0]
    return "nothing"


def described(request: ModelRequest) -> str:
    """Return what the model sees of the images and files in the whole conversation."""
    seen = [shown(part) for message in request.messages for part in attachments_of(message)]
    return " ".join(seen) or "nothing"


def shown(part: Attachment) -> str:
    """Describe an attachment as `described` does."""
    if part.url is not None:
        return f"[{part.kind} {part.url}]"
    digest = hashlib.sha256(base64.b64decode(part.data or "")).hexdigest()
    return f"[{part.media_type} {part.size} bytes sha256:{digest[:16]}]"


def _sent(message: Message) -> str:
    """Return all text of a message: the notes in place of attachments are parts, too."""
    if isinstance(message, UserMessage):
        return text_of(message)
    return "\n".join([message.content, *_texts(message)])


def _texts(message: Message) -> list[str]:
    parts = () if isinstance(message, AssistantMessage) else message.parts
    return [part.text for part in parts if isinstance(part, TextPart)]
